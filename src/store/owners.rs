//! The processes that hold jobs: their heartbeats, and what becomes of jobs they let go of.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::dialect::{Db, Rows, Tx, on_db};
use super::wakes::{Pending, Wakes};
use super::{
    Attempt, DeadReason, JobPk, Next, OwnerId, Record, Recorded, Store, StoreError, act, number, outcomes, reports,
};
use crate::clock::WallMs;
use crate::job::JobState;

/// Jobs let go of in one transaction.
const BATCH: i64 = 256;

/// Says that these owners live, by the database's clock.
async fn heartbeat(tx: &mut Tx, owners: &[OwnerId], role: &str) -> Result<(), StoreError> {
    let sql = format!(
        "INSERT INTO owners (id, role, started_ms, seen_ms) SELECT v.id, v.role, {now}, {now} FROM v WHERE TRUE
         ON CONFLICT (id) DO UPDATE SET role = excluded.role, seen_ms = excluded.seen_ms",
        now = tx.now_ms()
    );
    let rows = Rows::new().text("id", owners.iter().map(|id| Some(id.as_str())));
    rows.text("role", owners.iter().map(|_| Some(role))).execute(tx, &sql).await?;
    Ok(())
}

/// Why an owner lets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// It shuts down in order: what it holds was not sent, or its outcome is recorded.
    Retired,
    /// It died: a call may have been made that nobody recorded.
    Died,
}

/// Lets go of everything that `owner` holds, and forgets it.
async fn retire(db: &Db, wakes: &Wakes, owner: &str, now_ms: WallMs) -> Result<u64, StoreError> {
    let_go(db, wakes, owner, Why::Retired, now_ms).await
}

/// Who surely lives.
pub(super) struct Living<'a> {
    /// The owners of this process.
    pub here: &'a Mutex<BTreeSet<OwnerId>>,
    /// Nobody else can (an exclusive store).
    pub only_here: bool,
}

/// Lets go of everything that dead owners hold: those silent for `silent_for`, and those that
/// never said they live. Whoever holds a lease that has not run out lives: it was renewed just now.
async fn rescue(
    db: &Db,
    wakes: &Wakes,
    living: Option<&Living<'_>>,
    silent_for: Duration,
    now_ms: WallMs,
) -> Result<u64, StoreError> {
    let mut released = 0;
    for owner in dead_owners(db, living, silent_for).await? {
        released += let_go(db, wakes, &owner, Why::Died, now_ms).await?;
    }
    Ok(released)
}

