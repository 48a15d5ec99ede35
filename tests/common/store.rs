//! A store of its own for every test, on either database, removed afterwards.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::str::FromStr as _;

use futures_util::FutureExt as _;
use paceline::store::{Store, StoreOptions};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Each test of this module on both databases, for programs that have this file as `common`.
#[allow(unused_macros, reason = "others have the store among more")]
macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::common::on_sqlite(false, super::$name).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::common::on_postgres(super::$name).await;
            })*
        }
    };
}
#[allow(unused_imports, reason = "others have the store among more")]
pub(crate) use contract;

/// An open, migrated store, and a way to look behind it.
#[derive(Clone)]
pub struct Fixture {
    pub store: Store,
    pub options: StoreOptions,
    raw: Raw,
}

#[derive(Clone)]
enum Raw {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

impl Fixture {
    /// Runs a statement behind the store's back.
    pub async fn execute(&self, sql: &str) -> u64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Postgres(pool) => sqlx::query(sql).execute(pool).await.expect("statement").rows_affected(),
            Raw::Sqlite(pool) => sqlx::query(sql).execute(pool).await.expect("statement").rows_affected(),
        }
    }

    /// The number that a query gives.
    pub async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        let row: (i64,) = match &self.raw {
            Raw::Postgres(pool) => sqlx::query_as(sql).fetch_one(pool).await.expect("query"),
            Raw::Sqlite(pool) => sqlx::query_as(sql).fetch_one(pool).await.expect("query"),
        };
        row.0
    }

    /// The texts that a query gives.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        let rows: Vec<(String,)> = match &self.raw {
            Raw::Postgres(pool) => sqlx::query_as(sql).fetch_all(pool).await.expect("query"),
            Raw::Sqlite(pool) => sqlx::query_as(sql).fetch_all(pool).await.expect("query"),
        };
        rows.into_iter().map(|row| row.0).collect()
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self.raw, Raw::Sqlite(_))
    }

    /// A second process's view of the same database.
    pub async fn another(&self) -> Store {
        let options = StoreOptions { exclusive: false, ..self.options.clone() };
        Store::open(&options).await.expect("a second store opens")
    }
}

/// Runs a test on a SQLite file of its own.
pub async fn on_sqlite<F: Future<Output = ()>>(exclusive: bool, test: impl FnOnce(Fixture) -> F) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("paceline.db");
    let options = StoreOptions { url: format!("sqlite://{}", path.display()), exclusive, connections_max: 8 };
    let store = Store::open(&options).await.expect("the store opens");
    store.migrate().await.expect("the schema");
    let connect = SqliteConnectOptions::new().filename(&path).foreign_keys(false);
    let raw = SqlitePool::connect_with(connect).await.expect("a second connection");
    let done = AssertUnwindSafe(test(Fixture { store: store.clone(), options, raw: Raw::Sqlite(raw.clone()) }));
    let done = done.catch_unwind().await;
    store.close().await;
    raw.close().await;
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// Where PostgreSQL is. A service that cannot be had is a failure, never a skipped test.
pub fn database_url() -> String {
    std::env::var("DATABASE_URL")
        .ok()
        .filter(|url| url.starts_with("postgres"))
        .expect("DATABASE_URL does not name a PostgreSQL: run `make test`, which starts one")
}

/// Makes an empty database; its name and its URL.
pub async fn create_database() -> (String, String) {
    let base = database_url();
    let name = format!("paceline_test_{}", uuid::Uuid::now_v7().simple());
    administer(format!("CREATE DATABASE {name}")).await;
    let mut url = url::Url::parse(&base).expect("DATABASE_URL");
    url.set_path(&name);
    (name, url.to_string())
}

/// Runs a statement from outside of the databases of the tests.
pub async fn administer(sql: String) {
    let mut admin = PgConnection::connect(&database_url()).await.expect("PostgreSQL of DATABASE_URL");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut admin).await.expect("statement");
    admin.close().await.expect("closed");
}

/// Removes a database, whoever is connected to it.
pub async fn drop_database(name: &str) {
    administer(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
}

/// Runs a test on a PostgreSQL database of its own.
pub async fn on_postgres<F: Future<Output = ()>>(test: impl FnOnce(Fixture) -> F) {
    let (name, url) = create_database().await;
    let options = StoreOptions { url: url.clone(), exclusive: false, connections_max: 8 };
    let done = AssertUnwindSafe(async {
        let store = Store::open(&options).await.expect("the store opens");
        store.migrate().await.expect("the schema");
        let connect = PgConnectOptions::from_str(&url).expect("a URL");
        // One session, so that what it tells of itself is all of it.
        let raw = PgPoolOptions::new().max_connections(1).connect_with(connect).await.expect("a second connection");
        test(Fixture { store: store.clone(), options: options.clone(), raw: Raw::Postgres(raw.clone()) }).await;
        raw.close().await;
        store.close().await;
    });
    let done = done.catch_unwind().await;
    drop_database(&name).await;
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}
