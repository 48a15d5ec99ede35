//! Who has something to do now: a broadcast inside the process, and on PostgreSQL a notification
//! to the others. A wake may get lost (a slow receiver, a broken connection): polling is the fallback.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{broadcast, mpsc, watch};

use super::dialect::{Db, Fate, Rows, Tx, on_db};
use super::handover::{Ready, Takers};
use super::{DeliveryJob, JobPk, Next, Publication, Record, StoreError, Wake, deliveries, outcomes};
use crate::clock::WallMs;

/// Wakes that a receiver may lag behind before it misses some.
const BACKLOG: usize = 1024;
/// The channel of `NOTIFY`.
const CHANNEL: &str = "paceline";
/// How long somebody is told of completions who asked for it. Notifications cost every commit something, so nobody
/// is told who does not ask.
const ASKED_FOR: Duration = Duration::from_secs(15);
/// Between two attempts to listen, or to let go of lost claims.
const RETRY: Duration = Duration::from_millis(500);

/// The wakes of one transaction: sent when it is committed, each once.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Completions are to be published to the broker, too.
    pub publishes: bool,
    /// Provider, and whether other processes must know.
    jobs: BTreeMap<String, bool>,
    deliveries: bool,
    completions: bool,
    cancels: BTreeSet<JobPk>,
    /// Providers that orders are about.
    orders: BTreeSet<String>,
    claims: Claims,
    takers: Arc<Takers>,
    /// Claimed by it for those who take them.
    pub webhooks: Vec<Ready<DeliveryJob>>,
    pub publications: Vec<Ready<Publication>>,
}

/// What is claimed by a transaction, ready to be let go of.
#[derive(Debug, Default)]
struct Claims {
    jobs: Vec<Record>,
    deliveries: Vec<DeliveryClaim>,
}

/// A delivery that was due, and the claim of it.
#[derive(Debug)]
pub(super) struct DeliveryClaim {
    pub pk: i64,
    pub epoch: i64,
    pub due_ms: WallMs,
}

impl Claims {
    const fn number(&self) -> usize {
        self.jobs.len() + self.deliveries.len()
    }
}

impl Pending {
    /// Jobs of that provider are due, or will be. `everywhere`: not only in this process, which
    /// knows the job already.
    pub fn jobs(&mut self, provider: &str, everywhere: bool) {
        match self.jobs.get_mut(provider) {
            Some(known) => *known |= everywhere,
            None => {
                self.jobs.insert(provider.to_owned(), everywhere);
            }
        }
    }

    pub const fn deliveries(&mut self) {
        self.deliveries = true;
    }

    /// Jobs have ended.
    pub const fn completions(&mut self) {
        self.completions = true;
    }

    pub fn cancel(&mut self, pk: JobPk) {
        self.cancels.insert(pk);
    }

    pub fn takers(&self) -> &Takers {
        &self.takers
    }

    /// An operator gave an order about that provider.
    pub fn orders(&mut self, provider: &str) {
        self.orders.insert(provider.to_owned());
    }

    /// A job is claimed: if nobody hears of it, it must be let go of.
    pub fn claim(&mut self, pk: JobPk, epoch: i64, run: u32, failures: u32, now_ms: WallMs) {
        self.claims.jobs.push(Record { pk, epoch, run, attempt: None, failures, at_ms: now_ms, next: Next::Release });
    }

    /// The same with a delivery.
    pub fn claim_delivery(&mut self, pk: i64, epoch: i64, now_ms: WallMs) {
        self.claims.deliveries.push(DeliveryClaim { pk, epoch, due_ms: now_ms });
    }
}

/// Claims whose commit is under way. A connection that breaks now leaves open whether they are
/// made: their owner, who lives, would hold what it never heard of.
struct Doubt<'a> {
    claims: Option<LostClaims>,
    lost: &'a mpsc::UnboundedSender<LostClaims>,
}

impl Doubt<'_> {
    fn dispel(mut self) {
        self.claims = None;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if let Some(claims) = self.claims.take() {
            // With the task that lets go of them, the store is gone as well.
            self.lost.send(claims).ok();
        }
    }
}

/// Claims that nobody heard of, and PostgreSQL's number of the transaction that made them, if it was committed. The
/// server may still be committing it when its connection is long gone.
#[derive(Debug)]
pub(super) struct LostClaims {
    claims: Claims,
    transaction: String,
}

/// The process's end of it.
#[derive(Debug, Clone)]
pub(super) struct Wakes {
    sender: broadcast::Sender<Wake>,
    /// Marks what this process sent, so that it is not woken twice.
    instance: Arc<str>,
    /// Providers that were claimed for here, or leases of which were asked for: woken after a time without notifications.
    providers: Arc<Mutex<BTreeSet<String>>>,
    /// Claims that nobody heard of.
    lost: mpsc::UnboundedSender<LostClaims>,
    /// Completions are to be published to the broker, too.
    publishes: Arc<AtomicBool>,
    /// Counts commits with completions, of this process and of those that were asked to tell.
    completions: Arc<watch::Sender<u64>>,
    takers: Arc<Takers>,
    /// Until when another process wants to be told of them.
    asked_until: Arc<Mutex<Option<Instant>>>,
}

