//! The books: every limit of a provider, its routes, budgets and keys, and the state each is in.

use super::Time;
use super::ask::{Ask, BudgetId, COMPARED, KeyId, Routes, Why};
use super::group::{GroupId, Groups};
use super::limit::{Counts, Limit};
use super::probe::Probe;
use super::signal::Family;
use super::slot::Slot;
use super::spec::{KeySpec, PoolSpec, Safety};
use super::spread::Spread;
use super::time::nanos;

/// Whether a key may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Open,
    /// Set aside; from `probe_at` on, one call at a time may find out whether it works again.
    Disabled {
        probe_at: Time,
        probing: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub label: String,
    pub weight: u32,
    pub budget: usize,
    /// Its position among the keys of its budget.
    pub place: usize,
    pub paused_until: Time,
    pub standing: Standing,
    /// Out of use by an operator's word, whatever is learnt.
    pub held: bool,
    /// Its secret is not here.
    pub absent: bool,
    /// The version of the last word that was heard.
    pub heard: u64,
    /// Tells its secret from another one; zero: not told.
    pub secret: u64,
    pub limits: Vec<Limit>,
    /// Limits of each key on a route: one list for each route that has any.
    pub narrow: Vec<Vec<Limit>>,
}

#[derive(Clone, Debug)]
pub(super) struct Budget {
    /// `None`: the budget of a single key.
    pub name: Option<String>,
    pub keys: Vec<usize>,
    pub limits: Vec<Limit>,
    /// Its limits, unused.
    template: Vec<Limit>,
    pub paused_until: Time,
    /// Quota exhausted: until then, or until an operator resumes it (`Time::MAX`).
    pub parked_until: Time,
    /// By how much of a period 429s have widened its guards, in thousandths.
    pub widened: u64,
    /// When the last 429 came, and how many came in a row.
    pub refused_at: Option<Time>,
    pub refusals: u32,
    /// 429s in spite of a permit.
    pub pacing_errors: u64,
    /// Where no limit is declared.
    pub probe: Option<Box<Probe>>,
    /// Calls that others made, as far as answers showed, and when they last did.
    pub foreign: (u64, Option<Time>),
    /// Calls that left.
    pub calls: u64,
    /// The dialect of the last response that said something about limits.
    pub signals: Option<Family>,
    /// The version of the last word of an operator that was heard.
    pub heard: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Bank {
    /// The provider counts a call at most so many nanoseconds after it was sent.
    pub counted_within: u64,
    /// The same as the windows see it: shorter under `balanced`.
    pub within: u64,
    /// Delays seen, where the windows may use them: of answers, and of the network alone.
    pub spread: Option<(Spread, Spread)>,
    pub limits: Vec<Limit>,
    pub routes: Vec<Vec<Limit>>,
    /// Routes with limits of each key, in the order of `Key::narrow`.
    pub narrow: Vec<usize>,
    pub budgets: Vec<Budget>,
    pub keys: Vec<Key>,
    pub paused_until: Time,
    /// Out of use by an operator's word.
    pub held: bool,
    /// The version of the last word that was heard.
    pub heard: u64,
    pub counts_cost: bool,
    pub groups: Groups,
    /// How many limits there are in all.
    pub limit_count: usize,
    /// Limits of the provider and of its routes, unused.
    shared_template: (Vec<Limit>, Vec<Vec<Limit>>),
    template: Vec<Limit>,
    narrow_template: Vec<Vec<Limit>>,
}

impl Bank {
    pub fn new(spec: &PoolSpec) -> Bank {
        let make = |specs: &[_]| specs.iter().map(|limit| Limit::new(limit, spec.safety)).collect::<Vec<_>>();
        let narrow: Vec<usize> = (0..spec.routes.len()).filter(|&r| !spec.routes[r].key_limits.is_empty()).collect();
        let counted_within = nanos(spec.counted_within);
        let of_routes: Vec<Vec<Limit>> = spec.routes.iter().map(|route| make(&route.limits)).collect();
        let shared_template = (make(&spec.limits), of_routes);
        let mut bank = Bank {
            counted_within,
            within: counted_within,
            spread: (spec.safety != Safety::Strict).then(|| (Spread::new(), Spread::new())),
            limits: shared_template.0.clone(),
            routes: shared_template.1.clone(),
            shared_template,
            narrow_template: narrow.iter().map(|&r| make(&spec.routes[r].key_limits)).collect(),
            narrow,
            budgets: Vec::new(),
            keys: Vec::new(),
            groups: Groups::new(spec),
            limit_count: 0,
            paused_until: Time::ZERO,
            held: false,
            heard: 0,
            counts_cost: false,
            template: make(&spec.key_limits),
        };
        bank.limit_count = bank.limits.len() + bank.routes.iter().map(Vec::len).sum::<usize>();
        for budget in &spec.budgets {
            bank.add_budget(Budget::new(Some(budget.name.clone()), make(&budget.limits)));
        }
        for key in &spec.keys {
            bank.add_key(key);
        }
        let counts_cost = bank.all_limits().any(|limit| limit.counts == Counts::Cost);
        Bank { counts_cost, ..bank }
    }

