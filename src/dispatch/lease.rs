//! Who may spend the budgets of a pacing group: one dispatcher at a time, by a lease in the store.
//!
//! The owner renews every two seconds and writes two things with each renewal: what it has spent
//! so far, and how many calls it may make before the next one. It stops by its own clock before
//! the lease could be taken from it. Whoever takes over restores what was spent, and after a crash
//! counts everything that was written ahead as spent as well: so neither a restart nor a kill nor a
//! second dispatcher exceeds a limit.
//!
//! [`Tenure`] is one lease, without I/O; `tenures` holds those of a provider, `spread` says who should hold which, and the
//! keeper executes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::core::Allowance;
use crate::clock::since_boot;
use crate::pace::{Left, Saved, Since, Time};
use crate::store::LeaseState;

/// A lease that is not renewed can be taken after so long.
pub(super) const TTL: Duration = Duration::from_secs(6);
/// It is renewed this often.
const RENEW_EVERY: Duration = Duration::from_secs(2);
/// Its owner stops so long before it could be taken.
const MARGIN: Duration = Duration::from_millis(500);
/// What somebody else holds is looked at this often, and a renewal that failed is tried again so soon.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(500);
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
    /// When it was written, by the database's clock: tells which of two is the later one.
    pub saved_ago: Duration,
}

impl Inherited {
    /// The same for the pool.
    pub(super) fn left(&self) -> Left<'_> {
        Left { saved: &self.spent, elapsed: self.elapsed, since: self.since }
    }
}

/// Reads what a row held. `None`: it cannot be read, so everything counts as spent.
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
    let elapsed = by_boot.unwrap_or(last.saved_ago);
    Some(Inherited { spent: book.spent, elapsed, since, saved_ago: last.saved_ago })
}

/// What to write.
pub(super) fn book(spent: Saved, ahead: Ahead) -> String {
    let book = Book { ahead, boot: Boot::now(), spent };
    serde_json::to_string(&book).unwrap_or_default()
}

/// Write what was spent, and what may be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renewal {
    pub epoch: i64,
    pub ahead: Ahead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody else's, or nobody's.
    Without,
    /// Asked for.
    Asking,
    /// Held; nothing is sent before the first renewal is committed.
    Held { epoch: i64, renew_at: Time, valid_until: Time },
    /// Held, with a renewal under way that began then and writes that ahead.
    Renewing { epoch: i64, began: Time, ahead: Ahead, valid_until: Time },
    /// Being let go of.
    Releasing,
}

/// The lease of one pacing group, as this dispatcher sees it.
#[derive(Debug)]
pub(super) struct Tenure {
    state: State,
    counted: Counted,
    /// Nothing more is sent; it is let go of when the calls that are open have ended.
    leaving: bool,
    /// Calls made since the last renewal began, and the most that were open.
    made: Ahead,
    /// What may be done in all since then.
    granted: Ahead,
}

impl Tenure {
    /// Not held.
    pub(super) fn new(counted: Counted) -> Self {
        Self { state: State::Without, counted, leaving: false, made: Ahead::NOTHING, granted: Ahead::NOTHING }
    }

    /// Asks for it, where it is not held. Whether that is to be done.
    pub(super) fn ask(&mut self) -> bool {
        let asks = self.state == State::Without;
        if asks {
            self.state = State::Asking;
        }
        asks
    }

    /// The renewal that is due now, or would be before `horizon`; it is under way from now on.
    pub(super) fn renew(&mut self, now: Time, horizon: Time) -> Option<Renewal> {
        let State::Held { epoch, renew_at, valid_until } = self.state else { return None };
        if renew_at > horizon && self.early_at().is_none_or(|early| early > now) {
            return None;
        }
        let ahead = self.ahead();
        self.state = State::Renewing { epoch, began: now, ahead, valid_until };
        // From here on calls count against what is being written, too. It may be less than what was left, and be there
        // although the store's answer never comes: so neither is exceeded until it is known.
        self.granted.calls = self.granted.calls.saturating_sub(self.made.calls).min(ahead.calls);
        self.granted.open = self.granted.open.min(ahead.open);
        self.made.calls = 0;
        Some(Renewal { epoch, ahead })
    }

    /// From when on it is renewed early, since half of what was written ahead is used.
    fn early_at(&self) -> Option<Time> {
        let State::Held { renew_at, .. } = self.state else { return None };
        let soon = self.made.calls.saturating_mul(2) > self.granted.calls
            || self.made.open.saturating_mul(2) > self.granted.open;
        // A renewal began that long before the next one is due, unless one has just failed.
        let wait = u64::try_from((RENEW_EVERY - RENEW_EARLIEST).as_nanos()).unwrap_or(u64::MAX);
        let early = Time::from_nanos(renew_at.as_nanos().saturating_sub(wait));
        (soon && !self.leaving).then_some(early)
    }

