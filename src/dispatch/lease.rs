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
/// Renewals that are wanted early, since the calls run out, are at least this far apart.
const RENEW_EARLIEST: Duration = Duration::from_millis(50);

/// What stands in the lease's row.
#[derive(Debug, Serialize, Deserialize)]
struct Book {
    /// Calls that may be made after this was written.
    ahead: u64,
    /// The machine's boot, and the time since then: exact however the wall clock jumps.
    boot: Option<Boot>,
    spent: Saved,
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
        false => Since::AtMost { calls: book.ahead, within: TTL - MARGIN },
    };
    Some(Inherited { spent: book.spent, elapsed: by_boot.unwrap_or(last.saved_ago), since })
}

/// What to write.
pub(super) fn book(spent: Saved, ahead: u64) -> String {
    let book = Book { ahead, boot: Boot::now(), spent };
    serde_json::to_string(&book).unwrap_or_default()
}

/// What to do about the lease now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask for it.
    Take,
    /// Write what was spent, and so many calls ahead.
    Renew { epoch: i64, ahead: u64 },
}

/// Sending is allowed until then, and for so many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    pub until: Time,
    pub calls: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Somebody else's, or nobody's.
    Without { ask_at: Time },
    /// Asked for.
    Asking,
    /// Held; nothing is sent before the first renewal is committed.
    Held { epoch: i64, renew_at: Time, valid_until: Time },
    /// Held, with a renewal under way that began then and writes so many calls ahead.
    Renewing { epoch: i64, began: Time, ahead: u64, valid_until: Time },
}

/// The lease of one provider, as this dispatcher sees it.
#[derive(Debug)]
pub(super) struct Tenure {
    state: State,
    /// Calls are not worth counting: there is no limit.
    unlimited: bool,
    /// Calls made since the last renewal began.
    made: u64,
    /// Calls that may be made in all since then.
    granted: u64,
}

impl Tenure {
    /// To be asked for at once.
    pub(super) fn new(unlimited: bool) -> Self {
        Self { state: State::Without { ask_at: Time::ZERO }, unlimited, made: 0, granted: 0 }
    }

    /// What to do now. `idle`: nothing of an earlier tenure is in hand any more.
    pub(super) fn step(&mut self, now: Time, idle: bool) -> Option<Step> {
        match self.state {
            State::Without { ask_at } if ask_at <= now && idle => {
                self.state = State::Asking;
                Some(Step::Take)
            }
            State::Held { epoch, renew_at, valid_until } => {
                let soon = self.made.saturating_mul(2) > self.granted;
                let early = renew_at > now + (RENEW_EVERY - RENEW_EARLIEST);
                if renew_at > now && (!soon || early) {
                    return None;
                }
                let ahead = match self.unlimited {
                    true => u64::MAX,
                    false => self.made.saturating_mul(AHEAD_FACTOR).max(AHEAD_MIN),
                };
                self.state = State::Renewing { epoch, began: now, ahead, valid_until };
                // From here on calls count against what is being written, too.
                self.granted = self.granted.saturating_sub(self.made);
                self.made = 0;
                Some(Step::Renew { epoch, ahead })
            }
            _ => None,
        }
    }

    /// The lease is held, in that epoch; it is renewed before anything is sent.
    pub(super) fn taken(&mut self, epoch: i64, now: Time) {
        (self.made, self.granted) = (0, 0);
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

    /// Calls left.
    pub(super) fn sent(&mut self, calls: u64) {
        self.made = self.made.saturating_add(calls);
    }

    /// What may be sent.
    pub(super) fn allowed(&self) -> Allowed {
        match self.state {
            State::Held { valid_until, .. } | State::Renewing { valid_until, .. } => {
                Allowed { until: valid_until, calls: self.granted.saturating_sub(self.made) }
            }
            State::Without { .. } | State::Asking => Allowed { until: Time::ZERO, calls: 0 },
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

    fn held() -> Tenure {
        let mut tenure = Tenure::new(false);
        assert_eq!(tenure.step(at(0.0), true), Some(Step::Take));
        tenure.taken(3, at(0.1));
        assert_eq!(tenure.allowed().calls, 0, "nothing is sent before it is written ahead");
        assert_eq!(tenure.step(at(0.1), true), Some(Step::Renew { epoch: 3, ahead: AHEAD_MIN }));
        tenure.renewed();
        tenure
    }

    #[test]
    fn sending_is_allowed_only_within_what_was_written() {
        let tenure = held();
        assert_eq!(tenure.allowed(), Allowed { until: at(0.1) + (TTL - MARGIN), calls: AHEAD_MIN });
    }

    #[test]
    fn calls_made_while_a_renewal_is_under_way_count_twice() {
        let mut tenure = held();
        tenure.sent(400);
        assert_eq!(tenure.step(at(2.1), true), Some(Step::Renew { epoch: 3, ahead: 1_600 }));
        assert_eq!(tenure.allowed().calls, 600, "until it is committed the old allowance holds");
        tenure.sent(100);
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
        tenure.sent(501);
        assert_eq!(tenure.step(at(0.11), true), None, "not at once");
        assert_eq!(tenure.step(at(0.2), true), Some(Step::Renew { epoch: 3, ahead: 2_004 }));
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
        let state = book(Saved::default(), 77);
        let last = |clean| LeaseState { state: state.clone(), saved_ago: Duration::from_secs(9), clean };
        assert_eq!(inherit(&last(true)).map(|i| i.since), Some(Since::Nothing));
        let crashed = inherit(&last(false)).map(|i| i.since);
        assert_eq!(crashed, Some(Since::AtMost { calls: 77, within: TTL - MARGIN }));
        let elapsed = inherit(&last(true)).map(|i| i.elapsed);
        assert!(elapsed.is_some_and(|e| e < Duration::from_secs(5)), "the wall clock's word does not count");
        assert!(inherit(&LeaseState { state: "?".into(), saved_ago: Duration::ZERO, clean: true }).is_none());
    }
}
