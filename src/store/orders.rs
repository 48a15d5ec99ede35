//! What operators want of providers, keys and budgets: one row each, the last word.
//!
//! An order is a wish, not an event: dispatchers read all of them at their start, when they are
//! woken and now and then, and do what they say. The version tells whether one is news.

use std::collections::BTreeSet;

use super::audit::{self, Act, ActKind};
use super::dialect::{Db, Tx, on_db};
use super::wakes::Pending;
use super::{Order, Store, StoreError, Subject, act};
use crate::clock::WallMs;

/// What an operator says, and who.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub provider: &'a str,
    pub subject: &'a Subject,
    pub held: bool,
    pub by: &'a str,
    pub now_ms: WallMs,
}

/// A row as it is read: provider, subject, name, held, version, by, at.
type Row = (String, String, String, bool, i64, String, WallMs);

/// Keeps an order and wakes the dispatchers. One that only repeats what a held subject is told
/// already stays as it is; one that puts something back into use counts each time, since more may
/// have been learnt.
pub(super) async fn give(tx: &mut Tx, given: Given<'_>, wakes: &mut Pending) -> Result<Order, StoreError> {
    let sql = "INSERT INTO orders (provider, subject, name, held, version, given_by, given_ms)
        VALUES ($1, $2, $3, $4, 1, $5, $6)
        ON CONFLICT (provider, subject, name) DO UPDATE SET
            version = CASE WHEN orders.held AND excluded.held THEN orders.version ELSE orders.version + 1 END,
            given_by = CASE WHEN orders.held AND excluded.held THEN orders.given_by ELSE excluded.given_by END,
            given_ms = CASE WHEN orders.held AND excluded.held THEN orders.given_ms ELSE excluded.given_ms END,
            held = excluded.held
        RETURNING provider, subject, name, held, version, given_by, given_ms";
    let (subject, name) = given.subject.parts();
    // All rows, not one: SQLite is done with a statement after its last row.
    let rows: Vec<Row> = on_db!(tx, |c| sqlx::query_as(sql)
        .bind(given.provider)
        .bind(subject)
        .bind(name)
        .bind(given.held)
        .bind(given.by)
        .bind(given.now_ms)
        .fetch_all(c)
        .await)?;
    wakes.orders(given.provider);
    let row = rows.into_iter().next().ok_or_else(|| StoreError::Corrupt("an order was not kept".to_owned()))?;
    order(row)
}

/// The same, written down as what an operator did.
async fn give_audited(tx: &mut Tx, given: Given<'_>, wakes: &mut Pending) -> Result<Order, StoreError> {
    let order = give(tx, given, wakes).await?;
    let (kind, name) = match (given.subject, given.held) {
        (Subject::Provider, true) => (ActKind::ProviderPause, None),
        (Subject::Provider, false) => (ActKind::ProviderResume, None),
        (Subject::Budget(name), _) => (ActKind::BudgetResume, Some(name)),
        (Subject::Key(name), true) => (ActKind::KeyDisable, Some(name)),
        (Subject::Key(name), false) => (ActKind::KeyEnable, Some(name)),
    };
    let target = name.map_or_else(|| given.provider.to_owned(), |name| format!("{}/{name}", given.provider));
    let act = Act { who: given.by, kind, target: &target, done: true, detail: None, at_ms: given.now_ms };
    audit::write(tx, act).await?;
    Ok(order)
}

/// Every order about that provider, or about all of them.
async fn list(db: &Db, provider: Option<&str>) -> Result<Vec<Order>, StoreError> {
    let sql = "SELECT provider, subject, name, held, version, given_by, given_ms FROM orders
        WHERE $1 IS NULL OR provider = $1 ORDER BY provider, subject, name";
    let rows: Vec<Row> = on_db!(read db, |c| sqlx::query_as(sql).bind(provider).fetch_all(c).await)?;
    rows.into_iter().map(order).collect()
}

/// The providers that are held.
async fn paused(db: &Db) -> Result<BTreeSet<String>, StoreError> {
    let sql = "SELECT provider FROM orders WHERE subject = 'provider' AND held";
    let rows: Vec<(String,)> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

fn order((provider, subject, name, held, version, by, at_ms): Row) -> Result<Order, StoreError> {
    let subject = match subject.as_str() {
        "provider" => Subject::Provider,
        "key" => Subject::Key(name),
        "budget" => Subject::Budget(name),
        other => return Err(StoreError::Corrupt(format!("an order about a {other:?}"))),
    };
    Ok(Order { provider, subject, held, version: u64::try_from(version).unwrap_or(0), by, at_ms })
}

impl Store {
    /// Keeps what an operator wants of a provider, a key or a budget, and wakes its dispatchers
    /// ([`Wake::Orders`](super::Wake::Orders)): `held` takes it out of use until the next order; else it is in use,
    /// whatever was learnt before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn give_order(
        &self,
        provider: &str,
        subject: &Subject,
        held: bool,
        by: &str,
        now_ms: WallMs,
    ) -> Result<Order, StoreError> {
        let given = Given { provider, subject, held, by, now_ms };
        act!(self, |tx, wakes| give_audited(tx, given, wakes).await)
    }

    /// The last order about every subject that there ever was one about: of that provider, or of all.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn orders(&self, provider: Option<&str>) -> Result<Vec<Order>, StoreError> {
        self.db().in_time(list(self.db(), provider)).await
    }

    /// The providers that an operator paused.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn paused_providers(&self) -> Result<BTreeSet<String>, StoreError> {
        self.db().in_time(paused(self.db())).await
    }
}
