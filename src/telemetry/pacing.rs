//! Figures of pacing: what is allowed, what is achieved, what is out of use, budget by budget.
//!
//! Labels are bounded: of each provider the first [`BUDGETS_MAX`] budgets (by name) have their own, the
//! others are told together as `(other)`. Gauges are those of the last report of this process; they
//! are gone when it spends the provider's budgets no more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::clock::WallMs;
use crate::store::{BudgetReport, Report};

/// Budgets of one provider that have a label of their own.
pub const BUDGETS_MAX: usize = 100;
/// The label of all the others.
const OTHER: &str = "(other)";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BudgetLabel {
    provider: String,
    budget: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    provider: String,
    lane: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    provider: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SignalLabel {
    provider: String,
    family: String,
}

/// States that are told even where nothing is in them: an alarm needs a zero to come from.
const KEY_STATES: [&str; 5] = ["open", "paused", "refused", "probing", "disabled"];
const BUDGET_STATES: [&str; 3] = ["open", "paused", "parked"];

/// What a dispatcher tells of its provider.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Every budget and key, not bounded.
    pub report: Report,
    /// When, by the clock that the report's times are of.
    pub at_ms: WallMs,
    /// An operator paused it.
    pub paused: bool,
    /// Leases that this process holds.
    pub leases: u64,
}

/// Budgets as they are told: sums over those that share a label.
#[derive(Debug, Clone, Default)]
struct Sums {
    /// `None`: time does not limit one of them.
    allowed: Option<f64>,
    achieved: f64,
    /// Of the first of them.
    next_slot_seconds: Option<f64>,
}

/// What is kept of a provider until the next scrape.
#[derive(Debug)]
struct Shown {
    budgets: BTreeMap<String, Sums>,
    budget_states: BTreeMap<String, i64>,
    key_states: BTreeMap<String, i64>,
    signals: BTreeMap<String, i64>,
    probing: BTreeMap<String, i64>,
    permits_waiting: Vec<(String, u64)>,
    breaker: i64,
    paused: bool,
    leases: u64,
}

/// Calls and errors by budget.
type Counted = BTreeMap<String, (u64, u64)>;

/// Figures of pacing of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PacingMetrics {
    shown: Arc<Mutex<BTreeMap<String, Shown>>>,
    /// What was counted already: pools are made anew, counters never fall.
    counted: Arc<Mutex<BTreeMap<String, Counted>>>,
    calls: Family<BudgetLabel, Counter>,
    errors: Family<BudgetLabel, Counter>,
}

