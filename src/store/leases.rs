//! Which dispatcher may spend the budget of a pacing group.
//!
//! Times are the database's clock; on SQLite that is the clock of the process that asks, and all
//! of those are on one machine. A caller's time never comes in.
//!
//! Every write is one statement that commits by itself, conditional on what was read before it: a
//! dispatcher that falls silent in the middle holds no lock that its successor would wait for, and
//! a statement that was given up on and comes in late changes nothing that counts.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::dialect::{Db, on_db};
use super::{LeaseState, LeaseTake, LeaseView, OwnerId, StoreError};

/// The lease of a pacing group, and who asks for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub provider: &'a str,
    pub name: &'a str,
    pub owner: &'a str,
}

/// A row without its state, which may be large. Whether it changed shows in these together.
#[derive(Debug, sqlx::FromRow)]
struct Seen {
    owner: Option<OwnerId>,
    epoch: i64,
    renewed_ms: i64,
    clean: bool,
    expires_in_ms: i64,
}

async fn look(db: &Db, asked: Asked<'_>) -> Result<Option<Seen>, StoreError> {
    let sql = format!(
        "SELECT owner, epoch, renewed_ms, clean, expires_ms - {now} AS expires_in_ms
         FROM leases WHERE provider = $1 AND name = $2",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    Ok(on_db!(read db, |c| sqlx::query_as(sql).bind(asked.provider).bind(asked.name).fetch_optional(c).await)?)
}

/// Takes what is nobody's, has run out, is the asker's own, or whose owner `is_dead`.
pub(super) async fn take(
    db: &Db,
    asked: Asked<'_>,
    ttl: Duration,
    is_dead: impl Fn(&str) -> bool,
) -> Result<LeaseTake, StoreError> {
    // Again only when somebody else changed the row in between: then it is held, as a rule.
    loop {
        let taken = match look(db, asked).await? {
            None => create(db, asked, ttl).await?,
            Some(seen) => match &seen.owner {
                Some(other) if other != asked.owner && seen.expires_in_ms > 0 && !is_dead(other) => {
                    return Ok(LeaseTake::Held { owner: other.clone(), expires_in: duration(seen.expires_in_ms) });
                }
                _ => take_over(db, asked, ttl, &seen).await?,
            },
        };
        if let Some(taken) = taken {
            return Ok(taken);
        }
    }
}

/// `None`: somebody else was first.
async fn create(db: &Db, asked: Asked<'_>, ttl: Duration) -> Result<Option<LeaseTake>, StoreError> {
    let sql = format!(
        "INSERT INTO leases (provider, name, owner, epoch, taken_ms, renewed_ms, expires_ms)
         VALUES ($1, $2, $3, 1, {now}, {now}, {now} + $4) ON CONFLICT (provider, name) DO NOTHING",
        now = db.now_ms()
    );
    let (sql, Asked { provider, name, owner }) = (AssertSqlSafe(sql), asked);
    let made = on_db!(write db, |c| {
        let query = sqlx::query(sql).bind(provider).bind(name).bind(owner).bind(millis(ttl));
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok((made > 0).then_some(LeaseTake::Taken { epoch: 1, last: None }))
}

/// `None`: the row is no longer as it was seen. The state stays as it is, and so does the time when
/// it was written: they are the next taker's too, should this one die before it renews.
async fn take_over(db: &Db, asked: Asked<'_>, ttl: Duration, seen: &Seen) -> Result<Option<LeaseTake>, StoreError> {
    let sql = format!(
        "UPDATE leases SET owner = $3, epoch = epoch + 1, taken_ms = {now}, expires_ms = {now} + $4, clean = FALSE
         WHERE provider = $1 AND name = $2 AND epoch = $5 AND renewed_ms = $6 AND clean = $7
           AND owner IS NOT DISTINCT FROM $8
         RETURNING epoch, state, {now} - renewed_ms",
        now = db.now_ms()
    );
    let (sql, Asked { provider, name, owner }) = (AssertSqlSafe(sql), asked);
    // All rows, not one: SQLite is done with a statement after its last row.
    let rows: Vec<(i64, Option<String>, i64)> = on_db!(write db, |c| {
        let query = sqlx::query_as(sql).bind(provider).bind(name).bind(owner).bind(millis(ttl));
        query.bind(seen.epoch).bind(seen.renewed_ms).bind(seen.clean).bind(seen.owner.as_deref()).fetch_all(c).await
    })?;
    Ok(rows.into_iter().next().map(|(epoch, state, age_ms)| {
        let last = state.map(|state| LeaseState { state, saved_ago: duration(age_ms), clean: seen.clean });
        LeaseTake::Taken { epoch, last }
    }))
}

/// Prolongs the lease and keeps the state; `false`: it is somebody else's.
pub(super) async fn renew(
    db: &Db,
    asked: Asked<'_>,
    epoch: i64,
    ttl: Duration,
    state: &str,
) -> Result<bool, StoreError> {
    if db.keeps_order() {
        return write_state(db, asked, epoch, ttl, state, None).await;
    }
    // An earlier renewal that was given up on may still come in. It must not put its older state
    // in the place of this one: it finds that the row was written since it looked.
    loop {
        let mine = |seen: &Seen| seen.owner.as_deref() == Some(asked.owner) && seen.epoch == epoch;
        let Some(seen) = look(db, asked).await?.filter(mine) else { return Ok(false) };
        if write_state(db, asked, epoch, ttl, state, Some(seen.renewed_ms)).await? {
            return Ok(true);
        }
    }
}

/// `false`: the row is somebody else's, or was written after `last_ms`.
async fn write_state(
    db: &Db,
    asked: Asked<'_>,
    epoch: i64,
    ttl: Duration,
    state: &str,
    last_ms: Option<i64>,
) -> Result<bool, StoreError> {
    let sql = format!(
        "UPDATE leases SET renewed_ms = {now}, expires_ms = {now} + $5, clean = FALSE, state = $6
         WHERE provider = $1 AND name = $2 AND owner = $3 AND epoch = $4 AND renewed_ms = COALESCE($7, renewed_ms)",
        now = db.now_ms()
    );
    let (sql, Asked { provider, name, owner }) = (AssertSqlSafe(sql), asked);
    let written = on_db!(write db, |c| {
        let query = sqlx::query(sql).bind(provider).bind(name).bind(owner).bind(epoch);
        query.bind(millis(ttl)).bind(state).bind(last_ms).execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(written > 0)
}

/// Lets go of the lease with its state complete; `false`: it is somebody else's, or nobody's.
pub(super) async fn release(db: &Db, asked: Asked<'_>, epoch: i64, state: &str) -> Result<bool, StoreError> {
    let sql = format!(
        "UPDATE leases SET owner = NULL, renewed_ms = {now}, expires_ms = {now}, clean = TRUE, state = $5
         WHERE provider = $1 AND name = $2 AND owner = $3 AND epoch = $4",
        now = db.now_ms()
    );
    let (sql, Asked { provider, name, owner }) = (AssertSqlSafe(sql), asked);
    let released = on_db!(write db, |c| {
        let query = sqlx::query(sql).bind(provider).bind(name).bind(owner).bind(epoch).bind(state);
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(released > 0)
}

/// All of them, by provider and name.
pub(super) async fn list(db: &Db) -> Result<Vec<LeaseView>, StoreError> {
    let sql = format!(
        "SELECT provider, name, owner, epoch, expires_ms - {now}, clean FROM leases ORDER BY provider, name",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    type Row = (String, String, Option<OwnerId>, i64, i64, bool);
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    let view = |(provider, name, owner, epoch, expires_in_ms, clean)| LeaseView {
        provider,
        name,
        owner,
        epoch,
        expires_in: duration(expires_in_ms),
        clean,
    };
    Ok(rows.into_iter().map(view).collect())
}

/// Never negative: a clock can be set back.
fn duration(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Of a time to live; one without end ends in a century, and no sum with a clock overflows.
fn millis(ttl: Duration) -> i64 {
    const CENTURY_MS: i64 = 100 * 366 * 86_400_000;
    i64::try_from(ttl.as_millis()).map_or(CENTURY_MS, |ms| ms.min(CENTURY_MS))
}
