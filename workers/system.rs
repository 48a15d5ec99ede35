//! Everything one process runs: which roles, built from one configuration, started and drained
//! together. `serve`, `demo` and `bench` run the same one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use paceline::api::{ApiParts, HookRules, Tokens, figures_router, learn_keys, router};
use paceline::clock::{Clock, SystemClock};
use paceline::config::{Config, QueueConfig};
use paceline::job::{AddedKeys, Catalog};
use paceline::readiness::Readiness;
use paceline::replays::Replayer;
use paceline::resends::Resender;
use paceline::schedule::{self, Scheduler};
use paceline::store::{OwnerId, Store, StoreError, StoreOptions, Wake};
use paceline::supervise::Reconnect;
use paceline::vault::MasterKeys;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::{api, dispatcher, notifier};

/// The store is asked this often whether it is there.
const PING_EVERY: Duration = Duration::from_secs(2);
/// Stored keys are looked for this often, though nobody said that there are others.
const KEYS_EVERY: Duration = Duration::from_secs(5);
/// Connections to the database at most.
const CONNECTIONS_MAX: u32 = 16;

/// At the end the store has this long to take claims back and to close.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// The HTTP API.
    Api,
    /// Takes jobs in from RabbitMQ and makes the calls.
    Dispatcher,
    /// Delivers webhooks.
    Notifier,
    /// Rescue, deadlines, retention.
    Scheduler,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Api, Self::Dispatcher, Self::Notifier, Self::Scheduler];

    fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Dispatcher => "dispatcher",
            Self::Notifier => "notifier",
            Self::Scheduler => "scheduler",
        }
    }
}

/// A running process.
pub struct System {
    /// The open store.
    pub store: Store,
    /// Where the API listens, if it does.
    pub api: Option<SocketAddr>,
    owner: OwnerId,
    clock: Arc<dyn Clock>,
    tasks: JoinSet<anyhow::Result<()>>,
    /// Says that this process lives until everything has drained.
    beat: AbortOnDropHandle<()>,
    shutdown: CancellationToken,
}

/// What the roles are built from.
pub struct Parts {
    pub config: Arc<Config>,
    /// What jobs are checked against.
    pub catalog: Arc<Catalog>,
    /// What opens stored keys.
    pub masters: Arc<MasterKeys>,
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub owner: OwnerId,
    pub readiness: Readiness,
    pub registry: Registry,
}

impl System {
    /// Opens the store (waiting for a database that is not there yet) and starts the roles.
    pub async fn start(config: Config, roles: &[Role], shutdown: CancellationToken) -> anyhow::Result<Self> {
        let config = Arc::new(config);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let masters = Arc::new(MasterKeys::of_process()?);
        let catalog = Arc::new(config.catalog());
        let readiness = Readiness::default();
        readiness.declare("store");
        // The port first: one that is taken should be known before anything else starts.
        let tokens = Tokens::new(&config.api.tokens);
        let has_api = roles.contains(&Role::Api);
        let bound = match has_api {
            true => Some(api::bind(config.api.listen, &tokens).await?),
            false => api::bind_metrics(config.metrics, &tokens).await?,
        };
        let (listener, starting) = match bound {
            Some(bound) => {
                // Two handles of one socket: health checks are answered before the store is there.
                let first = bound.into_std()?;
                let second = TcpListener::from_std(first.try_clone()?)?;
                let starting = api::starting(TcpListener::from_std(first)?, readiness.clone(), tokens.clone());
                (Some(second), Some(starting))
            }
            None => (None, None),
        };
        let opened = open_store(&config, &readiness, &shutdown).await;
        if let Some(starting) = starting {
            starting.stop().await;
        }
        let store = opened?;
        if has_api || roles.contains(&Role::Dispatcher) {
            check_masters(&store, &masters).await?;
        }
        learn_keys(&store, &catalog.added).await?;
        if publishes(&config) {
            store.publish_completions();
        }
        let owner = format!("{}-{:08x}", std::process::id(), rand::random::<u32>());
        let registry = Registry::default();
        let mut parts = Parts { config, catalog, masters, store: store.clone(), clock, owner, readiness, registry };
        let mut tasks = JoinSet::new();
        let api = listener.as_ref().filter(|_| has_api).map(TcpListener::local_addr).transpose()?;
        let beat = start_upkeep(&parts, roles, &mut tasks, &shutdown);
        if roles.contains(&Role::Dispatcher) {
            dispatcher::start(&mut parts, &mut tasks, &shutdown)?;
        }
        if roles.contains(&Role::Notifier) {
            notifier::start(&mut parts, &mut tasks, &shutdown)?;
        }
        let (owner, clock) = (parts.owner.clone(), Arc::clone(&parts.clock));
        if let Some(listener) = listener {
            let parts = ApiParts {
                store: parts.store,
                catalog: parts.catalog,
                masters: parts.masters,
                clock: parts.clock,
                tokens,
                readiness: parts.readiness,
                registry: parts.registry,
                envelope_bytes_max: parts.config.api.envelope_bytes_max,
                hooks: HookRules::of(&parts.config.webhooks).context("webhooks.secret")?,
                public_url: parts.config.api.public_url.clone(),
            };
            let address = listener.local_addr()?;
            let router = match has_api {
                true => {
                    tracing::info!(%address, "the API listens");
                    router(parts)
                }
                false => {
                    tracing::info!(%address, "the metrics can be had");
                    figures_router(parts)
                }
            };
            tasks.spawn(api::run(listener, router, shutdown.clone().cancelled_owned()));
        }
        Ok(Self { store, api, owner, clock, tasks, beat, shutdown })
    }

