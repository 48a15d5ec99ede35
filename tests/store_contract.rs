//! One contract for both databases: every test runs on SQLite and on PostgreSQL.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "every test binary uses another part of it")]
mod common;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use common::Fixture;
use paceline::job::{Catalog, EventKind, Given, Job, JobState, ProviderRules};
use paceline::store::{
    Attempt, Buried, Cancelled, Claimed, DeadFilter, DeadReason, DeliveryJob, DeliveryNext, DeliveryRecord, Event,
    Identity, Inserted, JobFilter, NewJob, Next, Occasion, Origin, Record, Recorded, Replay, Replayed, Store,
    StoreError, StoreOptions, StoredResponse, WaitReason, Wake,
};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000_000;
const LEASE: Duration = Duration::from_secs(60);

/// Each test on both databases.
macro_rules! contract {
    ($($name:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::common::on_sqlite(false, crate::$name).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::common::on_postgres(crate::$name).await;
            })*
        }
    };
}

contract! {
    a_job_comes_back_as_it_went_in
    the_same_job_exists_and_another_one_conflicts
    identities_hold_within_one_batch
    identities_hold_among_many_tasks
    tenants_do_not_see_each_other
    a_given_owner_claims_at_once_but_not_what_starts_later
    claims_take_what_is_due_oldest_first
    claims_of_eight_tasks_never_hand_out_a_job_twice
    claims_are_bounded_by_bytes
    a_row_that_cannot_be_read_dies
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
    callbacks_choose_their_events
    a_registered_endpoint_is_found_by_its_id
    deliveries_are_claimed_retried_and_finished
    a_delivery_whose_claim_lapsed_is_claimed_again
    a_disabled_endpoint_blocks_nobody
    an_endpoint_that_fails_for_five_days_is_disabled
    cancelling_ends_what_nobody_holds
    cancelling_asks_the_owner
    a_cancelled_wait_ends_at_once
    what_was_asked_to_cancel_is_found_by_its_owner
    cancel_and_claim_race_to_one_end
    a_replay_is_a_new_run_with_its_history
    replays_choose_their_idempotency_key
    a_replay_can_be_edited_and_delayed
    a_replay_that_dies_again_has_one_letter
    what_cannot_be_replayed_says_so
    concurrent_replays_make_one_run
    messages_are_buried_with_everything_they_came_with
    a_message_that_comes_again_is_one_letter
    retiring_lets_go_of_everything
    rescue_takes_from_the_silent_and_the_unknown
    whoever_holds_a_lease_lives
    a_backlog_that_is_pinned_elsewhere_hides_nothing
    two_rescuers_release_each_job_once
    deadlines_expire_unclaimed_jobs
    retention_removes_all_that_belongs_to_a_job
    a_poisonous_item_fails_alone
    a_nul_in_a_text_keeps_nothing_from_being_written
    one_row_that_cannot_be_read_does_not_spoil_a_list
    lists_are_paged_and_filtered
    dead_letters_are_listed_filtered_and_purged
    depth_counts_what_is_open
    jobs_wake_those_who_wait
    next_due_is_that_of_one_lane
    what_waits_for_a_lane_is_known_and_can_be_moved
    every_state_has_exactly_one_event
    many_writers_at_once_lose_nothing
    migrating_at_once_is_safe
    a_closed_store_says_so
}

fn catalog() -> Catalog {
    let mut rules = ProviderRules::default();
    rules.lanes.insert("low".to_owned());
    rules.lanes.insert("high".to_owned());
    rules.pins.insert("a1".to_owned());
    let providers = ["geo", "other"].map(|name| (name.to_owned(), rules.clone()));
    Catalog { providers: providers.into(), allow_http: true, callbacks: true, endpoints: true, ..Catalog::default() }
}

fn job_of(mut envelope: Value) -> Job {
    let fields = envelope.as_object_mut().expect("an object");
    fields.entry("provider").or_insert("geo".into());
    fields.entry("request").or_insert(json!({ "path": "/v1" }));
    Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog()).expect("a valid job")
}

fn new(envelope: Value) -> NewJob {
    NewJob { job: job_of(envelope), origin: Origin::default(), owner: None }
}

fn owned(envelope: Value, owner: &str) -> NewJob {
    NewJob { owner: Some(owner.to_owned()), ..new(envelope) }
}

async fn insert(store: &Store, job: NewJob) -> Inserted {
    store.insert(vec![job], NOW).await.expect("inserted").pop().expect("one answer")
}

/// Inserts a job that is claimed at once.
async fn held(store: &Store, envelope: Value) -> Claimed {
    match insert(store, owned(envelope, "me")).await {
        Inserted::Created(Some(claimed)) => claimed,
        other => panic!("expected a claim, got {other:?}"),
    }
}

async fn claim(store: &Store, now_ms: i64) -> Vec<Claimed> {
    store.claim_due(&"me".to_owned(), "geo", "default", 100, now_ms).await.expect("claimed")
}

