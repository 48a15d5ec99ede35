//! Every difference between the two databases.
//!
//! SQL is written once, in what both understand. What differs is here: how a transaction begins,
//! how rows are locked, how many rows go into one statement, the database's clock, and what its
//! errors mean.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgPool, PgRow, PgSeverity};
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow, Postgres, Sqlite, Transaction};

use super::StoreError;

/// Runs one body against either database: `on_db!(tx, |c| sqlx::query(…).execute(c).await)`.
///
/// Takes a `&mut Tx` or, as `on_db!(read db, …)`, a `&Db`; `on_db!(write db, …)` is for a single
/// statement that commits by itself.
macro_rules! on_db {
    (write $db:expr, |$c:ident| $body:expr) => {
        match $db {
            $crate::store::dialect::Db::Postgres(pool) => {
                let $c = pool;
                $body
            }
            $crate::store::dialect::Db::Sqlite { write, .. } => {
                let $c = write;
                $body
            }
        }
    };
    (read $db:expr, |$c:ident| $body:expr) => {
        match $db {
            $crate::store::dialect::Db::Postgres(pool) => {
                let $c = pool;
                $body
            }
            $crate::store::dialect::Db::Sqlite { read, .. } => {
                let $c = read;
                $body
            }
        }
    };
    ($tx:expr, |$c:ident| $body:expr) => {
        match $tx {
            $crate::store::dialect::Tx::Postgres(tx) => {
                let $c = &mut **tx;
                $body
            }
            $crate::store::dialect::Tx::Sqlite(tx) => {
                let $c = &mut **tx;
                $body
            }
        }
    };
}
pub(super) use on_db;

/// Time for one transaction or one reading of PostgreSQL.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Time for a call about a lease: on PostgreSQL, where a connection may be dead, short enough to ask
/// again on another one before the lease runs out. Waiting for a file is as good as asking again.
const LEASE_POSTGRES: Duration = Duration::from_secs(2);
const LEASE_SQLITE: Duration = Duration::from_secs(5);

const NOW_POSTGRES: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
const NOW_SQLITE: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// The databases.
#[derive(Debug, Clone)]
pub(super) enum Db {
    Postgres(PgPool),
    /// One connection writes; the others only read, and never wait for it (WAL).
    Sqlite {
        read: SqlitePool,
        write: SqlitePool,
    },
}

/// An open transaction. Dropped without [`Tx::commit`], it changes nothing.
pub(super) enum Tx {
    Postgres(Transaction<'static, Postgres>),
    Sqlite(Transaction<'static, Sqlite>),
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It may still be committed.
    Open,
    Committed,
    /// Rolled back, or nobody knows of it any more.
    Gone,
}

/// What PostgreSQL says of a transaction number that it has not given out: invalid_parameter_value.
const NOT_BEGUN: &str = "22023";

impl Db {
    /// Begins a transaction that may write. On SQLite it holds the only write lock from the first
    /// moment on: a lock that is taken over later can fail in the middle.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await?),
            Self::Sqlite { write, .. } => Tx::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?),
        })
    }

    /// Gives up on a database that stays silent. A file cannot, and giving up in the middle of its
    /// commit would leave that open.
    pub async fn in_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        match self {
            Self::Postgres(_) => match tokio::time::timeout(SILENCE_MAX, work).await {
                Ok(done) => done,
                Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
            },
            Self::Sqlite { .. } => work.await,
        }
    }

    /// The same for leases, on both: they are worth nothing late. What is given up on may still be
    /// committed, so each statement of the work must stand alone.
    pub async fn in_lease_time<T>(&self, work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let limit = match self {
            Self::Postgres(_) => LEASE_POSTGRES,
            Self::Sqlite { .. } => LEASE_SQLITE,
        };
        let late = |_| Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        tokio::time::timeout(limit, work).await.unwrap_or_else(late)
    }

    pub const fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }

    /// Whether writes of this process take effect in the order in which they were begun, also those
    /// that were given up on: SQLite's all go through one connection.
    pub const fn keeps_order(&self) -> bool {
        self.is_sqlite()
    }

    /// What became of PostgreSQL's transaction of that number: one whose connection is gone may take its time. SQLite has
    /// no numbers, and what it answered was committed.
    pub async fn fate(&self, transaction: &str) -> Result<Fate, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(Fate::Committed) };
        let sql = "SELECT pg_xact_status($1::xid8)";
        let asked: Result<(Option<String>,), _> = sqlx::query_as(sql).bind(transaction).fetch_one(pool).await;
        match asked {
            Ok((status,)) => Ok(match status.as_deref() {
                Some("in progress") => Fate::Open,
                Some("committed") => Fate::Committed,
                // Or so many millions of transactions ago that nobody knows.
                _ => Fate::Gone,
            }),
            // A server that never came so far, such as a replica that took over.
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(NOT_BEGUN) => Ok(Fate::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// The database's clock in milliseconds, as an expression.
    pub const fn now_ms(&self) -> &'static str {
        match self {
            Self::Postgres(_) => NOW_POSTGRES,
            Self::Sqlite { .. } => NOW_SQLITE,
        }
    }

    /// The names of a JSON list, as a subquery.
    pub fn names_in(&self, parameter: &str) -> String {
        names_in(parameter, self.is_sqlite())
    }

    /// A statement with [what is looked up](spelled), as this database spells it.
    pub fn spelled(&self, sql: &str) -> String {
        spelled(sql, self.is_sqlite())
    }
}

