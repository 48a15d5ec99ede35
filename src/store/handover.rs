//! Deliveries that are handed to whoever makes them, in the process in which their jobs ended: claimed in the
//! transaction of the outcome and passed on after its commit, so that they need no claim of their own and are not read
//! again.
//!
//! ```text
//! outcome ──▶ reserve ──▶ INSERT … owner, epoch 1 ──▶ COMMIT ──▶ channel ──▶ notifier, publisher
//!                │ no room, closed, nobody there            │ rolled back: the room is free again
//!                └──▶ INSERT … owned by nobody ──▶ due      └ in doubt: let go of as any lost claim
//! ```
//!
//! What is due in the store meanwhile is the taker's to look for, however much is handed over.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{DeliveryJob, OwnerId, Publication, Store};
use crate::clock::{Clock, WallMs};
use crate::pace::Time;

/// Webhooks on their way to the notifier at most: each may have to wait for its endpoint.
const WEBHOOKS_MAX: usize = 512;
/// Completions on their way to the publisher at most: some commits of outcomes, which come in bursts.
const PUBLICATIONS_MAX: usize = 2048;
/// Bytes of answers on their way to one of them at most.
const ROOM_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of an answer that is passed on; completions with larger ones are claimed, a few at a time.
const BODY_MAX: usize = 32 * 1024;

/// A claimed delivery, and when its claim began.
#[derive(Debug)]
pub struct Handed<T> {
    pub delivery: T,
    pub since: Time,
}

/// The taker's end. Dropped, it takes nothing more; what was on its way is still claimed.
#[derive(Debug)]
pub struct Handover<T> {
    gate: Arc<AtomicBool>,
    receiver: mpsc::Receiver<Carried<T>>,
}

/// What is on its way.
#[derive(Debug)]
struct Carried<T> {
    handed: Handed<T>,
    /// Given back when it is taken.
    _bytes: OwnedSemaphorePermit,
}

impl<T> Handover<T> {
    /// Takes what is made up from now on, as long as there is room for it, or nothing more. The store must know that
    /// the owner lives.
    pub fn set_open(&self, is_open: bool) {
        self.gate.store(is_open, Ordering::Relaxed);
    }

    /// Something is there.
    pub fn has_some(&self) -> bool {
        !self.receiver.is_empty()
    }

    /// What is there, up to `limit`; waits for the first. `None`: somebody else takes them now.
    pub async fn next(&mut self, limit: usize) -> Option<Vec<Handed<T>>> {
        let mut carried = Vec::new();
        let taken = self.receiver.recv_many(&mut carried, limit).await;
        (taken > 0).then(|| carried.into_iter().map(|carried| carried.handed).collect())
    }

    /// Takes nothing more, and returns when nothing is on its way any more: all that was taken is claimed by then, and
    /// can be handed back.
    pub async fn end(mut self) {
        self.set_open(false);
        self.receiver.close();
        while self.receiver.recv().await.is_some() {}
    }
}

/// The store's end.
#[derive(Debug)]
struct Taker<T> {
    owner: OwnerId,
    lease: Duration,
    clock: Arc<dyn Clock>,
    gate: Arc<AtomicBool>,
    sender: mpsc::Sender<Carried<T>>,
    bytes: Arc<Semaphore>,
}

/// Room for one delivery.
#[derive(Debug)]
pub(super) struct Reservation<T> {
    pub owner: OwnerId,
    pub lapses_ms: WallMs,
    since: Time,
    permit: OwnedPermit<Carried<T>>,
    bytes: OwnedSemaphorePermit,
}

/// A delivery that is passed on when its transaction is committed.
#[derive(Debug)]
pub(super) struct Ready<T>(OwnedPermit<Carried<T>>, Carried<T>);

impl<T> Reservation<T> {
    pub fn with(self, delivery: T) -> Ready<T> {
        Ready(self.permit, Carried { handed: Handed { delivery, since: self.since }, _bytes: self.bytes })
    }
}

impl<T> Ready<T> {
    pub fn pass(self) {
        self.0.send(self.1);
    }
}

/// Where the one taker of a kind stands; the last one counts.
#[derive(Debug)]
struct Place<T> {
    taker: Mutex<Option<Taker<T>>>,
    room: usize,
}

impl<T> Place<T> {
    const fn new(room: usize) -> Self {
        Self { taker: Mutex::new(None), room }
    }

