//! Completions over RabbitMQ: to the exchange of events for whoever listens, and to the queue that a job's producer
//! waits at.
//!
//! ```text
//! store ── handed over or claimed ──▶ message ──▶ channel, confirm ──▶ verdict ──▶ record ── store
//! ```
//!
//! Like webhooks they are deliveries in the store, written with the outcome, and recorded after the broker has
//! confirmed: a process that dies in between publishes again, under the same `message_id`. While the broker is away
//! they wait there, and no attempt is spent.

mod channels;
mod message;
mod verdict;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::Connection;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::channels::Channels;
use self::verdict::{Schedules, Word};
use crate::clock::Clock;
use crate::inlet::{self, InletError};
use crate::kill_point::{KillPoint, reached};
use crate::secrets::Secret;
use crate::store::{DeliveryNext, DeliveryRecord, Handover, OwnerId, Publication, Store, StoreError, Wake};
use crate::supervise::Reconnect;
use crate::webhook::{Poll, Schedule};

/// The role under which the store knows this owner.
const ROLE: &str = "publisher";
/// Completions in one claim at most.
const BATCH: u32 = 256;
/// Of those that are handed over, so many are published at the same time at most. The broker confirms many at once: fewer
/// would wait for it more often, and what finds no room has to be claimed.
const HANDED: usize = 1024;
/// Batches that are being recorded at the same time.
const RECORDING_MAX: usize = 4;
/// The broker confirms within that time. What it does not confirm while it confirms others is refused.
const CONFIRM_WITHIN: Duration = Duration::from_secs(10);
/// How long a claim lasts: longer than two batches can take, the one before it and its own, with a store that answers as
/// late as it may.
const LEASE: Duration = Duration::from_secs(60);
/// How often the store is told that this publisher lives.
const BEAT: Duration = Duration::from_secs(5);
/// For handing claims back, and for closing a connection.
const GOODBYE: Duration = Duration::from_secs(3);

/// How completions are published.
#[derive(Debug, Clone)]
pub struct PublishSettings {
    /// The broker; the URL holds a password.
    pub url: Secret,
    /// The waits after the broker refused one.
    pub schedule: Schedule,
    /// Where the API is seen from outside, for `result_url`.
    pub public_url: Option<String>,
    /// Where it counts: a publisher that follows another one goes on counting there.
    pub stats: PublishStats,
}

/// What ended a session.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Broker(#[from] InletError),
    #[error("the connection to the broker is gone")]
    Gone,
    #[error("the broker confirms nothing within {CONFIRM_WITHIN:?}")]
    Silent,
}

/// `kind="…", outcome="…"`.
type Labels = [(&'static str, &'static str); 2];

/// Counters of the publisher. Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct PublishStats {
    publications: Family<Labels, Counter>,
}

impl PublishStats {
    /// Registers everything.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Attempts to publish a completion to RabbitMQ, by where it goes and what became of it";
        registry.register("publications", help, self.publications.clone());
    }

    fn count(&self, is_reply: bool, next: DeliveryNext) {
        let outcome = match next {
            DeliveryNext::Delivered | DeliveryNext::Published => "delivered",
            DeliveryNext::Retry { .. } => "retry",
            DeliveryNext::Failed | DeliveryNext::Gone => "failed",
        };
        let kind = if is_reply { "reply" } else { "event" };
        self.publications.get_or_create(&[("kind", kind), ("outcome", outcome)]).inc();
    }
}

/// Publishes completions until it is told to stop.
#[derive(Debug)]
pub struct Publisher {
    store: Store,
    clock: Arc<dyn Clock>,
    url: Secret,
    owner: OwnerId,
    schedules: Schedules,
    public_url: Option<String>,
    stats: PublishStats,
    is_away: AtomicBool,
}

impl Publisher {
    /// A publisher on that store. Any number of them may share it.
    pub fn new(store: Store, clock: Arc<dyn Clock>, settings: PublishSettings) -> Self {
        Self {
            store,
            clock,
            url: settings.url,
            owner: format!("publisher-{}", uuid::Uuid::now_v7().simple()),
            schedules: Schedules::new(settings.schedule),
            public_url: settings.public_url,
            stats: settings.stats,
            is_away: AtomicBool::new(false),
        }
    }

