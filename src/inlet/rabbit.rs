//! Supervises the connection: any error or end of a consumer ends the session, and a new one is
//! built from the ground with growing waits. The client's own recovery is not used.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::{Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::leftovers::{Leftover, leftovers};
use super::topology::{self, Topology};
use super::ways::{Way, Ways};
use super::{drain, lane::Lane};
use crate::clock::Clock;
use crate::job::DeadReason;
use crate::readiness::Readiness;
use crate::secrets::Secret;
use crate::store::{Buried, OwnerId, Store, StoreError};
use crate::supervise::Reconnect;
use crate::telemetry::InletMetrics;

/// A connection must stand within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// At the end of the process, or of a lane, a broker that does not answer is waited for no longer than this. What it has
/// delivered goes back to it, and what was claimed is let go of with its owner.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);
/// The broker must answer what is asked of it within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The part's name in `/readyz`.
const PART: &str = "queue";

/// What ended a session.
#[derive(Debug, thiserror::Error)]
pub enum InletError {
    /// The broker or the connection to it.
    #[error("{0}")]
    Amqp(#[from] lapin::Error),
    /// The broker refuses a declaration, mostly because something of that name differs.
    #[error(
        "the broker refuses the topology: {0} (where a queue or an exchange stands there with other arguments, remove it)"
    )]
    Topology(#[source] lapin::Error),
    /// No connection in time.
    #[error("no connection to the broker within {CONNECT_TIMEOUT:?}")]
    Timeout,
    /// The broker lives and does not answer: a queue without its leader.
    #[error("the broker does not answer within {ANSWER_TIMEOUT:?}: {0}")]
    Silent(String),
    /// The broker cancelled a consumer.
    #[error("the broker ended the consumer {0}")]
    ConsumerEnded(String),
    /// An acknowledgement had nowhere to go.
    #[error("the channel closed before a delivery was acknowledged")]
    AckLost,
    /// The store refused for good.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session ended while a delivery waited for the store: the broker has it still.
    #[error("the session ended before the store was back")]
    Stopped,
    /// A consumer panicked.
    #[error("a consumer failed: {0}")]
    Failed(#[from] tokio::task::JoinError),
}

/// What every consumer works with.
#[derive(Debug)]
pub struct InletParts {
    /// Where jobs go.
    pub store: Store,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// As what the connection is known to the broker.
    pub name: String,
    /// Whether the broker can be reached.
    pub readiness: Readiness,
    /// Counters.
    pub metrics: InletMetrics,
}

impl InletParts {
    /// Keeps a message that is no job. Waits while the store is away, as long as the session lasts.
    pub(super) async fn bury(&self, buried: Buried, session: &CancellationToken) -> Result<(), InletError> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.store.bury(buried.clone(), self.clock.wall_ms()).await {
                Ok(_) => return Ok(()),
                Err(error) => self.wait_for_store(error, &mut reconnect, session).await?,
            }
        }
    }

    /// Waits where the same call may go through later.
    pub(super) async fn wait_for_store(
        &self,
        error: StoreError,
        reconnect: &mut Reconnect,
        session: &CancellationToken,
    ) -> Result<(), InletError> {
        if !matches!(error, StoreError::Unavailable(_)) {
            return Err(error.into());
        }
        let wait = reconnect.wait();
        tracing::warn!(error = %error, ?wait, "deliveries wait for the store");
        tokio::select! {
            () = session.cancelled() => Err(InletError::Stopped),
            () = tokio::time::sleep(wait) => Ok(()),
        }
    }
}

/// The way in, for as long as the process lives.
#[derive(Debug)]
pub struct Inlet {
    parts: Arc<InletParts>,
    url: Secret,
    ways: watch::Receiver<Arc<Ways>>,
}

/// The consumers of one session.
struct Consumers {
    connection: Arc<Connection>,
    session: CancellationToken,
    tasks: JoinSet<Result<(), InletError>>,
    /// What stands in the broker.
    declared: Option<Topology>,
    /// The lanes that are consumed, by the owner of what comes in.
    begun: BTreeSet<(OwnerId, String)>,
}

/// Connects to a broker.
///
/// # Errors
/// [`InletError`] where it refuses or does not answer in time.
pub async fn connect(url: &Secret, name: &str) -> Result<Connection, InletError> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect(url.expose(), properties))
        .await
        .map_err(|_| InletError::Timeout)?
        .map_err(InletError::Amqp)
}

/// Waits for the broker, but not for ever: a queue that lost its leader answers nothing.
pub(super) async fn answered<T>(
    what: &str,
    asked: impl Future<Output = Result<T, InletError>>,
) -> Result<T, InletError> {
    tokio::time::timeout(ANSWER_TIMEOUT, asked).await.unwrap_or_else(|_| Err(InletError::Silent(what.to_owned())))
}

/// How a consumer ended. One that stopped because the session did is no news.
fn of_consumer(ended: Result<Result<(), InletError>, tokio::task::JoinError>) -> Result<(), InletError> {
    match ended {
        Ok(Err(InletError::Stopped)) => Ok(()),
        Ok(ended) => ended,
        Err(error) => Err(error.into()),
    }
}

/// Some time after the shutdown began.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(GOODBYE).await;
}

async fn close(connection: &Connection) {
    let closing = async { Ok(connection.close(200, "done".into()).await?) };
    if let Err(error) = answered("closing the connection", closing).await {
        tracing::debug!(%error, "closing the connection");
    }
}

