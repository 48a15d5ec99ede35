//! What follows from an outcome: when the next attempt is, or that there is none. Pure; the
//! random number is an argument.

mod budget;

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::clock::WallMs;
use crate::job::{DeadReason, Delivery, RetryOverrides};
use crate::outcome::Outcome;

pub use budget::RetryBudget;

/// How backoffs are spread, so that jobs which failed together do not come back together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// `random(0, min(cap, base·2ⁿ))`
    #[default]
    Full,
    /// Half of it fixed, half random.
    Equal,
    /// `min(cap, random(base, 3·previous))`
    Decorrelated,
    /// `min(cap, base·2ⁿ)`
    None,
}

/// When and how often failed calls are made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Failure attempts before the job is dead.
    pub max_attempts: u32,
    /// First backoff.
    pub base: Duration,
    /// Longest backoff.
    pub cap: Duration,
    /// How backoffs are spread.
    pub jitter: Jitter,
    /// From the first attempt on; also bounds waits for a slot or a key.
    pub max_elapsed: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            base: Duration::from_millis(500),
            cap: Duration::from_secs(60),
            jitter: Jitter::Full,
            max_elapsed: Duration::from_secs(24 * 3600),
        }
    }
}

impl RetryPolicy {
    /// The policy with a job's own wishes in place.
    pub fn with(self, overrides: &RetryOverrides) -> Self {
        Self {
            max_attempts: overrides.max_attempts.unwrap_or(self.max_attempts),
            base: overrides.base.map_or(self.base, |d| d.0),
            cap: overrides.cap.map_or(self.cap, |d| d.0),
            jitter: overrides.jitter.unwrap_or(self.jitter),
            max_elapsed: overrides.max_elapsed.map_or(self.max_elapsed, |d| d.0),
        }
    }

    /// The backoff after failure number `failures` (1 is the first), given the one before
    /// (`previous`, for `decorrelated`) and a random number in `[0, 1)`.
    pub fn backoff(&self, failures: u32, previous: Duration, random: f64) -> Duration {
        let random = random.clamp(0.0, 1.0);
        let doublings = failures.saturating_sub(1).min(63);
        let exponential = self.base.as_secs_f64() * 2f64.powi(i32::try_from(doublings).unwrap_or(63));
        let ceiling = exponential.min(self.cap.as_secs_f64());
        let seconds = match self.jitter {
            Jitter::None => ceiling,
            Jitter::Full => ceiling * random,
            Jitter::Equal => ceiling / 2.0 + ceiling / 2.0 * random,
            Jitter::Decorrelated => {
                let base = self.base.as_secs_f64();
                let high = (previous.as_secs_f64() * 3.0).max(base);
                (base + (high - base) * random).min(self.cap.as_secs_f64())
            }
        };
        Duration::from_secs_f64(seconds)
    }

    /// Whether attempts begun at `first_ms` have gone on for too long by `now_ms`.
    pub fn is_over(&self, first_ms: Option<WallMs>, now_ms: WallMs) -> bool {
        let Some(first) = first_ms else { return false };
        let elapsed = now_ms.saturating_sub(first);
        u128::try_from(elapsed).is_ok_and(|ms| ms >= self.max_elapsed.as_millis())
    }
}

/// What is known when a call has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// What the reply means.
    pub outcome: Outcome,
    /// Whether the provider may have executed the call.
    pub executed: bool,
    /// The job's wish.
    pub delivery: Delivery,
    /// Failures of this run before this call.
    pub failures: u32,
    /// The last backoff.
    pub previous: Duration,
    /// `Retry-After`, a floor.
    pub retry_after: Option<Duration>,
    /// When this run's first attempt was made.
    pub first_ms: Option<WallMs>,
    /// Now.
    pub now_ms: WallMs,
}

/// What becomes of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Succeeded,
    /// It goes again at the next slot, with whatever key has one; no failure is counted.
    NextSlot,
    /// It failed, and goes again after that time.
    Backoff(Duration),
    /// It failed for good.
    Dead(DeadReason),
}

