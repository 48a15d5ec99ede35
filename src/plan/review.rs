//! What a declared provider promises, what share of its limits can be reached, and what is risky about it.

use std::time::Duration;

use serde::Serialize;

use super::allows::{Allows, Calls, in_words};
use super::ceiling::{Ceiling, Level, route_name};
use super::policies;
use super::work::{Amount, Work};
use crate::config::Provider;
use crate::duration::HumanDuration;
use crate::pace::{Algorithm, LimitSpec, Measure, Safety};
use crate::sim::Lognormal;

/// A limit that reaches less than this share is worth a warning.
const REACHED_MIN: f64 = 0.8;
/// A lane with a smaller share than this, while all lanes wait, is worth a warning.
const LANE_SHARE_MIN: f64 = 0.01;
/// A lost call may hold its slot for so many periods.
const LOST_PERIODS_MAX: u32 = 5;

/// Whether a limit is surely never exceeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// Never, where it is declared as the provider counts it.
    Promised,
    /// Never, under a condition that nobody can know.
    Conditional,
    /// Not likely, and not promised.
    Likely,
}

impl Kept {
    /// The name in tables and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promised => "promised",
            Self::Conditional => "conditional",
            Self::Likely => "likely",
        }
    }
}

/// What can be expected of one limit.
#[derive(Debug, Clone, Serialize)]
pub struct Expected {
    /// Its place in the configuration.
    pub place: String,
    /// In words.
    pub limit: String,
    /// Of what.
    pub of: String,
    /// The share of it that can be reached with the assumed answer time, 0 to 1.
    pub utilisation: f64,
    /// Whether it is surely never exceeded.
    pub promise: Kept,
    /// On which condition, or why not.
    pub condition: Option<String>,
}

/// Something risky.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// For programs.
    pub code: &'static str,
    /// Its place in the configuration.
    pub place: String,
    /// What it means, and what to do.
    pub message: String,
}

/// Of one provider.
#[derive(Debug, Clone, Serialize)]
pub struct Review {
    /// Every limit.
    pub expected: Vec<Expected>,
    /// Everything risky.
    pub warnings: Vec<Warning>,
}

/// A limit and where it stands.
struct Placed<'a> {
    place: String,
    of: String,
    spec: &'a LimitSpec,
}

/// Looks at a provider; its answers are assumed to take so long.
pub fn review(provider: &Provider, latency: Lognormal) -> Review {
    let work = Work { latency, ..Work::plain(Amount::Jobs(1), 0) };
    let calls = Calls::new(&provider.pool, work.mean_latency(), 1);
    let placed = placed(provider);
    let expected = placed.iter().map(|limit| limit.expected(&calls)).collect();
    let mut warnings: Vec<Warning> = placed.iter().flat_map(|limit| limit.warnings(provider, &calls)).collect();
    warnings.extend(of_provider(provider));
    warnings.extend(of_lanes(provider));
    warnings.extend(of_concurrency(provider, &work));
    warnings.extend(policies::warnings(provider));
    for warning in &mut warnings {
        warning.place = match warning.place.as_str() {
            "" => format!("provider {:?}", provider.name),
            place => format!("provider {:?}: {place}", provider.name),
        };
    }
    Review { expected, warnings }
}

fn placed(provider: &Provider) -> Vec<Placed<'_>> {
    let pool = &provider.pool;
    let mut all = Vec::new();
    let mut add = |specs, place: &str, of: &str| {
        let specs: &[LimitSpec] = specs;
        let placed = |(n, spec)| Placed { place: format!("{place}[{n}]"), of: of.to_owned(), spec };
        all.extend(specs.iter().enumerate().map(placed));
    };
    add(&pool.limits, "limits", "the provider");
    add(&pool.key_limits, "key_limits", "each key");
    for budget in &pool.budgets {
        add(&budget.limits, &format!("budget {:?}: limits", budget.name), &format!("budget {}", budget.name));
    }
    for (n, (route, spec)) in provider.routes.iter().zip(&pool.routes).enumerate() {
        let name = route_name(route);
        add(&spec.limits, &format!("route[{n}].limits"), &name);
        add(&spec.key_limits, &format!("route[{n}].key_limits"), &format!("each key, {name}"));
    }
    all
}

