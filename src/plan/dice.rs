//! Random numbers that are the same for the same seed on every machine.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::sim::Lognormal;

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and stable over versions, so that a plan can be repeated.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// In `[0, n)`; 0 for `n` = 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.number() % n.max(1)
    }

    /// A delay of that distribution.
    pub fn delay(&mut self, of: &Lognormal) -> Duration {
        let z = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (TAU * self.unit()).cos();
        of.at(z)
    }

    /// The time until the next of several events that come at random, `per_second` of them on average.
    pub fn gap(&mut self, per_second: f64) -> Duration {
        let seconds = -(1.0 - self.unit()).ln() / per_second;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}
