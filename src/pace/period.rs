//! Calendar quotas. The calendar is the caller's: time zones and summer time are no business of pure pacing.
//!
//! A quota is told the edges of the running period, each as the two times between which it lies. A call that was
//! surely counted before an edge is forgotten when that surely is over (and a guard of 0.01 % of the period later, since two
//! clocks differ). Any other call counts until the next edge, at most for the longest period that there is. So a
//! caller that is late, or that is not sure, costs throughput and never an overrun.

use super::Time;
use super::ask::{BudgetId, KeyId};
use super::edge::Edge;
use super::limit::Limit;
use super::pool::Pool;

/// The period of a quota that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaPeriod {
    /// The last edge.
    pub begins: Edge,
    /// The next one.
    pub ends: Edge,
}

/// Where a limit was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// `PoolSpec::limits`.
    Provider,
    /// `BudgetSpec::limits`.
    Budget(BudgetId),
    /// `PoolSpec::key_limits`, as they hold for one key.
    Key(KeyId),
    /// `RouteSpec::limits`.
    Route(usize),
    /// `RouteSpec::key_limits`, as they hold for one key.
    RouteKey(usize, KeyId),
}

impl Pool {
    /// Names the running period of a quota; `None`: it is not known, so that every call counts for the longest
    /// period that there is. In a new pool before [`Pool::restore`]: what a predecessor may have sent unseen depends on
    /// it. `limit` is its number among the limits of its place; others are ignored.
    ///
    /// Where the caller does not know an edge exactly, the moment at which the provider forgets must lie between the
    /// two times that it names: then the quota is not exceeded, whichever moment it is.
    pub fn quota_period(&mut self, place: Place, limit: usize, period: Option<QuotaPeriod>) {
        if let Some(limit) = self.limit_at(place, limit) {
            limit.set_period(period);
        }
        self.changed_at(place);
    }

    /// What is used now of a limit, foreign use included: what a caller persists. `None` if there is no such limit.
    pub fn used(&mut self, place: Place, limit: usize, now: Time) -> Option<u64> {
        let within = self.bank.within;
        let limit = self.limit_at(place, limit)?;
        let _slot = limit.slot(1, now, within);
        Some(limit.usage(now).0)
    }

    fn limit_at(&mut self, place: Place, limit: usize) -> Option<&mut Limit> {
        let bank = &mut self.bank;
        let limits = match place {
            Place::Provider => &mut bank.limits,
            Place::Budget(budget) => &mut bank.budgets.get_mut(budget.0 as usize)?.limits,
            Place::Key(key) => &mut bank.keys.get_mut(key.0 as usize)?.limits,
            Place::Route(route) => bank.routes.get_mut(route)?,
            Place::RouteKey(route, key) => {
                let narrow = bank.narrow.iter().position(|other| *other == route)?;
                bank.keys.get_mut(key.0 as usize)?.narrow.get_mut(narrow)?
            }
        };
        limits.get_mut(limit)
    }

    fn changed_at(&mut self, place: Place) {
        let key = match place {
            Place::Key(key) | Place::RouteKey(_, key) => key,
            Place::Budget(budget) => {
                let first = self.bank.budgets.get(budget.0 as usize).and_then(|budget| budget.keys.first());
                first.map_or(KeyId(0), |&key| KeyId(key as u32))
            }
            Place::Provider | Place::Route(_) => KeyId(0),
        };
        self.loosen(key);
    }
}