    /// Runs until the shutdown token, then until everything has drained.
    ///
    /// # Errors
    /// The first part that failed; the others were drained.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        let mut result = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.context("a part of the process failed").and_then(|ended| ended);
            if result.is_ok() && ended.is_err() {
                result = ended;
                self.shutdown.cancel();
            }
        }
        self.beat.abort();
        let goodbye = async {
            // Whatever is still claimed goes back, so that nobody has to wait for a rescue.
            match self.store.retire(&self.owner, self.clock.wall_ms()).await {
                Ok(released) => tracing::debug!(released, "let go of the claims"),
                Err(error) => tracing::warn!(%error, "claims stay until they are rescued"),
            }
            self.store.close().await;
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::warn!("the store is silent: its connections are cut, and claims stay until they are rescued");
        }
        result
    }
}

/// Whether completions go to RabbitMQ, too.
pub fn publishes(config: &Config) -> bool {
    config.publishes_events && matches!(config.queue, QueueConfig::Amqp(_))
}

async fn open_store(config: &Config, readiness: &Readiness, shutdown: &CancellationToken) -> anyhow::Result<Store> {
    let options =
        StoreOptions { url: config.store.url.expose().to_owned(), exclusive: true, connections_max: CONNECTIONS_MAX };
    let mut reconnect = Reconnect::new();
    loop {
        let error = match open_once(&options).await {
            Ok(store) => {
                readiness.set("store", Ok(()));
                return Ok(store);
            }
            Err(error @ StoreError::Unavailable(_)) => error,
            Err(error) => return Err(error.into()),
        };
        let wait = reconnect.wait();
        tracing::warn!(%error, ?wait, "the database cannot be reached; trying again");
        readiness.set("store", Err(error.to_string()));
        tokio::select! {
            () = shutdown.cancelled() => return Err(error.into()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn open_once(options: &StoreOptions) -> Result<Store, StoreError> {
    let store = Store::open(options).await?;
    store.migrate().await?;
    Ok(store)
}

fn start_upkeep(
    parts: &Parts,
    roles: &[Role],
    tasks: &mut JoinSet<anyhow::Result<()>>,
    shutdown: &CancellationToken,
) -> AbortOnDropHandle<()> {
    let names = roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",");
    let beat = tokio::spawn(schedule::heartbeat(parts.store.clone(), parts.owner.clone(), names));
    let (watch, stop) = (watch_store(parts.store.clone(), parts.readiness.clone()), shutdown.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch => {}
        }
        Ok(())
    });
    let labels = watch_keys(parts.store.clone(), parts.catalog.added.clone(), shutdown.clone());
    tasks.spawn(async move {
        labels.await;
        Ok(())
    });
    if roles.contains(&Role::Scheduler) {
        let scheduler = Scheduler::new(parts.store.clone(), Arc::clone(&parts.clock), parts.config.store.clone());
        let (upkeep, catalog) = (shutdown.clone(), Arc::clone(&parts.catalog));
        tasks.spawn(async move {
            scheduler.run(upkeep).await;
            Ok(())
        });
        let resender = Resender::new(parts.store.clone(), Arc::clone(&parts.clock));
        let stop = shutdown.clone();
        tasks.spawn(async move {
            resender.run(stop).await;
            Ok(())
        });
        let replayer = Replayer::new(parts.store.clone(), Arc::clone(&parts.clock), catalog);
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            replayer.run(shutdown).await;
            Ok(())
        });
    }
    AbortOnDropHandle::new(beat)
}

/// A wrong master key is told at once, and nothing was changed by then.
async fn check_masters(store: &Store, masters: &MasterKeys) -> anyhow::Result<()> {
    // One row that was damaged is its dispatcher's business.
    for sealed in store.stored_keys(None).await?.into_iter().filter_map(|key| key.sealed) {
        masters.find(&sealed.master)?;
    }
    Ok(())
}

/// Learns the labels of stored keys as they come: jobs may be pinned to them.
async fn watch_keys(store: Store, added: AddedKeys, shutdown: CancellationToken) {
    let mut wakes = store.wakes();
    loop {
        let look_at = tokio::time::Instant::now() + KEYS_EVERY;
        let told = loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                wake = wakes.recv() => match wake {
                    Ok(Wake::Orders(_)) | Err(RecvError::Lagged(_)) => break true,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return,
                },
                () = tokio::time::sleep_until(look_at) => break false,
            }
        };
        if let Err(error) = learn_keys(&store, &added).await {
            tracing::debug!(%error, told, "the labels of stored keys are not known; trying again");
        }
    }
}

/// Keeps `/readyz` true about the store.
async fn watch_store(store: Store, readiness: Readiness) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let result = store.ping().await.map_err(|error| error.to_string());
        let error = result.clone().err();
        if readiness.set("store", result) {
            match error {
                Some(error) => tracing::error!(error, "the store is not available; nothing is accepted, jobs wait"),
                None => tracing::info!("the store is available again"),
            }
        }
    }
}
