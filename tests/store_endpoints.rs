//! Endpoints and deliveries in the store, on both databases: which completions reach whom, decided with the outcome;
//! what is sent again, and that nothing of it is lost or doubled.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "every test binary uses another part of it")]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::{Fixture, contract};
use paceline::clock::SystemClock;
use paceline::job::{Catalog, EventKind, Given, Job, JobState, ProviderRules};
use paceline::resends::Resender;
use paceline::store::{
    By, DeliveryFilter, DeliveryJob, DeliveryNext, DeliveryRecord, DeliveryState, EndpointSecrets, Inserted,
    NewEndpoint, NewJob, Next, Occasion, Occurrence, Origin, Publication, Record, Recorded, Registered, ResendBegun,
    ResendOrder, ResendState, Resent, Rotated, SecretVersion, Store, Subscribe, Tested,
};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000_000;
const OPS: By<'_> = at(NOW);
const LEASE: Duration = Duration::from_secs(60);

contract! {
    completions_reach_those_who_subscribed_and_those_who_are_named
    an_endpoint_hears_of_its_own_tenant_only
    what_a_disabled_endpoint_missed_is_held_back_and_sent_again
    a_delivery_that_is_sent_again_begins_its_schedule_anew
    a_late_record_does_not_undo_a_resend
    a_resend_goes_on_after_a_crash_and_doubles_nothing
    a_resend_stops_with_its_endpoint
    resends_at_once_send_each_delivery_once
    a_deleted_endpoint_gets_nothing_and_blocks_nobody
    tests_are_sent_once_and_removed_in_time
    secrets_are_replaced_by_one_at_a_time
    what_is_done_to_endpoints_and_deliveries_is_written_down
    endpoints_are_listed_by_tenant_and_bounded
    completions_for_the_broker_are_claimed_apart_and_only_where_there_is_one
    nothing_is_kept_of_what_the_broker_has
    deliveries_for_the_broker_stand_in_no_webhooks_way
}

const fn at(now_ms: i64) -> By<'static> {
    By { who: "ops", now_ms }
}

fn catalog() -> Catalog {
    let providers = BTreeMap::from([("geo".to_owned(), ProviderRules::default())]);
    Catalog { providers, allow_http: true, callbacks: true, endpoints: true, ..Catalog::default() }
}

fn endpoint(id: &str, tenant: &str, subscribe: Subscribe, events: &[EventKind]) -> NewEndpoint {
    NewEndpoint {
        id: id.to_owned(),
        tenant: tenant.to_owned(),
        url: format!("https://{id}.example/hook"),
        description: None,
        events: (!events.is_empty()).then(|| events.iter().copied().collect()),
        subscribe,
        secrets: secrets(1),
    }
}

fn secrets(version: u32) -> EndpointSecrets {
    EndpointSecrets { current: SecretVersion { version, sealed: None }, older: Vec::new(), ed25519: false }
}

async fn register(store: &Store, new: &NewEndpoint) -> i64 {
    assert_eq!(store.register_endpoint(new, None, OPS).await.expect("registered"), Registered::Done);
    store.endpoint(None, &new.id).await.expect("read").expect("it is there").pk
}

/// Ends a job in that state.
async fn end(store: &Store, id: &str, more: Value, state: JobState) {
    end_from(store, id, more, state, Origin::default(), NOW).await;
}

async fn end_from(store: &Store, id: &str, more: Value, state: JobState, origin: Origin, at_ms: i64) {
    let mut envelope = json!({ "id": id, "provider": "geo", "request": { "path": "/v1" } });
    let fields = envelope.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog()).expect("a valid job");
    let new = NewJob { job, origin, owner: Some("me".to_owned()) };
    let inserted = store.insert(vec![new], at_ms).await.expect("inserted").pop();
    let Some(Inserted::Created(Some(claimed))) = inserted else { panic!("claimed: {inserted:?}") };
    let next = Next::Finish { state, reason: None, error: None, response: None };
    let (pk, epoch, run) = (claimed.pk, claimed.epoch, claimed.run);
    let record = Record { pk, epoch, run, attempt: None, failures: 0, at_ms, next };
    assert_eq!(store.record(record).await.expect("recorded"), Recorded::Done);
}

