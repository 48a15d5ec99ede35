//! Limits as they are written → limits as they are paced.

use sha2::{Digest, Sha256};

use super::{Problems, file};
use crate::calendar::{Calendar, Per};
use crate::duration::HumanDuration;
use crate::pace::{Algorithm, LimitSpec, Measure, Reset};

/// Where a calendar quota was declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaPlace {
    /// `limits` of the provider.
    Provider,
    /// `key_limits`.
    Keys,
    /// `limits` of a budget.
    Budget(usize),
    /// `limits` of a route.
    Route(usize),
    /// `key_limits` of a route.
    RouteKeys(usize),
}

/// A limit that begins anew by the calendar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Where it was declared.
    pub place: QuotaPlace,
    /// Its number among the limits of that place.
    pub limit: usize,
    /// When it begins anew.
    pub calendar: Calendar,
}

/// Every limit of a list; what is wrong is reported with its index. Calendars are added to `quotas`.
pub(super) fn build(
    text: &str,
    place: QuotaPlace,
    raw: &[file::Limit],
    quotas: &mut Vec<Quota>,
    problems: &mut Problems,
) -> Vec<LimitSpec> {
    let mut limits = Vec::new();
    for (n, limit) in raw.iter().enumerate() {
        match one(limit) {
            Ok((spec, calendar)) => {
                quotas.extend(calendar.map(|calendar| Quota { place, limit: limits.len(), calendar }));
                limits.push(spec);
            }
            Err(message) => problems.add(format!("{text}[{n}]"), message),
        }
    }
    limits
}

fn one(raw: &file::Limit) -> Result<(LimitSpec, Option<Calendar>), String> {
    let measure = match (raw.requests, raw.cost, raw.concurrency) {
        (Some(n), None, None) => Measure::Requests(n),
        (None, Some(n), None) => Measure::Cost(n),
        (None, None, Some(n)) => Measure::Concurrency(n),
        _ => return Err("expected exactly one of requests, cost and concurrency".to_owned()),
    };
    if let Measure::Concurrency(open) = measure {
        if raw.per.is_some() || raw.algorithm.is_some() || raw.burst.is_some() || raw.resets.is_some() {
            return Err("concurrency has neither per, algorithm, burst nor resets".to_owned());
        }
        return Ok((LimitSpec::concurrency(open), None));
    }
    let per = raw.per.ok_or("expected per, such as per = \"1m\"")?;
    match &raw.resets {
        Some(resets) => quota(measure, per, raw, resets).map(|(spec, calendar)| (spec, Some(calendar))),
        None => windowed(measure, per, raw).map(|spec| (spec, None)),
    }
}

fn windowed(measure: Measure, per: file::Per, raw: &file::Limit) -> Result<LimitSpec, String> {
    let file::Per::Span(HumanDuration(per)) = per else {
        return Err("per = \"1 month\" needs resets, such as resets = \"00:00 UTC\"".to_owned());
    };
    let algorithm = match raw.algorithm.as_deref() {
        None | Some("smooth") => Algorithm::Smooth,
        Some("sliding_window") => Algorithm::SlidingWindow,
        Some("token_bucket") => Algorithm::TokenBucket,
        Some("fixed_window") => Algorithm::FixedWindow,
        Some("quota") => return Err("quota needs resets, such as resets = \"00:00 America/Los_Angeles\"".to_owned()),
        Some(other) => {
            return Err(format!(
                "unknown algorithm {other:?}: smooth, sliding_window, token_bucket, fixed_window, quota"
            ));
        }
    };
    if raw.burst.is_some() && !matches!(algorithm, Algorithm::Smooth | Algorithm::TokenBucket) {
        return Err("burst belongs to smooth and token_bucket".to_owned());
    }
    Ok(LimitSpec { measure, per, algorithm, burst: raw.burst })
}

fn quota(measure: Measure, per: file::Per, raw: &file::Limit, resets: &str) -> Result<(LimitSpec, Calendar), String> {
    if raw.algorithm.as_deref().is_some_and(|name| name != "quota") {
        return Err("resets belongs to the algorithm quota".to_owned());
    }
    if raw.burst.is_some() {
        return Err("burst belongs to smooth and token_bucket".to_owned());
    }
    let per = match per {
        file::Per::Month => Per::Month,
        file::Per::Span(HumanDuration(span)) => match span.as_secs() {
            86_400 if span.subsec_nanos() == 0 => Per::Day,
            604_800 if span.subsec_nanos() == 0 => Per::Week,
            _ => return Err("resets goes with per = \"1d\", \"7d\" or \"1 month\"".to_owned()),
        },
    };
    let calendar = Calendar::parse(per, resets).map_err(|message| format!("resets: {message}"))?;
    let algorithm = Algorithm::Quota(Reset { longest: calendar.longest(), calendar: identity(&calendar) });
    Ok((LimitSpec { measure, per: calendar.usual(), algorithm, burst: None }, calendar))
}

/// The same for the same calendar, in every process and every version.
fn identity(calendar: &Calendar) -> u64 {
    let digest = Sha256::digest(calendar.to_string().as_bytes());
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
