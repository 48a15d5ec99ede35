//! What another configuration changes, by name: what a running process can take over, and what needs a restart. Pure.

use std::collections::BTreeSet;

use crate::config::{ApiConfig, Config, Policy, Provider, StoreConfig, WebhooksConfig};
use crate::pace::PoolSpec;

/// The differences between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is taken over, by its place in the file.
    pub taken: Vec<String>,
    /// What cannot be changed while the process runs.
    pub refused: Vec<String>,
    /// What begins anew for it.
    pub concerned: Concerned,
}

/// Parts of a process that work by what changed: they begin anew, and all others go on untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Concerned {
    /// Providers that are added, removed or changed: their dispatchers.
    pub providers: BTreeSet<String>,
    /// What delivers webhooks.
    pub notifier: bool,
    /// What publishes completions.
    pub publisher: bool,
    /// What makes recurring jobs, replays, rescues and removes.
    pub upkeep: bool,
}

impl Concerned {
    /// Everything: a process begins.
    pub fn all(config: &Config) -> Self {
        let providers = config.providers.iter().map(|provider| provider.name.clone()).collect();
        Self { providers, notifier: true, publisher: true, upkeep: true }
    }

    /// Whether everything goes on.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl Changes {
    /// From a configuration to another one.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut changes = Self::default();
        // Every field is named, so that a new one cannot be forgotten here.
        let Config { path: _, store, queue, publishes_events, api, metrics, webhooks, providers, schedules } = new;
        let StoreConfig { url, keep_succeeded, keep_dead } = store;
        let ApiConfig { listen, tokens, envelope_bytes_max, public_url } = api;
        changes.refuse("store.url", old.store.url != *url);
        changes.refuse("queue.url", old.queue != *queue);
        changes.refuse("queue.events", old.publishes_events != *publishes_events);
        changes.refuse("api.listen", old.api.listen != *listen);
        changes.refuse("metrics.listen", old.metrics != *metrics);
        changes.take("api.tokens", old.api.tokens != *tokens);
        changes.take("api.envelope_bytes_max", old.api.envelope_bytes_max != *envelope_bytes_max);
        let kept = (old.store.keep_succeeded, old.store.keep_dead);
        let retention = changes.take("store.retention", kept != (*keep_succeeded, *keep_dead));
        let url = changes.take("api.public_url", old.api.public_url != *public_url);
        let hooks = changes.webhooks(&old.webhooks, webhooks);
        let waits = old.webhooks.schedule != webhooks.schedule;
        let providers = changes.providers(&old.providers, providers);
        let schedules = changes.take("schedules", old.schedules != *schedules);
        changes.concerned = Concerned {
            notifier: hooks || url,
            publisher: waits || url,
            // Jobs that are made or replayed are checked against providers and webhooks.
            upkeep: retention || schedules || hooks || !providers.is_empty(),
            providers,
        };
        changes
    }

    /// Whether both say the same.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.refused.is_empty()
    }

    fn take(&mut self, place: impl Into<String>, differs: bool) -> bool {
        if differs {
            self.taken.push(place.into());
        }
        differs
    }

    fn refuse(&mut self, place: &str, differs: bool) {
        if differs {
            self.refused.push(place.to_owned());
        }
    }

    fn webhooks(&mut self, old: &WebhooksConfig, new: &WebhooksConfig) -> bool {
        let WebhooksConfig { secret, allow_http, allow_networks, timeout, schedule } = new;
        let places = [
            ("webhooks.secret", old.secret != *secret),
            ("webhooks.allow_http", old.allow_http != *allow_http),
            ("webhooks.allow_networks", old.allow_networks != *allow_networks),
            ("webhooks.timeout", old.timeout != *timeout),
            ("webhooks.schedule", old.schedule != *schedule),
        ];
        places.into_iter().fold(false, |any, (place, differs)| self.take(place, differs) || any)
    }

    /// Those that are added, removed or changed.
    fn providers(&mut self, old: &[Provider], new: &[Provider]) -> BTreeSet<String> {
        let named = |list: &[Provider]| list.iter().map(|provider| provider.name.clone()).collect::<BTreeSet<_>>();
        let mut concerned: BTreeSet<String> = named(old).difference(&named(new)).cloned().collect();
        self.taken.extend(concerned.iter().map(|name| format!("provider {name:?} removed")));
        for provider in new {
            let name = &provider.name;
            let places = match old.iter().find(|old| old.name == *name) {
                None => vec![format!("provider {name:?} added")],
                Some(old) => {
                    let places = of_provider(old, provider).into_iter();
                    places.map(|place| format!("provider {name:?}: {place}")).collect()
                }
            };
            if !places.is_empty() {
                concerned.insert(name.clone());
            }
            self.taken.extend(places);
        }
        concerned
    }
}