    /// Adds a key; its budget must exist.
    pub fn add_key(&mut self, spec: &KeySpec) -> KeyId {
        let budget = spec.budget.unwrap_or_else(|| self.add_budget(Budget::new(None, Vec::new())));
        self.limit_count += self.template.len() + self.narrow_template.iter().map(Vec::len).sum::<usize>();
        let key = self.keys.len();
        self.keys.push(Key {
            label: spec.label.clone(),
            weight: spec.weight.max(1),
            budget,
            place: self.budgets[budget].keys.len(),
            paused_until: Time::ZERO,
            standing: Standing::Open,
            held: false,
            absent: false,
            heard: 0,
            secret: 0,
            limits: self.template.clone(),
            narrow: self.narrow_template.clone(),
        });
        self.budgets[budget].keys.push(key);
        self.probe_unless_declared(budget);
        KeyId(key as u32)
    }

    fn add_budget(&mut self, budget: Budget) -> usize {
        self.limit_count += budget.limits.len();
        self.budgets.push(budget);
        self.groups.add_budget();
        self.budgets.len() - 1
    }

    /// A group as if nothing had ever been sent, except by what is only counted for people. What operators said now
    /// holds; what they said before something was learnt is told with that.
    pub fn reset(&mut self, group: GroupId) {
        if self.groups.is_one() {
            (self.limits, self.routes) = self.shared_template.clone();
            (self.paused_until, self.heard) = (Time::ZERO, 0);
        }
        for number in self.budgets_of(group) {
            let budget = &mut self.budgets[number];
            let fresh = Budget::new(budget.name.take(), std::mem::take(&mut budget.template));
            let old = std::mem::replace(budget, fresh);
            (budget.calls, budget.pacing_errors, budget.signals) = (old.calls, old.pacing_errors, old.signals);
            budget.keys = old.keys;
            for &key in &budget.keys {
                let key = &mut self.keys[key];
                (key.limits, key.narrow) = (self.template.clone(), self.narrow_template.clone());
                (key.paused_until, key.standing, key.heard) = (Time::ZERO, Standing::Open, 0);
            }
            self.probe_unless_declared(number);
        }
    }

    fn all_limits(&self) -> impl Iterator<Item = &Limit> {
        let routes = self.routes.iter().flatten();
        let budgets = self.budgets.iter().flat_map(|budget| &budget.limits);
        let keys = self.template.iter().chain(self.narrow_template.iter().flatten());
        self.limits.iter().chain(routes).chain(budgets).chain(keys)
    }

    /// The most that the least of the limits in cost units allows at once.
    pub fn least_cost_limit(&self) -> Option<u64> {
        self.all_limits().filter(|limit| limit.counts == Counts::Cost).map(|limit| limit.largest).min()
    }

    /// The routes among these that have limits of each key.
    pub fn narrow_of(&self, routes: Routes) -> Routes {
        if routes.is_empty() || self.narrow.is_empty() {
            return Routes::NONE;
        }
        routes.only(self.narrow.iter().copied().collect())
    }

    /// Does something to every limit that a call with this key and these routes takes from.
    #[inline]
    pub fn each(&mut self, key: KeyId, routes: Routes, mut act: impl FnMut(&mut Limit)) {
        self.limits.iter_mut().for_each(&mut act);
        let Some(key) = self.keys.get_mut(key.0 as usize) else {
            return;
        };
        self.budgets[key.budget].limits.iter_mut().for_each(&mut act);
        key.limits.iter_mut().for_each(&mut act);
        if routes.is_empty() {
            return;
        }
        for route in routes.iter() {
            if let Some(limits) = self.routes.get_mut(route) {
                limits.iter_mut().for_each(&mut act);
            }
        }
        for (place, route) in self.narrow.iter().enumerate() {
            if routes.contains(*route) {
                key.narrow[place].iter_mut().for_each(&mut act);
            }
        }
    }

