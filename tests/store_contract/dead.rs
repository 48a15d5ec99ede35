//! Dead letters, and replaying them.

use super::*;

contract! {
    a_replay_is_a_new_run_with_its_history
    replays_choose_their_idempotency_key
    a_replay_can_be_edited_and_delayed
    a_replay_that_dies_again_has_one_letter
    what_cannot_be_replayed_says_so
    concurrent_replays_make_one_run
    messages_are_buried_with_everything_they_came_with
    a_message_that_comes_again_is_one_letter
    dead_letters_are_listed_filtered_and_purged
}

async fn a_replay_is_a_new_run_with_its_history(f: Fixture) {
    let old = dead(
        &f.store,
        json!({ "id": "a", "deadline": "2027-01-16T00:00:00Z", "callback": { "url": "http://a.example/" } }),
    )
    .await;
    let deadline = old.job.deadline_ms.expect("it has one");
    let later = deadline + 1000;
    let mut wakes = f.store.wakes();
    assert_eq!(
        f.store.replay(None, "a", &Replay::default(), later).await.expect("replayed"),
        Replayed::Queued { run: 2 }
    );
    assert_eq!(wakes.recv().await.expect("a wake"), Wake::Jobs("geo".to_owned()));
    let letter = f.store.dead_letter(None, "a").await.expect("read").expect("kept");
    assert_eq!(letter.replayed_ms, Some(later));
    assert!(claim(&f.store, later).await.is_empty(), "it is in the lane of replays");
    let again =
        f.store.claim_due(&"me".to_owned(), "geo", "replay", 9, later).await.expect("claimed").pop().expect("due");
    assert_eq!((again.pk, again.run, again.attempts, again.failures, again.first_attempt_ms), (old.pk, 2, 0, 0, None));
    assert_eq!((again.job.lane.as_str(), again.job.deadline_ms), ("replay", None), "a deadline that passed is dropped");
    assert!(again.epoch > old.epoch);
    assert_eq!(write(&f.store, record(&old, success())).await, Recorded::Superseded, "the old run is over");
    let end = Record { attempt: Some(attempt(1, "success")), ..record(&again, success()) };
    assert_eq!(write(&f.store, end).await, Recorded::Done);
    let view = f.store.job(None, "a").await.expect("read").expect("one");
    assert_eq!((view.state, view.run, view.reason, view.error), (JobState::Succeeded, 2, None, None));
    assert_eq!(view.attempts.iter().map(|(run, a)| (*run, a.n)).collect::<Vec<_>>(), [(1, 1), (2, 1)]);
    let events: BTreeSet<_> = deliveries(&f.store, later).await.into_iter().map(|d| event(&d).id.clone()).collect();
    assert_eq!(events.len(), 2, "each run has its own event");
    assert!(
        matches!(
            insert(
                &f.store,
                new(
                    json!({ "id": "a", "deadline": "2027-01-16T00:00:00Z", "callback": { "url": "http://a.example/" } })
                )
            )
            .await,
            Inserted::Exists(JobState::Succeeded)
        ),
        "it is the same job still"
    );
}

async fn replays_choose_their_idempotency_key(f: Fixture) {
    let key_after = async |id: &str, outcome: &str, how: Replay| {
        let claimed = held(&f.store, json!({ "id": id })).await;
        write(&f.store, Record { attempt: Some(attempt(1, outcome)), ..record(&claimed, death(DeadReason::GaveUp)) })
            .await;
        f.store.replay(None, id, &how, NOW + 20).await.expect("replayed");
        let again = f
            .store
            .claim_due(&"me".to_owned(), "geo", "replay", 1, NOW + 20)
            .await
            .expect("claimed")
            .pop()
            .expect("due");
        write(&f.store, record(&again, success())).await;
        again.job.idempotency_key
    };
    let request = Some(job_of(json!({ "request": { "path": "/edited" } })).request);
    assert_eq!(key_after("a", "permanent", Replay::default()).await, "a.r2");
    assert_eq!(key_after("b", "unknown", Replay::default()).await, "b");
    assert_eq!(key_after("c", "unknown", Replay { request, ..Replay::default() }).await, "c.r2");
    assert_eq!(key_after("d", "permanent", Replay { keep_key: Some(true), ..Replay::default() }).await, "d");
    assert_eq!(key_after("e", "unknown", Replay { keep_key: Some(false), ..Replay::default() }).await, "e.r2");
    // Died after a rescue: a call of the dead dispatcher may have been executed.
    let claimed = held(&f.store, json!({ "id": "f" })).await;
    f.execute("DELETE FROM owners").await;
    f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued");
    let again = claim(&f.store, NOW).await.pop().expect("due");
    assert_eq!(again.pk, claimed.pk);
    write(&f.store, record(&again, death(DeadReason::Permanent))).await;
    f.store.replay(None, "f", &Replay::default(), NOW + 20).await.expect("replayed");
    let again =
        f.store.claim_due(&"me".to_owned(), "geo", "replay", 1, NOW + 20).await.expect("claimed").pop().expect("due");
    assert_eq!(again.job.idempotency_key, "f");
    // A key that was kept is kept on: the next run builds on it no more than the producer's own.
    write(&f.store, record(&again, death(DeadReason::Permanent))).await;
    f.store.replay(None, "f", &Replay::default(), NOW + 20).await.expect("replayed");
    let third =
        f.store.claim_due(&"me".to_owned(), "geo", "replay", 1, NOW + 20).await.expect("claimed").pop().expect("due");
    assert_eq!(third.job.idempotency_key, "f.r3");
}

