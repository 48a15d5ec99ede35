//! The store: jobs, attempts, events, deliveries and dead letters, in SQLite or PostgreSQL.
//!
//! SQL is written once for both; `dialect.rs` holds every difference. Times are milliseconds of
//! the caller's clock, so that tests own time; only heartbeats and leases use the database's clock.
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
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};

use crate::clock::WallMs;
use crate::secrets::Secret;
use crate::vault::MasterKeys;
pub use audit::{Act, ActKind, ActView};
pub use completions::{COMPLETIONS_MAX, CompletionFilter, Horizon};
pub use dead::PurgeAct;
pub use delivery_views::{DeliveryAttempt, DeliveryFilter, DeliveryState, DeliveryView, Occurrence, Resent};
use dialect::Db;
pub use endpoints::{
    EndpointSecrets, EndpointView, NewEndpoint, OlderSecret, Registered, SecretVersion, Subscribe, Tested,
};
pub use replays::{ReplayLetter, ReplayOptions, ReplayOrder, ReplayState, ReplayView};
pub use resends::{ResendBegun, ResendOrder, ResendState, ResendView};
pub use types::*;
pub use vault::{KeyAct, KeyRefused, NewKey, STORED_KEYS_MAX, Sealed, StoredKey};
use wakes::Wakes;
use writer::{Request, Writer};

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
    /// Writes what becomes of them. On SQLite, where there is one writer, it is the same.
    outcomes: Writer,
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
        let outcomes = if db.is_sqlite() { arrivals.clone() } else { Writer::start(db.clone(), wakes.clone()) };
        let mut background = vec![tokio::spawn(wakes.clone().let_go(db.clone(), lost)).abort_handle()];
        background.extend(listen.map(|options| tokio::spawn(wakes.clone().listen(options)).abort_handle()));
        let owners = Mutex::default();
        Ok(Self { inner: Arc::new(Inner { db, wakes, arrivals, outcomes, background, lock, owners }) })
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

    /// From now on every completion that this process records is published to the broker, too, by
    /// whoever claims it there ([`Store::claim_publications`]).
    pub fn publish_completions(&self) {
        self.inner.wakes.publish();
    }

    /// Changes whenever a job may have ended, here or (on PostgreSQL, for some time after [`Store::await_completions`])
    /// in another process. As with wakes, some may be missed.
    pub fn completions(&self) -> watch::Receiver<u64> {
        self.inner.wakes.completions()
    }

    /// Asks the other processes to tell of completions for the next 15 seconds.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn await_completions(&self) -> Result<(), StoreError> {
        self.db().in_time(self.inner.wakes.ask_for_completions(self.db())).await
    }

    /// The position up to which no completion can come in between any more, by what was seen at the last call.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn settled_completions(&self, horizon: &mut Horizon) -> Result<i64, StoreError> {
        self.db().in_time(completions::settled(self.db(), horizon)).await
    }

    /// Completions after the one position up to the other, in their order, at most [`COMPLETIONS_MAX`], each with its
    /// position. Of a body that is larger than `body_bytes_max` only enough is read to tell.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn completions_between(
        &self,
        range: (i64, i64),
        filter: &CompletionFilter,
        body_bytes_max: usize,
    ) -> Result<Vec<(i64, Event)>, StoreError> {
        self.db().in_time(completions::between(self.db(), range, filter, body_bytes_max)).await
    }

    fn db(&self) -> &Db {
        &self.inner.db
    }

    // Group commit: each goes through the batching writer and returns after the commit that covers it.

    /// Lets jobs in; the answers are in their order.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was committed is not known. Doing it again is safe:
    /// what is there already is answered with [`Inserted::Exists`].
    pub async fn insert(&self, jobs: Vec<NewJob>, now_ms: WallMs) -> Result<Vec<Inserted>, StoreError> {
        let owners: BTreeSet<&OwnerId> = jobs.iter().filter_map(|job| job.owner.as_ref()).collect();
        for owner in owners {
            self.introduce(owner).await?;
        }
        let arrivals =
            jobs.into_iter().map(|job| jobs::Arrival::prepare(job, now_ms)).collect::<Result<Vec<_>, _>>()?;
        self.inner.arrivals.ask(|reply| Request::Insert(arrivals, now_ms, reply)).await
    }

    /// Writes what becomes of a claimed job.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was committed is not known. Doing it again is safe,
    /// and answered with [`Recorded::Superseded`] where the first one ended the job.
    pub async fn record(&self, record: Record) -> Result<Recorded, StoreError> {
        self.inner.outcomes.ask(|reply| Request::Record(Box::new(record), reply)).await
    }

    /// Writes what becomes of a claimed delivery; a late record changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn record_delivery(&self, record: DeliveryRecord) -> Result<(), StoreError> {
        self.inner.outcomes.ask(|reply| Request::RecordDelivery(Box::new(record), reply)).await
    }

    /// Keeps a message that never became a job; the id of its dead letter.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again may keep it twice.
    pub async fn bury(&self, message: Buried, now_ms: WallMs) -> Result<String, StoreError> {
        self.inner.arrivals.ask(|reply| Request::Bury(Box::new(message), now_ms, reply)).await
    }

    // Claims.

    /// Claims jobs that are due, oldest first, at most `limit` and about 16 MiB of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. A claim whose answer is lost is found again by
    /// [`Store::rescue`] when its owner falls silent.
    pub async fn claim_due(
        &self,
        owner: &OwnerId,
        provider: &str,
        lane: &str,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.claim_due_but(owner, provider, lane, &Arc::default(), limit, now_ms).await
    }

    /// The same without what is pinned to one of `away`: keys and budgets that others pace.
    ///
    /// # Errors
    /// As [`Store::claim_due`].
    pub async fn claim_due_but(
        &self,
        owner: &OwnerId,
        provider: &str,
        lane: &str,
        away: &Arc<[String]>,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.introduce(owner).await?;
        self.inner.wakes.interested_in(provider);
        let (owner, provider, lane) = (owner.clone(), provider.to_owned(), lane.to_owned());
        let claim = jobs::Claim { owner, provider, lane, away: Arc::clone(away), limit, now_ms };
        if self.db().is_sqlite() {
            return self.inner.outcomes.ask(|reply| Request::Claim(claim, reply)).await;
        }
        act!(self, |tx, wakes| jobs::claim(tx, &claim, wakes).await)
    }

    /// When the next unclaimed job of that lane is due, if any: for the polling fallback to sleep until then.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_due(&self, provider: &str, lane: &str) -> Result<Option<WallMs>, StoreError> {
        self.next_due_but(provider, lane, &[]).await
    }

    /// The same without what is pinned to one of `away`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_due_but(
        &self,
        provider: &str,
        lane: &str,
        away: &[String],
    ) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(due::next_due(self.db(), provider, lane, away)).await
    }

    /// The providers and lanes that unclaimed jobs wait for, in their order: some may not be configured any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn awaited(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.db().in_time(due::awaited(self.db())).await
    }

    /// Moves up to `limit` unclaimed jobs from one lane of a provider to another. How many were moved.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn move_lane(&self, provider: &str, from: &str, to: &str, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, wakes| due::move_lane(tx, provider, (from, to), limit, wakes).await)
    }

    /// Claims deliveries that are due, oldest first, until `now_ms` + `lease`: then they are due again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn claim_deliveries(
        &self,
        owner: &OwnerId,
        limit: u32,
        now_ms: WallMs,
        lease: Duration,
    ) -> Result<Vec<DeliveryJob>, StoreError> {
        self.introduce(owner).await?;
        let claim = deliveries::Claim { owner: owner.clone(), limit, now_ms, lease };
        if self.db().is_sqlite() {
            return self.inner.outcomes.ask(|reply| Request::ClaimDeliveries(claim, reply)).await;
        }
        act!(self, |tx, _wakes| deliveries::claim(tx, &claim).await)
    }

    /// The same for what is published to the broker.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn claim_publications(
        &self,
        owner: &OwnerId,
        limit: u32,
        now_ms: WallMs,
        lease: Duration,
    ) -> Result<Vec<Publication>, StoreError> {
        self.introduce(owner).await?;
        let claim = deliveries::Claim { owner: owner.clone(), limit, now_ms, lease };
        act!(self, |tx, _wakes| deliveries::claim_publications(tx, &claim).await)
    }

    /// When the next webhook is due, or the claim of one lapses.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_delivery_due(&self) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(deliveries::next_due(self.db(), "webhook")).await
    }

    /// The same for what is published to the broker.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_publication_due(&self) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(deliveries::next_due(self.db(), "amqp")).await
    }

    // Reading. Without a tenant, an id that several have stands for the first one's.

    /// A job with its attempts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn job(&self, tenant: Option<&str>, id: &str) -> Result<Option<JobView>, StoreError> {
        self.db().in_time(jobs::job(self.db(), tenant, id)).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn jobs(&self, filter: &JobFilter, cursor: Option<i64>, limit: u32) -> Result<Page<JobView>, StoreError> {
        self.db().in_time(jobs::list(self.db(), filter, cursor, limit)).await
    }

    /// The provider's answer in the job's present run, once that has ended with one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn result(&self, tenant: Option<&str>, id: &str) -> Result<Option<StoredResponse>, StoreError> {
        self.db().in_time(events::result(self.db(), tenant, id)).await
    }

    /// A dead letter with its attempts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn dead_letter(&self, tenant: Option<&str>, id: &str) -> Result<Option<DeadView>, StoreError> {
        self.db().in_time(dead::letter(self.db(), tenant, id)).await
    }

    /// Dead letters, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn dead_letters(
        &self,
        filter: &DeadFilter,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<DeadView>, StoreError> {
        self.db().in_time(dead::list(self.db(), filter, cursor, limit)).await
    }

    /// Counts the jobs that have not ended: provider, lane, state, jobs. Walks over all of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn queue_depth(&self) -> Result<Vec<(String, String, String, i64)>, StoreError> {
        self.db().in_time(jobs::depth(self.db())).await
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

    // Acts of people.

    /// Withdraws a job; asks its dispatcher ([`Wake::Cancel`]) where one holds it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn cancel(&self, tenant: Option<&str>, id: &str, now_ms: WallMs) -> Result<Cancelled, StoreError> {
        act!(self, |tx, wakes| jobs::cancel(tx, tenant, id, now_ms, wakes).await)
    }

    /// The jobs of a provider in the owner's hands that somebody asked to cancel: for whoever was not woken.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn cancel_requests(&self, owner: &OwnerId, provider: &str) -> Result<Vec<JobPk>, StoreError> {
        self.db().in_time(jobs::cancel_requests(self.db(), owner, provider)).await
    }

    /// Runs a dead job again, as its next run. A deadline that would have passed when that run is
    /// due is dropped: with it the replay would expire at once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay(
        &self,
        tenant: Option<&str>,
        id: &str,
        how: &Replay,
        now_ms: WallMs,
    ) -> Result<Replayed, StoreError> {
        act!(self, |tx, wakes| dead::replay(tx, tenant, id, how, now_ms, wakes).await)
    }

    /// Removes dead letters, at most `limit`; their jobs stay until retention takes them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn purge_dead(&self, filter: &DeadFilter, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, _wakes| dead::purge(tx, filter, limit).await)
    }

    /// The same, written down as an act; its row, for the next batch of the same purge.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn purge_dead_by(
        &self,
        filter: &DeadFilter,
        limit: u32,
        by: &PurgeAct<'_>,
    ) -> Result<(u64, i64), StoreError> {
        act!(self, |tx, _wakes| dead::purge_audited(tx, filter, limit, by).await)
    }

    /// Counts the jobs that a replay by filter would run again, and begins it where `dry_run` is not set: how many,
    /// and its id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn begin_replay(
        &self,
        tenant: Option<&str>,
        order: &ReplayOrder,
        dry_run: bool,
        by: &str,
        now_ms: WallMs,
    ) -> Result<(i64, Option<String>), StoreError> {
        let found = self.db().in_time(replays::count(self.db(), &order.filter)).await?;
        if dry_run {
            return Ok((found.0, None));
        }
        let id = act!(self, |tx, _wakes| replays::begin(tx, tenant, order, found, (by, now_ms)).await)?;
        Ok((found.0, Some(id)))
    }

    /// A replay by filter.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay_view(&self, tenant: Option<&str>, id: &str) -> Result<Option<ReplayView>, StoreError> {
        self.db().in_time(replays::show(self.db(), tenant, id)).await
    }

    /// Replays by filter, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replays(
        &self,
        tenant: Option<&str>,
        cursor: Option<i64>,
        limit: u32,
    ) -> Result<Page<ReplayView>, StoreError> {
        self.db().in_time(replays::list(self.db(), tenant, cursor, limit)).await
    }

    /// Ends a replay that runs; what it has queued again stays queued. `false`: it does not run.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn stop_replay(
        &self,
        tenant: Option<&str>,
        id: &str,
        by: &str,
        now_ms: WallMs,
    ) -> Result<bool, StoreError> {
        act!(self, |tx, _wakes| replays::stop(tx, tenant, id, (by, now_ms)).await)
    }

    /// All replays that run, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn running_replays(&self) -> Result<Vec<ReplayView>, StoreError> {
        self.db().in_time(replays::running(self.db())).await
    }

    /// The next dead letters of a replay, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn replay_letters(&self, replay: &ReplayView, limit: u32) -> Result<Vec<ReplayLetter>, StoreError> {
        self.db().in_time(replays::next(self.db(), replay, limit)).await
    }

    /// Jobs of a provider that wait in the lane of replays, counted up to `most`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn waiting_replays(&self, provider: &str, most: u32) -> Result<i64, StoreError> {
        self.db().in_time(replays::waiting(self.db(), provider, most)).await
    }

    /// Queues `letters` again, counts `skipped` more, and moves the replay on to the row `position`, all or nothing.
    /// `false`: somebody else was first, or it was stopped.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn advance_replay(
        &self,
        replay: &ReplayView,
        letters: &[&ReplayLetter],
        skipped: i64,
        position: i64,
        now_ms: WallMs,
    ) -> Result<bool, StoreError> {
        act!(self, |tx, wakes| replays::step(tx, replay, (letters, skipped, position), now_ms, wakes).await)
    }

    // Leases: who may spend the budget of a pacing group. By the database's clock alone. They go
    // past the batching writers, and each is answered within a few seconds.

    /// Takes leases of pacing groups that are nobody's, have run out, or are the owner's already. On an
    /// exclusive store nobody but this process can live: leases of others are taken at once.
    ///
    /// `groups` are all that the owner knows of the provider. While somebody holds another one of it,
    /// nothing is taken: its configuration is another one, and both may have the same budgets.
    ///
    /// The owner may spend nothing before its first renewal has said how much: if it dies before,
    /// its successor knows only what was written by then.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: what was taken is not known. Asking again is safe.
    pub async fn leases_take(
        &self,
        provider: &str,
        names: &[&str],
        groups: &[String],
        owner: &OwnerId,
        ttl: Duration,
    ) -> Result<LeasesTaken, StoreError> {
        self.inner.wakes.interested_in(provider);
        let (asker, asked) = (leases::Asker { provider, owner }, leases::Asked { names, groups });
        let work = async {
            if self.inner.lock.is_some() {
                Box::pin(self.introduce(owner)).await?;
            }
            leases::take(self.db(), asker, asked, ttl, |other| self.is_surely_dead(other)).await
        };
        self.db().in_lease_time(work).await
    }

    /// Prolongs leases, and writes what was spent and will be until the next time. The answers are in the order of the
    /// writes; `false`: somebody else has it, and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether any was prolonged is not known; the owner must count on
    /// the time that it had before. Doing it again is safe: what comes in late changes nothing.
    pub async fn leases_renew(
        &self,
        provider: &str,
        owner: &OwnerId,
        ttl: Duration,
        writes: &[LeaseWrite],
    ) -> Result<Vec<bool>, StoreError> {
        let asker = leases::Asker { provider, owner };
        self.db().in_lease_time(leases::renew(self.db(), asker, ttl, writes)).await
    }

    /// Lets go of leases, with all that was spent; whoever waits for them is woken ([`Wake::Lease`]). Nothing
    /// may be spent from the moment of asking on. The answers are in the order of the writes; `false`: it is not the
    /// owner's (any more), and nothing was changed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether any was let go of is not known. Doing it again is safe.
    pub async fn leases_release(
        &self,
        provider: &str,
        owner: &OwnerId,
        writes: &[LeaseWrite],
    ) -> Result<Vec<bool>, StoreError> {
        let asker = leases::Asker { provider, owner };
        self.db().in_lease_time(leases::release(self.db(), &self.inner.wakes, asker, writes)).await
    }

    /// Who holds what of a provider, and who dispatches it with a heartbeat no older than `fresh`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn lease_survey(&self, provider: &str, fresh: Duration) -> Result<LeaseSurvey, StoreError> {
        self.inner.wakes.interested_in(provider);
        let survey = leases::survey(self.db(), provider, fresh, |other| self.is_surely_dead(other));
        self.db().in_lease_time(survey).await
    }

    /// Says that the owner dispatches a provider, whose pacing groups `structure` stands for: it wants its share of them.
    /// The other dispatchers are woken ([`Wake::Lease`]). Good until it retires, or is rescued.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn announce_dispatcher(
        &self,
        provider: &str,
        owner: &OwnerId,
        structure: &str,
    ) -> Result<(), StoreError> {
        let asker = leases::Asker { provider, owner };
        let work = async {
            Box::pin(self.introduce(owner)).await?;
            leases::announce(self.db(), &self.inner.wakes, asker, structure).await
        };
        self.db().in_lease_time(work).await
    }

    /// Says that the owner takes no lease of a provider any more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn withdraw_dispatcher(&self, provider: &str, owner: &OwnerId) -> Result<(), StoreError> {
        let asker = leases::Asker { provider, owner };
        self.db().in_lease_time(leases::withdraw(self.db(), asker)).await
    }

    /// On an exclusive store nobody lives but the owners of this process.
    fn is_surely_dead(&self, owner: &str) -> bool {
        self.inner.lock.is_some() && !self.known_owners().contains(owner)
    }

    /// Every lease there ever was, by provider and name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn leases(&self) -> Result<Vec<LeaseView>, StoreError> {
        self.db().in_lease_time(leases::list(self.db())).await
    }

    // Orders of operators, and reports of dispatchers.

    /// Keeps what an operator wants of a provider, a key or a budget, and wakes its dispatchers
    /// ([`Wake::Orders`]): `held` takes it out of use until the next order; else it is in use,
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
        let given = orders::Given { provider, subject, held, by, now_ms };
        act!(self, |tx, wakes| orders::give_audited(tx, given, wakes).await)
    }

    /// The last order about every subject that there ever was one about: of that provider, or of all.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn orders(&self, provider: Option<&str>) -> Result<Vec<Order>, StoreError> {
        self.db().in_time(orders::list(self.db(), provider)).await
    }

    /// The providers that an operator paused.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn paused_providers(&self) -> Result<BTreeSet<String>, StoreError> {
        self.db().in_time(orders::paused(self.db())).await
    }

    /// Makes jobs due that wait since a key, a budget or the provider was out of use: those without
    /// a pin, and those pinned to one of `pins` (`None`: to anything). At most `limit` of one lane,
    /// the first ones that are due after `after_ms`; whoever wants more goes on behind the time that is
    /// returned.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn free_waiting(
        &self,
        place: (&str, &str),
        pins: Option<&[String]>,
        after_ms: WallMs,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Option<WallMs>, StoreError> {
        let which = due::Freed { place, pins, after_ms, limit, now_ms };
        act!(self, |tx, wakes| due::free(tx, which, wakes).await)
    }

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
        self.db().in_time(reports::write(self.db(), provider, owner, report)).await
    }

    /// What was told of that provider, or of all.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn reports(&self, provider: Option<&str>) -> Result<Vec<ReportView>, StoreError> {
        self.db().in_time(reports::list(self.db(), provider)).await
    }

    // Stored keys, and what operators did.

    /// The stored keys of that provider, or of all, removed ones too: by provider and label.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn stored_keys(&self, provider: Option<&str>) -> Result<Vec<StoredKey>, StoreError> {
        self.db().in_time(vault::list(self.db(), provider)).await
    }

    /// Adds a key, or gives one its secret that was removed, and wakes the dispatchers ([`Wake::Orders`]): it is in use
    /// then, whatever was ordered before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was added is not known; asking again tells.
    pub async fn add_key(&self, act: KeyAct<'_>, new: NewKey<'_>) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| vault::add(tx, act, new, wakes).await)
    }

    /// Gives a stored key another secret. Whether it is in use stays as it is, and what was spent counts on.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn rotate_key(
        &self,
        act: KeyAct<'_>,
        secret: &Secret,
    ) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| vault::rotate(tx, act, secret, wakes).await)
    }

    /// Erases the secret of a stored key. Its label stays, with what was spent.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn remove_key(&self, act: KeyAct<'_>) -> Result<Result<StoredKey, KeyRefused>, StoreError> {
        act!(self, |tx, wakes| vault::remove(tx, act, wakes).await)
    }

    /// Encrypts every stored secret anew with the current master key, all or none; how many there were.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn rekey(
        &self,
        masters: &MasterKeys,
        by: &str,
        now_ms: WallMs,
    ) -> Result<Result<u64, KeyRefused>, StoreError> {
        act!(self, |tx, _wakes| vault::rekey(tx, masters, by, now_ms).await)
    }

    /// What operators did, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn acts(&self, cursor: Option<i64>, limit: u32) -> Result<Page<ActView>, StoreError> {
        self.db().in_time(audit::list(self.db(), cursor, limit)).await
    }

    /// Writes down what an operator did that needs no transaction of its own here.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn write_act(&self, act: Act<'_>) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| audit::write(tx, act).await.map(drop))
    }

    /// Removes acts older than that, and the oldest where there are too many; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retain_acts(&self, before_ms: WallMs, limit: u32) -> Result<u64, StoreError> {
        act!(self, |tx, _wakes| audit::remove(tx, before_ms, limit).await)
    }

    // Queues in the broker.

    /// Remembers queues that were declared.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn remember_queues(&self, names: &[String]) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| queues::remember(tx, names).await)
    }

    /// Forgets a queue that was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn forget_queue(&self, name: &str) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| queues::forget(tx, name).await)
    }

    /// Every queue that was declared and not forgotten, by name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn queues(&self) -> Result<Vec<String>, StoreError> {
        self.db().in_time(queues::list(self.db())).await
    }

    // Upkeep.

    /// Says that the owner lives, by the database's clock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn heartbeat(&self, owner: &OwnerId, role: &str) -> Result<(), StoreError> {
        self.heartbeats(std::slice::from_ref(owner), role).await
    }

    /// Says it of many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn heartbeats(&self, owners: &[OwnerId], role: &str) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| owners::heartbeat(tx, owners, role).await)?;
        self.known_owners().extend(owners.iter().cloned());
        Ok(())
    }

    /// Lets go of all that the owner holds, at an orderly end: jobs are due again at once. An
    /// `at_most_once` job whose call was begun and not recorded is dead (`outcome_unknown`). Leases
    /// are for their owner to release. Whatever comes of it, the owner lives here no more: what is left is rescued.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retire(&self, owner: &OwnerId, now_ms: WallMs) -> Result<u64, StoreError> {
        let released = owners::retire(self.db(), &self.inner.wakes, owner, now_ms).await;
        self.known_owners().remove(owner);
        released
    }

    /// Up to which time a schedule has made its jobs; from now on where nobody has seen it, or its cron line, before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn schedule_cursor(&self, name: &str, spec: &str, now_ms: WallMs) -> Result<WallMs, StoreError> {
        act!(self, |tx, _wakes| schedules::cursor(tx, name, spec, now_ms).await)
    }

    /// A schedule has made its jobs up to that time. Never goes back.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn schedule_advance(&self, name: &str, spec: &str, last_ms: WallMs) -> Result<(), StoreError> {
        act!(self, |tx, _wakes| schedules::advance(tx, name, spec, last_ms).await)
    }

    /// Does the same for owners that died: whose heartbeat is older than `silent_for`, or that
    /// never had one. On an exclusive store nobody but this process can live: everything that
    /// others hold is let go of, whatever `silent_for` says. Several may rescue at once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn rescue(&self, silent_for: Duration, now_ms: WallMs) -> Result<u64, StoreError> {
        let only_here = self.inner.lock.is_some();
        let living = only_here.then_some(owners::Living { here: &self.inner.owners, only_here });
        owners::rescue(self.db(), &self.inner.wakes, living.as_ref(), silent_for, now_ms).await
    }

    /// The same, but the owners that live in this process do, whatever their heartbeats say: after an
    /// outage of the database these are old.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn rescue_others(&self, silent_for: Duration, now_ms: WallMs) -> Result<u64, StoreError> {
        let living = owners::Living { here: &self.inner.owners, only_here: self.inner.lock.is_some() };
        owners::rescue(self.db(), &self.inner.wakes, Some(&living), silent_for, now_ms).await
    }

    /// Ends unclaimed jobs whose deadline has passed, at most `limit`; how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn expire_due(&self, limit: u32, now_ms: WallMs) -> Result<u64, StoreError> {
        act!(self, |tx, wakes| retention::expire(tx, limit, now_ms, wakes).await)
    }

    /// Removes jobs that ended before the given times (expired and cancelled ones go with those
    /// that succeeded), with all that belongs to them, and dead letters; at most `limit` of each.
    /// A job stays while a delivery of it is pending.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn retain(
        &self,
        succeeded_before_ms: WallMs,
        dead_before_ms: WallMs,
        limit: u32,
    ) -> Result<Removed, StoreError> {
        act!(self, |tx, _wakes| retention::remove(tx, succeeded_before_ms, dead_before_ms, limit).await)
    }

    /// Whether no other process can have this store open: a SQLite file that this one has locked.
    pub fn is_exclusive(&self) -> bool {
        self.inner.lock.is_some()
    }

    fn known_owners(&self) -> std::sync::MutexGuard<'_, BTreeSet<OwnerId>> {
        self.inner.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody holds anything without a heartbeat: a rescuer would take it for dead.
    async fn introduce(&self, owner: &OwnerId) -> Result<(), StoreError> {
        if self.known_owners().contains(owner) {
            return Ok(());
        }
        self.heartbeat(owner, "").await
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
