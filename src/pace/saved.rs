//! What was spent, in a form that outlives the process: written with every renewal of a lease, read by whoever takes
//! the budgets over.
//!
//! Everything is kept as an age, so that clocks need not agree, and rounded to the safe side: a call counts as younger
//! than it was, never as older. After a crash nobody knows what was sent since the last renewal; the taker counts all
//! that the limits, and the number of calls that was allowed until the next renewal, could have let go.

use super::Time;
use super::bank::{Bank, Standing};
use super::group::GroupId;
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

/// What one owner left of a group.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// What it had spent.
    pub saved: &'a Saved,
    /// How long ago that was.
    pub elapsed: Duration,
    /// What it may have spent since.
    pub since: Since,
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
    /// What was spent of everything until `now`, for a pool that is saved as a whole.
    pub fn save(&mut self, now: Time) -> Saved {
        let mut all = Saved::default();
        for group in self.groups() {
            let mut one = self.save_group(group, now);
            all.limits.append(&mut one.limits);
            all.keys.append(&mut one.keys);
            all.budgets.append(&mut one.budgets);
            all.probes.append(&mut one.probes);
            all.provider = one.provider;
        }
        all
    }

    /// Takes over everything that was saved `elapsed` ago; see [`Pool::restore_group`]. This pool must be new.
    pub fn restore(&mut self, saved: &Saved, elapsed: Duration, since: Since, now: Time) {
        for group in self.groups() {
            self.restore_group(group, &[Left { saved, elapsed, since }], now);
        }
    }

    /// Counts every limit as wholly used just now: for a start that does not know what was sent before it.
    pub fn assume_spent(&mut self, now: Time) {
        for group in self.groups() {
            self.assume_group_spent(group, now);
        }
    }

    /// What was spent of a group until `now`.
    pub fn save_group(&mut self, group: GroupId, now: Time) -> Saved {
        let now = self.clock(now);
        let within = self.bank.within;
        let (paused, heard) = (left(self.bank.paused_until, now), self.bank.heard);
        let provider = SavedState { paused, heard, ..SavedState::default() };
        let mut saved = Saved { provider, ..Saved::default() };
        for number in self.bank.budgets_of(group) {
            self.save_states(number, &mut saved, now);
        }
        let lots = if self.bank.limit_count > MANY { FEW_LOTS } else { LOTS };
        self.each_limit(group, |place, limit| {
            let one = limit.saved(now, within, lots);
            if one.flying > 0 || one.debt > 0 || !one.spent.is_empty() || !one.others.is_empty() {
                saved.limits.insert(place, one);
            }
        });
        saved
    }

    /// How a budget and its keys are set aside, and the rate that was found for it.
    fn save_states(&self, number: usize, saved: &mut Saved, now: Time) {
        let budget = &self.bank.budgets[number];
        for key in budget.keys.iter().map(|&key| &self.bank.keys[key]) {
            let aside = match key.standing {
                Standing::Open => None,
                Standing::Disabled { probe_at, .. } => Some(left(probe_at, now)),
            };
            let paused = left(key.paused_until, now);
            if paused > 0 || aside.is_some() {
                let state = SavedState { paused, aside, heard: key.heard, secret: key.secret };
                saved.keys.insert(key.label.clone(), state);
            }
        }
        if let Some(probe) = budget.probe.as_ref().and_then(|probe| probe.saved(now)) {
            saved.probes.insert(self.bank.budget_place(number), probe);
        }
        let (paused, parked) = (left(budget.paused_until, now), left(budget.parked_until, now));
        if paused > 0 || parked > 0 {
            let aside = (parked > 0).then_some(parked);
            let state = SavedState { paused, aside, heard: budget.heard, secret: self.bank.budget_secret(number) };
            saved.budgets.insert(self.bank.budget_place(number), state);
        }
    }

    /// Takes over a group with what others left of it; the group must be new, or forgotten ([`Pool::forget`]). Other
    /// groups are in use meanwhile.
    ///
    /// A limit whose declaration changed is counted as wholly used: what was spent under another one says little.
    pub fn restore_group(&mut self, group: GroupId, all_left: &[Left<'_>], now: Time) {
        let now = self.clock(now);
        let within = self.bank.within;
        for left in all_left {
            self.restore_states(group, left, now);
        }
        self.each_limit(group, |place, limit| {
            for left in all_left {
                if let Some(one) = left.saved.limits.get(&place) {
                    limit.restored(one, nanos(left.elapsed), now, within);
                }
            }
        });
        // What was not seen comes on top of everything that was.
        for left in all_left {
            if let Since::AtMost { calls, open, within: horizon } = left.since {
                self.count_unseen(group, Unseen { calls, open, horizon: nanos(horizon) }, now);
            }
        }
        self.group_changed(group);
    }

    /// Where several tell of the same, the last word of an operator counts, and then the longest time.
    fn restore_states(&mut self, group: GroupId, left: &Left<'_>, now: Time) {
        let Left { saved, since, .. } = *left;
        let elapsed = nanos(left.elapsed);
        let bank = &mut self.bank;
        if saved.provider.heard >= bank.heard {
            bank.heard = saved.provider.heard;
            bank.paused_until = bank.paused_until.max(ends(saved.provider.paused, elapsed, now));
        }
        if saved.keys.is_empty() && saved.budgets.is_empty() && saved.probes.is_empty() {
            return;
        }
        for number in bank.budgets_of(group) {
            for place in 0..bank.budgets[number].keys.len() {
                let key = &mut bank.keys[bank.budgets[number].keys[place]];
                let Some(state) = saved.keys.get(&key.label).filter(|state| state.heard >= key.heard) else { continue };
                key.heard = state.heard;
                key.paused_until = key.paused_until.max(ends(state.paused, elapsed, now));
                if let Some(left) = state.aside.filter(|_| state.secret == key.secret) {
                    let known = match key.standing {
                        Standing::Open => Time::ZERO,
                        Standing::Disabled { probe_at, .. } => probe_at,
                    };
                    let probe_at = known.max(ends(left, elapsed, now));
                    key.standing = Standing::Disabled { probe_at, probing: false };
                }
            }
            let (name, secret) = (bank.budget_place(number), bank.budget_secret(number));
            let budget = &mut bank.budgets[number];
            if let (Some(probe), Some(saved)) = (&mut budget.probe, saved.probes.get(&name)) {
                **probe = Probe::restored(saved, elapsed, since, now);
            }
            let Some(state) = saved.budgets.get(&name).filter(|state| state.heard >= budget.heard) else { continue };
            budget.heard = state.heard;
            budget.paused_until = budget.paused_until.max(ends(state.paused, elapsed, now));
            let parked = state.aside.filter(|_| budget.name.is_some() || state.secret == secret);
            budget.parked_until = budget.parked_until.max(parked.map_or(Time::ZERO, |left| ends(left, elapsed, now)));
        }
    }

    /// Takes over a group of which nobody knows what was sent: every limit counts as wholly used just now. The group
    /// must be new, or forgotten.
    pub fn assume_group_spent(&mut self, group: GroupId, now: Time) {
        let now = self.clock(now);
        let within = self.bank.within;
        self.each_limit(group, |_, limit| limit.assume_spent(now, within));
        self.group_changed(group);
    }

    /// Counts what may have been sent unseen: no more with a key than the tightest of its limits allowed.
    fn count_unseen(&mut self, group: GroupId, unseen: Unseen, now: Time) {
        let Unseen { calls, horizon, .. } = unseen;
        let within = self.bank.within;
        let late = now.plus(within.min(STRAGGLER_NANOS));
        let bank = &mut self.bank;
        let tightest = |limits: &mut [Limit]| {
            let requests = limits.iter_mut().filter(|limit| limit.counts_requests());
            requests.map(|limit| limit.passed_unseen(horizon, now, within)).min().unwrap_or(u64::MAX)
        };
        // Limits of the provider exist only where there is one group.
        let provider = tightest(&mut bank.limits).min(calls);
        let mut all = 0_u64;
        for number in bank.budgets_of(group) {
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

    /// Every limit of a group with a name for its place that survives keys being added and removed.
    fn each_limit(&mut self, group: GroupId, mut act: impl FnMut(String, &mut Limit)) {
        let bank = &mut self.bank;
        // Shared by all budgets: then they are one group.
        for (n, limit) in bank.limits.iter_mut().enumerate() {
            act(format!("provider limit {n}"), limit);
        }
        for (route, limits) in bank.routes.iter_mut().enumerate() {
            for (n, limit) in limits.iter_mut().enumerate() {
                act(format!("route {route} limit {n}"), limit);
            }
        }
        for number in bank.budgets_of(group) {
            let name = bank.budget_place(number);
            for (n, limit) in bank.budgets[number].limits.iter_mut().enumerate() {
                act(format!("{name} limit {n}"), limit);
            }
            for place in 0..bank.budgets[number].keys.len() {
                let key = &mut bank.keys[bank.budgets[number].keys[place]];
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
}

impl Bank {
    /// The place of a budget's state.
    fn budget_place(&self, number: usize) -> String {
        let budget = &self.budgets[number];
        let first = || budget.keys.first().map_or("", |&key| &self.keys[key].label);
        budget.name.as_deref().map_or_else(|| format!("budget of key {}", first()), |name| format!("budget {name}"))
    }

    /// A budget that was not declared is its only key; zero: it was declared.
    fn budget_secret(&self, number: usize) -> u64 {
        let budget = &self.budgets[number];
        let first = budget.keys.first().filter(|_| budget.name.is_none());
        first.map_or(0, |&key| self.keys[key].secret)
    }
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
