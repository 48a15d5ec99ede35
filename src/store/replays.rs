//! Replays by filter: which dead letters run again, and how far that is.
//!
//! A replay goes through the letters in the order of their rows, from the first to the last one that was there
//! when it began. What it has done stands in its row, written in the transaction that does it: whoever goes on
//! after a crash neither repeats nor leaves out.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::audit::{self, Act, ActKind};
use super::dialect::{Db, Tx, on_db};
use super::wakes::Pending;
use super::{DeadFilter, Page, Replay, Replayed, Store, StoreError, act, dead, due};
use crate::clock::WallMs;
use crate::job::REPLAY_LANE;

/// How the dead letters of a replay by filter run again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayOptions {
    /// As in [`Replay`].
    pub keep_key: Option<bool>,
}

/// A replay by filter, as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayOrder {
    /// Which dead letters.
    pub filter: DeadFilter,
    /// How they run.
    pub options: ReplayOptions,
}

/// Where a replay by filter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayState {
    /// It goes on.
    Running,
    /// It went through all.
    Done,
    /// Somebody stopped it.
    Stopped,
}

impl ReplayState {
    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Stopped => "stopped",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Running, Self::Done, Self::Stopped].into_iter().find(|state| state.as_str() == name)
    }
}

/// A replay by filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayView {
    /// Its row, for cursors.
    pub pk: i64,
    /// Its id.
    pub id: String,
    /// Whose; `None`: of everybody.
    pub tenant: Option<String>,
    /// What was asked for.
    pub order: ReplayOrder,
    /// Where it is.
    pub state: ReplayState,
    /// Dead letters that fitted when it began.
    pub total: i64,
    /// Of those, queued again.
    pub replayed: i64,
    /// Of those, not to be run: not dead any more, or not a job by what is configured now.
    pub skipped: i64,
    /// The last row it has done.
    pub position: i64,
    /// The last row it will do.
    pub last_pk: i64,
    /// When it was asked for.
    pub created_ms: WallMs,
    /// When it was done, or stopped.
    pub finished_ms: Option<WallMs>,
}

/// A dead letter that a replay comes to next.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct ReplayLetter {
    /// Its row.
    pub pk: i64,
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub tenant: String,
    /// Of its job.
    pub provider: String,
    /// Of its job, as it is stored.
    pub envelope: String,
}

/// pk, id, tenant, filter, options, state, total, replayed, skipped, position, last, created, finished.
type Row = (i64, String, Option<String>, String, String, String, i64, i64, i64, i64, i64, WallMs, Option<WallMs>);

const VIEW: &str = "SELECT pk, id, tenant, filter, options, state, total, replayed, skipped, position, last_pk,
    created_ms, finished_ms FROM replays";

fn view(row: Row) -> Result<ReplayView, StoreError> {
    let (pk, id, tenant, filter, options, state, total, replayed, skipped, position, last_pk, created_ms, finished_ms) =
        row;
    let corrupt = |error: &dyn std::fmt::Display| StoreError::Corrupt(format!("replay {id}: {error}"));
    let order = ReplayOrder {
        filter: serde_json::from_str(&filter).map_err(|e| corrupt(&e))?,
        options: serde_json::from_str(&options).map_err(|e| corrupt(&e))?,
    };
    let state = ReplayState::from_name(&state).ok_or_else(|| corrupt(&state))?;
    Ok(ReplayView {
        pk,
        tenant,
        order,
        state,
        total,
        replayed,
        skipped,
        position,
        last_pk,
        created_ms,
        finished_ms,
        id,
    })
}

/// Dead letters that fit, and the last row among them.
async fn count(db: &Db, filter: &DeadFilter) -> Result<(i64, i64), StoreError> {
    let (text, values) = dead::conditions(filter);
    let sql = format!("SELECT COUNT(*), COALESCE(MAX(d.pk), 0) FROM dead_letters d WHERE d.job_pk IS NOT NULL{text}");
    let sql = sqlx::AssertSqlSafe(sql);
    Ok(on_db!(read db, |c| {
        let mut query = sqlx::query_as(sql).persistent(false);
        for value in values {
            query = query.bind(value);
        }
        query.fetch_one(c).await
    })?)
}

