//! What an endpoint's answer means for the delivery. Pure: time and the random number are arguments.
//!
//! | answer | the delivery |
//! |---|---|
//! | 2xx | delivered |
//! | 410 | the endpoint is gone: it is disabled |
//! | any other status, or none | again by the schedule; `Retry-After` is a floor |
//! | the same, with the schedule spent | failed: kept, visible, can be resent |

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use crate::clock::WallMs;
use crate::store::DeliveryNext;

/// How much later than the schedule says a retry may be, so that deliveries which failed together do
/// not come back together.
const JITTER: f64 = 0.1;
/// The longest wait that an endpoint can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);
/// Steps of a schedule at most.
const STEPS_MAX: usize = 100;
/// The longest step of a schedule.
const STEP_MAX: Duration = Duration::from_secs(30 * 86_400);

/// The waits between the attempts of a delivery. The first attempt is made at once, so there is one
/// attempt more than there are steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

/// A schedule that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// More steps than are kept.
    #[error("expected at most {STEPS_MAX} steps, found {0}")]
    TooMany(usize),
    /// A step that nobody waits for.
    #[error("expected steps of at most 30d, found a longer one at position {0}")]
    TooLong(usize),
}

impl Schedule {
    /// A schedule of these waits; none at all means one attempt.
    ///
    /// # Errors
    /// [`ScheduleError`] where there are too many, or one is too long.
    pub fn new(steps: Vec<Duration>) -> Result<Self, ScheduleError> {
        if steps.len() > STEPS_MAX {
            return Err(ScheduleError::TooMany(steps.len()));
        }
        match steps.iter().position(|step| *step > STEP_MAX) {
            Some(at) => Err(ScheduleError::TooLong(at)),
            None => Ok(Self(steps)),
        }
    }

    /// The wait after attempt number `attempts` (1 is the first); none when the schedule is spent.
    fn after(&self, attempts: u32) -> Option<Duration> {
        let step = usize::try_from(attempts).unwrap_or(usize::MAX).saturating_sub(1);
        self.0.get(step).copied()
    }
}

impl Default for Schedule {
    /// 5 s, 5 min, 30 min, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h: ten attempts in a little over three days.
    fn default() -> Self {
        const MINUTE: u64 = 60;
        const HOUR: u64 = 60 * MINUTE;
        let seconds = [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];
        Self(seconds.map(Duration::from_secs).to_vec())
    }
}

/// What came back: a status, and how long the endpoint wants to be left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
}

/// What becomes of a delivery whose attempt number `attempts` (1 is the first) ended at `now_ms`
/// with `answer`, or with none. `random` is in `[0, 1)`.
pub fn next(answer: Option<Answer>, attempts: u32, schedule: &Schedule, now_ms: WallMs, random: f64) -> DeliveryNext {
    match answer.map(|a| a.status) {
        Some(status) if status.is_success() => return DeliveryNext::Delivered,
        Some(StatusCode::GONE) => return DeliveryNext::Gone,
        _ => {}
    }
    let Some(step) = schedule.after(attempts) else { return DeliveryNext::Failed };
    let asked = answer.and_then(|a| a.retry_after).unwrap_or_default().min(RETRY_AFTER_MAX);
    let wait = step.max(asked).mul_f64(1.0 + JITTER * random.clamp(0.0, 1.0));
    DeliveryNext::Retry { due_ms: now_ms.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)) }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date, which is read against the answer's own
