//! How things stand with a provider, told by the processes that spend its budgets to whoever asks
//! another one: one row a process, gone with it.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::dialect::{Db, Tx, on_db};
use super::{OwnerId, Report, ReportView, Store, StoreError};

/// Puts a report in the place of the one before; `None` takes it back.
async fn write(db: &Db, provider: &str, owner: &str, report: Option<&Report>) -> Result<(), StoreError> {
    let Some(report) = report else {
        let sql = "DELETE FROM reports WHERE provider = $1 AND owner = $2";
        return Ok(on_db!(write db, |c| sqlx::query(sql).bind(provider).bind(owner).execute(c).await.map(drop))?);
    };
    let text = serde_json::to_string(report).map_err(|e| StoreError::Corrupt(format!("a report: {e}")))?;
    let sql = format!(
        "INSERT INTO reports (provider, owner, written_ms, report) VALUES ($1, $2, {now}, $3)
         ON CONFLICT (provider, owner) DO UPDATE SET written_ms = excluded.written_ms, report = excluded.report",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    Ok(on_db!(write db, |c| sqlx::query(sql).bind(provider).bind(owner).bind(text).execute(c).await.map(drop))?)
}

/// The reports about that provider, or about all of them. One that another version wrote, and that
/// cannot be read, is left out.
async fn list(db: &Db, provider: Option<&str>) -> Result<Vec<ReportView>, StoreError> {
    let sql = format!(
        "SELECT provider, owner, {now} - written_ms, report FROM reports
         WHERE $1 IS NULL OR provider = $1 ORDER BY provider, owner",
        now = db.now_ms()
    );
    let sql = AssertSqlSafe(sql);
    let rows: Vec<(String, String, i64, String)> =
        on_db!(read db, |c| sqlx::query_as(sql).bind(provider).fetch_all(c).await)?;
    let view = |(provider, owner, age_ms, text): (String, String, i64, String)| {
        let age = Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
        let read = serde_json::from_str(&text);
        read.map(|report| ReportView { provider, owner, age, report })
            .map_err(|error| tracing::debug!(%error, "a report cannot be read"))
            .ok()
    };
    Ok(rows.into_iter().filter_map(view).collect())
}

/// Its process is gone.
pub(super) async fn forget(tx: &mut Tx, owner: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM reports WHERE owner = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(owner).execute(c).await.map(drop))?;
    Ok(())
}

impl Store {
    /// Tells how things stand with a provider in the process of this owner; `None` takes back what
    /// was told. It is gone with its owner.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn write_report(
        &self,
        provider: &str,
        owner: &OwnerId,
        report: Option<&Report>,
    ) -> Result<(), StoreError> {
        self.introduce(owner).await?;
        self.db().in_time(write(self.db(), provider, owner, report)).await
    }

    /// What was told of that provider, or of all.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn reports(&self, provider: Option<&str>) -> Result<Vec<ReportView>, StoreError> {
        self.db().in_time(list(self.db(), provider)).await
    }
}
