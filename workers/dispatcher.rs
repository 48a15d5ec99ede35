//! The dispatcher role: one dispatcher a provider, and the inlet from RabbitMQ where there is one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use paceline::config::QueueConfig;
use paceline::dispatch::{Dispatcher, DispatcherParts};
use paceline::inlet::topology::Topology;
use paceline::inlet::{Inlet, InletParts};
use paceline::store::Store;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::generation::{Parts, over};

/// At shutdown calls in flight have this long to end.
const GRACE: Duration = Duration::from_secs(25);

/// Every dispatcher, and their way in; not begun.
pub struct Dispatchers {
    list: Vec<Dispatcher>,
    inlet: Option<Inlet>,
    store: Store,
    /// Names of the providers.
    providers: BTreeSet<String>,
}

/// Builds every dispatcher.
pub fn build(parts: &Parts<'_>) -> anyhow::Result<Dispatchers> {
    let Parts { shared, config, owner } = parts;
    if config.providers.is_empty() {
        tracing::warn!("no provider is configured: there is nothing to dispatch");
    }
    let mut lanes = Vec::new();
    let mut list = Vec::new();
    for provider in &config.providers {
        let dispatcher = Dispatcher::new(DispatcherParts {
            provider: Arc::new(provider.clone()),
            store: shared.store.clone(),
            clock: Arc::clone(&shared.clock),
            masters: Arc::clone(&shared.masters),
            owner: (*owner).clone(),
            metrics: shared.metrics.dispatch.clone(),
            grace: GRACE,
        })?;
        let prefetch = dispatcher.prefetch();
        lanes.extend(
            dispatcher
                .intakes()
                .filter(|(lane, _)| *lane != "replay")
                .map(|(lane, intake)| (provider.name.clone(), lane.to_owned(), prefetch, intake)),
        );
        list.push(dispatcher);
    }
    let inlet = match &config.queue {
        QueueConfig::Amqp(url) => {
            let parts = InletParts {
                store: shared.store.clone(),
                clock: Arc::clone(&shared.clock),
                owner: (*owner).clone(),
                catalog: shared.catalog(config),
                envelope_bytes_max: config.api.envelope_bytes_max,
                readiness: shared.readiness.clone(),
                metrics: shared.metrics.inlet.clone(),
            };
            Some(Inlet::new(parts, url.clone(), Topology::of(config), lanes))
        }
        QueueConfig::Embedded => None,
    };
    let providers = config.providers.iter().map(|provider| provider.name.clone()).collect();
    Ok(Dispatchers { list, inlet, store: shared.store.clone(), providers })
}

impl Dispatchers {
    /// Starts them all.
    pub fn start(self, tasks: &mut JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) {
        for dispatcher in self.list {
            tasks.spawn(over(dispatcher.run(shutdown.clone())));
        }
        tasks.spawn(report_unconfigured(self.providers, self.store));
        if let Some(inlet) = self.inlet {
            tasks.spawn(over(inlet.run(shutdown.clone())));
        }
    }
}

/// Jobs of a provider that is gone wait for ever: somebody should know.
async fn report_unconfigured(providers: BTreeSet<String>, store: Store) -> anyhow::Result<()> {
    let is_gone = |name: &str| !providers.contains(name);
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
