//! Limits that nobody declared but that answers tell: they are the limit.
//!
//! An answer says how many calls were left when the provider counted its call. Calls that it may not have counted by
//! then are those not known to be over when that call left; the rest of what it says may still be sent. After the
//! stated reset one call asks anew, since nobody knows whether all of it came back or one.

use super::Time;
use super::slot::Slot;

/// So many different limits of one budget are remembered.
const MOST: usize = 8;
/// Where an answer does not say when more will be there, one call asks after so many nanoseconds.
const ASK_AFTER: u64 = 1_000_000_000;
/// What was not told any more for so long does not hold any more.
const FORGET_AFTER: u64 = 600_000_000_000;
/// Resets further apart than this (nanoseconds) are those of different windows.
const SAME_RESET: u64 = 2_000_000_000;

/// What one answer says about one limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    /// Amount and window (nanoseconds), as far as they were told: which limit it is about.
    pub which: (Option<u64>, Option<u64>),
    pub remaining: u64,
    /// Nanoseconds after the answer.
    pub resets_in: Option<u64>,
}

/// The call whose answer it is, and how many calls there were.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub sent: Time,
    pub answered: Time,
    /// Calls that were over when it was booked.
    pub over_before: u64,
    /// Calls booked until now.
    pub booked: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    which: (Option<u64>, Option<u64>),
    /// The call whose answer said so, and what it said.
    sent: Time,
    /// What the first answer of this window said: what was left, and how many calls were over by then.
    first: (u64, u64),
    /// Calls of others in this window, as far as answers showed.
    foreign: u64,
    /// Calls that may still be sent before `until`.
    left: u64,
    until: Time,
    /// A call that asks is on its way since then.
    asked: Option<Time>,
    told_at: Time,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    entries: Vec<Entry>,
}

impl Told {
    /// Whether answers tell limits.
    pub fn is_some(&self) -> bool {
        !self.entries.is_empty()
    }

    pub fn slot(&self, now: Time) -> Slot {
        let entries = self.entries.iter().filter(|entry| entry.left == 0 && now < entry.until);
        entries.fold(Slot::OPEN, |slot, entry| slot.and(Slot::answered_by(entry.until)))
    }

    pub fn book(&mut self, now: Time) {
        for entry in &mut self.entries {
            if entry.left == 0 && now >= entry.until {
                // This call asks: its answer tells what is left.
                (entry.until, entry.asked) = (Time::MAX, Some(now));
            }
            entry.left = entry.left.saturating_sub(1);
        }
    }

    /// A call that surely was not sent.
    pub fn unbook(&mut self, now: Time) {
        for entry in self.entries.iter_mut().filter(|entry| entry.asked.is_none()) {
            entry.left = entry.left.saturating_add(1);
        }
        self.ask_again(now);
    }

    /// A call that asked ended without an answer: another one asks.
    pub fn ask_again(&mut self, now: Time) {
        for entry in self.entries.iter_mut().filter(|entry| entry.asked.is_some()) {
            (entry.until, entry.asked) = (now, None);
        }
    }

    /// An answer tells these limits; says how many calls somebody else must have made.
    pub fn answered(&mut self, statements: &[Statement], call: Call) -> u64 {
        let now = call.answered;
        self.entries.retain_mut(|entry| {
            if statements.iter().any(|statement| statement.which == entry.which) {
                return true;
            }
            if !statements.is_empty() {
                // This call was counted elsewhere.
                entry.left = entry.left.saturating_add(1);
            }
            // It asked, and nothing was told.
            let unanswered = entry.asked.is_some_and(|asked| call.sent >= asked);
            !unanswered && now < entry.told_at.plus(FORGET_AFTER).max(entry.until)
        });
        statements.iter().map(|statement| self.learn(statement, call)).sum()
    }

    fn learn(&mut self, statement: &Statement, call: Call) -> u64 {
        let own = |before: u64| call.booked.saturating_sub(before).saturating_sub(1);
        let left = statement.remaining.saturating_sub(own(call.over_before));
        let until = call.answered.plus(statement.resets_in.unwrap_or(ASK_AFTER));
        let news = Entry {
            which: statement.which,
            sent: call.sent,
            first: (statement.remaining, call.over_before),
            foreign: 0,
            left,
            until,
            asked: None,
            told_at: call.answered,
        };
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.which == statement.which) else {
            if self.entries.len() < MOST {
                self.entries.push(news);
            }
            return 0;
        };
        if call.sent < entry.sent {
            // A late answer may only tighten.
            entry.left = entry.left.min(left);
            return 0;
        }
        let same_window = entry.asked.is_none()
            && call.answered < entry.until
            && statement.resets_in.is_some()
            && until.as_nanos().abs_diff(entry.until.as_nanos()) <= SAME_RESET;
        let asked = entry.asked.filter(|asked| call.sent < *asked);
        let news = Entry { until: if asked.is_some() { Time::MAX } else { until }, asked, ..news };
        if !same_window || statement.remaining > entry.first.0 {
            *entry = news;
            return 0;
        }
        let fell_by = entry.first.0 - statement.remaining;
        let foreign = fell_by.saturating_sub(own(entry.first.1)).max(entry.foreign);
        let more = foreign - entry.foreign;
        *entry = Entry { first: entry.first, foreign, ..news };
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Time {
        Time::from_nanos((1_000 + seconds) * SECOND)
    }

    fn of_ten(remaining: u64, resets_in: Option<u64>) -> Statement {
        Statement { which: (Some(10), None), remaining, resets_in: resets_in.map(|seconds| seconds * SECOND) }
    }