impl Tx {
    /// PostgreSQL's number of it, which nothing else ever has; nothing on SQLite.
    pub async fn number(&mut self) -> Result<String, StoreError> {
        let Self::Postgres(tx) = self else { return Ok(String::new()) };
        let sql = "SELECT pg_current_xact_id()::text";
        let (number,): (String,) = sqlx::query_as(sql).fetch_one(&mut **tx).await?;
        Ok(number)
    }

    pub async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(tx) => tx.commit().await?,
            Self::Sqlite(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Whether the transaction could write. On SQLite it could not have begun otherwise.
    pub async fn check_writable(&mut self) -> Result<(), StoreError> {
        if let Self::Postgres(tx) = self {
            let sql = "SELECT current_setting('transaction_read_only')";
            let (read_only,): (String,) = sqlx::query_as(sql).fetch_one(&mut **tx).await?;
            if read_only == "on" {
                let told = std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, "the database is read-only");
                return Err(StoreError::Unavailable(sqlx::Error::Io(told)));
            }
        }
        Ok(())
    }

    /// The names of a JSON list, as a subquery.
    pub fn names_in(&self, parameter: &str) -> String {
        names_in(parameter, matches!(self, Self::Sqlite(_)))
    }

    /// A statement with [what is looked up](spelled), as this database spells it.
    pub fn spelled(&self, sql: &str) -> String {
        spelled(sql, matches!(self, Self::Sqlite(_)))
    }

    /// The end of a `SELECT` whose rows are changed next: they are waited for.
    pub const fn for_update(&self) -> &'static str {
        match self {
            Self::Postgres(_) => " FOR UPDATE",
            Self::Sqlite(_) => "",
        }
    }

    /// The end of a `SELECT` that competes for rows with others: what they hold is left out.
    pub const fn skip_locked(&self) -> &'static str {
        match self {
            Self::Postgres(_) => " FOR UPDATE SKIP LOCKED",
            Self::Sqlite(_) => "",
        }
    }

    /// The rows that `jobs`, a selection of jobs which names a column of `outer`, finds for each row of `outer`.
    pub fn first_of_each(&self, outer: &str, jobs: &str) -> String {
        match self {
            Self::Postgres(_) => {
                format!("SELECT found.* FROM {outer} CROSS JOIN LATERAL ({jobs}) AS found")
            }
            // No LATERAL: the keys are looked up one by one. CROSS JOIN keeps the order of the two.
            Self::Sqlite(_) => format!(
                "SELECT found.pk, found.due_ms, found.envelope_bytes FROM {outer} CROSS JOIN jobs AS found
                 WHERE found.pk IN (SELECT pk FROM ({jobs}))"
            ),
        }
    }

    /// The database's clock in milliseconds, as an expression.
    pub const fn now_ms(&self) -> &'static str {
        match self {
            Self::Postgres(_) => NOW_POSTGRES,
            Self::Sqlite(_) => NOW_SQLITE,
        }
    }

    /// Whether a column is one of the texts in a JSON list, as a condition.
    pub fn is_in_json_list(&self, column: &str, list: &str) -> String {
        match self {
            Self::Postgres(_) => {
                format!("{column} IN (SELECT jsonb_array_elements_text(CAST({list} AS TEXT)::jsonb))")
            }
            Self::Sqlite(_) => format!("{column} IN (SELECT value FROM json_each({list}))"),
        }
    }
}

