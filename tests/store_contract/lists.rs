//! What is shown, and what is removed.

use super::*;

contract! {
    deadlines_expire_unclaimed_jobs
    retention_removes_all_that_belongs_to_a_job
    lists_are_paged_and_filtered
    depth_counts_what_is_open
    one_row_that_cannot_be_read_does_not_spoil_a_list
}

async fn deadlines_expire_unclaimed_jobs(f: Fixture) {
    let deadline = json!("2027-01-16T00:00:00Z");
    let later = json!({ "id": "waiting", "deadline": deadline, "not_before": "2027-01-15T23:00:00Z", "callback": { "url": "http://a.example/" } });
    insert(&f.store, new(later)).await;
    insert(&f.store, new(json!({ "id": "queued", "deadline": deadline }))).await;
    insert(&f.store, new(json!({ "id": "open" }))).await;
    let claimed = held(&f.store, json!({ "id": "claimed", "deadline": deadline })).await;
    let at = claimed.job.deadline_ms.expect("it has one");
    assert_eq!(f.store.expire_due(10, at - 1).await.expect("expired"), 0);
    assert_eq!(f.store.expire_due(1, at).await.expect("expired"), 1, "bounded");
    assert_eq!(f.store.expire_due(10, at).await.expect("expired"), 1);
    assert_eq!(state(&f.store, "waiting").await, JobState::Expired);
    assert_eq!(state(&f.store, "queued").await, JobState::Expired);
    assert_eq!(state(&f.store, "claimed").await, JobState::Queued, "its owner decides");
    assert_eq!(event(&deliveries(&f.store, at).await[0]).kind, EventKind::Expired);
}

async fn retention_removes_all_that_belongs_to_a_job(f: Fixture) {
    ended_with_callback(&f.store, "old", "http://a.example/").await;
    let delivery = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    f.store.record_delivery(delivered(&delivery, DeliveryNext::Delivered)).await.expect("recorded");
    ended_with_callback(&f.store, "undelivered", "http://a.example/").await;
    dead(&f.store, json!({ "id": "dead" })).await;
    f.store.bury(message(""), NOW).await.expect("buried");
    insert(&f.store, new(json!({ "id": "open" }))).await;
    assert_eq!(f.store.retain(NOW + 10, NOW, 100).await.expect("retained").jobs, 0, "nothing is old enough");
    let removed = f.store.retain(NOW + 11, NOW, 100).await.expect("retained");
    assert_eq!((removed.jobs, removed.dead_letters), (1, 0));
    assert!(f.store.job(None, "old").await.expect("read").is_none());
    assert!(f.store.job(None, "undelivered").await.expect("read").is_some(), "its delivery is pending");
    assert_eq!(f.number("SELECT COUNT(*) FROM all_delivery_attempts").await, 0);
    let removed = f.store.retain(0, NOW + 11, 100).await.expect("retained");
    assert_eq!((removed.jobs, removed.dead_letters), (1, 1), "the dead job with its letter, and the message");
    let left = [("jobs", 2), ("attempts", 0), ("events", 1), ("deliveries", 1), ("dead_letters", 0)];
    for (table, rows) in left {
        assert_eq!(f.number(&format!("SELECT COUNT(*) FROM {table}")).await, rows, "{table}");
    }
    assert!(
        matches!(insert(&f.store, new(json!({ "id": "old" }))).await, Inserted::Created(_)),
        "the id is free again"
    );
    for i in 0..5 {
        dead(&f.store, json!({ "id": format!("d{i}") })).await;
    }
    assert_eq!(f.store.retain(0, NOW + 11, 2).await.expect("retained").jobs, 2, "bounded");
}

async fn lists_are_paged_and_filtered(f: Fixture) {
    for i in 0..7 {
        insert(
            &f.store,
            new(json!({ "id": format!("j{i}"), "lane": if i % 2 == 0 { "low" } else { "default" }, "tenant": "t" })),
        )
        .await;
    }
    insert(&f.store, new(json!({ "id": "x", "provider": "other" }))).await;
    let done = held(&f.store, json!({ "id": "done" })).await;
    write(&f.store, Record { attempt: Some(attempt(1, "success")), ..record(&done, success()) }).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = f.store.jobs(&JobFilter::default(), cursor, 4).await.expect("listed");
        assert!(page.items.len() <= 4);
        seen.extend(page.items.iter().map(|v| v.job.id.clone()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["done", "x", "j6", "j5", "j4", "j3", "j2", "j1", "j0"]);
    let ids = async |filter: JobFilter| {
        let page = f.store.jobs(&filter, None, 10).await.expect("listed");
        page.items.into_iter().map(|v| v.job.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(JobFilter { state: Some(JobState::Succeeded), ..JobFilter::default() }).await, ["done"]);
    assert_eq!(ids(JobFilter { provider: Some("other".to_owned()), ..JobFilter::default() }).await, ["x"]);
    let low = JobFilter {
        lane: Some("low".to_owned()),
        state: Some(JobState::Queued),
        tenant: Some("t".to_owned()),
        ..JobFilter::default()
    };
    assert_eq!(ids(low).await, ["j6", "j4", "j2", "j0"]);
    assert_eq!(ids(JobFilter { tenant: Some(String::new()), ..JobFilter::default() }).await, ["done", "x"]);
    let page = f.store.jobs(&JobFilter::default(), None, 1).await.expect("listed");
    assert_eq!(page.items[0].attempts, vec![(1, attempt(1, "success"))]);
}

async fn depth_counts_what_is_open(f: Fixture) {
    insert(&f.store, new(json!({ "id": "a" }))).await;
    insert(&f.store, new(json!({ "id": "b", "lane": "low", "not_before": "2027-01-16T00:00:00Z" }))).await;
    held(&f.store, json!({ "id": "c" })).await;
    dead(&f.store, json!({ "id": "d", "callback": { "url": "http://a.example/" } })).await;
    let depth = f.store.depth().await.expect("counted");
    let row = |lane: &str, state: &str, n| ("geo".to_owned(), lane.to_owned(), state.to_owned(), n);
    assert_eq!(depth.jobs, [row("default", "queued", 2), row("low", "waiting", 1)]);
    assert_eq!((depth.deliveries_pending, depth.dead_letters), (1, 1));
}

async fn one_row_that_cannot_be_read_does_not_spoil_a_list(f: Fixture) {
    for id in ["a", "bad", "c"] {
        insert(&f.store, new(json!({ "id": id }))).await;
    }
    f.execute("UPDATE jobs SET envelope = '?' WHERE id = 'bad'").await;
    let first = f.store.jobs(&JobFilter::default(), None, 2).await.expect("listed");
    assert_eq!(first.items.iter().map(|v| v.job.id.as_str()).collect::<Vec<_>>(), ["c"]);
    let second = f.store.jobs(&JobFilter::default(), first.next, 2).await.expect("listed");
    assert_eq!(second.items.iter().map(|v| v.job.id.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(matches!(f.store.job(None, "bad").await, Err(StoreError::Corrupt(_))));
}