/// `Date` where it has one, since the clocks need not agree. Anything else counts as absent.
pub fn retry_after(headers: &HeaderMap, now_ms: WallMs) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let theirs =
        headers.get(header::DATE).and_then(|d| d.to_str().ok()).and_then(|d| httpdate::parse_http_date(d).ok());
    let ours = || std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(now_ms).unwrap_or(0));
    // A date in the past means that there is nothing to wait for.
    Some(until.duration_since(theirs.unwrap_or_else(ours)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallMs = 1_000_000_000_000;

    fn answer(status: u16, retry_after_s: Option<u64>) -> Option<Answer> {
        let status = StatusCode::from_u16(status).expect("a status");
        Some(Answer { status, retry_after: retry_after_s.map(Duration::from_secs) })
    }

    fn wait_ms(answer: Option<Answer>, attempts: u32, random: f64) -> Option<i64> {
        match next(answer, attempts, &Schedule::default(), NOW, random) {
            DeliveryNext::Retry { due_ms } => Some(due_ms - NOW),
            _ => None,
        }
    }

    #[test]
    fn success_is_any_2xx_and_gone_is_410_at_any_attempt() {
        for attempts in [1, 5, 10, 99] {
            for status in [200, 201, 202, 204, 299] {
                let what = next(answer(status, None), attempts, &Schedule::default(), NOW, 0.5);
                assert_eq!(what, DeliveryNext::Delivered, "{status}");
            }
            let gone = next(answer(410, None), attempts, &Schedule::default(), NOW, 0.5);
            assert_eq!(gone, DeliveryNext::Gone);
        }
    }

    #[test]
    fn everything_else_follows_the_schedule_until_it_is_spent() {
        let hours = |h: i64| h * 3_600_000;
        let expected = [5_000, 300_000, 1_800_000, hours(2), hours(5), hours(10), hours(14), hours(20), hours(24)];
        for failure in [None, answer(301, None), answer(400, None), answer(404, None), answer(500, None)] {
            for (step, expected) in expected.into_iter().enumerate() {
                let attempts = u32::try_from(step).expect("small") + 1;
                assert_eq!(wait_ms(failure, attempts, 0.0), Some(expected));
            }
            assert_eq!(next(failure, 10, &Schedule::default(), NOW, 0.0), DeliveryNext::Failed);
            assert_eq!(next(failure, u32::MAX, &Schedule::default(), NOW, 0.0), DeliveryNext::Failed);
        }
    }

    #[test]
    fn jitter_only_ever_adds_up_to_a_tenth() {
        assert_eq!(wait_ms(None, 1, 0.0), Some(5_000));
        assert_eq!(wait_ms(None, 1, 0.5), Some(5_250));
        assert_eq!(wait_ms(None, 1, 1.0), Some(5_500));
        assert_eq!(wait_ms(None, 1, 17.0), Some(5_500));
        assert_eq!(wait_ms(None, 1, -1.0), Some(5_000));
    }

    #[test]
    fn retry_after_is_a_floor_of_at_most_a_day() {
        assert_eq!(wait_ms(answer(429, Some(60)), 1, 0.0), Some(60_000));
        assert_eq!(wait_ms(answer(503, Some(1)), 1, 0.0), Some(5_000));
        assert_eq!(wait_ms(answer(503, Some(u64::MAX)), 1, 0.0), Some(86_400_000));
        assert_eq!(wait_ms(answer(503, Some(60)), 10, 0.0), None, "it does not prolong the schedule");
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let read = |fields: &[(header::HeaderName, &str)]| {
            let headers = fields.iter().map(|(n, v)| (n.clone(), v.parse().expect("a value"))).collect();
            retry_after(&headers, NOW).map(|d| d.as_secs())
        };
        // NOW is Sun, 09 Sep 2001 01:46:40 GMT.
        let after = |value| read(&[(header::RETRY_AFTER, value)]);
        assert_eq!(after("120"), Some(120));
        assert_eq!(after(" 7 "), Some(7));
        assert_eq!(after("Sun, 09 Sep 2001 01:47:40 GMT"), Some(60));
        assert_eq!(after("Sun, 09 Sep 2001 01:00:00 GMT"), Some(0));
        for nonsense in ["", "-1", "1.5", "soon", "99999999999999999999999"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
        assert_eq!(read(&[]), None);
        let against_theirs =
            [(header::RETRY_AFTER, "Sat, 21 Nov 2026 10:00:30 GMT"), (header::DATE, "Sat, 21 Nov 2026 10:00:00 GMT")];
        assert_eq!(read(&against_theirs), Some(30));
    }

    #[test]
    fn schedules_are_bounded_and_may_be_empty() {
        let none = Schedule::new(vec![]).expect("one attempt");
        assert_eq!(next(None, 1, &none, NOW, 0.0), DeliveryNext::Failed);
        assert_eq!(Schedule::new(vec![Duration::ZERO; 101]), Err(ScheduleError::TooMany(101)));
        assert_eq!(Schedule::new(vec![Duration::ZERO, Duration::MAX]), Err(ScheduleError::TooLong(1)));
        assert_eq!(Schedule::new(Schedule::default().0), Ok(Schedule::default()));
    }
}
