//! What a response says about limits, whatever the provider's dialect.
//!
//! Parsing is total: absurd values (negative, huge, not a number, in the wrong unit) are left out, of two that
//! contradict each other the tighter one is taken, times are rounded up. What a signal may do to a pool is decided in
//! `learn.rs`: it can only tighten.

mod fields;
mod x_ratelimit;

use fields::{Heads, retry_after};
use std::time::Duration;

/// The dialect a reading was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `Retry-After` alone.
    RetryAfter,
    /// `X-RateLimit-*` (GitHub, Discord, SendGrid, X and many more).
    XRateLimit,
}

/// What a reading is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Calls.
    Requests,
    /// Cost units, such as tokens.
    Cost,
    /// Calls open at once.
    Concurrency,
}

/// What a response says about one limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// What it counts.
    pub unit: Unit,
    /// How much is allowed per window.
    pub limit: Option<u64>,
    /// How much of it is left.
    pub remaining: Option<u64>,
    /// How long after the response more will be there, rounded up.
    pub resets_in: Option<Duration>,
    /// The length of the window, where the response names it.
    pub window: Option<Duration>,
    /// The dialect.
    pub family: Family,
}

impl Reading {
    fn of(unit: Unit, family: Family) -> Reading {
        Reading { unit, limit: None, remaining: None, resets_in: None, window: None, family }
    }

    fn says_something(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some()
    }
}

/// Everything a response says about limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signal {
    /// The provider refused the call because of a limit.
    pub limited: bool,
    /// Nothing should be sent before this has passed since the response; a floor.
    pub retry_after: Option<Duration>,
    /// What it says about single limits.
    pub readings: Vec<Reading>,
}

impl Signal {
    /// Reads the headers of a response.
    ///
    /// Absolute times are read against the response's own `Date`; `wall_clock` (time since 1970) serves only where
    /// there is none.
    ///
    /// ```
    /// use paceline::pace::Signal;
    /// use std::time::Duration;
    /// let heads = [("Retry-After", "2"), ("X-RateLimit-Limit", "60"), ("X-RateLimit-Remaining", "0")];
    /// let signal = Signal::parse(heads, 429, None);
    /// assert!(signal.limited);
    /// assert_eq!(signal.retry_after, Some(Duration::from_secs(2)));
    /// assert_eq!(signal.readings[0].remaining, Some(0));
    /// ```
    pub fn parse<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        status: u16,
        wall_clock: Option<Duration>,
    ) -> Signal {
        let heads = Heads::new(headers, wall_clock);
        if heads.is_empty() {
            return Signal { limited: status == 429, ..Signal::default() };
        }
        let mut readings = Vec::new();
        x_ratelimit::read(&heads, &mut readings);
        readings.retain(Reading::says_something);
        let exhausted = readings.iter().any(|reading| reading.remaining == Some(0));
        let limited = status == 429 || (matches!(status, 403 | 503) && exhausted);
        // Elsewhere the field means something else: 202 and 3xx use it for polling and redirects.
        let pauses = limited || matches!(status, 403 | 413 | 503 | 529);
        Signal { limited, retry_after: retry_after(&heads).filter(|_| pauses), readings }
    }

    /// Whether there is anything to learn from it.
    pub fn is_empty(&self) -> bool {
        !self.limited && self.retry_after.is_none() && self.readings.is_empty()
    }
}
