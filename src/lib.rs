//! Paceline drains API-call jobs at exactly the rate that providers allow.
//!
//! ```text
//! RabbitMQ ─▶ inlet ─┐                                              ┌─▶ webhook ─▶ endpoints
//!                    ├─▶ store ─▶ dispatch ─▶ pace ─▶ provider ─▶ store
//! HTTP ─────▶ api ───┘   (claim)  (in line)  (permit)  (call)     (outcome, event, deliveries)
//! ```
//!
//! A job comes in over RabbitMQ ([`inlet`]) or HTTP ([`api`]), is checked once ([`job`]) and
//! committed to the [`store`], which owns it from then on. The dispatcher of its provider
//! ([`dispatch`]) claims it, waits for a permit from every limit that applies ([`pace`]), makes the
//! call with the permit's key ([`provider`]), reads what the answer means ([`outcome`], [`retry`]),
//! and commits attempt, state, result and event in one transaction. The notifier ([`webhook`])
//! delivers the event until its endpoint has it.
//!
//! What decides is pure: [`job`], [`outcome`], [`retry`], [`pace`] and [`dispatch::core`] take time
//! and random numbers as arguments and do no I/O. What does I/O is around them. Dependencies run
//! one way: `workers → api, dispatch, webhook, schedule → store, inlet, provider → pace, job,
//! outcome, retry`. The binary in `workers/` may use this library, never the reverse.

pub mod api;
pub mod asyncapi;
pub mod breaker;
pub mod calendar;
pub mod clock;
pub mod config;
pub mod cost;
pub mod cron;
pub mod dispatch;
pub mod duration;
pub mod glob;
pub mod inlet;
pub mod job;
pub mod kill_point;
pub mod net_guard;
pub mod outcome;
pub mod pace;
pub mod plan;
pub mod pointer;
pub mod provider;
pub mod publish;
pub mod readiness;
pub mod reload;
pub mod replays;
pub mod resends;
pub mod retry;
pub mod schedule;
pub mod secrets;
pub mod send_window;
pub mod sim;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod vault;
pub mod webhook;
