//! What was spent, in a form that outlives the process: written with every renewal of a lease, read by whoever takes
//! the budgets over.
//!
//! Everything is kept as an age, so that clocks need not agree, and rounded to the safe side: a call counts as younger
//! than it was, never as older. After a crash nobody knows what was sent since the last renewal; the taker counts all
//! that the limits, and the number of calls that was allowed until the next renewal, could have let go.

use super::Time;
use super::bank::Standing;
use super::limit::Limit;
use super::pool::Pool;
use super::probe::Probe;
use super::time::nanos;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A call that a dead process sent arrives at the provider within so many nanoseconds of the takeover, at the latest.
pub(super) const STRAGGLER_NANOS: u64 = 1_000_000_000;
/// Calls of one limit are kept in so many lots at most.
const LOTS: u64 = 48;
/// The same where there are more than [`MANY`] limits.
const FEW_LOTS: u64 = 4;
/// Beyond so many limits each is kept more coarsely.
const MANY: usize = 400;

/// Ages and amounts of the calls that one limit still counts, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedLimit {
    /// The declaration, as text: another limit's spending is not taken for this one's.
    pub limit: String,
    /// (age in microseconds, amount)
    pub spent: Vec<(u64, u64)>,
    /// (microseconds until it is free again, amount) of what others used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<(u64, u64)>,
    /// Not answered yet, or open.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub flying: u64,
    /// Microseconds until the rate allows the next call.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub debt: u64,
}

/// How a key or budget is set aside; absent members mean that it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// Microseconds of pause that are left.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paused: u64,
    /// Microseconds until it is tried again; `u64::MAX`: never by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<u64>,
    /// The version of the operator's word that is older than this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub heard: u64,
    /// Tells the secret that was refused from another one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub secret: u64,
}

/// The rate that was found for a budget whose limits nobody declared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedProbe {
    /// Calls in a million seconds that are in use.
    pub rate: u64,
    /// Calls in a million seconds that the provider is believed to allow.
    pub found: u64,
    /// Microseconds that the provider is believed to remember.
    pub span: u64,
    /// Whether it had settled there.
    pub settled: bool,
    /// Microseconds until the next call.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub debt: u64,
    /// Microseconds since it was last refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_ago: Option<u64>,
}

/// Everything that later calls must respect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// By place, such as `key a1 limit 0`.
    pub limits: BTreeMap<String, SavedLimit>,
    /// By label, where it is not in use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, SavedState>,
    /// By name, where it is not in use.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub budgets: BTreeMap<String, SavedState>,
    /// Of the whole provider.
    #[serde(default)]
    pub provider: SavedState,
    /// Wall clocks that may be right: what each would show now, and how long ago it did, in milliseconds. The
    /// caller's, for its calendar.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub walls: Vec<(i64, u64)>,
    /// By name of the budget, where a rate was found.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub probes: BTreeMap<String, SavedProbe>,
}

/// What may have been spent after the state was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Nothing: it was let go of in order.
    Nothing,
    /// At most so many calls within that time.
    AtMost {
        /// Of all keys together.
        calls: u64,
        /// Calls open at once, at most.
        open: u64,
        /// From the saving to the moment at which the last owner stopped.
        within: Duration,
    },
}

/// [`Since::AtMost`] as one limit is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unseen {
    pub calls: u64,
    pub open: u64,
    /// In nanoseconds.
    pub horizon: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

fn micros(nanos: u64) -> u64 {
    nanos / 1_000
}

fn left(until: Time, now: Time) -> u64 {
    if until == Time::MAX { u64::MAX } else { until.as_nanos().saturating_sub(now.as_nanos()).div_ceil(1_000) }
}

/// The time at which what had `left` microseconds to go is over, `elapsed` nanoseconds after it was saved.
fn ends(left: u64, elapsed: u64, now: Time) -> Time {
    match left {
        u64::MAX => Time::MAX,
        left => now.plus(left.saturating_mul(1_000).saturating_sub(elapsed)),
    }
}

