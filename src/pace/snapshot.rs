//! The state of a pool for metrics and for people.

use super::Time;
use super::ask::KeyId;
use super::bank::Standing;
use super::group::Hold;
use super::limit::{Counts, Limit};
use super::pool::Pool;
use super::probe::Probe;
use super::search::Phase;
use super::signal::{Family, Unit};
use std::time::Duration;

/// How much of a limit is taken.
#[derive(Clone, Debug, PartialEq)]
pub struct LimitUse {
    /// What it counts.
    pub unit: Unit,
    /// The amount per period as declared.
    pub declared: u64,
    /// The period; zero for concurrency.
    pub per: Duration,
    /// Taken now, foreign use included.
    pub used: u64,
    /// The most that can be taken now: the window's calls, the bucket's depth, the open calls.
    pub limit: u64,
    /// Of it, what others are believed to have used.
    pub foreign: u64,
    /// When there is room for one more; `Time::MAX` if only an answer can tell.
    pub next_slot: Time,
}

/// Whether a key can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// In use.
    Open,
    /// Not before then.
    Paused(Time),
    /// Out of use by an operator's word.
    Held,
    /// Out of use, since its secret is not here.
    Absent,
    /// Set aside, since the provider refused it; `probe_at` says when a call may try it (`None`: none will).
    Disabled {
        /// The time of the next probe.
        probe_at: Option<Time>,
    },
    /// A call is trying it.
    Probing,
}

/// Whether a budget can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetState {
    /// In use.
    Open,
    /// Not before then.
    Paused(Time),
    /// Its quota is exhausted, until then or until an operator resumes it.
    Parked(Option<Time>),
}

/// How far a budget is whose limits nobody declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeState {
    /// Nothing was refused yet: open calls are bounded, more with each answer.
    SlowStart,
    /// Answers tell limits: those hold.
    Told,
    /// Calls are refused: one at a time tries.
    Refused,
    /// A rate was found; smaller ones are used first.
    Found,
    /// At the rate that was found.
    Settled,
    /// Trying, in small steps, whether more is allowed by now.
    ProbingAgain,
}

impl ProbeState {
    /// As people and metrics are told.
    pub fn as_str(self) -> &'static str {
        match self {
            ProbeState::SlowStart => "slow_start",
            ProbeState::Told => "told",
            ProbeState::Refused => "refused",
            ProbeState::Found => "found",
            ProbeState::Settled => "settled",
            ProbeState::ProbingAgain => "probing_again",
        }
    }
}

/// What is known of limits that nobody declared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbeSnapshot {
    /// How far it is.
    pub state: ProbeState,
    /// Calls open at most; `None` once a rate is known.
    pub open_most: Option<u64>,
    /// Calls a second in use; `None` while no rate is known.
    pub per_second: Option<f64>,
    /// Calls a second that the provider is believed to allow.
    pub found_per_second: Option<f64>,
    /// When it was last refused.
    pub refused_at: Option<Time>,
    /// Calls refused since this process has the budget.
    pub refusals: u64,
    /// When more is tried.
    pub again_at: Option<Time>,
}

/// One key.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySnapshot {
    /// Its number.
    pub id: KeyId,
    /// Its label.
    pub label: String,
    /// Whether it can be used.
    pub state: KeyState,
    /// Its limits, those of routes not included.
    pub limits: Vec<LimitUse>,
}

/// One budget with its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSnapshot {
    /// Its name, or the label of its only key.
    pub name: String,
    /// Whether it was declared, and not made for a single key.
    pub declared: bool,
    /// Whether its pacing group is held here, and not by another dispatcher.
    pub here: bool,
    /// Whether it can be used.
    pub state: BudgetState,
    /// Limits of its keys together.
    pub limits: Vec<LimitUse>,
    /// Its keys.
    pub keys: Vec<KeySnapshot>,
    /// Calls a second that its limits and those of its usable keys allow; `None`: time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// Calls refused by the provider in spite of a permit.
    pub pacing_errors: u64,
    /// By how much of a period refusals have widened its guard, 0 to 1.
    pub guard: f64,
    /// Where no limit of provider, budget or key is declared: how the search for one stands.
    pub probing: Option<ProbeSnapshot>,
    /// Calls that somebody else made with its keys, at least, as far as answers showed since this process has the
    /// budget; and when that was last seen.
    pub foreign: u64,
    /// See `foreign`.
    pub foreign_at: Option<Time>,
    /// Calls that left with its keys since the pool was made.
    pub calls: u64,
    /// The dialect of the last response that said something about limits.
    pub signals: Option<Family>,
}

/// One provider.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSnapshot {
    /// When it was taken.
    pub at: Time,
    /// Out of use by an operator's word.
    pub held: bool,
    /// Paused until then.
    pub paused_until: Option<Time>,
    /// Limits of the provider as a whole.
    pub limits: Vec<LimitUse>,
    /// Its budgets.
    pub budgets: Vec<BudgetSnapshot>,
    /// Calls a second that all limits of what is held here allow together; `None`: time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// Calls refused by the provider in spite of a permit.
    pub pacing_errors: u64,
}

