//! The notifier role: delivers completion events to the endpoints that want them.

use std::sync::Arc;

use anyhow::Context as _;
use paceline::webhook::{Notifier, Schedule, WebhookSecrets, WebhookSettings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::system::Parts;

/// Builds the notifier and starts it. Without `webhooks.secret` there is nothing to sign with, and
/// no callback was accepted.
pub fn start(
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
