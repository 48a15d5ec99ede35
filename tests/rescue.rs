//! Who is taken for dead, and who is not.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::store::{Fixture, on_postgres};
use common::{holds, until};
use paceline::clock::{Clock, SystemClock};
use paceline::config::StoreConfig;
use paceline::job::{Catalog, Given, Job, ProviderRules};
use paceline::schedule::Scheduler;
use paceline::secrets::Secret;
use paceline::store::{Inserted, NewJob, Origin};
use tokio_util::sync::CancellationToken;

async fn claimed(f: &Fixture, owner: &str) {
    let mut catalog = Catalog::default();
    catalog.providers.insert("geo".to_owned(), ProviderRules::default());
    let envelope = br#"{"id":"held","provider":"geo","request":{"path":"/"}}"#;
    let job = Job::parse(envelope, &Given::default(), &catalog).expect("a job");
    let new = NewJob { job, origin: Origin::default(), owner: Some(owner.to_owned()) };
    let inserted = f.store.insert(vec![new], SystemClock::new().wall_ms()).await.expect("inserted");
    assert!(matches!(inserted[..], [Inserted::Created(Some(_))]));
}

/// The database was away for long, and is back: nobody could say that he lives. A scheduler that begins then waits
/// until they have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_begins_after_an_outage_rescues_the_dead_and_not_the_living() {
    on_postgres(async |f| {
        claimed(&f, "living").await;
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
