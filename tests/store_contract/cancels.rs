//! Cancelling.

use super::*;

contract! {
    cancelling_ends_what_nobody_holds
    cancelling_asks_the_owner
    a_cancelled_wait_ends_at_once
    what_was_asked_to_cancel_is_found_by_its_owner
    cancel_and_claim_race_to_one_end
}

async fn cancelling_ends_what_nobody_holds(f: Fixture) {
    insert(&f.store, new(json!({ "id": "a", "callback": { "url": "http://a.example/" } }))).await;
    assert_eq!(f.store.cancel(None, "a", NOW + 1).await.expect("cancelled"), Cancelled::Done);
    assert_eq!(f.store.cancel(None, "a", NOW + 1).await.expect("asked"), Cancelled::TooLate(JobState::Cancelled));
    assert_eq!(event(&deliveries(&f.store, NOW + 1).await[0]).kind, EventKind::Cancelled);
    assert!(claim(&f.store, NOW + 1).await.is_empty());
    assert_eq!(f.store.cancel(None, "nobody", NOW).await.expect("asked"), Cancelled::NotFound);
}

async fn cancelling_asks_the_owner(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    let mut wakes = f.store.wakes();
    assert_eq!(f.store.cancel(None, "a", NOW).await.expect("asked"), Cancelled::Asked);
    assert_eq!(wakes.recv().await.expect("a wake"), Wake::Cancel(claimed.pk));
    assert_eq!(write(&f.store, record(&claimed, Next::Keep)).await, Recorded::CancelRequested);
    assert_eq!(write(&f.store, record(&claimed, Next::Running)).await, Recorded::CancelRequested);
    assert_eq!(f.store.cancel(None, "a", NOW).await.expect("asked"), Cancelled::TooLate(JobState::Running));
    let end = Next::Finish { state: JobState::Cancelled, reason: None, error: None, response: None };
    assert_eq!(write(&f.store, record(&claimed, end)).await, Recorded::Done);
    assert_eq!(state(&f.store, "a").await, JobState::Cancelled);
}

async fn a_cancelled_wait_ends_at_once(f: Fixture) {
    for (id, next) in [("a", wait(NOW + 500)), ("b", Next::Release)] {
        let claimed = held(&f.store, json!({ "id": id, "callback": { "url": "http://a.example/" } })).await;
        assert_eq!(f.store.cancel(None, id, NOW).await.expect("asked"), Cancelled::Asked);
        let back = Record { attempt: Some(attempt(1, "transient")), failures: 1, ..record(&claimed, next) };
        assert_eq!(write(&f.store, back).await, Recorded::Done);
        let view = f.store.job(None, id).await.expect("read").expect("one");
        assert_eq!((view.state, view.attempts.len(), view.waiting_reason), (JobState::Cancelled, 1, None));
    }
    assert_eq!(deliveries(&f.store, NOW + 10).await.len(), 2);
    assert!(claim(&f.store, NOW + 999).await.is_empty());
}

/// For an owner that was not woken.
async fn what_was_asked_to_cancel_is_found_by_its_owner(f: Fixture) {
    let wanted = held(&f.store, json!({ "id": "a" })).await;
    held(&f.store, json!({ "id": "b" })).await;
    insert(&f.store, owned(json!({ "id": "c" }), "other")).await;
    let (me, other) = ("me".to_owned(), "other".to_owned());
    for id in ["a", "c"] {
        assert_eq!(f.store.cancel(None, id, NOW).await.expect("asked"), Cancelled::Asked);
    }
    let asked = async |owner: &String, provider| f.store.cancel_requests(owner, provider).await.expect("read");
    assert_eq!(asked(&me, "geo").await, [wanted.pk]);
    assert_eq!(asked(&me, "other").await, Vec::<i64>::new(), "of another provider");
    assert_eq!(asked(&other, "geo").await.len(), 1);
    let end = Next::Finish { state: JobState::Cancelled, reason: None, error: None, response: None };
    write(&f.store, record(&wanted, end)).await;
    assert!(asked(&me, "geo").await.is_empty());
}

async fn cancel_and_claim_race_to_one_end(f: Fixture) {
    for i in 0..50 {
        let id = format!("j{i}");
        insert(&f.store, new(json!({ "id": id }))).await;
        let (cancelled, claimed) = tokio::join!(f.store.cancel(None, &id, NOW), claim(&f.store, NOW));
        let cancelled = cancelled.expect("cancelled");
        match claimed.first() {
            Some(mine) => {
                assert_eq!(cancelled, Cancelled::Asked, "it was claimed first");
                assert_eq!(write(&f.store, record(mine, success())).await, Recorded::Done);
            }
            None => assert_eq!(cancelled, Cancelled::Done),
        }
    }
    assert_eq!(f.number("SELECT COUNT(*) FROM events").await, 50);
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE finished_ms IS NULL").await, 0);
}