    /// When the next renewal is due.
    pub(super) fn renew_at(&self) -> Option<Time> {
        let State::Held { renew_at, .. } = self.state else { return None };
        Some(self.early_at().map_or(renew_at, |early| early.min(renew_at)))
    }

    /// The lease is held, in that epoch; it is renewed before anything is sent.
    pub(super) fn taken(&mut self, epoch: i64, now: Time) {
        (self.made, self.granted, self.leaving) = (Ahead::NOTHING, Ahead::NOTHING, false);
        self.state = State::Held { epoch, renew_at: now, valid_until: now };
    }

    /// Somebody else has it, or the store is away.
    pub(super) fn lost(&mut self) {
        self.state = State::Without;
        self.leaving = false;
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

    /// From now on nothing is sent; it is renewed until it can be let go of.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
    }

    /// It is let go of, now that nothing of it is open: in which epoch. `None` where it is not held, or just being
    /// renewed.
    pub(super) fn release(&mut self) -> Option<i64> {
        let State::Held { epoch, .. } = self.state else { return None };
        self.state = State::Releasing;
        Some(epoch)
    }

    /// So many calls left, and so many were open.
    pub(super) fn sent(&mut self, calls: u64, open: u64) {
        self.made.calls = self.made.calls.saturating_add(calls);
        self.made.open = self.made.open.max(open);
    }

    fn ahead(&self) -> Ahead {
        if self.leaving {
            return Ahead::NOTHING;
        }
        let calls = self.made.calls.saturating_mul(AHEAD_FACTOR).max(AHEAD_MIN);
        let kept = self.granted.open / 100 * OPEN_KEPT_PERCENT;
        let open = self.made.open.saturating_mul(OPEN_FACTOR).max(kept).max(OPEN_MIN);
        Ahead {
            calls: if self.counted.calls { calls } else { u64::MAX },
            open: if self.counted.open { open } else { u64::MAX },
        }
    }

    /// What may be sent.
    pub(super) fn allowed(&self) -> Allowance {
        match self.state {
            State::Held { valid_until, .. } | State::Renewing { valid_until, .. } if !self.leaving => {
                let calls = self.granted.calls.saturating_sub(self.made.calls);
                Allowance { until: valid_until, calls, open: self.granted.open }
            }
            _ => Allowance { until: Time::ZERO, calls: 0, open: 0 },
        }
    }

    /// What others should know of it.
    pub(super) fn standing(&self) -> Standing {
        match self.state {
            State::Without => Standing::Without,
            State::Asking => Standing::Busy,
            State::Held { .. } | State::Renewing { .. } if !self.leaving => Standing::Held,
            State::Held { .. } | State::Renewing { .. } | State::Releasing => Standing::Leaving,
        }
    }
}

