//! How providers, budgets and keys look from outside. Never a secret: none of it ever comes here.

use std::collections::{BTreeMap, HashMap};

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
#[derive(Debug, Clone, Serialize)]
pub struct OrderJson {
    provider: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<String>,
    /// `paused`, `resumed`, `disabled` or `enabled`.
    pub state: &'static str,
    by: String,
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
#[derive(Debug, Clone, Default, Serialize)]
pub struct QueueJson {
    lane: String,
    queued: i64,
    waiting: i64,
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
#[derive(Debug, Clone, Serialize)]
pub struct ProviderJson {
    name: String,
    /// `open` or `paused` (by an operator).
    state: &'static str,
    paused_by: Option<String>,
    paused_at: Option<String>,
    /// By lane; `null` where the store could not count in time.
    queue: Option<Vec<QueueJson>>,
    allowed_per_second: Option<f64>,
    achieved_per_second: f64,
    utilisation: Option<f64>,
    open_calls: u64,
    breaker: String,
    pacing_errors: u64,
    /// How many keys are in which state; `unknown`: no dispatcher told.
    keys: BTreeMap<String, u64>,
    budgets: Vec<BudgetJson>,
    /// Keys that are not listed: there are too many.
    keys_left_out: u64,
    leases: Vec<LeaseJson>,
    /// Which dispatchers told, and how long ago.
    reports: Vec<ToldJson>,
}

/// A budget as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct BudgetJson {
    name: String,
    declared: bool,
    /// `open`, `paused`, `parked`, or `unknown` where no dispatcher told.
    state: String,
    until: Option<String>,
    allowed_per_second: Option<f64>,
    achieved_per_second: f64,
    utilisation: Option<f64>,
    next_slot_at: Option<String>,
    pacing_errors: u64,
    signals: Option<String>,
    /// How far it is with limits that nobody declared; `null`: they are declared.
    probing: Option<String>,
    found_per_second: Option<f64>,
    limits: Vec<LimitJson>,
    keys: Vec<KeyJson>,
}

/// A key as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct KeyJson {
    pub(super) label: String,
    /// `open`, `paused`, `refused`, `probing`, `disabled`, `missing` where its secret is not there, or `unknown`
    /// where no dispatcher told.
    pub(super) state: String,
    until: Option<String>,
    /// Who disabled it, and when.
    disabled_by: Option<String>,
    disabled_at: Option<String>,
    limits: Vec<LimitJson>,
}

/// How much of a limit is taken.
#[derive(Debug, Clone, Serialize)]
pub struct LimitJson {
    unit: String,
    amount: u64,
    per_ms: Option<u64>,
    used: u64,
    most: u64,
}

/// Who may spend a pacing group.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseJson {
    /// Empty: all of the provider.
    group: String,
    owner: Option<String>,
    epoch: i64,
    held: bool,
    expires_in_ms: u64,
}

/// Who told of it.
#[derive(Debug, Clone, Serialize)]
pub struct ToldJson {
    owner: String,
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
