//! How providers count: the common server-side algorithms, each exact, with time as an argument.
//!
//! Time is [`Nanos`] on one monotonic axis (the provider uses nanoseconds since the Unix epoch, so that windows on the
//! clock start where users expect them). Arithmetic is in integers: no call is let through or refused by rounding.
//! A refused call changes nothing. Time that goes backwards is read as standing still.
//!
//! ```
//! use paceline::sim::enforce::{Admission, Limit, Meter};
//! use std::time::Duration;
//!
//! let limit = Limit::SlidingLog { limit: 2, per: Duration::from_nanos(10) };
//! let mut meter = Meter::new(&limit)?;
//! for now in [0, 4] {
//!     assert_eq!(meter.admit(now, 1), Admission::Now);
//!     meter.take(now, 1);
//! }
//! assert_eq!(meter.admit(9, 1), Admission::In(1));
//! assert_eq!(meter.admit(10, 1), Admission::Now);
//! # Ok::<(), paceline::sim::enforce::LimitError>(())
//! ```

use std::collections::VecDeque;
use std::time::Duration;

/// A point in time, or a span, in nanoseconds.
pub type Nanos = u64;

/// The largest number of calls or units in a limit: it bounds the memory of a log.
pub const LIMIT_MAX: u64 = 10_000_000;

/// One limit as a server enforces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    /// At most `limit` in any window `(now − per, now]`: a log of every accepted call.
    SlidingLog {
        /// Calls or units.
        limit: u64,
        /// The window.
        per: Duration,
    },
    /// Two counters on the clock, the previous one weighted by how much of it the sliding window still covers.
    SlidingCounter {
        /// Calls or units.
        limit: u64,
        /// The window.
        per: Duration,
    },
    /// One counter that starts again at zero in every window.
    FixedWindow {
        /// Calls or units.
        limit: u64,
        /// The window.
        per: Duration,
        /// Where windows begin.
        edge: Edge,
    },
    /// A bucket that starts with `burst` tokens and gains `limit` per `per`, never more than `burst`.
    TokenBucket {
        /// Tokens gained in `per`.
        limit: u64,
        /// The period of `limit`.
        per: Duration,
        /// Capacity.
        burst: u64,
    },
    /// A bucket that starts empty, takes what still fits under `room`, and drains by `limit` per `per`.
    LeakyBucket {
        /// Units drained in `per`.
        limit: u64,
        /// The period of `limit`.
        per: Duration,
        /// What fits.
        room: u64,
    },
    /// At most `limit` calls open at once.
    Concurrency {
        /// Open calls.
        limit: u64,
    },
}

/// Where the windows of [`Limit::FixedWindow`] begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edge {
    /// At multiples of the window since the Unix epoch.
    Clock,
    /// With the first accepted call after the last window ended.
    FirstCall,
}

/// A limit that cannot be enforced.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LimitError {
    /// A count of zero or above [`LIMIT_MAX`].
    #[error("{what} must be between 1 and {LIMIT_MAX}, not {value}")]
    Count {
        /// Which count.
        what: &'static str,
        /// What was given.
        value: u64,
    },
    /// A period of zero or longer than 366 days.
    #[error("the period must be above zero and at most 366 days, not {0:?}")]
    Period(Duration),
}

/// Whether a call may pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It may.
    Now,
    /// Not before this many nanoseconds from now, if nothing else passes meanwhile.
    In(Nanos),
    /// Not while another call is open.
    WhenReleased,
    /// It asks for more than the whole capacity.
    Never,
}

/// What a server tells about a limit in its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge {
    /// The limit as advertised.
    pub limit: u64,
    /// How many units would pass now.
    pub remaining: u64,
    /// From now until more units are available: the end of a window, the next entry that falls out of a log, the
    /// next whole token.
    pub reset_in: Nanos,
}

/// The state of one limit for one caller.
#[derive(Clone, Debug)]
pub enum Meter {
    /// See [`Limit::SlidingLog`].
    SlidingLog(SlidingLog),
    /// See [`Limit::SlidingCounter`].
    SlidingCounter(SlidingCounter),
    /// See [`Limit::FixedWindow`].
    FixedWindow(FixedWindow),
    /// See [`Limit::TokenBucket`].
    TokenBucket(TokenBucket),
    /// See [`Limit::LeakyBucket`].
    LeakyBucket(LeakyBucket),
    /// See [`Limit::Concurrency`].
    Concurrency(Concurrency),
}

