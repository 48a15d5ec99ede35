//! Who may spend a provider's budgets: one dispatcher at a time, by a lease in the store.
//!
//! The owner renews every two seconds and writes two things with each renewal: what it has spent
//! so far, and how many calls it may make before the next one. It stops by its own clock before
//! the lease could be taken from it. Whoever takes over restores what was spent, and after a crash
//! counts everything that was written ahead as spent as well: so neither a restart nor a kill nor a
//! second dispatcher exceeds a limit.
//!
//! [`Tenure`] decides, without I/O; the shell executes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::since_boot;
use crate::pace::{Saved, Since, Time};
use crate::store::LeaseState;

/// A lease that is not renewed can be taken after so long.
pub(super) const TTL: Duration = Duration::from_secs(6);
/// It is renewed this often.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// Its owner stops so long before it could be taken.
const MARGIN: Duration = Duration::from_millis(500);
/// Where somebody else holds it, or the store is away, it is asked for this often.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Calls written ahead at least, and at a multiple of what was needed last.
const AHEAD_MIN: u64 = 1_000;
const AHEAD_FACTOR: u64 = 4;
/// Open calls written ahead at least, at a multiple of the most that were open, and no less than
/// this share (in percent) of what was written before: a burst now and then finds them there.
const OPEN_MIN: u64 = 8;
const OPEN_FACTOR: u64 = 2;
const OPEN_KEPT_PERCENT: u64 = 95;
/// Renewals that are wanted early, since the calls run out, are at least this far apart.
const RENEW_EARLIEST: Duration = Duration::from_millis(50);

/// What stands in the lease's row.
#[derive(Debug, Serialize, Deserialize)]
struct Book {
    /// What may be done after this was written.
    ahead: Ahead,
    /// The machine's boot, and the time since then: exact however the wall clock jumps.
    boot: Option<Boot>,
    spent: Saved,
}

/// What an owner may do until its next renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ahead {
    /// Calls made.
    pub calls: u64,
    /// Calls open at once.
    pub open: u64,
}

impl Ahead {
    /// For an owner that lets go.
    pub(super) const NOTHING: Self = Self { calls: 0, open: 0 };
}

/// What some limit counts: only that has to be written ahead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Calls over time.
    pub calls: bool,
    /// Open calls.
    pub open: bool,
}

/// A clock that goes on in suspend and never jumps, good while the machine is not restarted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Boot {
    id: String,
    up_ms: u64,
}

impl Boot {
    fn now() -> Option<Self> {
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let up_ms = u64::try_from(since_boot().as_millis()).ok()?;
        Some(Self { id: id.trim().to_owned(), up_ms })
    }
}

/// What a predecessor left, ready to be restored.
#[derive(Debug)]
pub(super) struct Inherited {
    pub spent: Saved,
    pub elapsed: Duration,
    pub since: Since,
}

/// Reads what the row held. `None`: it cannot be read, so everything counts as spent.
pub(super) fn inherit(last: &LeaseState) -> Option<Inherited> {
    let book: Book = serde_json::from_str(&last.state).ok()?;
    let by_boot = book.boot.as_ref().zip(Boot::now()).filter(|(then, now)| then.id == now.id).map(|(then, now)| {
        // Both were rounded: younger is safe.
        Duration::from_millis(now.up_ms.saturating_sub(then.up_ms).saturating_sub(1))
    });
    let since = match last.clean {
        true => Since::Nothing,
        false => Since::AtMost { calls: book.ahead.calls, open: book.ahead.open, within: TTL - MARGIN },
    };
    Some(Inherited { spent: book.spent, elapsed: by_boot.unwrap_or(last.saved_ago), since })
}

/// What to write.
pub(super) fn book(spent: Saved, ahead: Ahead) -> String {
    let book = Book { ahead, boot: Boot::now(), spent };
    serde_json::to_string(&book).unwrap_or_default()
}

/// What to do about the lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask for it.
    Take,
    /// Write what was spent, and what may be done next.
    Renew { epoch: i64, ahead: Ahead },
}

/// Sending is allowed until then, for so many calls, and while fewer than so many are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    pub until: Time,
    pub calls: u64,
    pub open: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody else's, or nobody's.
    Without { ask_at: Time },
    /// Asked for.
    Asking,
    /// Held; nothing is sent before the first renewal is committed.
    Held { epoch: i64, renew_at: Time, valid_until: Time },
    /// Held, with a renewal under way that began then and writes that ahead.
    Renewing { epoch: i64, began: Time, ahead: Ahead, valid_until: Time },
}

