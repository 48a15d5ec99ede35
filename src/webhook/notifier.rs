//! The loop: takes deliveries as they are made up in this process, claims others that are due, has them sent, records
//! every attempt.
//!
//! One task decides (`Shift`: the lanes, the next look into the store), and each delivery that goes is a
//! task of its own, which frees its endpoint's slot at the answer and then sees to its record. All of
//! it is bounded: calls, records being written, deliveries that wait, and their bytes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::WebhookSettings;
use super::classify::{Answer, Schedule, next};
use super::lanes::{Bounds, Lanes, Manner};
use super::poll::{Poll, after_failure};
use super::send::{ClientError, Prepared, SendError, Sender};
use super::stats::NotifierStats;
use crate::clock::{Clock, WallMs};
use crate::kill_point::{KillPoint, reached};
use crate::net_guard::Refused;
use crate::pace::Time;
use crate::store::{DeliveryJob, DeliveryNext, DeliveryRecord, Handed, Handover, OwnerId, Store, StoreError, Wake};

/// The role under which the store knows this owner.
const ROLE: &str = "notifier";
/// Calls at the same time at most, whatever is configured.
const CONCURRENCY_MAX: usize = 4_096;
/// Deliveries in one claim.
const CLAIM_MAX: usize = 256;
/// Room that a claim waits for, so that a busy notifier does not claim one by one.
const CLAIM_MIN: usize = 32;
/// Deliveries that wait for their turn: as many for each possible call, and in all at least.
const WAITING_PER_CALL: usize = 4;
const WAITING_MIN: usize = 256;
/// Their bodies, in bytes.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Records being written at the same time, for each possible call.
const RECORDS_PER_CALL: usize = 4;
/// What a claim lasts longer than waiting and sending can take.
const LEASE_MARGIN: Duration = Duration::from_secs(10);
/// How often lanes are looked through for what waits in vain.
const RELIEF: Duration = Duration::from_millis(250);
/// How often the store is told that this notifier lives: what silent owners hold is given to others.
const BEAT: Duration = Duration::from_secs(5);
/// The longest sleep of the loop.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a record is tried while the store is away: about a quarter of an hour. After that the
/// delivery is sent again.
const RECORD_TRIES_MAX: u32 = 200;
/// For handing claims back at the end.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(3);

/// Delivers webhooks until it is told to stop.
#[derive(Debug)]
pub struct Notifier {
    parts: Arc<Parts>,
    owner: OwnerId,
    bounds: Bounds,
    lease: Duration,
    grace: Duration,
    public_url: Option<String>,
}

/// What a delivery's task needs.
struct Parts {
    store: Store,
    clock: Arc<dyn Clock>,
    sender: Sender,
    schedule: Schedule,
    stats: NotifierStats,
    outage: Outage,
    /// The store knows of the owner.
    announced: AtomicBool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Notifier {
    /// A notifier on that store. Any number of them may share it.
    ///
    /// # Errors
    /// [`ClientError`] where TLS cannot be set up.
    pub fn new(store: Store, clock: Arc<dyn Clock>, settings: WebhookSettings) -> Result<Self, ClientError> {
        let calls_max = settings.concurrency.clamp(1, CONCURRENCY_MAX);
        let sender = Sender::new(&settings)?;
        let parts = Parts {
            store,
            clock,
            sender,
            schedule: settings.schedule,
            stats: settings.stats,
            outage: Outage::default(),
            announced: AtomicBool::new(false),
        };
        Ok(Self {
            parts: Arc::new(parts),
            owner: format!("notifier-{}", uuid::Uuid::now_v7().simple()),
            bounds: Bounds {
                calls_max,
                waiting_max: (calls_max * WAITING_PER_CALL).max(WAITING_MIN),
                waiting_bytes_max: WAITING_BYTES_MAX,
                wait_max: settings.timeout,
            },
            lease: settings.timeout.saturating_mul(2).saturating_add(LEASE_MARGIN),
            grace: settings.grace,
            public_url: settings.public_url,
        })
    }

    /// What it counts, to be registered where metrics are served.
    pub fn stats(&self) -> NotifierStats {
        self.parts.stats.clone()
    }

    /// Delivers until `shutdown`; then claims nothing more, gives what is being sent its grace period to
    /// end, and hands the rest back to the store. An absent store is waited for.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut shift = Shift::begin(self);
        loop {
            shift.relieve();
            shift.start();
            shift.look();
            match shift.wait(&shutdown).await {
                Seen::Stop => break,
                Seen::Settled(endpoint, manner) => shift.settle(endpoint, manner),
                Seen::Looked(looked) => shift.take(looked),
                Seen::Handed(handed) => shift.take_handed(handed),
                Seen::Woken => shift.poll.wake(),
                Seen::Nothing => {}
            }
        }
        shift.end().await;
    }
}

