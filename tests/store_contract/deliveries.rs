//! Events and how they are delivered.

use super::*;

contract! {
    callbacks_choose_their_events
    a_registered_endpoint_is_found_by_its_id
    deliveries_are_claimed_retried_and_finished
    attempts_that_an_older_version_wrote_are_told_of
    a_delivery_whose_claim_lapsed_is_claimed_again
    a_disabled_endpoint_blocks_nobody
    an_endpoint_that_fails_for_five_days_is_disabled
}

async fn callbacks_choose_their_events(f: Fixture) {
    let only_dead = json!({ "url": "http://a.example/", "events": ["job.dead"] });
    let a = held(&f.store, json!({ "id": "a", "callback": only_dead })).await;
    write(&f.store, record(&a, success())).await;
    assert!(deliveries(&f.store, NOW + 10).await.is_empty());
    let b = held(&f.store, json!({ "id": "b", "callback": only_dead })).await;
    write(&f.store, record(&b, death(DeadReason::Permanent))).await;
    let due = deliveries(&f.store, NOW + 10).await;
    assert_eq!(due.iter().map(|d| event(d).kind).collect::<Vec<_>>(), [EventKind::Dead]);
    assert_eq!(event(&due[0]).reason.as_deref(), Some("permanent"));
    assert_eq!(f.number("SELECT COUNT(*) FROM events").await, 2);
    let c = held(&f.store, json!({ "id": "c" })).await;
    write(&f.store, record(&c, success())).await;
    assert!(deliveries(&f.store, NOW + 10).await.is_empty(), "nobody asked");
    assert_eq!(f.number("SELECT COUNT(*) FROM endpoints").await, 1, "one of a tenant and a URL");
}

async fn a_registered_endpoint_is_found_by_its_id(f: Fixture) {
    f.execute("INSERT INTO endpoints (id, tenant, url, implicit, created_ms) VALUES ('ep_1', 'acme', 'http://b.example/', FALSE, 0)").await;
    let callback = json!({ "endpoint": "ep_1" });
    let mine = held(&f.store, json!({ "id": "a", "tenant": "acme", "callback": callback })).await;
    let stranger = held(&f.store, json!({ "id": "b", "tenant": "evil", "callback": callback })).await;
    assert_eq!(write(&f.store, record(&mine, success())).await, Recorded::Done);
    assert_eq!(write(&f.store, record(&stranger, success())).await, Recorded::Done);
    let due = deliveries(&f.store, NOW + 10).await;
    assert_eq!(
        due.iter().map(|d| (d.endpoint.id.as_str(), event(d).job_id.as_str())).collect::<Vec<_>>(),
        [("ep_1", "a")]
    );
}

async fn deliveries_are_claimed_retried_and_finished(f: Fixture) {
    ended_with_callback(&f.store, "a", "http://a.example/").await;
    assert_eq!(f.store.next_delivery_due().await.expect("read"), Some(NOW + 10));
    assert!(deliveries(&f.store, NOW + 9).await.is_empty());
    let first = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    assert!(deliveries(&f.store, NOW + 10).await.is_empty(), "it is claimed");
    f.store.record_delivery(delivered(&first, DeliveryNext::Retry { due_ms: NOW + 5000 })).await.expect("recorded");
    assert_eq!(f.store.next_delivery_due().await.expect("read"), Some(NOW + 5000));
    let second = deliveries(&f.store, NOW + 5000).await.pop().expect("due");
    assert_eq!((second.pk, second.epoch, second.attempts), (first.pk, 2, 1));
    assert_eq!(event(&second).id, event(&first).id, "the id is stable");
    f.store.record_delivery(delivered(&first, DeliveryNext::Failed)).await.expect("a late record is taken");
    f.store.record_delivery(delivered(&second, DeliveryNext::Delivered)).await.expect("recorded");
    assert_eq!(f.texts("SELECT state FROM deliveries").await, ["delivered"]);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_delivery_attempts").await, 2, "the late one is not counted");
    assert_eq!(f.store.next_delivery_due().await.expect("read"), None);
    ended_with_callback(&f.store, "b", "http://a.example/").await;
    let spent = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    f.store.record_delivery(delivered(&spent, DeliveryNext::Failed)).await.expect("recorded");
    assert!(deliveries(&f.store, NOW + 999_999).await.is_empty(), "kept, but not due");
}

