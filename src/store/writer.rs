//! Group commit: what waits to be written goes into one transaction, and everybody is answered
//! after its commit. Nothing waits while the writer is idle; what arrives during a commit makes
//! the next batch.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};

use super::dialect::{Db, is_collision};
use super::jobs::{Arrival, Insertion};
use super::wakes::{Pending, Wakes};
use super::{
    Buried, COLLISIONS_MAX, Claimed, DeliveryJob, DeliveryRecord, Inserted, Record, Recorded, StoreError, dead,
    deliveries, jobs, outcomes,
};
use crate::clock::WallMs;

/// Requests that wait to be written; senders wait beyond that.
const QUEUE: usize = 4096;
/// Rows of one transaction, more or less: the last request may go over it.
const BATCH_ROWS: usize = 512;
/// Bytes of envelopes, bodies and messages of one transaction, likewise.
const BATCH_BYTES: usize = 8 * 1024 * 1024;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write, and who waits for it.
pub(super) enum Request {
    Insert(Vec<Arrival>, WallMs, Reply<Vec<Inserted>>),
    Record(Box<Record>, Reply<Recorded>),
    RecordDelivery(Box<DeliveryRecord>, Reply<()>),
    Bury(Box<Buried>, WallMs, Reply<String>),
    Claim(jobs::Claim, Reply<Vec<Claimed>>),
    ClaimDeliveries(deliveries::Claim, Reply<Vec<DeliveryJob>>),
    /// Answered when all that came before it is written; nothing is taken after it.
    Close(oneshot::Sender<()>),
}

impl Request {
    const fn rows(&self) -> usize {
        match self {
            Self::Insert(arrivals, ..) => arrivals.len(),
            Self::Record(..) | Self::RecordDelivery(..) | Self::Bury(..) | Self::Close(..) => 1,
            Self::Claim(claim, _) => claim.limit as usize,
            Self::ClaimDeliveries(claim, _) => claim.limit as usize,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Insert(arrivals, ..) => arrivals.iter().map(Arrival::bytes).sum(),
            Self::Record(record, _) => match &record.next {
                super::Next::Finish { response: Some(response), .. } => response.body.len(),
                _ => 0,
            },
            Self::Bury(message, ..) => message.raw.len(),
            Self::RecordDelivery(..) | Self::Claim(..) | Self::ClaimDeliveries(..) | Self::Close(..) => 0,
        }
    }

    fn fail(self, error: StoreError) {
        match self {
            Self::Insert(_, _, reply) => send(reply, Err(error)),
            Self::Record(_, reply) => send(reply, Err(error)),
            Self::RecordDelivery(_, reply) => send(reply, Err(error)),
            Self::Bury(_, _, reply) => send(reply, Err(error)),
            Self::Claim(_, reply) => send(reply, Err(error)),
            Self::ClaimDeliveries(_, reply) => send(reply, Err(error)),
            Self::Close(reply) => {
                reply.send(()).ok();
            }
        }
    }
}

/// A caller that went away does not need its answer.
fn send<T>(reply: Reply<T>, answer: Result<T, StoreError>) {
    drop(reply.send(answer));
}

/// What a request came to, before it is told.
enum Outcome {
    Insert(Vec<Insertion>),
    Record(Recorded),
    RecordDelivery,
    Bury(String),
    Claim(Vec<Claimed>),
    ClaimDeliveries(Vec<DeliveryJob>),
}

/// The way to a writer task.
#[derive(Debug, Clone)]
pub(super) struct Writer(mpsc::Sender<Request>);

impl Writer {
    /// Starts a writer task; it ends with its last sender.
    pub fn start(db: Db, wakes: Wakes) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(Task { db, wakes, receiver, closing: None }.run());
        Self(sender)
    }

    /// Hands a request over and waits for the commit that covers it.
    pub async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let gone = || StoreError::Unavailable(sqlx::Error::PoolClosed);
        self.0.send(request(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Waits until all that came before is written; nothing is taken afterwards.
    pub async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.0.send(Request::Close(reply)).await.is_ok() {
            drop(answer.await);
        }
    }
}

struct Task {
    db: Db,
    wakes: Wakes,
    receiver: mpsc::Receiver<Request>,
    closing: Option<oneshot::Sender<()>>,
}