fn names_in(parameter: &str, sqlite: bool) -> String {
    match sqlite {
        true => format!("SELECT value FROM json_each({parameter})"),
        false => format!("SELECT json_array_elements_text(CAST({parameter} AS json))"),
    }
}

/// Spells what is looked up in an index, however small the table seems: `column =[value]`, with a value of another table, and
/// `column IN {subquery}`.
///
/// Where PostgreSQL took a table for empty, it would otherwise read an index of it from end to end, for each batch and for as
/// long as the plan lives. It can do so only to merge by an equality, which `= ANY` is not, or to use an index of those rows
/// alone that the statement asks for by its own condition; such a condition is written so that it does not say so
/// (`state || '' = 'pending'`). `tests/store_plans.rs` counts what is read.
fn spelled(sql: &str, sqlite: bool) -> String {
    let marks = match sqlite {
        true => [("=[", "= ("), ("]", ")"), ("IN {", "IN ("), ("}", ")")],
        false => [("=[", "= ANY (ARRAY["), ("]", "])"), ("IN {", "= ANY (ARRAY("), ("}", "))")],
    };
    marks.iter().fold(sql.to_owned(), |sql, (mark, spelling)| sql.replace(mark, spelling))
}

/// A row that can come from either.
pub(super) trait EitherRow: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}
impl<T> EitherRow for T where T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin {}

/// Rows in one `VALUES` list of SQLite. Chunks are powers of two, so that at most nine texts of a
/// statement are prepared; the widest (27 columns) stays far below 32,766 parameters.
const SQLITE_ROWS_MAX: usize = 256;

/// The cells of one column.
enum Cells<'a> {
    Int(Vec<Option<i64>>),
    Flag(Vec<bool>),
    Text(Vec<Option<Cow<'a, str>>>),
    Blob(Vec<Option<&'a [u8]>>),
}

/// Many rows for one statement, which finds them as the table `v`.
///
/// PostgreSQL gets an array a column (`UNNEST`), SQLite a list of `VALUES` with anonymous
/// parameters (named ones are looked up one by one there, which is quadratic), or one JSON list
/// where there is only one column of numbers.
pub(super) struct Rows<'a> {
    columns: Vec<(&'static str, Cells<'a>)>,
    len: usize,
}

impl<'a> Rows<'a> {
    pub const fn new() -> Self {
        Self { columns: Vec::new(), len: 0 }
    }

    pub fn int(self, name: &'static str, cells: impl IntoIterator<Item = Option<i64>>) -> Self {
        let cells: Vec<_> = cells.into_iter().collect();
        let len = cells.len();
        self.with(name, Cells::Int(cells), len)
    }

    pub fn flag(self, name: &'static str, cells: impl IntoIterator<Item = bool>) -> Self {
        let cells: Vec<_> = cells.into_iter().collect();
        let len = cells.len();
        self.with(name, Cells::Flag(cells), len)
    }

