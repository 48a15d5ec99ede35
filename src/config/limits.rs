//! Limits as they are written → limits as they are paced.

use super::{Problems, file};
use crate::pace::{Algorithm, LimitSpec, Measure};

/// Every limit of a list; what is wrong is reported with its index.
pub(super) fn build(place: &str, raw: &[file::Limit], problems: &mut Problems) -> Vec<LimitSpec> {
    raw.iter()
        .enumerate()
        .filter_map(|(n, limit)| {
            let place = format!("{place}[{n}]");
            one(limit).map_err(|message| problems.add(place, message)).ok()
        })
        .collect()
}

fn one(raw: &file::Limit) -> Result<LimitSpec, String> {
    let measure = match (raw.requests, raw.cost, raw.concurrency) {
        (Some(n), None, None) => Measure::Requests(n),
        (None, Some(n), None) => Measure::Cost(n),
        (None, None, Some(n)) => Measure::Concurrency(n),
        _ => return Err("expected exactly one of requests, cost and concurrency".to_owned()),
    };
    if let Measure::Concurrency(open) = measure {
        if raw.per.is_some() || raw.algorithm.is_some() || raw.burst.is_some() {
            return Err("concurrency has neither per, algorithm nor burst".to_owned());
        }
        return Ok(LimitSpec::concurrency(open));
    }
    let per = raw.per.ok_or("expected per, such as per = \"1m\"")?.0;
    if raw.resets.is_some() {
        return Err("calendar quotas (resets) are not supported yet".to_owned());
    }
    let algorithm = match raw.algorithm.as_deref() {
        None | Some("smooth") => Algorithm::Smooth,
        Some("sliding_window") => Algorithm::SlidingWindow,
        Some("token_bucket") => Algorithm::TokenBucket,
        Some("fixed_window") => Algorithm::FixedWindow,
        Some(other) => {
            return Err(format!("unknown algorithm {other:?}: smooth, sliding_window, token_bucket, fixed_window"));
        }
    };
    if raw.burst.is_some() && !matches!(algorithm, Algorithm::Smooth | Algorithm::TokenBucket) {
        return Err("burst belongs to smooth and token_bucket".to_owned());
    }
    Ok(LimitSpec { measure, per, algorithm, burst: raw.burst })
}
