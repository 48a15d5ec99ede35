//! One contract for both databases: every test runs on SQLite and on PostgreSQL.

#[path = "../common/store.rs"]
#[allow(dead_code, reason = "every test binary uses another part of it")]
mod common;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use bytes::Bytes;
use common::{Fixture, contract};
use paceline::job::{Catalog, EventKind, Given, Job, JobState, ProviderRules};
use paceline::store::{
    Attempt, Buried, Cancelled, Claimed, DeadFilter, DeadReason, DeliveryJob, DeliveryNext, DeliveryRecord, Event,
    Identity, Inserted, JobFilter, NewJob, Next, Occasion, Origin, Record, Recorded, Replay, Replayed, Store,
    StoreError, StoreOptions, StoredResponse, WaitReason, Wake,
};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000_000;
const LEASE: Duration = Duration::from_secs(60);

mod cancels;
mod claims;
mod dead;
mod deliveries;
mod handover;
mod identity;
mod lists;
mod one_of_them;
mod owners;
mod records;
mod robustness;
mod speed;

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

async fn ended_with_callback(store: &Store, id: &str, url: &str) {
    let claimed = held(store, json!({ "id": id, "callback": { "url": url } })).await;
    write(store, record(&claimed, success())).await;
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
