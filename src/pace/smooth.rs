//! Evenly spaced calls that no common server algorithm refuses: for a server nobody knows.
//!
//! Departures keep a distance of W ÷ (N lowered) from each other, and the window log of the same N holds as well, so
//! that slow or bunched arrivals cannot exceed N in any window either. Why the rate is lowered: see [`lowered`].

use super::Time;
use super::gcra::Gcra;
use super::slot::Slot;
use super::window::Window;

#[derive(Clone, Debug)]
pub(super) struct Smooth {
    pace: Gcra,
    /// Debt that may be left behind by several calls at once; one call alone may always leave its own.
    burst: u64,
    pending: u64,
    window: Window,
}

/// Calls per window that an evenly spaced sender may make so that a *sliding counter* (previous window weighted by
/// what is left of it, plus the current one) never sees more than `calls`.
///
/// With perfectly even spacing, `calls − 1` is the best that can be done; one call more is left for jitter, or less
/// for very small limits, whose windows are long compared with it.
pub(super) fn lowered(calls: u64) -> f64 {
    match calls {
        0 | 1 => 0.5,
        2..=7 => calls as f64 - 1.0 - calls as f64 / 16.0,
        _ => calls as f64 - 2.0,
    }
}

impl Smooth {
    /// `cap` units a window of `span` nanoseconds at most, and `rate` (at most `cap`) units a window on average.
    pub fn new(cap: u64, span: u64, rate: f64, burst: Option<u64>, correctable: bool) -> Smooth {
        let stretched = (span as f64 * (cap as f64 / rate.max(1e-9))).ceil();
        let pace = Gcra::new(cap, stretched as u64, correctable);
        Smooth { pace, burst: burst.unwrap_or(0), pending: 0, window: Window::new(cap, span) }
    }

    pub fn slot(&mut self, amount: u64, now: Time, within: u64) -> Slot {
        self.pace_slot(amount, now).and(self.window.slot(amount, now, within))
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

    pub fn book(&mut self, amount: u64) {
        self.pending += amount;
        self.window.book(amount);
    }

    pub fn unbook(&mut self, amount: u64) {
        self.pending = self.pending.saturating_sub(amount);
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
        } else {
            self.pace.give_back(estimate - actual, sent);
        }
        self.window.correct(estimate, actual, anchor, at);
    }

    pub fn widen(&mut self, extra: u64) {
        self.pace.widen(extra);
        self.window.widen(extra);
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    pub fn window_mut(&mut self) -> &mut Window {
        &mut self.window
    }

    pub fn allowance(&mut self, horizon: u64, now: Time, within: u64) -> u64 {
        let even = self.pace.flows_in(horizon).saturating_add(self.burst.max(1));
        even.min(self.window.allowance(horizon, now, within))
    }
}
