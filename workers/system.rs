//! Everything one process runs: which roles, built from one configuration, started and drained
//! together. `serve`, `demo` and `bench` run the same one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use paceline::api::{ApiParts, Live, Tokens};
use paceline::clock::{Clock, SystemClock};
use paceline::config::Config;
use paceline::readiness::Readiness;
use paceline::store::{Store, StoreError, StoreOptions};
use paceline::supervise::Reconnect;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::generation::{Built, Generation, Metrics, Shared};
use crate::reload::Reloads;

/// The store is asked this often whether it is there.
const PING_EVERY: Duration = Duration::from_secs(2);
/// Connections to the database at most.
const CONNECTIONS_MAX: u32 = 16;

/// At the end the store has this long to take claims back, and as long to close.
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
    pub(crate) work: Generation,
    /// What it answers, if it listens.
    pub(crate) live: Option<Live>,
    tasks: JoinSet<anyhow::Result<()>>,
    pub(crate) shutdown: CancellationToken,
}

impl System {
    /// Opens the store (waiting for a database that is not there yet) and starts the roles.
    pub async fn start(config: Config, roles: &[Role], shutdown: CancellationToken) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
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
        let shared =
            Shared { roles: roles.to_vec(), store: store.clone(), clock, readiness, metrics: Metrics::default() };
        let mut registry = Registry::default();
        shared.metrics.register(roles, &config, &mut registry);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_store(store.clone(), shared.readiness.clone(), shutdown.clone()));
        let work = Built::new(&shared, &config)?.start(&shared, &shutdown);
        let (mut live, mut api) = (None, None);
        if let Some(listener) = listener {
            let address = listener.local_addr()?;
            let parts = api_parts(&shared, &config, registry);
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
                    match self.reload(&reloads).await {
                        Ok(()) => continue,
                        Err(failed) => Ok(Err(failed)),
                    }
                }
                else => break,
            };
            let ended = ended.context("a part of the process failed").and_then(|ended| ended);
            if result.is_ok() && ended.is_err() {
                result = ended;
                self.shutdown.cancel();
            }
        }
        if timeout(GOODBYE, self.work.retire(&self.shared)).await.is_err() {
            tracing::warn!("the store is silent: claims stay until they are rescued");
        }
        if timeout(GOODBYE, self.store.close()).await.is_err() {
            tracing::warn!("the store is silent: its connections are cut");
        }
        result
    }
}

/// What the API is made of under a configuration.
pub fn api_parts(shared: &Shared, config: &Config, registry: Registry) -> ApiParts {
    ApiParts {
        store: shared.store.clone(),
        catalog: Arc::new(config.catalog()),
        clock: Arc::clone(&shared.clock),
        tokens: Tokens::new(&config.api.tokens),
        readiness: shared.readiness.clone(),
        registry,
        envelope_bytes_max: config.api.envelope_bytes_max,
        public_url: config.api.public_url.clone(),
    }
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

/// Keeps `/readyz` true about the store.
async fn watch_store(store: Store, readiness: Readiness, shutdown: CancellationToken) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tokio::time::sleep(PING_EVERY) => {}
        }
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
