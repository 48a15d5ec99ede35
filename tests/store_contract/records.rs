//! What is written about claimed jobs.

use super::*;

contract! {
    keep_and_running_stay_with_the_owner
    waiting_goes_back_with_its_counters
    a_wait_never_passes_the_deadline
    release_is_due_at_once
    success_writes_state_event_and_delivery_once
    death_writes_a_dead_letter
    a_late_record_changes_nothing
    a_lost_answer_can_be_asked_for_again
    a_known_end_counts_even_after_a_rescue
    a_call_of_an_earlier_claim_is_not_taken_for_one_of_a_later_claim
    records_of_one_job_in_one_batch_keep_their_order
    every_state_has_exactly_one_event
}

async fn keep_and_running_stay_with_the_owner(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a", "delivery": "at_most_once" })).await;
    assert_eq!(write(&f.store, record(&claimed, Next::Running)).await, Recorded::Done);
    assert_eq!(state(&f.store, "a").await, JobState::Running);
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE started AND owner = 'me'").await, 1);
    let keep = Record { attempt: Some(attempt(1, "rate_limited")), ..record(&claimed, Next::Keep) };
    assert_eq!(write(&f.store, keep).await, Recorded::Done);
    let view = f.store.job(None, "a").await.expect("read").expect("there is one");
    assert_eq!(view.state, JobState::Queued, "it was answered, and goes again");
    assert_eq!(view.attempts, vec![(1, attempt(1, "rate_limited"))]);
    assert_eq!(view.error.as_deref(), Some("it was rate_limited"));
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE NOT started AND owner = 'me'").await, 1);
    let once = held(&f.store, json!({ "id": "b" })).await;
    write(&f.store, record(&once, Next::Running)).await;
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE started").await, 0, "at_least_once needs no mark");
}

async fn waiting_goes_back_with_its_counters(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    let first = Record { attempt: Some(attempt(1, "transient")), failures: 1, ..record(&claimed, wait(NOW + 500)) };
    assert_eq!(write(&f.store, first).await, Recorded::Done);
    let view = f.store.job(None, "a").await.expect("read").expect("there is one");
    assert_eq!(
        (view.state, view.due_ms, view.waiting_reason.as_deref()),
        (JobState::Waiting, Some(NOW + 500), Some("backoff"))
    );
    assert!(claim(&f.store, NOW + 499).await.is_empty());
    let again = claim(&f.store, NOW + 500).await.pop().expect("due");
    assert_eq!((again.pk, again.epoch, again.run), (claimed.pk, 2, 1));
    assert_eq!((again.attempts, again.failures, again.backoff), (1, 1, Duration::from_millis(750)));
    assert_eq!(again.first_attempt_ms, Some(NOW + 1));
    let second = Record { attempt: Some(attempt(2, "transient")), failures: 2, ..record(&again, wait(NOW + 900)) };
    assert_eq!(write(&f.store, second).await, Recorded::Done);
    let third = claim(&f.store, NOW + 900).await.pop().expect("due");
    assert_eq!((third.attempts, third.failures, third.first_attempt_ms), (2, 2, Some(NOW + 1)));
}

async fn a_wait_never_passes_the_deadline(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a", "deadline": "2027-01-16T00:00:00Z" })).await;
    let deadline = claimed.job.deadline_ms.expect("it has one");
    write(&f.store, record(&claimed, wait(deadline + 5000))).await;
    assert_eq!(f.store.job(None, "a").await.expect("read").expect("one").due_ms, Some(deadline));
    let late = json!({ "id": "b", "deadline": "2020-01-01T00:00:00Z" });
    insert(&f.store, new(late)).await;
    assert_eq!(f.store.expire_due(10, NOW).await.expect("expired"), 1);
    assert_eq!(state(&f.store, "b").await, JobState::Expired);
}

async fn release_is_due_at_once(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    assert_eq!(write(&f.store, record(&claimed, Next::Release)).await, Recorded::Done);
    assert_eq!(state(&f.store, "a").await, JobState::Queued);
    assert_eq!(claim(&f.store, NOW + 10).await.pop().expect("due").epoch, 2);
}

