//! What many of something cost: hundreds of queues on one broker, ten thousand keys, and a store full of jobs that
//! ended long ago. Bounds are far from what is measured, so that a busy machine does not break them; what they are for
//! is growth of another order. Larger sizes by the environment; the figures are printed.

mod common;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::broker::Broker;
use common::store::{Fixture, on_postgres, on_sqlite};
use common::world::{Mode, Serve, World, in_world};
use common::{holds, until};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use paceline::job::{Catalog, Given, Job, JobState, ProviderRules};
use paceline::sim::{ProviderOptions, ProviderSim, SimKey};
use paceline::store::{
    Attempt, Claimed, DeliveryNext, DeliveryRecord, Inserted, NewJob, Next, Origin, Record, Recorded, Store,
    StoredResponse,
};
use serde_json::json;

/// A process that does nothing is looked at for so long, and takes at most so much of a core, built for tests.
const IDLE: Duration = Duration::from_secs(10);
const IDLE_SHARE: f64 = 1.0;

/// A size, or another one by the environment.
fn size(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().map_or(usual, |text| text.parse().unwrap_or_else(|e| panic!("{name}: {e}")))
}

/// Share of a core that a process takes while nothing happens.
async fn idle_share(serve: &Serve) -> f64 {
    let (before, began) = (serve.cpu(), Instant::now());
    tokio::time::sleep(IDLE).await;
    (serve.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64()
}

// Queues.

const LANES: [&str; 5] = ["default", "l1", "l2", "l3", "l4"];
/// They are declared, and have their consumers, in so much time each.
const DECLARED: Duration = Duration::from_millis(120);
const CONSUMED: Duration = Duration::from_millis(60);
/// And whatever their number.
const BASE: Duration = Duration::from_secs(30);

/// Every lane of every provider has a queue of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_queues_are_served_by_one_process() {
    in_world(Mode::Scaled, async |world| {
        let queues = size("PACELINE_SCALE_QUEUES", 200);
        let providers: Vec<String> = (0..queues / LANES.len()).map(|n| format!("{}-{n}", world.provider)).collect();
        let done = AssertUnwindSafe(queues_are_served(world, &providers)).catch_unwind().await;
        let broker = Broker::connect().await;
        for provider in &providers {
            for lane in LANES {
                broker.delete(&format!("paceline.jobs.{provider}.{lane}")).await;
            }
        }
        broker.close().await;
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    })
    .await;
}

async fn queues_are_served(world: &World, providers: &[String]) {
    let server = ProviderSim::start(ProviderOptions::default()).await.expect("a provider");
    let base_url = server.base_url();
    let section = |name: &String| {
        format!(
            "[[provider]]\nname = \"{name}\"\nbase_url = \"{base_url}\"\nlanes = {{ l1 = 1, l2 = 1, l3 = 1, l4 = 1 }}\n"
        )
    };
    world.configure(&providers.iter().map(section).collect::<String>());
    let queues = u32::try_from(providers.len() * LANES.len()).expect("a number");
    let began = Instant::now();
    world.prepare().await;
    let declared = began.elapsed();
    let began = Instant::now();
    let serve = world.serve();
    let broker = Broker::connect().await;
    for provider in providers {
        for lane in LANES {
            let queue = format!("paceline.jobs.{provider}.{lane}");
            until(&format!("{queue} is consumed"), BASE + CONSUMED * queues, async || {
                holds(broker.queue(&queue).await.is_some_and(|(_, consumers)| consumers == 1))
            })
            .await;
        }
    }
    let consumed = began.elapsed();
    let idle = idle_share(&serve).await;
    let mib = serve.memory_bytes() / (1024 * 1024);
    println!("{queues} queues: declared in {declared:?}, consumed after {consumed:?}, idle {idle:.3} cores, {mib} MiB");
    let last = providers.last().expect("one");
    let job = json!({ "request": { "method": "POST", "path": "/ok", "body": {} } }).to_string();
    broker.publish(&format!("{last}.l4"), Some("first"), job.as_bytes()).await;
    broker.publish(&providers[0], Some("last"), job.as_bytes()).await;
    world.all_done(2, common::SOON).await;
    broker.close().await;
    serve.stop().await;
    assert!(declared < BASE + DECLARED * queues, "{declared:?}");
    assert!(consumed < BASE + CONSUMED * queues, "{consumed:?}");
    assert!(idle < IDLE_SHARE, "{idle} cores while nothing happens");
    assert!(mib < 300, "{mib} MiB");
}