impl PacingMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("paceline_budget_calls", "Calls that left, by budget", self.calls.clone());
        registry.register(
            "paceline_pacing_errors",
            "Calls that the provider refused with 429 in spite of a permit",
            self.errors.clone(),
        );
        registry.register_collector(Box::new(self.clone()));
    }

    /// This process spends (some of) the provider's budgets: how they stand, and what left since the last time.
    pub fn show(&self, provider: &str, told: &Told) {
        let names: BTreeSet<&str> = told.report.budgets.iter().map(|budget| budget.name.as_str()).collect();
        let labelled: BTreeSet<&str> = names.into_iter().take(BUDGETS_MAX).collect();
        let label = |budget: &BudgetReport| match labelled.contains(budget.name.as_str()) {
            true => budget.name.clone(),
            false => OTHER.to_owned(),
        };
        let mut counted = lock(&self.counted);
        let counted = counted.entry(provider.to_owned()).or_default();
        for budget in &told.report.budgets {
            let (calls, errors) = (budget.calls, budget.pacing_errors);
            let last = counted.entry(budget.name.clone()).or_default();
            let of = BudgetLabel { provider: provider.to_owned(), budget: label(budget) };
            self.calls.get_or_create(&of).inc_by(grown(last.0, calls));
            self.errors.get_or_create(&of).inc_by(grown(last.1, errors));
            *last = (calls, errors);
        }
        let shown = Shown::of(told, label);
        lock(&self.shown).insert(provider.to_owned(), shown);
    }

    /// Another process does, or nobody: gauges of this one would mislead.
    pub fn hide(&self, provider: &str) {
        lock(&self.shown).remove(provider);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// By how much a count has grown; one that fell began anew.
fn grown(then: u64, now: u64) -> u64 {
    now.checked_sub(then).unwrap_or(now)
}

impl Shown {
    fn of(told: &Told, label: impl Fn(&BudgetReport) -> String) -> Self {
        let zeros = |states: &[&str]| states.iter().map(|state| ((*state).to_owned(), 0)).collect();
        let (mut budget_states, mut key_states): (BTreeMap<String, i64>, BTreeMap<String, i64>) =
            (zeros(&BUDGET_STATES), zeros(&KEY_STATES));
        let (mut budgets, mut signals) = (BTreeMap::<String, Sums>::new(), BTreeMap::<String, i64>::new());
        let mut probing = BTreeMap::<String, i64>::new();
        for budget in &told.report.budgets {
            match budgets.get_mut(&label(budget)) {
                Some(sums) => sums.add(&Sums::of(budget, told.at_ms)),
                None => {
                    budgets.insert(label(budget), Sums::of(budget, told.at_ms));
                }
            }
            *budget_states.entry(budget.state.clone()).or_default() += 1;
            for key in &budget.keys {
                *key_states.entry(key.state.clone()).or_default() += 1;
            }
            if let Some(state) = &budget.probing {
                *probing.entry(state.clone()).or_default() += 1;
            }
            if let Some(family) = &budget.signals {
                *signals.entry(family.clone()).or_default() += 1;
            }
        }
        Self {
            budgets,
            budget_states,
            key_states,
            signals,
            probing,
            permits_waiting: told.report.permits_waiting.clone(),
            breaker: match told.report.breaker.as_deref() {
                None => 0,
                Some("half_open") => 1,
                Some(_) => 2,
            },
            paused: told.paused,
            leases: told.leases,
        }
    }
}

impl Sums {
    #[expect(clippy::cast_precision_loss, reason = "seconds, for people")]
    fn of(budget: &BudgetReport, at_ms: WallMs) -> Self {
        let ahead = |slot: WallMs| slot.saturating_sub(at_ms).max(0) as f64 / 1_000.0;
        Self {
            allowed: budget.allowed_per_second,
            achieved: budget.achieved_per_second,
            next_slot_seconds: budget.next_slot_ms.map(ahead),
        }
    }

    fn add(&mut self, other: &Self) {
        self.allowed = self.allowed.zip(other.allowed).map(|(a, b)| a + b);
        self.achieved += other.achieved;
        let slots = [self.next_slot_seconds, other.next_slot_seconds];
        self.next_slot_seconds = slots.into_iter().flatten().reduce(f64::min);
    }

    fn utilisation(&self) -> Option<f64> {
        self.allowed.filter(|allowed| *allowed > 0.0).map(|allowed| self.achieved / allowed)
    }
}

type Rates = Family<BudgetLabel, Gauge<f64, AtomicU64>>;

impl Collector for PacingMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let shown = lock(&self.shown);
        let rates = |value: fn(&Sums) -> Option<f64>| {
            let family = Rates::default();
            for (provider, shown) in shown.iter() {
                for (budget, sums) in &shown.budgets {
                    let Some(value) = value(sums) else { continue };
                    let label = BudgetLabel { provider: provider.clone(), budget: budget.clone() };
                    family.get_or_create(&label).set(value);
                }
            }
            family
        };
        let mut write = |name: &str, help: &str, metric: &dyn Written| metric.write(name, help, &mut encoder);
        write(
            "paceline_budget_allowed_calls_per_second",
            "What the limits of the budget and its usable keys allow; missing where time does not limit them",
            &rates(|sums| sums.allowed),
        )?;
        write(
            "paceline_budget_achieved_calls_per_second",
            "Calls that left in the last minute",
            &rates(|sums| Some(sums.achieved)),
        )?;
        write("paceline_budget_utilisation_ratio", "Achieved by allowed rate", &rates(Sums::utilisation))?;
        write(
            "paceline_budget_next_slot_seconds",
            "Time to the next slot; missing where nobody knows",
            &rates(|sums| sums.next_slot_seconds),
        )?;
        write("paceline_keys", "Keys by state", &states(&shown, |shown| &shown.key_states))?;
        write("paceline_budgets", "Budgets by state", &states(&shown, |shown| &shown.budget_states))?;
        write(
            "paceline_budgets_probing",
            "Budgets whose limits nobody declared, by how far they are",
            &states(&shown, |shown| &shown.probing),
        )?;
        let (lanes, signals) = (Family::<LaneLabel, Gauge>::default(), Family::<SignalLabel, Gauge>::default());
        let (paused, leases) =
            (Family::<super::ProviderLabel, Gauge>::default(), Family::<super::ProviderLabel, Gauge>::default());
        let breakers = Family::<super::ProviderLabel, Gauge>::default();
        for (provider, shown) in shown.iter() {
            for (lane, waiting) in &shown.permits_waiting {
                let label = LaneLabel { provider: provider.clone(), lane: lane.clone() };
                lanes.get_or_create(&label).set(count(*waiting));
            }
            for (family, budgets) in &shown.signals {
                let label = SignalLabel { provider: provider.clone(), family: family.clone() };
                signals.get_or_create(&label).set(*budgets);
            }
            let label = super::ProviderLabel { provider: provider.clone() };
            paused.get_or_create(&label).set(i64::from(shown.paused));
            breakers.get_or_create(&label).set(shown.breaker);
            leases.get_or_create(&label).set(count(shown.leases));
        }
        write("paceline_permits_waiting", "Jobs in hand that wait for a permit, by lane", &lanes)?;
        write("paceline_signal_families", "Budgets by the dialect of their last signal", &signals)?;
        write("paceline_breaker_state", "0: closed, 1: half open, 2: open", &breakers)?;
        write("paceline_provider_paused", "1: an operator paused it", &paused)?;
        write("paceline_leases_held", "Pacing groups that this process may spend", &leases)
    }
}

