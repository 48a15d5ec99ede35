//! What only one of the two databases has.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_exclusive_store_holds_a_file_at_a_time() {
    common::on_sqlite(true, async |f: Fixture| {
        let refused = Store::open(&f.options).await;
        assert!(matches!(&refused, Err(StoreError::Locked { path }) if path.ends_with("paceline.db")), "{refused:?}");
        let shared = f.another().await;
        assert!(
            matches!(insert(&shared, new(json!({ "id": "a" }))).await, Inserted::Created(None)),
            "tools still come in"
        );
        shared.close().await;
    })
    .await;
}

/// The other process of the next test; alone it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holder_of_the_lock() {
    let Ok(url) = std::env::var("PACELINE_TEST_HOLD") else { return };
    let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 4 }).await.expect("opened");
    store.migrate().await.expect("migrated");
    insert(&store, owned(json!({ "id": "a" }), "the other process")).await;
    println!("held");
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lock_ends_with_the_process_that_held_it() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
    let options = StoreOptions { url: url.clone(), exclusive: true, connections_max: 4 };
    let mut other = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "one_of_them::holder_of_the_lock", "--nocapture"])
        .env("PACELINE_TEST_HOLD", url)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("a second process");
    let said = std::io::BufReader::new(other.stdout.take().expect("piped"));
    assert!(said.lines().map(|line| line.expect("text")).any(|line| line.ends_with("held")), "it holds the lock");
    assert!(matches!(Store::open(&options).await, Err(StoreError::Locked { .. })));
    other.kill().expect("killed");
    other.wait().expect("gone");
    let store = Store::open(&options).await.expect("free again");
    store.migrate().await.expect("migrated");
    assert_eq!(store.rescue(Duration::from_secs(3600), NOW).await.expect("rescued"), 1);
    assert_eq!(claim(&store, NOW).await.pop().expect("due at once").job.id, "a");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exclusive_store_takes_over_at_once() {
    common::on_sqlite(true, async |f: Fixture| {
        let dead_process = f.another().await;
        insert(&dead_process, owned(json!({ "id": "a" }), "before the crash")).await;
        dead_process.close().await;
        held(&f.store, json!({ "id": "mine" })).await;
        assert_eq!(f.store.rescue(Duration::from_secs(3600), NOW).await.expect("rescued"), 1, "nobody else can live");
        assert_eq!(claim(&f.store, NOW).await.pop().expect("due").job.id, "a");
        assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE id = 'mine' AND owner = 'me' AND epoch = 1").await, 1);
    })
    .await;
}

#[tokio::test]
async fn other_urls_are_refused_without_repeating_them() {
    for url in ["mysql://user:secret@host/db", "sqlite::memory:", "", "sqlite:", "postgres://user:secret@host:port/x"] {
        let options = StoreOptions { url: url.to_owned(), exclusive: false, connections_max: 1 };
        let refused = Store::open(&options).await.expect_err("refused").to_string();
        assert!(refused.starts_with("store.url: ") && !refused.contains("secret"), "{url}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_cost_nothing_that_was_answered() {
    common::on_postgres(async |f: Fixture| {
        let cut = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'paceline'";
        let mut known = BTreeSet::new();
        for round in 0..40 {
            let id = format!("r{round}");
            // Every other one is claimed by the insert: nobody must be left holding it unknowingly.
            let job = || if round % 2 == 0 { new(json!({ "id": id })) } else { owned(json!({ "id": id }), "me") };
            let (mut answer, _) = tokio::join!(f.store.insert(vec![job()], NOW), f.number(cut));
            while let Err(error) = answer {
                // It may be there or not; doing it again settles that.
                assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
                answer = f.store.insert(vec![job()], NOW).await;
            }
            match answer.expect("stored").pop().expect("one answer") {
                Inserted::Created(Some(claimed)) => {
                    assert_eq!(write_until_known(&f.store, record(&claimed, Next::Release)).await, Recorded::Done)
                }
                Inserted::Created(None) | Inserted::Exists(JobState::Queued) => {}
                other => panic!("{other:?}"),
            }
            known.insert(id);
        }
        let mut claimed = BTreeSet::new();
        let begun = std::time::Instant::now();
        while claimed != known {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "held by nobody who knows: {:?}",
                known.difference(&claimed)
            );
            match f.store.claim_due(&"me".to_owned(), "geo", "default", 7, NOW + 10).await {
                Ok(more) => claimed.extend(more.into_iter().map(|c| c.job.id)),
                Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}"),
            }
            if claimed.len() < 20 {
                f.number(cut).await;
            }
        }
    })
    .await;
}

/// Records until there is an answer; doing it twice is safe.
async fn write_until_known(store: &Store, record: Record) -> Recorded {
    loop {
        match store.record(record.clone()).await {
            Ok(recorded) => return recorded,
            Err(error) => assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_fails_everybody_soon_and_comes_back() {
    common::on_postgres(async |f: Fixture| {
        let claimed = held(&f.store, json!({ "id": "a" })).await;
        let name = f.texts("SELECT current_database()::text").await.remove(0);
        let open = |yes: bool| format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {yes}");
        common::administer(open(false)).await;
        f.number("SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'paceline'").await;
        let begun = std::time::Instant::now();
        let calls = (0..2000).map(|i| f.store.insert(vec![new(json!({ "id": format!("n{i}") }))], NOW));
        let (inserts, recorded) = tokio::join!(futures_util::future::join_all(calls), f.store.record(record(&claimed, success())));
        assert!(inserts.iter().all(|i| matches!(i, Err(StoreError::Unavailable(_)))));
        assert!(matches!(recorded, Err(StoreError::Unavailable(_))), "{recorded:?}");
        assert!(matches!(f.store.ping().await, Err(StoreError::Unavailable(_))));
        assert!(begun.elapsed() < Duration::from_secs(12), "it took {:?}", begun.elapsed());
        common::administer(open(true)).await;
        assert_eq!(write(&f.store, record(&claimed, success())).await, Recorded::Done);
        assert_eq!(f.number("SELECT COUNT(*) FROM jobs").await, 1, "nothing was half-written");
        f.store.ping().await.expect("it is back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wakes_come_back_after_the_listener_was_cut_off() {
    common::on_postgres(async |f: Fixture| {
        let second = f.another().await;
        let mut there = second.wakes();
        second.claim_due(&"me".to_owned(), "geo", "default", 1, NOW).await.expect("claimed");
        for round in 0..2 {
            let mut n = 0;
            while tokio::time::timeout(Duration::from_millis(200), there.recv()).await.is_err() {
                assert!(n < 100, "never woken");
                n += 1;
                insert(&f.store, new(json!({ "id": format!("n{round}-{n}") }))).await;
            }
            f.number("SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'").await;
        }
        second.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_process_writes_to_is_waited_for() {
    common::on_sqlite(false, async |f: Fixture| {
        let second = f.another().await;
        let stores = [f.store.clone(), second.clone()];
        let tasks = (0..200).map(|i| {
            let store = stores[i % 2].clone();
            tokio::spawn(async move { insert(&store, new(json!({ "id": format!("j{i}") }))).await })
        });
        for task in futures_util::future::join_all(tasks).await {
            assert!(matches!(task.expect("no panic"), Inserted::Created(None)));
        }
        second.close().await;
    })
    .await;
}