/// What the loop waits for.
enum Seen {
    Stop,
    Settled(i64, Manner),
    Looked(Result<Looked, StoreError>),
    Handed(Vec<Handed<DeliveryJob>>),
    Woken,
    Nothing,
}

/// What a look into the store found. `due_ms` is asked for only where nothing was due.
struct Looked {
    /// When it began, and the claim with it.
    since: Time,
    asked: usize,
    deliveries: Vec<DeliveryJob>,
    due_ms: Option<WallMs>,
}

type Look = Pin<Box<dyn Future<Output = Result<Looked, StoreError>> + Send>>;

/// A running notifier.
struct Shift {
    house: Notifier,
    lanes: Lanes,
    poll: Poll,
    relief_at: Time,
    look: Option<Look>,
    /// What the look in progress may find at most.
    asked: Option<usize>,
    handover: Handover<DeliveryJob>,
    wakes: Option<broadcast::Receiver<Wake>>,
    /// One message a delivery's task, so as many as there are tasks at most.
    settled: mpsc::UnboundedReceiver<(i64, Manner)>,
    settle: mpsc::UnboundedSender<(i64, Manner)>,
    tasks: JoinSet<()>,
    beat: AbortOnDropHandle<()>,
}

impl Shift {
    fn begin(house: Notifier) -> Self {
        let now = house.parts.clock.mono();
        let (settle, settled) = mpsc::unbounded_channel();
        let beat = Arc::clone(&house.parts).beat(house.owner.clone());
        let (store, clock) = (&house.parts.store, Arc::clone(&house.parts.clock));
        let handover = store.take_deliveries(house.owner.clone(), house.lease, clock);
        Self {
            lanes: Lanes::new(house.bounds),
            poll: Poll::new(now),
            relief_at: now,
            look: None,
            asked: None,
            handover,
            wakes: Some(house.parts.store.wakes()),
            settled,
            settle,
            tasks: JoinSet::new(),
            beat: AbortOnDropHandle::new(tokio::spawn(beat)),
            house,
        }
    }

    fn now(&self) -> Time {
        self.house.parts.clock.mono()
    }

    /// Lets go of what waits in vain, now and then.
    fn relieve(&mut self) {
        let now = self.now();
        if self.lanes.waiting() > 0 && now >= self.relief_at {
            self.relief_at = now + RELIEF;
            let released = self.lanes.relieve(now);
            self.count_released(released);
        }
    }

    fn count_released(&self, released: usize) {
        self.house.parts.stats.released.inc_by(u64::try_from(released).unwrap_or(u64::MAX));
    }

    /// Starts every delivery that may go.
    fn start(&mut self) {
        let now = self.now();
        let tasks_max = self.house.bounds.calls_max * (1 + RECORDS_PER_CALL);
        while self.tasks.len() < tasks_max {
            let Some(delivery) = self.lanes.next(now) else { break };
            let slot = Slot { endpoint: delivery.endpoint.pk, manner: Manner::Silent, settle: self.settle.clone() };
            self.tasks.spawn(Arc::clone(&self.house.parts).deliver(delivery, slot));
        }
        let gauge = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.house.parts.stats.open.set(gauge(self.lanes.open()));
        self.house.parts.stats.waiting.set(gauge(self.lanes.waiting()));
    }