impl Pool {
    /// What was spent until `now`.
    pub fn save(&mut self, now: Time) -> Saved {
        let now = self.clock(now);
        let within = self.bank.within;
        let mut saved = Saved {
            provider: SavedState {
                paused: left(self.bank.paused_until, now),
                heard: self.bank.heard,
                ..SavedState::default()
            },
            ..Saved::default()
        };
        for key in &self.bank.keys {
            let state = SavedState {
                paused: left(key.paused_until, now),
                aside: match key.standing {
                    Standing::Open => None,
                    Standing::Disabled { probe_at, .. } => Some(left(probe_at, now)),
                },
                heard: key.heard,
                secret: key.secret,
            };
            if state.paused > 0 || state.aside.is_some() {
                saved.keys.insert(key.label.clone(), state);
            }
        }
        for budget in &self.bank.budgets {
            let paused = left(budget.paused_until, now);
            let parked = left(budget.parked_until, now);
            if let Some(probe) = budget.probe.as_ref().and_then(|probe| probe.saved(now)) {
                let name = budget_name(budget.name.as_deref(), &self.bank.keys[budget.keys[0]].label);
                saved.probes.insert(name, probe);
            }
            if paused > 0 || parked > 0 {
                let name = budget_name(budget.name.as_deref(), &self.bank.keys[budget.keys[0]].label);
                let aside = (parked > 0).then_some(parked);
                // A budget that was not declared is its only key.
                let secret = if budget.name.is_none() { self.bank.keys[budget.keys[0]].secret } else { 0 };
                saved.budgets.insert(name, SavedState { paused, aside, heard: budget.heard, secret });
            }
        }
        let mut places = 0;
        self.each_limit(|_, _| places += 1);
        let lots = if places > MANY { FEW_LOTS } else { LOTS };
        self.each_limit(|place, limit| {
            let one = limit.saved(now, within, lots);
            if one.flying > 0 || one.debt > 0 || !one.spent.is_empty() || !one.others.is_empty() {
                saved.limits.insert(place, one);
            }
        });
        saved
    }

    /// Takes over what was saved `elapsed` ago by another process; this pool must be new.
    ///
    /// A limit whose declaration changed is counted as wholly used: what was spent under another one says little.
    pub fn restore(&mut self, saved: &Saved, elapsed: Duration, since: Since, now: Time) {
        let now = self.clock(now);
        let (elapsed, within) = (nanos(elapsed), self.bank.within);
        self.bank.paused_until = ends(saved.provider.paused, elapsed, now);
        self.bank.heard = saved.provider.heard;
        for key in &mut self.bank.keys {
            let Some(state) = saved.keys.get(&key.label) else { continue };
            key.paused_until = ends(state.paused, elapsed, now);
            key.heard = state.heard;
            if let Some(left) = state.aside.filter(|_| state.secret == key.secret) {
                key.standing = Standing::Disabled { probe_at: ends(left, elapsed, now), probing: false };
            }
        }
        for number in 0..self.bank.budgets.len() {
            let first = &self.bank.keys[self.bank.budgets[number].keys[0]];
            let budget = &mut self.bank.budgets[number];
            let name = budget_name(budget.name.as_deref(), &first.label);
            if let (Some(probe), Some(saved)) = (&mut budget.probe, saved.probes.get(&name)) {
                **probe = Probe::restored(saved, elapsed, since, now);
            }
            let Some(state) = saved.budgets.get(&name) else { continue };
            budget.paused_until = ends(state.paused, elapsed, now);
            budget.heard = state.heard;
            let same = budget.name.is_some() || state.secret == first.secret;
            budget.parked_until = state.aside.filter(|_| same).map_or(Time::ZERO, |left| ends(left, elapsed, now));
        }
        self.each_limit(|place, limit| {
            if let Some(one) = saved.limits.get(&place) {
                limit.restored(one, elapsed, now, within);
            }
        });
        if let Since::AtMost { calls, open, within: horizon } = since {
            self.count_unseen(Unseen { calls, open, horizon: nanos(horizon) }, now);
        }
        self.rebuild();
    }

