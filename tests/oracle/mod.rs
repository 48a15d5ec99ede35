//! Providers as they really count, written without any code of the pacer: what they refuse is the truth.
//!
//! Each one judges arrivals in the order in which they arrive; times are nanoseconds.

#![allow(dead_code, reason = "each test file uses a part of this")]

pub mod owners;
pub mod world;

use std::collections::VecDeque;

pub const SECOND: u64 = 1_000_000_000;
pub const MILLI: u64 = 1_000_000;

/// A provider's way to count.
pub trait Server {
    /// Whether a call of this cost, arriving now, is accepted.
    fn arrive(&mut self, at: u64, cost: u64) -> bool;
    /// An accepted call is answered completely.
    fn leave(&mut self, _at: u64) {}
    /// Costs turn out to be this instead of what was asked for.
    fn correct(&mut self, _arrived: u64, _asked: u64, _actual: u64) {}
    /// What it would say about itself: limit, remaining, nanoseconds until the reset.
    fn says(&mut self, _at: u64) -> Option<(u64, u64, u64)> {
        None
    }
}

/// Never more than `limit` in any `window`: a log of the accepted arrivals.
pub struct SlidingLog {
    pub limit: u64,
    pub window: u64,
    log: VecDeque<(u64, u64)>,
}

impl SlidingLog {
    pub fn new(limit: u64, window: u64) -> SlidingLog {
        SlidingLog { limit, window, log: VecDeque::new() }
    }

    fn used(&mut self, at: u64) -> u64 {
        while self.log.front().is_some_and(|entry| entry.0 + self.window <= at) {
            self.log.pop_front();
        }
        self.log.iter().map(|entry| entry.1).sum()
    }
}

impl Server for SlidingLog {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        let fits = self.used(at) + cost <= self.limit;
        if fits {
            self.log.push_back((at, cost));
        }
        fits
    }

    fn correct(&mut self, arrived: u64, asked: u64, actual: u64) {
        if let Some(entry) = self.log.iter_mut().find(|entry| entry.0 == arrived && entry.1 == asked) {
            entry.1 = actual;
        }
    }

    fn says(&mut self, at: u64) -> Option<(u64, u64, u64)> {
        let used = self.used(at);
        let reset = self.log.front().map_or(0, |entry| entry.0 + self.window - at);
        Some((self.limit, self.limit - used.min(self.limit), reset))
    }
}

/// The counter of this fixed window, and what is left of the last one in proportion.
pub struct SlidingCounter {
    limit: u64,
    window: u64,
    phase: u64,
    number: u64,
    previous: u64,
    current: u64,
}

impl SlidingCounter {
    pub fn new(limit: u64, window: u64, phase: u64) -> SlidingCounter {
        SlidingCounter { limit, window, phase, number: 0, previous: 0, current: 0 }
    }
}

impl Server for SlidingCounter {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        let at = at + self.phase;
        let number = at / self.window;
        if number != self.number {
            self.previous = if number == self.number + 1 { self.current } else { 0 };
            self.current = 0;
            self.number = number;
        }
        let left = (self.window - at % self.window) as f64 / self.window as f64;
        let fits = self.previous as f64 * left + (self.current + cost) as f64 <= self.limit as f64 + 1e-9;
        if fits {
            self.current += cost;
        }
        fits
    }
}

/// A counter that begins anew at the edges of a window, on the clock or from the first call on.
pub struct FixedWindow {
    limit: u64,
    window: u64,
    /// `None`: the window begins with the first call after the last one has ended.
    phase: Option<u64>,
    began: Option<u64>,
    used: u64,
}

impl FixedWindow {
    pub fn on_the_clock(limit: u64, window: u64, phase: u64) -> FixedWindow {
        FixedWindow { limit, window, phase: Some(phase), began: None, used: 0 }
    }

    pub fn from_the_first_call(limit: u64, window: u64) -> FixedWindow {
        FixedWindow { limit, window, phase: None, began: None, used: 0 }
    }

