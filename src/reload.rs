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
    /// Something of it concerns more than the answers of the API: what dispatches, notifies and schedules begins anew.
    pub restarts_work: bool,
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
        let kept = (old.store.keep_succeeded, old.store.keep_dead);
        changes.take("store.retention", kept != (*keep_succeeded, *keep_dead));
        changes.take("api.envelope_bytes_max", old.api.envelope_bytes_max != *envelope_bytes_max);
        changes.take("api.public_url", old.api.public_url != *public_url);
        changes.webhooks(&old.webhooks, webhooks);
        changes.providers(&old.providers, providers);
        changes.take("schedules", old.schedules != *schedules);
        changes.restarts_work = !changes.taken.is_empty();
        changes.take("api.tokens", old.api.tokens != *tokens);
        changes
    }

    /// Whether both say the same.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty() && self.refused.is_empty()
    }

    fn take(&mut self, place: impl Into<String>, differs: bool) {
        if differs {
            self.taken.push(place.into());
        }
    }

    fn refuse(&mut self, place: &str, differs: bool) {
        if differs {
            self.refused.push(place.to_owned());
        }
    }

    fn webhooks(&mut self, old: &WebhooksConfig, new: &WebhooksConfig) {
        let WebhooksConfig { secret, allow_http, allow_networks, timeout, schedule } = new;
        self.take("webhooks.secret", old.secret != *secret);
        self.take("webhooks.allow_http", old.allow_http != *allow_http);
        self.take("webhooks.allow_networks", old.allow_networks != *allow_networks);
        self.take("webhooks.timeout", old.timeout != *timeout);
        self.take("webhooks.schedule", old.schedule != *schedule);
    }

    fn providers(&mut self, old: &[Provider], new: &[Provider]) {
        let named = |list: &[Provider]| list.iter().map(|provider| provider.name.clone()).collect::<BTreeSet<_>>();
        for name in named(old).difference(&named(new)) {
            self.taken.push(format!("provider {name:?} removed"));
        }
        for provider in new {
            let name = &provider.name;
            match old.iter().find(|old| old.name == *name) {
                None => self.taken.push(format!("provider {name:?} added")),
                Some(old) => {
                    let places = of_provider(old, provider);
                    self.taken.extend(places.into_iter().map(|place| format!("provider {name:?}: {place}")));
                }
            }
        }
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
        for (from, to, taken, refused, restarts) in [
            ("requests = 5", "requests = 6", "provider \"a\": limits", "", true),
            ("match = \"/x\"", "match = \"/y\"", "provider \"a\": route", "", true),
            ("timeout = \"5s\"", "timeout = \"6s\"", "provider \"a\": route", "", true),
            ("timeout = \"10s\"", "timeout = \"11s\"", "webhooks.timeout", "", true),
            ("name = \"b\"", "name = \"c\"", "provider \"b\" removed, provider \"c\" added", "", true),
            ("\"env:TOKEN\"", "\"env:OTHER\"", "api.tokens", "", false),
            ("[api]", "[store.retention]\ndead = \"1d\"\n[api]", "store.retention", "", true),
            ("[api]", "[store]\nurl = \"sqlite://other.db\"\n[api]", "", "store.url", false),
            ("[api]", "[queue]\nurl = \"amqp://x\"\n[api]", "", "queue.url", false),
            ("[api]", "[api]\nlisten = \"127.0.0.1:1\"", "", "api.listen", false),
            ("[api]", "[metrics]\nlisten = \"127.0.0.1:1\"\n[api]", "", "metrics.listen", false),
        ] {
            let changes = Changes::between(&old, &config(&BASE.replacen(from, to, 1), &[]));
            let told = (changes.taken.join(", "), changes.refused.join(", "), changes.restarts_work);
            assert_eq!(told, (taken.to_owned(), refused.to_owned(), restarts), "{to}");
        }
        let rotated = Changes::between(&old, &config(BASE, &[("KEY", "secret-2")]));
        assert_eq!(rotated.taken, ["provider \"a\": keys"], "another secret under the same label");
        assert!(!format!("{rotated:?}").contains("secret-2"));
    }
}
