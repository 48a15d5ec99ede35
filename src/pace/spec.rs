//! What is declared about a provider: limits, keys, budgets, routes and lanes.

use std::fmt;
use std::time::Duration;

/// Most routes a provider may have: a set of them is one machine word pair.
pub const MAX_ROUTES: usize = 128;
/// Longest period of a limit, a little over a year; it keeps all arithmetic far from overflow.
pub const MAX_PERIOD: Duration = Duration::from_secs(400 * 86_400);
/// Largest number of requests or cost units in a limit.
pub const MAX_AMOUNT: u64 = 1 << 48;

/// How much certainty is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Safety {
    /// No overrun for any network delay: a slot is free again only when the provider surely forgot the call.
    #[default]
    Strict,
    /// A slot is freed after the spread of delays seen so far: overruns are unlikely, not impossible.
    Balanced,
    /// As `Balanced`, and the limits are lowered by this fraction (0 to 0.99).
    Headroom(f64),
}

/// How the provider counts; see `docs/pacing.md` for what each one promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// Evenly spaced calls: the choice for a server nobody knows.
    #[default]
    Smooth,
    /// Never more than N in any window, wherever it begins.
    SlidingWindow,
    /// Never more than N in each of the provider's own windows.
    FixedWindow,
    /// A bucket of `burst` tokens, refilled evenly.
    TokenBucket,
    /// A counter over a calendar period.
    Quota(Reset),
}

/// A calendar, as far as pacing needs it. Time zones and summer time are the caller's: it names the period that is
/// running by [`super::Pool::quota_period`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// No period is longer. As long as nobody names the running period, a call counts for so long.
    pub longest: Duration,
    /// Tells calendars apart: what was spent in the periods of one says nothing about those of another.
    pub calendar: u64,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Calls per period.
    Requests(u64),
    /// Cost units per period.
    Cost(u64),
    /// Calls open at once; has no period.
    Concurrency(u32),
}

/// One rule of a key, a budget, a route or the provider.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitSpec {
    /// What is counted, and how much of it is allowed per period.
    pub measure: Measure,
    /// The period; ignored for concurrency.
    pub per: Duration,
    /// How the provider counts.
    pub algorithm: Algorithm,
    /// Tokens of a bucket, or calls (cost units) that `smooth` may send at once.
    pub burst: Option<u64>,
}

impl LimitSpec {
    /// So many calls per period, counted by `algorithm`, without burst.
    pub fn requests(amount: u64, per: Duration, algorithm: Algorithm) -> LimitSpec {
        LimitSpec { measure: Measure::Requests(amount), per, algorithm, burst: None }
    }

    /// So many cost units per period, counted by `algorithm`, without burst.
    pub fn cost(amount: u64, per: Duration, algorithm: Algorithm) -> LimitSpec {
        LimitSpec { measure: Measure::Cost(amount), per, algorithm, burst: None }
    }

    /// So many calls open at once.
    pub fn concurrency(open: u32) -> LimitSpec {
        LimitSpec {
            measure: Measure::Concurrency(open),
            per: Duration::ZERO,
            algorithm: Algorithm::Smooth,
            burst: None,
        }
    }

    /// The same limit with a burst.
    pub fn with_burst(self, burst: u64) -> LimitSpec {
        LimitSpec { burst: Some(burst), ..self }
    }
}

impl fmt::Display for LimitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (amount, unit) = match self.measure {
            Measure::Concurrency(open) => return write!(f, "{open} open at once"),
            Measure::Requests(amount) => (amount, "requests"),
            Measure::Cost(amount) => (amount, "cost"),
        };
        let algorithm = match self.algorithm {
            Algorithm::Smooth => "smooth",
            Algorithm::SlidingWindow => "sliding_window",
            Algorithm::FixedWindow => "fixed_window",
            Algorithm::TokenBucket => "token_bucket",
            Algorithm::Quota(_) => "quota",
        };
        write!(f, "{amount} {unit} per {:?} ({algorithm}", self.per)?;
        match self.burst {
            Some(burst) => write!(f, ", burst {burst})"),
            None => f.write_str(")"),
        }
    }
}

/// One credential.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySpec {
    /// Its public name; never the secret.
    pub label: String,
    /// Its share where several keys could serve at the same instant (at least 1).
    pub weight: u32,
    /// Index into [`PoolSpec::budgets`]; a key without one is its own budget.
    pub budget: Option<usize>,
}

/// What the provider counts: one or more keys that share quotas.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSpec {
    /// Its name, as jobs may be pinned to it.
    pub name: String,
    /// Limits of its keys together.
    pub limits: Vec<LimitSpec>,
}

/// Narrower limits for some calls.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteSpec {
    /// Of the provider as a whole.
    pub limits: Vec<LimitSpec>,
    /// Of each key.
    pub key_limits: Vec<LimitSpec>,
}

/// One lane of a provider's line.
#[derive(Clone, Debug, PartialEq)]
pub struct LaneSpec {
    /// Its name.
    pub name: String,
    /// Its share of the slots while several lanes wait (at least 1).
    pub weight: u32,
}

