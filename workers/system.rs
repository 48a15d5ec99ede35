//! Everything one process runs: which roles, built from one configuration, started and drained
//! together. `serve`, `demo` and `bench` run the same one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use paceline::api::{ApiParts, HookRules, Live, Tokens, learn_keys};
use paceline::clock::{Clock, SystemClock};
use paceline::config::{Config, QueueConfig};
use paceline::job::AddedKeys;
use paceline::readiness::Readiness;
use paceline::reload::Concerned;
use paceline::store::{NeededMasters, Store, StoreError, StoreOptions, Wake};
use paceline::supervise::Reconnect;
use paceline::vault::MasterKeys;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::reload::Reloads;
use crate::work::{Built, Metrics, Shared, Work, over};

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

    pub fn name(self) -> &'static str {
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
    pub(crate) shared: Shared,
    pub(crate) config: Config,
    pub(crate) work: Work,
    /// What it answers, if it listens.
    pub(crate) live: Option<Live>,
    tasks: JoinSet<anyhow::Result<()>>,
    pub(crate) shutdown: CancellationToken,
}

impl System {
    /// Opens the store (waiting for a database that is not there yet) and starts the roles.
    pub async fn start(config: Config, roles: &[Role], shutdown: CancellationToken) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let masters = Arc::new(MasterKeys::of_process()?);
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
        let added = AddedKeys::default();
        let opened = open_store(&config, &added, &readiness, &shutdown).await;
        if let Some(starting) = starting {
            starting.stop().await;
        }
        let (store, needed) = opened?;
        check_masters(&needed, roles, &masters)?;
        if publishes(&config) {
            store.publish_completions();
        }
        let (roles, metrics) = (roles.to_vec(), Metrics::default());
        let shared = Shared { roles, store: store.clone(), clock, readiness, masters, added, metrics };
        let mut registry = Registry::default();
        shared.metrics.register(&shared.roles, &config, &mut registry);
        let mut tasks = JoinSet::new();
        watch(&shared, &mut tasks, &shutdown);
        let built = Built::new(&shared, &config, &Concerned::all(&config))?;
        let mut work = Work::new(&shared, &shutdown);
        work.begin(built, &shared, &config).await;
        let (mut live, mut api) = (None, None);
        if let Some(listener) = listener {
            let address = listener.local_addr()?;
            let parts = api_parts(&shared, &config, registry)?;
            let now_live = if has_api { Live::api(parts) } else { Live::figures(parts) };
            match has_api {
                true => tracing::info!(%address, "the API listens"),
                false => tracing::info!(%address, "the metrics can be had"),
            }
            api = has_api.then_some(address);
            tasks.spawn(api::run(listener, now_live.router(), shutdown.clone().cancelled_owned()));
            live = Some(now_live);
        }
        Ok(Self { store, api, shared, config, work, live, tasks, shutdown })
    }

    /// Runs until the shutdown token, then until everything has drained.
    ///
    /// # Errors
    /// The first part that failed; the others were drained.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.run(Reloads::never()).await
    }

    /// The same, and takes another configuration over whenever it is asked to.
    ///
    /// # Errors
    /// The first part that failed; the others were drained.
    pub async fn run(mut self, mut reloads: Reloads) -> anyhow::Result<()> {
        let mut result = Ok(());
        loop {
            let ended = tokio::select! {
                Some(ended) = self.tasks.join_next() => ended,
                Some(ended) = self.work.tasks.join_next() => ended,
                Some(()) = reloads.asked(), if !self.shutdown.is_cancelled() => {
                    self.reload(&reloads).await;
                    continue;
                }
                else => break,
            };
            let ended = ended.context("a part of the process failed").and_then(|ended| ended);
            if result.is_ok() && ended.is_err() {
                result = ended;
                self.shutdown.cancel();
            }
        }
        let goodbye = async {
            self.work.retire(&self.shared).await;
            self.store.close().await;
        };
        if timeout(GOODBYE, goodbye).await.is_err() {
            tracing::warn!("the store is silent: its connections are cut, and claims stay until they are rescued");
        }
        result
    }
}

/// What the API is made of under a configuration.
///
/// # Errors
/// A signing secret that cannot sign.
pub fn api_parts(shared: &Shared, config: &Config, registry: Registry) -> anyhow::Result<ApiParts> {
    Ok(ApiParts {
        store: shared.store.clone(),
        catalog: Arc::new(shared.catalog(config)),
        masters: Arc::clone(&shared.masters),
        clock: Arc::clone(&shared.clock),
        tokens: Tokens::new(&config.api.tokens),
        readiness: shared.readiness.clone(),
        registry,
        envelope_bytes_max: config.api.envelope_bytes_max,
        hooks: HookRules::of(&config.webhooks, Arc::clone(&shared.masters)).context("webhooks.secret")?,
        public_url: config.api.public_url.clone(),
    })
}

/// Whether completions go to RabbitMQ, too.
pub fn publishes(config: &Config) -> bool {
    config.publishes_events && matches!(config.queue, QueueConfig::Amqp(_))
}

async fn open_store(
    config: &Config,
    added: &AddedKeys,
    readiness: &Readiness,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Store, NeededMasters)> {
    let options =
        StoreOptions { url: config.store.url.expose().to_owned(), exclusive: true, connections_max: CONNECTIONS_MAX };
    let mut reconnect = Reconnect::new();
    loop {
        let error = match open_once(&options, added).await {
            Ok(opened) => {
                readiness.set("store", Ok(()));
                return Ok(opened);
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

/// With all that must be known of it before anything starts: a database that goes away in the middle is waited for, too.
async fn open_once(options: &StoreOptions, added: &AddedKeys) -> Result<(Store, NeededMasters), StoreError> {
    let store = Store::open(options).await?;
    store.migrate().await?;
    let needed = store.needed_masters().await?;
    learn_keys(&store, added).await?;
    Ok((store, needed))
}

/// What is looked at for as long as the process lives, whatever the configuration.
fn watch(shared: &Shared, tasks: &mut JoinSet<anyhow::Result<()>>, shutdown: &CancellationToken) {
    let (watch, stop) = (watch_store(shared.store.clone(), shared.readiness.clone()), shutdown.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch => {}
        }
        Ok(())
    });
    tasks.spawn(over(watch_keys(shared.store.clone(), shared.added.clone(), shutdown.clone())));
}

/// A wrong master key is told at once, and nothing was changed by then.
fn check_masters(needed: &NeededMasters, roles: &[Role], masters: &MasterKeys) -> anyhow::Result<()> {
    // One row that was damaged is the business of whoever opens it.
    let opens = |role: Role| roles.contains(&role) || roles.contains(&Role::Api);
    let keys = needed.keys.iter().filter(|_| opens(Role::Dispatcher));
    let endpoints = needed.endpoints.iter().filter(|_| opens(Role::Notifier));
    keys.chain(endpoints).try_for_each(|id| masters.find(id).map(drop)).map_err(Into::into)
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
