//! Utilisation of an allowed rate, from accepted arrivals alone.
//!
//! For a limit of N a window W and accepted arrivals a₀ ≤ a₁ ≤ …:
//! utilisation = W ÷ mean(aᵢ₊ₙ − aᵢ). At exactly the allowed rate, however bunched, it is 1; no assumption is made
//! about where windows begin. A call of cost c counts as c arrivals at one instant, which makes the same formula
//! right for cost limits.

use std::collections::VecDeque;

use super::enforce::Nanos;

/// Accumulates aᵢ₊ₙ − aᵢ as calls arrive; keeps the last N units only.
#[derive(Clone, Debug)]
pub struct Utilisation {
    n: u64,
    window: Nanos,
    recent: VecDeque<(Nanos, u64)>,
    held: u64,
    sum: u128,
    gaps: u64,
}

impl Utilisation {
    /// For a limit of `n` a `window`.
    pub fn new(n: u64, window: Nanos) -> Self {
        Utilisation { n, window, recent: VecDeque::new(), held: 0, sum: 0, gaps: 0 }
    }

    /// `units` were accepted at `at`; in order of time.
    pub fn arrived(&mut self, at: Nanos, units: u64) {
        self.recent.push_back((at, units));
        self.held += units;
        while self.held > self.n {
            let Some((then, left)) = self.recent.front_mut() else {
                return;
            };
            let paired = (self.held - self.n).min(*left);
            self.sum += u128::from(at.saturating_sub(*then)) * u128::from(paired);
            self.gaps += paired;
            self.held -= paired;
            *left -= paired;
            if *left == 0 {
                self.recent.pop_front();
            }
        }
    }

    /// How many differences aᵢ₊ₙ − aᵢ there are; divided by N, how many windows were measured.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// The utilisation, once more than N units have arrived.
    pub fn value(&self) -> Option<f64> {
        Utilisation::pooled([self])
    }

    /// The utilisation over the differences of several callers under the same limit.
    pub fn pooled<'a>(all: impl IntoIterator<Item = &'a Utilisation>) -> Option<f64> {
        let (mut window, mut sum, mut gaps) = (0, 0, 0);
        for one in all {
            window = one.window;
            sum += one.sum;
            gaps += one.gaps;
        }
        (gaps > 0 && sum > 0).then(|| window as f64 * gaps as f64 / sum as f64)
    }

    /// Forgets everything, for a measurement that begins after a warm-up.
    pub fn reset(&mut self) {
        *self = Utilisation::new(self.n, self.window);
    }
}