    /// Readings of `Limit::freed`, in the order of `each`.
    pub fn freed_now(&mut self, key: KeyId, routes: Routes) -> [u64; COMPARED] {
        let mut freed = [0; COMPARED];
        let mut places = freed.iter_mut();
        self.each(key, routes, |limit| {
            if let Some(place) = places.next() {
                *place = limit.freed();
            }
        });
        freed
    }

    /// Room in the limits that do not depend on the key.
    pub fn shared_slot(&mut self, ask: &Ask, now: Time) -> Slot {
        let within = self.within;
        let mut slot = all_of(&mut self.limits, ask.cost, now, within);
        for route in ask.routes.iter() {
            if let Some(limits) = self.routes.get_mut(route) {
                slot = slot.and(all_of(limits, ask.cost, now, within));
            }
        }
        slot
    }

    pub fn budget_slot(&mut self, budget: usize, cost: u64, now: Time) -> Slot {
        let within = self.within;
        let budget = &mut self.budgets[budget];
        let state = Slot::at(budget.paused_until.max(budget.parked_until));
        let state = budget.probe.as_ref().map_or(state, |probe| state.and(probe.slot(now)));
        state.and(all_of(&mut budget.limits, cost, now, within))
    }

    pub fn key_slot(&mut self, key: usize, cost: u64, routes: Routes, now: Time) -> Slot {
        let within = self.within;
        let key = &mut self.keys[key];
        let mut slot = if key.is_out() { Slot::NEVER } else { Slot::at(key.paused_until) };
        if let Standing::Disabled { probe_at, probing } = key.standing {
            slot = slot.and(if probing { Slot::answered_by(Time::MAX) } else { Slot::at(probe_at) });
        }
        slot = slot.and(all_of(&mut key.limits, cost, now, within));
        if !routes.is_empty() {
            for (place, route) in self.narrow.iter().enumerate() {
                if routes.contains(*route) {
                    slot = slot.and(all_of(&mut key.narrow[place], cost, now, within));
                }
            }
        }
        slot
    }

    /// One more delay: between departure and first byte, or of the network alone, which counts more if it is known.
    pub fn saw_delay(&mut self, delay: u64, network: bool) {
        let Some((answers, networks)) = &mut self.spread else {
            return;
        };
        if network {
            networks.add(delay)
        } else {
            answers.add(delay)
        };
        let longest = networks.longest().or(answers.longest());
        self.within = longest.map_or(self.counted_within, |l| l.min(self.counted_within));
    }

    /// When the pause of the whole provider ends.
    pub fn pause_ends(&self) -> Time {
        if self.held { Time::MAX } else { self.paused_until }
    }

    /// What puts this key out of use at `now`, and until when.
    pub fn out_of_use(&self, key: usize, now: Time) -> Option<(Why, Option<Time>)> {
        let id = KeyId(key as u32);
        let key = &self.keys[key];
        let budget = &self.budgets[key.budget];
        let number = BudgetId(key.budget as u32);
        let until = |time: Time| (time != Time::MAX).then_some(time);
        if key.is_out() {
            return Some((Why::KeyDisabled(id), None));
        }
        match key.standing {
            Standing::Disabled { probing: true, .. } => return Some((Why::KeyDisabled(id), None)),
            Standing::Disabled { probe_at, .. } if probe_at > now => {
                return Some((Why::KeyDisabled(id), until(probe_at)));
            }
            Standing::Disabled { .. } | Standing::Open => {}
        }
        if budget.parked_until > now {
            return Some((Why::BudgetParked(number), until(budget.parked_until)));
        }
        if budget.paused_until > now {
            return Some((Why::BudgetPaused(number), until(budget.paused_until)));
        }
        (key.paused_until > now).then(|| (Why::KeyPaused(id), until(key.paused_until)))
    }
}

impl Key {
    /// Out of use until somebody does something, whatever the provider says.
    pub fn is_out(&self) -> bool {
        self.held || self.absent
    }
}

impl Budget {
    fn new(name: Option<String>, limits: Vec<Limit>) -> Budget {
        Budget {
            name,
            keys: Vec::new(),
            template: limits.clone(),
            limits,
            paused_until: Time::ZERO,
            parked_until: Time::ZERO,
            widened: 0,
            refused_at: None,
            refusals: 0,
            pacing_errors: 0,
            probe: None,
            foreign: (0, None),
            calls: 0,
            signals: None,
            heard: 0,
        }
    }
}

#[inline]
fn all_of(limits: &mut [Limit], cost: u64, now: Time, within: u64) -> Slot {
    limits.iter_mut().fold(Slot::OPEN, |slot, limit| slot.and(limit.slot(cost, now, within)))
}
