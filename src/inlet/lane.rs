//! Consumes the queue of one lane: as many deliveries as the budgets allow in the next seconds
//! become claimed jobs, and are acknowledged after the commit.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::message::{self, Message};
use super::rabbit::{GOODBYE, InletError, InletParts, answered};
use super::topology;
use super::ways::{Way, Ways};
use crate::job::DeadReason;
use crate::kill_point::{KillPoint, reached};
use crate::store::{Buried, Claimed, Inserted, NewJob, StoreError};
use crate::supervise::Reconnect;

/// Deliveries in one commit at most.
const BATCH_MAX: usize = 256;
/// After so long without room the consumer is cancelled, and what it had delivered goes into the
/// store: the broker limits how long a message may stay unacknowledged.
const IDLE_AFTER: Duration = Duration::from_secs(5);

/// The consumer of one lane.
pub(super) struct Lane {
    pub parts: Arc<InletParts>,
    pub way: Way,
    /// What holds now.
    pub ways: watch::Receiver<Arc<Ways>>,
}

/// What a lane does next.
enum Step {
    /// The shutdown token, or the dispatcher is gone.
    Stop,
    /// No room for long: wait for some without a consumer.
    Idle,
}

impl Lane {
    /// Consumes until the session or the dispatcher ends.
    ///
    /// # Errors
    /// [`InletError`] ends the session; the supervisor begins a new one.
    pub async fn run(&self, connection: &Connection, session: &CancellationToken) -> Result<(), InletError> {
        let stop = session.child_token();
        let mut consuming = pin!(self.consume_until(connection, &stop));
        tokio::select! {
            ended = &mut consuming => return ended,
            () = self.way.stop.cancelled() => stop.cancel(),
        }
        let Way { provider, lane, .. } = &self.way;
        let silent = |_| Err(InletError::Silent(format!("ending the consumer of {provider}.{lane}")));
        tokio::time::timeout(GOODBYE, consuming).await.unwrap_or_else(silent)
    }

