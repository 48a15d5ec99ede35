//! When to look into the store for due deliveries. Pure: time and the random number are arguments.
//!
//! A wake means now; the next due time means then; and in case a wake was lost, at the latest after
//! [`IDLE_MAX`]. Never in a tight loop: looks are [`GAP`] apart, those that find nothing although
//! something is said to be due further and further apart, and failures back off.

use std::time::Duration;

use crate::pace::Time;

/// Between two looks at least: under load, deliveries gather meanwhile and are claimed together.
const GAP: Duration = Duration::from_millis(5);
/// The look after one that found some, but fewer than it could have taken: there may be more, since
/// the store bounds the bytes of a claim too.
const AFTER_SOME: Duration = Duration::from_millis(50);
/// The longest time without a look.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// First and longest wait after a failure.
const FAILURE_MIN: Duration = Duration::from_millis(100);
const FAILURE_MAX: Duration = Duration::from_secs(5);

/// The time of the next look.
#[derive(Debug)]
pub(crate) struct Poll {
    at: Time,
    last: Time,
    /// Looks in a row that found nothing of what is said to be due.
    vain: u32,
    /// Failures in a row.
    failures: u32,
    /// Woken since the last look began.
    woken: bool,
}

impl Poll {
    /// The first look is due at once.
    pub(crate) fn new(now: Time) -> Self {
        Self { at: now, last: Time::ZERO, vain: 0, failures: 0, woken: false }
    }

    /// How long until the next look; zero when it is due.
    pub(crate) fn wait(&self, now: Time) -> Duration {
        self.at.since(now)
    }

    /// A look begins.
    pub(crate) fn looking(&mut self, now: Time) {
        self.last = now;
        self.woken = false;
    }

    /// Something became due. After a failure that is no reason to hurry.
    pub(crate) fn wake(&mut self) {
        self.woken = true;
        if self.failures == 0 {
            self.at = self.at.min(self.last + GAP);
        }
    }

    /// The look found as many as it could take, or at least some.
    pub(crate) fn found(&mut self, as_many_as_asked: bool, now: Time) {
        (self.vain, self.failures) = (0, 0);
        self.at = if as_many_as_asked || self.woken { self.last + GAP } else { now + AFTER_SOME };
    }

    /// The look found nothing; the next delivery is due in `due_in`, if there is one.
    pub(crate) fn nothing(&mut self, due_in: Option<Duration>, now: Time) {
        self.failures = 0;
        let soonest = if self.woken { Duration::ZERO } else { due_in.unwrap_or(IDLE_MAX) };
        self.vain = if soonest.is_zero() { self.vain.saturating_add(1) } else { 0 };
        self.at = now + soonest.max(doubled(GAP, self.vain, IDLE_MAX)).min(IDLE_MAX);
    }

    /// The store could not be asked. `random` is in `[0, 1)`.
    pub(crate) fn failed(&mut self, now: Time, random: f64) {
        self.failures = self.failures.saturating_add(1);
        self.at = now + after_failure(self.failures, random);
    }
}

/// How long to leave the store alone after that many failures in a row: doubling, half of it random.
pub(super) fn after_failure(failures: u32, random: f64) -> Duration {
    doubled(FAILURE_MIN, failures.saturating_sub(1), FAILURE_MAX).mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0))
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(1_000_000_000_000);

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn the_first_look_is_at_once_and_a_full_one_is_followed_soon() {
        let mut poll = Poll::new(START);
        assert_eq!(poll.wait(START), Duration::ZERO);
        poll.looking(START);
        poll.found(true, START + ms(3));
        assert_eq!(poll.wait(START + ms(3)), ms(2), "5 ms after the look began");
        poll.found(false, START + ms(3));
        assert_eq!(poll.wait(START + ms(3)), AFTER_SOME);
    }

    #[test]
    fn a_wake_brings_the_look_forward_and_is_not_lost_during_one() {
        let mut poll = Poll::new(START);
        poll.looking(START);
        poll.nothing(None, START);
        assert_eq!(poll.wait(START), IDLE_MAX);
        poll.wake();
        assert_eq!(poll.wait(START + ms(100)), Duration::ZERO);
        poll.looking(START + ms(100));
        poll.wake();
        poll.found(false, START + ms(101));
        assert_eq!(poll.wait(START + ms(101)), ms(4));
    }

    #[test]
    fn an_idle_store_is_asked_when_something_is_due_and_every_five_seconds() {
        let mut poll = Poll::new(START);
        for _ in 0..20 {
            for (due_in, expected) in [(None, 5_000), (Some(ms(700)), 700), (Some(ms(60_000)), 5_000)] {
                poll.looking(START);
                poll.nothing(due_in, START);
                assert_eq!(poll.wait(START), ms(expected));
            }
        }
    }

    /// Due by the store's word, and yet claimed by nobody: a disabled endpoint, another notifier.
    #[test]
    fn looks_in_vain_grow_rarer_even_when_woken() {
        for woken in [false, true] {
            let mut poll = Poll::new(START);
            let mut now = START;
            let mut looks = 0;
            while now < START + Duration::from_secs(60) {
                now = now + poll.wait(now);
                poll.looking(now);
                if woken {
                    poll.wake();
                }
                poll.nothing(Some(Duration::ZERO), now);
                looks += 1;
            }
            assert!(looks < 25, "{looks} looks in a minute");
        }
    }

    #[test]
    fn failures_back_off_and_wakes_do_not_undo_it() {
        let mut poll = Poll::new(START);
        let waits: Vec<_> = (0..8)
            .map(|_| {
                poll.looking(START);
                poll.failed(START, 1.0);
                poll.wake();
                poll.wait(START).as_millis()
            })
            .collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(after_failure(1, 0.0), ms(50));
        assert_eq!(after_failure(u32::MAX, 1.0), FAILURE_MAX);
        poll.found(false, START);
        poll.looking(START);
        poll.failed(START, 1.0);
        assert_eq!(poll.wait(START), ms(100), "a success starts over");
    }
}
