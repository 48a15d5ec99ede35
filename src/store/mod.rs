//! The store: jobs, attempts, events, deliveries and dead letters, in SQLite or PostgreSQL.
//!
//! SQL is written once for both; `dialect.rs` holds every difference. Times are milliseconds of
//! the caller's clock, so that tests own time; only heartbeats and leases use the database's clock.
//!
//! One file per noun: its SQL, and the methods of [`Store`] that use it. Jobs, and what becomes of them, go through
//! the batching writer, which answers after the commit that covers them; every other act is a transaction of its own.
//! Where something is read without a tenant, an id that several tenants have stands for the first one's.
#![expect(missing_docs, reason = "the types carry the documentation")]

mod attempts;
mod audit;
mod completions;
mod connect;
mod dead;
mod deliveries;
mod delivery_views;
mod dialect;
mod due;
mod endpoints;
mod events;
mod fanout;
mod handover;
mod jobs;
mod leases;
mod orders;
mod outcomes;
mod owners;
mod queues;
mod replays;
mod reports;
mod resends;
mod retention;
mod schedules;
mod types;
mod vault;
mod wakes;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;

pub use audit::{Act, ActKind, ActView, By};
pub use completions::{COMPLETIONS_MAX, CompletionFilter, Horizon};
pub use dead::PurgeAct;
pub use delivery_views::{
    DeliveryAttempt, DeliveryFilter, DeliveryState, DeliveryView, Occurrence, Resent, delivery_id, delivery_row,
};
use dialect::Db;
pub use endpoints::{
    EndpointSecrets, EndpointView, NewEndpoint, OlderSecret, Registered, Rotated, SecretVersion, Subscribe, Tested,
};
pub use handover::{Handed, Handover};
pub use replays::{ReplayLetter, ReplayOptions, ReplayOrder, ReplayState, ReplayView};
pub use resends::{ResendBegun, ResendOrder, ResendState, ResendView};
pub use types::*;
pub use vault::{GivenSecret, KeyAct, KeyRefused, NeededMasters, NewKey, OpenOld, STORED_KEYS_MAX, StoredKey};
use wakes::Wakes;
use writer::Writer;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, is read-only, full or busy: the same call may go through later.
    #[error("the store is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
    /// It refuses this data for good, and would take other data: a value that it cannot keep.
    #[error("the store cannot keep this: {0}")]
    Unstorable(String),
    /// Anything else the database said.
    #[error("the store refused a statement: {0}")]
    Database(#[source] sqlx::Error),
    /// The SQLite file is in use by another `paceline serve`.
    #[error("{path} is in use by another paceline process: stop it, or give this one its own store.url")]
    Locked { path: String },
    /// The URL is neither SQLite nor PostgreSQL.
    #[error("store.url: {0}")]
    Url(String),
    /// A migration failed or is missing.
    #[error("the store's schema: {0}")]
    Migration(#[source] sqlx::migrate::MigrateError),
    /// A row that this version cannot read.
    #[error("the store holds a row that cannot be read: {0}")]
    Corrupt(String),
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `sqlite://path` or `postgres://…`
    pub url: String,
    /// Hold the file's lock (SQLite): there is one `serve` at a time.
    pub exclusive: bool,
    /// Connections at most.
    pub connections_max: u32,
}

/// How many rows a pass of retention removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    pub jobs: u64,
    pub dead_letters: u64,
}

/// Counts for metrics and readiness.
#[derive(Debug, Clone, Default)]
pub struct Depth {
    /// (provider, lane, state, jobs) of jobs that are not terminal.
    pub jobs: Vec<(String, String, String, i64)>,
    pub deliveries_pending: i64,
    pub dead_letters: i64,
}

/// One transaction, done again where others were in the way, and given up when the database stays
/// silent. (A function over async closures would not be `Send`.)
macro_rules! act {
    ($store:expr, |$tx:ident, $wakes:ident| $work:expr) => {{
        let $crate::store::Inner { db, wakes, .. } = &*$store.inner;
        let mut collisions = 0;
        loop {
            let once = async {
                let mut transaction = db.begin().await?;
                let mut pending = wakes.pending();
                let ($tx, $wakes) = (&mut transaction, &mut pending);
                let done = $work?;
                wakes.commit(transaction, pending).await?;
                Ok(done)
            };
            match db.in_time(once).await {
                Err(error)
                    if $crate::store::dialect::is_collision(&error) && collisions < $crate::store::COLLISIONS_MAX =>
                {
                    collisions += 1;
                }
                done => break done,
            }
        }
    }};
}
use act;

/// Attempts at a transaction that others were in the way of (a deadlock).
const COLLISIONS_MAX: u32 = 5;

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Db,
    wakes: Wakes,
    /// Lets jobs and messages in.
    arrivals: Writer,
    /// Writes what becomes of them, and of completions. On SQLite, where there is one writer, they are the same.
    outcomes: Writer,
    deliveries: Writer,
    /// What runs until the store is closed: the listener, and the one that lets go of lost claims.
    background: Vec<tokio::task::AbortHandle>,
    /// Held until the store is dropped.
    lock: Option<File>,
    /// The owners that live in this process.
    owners: Mutex<BTreeSet<OwnerId>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.background.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

