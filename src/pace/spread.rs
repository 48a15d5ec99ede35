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

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn add(spread: &mut Spread, count: u64, delay: u64) {
        (0..count).for_each(|_| spread.add(delay));
    }

    /// Whether the longest delay is taken to be this one, with the margin and the steps of the histogram.
    fn is_about(spread: &Spread, delay: u64) -> bool {
        let known = spread.longest().expect("known") as f64 / delay as f64;
        (MARGIN..=MARGIN * (1.0 + 1.0 / f64::from(STEPS))).contains(&known)
    }

    #[test]
    fn the_longest_delay_is_never_taken_to_be_shorter() {
        for delay in [8, 9, 15, 16, 17, 100, 1_000, 1_023, 1_024, 12_345_678, 5_000 * MILLI, 7_999_999_999] {
            let mut spread = Spread::new();
            add(&mut spread, 64, delay);
            assert_eq!(spread.longest(), None, "too few");
            add(&mut spread, 64, delay);
            assert!(is_about(&spread, delay), "{delay}: {:?}", spread.longest());
            // A single longer one among few counts.
            spread.add(delay * 3);
            add(&mut spread, 63, delay);
            assert!(is_about(&spread, delay * 3), "{delay}: {:?}", spread.longest());
        }
    }

    #[test]
    fn one_in_ten_thousand_may_be_longer() {
        let mut spread = Spread::new();
        add(&mut spread, 2, 1_000 * MILLI);
        add(&mut spread, 2, 500 * MILLI);
        add(&mut spread, 469 * 64 - 4, 10 * MILLI);
        assert!(is_about(&spread, 500 * MILLI), "three of 30,016 are longer: {:?}", spread.longest());
    }

    #[test]
    fn older_delays_fade() {
        let mut spread = Spread::new();
        add(&mut spread, MANY, 10 * MILLI);
        assert!(is_about(&spread, 10 * MILLI));
        // Eleven of a hundred thousand; of twice as many they would be too few.
        add(&mut spread, 11, 1_000 * MILLI);
        add(&mut spread, 53, 10 * MILLI);
        assert!(is_about(&spread, 1_000 * MILLI), "{:?}", spread.longest());
    }
}
