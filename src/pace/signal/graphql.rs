//! GraphQL answers 200 and says in the body that the call was too much: `THROTTLED` (Shopify), `RATE_LIMITED`
//! (GitHub). Shopify also tells there how much is left of its bucket of points.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::fields::seconds;
use super::{Family, Reading, Signal, Unit};
use crate::pace::spec::MAX_AMOUNT;

/// Codes of a refusal because of a rate limit.
const REFUSED: &[&str] = &["THROTTLED", "RATE_LIMITED"];

/// What an answer may hold; everything else is passed over. Where a type is not as expected, the body says nothing.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    data: Option<IgnoredAny>,
    #[serde(default)]
    errors: Option<Vec<Failure>>,
    #[serde(default)]
    extensions: Option<Extensions>,
}

#[derive(Deserialize)]
struct Failure {
    #[serde(default, rename = "type")]
    kind: Value,
    #[serde(default)]
    extensions: Option<Code>,
}

#[derive(Deserialize)]
struct Code {
    #[serde(default)]
    code: Value,
}

#[derive(Deserialize)]
struct Extensions {
    #[serde(default)]
    cost: Option<Cost>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cost {
    #[serde(default)]
    requested_query_cost: Value,
    #[serde(default)]
    throttle_status: Option<ThrottleStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThrottleStatus {
    #[serde(default)]
    maximum_available: Value,
    #[serde(default)]
    currently_available: Value,
    #[serde(default)]
    restore_rate: Value,
}

impl Signal {
    /// Reads the whole body of a GraphQL answer; empty where it says nothing of limits.
    ///
    /// ```
    /// use paceline::pace::Signal;
    /// let signal = Signal::of_graphql(br#"{"errors":[{"message":"Throttled","extensions":{"code":"THROTTLED"}}]}"#);
    /// assert!(signal.limited);
    /// ```
    pub fn of_graphql(body: &[u8]) -> Signal {
        let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Signal::default() };
        let cost = answer.extensions.and_then(|extensions| extensions.cost);
        let status = cost.as_ref().and_then(|cost| cost.throttle_status.as_ref());
        let readings = status.and_then(reading).into_iter().collect();
        // With data the call was executed, at least in part: then it is no refusal.
        let refused = answer.errors.iter().flatten().find_map(Failure::refused).filter(|_| answer.data.is_none());
        let limited = refused.is_some();
        let wait = cost.as_ref().filter(|_| limited).and_then(|cost| missing_seconds(cost).and_then(seconds));
        Signal { limited, retry_after: wait, readings, reason: refused.map(str::to_owned), near_limit: false }
    }
}

impl Failure {
    fn refused(&self) -> Option<&'static str> {
        let says = |code: &Value| REFUSED.iter().copied().find(|known| code.as_str() == Some(known));
        self.extensions.as_ref().and_then(|extensions| says(&extensions.code)).or_else(|| says(&self.kind))
    }
}

fn reading(status: &ThrottleStatus) -> Option<Reading> {
    let mut reading = Reading::of(Unit::Cost, Family::Shopify);
    reading.limit = points(&status.maximum_available);
    reading.remaining = points(&status.currently_available);
    reading.says_something().then_some(reading)
}

/// How long until there are as many points as the query needs.
fn missing_seconds(cost: &Cost) -> Option<f64> {
    let status = cost.throttle_status.as_ref()?;
    let (needs, has) = (amount(&cost.requested_query_cost)?, amount(&status.currently_available)?);
    let rate = amount(&status.restore_rate).filter(|rate| *rate > 0.0)?;
    Some((needs - has).max(0.0) / rate)
}

fn amount(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| (0.0..=MAX_AMOUNT as f64).contains(number))
}

/// Rounded down, which is the tighter side.
fn points(value: &Value) -> Option<u64> {
    amount(value).map(|number| number as u64)
}