    /// A NUL, which PostgreSQL cannot keep in a text, becomes U+FFFD: what providers and producers
    /// say must not keep an outcome from being written.
    pub fn text(self, name: &'static str, cells: impl IntoIterator<Item = Option<&'a str>>) -> Self {
        let keepable = |text: &'a str| match text.contains('\0') {
            true => Cow::Owned(text.replace('\0', "\u{FFFD}")),
            false => Cow::Borrowed(text),
        };
        let cells: Vec<_> = cells.into_iter().map(|cell| cell.map(keepable)).collect();
        let len = cells.len();
        self.with(name, Cells::Text(cells), len)
    }

    pub fn blob(self, name: &'static str, cells: impl IntoIterator<Item = Option<&'a [u8]>>) -> Self {
        let cells: Vec<_> = cells.into_iter().collect();
        let len = cells.len();
        self.with(name, Cells::Blob(cells), len)
    }

    fn with(mut self, name: &'static str, cells: Cells<'a>, len: usize) -> Self {
        debug_assert!(self.columns.is_empty() || self.len == len, "column {name} has another length");
        self.len = len;
        self.columns.push((name, cells));
        self
    }

    /// Runs `body` over the rows and collects what it returns.
    pub async fn fetch<T: EitherRow>(&self, tx: &mut Tx, body: &str) -> Result<Vec<T>, StoreError> {
        match tx {
            Tx::Postgres(tx) => self.fetch_postgres(&mut **tx, body).await,
            Tx::Sqlite(tx) => self.fetch_sqlite(tx, body).await,
        }
    }

    /// The same, committed by itself: as one statement on PostgreSQL, where nobody who falls silent may hold locks.
    pub async fn fetch_alone<T: EitherRow>(&self, db: &Db, body: &str) -> Result<Vec<T>, StoreError> {
        if self.len == 0 {
            return Ok(Vec::new());
        }
        match db {
            Db::Postgres(pool) => self.fetch_postgres(pool, body).await,
            Db::Sqlite { write, .. } => {
                let mut tx = write.begin_with("BEGIN IMMEDIATE").await?;
                let found = self.fetch_sqlite(&mut tx, body).await?;
                tx.commit().await?;
                Ok(found)
            }
        }
    }

    async fn fetch_postgres<'e, T: EitherRow>(
        &self,
        executor: impl sqlx::PgExecutor<'e>,
        body: &str,
    ) -> Result<Vec<T>, StoreError> {
        if self.len == 0 {
            return Ok(Vec::new());
        }
        let mut query = sqlx::query_as::<_, T>(AssertSqlSafe(self.unnest(body)));
        for (_, cells) in &self.columns {
            query = match cells {
                Cells::Int(cells) => query.bind(cells),
                Cells::Flag(cells) => query.bind(cells),
                Cells::Text(cells) => query.bind(cells),
                Cells::Blob(cells) => query.bind(cells),
            };
        }
        Ok(query.fetch_all(executor).await?)
    }

    async fn fetch_sqlite<T: EitherRow>(&self, c: &mut SqliteConnection, body: &str) -> Result<Vec<T>, StoreError> {
        if let [(_, Cells::Int(keys))] = &self.columns[..] {
            let sql = AssertSqlSafe(self.json_each(body));
            return Ok(sqlx::query_as::<_, T>(sql).bind(json_list(keys)).fetch_all(c).await?);
        }
        let mut found = Vec::new();
        for (from, to) in chunks(self.len) {
            let mut query = sqlx::query_as::<_, T>(AssertSqlSafe(self.values(to - from, body)));
            for row in from..to {
                for (_, cells) in &self.columns {
                    query = match cells {
                        Cells::Int(cells) => query.bind(cells[row]),
                        Cells::Flag(cells) => query.bind(cells[row]),
                        Cells::Text(cells) => query.bind(cells[row].as_deref()),
                        Cells::Blob(cells) => query.bind(cells[row]),
                    };
                }
            }
            found.extend(query.fetch_all(&mut *c).await?);
        }
        Ok(found)
    }

    /// Runs `body` over the rows; how many rows it changed.
    pub async fn execute(&self, tx: &mut Tx, body: &str) -> Result<u64, StoreError> {
        if self.len == 0 {
            return Ok(0);
        }
        match tx {
            Tx::Postgres(tx) => {
                let mut query = sqlx::query(AssertSqlSafe(self.unnest(body)));
                for (_, cells) in &self.columns {
                    query = match cells {
                        Cells::Int(cells) => query.bind(cells),
                        Cells::Flag(cells) => query.bind(cells),
                        Cells::Text(cells) => query.bind(cells),
                        Cells::Blob(cells) => query.bind(cells),
                    };
                }
                Ok(query.execute(&mut **tx).await?.rows_affected())
            }
            Tx::Sqlite(tx) => {
                if let [(_, Cells::Int(keys))] = &self.columns[..] {
                    let sql = AssertSqlSafe(self.json_each(body));
                    return Ok(sqlx::query(sql).bind(json_list(keys)).execute(&mut **tx).await?.rows_affected());
                }
                let mut changed = 0;
                for (from, to) in chunks(self.len) {
                    let mut query = sqlx::query(AssertSqlSafe(self.values(to - from, body)));
                    for row in from..to {
                        for (_, cells) in &self.columns {
                            query = match cells {
                                Cells::Int(cells) => query.bind(cells[row]),
                                Cells::Flag(cells) => query.bind(cells[row]),
                                Cells::Text(cells) => query.bind(cells[row].as_deref()),
                                Cells::Blob(cells) => query.bind(cells[row]),
                            };
                        }
                    }
                    changed += query.execute(&mut **tx).await?.rows_affected();
                }
                Ok(changed)
            }
        }
    }

    fn unnest(&self, body: &str) -> String {
        let mut sql = String::with_capacity(body.len() + 32 * self.columns.len());
        self.head(&mut sql);
        sql.push_str("SELECT * FROM UNNEST(");
        for (i, (_, cells)) in self.columns.iter().enumerate() {
            let of = match cells {
                Cells::Int(_) => "bigint",
                Cells::Flag(_) => "boolean",
                Cells::Text(_) => "text",
                Cells::Blob(_) => "bytea",
            };
            let comma = if i == 0 { "" } else { "," };
            sql.push_str(&format!("{comma}${}::{of}[]", i + 1));
        }
        sql.push_str(")) ");
        sql.push_str(&spelled(body, false));
        sql
    }

    fn json_each(&self, body: &str) -> String {
        let mut sql = String::with_capacity(body.len() + 64);
        self.head(&mut sql);
        sql.push_str("SELECT value FROM json_each(?)) ");
        sql.push_str(&spelled(body, true));
        sql
    }

    fn values(&self, rows: usize, body: &str) -> String {
        let mut row = ",(".to_owned();
        for _ in &self.columns {
            row.push_str("?,");
        }
        row.pop();
        row.push(')');
        let mut sql = String::with_capacity(body.len() + rows * row.len() + 16 * self.columns.len());
        self.head(&mut sql);
        sql.push_str("VALUES ");
        sql.push_str(&row[1..]);
        for _ in 1..rows {
            sql.push_str(&row);
        }
        sql.push_str(") ");
        sql.push_str(&spelled(body, true));
        sql
    }

    fn head(&self, sql: &mut String) {
        sql.push_str("WITH v(");
        for (i, (name, _)) in self.columns.iter().enumerate() {
            if i > 0 {
                sql.push(',');
            }
            sql.push_str(name);
        }
        sql.push_str(") AS (");
    }
}