impl Task {
    async fn run(mut self) {
        while let Some(batch) = self.next_batch().await {
            if !batch.is_empty() {
                self.write(batch).await;
            }
            if let Some(reply) = self.closing.take() {
                self.receiver.close();
                reply.send(()).ok();
                return;
            }
        }
    }

    /// Waits for a request and takes what waits behind it.
    async fn next_batch(&mut self) -> Option<Vec<Request>> {
        let mut batch = Vec::new();
        let (mut rows, mut bytes) = (0, 0);
        let mut next = Some(self.receiver.recv().await?);
        while let Some(request) = next {
            if let Request::Close(reply) = request {
                self.closing = Some(reply);
                break;
            }
            rows += request.rows();
            bytes += request.bytes();
            batch.push(request);
            if rows >= BATCH_ROWS || bytes >= BATCH_BYTES {
                break;
            }
            next = self.receiver.try_recv().ok();
        }
        Some(batch)
    }

    async fn write(&mut self, batch: Vec<Request>) {
        match self.attempt(&batch).await {
            Ok(outcomes) => settle(batch, outcomes),
            Err(StoreError::Unavailable(error)) => self.refuse(batch, &error),
            Err(error) if batch.len() == 1 => batch.into_iter().for_each(|request| request.fail(again(&error))),
            // One of them cannot be written: the others must not suffer for it.
            Err(_) => self.write_singly(batch).await,
        }
    }

    async fn write_singly(&mut self, batch: Vec<Request>) {
        let mut left = batch.into_iter();
        while let Some(request) = left.next() {
            let single = vec![request];
            match self.attempt(&single).await {
                Ok(outcomes) => settle(single, outcomes),
                Err(StoreError::Unavailable(error)) => {
                    return self.refuse(single.into_iter().chain(left).collect(), &error);
                }
                Err(error) => single.into_iter().for_each(|request| request.fail(again(&error))),
            }
        }
    }

    /// The database is away: everybody who waits is told so now, not one time-out after the other.
    /// Who waits is settled before the first is told: what comes in afterwards is a new attempt.
    fn refuse(&mut self, mut batch: Vec<Request>, error: &sqlx::Error) {
        while let Ok(request) = self.receiver.try_recv() {
            if let Request::Close(reply) = request {
                self.closing = Some(reply);
                break;
            }
            batch.push(request);
            if batch.len() > QUEUE {
                break;
            }
        }
        batch.into_iter().for_each(|request| request.fail(StoreError::Unavailable(copy(error))));
    }

    /// One transaction, again where others were in the way.
    async fn attempt(&self, batch: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        let mut collisions = 0;
        loop {
            let work = AssertUnwindSafe(self.db.in_time(self.transact(batch))).catch_unwind();
            let panicked = |_| Err(StoreError::Corrupt("writing it panicked".to_owned()));
            match work.await.unwrap_or_else(panicked) {
                Err(error) if is_collision(&error) && collisions < COLLISIONS_MAX => collisions += 1,
                done => return done,
            }
        }
    }

    async fn transact(&self, batch: &[Request]) -> Result<Vec<Outcome>, StoreError> {
        let mut tx = self.db.begin().await?;
        let mut pending = self.wakes.pending();
        let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
        // Always in this order: rows are locked alike by every writer, and claims see what the
        // same batch made due.
        insert_all(&mut tx, batch, &mut outcomes, &mut pending).await?;
        record_all(&mut tx, batch, &mut outcomes, &mut pending).await?;
        for (outcome, request) in outcomes.iter_mut().zip(batch) {
            match request {
                Request::Claim(claim, _) => {
                    *outcome = Some(Outcome::Claim(jobs::claim(&mut tx, claim, &mut pending).await?));
                }
                Request::ClaimDeliveries(claim, _) => {
                    *outcome = Some(Outcome::ClaimDeliveries(deliveries::claim(&mut tx, claim, &mut pending).await?));
                }
                _ => {}
            }
        }
        self.wakes.commit(tx, pending).await?;
        outcomes
            .into_iter()
            .map(|o| o.ok_or_else(|| StoreError::Corrupt("a request was left out".to_owned())))
            .collect()
    }
}

