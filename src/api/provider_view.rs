//! How providers, budgets and keys look from outside. Never a secret: none of it ever comes here.

use std::collections::{BTreeMap, HashMap};

use schemars::JsonSchema;
use serde::Serialize;

use crate::clock::{WallMs, rfc3339};
use crate::job::ProviderRules;
use crate::store::{BudgetReport, KeyReport, LeaseView, LimitReport, Order, Report, ReportView, Subject};

/// What is known of a provider at one time.
pub(super) struct Known<'a> {
    pub name: &'a str,
    pub rules: &'a ProviderRules,
    /// By lane; `None`: not counted in time.
    pub queue: Option<BTreeMap<String, QueueJson>>,
    pub orders: Vec<Order>,
    pub reports: Vec<ReportView>,
    pub leases: Vec<LeaseView>,
}

/// What an operator ordered.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Order")]
pub struct OrderJson {
    /// About that provider.
    provider: String,
    /// About that key of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// About that budget of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    /// `paused`, `resumed`, `disabled` or `enabled`.
    #[schemars(extend("enum" = ["paused", "resumed", "disabled", "enabled"]))]
    pub state: &'static str,
    /// Who gave it: the name of a token.
    by: String,
    /// When.
    #[schemars(extend("format" = "date-time"))]
    at: String,
}

impl OrderJson {
    pub(super) fn of(order: &Order) -> Self {
        let state = match (&order.subject, order.held) {
            (Subject::Key(_), true) => "disabled",
            (Subject::Key(_), false) => "enabled",
            (_, true) => "paused",
            (_, false) => "resumed",
        };
        let (key, budget) = match &order.subject {
            Subject::Provider => (None, None),
            Subject::Key(label) => (Some(label.clone()), None),
            Subject::Budget(name) => (None, Some(name.clone())),
        };
        Self { provider: order.provider.clone(), key, budget, state, by: order.by.clone(), at: rfc3339(order.at_ms) }
    }
}

/// Jobs of one lane that have not ended.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
#[schemars(rename = "LaneQueue")]
pub struct QueueJson {
    /// The lane.
    lane: String,
    /// Held only by pacing.
    queued: i64,
    /// Not before their next attempt.
    waiting: i64,
    /// Being sent.
    running: i64,
    /// Of these, in the hands of dispatchers and waiting for a permit.
    permits_waiting: u64,
}

impl QueueJson {
    pub(super) fn count(&mut self, state: &str, jobs: i64) {
        match state {
            "queued" => self.queued += jobs,
            "waiting" => self.waiting += jobs,
            "running" => self.running += jobs,
            _ => {}
        }
    }
}

/// A provider as it stands.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Provider")]
pub struct ProviderJson {
    /// As it is configured.
    name: String,
    /// `open` or `paused` (by an operator).
    #[schemars(extend("enum" = ["open", "paused"]))]
    state: &'static str,
    /// Who paused it.
    paused_by: Option<String>,
    /// When.
    #[schemars(extend("format" = "date-time"))]
    paused_at: Option<String>,
    /// By lane; `null` where the store could not count in time.
    queue: Option<Vec<QueueJson>>,
    /// What its limits allow all keys together; null: no limit in time, or nobody told.
    allowed_per_second: Option<f64>,
    /// Calls of the last seconds.
    achieved_per_second: f64,
    /// Achieved by allowed.
    utilisation: Option<f64>,
    /// Calls that are under way.
    open_calls: u64,
    /// `closed`, `half_open` or `open`.
    breaker: String,
    /// Calls that were refused although the pacing allowed them.
    pacing_errors: u64,
    /// How many keys are in which state; `unknown`: no dispatcher told.
    keys: BTreeMap<String, u64>,
    /// With the keys that share each.
    budgets: Vec<BudgetJson>,
    /// Keys that are not listed: there are too many.
    keys_left_out: u64,
    /// Who paces which part of it.
    leases: Vec<LeaseJson>,
    /// Which dispatchers told, and how long ago.
    reports: Vec<ToldJson>,
}

/// A budget as it stands.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Budget")]
pub struct BudgetJson {
    /// Declared, or the label of its only key.
    name: String,
    /// Several keys share it by the configuration.
    declared: bool,
    /// `open`, `paused`, `parked`, or `unknown` where no dispatcher told.
    state: String,
    /// Until then it is paused or parked.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
    /// What its limits allow; null: no limit in time, or nobody told.
    allowed_per_second: Option<f64>,
    /// Calls of the last seconds.
    achieved_per_second: f64,
    /// Achieved by allowed.
    utilisation: Option<f64>,
    /// When the next call may go.
    #[schemars(extend("format" = "date-time"))]
    next_slot_at: Option<String>,
    /// Calls that were refused although the pacing allowed them.
    pacing_errors: u64,
    /// The kind of header fields by which the provider tells its limits.
    signals: Option<String>,
    /// How far it is with limits that nobody declared; `null`: they are declared.
    probing: Option<String>,
    /// The rate that probing found.
    found_per_second: Option<f64>,
    /// How much of each is taken.
    limits: Vec<LimitJson>,
    /// The keys that share it.
    keys: Vec<KeyJson>,
}