async fn due(store: &Store, now_ms: i64) -> Vec<DeliveryJob> {
    store.claim_deliveries(&"notifier".to_owned(), 1_000, now_ms, LEASE).await.expect("claimed")
}

fn record(job: &DeliveryJob, at_ms: i64, next: DeliveryNext) -> DeliveryRecord {
    let error = (next != DeliveryNext::Delivered).then(|| "answered 500".to_owned());
    let (pk, epoch, n) = (job.pk, job.epoch, job.attempts + 1);
    DeliveryRecord { pk, epoch, n, at_ms, status: Some(500), latency_ms: 3, error, next }
}

async fn write(store: &Store, job: &DeliveryJob, next: DeliveryNext) {
    store.record_delivery(record(job, NOW, next)).await.expect("recorded");
}

/// Endpoint and job of each.
fn pairs(jobs: &[DeliveryJob]) -> BTreeSet<(String, String)> {
    let job_of = |job: &DeliveryJob| match &job.occasion {
        Occasion::Completion(event) => event.job_id.clone(),
        Occasion::Test { .. } => "test".to_owned(),
    };
    let found: BTreeSet<_> = jobs.iter().map(|job| (job.endpoint.id.clone(), job_of(job))).collect();
    assert_eq!(found.len(), jobs.len(), "none twice");
    found
}

fn owned(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
}

async fn completions_reach_those_who_subscribed_and_those_who_are_named(f: Fixture) {
    register(&f.store, &endpoint("ep_all", "", Subscribe::All, &[])).await;
    register(&f.store, &endpoint("ep_dead", "", Subscribe::All, &[EventKind::Dead])).await;
    register(&f.store, &endpoint("ep_named", "", Subscribe::Named, &[])).await;
    register(&f.store, &endpoint("ep_named_dead", "", Subscribe::Named, &[EventKind::Dead])).await;
    let named = |id: &str| json!({ "callback": { "endpoint": id } });
    end(&f.store, "plain", json!({}), JobState::Succeeded).await;
    end(&f.store, "to-named", named("ep_named"), JobState::Succeeded).await;
    end(&f.store, "to-all", named("ep_all"), JobState::Succeeded).await;
    end(&f.store, "filtered", named("ep_named_dead"), JobState::Succeeded).await;
    let picky = json!({ "callback": { "endpoint": "ep_named", "events": ["job.dead"] } });
    end(&f.store, "picky", picky, JobState::Succeeded).await;
    end(&f.store, "dies", named("ep_named_dead"), JobState::Dead).await;
    end(&f.store, "lost", named("ep_nowhere"), JobState::Succeeded).await;
    let expected = owned(&[
        ("ep_all", "plain"),
        ("ep_all", "to-named"),
        ("ep_named", "to-named"),
        // Named and subscribed: once.
        ("ep_all", "to-all"),
        ("ep_all", "filtered"),
        ("ep_all", "picky"),
        ("ep_all", "dies"),
        ("ep_dead", "dies"),
        ("ep_named_dead", "dies"),
        ("ep_all", "lost"),
    ]);
    let claimed = due(&f.store, NOW).await;
    assert_eq!(pairs(&claimed), expected);
    assert!(claimed.iter().all(|job| job.endpoint.secrets == Some(secrets(1)) && !job.endpoint.implicit));
}

