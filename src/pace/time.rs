//! Time as an argument: nanoseconds of a monotonic clock.

use std::fmt;
use std::ops::Add;
use std::time::Duration;

/// An instant in nanoseconds of some monotonic clock whose origin is arbitrary.
///
/// Nothing in this module reads a clock: the caller says what time it is. All arithmetic saturates,
/// so that `Time::MAX` means "never".
///
/// ```
/// use paceline::pace::Time;
/// use std::time::Duration;
/// let start = Time::from_nanos(5);
/// assert_eq!((start + Duration::from_nanos(7)).as_nanos(), 12);
/// assert_eq!(Time::MAX + Duration::from_secs(1), Time::MAX);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The origin of the clock.
    pub const ZERO: Time = Time(0);
    /// Never.
    pub const MAX: Time = Time(u64::MAX);

    /// The instant so many nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is before.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub(super) const fn plus(self, nanos: u64) -> Time {
        Time(self.0.saturating_add(nanos))
    }

    pub(super) const fn minus(self, nanos: u64) -> Time {
        Time(self.0.saturating_sub(nanos))
    }

    /// The next multiple of `grain` nanoseconds, never earlier than this; 0 leaves it as it is.
    pub(super) fn rounded_up(self, grain: u64) -> Time {
        if grain == 0 {
            return self;
        }
        Time(self.0.div_ceil(grain).saturating_mul(grain))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, rhs: Duration) -> Time {
        self.plus(nanos(rhs))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Time::MAX {
            return f.write_str("never");
        }
        write!(f, "{:.6}s", self.0 as f64 / 1e9)
    }
}

/// A duration in nanoseconds, saturating after 584 years.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
