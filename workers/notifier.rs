//! The notifier role: delivers completion events to the endpoints that want them, and to RabbitMQ where there is one.

use std::sync::Arc;

use anyhow::Context as _;
use paceline::config::QueueConfig;
use paceline::publish::{PublishSettings, Publisher};
use paceline::webhook::{Notifier, Schedule, WebhookSecrets, WebhookSettings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::system::Parts;

/// Builds what delivers and starts it.
pub fn start(
    parts: &mut Parts,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    start_publisher(parts, tasks, shutdown)?;
    start_webhooks(parts, tasks, shutdown)
}

/// Replies are published whatever `queue.events` says: somebody waits for them.
fn start_publisher(
    parts: &mut Parts,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let QueueConfig::Amqp(url) = &parts.config.queue else { return Ok(()) };
    let settings = PublishSettings {
        url: url.clone(),
        schedule: Schedule::new(parts.config.webhooks.schedule.clone()).context("webhooks.schedule")?,
        public_url: parts.config.api.public_url.clone(),
    };
    let publisher = Publisher::new(parts.store.clone(), Arc::clone(&parts.clock), settings);
    publisher.stats().register(parts.registry.sub_registry_with_prefix("paceline"));
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        publisher.run(shutdown).await;
        Ok(())
    });
    Ok(())
}

/// Without `webhooks.secret` there is nothing to sign with, and
/// no callback was accepted.
fn start_webhooks(
    parts: &mut Parts,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let config = &parts.config.webhooks;
    let Some(secret) = &config.secret else { return Ok(()) };
    let secrets = WebhookSecrets::new(secret).context("webhooks.secret")?;
    let settings = WebhookSettings {
        allow_http: config.allow_http,
        allow_networks: config.allow_networks.clone(),
        timeout: config.timeout,
        schedule: Schedule::new(config.schedule.clone()).context("webhooks.schedule")?,
        public_url: parts.config.api.public_url.clone(),
        ..WebhookSettings::new(secrets)
    };
    let notifier = Notifier::new(parts.store.clone(), Arc::clone(&parts.clock), settings).context("webhooks")?;
    notifier.stats().register(parts.registry.sub_registry_with_prefix("paceline"));
    let shutdown = shutdown.clone();
    tasks.spawn(async move {
        notifier.run(shutdown).await;
        Ok(())
    });
    Ok(())
}
