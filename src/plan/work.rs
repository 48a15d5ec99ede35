//! What is to be planned.

use std::time::Duration;

use crate::clock::WallMs;
use crate::sim::Lognormal;

/// Most jobs that can be planned.
pub const JOBS_MAX: u64 = 1_000_000_000_000;
/// Highest arrival rate, in jobs a second.
pub const RATE_MAX: f64 = 1_000_000.0;
/// Longest time for which arrivals can be planned.
pub const SPAN_MAX: Duration = Duration::from_secs(400 * 86_400);

/// How much is to be done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many jobs that are all there at the beginning.
    Jobs(u64),
    /// Jobs that come at random, independently of each other.
    Arrivals {
        /// So many a second on average.
        per_second: f64,
        /// For so long.
        span: Duration,
    },
}

/// The work, and what is assumed about the provider.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// How much.
    pub amount: Amount,
    /// From sending a call to its answer.
    pub latency: Lognormal,
    /// Cost units of each job.
    pub cost: u64,
    /// The share of calls that fail and are tried again, 0 to 0.9.
    pub failures: f64,
    /// Names of lanes and their shares of the jobs; empty: all in the lane `default`.
    pub lanes: Vec<(String, f64)>,
    /// Method of the calls, for routes.
    pub method: String,
    /// Path of the calls, for routes.
    pub path: String,
    /// The same seed gives the same plan.
    pub seed: u64,
    /// When it begins: matters for calendar quotas.
    pub start_ms: WallMs,
}

impl Work {
    /// So much of the plainest work: answers after 200 ms, no failures, one unit of cost, `GET /`.
    pub fn plain(amount: Amount, start_ms: WallMs) -> Self {
        Self {
            amount,
            latency: Lognormal::ms(200, 200),
            cost: 1,
            failures: 0.0,
            lanes: Vec::new(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            seed: 1,
            start_ms,
        }
    }

    /// The mean time to an answer.
    pub fn mean_latency(&self) -> Duration {
        let at = |z| self.latency.at(z).as_secs_f64();
        // Of a lognormal distribution with σ = ln(at(1) ÷ at(0)).
        let sigma = (at(1.0) / at(0.0)).ln();
        Duration::try_from_secs_f64(at(0.0) * (sigma * sigma / 2.0).exp()).unwrap_or(Duration::MAX)
    }

    /// Calls that a job takes on average, with at most so many attempts.
    pub fn calls_per_job(&self, max_attempts: u32) -> f64 {
        let attempts = i32::try_from(max_attempts).unwrap_or(i32::MAX);
        (1.0 - self.failures.powi(attempts)) / (1.0 - self.failures)
    }

    /// Lanes with their shares, which sum up to 1.
    pub fn shares(&self) -> Vec<(String, f64)> {
        if self.lanes.is_empty() {
            return vec![("default".to_owned(), 1.0)];
        }
        let sum: f64 = self.lanes.iter().map(|(_, share)| share).sum();
        self.lanes.iter().map(|(name, share)| (name.clone(), share / sum)).collect()
    }
}
