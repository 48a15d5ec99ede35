//! What a signal does to a pool: it may only tighten, and only by what this process did not cause itself.
//!
//! * A declared limit: what the server says it counted is compared with the most that it may have counted of this
//!   process's own calls. Only the excess is foreign use, and is added to the limit until it resets. So a plain
//!   `remaining: 0` in every answer does not slow down a pacer that uses the whole limit, and a late answer, which
//!   reports less use than there is now, does nothing.
//! * Nothing declared: what answers tell is the limit (see `told`), and `remaining: 0` pauses the budget until the
//!   reset. Where they tell nothing either, a refusal is what the search for a rate learns from (see `probe`).
//! * Refused in spite of a permit: the budget pauses, the error is counted, and its guard widens.

use super::Time;
use super::ask::{BudgetId, Flight, KeyId};
use super::edge::Edge;
use super::limit::{Counts, Limit, Trace};
use super::pool::Pool;
use super::signal::{Reading, Signal, Unit};
use super::time::nanos;
use std::time::Duration;

/// A pause where the provider does not say how long; doubled with each refusal in a row …
const PAUSE_NANOS: u64 = 1_000_000_000;
/// … up to this.
const LONGEST_PAUSE_NANOS: u64 = 64_000_000_000;
/// At most so much jitter is added to a pause.
const JITTER_NANOS: u64 = 1_000_000_000;
/// The grain of `Date`.
const SECOND_NANOS: u64 = 1_000_000_000;
/// A refusal widens the guard by so many thousandths of the period, doubled each time …
const WIDEN_BY: u64 = 5;
/// … up to this.
const WIDEST: u64 = 160;
/// Without a refusal the guard shrinks by half after so many nanoseconds.
const SHRINK_AFTER_NANOS: u64 = 600_000_000_000;

impl Pool {
    /// The first byte of the answer arrived: the slots of the call are anchored there (or at its departure +
    /// `counted_within`, if that was earlier), and what the response says about limits is taken in.
    pub fn first_byte(&mut self, flight: &mut Flight, at: Time, signal: Option<&Signal>) {
        let first = flight.answered.is_none();
        self.anchor(flight, at);
        let signal = signal.filter(|signal| !signal.is_empty());
        let wait = if first { self.teach_probe(flight, at, signal) } else { None };
        if let Some(signal) = signal {
            self.learn(flight, at, signal, wait);
        }
        self.shrink_guard(flight.key, at);
    }

    /// The body of the answer said something of limits as well; before [`Pool::finish`]. Where no limit is declared, a
    /// refusal is told by [`Pool::throttled`].
    pub fn body_told(&mut self, flight: &Flight, at: Time, signal: &Signal) {
        for reading in &signal.readings {
            self.take_in(flight, at, reading);
        }
        if signal.limited && self.is_limited(flight) {
            self.refused(flight, at, signal);
        }
    }

    /// What an answer means where no limit is declared; after a refusal, how long to wait before one call tries again.
    fn teach_probe(&mut self, flight: &Flight, at: Time, signal: Option<&Signal>) -> Option<u64> {
        let number = self.bank.keys[flight.key.0 as usize].budget;
        let (wait, foreign) = self.bank.budgets[number].probe.as_mut()?.answered(flight, at, signal);
        self.used_by_others(number, foreign, at);
        wait
    }

    fn used_by_others(&mut self, number: usize, calls: u64, at: Time) {
        if calls > 0 {
            let seen = &mut self.bank.budgets[number].foreign;
            *seen = (seen.0.saturating_add(calls), Some(at));
        }
    }

    /// The body of an answer told that the call was refused because of a limit, which its head did not say: the
    /// budget pauses for as long as is stated, or a second, or as long as the search for its limit wants.
    ///
    /// `sent` is when the call departed.
    pub fn throttled(&mut self, key: KeyId, sent: Time, at: Time, stated: Option<Duration>) {
        let Some(budget) = self.budget_of(key) else {
            return;
        };
        let stated = stated.map(nanos);
        let wait = match self.bank.probe(key) {
            Some(probe) => probe.refused_after_all(sent, at, stated),
            None => stated.unwrap_or(PAUSE_NANOS),
        };
        self.pause_budget(budget, at.plus(wait));
    }

    /// `wait`: where no limit is declared, for how long the search for it wants to pause.
    fn learn(&mut self, flight: &Flight, at: Time, signal: &Signal, wait: Option<u64>) {
        let number = self.bank.keys[flight.key.0 as usize].budget;
        self.bank.budgets[number].signals = signal.family().or(self.bank.budgets[number].signals);
        for reading in &signal.readings {
            self.take_in(flight, at, reading);
        }
        let pause = wait.or(signal.retry_after.filter(|_| !signal.limited).map(nanos));
        if let Some(pause) = pause {
            self.pause_with_jitter(flight.key, at, pause);
        }
        if signal.limited && (wait.is_none() || self.is_limited(flight)) {
            self.refused(flight, at, signal);
        }
    }