/// The keys of a provider that differ.
fn of_provider(old: &Provider, new: &Provider) -> Vec<&'static str> {
    let Provider { name: _, base_url, auth, policy, ca_file, pool, secrets, stored, routes, quotas, breaker, windows } =
        new;
    let PoolSpec { safety, counted_within, limits, key_limits, keys, budgets, routes: route_limits, lanes } = pool;
    let Policy { retry, timeout, idempotency_header, is_idempotent, answers, .. } = &**policy;
    let header = (&old.policy.idempotency_header, old.policy.is_idempotent);
    let places = [
        ("base_url", old.base_url != *base_url),
        ("auth", old.auth != *auth),
        ("retry", old.policy.retry != *retry),
        ("timeout", old.policy.timeout != *timeout),
        ("connect_timeout", old.policy.connect_timeout() != policy.connect_timeout()),
        ("first_byte_timeout", old.policy.first_byte_timeout() != policy.first_byte_timeout()),
        ("idempotency_header", header != (idempotency_header, *is_idempotent)),
        ("success", old.policy.answers.success != answers.success),
        ("outcomes", old.policy.answers.rules != answers.rules),
        ("ca_file", old.ca_file != *ca_file),
        ("safety", old.pool.safety != *safety),
        ("counted_within", old.pool.counted_within != *counted_within),
        ("limits", old.pool.limits != *limits),
        ("key_limits", old.pool.key_limits != *key_limits),
        ("resets", old.quotas != *quotas),
        ("keys", old.pool.keys != *keys || old.secrets != *secrets || old.stored != *stored),
        ("budget", old.pool.budgets != *budgets),
        ("route", old.routes != *routes || old.pool.routes != *route_limits),
        ("lanes", old.pool.lanes != *lanes),
        ("breaker", old.breaker != *breaker),
        ("window", old.windows != *windows),
    ];
    places.into_iter().filter(|(_, differs)| *differs).map(|(place, _)| place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
[api]
tokens = [ { name = "ops", secret = "env:TOKEN", scopes = ["admin"] } ]
[webhooks]
timeout = "10s"
[[provider]]
name = "a"
base_url = "https://a.example"
keys = [ { label = "k", secret = "env:KEY" } ]
limits = [ { requests = 5, per = "1s" } ]
[[provider.route]]
match = "/x"
timeout = "5s"
[[provider]]
name = "b"
base_url = "https://b.example"
"#;

    fn config(text: &str, env: &[(&str, &str)]) -> Config {
        let usual = [("TOKEN", "0123456789abcdef"), ("OTHER", "fedcba9876543210"), ("KEY", "secret-1")];
        let given = env.iter().chain(&usual).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, None, &given.collect::<Vec<_>>()).expect("valid")
    }

    #[test]
    fn every_change_is_told_by_its_place() {
        let old = config(BASE, &[]);
        assert!(Changes::between(&old, &config(BASE, &[])).is_empty());
        let (a, b, b_and_c): (&[&str], &[&str], &[&str]) = (&["a"], &["b"], &["b", "c"]);
        let hooks = |concerned: &Concerned| (concerned.notifier, concerned.publisher, concerned.upkeep);
        for (from, to, taken, refused, providers, others) in [
            ("requests = 5", "requests = 6", "provider \"a\": limits", "", a, (false, false, true)),
            ("match = \"/x\"", "match = \"/y\"", "provider \"a\": route", "", a, (false, false, true)),
            ("timeout = \"5s\"", "timeout = \"6s\"", "provider \"a\": route", "", a, (false, false, true)),
            (
                "\"https://b.example\"",
                "\"https://b.example/v2\"",
                "provider \"b\": base_url",
                "",
                b,
                (false, false, true),
            ),
            (
                "name = \"b\"",
                "name = \"c\"",
                "provider \"b\" removed, provider \"c\" added",
                "",
                b_and_c,
                (false, false, true),
            ),
            ("timeout = \"10s\"", "timeout = \"11s\"", "webhooks.timeout", "", &[], (true, false, true)),
            (
                "timeout = \"10s\"",
                "schedule = [\"1s\"]",
                "webhooks.timeout, webhooks.schedule",
                "",
                &[],
                (true, true, true),
            ),
            ("[api]", "[api]\npublic_url = \"https://p.example\"", "api.public_url", "", &[], (true, true, false)),
            ("\"env:TOKEN\"", "\"env:OTHER\"", "api.tokens", "", &[], (false, false, false)),
            ("[api]", "[store.retention]\ndead = \"1d\"\n[api]", "store.retention", "", &[], (false, false, true)),
            ("[api]", "[store]\nurl = \"sqlite://other.db\"\n[api]", "", "store.url", &[], (false, false, false)),
            ("[api]", "[queue]\nurl = \"amqp://x\"\n[api]", "", "queue.url", &[], (false, false, false)),
            ("[api]", "[api]\nlisten = \"127.0.0.1:1\"", "", "api.listen", &[], (false, false, false)),
            ("[api]", "[metrics]\nlisten = \"127.0.0.1:1\"\n[api]", "", "metrics.listen", &[], (false, false, false)),
        ] {
            let changes = Changes::between(&old, &config(&BASE.replacen(from, to, 1), &[]));
            assert_eq!((&*changes.taken.join(", "), &*changes.refused.join(", ")), (taken, refused), "{to}");
            let concerned: Vec<&str> = changes.concerned.providers.iter().map(String::as_str).collect();
            assert_eq!((&concerned[..], hooks(&changes.concerned)), (providers, others), "{to}");
        }
        let rotated = Changes::between(&old, &config(BASE, &[("KEY", "secret-2")]));
        assert_eq!(rotated.taken, ["provider \"a\": keys"], "another secret under the same label");
        assert!(!format!("{rotated:?}").contains("secret-2"));
    }
}