    fn take(&self, owner: OwnerId, lease: Duration, clock: Arc<dyn Clock>) -> Handover<T> {
        let (sender, receiver) = mpsc::channel(self.room);
        let gate = Arc::new(AtomicBool::new(false));
        let bytes = Arc::new(Semaphore::new(ROOM_BYTES));
        let taker = Taker { owner, lease, clock, gate: Arc::clone(&gate), sender, bytes };
        *self.taker.lock().unwrap_or_else(PoisonError::into_inner) = Some(taker);
        Handover { gate, receiver }
    }

    fn reserve(&self, body: usize) -> Option<Reservation<T>> {
        let place = self.taker.lock().unwrap_or_else(PoisonError::into_inner);
        let taker = place.as_ref().filter(|taker| body <= BODY_MAX && taker.gate.load(Ordering::Relaxed))?;
        let permit = taker.sender.clone().try_reserve_owned().ok()?;
        let bytes = Arc::clone(&taker.bytes).try_acquire_many_owned(u32::try_from(body).ok()?).ok()?;
        let lease_ms = i64::try_from(taker.lease.as_millis()).unwrap_or(i64::MAX);
        Some(Reservation {
            owner: taker.owner.clone(),
            lapses_ms: taker.clock.wall_ms().saturating_add(lease_ms),
            since: taker.clock.mono(),
            permit,
            bytes,
        })
    }
}

/// Who takes deliveries in this process.
#[derive(Debug)]
pub(super) struct Takers {
    webhooks: Place<DeliveryJob>,
    publications: Place<Publication>,
}

impl Default for Takers {
    fn default() -> Self {
        Self { webhooks: Place::new(WEBHOOKS_MAX), publications: Place::new(PUBLICATIONS_MAX) }
    }
}

impl Takers {
    /// Room for a webhook whose completion has so many bytes of answer.
    pub fn webhook(&self, body: usize) -> Option<Reservation<DeliveryJob>> {
        self.webhooks.reserve(body)
    }

    /// The same for what is published to the broker.
    pub fn publication(&self, body: usize) -> Option<Reservation<Publication>> {
        self.publications.reserve(body)
    }
}

impl Store {
    /// Takes webhooks as they are made up in this process, claimed for `lease`, from when its gate is opened on. Who
    /// asked before takes nothing more.
    pub fn take_deliveries(&self, owner: OwnerId, lease: Duration, clock: Arc<dyn Clock>) -> Handover<DeliveryJob> {
        self.inner.wakes.takers().webhooks.take(owner, lease, clock)
    }

    /// The same for what is published to the broker.
    pub fn take_publications(&self, owner: OwnerId, lease: Duration, clock: Arc<dyn Clock>) -> Handover<Publication> {
        self.inner.wakes.takers().publications.take(owner, lease, clock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[tokio::test]
    async fn whoever_ends_waits_for_what_is_on_its_way() {
        let place = Place::new(8);
        let handover = place.take("me".to_owned(), Duration::from_secs(60), Arc::new(SystemClock::new()));
        assert!(place.reserve(1).is_none(), "the gate is closed at first");
        handover.set_open(true);
        let (first, second) = (place.reserve(1).expect("room"), place.reserve(1).expect("room"));
        let mut ending = std::pin::pin!(handover.end());
        assert!(futures_util::poll!(&mut ending).is_pending());
        assert!(place.reserve(1).is_none(), "it takes nothing more");
        first.with(1).pass();
        assert!(futures_util::poll!(&mut ending).is_pending());
        drop(second);
        assert!(futures_util::poll!(&mut ending).is_ready());
    }

    #[tokio::test]
    async fn large_answers_have_room_until_they_are_taken() {
        let place = Place::new(2048);
        let mut handover = place.take("me".to_owned(), Duration::from_secs(60), Arc::new(SystemClock::new()));
        handover.set_open(true);
        assert!(place.reserve(BODY_MAX + 1).is_none(), "that is claimed");
        let fill = || std::iter::from_fn(|| place.reserve(BODY_MAX)).map(|room| room.with(()).pass()).count();
        assert_eq!(fill(), ROOM_BYTES / BODY_MAX);
        assert!(place.reserve(0).is_some(), "small ones still have");
        assert_eq!(handover.next(10).await.map(|handed| handed.len()), Some(10));
        assert_eq!(fill(), 10);
        drop(handover.next(1).await);
        drop(place.reserve(BODY_MAX).expect("room for one"));
        assert_eq!(fill(), 1, "what was not passed on has given it back");
    }
}
