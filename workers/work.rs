//! What is at work: dispatchers and the inlet, notifier, publisher, upkeep. Each part has a stop of its own: another
//! configuration replaces the parts that it changes and leaves the others alone. What is new is built before anything
//! ends, so that what cannot be built changes nothing; what is replaced drains as at a shutdown: leases are let go of with
//! what was spent, and the next one begins where it ended.

use std::collections::BTreeMap;
use std::sync::Arc;

use paceline::clock::Clock;
use paceline::config::{Config, QueueConfig};
use paceline::dispatch::Dispatcher;
use paceline::job::{AddedKeys, Catalog};
use paceline::publish::{PublishStats, Publisher};
use paceline::readiness::Readiness;
use paceline::reload::Concerned;
use paceline::replays::Replayer;
use paceline::resends::Resender;
use paceline::schedule::{Heartbeat, Recurring, Scheduler};
use paceline::store::{OwnerId, Store};
use paceline::telemetry::{DispatchMetrics, InletMetrics, ScheduleMetrics};
use paceline::vault::MasterKeys;
use paceline::webhook::{Notifier, NotifierStats};
use prometheus_client::registry::Registry;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

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

/// What is new under a configuration; it has not begun.
pub struct Built {
    /// By provider.
    dispatchers: BTreeMap<String, (OwnerId, Dispatcher)>,
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

/// All parts of a process.
pub struct Work {
    /// Their tasks; one that ends with an error or a panic ends the process.
    pub tasks: JoinSet<anyhow::Result<()>>,
    dispatchers: Dispatchers,
    notifier: Part,
    publisher: Part,
    upkeep: Part,
    heartbeat: Heartbeat,
    _beat: AbortOnDropHandle<()>,
    shutdown: CancellationToken,
}

/// Tasks that end together.
pub struct Part {
    pub stop: CancellationToken,
    running: TaskTracker,
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

    pub fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

impl Built {
    /// Builds every part that is concerned; nothing begins.
    ///
    /// # Errors
    /// What cannot be built, such as a certificate that cannot be read.
    pub fn new(shared: &Shared, config: &Config, concerned: &Concerned) -> anyhow::Result<Self> {
        let (notifies, keeps) = (shared.has(Role::Notifier), shared.has(Role::Scheduler));
        let (notifier, publisher) = (notifies && concerned.notifier, notifies && concerned.publisher);
        Ok(Self {
            dispatchers: dispatcher::build(shared, config, &concerned.providers)?,
            notifier: if notifier { notifier::build(shared, config)? } else { None },
            publisher: if publisher { notifier::build_publisher(shared, config)? } else { None },
            upkeep: (keeps && concerned.upkeep).then(|| Upkeep::new(shared, config)),
        })
    }
}

impl Part {
    pub fn new(shutdown: &CancellationToken) -> Self {
        Self { stop: shutdown.child_token(), running: TaskTracker::new() }
    }

    pub fn spawn(&self, tasks: &mut JoinSet<anyhow::Result<()>>, work: impl Future<Output = ()> + Send + 'static) {
        tasks.spawn(self.running.track_future(over(work)));
    }

    /// Stops it, and waits until it has drained.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.running.close();
        self.running.wait().await;
    }
}

impl Work {
    /// Nothing is done yet.
    pub fn new(shared: &Shared, shutdown: &CancellationToken) -> Self {
        let roles = shared.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",");
        let heartbeat = Heartbeat::new(shared.store.clone(), &roles);
        Self {
            tasks: JoinSet::new(),
            dispatchers: Dispatchers::default(),
            notifier: Part::new(shutdown),
            publisher: Part::new(shutdown),
            upkeep: Part::new(shutdown),
            _beat: AbortOnDropHandle::new(tokio::spawn(heartbeat.clone().run())),
            heartbeat,
            shutdown: shutdown.clone(),
        }
    }

    /// Stops what is concerned and waits until it has drained: calls in flight end, leases are handed over.
    pub async fn end(&mut self, shared: &Shared, concerned: &Concerned) {
        let part = async |part: &Part, is_concerned: bool| {
            if is_concerned {
                part.drain().await;
            }
        };
        tokio::join!(
            part(&self.notifier, concerned.notifier),
            part(&self.publisher, concerned.publisher),
            part(&self.upkeep, concerned.upkeep),
            self.dispatchers.end(shared, &self.heartbeat, &concerned.providers),
        );
    }

    /// Begins what is new, until the process shuts down or it is replaced.
    pub async fn begin(&mut self, built: Built, shared: &Shared, config: &Config) {
        let Built { dispatchers, notifier, publisher, upkeep } = built;
        if let Some(Upkeep { scheduler, replayer, resender, recurring }) = upkeep {
            self.upkeep = Part::new(&self.shutdown);
            let Part { stop, .. } = &self.upkeep;
            self.upkeep.spawn(&mut self.tasks, scheduler.run(stop.clone()));
            self.upkeep.spawn(&mut self.tasks, replayer.run(stop.clone()));
            self.upkeep.spawn(&mut self.tasks, resender.run(stop.clone()));
            self.upkeep.spawn(&mut self.tasks, recurring.run(stop.clone()));
        }
        if let Some(publisher) = publisher {
            self.publisher = Part::new(&self.shutdown);
            self.publisher.spawn(&mut self.tasks, publisher.run(self.publisher.stop.clone()));
        }
        if let Some(notifier) = notifier {
            self.notifier = Part::new(&self.shutdown);
            self.notifier.spawn(&mut self.tasks, notifier.run(self.notifier.stop.clone()));
        }
        let Self { dispatchers: running, tasks, heartbeat, shutdown, .. } = self;
        if shared.has(Role::Dispatcher) {
            running.begin(dispatchers, shared, config, heartbeat, tasks, shutdown).await;
        }
    }

    /// At the end of the process, when everything has drained: whatever is still claimed goes back, so that nobody has to
    /// wait for a rescue.
    pub async fn retire(&mut self, shared: &Shared) {
        self.dispatchers.end_all(shared, &self.heartbeat).await;
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
