//! The bundled simulator: a strict API provider and a webhook receiver.
//!
//! `paceline demo`, `paceline bench` and the tests call these two servers over real sockets. They are written
//! independently of the pacing code: nothing here is shared with the dispatcher, so that a mistake there cannot
//! excuse itself here.
//!
//! ```text
//!   request ──▶ one-way delay ──▶ judge (credential, limits) ──▶ work ──▶ one-way delay ──▶ answer
//!               (before!)          enforce.rs, gate.rs            ledger.rs
//! ```
//!
//! * A call is judged *after* its delay on the way there, and it is judged even if the caller has gone meanwhile,
//!   just as a packet in flight arrives although its sender was killed.
//! * What a call does is chosen by its own path or query ([`behaviour`]), so that tests share no state.
//! * Everything is bounded: connections, bodies, ledgers, keys. What did not fit is counted, never silently left out.
//!
//! | file | idea |
//! |---|---|
//! | [`enforce`] | the servers' algorithms, exact, time as an argument |
//! | [`rule`] | one rule: who, what, how many, by which algorithm; written as text |
//! | `gate` | all rules for all keys: all or nothing |
//! | [`measure`] | utilisation of an allowed rate from accepted arrivals |
//! | [`delay`] | seeded lognormal delays |
//! | [`credential`] | where a key stands in a request, and whose it is |
//! | [`behaviour`] | the paths and what they do |
//! | [`ledger`] | what arrived, and how often each idempotency key was executed |
//! | [`provider`], [`receiver`] | the two servers |

pub mod behaviour;
mod body;
mod control;
pub mod credential;
pub mod delay;
pub mod enforce;
mod error;
mod gate;
mod judge;
pub mod ledger;
pub mod measure;
pub mod provider;
pub mod receiver;
mod reply;
pub mod rule;
mod serve;

pub use credential::{KeyPlace, SimKey};
pub use delay::Lognormal;
pub use enforce::{Edge, Limit};
pub use error::{SimError, WaitTimeout};
pub use ledger::{Arrival, Execution, Verdict};
pub use provider::{
    CostSource, KeyStats, Outage, ProviderHandle, ProviderOptions, ProviderSim, ProviderStats, RateHeaders, RetryAfter,
    RuleStats, RuleUse,
};
pub use receiver::{EventRecord, ReceiverHandle, ReceiverOptions, ReceiverSim, ReceiverStats};
pub use rule::{Rule, Scope, Unit};
