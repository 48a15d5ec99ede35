//! The IETF draft (draft-ietf-httpapi-ratelimit-headers) in its three shapes: structured fields
//! (`RateLimit-Policy: "p";q=100;w=60` with `RateLimit: "p";r=50;t=30`), one field of named values
//! (`RateLimit: limit=100, remaining=50, reset=30`), and three fields (`RateLimit-Limit`, `-Remaining`, `-Reset`).

use super::fields::{Heads, Wait, count, seconds};
use super::{Family, Reading, Unit};
use std::time::Duration;

/// A server names a handful of policies; more are nonsense.
const MOST_POLICIES: usize = 16;

pub(super) fn read(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    let policies: Vec<Item<'_>> = heads.all("ratelimit-policy").flat_map(items).take(MOST_POLICIES).collect();
    let mut states: Vec<Item<'_>> = heads.all("ratelimit").flat_map(items).take(MOST_POLICIES).collect();
    if states.iter().any(|item| item.name.starts_with("limit=") || item.name.starts_with("remaining=")) {
        readings.push(named_values(&states));
        states.clear();
    }
    for state in &states {
        let policy = policies.iter().find(|policy| policy.name == state.name);
        let mut reading = policy.map_or_else(|| Reading::of(Unit::Requests, Family::Ietf), of_policy);
        reading.remaining = state.get("r").and_then(count);
        reading.set_reset(state.get("t").and_then(wait));
        readings.push(reading);
    }
    readings.extend(policies.iter().filter(|p| !states.iter().any(|s| s.name == p.name)).map(of_policy));
    three_fields(heads, readings);
}

/// A policy alone tells the limit and its window.
fn of_policy(policy: &Item<'_>) -> Reading {
    let unit = match policy.get("qu") {
        None | Some("requests") => Unit::Requests,
        Some("concurrent-requests") => Unit::Concurrency,
        Some(_) => Unit::Cost,
    };
    let mut reading = Reading::of(unit, Family::Ietf);
    // The older form has the quota where the name is now: `100;w=60`.
    reading.limit = policy.get("q").and_then(count).or_else(|| count(policy.name));
    reading.window = policy.get("w").and_then(wait).map(|wait| wait.after).filter(|window| !window.is_zero());
    reading
}

fn named_values(states: &[Item<'_>]) -> Reading {
    let mut reading = Reading::of(Unit::Requests, Family::Ietf);
    for state in states {
        match state.name.split_once('=') {
            Some(("limit", value)) => reading.limit = count(value),
            Some(("remaining", value)) => reading.remaining = count(value),
            Some(("reset", value)) => reading.set_reset(wait(value)),
            Some(_) | None => {}
        }
    }
    reading
}

fn three_fields(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    let mut reading = Reading::of(Unit::Requests, Family::Ietf);
    reading.limit = heads.least(&["ratelimit-limit"]);
    reading.remaining = heads.least(&["ratelimit-remaining"]);
    reading.set_reset(heads.longest(&["ratelimit-reset"]));
    readings.push(reading);
}

fn wait(value: &str) -> Option<Wait> {
    let after = seconds(value.trim().parse().ok()?)?;
    Some(Wait { after, grain: Duration::from_secs(1), at: None })
}

/// One member of a list: a name (quotes taken off) and its parameters.
struct Item<'a> {
    name: &'a str,
    parameters: &'a str,
}

impl<'a> Item<'a> {
    fn get(&self, name: &str) -> Option<&'a str> {
        let pairs = self.parameters.split(';').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.trim(), value.trim().trim_matches('"'))).find(|pair| pair.0 == name).map(|p| p.1)
    }
}

fn items(value: &str) -> impl Iterator<Item = Item<'_>> {
    let mut quoted = false;
    let members = value.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    members.map(|member| {
        let (name, parameters) = member.split_once(';').unwrap_or((member, ""));
        Item { name: name.trim().trim_matches('"'), parameters }
    })
}
