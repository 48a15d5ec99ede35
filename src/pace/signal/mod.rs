//! What a response says about limits, whatever the provider's dialect.
//!
//! Parsing is total: absurd values (negative, huge, not a number, in the wrong unit) are left out, of two that
//! contradict each other the tighter one is taken, times are rounded up. What a signal may do to a pool is decided in
//! `learn.rs`: it can only tighten.

mod fields;
mod graphql;
mod ietf;
mod vendors;
mod x_ratelimit;

use fields::{Heads, Wait, retry_after};
use std::time::Duration;

/// Fields that name the limit that was hit.
const REASONS: &[&str] = &["ratelimit-reason", "stripe-rate-limited-reason"];
/// A response says a handful of things about limits; more is nonsense.
const MOST_READINGS: usize = 32;
/// So much of a reason is kept.
const LONGEST_REASON: usize = 64;

/// The dialect a reading was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// `Retry-After` alone.
    RetryAfter,
    /// `RateLimit`, `RateLimit-Policy`, `RateLimit-*` of the IETF draft.
    Ietf,
    /// `X-RateLimit-*` (GitHub, Discord, SendGrid, X and many more).
    XRateLimit,
    /// `x-ratelimit-*-requests`, `-tokens` (OpenAI, Azure), `-minute`, `-hour` (Kong).
    OpenAi,
    /// `anthropic-ratelimit-*`.
    Anthropic,
    /// `X-Shopify-Shop-Api-Call-Limit`, and the `throttleStatus` of its GraphQL bodies.
    Shopify,
    /// `X-HubSpot-RateLimit-*`.
    HubSpot,
    /// `Sforce-Limit-Info`.
    Salesforce,
    /// `Twilio-Concurrent-Requests`.
    Twilio,
    /// `x-amzn-RateLimit-Limit`.
    Amazon,
    /// `RateLimit-Reason`, `X-RateLimit-NearLimit`.
    Jira,
    /// `Stripe-Rate-Limited-Reason`.
    Stripe,
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
    /// How much of it is used.
    pub used: Option<u64>,
    /// How long after the response more will be there, rounded up.
    pub resets_in: Option<Duration>,
    /// How coarse that is: the reset may be so much earlier or later.
    pub reset_grain: Duration,
    /// The same as a time since 1970, where it was given so.
    pub reset_at: Option<Duration>,
    /// The length of the window, where the response names it.
    pub window: Option<Duration>,
    /// The dialect.
    pub family: Family,
}

impl Reading {
    /// A reading that says nothing yet: for what a body says instead of headers.
    pub fn of(unit: Unit, family: Family) -> Reading {
        Reading {
            unit,
            limit: None,
            remaining: None,
            used: None,
            resets_in: None,
            reset_grain: Duration::from_secs(1),
            reset_at: None,
            window: None,
            family,
        }
    }

    fn set_reset(&mut self, wait: Option<Wait>) {
        if let Some(wait) = wait {
            self.resets_in = Some(wait.after);
            self.reset_grain = wait.grain;
            self.reset_at = wait.at;
        }
    }

    fn says_something(&self) -> bool {
        self.limit.is_some() || self.remaining.is_some() || self.used.is_some()
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
    /// The provider's word for the limit that was hit.
    pub reason: Option<String>,
    /// The provider says that little is left.
    pub near_limit: bool,
}

impl Family {
    /// Its name in metrics and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RetryAfter => "retry_after",
            Self::Ietf => "ietf",
            Self::XRateLimit => "x_ratelimit",
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Shopify => "shopify",
            Self::HubSpot => "hubspot",
            Self::Salesforce => "salesforce",
            Self::Twilio => "twilio",
            Self::Amazon => "amazon",
            Self::Jira => "jira",
            Self::Stripe => "stripe",
        }
    }
}

impl Signal {
    /// The dialect, if it says something about limits.
    pub fn family(&self) -> Option<Family> {
        let read = self.readings.first().map(|reading| reading.family);
        read.or_else(|| self.retry_after.map(|_| Family::RetryAfter))
    }

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
        ietf::read(&heads, &mut readings);
        x_ratelimit::read(&heads, &mut readings);
        vendors::read(&heads, &mut readings);
        readings.retain(Reading::says_something);
        readings.truncate(MOST_READINGS);
        let reasons = REASONS.iter().flat_map(|name| heads.all(name)).next();
        let exhausted = readings.iter().any(|reading| reading.remaining == Some(0));
        let refused = matches!(status, 403 | 503) && (exhausted || reasons.is_some());
        let limited = status == 429 || refused;
        // Elsewhere the field means something else: 202 and 3xx use it for polling and redirects.
        let pauses = limited || matches!(status, 403 | 413 | 503 | 529);
        Signal {
            limited,
            retry_after: retry_after(&heads).filter(|_| pauses),
            readings,
            reason: reasons.map(|reason| reason.chars().take(LONGEST_REASON).collect()),
            near_limit: heads.all("x-ratelimit-nearlimit").any(|value| value.eq_ignore_ascii_case("true")),
        }
    }

    /// The families found in it, for metrics.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        let mut found: Vec<Family> = self.readings.iter().map(|reading| reading.family).collect();
        if found.is_empty() && self.retry_after.is_some() {
            found.push(Family::RetryAfter);
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter()
    }

    /// Whether there is anything to learn from it.
    pub fn is_empty(&self) -> bool {
        !self.limited && self.retry_after.is_none() && self.readings.is_empty()
    }
}
