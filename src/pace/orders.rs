//! What operators say, apart from what is learnt from the provider: a key that an operator took out of use is never
//! tried, however its probes ended; one that is put back is in use at once, whatever was learnt before.
//!
//! Orders are repeated: after a start, after a takeover, now and then. Each has a version, and what was learnt is
//! forgotten only when it is news; which one was heard of is saved beside what was learnt since.

use super::ask::{BudgetId, KeyId};
use super::pool::Pool;
use super::{Time, bank::Standing};

/// An operator's last word about something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Out of use until the next word; else in use, whatever was learnt before.
    pub held: bool,
    /// Rises with every word about the same thing, from 1.
    pub version: u64,
}

impl Pool {
    /// Nothing is sent to this provider while it is held. Whether that is news.
    pub fn order_provider(&mut self, word: Word) -> bool {
        let news = word.version > self.bank.heard;
        let changed = self.bank.held != word.held;
        self.bank.held = word.held;
        self.bank.heard = self.bank.heard.max(word.version);
        if news && !word.held {
            self.resume_provider();
        } else if changed {
            self.loosen(KeyId(0));
        }
        news
    }

    /// Nothing is sent with this key while it is held, not even a probe. Whether that is news.
    pub fn order_key(&mut self, key: KeyId, word: Word) -> bool {
        let Some(state) = self.bank.keys.get_mut(key.0 as usize) else { return false };
        let news = word.version > state.heard;
        let changed = state.held != word.held;
        state.held = word.held;
        state.heard = state.heard.max(word.version);
        if news && !word.held {
            state.standing = Standing::Open;
            state.paused_until = Time::ZERO;
            let budget = BudgetId(state.budget as u32);
            if self.bank.budgets[budget.0 as usize].name.is_none() {
                // A key without a declared budget is its own.
                self.resume_budget(budget);
            }
        }
        if news || changed {
            self.loosen(key);
        }
        news
    }

    /// The budget is in use again, whatever was learnt before; budgets cannot be held. Whether that is news.
    pub fn order_budget(&mut self, budget: BudgetId, word: Word) -> bool {
        let Some(state) = self.bank.budgets.get_mut(budget.0 as usize) else { return false };
        let news = word.version > state.heard;
        state.heard = state.heard.max(word.version);
        if news {
            self.resume_budget(budget);
        }
        news
    }

    /// The budget of that name, or of the key with that label where it has none of its own.
    pub fn budget_named(&self, name: &str) -> Option<BudgetId> {
        let declared = self.bank.budgets.iter().position(|budget| budget.name.as_deref() == Some(name));
        let own = || {
            let key = self.key_named(name)?;
            let budget = self.bank.keys[key.0 as usize].budget;
            self.bank.budgets[budget].name.is_none().then_some(budget)
        };
        declared.or_else(own).map(|place| BudgetId(place as u32))
    }

    /// The name of a budget, if it was declared.
    pub fn budget_name(&self, budget: BudgetId) -> Option<&str> {
        self.bank.budgets.get(budget.0 as usize)?.name.as_deref()
    }

    /// The key of that label.
    pub fn key_named(&self, label: &str) -> Option<KeyId> {
        self.bank.keys.iter().position(|key| key.label == label).map(|place| KeyId(place as u32))
    }

