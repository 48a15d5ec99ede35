//! Unclaimed jobs by the time at which they are due: what may go with any key in one index, what is pinned in another
//! one, so that nobody goes through the pinned jobs of others to find the own ones.

use super::dialect::{Db, Rows, Tx, on_db};
use super::wakes::Pending;
use super::{JobPk, Store, StoreError, act};
use crate::clock::WallMs;

/// The condition of the index `jobs_due`.
pub(super) const UNPINNED: &str = "owner IS NULL AND state IN ('queued', 'waiting') AND pin IS NULL";
/// The condition of the indexes `jobs_due_pinned` and `jobs_pins`.
pub(super) const PINNED: &str = "owner IS NULL AND state IN ('queued', 'waiting') AND pin IS NOT NULL";
/// What is pinned to one name is claimed so many at a time at least, where several names are looked at.
const OF_ONE_PIN: u32 = 8;

/// A list of names as one parameter.
pub(super) fn json(names: &[String]) -> String {
    serde_json::Value::from(names).to_string()
}

/// The names that something unclaimed of provider `$1` and lane `$2` is pinned to, but for those of a list: one step
/// down the index each, however many jobs there are. To be had as `here` below `WITH RECURSIVE`.
fn here(away: &str) -> String {
    format!(
        "pins(pin) AS (
            SELECT MIN(pin) FROM jobs WHERE {PINNED} AND provider = $1 AND lane = $2
            UNION ALL
            SELECT (SELECT MIN(jobs.pin) FROM jobs WHERE {PINNED} AND provider = $1 AND lane = $2 AND pin > pins.pin)
            FROM pins WHERE pins.pin IS NOT NULL),
        here AS MATERIALIZED (SELECT pin FROM pins WHERE pin IS NOT NULL AND pin NOT IN ({away}))"
    )
}

/// What is due of provider `$1` and lane `$2` at `$3`: the first `$4` without a pin, and of the pinned ones as many, or
/// some of each name that is not in the list `$7`. To be had as `due` below `WITH RECURSIVE`; locked.
pub(super) fn due(tx: &Tx, nothing_away: bool) -> String {
    let lock = tx.skip_locked();
    let first = |place: &str, limit: &str| {
        format!(
            "SELECT pk, due_ms, envelope_bytes FROM jobs
             WHERE {place} AND provider = $1 AND lane = $2 AND due_ms <= $3 ORDER BY due_ms, pk LIMIT {limit}{lock}"
        )
    };
    let unpinned = first(UNPINNED, "$4");
    if nothing_away {
        let pinned = first(PINNED, "$4");
        return format!(
            "due AS MATERIALIZED (
                SELECT * FROM ({unpinned}) AS unpinned UNION ALL SELECT * FROM ({pinned}) AS pinned)"
        );
    }
    let some = format!("(SELECT $4 / (COUNT(*) + 1) + {OF_ONE_PIN} FROM here)");
    let of_pins = tx.first_of_each("here", &first(&format!("{PINNED} AND jobs.pin = here.pin"), &some));
    format!(
        "{here},
        due AS MATERIALIZED (SELECT * FROM ({unpinned}) AS unpinned UNION ALL {of_pins})",
        here = here(&tx.names_in("$7"))
    )
}

/// When the next unclaimed job of that lane is due that is not pinned to one of `away`.
async fn next_due(db: &Db, provider: &str, lane: &str, away: &[String]) -> Result<Option<WallMs>, StoreError> {
    let first =
        |place: &str| format!("SELECT MIN(due_ms) AS due_ms FROM jobs WHERE {place} AND provider = $1 AND lane = $2");
    let sql = if away.is_empty() {
        format!("SELECT MIN(due_ms) FROM ({} UNION ALL {}) AS firsts", first(UNPINNED), first(PINNED))
    } else {
        format!(
            "WITH RECURSIVE {here}
            SELECT MIN(due_ms) FROM ({} UNION ALL SELECT ({} AND jobs.pin = here.pin) FROM here) AS firsts",
            first(UNPINNED),
            first(PINNED),
            here = here(&db.names_in("$3"))
        )
    };
    let sql = sqlx::AssertSqlSafe(sql);
    let row: (Option<WallMs>,) = on_db!(read db, |c| {
        let query = sqlx::query_as(sql).bind(provider).bind(lane);
        let query = if away.is_empty() { query } else { query.bind(json(away)) };
        query.fetch_one(c).await
    })?;
    Ok(row.0)
}

