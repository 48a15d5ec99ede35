//! One rule of a provider: who is counted, what, how many, by which algorithm. Rules can be written as text.
//!
//! ```
//! use paceline::sim::Rule;
//!
//! for text in [
//!     "key requests 100/10s sliding_log",
//!     "key requests 600/1m sliding_counter",
//!     "key requests 10/1s token_bucket burst=6",
//!     "account requests 10/1s leaky_bucket room=4",
//!     "key cost 90000/1m fixed_clock",
//!     "server requests 5/1s fixed_first_call on=/v1/search",
//!     "server concurrency 8",
//! ] {
//!     let rule: Rule = text.parse()?;
//!     assert_eq!(rule.to_string(), text);
//! }
//! # Ok::<(), paceline::sim::rule::RuleError>(())
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::enforce::{Edge, Limit, LimitError};

/// Who shares a rule's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Each key for itself.
    Key,
    /// All keys of one account ([`super::SimKey::account`]); a key without one is its own.
    Account,
    /// All calls.
    Server,
}

/// What a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Each call is one.
    Requests,
    /// Each call is its cost ([`super::CostSource`]).
    Cost,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Who is counted.
    pub scope: Scope,
    /// What is counted. Concurrency always counts calls.
    pub unit: Unit,
    /// How.
    pub limit: Limit,
    /// Only calls whose path begins so.
    pub on: Option<String>,
}

/// A rule that could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// The text does not follow the grammar.
    #[error(
        "rule {text:?}: {problem}; write for example `key requests 100/10s sliding_log`, \
         `key requests 10/1s token_bucket burst=6` or `server concurrency 8`"
    )]
    Grammar {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The numbers cannot be enforced.
    #[error("rule {text:?}: {source}")]
    Limit {
        /// What was given.
        text: String,
        /// Why.
        source: LimitError,
    },
}

impl Rule {
    /// A rule for each key, in calls.
    pub fn key(limit: Limit) -> Self {
        Rule { scope: Scope::Key, unit: Unit::Requests, limit, on: None }
    }

    /// A rule for the keys of an account together, in calls.
    pub fn account(limit: Limit) -> Self {
        Rule { scope: Scope::Account, ..Rule::key(limit) }
    }

    /// A rule for all calls together.
    pub fn server(limit: Limit) -> Self {
        Rule { scope: Scope::Server, ..Rule::key(limit) }
    }

    /// Counts cost instead of calls.
    pub fn in_cost(self) -> Self {
        Rule { unit: Unit::Cost, ..self }
    }

    /// Holds only for paths that begin with `prefix`.
    pub fn on(self, prefix: impl Into<String>) -> Self {
        Rule { on: Some(prefix.into()), ..self }
    }

