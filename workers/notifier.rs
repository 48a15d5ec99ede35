//! The notifier role: delivers completion events to the endpoints that want them, and to RabbitMQ where there is one.

use std::sync::Arc;

use anyhow::Context as _;
use paceline::config::{Config, QueueConfig};
use paceline::publish::{PublishSettings, Publisher};
use paceline::webhook::{Notifier, Schedule, WebhookSecrets, WebhookSettings};

use crate::work::Shared;

/// Builds what publishes. `None`: there is no broker. Replies are published whatever `queue.events` says: somebody waits
/// for them.
pub fn build_publisher(shared: &Shared, config: &Config) -> anyhow::Result<Option<Publisher>> {
    let QueueConfig::Amqp(url) = &config.queue else { return Ok(None) };
    let settings = PublishSettings {
        url: url.clone(),
        schedule: Schedule::new(config.webhooks.schedule.clone()).context("webhooks.schedule")?,
        public_url: config.api.public_url.clone(),
        stats: shared.metrics.publications.clone(),
    };
    let (store, clock) = (shared.store.clone(), Arc::clone(&shared.clock));
    Ok(Some(Publisher::new(store, clock, settings)))
}

/// Builds the notifier. `None`: without `webhooks.secret` there is nothing to sign with, and no callback was accepted.
pub fn build(shared: &Shared, config: &Config) -> anyhow::Result<Option<Notifier>> {
    let webhooks = &config.webhooks;
    let Some(secret) = &webhooks.secret else { return Ok(None) };
    let secrets = WebhookSecrets::new(secret).context("webhooks.secret")?;
    let settings = WebhookSettings {
        masters: Arc::clone(&shared.masters),
        allow_http: webhooks.allow_http,
        allow_networks: webhooks.allow_networks.clone(),
        timeout: webhooks.timeout,
        schedule: Schedule::new(webhooks.schedule.clone()).context("webhooks.schedule")?,
        public_url: config.api.public_url.clone(),
        stats: shared.metrics.webhooks.clone(),
        ..WebhookSettings::new(secrets)
    };
    let (store, clock) = (shared.store.clone(), Arc::clone(&shared.clock));
    Notifier::new(store, clock, settings).context("webhooks").map(Some)
}
