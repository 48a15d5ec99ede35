//! Which jobs are the same, and whose they are.

use super::*;

contract! {
    a_job_comes_back_as_it_went_in
    the_same_job_exists_and_another_one_conflicts
    identities_hold_within_one_batch
    identities_hold_among_many_tasks
    tenants_do_not_see_each_other
}

async fn a_job_comes_back_as_it_went_in(f: Fixture) {
    let envelope = json!({
        "id": "a", "tenant": "acme", "lane": "low", "cost": 7, "key": "a1", "delivery": "at_most_once",
        "idempotency_key": "k-1", "metadata": { "n": 1.50 }, "deadline": "2030-01-01T00:00:00Z",
        "request": { "method": "POST", "path": "/v1/x", "query": { "q": ["a", 1] }, "headers": { "x-a": "b" }, "body": { "z": 1, "a": "é" } },
        "callback": { "url": "http://127.0.0.1/hook", "events": ["job.dead"] }, "retry": { "max_attempts": 3 }
    });
    let sent = job_of(envelope.clone());
    assert!(matches!(insert(&f.store, new(envelope)).await, Inserted::Created(None)));
    let view = f.store.job(Some("acme"), "a").await.expect("read").expect("there is one");
    assert_eq!(view.state, JobState::Queued);
    assert_eq!((view.run, view.created_ms, view.finished_ms), (1, NOW, None));
    assert!(view.attempts.is_empty());
    assert_eq!(view.job.hash(), sent.hash());
    let claimed = f.store.claim_due(&"me".to_owned(), "geo", "low", 1, NOW).await.expect("claimed").pop().expect("one");
    assert_eq!(claimed.job.hash(), sent.hash());
    assert_eq!(
        claimed.job.request.body.as_ref().map(|b| b.get()),
        sent.request.body.as_ref().map(|b| b.get()),
        "to the byte"
    );
    assert_eq!((claimed.epoch, claimed.run, claimed.attempts, claimed.failures), (1, 1, 0, 0));
    assert_eq!(claimed.job.idempotency_key, "k-1");
    assert!(f.store.job(None, "b").await.expect("read").is_none());
}

async fn the_same_job_exists_and_another_one_conflicts(f: Fixture) {
    assert!(matches!(insert(&f.store, new(json!({ "id": "a", "cost": 2 }))).await, Inserted::Created(None)));
    assert!(matches!(insert(&f.store, new(json!({ "id": "a", "cost": 2 }))).await, Inserted::Exists(JobState::Queued)));
    assert!(matches!(insert(&f.store, new(json!({ "id": "a", "cost": 3 }))).await, Inserted::Conflict));
    let claimed = claim(&f.store, NOW).await.pop().expect("one");
    write(&f.store, record(&claimed, success())).await;
    assert!(matches!(
        insert(&f.store, owned(json!({ "id": "a", "cost": 2 }), "me")).await,
        Inserted::Exists(JobState::Succeeded)
    ));
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs").await, 1);
}

async fn identities_hold_within_one_batch(f: Fixture) {
    let jobs = vec![
        new(json!({ "id": "a" })),
        new(json!({ "id": "a" })),
        new(json!({ "id": "a", "cost": 9 })),
        new(json!({ "id": "b" })),
        new(json!({ "id": "a", "tenant": "acme" })),
    ];
    let answers = f.store.insert(jobs, NOW).await.expect("inserted");
    assert!(
        matches!(
            answers[..],
            [
                Inserted::Created(None),
                Inserted::Exists(JobState::Queued),
                Inserted::Conflict,
                Inserted::Created(None),
                Inserted::Created(None)
            ]
        ),
        "{answers:?}"
    );
    assert!(f.store.insert(Vec::new(), NOW).await.expect("nothing").is_empty());
}

async fn identities_hold_among_many_tasks(f: Fixture) {
    // Two processes, the same 40 ids in different orders, half of them with another content.
    let second = f.another().await;
    let tasks: Vec<_> = (0..8i64)
        .map(|task| {
            let store = if task % 2 == 0 { f.store.clone() } else { second.clone() };
            tokio::spawn(async move {
                let mut ids: Vec<i64> = (0..40).collect();
                ids.rotate_left(usize::try_from(task * 5).expect("small"));
                if task % 3 == 0 {
                    ids.reverse();
                }
                let jobs = ids.iter().map(|id| new(json!({ "id": format!("j{id}"), "cost": 1 + task % 2 }))).collect();
                store.insert(jobs, NOW).await.expect("inserted")
            })
        })
        .collect();
    let (mut created, mut exists, mut conflicts) = (0, 0, 0);
    for task in tasks {
        for answer in task.await.expect("no panic") {
            match answer {
                Inserted::Created(_) => created += 1,
                Inserted::Exists(_) => exists += 1,
                Inserted::Conflict => conflicts += 1,
            }
        }
    }
    assert_eq!((created, exists, conflicts), (40, 3 * 40, 4 * 40));
    second.close().await;
}

async fn tenants_do_not_see_each_other(f: Fixture) {
    insert(&f.store, new(json!({ "id": "a", "tenant": "x" }))).await;
    assert!(f.store.job(Some("y"), "a").await.expect("read").is_none());
    assert!(f.store.job(Some(""), "a").await.expect("read").is_none());
    assert!(f.store.job(Some("x"), "a").await.expect("read").is_some());
    assert!(f.store.job(None, "a").await.expect("read").is_some());
    assert_eq!(f.store.cancel(Some("y"), "a", NOW).await.expect("asked"), Cancelled::NotFound);
    assert!(matches!(insert(&f.store, new(json!({ "id": "a", "tenant": "y" }))).await, Inserted::Created(None)));
}
