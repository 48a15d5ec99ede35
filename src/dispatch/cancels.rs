//! Learns which of the jobs in hand somebody wants cancelled. Whoever asks wakes the dispatcher; a wake can get lost
//! with a connection, so it also looks by itself while it has jobs in hand.

use std::time::Duration;

use super::core::{Event, Now};
use super::shell::{Dispatcher, Input, send};
use crate::pace::Time;
use crate::store::{JobPk, StoreError};

/// Looked at least this often, though nobody said so: a job is in hand for about two seconds before it is sent.
const FALLBACK: Duration = Duration::from_millis(500);

/// When to look.
#[derive(Debug, Default)]
pub(super) struct Cancels {
    look_at: Time,
    looking: bool,
}

impl Cancels {
    /// Some wakes were missed.
    pub fn look_now(&mut self) {
        self.look_at = Time::ZERO;
    }

    /// When to look, where there is something in hand.
    pub fn wake_at(&self) -> Option<Time> {
        (!self.looking).then_some(self.look_at)
    }
}

impl Dispatcher {
    /// Looks when it is time to, and there is something that could be cancelled.
    pub(super) fn keep_cancels(&mut self, now: Now) {
        if self.cancels.looking || self.cancels.look_at > now.mono || self.core.is_idle() {
            return;
        }
        self.cancels.looking = true;
        self.cancels.look_at = now.mono + FALLBACK;
        let (parts, sender) = (self.parts.clone(), self.sender.clone());
        self.tasks.spawn(async move {
            let asked = parts.store.cancel_requests(&parts.owner, &parts.provider.name).await;
            send(&sender, Input::Cancels(asked));
        });
    }

    /// Those were found.
    pub(super) fn cancels_told(&mut self, asked: Result<Vec<JobPk>, StoreError>) {
        self.cancels.looking = false;
        match asked {
            Ok(jobs) => {
                let now = self.now();
                jobs.into_iter().for_each(|pk| self.happened(Event::Cancel(pk), now));
            }
            Err(error) => tracing::debug!(%error, "cancelled jobs were not looked for"),
        }
    }
}
