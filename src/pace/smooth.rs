//! Evenly spaced calls that no common server algorithm refuses: for a server nobody knows.
//!
//! Departures keep a distance of W ÷ (N lowered) from each other, so that a bucket with room for a few calls is never
//! full. Under `strict` a call leaves, besides, only if even the worst *sliding counter* (see `counter`) could not
//! refuse it; a sliding log and fixed windows, wherever their edges are, are special cases of that (x = 0 or 1).

use super::Time;
use super::gcra::Gcra;
use super::slot::Slot;
use super::window::Window;

/// Up to this many calls a window every anchor is exact; above, they are rounded up to so small a part of the window,
/// which bounds the work of one look at all of them.
const EXACT: u64 = 512;
/// A time searched for is found to this part of the distance between two calls.
const PRECISION: u64 = 8;
/// And is not searched for anew within this part of it.
const LAZINESS: u64 = 4;
/// A departure that is late by no more than this, or by this part of the distance between two calls, does not delay
/// those after it: timers have a grain of a millisecond, which at 30 calls a second would add up to a call in 25. The
/// provider sees it as a part of the spread of delays.
const CAUGHT_UP_NANOS: u64 = 5_000_000;
const CAUGHT_UP_PART: u64 = 4;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Smooth {
    pace: Gcra,
    /// Debt that may be left behind by several calls at once; one call alone may always leave its own.
    burst: u64,
    /// The most that one call alone may take.
    largest: u64,
    pending: u64,
    window: Window,
    /// Whether a sliding counter must have room, too.
    counted: bool,
    /// What a sliding counter could see, at most: computed when it matters, raised by each call until then.
    heaviest: f64,
    /// When the last search for a time was made, for what amount, and what it found.
    searched: Option<(Time, u64, Slot)>,
}

/// Calls per window that an evenly spaced sender makes: one less than `calls`. A sliding counter sees up to one more
/// than there are in a window even if they are perfectly even, so this is the best that can be done: two calls apart by
/// less than W ÷ (N − 1) on average are refused sooner or later. A single call a window has to wait for two windows.
pub(super) fn lowered(calls: u64) -> f64 {
    match calls {
        0 | 1 => 0.5,
        _ => calls as f64 - 1.0,
    }
}

impl Smooth {
    /// `cap` units a window of `span` nanoseconds at most, and `rate` (at most `cap`) units a window on average.
    pub fn new(cap: u64, span: u64, rate: f64, burst: Option<u64>, correctable: bool) -> Smooth {
        let stretched = (span as f64 * (cap as f64 / rate.max(1e-9))).ceil();
        let pace = Gcra::new(cap, stretched as u64, correctable);
        let caught_up = CAUGHT_UP_NANOS.max(pace.span(1) / CAUGHT_UP_PART);
        let pace = pace.catching_up(caught_up);
        let window = Window::new(cap, span);
        let (burst, largest) = (burst.unwrap_or(0), if correctable { cap } else { 1 });
        Smooth { pace, burst, largest, pending: 0, window, counted: false, heaviest: 0.0, searched: None }
    }

    /// The same, safe for a sliding counter.
    pub fn counted(self, cap: u64, span: u64) -> Smooth {
        let grain = if cap > EXACT { span / EXACT } else { 0 };
        Smooth { window: Window::remembering(cap, span, grain), counted: true, ..self }
    }

    pub fn slot(&mut self, amount: u64, now: Time, within: u64) -> Slot {
        let slot = self.pace_slot(amount, now).and(self.window.slot(amount, now, within));
        if self.counted && slot.is_open(now) { self.counter_slot(amount, now) } else { slot }
    }

    fn pace_slot(&self, amount: u64, now: Time) -> Slot {
        let debt = self.pace.span(self.burst).max(self.pace.span(amount));
        let need = self.pace.span(self.pending + amount);
        if need > debt {
            // A permit that has not departed yet: its departure decides.
            return Slot::answered_by(Time::MAX);
        }
        let free = self.pace.full_at().minus(debt - need);
        if free <= now { Slot::OPEN } else { Slot::at(free) }
    }