    /// What it counts, to be registered where metrics are served.
    pub fn stats(&self) -> PublishStats {
        self.stats.clone()
    }

    /// Publishes until `shutdown`, through any number of connections; then hands back what it holds.
    pub async fn run(self, shutdown: CancellationToken) {
        let beat = AbortOnDropHandle::new(tokio::spawn(beat(self.store.clone(), self.owner.clone())));
        let mut reconnect = Reconnect::new();
        while !shutdown.is_cancelled() {
            let ended = tokio::select! {
                ended = self.session(&shutdown, &mut reconnect) => ended,
                () = overdue(&shutdown) => break,
            };
            let Err(error) = ended else { break };
            // What was claimed and not confirmed is due again at once, not when its claim runs out.
            self.hand_back().await;
            let wait = reconnect.wait();
            if !self.is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "completions for RabbitMQ wait in the store");
            }
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        beat.abort();
        self.hand_back().await;
    }

    async fn session(&self, shutdown: &CancellationToken, reconnect: &mut Reconnect) -> Result<(), Broken> {
        let connection = inlet::connect(&self.url, &format!("paceline {}", self.owner)).await?;
        let result = self.publish(&connection, shutdown, reconnect).await;
        let closing = connection.close(200, "done".into());
        if !matches!(tokio::time::timeout(GOODBYE, closing).await, Ok(Ok(()))) {
            tracing::debug!("the connection for completions was cut");
        }
        result
    }

    async fn publish(
        &self,
        connection: &Connection,
        shutdown: &CancellationToken,
        reconnect: &mut Reconnect,
    ) -> Result<(), Broken> {
        let mut channels = Channels::new(connection);
        channels.open().await?;
        reconnect.reset();
        if self.is_away.swap(false, Ordering::Relaxed) {
            tracing::info!("RabbitMQ is back: completions go on");
        }
        let mut handover = self.take();
        let ended = self.rounds(&mut channels, &mut handover, shutdown).await;
        drop(tokio::time::timeout(GOODBYE, handover.end()).await);
        ended
    }

    /// One batch after the other: what is handed over, and what is due in the store. While one is published, those before
    /// it may still be on their way into the store.
    async fn rounds(
        &self,
        channels: &mut Channels<'_>,
        handover: &mut Handover<Publication>,
        shutdown: &CancellationToken,
    ) -> Result<(), Broken> {
        let mut wakes = Some(self.store.wakes());
        let mut poll = Poll::new(self.clock.mono());
        let mut recording: FuturesUnordered<Recording<'_>> = FuturesUnordered::new();
        // What an earlier session held may have been handed back in vain.
        let mut in_doubt = true;
        loop {
            let may_publish = recording.len() < RECORDING_MAX;
            // Not biased: neither what is handed over nor what is due in the store has to wait for the end of the other.
            let done = tokio::select! {
                () = shutdown.cancelled() => break,
                () = woken(&mut wakes) => {
                    poll.wake();
                    continue;
                }
                Some(recorded) = recording.next() => recorded,
                () = tokio::time::sleep(poll.wait(self.clock.mono())), if may_publish => {
                    poll.looking(self.clock.mono());
                    if in_doubt {
                        // What is held is of batches that the store may have cut off.
                        recording.clear();
                        std::mem::replace(handover, self.take()).end().await;
                        in_doubt = !self.hand_back().await;
                    }
                    match self.look().await {
                        Ok(Found::Some(batch)) => {
                            handover.set_open(!in_doubt);
                            poll.found(batch.len() >= BATCH as usize, self.clock.mono());
                            recording.push(self.deliver(channels, batch).await?);
                            Ok(())
                        }
                        Ok(Found::Nothing(due_in)) => {
                            handover.set_open(!in_doubt);
                            poll.nothing(due_in, self.clock.mono());
                            Ok(())
                        }
                        Err(error) => Err(error),
                    }
                }
                Some(handed) = handover.next(HANDED), if may_publish && !in_doubt => {
                    let batch = handed.into_iter().map(|handed| handed.delivery).collect();
                    recording.push(self.deliver(channels, batch).await?);
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::warn!(%error, "completions for RabbitMQ cannot be claimed or recorded; trying again");
                in_doubt = true;
                handover.set_open(false);
                poll.failed(self.clock.mono(), rand::random());
            }
        }
        while recording.next().await.is_some() {}
        Ok(())
    }

    fn take(&self) -> Handover<Publication> {
        self.store.take_publications(self.owner.clone(), LEASE, Arc::clone(&self.clock))
    }

    /// Claims what is due.
    async fn look(&self) -> Result<Found, StoreError> {
        let now_ms = self.clock.wall_ms();
        let batch = self.store.claim_publications(&self.owner, BATCH, now_ms, LEASE).await?;
        if !batch.is_empty() {
            return Ok(Found::Some(batch));
        }
        let due_ms = self.store.next_publication_due().await?;
        let due_in = |due: i64| Duration::from_millis(due.saturating_sub(now_ms).max(0).unsigned_abs());
        Ok(Found::Nothing(due_ms.map(due_in)))
    }

    /// Publishes it; what the broker said is left to be recorded.
    async fn deliver(&self, channels: &mut Channels<'_>, batch: Vec<Publication>) -> Result<Recording<'_>, Broken> {
        let at_ms = self.clock.wall_ms();
        reached(KillPoint::BeforePublish);
        let words = channels.publish(&batch, self.public_url.as_deref()).await?;
        reached(KillPoint::AfterPublish);
        let record = async move {
            let records = batch.iter().zip(&words).map(|(publication, word)| self.record(publication, at_ms, word));
            let recorded: Result<(), StoreError> = join_all(records).await.into_iter().collect();
            if recorded.is_ok() {
                reached(KillPoint::AfterPublishRecord);
            }
            recorded
        };
        Ok(Box::pin(record))
    }

    async fn record(&self, publication: &Publication, at_ms: i64, word: &Word) -> Result<(), StoreError> {
        let step = publication.attempts.saturating_sub(publication.attempts_before).saturating_add(1);
        let now_ms = self.clock.wall_ms();
        let next = self.schedules.next(word, step, now_ms, rand::random());
        let error = word.error(publication.reply_to.as_deref());
        self.stats.count(publication.reply_to.is_some(), next);
        if next == DeliveryNext::Failed {
            tracing::warn!(
                job = publication.event.job_id,
                event = publication.event.id,
                error,
                "a completion for RabbitMQ is given up: it is kept and can be resent"
            );
        }
        let record = DeliveryRecord {
            pk: publication.pk,
            epoch: publication.epoch,
            n: publication.attempts.saturating_add(1),
            at_ms,
            status: None,
            latency_ms: now_ms.saturating_sub(at_ms).max(0),
            error,
            next,
        };
        self.store.record_delivery(record).await
    }

    /// Whether it is done.
    async fn hand_back(&self) -> bool {
        let retiring = self.store.retire(&self.owner, self.clock.wall_ms());
        match tokio::time::timeout(GOODBYE, retiring).await {
            Ok(Ok(_)) => return true,
            Ok(Err(error)) => tracing::warn!(%error, "claimed completions could not be handed back"),
            Err(_) => tracing::warn!("claimed completions could not be handed back: the store is silent"),
        }
        false
    }
}

/// What a look into the store found.
enum Found {
    Some(Vec<Publication>),
    /// And when the next is due.
    Nothing(Option<Duration>),
}

/// A batch that was published, and is being recorded.
type Recording<'p> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send + Sync + 'p>>;

/// Tells the store that this publisher lives.
async fn beat(store: Store, owner: OwnerId) {
    loop {
        if let Err(error) = store.heartbeat(&owner, ROLE).await {
            tracing::debug!(%error, "a heartbeat of the publisher was not written");
        }
        tokio::time::sleep(BEAT).await;
    }
}

/// Some time after the shutdown began: a broker that does not answer is waited for no longer.
async fn overdue(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    tokio::time::sleep(CONFIRM_WITHIN).await;
}

/// Returns when deliveries became due, or may have; never, once the store sends nothing more.
async fn woken(wakes: &mut Option<broadcast::Receiver<Wake>>) {
    while let Some(receiver) = wakes {
        match receiver.recv().await {
            Ok(Wake::Deliveries) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Ok(Wake::Jobs(_) | Wake::Lease(_) | Wake::Cancel(_) | Wake::Orders(_)) => {}
            Err(broadcast::error::RecvError::Closed) => *wakes = None,
        }
    }
    std::future::pending().await
}
