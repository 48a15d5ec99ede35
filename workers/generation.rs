//! What runs under one configuration: dispatchers and their inlet, notifier, scheduler. It is built before anything
//! begins, so that what cannot be built changes nothing, and it drains as at a shutdown: leases are let go of with what
//! was spent, and the next one begins where it ended.

use std::sync::Arc;

use paceline::clock::Clock;
use paceline::config::{Config, QueueConfig};
use paceline::job::{AddedKeys, Catalog};
use paceline::publish::{PublishStats, Publisher};
use paceline::readiness::Readiness;
use paceline::replays::Replayer;
use paceline::resends::Resender;
use paceline::schedule::{self, Recurring, Scheduler};
use paceline::store::{OwnerId, Store};
use paceline::telemetry::{DispatchMetrics, InletMetrics, ScheduleMetrics};
use paceline::vault::MasterKeys;
use paceline::webhook::{Notifier, NotifierStats};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::dispatcher::{self, Dispatchers};
use crate::notifier;
use crate::system::Role;

/// What outlives a configuration.
pub struct Shared {
    pub roles: Vec<Role>,
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub readiness: Readiness,
    /// What opens stored keys.
    pub masters: Arc<MasterKeys>,
    /// The labels of stored keys.
    pub added: AddedKeys,
    pub metrics: Metrics,
}

/// What is counted, whatever the configuration.
#[derive(Clone, Default)]
pub struct Metrics {
    pub dispatch: DispatchMetrics,
    pub inlet: InletMetrics,
    pub webhooks: NotifierStats,
    pub publications: PublishStats,
    pub schedules: ScheduleMetrics,
}

/// What a generation is built from.
pub struct Parts<'a> {
    pub shared: &'a Shared,
    pub config: &'a Config,
    pub owner: &'a OwnerId,
}

/// A generation that has not begun.
pub struct Built {
    owner: OwnerId,
    dispatchers: Option<Dispatchers>,
    notifier: Option<Notifier>,
    publisher: Option<Publisher>,
    upkeep: Option<Upkeep>,
}

/// What the role of the scheduler does.
struct Upkeep {
    scheduler: Scheduler,
    replayer: Replayer,
    resender: Resender,
    recurring: Recurring,
}

/// A generation at work.
pub struct Generation {
    /// Its parts; one that ends before the generation is stopped has failed, unless it had nothing more to do.
    pub tasks: JoinSet<anyhow::Result<()>>,
    owner: OwnerId,
    stop: CancellationToken,
    /// Says that the owner lives, until everything has drained.
    beat: AbortOnDropHandle<()>,
}

impl Metrics {
    /// For `/metrics`: what these roles count.
    pub fn register(&self, roles: &[Role], config: &Config, registry: &mut Registry) {
        if roles.contains(&Role::Dispatcher) {
            self.dispatch.register(registry);
            if matches!(config.queue, QueueConfig::Amqp(_)) {
                self.inlet.register(registry);
            }
        }
        if roles.contains(&Role::Scheduler) {
            self.schedules.register(registry);
        }
        if roles.contains(&Role::Notifier) {
            let registry = registry.sub_registry_with_prefix("paceline");
            self.webhooks.register(registry);
            if matches!(config.queue, QueueConfig::Amqp(_)) {
                self.publications.register(registry);
            }
        }
    }
}

impl Shared {
    /// What jobs are checked against; stored keys are known to every one.
    pub fn catalog(&self, config: &Config) -> Catalog {
        Catalog { added: self.added.clone(), ..config.catalog() }
    }

    fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

impl Built {
    /// Builds every part; nothing begins.
    ///
    /// # Errors
    /// What cannot be built, such as a certificate that cannot be read.
    pub fn new(shared: &Shared, config: &Config) -> anyhow::Result<Self> {
        // An owner of its own: whatever an earlier generation left is taken over as from another process.
        let owner = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        let parts = Parts { shared, config, owner: &owner };
        let dispatchers = shared.has(Role::Dispatcher).then(|| dispatcher::build(&parts)).transpose()?;
        let (notifier, publisher) = match shared.has(Role::Notifier) {
            true => (notifier::build(&parts)?, notifier::build_publisher(&parts)?),
            false => (None, None),
        };
        let upkeep = shared.has(Role::Scheduler).then(|| Upkeep::new(shared, config));
        Ok(Self { owner, dispatchers, notifier, publisher, upkeep })
    }

    /// Begins, until `shutdown` or until it is drained.
    pub fn start(self, shared: &Shared, shutdown: &CancellationToken) -> Generation {
        let stop = shutdown.child_token();
        let roles = shared.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",");
        let beat = tokio::spawn(schedule::heartbeat(shared.store.clone(), self.owner.clone(), roles));
        let mut tasks = JoinSet::new();
        if let Some(Upkeep { scheduler, replayer, resender, recurring }) = self.upkeep {
            tasks.spawn(over(scheduler.run(stop.clone())));
            tasks.spawn(over(replayer.run(stop.clone())));
            tasks.spawn(over(resender.run(stop.clone())));
            tasks.spawn(over(recurring.run(stop.clone())));
        }
        if let Some(publisher) = self.publisher {
            tasks.spawn(over(publisher.run(stop.clone())));
        }
        if let Some(dispatchers) = self.dispatchers {
            dispatchers.start(&mut tasks, &stop);
        }
        if let Some(notifier) = self.notifier {
            tasks.spawn(over(notifier.run(stop.clone())));
        }
        Generation { tasks, owner: self.owner, stop, beat: AbortOnDropHandle::new(beat) }
    }
}

impl Upkeep {
    fn new(shared: &Shared, config: &Config) -> Self {
        let (store, clock, catalog) = (&shared.store, &shared.clock, Arc::new(shared.catalog(config)));
        let metrics = shared.metrics.schedules.clone();
        let schedules = config.schedules.clone();
        Self {
            scheduler: Scheduler::new(store.clone(), Arc::clone(clock), config.store.clone()),
            replayer: Replayer::new(store.clone(), Arc::clone(clock), Arc::clone(&catalog)),
            resender: Resender::new(store.clone(), Arc::clone(clock)),
            recurring: Recurring::new(store.clone(), Arc::clone(clock), schedules, catalog, metrics),
        }
    }
}

/// A part that cannot fail.
pub async fn over(part: impl Future<Output = ()>) -> anyhow::Result<()> {
    part.await;
    Ok(())
}

impl Generation {
    /// Stops everything and waits until it has drained: calls in flight end, leases are handed over.
    ///
    /// # Errors
    /// The first part that failed; the others were drained.
    pub async fn drain(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            result = result.and(ended.map_err(anyhow::Error::from).and_then(|ended| ended));
        }
        result
    }

    /// Whatever is still claimed goes back, so that nobody has to wait for a rescue.
    pub async fn retire(self, shared: &Shared) {
        self.beat.abort();
        match shared.store.retire(&self.owner, shared.clock.wall_ms()).await {
            Ok(released) => tracing::debug!(released, "let go of the claims"),
            Err(error) => tracing::warn!(%error, "claims stay until they are rescued"),
        }
    }
}
