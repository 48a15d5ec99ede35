//! Who is taken for dead, and who is not; and what nobody knows to hold.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::proxy::{Manner, Proxy};
use common::store::{Fixture, on_postgres};
use common::{holds, until};
use paceline::clock::{Clock, SystemClock, WallMs};
use paceline::config::StoreConfig;
use paceline::job::{Catalog, Given, Job, ProviderRules};
use paceline::schedule::Scheduler;
use paceline::secrets::Secret;
use paceline::store::{Inserted, NewJob, Origin, Store, StoreError, StoreOptions};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

/// A job whose end is told.
const TELLS: &[u8] = br#"{"id":"a","provider":"geo","request":{"path":"/"},"callback":{"url":"http://a.example/"}}"#;

fn now_ms() -> WallMs {
    SystemClock::new().wall_ms()
}

fn parsed(envelope: &[u8]) -> Job {
    let mut catalog = Catalog { callbacks: true, allow_http: true, ..Catalog::default() };
    catalog.providers.insert("geo".to_owned(), ProviderRules::default());
    Job::parse(envelope, &Given::default(), &catalog).expect("a job")
}

fn job(id: &str, owner: Option<&str>) -> NewJob {
    let envelope = format!(r#"{{"id":"{id}","provider":"geo","request":{{"path":"/"}}}}"#);
    NewJob { job: parsed(envelope.as_bytes()), origin: Origin::default(), owner: owner.map(str::to_owned) }
}

async fn inserted(f: &Fixture, job: NewJob) {
    let inserted = f.store.insert(vec![job], now_ms()).await.expect("inserted");
    assert!(matches!(inserted[..], [Inserted::Created(_)]));
}

/// Claims the one job that is due.
async fn claim(store: &Store, owner: &str) -> Result<usize, StoreError> {
    store.claim_due(&owner.to_owned(), "geo", "default", 10, now_ms()).await.map(|claimed| claimed.len())
}

/// The same database, through a proxy.
async fn through_a_proxy(f: &Fixture) -> (Proxy, Store) {
    let database = url::Url::parse(&f.options.url).expect("a URL");
    let target = format!("{}:{}", database.host_str().expect("a host"), database.port().unwrap_or(5432));
    let proxy = Proxy::start(target).await;
    let options = StoreOptions { url: proxy.url(&f.options.url), ..f.options.clone() };
    let store = Store::open(&options).await.expect("it opens");
    (proxy, store)
}

/// From now on a commit takes two seconds where that was done to a row for which that holds, and ends with `then`.
async fn slow_commits(f: &Fixture, after: &str, when: &str, then: &str) {
    let body = format!("BEGIN PERFORM pg_sleep(2); {then} RETURN NULL; END");
    f.execute(&format!("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'")).await;
    let trigger = format!("CREATE CONSTRAINT TRIGGER slow {after} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW {when}");
    f.execute(&format!("{trigger} EXECUTE FUNCTION slow()")).await;
}

/// Waits for a commit that takes its time, as none but the slow ones do; or for its end.
async fn committing(f: &Fixture, is: bool) {
    let sql = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'COMMIT'
        AND state = 'active' AND clock_timestamp() - query_start > INTERVAL '0.3 s'";
    until("it is being committed, or no longer", SOON, async || holds((f.number(sql).await == 1) == is)).await;
}

/// The database was away for long, and is back: nobody could say that he lives. A scheduler that begins then waits
/// until they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_begins_after_an_outage_rescues_the_dead_and_not_the_living() {
    on_postgres(async |f| {
        inserted(&f, job("held", Some("living"))).await;
        f.execute("INSERT INTO owners (id, role, started_ms, seen_ms) VALUES ('dead', 'dispatcher', 0, 0)").await;
        f.execute("UPDATE owners SET seen_ms = seen_ms - 60000").await;
        let keep = StoreConfig {
            url: Secret::new(String::new()),
            keep_succeeded: Duration::from_secs(3600),
            keep_dead: Duration::from_secs(3600),
        };
        let stop = CancellationToken::new();
        let scheduler = Scheduler::new(f.another().await, Arc::new(SystemClock::new()), keep);
        let running = tokio::spawn(scheduler.run(stop.clone()));
        // Its first beat after the outage comes late, but it comes.
        tokio::time::sleep(Duration::from_secs(5)).await;
        f.store.heartbeat(&"living".to_owned(), "dispatcher").await.expect("it lives");
        until("the dead one is forgotten", Duration::from_secs(40), async || {
            f.store.heartbeat(&"living".to_owned(), "dispatcher").await.expect("it lives");
            holds(f.number("SELECT COUNT(*) FROM owners WHERE id = 'dead'").await == 0)
        })
        .await;
        assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE owner = 'living'").await, 1, "it keeps what it holds");
        stop.cancel();
        running.await.expect("it ends");
    })
    .await;
}

