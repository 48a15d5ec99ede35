//! Sending an endpoint again what it missed, since a time: which deliveries, and how far that is.
//!
//! Like a replay by filter: a resend goes through the rows in their order, from the first to the last one that was
//! there when it began, and what it has done stands in its row, written in the transaction that does it.

use std::collections::HashMap;

use super::audit::{self, ActKind, By};
use super::dialect::{Db, Tx, on_db};
use super::wakes::Pending;
use super::{Store, StoreError, act, endpoints};
use crate::clock::{WallMs, rfc3339};

/// What is to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResendOrder {
    /// Deliveries that were made up from then on.
    pub since_ms: WallMs,
    /// Those that were delivered, too; else those that failed or were held back.
    pub everything: bool,
}

/// Where a resend is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResendState {
    /// It goes on.
    Running,
    /// It went through all.
    Done,
    /// Its endpoint was disabled or removed meanwhile.
    Stopped,
}

impl ResendState {
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

/// A resend, as it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResendView {
    /// Of which endpoint's row.
    pub endpoint_pk: i64,
    /// What was asked for.
    pub order: ResendOrder,
    /// Where it is.
    pub state: ResendState,
    /// Deliveries that are due again.
    pub resent: i64,
    /// When it was asked for.
    pub created_ms: WallMs,
    /// When it ended.
    pub finished_ms: Option<WallMs>,
    position: i64,
    last_pk: i64,
}

/// What asking for a resend came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResendBegun {
    /// It runs.
    Running,
    /// Another one of that endpoint does.
    Busy,
    /// The endpoint gets nothing while it is disabled.
    Disabled,
    /// There is none.
    NotFound,
}

/// endpoint, since, everything, state, resent, position, last, created, finished.
type Row = (i64, WallMs, bool, String, i64, i64, i64, WallMs, Option<WallMs>);

const VIEW: &str = "SELECT endpoint_pk, since_ms, everything, state, resent, position, last_pk, created_ms, finished_ms
    FROM resends";

fn view(row: Row) -> Result<ResendView, StoreError> {
    let (endpoint_pk, since_ms, everything, state, resent, position, last_pk, created_ms, finished_ms) = row;
    let order = ResendOrder { since_ms, everything };
    let state = ResendState::from_name(&state)
        .ok_or_else(|| StoreError::Corrupt(format!("the resend of endpoint {endpoint_pk} is {state:?}")))?;
    Ok(ResendView { endpoint_pk, order, state, resent, created_ms, finished_ms, position, last_pk })
}

/// The last one of each of these endpoints.
pub(super) async fn of(db: &Db, endpoints: &[i64]) -> Result<HashMap<i64, ResendView>, StoreError> {
    if endpoints.is_empty() {
        return Ok(HashMap::new());
    }
    // A page is at most a few hundred numbers of our own: they are written into the text.
    let list = endpoints.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE endpoint_pk IN ({list})"));
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).persistent(false).fetch_all(c).await)?;
    rows.into_iter().map(|row| view(row).map(|view| (view.endpoint_pk, view))).collect()
}

async fn running(db: &Db) -> Result<Vec<ResendView>, StoreError> {
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE state = 'running' ORDER BY endpoint_pk"));
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    rows.into_iter().map(view).collect()
}

/// Deliveries of an endpoint that are pending, counted up to `most`.
async fn pending(db: &Db, endpoint_pk: i64, most: u32) -> Result<i64, StoreError> {
    let sql =
        "SELECT COUNT(*) FROM (SELECT 1 FROM deliveries WHERE endpoint_pk = $1 AND state = 'pending' LIMIT $2) AS open";
    let row: (i64,) =
        on_db!(read db, |c| sqlx::query_as(sql).bind(endpoint_pk).bind(i64::from(most)).fetch_one(c).await)?;
    Ok(row.0)
}

/// Begins one, and writes that down.
async fn begin(tx: &mut Tx, endpoint_pk: i64, order: ResendOrder, by: By<'_>) -> Result<ResendBegun, StoreError> {
    let Some(endpoint) = endpoints::known(tx, endpoint_pk).await? else { return Ok(ResendBegun::NotFound) };
    let begun = match endpoint.enabled {
        true => insert(tx, endpoint_pk, order, by.now_ms).await?,
        false => ResendBegun::Disabled,
    };
    let since = rfc3339(order.since_ms);
    let detail = if order.everything { format!("all since {since}") } else { format!("since {since}") };
    let kind = ActKind::EndpointResend;
    let act = match begun {
        ResendBegun::Disabled => by.refused(kind, &endpoint.id, "it was disabled"),
        ResendBegun::Busy => by.refused(kind, &endpoint.id, "another one was running"),
        ResendBegun::Running | ResendBegun::NotFound => by.done(kind, &endpoint.id, Some(&detail)),
    };
    audit::write(tx, act).await?;
    Ok(begun)
}

