//! All limits of a provider together, by arithmetic: how much they let through at most, and which of them binds.
//!
//! A call needs room at its key, at its key's budget, at its routes and at the provider. So what may leave is the
//! smaller of what the provider allows and the sum over budgets of what each of them and its keys allow.

use std::time::Duration;

use serde::Serialize;

use super::allows::{Allows, Calls, in_words};
use super::work::Work;
use crate::config::{Provider, Route};
use crate::dispatch::core::OPEN_MAX;
use crate::pace::LimitSpec;

/// Limits that are looked at one by one, at most.
const RULES_MAX: usize = 500;
/// The place of what this program does not exceed by itself.
const OWN: &str = "paceline";
/// Longer than any plan, in seconds: a thousand years.
const FOREVER: f64 = 1_000.0 * 366.0 * 86_400.0;

/// Whose calls a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// All of this work.
    Shared,
    /// Those of a declared budget.
    Budget(usize),
    /// Those of each key.
    Key,
}

/// A limit that holds for the work, and where it stands.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Whose calls it counts.
    pub level: Level,
    /// As errors of the configuration name it: `budget "org-1": limits[0]`.
    pub place: String,
    /// `600 requests per 1m (sliding_window)`.
    pub limit: String,
    /// Of what: `each key`, `budget org-1`, `the provider`.
    pub of: String,
    /// What it lets through of this work.
    pub allows: Allows,
}

/// A limit that binds, and how many keys it binds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// Its place in the configuration.
    pub place: String,
    /// In words.
    pub limit: String,
    /// Of what.
    pub of: String,
    /// Keys that it holds back.
    pub keys: u64,
    /// More keys do not help against it.
    #[serde(skip)]
    pub is_shared: bool,
}

/// Keys that are limited alike.
#[derive(Debug, Clone)]
struct Group {
    /// Of all of them together; none for keys that are their own budgets.
    rules: Vec<Rule>,
    keys: u64,
}

/// The limits that hold for some work.
#[derive(Debug, Clone)]
pub struct Ceiling {
    shared: Vec<Rule>,
    of_key: Vec<Rule>,
    /// A group for each declared budget, and last that of the keys which are their own budgets.
    groups: Vec<Group>,
}

impl Ceiling {
    /// Of this work at this provider.
    pub fn new(provider: &Provider, work: &Work) -> Self {
        let pool = &provider.pool;
        let calls = Calls::new(pool, work.mean_latency(), work.cost);
        let rules = |level: Level, specs: &[LimitSpec], place: &str, of: &str| -> Vec<Rule> {
            let rule = |(n, spec): (usize, &LimitSpec)| Rule {
                level,
                place: format!("{place}[{n}]"),
                limit: in_words(spec),
                of: of.to_owned(),
                allows: Allows::of(spec, &calls),
            };
            specs.iter().enumerate().map(rule).collect()
        };
        let mut shared = rules(Level::Shared, &pool.limits, "limits", "the provider");
        let mut of_key = rules(Level::Key, &pool.key_limits, "key_limits", "each key");
        for n in provider.routes_of(&work.method, &work.path) {
            let name = route_name(&provider.routes[n]);
            shared.extend(rules(Level::Shared, &pool.routes[n].limits, &format!("route[{n}].limits"), &name));
            let of = format!("each key, {name}");
            of_key.extend(rules(Level::Key, &pool.routes[n].key_limits, &format!("route[{n}].key_limits"), &of));
        }
        shared.push(own_rule(&calls));
        let budget = |(n, budget): (usize, &crate::pace::BudgetSpec)| Group {
            rules: rules(
                Level::Budget(n),
                &budget.limits,
                &format!("budget {:?}: limits", budget.name),
                &format!("budget {}", budget.name),
            ),
            keys: pool.keys.iter().filter(|key| key.budget == Some(n)).count() as u64,
        };
        let mut groups: Vec<Group> = pool.budgets.iter().enumerate().map(budget).collect();
        let single = pool.keys.iter().filter(|key| key.budget.is_none()).count() as u64;
        groups.push(Group { rules: Vec::new(), keys: single });
        Self { shared, of_key, groups }
    }

    /// The same with so many more keys, each with a quota of its own.
    #[must_use]
    pub fn with_keys(&self, more: u64) -> Self {
        let mut ceiling = self.clone();
        if let Some(single) = ceiling.groups.last_mut() {
            single.keys += more;
        }
        ceiling
    }