/// Writes a replay down; whoever looks for work goes through its letters.
async fn begin(
    tx: &mut Tx,
    tenant: Option<&str>,
    order: &ReplayOrder,
    (total, last_pk): (i64, i64),
    (by, now_ms): (&str, WallMs),
) -> Result<String, StoreError> {
    let id = format!("rp_{}", Uuid::now_v7().simple());
    let text = |json: Result<String, serde_json::Error>| json.map_err(|e| StoreError::Corrupt(e.to_string()));
    let filter = text(serde_json::to_string(&order.filter))?;
    let options = text(serde_json::to_string(&order.options))?;
    let sql = "INSERT INTO replays (id, tenant, filter, options, state, total, last_pk, created_ms)
        VALUES ($1, $2, $3, $4, 'running', $5, $6, $7)";
    on_db!(tx, |c| sqlx::query(sql)
        .bind(&id)
        .bind(tenant)
        .bind(filter)
        .bind(options)
        .bind(total)
        .bind(last_pk)
        .bind(now_ms)
        .execute(c)
        .await
        .map(drop))?;
    let detail = format!("{total} dead letters");
    let (kind, detail) = (ActKind::ReplayBegin, Some(detail.as_str()));
    audit::write(tx, Act { who: by, kind, target: &id, done: true, detail, at_ms: now_ms }).await?;
    Ok(id)
}

async fn show(db: &Db, tenant: Option<&str>, id: &str) -> Result<Option<ReplayView>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE id = $1 AND ($2 IS NULL OR tenant = $2)"));
    let row: Option<Row> = on_db!(read db, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    row.map(view).transpose()
}

async fn list(db: &Db, tenant: Option<&str>, cursor: Option<i64>, limit: u32) -> Result<Page<ReplayView>, StoreError> {
    let sql = format!("{VIEW} WHERE pk < $1 AND ($2 IS NULL OR tenant = $2) ORDER BY pk DESC LIMIT $3");
    let sql = sqlx::AssertSqlSafe(sql);
    let rows: Vec<Row> = on_db!(read db, |c| {
        sqlx::query_as(sql).bind(cursor.unwrap_or(i64::MAX)).bind(tenant).bind(i64::from(limit)).fetch_all(c).await
    })?;
    let items = rows.into_iter().map(view).collect::<Result<Vec<_>, _>>()?;
    let full = u32::try_from(items.len()).is_ok_and(|n| n == limit);
    Ok(Page { next: items.last().filter(|_| full).map(|view| view.pk), items })
}