impl Inlet {
    /// Lets in through these ways, and through others when they change.
    pub fn new(parts: InletParts, url: Secret, ways: watch::Receiver<Arc<Ways>>) -> Self {
        parts.readiness.declare(PART);
        Self { parts: Arc::new(parts), url, ways }
    }

    /// Runs until shutdown, through any number of sessions.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut reconnect = Reconnect::new();
        while !shutdown.is_cancelled() {
            let ended = tokio::select! {
                ended = self.session(&shutdown, &mut reconnect) => ended,
                () = overdue(&shutdown) => {
                    tracing::warn!("RabbitMQ does not answer: its connection is cut");
                    break;
                }
            };
            let Err(error) = ended else { break };
            let wait = reconnect.wait();
            let text = error.to_string();
            self.parts.readiness.set(PART, Err(text.clone()));
            tracing::warn!(error = text, ?wait, "RabbitMQ cannot be used now; jobs wait in the broker");
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn session(&self, shutdown: &CancellationToken, reconnect: &mut Reconnect) -> Result<(), InletError> {
        let connection = connect(&self.url, &format!("paceline {} consume", self.parts.name)).await?;
        let mut events = connection.events_listener();
        let mut ways = self.ways.clone();
        let mut consumers = Consumers::new(connection, shutdown.child_token());
        let first = Arc::clone(&ways.borrow_and_update());
        let mut result = self.open(&mut consumers, &first).await;
        if result.is_ok() {
            reconnect.reset();
            self.drain_rest(&mut consumers);
            if self.parts.readiness.set(PART, Ok(())) {
                tracing::info!(lanes = consumers.begun.len(), "consuming from RabbitMQ");
            }
        }
        while result.is_ok() && !consumers.tasks.is_empty() {
            tokio::select! {
                Some(ended) = consumers.tasks.join_next() => result = of_consumer(ended),
                Some(event) = events.next() => result = self.on_event(event),
                Ok(()) = ways.changed() => {
                    let ways = Arc::clone(&ways.borrow_and_update());
                    result = self.open(&mut consumers, &ways).await;
                }
            }
        }
        consumers.end().await;
        result
    }

    /// Consumes what is not consumed yet. Lanes that are gone end by themselves, with their dispatcher.
    async fn open(&self, consumers: &mut Consumers, ways: &Ways) -> Result<(), InletError> {
        if consumers.declared.as_ref() != Some(&ways.topology) {
            let opened = async { Ok(consumers.connection.create_channel().await?) };
            let channel = answered("opening a channel", opened).await?;
            ways.topology.declare(&channel).await?;
            answered("closing a channel", async { Ok(channel.close(200, "done".into()).await?) }).await?;
            self.report_leftovers(&consumers.connection, &ways.topology).await;
            consumers.declared = Some(ways.topology.clone());
        }
        let current: BTreeSet<_> = ways.lanes.iter().map(Way::identity).collect();
        consumers.begun.retain(|lane| current.contains(lane));
        for way in &ways.lanes {
            if consumers.begun.insert(way.identity()) {
                let lane = Lane { parts: Arc::clone(&self.parts), way: way.clone(), ways: self.ways.clone() };
                let (connection, session) = (Arc::clone(&consumers.connection), consumers.session.clone());
                consumers.tasks.spawn(way.ends.track_future(async move { lane.run(&connection, &session).await }));
            }
        }
        Ok(())
    }

    /// What no queue matched, and what the broker gave up.
    fn drain_rest(&self, consumers: &mut Consumers) {
        for (queue, reason) in
            [(topology::UNROUTABLE, DeadReason::Unroutable), (topology::REJECTED, DeadReason::Rejected)]
        {
            let (connection, session) = (Arc::clone(&consumers.connection), consumers.session.clone());
            let parts = Arc::clone(&self.parts);
            consumers.tasks.spawn(async move { drain::run(&parts, &connection, queue, reason, &session).await });
        }
    }

    /// Messages that nobody consumes wait for ever: somebody should know.
    async fn report_leftovers(&self, connection: &Connection, topology: &Topology) {
        let names: Vec<String> = topology.job_queues().map(str::to_owned).collect();
        let looked = async {
            self.parts.store.remember_queues(&names).await?;
            leftovers(connection, &self.parts.store, topology).await
        };
        match looked.await {
            Ok(left) => {
                for Leftover { queue, messages, .. } in left {
                    tracing::warn!(
                        queue,
                        messages,
                        "this queue belongs to no configured provider and lane: `paceline topology prune` drains it"
                    );
                }
            }
            Err(error) => tracing::warn!(%error, "queues of providers that are gone were not looked for"),
        }
    }

    fn on_event(&self, event: lapin::Event) -> Result<(), InletError> {
        match event {
            lapin::Event::Error(error) => Err(error.into()),
            lapin::Event::ConnectionBlocked(reason) => {
                tracing::warn!(reason, "RabbitMQ blocks publishers (an alarm); consuming goes on");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Consumers {
    fn new(connection: Connection, session: CancellationToken) -> Self {
        let (connection, tasks) = (Arc::new(connection), JoinSet::new());
        Self { connection, session, tasks, declared: None, begun: BTreeSet::new() }
    }

    /// Ends them all. Never aborted: a consumer between its commit and its owner would leave claimed jobs behind.
    async fn end(mut self) {
        self.session.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = of_consumer(ended) {
                tracing::debug!(%error, "a consumer ended with its session");
            }
        }
        close(&self.connection).await;
    }
}
