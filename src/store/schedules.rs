//! Up to which time each schedule has made its jobs: one row each.

use super::dialect::{Tx, on_db};
use super::{Store, StoreError, act};
use crate::clock::WallMs;

/// A schedule that nobody has configured for so long begins anew when it comes back.
const FORGOTTEN_AFTER_MS: WallMs = 60_000;

/// Up to which time a schedule is done; from now on where it is seen for the first time. Others of the same name that
/// nobody looks at any more are forgotten.
async fn cursor(tx: &mut Tx, name: &str, spec: &str, now_ms: WallMs) -> Result<WallMs, StoreError> {
    let sql = "DELETE FROM schedules WHERE name = $1 AND spec <> $2 AND seen_ms < $3";
    let before = now_ms.saturating_sub(FORGOTTEN_AFTER_MS);
    on_db!(tx, |c| sqlx::query(sql).bind(name).bind(spec).bind(before).execute(c).await.map(drop))?;
    let sql = "INSERT INTO schedules (name, spec, last_ms, seen_ms) VALUES ($1, $2, $3, $3)
        ON CONFLICT (name, spec) DO UPDATE SET
            seen_ms = CASE WHEN excluded.seen_ms > schedules.seen_ms THEN excluded.seen_ms ELSE schedules.seen_ms END
        RETURNING last_ms";
    // All rows, not one: SQLite is done with a statement after its last row.
    let rows: Vec<(WallMs,)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(name).bind(spec).bind(now_ms).fetch_all(c).await)?;
    rows.first().map(|row| row.0).ok_or_else(|| StoreError::Corrupt("a schedule was not kept".to_owned()))
}

/// Everything up to that time is done. Never goes back.
async fn advance(tx: &mut Tx, name: &str, spec: &str, last_ms: WallMs) -> Result<(), StoreError> {
    let sql = "UPDATE schedules SET last_ms = $3 WHERE name = $1 AND spec = $2 AND last_ms < $3";
    on_db!(tx, |c| sqlx::query(sql).bind(name).bind(spec).bind(last_ms).execute(c).await.map(drop))?;
    Ok(())
}

impl Store {
    /// Up to which time a schedule has made its jobs; from now on where nobody has seen it, or its cron line, before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn schedule_cursor(&self, name: &str, spec: &str, now_ms: WallMs) -> Result<WallMs, StoreError> {
        act!(self, |tx, _wakes| cursor(tx, name, spec, now_ms).await)
    }

    /// A schedule has made its jobs up to that time. Never goes back.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn schedule_advance(&self, name: &str, spec: &str, last_ms: WallMs) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| advance(tx, name, spec, last_ms).await)
    }
}
