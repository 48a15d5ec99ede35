//! The generic cell rate algorithm: a bucket kept as one instant, the time at which it would be full again.
//!
//! `full_at` moves on by `amount × per ÷ rate` with everything taken. The debt of the bucket at `t` is
//! `full_at − t`; a call fits while the debt it leaves is at most the bucket's depth.
//! See ITU-T I.371; written as a "virtual scheduling" variant.

use super::Time;
use std::collections::VecDeque;

/// So many takings are remembered for a later correction; older ones can no longer be corrected downwards.
const MEMORY: usize = 128;

/// Takings that may be corrected, and `full_at` before the first of them.
#[derive(Clone, Debug, Default)]
struct Takings {
    base: Time,
    list: VecDeque<(Time, u64)>,
}

#[derive(Clone, Debug)]
pub(super) struct Gcra {
    rate: u64,
    /// Nanoseconds in which `rate` units flow back, as declared (already lowered by the caller).
    per: u64,
    /// The same with the guard that 429s have added.
    guarded_per: u64,
    one: u64,
    full_at: Time,
    /// A taking that is late by no more nanoseconds than this counts as if it were in time.
    catches_up: u64,
    /// Only where costs are counted.
    takings: Option<Box<Takings>>,
}

impl Gcra {
    /// `rate` units flow back in `per` nanoseconds.
    pub fn new(rate: u64, per: u64, correctable: bool) -> Gcra {
        let takings = correctable.then(Box::default);
        let mut gcra = Gcra { rate, per, guarded_per: per, one: 0, full_at: Time::ZERO, catches_up: 0, takings };
        gcra.one = gcra.long_span(1);
        gcra
    }

    /// The same, for a sender whose departures are late by so many nanoseconds now and then: those after them keep the
    /// time that they would have had, so that lateness does not add up.
    pub fn catching_up(self, catches_up: u64) -> Gcra {
        Gcra { catches_up, ..self }
    }

    /// How late a taking may be and count as if it were in time.
    pub fn caught_up(&self) -> u64 {
        self.catches_up
    }

    /// How long `amount` takes to flow back, rounded up to a nanosecond.
    pub fn span(&self, amount: u64) -> u64 {
        if amount == 1 { self.one } else { self.long_span(amount) }
    }

    fn long_span(&self, amount: u64) -> u64 {
        let nanos = (u128::from(amount) * u128::from(self.guarded_per)).div_ceil(u128::from(self.rate));
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// When everything taken will have flowed back.
    pub fn full_at(&self) -> Time {
        self.full_at
    }

    /// Takes `amount` at `at`. Takings out of order never make the bucket fuller than the true order would.
    pub fn take(&mut self, amount: u64, at: Time) {
        let span = self.span(amount);
        let from = flows_from(self.full_at, at, self.catches_up);
        if let Some(Takings { base, list }) = self.takings.as_deref_mut() {
            if list.is_empty() || from == at {
                // The bucket was full: nothing before this matters any more.
                list.clear();
                *base = from;
            }
            list.push_back((at, amount));
        }
        self.full_at = from.plus(span);
        self.forget_oldest();
    }

    fn forget_oldest(&mut self) {
        let (one, rate, per, catches_up) = (self.one, self.rate, self.guarded_per, self.catches_up);
        if let Some(Takings { base, list }) = self.takings.as_deref_mut()
            && list.len() > MEMORY
            && let Some((at, amount)) = list.pop_front()
        {
            let span = if amount == 1 { one } else { span_of(amount, per, rate) };
            *base = flows_from(*base, at, catches_up).plus(span);
        }
    }

    /// Gives back `amount` of what was taken at `at`, as if it had never been taken: the bucket is computed anew.
    pub fn give_back(&mut self, amount: u64, at: Time) {
        let (per, rate, catches_up) = (self.guarded_per, self.rate, self.catches_up);
        let Some(Takings { base, list }) = self.takings.as_deref_mut() else {
            return;
        };
        let Some(taking) = list.iter_mut().find(|taking| taking.0 == at && taking.1 >= amount) else {
            return;
        };
        taking.1 -= amount;
        let mut full_at = *base;
        for &(at, amount) in list.iter() {
            full_at = flows_from(full_at, at, catches_up).plus(span_of(amount, per, rate));
        }
        // Rounding of the parts may exceed that of the whole by a few nanoseconds; never move later.
        self.full_at = self.full_at.min(full_at);
    }

    /// A call recorded earlier left as late as `at`: the next one keeps its whole distance from it.
    pub fn not_before(&mut self, amount: u64, at: Time) {
        let until = at.plus(self.span(amount));
        if until <= self.full_at {
            return;
        }
        self.full_at = until;
        // Computed anew from what was taken before, the bucket would forget this.
        if let Some(Takings { list, .. }) = self.takings.as_deref_mut() {
            list.clear();
        }
    }

    /// Slows the flow back by `extra` nanoseconds a period.
    pub fn widen(&mut self, extra: u64) {
        self.guarded_per = self.per.saturating_add(extra);
        self.one = self.long_span(1);
    }

    /// Units that flow back in `nanos`, rounded up.
    pub fn flows_in(&self, nanos: u64) -> u64 {
        let units = (u128::from(nanos) * u128::from(self.rate)).div_ceil(u128::from(self.guarded_per));
        u64::try_from(units).unwrap_or(u64::MAX)
    }
}

/// From when on what is taken at `at` flows back.
fn flows_from(full_at: Time, at: Time, catches_up: u64) -> Time {
    if at <= full_at.plus(catches_up) { full_at } else { at }
}

fn span_of(amount: u64, per: u64, rate: u64) -> u64 {
    let nanos = (u128::from(amount) * u128::from(per)).div_ceil(u128::from(rate));
    u64::try_from(nanos).unwrap_or(u64::MAX)
}
