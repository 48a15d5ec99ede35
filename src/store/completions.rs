//! Completions in their order, for those who follow them.
//!
//! Positions are given out in the order of inserts, and on PostgreSQL transactions commit in another
//! one: whoever has seen position 10 may still miss 9. So nothing is told before it is settled: before
//! every transaction that was under way when its position was first seen has ended.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::deliveries::{EventRow, event_of};
use super::dialect::{Db, on_db};
use super::types::Event;
use super::{Store, StoreError};
use crate::job::EventKind;

/// Completions that are read at once, at most.
pub const COMPLETIONS_MAX: usize = 100;
/// A transaction of somebody else (another database of the same server) is not waited for longer: those of this
/// store are given up before.
const SETTLED_WITHIN: Duration = Duration::from_secs(20);

/// What was seen of completions that may not be settled yet.
#[derive(Debug, Default)]
pub struct Horizon {
    settled: i64,
    seen: Option<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    position: i64,
    /// The first transaction that had not begun.
    next_transaction: i64,
    at: Instant,
}

impl Horizon {
    /// Takes note of the newest position, of the oldest transaction under way, and of the first that has not begun.
    fn look(&mut self, position: i64, oldest: i64, next_transaction: i64, now: Instant) -> i64 {
        let over = |seen: &Seen| oldest >= seen.next_transaction || now >= seen.at + SETTLED_WITHIN;
        if let Some(seen) = self.seen.filter(over) {
            self.settled = self.settled.max(seen.position);
            self.seen = None;
        }
        if oldest >= next_transaction {
            self.settled = self.settled.max(position);
            self.seen = None;
        } else if self.seen.is_none() && position > self.settled {
            self.seen = Some(Seen { position, next_transaction, at: now });
        }
        self.settled
    }

    /// Whether there is more than what is settled: look again soon.
    pub const fn is_waiting(&self) -> bool {
        self.seen.is_some()
    }
}

/// Which completions.
#[derive(Debug, Clone, Default)]
pub struct CompletionFilter {
    /// Of that kind.
    pub event: Option<EventKind>,
    /// Of that provider.
    pub provider: Option<String>,
    /// Of that tenant.
    pub tenant: Option<String>,
}

async fn settled(db: &Db, horizon: &mut Horizon) -> Result<i64, StoreError> {
    let (position, oldest, next): (i64, i64, i64) = match db {
        // One statement, so one snapshot. A transaction has its number before it inserts an event, since it changes a
        // job first.
        Db::Postgres(pool) => {
            let sql =
                "SELECT COALESCE(MAX(pk), 0), CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT),
                CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT) FROM events";
            sqlx::query_as(sql).fetch_one(pool).await?
        }
        // One writer: what is seen is settled.
        Db::Sqlite { read, .. } => {
            sqlx::query_as("SELECT COALESCE(MAX(pk), 0), 0, 0 FROM events").fetch_one(read).await?
        }
    };
    Ok(horizon.look(position, oldest, next, Instant::now()))
}

async fn between(
    db: &Db,
    (after, up_to): (i64, i64),
    filter: &CompletionFilter,
    body_bytes_max: usize,
) -> Result<Vec<(i64, Event)>, StoreError> {
    let sql = db.spelled(
        "SELECT e.pk, e.id, e.state, e.at_ms, e.attempts, e.reason, e.error, j.id, j.provider, j.tenant, j.metadata,
            e.status, e.headers, e.content_type, e.truncated, SUBSTR(e.body, 1, $7)
        FROM events e JOIN jobs j ON j.pk =[e.job_pk]
        WHERE e.pk > $1 AND e.pk <= $2
            AND ($3 IS NULL OR e.state = $3) AND ($4 IS NULL OR j.provider = $4) AND ($5 IS NULL OR j.tenant = $5)
        ORDER BY e.pk LIMIT $6",
    );
    let state = filter.event.map(|event| event.as_str().trim_start_matches("job."));
    let body_bytes = i32::try_from(body_bytes_max + 1).unwrap_or(i32::MAX);
    let rows: Vec<EventRow> = on_db!(read db, |c| sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(after)
        .bind(up_to)
        .bind(state)
        .bind(filter.provider.as_deref())
        .bind(filter.tenant.as_deref())
        .bind(i64::try_from(COMPLETIONS_MAX).unwrap_or(i64::MAX))
        .bind(body_bytes)
        .fetch_all(c)
        .await)?;
    rows.into_iter().map(event_of).collect()
}

impl Store {
    /// From now on every completion that this process records is published to the broker, too, by
    /// whoever claims it there ([`Store::claim_publications`]).
    pub fn publish_completions(&self) {
        self.inner.wakes.publish();
    }

    /// Changes whenever a job may have ended, here or (on PostgreSQL, for some time after [`Store::await_completions`])
    /// in another process. As with wakes, some may be missed.
    pub fn completions(&self) -> watch::Receiver<u64> {
        self.inner.wakes.completions()
    }

    /// Asks the other processes to tell of completions for the next 15 seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn await_completions(&self) -> Result<(), StoreError> {
        self.db().in_time(self.inner.wakes.ask_for_completions(self.db())).await
    }

    /// The position up to which no completion can come in between any more, by what was seen at the last call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn settled_completions(&self, horizon: &mut Horizon) -> Result<i64, StoreError> {
        self.db().in_time(settled(self.db(), horizon)).await
    }

    /// Completions after the one position up to the other, in their order, at most [`COMPLETIONS_MAX`], each with its
    /// position. Of a body that is larger than `body_bytes_max` only enough is read to tell.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn completions_between(
        &self,
        range: (i64, i64),
        filter: &CompletionFilter,
        body_bytes_max: usize,
    ) -> Result<Vec<(i64, Event)>, StoreError> {
        self.db().in_time(between(self.db(), range, filter, body_bytes_max)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_settled_while_a_transaction_of_its_time_is_under_way() {
        let (mut horizon, now) = (Horizon::default(), Instant::now());
        assert_eq!(horizon.look(5, 100, 100, now), 5, "nobody is at work");
        assert_eq!(horizon.look(7, 100, 102, now), 5);
        assert!(horizon.is_waiting());
        assert_eq!(horizon.look(9, 101, 103, now), 5, "101 was under way when 7 was seen");
        assert_eq!(horizon.look(9, 102, 103, now), 7, "9 is looked at from here on");
        assert!(horizon.is_waiting());
        assert_eq!(horizon.look(9, 103, 104, now), 9);
        assert!(!horizon.is_waiting());
    }

    #[test]
    fn a_transaction_of_somebody_else_is_not_waited_for_without_end() {
        let (mut horizon, now) = (Horizon::default(), Instant::now());
        assert_eq!(horizon.look(5, 1, 100, now), 0);
        assert_eq!(horizon.look(6, 1, 100, now + SETTLED_WITHIN / 2), 0);
        assert_eq!(horizon.look(6, 1, 100, now + SETTLED_WITHIN), 5);
    }
}