async fn insert_all(
    tx: &mut super::dialect::Tx,
    batch: &[Request],
    outcomes: &mut [Option<Outcome>],
    pending: &mut Pending,
) -> Result<(), StoreError> {
    let arrivals: Vec<(&Arrival, WallMs)> = batch
        .iter()
        .filter_map(|request| match request {
            Request::Insert(arrivals, now_ms, _) => Some(arrivals.iter().map(|a| (a, *now_ms))),
            _ => None,
        })
        .flatten()
        .collect();
    let mut insertions = jobs::insert(tx, &arrivals, pending).await?.into_iter();
    let messages: Vec<(&Buried, WallMs)> = batch
        .iter()
        .filter_map(|request| match request {
            Request::Bury(message, now_ms, _) => Some((&**message, *now_ms)),
            _ => None,
        })
        .collect();
    let mut ids = dead::bury(tx, &messages).await?.into_iter();
    for (outcome, request) in outcomes.iter_mut().zip(batch) {
        match request {
            Request::Insert(arrivals, ..) => {
                *outcome = Some(Outcome::Insert(insertions.by_ref().take(arrivals.len()).collect()));
            }
            Request::Bury(..) => *outcome = ids.next().map(Outcome::Bury),
            _ => {}
        }
    }
    Ok(())
}

async fn record_all(
    tx: &mut super::dialect::Tx,
    batch: &[Request],
    outcomes: &mut [Option<Outcome>],
    pending: &mut Pending,
) -> Result<(), StoreError> {
    let records: Vec<&Record> = batch
        .iter()
        .filter_map(|request| match request {
            Request::Record(record, _) => Some(&**record),
            _ => None,
        })
        .collect();
    let mut recorded = outcomes::record(tx, &records, pending).await?.into_iter();
    let delivered: Vec<&DeliveryRecord> = batch
        .iter()
        .filter_map(|request| match request {
            Request::RecordDelivery(record, _) => Some(&**record),
            _ => None,
        })
        .collect();
    deliveries::record(tx, &delivered).await?;
    for (outcome, request) in outcomes.iter_mut().zip(batch) {
        match request {
            Request::Record(..) => *outcome = recorded.next().map(Outcome::Record),
            Request::RecordDelivery(..) => *outcome = Some(Outcome::RecordDelivery),
            _ => {}
        }
    }
    Ok(())
}

/// Tells everybody what became of it.
fn settle(batch: Vec<Request>, outcomes: Vec<Outcome>) {
    for (request, outcome) in batch.into_iter().zip(outcomes) {
        match (request, outcome) {
            (Request::Insert(arrivals, now_ms, reply), Outcome::Insert(insertions)) => {
                let inserted = arrivals.into_iter().zip(insertions).map(|(a, i)| a.into_inserted(i, now_ms)).collect();
                send(reply, Ok(inserted));
            }
            (Request::Record(_, reply), Outcome::Record(recorded)) => send(reply, Ok(recorded)),
            (Request::RecordDelivery(_, reply), Outcome::RecordDelivery) => send(reply, Ok(())),
            (Request::Bury(_, _, reply), Outcome::Bury(id)) => send(reply, Ok(id)),
            (Request::Claim(_, reply), Outcome::Claim(claimed)) => send(reply, Ok(claimed)),
            (Request::ClaimDeliveries(_, reply), Outcome::ClaimDeliveries(claimed)) => send(reply, Ok(claimed)),
            (request, _) => request.fail(StoreError::Corrupt("the answer to another request".to_owned())),
        }
    }
}

/// The same error once more: several callers get it, and those of sqlx cannot be cloned.
fn copy(error: &sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::PoolTimedOut => sqlx::Error::PoolTimedOut,
        sqlx::Error::PoolClosed => sqlx::Error::PoolClosed,
        sqlx::Error::WorkerCrashed => sqlx::Error::WorkerCrashed,
        sqlx::Error::Io(error) => sqlx::Error::Io(std::io::Error::new(error.kind(), error.to_string())),
        other => sqlx::Error::Io(std::io::Error::other(other.to_string())),
    }
}

fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Corrupt(text) => StoreError::Corrupt(text.clone()),
        StoreError::Unstorable(text) => StoreError::Unstorable(text.clone()),
        StoreError::Unavailable(error) => StoreError::Unavailable(copy(error)),
        StoreError::Database(error) => StoreError::Database(sqlx::Error::Protocol(error.to_string())),
        other => StoreError::Corrupt(other.to_string()),
    }
}