async fn an_endpoint_hears_of_its_own_tenant_only(f: Fixture) {
    register(&f.store, &endpoint("ep_none", "", Subscribe::All, &[])).await;
    register(&f.store, &endpoint("ep_acme", "acme", Subscribe::All, &[])).await;
    register(&f.store, &endpoint("ep_globex", "globex", Subscribe::Named, &[])).await;
    end(&f.store, "a", json!({}), JobState::Succeeded).await;
    end(&f.store, "b", json!({ "tenant": "acme" }), JobState::Succeeded).await;
    let theirs = json!({ "tenant": "acme", "callback": { "endpoint": "ep_globex" } });
    end(&f.store, "c", theirs, JobState::Succeeded).await;
    assert_eq!(pairs(&due(&f.store, NOW).await), owned(&[("ep_none", "a"), ("ep_acme", "b"), ("ep_acme", "c")]));
    // Nor do tenants see each other's.
    assert!(f.store.endpoint(Some("acme"), "ep_globex").await.expect("read").is_none());
    let list = f.store.endpoints(Some("acme"), None, 50).await.expect("read");
    assert_eq!(list.items.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["ep_acme"]);
    let filter = DeliveryFilter { tenant: Some("acme".to_owned()), ..DeliveryFilter::default() };
    let seen = f.store.deliveries(&filter, None, 50).await.expect("read").items;
    assert_eq!(seen.iter().map(|d| d.job.as_deref()).collect::<Vec<_>>(), [Some("c"), Some("b")]);
    let others = f.store.deliveries(&DeliveryFilter::default(), None, 50).await.expect("read").items;
    let foreign = others.iter().find(|d| d.tenant.is_empty()).expect("of nobody").pk;
    assert!(f.store.delivery(Some("acme"), foreign).await.expect("read").is_none());
}

async fn what_a_disabled_endpoint_missed_is_held_back_and_sent_again(f: Fixture) {
    let pk = register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    end(&f.store, "before", json!({}), JobState::Succeeded).await;
    assert!(f.store.enable_endpoint(pk, false, OPS).await.expect("disabled"));
    let view = f.store.endpoint(None, "ep_1").await.expect("read").expect("one");
    assert_eq!((view.enabled, view.disabled_reason.as_deref()), (false, Some("operator")));
    end(&f.store, "while", json!({}), JobState::Succeeded).await;
    assert!(due(&f.store, NOW).await.is_empty());
    let disabled = DeliveryFilter { state: Some(DeliveryState::Disabled), ..DeliveryFilter::default() };
    let held = f.store.deliveries(&disabled, None, 50).await.expect("read").items;
    assert_eq!(held.iter().map(|d| d.job.as_deref()).collect::<Vec<_>>(), [Some("while"), Some("before")]);
    assert_eq!(f.store.resend_delivery(held[0].pk, OPS).await.expect("asked"), Resent::Disabled);
    let order = ResendOrder { since_ms: NOW, everything: false };
    assert_eq!(f.store.begin_resend(pk, order, OPS).await.expect("asked"), ResendBegun::Disabled);

    assert!(f.store.enable_endpoint(pk, true, OPS).await.expect("enabled"));
    assert!(due(&f.store, NOW).await.is_empty(), "nothing goes by itself");
    assert_eq!(f.store.resend_delivery(held[0].pk, at(NOW + 1)).await.expect("asked"), Resent::Due);
    assert_eq!(pairs(&due(&f.store, NOW + 1).await), owned(&[("ep_1", "while")]));
    assert_eq!(f.store.begin_resend(pk, order, at(NOW + 2)).await.expect("asked"), ResendBegun::Running);
    assert_eq!(f.store.begin_resend(pk, order, at(NOW + 2)).await.expect("asked"), ResendBegun::Busy);
    drain(&f.store).await;
    assert_eq!(pairs(&due(&f.store, i64::MAX / 2).await), owned(&[("ep_1", "before"), ("ep_1", "while")]));
    let resend = f.store.endpoint(None, "ep_1").await.expect("read").expect("one").resend.expect("an order");
    assert_eq!((resend.state, resend.resent), (ResendState::Done, 1), "the other one was pending already");
}

/// Goes through every resend.
async fn drain(store: &Store) {
    let resender = Resender::new(store.clone(), std::sync::Arc::new(SystemClock::new()));
    while resender.pass().await.expect("a step") {}
}