/// The providers and lanes that unclaimed jobs wait for. One step down the indexes each, however many
/// jobs wait.
async fn awaited(db: &Db) -> Result<Vec<(String, String)>, StoreError> {
    let of = |name: &str, place: &str| {
        let next = |column: &str| {
            format!(
                "(SELECT {column} FROM jobs WHERE {place} AND (jobs.provider, jobs.lane) > ({name}.provider, {name}.lane)
                    ORDER BY provider, lane LIMIT 1)"
            )
        };
        format!(
            "{name}(provider, lane) AS (
                SELECT * FROM (SELECT provider, lane FROM jobs WHERE {place} ORDER BY provider, lane LIMIT 1) AS first
                UNION ALL
                SELECT {}, {} FROM {name} WHERE {name}.provider IS NOT NULL)",
            next("jobs.provider"),
            next("jobs.lane")
        )
    };
    let sql = format!(
        "WITH RECURSIVE {}, {}
        SELECT provider, lane FROM unpinned WHERE provider IS NOT NULL
        UNION SELECT provider, lane FROM pinned WHERE provider IS NOT NULL
        ORDER BY provider, lane",
        of("unpinned", UNPINNED),
        of("pinned", PINNED)
    );
    let sql = sqlx::AssertSqlSafe(sql);
    Ok(on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

/// Moves unclaimed jobs of one lane to another, a batch of them. How many were moved.
async fn move_lane(
    tx: &mut Tx,
    provider: &str,
    (from, to): (&str, &str),
    limit: u32,
    wakes: &mut Pending,
) -> Result<u64, StoreError> {
    let lock = tx.skip_locked();
    let first = |place: &str| {
        format!("SELECT pk FROM jobs WHERE {place} AND provider = $1 AND lane = $2 ORDER BY due_ms, pk LIMIT $3{lock}")
    };
    let sql = format!(
        "WITH moved AS MATERIALIZED (
            SELECT * FROM ({}) AS unpinned UNION ALL SELECT * FROM ({}) AS pinned)
        UPDATE jobs SET lane = $4 WHERE pk IN (SELECT pk FROM moved LIMIT $3)",
        first(UNPINNED),
        first(PINNED)
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let moved = on_db!(tx, |c| sqlx::query(sql)
        .bind(provider)
        .bind(from)
        .bind(i64::from(limit))
        .bind(to)
        .execute(c)
        .await
        .map(|done| done.rows_affected()))?;
    wakes.jobs(provider, true);
    Ok(moved)
}

/// Which waiting jobs are made due.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freed<'a> {
    /// Provider and lane.
    pub place: (&'a str, &'a str),
    pub pins: Option<&'a [String]>,
    pub after_ms: WallMs,
    pub limit: u32,
    pub now_ms: WallMs,
}

