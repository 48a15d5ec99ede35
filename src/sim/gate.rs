//! All rules for all keys: a call passes every rule that holds for it, or is counted by none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::credential::SimKey;
use super::enforce::{Admission, Gauge, Limit, LimitError, Meter, Nanos};
use super::measure::Utilisation;
use super::rule::{Rule, Scope, Unit};

/// At most this many rules, so that those that hold for a call fit into one word.
pub(crate) const RULES_MAX: usize = 64;

/// A call as the rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub key: usize,
    pub path: &'a str,
    pub cost: u64,
}

/// What the rules said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ruling {
    /// Passed; to be given back by [`Gate::release`] when the call ends.
    Passed(Open),
    /// Refused by this rule; how long until it would pass, where that can be said.
    Refused { rule: usize, concurrency: bool, wait: Option<Nanos> },
}

/// A call that passed and has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    key: usize,
    rules: u64,
}

/// Counters of one key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub accepted: u64,
    pub refused_limit: u64,
    pub refused_concurrency: u64,
    pub refused_credential: u64,
    pub executed: u64,
    pub cost: u64,
    pub open: u64,
    pub open_peak: u64,
}

/// One rule's count for one party, with the measurement beside it.
#[derive(Debug)]
pub(crate) struct Metered {
    pub rule: usize,
    pub used: Option<Utilisation>,
    pub refused: u64,
    unit: Unit,
    meter: Meter,
}

/// A key, an account or the server: whoever has counts of its own.
pub(crate) type Party = Vec<Metered>;

/// One caller.
#[derive(Debug)]
pub(crate) struct Key {
    pub label: Arc<str>,
    pub account: Option<Arc<str>>,
    pub revoked: bool,
    pub counts: Counts,
    pub party: Party,
    shared: Option<usize>,
}

/// Every count of the provider.
#[derive(Debug)]
pub(crate) struct Gate {
    rules: Vec<Rule>,
    server: Party,
    accounts: Vec<Party>,
    keys: Vec<Key>,
    pub open: u64,
    pub open_peak: u64,
}

impl Gate {
    pub(crate) fn new(rules: &[Rule], keys: &[SimKey]) -> Result<Self, LimitError> {
        let mut gate = Gate {
            server: party(rules, &[Scope::Server])?,
            rules: rules.to_vec(),
            accounts: Vec::new(),
            keys: Vec::new(),
            open: 0,
            open_peak: 0,
        };
        let mut named: HashMap<&str, usize> = HashMap::new();
        for key in keys {
            let at = gate.enter(Arc::from(key.label.as_str()), key.account.as_deref())?;
            let Some(account) = key.account.as_deref() else {
                continue;
            };
            let shared = match named.get(account) {
                Some(&shared) => shared,
                None => {
                    gate.accounts.push(party(rules, &[Scope::Account])?);
                    named.insert(account, gate.accounts.len() - 1);
                    gate.accounts.len() - 1
                }
            };
            gate.keys[at].shared = Some(shared);
        }
        Ok(gate)
    }