async fn a_delivery_that_is_sent_again_begins_its_schedule_anew(f: Fixture) {
    register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    end(&f.store, "a", json!({}), JobState::Succeeded).await;
    let first = due(&f.store, NOW).await.pop().expect("due");
    write(&f.store, &first, DeliveryNext::Retry { due_ms: NOW }).await;
    let second = due(&f.store, NOW).await.pop().expect("due");
    assert_eq!((second.attempts, second.attempts_before), (1, 0));
    write(&f.store, &second, DeliveryNext::Failed).await;
    let failed = f.store.delivery(None, first.pk).await.expect("read").expect("one");
    assert_eq!((failed.state, failed.attempts.len(), failed.due_ms), (DeliveryState::Failed, 2, None));
    assert_eq!(f.store.resend_delivery(first.pk, at(NOW + 5)).await.expect("asked"), Resent::Due);
    let third = due(&f.store, NOW + 5).await.pop().expect("due");
    assert_eq!((third.pk, third.attempts, third.attempts_before), (first.pk, 2, 2));
    assert_eq!(f.store.resend_delivery(first.pk, at(NOW + 6)).await.expect("asked"), Resent::Underway);
    write(&f.store, &third, DeliveryNext::Delivered).await;
    let view = f.store.delivery(None, first.pk).await.expect("read").expect("one");
    assert_eq!(view.state, DeliveryState::Delivered);
    assert_eq!(view.attempts.iter().map(|a| a.n).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(view.occurrence, Occurrence::Completion(EventKind::Succeeded));
    // What was delivered can be sent again, too, under the same event.
    assert_eq!(f.store.resend_delivery(first.pk, at(NOW + 7)).await.expect("asked"), Resent::Due);
    assert_eq!(f.store.resend_delivery(i64::MAX, OPS).await.expect("asked"), Resent::NotFound);
}

async fn a_late_record_does_not_undo_a_resend(f: Fixture) {
    register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    end(&f.store, "a", json!({}), JobState::Succeeded).await;
    let claimed = due(&f.store, NOW).await.pop().expect("due");
    // Its notifier dies, and somebody sends it again.
    f.store.retire(&"notifier".to_owned(), NOW).await.expect("let go");
    assert_eq!(f.store.resend_delivery(claimed.pk, OPS).await.expect("asked"), Resent::Due);
    write(&f.store, &claimed, DeliveryNext::Failed).await;
    let view = f.store.delivery(None, claimed.pk).await.expect("read").expect("one");
    assert_eq!((view.state, view.attempts.len()), (DeliveryState::Pending, 0));
}

/// So many deliveries of one endpoint that failed.
async fn failed(store: &Store, count: usize) -> i64 {
    let pk = register(store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    for n in 0..count {
        end_from(store, &format!("j{n}"), json!({}), JobState::Succeeded, Origin::default(), NOW + 10).await;
    }
    for job in due(store, NOW + 10).await {
        write(store, &job, DeliveryNext::Failed).await;
    }
    pk
}

async fn a_resend_goes_on_after_a_crash_and_doubles_nothing(f: Fixture) {
    let pk = failed(&f.store, 25).await;
    let early = ResendOrder { since_ms: NOW + 11, everything: false };
    assert_eq!(f.store.begin_resend(pk, early, at(NOW + 20)).await.expect("asked"), ResendBegun::Running);
    drain(&f.store).await;
    assert!(due(&f.store, i64::MAX / 2).await.is_empty(), "nothing since then");

    let order = ResendOrder { since_ms: NOW + 10, everything: false };
    assert_eq!(f.store.begin_resend(pk, order, at(NOW + 30)).await.expect("asked"), ResendBegun::Running);
    let seen = f.store.running_resends().await.expect("read");
    assert_eq!(f.store.advance_resend(&seen[0], 10, NOW + 30).await.expect("a step"), Some(ResendState::Running));
    // One that saw the same step goes nowhere, and a process that begins anew goes on behind it.
    assert_eq!(f.store.advance_resend(&seen[0], 10, NOW + 30).await.expect("a step"), None);
    assert_eq!(due(&f.store, NOW + 30).await.len(), 10);
    drain(&f.store).await;
    let rest = due(&f.store, i64::MAX / 4).await;
    assert_eq!(pairs(&rest).len(), 25, "those of the first step were claimed and lapsed, each is there once");
    let view = f.store.endpoint(None, "ep_1").await.expect("read").expect("one");
    let resend = view.resend.expect("an order");
    assert_eq!((resend.state, resend.resent, resend.order), (ResendState::Done, 25, order));
}

async fn a_resend_stops_with_its_endpoint(f: Fixture) {
    let pk = failed(&f.store, 5).await;
    let order = ResendOrder { since_ms: NOW, everything: false };
    assert_eq!(f.store.begin_resend(pk, order, at(NOW + 20)).await.expect("asked"), ResendBegun::Running);
    f.store.enable_endpoint(pk, false, OPS).await.expect("disabled");
    drain(&f.store).await;
    let resend = f.store.endpoint(None, "ep_1").await.expect("read").expect("one").resend.expect("an order");
    assert_eq!((resend.state, resend.resent), (ResendState::Stopped, 0));
    assert!(f.store.running_resends().await.expect("read").is_empty());
}

async fn resends_at_once_send_each_delivery_once(f: Fixture) {
    let pk = failed(&f.store, 40).await;
    let order = ResendOrder { since_ms: NOW, everything: true };
    assert_eq!(f.store.begin_resend(pk, order, at(NOW + 20)).await.expect("asked"), ResendBegun::Running);
    let walk = async || {
        let store = f.store.clone();
        loop {
            let Some(resend) = store.running_resends().await.expect("read").pop() else { return };
            store.advance_resend(&resend, 3, NOW + 20).await.expect("a step");
        }
    };
    tokio::join!(walk(), walk(), walk());
    let resend = f.store.endpoint(None, "ep_1").await.expect("read").expect("one").resend.expect("an order");
    assert_eq!((resend.state, resend.resent), (ResendState::Done, 40));
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE epoch = 2 AND state = 'pending'").await, 40);
}

async fn a_deleted_endpoint_gets_nothing_and_blocks_nobody(f: Fixture) {
    let pk = register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    register(&f.store, &endpoint("ep_2", "", Subscribe::All, &[])).await;
    end(&f.store, "a", json!({}), JobState::Succeeded).await;
    assert!(matches!(f.store.test_endpoint(pk, OPS).await.expect("asked"), Tested::Queued(_)));
    let claimed = due(&f.store, NOW).await;
    assert_eq!(claimed.len(), 3);
    assert!(f.store.delete_endpoint(pk, OPS).await.expect("deleted"));
    assert!(!f.store.delete_endpoint(pk, OPS).await.expect("asked"), "it is gone");
    // What was on its way comes back, and is set aside.
    for job in &claimed {
        write(&f.store, job, DeliveryNext::Retry { due_ms: NOW }).await;
    }
    assert_eq!(pairs(&due(&f.store, NOW).await), owned(&[("ep_2", "a")]));
    end(&f.store, "b", json!({}), JobState::Succeeded).await;
    assert_eq!(pairs(&due(&f.store, NOW).await), owned(&[("ep_2", "b")]));
    let filter = DeliveryFilter { state: Some(DeliveryState::Disabled), ..DeliveryFilter::default() };
    let orphan = f.store.deliveries(&filter, None, 50).await.expect("read").items.pop().expect("one is kept");
    assert_eq!((orphan.endpoint, orphan.job.as_deref()), (None, Some("a")));
    assert_eq!(f.store.resend_delivery(orphan.pk, OPS).await.expect("asked"), Resent::Gone);
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries WHERE event_pk = 0").await, 0, "its test is gone");
}

async fn tests_are_sent_once_and_removed_in_time(f: Fixture) {
    let pk = register(&f.store, &endpoint("ep_1", "acme", Subscribe::Named, &[EventKind::Dead])).await;
    let Tested::Queued(row) = f.store.test_endpoint(pk, OPS).await.expect("asked") else { panic!("queued") };
    let job = due(&f.store, NOW).await.pop().expect("due");
    let Occasion::Test { event_id, at_ms } = &job.occasion else { panic!("a test: {job:?}") };
    assert_eq!((job.pk, *at_ms), (row, NOW));
    let view = f.store.delivery(Some("acme"), row).await.expect("read").expect("one");
    assert_eq!((&view.event_id, view.occurrence, view.job), (event_id, Occurrence::Test, None));
    let filter = DeliveryFilter { occurrence: Some(Occurrence::Test), ..DeliveryFilter::default() };
    assert_eq!(f.store.deliveries(&filter, None, 50).await.expect("read").items.len(), 1);
    f.store.retain(NOW + 1, NOW + 1, 100).await.expect("removed");
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 1, "it is pending");
    write(&f.store, &job, DeliveryNext::Delivered).await;
    f.store.retain(NOW, NOW, 100).await.expect("removed");
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 1, "it is not old enough");
    f.store.retain(NOW + 1, NOW + 1, 100).await.expect("removed");
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 0);
    assert_eq!(f.number("SELECT COUNT(*) FROM all_delivery_attempts").await, 0);
    f.store.enable_endpoint(pk, false, OPS).await.expect("disabled");
    assert_eq!(f.store.test_endpoint(pk, OPS).await.expect("asked"), Tested::Disabled);
    assert_eq!(f.store.test_endpoint(i64::MAX, OPS).await.expect("asked"), Tested::NotFound);
}