impl Limit {
    /// Calls or units allowed and the period, where there is one.
    pub fn rate(&self) -> (u64, Option<Duration>) {
        match *self {
            Limit::SlidingLog { limit, per }
            | Limit::SlidingCounter { limit, per }
            | Limit::FixedWindow { limit, per, .. }
            | Limit::TokenBucket { limit, per, .. }
            | Limit::LeakyBucket { limit, per, .. } => (limit, Some(per)),
            Limit::Concurrency { limit } => (limit, None),
        }
    }

    /// Refuses zero, and what would not be bounded.
    pub fn check(&self) -> Result<(), LimitError> {
        let count = |what, value| match value {
            1..=LIMIT_MAX => Ok(()),
            _ => Err(LimitError::Count { what, value }),
        };
        let (limit, per) = self.rate();
        count("the limit", limit)?;
        match *self {
            Limit::TokenBucket { burst, .. } => count("burst", burst)?,
            Limit::LeakyBucket { room, .. } => count("room", room)?,
            _ => {}
        }
        match per {
            Some(per) if per.is_zero() || per > Duration::from_secs(366 * 86_400) => Err(LimitError::Period(per)),
            _ => Ok(()),
        }
    }
}

impl Meter {
    /// A meter that has seen nothing yet.
    pub fn new(limit: &Limit) -> Result<Self, LimitError> {
        limit.check()?;
        let nanos = |per: Duration| u64::try_from(per.as_nanos()).unwrap_or(Nanos::MAX);
        Ok(match *limit {
            Limit::SlidingLog { limit, per } => {
                Meter::SlidingLog(SlidingLog { limit, window: nanos(per), log: VecDeque::new(), used: 0 })
            }
            Limit::SlidingCounter { limit, per } => {
                Meter::SlidingCounter(SlidingCounter { limit, window: nanos(per), index: 0, previous: 0, current: 0 })
            }
            Limit::FixedWindow { limit, per, edge } => {
                Meter::FixedWindow(FixedWindow { limit, window: nanos(per), edge, start: None, used: 0 })
            }
            Limit::TokenBucket { limit, per, burst } => Meter::TokenBucket(TokenBucket {
                limit,
                period: nanos(per),
                burst,
                level: u128::from(burst) * u128::from(nanos(per)),
                at: 0,
            }),
            Limit::LeakyBucket { limit, per, room } => {
                Meter::LeakyBucket(LeakyBucket { limit, period: nanos(per), room, level: 0, at: 0 })
            }
            Limit::Concurrency { limit } => Meter::Concurrency(Concurrency { limit, open: 0 }),
        })
    }

    /// Whether `units` may pass now. Forgets what is over, decides nothing.
    pub fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        match self {
            Meter::SlidingLog(meter) => meter.admit(now, units),
            Meter::SlidingCounter(meter) => meter.admit(now, units),
            Meter::FixedWindow(meter) => meter.admit(now, units),
            Meter::TokenBucket(meter) => meter.admit(now, units),
            Meter::LeakyBucket(meter) => meter.admit(now, units),
            Meter::Concurrency(meter) => meter.admit(),
        }
    }

    /// Counts an admitted call. Only after [`Meter::admit`] said [`Admission::Now`] for the same instant.
    pub fn take(&mut self, now: Nanos, units: u64) {
        match self {
            Meter::SlidingLog(meter) => meter.take(now, units),
            Meter::SlidingCounter(meter) => meter.current += units,
            Meter::FixedWindow(meter) => meter.take(now, units),
            Meter::TokenBucket(meter) => meter.take(units),
            Meter::LeakyBucket(meter) => meter.take(units),
            Meter::Concurrency(meter) => meter.open += 1,
        }
    }

    /// An open call ended; only [`Limit::Concurrency`] cares.
    pub fn release(&mut self) {
        if let Meter::Concurrency(meter) = self {
            meter.open = meter.open.saturating_sub(1);
        }
    }

    /// What the headers of a reply say.
    pub fn gauge(&mut self, now: Nanos) -> Gauge {
        match self {
            Meter::SlidingLog(meter) => meter.gauge(now),
            Meter::SlidingCounter(meter) => meter.gauge(now),
            Meter::FixedWindow(meter) => meter.gauge(now),
            Meter::TokenBucket(meter) => meter.gauge(now),
            Meter::LeakyBucket(meter) => meter.gauge(now),
            Meter::Concurrency(meter) => {
                Gauge { limit: meter.limit, remaining: meter.limit.saturating_sub(meter.open), reset_in: 0 }
            }
        }
    }
}

