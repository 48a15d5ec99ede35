//! A figure of several runs: machines that are shared drift, and one number hides it.

use serde::Serialize;

/// The least, the one in the middle, the most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// Of some figures; nothing of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { min, median: (low + high) / 2.0, max })
    }
}

/// Times of many single events, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Percentiles {
    /// Of some times, each the shortest that so many are not above; nothing of none.
    pub fn of(times: impl IntoIterator<Item = std::time::Duration>) -> Option<Self> {
        let mut sorted: Vec<f64> = times.into_iter().map(|time| time.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50_ms: at(50)?, p99_ms: at(99)?, max_ms: at(100)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_middle_of_an_even_number_lies_between_two() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { min: 1.0, median: 2.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]), Some(Spread { min: 1.0, median: 2.5, max: 4.0 }));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn percentiles_are_times_that_happened() {
        let times = (1..=200).rev().map(Duration::from_millis);
        assert_eq!(Percentiles::of(times), Some(Percentiles { p50_ms: 100.0, p99_ms: 198.0, max_ms: 200.0 }));
        let one = Percentiles { p50_ms: 7.0, p99_ms: 7.0, max_ms: 7.0 };
        assert_eq!(Percentiles::of([Duration::from_millis(7)]), Some(one));
        assert_eq!(Percentiles::of([]), None);
    }
}
