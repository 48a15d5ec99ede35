//! What one limit lets through: as it is declared, and as it is expected under the provider's safety.
//!
//! The formulas are those of `docs/pacing.md`; the simulation is the judge of them.

use std::time::Duration;

use crate::duration::HumanDuration;
use crate::pace::{Algorithm, LimitSpec, Measure, PoolSpec, Safety};

/// What the window log adds to each window for clocks that run apart.
const DRIFT: f64 = 1.0001;
/// And for a provider that reads its clock in milliseconds, in seconds.
const TICK: f64 = 0.001;
/// Share of a `smooth` cost limit that is used under `strict`.
const SMOOTH_COST: f64 = 0.98;

/// What is known of the calls: everything that the formulas depend on besides the limit itself.
#[derive(Debug, Clone, Copy)]
pub struct Calls {
    /// How much certainty is asked for.
    pub safety: Safety,
    /// Mean time from sending to the answer, in seconds.
    pub answer: f64,
    /// The provider counts a call at most so many seconds after it was sent.
    pub counted_within: f64,
    /// Cost units of each.
    pub cost: u64,
}

impl Calls {
    /// Calls of that cost, answered after `answer`, under the safety of this provider.
    pub fn new(pool: &PoolSpec, answer: Duration, cost: u64) -> Self {
        let (answer, counted_within) = (answer.as_secs_f64(), pool.counted_within.as_secs_f64());
        Self { safety: pool.safety, answer, counted_within, cost }
    }

    /// How long a call holds its slot beyond the window.
    fn held(&self) -> f64 {
        self.answer.min(self.counted_within)
    }

    fn kept(&self) -> f64 {
        match self.safety {
            Safety::Headroom(share) => 1.0 - share,
            Safety::Strict | Safety::Balanced => 1.0,
        }
    }
}

/// How the calls that a limit lets through grow with time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allows {
    /// Calls at once, at the beginning.
    pub at_once: f64,
    /// Calls a second in the long run, as the limit is declared.
    pub declared: f64,
    /// Calls a second in the long run, as is expected.
    pub expected: f64,
    /// They come in steps of `at_once`, so many seconds apart; `None`: evenly.
    pub step: Option<f64>,
    /// The declared period in seconds; 0 where there is none.
    pub period: f64,
}

impl Allows {
    /// What this limit lets through of such calls.
    pub fn of(spec: &LimitSpec, calls: &Calls) -> Self {
        let (amount, per_call) = match spec.measure {
            Measure::Requests(amount) => (amount as f64, 1.0),
            Measure::Cost(amount) => (amount as f64, calls.cost as f64),
            Measure::Concurrency(open) => return Self::open(f64::from(open), calls),
        };
        if per_call == 0.0 {
            return Self {
                at_once: f64::INFINITY,
                declared: f64::INFINITY,
                expected: f64::INFINITY,
                step: None,
                period: 0.0,
            };
        }
        let period = spec.per.as_secs_f64();
        let declared = amount / per_call / period;
        // Whole calls only: a limit of 100 units takes 33 calls of 3.
        let whole = (amount / per_call).floor().max(1.0);
        let windows =
            |at_once: f64, cycle: f64| Self { at_once, declared, expected: at_once / cycle, step: Some(cycle), period };
        let log = period / calls.kept() * DRIFT + TICK + calls.held();
        match spec.algorithm {
            Algorithm::SlidingWindow => windows(whole, log),
            Algorithm::FixedWindow => {
                windows((amount * calls.kept() / per_call).floor().max(1.0), period * DRIFT + TICK + calls.held())
            }
            Algorithm::Quota(_) => windows((amount * calls.kept() / per_call).floor().max(1.0), period * DRIFT + TICK),
            Algorithm::TokenBucket => {
                let depth = spec.burst.map_or(if per_call_is_cost(spec) { amount } else { 1.0 }, |burst| burst as f64);
                let depth = (depth / per_call).max(1.0);
                let rate = declared * calls.kept() / DRIFT;
                let expected = rate * (depth / (1.0 + rate * calls.held())).min(1.0);
                Self { at_once: depth.floor(), declared, expected, step: None, period }
            }
            Algorithm::Smooth => Self::smooth(spec, calls, whole, declared, log),
        }
    }