fn json_list(keys: &[Option<i64>]) -> String {
    let keys = keys.iter().map(|key| key.map_or_else(|| "null".to_owned(), |key| key.to_string()));
    format!("[{}]", keys.collect::<Vec<_>>().join(","))
}

/// Cuts `len` rows into the fewest chunks that are powers of two and at most [`SQLITE_ROWS_MAX`].
fn chunks(len: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let left = len - from;
        if left == 0 {
            return None;
        }
        let size = if left >= SQLITE_ROWS_MAX { SQLITE_ROWS_MAX } else { 1 << left.ilog2() };
        let chunk = (from, from + size);
        from += size;
        Some(chunk)
    })
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Database(told) => {
                let code = told.code().unwrap_or_default();
                let (passing, of_data) = match told.try_downcast_ref::<PgDatabaseError>() {
                    // The connection is gone with it: refused, or cut off.
                    Some(told) if told.severity() != PgSeverity::Error => (true, false),
                    Some(_) => (is_passing_postgres(&code), is_of_data_postgres(&code)),
                    None => (is_passing_sqlite(&code), is_of_data_sqlite(&code)),
                };
                match (passing, of_data) {
                    (true, _) => Self::Unavailable(error),
                    (false, true) => Self::Unstorable(error.to_string()),
                    (false, false) => Self::Database(error),
                }
            }
            E::Io(_)
            | E::Tls(_)
            | E::Protocol(_)
            | E::PoolTimedOut
            | E::PoolClosed
            | E::WorkerCrashed
            | E::BeginFailed => Self::Unavailable(error),
            E::ColumnDecode { .. } | E::Decode(_) => Self::Corrupt(error.to_string()),
            _ => Self::Database(error),
        }
    }
}

