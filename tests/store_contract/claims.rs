//! Who gets which job, and when.

use super::*;

contract! {
    a_given_owner_claims_at_once_but_not_what_starts_later
    claims_take_what_is_due_oldest_first
    claims_of_eight_tasks_never_hand_out_a_job_twice
    claims_are_bounded_by_bytes
    a_row_that_cannot_be_read_dies
    a_backlog_that_is_pinned_elsewhere_hides_nothing
    jobs_wake_those_who_wait
    next_due_is_that_of_one_lane
    what_waits_for_a_lane_is_known_and_can_be_moved
}

async fn a_given_owner_claims_at_once_but_not_what_starts_later(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "now" })).await;
    assert_eq!((claimed.epoch, claimed.run), (1, 1));
    assert!(claim(&f.store, NOW).await.is_empty(), "it is claimed already");
    let later = json!({ "id": "later", "not_before": "2027-01-16T00:00:00Z" });
    assert!(matches!(insert(&f.store, owned(later, "me")).await, Inserted::Created(None)));
    let view = f.store.job(None, "later").await.expect("read").expect("there is one");
    assert_eq!((view.state, view.waiting_reason.as_deref()), (JobState::Waiting, Some("not_before")));
    let due = view.due_ms.expect("it waits");
    assert!(due > NOW && claim(&f.store, due - 1).await.is_empty());
    let claimed = claim(&f.store, due).await.pop().expect("due now");
    assert_eq!(claimed.job.id, "later");
    assert_eq!(state(&f.store, "later").await, JobState::Queued);
}

async fn claims_take_what_is_due_oldest_first(f: Fixture) {
    for (id, at) in [("c", 3), ("a", 1), ("b", 2)] {
        f.store.insert(vec![new(json!({ "id": id }))], NOW + at).await.expect("inserted");
    }
    insert(&f.store, new(json!({ "id": "low", "lane": "low" }))).await;
    insert(&f.store, new(json!({ "id": "other", "provider": "other" }))).await;
    let me = "me".to_owned();
    let ids = |claimed: Vec<Claimed>| claimed.into_iter().map(|c| c.job.id).collect::<Vec<_>>();
    assert_eq!(ids(f.store.claim_due(&me, "geo", "default", 2, NOW + 9).await.expect("claimed")), ["a", "b"]);
    assert!(
        ids(f.store.claim_due(&me, "geo", "default", 2, NOW + 2).await.expect("claimed")).is_empty(),
        "c is not due"
    );
    assert_eq!(ids(f.store.claim_due(&me, "geo", "default", 2, NOW + 3).await.expect("claimed")), ["c"]);
    assert_eq!(ids(f.store.claim_due(&me, "geo", "low", 2, NOW).await.expect("claimed")), ["low"]);
}

async fn claims_of_eight_tasks_never_hand_out_a_job_twice(f: Fixture) {
    const JOBS: usize = 2000;
    let jobs = (0..JOBS).map(|i| new(json!({ "id": format!("j{i}") }))).collect();
    f.store.insert(jobs, NOW).await.expect("inserted");
    let second = f.another().await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let store = if task % 2 == 0 { f.store.clone() } else { second.clone() };
            tokio::spawn(async move {
                let owner = format!("owner{task}");
                let mut mine = Vec::new();
                loop {
                    let claimed = store.claim_due(&owner, "geo", "default", 37, NOW).await.expect("claimed");
                    if claimed.is_empty() {
                        return mine;
                    }
                    mine.extend(claimed.into_iter().map(|c| c.pk));
                }
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.expect("no panic"));
    }
    assert_eq!(all.len(), JOBS);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), JOBS);
    second.close().await;
}

async fn claims_are_bounded_by_bytes(f: Fixture) {
    let large = "x".repeat(5 * 1024 * 1024);
    for i in 0..5 {
        insert(&f.store, new(json!({ "id": format!("j{i}"), "request": { "path": "/", "text": large } }))).await;
    }
    assert_eq!(claim(&f.store, NOW).await.len(), 4, "16 MiB are passed with the fourth");
    assert_eq!(claim(&f.store, NOW).await.len(), 1);
}