// Keys.

/// Each of the keys is paced on its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_are_ready_soon_embedded() {
    in_world(Mode::Embedded, keys_are_ready).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_are_ready_soon_scaled() {
    in_world(Mode::Scaled, keys_are_ready).await;
}

async fn keys_are_ready(world: &World) {
    let keys = size("PACELINE_SCALE_KEYS", 10_000);
    let labels: Vec<String> = (0..keys).map(|n| format!("k{n}")).collect();
    let known = labels.iter().map(|label| SimKey::new(label, format!("secret-of-{label}"))).collect();
    let server = ProviderSim::start(ProviderOptions { keys: known, ..ProviderOptions::default() }).await;
    let server = server.expect("a provider");
    // In files: ten thousand variables are more than an environment should hold.
    std::fs::create_dir(world.path("keys")).expect("a folder");
    let mut list = Vec::new();
    for label in &labels {
        std::fs::write(world.path("keys").join(label), format!("secret-of-{label}")).expect("written");
        list.push(format!("{{ label = \"{label}\", secret = \"file:keys/{label}\" }}"));
    }
    world.configure(&format!(
        "[[provider]]\nname = \"{}\"\nbase_url = \"{}\"\nkey_limits = [ {{ requests = 100, per = \"10s\" }} ]\nkeys = [ {} ]\n",
        world.provider,
        server.base_url(),
        list.join(", ")
    ));
    world.prepare().await;
    let began = Instant::now();
    let serve = world.serving().await;
    let ready = began.elapsed();
    let job = |n| json!({ "id": format!("j{n}"), "provider": world.provider, "request": { "path": "/ok" } });
    world.api().accept_all(&(0..100).map(job).collect::<Vec<_>>()).await;
    world.all_done(100, BASE * 2).await;
    let worked = began.elapsed();
    let idle = idle_share(&serve).await;
    let mib = serve.memory_bytes() / (1024 * 1024);
    println!("{keys} keys: ready after {ready:?}, 100 jobs done after {worked:?}, idle {idle:.3} cores, {mib} MiB");
    serve.stop().await;
    assert!(ready < BASE, "{ready:?}");
    assert!(worked < BASE * 2, "{worked:?}");
    assert!(idle < IDLE_SHARE, "{idle} cores while nothing happens");
    assert!(mib < 300, "{mib} MiB");
}

// Jobs that ended long ago.

