//! Real processes, real broker, real database, and everything that can happen to them, at random and
//! by seed. Then faults end, all drains, and an audit from the outside asks whether every promise was
//! kept.
//!
//! ```text
//! producers ─▶ (broker) ─▶ proxies ─▶ processes ─▶ proxies ─▶ strict provider, webhook receiver
//!                              ▲          ▲
//!                        cut, stall,   kill -9, SIGSTOP,
//!                        slow, refuse  SIGTERM, restart
//! ```
//!
//! Two short rounds are a part of `make test`; `make chaos` runs long ones, as many as are wished.

#[path = "../common/mod.rs"]
mod common;
mod fleet;
mod plan;
mod producers;
mod round;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use common::services::Services;
use common::world::Mode;
use futures_util::FutureExt as _;
use plan::Size;
use round::Report;

/// Within `make test`.
const SHORT: Size = Size { jobs: 300, faults: 6, span: Duration::from_secs(10), services: false };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_round_embedded() {
    held(round::run(Mode::Embedded, 1, SHORT, None).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_round_with_rabbitmq_and_postgresql() {
    held(round::run(Mode::Scaled, 1, SHORT, None).await);
}

fn held(report: Report) {
    assert!(report.failure.is_none(), "{}", report.failure.unwrap_or_default());
}

fn number(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        _ => usual,
    }
}

/// `make chaos`: `CHAOS_ROUNDS` rounds of each mode from `CHAOS_SEED` on. Every round is run; then the
/// failures are counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or more a round: make chaos"]
async fn rounds() {
    let modes: &[Mode] = match std::env::var("CHAOS_MODE").unwrap_or_default().as_str() {
        "" | "both" => &[Mode::Embedded, Mode::Scaled],
        "embedded" => &[Mode::Embedded],
        "scaled" => &[Mode::Scaled],
        other => panic!("CHAOS_MODE={other}: embedded, scaled or both"),
    };
    let jobs = usize::try_from(number("CHAOS_JOBS", 2_000)).expect("a count");
    let (first, rounds) = (number("CHAOS_SEED", 1), number("CHAOS_ROUNDS", 1));
    let services = number("CHAOS_SERVICES", 1) == 1;
    let mut failed = Vec::new();
    for seed in first..first + rounds {
        for &mode in modes {
            let scaled = mode == Mode::Scaled;
            let alone = if scaled && services { Some(Services::alone().await) } else { None };
            let span = Duration::from_secs_f64((jobs as f64 / 60.0).max(15.0));
            let faults = usize::try_from(number("CHAOS_FAULTS", 14)).expect("a count");
            let size = Size { jobs, faults, span, services: services && scaled };
            let round = AssertUnwindSafe(round::run(mode, seed, size, alone.as_ref())).catch_unwind().await;
            let held = match round {
                Ok(report) => {
                    println!("{report}");
                    report.failure.inspect(|failure| eprintln!("{failure}")).is_none()
                }
                Err(_) => {
                    println!("BROKEN MODE={} SEED={seed}: see above", round::name(mode));
                    false
                }
            };
            if !held {
                failed.push(format!("SEED={seed} MODE={}", round::name(mode)));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {} rounds failed: {failed:#?}", failed.len(), rounds * modes.len() as u64);
}