async fn a_row_that_cannot_be_read_dies(f: Fixture) {
    insert(&f.store, new(json!({ "id": "bad", "callback": { "url": "http://a.example/" } }))).await;
    insert(&f.store, new(json!({ "id": "good" }))).await;
    f.execute("UPDATE jobs SET envelope = '{\"from\":\"the future\"}' WHERE id = 'bad'").await;
    let claimed = claim(&f.store, NOW).await;
    assert_eq!(claimed.iter().map(|c| c.job.id.as_str()).collect::<Vec<_>>(), ["good"]);
    let letter = f.store.dead_letter(None, "bad").await.expect("read").expect("there is one");
    assert_eq!(letter.reason, "malformed");
    assert_eq!(deliveries(&f.store, NOW).await.len(), 1, "its producer is told");
    assert!(claim(&f.store, NOW).await.is_empty());
}

/// A lane full of jobs for keys that others pace: what may go here is found, oldest first, and in little time.
async fn a_backlog_that_is_pinned_elsewhere_hides_nothing(f: Fixture) {
    let backlog =
        i64::from(std::env::var("PACELINE_BACKLOG").ok().and_then(|n| n.parse::<i32>().ok()).unwrap_or(5_000));
    insert(&f.store, new(json!({ "id": "template" }))).await;
    // Behind the store's back, all due before the others: pinned to `b0` … `b9`.
    let columns =
        "tenant, hash, provider, lane, state, created_ms, delivery, idempotency_key, envelope_bytes, envelope";
    f.execute(&format!(
        "INSERT INTO jobs (id, pin, due_ms, {columns})
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {backlog})
         SELECT 'away' || i, 'b' || (i % 10), {NOW} - 100000, {columns} FROM jobs, n WHERE id = 'template'"
    ))
    .await;
    for (n, pin) in [(1, Some("a1")), (2, None), (3, Some("a1")), (4, None)] {
        let mut job = new(json!({ "id": format!("here{n}") }));
        job.job.key = pin.map(str::to_owned);
        f.store.insert(vec![job], NOW + n).await.expect("inserted");
    }
    f.execute(if f.is_sqlite() { "ANALYZE" } else { "ANALYZE jobs" }).await;
    let away: std::sync::Arc<[String]> = (0..10).map(|n| format!("b{n}")).collect();
    let me = "me".to_owned();
    let begun = std::time::Instant::now();
    assert_eq!(f.store.next_due_but("geo", "default", &away).await.expect("read"), Some(NOW));
    let looked = begun.elapsed();
    let claimed = f.store.claim_due_but(&me, "geo", "default", &away, 3, NOW + 9).await.expect("claimed");
    let took = begun.elapsed() - looked;
    let ids: Vec<&str> = claimed.iter().map(|claimed| claimed.job.id.as_str()).collect();
    assert_eq!(ids, ["template", "here1", "here2"]);
    println!("{} pinned elsewhere: next due {looked:?}, claim {took:?}", backlog);
    let all = f.store.claim_due(&me, "geo", "default", 4, NOW + 9).await.expect("claimed");
    assert!(
        all.iter().all(|claimed| claimed.job.id.starts_with("away") || claimed.job.id.starts_with("temp")),
        "oldest first"
    );
    assert_eq!(all.len(), 4);
    let rest = f.store.claim_due_but(&me, "geo", "default", &away, 500, NOW + 9).await.expect("claimed");
    assert_eq!(rest.len(), 2);
}

