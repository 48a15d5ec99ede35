//! Pausing, parking, setting aside and probing: every state has a way out.
//!
//! | state | entered by | left by |
//! |---|---|---|
//! | key paused, budget paused, provider paused | `pause_*` | its time, `resume_*` |
//! | budget parked (quota exhausted) | `park_budget` | its time if known, `resume_budget` |
//! | key disabled (refused) | `disable_key` | `enable_key`, after a probe that went well or by an operator |

use super::Time;
use super::ask::{BudgetId, KeyId};
use super::bank::Standing;
use super::pool::Pool;

/// A key that was set aside is tried again after so many nanoseconds if a probe ends without a verdict.
const PROBE_AGAIN_NANOS: u64 = 60_000_000_000;

impl Pool {
    /// Nothing is sent with this key before `until` (a pause already longer stays).
    pub fn pause_key(&mut self, key: KeyId, until: Time) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize) {
            state.paused_until = state.paused_until.max(until);
            self.choice.touch(key);
        }
    }

    /// Ends the pause of a key.
    pub fn resume_key(&mut self, key: KeyId) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize) {
            state.paused_until = Time::ZERO;
            self.loosen(key);
        }
    }

    /// Nothing is sent from this budget before `until` (a pause already longer stays).
    pub fn pause_budget(&mut self, budget: BudgetId, until: Time) {
        if let Some(state) = self.bank.budgets.get_mut(budget.0 as usize) {
            state.paused_until = state.paused_until.max(until);
            self.budget_changed(budget);
        }
    }

    /// The quota of this budget is exhausted until then; `None`: until an operator resumes it.
    pub fn park_budget(&mut self, budget: BudgetId, until: Option<Time>) {
        if let Some(state) = self.bank.budgets.get_mut(budget.0 as usize) {
            state.parked_until = until.unwrap_or(Time::MAX);
            if let Some(probe) = &mut state.probe {
                probe.excuse();
            }
            self.budget_changed(budget);
            self.loosened_by_budget(budget);
        }
    }

    /// Ends the pause or the parking of a budget.
    pub fn resume_budget(&mut self, budget: BudgetId) {
        if let Some(state) = self.bank.budgets.get_mut(budget.0 as usize) {
            state.paused_until = Time::ZERO;
            state.parked_until = Time::ZERO;
            self.loosened_by_budget(budget);
        }
    }

    /// Nothing is sent to this provider before `until` (a pause already longer stays; `Time::MAX`: until resumed).
    pub fn pause_provider(&mut self, until: Time) {
        self.bank.paused_until = self.bank.paused_until.max(until);
    }

    /// Ends the pause of the provider; pauses of budgets and keys stay.
    pub fn resume_provider(&mut self) {
        self.bank.paused_until = Time::ZERO;
        self.loosen(KeyId(0));
    }

    /// Sets a key aside: the provider refuses it. From `probe_at` on, one call may try it (`None`: none will).
    pub fn disable_key(&mut self, key: KeyId, probe_at: Option<Time>) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize) {
            state.standing = Standing::Disabled { probe_at: probe_at.unwrap_or(Time::MAX), probing: false };
            self.loosen(key);
        }
    }

    /// Lets one call try a key that was set aside, from then on. A key in use is left alone.
    pub fn probe_key(&mut self, key: KeyId, at: Time) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize)
            && let Standing::Disabled { probe_at, .. } = &mut state.standing
        {
            *probe_at = at;
            self.loosen(key);
        }
    }

    /// The key works, or is to be tried by an operator's wish.
    pub fn enable_key(&mut self, key: KeyId) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize) {
            state.standing = Standing::Open;
            self.loosen(key);
        }
    }

    /// A probe ended; unless somebody said that the key works or not, it is tried again later.
    pub(super) fn end_probe(&mut self, key: KeyId, at: Time) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize)
            && let Standing::Disabled { probe_at, probing } = &mut state.standing
            && *probing
        {
            *probing = false;
            *probe_at = (*probe_at).max(at.plus(PROBE_AGAIN_NANOS));
        }
    }

    pub(super) fn budget_changed(&mut self, budget: BudgetId) {
        if let Some(&key) = self.bank.budgets[budget.0 as usize].keys.first() {
            self.choice.touch(KeyId(key as u32));
        }
    }

    fn loosened_by_budget(&mut self, budget: BudgetId) {
        let key = self.bank.budgets[budget.0 as usize].keys.first().copied().unwrap_or(0);
        self.loosen(KeyId(key as u32));
    }
}
