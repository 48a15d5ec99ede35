//! The queues that were ever declared in the broker: it cannot be asked which there are.

use super::dialect::{Db, Rows, Tx, on_db};
use super::{Store, StoreError, act};

/// They are there now.
async fn remember(tx: &mut Tx, names: &[String]) -> Result<(), StoreError> {
    let rows = Rows::new().text("name", names.iter().map(|name| Some(name.as_str())));
    rows.execute(tx, "INSERT INTO queues (name) SELECT name FROM v WHERE TRUE ON CONFLICT (name) DO NOTHING").await?;
    Ok(())
}

/// It is there no more.
async fn forget(tx: &mut Tx, name: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM queues WHERE name = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(name).execute(c).await.map(drop))?;
    Ok(())
}

/// All of them.
async fn list(db: &Db) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT name FROM queues ORDER BY name";
    let rows: Vec<(String,)> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

impl Store {
    /// Remembers queues that were declared.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn remember_queues(&self, names: &[String]) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| remember(tx, names).await)
    }

    /// Forgets a queue that was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn forget_queue(&self, name: &str) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| forget(tx, name).await)
    }

    /// Every queue that was declared and not forgotten, by name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn queues(&self) -> Result<Vec<String>, StoreError> {
        self.db().in_time(list(self.db())).await
    }
}
