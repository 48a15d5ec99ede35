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

use super::{DeliveryJob, OwnerId, Publication, Store};
use crate::clock::{Clock, WallMs};
use crate::pace::Time;

/// Deliveries on their way to a taker at most.
const ROOM: usize = 512;
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
    receiver: mpsc::Receiver<Handed<T>>,
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
        let mut handed = Vec::new();
        (self.receiver.recv_many(&mut handed, limit).await > 0).then_some(handed)
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
    sender: mpsc::Sender<Handed<T>>,
}

/// Room for one delivery.
#[derive(Debug)]
pub(super) struct Reservation<T> {
    pub owner: OwnerId,
    pub lapses_ms: WallMs,
    since: Time,
    permit: OwnedPermit<Handed<T>>,
}

/// A delivery that is passed on when its transaction is committed.
#[derive(Debug)]
pub(super) struct Ready<T>(OwnedPermit<Handed<T>>, Handed<T>);

impl<T> Reservation<T> {
    pub fn with(self, delivery: T) -> Ready<T> {
        Ready(self.permit, Handed { delivery, since: self.since })
    }
}

impl<T> Ready<T> {
    pub fn pass(self) {
        self.0.send(self.1);
    }
}

/// Where the one taker of a kind stands; the last one counts.
#[derive(Debug)]
struct Place<T>(Mutex<Option<Taker<T>>>);

impl<T> Default for Place<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Place<T> {
    fn take(&self, owner: OwnerId, lease: Duration, clock: Arc<dyn Clock>) -> Handover<T> {
        let (sender, receiver) = mpsc::channel(ROOM);
        let gate = Arc::new(AtomicBool::new(false));
        let taker = Taker { owner, lease, clock, gate: Arc::clone(&gate), sender };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(taker);
        Handover { gate, receiver }
    }

    fn reserve(&self, body: usize) -> Option<Reservation<T>> {
        let place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taker = place.as_ref().filter(|taker| body <= BODY_MAX && taker.gate.load(Ordering::Relaxed))?;
        let permit = taker.sender.clone().try_reserve_owned().ok()?;
        let lease_ms = i64::try_from(taker.lease.as_millis()).unwrap_or(i64::MAX);
        Some(Reservation {
            owner: taker.owner.clone(),
            lapses_ms: taker.clock.wall_ms().saturating_add(lease_ms),
            since: taker.clock.mono(),
            permit,
        })
    }
}

/// Who takes deliveries in this process.
#[derive(Debug, Default)]
pub(super) struct Takers {
    webhooks: Place<DeliveryJob>,
    publications: Place<Publication>,
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
        let place = Place::default();
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
}