    /// Every limit that the configuration declares for this work.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        let budgets = self.groups.iter().flat_map(|group| &group.rules);
        self.shared.iter().filter(|rule| rule.place != OWN).chain(budgets).chain(&self.of_key)
    }

    /// Whether no limit at all is declared for this work: nobody knows how fast it may go.
    pub fn is_unknown(&self) -> bool {
        self.rules().next().is_none()
    }

    /// Calls a second in the long run, as the limits are declared; infinite where none is.
    pub fn declared(&self) -> f64 {
        self.without(OWN).cut(&|allows| allows.declared).0
    }

    /// Calls a second in the long run, as is expected.
    pub fn expected(&self) -> f64 {
        self.cut(&|allows| allows.expected).0
    }

    /// Calls that may have left after so many seconds.
    pub fn by(&self, seconds: f64) -> f64 {
        self.cut(&|allows| allows.by(seconds)).0
    }

    /// Seconds until so many calls have left.
    pub fn seconds_for(&self, calls: f64) -> f64 {
        self.time_until(calls, Allows::by)
    }

    /// The least time by which so many calls may have left, by some measure of what a limit lets through by then.
    fn time_until(&self, calls: f64, measure: fn(&Allows, f64) -> f64) -> f64 {
        let by = |seconds: f64| self.cut(&|allows| measure(allows, seconds)).0;
        if by(0.0) >= calls {
            return 0.0;
        }
        let (mut early, mut late) = (0.0, 1.0);
        while by(late) < calls && late < FOREVER {
            (early, late) = (late, late * 2.0);
        }
        for _ in 0..100 {
            let middle = early + (late - early) / 2.0;
            if by(middle) < calls { early = middle } else { late = middle }
        }
        late
    }

    /// What holds back the last of so many calls; nothing where all may leave at once.
    pub fn binding_for(&self, calls: f64) -> Vec<Binding> {
        let seconds = self.seconds_for(calls);
        if seconds == 0.0 {
            return Vec::new();
        }
        let just_before = seconds * (1.0 - 1e-9);
        self.cut(&|allows| allows.by(just_before)).1
    }

    /// What holds back calls in the long run.
    pub fn binding(&self) -> Vec<Binding> {
        self.cut(&|allows| allows.expected).1
    }

    /// Whether the time for so many calls stays the same without this limit. Steps are smoothed out: what comes at once
    /// at the end of a window hides whatever holds back the calls within it.
    fn is_idle(&self, place: &str, calls: f64) -> bool {
        let time = |ceiling: &Self| ceiling.time_until(calls, Allows::by_evenly);
        time(&self.without(place)) >= time(self) * 0.999
    }

    /// Only the limits that matter for so many calls: one that is as good as never reached says nothing of their rate.
    #[must_use]
    pub fn relevant(&self, calls: f64) -> Self {
        let places: Vec<String> = self.rules().map(|rule| rule.place.clone()).collect();
        let one_by_one = |ceiling: Self, place: &String| {
            if ceiling.is_idle(place, calls) { ceiling.without(place) } else { ceiling }
        };
        // The last ones are the narrowest: of two that say the same, the one of each key stays.
        if places.len() > RULES_MAX { self.clone() } else { places.iter().fold(self.clone(), one_by_one) }
    }

    /// All but this limit.
    #[must_use]
    pub fn without(&self, place: &str) -> Self {
        let mut without = self.clone();
        let lists = without.groups.iter_mut().map(|group| &mut group.rules);
        for rules in lists.chain([&mut without.shared, &mut without.of_key]) {
            rules.retain(|rule| rule.place != place);
        }
        without
    }

    /// The longest period of the limits of that name, in seconds.
    pub fn period_of(&self, binds: &[Binding]) -> f64 {
        let named = self.rules().filter(|rule| binds.iter().any(|binding| binding.place == rule.place));
        named.map(|rule| rule.allows.period).fold(0.0, f64::max)
    }

    /// What may pass by some measure of a limit, and which limits are the smallest there.
    fn cut(&self, measure: &dyn Fn(&Allows) -> f64) -> (f64, Vec<Binding>) {
        let least = |rules: &[Rule]| least(rules, measure).map_or(f64::INFINITY, |(_, value)| value);
        let of_keys = |group: &Group| if group.keys == 0 { 0.0 } else { group.keys as f64 * least(&self.of_key) };
        let of_group = |group: &Group| of_keys(group).min(least(&group.rules));
        let sum: f64 = self.groups.iter().map(of_group).sum();
        let all_keys = self.groups.iter().map(|group| group.keys).sum();
        let shared = self::least(&self.shared, measure);
        if let Some((rule, value)) = shared.filter(|(_, value)| *value <= sum) {
            return (value, vec![rule.binding(all_keys)]);
        }
        let mut binds: Vec<Binding> = Vec::new();
        for group in self.groups.iter().filter(|group| group.keys > 0) {
            let rules = if least(&group.rules) < of_keys(group) { &group.rules } else { &self.of_key };
            let Some((rule, _)) = self::least(rules, measure) else { continue };
            match binds.iter_mut().find(|binding| binding.place == rule.place) {
                Some(binding) => binding.keys += group.keys,
                None => binds.push(rule.binding(group.keys)),
            }
        }
        (sum, binds)
    }
}

impl Rule {
    fn binding(&self, keys: u64) -> Binding {
        Binding {
            is_shared: self.level == Level::Shared,
            place: self.place.clone(),
            limit: self.limit.clone(),
            of: self.of.clone(),
            keys,
        }
    }
}

fn least<'a>(rules: &'a [Rule], measure: &dyn Fn(&Allows) -> f64) -> Option<(&'a Rule, f64)> {
    rules.iter().map(|rule| (rule, measure(&rule.allows))).min_by(|a, b| a.1.total_cmp(&b.1))
}

/// What holds whatever the provider allows.
fn own_rule(calls: &Calls) -> Rule {
    Rule {
        level: Level::Shared,
        place: OWN.to_owned(),
        limit: format!("{OPEN_MAX} calls open at once to one provider"),
        of: "this program".to_owned(),
        allows: Allows::open(OPEN_MAX as f64, calls),
    }
}

pub(super) fn route_name(route: &Route) -> String {
    route.method.as_ref().map_or_else(|| route.path.clone(), |method| format!("{method} {}", route.path))
}

/// Seconds as a duration; never where they are too many.
pub(super) fn span(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}