/// Classes 08 connection, 40 rolled back (deadlock), 53 resources, 57 operator, 58 system;
/// 25006 read-only; 55P03 a lock that could not be had.
fn is_passing_postgres(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "40" | "53" | "57" | "58")) || matches!(code, "25006" | "55P03")
}

/// Busy, locked, out of memory, read-only, input/output, full, cannot open.
fn is_passing_sqlite(code: &str) -> bool {
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5..=8 | 10 | 13 | 14))
}

/// Classes 22 data, 23 constraint, 54 limits of the program (a row that is too long for an index).
fn is_of_data_postgres(code: &str) -> bool {
    matches!(code.get(..2), Some("22" | "23" | "54"))
}

/// Too big, constraint, mismatch.
fn is_of_data_sqlite(code: &str) -> bool {
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20))
}

/// Whether another process has SQLite's lock.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|told| told.code()).and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5)
}

/// Whether the same work may go through when it is done again at once: others were in the way.
pub(super) fn is_collision(error: &StoreError) -> bool {
    match error {
        StoreError::Unavailable(sqlx::Error::Database(told)) => {
            matches!(told.code().as_deref(), Some("40001" | "40P01"))
        }
        // What a statement counted on was removed before it.
        StoreError::Unavailable(sqlx::Error::RowNotFound) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_few_powers_of_two_and_cover_every_row() {
        for len in [0, 1, 2, 3, 255, 256, 257, 512, 1000] {
            let cut: Vec<_> = chunks(len).collect();
            let mut next = 0;
            for (from, to) in cut {
                assert_eq!(from, next);
                assert!((to - from).is_power_of_two() && to - from <= SQLITE_ROWS_MAX);
                next = to;
            }
            assert_eq!(next, len);
        }
    }

    #[test]
    fn a_statement_differs_only_in_where_its_rows_come_from() {
        let rows = Rows::new().int("pk", [Some(1), Some(2)]).text("state", [Some("a"), None]);
        assert_eq!(
            rows.unnest("SELECT * FROM v"),
            "WITH v(pk,state) AS (SELECT * FROM UNNEST($1::bigint[],$2::text[])) SELECT * FROM v"
        );
        assert_eq!(rows.values(2, "SELECT * FROM v"), "WITH v(pk,state) AS (VALUES (?,?),(?,?)) SELECT * FROM v");
    }

    #[test]
    fn what_is_looked_up_is_spelled_for_each_database() {
        let sql = "DELETE FROM a USING v WHERE a.pk =[v.pk] AND a.b IN {SELECT 1}";
        assert_eq!(spelled(sql, true), "DELETE FROM a USING v WHERE a.pk = (v.pk) AND a.b IN (SELECT 1)");
        assert_eq!(
            spelled(sql, false),
            "DELETE FROM a USING v WHERE a.pk = ANY (ARRAY[v.pk]) AND a.b = ANY (ARRAY(SELECT 1))"
        );
    }

    #[test]
    fn passing_errors_are_told_from_lasting_ones() {
        assert!(is_passing_postgres("57P01") && is_passing_postgres("53300") && is_passing_postgres("25006"));
        assert!(!is_passing_postgres("23505") && !is_passing_postgres("42P01"));
        assert!(
            is_passing_sqlite("5") && is_passing_sqlite("261") && is_passing_sqlite("13") && is_passing_sqlite("778")
        );
        assert!(!is_passing_sqlite("2067") && !is_passing_sqlite("1"));
    }
}