fn attempt(n: u32, outcome: &str) -> Attempt {
    let error = (outcome != "success").then(|| format!("it was {outcome}"));
    Attempt {
        n,
        at_ms: NOW + i64::from(n),
        key: "a1".to_owned(),
        status: Some(200),
        outcome: outcome.to_owned(),
        latency_ms: 12,
        error,
    }
}

fn record(claimed: &Claimed, next: Next) -> Record {
    Record {
        pk: claimed.pk,
        epoch: claimed.epoch,
        run: claimed.run,
        attempt: None,
        failures: claimed.failures,
        at_ms: NOW + 10,
        next,
    }
}

fn response() -> StoredResponse {
    StoredResponse {
        status: 200,
        headers: r#"{"x-request-id":"7"}"#.to_owned(),
        content_type: Some("application/json".to_owned()),
        body: Bytes::from_static(b"{\"ok\":true}\0\xff"),
        truncated: false,
    }
}

fn success() -> Next {
    Next::Finish { state: JobState::Succeeded, reason: None, error: None, response: Some(response()) }
}

fn death(reason: DeadReason) -> Next {
    Next::Finish { state: JobState::Dead, reason: Some(reason), error: Some("it failed".to_owned()), response: None }
}

fn wait(due_ms: i64) -> Next {
    Next::Wait { due_ms, reason: WaitReason::Backoff, backoff: Duration::from_millis(750) }
}

async fn write(store: &Store, record: Record) -> Recorded {
    store.record(record).await.expect("recorded")
}

async fn state(store: &Store, id: &str) -> JobState {
    store.job(None, id).await.expect("read").expect("there is one").state
}

async fn deliveries(store: &Store, now_ms: i64) -> Vec<DeliveryJob> {
    store.claim_deliveries(&"notifier".to_owned(), 100, now_ms, LEASE).await.expect("claimed")
}

/// The completion that a delivery tells.
fn event(job: &DeliveryJob) -> &Event {
    match &job.occasion {
        Occasion::Completion(event) => event,
        Occasion::Test { .. } => panic!("a test"),
    }
}

fn delivered(job: &DeliveryJob, next: DeliveryNext) -> DeliveryRecord {
    DeliveryRecord {
        pk: job.pk,
        epoch: job.epoch,
        n: job.attempts + 1,
        at_ms: NOW + 20,
        status: Some(204),
        latency_ms: 3,
        error: None,
        next,
    }
}

/// A dead job.
async fn dead(store: &Store, envelope: Value) -> Claimed {
    let claimed = held(store, envelope).await;
    let end = Record {
        attempt: Some(attempt(1, "permanent")),
        failures: 1,
        ..record(&claimed, death(DeadReason::Permanent))
    };
    assert_eq!(write(store, end).await, Recorded::Done);
    claimed
}

// Identity.

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

// Claims.

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

// Records.

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
    assert_eq!(f.number("SELECT COUNT(*) FROM attempts").await, 1);
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
    assert_eq!(f.number("SELECT COUNT(*) FROM attempts").await + f.number("SELECT COUNT(*) FROM events").await, 0);
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
    assert_eq!(f.number("SELECT COUNT(*) FROM attempts").await, 1);
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
    assert_eq!(f.number("SELECT COUNT(*) FROM attempts").await, 2);
    assert_eq!(state(&f.store, "a").await, JobState::Succeeded);
}

// Events and deliveries.

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