async fn a_replay_can_be_edited_and_delayed(f: Fixture) {
    dead(&f.store, json!({ "id": "a" })).await;
    let request = job_of(json!({ "request": { "path": "/edited" } })).request;
    let how = Replay {
        request: Some(request),
        lane: Some("low".to_owned()),
        not_before_ms: Some(NOW + 5000),
        keep_key: None,
        ..Replay::default()
    };
    assert_eq!(f.store.replay(None, "a", &how, NOW + 20).await.expect("replayed"), Replayed::Queued { run: 2 });
    let view = f.store.job(None, "a").await.expect("read").expect("one");
    assert_eq!(
        (view.state, view.due_ms, view.waiting_reason.as_deref()),
        (JobState::Waiting, Some(NOW + 5000), Some("not_before"))
    );
    assert_eq!((view.job.request.path.as_str(), view.job.lane.as_str()), ("/edited", "low"));
    let me = "me".to_owned();
    assert!(f.store.claim_due(&me, "geo", "low", 9, NOW + 4999).await.expect("claimed").is_empty());
    assert_eq!(f.store.claim_due(&me, "geo", "low", 9, NOW + 5000).await.expect("claimed").len(), 1);
}

async fn a_replay_that_dies_again_has_one_letter(f: Fixture) {
    dead(&f.store, json!({ "id": "a" })).await;
    f.store.replay(None, "a", &Replay::default(), NOW + 20).await.expect("replayed");
    let again =
        f.store.claim_due(&"me".to_owned(), "geo", "replay", 1, NOW + 20).await.expect("claimed").pop().expect("due");
    write(&f.store, Record { at_ms: NOW + 30, ..record(&again, death(DeadReason::GaveUp)) }).await;
    let page = f.store.dead_letters(&DeadFilter::default(), None, 10).await.expect("listed");
    let [letter] = &page.items[..] else { panic!("one letter, got {:?}", page.items) };
    assert_eq!((letter.reason.as_str(), letter.dead_ms, letter.replayed_ms), ("gave_up", NOW + 30, None));
    assert_eq!(
        f.store.replay(None, "a", &Replay::default(), NOW + 40).await.expect("replayed"),
        Replayed::Queued { run: 3 }
    );
}

async fn what_cannot_be_replayed_says_so(f: Fixture) {
    let how = Replay::default();
    assert_eq!(f.store.replay(None, "nobody", &how, NOW).await.expect("asked"), Replayed::NotFound);
    let id = f.store.bury(message(""), NOW).await.expect("buried");
    assert_eq!(f.store.replay(None, &id, &how, NOW).await.expect("asked"), Replayed::NotAJob);
    dead(&f.store, json!({ "id": "a", "tenant": "acme" })).await;
    assert_eq!(f.store.replay(Some("evil"), "a", &how, NOW).await.expect("asked"), Replayed::NotFound);
    assert_eq!(f.store.replay(Some("acme"), "a", &how, NOW).await.expect("replayed"), Replayed::Queued { run: 2 });
    assert_eq!(f.store.replay(Some("acme"), "a", &how, NOW).await.expect("asked"), Replayed::NotDead(JobState::Queued));
}

