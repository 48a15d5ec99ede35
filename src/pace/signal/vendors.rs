//! Providers with dialects of their own.

use super::fields::{Heads, Wait, count, seconds};
use super::{Family, Reading, Unit};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Suffixes of `X-RateLimit-Limit-…`, what they count and in which window (OpenAI, Azure, Kong).
const SUFFIXES: &[(&str, Unit, Option<u64>)] = &[
    ("requests", Unit::Requests, None),
    ("tokens", Unit::Cost, None),
    ("second", Unit::Requests, Some(1)),
    ("minute", Unit::Requests, Some(60)),
    ("hour", Unit::Requests, Some(3_600)),
    ("day", Unit::Requests, Some(86_400)),
];

const ANTHROPIC: &[(&str, Unit)] = &[
    ("requests", Unit::Requests),
    ("tokens", Unit::Cost),
    ("input-tokens", Unit::Cost),
    ("output-tokens", Unit::Cost),
];

pub(super) fn read(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    if heads.any("x-ratelimit-limit-") || heads.any("x-ratelimit-remaining-") {
        suffixed(heads, readings);
    }
    if heads.any("anthropic-") {
        anthropic(heads, readings);
    }
    if heads.any("x-hubspot-") {
        hubspot(heads, readings);
    }
    readings.extend(heads.all("x-shopify-shop-api-call-limit").filter_map(shopify));
    readings.extend(heads.all("sforce-limit-info").filter_map(salesforce));
    readings.extend(heads.all("twilio-concurrent-requests").filter_map(twilio));
    readings.extend(heads.all("x-amzn-ratelimit-limit").filter_map(amazon));
}

fn suffixed(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    for (suffix, unit, window) in SUFFIXES {
        let mut reading = Reading::of(*unit, Family::OpenAi);
        reading.limit = heads.least(&[&format!("x-ratelimit-limit-{suffix}")]);
        reading.remaining = heads.least(&[&format!("x-ratelimit-remaining-{suffix}")]);
        let field = format!("x-ratelimit-reset-{suffix}");
        let resets = heads.all(&field).filter_map(|value| go_duration(value).or(heads.wait(value)));
        reading.set_reset(resets.max_by_key(|wait| wait.after));
        reading.window = window.map(Duration::from_secs);
        readings.push(reading);
    }
}

fn anthropic(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    for (name, unit) in ANTHROPIC {
        let mut reading = Reading::of(*unit, Family::Anthropic);
        reading.limit = heads.least(&[&format!("anthropic-ratelimit-{name}-limit")]);
        reading.remaining = heads.least(&[&format!("anthropic-ratelimit-{name}-remaining")]);
        reading.set_reset(heads.longest(&[&format!("anthropic-ratelimit-{name}-reset")]));
        readings.push(reading);
    }
}

fn hubspot(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    let interval = heads.least(&["x-hubspot-ratelimit-interval-milliseconds"]).map(Duration::from_millis);
    let rows = [
        ("x-hubspot-ratelimit-max", "x-hubspot-ratelimit-remaining", interval),
        ("x-hubspot-ratelimit-secondly", "x-hubspot-ratelimit-secondly-remaining", Some(SECOND)),
        ("x-hubspot-ratelimit-daily", "x-hubspot-ratelimit-daily-remaining", Some(DAY)),
    ];
    for (limit, remaining, window) in rows {
        let mut reading = Reading::of(Unit::Requests, Family::HubSpot);
        reading.limit = heads.least(&[limit]);
        reading.remaining = heads.least(&[remaining]);
        reading.window = window.filter(|window| !window.is_zero() && *window <= DAY);
        // Nothing says when the window began: it is over after a whole one at the latest. Days are left to the
        // calendar of the declaration.
        if window != Some(DAY) {
            reading.resets_in = reading.window;
        }
        readings.push(reading);
    }
}

/// `32/40`: a leaky bucket's level and size.
fn shopify(value: &str) -> Option<Reading> {
    used_of(value, Reading::of(Unit::Requests, Family::Shopify))
}

/// `api-usage=18/5000` in the last 24 hours; `per-app-api-usage=…` follows and is left out.
fn salesforce(value: &str) -> Option<Reading> {
    let usage = value.split([',', ';']).find_map(|part| part.trim().strip_prefix("api-usage="))?;
    let reading = Reading { window: Some(DAY), ..Reading::of(Unit::Requests, Family::Salesforce) };
    used_of(usage, reading)
}

fn used_of(value: &str, reading: Reading) -> Option<Reading> {
    let (used, limit) = value.split_once('/')?;
    let (used, limit) = (count(used)?, count(limit)?);
    Some(Reading { limit: Some(limit), used: Some(used), remaining: Some(limit.saturating_sub(used)), ..reading })
}

/// How many calls of the account are open; the limit is not told.
fn twilio(value: &str) -> Option<Reading> {
    Some(Reading { used: Some(count(value)?), ..Reading::of(Unit::Concurrency, Family::Twilio) })
}

/// The rate in calls a second, often below one.
fn amazon(value: &str) -> Option<Reading> {
    let rate: f64 = value.parse().ok()?;
    let mut reading = Reading::of(Unit::Requests, Family::Amazon);
    if rate >= 1.0 {
        reading.limit = count(value);
        reading.window = Some(SECOND);
    } else if rate > 0.0 {
        reading.limit = Some(1);
        reading.window = Some(seconds(1.0 / rate)?);
    }
    Some(reading)
}

/// `6m0s`, `250ms`, `1h2m3.5s`: Go's durations.
fn go_duration(value: &str) -> Option<Wait> {
    let (mut rest, mut total, mut grain) = (value.trim(), 0.0, SECOND);
    if rest.is_empty() || rest.starts_with(['-', '+']) {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        let factor = match &rest[digits..unit] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        if factor < 1.0 || rest[..digits].contains('.') {
            grain = Duration::from_millis(1);
        }
        total += number * factor;
        rest = &rest[unit..];
    }
    Some(Wait { after: seconds(total)?, grain, at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let (coarse, fine) = (1_000, 1);
        let durations = [
            ("6m0s", 360_000, coarse),
            ("1d2h3m4s", 93_784_000, coarse),
            ("1h", 3_600_000, coarse),
            ("250ms", 250, fine),
            ("1h2m3.5s", 3_723_500, fine),
            ("4500us", 5, fine),
            ("4500µs", 5, fine),
            ("2500000ns", 3, fine),
        ];
        for (text, millis, grain) in durations {
            let wait = go_duration(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((wait.after.as_millis(), wait.grain.as_millis(), wait.at), (millis, grain, None), "{text}");
        }
        for text in ["", "-5s", "+5s", "5", "5w", "s", "1h-2m"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }
}