/// Makes jobs due that wait for a key or the end of a pause. When the last one of a full batch would have
/// been due; `None`: there are no more.
async fn free(tx: &mut Tx, which: Freed<'_>, wakes: &mut Pending) -> Result<Option<WallMs>, StoreError> {
    let lock = tx.skip_locked();
    let named = tx.is_in_json_list("pin", "$5");
    let first = |place: &str, more: &str| {
        format!(
            "SELECT pk, due_ms FROM jobs
             WHERE {place} AND provider = $1 AND lane = $2 AND due_ms > $3 AND due_ms >= $4
                AND waiting_reason IN ('paused', 'no_key'){more}
             ORDER BY due_ms, pk LIMIT $6{lock}"
        )
    };
    let sql = format!(
        "SELECT pk, due_ms FROM (
            SELECT * FROM ({}) AS unpinned UNION ALL SELECT * FROM ({}) AS pinned) AS waiting
        ORDER BY due_ms, pk LIMIT $6",
        first(UNPINNED, ""),
        first(PINNED, &format!(" AND ($5 IS NULL OR {named})"))
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let pins = which.pins.map(json);
    let found: Vec<(JobPk, WallMs)> = on_db!(&mut *tx, |c| sqlx::query_as(sql)
        .bind(which.place.0)
        .bind(which.place.1)
        .bind(which.now_ms)
        .bind(which.after_ms)
        .bind(pins)
        .bind(i64::from(which.limit))
        .fetch_all(c)
        .await)?;
    let Some(&(_, last_ms)) = found.last() else { return Ok(None) };
    let rows = Rows::new()
        .int("pk", found.iter().map(|row| Some(row.0)))
        .int("due_ms", found.iter().map(|_| Some(which.now_ms)));
    let free =
        "UPDATE jobs SET due_ms = v.due_ms, state = 'queued', waiting_reason = NULL FROM v WHERE jobs.pk =[v.pk]";
    rows.execute(tx, free).await?;
    wakes.jobs(which.place.0, true);
    Ok((found.len() >= which.limit as usize).then_some(last_ms))
}

/// Jobs of a provider that wait in a lane, counted up to `most`.
pub(super) async fn count(db: &Db, provider: &str, lane: &str, most: u32) -> Result<i64, StoreError> {
    let first = |place: &str| format!("SELECT 1 FROM jobs WHERE {place} AND provider = $1 AND lane = $2 LIMIT $3");
    let sql = sqlx::AssertSqlSafe(format!(
        "SELECT COUNT(*) FROM (SELECT * FROM ({}) AS unpinned UNION ALL SELECT * FROM ({}) AS pinned LIMIT $3) AS open",
        first(UNPINNED),
        first(PINNED)
    ));
    let row: (i64,) = on_db!(read db, |c| {
        sqlx::query_as(sql).bind(provider).bind(lane).bind(i64::from(most)).fetch_one(c).await
    })?;
    Ok(row.0)
}

impl Store {
    /// When the next unclaimed job of that lane is due, if any: for the polling fallback to sleep until then.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_due(&self, provider: &str, lane: &str) -> Result<Option<WallMs>, StoreError> {
        self.next_due_but(provider, lane, &[]).await
    }

    /// The same without what is pinned to one of `away`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_due_but(
        &self,
        provider: &str,
        lane: &str,
        away: &[String],
    ) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(next_due(self.db(), provider, lane, away)).await
    }

    /// The providers and lanes that unclaimed jobs wait for, in their order: some may not be configured any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn awaited(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.db().in_time(awaited(self.db())).await
    }

    /// Moves up to `limit` unclaimed jobs from one lane of a provider to another. How many were moved.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn move_lane(&self, provider: &str, from: &str, to: &str, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, wakes| move_lane(tx, provider, (from, to), limit, wakes).await)
    }

    /// Makes jobs due that wait since a key, a budget or the provider was out of use: those without
    /// a pin, and those pinned to one of `pins` (`None`: to anything). At most `limit` of one lane,
    /// the first ones that are due after `after_ms`; whoever wants more goes on behind the time that is
    /// returned.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn free_waiting(
        &self,
        place: (&str, &str),
        pins: Option<&[String]>,
        after_ms: WallMs,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Option<WallMs>, StoreError> {
        let which = Freed { place, pins, after_ms, limit, now_ms };
        act!(self, |tx, wakes| free(tx, which, wakes).await)
    }
}