    /// Evenly spaced; under `strict` one call a window fewer, and never more in the window log.
    fn smooth(spec: &LimitSpec, calls: &Calls, whole: f64, declared: f64, log: f64) -> Self {
        let period = spec.per.as_secs_f64();
        let strict = calls.safety == Safety::Strict;
        let lowered = match () {
            () if strict && per_call_is_cost(spec) => SMOOTH_COST,
            () if strict && whole <= 1.0 => 0.5,
            () if strict => (whole - 1.0) / whole,
            () => 1.0,
        };
        let per_call = if per_call_is_cost(spec) { calls.cost as f64 } else { 1.0 };
        let burst = (spec.burst.unwrap_or(1) as f64 / per_call).max(1.0);
        Self { at_once: burst, declared, expected: declared * lowered * period / log, step: None, period }
    }

    /// So many calls open at once.
    pub fn open(places: f64, calls: &Calls) -> Self {
        let rate = places / calls.answer;
        Self { at_once: places, declared: rate, expected: rate, step: Some(calls.answer), period: 0.0 }
    }

    /// Calls that may have left after so many seconds.
    pub fn by(&self, seconds: f64) -> f64 {
        match self.step {
            _ if self.at_once == f64::INFINITY => f64::INFINITY,
            Some(step) => self.at_once * (1.0 + (seconds / step).floor()),
            None => self.at_once + self.expected * seconds,
        }
    }

    /// The same without steps.
    pub fn by_evenly(&self, seconds: f64) -> f64 {
        self.at_once + self.expected * seconds
    }

    /// The share of what is declared that can be reached, 0 to 1.
    pub fn utilisation(&self) -> f64 {
        if self.declared.is_finite() { (self.expected / self.declared).min(1.0) } else { 1.0 }
    }
}

fn per_call_is_cost(spec: &LimitSpec) -> bool {
    matches!(spec.measure, Measure::Cost(_))
}

/// A limit in words: `600 requests per 1m (sliding_window)`.
pub fn in_words(spec: &LimitSpec) -> String {
    let (amount, unit) = match spec.measure {
        Measure::Concurrency(open) => return format!("{open} open at once"),
        Measure::Requests(amount) => (amount, "requests"),
        Measure::Cost(amount) => (amount, "cost"),
    };
    let algorithm = match spec.algorithm {
        Algorithm::Smooth => "smooth",
        Algorithm::SlidingWindow => "sliding_window",
        Algorithm::FixedWindow => "fixed_window",
        Algorithm::TokenBucket => "token_bucket",
        Algorithm::Quota(_) => "quota",
    };
    let burst = spec.burst.map_or_else(String::new, |burst| format!(", burst {burst}"));
    format!("{amount} {unit} per {} ({algorithm}{burst})", HumanDuration(spec.per))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(safety: Safety, answer: f64) -> Calls {
        Calls { safety, answer, counted_within: 30.0, cost: 1 }
    }

    fn share(spec: &LimitSpec, calls: &Calls) -> f64 {
        (Allows::of(spec, calls).utilisation() * 1000.0).round() / 1000.0
    }

    #[test]
    fn the_formulas_of_the_pacing_document() {
        let second = Duration::from_secs(1);
        let window = |algorithm| LimitSpec::requests(10, second, algorithm);
        let slow = calls(Safety::Strict, 2.0);
        assert_eq!(share(&window(Algorithm::SlidingWindow), &slow), 0.333, "one second, answers after two");
        assert_eq!(share(&window(Algorithm::SlidingWindow), &calls(Safety::Headroom(0.5), 0.001)), 0.499);
        let bucket = window(Algorithm::TokenBucket);
        assert_eq!(share(&bucket, &slow), 0.048, "without burst: 1 ÷ (1 + rate × answer)");
        assert_eq!(share(&bucket.with_burst(21), &slow), 1.0, "burst ≥ 1 + rate × answer");
        assert_eq!(
            share(&LimitSpec::requests(60, 60 * second, Algorithm::Smooth), &calls(Safety::Strict, 0.001)),
            0.983
        );
        assert_eq!(share(&LimitSpec::requests(1, 60 * second, Algorithm::Smooth), &calls(Safety::Strict, 0.001)), 0.5);
        assert_eq!(share(&LimitSpec::concurrency(5), &slow), 1.0);
    }

    #[test]
    fn costs_are_shared_out_in_whole_calls() {
        let spec = LimitSpec::cost(100, Duration::from_secs(1), Algorithm::SlidingWindow);
        let allows = Allows::of(&spec, &Calls { cost: 3, ..calls(Safety::Strict, 0.1) });
        assert_eq!(allows.at_once, 33.0);
        assert_eq!(Allows::of(&spec, &Calls { cost: 0, ..calls(Safety::Strict, 0.1) }).by(0.0), f64::INFINITY);
    }
}
