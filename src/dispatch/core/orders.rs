//! What operators want, put into effect.

use super::Core;
use crate::pace::{KeyId, Pool, Word};
use crate::store::{Order, Subject};

/// Which waiting jobs may go again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freed {
    /// All that wait for the end of a pause, or for a key.
    All,
    /// Of these, the ones that are pinned to nothing or to one of these names.
    Pins(Vec<String>),
}

impl Core {
    /// Hears all orders there are about this provider. What is news is put into effect; which jobs may go again then.
    pub fn order(&mut self, orders: Vec<Order>) -> Option<Freed> {
        self.orders = orders;
        self.obey()
    }

    /// Again, after the pool was made anew.
    pub(super) fn obey(&mut self) -> Option<Freed> {
        let (mut all, mut pins) = (false, Vec::new());
        for order in &self.orders {
            let word = Word { held: order.held, version: order.version };
            let news = match &order.subject {
                Subject::Provider => {
                    let news = self.pool.order_provider(word);
                    all |= news && !word.held;
                    continue;
                }
                Subject::Key(label) => self.pool.key_named(label).is_some_and(|key| self.pool.order_key(key, word)),
                Subject::Budget(name) => {
                    self.pool.budget_named(name).is_some_and(|budget| self.pool.order_budget(budget, word))
                }
            };
            if let (true, Subject::Key(name) | Subject::Budget(name)) = (news && !word.held, &order.subject) {
                pins.extend(names_beside(&self.pool, name));
            }
        }
        match (all, pins.is_empty()) {
            (true, _) => Some(Freed::All),
            (false, false) => Some(Freed::Pins(pins)),
            (false, true) => None,
        }
    }

    /// What jobs may be pinned to that can go when this key or budget is in use again.
    pub fn freed_by(&self, name: &str) -> Freed {
        Freed::Pins(names_beside(&self.pool, name))
    }
}

/// This key and the budget it belongs to; or this budget and its keys.
pub(super) fn names_beside(pool: &Pool, name: &str) -> Vec<String> {
    let numbers = || (0..pool.key_count()).filter_map(|n| u32::try_from(n).ok().map(KeyId));
    let budget = pool.budget_named(name).or_else(|| pool.budget_of(pool.key_named(name)?));
    let keys = numbers().filter(|key| budget.is_some() && pool.budget_of(*key) == budget);
    let mut names: Vec<String> = keys.map(|key| pool.key_label(key).to_owned()).collect();
    if pool.key_named(name).is_some() {
        names.retain(|label| label == name);
    }
    names.extend(budget.and_then(|budget| pool.budget_name(budget)).map(str::to_owned));
    names
}
