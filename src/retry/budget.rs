//! How many retries a provider gets: a share of its calls, so that an outage is not multiplied. Pure.
//!
//! Retries of the last ten seconds are at most a fifth of the calls of the last ten seconds, and one a second
//! more, so that a quiet provider gets retries at all. What comes over that waits longer than its backoff:
//! by a bucket that is refilled at the present rate, and from which a retry takes when it is planned.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pace::Time;

/// How far back calls count, and how many seconds' worth of retries may come at once.
const WINDOW: Duration = Duration::from_secs(10);
/// The share of the calls that may be retries.
const SHARE: f64 = 0.2;
/// Retries a second that are always allowed.
const ALWAYS_PER_SECOND: f64 = 1.0;
/// The window is counted in parts of this length.
const PART: Duration = Duration::from_secs(1);

/// The retries of one provider.
#[derive(Debug, Default)]
pub struct RetryBudget {
    /// Calls made, by parts of the window: (its beginning, calls).
    calls: VecDeque<(Time, u32)>,
    /// When everything that was given a place is paid for.
    paid_at: Time,
}

impl RetryBudget {
    /// A call leaves.
    pub fn called(&mut self, now: Time) {
        self.forget(now);
        match self.calls.back_mut().filter(|(from, _)| now < *from + PART) {
            Some((_, calls)) => *calls = calls.saturating_add(1),
            None => self.calls.push_back((now, 1)),
        }
    }

    /// How long a retry waits that could go after `backoff`.
    pub fn book(&mut self, backoff: Duration, now: Time) -> Duration {
        self.forget(now);
        let calls: u64 = self.calls.iter().map(|(_, calls)| u64::from(*calls)).sum();
        // Of a provider that was quiet before, the rate since then counts.
        let span = self.calls.front().map_or(WINDOW, |(from, _)| now.since(*from).clamp(PART, WINDOW));
        let per_second = SHARE * calls as f64 / span.as_secs_f64() + ALWAYS_PER_SECOND;
        // A bucket of ten seconds' worth: it is full where everything was paid for ten seconds ago.
        let full = Time::ZERO + now.since(Time::ZERO).saturating_sub(WINDOW);
        self.paid_at = self.paid_at.max(full) + Duration::from_secs_f64(1.0 / per_second);
        backoff.max(self.paid_at.since(now))
    }

    fn forget(&mut self, now: Time) {
        while self.calls.front().is_some_and(|(from, _)| *from + WINDOW <= now) {
            self.calls.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(1_000.0 + seconds)
    }

    #[test]
    fn a_few_retries_wait_for_their_backoff_only() {
        let mut budget = RetryBudget::default();
        let backoff = Duration::from_millis(300);
        for _ in 0..10 {
            assert_eq!(budget.book(backoff, at(0.0)), backoff);
        }
        assert!(budget.book(backoff, at(0.0)) > backoff, "ten seconds' worth are spent");
    }

    #[test]
    fn in_an_outage_retries_stay_a_fifth_of_the_calls_and_one_a_second() {
        let mut budget = RetryBudget::default();
        // 100 new calls a second for a minute; all fail, and so do their retries.
        let (mut due, mut made) = (Vec::<Time>::new(), 0_u32);
        for step in 0..6_000 {
            let now = at(f64::from(step) / 100.0);
            let ready = due.iter().filter(|time| **time <= now).count();
            due.retain(|time| *time > now);
            made += u32::try_from(ready).unwrap();
            for _ in 0..=ready {
                budget.called(now);
                let wait = budget.book(Duration::from_millis(100), now);
                due.push(now + wait);
            }
        }
        // r = 0.2 (100 + r) + 1 a second, and what the bucket held at first.
        let most = 60.0 * 26.25 + 10.0 * 26.25;
        assert!(f64::from(made) <= most, "{made} retries");
        assert!(f64::from(made) > 0.8 * 60.0 * 26.25, "{made} retries");
    }

    #[test]
    fn a_long_backoff_does_not_pay_for_others() {
        let mut budget = RetryBudget::default();
        let hour = Duration::from_secs(3_600);
        assert_eq!(budget.book(hour, at(0.0)), hour);
        let soon = budget.book(Duration::from_millis(100), at(0.0));
        assert!(soon < Duration::from_secs(2), "{soon:?}");
    }
}
