//! What has to be done now and then: jobs of dead dispatchers are rescued, jobs past their
//! deadline expire, old rows go. One pass each, several processes may run them at once.

mod recurring;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::StoreConfig;
use crate::store::{OwnerId, Store, StoreError};

pub use recurring::{Due, Missed, Recurring, Schedule};

/// Owners say that they live this often.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(2);
/// An owner that was silent for so long is dead.
pub const SILENT_FOR: Duration = Duration::from_secs(15);
/// After the store was away, the living get so long to say that they live before anybody is rescued. So they do when a
/// process begins: it does not know whether the store was away before.
const CALM: Duration = Duration::from_secs(8);
/// Rescue and expiry run this often.
const PASS_EVERY: Duration = Duration::from_secs(3);
/// Retention runs once in so many passes.
const RETENTION_PASSES: u32 = 20;
/// What operators did is kept for so long.
pub const KEEP_ACTS: Duration = Duration::from_secs(400 * 86_400);
/// Rows of one statement.
const BATCH: u32 = 500;

/// Says every two seconds which owners of this process live, in one statement: while they drain, too, or their calls would
/// be rescued. A handle: clones are one.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    store: Store,
    roles: Arc<str>,
    /// Locked during a beat: whoever was taken out is in none that is under way.
    owners: Arc<Mutex<BTreeSet<OwnerId>>>,
    another: Arc<Notify>,
}

impl Heartbeat {
    /// Of nobody.
    pub fn new(store: Store, roles: &str) -> Self {
        Self { store, roles: roles.into(), owners: Arc::default(), another: Arc::default() }
    }

    /// From now on this one lives, too: it is said at once.
    pub async fn begin(&self, owner: OwnerId) {
        self.owners.lock().await.insert(owner);
        self.another.notify_one();
    }

    /// It ends: waits for the beat that is under way.
    pub async fn end(&self, owner: &OwnerId) {
        self.owners.lock().await.remove(owner);
    }

    /// Beats for ever.
    pub async fn run(self) {
        let mut failing = false;
        loop {
            match self.beat().await {
                Ok(()) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "the store does not hear that this process lives");
                }
                Err(_) => {}
            }
            // Where somebody came meanwhile it ends at once.
            let _another = tokio::time::timeout(HEARTBEAT_EVERY, self.another.notified()).await;
        }
    }

    async fn beat(&self) -> Result<(), StoreError> {
        let owners = self.owners.lock().await;
        if owners.is_empty() {
            return Ok(());
        }
        self.store.heartbeats(&owners.iter().cloned().collect::<Vec<_>>(), &self.roles).await
    }
}

/// The passes of the scheduler role.
#[derive(Debug)]
pub struct Scheduler {
    store: Store,
    clock: Arc<dyn Clock>,
    keep: StoreConfig,
}

impl Scheduler {
    /// Retention as configured.
    pub fn new(store: Store, clock: Arc<dyn Clock>, keep: StoreConfig) -> Self {
        Self { store, clock, keep }
    }

    /// Passes until shutdown. One that is under way then is given up: another process, or the next start, does it.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.passes() => {}
        }
    }

    async fn passes(self) {
        let mut pass = 0_u32;
        let mut failing = false;
        // Where nobody else can live, what others held is free at once.
        let mut calm_at = self.clock.mono() + if self.store.is_exclusive() { Duration::ZERO } else { CALM };
        loop {
            let rescue = calm_at <= self.clock.mono();
            match self.pass(rescue, pass.is_multiple_of(RETENTION_PASSES)).await {
                Ok(()) => failing = false,
                Err(error) => {
                    calm_at = self.clock.mono() + CALM;
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "upkeep of the store fails; trying again");
                    }
                }
            }
            pass = pass.wrapping_add(1);
            tokio::time::sleep(PASS_EVERY).await;
        }
    }

    async fn pass(&self, rescue: bool, retention: bool) -> Result<(), StoreError> {
        let rescued = if rescue { self.store.rescue_others(SILENT_FOR, self.clock.wall_ms()).await? } else { 0 };
        if rescued > 0 {
            tracing::warn!(jobs = rescued, "rescued the jobs of a process that ended without letting go of them");
        }
        while self.store.expire_due(BATCH, self.clock.wall_ms()).await? >= u64::from(BATCH) {}
        if retention {
            self.retain().await?;
        }
        Ok(())
    }

    async fn retain(&self) -> Result<(), StoreError> {
        let before =
            |keep: Duration| self.clock.wall_ms().saturating_sub(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        loop {
            let removed =
                self.store.retain(before(self.keep.keep_succeeded), before(self.keep.keep_dead), BATCH).await?;
            if removed.jobs + removed.dead_letters > 0 {
                tracing::info!(jobs = removed.jobs, dead_letters = removed.dead_letters, "retention removed old rows");
            }
            if removed.jobs.max(removed.dead_letters) < u64::from(BATCH) {
                break;
            }
        }
        while self.store.retain_acts(before(KEEP_ACTS), BATCH).await? >= u64::from(BATCH) {}
        Ok(())
    }
}
