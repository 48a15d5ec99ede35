//! Single header fields: numbers and times as providers write them.

use std::time::{Duration, UNIX_EPOCH};

/// Longer waits than this are taken for nonsense; the longest real ones are monthly quotas.
pub(super) const LONGEST: Duration = Duration::from_secs(32 * 86_400);
/// A number this large is a time since 1970 in seconds (2001 and later) …
const EPOCH_SECONDS: f64 = 1e9;
/// … and one this large is in milliseconds (1973 and later).
const EPOCH_MILLIS: f64 = 1e11;

const PREFIXES: &[&str] = &[
    "date",
    "retry-after",
    "x-rate",
    "ratelimit",
    "anthropic-ratelimit",
    "x-shopify-shop-api-call-limit",
    "x-hubspot-ratelimit",
    "sforce-limit-info",
    "twilio-concurrent",
    "x-amzn-ratelimit",
    "stripe-rate-limited",
    "x-ms-retry-after-ms",
];

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

    /// Whether there is any field with this beginning.
    pub fn any(&self, prefix: &str) -> bool {
        let begins = |name: &str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        self.heads.iter().any(|head| begins(head.0))
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
    pub fn longest(&self, names: &[&str]) -> Option<Wait> {
        let values = names.iter().flat_map(|name| self.all(name));
        values.filter_map(|value| self.wait(value)).max_by_key(|wait| wait.after)
    }

    /// How long until the time that is meant: a date, a time since 1970, or a number of seconds from now.
    pub fn wait(&self, value: &str) -> Option<Wait> {
        if let Ok(number) = value.parse::<f64>() {
            if number >= EPOCH_MILLIS {
                return self.until(number / 1e3, MILLI);
            }
            let grain = if value.contains('.') { MILLI } else { SECOND };
            if number >= EPOCH_SECONDS {
                return self.until(number, grain);
            }
            return seconds(number).map(|after| Wait { after, grain, at: None });
        }
        if let Some(date) = http_date(value) {
            return self.until(date.as_secs_f64(), SECOND);
        }
        self.until(rfc3339(value)?, if value.contains('.') { MILLI } else { SECOND })
    }

    fn until(&self, epoch_seconds: f64, grain: Duration) -> Option<Wait> {
        let wait = epoch_seconds - self.now?.as_secs_f64();
        let at = Duration::try_from_secs_f64(epoch_seconds).ok();
        seconds(wait.max(0.0)).map(|after| Wait { after, grain, at })
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

/// A time to wait for, as a header says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    /// From the response on, rounded up.
    pub after: Duration,
    /// How coarsely it was given.
    pub grain: Duration,
    /// Since 1970, where it was given so.
    pub at: Option<Duration>,
}

/// Seconds since 1970 of an RFC 3339 time such as `2026-03-01T12:00:00.5Z` or `…+02:00`.
pub(super) fn rfc3339(value: &str) -> Option<f64> {
    let value = value.trim();
    let (date, clock) = value.split_once(['T', 't', ' '])?;
    let zone = clock.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = clock.split_at(zone);
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = clock.split(':');
    let (hour, minute) = (clock.next()?.parse::<u32>().ok()?, clock.next()?.parse::<u32>().ok()?);
    let second = clock.next()?.parse::<f64>().ok()?;
    let valid = (1970..3000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !valid || hour > 24 || minute > 59 || !(0.0..61.0).contains(&second) {
        return None;
    }
    let offset = match zone.strip_prefix(['Z', 'z']) {
        Some(_) => 0.0,
        None => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = f64::from(hours.parse::<u8>().ok()?) * 60.0 + f64::from(minutes.parse::<u8>().ok()?);
            if zone.starts_with('-') { -minutes * 60.0 } else { minutes * 60.0 }
        }
    };
    let days = days_since_1970(year, month, day);
    Some(days as f64 * 86_400.0 + f64::from(hour * 3600 + minute * 60) + second - offset)
}

/// Days of the proleptic Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
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

/// `Retry-After`: seconds, or a date read against `Date`; `Retry-After-Ms` is finer, where it is given. Where it says
/// something else than the whole seconds, the longer one counts.
pub(super) fn retry_after(heads: &Heads<'_>) -> Option<Duration> {
    let fields = ["retry-after-ms", "x-ms-retry-after-ms"];
    let millis = fields.iter().flat_map(|name| heads.all(name)).filter_map(|value| value.parse::<f64>().ok());
    let fine = millis.filter_map(|millis| seconds(millis / 1e3)).max();
    let stated = heads.longest(&["retry-after"]).map(|wait| wait.after);
    match (fine, stated) {
        (Some(fine), Some(stated)) if stated.saturating_sub(fine) <= SECOND => Some(fine),
        (fine, stated) => fine.max(stated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_rfc_3339() {
        let times = [
            ("1970-01-01T00:00:00Z", 0.0),
            ("1999-01-01t00:00:00z", 915_148_800.0),
            ("2000-02-29T12:34:56Z", 951_827_696.0),
            ("2024-01-31 23:59:59Z", 1_706_745_599.0),
            ("2024-03-01T00:00:00Z", 1_709_251_200.0),
            ("2026-12-31T01:30:00+02:30", 1_798_671_600.0),
            ("2026-01-01T00:00:00-05:30", 1_767_245_400.0),
            ("2100-02-28T23:00:00.25Z", 4_107_538_800.25),
            ("2100-03-01T00:00:00Z", 4_107_542_400.0),
            ("2400-12-01T06:07:08Z", 13_598_431_628.0),
            ("2026-03-01T24:00:00Z", 1_772_409_600.0),
            ("2026-03-01T00:59:60Z", 1_772_326_800.0),
        ];
        for (text, seconds) in times {
            assert_eq!(rfc3339(text), Some(seconds), "{text}");
        }
        let nonsense = [
            "1969-12-31T00:00:00Z",
            "3000-01-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-32T00:00:00Z",
            "2026-01-01T25:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:61Z",
            "2026-01-01T00:00:00",
            "2026-01-01",
        ];
        for text in nonsense {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }
}
