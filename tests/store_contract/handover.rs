//! Deliveries that are handed to whoever makes them, in the process in which they were made up.

use std::sync::Arc;

use paceline::clock::Clock;
use paceline::pace::Time;
use paceline::store::{Handed, Handover, Publication};

use super::*;

contract! {
    what_is_handed_over_is_claimed_and_says_what_a_claim_would_read
    what_nobody_takes_is_due_for_whoever_claims_it
    no_more_is_handed_over_than_there_is_room_for
    what_is_rolled_back_is_not_handed_over_and_its_room_is_free_again
    the_last_one_who_asks_takes_them
}

/// A clock that stands still.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn wall_ms(&self) -> i64 {
        NOW + 20
    }

    fn mono(&self) -> Time {
        Time::from_nanos(7)
    }
}

const LAPSES: i64 = NOW + 20 + 60_000;

fn takes(f: &Fixture, owner: &str) -> Handover<DeliveryJob> {
    let handover = f.store.take_deliveries(owner.to_owned(), LEASE, Arc::new(Still));
    handover.set_open(true);
    handover
}

fn takes_publications(f: &Fixture) -> Handover<Publication> {
    let handover = f.store.take_publications("publisher".to_owned(), LEASE, Arc::new(Still));
    handover.set_open(true);
    handover
}

/// All that was handed over, which is there as soon as the record is answered.
async fn all<T>(handover: Handover<T>) -> Vec<T> {
    let mut handover = handover;
    let mut all = Vec::new();
    handover.set_open(false);
    while let Ok(Some(some)) = tokio::time::timeout(Duration::from_millis(1), handover.next(1_000)).await {
        all.extend(some.into_iter().map(|Handed { delivery, since }| {
            assert_eq!(since, Time::from_nanos(7));
            delivery
        }));
    }
    all
}

fn told(id: &str) -> Value {
    json!({ "id": id, "callback": { "url": "http://a.example/" }, "metadata": { "for": "you" } })
}

