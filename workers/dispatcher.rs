//! The dispatcher role: one dispatcher a provider, and the inlet from RabbitMQ where there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use paceline::config::{Config, QueueConfig};
use paceline::dispatch::{Dispatcher, DispatcherParts};
use paceline::inlet::topology::Topology;
use paceline::inlet::{Inlet, InletParts, Way, Ways};
use paceline::job::REPLAY_LANE;
use paceline::schedule::Heartbeat;
use paceline::secrets::Secret;
use paceline::store::{OwnerId, Store};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::system::Role;
use crate::work::{Part, Shared, over};

/// At shutdown calls in flight have this long to end.
const GRACE: Duration = Duration::from_secs(25);

/// Every dispatcher at work, and their way in.
#[derive(Default)]
pub struct Dispatchers {
    /// By provider.
    posts: BTreeMap<String, Post>,
    /// Tells the inlet of other ways; it lives as long as the process.
    ways: Option<watch::Sender<Arc<Ways>>>,
}

/// A dispatcher at work.
struct Post {
    /// Nobody before it or after it has this name: whatever an earlier one left is taken over as from another process.
    owner: OwnerId,
    part: Part,
    ways: Vec<Way>,
    /// Its consumers.
    ends: TaskTracker,
}

/// Builds the dispatchers of these providers, where they are configured.
pub fn build(
    shared: &Shared,
    config: &Config,
    names: &BTreeSet<String>,
) -> anyhow::Result<BTreeMap<String, (OwnerId, Dispatcher)>> {
    let mut built = BTreeMap::new();
    if !shared.has(Role::Dispatcher) {
        return Ok(built);
    }
    if config.providers.is_empty() {
        tracing::warn!("no provider is configured: there is nothing to dispatch");
    }
    for provider in config.providers.iter().filter(|provider| names.contains(&provider.name)) {
        let owner = name();
        let dispatcher = Dispatcher::new(DispatcherParts {
            provider: Arc::new(provider.clone()),
            store: shared.store.clone(),
            clock: Arc::clone(&shared.clock),
            masters: Arc::clone(&shared.masters),
            owner: owner.clone(),
            metrics: shared.metrics.dispatch.clone(),
            grace: GRACE,
        })?;
        built.insert(provider.name.clone(), (owner, dispatcher));
    }
    Ok(built)
}

/// Of this process, and of nobody else.
fn name() -> String {
    format!("{}-{:08x}", std::process::id(), rand::random::<u32>())
}

impl Dispatchers {
    /// Begins new ones, and lets in what is for all that are at work.
    pub async fn begin(
        &mut self,
        built: BTreeMap<String, (OwnerId, Dispatcher)>,
        shared: &Shared,
        config: &Config,
        heartbeat: &Heartbeat,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        shutdown: &CancellationToken,
    ) {
        for (provider, (owner, dispatcher)) in built {
            heartbeat.begin(owner.clone()).await;
            let post = Post::new(owner, &provider, &dispatcher, shutdown);
            post.part.spawn(tasks, dispatcher.run(post.part.stop.clone()));
            self.posts.insert(provider, post);
        }
        let configured = config.providers.iter().map(|provider| provider.name.clone()).collect();
        tasks.spawn(over(report_unconfigured(configured, shared.store.clone())));
        if let QueueConfig::Amqp(url) = &config.queue {
            self.let_in(url, shared, config, tasks, shutdown);
        }
    }

    fn let_in(
        &mut self,
        url: &Secret,
        shared: &Shared,
        config: &Config,
        tasks: &mut JoinSet<anyhow::Result<()>>,
        shutdown: &CancellationToken,
    ) {
        let ways = Arc::new(Ways {
            topology: Topology::of(config),
            lanes: self.posts.values().flat_map(|post| post.ways.clone()).collect(),
            catalog: shared.catalog(config),
            envelope_bytes_max: config.api.envelope_bytes_max,
        });
        if let Some(known) = &self.ways {
            known.send_replace(ways);
            return;
        }
        let parts = InletParts {
            store: shared.store.clone(),
            clock: Arc::clone(&shared.clock),
            name: name(),
            readiness: shared.readiness.clone(),
            metrics: shared.metrics.inlet.clone(),
        };
        let (sender, ways) = watch::channel(ways);
        self.ways = Some(sender);
        tasks.spawn(over(Inlet::new(parts, url.clone(), ways).run(shutdown.clone())));
    }

    /// Stops those of these providers, together; each is over when it holds nothing any more.
    pub async fn end(&mut self, shared: &Shared, heartbeat: &Heartbeat, providers: &BTreeSet<String>) {
        let ending = providers.iter().filter_map(|provider| self.posts.remove(provider));
        join_all(ending.map(|post| post.end(shared, heartbeat))).await;
    }

    /// Stops all.
    pub async fn end_all(&mut self, shared: &Shared, heartbeat: &Heartbeat) {
        let ending = std::mem::take(&mut self.posts).into_values();
        join_all(ending.map(|post| post.end(shared, heartbeat))).await;
    }
}

impl Post {
    fn new(owner: OwnerId, provider: &str, dispatcher: &Dispatcher, shutdown: &CancellationToken) -> Self {
        let (part, ends) = (Part::new(shutdown), TaskTracker::new());
        let way = |(lane, intake): (&str, _)| Way {
            provider: provider.to_owned(),
            lane: lane.to_owned(),
            prefetch: dispatcher.prefetch(),
            intake,
            owner: owner.clone(),
            stop: part.stop.clone(),
            ends: ends.clone(),
        };
        let ways = dispatcher.intakes().filter(|(lane, _)| *lane != REPLAY_LANE).map(way).collect();
        Self { owner, part, ways, ends }
    }

    /// Drains it. Whatever is still claimed goes back, so that nobody has to wait for a rescue.
    async fn end(self, shared: &Shared, heartbeat: &Heartbeat) {
        self.part.drain().await;
        self.ends.close();
        self.ends.wait().await;
        heartbeat.end(&self.owner).await;
        match shared.store.retire(&self.owner, shared.clock.wall_ms()).await {
            Ok(released) => tracing::debug!(released, "let go of the claims"),
            Err(error) => tracing::warn!(%error, "claims stay until they are rescued"),
        }
    }
}

/// Jobs of a provider that is gone wait for ever: somebody should know.
async fn report_unconfigured(providers: BTreeSet<String>, store: Store) {
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
}