async fn jobs_wake_those_who_wait(f: Fixture) {
    let second = f.another().await;
    let (mut here, mut there) = (f.store.wakes(), second.wakes());
    insert(&f.store, new(json!({ "id": "a" }))).await;
    let soon = Duration::from_secs(20);
    let woken = tokio::time::timeout(soon, here.recv()).await.expect("in time").expect("a wake");
    assert_eq!(woken, Wake::Jobs("geo".to_owned()));
    if !f.is_sqlite() {
        // The listener of the other process may still be connecting: insert until it hears.
        let mut n = 0;
        let woken = loop {
            match tokio::time::timeout(Duration::from_millis(100), there.recv()).await {
                Ok(wake) => break wake.expect("a wake"),
                Err(_) if n < 200 => n += 1,
                Err(_) => panic!("the other process was never woken"),
            }
            insert(&f.store, new(json!({ "id": format!("n{n}") }))).await;
        };
        assert_eq!(woken, Wake::Jobs("geo".to_owned()));
        ended_with_callback(&f.store, "ended", "http://a.example/").await;
        while tokio::time::timeout(soon, there.recv()).await.expect("in time").expect("a wake") != Wake::Deliveries {}
    }
    let mut here = f.store.wakes();
    ended_with_callback(&f.store, "b", "http://a.example/").await;
    assert_eq!(tokio::time::timeout(soon, here.recv()).await.expect("in time").expect("a wake"), Wake::Deliveries);
    second.close().await;
}

async fn next_due_is_that_of_one_lane(f: Fixture) {
    assert_eq!(f.store.next_due("geo", "low").await.expect("read"), None);
    f.store.insert(vec![new(json!({ "id": "a" }))], NOW + 1).await.expect("inserted");
    f.store.insert(vec![new(json!({ "id": "b", "lane": "low" }))], NOW + 3).await.expect("inserted");
    f.store.insert(vec![new(json!({ "id": "c", "lane": "low" }))], NOW + 5).await.expect("inserted");
    f.store.insert(vec![new(json!({ "id": "d", "provider": "other", "lane": "low" }))], NOW).await.expect("inserted");
    assert_eq!(f.store.next_due("geo", "low").await.expect("read"), Some(NOW + 3));
    f.store.claim_due(&"me".to_owned(), "geo", "low", 1, NOW + 9).await.expect("claimed");
    assert_eq!(f.store.next_due("geo", "low").await.expect("read"), Some(NOW + 5));
    assert_eq!(f.store.next_due("geo", "high").await.expect("read"), None);
    assert_eq!(f.store.next_due("nobody", "low").await.expect("read"), None);
}

async fn what_waits_for_a_lane_is_known_and_can_be_moved(f: Fixture) {
    let pair = |provider: &str, lane: &str| (provider.to_owned(), lane.to_owned());
    assert_eq!(f.store.awaited().await.expect("read"), []);
    for (id, provider, lane) in
        [("a", "geo", "low"), ("b", "geo", "low"), ("c", "geo", "low"), ("d", "geo", "high"), ("e", "other", "high")]
    {
        f.store
            .insert(vec![new(json!({ "id": id, "provider": provider, "lane": lane }))], NOW)
            .await
            .expect("inserted");
    }
    let awaited = f.store.awaited().await.expect("read");
    assert_eq!(awaited, [pair("geo", "high"), pair("geo", "low"), pair("other", "high")]);
    let held = f.store.claim_due(&"me".to_owned(), "geo", "low", 1, NOW).await.expect("claimed");
    assert_eq!(held.len(), 1);
    assert_eq!(f.store.move_lane("geo", "low", "default", 1).await.expect("moved"), 1, "a batch of one");
    assert_eq!(f.store.move_lane("geo", "low", "default", 9).await.expect("moved"), 1, "not what is claimed");
    assert_eq!(f.store.move_lane("geo", "low", "default", 9).await.expect("moved"), 0);
    let moved = f.store.claim_due(&"me".to_owned(), "geo", "default", 9, NOW).await.expect("claimed");
    assert_eq!(moved.iter().map(|claimed| claimed.job.id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(f.store.awaited().await.expect("read"), [pair("geo", "high"), pair("other", "high")]);
}
