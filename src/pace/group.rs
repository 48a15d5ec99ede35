//! Pacing groups: budgets that share no limit can be paced by different dispatchers.
//!
//! Who holds a group paces it alone. A limit of the provider (or of a route) as a whole is shared by all budgets, so
//! they are one group then; otherwise each budget is one.

use super::ask::{Acquire, BudgetId, KeyId, Pin, Why};
use super::pool::Pool;
use super::spec::PoolSpec;
use super::{Time, bank::Bank};

/// Number of a pacing group in its pool, in the order of [`PoolSpec::groups`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// Whether calls of a group may leave from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// They may.
    Open,
    /// It is held here, but nothing may leave for now: its jobs wait.
    Shut,
    /// It is not held here: its keys are no candidates.
    Away,
}

impl PoolSpec {
    /// The names of the pacing groups: one without a name where a limit holds for the provider as a whole (or there is
    /// no key), else one for each budget, named after it, or after the key that has none.
    pub fn groups(&self) -> Vec<String> {
        if self.is_one_group() {
            return vec![String::new()];
        }
        let declared = self.budgets.iter().map(|budget| budget.name.clone());
        let single = self.keys.iter().filter(|key| key.budget.is_none()).map(|key| key.label.clone());
        declared.chain(single).collect()
    }

    /// Whether some limit ties all budgets together.
    pub(super) fn is_one_group(&self) -> bool {
        self.keys.is_empty() || !self.limits.is_empty() || self.routes.iter().any(|route| !route.limits.is_empty())
    }
}

/// The groups of a pool, and what may leave of each.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    one: bool,
    holds: Vec<Hold>,
}

impl Groups {
    /// All of them open.
    pub fn new(spec: &PoolSpec) -> Groups {
        let one = spec.is_one_group();
        Groups { one, holds: if one { vec![Hold::Open] } else { Vec::new() } }
    }

    /// One budget more.
    pub fn add_budget(&mut self) {
        if !self.one {
            self.holds.push(Hold::Open);
        }
    }

    /// The group of a budget.
    #[inline]
    pub fn of(&self, budget: usize) -> usize {
        if self.one { 0 } else { budget }
    }

    #[inline]
    pub fn hold_of(&self, budget: usize) -> Hold {
        self.holds.get(self.of(budget)).copied().unwrap_or(Hold::Away)
    }

    /// What may leave of all of them together; `None` where that differs.
    pub fn hold_of_all(&self) -> Option<Hold> {
        self.one.then(|| self.holds[0])
    }

    /// Why no key was a candidate, though there are some.
    fn best(&self) -> Hold {
        if self.holds.contains(&Hold::Shut) { Hold::Shut } else { Hold::Away }
    }

    /// The budgets of a group, among so many.
    pub fn budgets(&self, group: GroupId, all: usize) -> std::ops::Range<usize> {
        let group = group.0 as usize;
        match self.one {
            true => 0..all,
            false => group.min(all)..(group + 1).min(all),
        }
    }

    pub fn is_one(&self) -> bool {
        self.one
    }
}

impl Bank {
    /// The budgets of a group.
    pub fn budgets_of(&self, group: GroupId) -> std::ops::Range<usize> {
        self.groups.budgets(group, self.budgets.len())
    }
}

impl Pool {
    /// How many pacing groups there are; their ids are the numbers below.
    pub fn group_count(&self) -> usize {
        self.bank.groups.holds.len()
    }

    /// The group that a key belongs to.
    pub fn group_of(&self, key: KeyId) -> Option<GroupId> {
        let budget = self.bank.keys.get(key.0 as usize)?.budget;
        Some(GroupId(self.bank.groups.of(budget) as u32))
    }

    /// The group that a pinned ask needs.
    pub fn group_of_pin(&self, pin: Pin) -> Option<GroupId> {
        match pin {
            Pin::Key(key) => self.group_of(key),
            Pin::Budget(BudgetId(budget)) if (budget as usize) < self.bank.budgets.len() => {
                Some(GroupId(self.bank.groups.of(budget as usize) as u32))
            }
            Pin::Budget(_) => None,
        }
    }

    /// Whether calls of a group may leave from here.
    pub fn hold(&self, group: GroupId) -> Hold {
        self.bank.groups.holds.get(group.0 as usize).copied().unwrap_or(Hold::Away)
    }

    /// What jobs may be pinned to within a group: the names of its budgets and the labels of its keys.
    pub fn pins_of(&self, group: GroupId) -> impl Iterator<Item = &str> {
        self.bank.budgets_of(group).flat_map(|budget| {
            let budget = &self.bank.budgets[budget];
            let labels = budget.keys.iter().map(|&key| self.bank.keys[key].label.as_str());
            budget.name.as_deref().into_iter().chain(labels)
        })
    }

    /// Says whether calls of a group may leave. Everything that was counted stays as it is.
    pub fn set_hold(&mut self, group: GroupId, hold: Hold) {
        match self.bank.groups.holds.get_mut(group.0 as usize) {
            Some(known) if *known != hold => *known = hold,
            _ => return,
        }
        // One group for all is asked before any key is looked at.
        if !self.bank.groups.one {
            self.budget_changed(BudgetId(group.0));
        }
        if hold != Hold::Shut {
            self.look_again();
        }
    }

    /// The ids of all groups.
    pub(super) fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.group_count() as u32).map(GroupId)
    }

    /// Forgets everything that was counted for a group, as if nothing had ever been sent; nothing of it may be open.
    pub fn forget(&mut self, group: GroupId) {
        self.bank.reset(group);
        self.group_changed(group);
    }

    /// Computes the keys of a group into the index anew, after their books were changed behind it.
    pub(super) fn group_changed(&mut self, group: GroupId) {
        if self.bank.groups.one {
            return self.rebuild();
        }
        for budget in self.bank.budgets_of(group) {
            for &key in &self.bank.budgets[budget].keys {
                self.choice.touch(KeyId(key as u32));
            }
        }
        self.look_again();
    }

    /// The answer to an ask that nothing held here can serve now; `None`: look at the keys.
    #[inline]
    pub(super) fn refused_by_hold(&self, pin: Option<Pin>) -> Option<Acquire> {
        let hold = match pin {
            None => self.bank.groups.hold_of_all()?,
            Some(pin) => self.hold(self.group_of_pin(pin)?),
        };
        refusal(hold)
    }

    /// The answer where no key was a candidate.
    pub(super) fn no_candidate(&self) -> Acquire {
        let nobody = Acquire::Blocked { why: Why::NoKey, until: None };
        if self.bank.keys.is_empty() { nobody } else { refusal(self.bank.groups.best()).unwrap_or(nobody) }
    }
}

fn refusal(hold: Hold) -> Option<Acquire> {
    match hold {
        Hold::Open => None,
        Hold::Shut => Some(Acquire::WhenAnswered { at_most: Time::MAX }),
        Hold::Away => Some(Acquire::Blocked { why: Why::NotHeld, until: None }),
    }
}
