//! The notifier role: delivers completion events to the endpoints that want them.

use std::sync::Arc;

use anyhow::Context as _;
use paceline::clock::Clock;
use paceline::store::Store;
use paceline::webhook::{Notifier, NotifierStats, WebhookSettings};
use tokio_util::sync::CancellationToken;

/// Builds the notifier. Its counters are for whoever serves metrics; its loop is started with [`run`].
pub fn build(
    store: Store,
    clock: Arc<dyn Clock>,
    settings: WebhookSettings,
) -> anyhow::Result<(Notifier, NotifierStats)> {
    let notifier = Notifier::new(store, clock, settings).context("webhooks")?;
    let stats = notifier.stats();
    Ok((notifier, stats))
}

/// Runs until `shutdown`, and then until what was being sent has ended.
pub async fn run(notifier: Notifier, shutdown: CancellationToken) {
    tracing::info!("the notifier delivers webhooks");
    notifier.run(shutdown).await;
    tracing::info!("the notifier has stopped");
}
