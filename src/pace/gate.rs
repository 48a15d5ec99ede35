//! Concurrency: never more than N calls open.
//!
//! A call holds its place until its answer is complete. One that ended without an answer may still be running at
//! the provider: its place is kept until its departure + `counted_within`.

use super::Time;
use super::slot::Slot;
use std::collections::VecDeque;

#[derive(Clone, Debug)]
pub(super) struct Gate {
    places: u64,
    open: u64,
    lingering: VecDeque<Time>,
}

impl Gate {
    pub fn new(places: u64) -> Gate {
        Gate { places, open: 0, lingering: VecDeque::new() }
    }

    pub fn slot(&mut self, now: Time) -> Slot {
        self.lingering.retain(|until| *until > now);
        let held = self.used();
        if held < self.places {
            return Slot::OPEN;
        }
        // So many have to leave; more than one only if the limit was lowered while calls were open.
        let excess = (held - self.places) as usize;
        Slot::answered_by(self.lingering.get(excess).copied().unwrap_or(Time::MAX))
    }

    pub fn take(&mut self) {
        self.open += 1;
    }

    pub fn release(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// The call ended, but perhaps not at the provider: its place is free at `until`.
    pub fn release_at(&mut self, until: Time) {
        self.release();
        let place = self.lingering.partition_point(|other| *other <= until);
        self.lingering.insert(place, until);
    }

    pub fn used(&self) -> u64 {
        self.open + self.lingering.len() as u64
    }

    pub fn places(&self) -> u64 {
        self.places
    }
}