/// A log of accepted calls; at most `limit` entries.
#[derive(Clone, Debug)]
pub struct SlidingLog {
    limit: u64,
    window: Nanos,
    log: VecDeque<(Nanos, u64)>,
    used: u64,
}

impl SlidingLog {
    fn forget(&mut self, now: Nanos) {
        while let Some(&(at, units)) = self.log.front() {
            if now.saturating_sub(at) < self.window {
                break;
            }
            self.log.pop_front();
            self.used -= units;
        }
    }

    fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        if units > self.limit {
            return Admission::Never;
        }
        self.forget(now);
        let mut missing = (self.used + units).saturating_sub(self.limit);
        if missing == 0 {
            return Admission::Now;
        }
        for &(at, held) in &self.log {
            missing = missing.saturating_sub(held);
            if missing == 0 {
                return Admission::In((at + self.window).saturating_sub(now));
            }
        }
        Admission::Never // cannot be: the entries add up to `used`
    }

    fn take(&mut self, now: Nanos, units: u64) {
        if units > 0 {
            self.log.push_back((now, units));
            self.used += units;
        }
    }

    fn gauge(&mut self, now: Nanos) -> Gauge {
        self.forget(now);
        let oldest = self.log.front().map_or(now, |&(at, _)| at + self.window);
        Gauge { limit: self.limit, remaining: self.limit - self.used, reset_in: oldest.saturating_sub(now) }
    }
}

/// Two counters on the clock.
#[derive(Clone, Debug)]
pub struct SlidingCounter {
    limit: u64,
    window: Nanos,
    index: u64,
    previous: u64,
    current: u64,
}

impl SlidingCounter {
    fn turn(&mut self, now: Nanos) {
        let index = now / self.window;
        if index <= self.index {
            return;
        }
        self.previous = if index == self.index + 1 { self.current } else { 0 };
        self.current = 0;
        self.index = index;
    }

    /// How far into a window `previous` has faded enough for `current + units`; `None` if it never does there.
    fn fades_at(&self, previous: u64, current: u64, units: u64) -> Option<Nanos> {
        let spare = self.limit.checked_sub(current + units)?;
        if previous == 0 {
            return Some(0);
        }
        // previous · (window − into) ≤ spare · window
        let rest = u128::from(spare) * u128::from(self.window) / u128::from(previous);
        let rest = Nanos::try_from(rest).unwrap_or(Nanos::MAX);
        Some(self.window.saturating_sub(rest))
    }

    fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        if units > self.limit {
            return Admission::Never;
        }
        self.turn(now);
        let into = now.saturating_sub(self.index * self.window);
        if let Some(at) = self.fades_at(self.previous, self.current, units) {
            return match at.saturating_sub(into) {
                0 => Admission::Now,
                wait => Admission::In(wait),
            };
        }
        match self.fades_at(self.current, 0, units) {
            Some(at) => Admission::In((self.window + at).saturating_sub(into)),
            None => Admission::Never,
        }
    }

    fn gauge(&mut self, now: Nanos) -> Gauge {
        self.turn(now);
        let into = now.saturating_sub(self.index * self.window);
        let faded = u128::from(self.previous) * u128::from(self.window.saturating_sub(into));
        let weight = faded.div_ceil(u128::from(self.window));
        let used = self.current + u64::try_from(weight).unwrap_or(self.previous);
        let remaining = self.limit.saturating_sub(used);
        let reset_in = match self.admit(now, 1) {
            Admission::In(wait) => wait,
            _ => self.window.saturating_sub(into),
        };
        Gauge { limit: self.limit, remaining, reset_in }
    }
}

/// One counter a window.
#[derive(Clone, Debug)]
pub struct FixedWindow {
    limit: u64,
    window: Nanos,
    edge: Edge,
    start: Option<Nanos>,
    used: u64,
}

