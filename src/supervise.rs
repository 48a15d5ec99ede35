//! How long to wait before the next try to reach something that is gone.
//!
//! The only place that uses the `backoff` crate: reconnections, never retries of jobs.

use std::time::Duration;

use backoff::backoff::Backoff as _;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Growing, jittered waits without end: from 0.2 s up to 10 s.
#[derive(Debug)]
pub struct Reconnect {
    inner: ExponentialBackoff,
}

impl Reconnect {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(10);

    /// Starts with the shortest wait.
    pub fn new() -> Self {
        let inner = ExponentialBackoffBuilder::new()
            .with_initial_interval(Self::FIRST)
            .with_max_interval(Self::LONGEST)
            .with_multiplier(2.0)
            .with_randomization_factor(0.3)
            .with_max_elapsed_time(None)
            .build();
        Self { inner }
    }

    /// How long to wait now; the next one is longer.
    pub fn wait(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(Self::LONGEST)
    }

    /// It works again: begin with the shortest wait next time.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

impl Default for Reconnect {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_bounded_and_never_end() {
        let mut reconnect = Reconnect::new();
        let waits: Vec<Duration> = (0..50).map(|_| reconnect.wait()).collect();
        assert!(waits[0] <= Duration::from_millis(260));
        assert!(waits[49] >= Duration::from_secs(7));
        assert!(waits.iter().all(|w| *w <= Duration::from_secs(13)));
        reconnect.reset();
        assert!(reconnect.wait() <= Duration::from_millis(260));
    }
}
