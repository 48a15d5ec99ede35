//! The notifier role: delivers completion events to the endpoints that want them, and to RabbitMQ where there is one.

use std::sync::Arc;

use anyhow::Context as _;
use paceline::config::QueueConfig;
use paceline::publish::{PublishSettings, Publisher};
use paceline::webhook::{Notifier, Schedule, WebhookSecrets, WebhookSettings};

use crate::generation::Parts;

/// Builds what publishes. `None`: there is no broker. Replies are published whatever `queue.events` says: somebody waits
/// for them.
pub fn build_publisher(parts: &Parts<'_>) -> anyhow::Result<Option<Publisher>> {
    let QueueConfig::Amqp(url) = &parts.config.queue else { return Ok(None) };
    let settings = PublishSettings {
        url: url.clone(),
        schedule: Schedule::new(parts.config.webhooks.schedule.clone()).context("webhooks.schedule")?,
        public_url: parts.config.api.public_url.clone(),
        stats: parts.shared.metrics.publications.clone(),
    };
    let (store, clock) = (parts.shared.store.clone(), Arc::clone(&parts.shared.clock));
    Ok(Some(Publisher::new(store, clock, settings)))
}

/// Builds the notifier. `None`: without `webhooks.secret` there is nothing to sign with, and no callback was accepted.
pub fn build(parts: &Parts<'_>) -> anyhow::Result<Option<Notifier>> {
    let config = &parts.config.webhooks;
    let Some(secret) = &config.secret else { return Ok(None) };
    let secrets = WebhookSecrets::new(secret).context("webhooks.secret")?;
    let settings = WebhookSettings {
        masters: Arc::clone(&parts.shared.masters),
        allow_http: config.allow_http,
        allow_networks: config.allow_networks.clone(),
        timeout: config.timeout,
        schedule: Schedule::new(config.schedule.clone()).context("webhooks.schedule")?,
        public_url: parts.config.api.public_url.clone(),
        stats: parts.shared.metrics.webhooks.clone(),
        ..WebhookSettings::new(secrets)
    };
    let (store, clock) = (parts.shared.store.clone(), Arc::clone(&parts.shared.clock));
    Notifier::new(store, clock, settings).context("webhooks").map(Some)
}
