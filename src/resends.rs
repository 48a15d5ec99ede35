//! Resends: goes through the deliveries that an endpoint is to get again, a few at a time, as many as it takes.
//!
//! Any number of processes may do this; the store lets one of them do each step.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::{ResendState, ResendView, Store, StoreError};

/// Deliveries of one step.
const BATCH: u32 = 200;
/// Deliveries of an endpoint that may be pending before more are added.
const PENDING_MAX: u32 = 500;
/// How often it is looked for work.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Does what resends ask for.
#[derive(Debug)]
pub struct Resender {
    store: Store,
    clock: Arc<dyn Clock>,
}

impl Resender {
    /// On that store.
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    /// Goes on until shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut failing = false;
        loop {
            let more = match self.pass().await {
                Ok(more) => {
                    failing = false;
                    more
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "resends of webhooks wait for the store");
                    }
                    false
                }
            };
            let pause = if more { Duration::ZERO } else { LOOK_EVERY };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One step of each resend. Whether there is more to do at once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn pass(&self) -> Result<bool, StoreError> {
        let mut more = false;
        for resend in self.store.running_resends().await? {
            more |= self.step(&resend).await?;
        }
        Ok(more)
    }

    async fn step(&self, resend: &ResendView) -> Result<bool, StoreError> {
        if self.store.pending_deliveries(resend.endpoint_pk, PENDING_MAX).await? >= i64::from(PENDING_MAX) {
            return Ok(false);
        }
        let state = self.store.advance_resend(resend, BATCH, self.clock.wall_ms()).await?;
        if state == Some(ResendState::Done) {
            tracing::info!("an endpoint gets again what it missed: all of it is due");
        }
        Ok(state == Some(ResendState::Running))
    }
}