async fn insert(tx: &mut Tx, endpoint_pk: i64, order: ResendOrder, now_ms: WallMs) -> Result<ResendBegun, StoreError> {
    let sql = "INSERT INTO resends (endpoint_pk, since_ms, everything, state, last_pk, created_ms)
        VALUES ($1, $2, $3, 'running',
            (SELECT COALESCE(MAX(pk), 0) FROM deliveries WHERE endpoint_pk = $1), $4)
        ON CONFLICT (endpoint_pk) DO UPDATE SET since_ms = excluded.since_ms, everything = excluded.everything,
            state = excluded.state, resent = 0, position = 0, last_pk = excluded.last_pk,
            created_ms = excluded.created_ms, finished_ms = NULL
        WHERE resends.state <> 'running'";
    let begun = on_db!(tx, |c| {
        let query = sqlx::query(sql).bind(endpoint_pk).bind(order.since_ms).bind(order.everything).bind(now_ms);
        query.execute(c).await.map(|done| done.rows_affected())
    })?;
    Ok(if begun > 0 { ResendBegun::Running } else { ResendBegun::Busy })
}

/// Makes the next deliveries due again, at most `limit`. `None`: somebody else did, or it was ended.
async fn step(
    tx: &mut Tx,
    resend: &ResendView,
    limit: u32,
    now_ms: WallMs,
    wakes: &mut Pending,
) -> Result<Option<ResendState>, StoreError> {
    if !is_mine(tx, resend).await? {
        return Ok(None);
    }
    let states = if resend.order.everything { "'failed', 'disabled', 'delivered'" } else { "'failed', 'disabled'" };
    let sql = format!(
        "UPDATE deliveries SET state = 'pending', due_ms = $1, finished_ms = NULL, epoch = deliveries.epoch + 1,
            attempts_before = deliveries.attempts
         WHERE pk IN (SELECT pk FROM deliveries WHERE endpoint_pk = $2 AND pk > $3 AND pk <= $4 AND created_ms >= $5
            AND state IN ({states}) ORDER BY pk LIMIT $6)
         RETURNING pk"
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let is_on = endpoints::known(tx, resend.endpoint_pk).await?.is_some_and(|endpoint| endpoint.enabled);
    let rows: Vec<(i64,)> = match is_on {
        false => Vec::new(),
        true => on_db!(tx, |c| {
            let query = sqlx::query_as(sql).bind(now_ms).bind(resend.endpoint_pk).bind(resend.position);
            let query = query.bind(resend.last_pk).bind(resend.order.since_ms).bind(i64::from(limit));
            query.fetch_all(c).await
        })?,
    };
    let full = u32::try_from(rows.len()).is_ok_and(|n| n == limit);
    let last = rows.iter().map(|row| row.0).max();
    let position = last.filter(|_| full).unwrap_or(resend.last_pk);
    let state = match (is_on, position < resend.last_pk) {
        (false, _) => ResendState::Stopped,
        (true, true) => ResendState::Running,
        (true, false) => ResendState::Done,
    };
    let finished_ms = (state != ResendState::Running).then_some(now_ms);
    let sql = "UPDATE resends SET position = $2, resent = resent + $3, state = $4, finished_ms = $5
        WHERE endpoint_pk = $1";
    on_db!(tx, |c| {
        let query = sqlx::query(sql).bind(resend.endpoint_pk).bind(position);
        let query = query.bind(i64::try_from(rows.len()).unwrap_or(i64::MAX)).bind(state.as_str());
        query.bind(finished_ms).execute(c).await.map(drop)
    })?;
    if !rows.is_empty() {
        wakes.deliveries();
    }
    Ok(Some(state))
}

/// Whether the resend is still where it was seen; until the end of the transaction nobody else moves it then.
async fn is_mine(tx: &mut Tx, resend: &ResendView) -> Result<bool, StoreError> {
    let sql = format!(
        "SELECT endpoint_pk FROM resends
         WHERE endpoint_pk = $1 AND position = $2 AND created_ms = $3 AND state = 'running'{}",
        tx.for_update()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let found: Option<(i64,)> = on_db!(tx, |c| {
        let query = sqlx::query_as(sql).bind(resend.endpoint_pk).bind(resend.position).bind(resend.created_ms);
        query.fetch_optional(c).await
    })?;
    Ok(found.is_some())
}

impl Store {
    /// Begins to send an endpoint (row `endpoint_pk`) again what it missed; an act.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin_resend(
        &self,
        endpoint_pk: i64,
        order: ResendOrder,
        by: By<'_>,
    ) -> Result<ResendBegun, StoreError> {
        act!(self, |tx, _wakes| begin(tx, endpoint_pk, order, by).await)
    }

    /// All resends that run.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn running_resends(&self) -> Result<Vec<ResendView>, StoreError> {
        self.db().in_time(running(self.db())).await
    }

    /// Deliveries of an endpoint (row `endpoint_pk`) that are pending, counted up to `most`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn pending_deliveries(&self, endpoint_pk: i64, most: u32) -> Result<i64, StoreError> {
        self.db().in_time(pending(self.db(), endpoint_pk, most)).await
    }

    /// Makes the next deliveries of a resend due, at most `limit`, and moves it on, all or nothing. `None`:
    /// somebody else was first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn advance_resend(
        &self,
        resend: &ResendView,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Option<ResendState>, StoreError> {
        act!(self, |tx, wakes| step(tx, resend, limit, now_ms, wakes).await)
    }
}
