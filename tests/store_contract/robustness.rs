//! Many at once, and what cannot be written.

use super::*;

contract! {
    a_poisonous_item_fails_alone
    a_nul_in_a_text_keeps_nothing_from_being_written
    many_writers_at_once_lose_nothing
    migrating_at_once_is_safe
    a_closed_store_says_so
}

async fn a_poisonous_item_fails_alone(f: Fixture) {
    let good = held(&f.store, json!({ "id": "good" })).await;
    let bad = held(&f.store, json!({ "id": "bad" })).await;
    // Its event is there already: the promise of one event a run refuses the second.
    f.execute(&format!(
        "INSERT INTO events (id, job_pk, run, state, at_ms, attempts) VALUES ('evt_x', {}, 1, 'dead', 0, 0)",
        bad.pk
    ))
    .await;
    let more: Vec<NewJob> = (0..20).map(|i| new(json!({ "id": format!("n{i}") }))).collect();
    let (a, b, c) = tokio::join!(
        f.store.record(record(&bad, success())),
        f.store.record(record(&good, success())),
        f.store.insert(more, NOW)
    );
    assert!(matches!(a, Err(StoreError::Unstorable(_))), "{a:?}");
    assert_eq!(b.expect("recorded"), Recorded::Done);
    assert!(c.expect("inserted").iter().all(|i| matches!(i, Inserted::Created(None))));
    assert_eq!(state(&f.store, "bad").await, JobState::Queued, "nothing of it is half-written");
    let not_an_end = Next::Finish { state: JobState::Queued, reason: None, error: None, response: None };
    assert!(f.store.record(record(&bad, not_an_end)).await.is_err());
}

async fn a_nul_in_a_text_keeps_nothing_from_being_written(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    let odd = Some(Attempt { error: Some("a\0b".to_owned()), ..attempt(1, "permanent") });
    let end = Next::Finish {
        state: JobState::Dead,
        reason: Some(DeadReason::Permanent),
        error: Some("\0".to_owned()),
        response: None,
    };
    assert_eq!(write(&f.store, Record { attempt: odd, ..record(&claimed, end) }).await, Recorded::Done);
    let letter = f.store.dead_letter(None, "a").await.expect("read").expect("there is one");
    assert_eq!(
        (letter.error.as_deref(), letter.attempts[0].1.error.as_deref()),
        (Some("\u{FFFD}"), Some("a\u{FFFD}b"))
    );
    let odd = Buried { error: "x\0".to_owned(), provider: Some("\0".to_owned()), ..message("t\0") };
    let id = f.store.bury(odd, NOW).await.expect("buried");
    assert_eq!(f.store.dead_letter(None, &id).await.expect("read").expect("kept").error.as_deref(), Some("x\u{FFFD}"));
}

async fn many_writers_at_once_lose_nothing(f: Fixture) {
    const EACH: usize = 60;
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = f.store.clone();
            tokio::spawn(async move {
                for i in 0..EACH {
                    let claimed = held(&store, json!({ "id": format!("t{task}-{i}"), "callback": { "url": format!("http://h{}.example/", i % 7) } })).await;
                    let back = Record { attempt: Some(attempt(1, "transient")), failures: 1, ..record(&claimed, Next::Keep) };
                    assert_eq!(write(&store, back).await, Recorded::Done);
                    let end = Record { attempt: Some(attempt(2, "success")), failures: 1, ..record(&claimed, success()) };
                    assert_eq!(write(&store, end).await, Recorded::Done);
                    for due in store.claim_deliveries(&format!("n{task}"), 5, NOW + 10, LEASE).await.expect("claimed") {
                        store.record_delivery(delivered(&due, DeliveryNext::Delivered)).await.expect("recorded");
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    for due in deliveries(&f.store, NOW + 10 + 60_000).await {
        f.store.record_delivery(delivered(&due, DeliveryNext::Delivered)).await.expect("recorded");
    }
    let jobs = i64::try_from(16 * EACH).expect("small");
    assert_eq!(
        f.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded' AND attempts = 2 AND owner IS NULL").await,
        jobs
    );
    assert_eq!(f.number("SELECT COUNT(*) FROM all_attempts").await, 2 * jobs);
    assert_eq!(f.number("SELECT COUNT(*) FROM events").await, jobs);
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE state = 'delivered' AND attempts = 1").await, jobs);
    assert_eq!(f.number("SELECT COUNT(*) FROM endpoints").await, 7);
}

async fn migrating_at_once_is_safe(f: Fixture) {
    assert_eq!(f.store.migrate().await.expect("migrated"), 0, "nothing is left to do");
    let fresh = tempfile::tempdir().expect("a folder");
    let (name, url) = if f.is_sqlite() {
        (None, format!("sqlite://{}", fresh.path().join("fresh.db").display()))
    } else {
        let (name, url) = common::create_database().await;
        (Some(name), url)
    };
    let options = StoreOptions { url, exclusive: false, connections_max: 4 };
    let starts = (0..8).map(|_| {
        let options = options.clone();
        tokio::spawn(async move {
            let store = Store::open(&options).await.expect("opened");
            let done = store.migrate().await.expect("migrated");
            store.ping().await.expect("it answers");
            store.close().await;
            done
        })
    });
    let done = futures_util::future::join_all(starts).await;
    let done: u32 = done.into_iter().map(|d| d.expect("no panic")).sum();
    let there = u32::try_from(
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite")).expect("a folder").count(),
    )
    .expect("few");
    assert_eq!(done, there, "each ran once");
    if let Some(name) = name {
        common::drop_database(&name).await;
    }
}

async fn a_closed_store_says_so(f: Fixture) {
    let second = f.another().await;
    second.close().await;
    assert!(matches!(second.ping().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(second.insert(vec![new(json!({ "id": "a" }))], NOW).await, Err(StoreError::Unavailable(_))));
    second.close().await;
}

/// Handlers and tasks are spawned: a future that cannot be sent would not compile there.
#[tokio::test]
async fn every_call_can_be_sent_to_another_thread() {
    const fn sendable<T: Send>(_: &T) {}
    common::on_sqlite(false, async |f: Fixture| {
        let (s, me) = (&f.store, "me".to_owned());
        let options = StoreOptions { url: String::new(), exclusive: false, connections_max: 1 };
        sendable(&Store::open(&options));
        sendable(&(s.migrate(), s.ping(), s.close(), s.insert(Vec::new(), 0), s.bury(message(""), 0)));
        sendable(&(
            s.claim_due(&me, "", "", 0, 0),
            s.next_due("", ""),
            s.claim_deliveries(&me, 0, 0, LEASE),
            s.next_delivery_due(),
        ));
        let (jobs, dead, how) = (JobFilter::default(), DeadFilter::default(), Replay::default());
        sendable(&(
            s.job(None, ""),
            s.jobs(&jobs, None, 0),
            s.result(None, ""),
            s.dead_letter(None, ""),
            s.dead_letters(&dead, None, 0),
        ));
        sendable(&(s.depth(), s.cancel(None, "", 0), s.replay(None, "", &how, 0), s.purge_dead(&dead, 0)));
        sendable(&(s.leases_take("", &[], &[], &me, LEASE), s.leases_renew("", &me, LEASE, &[])));
        sendable(&(s.leases_release("", &me, &[]), s.lease_survey("", LEASE), s.leases()));
        sendable(&(s.announce_dispatcher("", &me, ""), s.withdraw_dispatcher("", &me)));
        sendable(&(s.heartbeat(&me, ""), s.retire(&me, 0), s.rescue(LEASE, 0), s.expire_due(0, 0), s.retain(0, 0, 0)));
    })
    .await;
}