async fn ended_with_callback(store: &Store, id: &str, url: &str) {
    let claimed = held(store, json!({ "id": id, "callback": { "url": url } })).await;
    write(store, record(&claimed, success())).await;
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
    assert_eq!(f.number("SELECT COUNT(*) FROM delivery_attempts").await, 2, "the late one is not counted");
    assert_eq!(f.store.next_delivery_due().await.expect("read"), None);
    ended_with_callback(&f.store, "b", "http://a.example/").await;
    let spent = deliveries(&f.store, NOW + 10).await.pop().expect("due");
    f.store.record_delivery(delivered(&spent, DeliveryNext::Failed)).await.expect("recorded");
    assert!(deliveries(&f.store, NOW + 999_999).await.is_empty(), "kept, but not due");
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

// Cancelling.

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

// Replays.

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

fn message(tenant: &str) -> Buried {
    Buried {
        reason: DeadReason::Malformed,
        error: "$.request: missing".to_owned(),
        tenant: tenant.to_owned(),
        provider: Some("geo".to_owned()),
        lane: None,
        raw: Bytes::from_static(b"\0not json\xff"),
        headers: "{\"x\":1}".to_owned(),
        identity: None,
    }
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

// Owners.

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

// Time.

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
    assert_eq!(f.number("SELECT COUNT(*) FROM delivery_attempts").await, 0);
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

// Robustness.

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
    assert_eq!(f.number("SELECT COUNT(*) FROM attempts").await, 2 * jobs);
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

// What only one of them has.

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
        .args(["--exact", "holder_of_the_lock", "--nocapture"])
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

// Speed: a measurement, not a test. `cargo test --release --test store_contract speed -- --ignored --nocapture`

/// User and system time of this process, in microseconds.
fn cpu_micros() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("fields").split(' ').collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum();
    ticks * 10_000
}

struct Stage(&'static str, std::time::Instant, u64);

impl Stage {
    fn begin(name: &'static str) -> Self {
        Self(name, std::time::Instant::now(), cpu_micros())
    }

    fn end(self, jobs: usize) -> u64 {
        let (time, cpu) = (self.1.elapsed(), cpu_micros() - self.2);
        let jobs = jobs as u64;
        let each = u128::from(jobs) * 1_000_000 / time.as_micros().max(1);
        println!("{:<28} {each:>8}/s {:>6.1} µs CPU each", self.0, cpu as f64 / jobs as f64);
        cpu
    }
}

async fn speed(f: Fixture) {
    use futures_util::StreamExt as _;
    let jobs: usize = std::env::var("PACELINE_BENCH_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000);
    println!("{} of {jobs} jobs, 500 at once", if f.is_sqlite() { "SQLite" } else { "PostgreSQL" });
    let envelope = |i: usize| {
        json!({
            "id": format!("{}", uuid::Uuid::now_v7()), "tenant": "acme", "metadata": { "order": i },
            "request": { "method": "POST", "path": "/v1/geocode", "body": { "q": "Unter den Linden 77, Berlin", "n": i } },
            "callback": { "url": "http://127.0.0.1:9/hook" }
        })
    };
    let made: Vec<Job> = (0..2 * jobs).map(|i| job_of(envelope(i))).collect();
    let (now_claimed, later) = made.split_at(jobs);
    let as_new = |jobs: &[Job], owner: Option<&str>| -> Vec<Vec<NewJob>> {
        let new = |job: &Job| NewJob { job: job.clone(), origin: Origin::default(), owner: owner.map(str::to_owned) };
        jobs.chunks(50).map(|chunk| chunk.iter().map(new).collect()).collect()
    };
    let batches = as_new(now_claimed, Some("me"));
    let stage = Stage::begin("insert, claimed");
    let claimed: Vec<Claimed> = futures_util::stream::iter(batches)
        .map(|batch| f.store.insert(batch, NOW))
        .buffered(10)
        .flat_map(|answers| futures_util::stream::iter(answers.expect("inserted")))
        .map(|answer| match answer {
            Inserted::Created(Some(claimed)) => claimed,
            other => panic!("{other:?}"),
        })
        .collect()
        .await;
    let mut total = stage.end(jobs);
    let body = Bytes::from(vec![b'x'; 300]);
    let records: Vec<Record> = claimed
        .iter()
        .map(|c| {
            let response = Some(StoredResponse { body: body.clone(), ..response() });
            let next = Next::Finish { state: JobState::Succeeded, reason: None, error: None, response };
            Record { attempt: Some(attempt(1, "success")), ..record(c, next) }
        })
        .collect();
    let stage = Stage::begin("record success");
    let done = futures_util::stream::iter(records).map(|r| f.store.record(r)).buffer_unordered(500);
    done.for_each(async |answer| assert_eq!(answer.expect("recorded"), Recorded::Done)).await;
    total += stage.end(jobs);
    let me = "me".to_owned();
    let stage = Stage::begin("claim deliveries, by 100");
    let mut due = Vec::new();
    loop {
        let more = f.store.claim_deliveries(&me, 100, NOW + 10, LEASE).await.expect("claimed");
        if more.is_empty() {
            break;
        }
        due.extend(more);
    }
    assert_eq!(due.len(), jobs);
    total += stage.end(jobs);
    let stage = Stage::begin("record delivery");
    let records: Vec<DeliveryRecord> = due.iter().map(|d| delivered(d, DeliveryNext::Delivered)).collect();
    let done = futures_util::stream::iter(records).map(|r| f.store.record_delivery(r)).buffer_unordered(500);
    done.for_each(async |answer| answer.expect("recorded")).await;
    total += stage.end(jobs);
    println!("{:<28} {:>25.1} µs CPU a job", "the four together", total as f64 / jobs as f64);
    let batches = as_new(later, None);
    let stage = Stage::begin("insert, unclaimed");
    let done = futures_util::stream::iter(batches).map(|batch| f.store.insert(batch, NOW)).buffered(10);
    done.for_each(async |answers| drop(answers.expect("inserted"))).await;
    stage.end(jobs);
    let stage = Stage::begin("claim due, by 100");
    let mut n = 0;
    let mut owned = Vec::new();
    while n < jobs {
        let more = f.store.claim_due(&me, "geo", "default", 100, NOW).await.expect("claimed");
        n += more.len();
        owned.extend(more);
    }
    stage.end(jobs);
    let stage = Stage::begin("record wait");
    let done =
        futures_util::stream::iter(owned).map(|c| f.store.record(record(&c, wait(NOW + 500)))).buffer_unordered(500);
    done.for_each(async |answer| assert_eq!(answer.expect("recorded"), Recorded::Done)).await;
    stage.end(jobs);
    let stage = Stage::begin("one at a time: insert");
    for i in 0..200 {
        insert(&f.store, new(envelope(i))).await;
    }
    stage.end(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn speed_of_both() {
    common::on_sqlite(true, speed).await;
    common::on_postgres(speed).await;
}
