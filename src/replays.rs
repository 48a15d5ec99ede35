//! Replays by filter: goes through the dead letters that somebody asked to run again, a few at a time.
//!
//! They wait in the lane of replays, which comes last in line, and no more than some hundred of a provider at once: so
//! live traffic goes first, and a replay that is stopped stops. Any number of processes may do this; the store lets
//! one of them do each step.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, WallMs};
use crate::job::{Catalog, Envelope, Given, Instant, Invalid, REPLAY_LANE, Request};
use crate::store::{ReplayLetter, ReplayView, Store, StoreError};

/// Dead letters of one step.
const BATCH: u32 = 100;
/// Jobs of a provider that may wait in the lane of replays before more are added.
const WAITING_MAX: u32 = 500;
/// How often it is looked for work.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a replay changes about its job.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Another request.
    pub request: Option<Request>,
    /// Another lane than that of replays.
    pub lane: Option<String>,
    /// Not before.
    pub not_before: Option<Instant>,
}

/// Whether the job of that envelope, as it is stored, can run again by what is configured now.
///
/// # Errors
/// [`Invalid`] names the field.
pub fn check(stored: &str, changes: Changes, catalog: &Catalog, now_ms: WallMs) -> Result<(), Invalid> {
    let mut envelope = Envelope::parse(stored.as_bytes())?;
    envelope.request = changes.request.unwrap_or(envelope.request);
    envelope.lane = Some(changes.lane.unwrap_or_else(|| REPLAY_LANE.to_owned()));
    envelope.not_before = changes.not_before;
    // The store drops a deadline that has passed by then, so it is not checked either.
    let due = changes.not_before.map_or(now_ms, |at| at.0);
    envelope.deadline = envelope.deadline.filter(|deadline| deadline.0 > due);
    let given = Given { is_replay: true, ..Given::default() };
    envelope.check(&given, catalog, String::new).map(drop)
}

/// Does what replays by filter ask for.
#[derive(Debug)]
pub struct Replayer {
    store: Store,
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
}

impl Replayer {
    /// Jobs are checked against that catalog before they run again.
    pub fn new(store: Store, clock: Arc<dyn Clock>, catalog: Arc<Catalog>) -> Self {
        Self { store, clock, catalog }
    }

    /// Goes on until shutdown; a step that is under way then is all or nothing.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.passes() => {}
        }
    }

    async fn passes(self) {
        let mut failing = false;
        loop {
            let more = match self.pass().await {
                Ok(more) => {
                    failing = false;
                    more
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "replays wait for the store");
                    }
                    false
                }
            };
            tokio::time::sleep(if more { Duration::ZERO } else { LOOK_EVERY }).await;
        }
    }

    /// One step of each replay. Whether there is more to do at once.
    async fn pass(&self) -> Result<bool, StoreError> {
        let mut more = false;
        for replay in self.store.running_replays().await? {
            more |= self.step(&replay).await?;
        }
        Ok(more)
    }

    async fn step(&self, replay: &ReplayView) -> Result<bool, StoreError> {
        let letters = self.store.replay_letters(replay, BATCH).await?;
        let providers: BTreeSet<&str> = letters.iter().map(|letter| letter.provider.as_str()).collect();
        for provider in providers {
            if self.store.waiting_replays(provider, WAITING_MAX).await? >= i64::from(WAITING_MAX) {
                return Ok(false);
            }
        }
        let now_ms = self.clock.wall_ms();
        let (fit, unfit): (Vec<&ReplayLetter>, Vec<&ReplayLetter>) = letters
            .iter()
            .partition(|letter| check(&letter.envelope, Changes::default(), &self.catalog, now_ms).is_ok());
        let full = u32::try_from(letters.len()).is_ok_and(|n| n == BATCH);
        let position = letters.last().filter(|_| full).map_or(replay.last_pk, |letter| letter.pk);
        let skipped = i64::try_from(unfit.len()).unwrap_or(i64::MAX);
        let mine = self.store.advance_replay(replay, &fit, skipped, position, now_ms).await?;
        if mine && position >= replay.last_pk {
            tracing::info!(replay = replay.id, "a replay has gone through all its dead letters");
        }
        Ok(mine && position < replay.last_pk)
    }
}
