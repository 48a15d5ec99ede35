//! Owners that end, die, or only seem to.

use super::*;

contract! {
    retiring_lets_go_of_everything
    rescue_takes_from_the_silent_and_the_unknown
    whoever_holds_a_lease_lives
    two_rescuers_release_each_job_once
}

async fn retiring_lets_go_of_everything(f: Fixture) {
    let queued = held(&f.store, json!({ "id": "queued" })).await;
    let running = held(&f.store, json!({ "id": "running" })).await;
    write(&f.store, record(&running, Next::Running)).await;
    let started = held(
        &f.store,
        json!({ "id": "started", "delivery": "at_most_once", "callback": { "url": "http://a.example/" } }),
    )
    .await;
    write(&f.store, record(&started, Next::Running)).await;
    let idle = held(&f.store, json!({ "id": "idle", "delivery": "at_most_once" })).await;
    let asked = held(&f.store, json!({ "id": "asked" })).await;
    assert_eq!(f.store.cancel(None, "asked", NOW).await.expect("asked"), Cancelled::Asked);
    insert(&f.store, owned(json!({ "id": "theirs" }), "them")).await;
    assert_eq!(f.store.retire(&"me".to_owned(), NOW + 50).await.expect("retired"), 5);
    assert_eq!(state(&f.store, "started").await, JobState::Dead);
    assert_eq!(state(&f.store, "asked").await, JobState::Cancelled);
    let letter = f.store.dead_letter(None, "started").await.expect("read").expect("there is one");
    assert_eq!(letter.reason, "outcome_unknown");
    assert_eq!(letter.attempts[0].1.outcome, "unknown");
    let due: BTreeSet<i64> = claim(&f.store, NOW + 50).await.into_iter().map(|c| c.pk).collect();
    assert_eq!(due, BTreeSet::from([queued.pk, running.pk, idle.pk]));
    assert!(!due.contains(&asked.pk));
    assert_eq!(deliveries(&f.store, NOW + 50).await.len(), 1);
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE owner = 'them'").await, 1);
}

async fn rescue_takes_from_the_silent_and_the_unknown(f: Fixture) {
    held(&f.store, json!({ "id": "mine", "callback": { "url": "http://a.example/" } })).await;
    insert(&f.store, owned(json!({ "id": "silent" }), "silent")).await;
    insert(&f.store, owned(json!({ "id": "unknown" }), "unknown")).await;
    let started = match insert(&f.store, owned(json!({ "id": "started", "delivery": "at_most_once" }), "silent")).await
    {
        Inserted::Created(Some(claimed)) => claimed,
        other => panic!("{other:?}"),
    };
    write(&f.store, record(&started, Next::Running)).await;
    ended_with_callback(&f.store, "ended", "http://a.example/").await;
    let delivery =
        f.store.claim_deliveries(&"silent".to_owned(), 1, NOW + 10, LEASE).await.expect("claimed").pop().expect("due");
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued"), 0, "all have said that they live");
    f.execute("UPDATE owners SET seen_ms = seen_ms - 61000 WHERE id = 'silent'").await;
    f.execute("DELETE FROM owners WHERE id = 'unknown'").await;
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW + 20).await.expect("rescued"), 3);
    let due: BTreeSet<String> = claim(&f.store, NOW + 20).await.into_iter().map(|c| c.job.id).collect();
    assert_eq!(due, BTreeSet::from(["silent".to_owned(), "unknown".to_owned()]));
    assert_eq!(f.store.dead_letter(None, "started").await.expect("read").expect("dead").reason, "outcome_unknown");
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE orphaned").await, 3);
    let again = deliveries(&f.store, NOW + 20).await.pop().expect("its deliveries too");
    assert_eq!(again.pk, delivery.pk);
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued"), 0);
    assert_eq!(f.number("SELECT COUNT(*) FROM owners WHERE id IN ('silent', 'unknown')").await, 0);
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE id = 'mine' AND owner = 'me'").await, 1);
    f.execute("UPDATE owners SET seen_ms = seen_ms - 61000").await;
    f.store.heartbeat(&"me".to_owned(), "dispatcher").await.expect("alive");
    f.store.heartbeat(&"notifier".to_owned(), "notifier").await.expect("alive");
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued"), 0, "a heartbeat counts");
}

/// Its heartbeats did not arrive, and yet it renewed its lease.
async fn whoever_holds_a_lease_lives(f: Fixture) {
    insert(&f.store, owned(json!({ "id": "a" }), "busy")).await;
    let (busy, groups) = ("busy".to_owned(), [String::new()]);
    f.store.leases_take("geo", &[""], &groups, &busy, LEASE).await.expect("taken");
    f.execute("UPDATE owners SET seen_ms = 0").await;
    assert_eq!(f.store.rescue(Duration::from_secs(15), NOW).await.expect("rescued"), 0);
    f.execute("UPDATE leases SET expires_ms = 0").await;
    assert_eq!(f.store.rescue(Duration::from_secs(15), NOW).await.expect("rescued"), 1, "it ran out");
}

async fn two_rescuers_release_each_job_once(f: Fixture) {
    let jobs = (0..600).map(|i| owned(json!({ "id": format!("j{i}") }), "gone")).collect();
    f.store.insert(jobs, NOW).await.expect("inserted");
    f.execute("DELETE FROM owners").await;
    let second = f.another().await;
    let (a, b) =
        tokio::join!(f.store.rescue(Duration::from_secs(60), NOW), second.rescue(Duration::from_secs(60), NOW));
    assert_eq!(a.expect("rescued") + b.expect("rescued"), 600);
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE owner IS NULL AND state = 'queued'").await, 600);
    second.close().await;
}