impl Store {
    /// Opens the store; its schema is brought up to date by [`Store::migrate`].
    ///
    /// # Errors
    /// [`StoreError::Locked`] where another process holds the file, [`StoreError::Unavailable`]
    /// where the database cannot be reached, [`StoreError::Url`].
    pub async fn open(options: &StoreOptions) -> Result<Self, StoreError> {
        let connect::Opened { db, listen, lock } = connect::open(options).await?;
        let (wakes, lost) = Wakes::new();
        let arrivals = Writer::start(db.clone(), wakes.clone());
        let another = || if db.is_sqlite() { arrivals.clone() } else { Writer::start(db.clone(), wakes.clone()) };
        let (outcomes, deliveries) = (another(), another());
        let mut background = vec![tokio::spawn(wakes.clone().let_go(db.clone(), lost)).abort_handle()];
        background.extend(listen.map(|options| tokio::spawn(wakes.clone().listen(options)).abort_handle()));
        let owners = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { db, wakes, arrivals, outcomes, deliveries, background, lock, owners }) })
    }

    /// Runs the migrations that are missing; how many there were.
    ///
    /// # Errors
    /// [`StoreError::Migration`].
    pub async fn migrate(&self) -> Result<u32, StoreError> {
        connect::migrate(self.db()).await
    }

    /// Whether the database answers, and can be written to.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| tx.check_writable().await)
    }

    /// Writes what is waiting, then closes every connection. All calls fail afterwards.
    pub async fn close(&self) {
        self.inner.arrivals.close().await;
        self.inner.outcomes.close().await;
        self.inner.deliveries.close().await;
        self.inner.background.iter().for_each(tokio::task::AbortHandle::abort);
        match self.db() {
            Db::Postgres(pool) => pool.close().await,
            Db::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
        }
    }

    /// What waiting parts should look at, from now on. A receiver that lags misses some: all that
    /// waits must also look by itself from time to time.
    pub fn wakes(&self) -> broadcast::Receiver<Wake> {
        self.inner.wakes.subscribe()
    }

    fn db(&self) -> &Db {
        &self.inner.db
    }

    /// Counts what is not done. Walks over all of it: not for every second.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn depth(&self) -> Result<Depth, StoreError> {
        Ok(Depth {
            jobs: self.queue_depth().await?,
            deliveries_pending: self.db().in_time(deliveries::depth(self.db())).await?,
            dead_letters: self.db().in_time(dead::depth(self.db())).await?,
        })
    }

    /// Whether no other process can have this store open: a SQLite file that this one has locked.
    pub fn is_exclusive(&self) -> bool {
        self.inner.lock.is_some()
    }
}

/// A count or a number of ours, as it came back from a BIGINT.
fn number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(if value < 0 { 0 } else { u32::MAX })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(bytes: usize) -> Buried {
        let (error, tenant, headers) = ("odd".to_owned(), String::new(), "{}".to_owned());
        Buried {
            reason: DeadReason::Malformed,
            error,
            tenant,
            provider: None,
            lane: None,
            raw: Bytes::from(vec![1; bytes]),
            headers,
            identity: None,
        }
    }

    /// SQLite's own limit of pages stands in for the disk's: both are SQLITE_FULL.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_disk_refuses_what_does_not_fit_and_loses_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 2 }).await.expect("opened");
        store.migrate().await.expect("migrated");
        let Db::Sqlite { write, .. } = store.db() else { panic!("it is SQLite") };
        sqlx::query("PRAGMA max_page_count = 200").execute(write).await.expect("limited");
        let mut kept = 0;
        let refused = loop {
            match store.bury(message(50_000), 1).await {
                Ok(_) => kept += 1,
                Err(error) => break error,
            }
            assert!(kept < 100, "the limit holds");
        };
        assert!(matches!(refused, StoreError::Unavailable(_)), "{refused:?}");
        let (small, large) = tokio::join!(store.bury(message(10), 1), store.bury(message(50_000), 1));
        kept += i64::from(small.is_ok()) + i64::from(large.is_ok());
        sqlx::query("PRAGMA max_page_count = 100000").execute(write).await.expect("there is room again");
        store.bury(message(50_000), 1).await.expect("it goes on by itself");
        assert_eq!(store.depth().await.expect("counted").dead_letters, kept + 1);
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_process_that_writes_for_too_long_is_no_lasting_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let options = StoreOptions { url, exclusive: false, connections_max: 2 };
        let (store, other) =
            (Store::open(&options).await.expect("opened"), Store::open(&options).await.expect("opened"));
        store.migrate().await.expect("migrated");
        let tx = other.db().begin().await.expect("it writes");
        assert!(matches!(store.bury(message(1), 1).await, Err(StoreError::Unavailable(_))));
        drop(tx);
        other.close().await;
        store.bury(message(1), 1).await.expect("it is free again");
        store.close().await;
    }
}