/// It had a row for the first attempt, too.
async fn attempts_that_an_older_version_wrote_are_told_of(f: Fixture) {
    let job = held(&f.store, json!({ "id": "a", "callback": { "url": "http://a.example/" } })).await;
    f.execute("INSERT INTO attempts SELECT pk, 1, 1, 7, 'k1', 500, 'retry', 3, 'old' FROM jobs").await;
    write(&f.store, Record { attempt: Some(attempt(2, "success")), ..record(&job, success()) }).await;
    let job = f.store.job(None, "a").await.expect("read").expect("one");
    let told: Vec<_> = job.attempts.iter().map(|(run, a)| (*run, a.n, a.error.as_deref())).collect();
    assert_eq!(told, [(1, 1, Some("old")), (1, 2, None)]);
    f.execute("INSERT INTO delivery_attempts SELECT pk, 1, 7, 500, 3, 'old' FROM deliveries").await;
    f.execute("UPDATE deliveries SET attempts = 1").await;
    let second = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    f.store.record_delivery(delivered(&second, DeliveryNext::Delivered)).await.expect("recorded");
    let pk = second.pk;
    let told = f.store.delivery(None, pk).await.expect("read").expect("one").attempts;
    assert_eq!(told.iter().map(|a| (a.n, a.at_ms == 7)).collect::<Vec<_>>(), [(1, true), (2, false)]);
}

async fn a_delivery_whose_claim_lapsed_is_claimed_again(f: Fixture) {
    ended_with_callback(&f.store, "a", "http://a.example/").await;
    let first = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    let lapse = NOW + 10 + 60_000;
    assert!(deliveries(&f.store, lapse - 1).await.is_empty());
    let second = deliveries(&f.store, lapse).await.pop().expect("due again");
    assert_eq!((second.pk, second.epoch), (first.pk, first.epoch + 1));
    f.store.record_delivery(delivered(&second, DeliveryNext::Delivered)).await.expect("recorded");
}

async fn a_disabled_endpoint_blocks_nobody(f: Fixture) {
    for i in 0..30 {
        ended_with_callback(&f.store, &format!("gone{i}"), "http://gone.example/").await;
    }
    ended_with_callback(&f.store, "fine", "http://fine.example/").await;
    let me = "notifier".to_owned();
    let first = f.store.claim_deliveries(&me, 1, NOW + 10, LEASE).await.expect("claimed").pop().expect("one");
    f.store.record_delivery(delivered(&first, DeliveryNext::Gone)).await.expect("recorded");
    let due = f.store.claim_deliveries(&me, 5, NOW + 10, LEASE).await.expect("claimed");
    assert_eq!(due.iter().map(|d| event(d).job_id.as_str()).collect::<Vec<_>>(), ["fine"]);
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE state = 'disabled'").await, 30);
    ended_with_callback(&f.store, "later", "http://gone.example/").await;
    assert!(deliveries(&f.store, NOW + 10).await.is_empty());
    assert_eq!(
        f.number("SELECT COUNT(*) FROM deliveries WHERE state = 'disabled'").await,
        31,
        "kept for the day it is back"
    );
}

async fn an_endpoint_that_fails_for_five_days_is_disabled(f: Fixture) {
    const DAY: i64 = 86_400_000;
    for job in ["a", "b"] {
        ended_with_callback(&f.store, job, "http://a.example/").await;
    }
    let me = "notifier".to_owned();
    let mut now = NOW + 10;
    let mut attempt = async |after: i64, next: fn(i64) -> DeliveryNext| {
        now += after;
        let due = f.store.claim_deliveries(&me, 1, now, LEASE).await.expect("claimed").pop().expect("due");
        let record = DeliveryRecord { at_ms: now, ..delivered(&due, next(now)) };
        f.store.record_delivery(record).await.expect("recorded");
        f.number("SELECT COUNT(*) FROM endpoints WHERE enabled").await
    };
    let again = |now: i64| DeliveryNext::Retry { due_ms: now };
    assert_eq!(attempt(0, again).await, 1);
    assert_eq!(attempt(4 * DAY, again).await, 1);
    // One success, and the five days begin anew.
    assert_eq!(attempt(DAY / 2, |_| DeliveryNext::Delivered).await, 1);
    assert_eq!(f.number("SELECT COUNT(failing_since_ms) FROM endpoints").await, 0);
    assert_eq!(attempt(DAY, again).await, 1);
    assert_eq!(attempt(5 * DAY - 1, again).await, 1);
    assert_eq!(attempt(1, again).await, 0);
    assert_eq!(f.number("SELECT COUNT(*) FROM endpoints WHERE disabled_reason = 'failing'").await, 1);
    assert!(deliveries(&f.store, now + DAY).await.is_empty(), "what is left is kept and not sent");
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE state = 'disabled'").await, 1);
}