/// Ends one that runs; `false`: it does not run, or there is none.
async fn stop(tx: &mut Tx, tenant: Option<&str>, id: &str, (by, now_ms): (&str, WallMs)) -> Result<bool, StoreError> {
    let sql = "UPDATE replays SET state = 'stopped', finished_ms = $3
        WHERE id = $1 AND ($2 IS NULL OR tenant = $2) AND state = 'running'";
    let stopped = on_db!(tx, |c| {
        let query = sqlx::query(sql).bind(id).bind(tenant).bind(now_ms);
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    if stopped > 0 {
        let act = Act { who: by, kind: ActKind::ReplayStop, target: id, done: true, detail: None, at_ms: now_ms };
        audit::write(tx, act).await?;
    }
    Ok(stopped > 0)
}

/// All that run, oldest first.
async fn running(db: &Db) -> Result<Vec<ReplayView>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE state = 'running' ORDER BY pk"));
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    rows.into_iter().map(view).collect()
}

/// The next letters of a replay: row, id, tenant, provider, envelope.
async fn next(db: &Db, replay: &ReplayView, limit: u32) -> Result<Vec<ReplayLetter>, StoreError> {
    let (text, values) = dead::conditions(&replay.order.filter);
    let (a, b, n) = (values.len() + 1, values.len() + 2, values.len() + 3);
    let sql = format!(
        "SELECT d.pk, d.id, d.tenant, j.provider, j.envelope FROM dead_letters d JOIN jobs j ON j.pk = d.job_pk
         WHERE TRUE{text} AND d.pk > ${a} AND d.pk <= ${b} ORDER BY d.pk LIMIT ${n}"
    );
    let sql = sqlx::AssertSqlSafe(sql);
    Ok(on_db!(read db, |c| {
        let mut query = sqlx::query_as(sql).persistent(false);
        for value in values {
            query = query.bind(value);
        }
        query.bind(replay.position).bind(replay.last_pk).bind(i64::from(limit)).fetch_all(c).await
    })?)
}

/// Jobs of a provider that wait in the lane of replays, counted up to `most`.
async fn waiting(db: &Db, provider: &str, most: u32) -> Result<i64, StoreError> {
    due::count(db, provider, REPLAY_LANE, most).await
}

/// Runs these letters again and moves on to the row `position`; `skipped` more cannot run. `false`: somebody else was
/// there first, or it was stopped; nothing was changed.
async fn step(
    tx: &mut Tx,
    replay: &ReplayView,
    (letters, skipped, position): (&[&ReplayLetter], i64, i64),
    now_ms: WallMs,
    wakes: &mut Pending,
) -> Result<bool, StoreError> {
    let sql = "UPDATE replays SET position = $3 WHERE pk = $1 AND position = $2 AND state = 'running'";
    let mine = on_db!(tx, |c| {
        let query = sqlx::query(sql).bind(replay.pk).bind(replay.position).bind(position);
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    if mine == 0 {
        return Ok(false);
    }
    let how = Replay { keep_key: replay.order.options.keep_key, ..Replay::default() };
    let (mut replayed, mut skipped) = (0_i64, skipped);
    for letter in letters {
        match dead::replay(tx, Some(&letter.tenant), &letter.id, &how, now_ms, wakes).await? {
            Replayed::Queued { .. } => replayed += 1,
            Replayed::NotFound | Replayed::NotAJob | Replayed::NotDead(_) => skipped += 1,
        }
    }
    let done = position >= replay.last_pk;
    let sql = "UPDATE replays SET replayed = replayed + $2, skipped = skipped + $3,
        state = CASE WHEN $4 THEN 'done' ELSE state END, finished_ms = CASE WHEN $4 THEN $5 ELSE finished_ms END
        WHERE pk = $1";
    on_db!(tx, |c| {
        let query = sqlx::query(sql).bind(replay.pk).bind(replayed).bind(skipped).bind(done).bind(now_ms);
        query.execute(c).await.map(drop)
    })?;
    Ok(true)
}

impl Store {
    /// Counts the jobs that a replay by filter would run again, and begins it where `dry_run` is not set: how many,
    /// and its id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin_replay(
        &self,
        tenant: Option<&str>,
        order: &ReplayOrder,
        dry_run: bool,
        by: &str,
        now_ms: WallMs,
    ) -> Result<(i64, Option<String>), StoreError> {
        let found = self.db().in_time(count(self.db(), &order.filter)).await?;
        if dry_run {
            return Ok((found.0, None));
        }
        let id = act!(self, |tx, _wakes| begin(tx, tenant, order, found, (by, now_ms)).await)?;
        Ok((found.0, Some(id)))
    }

    /// A replay by filter.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay_view(&self, tenant: Option<&str>, id: &str) -> Result<Option<ReplayView>, StoreError> {
        self.db().in_time(show(self.db(), tenant, id)).await
    }

    /// Replays by filter, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replays(
        &self,
        tenant: Option<&str>,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<ReplayView>, StoreError> {
        self.db().in_time(list(self.db(), tenant, cursor, limit)).await
    }

    /// Ends a replay that runs; what it has queued again stays queued. `false`: it does not run.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn stop_replay(
        &self,
        tenant: Option<&str>,
        id: &str,
        by: &str,
        now_ms: WallMs,
    ) -> Result<bool, StoreError> {
        act!(self, |tx, _wakes| stop(tx, tenant, id, (by, now_ms)).await)
    }

    /// All replays that run, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn running_replays(&self) -> Result<Vec<ReplayView>, StoreError> {
        self.db().in_time(running(self.db())).await
    }

    /// The next dead letters of a replay, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay_letters(&self, replay: &ReplayView, limit: u32) -> Result<Vec<ReplayLetter>, StoreError> {
        self.db().in_time(next(self.db(), replay, limit)).await
    }

    /// Jobs of a provider that wait in the lane of replays, counted up to `most`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn waiting_replays(&self, provider: &str, most: u32) -> Result<i64, StoreError> {
        self.db().in_time(waiting(self.db(), provider, most)).await
    }

    /// Queues `letters` again, counts `skipped` more, and moves the replay on to the row `position`, all or nothing.
    /// `false`: somebody else was first, or it was stopped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn advance_replay(
        &self,
        replay: &ReplayView,
        letters: &[&ReplayLetter],
        skipped: i64,
        position: i64,
        now_ms: WallMs,
    ) -> Result<bool, StoreError> {
        act!(self, |tx, wakes| step(tx, replay, (letters, skipped, position), now_ms, wakes).await)
    }
}