impl Pool {
    /// The state of everything at `now`. Costs a visit to every key.
    pub fn snapshot(&mut self, now: Time) -> PoolSnapshot {
        let within = self.bank.within;
        let limits = uses(&mut self.bank.limits, now, within);
        let budgets: Vec<_> = (0..self.bank.budgets.len()).map(|b| self.budget_snapshot(b, now)).collect();
        let rates = budgets.iter().filter(|budget| budget.here).map(|budget| budget.allowed_per_second);
        let of_budgets = rates.sum::<Option<f64>>();
        PoolSnapshot {
            at: now,
            held: self.bank.held,
            paused_until: Some(self.bank.paused_until).filter(|until| *until > now),
            limits,
            allowed_per_second: least(of_budgets, request_rate(&self.bank.limits)),
            pacing_errors: budgets.iter().map(|budget| budget.pacing_errors).sum(),
            budgets,
        }
    }

    fn budget_snapshot(&mut self, number: usize, now: Time) -> BudgetSnapshot {
        let within = self.bank.within;
        let keys: Vec<_> = self.bank.budgets[number].keys.clone();
        let keys: Vec<_> = keys.into_iter().map(|key| self.key_snapshot(key, now)).collect();
        let usable = keys.iter().filter(|key| matches!(key.state, KeyState::Open | KeyState::Paused(_)));
        let rates = usable.map(|key| request_rate(&self.bank.keys[key.id.0 as usize].limits));
        let of_keys = rates.sum::<Option<f64>>();
        let budget = &mut self.bank.budgets[number];
        let state = if budget.parked_until > now {
            BudgetState::Parked(Some(budget.parked_until).filter(|until| *until != Time::MAX))
        } else if budget.paused_until > now {
            BudgetState::Paused(budget.paused_until)
        } else {
            BudgetState::Open
        };
        let only = keys.first().map(|key| key.label.clone()).unwrap_or_default();
        let probing = budget.probe.as_deref().map(probe_snapshot);
        let found = probing.and_then(|probing| probing.per_second);
        BudgetSnapshot {
            name: budget.name.clone().unwrap_or(only),
            declared: budget.name.is_some(),
            here: self.bank.groups.hold_of(number) != Hold::Away,
            state,
            allowed_per_second: least(found, least(of_keys, request_rate(&budget.limits))),
            limits: uses(&mut budget.limits, now, within),
            keys,
            pacing_errors: budget.pacing_errors,
            guard: budget.widened as f64 / 1000.0,
            probing,
            foreign: budget.foreign.0,
            foreign_at: budget.foreign.1,
            calls: budget.calls,
            signals: budget.signals,
        }
    }

    fn key_snapshot(&mut self, number: usize, now: Time) -> KeySnapshot {
        let within = self.bank.within;
        let key = &mut self.bank.keys[number];
        let state = match key.standing {
            _ if key.held => KeyState::Held,
            _ if key.absent => KeyState::Absent,
            Standing::Disabled { probing: true, .. } => KeyState::Probing,
            Standing::Disabled { probe_at, .. } => {
                KeyState::Disabled { probe_at: Some(probe_at).filter(|at| *at != Time::MAX) }
            }
            Standing::Open if key.paused_until > now => KeyState::Paused(key.paused_until),
            Standing::Open => KeyState::Open,
        };
        KeySnapshot {
            id: KeyId(number as u32),
            label: key.label.clone(),
            state,
            limits: uses(&mut key.limits, now, within),
        }
    }
}

fn probe_snapshot(probe: &Probe) -> ProbeSnapshot {
    let state = match probe.search.phase() {
        _ if probe.is_refused() => ProbeState::Refused,
        Phase::SlowStart if probe.told.is_some() => ProbeState::Told,
        Phase::SlowStart => ProbeState::SlowStart,
        Phase::Found => ProbeState::Found,
        Phase::Settled => ProbeState::Settled,
        Phase::Again => ProbeState::ProbingAgain,
    };
    ProbeSnapshot {
        state,
        open_most: probe.open_most(),
        per_second: probe.search.rate(),
        found_per_second: probe.search.found(),
        refused_at: probe.refused_at,
        refusals: probe.refusals,
        again_at: probe.search.again_at(),
    }
}

fn uses(limits: &mut [Limit], now: Time, within: u64) -> Vec<LimitUse> {
    let one = |limit: &mut Limit| {
        let slot = limit.slot(1, now, within);
        let (used, cap) = limit.usage(now);
        LimitUse {
            unit: match limit.counts {
                Counts::Requests => Unit::Requests,
                Counts::Cost => Unit::Cost,
                Counts::Open => Unit::Concurrency,
            },
            declared: limit.declared,
            per: Duration::from_nanos(limit.per),
            used,
            limit: cap,
            foreign: limit.foreign_used(),
            next_slot: slot.at_most.max(now),
        }
    };
    limits.iter_mut().map(one).collect()
}

/// The slowest of these limits in calls a second.
fn request_rate(limits: &[Limit]) -> Option<f64> {
    let requests = limits.iter().filter(|limit| limit.counts == Counts::Requests);
    requests.filter_map(Limit::per_second).fold(None, |least_yet, rate| least(least_yet, Some(rate)))
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