    /// Adds a key and returns its index. A key without an account is its own.
    pub(crate) fn enter(&mut self, label: Arc<str>, account: Option<&str>) -> Result<usize, LimitError> {
        let scopes: &[Scope] = match account {
            Some(_) => &[Scope::Key],
            None => &[Scope::Key, Scope::Account],
        };
        self.keys.push(Key {
            label,
            account: account.map(Arc::from),
            revoked: false,
            counts: Counts::default(),
            party: party(&self.rules, scopes)?,
            shared: None,
        });
        Ok(self.keys.len() - 1)
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(crate) fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub(crate) fn key_mut(&mut self, at: usize) -> Option<&mut Key> {
        self.keys.get_mut(at)
    }

    /// Every count of every party.
    pub(crate) fn all_metered(&self) -> impl Iterator<Item = &Metered> {
        let keys = self.keys.iter().flat_map(|key| &key.party);
        self.server.iter().chain(self.accounts.iter().flatten()).chain(keys)
    }

    /// Judges one call: all or nothing.
    pub(crate) fn judge(&mut self, now: Nanos, asked: Asked<'_>) -> Ruling {
        let rules = self.holding(asked.path);
        if let Some(refused) = self.refusal(now, asked, rules) {
            return refused;
        }
        for metered in self.metered(asked.key, rules) {
            let units = metered.units(asked.cost);
            metered.meter.take(now, units);
            if let Some(used) = &mut metered.used {
                used.arrived(now, units);
            }
        }
        self.open += 1;
        self.open_peak = self.open_peak.max(self.open);
        if let Some(key) = self.keys.get_mut(asked.key) {
            key.counts.accepted += 1;
            key.counts.cost = key.counts.cost.saturating_add(asked.cost);
            key.counts.open += 1;
            key.counts.open_peak = key.counts.open_peak.max(key.counts.open);
        }
        Ruling::Passed(Open { key: asked.key, rules })
    }

    /// A call ended.
    pub(crate) fn release(&mut self, open: Open) {
        for metered in self.metered(open.key, open.rules) {
            metered.meter.release();
        }
        self.open = self.open.saturating_sub(1);
        if let Some(key) = self.keys.get_mut(open.key) {
            key.counts.open = key.counts.open.saturating_sub(1);
        }
    }

    /// The limit that is nearest to being spent, as the headers of a reply tell it.
    pub(crate) fn tightest(&mut self, now: Nanos, key: usize, path: &str) -> Option<(usize, Gauge)> {
        let rules = self.holding(path);
        self.metered(key, rules)
            .filter(|metered| metered.used.is_some())
            .map(|metered| (metered.rule, metered.meter.gauge(now)))
            .min_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)))
    }

    /// Starts all measurements and counters again; what is enforced stays as it is.
    pub(crate) fn reset_measures(&mut self) {
        self.open_peak = self.open;
        let parties = self.keys.iter_mut().flat_map(|key| &mut key.party);
        for metered in self.server.iter_mut().chain(self.accounts.iter_mut().flatten()).chain(parties) {
            metered.refused = 0;
            if let Some(used) = &mut metered.used {
                used.reset();
            }
        }
        for key in &mut self.keys {
            let open = key.counts.open;
            key.counts = Counts { open, open_peak: open, ..Counts::default() };
        }
    }

    /// The rules that hold for a path, as bits.
    fn holding(&self, path: &str) -> u64 {
        let holds = self.rules.iter().enumerate().filter(|(_, rule)| rule.matches(path));
        holds.fold(0, |bits, (at, _)| bits | 1 << at)
    }

    /// The counts that apply to a call with this key.
    fn metered(&mut self, key: usize, rules: u64) -> impl Iterator<Item = &mut Metered> {
        let (own, shared) = match self.keys.get_mut(key) {
            Some(key) => (Some(&mut key.party), key.shared),
            None => (None, None),
        };
        let account = shared.and_then(|at| self.accounts.get_mut(at));
        let all = self.server.iter_mut().chain(account.into_iter().flatten());
        all.chain(own.into_iter().flatten()).filter(move |metered| rules >> metered.rule & 1 == 1)
    }

    /// The rule that refuses for the longest, if any does.
    fn refusal(&mut self, now: Nanos, asked: Asked<'_>, rules: u64) -> Option<Ruling> {
        let mut worst: Option<(Nanos, Ruling)> = None;
        for metered in self.metered(asked.key, rules) {
            let (rank, concurrency, wait) = match metered.meter.admit(now, metered.units(asked.cost)) {
                Admission::Now => continue,
                Admission::WhenReleased => (0, true, None),
                Admission::In(wait) => (wait, false, Some(wait)),
                Admission::Never => (Nanos::MAX, false, None),
            };
            metered.refused += 1;
            if worst.as_ref().is_none_or(|(ranked, _)| rank >= *ranked) {
                worst = Some((rank, Ruling::Refused { rule: metered.rule, concurrency, wait }));
            }
        }
        let (_, ruling) = worst?;
        if let Some(key) = self.keys.get_mut(asked.key) {
            match ruling {
                Ruling::Refused { concurrency: true, .. } => key.counts.refused_concurrency += 1,
                _ => key.counts.refused_limit += 1,
            }
        }
        Some(ruling)
    }
}

impl Metered {
    fn units(&self, cost: u64) -> u64 {
        match self.unit {
            Unit::Requests => 1,
            Unit::Cost => cost,
        }
    }
}

fn party(rules: &[Rule], scopes: &[Scope]) -> Result<Party, LimitError> {
    let mine = rules.iter().enumerate().filter(|(_, rule)| scopes.contains(&rule.scope));
    mine.map(|(at, rule)| {
        Ok(Metered {
            rule: at,
            used: measure(&rule.limit),
            refused: 0,
            unit: rule.unit,
            meter: Meter::new(&rule.limit)?,
        })
    })
    .collect()
}

fn measure(limit: &Limit) -> Option<Utilisation> {
    let (n, per) = limit.rate();
    let nanos = |per: Duration| u64::try_from(per.as_nanos()).unwrap_or(Nanos::MAX);
    per.map(|per| Utilisation::new(n, nanos(per)))
}

fn share(gauge: &Gauge) -> f64 {
    gauge.remaining as f64 / gauge.limit as f64
}