/// Everything declared about one provider.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSpec {
    /// How much certainty is asked for.
    pub safety: Safety,
    /// The provider counts a call at most this long after it was sent.
    pub counted_within: Duration,
    /// Limits of the provider as a whole, shared by all keys.
    pub limits: Vec<LimitSpec>,
    /// Limits that hold for every key, also inside budgets.
    pub key_limits: Vec<LimitSpec>,
    /// The credentials.
    pub keys: Vec<KeySpec>,
    /// Budgets named by `KeySpec::budget`.
    pub budgets: Vec<BudgetSpec>,
    /// Routes; an [`super::Ask`] names those that match it.
    pub routes: Vec<RouteSpec>,
    /// Lanes, in the order of their ids.
    pub lanes: Vec<LaneSpec>,
}

impl Default for PoolSpec {
    fn default() -> PoolSpec {
        PoolSpec {
            safety: Safety::Strict,
            counted_within: Duration::from_secs(30),
            limits: Vec::new(),
            key_limits: Vec::new(),
            keys: Vec::new(),
            budgets: Vec::new(),
            routes: Vec::new(),
            lanes: vec![LaneSpec { name: "default".into(), weight: 1 }],
        }
    }
}

/// Why a declaration cannot be paced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadSpec {
    /// A limit of zero, or of more than [`MAX_AMOUNT`].
    Amount { place: String },
    /// A period of zero, or longer than [`MAX_PERIOD`].
    Period { place: String },
    /// A burst of zero, or of more than [`MAX_AMOUNT`].
    Burst { place: String },
    /// More than [`MAX_ROUTES`] routes.
    TooManyRoutes { count: usize },
    /// A key names a budget that does not exist.
    UnknownBudget { label: String },
    /// `counted_within` is zero or longer than [`MAX_PERIOD`].
    CountedWithin,
    /// A headroom outside 0 to 0.99.
    Headroom,
}

impl fmt::Display for BadSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadSpec::Amount { place } => {
                write!(f, "{place}: the amount must be between 1 and {MAX_AMOUNT}")
            }
            BadSpec::Period { place } => write!(f, "{place}: the period must be longer than 0 and at most 400 days"),
            BadSpec::Burst { place } => {
                write!(f, "{place}: the burst must be between 1 and {MAX_AMOUNT}")
            }
            BadSpec::TooManyRoutes { count } => {
                write!(f, "{count} routes; at most {MAX_ROUTES} are possible")
            }
            BadSpec::UnknownBudget { label } => write!(f, "key {label}: its budget does not exist"),
            BadSpec::CountedWithin => f.write_str("counted_within must be longer than 0 and at most 400 days"),
            BadSpec::Headroom => f.write_str("headroom must be at least 0 and at most 0.99"),
        }
    }
}

impl std::error::Error for BadSpec {}

impl PoolSpec {
    /// Whether everything here can be paced; the first thing that cannot be is named.
    pub fn check(&self) -> Result<(), BadSpec> {
        if let Safety::Headroom(share) = self.safety
            && !(0.0..=0.99).contains(&share)
        {
            return Err(BadSpec::Headroom);
        }
        if self.counted_within.is_zero() || self.counted_within > MAX_PERIOD {
            return Err(BadSpec::CountedWithin);
        }
        if self.routes.len() > MAX_ROUTES {
            return Err(BadSpec::TooManyRoutes { count: self.routes.len() });
        }
        check_all("limits", &self.limits)?;
        check_all("key_limits", &self.key_limits)?;
        for budget in &self.budgets {
            check_all(&format!("budget {}", budget.name), &budget.limits)?;
        }
        for (n, route) in self.routes.iter().enumerate() {
            check_all(&format!("route {n} limits"), &route.limits)?;
            check_all(&format!("route {n} key_limits"), &route.key_limits)?;
        }
        match self.keys.iter().find(|key| key.budget.is_some_and(|b| b >= self.budgets.len())) {
            Some(key) => Err(BadSpec::UnknownBudget { label: key.label.clone() }),
            None => Ok(()),
        }
    }
}

fn check_all(place: &str, limits: &[LimitSpec]) -> Result<(), BadSpec> {
    for (n, limit) in limits.iter().enumerate() {
        let place = || format!("{place}[{n}]");
        let amount = match limit.measure {
            Measure::Requests(amount) | Measure::Cost(amount) => amount,
            Measure::Concurrency(open) => u64::from(open),
        };
        if !(1..=MAX_AMOUNT).contains(&amount) {
            return Err(BadSpec::Amount { place: place() });
        }
        let timed = !matches!(limit.measure, Measure::Concurrency(_));
        let too_long = match limit.algorithm {
            Algorithm::Quota(reset) => reset.longest < limit.per || reset.longest > MAX_PERIOD,
            _ => limit.per > MAX_PERIOD,
        };
        if timed && (limit.per.is_zero() || too_long) {
            return Err(BadSpec::Period { place: place() });
        }
        if limit.burst.is_some_and(|burst| !(1..=MAX_AMOUNT).contains(&burst)) {
            return Err(BadSpec::Burst { place: place() });
        }
    }
    Ok(())
}
