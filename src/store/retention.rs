//! What time does to jobs: deadlines pass, and what ended long ago is removed.

use super::dialect::{Rows, Tx, on_db};
use super::wakes::Pending;
use super::{JobPk, Next, Record, Removed, Store, StoreError, act, number, outcomes};
use crate::clock::WallMs;
use crate::job::JobState;

/// Ends unclaimed jobs whose deadline has passed; at most `limit`. Claimed ones are their
/// owner's business.
async fn expire(tx: &mut Tx, limit: u32, now_ms: WallMs, wakes: &mut Pending) -> Result<u64, StoreError> {
    let sql = format!(
        "SELECT pk, epoch, run, failures FROM jobs
         WHERE deadline_ms IS NOT NULL AND owner IS NULL AND state IN ('queued', 'waiting') AND deadline_ms <= $1
         ORDER BY deadline_ms LIMIT $2{}",
        tx.skip_locked()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<(JobPk, i64, i64, i64)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(now_ms).bind(i64::from(limit)).fetch_all(c).await)?;
    let records: Vec<Record> = rows
        .into_iter()
        .map(|(pk, epoch, run, failures)| Record {
            pk,
            epoch,
            run: number(run),
            attempt: None,
            failures: number(failures),
            at_ms: now_ms,
            next: Next::Finish {
                state: JobState::Expired,
                reason: None,
                error: Some("its deadline passed".to_owned()),
                response: None,
            },
        })
        .collect();
    outcomes::record(tx, &records.iter().collect::<Vec<_>>(), wakes).await?;
    Ok(records.len() as u64)
}

/// Removes jobs that ended before the given times, with all that belongs to them, and dead
/// letters, replays and test events that old; at most `limit` of each. A job stays while a delivery of it is pending.
async fn remove(
    tx: &mut Tx,
    succeeded_before_ms: WallMs,
    dead_before_ms: WallMs,
    limit: u32,
) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    let mut left = i64::from(limit);
    let ages = [
        ("succeeded", succeeded_before_ms),
        ("expired", succeeded_before_ms),
        ("cancelled", succeeded_before_ms),
        ("dead", dead_before_ms),
    ];
    for (state, before_ms) in ages {
        let sql = format!(
            "SELECT pk FROM jobs WHERE state = $1 AND finished_ms IS NOT NULL AND finished_ms < $2
             AND NOT EXISTS (SELECT 1 FROM events e JOIN deliveries d ON d.event_pk =[e.pk]
                WHERE e.job_pk =[jobs.pk] AND d.state || '' = 'pending')
             ORDER BY finished_ms LIMIT $3{}",
            tx.skip_locked()
        );
        let sql = sqlx::AssertSqlSafe(tx.spelled(&sql));
        let pks: Vec<(JobPk,)> =
            on_db!(tx, |c| sqlx::query_as(sql).bind(state).bind(before_ms).bind(left).fetch_all(c).await)?;
        left -= i64::try_from(pks.len()).unwrap_or(left);
        removed.jobs += pks.len() as u64;
        remove_jobs(tx, &pks).await?;
    }
    let sql = format!(
        "DELETE FROM dead_letters WHERE pk IN
            (SELECT pk FROM dead_letters WHERE dead_ms < $1 ORDER BY dead_ms LIMIT $2{})",
        tx.skip_locked()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    removed.dead_letters = on_db!(tx, |c| sqlx::query(sql)
        .bind(dead_before_ms)
        .bind(i64::from(limit))
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    let sql = "DELETE FROM replays WHERE pk IN
        (SELECT pk FROM replays WHERE state <> 'running' AND finished_ms < $1 ORDER BY pk LIMIT $2)";
    on_db!(tx, |c| sqlx::query(sql).bind(dead_before_ms).bind(i64::from(limit)).execute(c).await.map(drop))?;
    remove_tests(tx, succeeded_before_ms, limit).await?;
    Ok(removed)
}

/// Test events belong to no job.
async fn remove_tests(tx: &mut Tx, before_ms: WallMs, limit: u32) -> Result<(), StoreError> {
    let sql = format!(
        "SELECT pk FROM deliveries WHERE event_pk = 0 AND state <> 'pending' AND created_ms < $1 ORDER BY pk LIMIT $2{}",
        tx.skip_locked()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let pks: Vec<(i64,)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(before_ms).bind(i64::from(limit)).fetch_all(c).await)?;
    let rows = Rows::new().int("pk", pks.iter().map(|pk| Some(pk.0)));
    for delete in [
        "DELETE FROM delivery_attempts WHERE delivery_pk IN {SELECT pk FROM v}",
        "DELETE FROM deliveries WHERE pk IN {SELECT pk FROM v}",
    ] {
        rows.execute(tx, delete).await?;
    }
    Ok(())
}

/// Children first.
async fn remove_jobs(tx: &mut Tx, pks: &[(JobPk,)]) -> Result<(), StoreError> {
    let rows = Rows::new().int("pk", pks.iter().map(|pk| Some(pk.0)));
    for delete in [
        "DELETE FROM delivery_attempts WHERE delivery_pk IN {SELECT d.pk FROM v
            JOIN events e ON e.job_pk =[v.pk] JOIN deliveries d ON d.event_pk =[e.pk]}",
        "DELETE FROM deliveries WHERE event_pk IN {SELECT e.pk FROM v JOIN events e ON e.job_pk =[v.pk]}",
        "DELETE FROM events WHERE job_pk IN {SELECT pk FROM v}",
        "DELETE FROM attempts WHERE job_pk IN {SELECT pk FROM v}",
        "DELETE FROM dead_letters WHERE job_pk IN {SELECT pk FROM v}",
        "DELETE FROM jobs WHERE pk IN {SELECT pk FROM v}",
    ] {
        rows.execute(tx, delete).await?;
    }
    Ok(())
}

impl Store {
    /// Ends unclaimed jobs whose deadline has passed, at most `limit`; how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn expire_due(&self, limit: u32, now_ms: WallMs) -> Result<u64, StoreError> {
        act!(self, |tx, wakes| expire(tx, limit, now_ms, wakes).await)
    }

    /// Removes jobs that ended before the given times (expired and cancelled ones go with those
    /// that succeeded), with all that belongs to them, and dead letters; at most `limit` of each.
    /// A job stays while a delivery of it is pending.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retain(
        &self,
        succeeded_before_ms: WallMs,
        dead_before_ms: WallMs,
        limit: u32,
    ) -> Result<Removed, StoreError> {
        act!(self, |tx, _wakes| remove(tx, succeeded_before_ms, dead_before_ms, limit).await)
    }
}