const NOW: i64 = 1_800_000_000_000;
/// They ended so long before.
const AGO: i64 = 90 * 24 * 3_600_000;
/// Jobs of one round, from the insertion to the delivered webhook.
const ROUND: usize = 500;
/// Retention removes so many at once.
const STEP: u32 = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_ended_slow_nothing_down_on_sqlite() {
    on_sqlite(false, jobs_that_ended_slow_nothing_down).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_that_ended_slow_nothing_down_on_postgres() {
    on_postgres(jobs_that_ended_slow_nothing_down).await;
}

/// What a database looks at for the same work is counted, not its time: on PostgreSQL the pages of tables and indexes,
/// on SQLite what its threads read from the file.
async fn jobs_that_ended_slow_nothing_down(f: Fixture) {
    let ended = size("PACELINE_SCALE_ENDED", 200_000);
    let before = looked_at(&f, async |store| round(store, "first").await).await;
    multiply(&f, ended).await;
    let after = looked_at(&f, async |store| round(store, "second").await).await;
    println!("{ROUND} jobs: looked at {before} with nothing there, {after} with {ended} jobs that ended");
    // Indexes are deeper by a level or two, and what was cached may have made way.
    let allowance = if f.is_sqlite() { 8 * 1024 * 1024 } else { 2_000 };
    assert!(after < 3 * before + allowance, "{before} became {after}");

    // All that ended long ago, a step at a time.
    let mut steps = Vec::new();
    for _ in 0..(ended / STEP as usize).min(40) {
        let began = Instant::now();
        let looked = looked_at(&f, async |store| {
            let removed = store.retain(NOW - AGO / 2, NOW - AGO / 2, STEP).await.expect("removed");
            assert_eq!(removed.jobs, u64::from(STEP));
        });
        steps.push((looked.await, began.elapsed()));
    }
    let (first, last) = (steps[0], steps[steps.len() - 1]);
    println!(
        "retention of {STEP}: looked at {} first, {} in step {}; {:?} and {:?}",
        first.0,
        last.0,
        steps.len(),
        first.1,
        last.1
    );
    assert!(last.0 < 3 * first.0 + allowance, "what was removed is in the way of what comes next: {steps:?}");
    let left = f.number("SELECT COUNT(*) FROM jobs").await;
    assert_eq!(left, (2 * ROUND + ended) as i64 - i64::from(STEP) * steps.len() as i64);
    for orphans in [
        "SELECT COUNT(*) FROM events e WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.pk = e.job_pk)",
        "SELECT COUNT(*) FROM deliveries d WHERE NOT EXISTS (SELECT 1 FROM events e WHERE e.pk = d.event_pk)",
        "SELECT COUNT(*) FROM attempts a WHERE NOT EXISTS (SELECT 1 FROM jobs j WHERE j.pk = a.job_pk)",
    ] {
        assert_eq!(f.number(orphans).await, 0, "{orphans}");
    }
}

/// Jobs that come in, are claimed, succeed, and are told of.
async fn round(store: &Store, name: &str) {
    let rules = ProviderRules::default();
    let providers = [("geo".to_owned(), rules)].into();
    let catalog = Catalog { providers, allow_http: true, callbacks: true, endpoints: true, ..Catalog::default() };
    let jobs = (0..ROUND).map(|n| {
        let envelope = json!({
            "id": format!("{name}-{n}"), "provider": "geo", "request": { "path": "/v1" },
            "callback": { "url": "http://127.0.0.1:9/hook" },
        });
        let job = Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog).expect("a job");
        NewJob { job, origin: Origin::default(), owner: None }
    });
    let inserted = store.insert(jobs.collect(), NOW).await.expect("inserted");
    assert!(inserted.iter().all(|answer| matches!(answer, Inserted::Created(None))));
    let me = "me".to_owned();
    let mut claimed = Vec::new();
    while claimed.len() < ROUND {
        let some = store.claim_due(&me, "geo", "default", 100, NOW).await.expect("claimed");
        assert!(!some.is_empty(), "{} claimed", claimed.len());
        claimed.extend(some);
    }
    assert!(store.claim_due(&me, "geo", "default", 100, NOW).await.expect("claimed").is_empty());
    assert_eq!(store.next_due("geo", "default").await.expect("read"), None);
    let recorded = join_all(claimed.iter().map(|job| store.record(succeeded(job)))).await;
    assert!(recorded.iter().all(|answer| matches!(answer, Ok(Recorded::Done))), "{recorded:?}");
    let mut delivered = 0;
    while delivered < ROUND {
        let some = store.claim_deliveries(&me, 100, NOW, Duration::from_secs(60)).await.expect("claimed");
        assert!(!some.is_empty(), "{delivered} delivered");
        let told = some.iter().map(|delivery| DeliveryRecord {
            pk: delivery.pk,
            epoch: delivery.epoch,
            n: 1,
            at_ms: NOW,
            status: Some(204),
            latency_ms: 1,
            error: None,
            next: DeliveryNext::Delivered,
        });
        let told = join_all(told.map(|record| store.record_delivery(record))).await;
        assert!(told.iter().all(Result::is_ok), "{told:?}");
        delivered += some.len();
    }
}

