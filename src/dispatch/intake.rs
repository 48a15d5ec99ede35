//! How much more the dispatcher will take, lane by lane: the inlet asks before it lets in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Semaphore, mpsc};

use super::shell::Input;
use crate::store::Claimed;

/// The door of one lane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Intake {
    credits: Arc<Semaphore>,
    reserved: Arc<AtomicUsize>,
    inputs: mpsc::UnboundedSender<Input>,
}

/// The dispatcher is gone: nothing more is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the dispatcher has stopped")]
pub struct Closed;

impl Intake {
    pub(super) fn new(inputs: mpsc::UnboundedSender<Input>) -> Self {
        Self { credits: Arc::new(Semaphore::new(0)), reserved: Arc::default(), inputs }
    }

    /// Waits until at least one more job is wanted, and reserves up to `max`.
    ///
    /// # Errors
    /// [`Closed`] when the dispatcher has stopped.
    pub async fn reserve(&self, max: usize) -> Result<usize, Closed> {
        self.credits.acquire().await.map_err(|_| Closed)?.forget();
        let more = self.credits.forget_permits(max.saturating_sub(1));
        self.reserved.fetch_add(1 + more, Ordering::AcqRel);
        Ok(1 + more)
    }

    /// Hands claimed jobs over, and gives the rest of the reservation back.
    ///
    /// # Errors
    /// [`Closed`] when the dispatcher has stopped: its jobs are released by whoever retires the
    /// owner.
    pub fn deliver(&self, jobs: Vec<Claimed>, reserved: usize) -> Result<(), Closed> {
        let sent = if jobs.is_empty() { Ok(()) } else { self.inputs.send(Input::Claimed(jobs)).map_err(|_| Closed) };
        self.reserved.fetch_sub(reserved, Ordering::AcqRel);
        sent
    }

    /// Sets how many more are wanted, beside those that are reserved already.
    pub(super) fn set_room(&self, room: usize) {
        let room = room.saturating_sub(self.reserved.load(Ordering::Acquire));
        let open = self.credits.available_permits();
        if room > open {
            self.credits.add_permits(room - open);
        } else {
            self.credits.forget_permits(open - room);
        }
    }

    pub(super) fn close(&self) {
        self.credits.close();
    }
}
