//! Calendar quotas. The calendar is the caller's: time zones and summer time are no business of pure pacing.
//!
//! A quota knows the end of the running period. What was counted before it is forgotten there (and a guard of 0.01 %
//! of the period later, since two clocks differ); calls after it count for a whole period until the caller names the
//! next end, so a caller that is late costs throughput and never an overrun.

use super::Time;
use super::ask::{BudgetId, KeyId};
use super::limit::Limit;
use super::pool::Pool;

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
    /// The running period of a quota ends at `ends`, and at least `used` of it is used (0 if only this pool uses it;
    /// a persisted counter after a restart). `limit` is its number among the limits of its place; others are ignored.
    pub fn quota_period(&mut self, place: Place, limit: usize, ends: Time, used: u64, now: Time) {
        if let Some(limit) = self.limit_at(place, limit) {
            limit.set_period(ends, used, now);
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
