//! `X-RateLimit-Limit`, `-Remaining`, `-Reset` and their variants.

use super::fields::Heads;
use super::{Family, Reading, Unit};

pub(super) fn read(heads: &Heads<'_>, readings: &mut Vec<Reading>) {
    let mut reading = Reading::of(Unit::Requests, Family::XRateLimit);
    reading.limit = heads.least(&["x-ratelimit-limit", "x-rate-limit-limit"]);
    reading.remaining = heads.least(&["x-ratelimit-remaining", "x-rate-limit-remaining"]);
    if let (Some(limit), Some(used)) = (reading.limit, heads.most(&["x-ratelimit-used"])) {
        let left = limit.saturating_sub(used);
        reading.remaining = Some(reading.remaining.map_or(left, |remaining| remaining.min(left)));
    }
    let after = heads.longest(&["x-ratelimit-reset-after"]);
    reading.set_reset(after.or_else(|| heads.longest(&["x-ratelimit-reset", "x-rate-limit-reset"])));
    readings.push(reading);
}