async fn what_is_handed_over_is_claimed_and_says_what_a_claim_would_read(f: Fixture) {
    f.store.publish_completions();
    let origin = Origin {
        reply_to: Some("amq.gen-1".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        traceparent: Some("00-1-2-01".to_owned()),
    };
    for (id, next) in [("good", success()), ("bad", death(DeadReason::Permanent))] {
        let (webhooks, publications) = (takes(&f, "notifier"), takes_publications(&f));
        let mut wakes = f.store.wakes();
        let job = NewJob { origin: origin.clone(), ..owned(told(id), "me") };
        let Inserted::Created(Some(claimed)) = insert(&f.store, job).await else { panic!("it is claimed") };
        let record = Record { attempt: Some(attempt(1, "success")), ..record(&claimed, next) };
        write(&f.store, record).await;
        let (webhooks, publications) = (all(webhooks).await, all(publications).await);
        assert_eq!((webhooks.len(), publications.len()), (1, 2));
        assert!(std::iter::from_fn(|| wakes.try_recv().ok()).all(|wake| wake != Wake::Deliveries), "nobody need look");
        let owned = "SELECT COUNT(*) FROM deliveries WHERE epoch = 1 AND due_ms = 1800000060020 AND state = 'pending'
            AND owner = CASE kind WHEN 'webhook' THEN 'notifier' ELSE 'publisher' END";
        assert_eq!(f.number(owned).await, 3);
        assert_eq!(f.store.next_delivery_due().await.expect("read"), Some(LAPSES));
        assert!(deliveries(&f.store, LAPSES - 1).await.is_empty(), "they are claimed");

        let mut again = deliveries(&f.store, LAPSES).await;
        let claim = f.store.claim_publications(&"other".to_owned(), 10, LAPSES, LEASE).await;
        let mut published = claim.expect("claimed");
        assert_eq!((again.len(), published.len()), (1, 2), "the claim has lapsed");
        again.iter_mut().for_each(|delivery| delivery.epoch = 1);
        published.iter_mut().for_each(|publication| publication.epoch = 1);
        assert_eq!(format!("{webhooks:#?}"), format!("{again:#?}"));
        let mut publications = publications;
        publications.sort_by_key(|publication| publication.pk);
        assert_eq!(format!("{publications:#?}"), format!("{published:#?}"));
        f.execute("UPDATE deliveries SET state = 'delivered', owner = NULL").await;
    }
}

async fn what_nobody_takes_is_due_for_whoever_claims_it(f: Fixture) {
    let closed = takes(&f, "notifier");
    closed.set_open(false);
    let mut wakes = f.store.wakes();
    ended(&f, "closed", success()).await;
    assert!(std::iter::from_fn(|| wakes.try_recv().ok()).any(|wake| wake == Wake::Deliveries), "somebody must look");
    assert!(all(closed).await.is_empty());
    drop(takes(&f, "notifier"));
    ended(&f, "gone", success()).await;
    let open = takes(&f, "notifier");
    let large = StoredResponse { body: Bytes::from(vec![1; 32 * 1024 + 1]), ..response() };
    let large = Next::Finish { state: JobState::Succeeded, reason: None, error: None, response: Some(large) };
    ended(&f, "large", large).await;
    f.execute("UPDATE endpoints SET enabled = FALSE").await;
    ended(&f, "disabled", success()).await;
    assert!(all(open).await.is_empty());
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE owner IS NULL AND epoch = 0").await, 4);
    f.execute("UPDATE endpoints SET enabled = TRUE").await;
    assert_eq!(deliveries(&f.store, NOW + 10).await.len(), 3, "all but that of the endpoint that was disabled");
}

async fn no_more_is_handed_over_than_there_is_room_for(f: Fixture) {
    let open = takes(&f, "notifier");
    for n in 0..10 {
        let jobs = (0..60).map(|i| owned(told(&format!("{n}-{i}")), "me")).collect();
        let inserted = f.store.insert(jobs, NOW).await.expect("inserted");
        let records = inserted.iter().map(|inserted| match inserted {
            Inserted::Created(Some(claimed)) => f.store.record(record(claimed, success())),
            other => panic!("expected a claim, got {other:?}"),
        });
        for recorded in futures_util::future::join_all(records).await {
            assert_eq!(recorded.expect("recorded"), Recorded::Done);
        }
    }
    let handed = all(open).await;
    let (mut pks, left) = (handed.iter().map(|d| d.pk).collect::<HashSet<_>>(), deliveries(&f.store, NOW + 10).await);
    assert_eq!((pks.len(), left.len()), (512, 88));
    pks.extend(left.iter().map(|d| d.pk));
    assert_eq!(pks.len(), 600, "each once");
}

async fn what_is_rolled_back_is_not_handed_over_and_its_room_is_free_again(f: Fixture) {
    let open = takes(&f, "notifier");
    f.execute("ALTER TABLE dead_letters RENAME TO away").await;
    let job = held(&f.store, told("a")).await;
    for _ in 0..600 {
        // What is written last cannot be.
        f.store.record(record(&job, death(DeadReason::Permanent))).await.expect_err("there is no such table");
    }
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 0);
    f.execute("ALTER TABLE away RENAME TO dead_letters").await;
    write(&f.store, record(&job, death(DeadReason::Permanent))).await;
    assert_eq!(all(open).await.len(), 1);
}

async fn the_last_one_who_asks_takes_them(f: Fixture) {
    let mut first = takes(&f, "first");
    ended(&f, "a", success()).await;
    let second = takes(&f, "second");
    ended(&f, "b", success()).await;
    assert_eq!(first.next(10).await.map(|handed| handed.len()), Some(1));
    assert!(first.next(10).await.is_none(), "nothing more ever comes");
    assert_eq!(all(second).await.len(), 1);
    assert_eq!(f.texts("SELECT owner FROM deliveries ORDER BY pk").await, ["first", "second"]);
}

async fn ended(f: &Fixture, id: &str, next: Next) {
    let job = held(&f.store, told(id)).await;
    assert_eq!(write(&f.store, record(&job, next)).await, Recorded::Done);
}
