//! A token bucket: never more than burst + rate·t as the provider sees arrivals.
//!
//! A departing call is certain only if there is room for it together with every call in flight, each of which may
//! arrive just before it; those answered count at their answer, the latest moment at which they can have been
//! counted. Both are the worst case: taking later leaves a bucket emptier, never fuller.

use super::Time;
use super::calls::Calls;
use super::gcra::Gcra;
use super::slot::Slot;
use super::window::EXACT_SLOTS;

#[derive(Clone, Debug)]
pub(super) struct Bucket {
    depth: u64,
    gcra: Gcra,
    calls: Calls,
}

impl Bucket {
    /// `rate` units flow back in `per` nanoseconds into a bucket of `depth` units.
    pub fn new(rate: u64, per: u64, depth: u64, correctable: bool) -> Bucket {
        let grain = if depth > EXACT_SLOTS { per / EXACT_SLOTS } else { 0 };
        Bucket { depth, gcra: Gcra::new(rate, per, correctable), calls: Calls::new(grain) }
    }

    pub fn slot(&mut self, amount: u64, now: Time, within: u64) -> Slot {
        self.advance(now, within);
        let depth = self.gcra.span(self.depth);
        let flying = self.calls.total();
        let need = self.gcra.span(flying + amount.min(self.depth));
        if need > depth {
            return Slot::answered_by(self.all_counted(amount, within, depth));
        }
        let free = self.gcra.full_at().minus(depth - need);
        if free <= now { Slot::OPEN } else { Slot::at(free) }
    }

    /// When there surely is room although the calls in flight leave none now: each is counted at its latest.
    fn all_counted(&self, amount: u64, within: u64, depth: u64) -> Time {
        let Some(last) = self.calls.last_departure() else {
            return Time::MAX;
        };
        if self.calls.pending() > 0 {
            return Time::MAX;
        }
        let after = self.gcra.full_at().max(last.plus(within)).plus(self.gcra.span(self.calls.total()));
        after.plus(self.gcra.span(amount.min(self.depth))).minus(depth)
    }

    fn advance(&mut self, now: Time, within: u64) {
        while let Some((sent, amount)) = self.calls.pop_overdue(now, within) {
            self.gcra.take(amount, sent.plus(within));
        }
    }

    pub fn book(&mut self, amount: u64) {
        self.calls.book(amount);
    }

    pub fn unbook(&mut self, amount: u64) {
        self.calls.unbook(amount);
    }

    pub fn depart(&mut self, amount: u64, at: Time) {
        self.calls.depart(amount, at);
    }

    pub fn shift(&mut self, amount: u64, from: Time, to: Time) {
        self.calls.shift(amount, from, to);
    }

    pub fn answered(&mut self, amount: u64, sent: Time, at: Time, within: u64) {
        let amount = self.calls.remove(amount, sent);
        if amount > 0 {
            self.gcra.take(amount, at.min(sent.plus(within)));
        }
    }

    pub fn unsent(&mut self, amount: u64, sent: Time) {
        self.calls.remove(amount, sent);
    }

    /// The true amount of a call that was counted at `anchor`, known at `at`.
    pub fn correct(&mut self, estimate: u64, actual: u64, anchor: Time, at: Time) {
        if actual > estimate {
            self.gcra.take(actual - estimate, at.max(anchor));
        } else {
            self.gcra.give_back(estimate - actual, anchor);
        }
    }

    /// Somebody else took so much.
    pub fn foreign(&mut self, amount: u64, now: Time) {
        if amount > 0 {
            self.gcra.take(amount, now);
        }
    }

    /// Until when its rate is used up; calls in flight not counted.
    pub fn full_at(&self) -> Time {
        self.gcra.full_at()
    }

    /// Calls not counted yet.
    pub fn flying(&self) -> u64 {
        self.calls.total()
    }

    /// Its rate is used up until then by calls of another process.
    pub fn restored(&mut self, until: Time) {
        let one = self.gcra.span(1);
        self.gcra.not_before(1, until.minus(one));
    }

    /// Tokens missing at `now`, calls in flight included, rounded up.
    pub fn used(&self, now: Time) -> u64 {
        let debt = self.gcra.full_at().as_nanos().saturating_sub(now.as_nanos());
        self.gcra.flows_in(debt).saturating_add(self.calls.total())
    }

    /// The most that can have been missing at any moment between these: what flowed back meanwhile was missing, too,
    /// and one more where the provider rounds down what is left.
    pub fn used_since(&self, from: Time, to: Time) -> u64 {
        let flowed = self.gcra.flows_in(to.as_nanos().saturating_sub(from.as_nanos()));
        self.used(to).saturating_add(flowed).saturating_add(1)
    }

    pub fn depth(&self) -> u64 {
        self.depth
    }

    pub fn widen(&mut self, extra: u64) {
        self.gcra.widen(extra);
    }

    pub fn allowance(&self, horizon: u64, now: Time) -> u64 {
        let debt = self.gcra.full_at().as_nanos().saturating_sub(now.as_nanos());
        let room = self.depth.saturating_sub(self.gcra.flows_in(debt).saturating_sub(1));
        room.saturating_add(self.gcra.flows_in(horizon))
    }

    /// The same if nothing were missing now.
    pub fn allowance_when_full(&self, horizon: u64) -> u64 {
        self.depth.saturating_add(self.gcra.flows_in(horizon))
    }
}
