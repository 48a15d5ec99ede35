//! Dead letters: what was given up, and how it is run again.

use std::collections::HashSet;

use uuid::Uuid;

use super::audit::{self, Act, ActKind, By};
use super::dialect::{Db, Rows, Tx, on_db};
use super::events::Ended;
use super::jobs::{Conditions, Rerun, rerun, state_of};
use super::wakes::Pending;
use super::writer::Request;
use super::{
    Buried, DeadFilter, DeadView, Identity, JobPk, Page, Replay, Replayed, Store, StoreError, act, attempts, number,
};
use crate::clock::WallMs;
use crate::job::{Job, JobState, REPLAY_LANE};

/// A purge as it is written down.
#[derive(Debug, Clone, Copy)]
pub struct PurgeAct<'a> {
    /// Who asked for it.
    pub who: &'a str,
    /// The filter, in words.
    pub filter: &'a str,
    /// The row of the act, once there is one.
    pub act_pk: Option<i64>,
    /// How many were removed before.
    pub purged: u64,
    /// When.
    pub now_ms: WallMs,
}

/// Keeps the dead ones of `ended`. A job that dies again has one letter still, not replayed yet.
pub(super) async fn upsert(tx: &mut Tx, ended: &[Ended<'_>]) -> Result<(), StoreError> {
    let dead: Vec<&Ended<'_>> = ended.iter().filter(|e| e.state == JobState::Dead).collect();
    let rows = Rows::new()
        .int("job_pk", dead.iter().map(|e| Some(e.record.pk)))
        .text("id", dead.iter().map(|e| Some(e.job.id)))
        .text("tenant", dead.iter().map(|e| Some(e.job.tenant)))
        .text("provider", dead.iter().map(|e| Some(e.job.provider)))
        .text("lane", dead.iter().map(|e| Some(e.job.lane)))
        .text("reason", dead.iter().map(|e| Some(e.reason.unwrap_or("permanent"))))
        .text("error", dead.iter().map(|e| e.error))
        .int("dead_ms", dead.iter().map(|e| Some(e.record.at_ms)));
    let upsert = "INSERT INTO dead_letters (job_pk, id, tenant, provider, lane, reason, error, dead_ms)
        SELECT job_pk, id, tenant, provider, lane, reason, error, dead_ms FROM v WHERE TRUE
        ON CONFLICT (job_pk) WHERE job_pk IS NOT NULL DO UPDATE SET
            lane = excluded.lane, reason = excluded.reason, error = excluded.error,
            dead_ms = excluded.dead_ms, replayed_ms = NULL";
    rows.execute(tx, upsert).await?;
    Ok(())
}

/// Keeps messages that never became jobs; the id of each. One that may be kept already is not kept twice.
pub(super) async fn bury(tx: &mut Tx, messages: &[(&Buried, WallMs)]) -> Result<Vec<String>, StoreError> {
    let named = |message: &Buried| message.identity.map_or_else(fresh_id, |identity| id_of(&identity));
    let mut ids: Vec<String> = messages.iter().map(|(message, _)| named(message)).collect();
    let all: Vec<usize> = (0..messages.len()).collect();
    let mut kept = keep(tx, messages, &ids, &all).await?;
    // Whoever is first under an id has it; of the others those that are known to be the same message are done.
    let is_done = |i: usize| messages[i].0.identity.is_none_or(|identity| identity.again);
    let alike: Vec<usize> = all
        .into_iter()
        .filter(|&i| !kept.remove(&(ids[i].clone(), messages[i].0.tenant.clone())) && !is_done(i))
        .collect();
    if !alike.is_empty() {
        alike.iter().for_each(|&i| ids[i] = fresh_id());
        keep(tx, messages, &ids, &alike).await?;
    }
    Ok(ids)
}

fn fresh_id() -> String {
    format!("dl_{}", Uuid::now_v7().simple())
}

fn id_of(identity: &Identity) -> String {
    identity.hash[..16].iter().fold("dl_".to_owned(), |id, byte| id + &format!("{byte:02x}"))
}

/// Inserts these of the messages, unless there is a letter with that id; id and tenant of those that were new.
async fn keep(
    tx: &mut Tx,
    messages: &[(&Buried, WallMs)],
    ids: &[String],
    which: &[usize],
) -> Result<HashSet<(String, String)>, StoreError> {
    let chosen = || which.iter().map(|&i| &messages[i]);
    let rows = Rows::new()
        .text("id", which.iter().map(|&i| Some(ids[i].as_str())))
        .text("tenant", chosen().map(|(m, _)| Some(m.tenant.as_str())))
        .text("provider", chosen().map(|(m, _)| m.provider.as_deref()))
        .text("lane", chosen().map(|(m, _)| m.lane.as_deref()))
        .text("reason", chosen().map(|(m, _)| Some(m.reason.as_str())))
        .text("error", chosen().map(|(m, _)| Some(m.error.as_str())))
        .blob("raw", chosen().map(|(m, _)| Some(&m.raw[..])))
        .text("headers", chosen().map(|(m, _)| Some(m.headers.as_str())))
        .int("dead_ms", chosen().map(|(_, now_ms)| Some(*now_ms)));
    let insert = "INSERT INTO dead_letters (id, tenant, provider, lane, reason, error, raw, headers, dead_ms)
        SELECT id, tenant, provider, lane, reason, error, raw, headers, dead_ms FROM v WHERE TRUE
        ON CONFLICT (id, tenant) DO NOTHING
        RETURNING id, tenant";
    Ok(rows.fetch::<(String, String)>(tx, insert).await?.into_iter().collect())
}

/// pk, job, id, tenant, provider, lane, reason, error, raw, headers, dead, replayed, envelope.
type Row = (
    i64,
    Option<JobPk>,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
    Option<String>,
    Option<Vec<u8>>,
    Option<String>,
    WallMs,
    Option<WallMs>,
    Option<String>,
);

const VIEW: &str =
    "SELECT d.pk, d.job_pk, d.id, d.tenant, d.provider, d.lane, d.reason, d.error, d.raw, d.headers, d.dead_ms,
    d.replayed_ms, j.envelope FROM dead_letters d LEFT JOIN jobs j ON j.pk = d.job_pk";

async fn views(db: &Db, rows: Vec<Row>) -> Result<Vec<DeadView>, StoreError> {
    let pks: Vec<JobPk> = rows.iter().filter_map(|row| row.1).collect();
    let mut made = attempts::of_jobs(db, &pks).await?;
    Ok(rows
        .into_iter()
        .map(|(pk, job_pk, id, tenant, provider, lane, reason, error, raw, headers, dead_ms, replayed_ms, envelope)| {
            let attempts = job_pk.and_then(|pk| made.remove(&pk)).unwrap_or_default();
            let raw = raw.map(Into::into);
            DeadView {
                pk,
                id,
                tenant,
                provider,
                lane,
                reason,
                error,
                attempts,
                envelope,
                raw,
                headers,
                dead_ms,
                replayed_ms,
            }
        })
        .collect())
}

async fn letter(db: &Db, tenant: Option<&str>, id: &str) -> Result<Option<DeadView>, StoreError> {
    let sql = format!("{VIEW} WHERE d.id = $1 AND ($2 IS NULL OR d.tenant = $2) ORDER BY d.tenant LIMIT 1");
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<Row> =
        on_db!(read db, |c| sqlx::query_as(sql).persistent(false).bind(id).bind(tenant).fetch_all(c).await)?;
    Ok(views(db, rows).await?.pop())
}

pub(super) fn conditions(filter: &DeadFilter) -> (String, Vec<&str>) {
    Conditions::default()
        .equal("d.reason", filter.reason.as_deref())
        .equal("d.provider", filter.provider.as_deref())
        .equal("d.lane", filter.lane.as_deref())
        .equal("d.tenant", filter.tenant.as_deref())
        .fixed(filter.replayed.map(|yes| if yes { "d.replayed_ms IS NOT NULL" } else { "d.replayed_ms IS NULL" }))
        .fixed(filter.dead_after_ms.map(|at| format!("d.dead_ms >= {at}")).as_deref())
        .fixed(filter.dead_before_ms.map(|at| format!("d.dead_ms < {at}")).as_deref())
        .parts()
}

async fn list(db: &Db, filter: &DeadFilter, cursor: Option<i64>, limit: u32) -> Result<Page<DeadView>, StoreError> {
    let (text, values) = conditions(filter);
    let (a, b) = (values.len() + 1, values.len() + 2);
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE TRUE{text} AND d.pk < ${a} ORDER BY d.pk DESC LIMIT ${b}"));
    let rows: Vec<Row> = on_db!(read db, |c| {
        // Planned anew each time: a plan for tables that were empty would go through all jobs.
        let mut query = sqlx::query_as(sql).persistent(false);
        for value in values {
            query = query.bind(value);
        }
        query.bind(cursor.unwrap_or(i64::MAX)).bind(i64::from(limit)).fetch_all(c).await
    })?;
    let items = views(db, rows).await?;
    let full = u32::try_from(items.len()).is_ok_and(|n| n == limit);
    Ok(Page { next: items.last().filter(|_| full).map(|view| view.pk), items })
}

/// Removes at most `limit` letters; their jobs stay until retention takes them.
async fn purge(tx: &mut Tx, filter: &DeadFilter, limit: u32) -> Result<u64, StoreError> {
    let (text, values) = conditions(filter);
    let n = values.len() + 1;
    let sql = sqlx::AssertSqlSafe(format!(
        "DELETE FROM dead_letters WHERE pk IN (SELECT d.pk FROM dead_letters d WHERE TRUE{text} ORDER BY d.pk LIMIT ${n}{})",
        tx.skip_locked()
    ));
    Ok(on_db!(tx, |c| {
        let mut query = sqlx::query(sql);
        for value in values {
            query = query.bind(value);
        }
        query.bind(i64::from(limit)).execute(c).await.map(|done| done.rows_affected())
    })?)
}

/// The same, written down as what an operator did: as a new act, or as more of the one in the row `act_pk`, which is
/// returned.
async fn purge_audited(
    tx: &mut Tx,
    filter: &DeadFilter,
    limit: u32,
    by: &PurgeAct<'_>,
) -> Result<(u64, i64), StoreError> {
    let gone = purge(tx, filter, limit).await?;
    let detail = format!("{} removed{}", by.purged + gone, by.filter);
    let pk = match by.act_pk {
        Some(pk) => {
            audit::amend(tx, pk, &detail).await?;
            pk
        }
        None => {
            let (kind, detail) = (ActKind::DeadPurge, Some(detail.as_str()));
            let act = Act { who: by.who, kind, target: "dead-letters", done: true, detail, at_ms: by.now_ms };
            audit::write(tx, act).await?
        }
    };
    Ok((gone, pk))
}

/// What is known of a dead job: pk, state, run, key of the last run, envelope, orphaned.
type DeadJob = (JobPk, String, i64, String, String, bool);

/// Runs a dead job again, as a new run with its history kept. A deadline that would have passed
/// when the new run is due is dropped: with it the replay would expire at once.
pub(super) async fn replay(
    tx: &mut Tx,
    tenant: Option<&str>,
    id: &str,
    how: &Replay,
    now_ms: WallMs,
    wakes: &mut Pending,
) -> Result<Replayed, StoreError> {
    let sql =
        "SELECT pk, job_pk FROM dead_letters WHERE id = $1 AND ($2 IS NULL OR tenant = $2) ORDER BY tenant LIMIT 1";
    let letter: Option<(i64, Option<JobPk>)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    let Some((letter_pk, job_pk)) = letter else { return Ok(Replayed::NotFound) };
    let Some(job_pk) = job_pk else { return Ok(Replayed::NotAJob) };
    let lock = tx.for_update();
    let sql = format!("SELECT pk, state, run, idempotency_key, envelope, orphaned FROM jobs WHERE pk = $1{lock}");
    let sql = sqlx::AssertSqlSafe(sql);
    let dead: Option<DeadJob> = on_db!(tx, |c| sqlx::query_as(sql).bind(job_pk).fetch_optional(c).await)?;
    let Some((pk, state, last_run, last_key, envelope, orphaned)) = dead else { return Ok(Replayed::NotFound) };
    let state = state_of(&state)?;
    if state != JobState::Dead {
        return Ok(Replayed::NotDead(state));
    }
    let mut job = Job::from_stored(&envelope).map_err(|e| StoreError::Corrupt(format!("job {id}: {e}")))?;
    let run = number(last_run).saturating_add(1);
    let keep = match how.keep_key {
        Some(keep) => keep,
        None => how.request.is_none() && (orphaned || was_unknown(tx, pk, last_run).await?),
    };
    let key = if keep { last_key } else { format!("{}.r{run}", job.idempotency_key) };
    if let Some(request) = &how.request {
        job.request = request.clone();
    }
    job.lane = how.lane.clone().unwrap_or_else(|| REPLAY_LANE.to_owned());
    job.not_before_ms = how.not_before_ms;
    let due_ms = how.not_before_ms.map_or(now_ms, |start| start.max(now_ms));
    job.deadline_ms = job.deadline_ms.filter(|&deadline| deadline > due_ms);
    rerun(tx, &Rerun { pk, run, job: &job, idempotency_key: &key, now_ms }, wakes).await?;
    let sql = "UPDATE dead_letters SET replayed_ms = $2 WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(letter_pk).bind(now_ms).execute(c).await.map(drop))?;
    if let Some(who) = &how.by {
        let detail = format!("run {run}");
        let kind = if how.request.is_some() { ActKind::DeadReplayEdited } else { ActKind::DeadReplay };
        audit::write(tx, By { who, now_ms }.done(kind, id, Some(&detail))).await?;
    }
    Ok(Replayed::Queued { run })
}

/// Whether a call of that run may have been executed without anybody knowing.
async fn was_unknown(tx: &mut Tx, pk: JobPk, run: i64) -> Result<bool, StoreError> {
    let sql = "SELECT n FROM all_attempts WHERE job_pk = $1 AND run = $2 AND outcome = 'unknown' LIMIT 1";
    let row: Option<(i64,)> = on_db!(tx, |c| sqlx::query_as(sql).bind(pk).bind(run).fetch_optional(c).await)?;
    Ok(row.is_some())
}

pub(super) async fn depth(db: &Db) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM dead_letters WHERE replayed_ms IS NULL";
    let row: (i64,) = on_db!(read db, |c| sqlx::query_as(sql).fetch_one(c).await)?;
    Ok(row.0)
}