    /// Counts what may have been sent unseen: no more with a key than the tightest of its limits allowed.
    fn count_unseen(&mut self, unseen: Unseen, now: Time) {
        let Unseen { calls, horizon, .. } = unseen;
        let within = self.bank.within;
        let late = now.plus(within.min(STRAGGLER_NANOS));
        let bank = &mut self.bank;
        let tightest = |limits: &mut [Limit]| {
            let requests = limits.iter_mut().filter(|limit| limit.counts_requests());
            requests.map(|limit| limit.allowed_unseen(horizon, now, within)).min().unwrap_or(u64::MAX)
        };
        let provider = tightest(&mut bank.limits).min(calls);
        let mut all = 0_u64;
        for number in 0..bank.budgets.len() {
            let of_budget = tightest(&mut bank.budgets[number].limits).min(provider);
            let mut together = 0_u64;
            for place in 0..bank.budgets[number].keys.len() {
                let key = &mut bank.keys[bank.budgets[number].keys[place]];
                let of_key = tightest(&mut key.limits).min(of_budget);
                together = together.saturating_add(of_key);
                for limit in key.limits.iter_mut().chain(key.narrow.iter_mut().flatten()) {
                    limit.unseen(Unseen { calls: of_key, ..unseen }, (now, late), within);
                }
            }
            let together = together.min(of_budget);
            all = all.saturating_add(together);
            for limit in &mut bank.budgets[number].limits {
                limit.unseen(Unseen { calls: together, ..unseen }, (now, late), within);
            }
        }
        for limit in bank.limits.iter_mut().chain(bank.routes.iter_mut().flatten()) {
            limit.unseen(Unseen { calls: all.min(provider), ..unseen }, (now, late), within);
        }
    }

    /// Every limit with a name for its place that survives keys being added and removed.
    fn each_limit(&mut self, mut act: impl FnMut(String, &mut Limit)) {
        let bank = &mut self.bank;
        for (n, limit) in bank.limits.iter_mut().enumerate() {
            act(format!("provider limit {n}"), limit);
        }
        for (route, limits) in bank.routes.iter_mut().enumerate() {
            for (n, limit) in limits.iter_mut().enumerate() {
                act(format!("route {route} limit {n}"), limit);
            }
        }
        for number in 0..bank.budgets.len() {
            let budget = &mut bank.budgets[number];
            let name = budget_name(budget.name.as_deref(), &bank.keys[budget.keys[0]].label);
            for (n, limit) in budget.limits.iter_mut().enumerate() {
                act(format!("{name} limit {n}"), limit);
            }
        }
        for key in &mut bank.keys {
            for (n, limit) in key.limits.iter_mut().enumerate() {
                act(format!("key {} limit {n}", key.label), limit);
            }
            for (route, limits) in key.narrow.iter_mut().enumerate() {
                for (n, limit) in limits.iter_mut().enumerate() {
                    act(format!("key {} route {route} limit {n}", key.label), limit);
                }
            }
        }
    }
}

fn budget_name(name: Option<&str>, first_key: &str) -> String {
    name.map_or_else(|| format!("budget of key {first_key}"), |name| format!("budget {name}"))
}

/// Puts calls of similar age into one lot, which counts as young as its youngest call.
pub(super) fn lots(calls: impl Iterator<Item = (Time, u64)>, span: u64, lots: u64, now: Time) -> Vec<(u64, u64)> {
    let width = (span / lots).max(1);
    let mut out: Vec<(u64, u64)> = Vec::new();
    let mut current = None;
    for (anchor, amount) in calls {
        let age = now.as_nanos().saturating_sub(anchor.as_nanos());
        let lot = age / width;
        match out.last_mut() {
            Some(last) if current == Some(lot) => {
                last.0 = last.0.min(micros(age));
                last.1 += amount;
            }
            _ => out.push((micros(age), amount)),
        }
        current = Some(lot);
    }
    out
}
