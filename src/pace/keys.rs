//! Keys that change while running: their secrets come, change and go; what was spent with them stays.

use super::Time;
use super::ask::{BudgetId, KeyId};
use super::bank::Standing;
use super::group::GroupId;
use super::pool::Pool;

impl Pool {
    /// Says whether the secret of a key is here: nothing is sent with one that has none. Whether that is news.
    pub fn set_present(&mut self, key: KeyId, present: bool) -> bool {
        match self.bank.keys.get_mut(key.0 as usize) {
            Some(state) if state.absent == present => state.absent = !present,
            _ => return false,
        }
        self.loosen(key);
        true
    }

    /// Gives a key another secret: that the one before was refused says nothing about it. What was spent counts on,
    /// since the provider counts by account. Whether it is another one.
    pub fn renew_secret(&mut self, key: KeyId, secret: u64) -> bool {
        let Some(state) = self.bank.keys.get_mut(key.0 as usize) else { return false };
        if state.secret == secret {
            return false;
        }
        state.secret = secret;
        state.standing = Standing::Open;
        let budget = &mut self.bank.budgets[state.budget];
        if budget.name.is_none() {
            budget.parked_until = Time::ZERO;
        }
        self.loosen(key);
        true
    }

    /// What tells the secret of a key from others; zero where nothing does.
    pub fn secret_of(&self, key: KeyId) -> u64 {
        self.bank.keys.get(key.0 as usize).map_or(0, |key| key.secret)
    }

    /// The name of a group, as of [`super::PoolSpec::groups`]; keys that were added are among them.
    pub fn group_name(&self, group: GroupId) -> &str {
        if self.bank.groups.is_one() {
            return "";
        }
        let Some(budget) = self.bank.budgets.get(group.0 as usize) else { return "" };
        let own = || budget.keys.first().map(|&key| self.bank.keys[key].label.as_str());
        budget.name.as_deref().or_else(own).unwrap_or_default()
    }

    /// The declared budget of that name, whether or not it has keys.
    pub fn declared_budget(&self, name: &str) -> Option<BudgetId> {
        let place = self.bank.budgets.iter().position(|budget| budget.name.as_deref() == Some(name));
        place.map(|place| BudgetId(place as u32))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        Acquire, Algorithm, Ask, BudgetSpec, Hold, KeySpec, LimitSpec, Pin, PoolSpec, Saved, Since, Why, Word,
    };
    use super::*;

    fn spec(limits: Vec<LimitSpec>) -> PoolSpec {
        PoolSpec {
            limits,
            key_limits: vec![LimitSpec::requests(3, Duration::from_secs(10), Algorithm::SlidingWindow)],
            keys: vec![KeySpec { label: "a".into(), weight: 1, budget: None }],
            budgets: vec![BudgetSpec { name: "org".into(), limits: Vec::new() }],
            ..PoolSpec::default()
        }
    }

