//! How many retries a provider gets: a share of its calls, so that an outage is not multiplied. Pure.
//!
//! Retries of the last ten seconds are at most a fifth of the calls of the last ten seconds, and one a second
//! more, so that a quiet provider gets retries at all. What comes over that waits. A retry that is answered well does not
//! count: when the outage is over, what is left is not held up.

use std::collections::VecDeque;
use std::time::Duration;

use crate::pace::Time;

/// How far back calls and retries count.
const WINDOW: Duration = Duration::from_secs(10);
/// The share of the calls that may be retries.
const SHARE: f64 = 0.2;
/// Retries a second that are always allowed.
const ALWAYS_PER_SECOND: f64 = 1.0;
/// The window is counted in parts of this length. Whoever has to wait waits for so long at least.
const PART: Duration = Duration::from_secs(1);
/// Those that wait come back so far apart from each other, all within the window.
const TURN: Duration = Duration::from_millis(10);

/// What happened in a part of the window.
#[derive(Debug)]
struct Part {
    from: Time,
    calls: u32,
    retries: u32,
}

/// The retries of one provider.
#[derive(Debug, Default)]
pub struct RetryBudget {
    parts: VecDeque<Part>,
    /// When the last one that waits comes back.
    turn_at: Time,
}

impl RetryBudget {
    /// A call leaves, whether it is a retry or not.
    pub fn called(&mut self, now: Time) {
        let part = self.part(now);
        part.calls = part.calls.saturating_add(1);
    }

    /// Takes one retry out of the budget.
    ///
    /// # Errors
    /// How long to wait before asking again: 1 to 10 s, so that those that wait come back one after the other.
    pub fn take(&mut self, now: Time) -> Result<(), Duration> {
        let part = self.part(now);
        part.retries = part.retries.saturating_add(1);
        let sum = |of: fn(&Part) -> u32| self.parts.iter().map(|part| u64::from(of(part))).sum::<u64>() as f64;
        let allowed = SHARE * sum(|part| part.calls) + ALWAYS_PER_SECOND * WINDOW.as_secs_f64();
        if sum(|part| part.retries) <= allowed {
            return Ok(());
        }
        let part = self.part(now);
        part.retries -= 1;
        let next = self.turn_at.max(now + PART) + TURN;
        self.turn_at = if next <= now + WINDOW { next } else { now + PART + TURN };
        Err(self.turn_at.since(now))
    }

    /// A retry was answered well: it does not count.
    pub fn give_back(&mut self) {
        if let Some(part) = self.parts.iter_mut().rev().find(|part| part.retries > 0) {
            part.retries -= 1;
        }
    }

    /// The part of now; what is older than the window is forgotten.
    fn part(&mut self, now: Time) -> &mut Part {
        while self.parts.front().is_some_and(|part| part.from + WINDOW <= now) {
            self.parts.pop_front();
        }
        if self.parts.back().is_none_or(|part| part.from + PART <= now) {
            self.parts.push_back(Part { from: now, calls: 0, retries: 0 });
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(1_000.0 + seconds)
    }

    #[test]
    fn a_quiet_provider_gets_one_a_second() {
        let mut budget = RetryBudget::default();
        assert!((0..10).all(|_| budget.take(at(0.0)).is_ok()));
        assert!(budget.take(at(0.0)).is_err());
        assert!(budget.take(at(9.9)).is_err());
        assert!(budget.take(at(10.1)).is_ok());
    }

    #[test]
    fn a_busy_one_gets_a_fifth_of_its_calls_besides() {
        let mut budget = RetryBudget::default();
        (0..100).for_each(|n| budget.called(at(f64::from(n) / 20.0)));
        let taken = (0..100).filter(|_| budget.take(at(5.0)).is_ok()).count();
        assert_eq!(taken, 20 + 10);
    }

    #[test]
    fn whoever_waits_comes_back_one_after_the_other() {
        let mut budget = RetryBudget::default();
        (0..10).for_each(|_| assert!(budget.take(at(0.0)).is_ok()));
        let waits: Vec<Duration> = (0..3).filter_map(|_| budget.take(at(0.0)).err()).collect();
        assert_eq!(waits, [1_010, 1_020, 1_030].map(Duration::from_millis));
        let latest = (0..5_000).filter_map(|_| budget.take(at(0.0)).err()).max();
        assert_eq!(latest, Some(WINDOW));
    }

    #[test]
    fn a_retry_that_is_answered_well_does_not_count() {
        let mut budget = RetryBudget::default();
        for _ in 0..1_000 {
            assert!(budget.take(at(0.0)).is_ok());
            budget.give_back();
        }
    }

    #[test]
    fn in_an_outage_no_ten_seconds_have_more_than_that() {
        let mut budget = RetryBudget::default();
        let (mut due, mut retries, mut calls) = (Vec::<Time>::new(), Vec::new(), Vec::new());
        // 100 new calls a second; all fail, and so do their retries.
        for step in 0..6_000 {
            let now = at(f64::from(step) / 100.0);
            let (ready, later): (Vec<Time>, Vec<Time>) = due.into_iter().partition(|time| *time <= now);
            due = later;
            for _ in ready {
                match budget.take(now) {
                    Ok(()) => {
                        retries.push(now);
                        calls.push(now);
                        budget.called(now);
                        due.push(now + Duration::from_millis(100));
                    }
                    Err(wait) => due.push(now + wait),
                }
            }
            budget.called(now);
            calls.push(now);
            due.push(now + Duration::from_millis(100));
        }
        for end in (20..60).map(|second| at(f64::from(second))) {
            let within = |of: &[Time]| of.iter().filter(|time| end <= **time + WINDOW && **time < end).count() as f64;
            let allowed = SHARE * within(&calls) + 10.0;
            // A part is forgotten as a whole: some calls count a second less, or some retries.
            assert!(within(&retries) <= allowed * 1.15, "{} of {allowed}", within(&retries));
            assert!(within(&retries) >= allowed * 0.7, "{} of {allowed}", within(&retries));
        }
    }
}