    /// Whether the rule holds for a path.
    pub fn matches(&self, path: &str) -> bool {
        self.on.as_deref().is_none_or(|prefix| path.starts_with(prefix))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.scope {
            Scope::Key => "key ",
            Scope::Account => "account ",
            Scope::Server => "server ",
        })?;
        if let Limit::Concurrency { limit } = self.limit {
            write!(f, "concurrency {limit}")?;
        } else {
            let unit = if self.unit == Unit::Cost { "cost" } else { "requests" };
            let (limit, per) = self.limit.rate();
            write!(f, "{unit} {limit}/{} ", Span(per.unwrap_or_default()))?;
        }
        match &self.limit {
            Limit::SlidingLog { .. } => f.write_str("sliding_log")?,
            Limit::SlidingCounter { .. } => f.write_str("sliding_counter")?,
            Limit::FixedWindow { edge: Edge::Clock, .. } => f.write_str("fixed_clock")?,
            Limit::FixedWindow { edge: Edge::FirstCall, .. } => f.write_str("fixed_first_call")?,
            Limit::TokenBucket { burst, .. } => write!(f, "token_bucket burst={burst}")?,
            Limit::LeakyBucket { room, .. } => write!(f, "leaky_bucket room={room}")?,
            Limit::Concurrency { .. } => {}
        }
        match &self.on {
            Some(prefix) => write!(f, " on={prefix}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let rule = read(text).map_err(|problem| RuleError::Grammar { text: text.to_owned(), problem })?;
        match rule.limit.check() {
            Ok(()) => Ok(rule),
            Err(source) => Err(RuleError::Limit { text: text.to_owned(), source }),
        }
    }
}

fn read(text: &str) -> Result<Rule, String> {
    let mut words = text.split_whitespace();
    let mut next = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
    let scope = match next("the scope")? {
        "key" => Scope::Key,
        "account" => Scope::Account,
        "server" => Scope::Server,
        other => return Err(format!("unknown scope `{other}` (key, account or server)")),
    };
    let kind = next("what is counted")?;
    let amount = next("the amount")?;
    let (unit, limit, rest) = match kind {
        "concurrency" => {
            let limit = Limit::Concurrency { limit: number(amount)? };
            (Unit::Requests, limit, words.collect::<Vec<_>>())
        }
        "requests" | "cost" => {
            let algorithm = next("the algorithm")?;
            let rest: Vec<&str> = words.collect();
            let unit = if kind == "cost" { Unit::Cost } else { Unit::Requests };
            (unit, windowed(amount, algorithm, &rest)?, rest)
        }
        other => {
            return Err(format!("unknown unit `{other}` (requests, cost or concurrency)"));
        }
    };
    if let Some(odd) = rest.iter().find(|word| !known(word, &limit)) {
        return Err(format!("`{odd}` does not belong here"));
    }
    let on = setting(&rest, "on").map(str::to_owned);
    Ok(Rule { scope, unit, limit, on })
}

fn windowed(amount: &str, algorithm: &str, rest: &[&str]) -> Result<Limit, String> {
    let (count, per) = amount.split_once('/').ok_or("the amount needs a period, as in 100/10s")?;
    let (limit, per) = (number(count)?, span(per)?);
    let needed = |name| match setting(rest, name) {
        Some(value) => number(value),
        None => Err(format!("{algorithm} needs {name}=")),
    };
    Ok(match algorithm {
        "sliding_log" => Limit::SlidingLog { limit, per },
        "sliding_counter" => Limit::SlidingCounter { limit, per },
        "fixed_clock" => Limit::FixedWindow { limit, per, edge: Edge::Clock },
        "fixed_first_call" => Limit::FixedWindow { limit, per, edge: Edge::FirstCall },
        "token_bucket" => Limit::TokenBucket { limit, per, burst: needed("burst")? },
        "leaky_bucket" => Limit::LeakyBucket { limit, per, room: needed("room")? },
        other => return Err(format!("unknown algorithm `{other}`")),
    })
}

fn known(word: &str, limit: &Limit) -> bool {
    match word.split_once('=').map(|(name, _)| name) {
        Some("on") => true,
        Some("burst") => matches!(limit, Limit::TokenBucket { .. }),
        Some("room") => matches!(limit, Limit::LeakyBucket { .. }),
        _ => false,
    }
}

fn setting<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.split_once('=').filter(|(key, _)| *key == name)).map(|pair| pair.1)
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("`{text}` is not a whole number"))
}

/// Reads `250ms`, `10s`, `1m`, `1h`, `1d`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(at);
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => {
            return Err(format!("`{text}` is not a duration such as 250ms, 10s, 1m, 1h or 1d"));
        }
    };
    let ms = number(count)?.checked_mul(ms).ok_or_else(|| format!("`{text}` is too long"))?;
    Ok(Duration::from_millis(ms))
}

/// Writes what [`span`] reads, in the largest unit that is exact.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
        match units.iter().find(|(size, _)| ms > 0 && ms.is_multiple_of(*size)) {
            Some((size, unit)) => write!(f, "{}{unit}", ms / size),
            None => write!(f, "{ms}ms"),
        }
    }
}
