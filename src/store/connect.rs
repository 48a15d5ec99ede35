//! Opening a store: its URL, its pools, its lock, its schema.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::dialect::{Db, is_busy};
use super::{StoreError, StoreOptions};

static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");

/// How long a caller waits for a connection before the store counts as not available.
const ACQUIRE: Duration = Duration::from_secs(3);
/// How long SQLite waits for another process that writes.
const BUSY: Duration = Duration::from_secs(5);
/// Connections that read from SQLite, each with half a MiB of pages: the system keeps the file in memory as well.
const SQLITE_READERS: u32 = 4;
/// Statements kept prepared: each hot one has up to nine texts on SQLite.
const STATEMENTS: usize = 300;
/// Every statement here finds its rows by an index. A plan that was made while the tables were
/// empty must not scan them later: those plans are priced out of the question. That no index is read from end to end
/// either is a matter of how statements are spelled (`dialect.rs`).
const PLANS: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off";

/// What a URL opens.
pub(super) struct Opened {
    pub db: Db,
    /// How to listen, on PostgreSQL.
    pub listen: Option<PgConnectOptions>,
    /// Held as long as the store is open, where it is exclusive.
    pub lock: Option<File>,
}

pub(super) async fn open(options: &StoreOptions) -> Result<Opened, StoreError> {
    let scheme = options.url.split(':').next().unwrap_or_default();
    match scheme {
        "sqlite" => open_sqlite(options).await,
        "postgres" | "postgresql" => open_postgres(options).await,
        // The URL may hold a password: it is not repeated.
        _ => Err(StoreError::Url("expected sqlite://PATH or postgres://USER:PASSWORD@HOST/DATABASE".to_owned())),
    }
}

async fn open_postgres(options: &StoreOptions) -> Result<Opened, StoreError> {
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|e| StoreError::Url(format!("expected postgres://USER:PASSWORD@HOST/DATABASE: {e}")))?
        .application_name("paceline")
        .statement_cache_capacity(STATEMENTS);
    let pool = PgPoolOptions::new()
        .max_connections(options.connections_max.max(3))
        .acquire_timeout(ACQUIRE)
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::raw_sql(PLANS).execute(connection).await?;
                Ok(())
            })
        })
        .connect_with(connect.clone())
        .await
        .map_err(StoreError::Unavailable)?;
    Ok(Opened { db: Db::Postgres(pool), listen: Some(connect), lock: None })
}

async fn open_sqlite(options: &StoreOptions) -> Result<Opened, StoreError> {
    let connect = SqliteConnectOptions::from_str(&options.url)
        .map_err(|e| StoreError::Url(format!("expected sqlite://PATH: {e}")))?;
    let path = connect.get_filename().to_owned();
    if path.as_os_str().is_empty() || options.url.contains(":memory:") || options.url.contains("mode=memory") {
        return Err(StoreError::Url("expected the path of a file: jobs in memory would be lost".to_owned()));
    }
    let lock = if options.exclusive { Some(lock(&path)?) } else { None };
    let connect = connect.foreign_keys(false).busy_timeout(BUSY).statement_cache_capacity(STATEMENTS);
    let writing = connect
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .thread_name(|n| format!("sqlite-write-{n}"))
        // 16 MiB of pages, and a checkpoint every 16 MiB: fewer of both would be read and written twice.
        .pragma("cache_size", "-16384")
        .pragma("wal_autocheckpoint", "4096")
        // Rows of a batch are handed over without waiting for each other.
        .row_buffer_size(1024);
    let write = connect_writer(writing).await?;
    let reading = connect
        .create_if_missing(false)
        .pragma("query_only", "ON")
        .pragma("cache_size", "-512")
        .thread_name(|n| format!("sqlite-read-{n}"));
    let read = SqlitePoolOptions::new()
        .max_connections(SQLITE_READERS.min(options.connections_max.max(1)))
        .acquire_timeout(ACQUIRE)
        .test_before_acquire(false)
        .connect_lazy_with(reading);
    Ok(Opened { db: Db::Sqlite { read, write }, listen: None, lock })
}

/// Opens the one connection that writes. The first one of all switches the file to WAL, and while
/// it does others are refused at once, without the time that they would wait for a lock.
async fn connect_writer(options: SqliteConnectOptions) -> Result<SqlitePool, StoreError> {
    let begun = std::time::Instant::now();
    loop {
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .acquire_timeout(ACQUIRE)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false);
        match pool.connect_with(options.clone()).await {
            Ok(pool) => return Ok(pool),
            Err(error) if is_busy(&error) && begun.elapsed() < BUSY => {
                tokio::time::sleep(Duration::from_millis(20)).await
            }
            Err(error) => return Err(StoreError::Unavailable(error)),
        }
    }
}

/// Takes the lock beside the file. The system gives it back when the process ends, however it ends.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let unavailable = |error: std::io::Error| {
        let text = format!("{}: {error}", PathBuf::from(&beside).display());
        StoreError::Unavailable(sqlx::Error::Io(std::io::Error::new(error.kind(), text)))
    };
    let file = File::options().create(true).truncate(false).write(true).open(&beside).map_err(unavailable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(unavailable(error)),
    }
}

/// Brings the schema up to date; how many migrations that took. Several processes may do it at
/// once: PostgreSQL has a lock for it, on SQLite it is one writing transaction.
pub(super) async fn migrate(db: &Db) -> Result<u32, StoreError> {
    match db {
        Db::Postgres(pool) => {
            let mut connection = pool.acquire().await?;
            let done = run(&POSTGRES, &mut *connection).await;
            if done.is_err() {
                // It may hold the lock of the migrations still.
                connection.close_on_drop();
            }
            done
        }
        Db::Sqlite { write, .. } => {
            let mut tx = write.begin_with("BEGIN IMMEDIATE").await?;
            let done = run(&SQLITE, &mut *tx).await?;
            tx.commit().await?;
            Ok(done)
        }
    }
}

async fn run<C: Migrate>(migrator: &Migrator, connection: &mut C) -> Result<u32, StoreError> {
    let table = &migrator.table_name;
    // The table of migrations itself cannot be made by two at once.
    connection.lock().await.map_err(failed)?;
    connection.ensure_migrations_table(table).await.map_err(failed)?;
    let before = connection.list_applied_migrations(table).await.map_err(failed)?.len();
    migrator.run_direct(None, connection, false).await.map_err(failed)?;
    connection.unlock().await.map_err(failed)?;
    let after = connection.list_applied_migrations(table).await.map_err(failed)?.len();
    Ok(u32::try_from(after.saturating_sub(before)).unwrap_or(u32::MAX))
}

/// A database that is away is no broken schema.
fn failed(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => match StoreError::from(error) {
            StoreError::Unavailable(error) => StoreError::Unavailable(error),
            StoreError::Database(error) => StoreError::Migration(MigrateError::Execute(error)),
            other => other,
        },
        other => StoreError::Migration(other),
    }
}