impl Placed<'_> {
    fn expected(&self, calls: &Calls) -> Expected {
        let (promise, condition) = self.promise(calls.safety);
        Expected {
            place: self.place.clone(),
            limit: in_words(self.spec),
            of: self.of.clone(),
            utilisation: (self.allows(calls).utilisation() * 1e4).round() / 1e4,
            promise,
            condition: condition.map(str::to_owned),
        }
    }

    fn allows(&self, calls: &Calls) -> Allows {
        Allows::of(self.spec, calls)
    }

    fn promise(&self, safety: Safety) -> (Kept, Option<&'static str>) {
        if matches!(self.spec.measure, Measure::Concurrency(_)) {
            return (Kept::Promised, None);
        }
        match (safety, self.spec.algorithm) {
            (Safety::Balanced, _) => {
                (Kept::Likely, Some("safety is balanced: a slot is freed after the spread of delays seen so far"))
            }
            (Safety::Headroom(_), _) => (
                Kept::Likely,
                Some("safety is headroom: a slot is freed after the spread of delays seen so far, at a lower rate"),
            ),
            (Safety::Strict, Algorithm::Smooth) => (
                Kept::Conditional,
                Some(
                    "smooth: a server that allows no burst at all may refuse two calls that the network brings together",
                ),
            ),
            (Safety::Strict, Algorithm::FixedWindow) => {
                (Kept::Promised, Some("fixed_window: paced as a sliding window until answers tell where it ends"))
            }
            (Safety::Strict, Algorithm::SlidingWindow | Algorithm::TokenBucket | Algorithm::Quota(_)) => {
                (Kept::Promised, None)
            }
        }
    }

    fn warnings(&self, provider: &Provider, calls: &Calls) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let reached = self.allows(calls).utilisation();
        if reached < REACHED_MIN {
            warnings.push(self.too_little(reached, calls));
        }
        let within = provider.pool.counted_within;
        let timed = !matches!(self.spec.measure, Measure::Concurrency(_));
        if timed && !matches!(self.spec.algorithm, Algorithm::Quota(_)) && within > self.spec.per * LOST_PERIODS_MAX {
            let (within, per) = (HumanDuration(within), HumanDuration(self.spec.per));
            let message = format!(
                "a call that gets no answer counts for {within} beyond its period of {per}, since the provider may count \
                 it until then: set counted_within to how late it really can"
            );
            warnings.push(self.warning("counted_late", message));
        }
        warnings
    }

    fn too_little(&self, reached: f64, calls: &Calls) -> Warning {
        let share = format!("{:.0} % of it can be used when answers take {}", reached * 100.0, seconds(calls.answer));
        let rate = self.allows(calls).declared;
        let burst = (1.0 + rate * calls.answer.min(calls.counted_within)).ceil();
        match self.spec.algorithm {
            Algorithm::TokenBucket => {
                let what = if self.spec.burst.is_none() { "without a burst" } else { "with a burst this small" };
                self.warning("small_burst", format!("{what}, {share}; a burst of {burst} would reach all of it, if the provider allows it"))
            }
            Algorithm::Smooth if matches!(self.spec.measure, Measure::Requests(n) if n <= 5) => self.warning(
                "smooth_of_few",
                format!("{share}: smooth makes one call a period fewer, for servers nobody knows; name the algorithm if it is known"),
            ),
            _ => self.warning(
                "slow_answers",
                format!("{share}: each call holds its slot until its answer and one period more; counted_within frees it sooner, if the provider counts calls when they arrive"),
            ),
        }
    }

    fn warning(&self, code: &'static str, message: String) -> Warning {
        Warning { code, place: self.place.clone(), message }
    }
}

fn of_provider(provider: &Provider) -> Vec<Warning> {
    let pool = &provider.pool;
    let mut warnings = Vec::new();
    let mut warn =
        |code, place: &str, message: String| warnings.push(Warning { code, place: place.to_owned(), message });
    if provider.is_keyless() {
        warn("no_key", "", "it has no key: calls are made without a credential".to_owned());
    }
    let everywhere =
        pool.limits.len() + pool.key_limits.len() + pool.budgets.iter().map(|b| b.limits.len()).sum::<usize>();
    if everywhere == 0 {
        let which =
            if pool.routes.is_empty() { "no limit is declared" } else { "calls that match no route have no limit" };
        warn(
            "no_limit",
            "",
            format!("{which}: it is probed, and finds limits by exceeding them; declare what the provider documents"),
        );
    }
    for (n, budget) in pool.budgets.iter().enumerate().filter(|(_, budget)| budget.limits.is_empty()) {
        let keys = pool.keys.iter().filter(|key| key.budget == Some(n)).count();
        if everywhere > 0 && pool.limits.is_empty() && pool.key_limits.is_empty() {
            let place = format!("budget {:?}", budget.name);
            warn("no_limit", &place, format!("its {keys} keys have no limit: they are used as fast as answers come"));
        }
    }
    if let Safety::Headroom(share) = pool.safety
        && share == 0.0
    {
        warn("no_headroom", "safety", "a headroom of 0% is the same as balanced".to_owned());
    }
    let local = provider
        .base_url
        .host_str()
        .is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]");
    if provider.base_url.scheme() == "http" && !local && !provider.is_keyless() {
        warn("plain_http", "base_url", "its keys can be read on the way: use https".to_owned());
    }
    warnings
}

/// Lanes whose turn hardly ever comes while the others wait.
fn of_lanes(provider: &Provider) -> Vec<Warning> {
    let lanes = &provider.pool.lanes;
    let sum: u64 = lanes.iter().map(|lane| u64::from(lane.weight)).sum();
    let starved = lanes.iter().filter(|lane| f64::from(lane.weight) < LANE_SHARE_MIN * sum as f64);
    starved
        .map(|lane| Warning {
            code: "starved_lane",
            place: format!("lanes.{}", lane.name),
            message: format!(
                "gets {} of {sum} turns while all lanes wait: choose weights that are closer",
                lane.weight
            ),
        })
        .collect()
}

/// Open calls that hold back more than the limits by time.
fn of_concurrency(provider: &Provider, work: &Work) -> Option<Warning> {
    let ceiling = Ceiling::new(provider, work);
    let binding = ceiling.binding();
    let binds = ceiling.rules().find(|rule| binding.iter().any(|binding| binding.place == rule.place))?;
    let timed = ceiling.rules().any(|rule| rule.allows.period > 0.0);
    if binds.allows.period > 0.0 || !timed || binds.level != Level::Shared {
        return None;
    }
    let without = ceiling.without(&binds.place);
    let answer = seconds(work.mean_latency().as_secs_f64());
    Some(Warning {
        code: "few_open_calls",
        place: binds.place.clone(),
        message: format!(
            "{} calls/s fit into {} when answers take {answer}; the other limits allow {}",
            rate(binds.allows.declared),
            binds.limit,
            rate(without.declared()),
        ),
    })
}

fn rate(per_second: f64) -> String {
    if per_second >= 10.0 { format!("{per_second:.0}") } else { format!("{per_second:.2}") }
}

fn seconds(seconds: f64) -> String {
    HumanDuration(Duration::from_millis((seconds * 1e3).round() as u64)).to_string()
}