/// Where a lease stands, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Without,
    /// Being asked for.
    Busy,
    Held,
    /// Held, and on its way to somebody else.
    Leaving,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Time {
        Time::ZERO + Duration::from_secs_f64(1_000.0 + seconds)
    }

    fn ahead(calls: u64, open: u64) -> Option<Renewal> {
        Some(Renewal { epoch: 3, ahead: Ahead { calls, open } })
    }

    fn held() -> Tenure {
        let mut tenure = Tenure::new(Counted { calls: true, open: true });
        assert!(tenure.ask());
        assert!(!tenure.ask(), "once");
        tenure.taken(3, at(0.1));
        assert_eq!(tenure.allowed().calls, 0, "nothing is sent before it is written ahead");
        assert_eq!(tenure.renew(at(0.1), at(0.1)), ahead(AHEAD_MIN, OPEN_MIN));
        tenure.renewed();
        tenure
    }

    #[test]
    fn sending_is_allowed_only_within_what_was_written() {
        let tenure = held();
        let until = at(0.1) + (TTL - MARGIN);
        assert_eq!(tenure.allowed(), Allowance { until, calls: AHEAD_MIN, open: OPEN_MIN });
    }

    #[test]
    fn calls_made_while_a_renewal_is_under_way_count_twice() {
        let mut tenure = held();
        tenure.sent(400, 0);
        assert_eq!(tenure.renew(at(2.1), at(2.1)), ahead(1_600, OPEN_MIN));
        assert_eq!(tenure.allowed().calls, 600, "until it is committed the old allowance holds");
        tenure.sent(100, 0);
        assert_eq!(tenure.allowed().calls, 500);
        tenure.renewed();
        assert_eq!(tenure.allowed().calls, 1_500, "and those are part of the new one");
    }

    #[test]
    fn a_renewal_that_writes_less_bounds_what_is_done_while_it_is_under_way() {
        let mut tenure = held();
        tenure.sent(2_000, 100);
        assert!(tenure.renew(at(2.1), at(2.1)).is_some());
        tenure.renewed();
        assert_eq!((tenure.allowed().calls, tenure.allowed().open), (8_000, 200));
        // Little was needed since, so less is written; whoever finds it there must not find more done.
        tenure.sent(10, 3);
        assert_eq!(tenure.renew(at(4.1), at(4.1)), ahead(AHEAD_MIN, 190));
        assert_eq!((tenure.allowed().calls, tenure.allowed().open), (AHEAD_MIN, 190));
        tenure.not_renewed(at(4.5));
        assert_eq!((tenure.allowed().calls, tenure.allowed().open), (AHEAD_MIN, 190), "it may have been committed");
    }

    #[test]
    fn a_store_that_is_away_ends_sending_before_the_lease_could_be_taken() {
        let mut tenure = held();
        assert!(tenure.renew(at(2.1), at(2.1)).is_some());
        tenure.not_renewed(at(3.0));
        assert_eq!(tenure.allowed().until, at(0.1) + (TTL - MARGIN), "not a moment is added");
        assert_eq!(tenure.renew(at(3.2), at(3.2)), None);
        assert!(tenure.renew(at(3.6), at(3.6)).is_some());
    }

    #[test]
    fn a_renewal_comes_early_when_calls_run_out() {
        let mut tenure = held();
        assert_eq!(tenure.renew_at(), Some(at(2.1)));
        tenure.sent(501, 0);
        assert_eq!(tenure.renew(at(0.11), at(0.11)), None, "not at once");
        assert_eq!(tenure.renew_at(), Some(at(0.15)));
        assert_eq!(tenure.renew(at(0.2), at(0.2)), ahead(2_004, OPEN_MIN));
    }

    #[test]
    fn a_renewal_joins_others_that_are_due_a_little_earlier() {
        let mut tenure = held();
        assert_eq!(tenure.renew(at(1.7), at(2.0)), None);
        assert_eq!(tenure.renew(at(1.7), at(2.2)), ahead(AHEAD_MIN, OPEN_MIN));
        tenure.renewed();
        assert_eq!(tenure.allowed().until, at(1.7) + (TTL - MARGIN), "counted from when it began");
    }

    #[test]
    fn open_calls_are_written_ahead_as_they_are_needed_and_seldom_less() {
        let mut tenure = held();
        tenure.sent(4, 4);
        assert_eq!(tenure.renew(at(0.2), at(0.2)), None, "half of it is enough");
        tenure.sent(100, 100);
        assert_eq!(tenure.renew(at(0.2), at(0.2)), ahead(AHEAD_MIN, 200));
        assert_eq!(tenure.allowed().open, OPEN_MIN, "until it is committed the old allowance holds");
        tenure.renewed();
        assert_eq!(tenure.allowed().open, 200);
        tenure.sent(0, 3);
        assert_eq!(tenure.renew(at(2.3), at(2.3)), ahead(AHEAD_MIN, 190));
    }

    #[test]
    fn what_no_limit_counts_is_not_bounded() {
        let mut tenure = Tenure::new(Counted::default());
        tenure.ask();
        tenure.taken(3, at(0.1));
        assert_eq!(tenure.renew(at(0.1), at(0.1)), ahead(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_lost_lease_allows_nothing_and_can_be_asked_for_again() {
        let mut tenure = held();
        assert!(tenure.renew(at(2.1), at(2.1)).is_some());
        tenure.lost();
        assert_eq!((tenure.allowed().calls, tenure.standing()), (0, Standing::Without));
        tenure.renewed();
        assert_eq!(tenure.standing(), Standing::Without, "a late answer changes nothing");
        assert!(tenure.ask());
    }

    #[test]
    fn one_that_is_given_away_is_renewed_without_a_call_ahead_until_it_is_let_go_of() {
        let mut tenure = held();
        tenure.leave();
        assert_eq!((tenure.allowed().calls, tenure.standing()), (0, Standing::Leaving));
        tenure.sent(900, 9);
        assert_eq!(tenure.renew(at(1.0), at(1.0)), None, "nothing runs out any more");
        assert_eq!(tenure.renew(at(2.1), at(2.1)), ahead(0, 0));
        assert_eq!(tenure.release(), None, "not while it is being written");
        tenure.renewed();
        assert_eq!(tenure.release(), Some(3));
        assert_eq!((tenure.release(), tenure.standing()), (None, Standing::Leaving));
        tenure.lost();
        assert_eq!(tenure.standing(), Standing::Without);
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