    /// Begins a look into the store, if one is due and there is room for what it finds.
    fn look(&mut self) {
        let now = self.now();
        if !self.may_look() || !self.poll.wait(now).is_zero() {
            return;
        }
        self.poll.looking(now);
        let (parts, owner) = (Arc::clone(&self.house.parts), self.house.owner.clone());
        // What is handed over costs less, and what is due in the store is older: each gets a half.
        let room = if self.handover.has_some() { self.lanes.room() / 2 } else { self.lanes.room() };
        let (asked, lease) = (room.min(CLAIM_MAX), self.house.lease);
        self.asked = Some(asked);
        self.look = Some(Box::pin(async move {
            parts.announce(&owner).await?;
            let limit = u32::try_from(asked).unwrap_or(u32::MAX);
            let deliveries = parts.store.claim_deliveries(&owner, limit, parts.clock.wall_ms(), lease).await?;
            if !deliveries.is_empty() {
                reached(KillPoint::AfterDeliveryClaim);
            }
            let due_ms = if deliveries.is_empty() { parts.store.next_delivery_due().await? } else { None };
            Ok(Looked { since: now, asked, deliveries, due_ms })
        }));
    }

    fn may_look(&self) -> bool {
        self.look.is_none() && self.lanes.room() >= CLAIM_MIN
    }

    /// Waits until there is something to do.
    async fn wait(&mut self, shutdown: &CancellationToken) -> Seen {
        let look_in = if self.may_look() { self.poll.wait(self.now()) } else { PAUSE_MAX };
        let relief_in = if self.lanes.waiting() > 0 { RELIEF } else { PAUSE_MAX };
        let room = room_for_handed(self.lanes.room(), self.asked);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Seen::Stop,
            Some((endpoint, manner)) = self.settled.recv() => Seen::Settled(endpoint, manner),
            looked = looked(&mut self.look) => Seen::Looked(looked),
            Some(ended) = self.tasks.join_next() => {
                report(ended);
                Seen::Nothing
            }
            () = woken(&mut self.wakes) => Seen::Woken,
            Some(handed) = self.handover.next(room), if room > 0 => Seen::Handed(handed),
            () = tokio::time::sleep(look_in.min(relief_in)) => Seen::Nothing,
        }
    }

    /// Frees the slot of a call that ended, and of all that ended with it.
    fn settle(&mut self, endpoint: i64, manner: Manner) {
        let now = self.now();
        self.lanes.settle(endpoint, manner, now);
        while let Ok((endpoint, manner)) = self.settled.try_recv() {
            self.lanes.settle(endpoint, manner, now);
        }
        while let Some(ended) = self.tasks.try_join_next() {
            report(ended);
        }
    }

    /// Takes what a look found into the lanes.
    fn take(&mut self, looked: Result<Looked, StoreError>) {
        let now = self.now();
        self.asked = None;
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => {
                self.house.parts.outage.began(&error);
                return self.poll.failed(now, rand::random());
            }
        };
        self.house.parts.outage.ended();
        // The store knows of the owner.
        self.handover.set_open(true);
        if looked.deliveries.is_empty() {
            let due_in = looked.due_ms.map(|due| due.saturating_sub(self.house.parts.clock.wall_ms()).max(0));
            self.poll.nothing(due_in.map(|ms| Duration::from_millis(ms.unsigned_abs())), now);
        } else {
            self.poll.found(looked.deliveries.len() >= looked.asked, now);
        }
        for job in looked.deliveries {
            self.offer(job, looked.since, now);
        }
    }

    /// Takes what was made up and claimed for it.
    fn take_handed(&mut self, handed: Vec<Handed<DeliveryJob>>) {
        reached(KillPoint::AfterDeliveryClaim);
        let now = self.now();
        for Handed { delivery, since } in handed {
            self.offer(delivery, since, now);
        }
    }

    fn offer(&mut self, job: DeliveryJob, since: Time, now: Time) {
        let pk = job.pk;
        match Prepared::new(job, self.house.public_url.as_deref()) {
            Ok(delivery) => {
                let kept = self.lanes.offer(delivery, since, now);
                self.count_released(usize::from(!kept));
            }
            Err(error) => tracing::error!(delivery = pk, %error, "the event of a delivery cannot be written"),
        }
    }

    /// Lets what is being sent end, and hands the rest back.
    async fn end(mut self) {
        let waiting = self.lanes.clear();
        self.count_released(waiting);
        let rest = async {
            // So is what was claimed for it meanwhile.
            drop(tokio::time::timeout(RETIRE_TIMEOUT, self.handover.end()).await);
            if let Some(look) = self.look.take() {
                // What it claims is handed back below, as is what it may have claimed of a store that stays silent.
                drop(tokio::time::timeout(RETIRE_TIMEOUT, look).await);
            }
            while let Some(ended) = self.tasks.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(self.house.grace, rest).await.is_err() {
            tracing::warn!(
                unfinished = self.tasks.len(),
                "webhooks were still being sent at the end of the grace period"
            );
            self.tasks.shutdown().await;
        }
        self.beat.abort();
        self.house.parts.stats.open.set(0);
        self.house.parts.stats.waiting.set(0);
        let now_ms = self.house.parts.clock.wall_ms();
        let retiring = self.house.parts.store.retire(&self.house.owner, now_ms);
        match tokio::time::timeout(RETIRE_TIMEOUT, retiring).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "claimed webhooks were not handed back: they wait for their claim to run out")
            }
            Err(_) => {
                tracing::warn!("claimed webhooks were not handed back in time: they wait for their claim to run out")
            }
        }
    }
}