    /// Whether any declared limit applies to this call.
    fn is_limited(&mut self, flight: &Flight) -> bool {
        let mut any = false;
        self.bank.each(flight.key, flight.routes, |_| any = true);
        any
    }

    /// Compares one reading with the limit it is about, if that is declared.
    fn take_in(&mut self, flight: &Flight, at: Time, reading: &Reading) {
        let Some(remaining) = reading.remaining else {
            return;
        };
        match self.declared(flight, reading, at) {
            Declared::Once(place) => self.compare(flight, at, reading, remaining, place),
            Declared::Never if remaining == 0 => {
                let budget = BudgetId(self.bank.keys[flight.key.0 as usize].budget as u32);
                let until = reading.resets_in.map(|wait| at + wait);
                until.into_iter().for_each(|until| self.pause_budget(budget, until));
            }
            Declared::Never | Declared::Often => {}
        }
    }

    fn compare(&mut self, flight: &Flight, at: Time, reading: &Reading, remaining: u64, place: usize) {
        let seen = flight.freed.get(place).copied();
        let (mut n, mut foreign) = (0, 0);
        self.bank.each(flight.key, flight.routes, |limit| {
            if n == place {
                if let Some(edge) = stated_edge(reading, limit.per, flight.sent, at) {
                    limit.learn_edge(edge, at);
                }
                let all = reading.limit.unwrap_or(limit.declared);
                let counted = all.saturating_sub(remaining);
                if let Some(own) = seen.and_then(|freed| limit.own_since(freed, (flight.sent, at))) {
                    let excess = counted.saturating_sub(own);
                    let news = excess.saturating_sub(limit.foreign_used());
                    limit.foreign(news, reading.resets_in.map(|wait| at + wait), at);
                    foreign = news;
                }
            }
            n += 1;
        });
        self.used_by_others(self.bank.keys[flight.key.0 as usize].budget, foreign, at);
        self.choice.touch(flight.key);
    }

    /// Which declared limit a reading is about: the one of that amount (and window), or the only one where the reading
    /// does not name an amount.
    fn declared(&mut self, flight: &Flight, reading: &Reading, at: Time) -> Declared {
        let counts = match reading.unit {
            Unit::Requests => Counts::Requests,
            Unit::Cost => Counts::Cost,
            Unit::Concurrency => Counts::Open,
        };
        let fits = |limit: &Limit| {
            // A bucket may be told by its depth.
            let is = |amount| amount == limit.declared || amount == limit.usage(at).1;
            let window = |window| nanos(window) == limit.per;
            limit.counts == counts && reading.limit.is_none_or(is) && reading.window.is_none_or(window)
        };
        let (mut n, mut found) = (0, Declared::Never);
        self.bank.each(flight.key, flight.routes, |limit| {
            if fits(limit) {
                found = match found {
                    Declared::Never => Declared::Once(n),
                    Declared::Once(_) | Declared::Often => Declared::Often,
                };
            }
            n += 1;
        });
        found
    }

    /// 429 in spite of a permit.
    fn refused(&mut self, flight: &Flight, at: Time, signal: &Signal) {
        let number = self.bank.keys[flight.key.0 as usize].budget;
        let budget = &mut self.bank.budgets[number];
        budget.pacing_errors += 1;
        let trace = Trace { cost: flight.cost, sent: flight.sent, answered: flight.answered };
        let within = self.bank.within;
        self.bank.each(flight.key, flight.routes, |limit| limit.disown(trace, within));
        if signal.readings.iter().any(|reading| reading.remaining == Some(0)) {
            // There was room, but for a call of somebody else.
            self.used_by_others(number, 1, at);
        }
        let budget = &mut self.bank.budgets[number];
        // Calls that were on their way together are refused together: that is one lesson, not many.
        if budget.refused_at.is_none_or(|last| flight.sent > last) {
            budget.refused_at = Some(at);
            budget.refusals = budget.refusals.saturating_add(1);
            budget.widened = (budget.widened * 2).clamp(WIDEN_BY, WIDEST);
            self.widen(number);
        }
        let exhausted = |reading: &&Reading| reading.remaining.is_none_or(|left| left == 0);
        let reset = signal.readings.iter().filter(exhausted).filter_map(|reading| reading.resets_in).max();
        let refusals = self.bank.budgets[number].refusals.max(1);
        let backoff = (PAUSE_NANOS << (refusals - 1).min(6)).min(LONGEST_PAUSE_NANOS);
        let wait = signal.retry_after.or(reset).map_or(backoff, nanos);
        self.pause_with_jitter(flight.key, at, wait);
    }