impl Wakes {
    /// And the claims that get lost, for [`Wakes::let_go`].
    pub fn new() -> (Self, mpsc::UnboundedReceiver<LostClaims>) {
        let (lost, claims) = mpsc::unbounded_channel();
        let wakes = Self {
            sender: broadcast::channel(BACKLOG).0,
            instance: uuid::Uuid::now_v7().simple().to_string().into(),
            providers: Arc::default(),
            lost,
            publishes: Arc::default(),
            completions: Arc::new(watch::channel(0).0),
            takers: Arc::default(),
            asked_until: Arc::default(),
        };
        (wakes, claims)
    }

    /// From now on every completion makes a delivery for the broker, too.
    pub fn publish(&self) {
        self.publishes.store(true, Ordering::Relaxed);
    }

    /// For a transaction that begins now.
    pub fn pending(&self) -> Pending {
        let publishes = self.publishes.load(Ordering::Relaxed);
        Pending { publishes, takers: Arc::clone(&self.takers), ..Pending::default() }
    }

    pub fn takers(&self) -> &Takers {
        &self.takers
    }

    /// Lets go of claims that nobody heard of, as soon as the database is back and knows what became of them; for ever.
    pub async fn let_go(self, db: Db, mut lost: mpsc::UnboundedReceiver<LostClaims>) {
        while let Some(claims) = lost.recv().await {
            let mut open = vec![claims];
            while !open.is_empty() {
                open.extend(std::iter::from_fn(|| lost.try_recv().ok()));
                if let Err(error) = self.settle(&db, &mut open).await {
                    let claims: usize = open.iter().map(|lost| lost.claims.number()).sum();
                    tracing::warn!(%error, claims, "claims may have been lost with a connection: trying to let go of them");
                }
                if !open.is_empty() {
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Lets go of what was committed, and forgets what was rolled back: by now somebody may have made the same claim anew.
    /// What has not come to an end stays.
    async fn settle(&self, db: &Db, open: &mut Vec<LostClaims>) -> Result<(), StoreError> {
        let mut left = 0;
        while let Some(lost) = open.get(left) {
            match db.fate(&lost.transaction).await? {
                Fate::Open => {
                    left += 1;
                    continue;
                }
                Fate::Committed => self.release(db, &lost.claims).await?,
                Fate::Gone => {}
            }
            open.swap_remove(left);
        }
        Ok(())
    }

    async fn release(&self, db: &Db, claims: &Claims) -> Result<(), StoreError> {
        let mut tx = db.begin().await?;
        let mut pending = self.pending();
        outcomes::record(&mut tx, &claims.jobs.iter().collect::<Vec<_>>(), &mut pending).await?;
        if deliveries::release(&mut tx, &claims.deliveries).await? {
            pending.deliveries();
        }
        self.commit(tx, pending).await
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Wake> {
        self.sender.subscribe()
    }

    pub fn completions(&self) -> watch::Receiver<u64> {
        self.completions.subscribe()
    }

    /// Asks the other processes to tell of completions for some time.
    pub async fn ask_for_completions(&self, db: &Db) -> Result<(), StoreError> {
        if db.is_sqlite() {
            return Ok(());
        }
        let message = format!("{} completions?", self.instance);
        let sql = "SELECT pg_notify('paceline', $1)";
        on_db!(write db, |c| sqlx::query(sql).bind(message).execute(c).await.map(drop))?;
        Ok(())
    }

    fn is_asked(&self) -> bool {
        let asked = self.asked_until.lock().unwrap_or_else(PoisonError::into_inner);
        asked.is_some_and(|until| Instant::now() < until)
    }

    fn completed(&self) {
        self.completions.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub fn interested_in(&self, provider: &str) {
        let mut known = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.contains(provider) {
            known.insert(provider.to_owned());
        }
    }

    /// Commits, and wakes whoever has something to do then.
    pub async fn commit(&self, mut tx: Tx, mut pending: Pending) -> Result<(), StoreError> {
        if matches!(tx, Tx::Postgres(_)) {
            self.notify(&mut tx, &pending).await?;
            let claims = match std::mem::take(&mut pending.claims) {
                none if none.number() == 0 => None,
                claims => Some(LostClaims { claims, transaction: tx.number().await? }),
            };
            let doubt = Doubt { claims, lost: &self.lost };
            tx.commit().await?;
            doubt.dispel();
        } else {
            // SQLite says for certain whether it committed.
            tx.commit().await?;
        }
        for provider in pending.jobs.into_keys() {
            self.send(Wake::Jobs(provider));
        }
        pending.webhooks.into_iter().for_each(Ready::pass);
        pending.publications.into_iter().for_each(Ready::pass);
        if pending.deliveries {
            self.send(Wake::Deliveries);
        }
        if pending.completions {
            self.completed();
        }
        for pk in pending.cancels {
            self.send(Wake::Cancel(pk));
        }
        for provider in pending.orders {
            self.send(Wake::Orders(provider));
        }
        Ok(())
    }

    /// Wakes this process.
    pub fn send(&self, wake: Wake) {
        // Nobody listens: nobody waits.
        drop(self.sender.send(wake));
    }

    /// What tells the other processes that a lease of that provider can be taken.
    pub fn lease_message(&self, provider: &str) -> String {
        format!("{} lease {provider}", self.instance)
    }

    async fn notify(&self, tx: &mut Tx, pending: &Pending) -> Result<(), StoreError> {
        let instance = &self.instance;
        let jobs = pending.jobs.iter().filter(|(_, everywhere)| **everywhere);
        let texts: Vec<String> = jobs
            .map(|(provider, _)| format!("{instance} jobs {provider}"))
            .chain(pending.deliveries.then(|| format!("{instance} deliveries")))
            .chain((pending.completions && self.is_asked()).then(|| format!("{instance} completions")))
            .chain(pending.cancels.iter().map(|pk| format!("{instance} cancel {pk}")))
            .chain(pending.orders.iter().map(|provider| format!("{instance} orders {provider}")))
            .collect();
        let rows = Rows::new().text("message", texts.iter().map(|t| Some(t.as_str())));
        rows.execute(tx, "SELECT pg_notify('paceline', message) FROM v").await?;
        Ok(())
    }

    /// Listens to the other processes for ever, on a connection of its own.
    pub async fn listen(self, options: PgConnectOptions) {
        let mut missed = false;
        loop {
            let told = self.listen_once(&options, missed).await;
            if let Err(error) = told {
                tracing::warn!(%error, "notifications of PostgreSQL are cut off: polling until they are back");
            }
            missed = true;
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn listen_once(&self, options: &PgConnectOptions, missed: bool) -> Result<(), sqlx::Error> {
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_secs(5));
        let pool = pool.connect_with(options.clone()).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(CHANNEL).await?;
        if missed {
            self.send(Wake::Deliveries);
            self.completed();
            let known = self.providers.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for provider in known {
                self.send(Wake::Lease(provider.clone()));
                self.send(Wake::Orders(provider.clone()));
                self.send(Wake::Jobs(provider));
            }
        }
        while let Some(told) = listener.try_recv().await? {
            if let Some(wake) = self.read(told.payload()) {
                self.send(wake);
            }
        }
        Ok(())
    }

    /// What another process said.
    fn read(&self, text: &str) -> Option<Wake> {
        let (instance, what) = text.split_once(' ')?;
        if *instance == *self.instance {
            return None;
        }
        match what.split_once(' ') {
            Some(("jobs", provider)) => Some(Wake::Jobs(provider.to_owned())),
            Some(("lease", provider)) => Some(Wake::Lease(provider.to_owned())),
            Some(("orders", provider)) => Some(Wake::Orders(provider.to_owned())),
            Some(("cancel", pk)) => pk.parse().ok().map(Wake::Cancel),
            None if what == "deliveries" => Some(Wake::Deliveries),
            None if what == "completions" => {
                self.completed();
                None
            }
            None if what == "completions?" => {
                *self.asked_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + ASKED_FOR);
                None
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_read_and_ones_own_is_not() {
        let (wakes, _lost) = Wakes::new();
        assert_eq!(wakes.read("other jobs geo-coder"), Some(Wake::Jobs("geo-coder".to_owned())));
        assert_eq!(wakes.read(&Wakes::new().0.lease_message("geo")), Some(Wake::Lease("geo".to_owned())));
        assert_eq!(wakes.read(&wakes.lease_message("geo")), None);
        assert_eq!(wakes.read("other orders geo"), Some(Wake::Orders("geo".to_owned())));
        assert_eq!(wakes.read("other deliveries"), Some(Wake::Deliveries));
        assert_eq!(wakes.read("other cancel 7"), Some(Wake::Cancel(7)));
        let mut completions = wakes.completions();
        assert!(!wakes.is_asked());
        assert_eq!(wakes.read("other completions?"), None);
        assert!(wakes.is_asked() && !completions.has_changed().expect("open"));
        assert_eq!(wakes.read("other completions"), None);
        assert!(completions.has_changed().expect("open"));
        completions.mark_unchanged();
        assert_eq!(wakes.read(&format!("{} completions", wakes.instance)), None);
        assert!(!completions.has_changed().expect("open"));
        assert_eq!(wakes.read("other nonsense"), None);
        assert_eq!(wakes.read(&format!("{} deliveries", wakes.instance)), None);
    }
}