/// How much of what is handed over may be taken. What the next look needs is left to it: else it would never find room
/// while more is handed over than can be sent, and retries would wait for ever.
fn room_for_handed(room: usize, asked: Option<usize>) -> usize {
    room.saturating_sub(asked.unwrap_or(CLAIM_MIN))
}

/// The look in progress; never, where there is none.
async fn looked(look: &mut Option<Look>) -> Result<Looked, StoreError> {
    let Some(running) = look else { return std::future::pending().await };
    let result = running.await;
    *look = None;
    result
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

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a delivery ended in a way that it should not: it is sent again when its claim runs out");
    }
}

/// A delivery's hold on its endpoint's slot; dropped, it is free, however the delivery ended.
struct Slot {
    endpoint: i64,
    manner: Manner,
    settle: mpsc::UnboundedSender<(i64, Manner)>,
}

impl Slot {
    fn free(mut self, manner: Manner) {
        self.manner = manner;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Nobody listens after the shift's end, when there is nothing left to start.
        self.settle.send((self.endpoint, self.manner)).ok();
    }
}

impl Parts {
    /// Tells the store of the owner before its first claim.
    async fn announce(&self, owner: &str) -> Result<(), StoreError> {
        if !self.announced.load(Ordering::Relaxed) {
            self.store.heartbeat(&owner.to_owned(), ROLE).await?;
            self.announced.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Goes on telling it.
    async fn beat(self: Arc<Self>, owner: OwnerId) {
        loop {
            tokio::time::sleep(BEAT).await;
            if let Err(error) = self.store.heartbeat(&owner, ROLE).await {
                self.outage.began(&error);
            }
        }
    }

    /// One attempt, from the call to its record.
    async fn deliver(self: Arc<Self>, delivery: Prepared, slot: Slot) {
        let at_ms = self.clock.wall_ms();
        let began = self.clock.mono();
        reached(KillPoint::BeforeWebhook);
        let result = self.sender.send(&delivery, at_ms).await;
        let took = self.clock.mono().since(began);
        reached(KillPoint::AfterWebhook);
        slot.free(manner(&result));
        let record = self.completed(&delivery, at_ms, took, &result);
        self.stats.attempted(record.next, record.latency_ms);
        if matches!(record.next, DeliveryNext::Failed | DeliveryNext::Gone) {
            tracing::warn!(
                endpoint = delivery.endpoint.id,
                event = delivery.event_id,
                attempts = delivery.n,
                error = record.error,
                "a webhook is given up: it is kept and can be resent"
            );
        }
        self.record(record).await;
        reached(KillPoint::AfterWebhookRecord);
    }

    fn completed(
        &self,
        delivery: &Prepared,
        at_ms: WallMs,
        took: Duration,
        result: &Result<Answer, SendError>,
    ) -> DeliveryRecord {
        let answer = result.as_ref().ok().copied();
        DeliveryRecord {
            pk: delivery.pk,
            epoch: delivery.epoch,
            n: delivery.n,
            at_ms,
            status: answer.map(|a| a.status.as_u16()),
            latency_ms: i64::try_from(took.as_millis()).unwrap_or(i64::MAX),
            error: match result {
                Ok(answer) if answer.status.is_success() => None,
                Ok(answer) if answer.status.is_redirection() => {
                    Some(format!("answered {}: redirects are not followed", answer.status.as_u16()))
                }
                Ok(answer) => Some(format!("answered {}", answer.status.as_u16())),
                Err(error) => Some(error.to_string()),
            },
            next: next(answer, delivery.step, &self.schedule, self.clock.wall_ms(), rand::random()),
        }
    }

    /// Writes the record, waiting for an absent store.
    async fn record(&self, record: DeliveryRecord) {
        for tries in 1..=RECORD_TRIES_MAX {
            match self.store.record_delivery(record.clone()).await {
                Ok(()) => return self.outage.ended(),
                Err(error @ StoreError::Unavailable(_)) => {
                    self.outage.began(&error);
                    tokio::time::sleep(after_failure(tries, rand::random())).await;
                }
                Err(error) => {
                    tracing::error!(delivery = record.pk, %error, "the record of a webhook was refused: it is sent again");
                    break;
                }
            }
        }
        self.stats.unrecorded.inc();
    }
}

/// How the endpoint took the call, for its lane. What fails before anything is sent costs no slot any
/// time, but for names: looking them up can take long.
fn manner(result: &Result<Answer, SendError>) -> Manner {
    match result {
        Ok(answer) => match answer.status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Manner::Overloaded,
            _ => Manner::Answered,
        },
        Err(SendError::Refused(Refused::Name { .. })) => Manner::Silent,
        Err(SendError::Timeout(_) | SendError::Connect(_) | SendError::Broken(_)) => Manner::Silent,
        Err(_) => Manner::Answered,
    }
}

/// Says once that the store is away, and once that it is back.
#[derive(Debug, Default)]
struct Outage(AtomicBool);

impl Outage {
    fn began(&self, error: &StoreError) {
        if !self.0.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "webhooks wait for the store");
        }
    }

    fn ended(&self) {
        if self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed) {
            tracing::info!("the store is back: webhooks go on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However much is handed over: there is room for a look, and what it finds fits.
    #[test]
    fn what_is_handed_over_leaves_room_for_what_is_due_in_the_store() {
        for room in 0..=WAITING_MIN {
            let left = room - room_for_handed(room, None);
            assert!(left >= CLAIM_MIN.min(room), "{room}");
            for asked in 0..=room {
                assert!(room_for_handed(room, Some(asked)) + asked <= room, "{room}, {asked}");
            }
        }
        assert!(room_for_handed(WAITING_MIN, None) > 0);
    }
}
