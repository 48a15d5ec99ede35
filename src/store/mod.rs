//! The store: jobs, attempts, events, deliveries and dead letters, in SQLite or PostgreSQL.
//!
//! SQL is written once for both; `dialect.rs` holds every difference. Times are milliseconds of
//! the caller's clock, so that tests own time; only leases will use the database's clock.
#![expect(unused_variables, clippy::unused_async, missing_docs)]

mod types;

use std::time::Duration;

use tokio::sync::broadcast;

use crate::clock::WallMs;
pub use types::*;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, is read-only, full or busy: the same call may go through later.
    #[error("the store is not available: {0}")]
    Unavailable(#[source] sqlx::Error),
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

/// The open store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

impl Store {
    pub async fn open(options: &StoreOptions) -> Result<Self, StoreError> { todo!() }
    pub async fn migrate(&self) -> Result<u32, StoreError> { todo!() }
    pub async fn ping(&self) -> Result<(), StoreError> { todo!() }
    pub async fn close(&self) { todo!() }
    pub fn wakes(&self) -> broadcast::Receiver<Wake> { todo!() }

    // Group commit: each goes through the batching writer and returns after the commit that covers it.
    pub async fn insert(&self, jobs: Vec<NewJob>, now_ms: WallMs) -> Result<Vec<Inserted>, StoreError> { todo!() }
    pub async fn record(&self, record: Record) -> Result<Recorded, StoreError> { todo!() }
    pub async fn record_delivery(&self, record: DeliveryRecord) -> Result<(), StoreError> { todo!() }
    pub async fn bury(&self, message: Buried, now_ms: WallMs) -> Result<String, StoreError> { todo!() }

    // Claims.
    pub async fn claim_due(&self, owner: &OwnerId, provider: &str, lane: &str, limit: u32, now_ms: WallMs) -> Result<Vec<Claimed>, StoreError> { todo!() }
    /// When the next unclaimed job of that provider (any lane) is due, if any: for the polling fallback to sleep until then.
    pub async fn next_due(&self, provider: &str) -> Result<Option<WallMs>, StoreError> { todo!() }
    pub async fn claim_deliveries(&self, owner: &OwnerId, limit: u32, now_ms: WallMs, lease: Duration) -> Result<Vec<DeliveryJob>, StoreError> { todo!() }
    pub async fn next_delivery_due(&self) -> Result<Option<WallMs>, StoreError> { todo!() }

    // Reading.
    pub async fn job(&self, tenant: Option<&str>, id: &str) -> Result<Option<JobView>, StoreError> { todo!() }
    pub async fn jobs(&self, filter: &JobFilter, cursor: Option<i64>, limit: u32) -> Result<Page<JobView>, StoreError> { todo!() }
    pub async fn result(&self, tenant: Option<&str>, id: &str) -> Result<Option<StoredResponse>, StoreError> { todo!() }
    pub async fn dead_letter(&self, tenant: Option<&str>, id: &str) -> Result<Option<DeadView>, StoreError> { todo!() }
    pub async fn dead_letters(&self, filter: &DeadFilter, cursor: Option<i64>, limit: u32) -> Result<Page<DeadView>, StoreError> { todo!() }
    pub async fn depth(&self) -> Result<Depth, StoreError> { todo!() }

    // Acts of people.
    pub async fn cancel(&self, tenant: Option<&str>, id: &str, now_ms: WallMs) -> Result<Cancelled, StoreError> { todo!() }
    pub async fn replay(&self, tenant: Option<&str>, id: &str, how: &Replay, now_ms: WallMs) -> Result<Replayed, StoreError> { todo!() }
    pub async fn purge_dead(&self, filter: &DeadFilter, limit: u32) -> Result<u64, StoreError> { todo!() }

    // Upkeep.
    pub async fn heartbeat(&self, owner: &OwnerId, role: &str) -> Result<(), StoreError> { todo!() }
    pub async fn retire(&self, owner: &OwnerId, now_ms: WallMs) -> Result<u64, StoreError> { todo!() }
    pub async fn rescue(&self, silent_for: Duration, now_ms: WallMs) -> Result<u64, StoreError> { todo!() }
    pub async fn expire_due(&self, limit: u32, now_ms: WallMs) -> Result<u64, StoreError> { todo!() }
    pub async fn retain(&self, succeeded_before_ms: WallMs, dead_before_ms: WallMs, limit: u32) -> Result<Removed, StoreError> { todo!() }
}