fn states(shown: &BTreeMap<String, Shown>, of: impl Fn(&Shown) -> &BTreeMap<String, i64>) -> Family<StateLabel, Gauge> {
    let family = Family::<StateLabel, Gauge>::default();
    for (provider, shown) in shown {
        for (state, count) in of(shown) {
            let label = StateLabel { provider: provider.clone(), state: state.clone() };
            family.get_or_create(&label).set(*count);
        }
    }
    family
}

fn count(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A metric that is written at a scrape, whatever its labels.
trait Written {
    fn write(&self, name: &str, help: &str, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Written for M {
    fn write(&self, name: &str, help: &str, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode_registry;

    use super::*;
    use crate::store::KeyReport;

    fn budget(name: &str, state: &str) -> BudgetReport {
        let key = KeyReport { label: name.to_owned(), state: state.to_owned(), ..KeyReport::default() };
        BudgetReport {
            name: name.to_owned(),
            state: "open".to_owned(),
            allowed_per_second: Some(2.0),
            achieved_per_second: 1.0,
            next_slot_ms: Some(2_500),
            calls: 10,
            pacing_errors: 3,
            signals: Some("ietf".to_owned()),
            probing: Some("settled".to_owned()),
            keys: vec![key],
            ..BudgetReport::default()
        }
    }

    fn told(budgets: Vec<BudgetReport>) -> Told {
        let report = Report { budgets, permits_waiting: vec![("high".to_owned(), 7)], ..Report::default() };
        Told { report, at_ms: 1_000, paused: true, leases: 1 }
    }

    fn scrape(metrics: &PacingMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode_registry(&mut text, &registry).expect("written");
        text
    }

    #[test]
    fn each_figure_has_its_line() {
        let metrics = PacingMetrics::default();
        metrics.show("geo", &told(vec![budget("a", "open"), budget("b", "refused")]));
        let text = scrape(&metrics);
        for line in [
            "paceline_budget_calls_total{provider=\"geo\",budget=\"b\"} 10",
            "paceline_pacing_errors_total{provider=\"geo\",budget=\"a\"} 3",
            "paceline_budget_allowed_calls_per_second{provider=\"geo\",budget=\"a\"} 2.0",
            "paceline_budget_achieved_calls_per_second{provider=\"geo\",budget=\"a\"} 1.0",
            "paceline_budget_utilisation_ratio{provider=\"geo\",budget=\"a\"} 0.5",
            "paceline_budget_next_slot_seconds{provider=\"geo\",budget=\"a\"} 1.5",
            "paceline_keys{provider=\"geo\",state=\"refused\"} 1",
            "paceline_keys{provider=\"geo\",state=\"disabled\"} 0",
            "paceline_budgets{provider=\"geo\",state=\"open\"} 2",
            "paceline_budgets_probing{provider=\"geo\",state=\"settled\"} 2",
            "paceline_permits_waiting{provider=\"geo\",lane=\"high\"} 7",
            "paceline_signal_families{provider=\"geo\",family=\"ietf\"} 2",
            "paceline_provider_paused{provider=\"geo\"} 1",
            "paceline_leases_held{provider=\"geo\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn counters_never_fall_and_gauges_go_with_the_lease() {
        let metrics = PacingMetrics::default();
        for calls in [10, 30, 5] {
            metrics.show("geo", &told(vec![BudgetReport { calls, ..budget("a", "open") }]));
        }
        metrics.hide("geo");
        let text = scrape(&metrics);
        assert!(text.contains("paceline_budget_calls_total{provider=\"geo\",budget=\"a\"} 35\n"), "{text}");
        assert!(text.contains("paceline_pacing_errors_total{provider=\"geo\",budget=\"a\"} 3\n"), "{text}");
        assert!(!text.contains("paceline_keys{"), "{text}");
    }

    #[test]
    fn labels_are_bounded_and_the_rest_is_told_together() {
        let metrics = PacingMetrics::default();
        let budgets: Vec<_> = (0..1_000).map(|n| budget(&format!("k{n:04}"), "open")).collect();
        metrics.show("geo", &told(budgets));
        let text = scrape(&metrics);
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
        for name in ["paceline_budget_calls_total", "paceline_budget_allowed_calls_per_second"] {
            assert_eq!(lines(name), BUDGETS_MAX + 1, "{name}");
        }
        assert!(text.contains("paceline_budget_calls_total{provider=\"geo\",budget=\"(other)\"} 9000\n"), "{text}");
        let allowed = "paceline_budget_allowed_calls_per_second{provider=\"geo\",budget=\"(other)\"} 1800.0\n";
        assert!(text.contains(allowed), "{text}");
        assert!(text.contains("paceline_keys{provider=\"geo\",state=\"open\"} 1000\n"), "{text}");
    }
}
