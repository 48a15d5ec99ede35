//! Time as an argument: wall time for what people and other processes see, monotonic time for
//! pacing. Everything that decides gets its time from here or as a parameter.

use std::time::Duration;

use crate::pace::Time;

/// Milliseconds since the Unix epoch, UTC: the unit of every time in the store.
pub type WallMs = i64;

/// Two clocks. Real in the binary, set by hand in tests.
pub trait Clock: std::fmt::Debug + Send + Sync + 'static {
    /// Wall time; may jump.
    fn wall_ms(&self) -> WallMs;
    /// Monotonic time; never jumps, has no meaning outside this process.
    fn mono(&self) -> Time;
}

/// Monotonic time of the moment at which a clock is made: longer than any limit's period.
const START: Time = Time::from_nanos(800 * 86_400 * 1_000_000_000);

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    origin: Duration,
}

impl SystemClock {
    /// Monotonic time starts here, far from zero: what was sent before this process began has a
    /// time, too.
    pub fn new() -> Self {
        Self { origin: since_boot() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn wall_ms(&self) -> WallMs {
        jiff::Timestamp::now().as_millisecond()
    }

    fn mono(&self) -> Time {
        START + since_boot().saturating_sub(self.origin)
    }
}

/// Time since the machine was started, suspend included: a process that slept through the end of
/// its lease must know it. (`CLOCK_BOOTTIME`; the standard library's clock stands still in
/// suspend.)
#[cfg(target_os = "linux")]
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

/// Time since the process first asked: other systems have no such clock that all can read.
#[cfg(not(target_os = "linux"))]
pub fn since_boot() -> Duration {
    static FIRST: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
    FIRST.elapsed()
}

/// RFC 3339 with milliseconds in UTC, the form of every time that leaves Paceline.
pub fn rfc3339(ms: WallMs) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map_or_else(|_| ms.to_string(), |t| t.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string())
}

/// Reads RFC 3339 with any offset, and nothing else that a lenient reader would take for a time.
///
/// # Errors
/// What was expected, for the person who wrote it.
pub fn parse_rfc3339(text: &str) -> Result<WallMs, String> {
    let parsed = has_form_of_rfc3339(text).then(|| text.parse::<jiff::Timestamp>().ok()).flatten();
    parsed.map(jiff::Timestamp::as_millisecond).ok_or_else(|| {
        format!("expected an RFC 3339 time with an offset, such as 2026-11-20T10:00:00Z, found {text:?}")
    })
}

/// `2026-11-20T10:00:00`, at most nine digits of a second's fraction, and `Z` or `+01:00`: by their places alone.
fn has_form_of_rfc3339(text: &str) -> bool {
    let fits = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, place)| match place {
                b'0' => byte.is_ascii_digit(),
                b'T' => matches!(byte, b'T' | b't'),
                b'+' => matches!(byte, b'+' | b'-'),
                _ => byte == place,
            })
    };
    let Some((moment, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else { return false };
    let fraction = rest.strip_prefix('.').map(|rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let offset = fraction.map_or(rest, |digits| &rest[digits + 1..]);
    // The 60th second would become the 59th: nobody who writes it means that.
    fits(moment, "0000-00-00T00:00:00")
        && !moment.ends_with("60")
        && fraction.is_none_or(|digits| (1..=9).contains(&digits))
        && (matches!(offset, "Z" | "z") || fits(offset, "+00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip_with_milliseconds() {
        let text = "2026-11-20T10:00:00.123Z";
        assert_eq!(rfc3339(parse_rfc3339(text).expect("valid")), text);
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_rfc3339("2026-11-20T11:00:00+01:00"), parse_rfc3339("2026-11-20T10:00:00Z"));
        assert_eq!(parse_rfc3339("2026-11-20t10:00:00.000000000z"), parse_rfc3339("2026-11-20T10:00:00Z"));
        for wrong in [
            "tomorrow",
            "2026-11-20",
            "2026-11-20T10:00:00",
            "2026-11-20T10:00Z",
            "2026-11-20T10Z",
            "2026-11-20 10:00:00Z",
            "20261120T100000Z",
            "2026-11-20T10:00:00,5Z",
            "2026-11-20T10:00:00.Z",
            "2026-11-20T10:00:00.0000000000Z",
            "2026-11-20T10:00:00+01",
            "2026-11-20T10:00:00+0100",
            "2026-11-20T10:00:00+01:00[Europe/Berlin]",
            "-009999-01-01T00:00:00Z",
            "2026-13-20T10:00:00Z",
            "2016-12-31T23:59:60Z",
            "2026-11-20T10:00:00ä",
            "2026-11-20T10:00:0ä",
        ] {
            assert!(parse_rfc3339(wrong).is_err(), "{wrong}");
        }
    }
}