/// The connection breaks while PostgreSQL is committing a job and its claim: it comes to the end of that when somebody has
/// already looked whether there is anything to let go of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_outlives_its_connection_leaves_nothing_held() {
    on_postgres(async |f| {
        slow_commits(&f, "AFTER INSERT ON jobs", "", "").await;
        let (proxy, store) = through_a_proxy(&f).await;
        let cut = async {
            committing(&f, true).await;
            proxy.cut();
        };
        let (answer, ()) = tokio::join!(store.insert(vec![job("held", Some("me"))], now_ms()), cut);
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        until("it is committed, and held by nobody", SOON, async || {
            holds(f.number("SELECT COUNT(*) FROM jobs WHERE owner IS NULL").await == 1)
        })
        .await;
        store.close().await;
    })
    .await;
}

/// The same with the claim of a webhook, and of what is published to the broker: they are due again at once, and not when
/// the claim runs out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_claimed_by_a_commit_that_outlives_its_connection_are_held_by_nobody() {
    on_postgres(async |f| {
        let asked = NewJob {
            job: parsed(TELLS),
            origin: Origin { reply_to: Some("answers".to_owned()), ..Origin::default() },
            owner: None,
        };
        inserted(&f, asked).await;
        f.store.cancel(None, "a", now_ms()).await.expect("cancelled");
        assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE state = 'pending'").await, 2);
        slow_commits(&f, "AFTER UPDATE OF owner ON deliveries", "WHEN (NEW.owner IS NOT NULL)", "").await;
        let (proxy, store) = through_a_proxy(&f).await;
        let (me, lease) = ("me".to_owned(), Duration::from_secs(3600));
        let cut = async || {
            committing(&f, true).await;
            proxy.cut();
        };
        let (webhook, ()) = tokio::join!(store.claim_deliveries(&me, 10, now_ms(), lease), cut());
        assert!(matches!(webhook, Err(StoreError::Unavailable(_))), "{webhook:?}");
        committing(&f, false).await;
        let (message, ()) = tokio::join!(store.claim_publications(&me, 10, now_ms(), lease), cut());
        assert!(matches!(message, Err(StoreError::Unavailable(_))), "{message:?}");
        let now = now_ms();
        let free = format!("SELECT COUNT(*) FROM deliveries WHERE owner IS NULL AND epoch = 1 AND due_ms <= {now}");
        until("both were committed, and are held by nobody", SOON, async || holds(f.number(&free).await == 2)).await;
        store.close().await;
    })
    .await;
}

/// A claim is rolled back when its connection is gone, and the process hears of it only after somebody else has claimed
/// the job: that one keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_was_rolled_back_lets_go_of_nobody_elses() {
    on_postgres(async |f| {
        slow_commits(
            &f,
            "AFTER UPDATE OF owner ON jobs",
            "WHEN (NEW.owner = 'me')",
            "IF NEW.id = ''refused'' THEN RAISE ''no''; END IF;",
        )
        .await;
        let (proxy, store) = through_a_proxy(&f).await;
        inserted(&f, job("refused", None)).await;
        let cut = async {
            committing(&f, true).await;
            proxy.set(Manner::Refusing);
            proxy.cut();
            committing(&f, false).await;
        };
        let (answer, ()) = tokio::join!(claim(&store, "me"), cut);
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        assert_eq!(claim(&f.store, "other").await.expect("claimed"), 1);
        // What is lost later is let go of later: then the first one has been looked at.
        proxy.set(Manner::Through);
        inserted(&f, job("taken", None)).await;
        let cut = async {
            committing(&f, true).await;
            proxy.cut();
        };
        let (answer, ()) = tokio::join!(claim(&store, "me"), cut);
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let let_go = "SELECT COUNT(*) FROM jobs WHERE id = 'taken' AND owner IS NULL AND epoch = 1";
        until("it was committed, and is let go of", SOON, async || holds(f.number(let_go).await == 1)).await;
        assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE id = 'refused' AND owner = 'other'").await, 1);
        store.close().await;
    })
    .await;
}

/// The same where they were made up for somebody in this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_handed_over_by_a_commit_that_outlives_its_connection_are_held_by_nobody() {
    on_postgres(async |f| {
        slow_commits(&f, "AFTER INSERT ON deliveries", "", "").await;
        let (proxy, store) = through_a_proxy(&f).await;
        let asked = NewJob { job: parsed(TELLS), origin: Origin::default(), owner: None };
        inserted(&f, asked).await;
        let hour = Duration::from_secs(3600);
        let mut handover = store.take_deliveries("me".to_owned(), hour, Arc::new(SystemClock::new()));
        handover.set_open(true);
        let cut = async {
            committing(&f, true).await;
            proxy.cut();
        };
        let (answer, ()) = tokio::join!(store.cancel(None, "a", now_ms()), cut);
        assert!(matches!(answer, Err(StoreError::Unavailable(_))), "{answer:?}");
        let free = "SELECT COUNT(*) FROM deliveries WHERE owner IS NULL AND epoch = 1 AND due_ms < created_ms + 60000";
        until("it was committed, and is held by nobody", SOON, async || holds(f.number(free).await == 1)).await;
        handover.set_open(false);
        let handed = tokio::time::timeout(Duration::from_millis(1), handover.next(1)).await;
        assert!(handed.is_err(), "nobody hears of it");
        store.close().await;
    })
    .await;
}
