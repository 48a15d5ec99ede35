//! What tests of whole processes share: the built binary in a place of its own ([`world`]), the
//! broker seen by a producer ([`broker`]), and waiting that names what it waits for ([`until`]).
//!
//! Every test has its own directory, database, port, and provider name, so its own queues; all of it
//! is removed at its end, however it ends.
#![allow(dead_code, reason = "every test binary uses another part of it")]

pub mod audit;
pub mod broker;
pub mod browser;
pub mod cut;
pub mod proxy;
pub mod raw;
pub mod services;
pub mod store;
pub mod tools;
pub mod world;

use std::time::{Duration, Instant};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Looks until there is something to see. Never a sleep that hopes.
pub async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// `Some(())` where it holds, for [`until`].
pub fn holds(is: bool) -> Option<()> {
    is.then_some(())
}

/// A short wait is enough for what happens at once.
pub const SOON: Duration = Duration::from_secs(20);
