//! Delays as networks and providers have them: lognormal, given by median and 99th percentile, from a seed.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::rule::span;

/// The 99th percentile of the standard normal distribution.
const Z99: f64 = 2.326_347_874_040_841;

/// A lognormal distribution of delays. As text: `15ms,120ms` or, cut off at a largest value, `15ms,120ms,400ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lognormal {
    /// Half of the delays are shorter.
    pub median: Duration,
    /// One in a hundred is longer.
    pub p99: Duration,
    /// No delay is longer, where given.
    pub max: Option<Duration>,
}

/// A distribution that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("delay {text:?}: {problem}")]
pub struct DelayError {
    text: String,
    problem: String,
}

impl Lognormal {
    /// By median and 99th percentile, in milliseconds.
    pub const fn ms(median: u64, p99: u64) -> Self {
        Lognormal { median: Duration::from_millis(median), p99: Duration::from_millis(p99), max: None }
    }

    /// Refuses a 99th percentile below the median, and zero.
    pub fn check(&self) -> Result<(), DelayError> {
        if self.median.is_zero() || self.p99 < self.median {
            let problem = "0 < median ≤ p99 must hold".to_owned();
            return Err(DelayError { text: self.to_string(), problem });
        }
        Ok(())
    }

    /// The delay at `z` standard deviations of the underlying normal distribution.
    pub fn at(&self, z: f64) -> Duration {
        let spread = (self.p99.as_secs_f64() / self.median.as_secs_f64()).ln() / Z99;
        let seconds = self.median.as_secs_f64() * (spread * z).exp();
        let delay = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        self.max.map_or(delay, |max| delay.min(max))
    }
}

impl fmt::Display for Lognormal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms,{}ms", self.median.as_millis(), self.p99.as_millis())?;
        self.max.map_or(Ok(()), |max| write!(f, ",{}ms", max.as_millis()))
    }
}

impl FromStr for Lognormal {
    type Err = DelayError;

    fn from_str(text: &str) -> Result<Self, DelayError> {
        let wrong = |problem| DelayError { text: text.to_owned(), problem };
        let parts: Vec<Duration> =
            text.split(',').map(|part| span(part.trim())).collect::<Result<_, _>>().map_err(wrong)?;
        let delay = match parts[..] {
            [median, p99] => Lognormal { median, p99, max: None },
            [median, p99, max] => Lognormal { median, p99, max: Some(max) },
            _ => {
                return Err(wrong("median and p99 are needed, as in `15ms,120ms`".to_owned()));
            }
        };
        delay.check().map(|()| delay)
    }
}

/// Draws delays. The same seed and the same order of draws give the same delays.
#[derive(Debug)]
pub(crate) struct Dice(StdRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn draw(&mut self, from: Option<&Lognormal>) -> Duration {
        let Some(from) = from else {
            return Duration::ZERO;
        };
        // Box–Muller; 1 − u is never zero.
        let (u, v): (f64, f64) = (self.0.random(), self.0.random());
        from.at((-2.0 * (1.0 - u).ln()).sqrt() * (TAU * v).cos())
    }
}