    /// Tells the secret of a key from another one under the same label, by a number that is not the secret: what is
    /// restored of another one's refusal is dropped. To be told before [`Pool::restore`].
    pub fn identify(&mut self, key: KeyId, secret: u64) {
        if let Some(state) = self.bank.keys.get_mut(key.0 as usize) {
            state.secret = secret;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{
        Acquire, Algorithm, Ask, BudgetSpec, KeySpec, KeyState, LimitSpec, Pin, PoolSpec, Saved, Since, Why,
    };
    use super::*;

    fn spec() -> PoolSpec {
        let key = |label: &str, budget| KeySpec { label: label.into(), weight: 1, budget };
        PoolSpec {
            key_limits: vec![LimitSpec::requests(5, Duration::from_secs(1), Algorithm::SlidingWindow)],
            keys: vec![key("a", None), key("b", None), key("c", Some(0))],
            budgets: vec![BudgetSpec { name: "org".into(), limits: Vec::new() }],
            ..PoolSpec::default()
        }
    }

    fn t(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn pool() -> Pool {
        Pool::new(&spec(), t(0)).expect("a pool")
    }

    const fn word(held: bool, version: u64) -> Word {
        Word { held, version }
    }

    const A: KeyId = KeyId(0);

    fn pinned(pool: &mut Pool, key: KeyId, now: Time) -> Result<(), Why> {
        match pool.acquire(&Ask { pin: Some(Pin::Key(key)), ..Ask::default() }, now) {
            Acquire::Granted(permit) => {
                pool.abandon(permit, now);
                Ok(())
            }
            Acquire::Blocked { why, until } => {
                assert_eq!(until, None, "only an operator ends it");
                Err(why)
            }
            other => panic!("{other:?}"),
        }
    }

    fn state(pool: &mut Pool, now: Time) -> KeyState {
        pool.snapshot(now).budgets.into_iter().flat_map(|b| b.keys).find(|k| k.id == A).expect("a key").state
    }

    /// Saved by one process and restored by the next, which hears all orders again.
    fn next(pool: &mut Pool, now: Time) -> Pool {
        let saved: Saved =
            serde_json::from_str(&serde_json::to_string(&pool.save(now)).expect("json")).expect("the same");
        let mut next = self::pool();
        next.restore(&saved, Duration::ZERO, Since::Nothing, now);
        next
    }

    #[test]
    fn a_held_key_is_never_tried_and_the_others_go_on() {
        let mut pool = pool();
        assert!(pool.order_key(A, word(true, 1)));
        assert!(!pool.order_key(A, word(true, 1)), "that is no news");
        assert_eq!(pinned(&mut pool, A, t(1)), Err(Why::KeyDisabled(A)));
        assert_eq!(pinned(&mut pool, KeyId(1), t(1)), Ok(()));
        // What is learnt meanwhile changes nothing: neither a time to probe nor a probe that went well.
        pool.disable_key(A, Some(t(2)));
        assert_eq!(pinned(&mut pool, A, t(3)), Err(Why::KeyDisabled(A)));
        pool.enable_key(A);
        assert_eq!(pinned(&mut pool, A, t(4)), Err(Why::KeyDisabled(A)));
        assert_eq!(state(&mut pool, t(4)), KeyState::Held);
        let all = self::pool().allowance(Duration::from_secs(1), t(4));
        assert_eq!(pool.allowance(Duration::from_secs(1), t(4)), all / 3 * 2, "it allows nothing");
    }

    #[test]
    fn what_is_put_back_into_use_forgets_what_was_learnt_once() {
        let mut pool = pool();
        pool.disable_key(A, None);
        pool.pause_key(A, t(100));
        pool.park_budget(pool.budget_of(A).expect("a budget"), None);
        assert!(pool.order_key(A, word(false, 1)));
        assert_eq!(pinned(&mut pool, A, t(1)), Ok(()));
        pool.disable_key(A, None);
        assert!(!pool.order_key(A, word(false, 1)));
        assert_eq!(pinned(&mut pool, A, t(2)), Err(Why::KeyDisabled(A)), "it was refused after that word");
        let mut next = next(&mut pool, t(3));
        assert!(!next.order_key(A, word(false, 1)), "nor does a successor take it for news");
        assert_eq!(pinned(&mut next, A, t(3)), Err(Why::KeyDisabled(A)));
        assert!(next.order_key(A, word(false, 2)));
        assert_eq!(pinned(&mut next, A, t(3)), Ok(()));
    }

    #[test]
    fn an_order_that_nobody_heard_is_news_to_the_successor() {
        let mut pool = pool();
        pool.disable_key(A, None);
        let mut next = next(&mut pool, t(1));
        assert_eq!(pinned(&mut next, A, t(1)), Err(Why::KeyDisabled(A)));
        assert!(next.order_key(A, word(false, 1)));
        assert_eq!(pinned(&mut next, A, t(1)), Ok(()));
    }

    #[test]
    fn a_declared_budget_has_its_own_word() {
        let mut pool = pool();
        let (c, org) = (KeyId(2), pool.budget_named("org").expect("a budget"));
        pool.park_budget(org, None);
        pool.order_key(c, word(false, 1));
        assert_eq!(pinned(&mut pool, c, t(1)), Err(Why::BudgetParked(org)), "its quota is not the key's");
        assert!(pool.order_budget(org, word(false, 1)));
        assert_eq!(pinned(&mut pool, c, t(1)), Ok(()));
        pool.park_budget(org, None);
        let mut next = next(&mut pool, t(2));
        assert!(!next.order_budget(org, word(false, 1)));
        assert_eq!(pinned(&mut next, c, t(2)), Err(Why::BudgetParked(org)));
        assert_eq!(pool.budget_named("c"), None, "c has no budget of its own");
        assert_eq!(pool.budget_named("a"), pool.budget_of(A));
    }

    #[test]
    fn a_held_provider_sends_nothing_until_it_is_let_go_on() {
        let mut pool = pool();
        pool.order_provider(word(true, 1));
        assert_eq!(pinned(&mut pool, A, t(1)), Err(Why::ProviderPaused));
        assert_eq!(pool.allowance(Duration::from_secs(5), t(1)), 0);
        assert!(pool.snapshot(t(1)).held);
        pool.resume_provider();
        assert_eq!(pinned(&mut pool, A, t(1)), Err(Why::ProviderPaused), "that ends what was learnt");
        pool.order_provider(word(false, 2));
        assert_eq!(pinned(&mut pool, A, t(1)), Ok(()));
    }

    #[test]
    fn another_secret_under_the_same_label_is_another_key() {
        let mut pool = pool();
        pool.identify(A, 7);
        pool.disable_key(A, None);
        let saved = pool.save(t(1));
        for (secret, works) in [(7, false), (8, true)] {
            let mut next = self::pool();
            next.identify(A, secret);
            next.restore(&saved, Duration::ZERO, Since::Nothing, t(1));
            assert_eq!(pinned(&mut next, A, t(1)).is_ok(), works, "secret {secret}");
        }
    }

    #[test]
    fn a_word_about_the_provider_is_news_once() {
        let mut pool = pool();
        let granted = |pool: &mut Pool| match pool.acquire(&Ask::default(), t(1)) {
            Acquire::Granted(permit) => {
                pool.abandon(permit, t(1));
                true
            }
            _ => false,
        };
        assert!(pool.order_provider(word(true, 2)) && !granted(&mut pool));
        assert!(!pool.order_provider(word(true, 2)) && !pool.order_provider(word(true, 1)) && !granted(&mut pool));
        pool.pause_provider(Time::MAX);
        assert!(pool.order_provider(word(false, 3)) && granted(&mut pool), "whatever was learnt before");
        pool.pause_provider(Time::MAX);
        assert!(!pool.order_provider(word(false, 3)) && !granted(&mut pool), "learnt since");
        assert!(pool.order_provider(word(true, 4)) && !granted(&mut pool));
    }

    #[test]
    fn a_key_set_aside_for_good_is_tried_when_somebody_says_so() {
        let mut pool = pool();
        pool.disable_key(A, None);
        let ask = Ask { pin: Some(Pin::Key(A)), ..Ask::default() };
        assert!(!matches!(pool.acquire(&ask, t(1_000)), Acquire::Granted(_)));
        pool.probe_key(A, t(1_000));
        let Acquire::Granted(permit) = pool.acquire(&ask, t(1_000)) else { panic!("one call may try") };
        assert!(permit.is_probe());
        pool.abandon(permit, t(1_000));
        let names = [0, 1, 2, 3].map(|budget| pool.budget_name(BudgetId(budget)).map(str::to_owned));
        assert_eq!(names, [Some("org".to_owned()), None, None, None]);
    }
}