fn succeeded(claimed: &Claimed) -> Record {
    let attempt = Attempt {
        n: 1,
        at_ms: NOW,
        key: "a1".to_owned(),
        status: Some(200),
        outcome: "success".to_owned(),
        latency_ms: 12,
        error: None,
    };
    let response = StoredResponse {
        status: 200,
        headers: "{}".to_owned(),
        content_type: Some("application/json".to_owned()),
        body: Bytes::from_static(b"{\"ok\":true}"),
        truncated: false,
    };
    let next = Next::Finish { state: JobState::Succeeded, reason: None, error: None, response: Some(response) };
    let Claimed { pk, epoch, run, failures, .. } = *claimed;
    Record { pk, epoch, run, attempt: Some(attempt), failures, at_ms: NOW, next }
}

/// Copies the first job with all that belongs to it, behind the store's back: so many, and long ago.
async fn multiply(f: &Fixture, copies: usize) {
    let ended = NOW - AGO;
    let same =
        "tenant, hash, provider, lane, state, attempts, first_key, first_status, first_outcome, first_latency_ms, due_ms, delivery,
        idempotency_key, envelope_bytes, envelope";
    let statements = [
        format!(
            "INSERT INTO jobs (id, created_ms, finished_ms, first_at_ms, {same})
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {copies})
             SELECT 'old-' || i, {ended} + i, {ended} + i, {ended} + i, {same} FROM jobs, n WHERE id = 'first-0'"
        ),
        "INSERT INTO events (id, job_pk, run, state, at_ms, attempts, status, headers, content_type, truncated, body)
         SELECT 'old-' || j.pk, j.pk, 1, e.state, j.finished_ms, 1, e.status, e.headers, e.content_type, e.truncated, e.body
         FROM jobs j, events e WHERE j.id LIKE 'old-%' AND e.job_pk = (SELECT pk FROM jobs WHERE id = 'first-0')"
            .to_owned(),
        "INSERT INTO deliveries (event_pk, kind, endpoint_pk, state, attempts, due_ms, created_ms, finished_ms,
            first_at_ms, first_status, first_latency_ms)
         SELECT e.pk, 'webhook', (SELECT MIN(pk) FROM endpoints), 'delivered', 1, e.at_ms, e.at_ms, e.at_ms, e.at_ms, 204, 1
         FROM events e WHERE e.id LIKE 'old-%'"
            .to_owned(),
    ];
    for statement in statements {
        assert_eq!(f.execute(&statement).await, copies as u64, "{statement}");
    }
    f.execute("ANALYZE").await;
}

/// What a database looks at while another process's store does something: pages, or bytes of a file.
async fn looked_at(f: &Fixture, work: impl AsyncFnOnce(&Store)) -> i64 {
    let (before, sessions) = (so_far(f).await, sessions(f).await);
    let store = f.another().await;
    work(&store).await;
    if f.is_sqlite() {
        let looked = so_far(f).await - before;
        store.close().await;
        return looked;
    }
    store.close().await;
    // Sessions tell what they did when they end.
    until("the sessions have ended", common::SOON, async || holds(self::sessions(f).await <= sessions)).await;
    so_far(f).await - before
}

async fn so_far(f: &Fixture) -> i64 {
    if f.is_sqlite() {
        return bytes_read();
    }
    // What this session itself did is told now, and not in the middle of what is counted.
    f.execute("SELECT pg_stat_force_next_flush()").await;
    f.number(
        "SELECT SUM(heap_blks_read + heap_blks_hit + COALESCE(idx_blks_read + idx_blks_hit, 0)
            + COALESCE(toast_blks_read + toast_blks_hit, 0))::BIGINT FROM pg_statio_user_tables",
    )
    .await
}

async fn sessions(f: &Fixture) -> i64 {
    if f.is_sqlite() {
        return 0;
    }
    f.number(
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'paceline'",
    )
    .await
}

/// What the threads of SQLite have read so far.
fn bytes_read() -> i64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("the threads");
    let read = threads.filter_map(|thread| {
        let thread = thread.ok()?.path();
        let name = std::fs::read_to_string(thread.join("comm")).ok()?;
        let told = std::fs::read_to_string(thread.join("io")).ok()?;
        let bytes = told.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse::<i64>().ok()?;
        name.starts_with("sqlite-").then_some(bytes)
    });
    read.sum()
}