impl RetryPolicy {
    /// What follows from the end of a call. `random` is in `[0, 1)`.
    pub fn verdict(&self, call: &Ended, random: f64) -> Verdict {
        let once = call.delivery == Delivery::AtMostOnce;
        match call.outcome {
            Outcome::Success => Verdict::Succeeded,
            Outcome::Redirect | Outcome::Permanent => Verdict::Dead(DeadReason::Permanent),
            Outcome::RateLimited | Outcome::QuotaExhausted | Outcome::Credential => {
                if self.is_over(call.first_ms, call.now_ms) {
                    Verdict::Dead(DeadReason::GaveUp)
                } else {
                    Verdict::NextSlot
                }
            }
            Outcome::Transient | Outcome::Unknown if once && call.executed => Verdict::Dead(DeadReason::OutcomeUnknown),
            Outcome::Transient | Outcome::Unknown => {
                let failures = call.failures.saturating_add(1);
                if failures >= self.max_attempts {
                    return Verdict::Dead(DeadReason::AttemptsExhausted);
                }
                if self.is_over(call.first_ms, call.now_ms) {
                    return Verdict::Dead(DeadReason::GaveUp);
                }
                let backoff = self.backoff(failures, call.previous, random);
                let floor = call.retry_after.unwrap_or_default();
                // Jitter is added above the floor: whoever was told the same time must not come back at once.
                let wait = if floor > backoff { floor + self.base.mul_f64(random) } else { backoff };
                let back_ms = call.now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                // A wait that ends too late is not waited for.
                if self.is_over(call.first_ms, back_ms) {
                    return Verdict::Dead(DeadReason::GaveUp);
                }
                Verdict::Backoff(wait)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(jitter: Jitter) -> RetryPolicy {
        RetryPolicy { jitter, ..RetryPolicy::default() }
    }

    fn table(jitter: Jitter, random: f64) -> Vec<u128> {
        let policy = policy(jitter);
        let mut previous = Duration::ZERO;
        (1..=9)
            .map(|failures| {
                previous = policy.backoff(failures, previous, random);
                previous.as_millis()
            })
            .collect()
    }

    #[test]
    fn backoffs_follow_their_formulas() {
        assert_eq!(table(Jitter::None, 0.3), [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
        assert_eq!(table(Jitter::Full, 0.5), [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(table(Jitter::Full, 0.0)[..3], [0, 0, 0]);
        assert_eq!(table(Jitter::Equal, 0.0), [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(table(Jitter::Decorrelated, 1.0)[..5], [500, 1500, 4500, 13_500, 40_500]);
        assert_eq!(table(Jitter::Decorrelated, 0.0)[..3], [500, 500, 500]);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        for jitter in [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
            let longest = policy(jitter).backoff(u32::MAX, Duration::from_secs(u32::MAX.into()), 1.0);
            assert!(longest <= Duration::from_secs(60), "{jitter:?}");
        }
    }

    #[test]
    fn elapsed_time_counts_from_the_first_attempt() {
        let policy = RetryPolicy { max_elapsed: Duration::from_secs(10), ..RetryPolicy::default() };
        assert!(!policy.is_over(None, i64::MAX));
        assert!(!policy.is_over(Some(0), 9_999));
        assert!(policy.is_over(Some(0), 10_000));
        assert!(!policy.is_over(Some(5_000), 0), "a wall clock that jumped back ends nothing");
    }

    fn ended(outcome: Outcome) -> Ended {
        Ended {
            outcome,
            executed: matches!(outcome, Outcome::Unknown | Outcome::Success),
            delivery: Delivery::AtLeastOnce,
            failures: 0,
            previous: Duration::ZERO,
            retry_after: None,
            first_ms: Some(0),
            now_ms: 1_000,
        }
    }

    #[test]
    fn every_outcome_has_its_verdict() {
        let policy = RetryPolicy::default();
        let verdict = |outcome| policy.verdict(&ended(outcome), 0.5);
        assert_eq!(verdict(Outcome::Success), Verdict::Succeeded);
        for outcome in [Outcome::RateLimited, Outcome::QuotaExhausted, Outcome::Credential] {
            assert_eq!(verdict(outcome), Verdict::NextSlot, "no failure attempt is spent");
        }
        for outcome in [Outcome::Redirect, Outcome::Permanent] {
            assert_eq!(verdict(outcome), Verdict::Dead(DeadReason::Permanent));
        }
        for outcome in [Outcome::Transient, Outcome::Unknown] {
            assert_eq!(verdict(outcome), Verdict::Backoff(Duration::from_millis(250)));
        }
    }

    #[test]
    fn attempts_and_time_are_bounded() {
        let policy = RetryPolicy::default();
        let last = Ended { failures: 4, ..ended(Outcome::Transient) };
        assert_eq!(policy.verdict(&last, 0.5), Verdict::Dead(DeadReason::AttemptsExhausted));
        for outcome in [Outcome::Transient, Outcome::RateLimited, Outcome::Credential] {
            let late = Ended { now_ms: 24 * 3_600_000, ..ended(outcome) };
            assert_eq!(policy.verdict(&late, 0.5), Verdict::Dead(DeadReason::GaveUp));
        }
    }

    #[test]
    fn at_most_once_is_not_sent_again_unless_it_surely_was_not_executed() {
        let policy = RetryPolicy::default();
        let once = |outcome, executed| {
            policy.verdict(&Ended { delivery: Delivery::AtMostOnce, executed, ..ended(outcome) }, 0.5)
        };
        assert_eq!(once(Outcome::Unknown, true), Verdict::Dead(DeadReason::OutcomeUnknown));
        assert_eq!(once(Outcome::Transient, true), Verdict::Dead(DeadReason::OutcomeUnknown));
        assert!(matches!(once(Outcome::Transient, false), Verdict::Backoff(_)));
        assert_eq!(once(Outcome::RateLimited, false), Verdict::NextSlot);
    }

    #[test]
    fn a_wait_that_would_end_too_late_is_not_waited_for() {
        let policy = RetryPolicy { max_elapsed: Duration::from_secs(10), ..RetryPolicy::default() };
        let told = |seconds| Ended { retry_after: Some(Duration::from_secs(seconds)), ..ended(Outcome::Transient) };
        assert!(matches!(policy.verdict(&told(8), 0.0), Verdict::Backoff(_)));
        assert_eq!(policy.verdict(&told(9), 0.0), Verdict::Dead(DeadReason::GaveUp));
        assert_eq!(policy.verdict(&told(3600), 0.0), Verdict::Dead(DeadReason::GaveUp));
    }

    #[test]
    fn retry_after_is_a_floor_with_jitter_above() {
        let policy = RetryPolicy::default();
        let told = Ended { retry_after: Some(Duration::from_secs(7)), ..ended(Outcome::Transient) };
        assert_eq!(policy.verdict(&told, 0.0), Verdict::Backoff(Duration::from_secs(7)));
        assert_eq!(policy.verdict(&told, 0.5), Verdict::Backoff(Duration::from_millis(7_250)));
    }
}
