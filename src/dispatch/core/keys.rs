//! Keys that are added while running, and secrets that come, change and go.

use super::Core;
use super::orders::{Freed, names_beside};
use crate::pace::{GroupId, KeyId, KeySpec};

/// A key as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyNews {
    /// Its label.
    pub label: String,
    /// Its share where several keys could serve.
    pub weight: u32,
    /// The declared budget that it belongs to.
    pub budget: Option<String>,
    /// What tells its secret from others; `None`: its secret is not here.
    pub secret: Option<u64>,
}

/// What became of the news.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// Which key each of them is; `None`: it belongs to a budget that is not configured.
    pub keys: Vec<Option<KeyId>>,
    /// There are pacing groups that were not there before.
    pub groups_added: bool,
    /// Which waiting jobs may go now.
    pub freed: Option<Freed>,
}

impl Core {
    /// Hears of stored keys: unknown ones are added, as keys that were never used. None of them is a key of this
    /// provider's configuration whose secret is there.
    pub fn hear_keys(&mut self, news: &[KeyNews]) -> Heard {
        let mut heard = Heard::default();
        let (mut pins, mut added) = (Vec::new(), false);
        for key in news {
            let known = self.pool.key_named(&key.label);
            let id = known.or_else(|| self.add_key(key));
            heard.keys.push(id);
            let Some(id) = id else { continue };
            added |= known.is_none();
            let renewed = key.secret.is_some_and(|secret| self.pool.renew_secret(id, secret));
            let came = self.pool.set_present(id, key.secret.is_some()) && key.secret.is_some();
            if renewed || came || (known.is_none() && key.secret.is_some()) {
                pins.extend(names_beside(&self.pool, &key.label));
            }
        }
        if added {
            heard.groups_added = self.open_new_groups();
        }
        let ordered = self.obey();
        heard.freed = match (ordered, pins.is_empty()) {
            (Some(Freed::All), _) => Some(Freed::All),
            (Some(Freed::Pins(more)), _) => {
                pins.extend(more);
                Some(Freed::Pins(pins))
            }
            (None, false) => Some(Freed::Pins(pins)),
            (None, true) => None,
        };
        heard
    }

    /// Nothing is sent without a key from now on, though the configuration has none; or it is again.
    pub fn go_keyless(&mut self, allowed: bool) {
        self.pool.set_present(KeyId(0), allowed);
    }

    /// The names of all pacing groups, in their order.
    pub fn group_names(&self) -> Vec<String> {
        (0..self.pool.group_count()).map(|n| self.pool.group_name(GroupId(n as u32)).to_owned()).collect()
    }

    /// The key of that label.
    pub fn key_named(&self, label: &str) -> Option<KeyId> {
        self.pool.key_named(label)
    }

    fn add_key(&mut self, key: &KeyNews) -> Option<KeyId> {
        let budget = match &key.budget {
            None => None,
            Some(name) => Some(self.pool.declared_budget(name)?.0 as usize),
        };
        let spec = KeySpec { label: key.label.clone(), weight: key.weight, budget };
        let id = self.pool.add_key(&spec).ok()?;
        self.pool.set_present(id, false);
        Some(id)
    }

    /// Groups that the pool has and nobody knew of: nothing of them is held. Whether there are any.
    fn open_new_groups(&mut self) -> bool {
        let before = self.group_count();
        for number in before..self.pool.group_count() {
            self.groups.add();
            self.settle(GroupId(number as u32), crate::pace::Time::ZERO);
        }
        self.group_count() > before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::dispatch::core::{Allowance, Event, Now};
    use crate::pace::Time;

    const CONFIG: &str = r#"
        [[provider]]
        name = "geo"
        base_url = "http://127.0.0.1:1"
        keys = [ { label = "a", secret = "env:A" } ]
        key_limits = [ { requests = 5, per = "1s", algorithm = "sliding_window" } ]
        [[provider.budget]]
        name = "org"
        keys = [ { label = "b", secret = "vault" } ]
    "#;

    fn core() -> Core {
        let env = [("A".to_owned(), "secret-of-a".to_owned())];
        let config = Config::parse(CONFIG, None, &env).expect("valid");
        Core::new(Arc::new(config.providers[0].clone()), Time::ZERO).expect("a core")
    }

    fn news(label: &str, budget: Option<&str>, secret: Option<u64>) -> KeyNews {
        KeyNews { label: label.to_owned(), weight: 1, budget: budget.map(str::to_owned), secret }
    }

    fn now() -> Now {
        Now { mono: Time::ZERO + std::time::Duration::from_secs(1), wall: 1_000 }
    }

    #[test]
    fn an_added_key_is_used_once_its_group_is_held() {
        let mut core = core();
        let before = core.allowance(now().mono);
        assert!(before > 0, "of a alone: the secret of b is not here");
        let heard = core.hear_keys(&[news("c", None, Some(3))]);
        assert_eq!((heard.keys.as_slice(), heard.groups_added), (&[Some(KeyId(2))][..], true));
        assert_eq!(heard.freed, Some(Freed::Pins(vec!["c".to_owned()])));
        assert_eq!(core.group_names(), ["org", "a", "c"]);
        assert_eq!(core.allowance(now().mono), before, "its group is not held here");
        core.inherit(&[crate::dispatch::core::Heir { group: GroupId(2), left: Some(Vec::new()) }], now());
        core.allow(GroupId(2), Allowance { until: Time::MAX, calls: u64::MAX, open: u64::MAX }, now().mono);
        assert_eq!(core.allowance(now().mono), before * 2);
        assert_eq!(core.hear_keys(&[news("c", None, Some(3))]).freed, None, "that is no news");
        core.handle(Event::Suspend(vec![GroupId(2)]), now(), &mut || 0.0);
        assert_eq!(core.allowance(now().mono), before);
    }

    #[test]
    fn a_configured_key_waits_for_its_secret_and_one_of_an_unknown_budget_is_left_out() {
        let mut core = core();
        let before = core.allowance(now().mono);
        let heard = core.hear_keys(&[news("b", Some("org"), Some(1)), news("x", Some("gone"), Some(2))]);
        assert_eq!((heard.keys.as_slice(), heard.groups_added), (&[Some(KeyId(1)), None][..], false));
        assert_eq!(core.allowance(now().mono), before * 2);
        let heard = core.hear_keys(&[news("b", Some("org"), None)]);
        assert_eq!(heard.freed, None);
        assert_eq!(core.allowance(now().mono), before, "its secret was removed");
    }
}