async fn success_writes_state_event_and_delivery_once(f: Fixture) {
    let envelope = json!({ "id": "a", "tenant": "acme", "metadata": { "order": 7 }, "callback": { "url": "http://a.example/hook" } });
    let claimed = held(&f.store, envelope).await;
    assert_eq!(f.store.result(None, "a").await.expect("read"), None);
    let end = Record { attempt: Some(attempt(1, "success")), ..record(&claimed, success()) };
    assert_eq!(write(&f.store, end.clone()).await, Recorded::Done);
    assert_eq!(write(&f.store, end).await, Recorded::Superseded);
    let view = f.store.job(Some("acme"), "a").await.expect("read").expect("one");
    assert_eq!((view.state, view.finished_ms, view.error), (JobState::Succeeded, Some(NOW + 10), None));
    assert_eq!(f.store.result(Some("acme"), "a").await.expect("read"), Some(response()));
    let due = deliveries(&f.store, NOW + 10).await;
    let [delivery] = &due[..] else { panic!("one delivery, got {due:?}") };
    assert_eq!((delivery.epoch, delivery.attempts), (1, 0));
    assert_eq!(
        (delivery.endpoint.url.as_str(), delivery.endpoint.tenant.as_str(), delivery.endpoint.implicit),
        ("http://a.example/hook", "acme", true)
    );
    assert!(delivery.endpoint.id.starts_with("ep_"));
    let event = event(delivery);
    assert_eq!((event.kind, event.at_ms, event.attempts), (EventKind::Succeeded, NOW + 10, 1));
    assert_eq!((event.job_id.as_str(), event.provider.as_str(), event.tenant.as_str()), ("a", "geo", "acme"));
    assert_eq!(event.metadata.as_deref(), Some("{\"order\":7}"));
    assert_eq!(event.response, Some(response()));
    assert!(event.id.starts_with("evt_"));
    assert_eq!(f.number("SELECT COUNT(*) FROM events").await, 1);
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 1);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_attempts").await, 1);
}

async fn death_writes_a_dead_letter(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a", "lane": "low" })).await;
    write(&f.store, Record { attempt: Some(attempt(1, "transient")), failures: 1, ..record(&claimed, Next::Keep) })
        .await;
    let end = Record {
        attempt: Some(attempt(2, "transient")),
        failures: 2,
        ..record(&claimed, death(DeadReason::AttemptsExhausted))
    };
    assert_eq!(write(&f.store, end).await, Recorded::Done);
    let letter = f.store.dead_letter(None, "a").await.expect("read").expect("there is one");
    assert_eq!((letter.reason.as_str(), letter.error.as_deref()), ("attempts_exhausted", Some("it failed")));
    assert_eq!(
        (letter.provider.as_deref(), letter.lane.as_deref(), letter.dead_ms),
        (Some("geo"), Some("low"), NOW + 10)
    );
    assert_eq!(letter.attempts.iter().map(|(run, a)| (*run, a.n)).collect::<Vec<_>>(), [(1, 1), (1, 2)]);
    let stored = Job::from_stored(&letter.envelope.expect("the whole envelope")).expect("readable");
    assert_eq!(stored.hash(), claimed.job.hash());
    assert!(letter.raw.is_none() && letter.replayed_ms.is_none());
    let view = f.store.job(None, "a").await.expect("read").expect("one");
    assert_eq!((view.state, view.reason.as_deref()), (JobState::Dead, Some("attempts_exhausted")));
}

async fn a_late_record_changes_nothing(f: Fixture) {
    let first = held(&f.store, json!({ "id": "a" })).await;
    write(&f.store, record(&first, Next::Release)).await;
    let second = claim(&f.store, NOW + 10).await.pop().expect("due");
    for next in [Next::Keep, Next::Running, wait(NOW + 99), Next::Release, success(), death(DeadReason::Permanent)] {
        let late = Record { attempt: Some(attempt(1, "success")), ..record(&first, next) };
        assert_eq!(write(&f.store, late).await, Recorded::Superseded);
    }
    assert_eq!(state(&f.store, "a").await, JobState::Queued);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_attempts").await + f.number("SELECT COUNT(*) FROM events").await, 0);
    let other_run = Record { run: 2, ..record(&second, success()) };
    assert_eq!(write(&f.store, other_run).await, Recorded::Superseded);
    assert_eq!(write(&f.store, record(&second, success())).await, Recorded::Done);
    assert_eq!(write(&f.store, Record { pk: 999_999, ..record(&second, success()) }).await, Recorded::Superseded);
}