async fn secrets_are_replaced_by_one_at_a_time(f: Fixture) {
    register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    let seen = f.store.endpoint(None, "ep_1").await.expect("read").expect("one");
    assert_eq!(f.store.rotate_endpoint(&seen, &secrets(2), None, OPS).await.expect("asked"), Rotated::Done);
    assert_eq!(f.store.rotate_endpoint(&seen, &secrets(2), None, OPS).await.expect("asked"), Rotated::Superseded);
    let view = f.store.endpoint(None, "ep_1").await.expect("read").expect("one");
    assert_eq!(view.secrets, Some(secrets(2)));
}

/// Each in the transaction of the act, refused ones too; what was never there is nothing to tell of.
async fn what_is_done_to_endpoints_and_deliveries_is_written_down(f: Fixture) {
    let mut new = endpoint("ep_1", "acme", Subscribe::All, &[]);
    new.url = "https://user:hunter2@hooks.example/hook?token=hunter2".to_owned();
    let pk = register(&f.store, &new).await;
    let seen = f.store.endpoint(None, "ep_1").await.expect("read").expect("one");
    for _ in 0..2 {
        f.store.rotate_endpoint(&seen, &secrets(2), None, OPS).await.expect("asked");
    }
    let Tested::Queued(row) = f.store.test_endpoint(pk, OPS).await.expect("asked") else { panic!("queued") };
    assert_eq!(f.store.resend_delivery(row, OPS).await.expect("asked"), Resent::Due);
    let order = ResendOrder { since_ms: NOW - 500, everything: true };
    for begun in [ResendBegun::Running, ResendBegun::Busy] {
        assert_eq!(f.store.begin_resend(pk, order, OPS).await.expect("asked"), begun);
    }
    assert!(f.store.enable_endpoint(pk, false, OPS).await.expect("asked"));
    assert_eq!(f.store.test_endpoint(pk, OPS).await.expect("asked"), Tested::Disabled);
    assert_eq!(f.store.begin_resend(pk, order, OPS).await.expect("asked"), ResendBegun::Disabled);
    assert_eq!(f.store.resend_delivery(row, OPS).await.expect("asked"), Resent::Disabled);
    assert!(f.store.enable_endpoint(pk, true, OPS).await.expect("asked"));
    assert!(f.store.delete_endpoint(pk, OPS).await.expect("asked"));
    assert!(!f.store.delete_endpoint(pk, OPS).await.expect("asked"));
    assert!(!f.store.enable_endpoint(pk, true, OPS).await.expect("asked"));
    assert_eq!(f.store.resend_delivery(i64::MAX, OPS).await.expect("asked"), Resent::NotFound);
    let mut acts = f.store.acts(None, 50).await.expect("listed").items;
    acts.reverse();
    let delivery = format!("dl_{row}");
    let told: Vec<_> = acts.iter().map(|act| (act.act.as_str(), act.target.as_str(), act.outcome.as_str())).collect();
    let expected = [
        ("endpoint.register", "ep_1", "done"),
        ("endpoint.rotate", "ep_1", "done"),
        ("endpoint.rotate", "ep_1", "refused"),
        ("endpoint.test", "ep_1", "done"),
        ("delivery.resend", delivery.as_str(), "done"),
        ("endpoint.resend", "ep_1", "done"),
        ("endpoint.resend", "ep_1", "refused"),
        ("endpoint.disable", "ep_1", "done"),
        ("endpoint.test", "ep_1", "refused"),
        ("endpoint.resend", "ep_1", "refused"),
        ("delivery.resend", delivery.as_str(), "refused"),
        ("endpoint.enable", "ep_1", "done"),
        ("endpoint.delete", "ep_1", "done"),
    ];
    assert_eq!(told, expected);
    assert!(acts.iter().all(|act| act.who == "ops" && act.at_ms == NOW));
    let details: Vec<_> = acts.iter().filter_map(|act| act.detail.as_deref()).collect();
    assert_eq!(details[..2], ["https://hooks.example, tenant acme", "version 2"]);
    assert!(details.contains(&"all since 2027-01-15T07:59:59.500Z"), "{details:?}");
    assert!(!format!("{acts:?}").contains("hunter2"), "{acts:?}");
}