impl Store {
    /// Keeps a message that never became a job; the id of its dead letter.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again may keep it twice.
    pub async fn bury(&self, message: Buried, now_ms: WallMs) -> Result<String, StoreError> {
        self.inner.arrivals.ask(|reply| Request::Bury(Box::new(message), now_ms, reply)).await
    }

    /// A dead letter with its attempts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn dead_letter(&self, tenant: Option<&str>, id: &str) -> Result<Option<DeadView>, StoreError> {
        self.db().in_time(letter(self.db(), tenant, id)).await
    }

    /// Dead letters, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn dead_letters(
        &self,
        filter: &DeadFilter,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<DeadView>, StoreError> {
        self.db().in_time(list(self.db(), filter, cursor, limit)).await
    }

    /// Runs a dead job again, as its next run. A deadline that would have passed when that run is
    /// due is dropped: with it the replay would expire at once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay(
        &self,
        tenant: Option<&str>,
        id: &str,
        how: &Replay,
        now_ms: WallMs,
    ) -> Result<Replayed, StoreError> {
        act!(self, |tx, wakes| replay(tx, tenant, id, how, now_ms, wakes).await)
    }

    /// Removes dead letters, at most `limit`; their jobs stay until retention takes them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn purge_dead(&self, filter: &DeadFilter, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, _wakes| purge(tx, filter, limit).await)
    }

    /// The same, written down as an act; its row, for the next batch of the same purge.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn purge_dead_by(
        &self,
        filter: &DeadFilter,
        limit: u32,
        by: &PurgeAct<'_>,
    ) -> Result<(u64, i64), StoreError> {
        act!(self, |tx, _wakes| purge_audited(tx, filter, limit, by).await)
    }
}
