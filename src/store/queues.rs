//! The queues that were ever declared in the broker: it cannot be asked which there are.

use super::StoreError;
use super::dialect::{Db, Rows, Tx, on_db};

/// They are there now.
pub(super) async fn remember(tx: &mut Tx, names: &[String]) -> Result<(), StoreError> {
    let rows = Rows::new().text("name", names.iter().map(|name| Some(name.as_str())));
    rows.execute(tx, "INSERT INTO queues (name) SELECT name FROM v WHERE TRUE ON CONFLICT (name) DO NOTHING").await?;
    Ok(())
}

/// It is there no more.
pub(super) async fn forget(tx: &mut Tx, name: &str) -> Result<(), StoreError> {
    let sql = "DELETE FROM queues WHERE name = $1";
    on_db!(tx, |c| sqlx::query(sql).bind(name).execute(c).await.map(drop))?;
    Ok(())
}

/// All of them.
pub(super) async fn list(db: &Db) -> Result<Vec<String>, StoreError> {
    let sql = "SELECT name FROM queues ORDER BY name";
    let rows: Vec<(String,)> = on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}