    fn roll(&mut self, at: u64) {
        let over = self.began.is_none_or(|began| at >= began + self.window);
        if over {
            self.used = 0;
            self.began = Some(match self.phase {
                None => at,
                Some(phase) => ((at + phase) / self.window * self.window).saturating_sub(phase),
            });
        }
        if let (Some(phase), Some(began)) = (self.phase, self.began)
            && (at + phase) / self.window != (began + phase) / self.window
        {
            self.used = 0;
            self.began = Some((at + phase) / self.window * self.window - phase);
        }
    }
}

impl Server for FixedWindow {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        self.roll(at);
        let fits = self.used + cost <= self.limit;
        if fits {
            self.used += cost;
        }
        fits
    }

    fn correct(&mut self, arrived: u64, asked: u64, actual: u64) {
        if self.began.is_some_and(|began| began <= arrived) {
            self.used -= asked - actual;
        }
    }

    fn says(&mut self, at: u64) -> Option<(u64, u64, u64)> {
        let began = self.began?;
        Some((self.limit, self.limit - self.used, (began + self.window).saturating_sub(at)))
    }
}

/// A bucket of `depth` tokens into which `rate` tokens flow back in `per`.
pub struct TokenBucket {
    depth: f64,
    per_nano: f64,
    level: f64,
    last: u64,
}

impl TokenBucket {
    pub fn new(depth: f64, rate: u64, per: u64) -> TokenBucket {
        TokenBucket { depth, per_nano: rate as f64 / per as f64, level: depth, last: 0 }
    }
}

impl Server for TokenBucket {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        self.level = (self.level + (at - self.last) as f64 * self.per_nano).min(self.depth);
        self.last = at;
        let fits = self.level + 1e-6 >= cost as f64;
        if fits {
            self.level -= cost as f64;
        }
        fits
    }

    fn says(&mut self, _at: u64) -> Option<(u64, u64, u64)> {
        let missing = (1.0 - self.level).max(0.0);
        Some((self.depth as u64, self.level as u64, (missing / self.per_nano) as u64))
    }

    fn correct(&mut self, _arrived: u64, asked: u64, actual: u64) {
        self.level = (self.level + (asked - actual) as f64).min(self.depth);
    }
}

/// A queue with room for `room` calls that is worked off evenly: nginx's `limit_req burst=room nodelay`.
pub struct LeakyBucket {
    room: f64,
    per_nano: f64,
    level: f64,
    last: u64,
}

impl LeakyBucket {
    pub fn new(room: f64, rate: u64, per: u64) -> LeakyBucket {
        LeakyBucket { room, per_nano: rate as f64 / per as f64, level: 0.0, last: 0 }
    }
}

impl Server for LeakyBucket {
    fn arrive(&mut self, at: u64, _cost: u64) -> bool {
        let level = (self.level - (at - self.last) as f64 * self.per_nano).max(0.0);
        let fits = level <= self.room + 1e-6;
        if fits {
            self.level = level + 1.0;
            self.last = at;
        }
        fits
    }
}

/// So many calls open at once.
pub struct Concurrent {
    places: u64,
    open: u64,
    pub most: u64,
}

impl Concurrent {
    pub fn new(places: u64) -> Concurrent {
        Concurrent { places, open: 0, most: 0 }
    }
}

impl Server for Concurrent {
    fn arrive(&mut self, _at: u64, _cost: u64) -> bool {
        let fits = self.open < self.places;
        if fits {
            self.open += 1;
            self.most = self.most.max(self.open);
        }
        fits
    }

    fn leave(&mut self, _at: u64) {
        self.open -= 1;
    }
}

/// Two ways to count at once: both must agree.
pub struct Both<A, B>(pub A, pub B);

impl<A: Server, B: Server> Server for Both<A, B> {
    fn arrive(&mut self, at: u64, cost: u64) -> bool {
        // A call refused by one may have been counted by the other: the stricter reading.
        let first = self.0.arrive(at, cost);
        self.1.arrive(at, cost) && first
    }

    fn leave(&mut self, at: u64) {
        self.0.leave(at);
        self.1.leave(at);
    }
}

/// Every call costs one to a server that counts calls, whatever it costs to others.
pub struct ByCall<S>(pub S);

impl<S: Server> Server for ByCall<S> {
    fn arrive(&mut self, at: u64, _cost: u64) -> bool {
        self.0.arrive(at, 1)
    }

    fn leave(&mut self, at: u64) {
        self.0.leave(at);
    }
}