    /// When a sliding counter surely has room; the window log has been brought up to date before.
    fn counter_slot(&mut self, amount: u64, now: Time) -> Slot {
        let others = (self.window.foreign_used() + amount) as f64;
        let room = self.window.cap() as f64 - others + 1e-9;
        if self.heaviest <= room || (others == amount as f64 && self.window.evenly(amount, now)) {
            return Slot::OPEN;
        }
        // Answers bring the time forward, but seldom by much: one search serves for a while.
        let fresh = |when: Time| now < when.plus(self.pace.span(1) / LAZINESS);
        if let Some((when, what, slot)) = self.searched
            && what == amount
            && fresh(when)
            && !slot.is_open(now)
        {
            return slot;
        }
        self.heaviest = self.window.heaviest(now) + self.window.flying() as f64;
        // What costs as much as the whole window goes when nothing at all is counted any more.
        if self.heaviest <= room || self.heaviest == 0.0 {
            return Slot::OPEN;
        }
        let slot = self.counter_has_room(room.max(0.0), now);
        self.searched = Some((now, amount, slot));
        slot
    }

    fn counter_has_room(&self, room: f64, now: Time) -> Slot {
        let flying = self.window.flying() as f64;
        if flying > room {
            return Slot::answered_by(Time::MAX);
        }
        let fits = |at: Time| self.window.heaviest(at) + flying <= room;
        let precision = (self.pace.span(1) / PRECISION).max(1_000);
        let end = now.plus(self.window.span() * 2 + self.window.guard());
        let (mut early, mut step) = (now, precision * 2);
        let mut late = now.plus(step).min(end);
        while late < end && !fits(late) {
            step = step.saturating_mul(2);
            (early, late) = (late, late.plus(step).min(end));
        }
        while late.as_nanos() - early.as_nanos() > precision {
            let middle = early.plus((late.as_nanos() - early.as_nanos()) / 2);
            if fits(middle) {
                late = middle;
            } else {
                early = middle;
            }
        }
        Slot::at(late)
    }

    pub fn book(&mut self, amount: u64) {
        self.pending += amount;
        self.heaviest += amount as f64;
        self.window.book(amount);
    }

    pub fn unbook(&mut self, amount: u64) {
        self.pending = self.pending.saturating_sub(amount);
        self.heaviest -= amount as f64;
        self.window.unbook(amount);
    }

    pub fn depart(&mut self, amount: u64, at: Time) {
        self.pending = self.pending.saturating_sub(amount);
        self.pace.take(amount, at);
        self.window.depart(amount, at);
    }

    pub fn shift(&mut self, amount: u64, from: Time, to: Time) {
        self.pace.not_before(amount, to);
        self.window.shift(amount, from, to);
    }

    pub fn correct(&mut self, estimate: u64, actual: u64, sent: Time, anchor: Time, at: Time) {
        if actual > estimate {
            self.pace.take(actual - estimate, at.max(anchor));
            self.heaviest += (actual - estimate) as f64;
        } else {
            self.pace.give_back(estimate - actual, sent);
        }
        self.window.correct(estimate, actual, anchor, at);
    }

    pub fn widen(&mut self, extra: u64) {
        self.pace.widen(extra);
        self.window.widen(extra);
        self.heaviest = f64::INFINITY;
    }

    /// Until when its rate is used up.
    pub fn full_at(&self) -> Time {
        self.pace.full_at()
    }

    /// Calls of another process: its rate is used up until `until`, and what its counter sees is not known.
    pub fn restored(&mut self, until: Time) {
        let one = self.pace.span(1);
        self.pace.not_before(1, until.minus(one));
        self.heaviest = f64::INFINITY;
    }

    /// The next call keeps its distance from those that may have left at `now` at once.
    pub fn spaced_from(&mut self, now: Time) {
        self.pace.not_before(self.burst.max(1), now);
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    pub fn window_mut(&mut self) -> &mut Window {
        &mut self.window
    }

    pub fn allowance(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        let even = self.pace.flows_in(horizon.saturating_add(self.pace.caught_up()));
        let even = even.saturating_add(self.burst.max(self.largest));
        even.min(self.window.allowance(horizon, now, within))
    }
}