impl FixedWindow {
    fn turn(&mut self, now: Nanos) {
        let over = self.start.is_none_or(|start| now.saturating_sub(start) >= self.window);
        if over {
            self.used = 0;
            self.start = match self.edge {
                Edge::Clock => Some(now - now % self.window),
                Edge::FirstCall => None,
            };
        }
    }

    fn end_in(&self, now: Nanos) -> Nanos {
        self.start.map_or(0, |start| (start + self.window).saturating_sub(now))
    }

    fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        if units > self.limit {
            return Admission::Never;
        }
        self.turn(now);
        if self.used + units <= self.limit { Admission::Now } else { Admission::In(self.end_in(now)) }
    }

    fn take(&mut self, now: Nanos, units: u64) {
        self.start.get_or_insert(now);
        self.used += units;
    }

    fn gauge(&mut self, now: Nanos) -> Gauge {
        self.turn(now);
        let reset_in = match self.start {
            Some(_) => self.end_in(now),
            None => self.window,
        };
        Gauge { limit: self.limit, remaining: self.limit - self.used, reset_in }
    }
}

/// A bucket of tokens; `level` is in tokens × period, so that each nanosecond adds exactly `limit`.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    limit: u64,
    period: Nanos,
    burst: u64,
    level: u128,
    at: Nanos,
}

impl TokenBucket {
    fn refill(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.at);
        let full = u128::from(self.burst) * u128::from(self.period);
        self.level = (self.level + u128::from(passed) * u128::from(self.limit)).min(full);
        self.at = self.at.max(now);
    }

    fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        if units > self.burst {
            return Admission::Never;
        }
        self.refill(now);
        let asked = u128::from(units) * u128::from(self.period);
        match asked.saturating_sub(self.level) {
            0 => Admission::Now,
            missing => Admission::In(nanos_for(missing, self.limit)),
        }
    }

    fn take(&mut self, units: u64) {
        self.level -= u128::from(units) * u128::from(self.period);
    }

    fn gauge(&mut self, now: Nanos) -> Gauge {
        self.refill(now);
        let period = u128::from(self.period);
        let remaining = u64::try_from(self.level / period).unwrap_or(self.burst);
        let next = (period - self.level % period) * u128::from(remaining < self.burst);
        Gauge { limit: self.burst, remaining, reset_in: nanos_for(next, self.limit) }
    }
}

/// A bucket that drains; `level` is in units × period, so that each nanosecond drains exactly `limit`.
#[derive(Clone, Debug)]
pub struct LeakyBucket {
    limit: u64,
    period: Nanos,
    room: u64,
    level: u128,
    at: Nanos,
}

impl LeakyBucket {
    fn drain(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.at);
        self.level = self.level.saturating_sub(u128::from(passed) * u128::from(self.limit));
        self.at = self.at.max(now);
    }

    fn admit(&mut self, now: Nanos, units: u64) -> Admission {
        if units > self.room {
            return Admission::Never;
        }
        self.drain(now);
        let free = u128::from(self.room - units) * u128::from(self.period);
        match self.level.saturating_sub(free) {
            0 => Admission::Now,
            excess => Admission::In(nanos_for(excess, self.limit)),
        }
    }

    fn take(&mut self, units: u64) {
        self.level += u128::from(units) * u128::from(self.period);
    }

    fn gauge(&mut self, now: Nanos) -> Gauge {
        self.drain(now);
        let period = u128::from(self.period);
        let filled = u64::try_from(self.level.div_ceil(period)).unwrap_or(self.room);
        let over = match self.level % period {
            0 => period * u128::from(self.level > 0),
            part => part,
        };
        Gauge { limit: self.room, remaining: self.room - filled, reset_in: nanos_for(over, self.limit) }
    }
}

/// Open calls.
#[derive(Clone, Debug)]
pub struct Concurrency {
    limit: u64,
    open: u64,
}

impl Concurrency {
    fn admit(&self) -> Admission {
        if self.open < self.limit { Admission::Now } else { Admission::WhenReleased }
    }
}

/// Nanoseconds until `limit` a nanosecond have made up `missing`, rounded up.
fn nanos_for(missing: u128, limit: u64) -> Nanos {
    Nanos::try_from(missing.div_ceil(u128::from(limit))).unwrap_or(Nanos::MAX)
}