async fn endpoints_are_listed_by_tenant_and_bounded(f: Fixture) {
    for n in 0..100 {
        register(&f.store, &endpoint(&format!("ep_{n}"), "acme", Subscribe::Named, &[])).await;
    }
    let more = endpoint("ep_more", "acme", Subscribe::Named, &[]);
    assert_eq!(f.store.register_endpoint(&more, None, OPS).await.expect("asked"), Registered::TooMany { max: 100 });
    register(&f.store, &endpoint("ep_other", "globex", Subscribe::Named, &[])).await;
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = f.store.endpoints(Some("acme"), cursor, 30).await.expect("read");
        seen.extend(page.items.into_iter().map(|endpoint| endpoint.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..100).rev().map(|n| format!("ep_{n}")).collect::<Vec<_>>());
}

fn from_broker() -> Origin {
    Origin {
        reply_to: Some("amq.gen-1".to_owned()),
        correlation_id: Some("c-1".to_owned()),
        traceparent: Some("00-1-2-01".to_owned()),
    }
}

async fn completions_for_the_broker_are_claimed_apart_and_only_where_there_is_one(f: Fixture) {
    let publisher = "publisher".to_owned();
    let claim = async |now_ms| f.store.claim_publications(&publisher, 100, now_ms, LEASE).await.expect("claimed");
    end(&f.store, "plain", json!({}), JobState::Succeeded).await;
    assert!(claim(NOW).await.is_empty(), "there is no broker");
    // Whoever waits gets its answer, whether events are published or not.
    end_from(&f.store, "asked", json!({}), JobState::Dead, from_broker(), NOW).await;
    let replies = claim(NOW).await;
    let [reply] = &replies[..] else { panic!("one: {replies:?}") };
    assert_eq!((reply.reply_to.as_deref(), reply.event.job_id.as_str()), (Some("amq.gen-1"), "asked"));
    assert_eq!((reply.correlation_id.as_deref(), reply.traceparent.as_deref()), (Some("c-1"), Some("00-1-2-01")));
    f.store.publish_completions();
    end_from(&f.store, "both", json!({ "tenant": "acme" }), JobState::Succeeded, from_broker(), NOW).await;
    let both = claim(NOW).await;
    let targets: Vec<_> = both.iter().map(|p| (p.reply_to.as_deref(), p.event.job_id.as_str())).collect();
    assert_eq!(targets, [(None, "both"), (Some("amq.gen-1"), "both")]);
    assert_eq!(both[0].event.id, both[1].event.id);
    assert!(due(&f.store, NOW).await.is_empty(), "none of it is a webhook");
    assert_eq!(f.store.next_delivery_due().await.expect("read"), None);
    assert_eq!(f.store.next_publication_due().await.expect("read"), Some(NOW + 60_000));
    // They are looked at and sent again like webhooks.
    let filter = DeliveryFilter { job: Some("both".to_owned()), ..DeliveryFilter::default() };
    let views = f.store.deliveries(&filter, None, 50).await.expect("read").items;
    assert!(views.len() == 2 && views.iter().all(|view| view.is_amqp && view.tenant == "acme"));
    let (pk, epoch) = (both[1].pk, both[1].epoch);
    let record = |next| DeliveryRecord {
        pk,
        epoch,
        n: 1,
        at_ms: NOW,
        status: None,
        latency_ms: 1,
        error: Some("there is no queue".to_owned()),
        next,
    };
    f.store.record_delivery(record(DeliveryNext::Failed)).await.expect("recorded");
    let gone = f.store.delivery(Some("acme"), pk).await.expect("read").expect("one");
    assert_eq!((gone.state, gone.attempts.len()), (DeliveryState::Failed, 1));
    assert_eq!(f.store.resend_delivery(pk, OPS).await.expect("asked"), Resent::Due);
    // A publisher that falls silent has its claims taken over when they lapse.
    assert_eq!(claim(NOW + 60_000).await.len(), 3);
}