async fn concurrent_replays_make_one_run(f: Fixture) {
    dead(&f.store, json!({ "id": "a" })).await;
    let how = Replay::default();
    let answers = futures_util::future::join_all((0..6).map(|_| f.store.replay(None, "a", &how, NOW + 20))).await;
    let answers: Vec<Replayed> = answers.into_iter().map(|a| a.expect("asked")).collect();
    assert_eq!(answers.iter().filter(|a| **a == Replayed::Queued { run: 2 }).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|a| **a == Replayed::NotDead(JobState::Queued)).count(), 5);
}

async fn messages_are_buried_with_everything_they_came_with(f: Fixture) {
    let id = f.store.bury(message("acme"), NOW).await.expect("buried");
    assert!(id.starts_with("dl_"));
    let letter = f.store.dead_letter(Some("acme"), &id).await.expect("read").expect("there is one");
    assert_eq!((letter.reason.as_str(), letter.error.as_deref()), ("malformed", Some("$.request: missing")));
    assert_eq!(letter.raw, Some(message("").raw));
    assert_eq!(letter.headers.as_deref(), Some("{\"x\":1}"));
    assert!(letter.envelope.is_none() && letter.attempts.is_empty());
    assert_ne!(f.store.bury(message("acme"), NOW).await.expect("buried"), id);
}

async fn a_message_that_comes_again_is_one_letter(f: Fixture) {
    let known = |hash: u8, again| Buried { identity: Some(Identity { hash: [hash; 32], again }), ..message("t") };
    let bury = async |message| f.store.bury(message, NOW).await.expect("buried");
    let first = bury(known(1, false)).await;
    assert_eq!(bury(known(1, true)).await, first, "delivered again");
    let alike = bury(known(1, false)).await;
    assert_ne!(alike, first, "one that only looks the same is another one");
    let (a, b, c) = tokio::join!(bury(known(2, true)), bury(known(2, true)), bury(known(2, false)));
    assert_eq!(a, b);
    assert_eq!(BTreeSet::from([&a, &c]).len(), 1 + usize::from(a != c));
    assert_ne!(bury(Buried { tenant: "u".to_owned(), ..known(1, true) }).await, String::new(), "of another tenant");
    let letters = f.number("SELECT COUNT(*) FROM dead_letters WHERE tenant = 't'").await;
    assert_eq!(letters, 2 + 1 + i64::from(a != c), "each once");
    assert!(f.store.dead_letter(Some("t"), &alike).await.expect("read").is_some());
}

async fn dead_letters_are_listed_filtered_and_purged(f: Fixture) {
    dead(&f.store, json!({ "id": "a", "tenant": "acme", "lane": "low" })).await;
    dead(&f.store, json!({ "id": "b" })).await;
    f.store.bury(message(""), NOW).await.expect("buried");
    f.store.replay(None, "b", &Replay::default(), NOW + 20).await.expect("replayed");
    let count = async |filter: DeadFilter| f.store.dead_letters(&filter, None, 10).await.expect("listed").items.len();
    assert_eq!(count(DeadFilter::default()).await, 3);
    assert_eq!(count(DeadFilter { reason: Some("malformed".to_owned()), ..DeadFilter::default() }).await, 1);
    assert_eq!(
        count(DeadFilter { lane: Some("low".to_owned()), tenant: Some("acme".to_owned()), ..DeadFilter::default() })
            .await,
        1
    );
    assert_eq!(count(DeadFilter { replayed: Some(true), ..DeadFilter::default() }).await, 1);
    assert_eq!(
        count(DeadFilter { replayed: Some(false), provider: Some("geo".to_owned()), ..DeadFilter::default() }).await,
        2
    );
    let page = f.store.dead_letters(&DeadFilter::default(), None, 2).await.expect("listed");
    let rest = f.store.dead_letters(&DeadFilter::default(), page.next, 2).await.expect("listed");
    assert_eq!((page.items.len(), rest.items.len(), rest.next), (2, 1, None));
    let acme = DeadFilter { tenant: Some("acme".to_owned()), ..DeadFilter::default() };
    assert_eq!(f.store.purge_dead(&acme, 10).await.expect("purged"), 1);
    assert_eq!(f.store.purge_dead(&DeadFilter::default(), 1).await.expect("purged"), 1, "bounded");
    assert_eq!(count(DeadFilter::default()).await, 1);
    assert_eq!(f.store.replay(None, "a", &Replay::default(), NOW).await.expect("asked"), Replayed::NotFound);
}
