//! The calls of one limit that the provider may not have counted yet.

use super::Time;
use std::collections::VecDeque;

/// Empty entries are swept out when more than this many, and more than half, are empty.
const SWEEP: usize = 32;

/// Permits that have not departed, and departed calls without an answer.
///
/// Departures are kept in order; with a `grain` they are rounded up to it (the later, safe side), which bounds the
/// memory of limits with millions of calls.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pending: u64,
    open: VecDeque<(Time, u64)>,
    flying: u64,
    empty: usize,
    grain: u64,
}

impl Calls {
    pub fn new(grain: u64) -> Calls {
        Calls { pending: 0, open: VecDeque::new(), flying: 0, empty: 0, grain }
    }

    /// Everything that may still arrive at the provider.
    pub fn total(&self) -> u64 {
        self.pending + self.flying
    }

    /// Permits that have not departed.
    pub fn pending(&self) -> u64 {
        self.pending
    }

    pub fn book(&mut self, amount: u64) {
        self.pending += amount;
    }

    pub fn unbook(&mut self, amount: u64) {
        self.pending = self.pending.saturating_sub(amount);
    }

    pub fn depart(&mut self, amount: u64, at: Time) {
        self.unbook(amount);
        if amount == 0 {
            return;
        }
        self.insert(amount, at.rounded_up(self.grain));
    }

    /// The real departure was later than the one recorded.
    pub fn shift(&mut self, amount: u64, from: Time, to: Time) {
        let moved = self.remove(amount, from);
        if moved > 0 {
            self.insert(moved, to.rounded_up(self.grain));
        }
    }

    /// Takes out a call that departed at `sent`; says how much of it was still here.
    pub fn remove(&mut self, amount: u64, sent: Time) -> u64 {
        let sent = sent.rounded_up(self.grain);
        let Ok(place) = self.open.binary_search_by_key(&sent, |entry| entry.0) else {
            return 0;
        };
        let entry = &mut self.open[place];
        let taken = entry.1.min(amount);
        entry.1 -= taken;
        self.flying -= taken;
        if entry.1 == 0 && taken > 0 {
            self.empty += 1;
        }
        self.trim();
        taken
    }

    /// The next call that departed `within` nanoseconds ago or earlier, taken out.
    pub fn pop_overdue(&mut self, now: Time, within: u64) -> Option<(Time, u64)> {
        let &(sent, amount) = self.open.front()?;
        if sent.plus(within) > now {
            return None;
        }
        self.open.pop_front();
        self.flying -= amount;
        self.trim();
        Some((sent, amount))
    }

    /// Departed calls, the earliest first.
    pub fn departed(&self) -> impl Iterator<Item = (Time, u64)> {
        self.open.iter().copied().filter(|entry| entry.1 > 0)
    }

    pub fn last_departure(&self) -> Option<Time> {
        self.open.back().map(|entry| entry.0)
    }

    fn insert(&mut self, amount: u64, at: Time) {
        self.flying += amount;
        let mut place = self.open.len();
        while place > 0 && self.open[place - 1].0 >= at {
            place -= 1;
        }
        match self.open.get_mut(place) {
            Some(entry) if entry.0 == at => {
                if entry.1 == 0 {
                    self.empty -= 1;
                }
                entry.1 += amount;
            }
            _ => self.open.insert(place, (at, amount)),
        }
    }

    /// The first and the last entry are never empty, and empty ones never outnumber the others for long.
    fn trim(&mut self) {
        while self.open.front().is_some_and(|entry| entry.1 == 0) {
            self.open.pop_front();
            self.empty -= 1;
        }
        while self.open.back().is_some_and(|entry| entry.1 == 0) {
            self.open.pop_back();
            self.empty -= 1;
        }
        if self.empty > SWEEP && self.empty * 2 > self.open.len() {
            self.open.retain(|entry| entry.1 > 0);
            self.empty = 0;
        }
    }
}