async fn dead_owners(db: &Db, living: Option<&Living<'_>>, silent_for: Duration) -> Result<Vec<OwnerId>, StoreError> {
    let mut tx = db.begin().await?;
    let sql = format!(
        "SELECT held.id, CASE WHEN o.seen_ms >= {now} - $1 OR l.owner IS NOT NULL THEN TRUE ELSE FALSE END AS lives
         FROM (SELECT owner AS id FROM jobs WHERE owner IS NOT NULL
            UNION SELECT owner AS id FROM deliveries WHERE owner IS NOT NULL
            UNION SELECT owner AS id FROM reports
            UNION SELECT id FROM owners) AS held
         LEFT JOIN owners o ON o.id = held.id
         LEFT JOIN (SELECT DISTINCT owner FROM leases WHERE owner IS NOT NULL AND expires_ms > {now}) AS l
            ON l.owner = held.id",
        now = tx.now_ms()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let silent_ms = i64::try_from(silent_for.as_millis()).unwrap_or(i64::MAX / 2);
    let rows: Vec<(String, bool)> = on_db!(&mut tx, |c| sqlx::query_as(sql).bind(silent_ms).fetch_all(c).await)?;
    tx.commit().await?;
    // Looked at after the rows: who holds something by then was known before.
    let only_here = living.is_some_and(|living| living.only_here);
    let here = living.map(|living| living.here.lock().unwrap_or_else(PoisonError::into_inner));
    let dead = |id: &str, lives: bool| here.as_ref().is_none_or(|here| !here.contains(id)) && (only_here || !lives);
    Ok(rows.into_iter().filter(|(id, lives)| dead(id, *lives)).map(|(id, _)| id).collect())
}

/// pk, epoch, run, attempts, failures, started, running.
type Held = (JobPk, i64, i64, i64, i64, bool, String);

async fn let_go(db: &Db, wakes: &Wakes, owner: &str, why: Why, now_ms: WallMs) -> Result<u64, StoreError> {
    let mut released = 0;
    loop {
        let mut tx = db.begin().await?;
        let mut pending = wakes.pending();
        let sql = format!(
            "SELECT pk, epoch, run, attempts, failures, started, state FROM jobs WHERE owner = $1 ORDER BY pk LIMIT $2{}",
            tx.for_update()
        );
        let sql = sqlx::AssertSqlSafe(sql);
        let held: Vec<Held> = on_db!(&mut tx, |c| sqlx::query_as(sql).bind(owner).bind(BATCH).fetch_all(c).await)?;
        if held.is_empty() {
            free_deliveries(&mut tx, owner, now_ms, &mut pending).await?;
            reports::forget(&mut tx, owner).await?;
            for sql in ["DELETE FROM dispatchers WHERE owner = $1", "DELETE FROM owners WHERE id = $1"] {
                on_db!(&mut tx, |c| sqlx::query(sql).bind(owner).execute(c).await.map(drop))?;
            }
            wakes.commit(tx, pending).await?;
            return Ok(released);
        }
        if why == Why::Died {
            mark_orphaned(&mut tx, &held).await?;
        }
        let records: Vec<Record> = held.iter().map(|held| farewell(held, now_ms)).collect();
        let answers = outcomes::record(&mut tx, &records.iter().collect::<Vec<_>>(), &mut pending).await?;
        if answers.contains(&Recorded::Superseded) {
            return Err(StoreError::Corrupt(format!("{owner} holds a job that has ended")));
        }
        wakes.commit(tx, pending).await?;
        released += held.len() as u64;
    }
}

/// A job whose call may have left, and that may be sent at most once, is dead; all else is due.
fn farewell(held: &Held, now_ms: WallMs) -> Record {
    let (pk, epoch, run, attempts, failures, started, _) = held;
    let lost = "its dispatcher ended while the call was being made: nobody knows whether it was executed";
    let attempt = started.then(|| Attempt {
        n: number(*attempts).saturating_add(1),
        at_ms: now_ms,
        key: String::new(),
        status: None,
        outcome: "unknown".to_owned(),
        latency_ms: 0,
        error: Some(lost.to_owned()),
    });
    let next = if *started {
        Next::Finish {
            state: JobState::Dead,
            reason: Some(DeadReason::OutcomeUnknown),
            error: Some(lost.to_owned()),
            response: None,
        }
    } else {
        Next::Release
    };
    Record { pk: *pk, epoch: *epoch, run: number(*run), attempt, failures: number(*failures), at_ms: now_ms, next }
}

async fn mark_orphaned(tx: &mut Tx, held: &[Held]) -> Result<(), StoreError> {
    let rows = Rows::new().int("pk", held.iter().map(|h| Some(h.0)));
    rows.execute(tx, "UPDATE jobs SET orphaned = TRUE FROM v WHERE jobs.pk =[v.pk]").await?;
    Ok(())
}

async fn free_deliveries(tx: &mut Tx, owner: &str, now_ms: WallMs, wakes: &mut Pending) -> Result<(), StoreError> {
    let sql = "UPDATE deliveries SET owner = NULL, due_ms = $2 WHERE owner = $1 AND state = 'pending'";
    let freed =
        on_db!(tx, |c| sqlx::query(sql).bind(owner).bind(now_ms).execute(c).await.map(|done| done.rows_affected()))?;
    if freed > 0 {
        wakes.deliveries();
    }
    Ok(())
}

impl Store {
    /// Says that the owner lives, by the database's clock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn heartbeat(&self, owner: &OwnerId, role: &str) -> Result<(), StoreError> {
        self.heartbeats(std::slice::from_ref(owner), role).await
    }

    /// Says it of many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn heartbeats(&self, owners: &[OwnerId], role: &str) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| heartbeat(tx, owners, role).await)?;
        self.known_owners().extend(owners.iter().cloned());
        Ok(())
    }

    /// Lets go of all that the owner holds, at an orderly end: jobs are due again at once. An
    /// `at_most_once` job whose call was begun and not recorded is dead (`outcome_unknown`). Leases
    /// are for their owner to release. Whatever comes of it, the owner lives here no more: what is left is rescued.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retire(&self, owner: &OwnerId, now_ms: WallMs) -> Result<u64, StoreError> {
        let released = retire(self.db(), &self.inner.wakes, owner, now_ms).await;
        self.known_owners().remove(owner);
        released
    }

    /// Does the same for owners that died: whose heartbeat is older than `silent_for`, or that
    /// never had one. On an exclusive store nobody but this process can live: everything that
    /// others hold is let go of, whatever `silent_for` says. Several may rescue at once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn rescue(&self, silent_for: Duration, now_ms: WallMs) -> Result<u64, StoreError> {
        let only_here = self.inner.lock.is_some();
        let living = only_here.then_some(Living { here: &self.inner.owners, only_here });
        rescue(self.db(), &self.inner.wakes, living.as_ref(), silent_for, now_ms).await
    }

    /// The same, but the owners that live in this process do, whatever their heartbeats say: after an
    /// outage of the database these are old.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn rescue_others(&self, silent_for: Duration, now_ms: WallMs) -> Result<u64, StoreError> {
        let living = Living { here: &self.inner.owners, only_here: self.inner.lock.is_some() };
        rescue(self.db(), &self.inner.wakes, Some(&living), silent_for, now_ms).await
    }

    pub(super) fn known_owners(&self) -> std::sync::MutexGuard<'_, BTreeSet<OwnerId>> {
        self.inner.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody holds anything without a heartbeat: a rescuer would take it for dead.
    pub(super) async fn introduce(&self, owner: &OwnerId) -> Result<(), StoreError> {
        if self.known_owners().contains(owner) {
            return Ok(());
        }
        self.heartbeat(owner, "").await
    }
}