    async fn consume_until(&self, connection: &Connection, shutdown: &CancellationToken) -> Result<(), InletError> {
        loop {
            // Who dispatches nothing of this provider consumes nothing of it.
            let room = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                room = self.way.intake.reserve(1) => room,
            };
            let Ok(reserved) = room else { return Ok(()) };
            if self.way.intake.deliver(Vec::new(), reserved).is_err() {
                return Ok(());
            }
            match self.consume(connection, shutdown).await? {
                Step::Stop => return Ok(()),
                Step::Idle => {}
            }
        }
    }

    async fn consume(&self, connection: &Connection, shutdown: &CancellationToken) -> Result<Step, InletError> {
        let Way { provider, lane, owner, prefetch, .. } = &self.way;
        let queue = topology::queue_name(provider, lane);
        let tag = format!("paceline.{owner}.{provider}.{lane}");
        let begin = begin(connection, &queue, &tag, *prefetch);
        let (channel, consumer) = answered(&format!("consuming {queue}"), begin).await?;
        let mut deliveries = consumer.ready_chunks(BATCH_MAX);
        let step = loop {
            let chunk = tokio::select! {
                () = shutdown.cancelled() => break Step::Stop,
                chunk = deliveries.next() => chunk,
            };
            // The broker cancelled the consumer: queue deleted, or its leader moved.
            let Some(chunk) = chunk else { return Err(InletError::ConsumerEnded(tag)) };
            let chunk = chunk.into_iter().collect::<Result<Vec<Delivery>, lapin::Error>>()?;
            if let Some(step) = self.take(chunk, shutdown).await? {
                break step;
            }
        };
        self.wind_up(&channel, &tag, deliveries, matches!(step, Step::Idle), shutdown).await?;
        Ok(step)
    }

    /// Lets a chunk in as there is room. `None`: go on.
    async fn take(&self, mut chunk: Vec<Delivery>, shutdown: &CancellationToken) -> Result<Option<Step>, InletError> {
        while !chunk.is_empty() {
            let room = tokio::select! {
                // What is not claimed yet goes back to the broker when the channel closes.
                () = shutdown.cancelled() => return Ok(Some(Step::Stop)),
                room = tokio::time::timeout(IDLE_AFTER, self.way.intake.reserve(chunk.len())) => room,
            };
            match room {
                Ok(Ok(reserved)) => {
                    let rest = chunk.split_off(reserved);
                    let let_in = self.let_in(&chunk, true, shutdown).await;
                    let (jobs, result) = match let_in {
                        Ok((jobs, letters)) => (jobs, Ok(letters)),
                        Err(error) => (Vec::new(), Err(error)),
                    };
                    // Before anything that may fail: what is claimed must be known to its owner, and the
                    // reservation given back.
                    let delivered = self.way.intake.deliver(jobs, reserved);
                    self.bury_all(result?, shutdown).await?;
                    acknowledge(&chunk).await?;
                    reached(KillPoint::AfterAck);
                    if delivered.is_err() {
                        return Ok(Some(Step::Stop));
                    }
                    chunk = rest;
                }
                Ok(Err(_closed)) => return Ok(Some(Step::Stop)),
                Err(_no_room) => {
                    self.let_in_unclaimed(&chunk, shutdown).await?;
                    return Ok(Some(Step::Idle));
                }
            }
        }
        Ok(None)
    }

    /// Ends the consumer; what it had delivered is let in unclaimed (`keep`), or goes back.
    async fn wind_up(
        &self,
        channel: &Channel,
        tag: &str,
        mut deliveries: futures_util::stream::ReadyChunks<Consumer>,
        keep: bool,
        shutdown: &CancellationToken,
    ) -> Result<(), InletError> {
        if keep {
            channel.basic_cancel(tag.into(), BasicCancelOptions::default()).await?;
            while let Some(chunk) = deliveries.next().await {
                let chunk = chunk.into_iter().collect::<Result<Vec<Delivery>, lapin::Error>>()?;
                self.let_in_unclaimed(&chunk, shutdown).await?;
            }
        }
        channel.close(200, "done".into()).await?;
        Ok(())
    }

    /// Into the store, for whoever claims them there.
    async fn let_in_unclaimed(&self, chunk: &[Delivery], shutdown: &CancellationToken) -> Result<(), InletError> {
        let (_, letters) = self.let_in(chunk, false, shutdown).await?;
        self.bury_all(letters, shutdown).await?;
        acknowledge(chunk).await
    }

    /// One commit for a whole chunk: the claimed jobs, and what is still to be buried of it. While
    /// the store is away the chunk waits: unacknowledged, so nothing is lost if this process ends
    /// meanwhile.
    async fn let_in(
        &self,
        chunk: &[Delivery],
        claim: bool,
        shutdown: &CancellationToken,
    ) -> Result<(Vec<Claimed>, Vec<Buried>), InletError> {
        let mut jobs = Vec::new();
        let mut sources = Vec::new();
        let ways = Arc::clone(&self.ways.borrow());
        for delivery in chunk {
            match message::read(delivery, &ways.catalog, ways.envelope_bytes_max) {
                Message::Job(job, origin) => {
                    self.parts.metrics.let_in(&self.way.provider, job.id_was_given);
                    let owner = claim.then(|| self.way.owner.clone());
                    jobs.push(NewJob { job: *job, origin, owner });
                    sources.push(delivery);
                }
                Message::Buried(buried) => self.parts.bury(*buried, shutdown).await?,
            }
        }
        if !jobs.is_empty() {
            reached(KillPoint::BeforeLetIn);
        }
        let inserted = self.insert(jobs, shutdown).await?;
        reached(KillPoint::AfterLetIn);
        let (mut claimed, mut letters) = (Vec::new(), Vec::new());
        for (outcome, delivery) in inserted.into_iter().zip(sources) {
            match outcome {
                Ok(Inserted::Created(Some(job))) => claimed.push(job),
                Ok(Inserted::Created(None) | Inserted::Exists(_)) => {}
                Ok(Inserted::Conflict) => {
                    let error = "another job has this id with other content".to_owned();
                    letters.push(message::buried(delivery, DeadReason::Conflict, error));
                }
                Err(Unstorable(error)) => {
                    tracing::error!(
                        error,
                        provider = self.way.provider,
                        "the database refuses a job: it is a dead letter now"
                    );
                    letters.push(message::buried(delivery, DeadReason::Rejected, error));
                }
            }
        }
        Ok((claimed, letters))
    }

    async fn bury_all(&self, messages: Vec<Buried>, shutdown: &CancellationToken) -> Result<(), InletError> {
        for message in messages {
            self.parts.bury(message, shutdown).await?;
        }
        Ok(())
    }

    /// All in one commit; where the database refuses one of them for good, each in its own: the others must not suffer.
    async fn insert(
        &self,
        jobs: Vec<NewJob>,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Result<Inserted, Unstorable>>, InletError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        if let Ok(inserted) = self.insert_together(jobs.clone(), shutdown).await? {
            return Ok(inserted.into_iter().map(Ok).collect());
        }
        let mut inserted = Vec::with_capacity(jobs.len());
        for job in jobs {
            let one = self.insert_together(vec![job], shutdown).await?;
            inserted.extend(one.map_or_else(|refused| vec![Err(refused)], |one| one.into_iter().map(Ok).collect()));
        }
        Ok(inserted)
    }

    async fn insert_together(
        &self,
        jobs: Vec<NewJob>,
        shutdown: &CancellationToken,
    ) -> Result<Result<Vec<Inserted>, Unstorable>, InletError> {
        let mut reconnect = Reconnect::new();
        loop {
            match self.parts.store.insert(jobs.clone(), self.parts.clock.wall_ms()).await {
                Ok(inserted) => return Ok(Ok(inserted)),
                Err(StoreError::Unstorable(text)) => return Ok(Err(Unstorable(text))),
                Err(error) => self.parts.wait_for_store(error, &mut reconnect, shutdown).await?,
            }
        }
    }
}

/// The database refuses what is in a job for good, and says why.
struct Unstorable(String);

/// A consumer on a channel of its own.
pub(super) async fn begin(
    connection: &Connection,
    queue: &str,
    tag: &str,
    prefetch: u16,
) -> Result<(Channel, Consumer), InletError> {
    let channel = connection.create_channel().await?;
    // Per consumer: quorum queues refuse a global limit, and 0 would mean no limit at all.
    channel.basic_qos(prefetch.max(1), BasicQosOptions { global: false }).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let consumer = channel.basic_consume(queue.into(), tag.into(), options, arguments).await?;
    Ok((channel, consumer))
}

/// Acknowledges a chunk and all before it, which is what one consumer a channel makes right.
async fn acknowledge(chunk: &[Delivery]) -> Result<(), InletError> {
    let Some(last) = chunk.last() else { return Ok(()) };
    // False: the channel is gone. The broker delivers all of it again, and the store knows it.
    if last.acker.ack(BasicAckOptions { multiple: true }).await? { Ok(()) } else { Err(InletError::AckLost) }
}
