//! Single header fields: numbers and times as providers write them.

use std::time::{Duration, UNIX_EPOCH};

/// Longer waits than this are taken for nonsense; the longest real ones are monthly quotas.
pub(super) const LONGEST: Duration = Duration::from_secs(32 * 86_400);
/// A number this large is a time since 1970 in seconds (2001 and later) …
const EPOCH_SECONDS: f64 = 1e9;
/// … and one this large is in milliseconds (1973 and later).
const EPOCH_MILLIS: f64 = 1e11;

const PREFIXES: &[&str] = &["date", "retry-after", "x-rate", "x-ratelimit", "ratelimit"];

/// The headers that can say something about limits.
pub(super) struct Heads<'a> {
    heads: Vec<(&'a str, &'a str)>,
    now: Option<Duration>,
}

impl<'a> Heads<'a> {
    pub fn new(headers: impl IntoIterator<Item = (&'a str, &'a str)>, wall_clock: Option<Duration>) -> Heads<'a> {
        let known = |name: &str| {
            PREFIXES.iter().any(|p| name.get(..p.len()).is_some_and(|start| start.eq_ignore_ascii_case(p)))
        };
        let mut heads: Vec<_> = headers.into_iter().filter(|head| known(head.0)).collect();
        let is_date = |head: &(&str, &str)| head.0.eq_ignore_ascii_case("date");
        let date = heads.iter().find(|head| is_date(head)).and_then(|head| http_date(head.1));
        heads.retain(|head| !is_date(head));
        Heads { heads, now: date.or(wall_clock) }
    }

    pub fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Every value of this field.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &'a str> {
        self.heads.iter().filter(move |head| head.0.eq_ignore_ascii_case(name)).map(|head| head.1.trim())
    }

    /// The smallest count that one of these fields says: the tighter one where they contradict each other.
    pub fn least(&self, names: &[&str]) -> Option<u64> {
        names.iter().flat_map(|name| self.all(name)).filter_map(count).min()
    }

    /// The largest count that one of these fields says.
    pub fn most(&self, names: &[&str]) -> Option<u64> {
        names.iter().flat_map(|name| self.all(name)).filter_map(count).max()
    }

    /// The longest wait that one of these fields says.
    pub fn longest(&self, names: &[&str]) -> Option<Duration> {
        names.iter().flat_map(|name| self.all(name)).filter_map(|value| self.wait(value)).max()
    }

    /// How long until the time that is meant: a date, a time since 1970, or a number of seconds from now.
    pub fn wait(&self, value: &str) -> Option<Duration> {
        if let Ok(number) = value.parse::<f64>() {
            if number >= EPOCH_MILLIS {
                return self.until(number / 1e3);
            }
            if number >= EPOCH_SECONDS {
                return self.until(number);
            }
            return seconds(number);
        }
        self.until(http_date(value)?.as_secs_f64())
    }

    fn until(&self, epoch_seconds: f64) -> Option<Duration> {
        let wait = epoch_seconds - self.now?.as_secs_f64();
        seconds(wait.max(0.0))
    }
}

/// A whole number, or the first of a list (`100, 100;w=60`); nothing below zero, nothing absurd.
pub(super) fn count(value: &str) -> Option<u64> {
    let first = value.split([',', ';']).next()?.trim();
    let number = first.parse::<u64>().ok().or_else(|| {
        // Some write 60.0; what is left of a unit rounds down, which is the tighter side for all three fields.
        let number = first.parse::<f64>().ok()?;
        (number.is_finite() && number >= 0.0).then(|| number.min(u64::MAX as f64) as u64)
    })?;
    (number <= super::super::spec::MAX_AMOUNT).then_some(number)
}

/// So many seconds, rounded up to a millisecond; nothing below zero or beyond [`LONGEST`].
pub(super) fn seconds(number: f64) -> Option<Duration> {
    if !(0.0..=LONGEST.as_secs_f64()).contains(&number) {
        return None;
    }
    // A millionth is forgiven, so that 0.3 does not become 301 ms.
    Some(Duration::from_millis((number * 1e3 - 1e-3).ceil().max(0.0) as u64))
}

/// Time since 1970 of an HTTP date.
pub(super) fn http_date(value: &str) -> Option<Duration> {
    httpdate::parse_http_date(value.trim()).ok()?.duration_since(UNIX_EPOCH).ok()
}

/// `Retry-After`: seconds, or a date read against `Date`.
pub(super) fn retry_after(heads: &Heads<'_>) -> Option<Duration> {
    heads.longest(&["retry-after"])
}
