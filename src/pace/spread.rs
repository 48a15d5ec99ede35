//! How long calls take to be counted, as far as that was seen: for `balanced` and `headroom`.

use std::time::Duration;

use super::time::nanos;

/// Steps an octave: a percentile is known to 9 %, rounded up.
const STEPS: u32 = 8;
/// Fewer delays than this say nothing.
const ENOUGH: u64 = 100;
/// Beyond so many, older ones fade.
const MANY: u64 = 200_000;
/// The percentile is computed anew after so many delays.
const EVERY: u64 = 64;
/// The share of delays that may be longer.
const LONGER: f64 = 1e-4;
/// Margin for what was not seen yet.
const MARGIN: f64 = 1.25;

/// A histogram of delays with logarithmic steps.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    counts: Vec<u64>,
    total: u64,
    since: u64,
    longest: Option<u64>,
}

impl Spread {
    pub fn new() -> Spread {
        Spread { counts: vec![0; 64 * STEPS as usize], total: 0, since: 0, longest: None }
    }

    /// One more delay in nanoseconds.
    pub fn add(&mut self, delay: u64) {
        self.counts[step_of(delay)] += 1;
        self.total += 1;
        self.since += 1;
        if self.total >= MANY {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        if self.since >= EVERY && self.total >= ENOUGH {
            self.since = 0;
            self.longest = Some(self.percentile());
        }
    }

    /// The 99.99th percentile and a margin, in nanoseconds; `None` while too few delays were seen.
    pub fn longest(&self) -> Option<u64> {
        self.longest
    }

    fn percentile(&self) -> u64 {
        let mut beyond = (self.total as f64 * LONGER) as u64;
        for (step, &count) in self.counts.iter().enumerate().rev() {
            if count > beyond {
                return (end_of(step) * MARGIN) as u64;
            }
            beyond -= count;
        }
        nanos(Duration::MAX)
    }
}

fn step_of(delay: u64) -> usize {
    let octave = delay.max(STEPS.into()).ilog2();
    let within = (delay.max(STEPS.into()) >> (octave - 3)) & 7;
    (octave * STEPS) as usize + within as usize
}

fn end_of(step: usize) -> f64 {
    let (octave, within) = (step as u32 / STEPS, step as u32 % STEPS);
    (1_u64 << octave) as f64 * (1.0 + f64::from(within + 1) / f64::from(STEPS))
}