    /// Sent then, answered at once; so many calls were over when it was booked, so many are booked by now.
    fn call(sent: u64, over_before: u64, booked: u64) -> Call {
        Call { sent: at(sent), answered: at(sent), over_before, booked }
    }

    /// Of ten calls three are left for ten seconds.
    fn three_left() -> Told {
        let mut told = Told::default();
        assert_eq!(told.answered(&[of_ten(3, Some(10))], call(0, 0, 1)), 0);
        told
    }

    fn book(told: &mut Told, calls: usize, now: u64) {
        (0..calls).for_each(|_| told.book(at(now)));
    }

    #[test]
    fn no_more_is_sent_than_was_told_until_the_reset_and_then_one_call_asks() {
        let mut told = three_left();
        book(&mut told, 2, 1);
        assert!(told.slot(at(1)).is_open(at(1)));
        book(&mut told, 1, 1);
        assert_eq!(told.slot(at(9)), Slot::answered_by(at(10)));
        assert!(told.slot(at(10)).is_open(at(10)));
        book(&mut told, 1, 10);
        assert_eq!(told.slot(at(11)), Slot::answered_by(Time::MAX), "one call, whatever it takes");
        told.answered(&[of_ten(9, Some(10))], call(10, 4, 5));
        assert!(told.slot(at(11)).is_open(at(11)));
        book(&mut told, 9, 11);
        assert!(!told.slot(at(11)).is_open(at(11)));
    }

    #[test]
    fn calls_that_may_not_have_been_counted_are_taken_off() {
        let mut told = Told::default();
        told.answered(&[of_ten(5, Some(10))], call(0, 1, 4));
        // Of four booked one was over, and one is the call itself.
        book(&mut told, 2, 1);
        assert!(told.slot(at(1)).is_open(at(1)));
        book(&mut told, 1, 1);
        assert!(!told.slot(at(1)).is_open(at(1)));
    }

    #[test]
    fn a_call_that_was_not_sent_gives_its_place_back_and_one_that_asked_in_vain_is_followed_by_another() {
        let mut told = three_left();
        book(&mut told, 3, 1);
        told.unbook(at(2));
        assert!(told.slot(at(2)).is_open(at(2)));
        book(&mut told, 1, 2);
        book(&mut told, 1, 10);
        assert!(!told.slot(at(11)).is_open(at(11)));
        told.ask_again(at(12));
        assert!(told.slot(at(12)).is_open(at(12)), "another one asks");
        book(&mut told, 1, 12);
        assert!(!told.slot(at(13)).is_open(at(13)), "and no more than one");
        told.unbook(at(14));
        assert!(told.slot(at(14)).is_open(at(14)), "it did not ask");
    }

    #[test]
    fn an_answer_that_is_late_only_tightens() {
        let mut told = three_left();
        told.answered(&[of_ten(1, Some(10))], call(5, 1, 2));
        told.answered(&[of_ten(9, Some(10))], call(4, 1, 2));
        book(&mut told, 1, 6);
        assert!(!told.slot(at(6)).is_open(at(6)));
    }

    #[test]
    fn a_call_that_another_limit_counted_gives_its_place_back() {
        let other = Statement { which: (Some(500), None), remaining: 400, resets_in: Some(60 * SECOND) };
        let mut told = three_left();
        book(&mut told, 3, 1);
        assert!(!told.slot(at(1)).is_open(at(1)));
        told.answered(&[], call(1, 1, 4));
        assert!(!told.slot(at(1)).is_open(at(1)), "an answer that tells nothing");
        told.answered(&[other], call(1, 1, 4));
        assert!(told.slot(at(1)).is_open(at(1)));
    }

    #[test]
    fn what_is_not_told_any_more_is_forgotten_when_asked_for_in_vain_or_after_long() {
        let mut told = three_left();
        book(&mut told, 4, 10);
        told.answered(&[], call(9, 1, 5));
        assert!(told.is_some(), "it did not ask");
        told.answered(&[], call(10, 1, 5));
        assert!(!told.is_some());

        let mut told = three_left();
        book(&mut told, 1, 10);
        told.answered(&[], call(10, 1, 2));
        assert!(told.is_some(), "some are left: it did not ask");

        let mut told = three_left();
        told.answered(&[], call(599, 1, 2));
        assert!(told.is_some());
        told.answered(&[], call(600, 1, 2));
        assert!(!told.is_some());
    }

    #[test]
    fn calls_of_others_are_counted_once_within_a_window_and_not_across_windows() {
        let mut told = three_left();
        // One was over then; this is the second call of ours, and two are missing.
        assert_eq!(told.answered(&[of_ten(1, Some(9))], call(1, 1, 2)), 1);
        assert_eq!(told.answered(&[of_ten(0, Some(8))], call(2, 2, 3)), 0, "that one is known");
        // After the reset nothing is compared with what was left before.
        told.book(at(10));
        assert_eq!(told.answered(&[of_ten(4, Some(10))], call(10, 3, 4)), 0);
        assert_eq!(told.answered(&[of_ten(2, Some(9))], call(11, 4, 5)), 1);
        // The calls of one that may not have been counted yet hide no more than one each, however often something is told.
        let mut hidden = Told::default();
        assert_eq!(hidden.answered(&[of_ten(5, Some(10))], call(0, 0, 1)), 0);
        assert_eq!(hidden.answered(&[of_ten(3, Some(9))], call(1, 1, 3)), 0);
        assert_eq!(hidden.answered(&[of_ten(1, Some(8))], call(2, 2, 4)), 1);
        // Another reset is another window; so is one without any.
        assert_eq!(told.answered(&[of_ten(0, Some(30))], call(12, 5, 6)), 0);
        assert_eq!(told.answered(&[of_ten(0, None)], call(13, 6, 7)), 0);
    }
}
