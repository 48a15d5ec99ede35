//! What a store writes: transactions, and bytes on their way to the disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::{Connection as _, PgConnection};

use super::process;
use crate::scratch_database::ScratchDatabase;

/// Sessions that were cut off are gone within this time, and have told what they did.
const GONE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// So far, or from one look to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Writes {
    /// Those that only read included, on PostgreSQL.
    pub transactions: f64,
    /// On SQLite what the process wrote, on PostgreSQL its log (WAL).
    pub bytes: f64,
}

impl Writes {
    /// Those since an earlier look.
    pub fn since(self, before: Self) -> Self {
        Self { transactions: self.transactions - before.transactions, bytes: self.bytes - before.bytes }
    }
}

/// What a process wrote into an SQLite file, which it must have open still: SQLite counts the transactions of a file
/// from when it was opened on (the field `iChange` of its index of the log).
pub fn sqlite(file: &Path, process: u32) -> anyhow::Result<Writes> {
    let index = PathBuf::from(format!("{}-shm", file.display()));
    let head = std::fs::read(&index).with_context(|| index.display().to_string())?;
    let transactions = head.get(8..12).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    let transactions = transactions.context("the index of SQLite's log is cut off")?;
    Ok(Writes { transactions: f64::from(transactions), bytes: process::bytes_written(process)? })
}

/// What was written in a PostgreSQL database so far; its log is that of all databases together. Sessions tell what they
/// did when they end, so this waits until they have.
pub async fn postgres(database: &ScratchDatabase) -> anyhow::Result<Writes> {
    const SQL: &str = "SELECT numbackends, (xact_commit + xact_rollback)::float8, \
        (pg_current_wal_lsn() - '0/0')::float8 FROM pg_stat_database WHERE datname = $1";
    let mut connection = PgConnection::connect(database.admin_url()).await.context("DATABASE_URL")?;
    let began = Instant::now();
    let (transactions, bytes) = loop {
        let row: (i32, f64, f64) = sqlx::query_as(SQL).bind(database.name()).fetch_one(&mut connection).await?;
        if row.0 == 0 || began.elapsed() > GONE {
            break (row.1, row.2);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    connection.close().await?;
    Ok(Writes { transactions, bytes })
}