/// A key as it stands.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Key")]
pub struct KeyJson {
    /// As it is configured; the secret is never shown.
    pub(super) label: String,
    /// `open`, `paused`, `refused`, `probing`, `disabled`, `missing` or `removed` where its secret is not there, or
    /// `unknown` where no dispatcher told.
    pub(super) state: String,
    /// Until then it is in that state.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
    /// Who disabled it, and when.
    disabled_by: Option<String>,
    /// When it was disabled.
    #[schemars(extend("format" = "date-time"))]
    disabled_at: Option<String>,
    /// How much of each is taken.
    limits: Vec<LimitJson>,
}

/// How much of a limit is taken.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Limit")]
pub struct LimitJson {
    /// `requests`, `cost` or `concurrency`.
    unit: String,
    /// As declared or told.
    amount: u64,
    /// Its period.
    per_ms: Option<u64>,
    /// Taken now.
    used: u64,
    /// That may be taken now.
    most: u64,
}

/// Who may spend a pacing group.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Lease")]
pub struct LeaseJson {
    /// Empty: all of the provider.
    group: String,
    /// The process that holds it.
    owner: Option<String>,
    /// Counts how often it was taken.
    epoch: i64,
    /// It has not run out.
    held: bool,
    /// Until it runs out.
    expires_in_ms: u64,
}

/// Who told of it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Told")]
pub struct ToldJson {
    /// A dispatcher.
    owner: String,
    /// How long ago it told.
    age_ms: u64,
}

impl ProviderJson {
    pub(super) fn of(known: Known<'_>) -> Self {
        let Known { name, rules, queue, orders, reports, leases } = known;
        let paused = orders.iter().find(|order| order.subject == Subject::Provider && order.held);
        let disabled: HashMap<&str, &Order> = orders
            .iter()
            .filter(|order| order.held)
            .filter_map(|order| match &order.subject {
                Subject::Key(label) => Some((label.as_str(), order)),
                _ => None,
            })
            .collect();
        let all = merge(&reports, &leases);
        let queue = queue.map(|queue| self::queue(rules, queue, &all.permits_waiting));
        let (budgets, left_out) = budgets(rules, all.budgets, &disabled);
        let mut keys: BTreeMap<String, u64> = BTreeMap::new();
        for key in budgets.iter().flat_map(|budget| &budget.keys) {
            *keys.entry(key.state.clone()).or_default() += 1;
        }
        Self {
            name: name.to_owned(),
            state: if paused.is_some() { "paused" } else { "open" },
            paused_by: paused.map(|order| order.by.clone()),
            paused_at: paused.map(|order| rfc3339(order.at_ms)),
            queue,
            utilisation: share(all.achieved_per_second, all.allowed_per_second),
            allowed_per_second: all.allowed_per_second,
            achieved_per_second: all.achieved_per_second,
            open_calls: all.open,
            breaker: all.breaker.unwrap_or_else(|| "closed".to_owned()),
            pacing_errors: budgets.iter().map(|budget| budget.pacing_errors).sum(),
            keys,
            budgets,
            keys_left_out: left_out,
            leases: leases.into_iter().map(LeaseJson::from).collect(),
            reports: reports
                .iter()
                .map(|told| ToldJson { owner: told.owner.clone(), age_ms: millis(told.age) })
                .collect(),
        }
    }
}

impl ProviderJson {
    /// Its keys, each with the name of its budget.
    pub(super) fn into_keys(self) -> impl Iterator<Item = (String, KeyJson)> {
        self.budgets.into_iter().flat_map(|budget| {
            let name = budget.name;
            budget.keys.into_iter().map(move |key| (name.clone(), key))
        })
    }
}

/// What several dispatchers told of their parts, as one. Of a budget that two of them tell, the one counts whose
/// report is younger: it was handed over.
fn merge(reports: &[ReportView], leases: &[LeaseView]) -> Report {
    let holds = |owner: &str| leases.iter().any(|lease| lease.owner.as_deref() == Some(owner));
    let mut told: Vec<&ReportView> = reports.iter().filter(|told| holds(&told.owner)).collect();
    told.sort_by_key(|told| told.age);
    let mut all = Report::default();
    let mut rates: Vec<Option<f64>> = Vec::new();
    let mut known = std::collections::HashSet::new();
    for report in told.iter().map(|told| &told.report) {
        rates.push(report.allowed_per_second);
        all.achieved_per_second += report.achieved_per_second;
        all.open += report.open;
        // Each dispatcher has its own: one that is open is worth telling.
        all.breaker = all.breaker.take().max(report.breaker.clone());
        for (lane, jobs) in &report.permits_waiting {
            match all.permits_waiting.iter_mut().find(|(known, _)| known == lane) {
                Some((_, sum)) => *sum += jobs,
                None => all.permits_waiting.push((lane.clone(), *jobs)),
            }
        }
        all.budgets.extend(report.budgets.iter().filter(|budget| known.insert(budget.name.as_str())).cloned());
    }
    all.allowed_per_second = if rates.is_empty() { None } else { rates.into_iter().sum() };
    all
}

