//! The dispatcher role: one dispatcher a provider, and the inlet from RabbitMQ where there is one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use paceline::config::{Config, QueueConfig};
use paceline::dispatch::{Dispatcher, DispatcherParts};
use paceline::inlet::topology::Topology;
use paceline::inlet::{Inlet, InletParts};
use paceline::job::Catalog;
use paceline::store::Store;
use paceline::telemetry::{DispatchMetrics, InletMetrics};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::system::Parts;

/// At shutdown calls in flight have this long to end.
const GRACE: Duration = Duration::from_secs(25);

/// Builds every dispatcher, then starts them.
pub fn start(
    parts: &mut Parts,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let metrics = DispatchMetrics::default();
    metrics.register(&mut parts.registry);
    if parts.config.providers.is_empty() {
        tracing::warn!("no provider is configured: there is nothing to dispatch");
    }
    let mut lanes = Vec::new();
    let mut dispatchers = Vec::new();
    for provider in &parts.config.providers {
        let dispatcher = Dispatcher::new(DispatcherParts {
            provider: Arc::new(provider.clone()),
            store: parts.store.clone(),
            clock: Arc::clone(&parts.clock),
            masters: Arc::clone(&parts.masters),
            owner: parts.owner.clone(),
            metrics: metrics.clone(),
            grace: GRACE,
        })?;
        let prefetch = dispatcher.prefetch();
        lanes.extend(
            dispatcher
                .intakes()
                .filter(|(lane, _)| *lane != "replay")
                .map(|(lane, intake)| (provider.name.clone(), lane.to_owned(), prefetch, intake)),
        );
        dispatchers.push(dispatcher);
    }
    for dispatcher in dispatchers {
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            dispatcher.run(shutdown).await;
            Ok(())
        });
    }
    tasks.spawn(report_unconfigured(Arc::clone(&parts.config), parts.store.clone()));
    if let QueueConfig::Amqp(url) = &parts.config.queue {
        let inlet_metrics = InletMetrics::default();
        inlet_metrics.register(&mut parts.registry);
        let inlet = Inlet::new(
            InletParts {
                store: parts.store.clone(),
                clock: Arc::clone(&parts.clock),
                owner: parts.owner.clone(),
                catalog: Catalog::clone(&parts.catalog),
                envelope_bytes_max: parts.config.api.envelope_bytes_max,
                readiness: parts.readiness.clone(),
                metrics: inlet_metrics,
            },
            url.clone(),
            Topology::of(&parts.config),
            lanes,
        );
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            inlet.run(shutdown).await;
            Ok(())
        });
    }
    Ok(())
}

/// Jobs of a provider that is gone wait for ever: somebody should know.
async fn report_unconfigured(config: Arc<Config>, store: Store) -> anyhow::Result<()> {
    let is_gone = |name: &str| !config.providers.iter().any(|provider| provider.name == name);
    match store.awaited().await {
        Ok(awaited) => {
            let gone: BTreeSet<&str> =
                awaited.iter().map(|(name, _)| name.as_str()).filter(|name| is_gone(name)).collect();
            for provider in gone {
                tracing::warn!(
                    provider,
                    "jobs wait for a provider that is not configured: configure it again, or cancel them"
                );
            }
        }
        Err(error) => tracing::warn!(%error, "jobs of providers that are gone were not looked for"),
    }
    Ok(())
}