async fn nothing_is_kept_of_what_the_broker_has(f: Fixture) {
    f.store.publish_completions();
    for id in ["a", "b", "c"] {
        end(&f.store, id, json!({}), JobState::Succeeded).await;
    }
    let publisher = "publisher".to_owned();
    let claim = async |now_ms| f.store.claim_publications(&publisher, 100, now_ms, LEASE).await.expect("claimed");
    let at_first = claim(NOW).await;
    let record = async |publication: &Publication, next| {
        let (pk, epoch, n) = (publication.pk, publication.epoch, publication.attempts + 1);
        let record = DeliveryRecord { pk, epoch, n, at_ms: NOW, status: None, latency_ms: 1, error: None, next };
        f.store.record_delivery(record).await.expect("recorded");
    };
    // The first at once; the second after it was refused; the third by a claim that has lapsed meanwhile.
    record(&at_first[0], DeliveryNext::Published).await;
    for due_ms in [NOW + 1, NOW + 2] {
        let held = if due_ms == NOW + 1 { at_first[1].clone() } else { claim(NOW + 1).await.remove(0) };
        record(&held, DeliveryNext::Retry { due_ms }).await;
    }
    assert_eq!(f.number("SELECT COUNT(*) FROM delivery_attempts").await, 1, "all but the first attempt");
    let again = claim(NOW + 60_000).await;
    assert_eq!(
        again.iter().map(|p| (p.pk, p.attempts)).collect::<Vec<_>>(),
        [(at_first[1].pk, 2), (at_first[2].pk, 0)]
    );
    record(&again[0], DeliveryNext::Published).await;
    record(&at_first[2], DeliveryNext::Published).await;
    for all in ["deliveries", "all_delivery_attempts"] {
        assert_eq!(f.number(&format!("SELECT COUNT(*) FROM {all}")).await, 0, "{all}");
    }
    record(&again[1], DeliveryNext::Retry { due_ms: NOW }).await;
    assert_eq!(f.number("SELECT COUNT(*) FROM deliveries").await, 0, "what is said later changes nothing");
    assert_eq!(f.number("SELECT COUNT(*) FROM events").await, 3);
}

async fn deliveries_for_the_broker_stand_in_no_webhooks_way(f: Fixture) {
    f.store.publish_completions();
    for n in 0..300 {
        end(&f.store, &format!("j{n}"), json!({}), JobState::Succeeded).await;
    }
    register(&f.store, &endpoint("ep_1", "", Subscribe::All, &[])).await;
    end(&f.store, "late", json!({}), JobState::Succeeded).await;
    let claimed = f.store.claim_deliveries(&"notifier".to_owned(), 1, NOW, LEASE).await.expect("claimed");
    assert_eq!(pairs(&claimed), owned(&[("ep_1", "late")]));
}