    /// The stated time is a floor. The jitter above it is up to a sixteenth, at most a second, and depends on the key
    /// and the time only, so that many processes do not come back at once and a replay of events gives the same times.
    fn pause_with_jitter(&mut self, key: KeyId, at: Time, wait: u64) {
        let most = (wait / 16).min(JITTER_NANOS);
        let jitter = if most == 0 { 0 } else { scrambled(at.as_nanos() ^ u64::from(key.0) << 48) % most };
        let budget = BudgetId(self.bank.keys[key.0 as usize].budget as u32);
        self.pause_budget(budget, at.plus(wait).plus(jitter));
    }

    fn widen(&mut self, number: usize) {
        let share = self.bank.budgets[number].widened;
        let widen = |limit: &mut Limit| limit.widen(limit.per / 1000 * share);
        self.bank.budgets[number].limits.iter_mut().for_each(widen);
        for place in 0..self.bank.budgets[number].keys.len() {
            let key = self.bank.budgets[number].keys[place];
            self.bank.keys[key].limits.iter_mut().for_each(widen);
            self.choice.touch(KeyId(key as u32));
        }
        // Limits that several budgets share are as wide as the widest of these.
        let most = self.bank.budgets.iter().map(|budget| budget.widened).max();
        let most = most.unwrap_or(0);
        let shared = self.bank.limits.iter_mut().chain(self.bank.routes.iter_mut().flatten());
        shared.for_each(|limit| limit.widen(limit.per / 1000 * most));
    }

    /// An accepted call, long after the last refusal: the guard shrinks again.
    fn shrink_guard(&mut self, key: KeyId, at: Time) {
        let number = self.bank.keys[key.0 as usize].budget;
        let budget = &mut self.bank.budgets[number];
        let Some(last) = budget.refused_at else {
            return;
        };
        if at < last.plus(SHRINK_AFTER_NANOS) {
            return;
        }
        budget.refusals = 0;
        budget.widened /= 2;
        budget.refused_at = (budget.widened > 0).then_some(at);
        self.widen(number);
    }
}

/// Between which times the reset lies. The provider meant a wait that began between departure and first byte. A coarse
/// one may have been rounded up or down, and so may the `Date` it is read against; a time that is a whole number of
/// periods since 1970 is taken to be exact, since that is where windows on the clock end.
fn stated_edge(reading: &Reading, per: u64, sent: Time, at: Time) -> Option<Edge> {
    let wait = nanos(reading.resets_in?);
    let grain = nanos(reading.reset_grain);
    let on_the_clock = reading.reset_at.is_some_and(|at| nanos(at).is_multiple_of(per));
    let (under, over) = match (reading.reset_at, on_the_clock) {
        (Some(_), true) => (SECOND_NANOS, 0),
        (Some(_), false) => (SECOND_NANOS + grain, grain),
        (None, _) => (grain, if grain < SECOND_NANOS { 0 } else { grain }),
    };
    Some(Edge { low: sent.plus(wait).minus(under), high: at.plus(wait).plus(over) })
}

/// How often a limit that a reading may be about was declared.
#[derive(Clone, Copy)]
enum Declared {
    Never,
    /// By its place in the order of `Bank::each`.
    Once(usize),
    /// Nobody knows which one is meant: nothing is learnt.
    Often,
}

/// A number that looks random (splitmix64).
fn scrambled(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::Family;
    use super::*;

    /// In milliseconds: the edge that an answer tells that was sent for at 100 s and came at 101 s.
    fn told(resets_in: u64, reset_grain: u64, reset_at: Option<u64>) -> (u64, u64) {
        let reading = Reading {
            resets_in: Some(Duration::from_millis(resets_in)),
            reset_grain: Duration::from_millis(reset_grain),
            reset_at: reset_at.map(Duration::from_millis),
            ..Reading::of(Unit::Requests, Family::XRateLimit)
        };
        let (sent, at) = (Time::from_nanos(100 * SECOND_NANOS), Time::from_nanos(101 * SECOND_NANOS));
        let edge = stated_edge(&reading, 60 * SECOND_NANOS, sent, at).expect("it tells a reset");
        (edge.low.as_nanos() / 1_000_000, edge.high.as_nanos() / 1_000_000)
    }

    #[test]
    fn an_edge_is_as_vague_as_it_was_told() {
        assert_eq!(told(30_000, 1_000, None), (129_000, 132_000), "rounded up or down");
        assert_eq!(told(30_000, 1, None), (129_999, 131_000), "rounded up");
        assert_eq!(told(30_000, 1_000, Some(1_800_000_017_000)), (128_000, 132_000), "and so was the date");
        assert_eq!(told(30_000, 1, Some(1_800_000_017_500)), (128_999, 131_001));
        assert_eq!(told(30_000, 1_000, Some(1_800_000_000_000)), (129_000, 131_000), "on the clock: only the date was");
    }
}