fn queue(
    rules: &ProviderRules,
    mut counted: BTreeMap<String, QueueJson>,
    permits_waiting: &[(String, u64)],
) -> Vec<QueueJson> {
    for lane in rules.lanes.iter() {
        counted.entry(lane.clone()).or_default();
    }
    let waits = |lane: &str| permits_waiting.iter().find(|(known, _)| known == lane).map_or(0, |(_, jobs)| *jobs);
    counted.into_iter().map(|(lane, queue)| QueueJson { permits_waiting: waits(&lane), lane, ..queue }).collect()
}

/// Every budget that was told, then those that are configured and that nobody told of; and how many keys are left out.
fn budgets(rules: &ProviderRules, told: Vec<BudgetReport>, disabled: &HashMap<&str, &Order>) -> (Vec<BudgetJson>, u64) {
    let configured = |key: &KeyReport| rules.keys.contains_key(&key.label);
    let mut listed: std::collections::HashSet<String> = std::collections::HashSet::new();
    let mut budgets: Vec<BudgetJson> = Vec::new();
    let mut left = Report::KEYS_MAX;
    for budget in told {
        let keys: Vec<KeyReport> = budget.keys.iter().filter(|key| configured(key)).take(left).cloned().collect();
        left -= keys.len();
        listed.extend(keys.iter().map(|key| key.label.clone()));
        if !keys.is_empty() {
            budgets.push(BudgetJson::of(budget, keys, disabled));
        }
    }
    for (label, declared) in rules.keys.iter() {
        if left == 0 {
            break;
        }
        if listed.contains(label) {
            continue;
        }
        left -= 1;
        listed.insert(label.clone());
        let key = KeyReport { label: label.clone(), state: "unknown".to_owned(), ..KeyReport::default() };
        let name = declared.as_ref().unwrap_or(label);
        match budgets.iter_mut().find(|budget| budget.name == *name) {
            Some(budget) => budget.keys.push(KeyJson::of(key, disabled)),
            None => {
                let state = "unknown".to_owned();
                let (name, declared) = (name.clone(), declared.is_some());
                let budget = BudgetReport { name, declared, state, ..BudgetReport::default() };
                budgets.push(BudgetJson::of(budget, vec![key], disabled));
            }
        }
    }
    let left_out = rules.keys.len().saturating_sub(listed.len());
    (budgets, u64::try_from(left_out).unwrap_or(u64::MAX))
}

impl BudgetJson {
    fn of(budget: BudgetReport, keys: Vec<KeyReport>, disabled: &HashMap<&str, &Order>) -> Self {
        Self {
            utilisation: share(budget.achieved_per_second, budget.allowed_per_second),
            name: budget.name,
            declared: budget.declared,
            state: budget.state,
            until: at(budget.until_ms),
            allowed_per_second: budget.allowed_per_second,
            achieved_per_second: budget.achieved_per_second,
            next_slot_at: at(budget.next_slot_ms),
            pacing_errors: budget.pacing_errors,
            signals: budget.signals,
            probing: budget.probing,
            found_per_second: budget.found_per_second,
            limits: budget.limits.into_iter().map(LimitJson::from).collect(),
            keys: keys.into_iter().map(|key| KeyJson::of(key, disabled)).collect(),
        }
    }
}

impl KeyJson {
    /// An order that no dispatcher has told of yet is shown all the same; one that was taken back is not.
    fn of(key: KeyReport, disabled: &HashMap<&str, &Order>) -> Self {
        let order = disabled.get(key.label.as_str());
        let state = match order {
            Some(_) => "disabled".to_owned(),
            None if key.state == "disabled" => "open".to_owned(),
            None => key.state,
        };
        Self {
            label: key.label,
            state,
            until: at(key.until_ms.filter(|_| order.is_none())),
            disabled_by: order.map(|order| order.by.clone()),
            disabled_at: order.map(|order| rfc3339(order.at_ms)),
            limits: key.limits.into_iter().map(LimitJson::from).collect(),
        }
    }
}

impl From<LimitReport> for LimitJson {
    fn from(limit: LimitReport) -> Self {
        let LimitReport { unit, amount, per_ms, used, most } = limit;
        Self { unit, amount, per_ms, used, most }
    }
}

impl From<LeaseView> for LeaseJson {
    fn from(lease: LeaseView) -> Self {
        let held = lease.owner.is_some() && !lease.expires_in.is_zero();
        Self {
            group: lease.name,
            owner: lease.owner,
            epoch: lease.epoch,
            held,
            expires_in_ms: millis(lease.expires_in),
        }
    }
}

/// How much of what is allowed is used; `None` where time does not limit it, or nothing is allowed.
fn share(achieved: f64, allowed: Option<f64>) -> Option<f64> {
    allowed.filter(|allowed| *allowed > 0.0).map(|allowed| achieved / allowed)
}

fn at(ms: Option<WallMs>) -> Option<String> {
    ms.map(rfc3339)
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