    fn t(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn new_key(label: &str, budget: Option<usize>) -> KeySpec {
        KeySpec { label: label.into(), weight: 1, budget }
    }

    /// Calls that may leave with one key at once.
    fn calls(pool: &mut Pool, key: KeyId, now: Time) -> usize {
        let ask = Ask { pin: Some(Pin::Key(key)), ..Ask::default() };
        let mut count = 0;
        while let Acquire::Granted(permit) = pool.acquire(&ask, now) {
            let mut flight = pool.depart(permit, now);
            pool.first_byte(&mut flight, now, None);
            pool.finish(flight, now, None);
            count += 1;
        }
        count
    }

    #[test]
    fn a_key_that_is_added_has_the_limits_of_the_others_and_a_group_of_its_own() {
        let mut pool = Pool::new(&spec(Vec::new()), t(0)).expect("a pool");
        assert_eq!(calls(&mut pool, KeyId(0), t(1)), 3);
        let b = pool.add_key(&new_key("b", None)).expect("added");
        let c = pool.add_key(&new_key("c", Some(0))).expect("added");
        assert_eq!(pool.group_count(), 3, "org, a, b");
        assert_eq!(pool.group_name(GroupId(2)), "b");
        assert_eq!(pool.group_of(c), pool.declared_budget("org").map(|budget| GroupId(budget.0)));
        pool.set_hold(GroupId(2), Hold::Away);
        assert_eq!(calls(&mut pool, b, t(1)), 0, "not held here");
        pool.set_hold(GroupId(2), Hold::Open);
        assert_eq!((calls(&mut pool, b, t(1)), calls(&mut pool, c, t(1))), (3, 3));
        assert_eq!(calls(&mut pool, b, t(2)), 0, "they hold for it, too");
        let shared = vec![LimitSpec::requests(4, Duration::from_secs(10), Algorithm::SlidingWindow)];
        let mut pool = Pool::new(&spec(shared), t(0)).expect("a pool");
        let b = pool.add_key(&new_key("b", None)).expect("added");
        assert_eq!((pool.group_count(), pool.group_name(GroupId(0))), (1, ""));
        assert_eq!(calls(&mut pool, KeyId(0), t(1)) + calls(&mut pool, b, t(1)), 4, "the provider's limit is shared");
        assert!(pool.add_key(&new_key("d", Some(7))).is_err(), "no such budget");
    }

    #[test]
    fn nothing_is_sent_with_a_key_whose_secret_is_not_here() {
        let mut pool = Pool::new(&spec(Vec::new()), t(0)).expect("a pool");
        assert!(pool.set_present(KeyId(0), false));
        assert!(!pool.set_present(KeyId(0), false), "that is no news");
        // An operator's word to use it does not bring it.
        pool.order_key(KeyId(0), Word { held: false, version: 1 });
        assert_eq!(calls(&mut pool, KeyId(0), t(1)), 0);
        assert_eq!(pool.allowance(Duration::from_secs(5), t(1)), 0);
        assert!(pool.set_present(KeyId(0), true));
        assert_eq!(calls(&mut pool, KeyId(0), t(1)), 3);
    }

    #[test]
    fn another_secret_is_not_refused_for_the_one_before_and_spends_on() {
        let mut pool = Pool::new(&spec(Vec::new()), t(0)).expect("a pool");
        pool.renew_secret(KeyId(0), 7);
        assert_eq!(calls(&mut pool, KeyId(0), t(1)), 3);
        pool.disable_key(KeyId(0), None);
        assert!(!pool.renew_secret(KeyId(0), 7), "it is the same");
        let ask = Ask { pin: Some(Pin::Key(KeyId(0))), ..Ask::default() };
        let refused = pool.acquire(&ask, t(2));
        assert!(matches!(refused, Acquire::Blocked { why: Why::KeyDisabled(_), .. }), "{refused:?}");
        assert!(pool.renew_secret(KeyId(0), 8));
        assert_eq!(calls(&mut pool, KeyId(0), t(3)), 0, "the window of the account is still full");
        assert_eq!(calls(&mut pool, KeyId(0), t(20)), 3);
    }

    #[test]
    fn what_was_spent_with_an_added_key_outlives_the_process() {
        let mut pool = Pool::new(&spec(Vec::new()), t(0)).expect("a pool");
        let b = pool.add_key(&new_key("b", None)).expect("added");
        assert_eq!(calls(&mut pool, b, t(1)), 3);
        let saved: Saved = pool.save_group(GroupId(2), t(2));
        let mut next = Pool::new(&spec(Vec::new()), t(2)).expect("a pool");
        let b = next.add_key(&new_key("b", None)).expect("added");
        next.restore(&saved, Duration::ZERO, Since::Nothing, t(2));
        assert_eq!(calls(&mut next, b, t(3)), 0);
        assert_eq!(calls(&mut next, KeyId(0), t(3)), 3, "nothing of the others");
    }
}