/// The lease of one provider, as this dispatcher sees it.
#[derive(Debug)]
pub(super) struct Tenure {
    state: State,
    counted: Counted,
    /// Calls made since the last renewal began, and the most that were open.
    made: Ahead,
    /// What may be done in all since then.
    granted: Ahead,
}

impl Tenure {
    /// To be asked for at once.
    pub(super) fn new(counted: Counted) -> Self {
        let state = State::Without { ask_at: Time::ZERO };
        Self { state, counted, made: Ahead::NOTHING, granted: Ahead::NOTHING }
    }

    /// What to do now. `idle`: nothing of an earlier tenure is in hand any more.
    pub(super) fn step(&mut self, now: Time, idle: bool) -> Option<Step> {
        match self.state {
            State::Without { ask_at } if ask_at <= now && idle => {
                self.state = State::Asking;
                Some(Step::Take)
            }
            State::Held { epoch, renew_at, valid_until } => {
                let soon = self.made.calls.saturating_mul(2) > self.granted.calls
                    || self.made.open.saturating_mul(2) > self.granted.open;
                let early = renew_at > now + (RENEW_EVERY - RENEW_EARLIEST);
                if renew_at > now && (!soon || early) {
                    return None;
                }
                let ahead = self.ahead();
                self.state = State::Renewing { epoch, began: now, ahead, valid_until };
                // From here on calls count against what is being written, too.
                self.granted.calls = self.granted.calls.saturating_sub(self.made.calls);
                self.made.calls = 0;
                Some(Step::Renew { epoch, ahead })
            }
            _ => None,
        }
    }

    /// The lease is held, in that epoch; it is renewed before anything is sent.
    pub(super) fn taken(&mut self, epoch: i64, now: Time) {
        (self.made, self.granted) = (Ahead::NOTHING, Ahead::NOTHING);
        self.state = State::Held { epoch, renew_at: now, valid_until: now };
    }

    /// Somebody else has it, or the store is away: ask again later.
    pub(super) fn not_taken(&mut self, now: Time) {
        self.state = State::Without { ask_at: now + ASK_EVERY };
    }

    /// Somebody let go of it.
    pub(super) fn freed(&mut self) {
        if let State::Without { ask_at } = &mut self.state {
            *ask_at = Time::ZERO;
        }
    }

    /// A renewal was committed.
    pub(super) fn renewed(&mut self) {
        if let State::Renewing { epoch, began, ahead, .. } = self.state {
            self.granted = ahead;
            self.made.open = 0;
            let valid_until = began + (TTL - MARGIN);
            self.state = State::Held { epoch, renew_at: began + RENEW_EVERY, valid_until };
        }
    }

    /// A renewal failed, the lease may still be held: try again soon.
    pub(super) fn not_renewed(&mut self, now: Time) {
        if let State::Renewing { epoch, valid_until, .. } = self.state {
            self.state = State::Held { epoch, renew_at: now + ASK_EVERY, valid_until };
        }
    }

    /// Somebody else holds it.
    pub(super) fn lost(&mut self, now: Time) {
        self.not_taken(now);
    }

    /// So many calls left, and so many are open.
    pub(super) fn sent(&mut self, calls: u64, open: u64) {
        self.made.calls = self.made.calls.saturating_add(calls);
        self.made.open = self.made.open.max(open);
    }

    fn ahead(&self) -> Ahead {
        let calls = self.made.calls.saturating_mul(AHEAD_FACTOR).max(AHEAD_MIN);
        let kept = self.granted.open / 100 * OPEN_KEPT_PERCENT;
        let open = self.made.open.saturating_mul(OPEN_FACTOR).max(kept).max(OPEN_MIN);
        Ahead {
            calls: if self.counted.calls { calls } else { u64::MAX },
            open: if self.counted.open { open } else { u64::MAX },
        }
    }

    /// What may be sent.
    pub(super) fn allowed(&self) -> Allowed {
        match self.state {
            State::Held { valid_until, .. } | State::Renewing { valid_until, .. } => {
                let calls = self.granted.calls.saturating_sub(self.made.calls);
                Allowed { until: valid_until, calls, open: self.granted.open }
            }
            State::Without { .. } | State::Asking => Allowed { until: Time::ZERO, calls: 0, open: 0 },
        }
    }

    /// The epoch in which it is held.
    pub(super) fn epoch(&self) -> Option<i64> {
        match self.state {
            State::Held { epoch, .. } | State::Renewing { epoch, .. } => Some(epoch),
            State::Without { .. } | State::Asking => None,
        }
    }