async fn a_lost_answer_can_be_asked_for_again(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    let back = Record { attempt: Some(attempt(1, "transient")), failures: 1, ..record(&claimed, wait(NOW + 500)) };
    assert_eq!(write(&f.store, back.clone()).await, Recorded::Done);
    assert_eq!(write(&f.store, back).await, Recorded::Done);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_attempts").await, 1);
    assert_eq!(claim(&f.store, NOW + 500).await.len(), 1);
}

async fn a_known_end_counts_even_after_a_rescue(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a" })).await;
    f.execute("DELETE FROM owners").await;
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued"), 1);
    assert_eq!(write(&f.store, record(&claimed, Next::Keep)).await, Recorded::Superseded, "it is not its any more");
    assert_eq!(write(&f.store, record(&claimed, Next::Running)).await, Recorded::Superseded);
    assert_eq!(write(&f.store, record(&claimed, success())).await, Recorded::Done, "the call need not be made again");
    assert!(claim(&f.store, NOW + 10).await.is_empty());
}

/// A process that was taken for dead claims its own job again: two claims of one owner, each with its records.
async fn a_call_of_an_earlier_claim_is_not_taken_for_one_of_a_later_claim(f: Fixture) {
    let first = held(&f.store, json!({ "id": "a" })).await;
    f.execute("DELETE FROM owners").await;
    assert_eq!(f.store.rescue(Duration::from_secs(60), NOW).await.expect("rescued"), 1);
    let second = claim(&f.store, NOW).await.pop().expect("it is due again");
    assert_eq!(second.pk, first.pk);
    assert!(second.epoch > first.epoch, "claims are told apart");
    for next in [Next::Running, success(), wait(NOW + 99), death(DeadReason::Permanent), Next::Release] {
        assert_eq!(write(&f.store, record(&first, next.clone())).await, Recorded::Superseded, "{next:?}");
    }
    assert_eq!(state(&f.store, "a").await, JobState::Queued, "the second claim holds it as it was");
    assert_eq!(f.number("SELECT COUNT(*) FROM jobs WHERE owner = 'me'").await, 1);
    assert_eq!(write(&f.store, record(&second, success())).await, Recorded::Done);
    assert_eq!(write(&f.store, record(&first, death(DeadReason::Permanent))).await, Recorded::Superseded);
    assert_eq!(state(&f.store, "a").await, JobState::Succeeded);
}

async fn records_of_one_job_in_one_batch_keep_their_order(f: Fixture) {
    let claimed = held(&f.store, json!({ "id": "a", "delivery": "at_most_once" })).await;
    let kept = Record { attempt: Some(attempt(1, "rate_limited")), ..record(&claimed, Next::Keep) };
    let ended = Record { attempt: Some(attempt(2, "success")), ..record(&claimed, success()) };
    let (a, b, c, d) = tokio::join!(
        biased;
        f.store.record(record(&claimed, Next::Running)),
        f.store.record(kept),
        f.store.record(ended.clone()),
        f.store.record(ended),
    );
    let answers = [a, b, c, d].map(|answer| answer.expect("recorded"));
    assert_eq!(answers, [Recorded::Done, Recorded::Done, Recorded::Done, Recorded::Superseded]);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_attempts").await, 2);
    assert_eq!(state(&f.store, "a").await, JobState::Succeeded);
}

async fn every_state_has_exactly_one_event(f: Fixture) {
    for (id, state) in
        [("a", JobState::Succeeded), ("b", JobState::Dead), ("c", JobState::Expired), ("d", JobState::Cancelled)]
    {
        let claimed = held(&f.store, json!({ "id": id })).await;
        let end = || Next::Finish { state, reason: None, error: None, response: None };
        let ends = futures_util::future::join_all((0..4).map(|_| f.store.record(record(&claimed, end())))).await;
        let ends: Vec<Recorded> = ends.into_iter().map(|e| e.expect("recorded")).collect();
        assert_eq!(ends.iter().filter(|e| **e == Recorded::Done).count(), 1, "{ends:?}");
    }
    assert_eq!(
        f.texts("SELECT state FROM events ORDER BY job_pk").await,
        ["succeeded", "dead", "expired", "cancelled"]
    );
}