    /// Whether the store is being asked.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.state, State::Asking | State::Renewing { .. })
    }

    /// When to look again.
    pub(super) fn wake_at(&self) -> Option<Time> {
        match self.state {
            State::Without { ask_at } => Some(ask_at),
            State::Held { renew_at, .. } => Some(renew_at),
            State::Asking | State::Renewing { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(1_000.0 + seconds)
    }

    fn ahead(calls: u64, open: u64) -> Option<Step> {
        Some(Step::Renew { epoch: 3, ahead: Ahead { calls, open } })
    }

    fn held() -> Tenure {
        let mut tenure = Tenure::new(Counted { calls: true, open: true });
        assert_eq!(tenure.step(at(0.0), true), Some(Step::Take));
        tenure.taken(3, at(0.1));
        assert_eq!(tenure.allowed().calls, 0, "nothing is sent before it is written ahead");
        assert_eq!(tenure.step(at(0.1), true), ahead(AHEAD_MIN, OPEN_MIN));
        tenure.renewed();
        tenure
    }

    #[test]
    fn sending_is_allowed_only_within_what_was_written() {
        let tenure = held();
        let until = at(0.1) + (TTL - MARGIN);
        assert_eq!(tenure.allowed(), Allowed { until, calls: AHEAD_MIN, open: OPEN_MIN });
    }

    #[test]
    fn calls_made_while_a_renewal_is_under_way_count_twice() {
        let mut tenure = held();
        tenure.sent(400, 0);
        assert_eq!(tenure.step(at(2.1), true), ahead(1_600, OPEN_MIN));
        assert_eq!(tenure.allowed().calls, 600, "until it is committed the old allowance holds");
        tenure.sent(100, 0);
        assert_eq!(tenure.allowed().calls, 500);
        tenure.renewed();
        assert_eq!(tenure.allowed().calls, 1_500, "and those are part of the new one");
    }

    #[test]
    fn a_store_that_is_away_ends_sending_before_the_lease_could_be_taken() {
        let mut tenure = held();
        tenure.step(at(2.1), true);
        tenure.not_renewed(at(3.0));
        assert_eq!(tenure.allowed().until, at(0.1) + (TTL - MARGIN), "not a moment is added");
        assert_eq!(tenure.step(at(3.2), true), None);
        assert!(matches!(tenure.step(at(3.6), true), Some(Step::Renew { .. })));
    }

    #[test]
    fn a_renewal_comes_early_when_calls_run_out() {
        let mut tenure = held();
        tenure.sent(501, 0);
        assert_eq!(tenure.step(at(0.11), true), None, "not at once");
        assert_eq!(tenure.step(at(0.2), true), ahead(2_004, OPEN_MIN));
    }

    #[test]
    fn open_calls_are_written_ahead_as_they_are_needed_and_seldom_less() {
        let mut tenure = held();
        tenure.sent(4, 4);
        assert_eq!(tenure.step(at(0.2), true), None, "half of it is enough");
        tenure.sent(100, 100);
        assert_eq!(tenure.step(at(0.2), true), ahead(AHEAD_MIN, 200));
        assert_eq!(tenure.allowed().open, OPEN_MIN, "until it is committed the old allowance holds");
        tenure.renewed();
        assert_eq!(tenure.allowed().open, 200);
        tenure.sent(0, 3);
        assert_eq!(tenure.step(at(2.3), true), ahead(AHEAD_MIN, 190));
    }

    #[test]
    fn what_no_limit_counts_is_not_bounded() {
        let mut tenure = Tenure::new(Counted::default());
        tenure.step(at(0.0), true);
        tenure.taken(3, at(0.1));
        assert_eq!(tenure.step(at(0.1), true), ahead(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_lost_lease_allows_nothing_and_is_asked_for_again_when_all_is_handed_back() {
        let mut tenure = held();
        tenure.step(at(2.1), true);
        tenure.lost(at(2.2));
        assert_eq!(tenure.allowed().calls, 0);
        assert_eq!(tenure.step(at(9.0), false), None);
        assert_eq!(tenure.step(at(9.0), true), Some(Step::Take));
    }

    #[test]
    fn what_was_left_in_order_is_told_from_a_crash() {
        let state = book(Saved::default(), Ahead { calls: 77, open: 9 });
        let last = |clean| LeaseState { state: state.clone(), saved_ago: Duration::from_secs(9), clean };
        assert_eq!(inherit(&last(true)).map(|i| i.since), Some(Since::Nothing));
        let crashed = inherit(&last(false)).map(|i| i.since);
        assert_eq!(crashed, Some(Since::AtMost { calls: 77, open: 9, within: TTL - MARGIN }));
        let elapsed = inherit(&last(true)).map(|i| i.elapsed);
        assert!(elapsed.is_some_and(|e| e < Duration::from_secs(5)), "the wall clock's word does not count");
        assert!(inherit(&LeaseState { state: "?".into(), saved_ago: Duration::ZERO, clean: true }).is_none());
    }
}
