//! What a statement of the hot path visits on PostgreSQL: the rows it is about, however many others there are. Plans are made
//! once, often while the tables are empty, and must not scan them later.

#[path = "common/store.rs"]
#[allow(dead_code, reason = "every test binary uses another part of it")]
mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Fixture, on_postgres};
use paceline::job::{Catalog, Given, Job, JobState, ProviderRules};
use paceline::store::{
    Attempt, DeliveryNext, DeliveryRecord, Inserted, NewJob, Next, Origin, Record, Store, StoredResponse,
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

const NOW: i64 = 1_800_000_000_000;
const LEASE: Duration = Duration::from_secs(60);
/// Rows of each kind that are none of its business.
const OTHERS: i64 = 20_000;
/// Jobs that go first, so that every connection has made its plans: they take turns.
const WARM: usize = 24;
/// Index entries that all these jobs may cost, from the arrival of each to the end of its delivery: about 20 a job. What
/// the first ones cost is told with the last one's, or before.
const VISITS_MAX: i64 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_costs_the_same_beside_many_others_though_its_plans_were_made_for_empty_tables() {
    on_postgres(async |f| {
        // What is planned anew after statistics were gathered would hide a plan that was made before.
        for table in ["jobs", "attempts", "events", "deliveries", "delivery_attempts"] {
            f.execute(&format!("ALTER TABLE {table} SET (autovacuum_enabled = off)")).await;
        }
        cycle(&f.store, "first", NOW).await;
        f.execute("VACUUM ANALYZE").await;
        for n in 0..WARM {
            cycle(&f.store, &format!("next{n}"), NOW).await;
        }
        add_others(&f.options.url).await;
        gone(&f, "others").await;
        let before = visits(&f).await;
        cycle(&f.store, "last", NOW).await;
        f.store.close().await;
        gone(&f, "paceline").await;
        let visited = difference(&before, &visits(&f).await);
        let cost: i64 = visited.iter().map(|(n, _)| n).sum();
        assert!((1..VISITS_MAX).contains(&cost), "{cost} entries beside {OTHERS} others: {visited:?}");
    })
    .await;
}

/// Entries of indexes and rows of tables that were read, as told by connections that have ended: they do it then for certain.
async fn visits(f: &Fixture) -> Vec<String> {
    f.texts(
        "SELECT indexrelname || ' ' || idx_tup_read FROM pg_stat_user_indexes
         UNION ALL SELECT relname || ' ' || seq_tup_read FROM pg_stat_user_tables",
    )
    .await
}

/// What was read in between, the most first.
fn difference(before: &[String], after: &[String]) -> Vec<(i64, String)> {
    let parse =
        |line: &String| line.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse::<i64>().expect("a number")));
    let before: HashMap<String, i64> = before.iter().filter_map(parse).collect();
    let mut more: Vec<_> = after.iter().filter_map(parse).map(|(name, n)| (n - before[&name], name)).collect();
    more.retain(|(n, name)| *n > 0 && !name.starts_with("_sqlx"));
    more.sort_unstable_by(|a, b| b.cmp(a));
    more
}

/// Jobs of another lane in three states, each with an attempt, an event and a pending delivery that is not due.
async fn add_others(url: &str) {
    let kept = "hash, provider, delivery, idempotency_key, envelope_bytes, envelope, created_ms";
    let mut connection = PgConnection::connect(url).await.expect("a connection");
    let sql = format!(
        "SET application_name = 'others';
         INSERT INTO jobs (tenant, id, lane, state, due_ms, owner, finished_ms, {kept})
         SELECT tenant, 'other' || i, 'other', (ARRAY['queued', 'waiting', 'succeeded'])[1 + i % 3], due_ms + i,
            CASE WHEN i % 6 = 0 THEN 'else' END, CASE WHEN i % 3 = 2 THEN due_ms END, {kept}
         FROM jobs, generate_series(1, {OTHERS}) AS n(i) WHERE id = 'first';
         INSERT INTO attempts SELECT pk, 1, 1, due_ms, 'a1', 200, 'success', 5, NULL FROM jobs WHERE lane = 'other';
         INSERT INTO events (id, job_pk, run, state, at_ms, attempts)
         SELECT 'evt_' || id, pk, 1, 'succeeded', due_ms, 1 FROM jobs WHERE lane = 'other';
         INSERT INTO deliveries (event_pk, kind, endpoint_pk, state, due_ms, created_ms)
         SELECT e.pk, 'webhook', (SELECT MIN(pk) FROM endpoints), 'pending', {NOW} + 1000000, {NOW}
         FROM events e JOIN jobs j ON j.pk = e.job_pk WHERE j.lane = 'other'"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.expect("others");
    connection.close().await.expect("closed");
}

/// Waits for the ends of all connections of that name.
async fn gone(f: &Fixture, name: &str) {
    let left = format!(
        "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{name}'"
    );
    while f.number(&left).await > 0 {
        tokio::task::yield_now().await;
    }
}

/// A job comes in, is claimed, called, recorded; its webhook is claimed, sent, recorded.
async fn cycle(store: &Store, id: &str, now_ms: i64) {
    let me = "me".to_owned();
    let inserted = store.insert(vec![job(id)], now_ms).await.expect("inserted");
    assert!(matches!(inserted[..], [Inserted::Created(None)]));
    let claimed = store.claim_due(&me, "geo", "default", 10, now_ms).await.expect("claimed").pop().expect("one");
    assert!(store.next_due("geo", "default").await.expect("read").is_none());
    let attempt = Attempt {
        n: 1,
        at_ms: now_ms,
        key: "a1".to_owned(),
        status: Some(200),
        outcome: "success".to_owned(),
        latency_ms: 5,
        error: None,
    };
    let response = StoredResponse {
        status: 200,
        headers: "{}".to_owned(),
        content_type: None,
        body: "{}".into(),
        truncated: false,
    };
    let next = Next::Finish { state: JobState::Succeeded, reason: None, error: None, response: Some(response) };
    let record = Record {
        pk: claimed.pk,
        epoch: claimed.epoch,
        run: claimed.run,
        attempt: Some(attempt),
        failures: 0,
        at_ms: now_ms,
        next,
    };
    store.record(record).await.expect("recorded");
    let delivery = store.claim_deliveries(&me, 10, now_ms, LEASE).await.expect("claimed").pop().expect("one");
    store
        .record_delivery(DeliveryRecord {
            pk: delivery.pk,
            epoch: delivery.epoch,
            n: 1,
            at_ms: now_ms,
            status: Some(200),
            latency_ms: 5,
            error: None,
            next: DeliveryNext::Delivered,
        })
        .await
        .expect("recorded");
}

fn job(id: &str) -> NewJob {
    let providers = [("geo".to_owned(), ProviderRules::default())].into();
    let catalog = Catalog { providers, allow_http: true, callbacks: true, ..Catalog::default() };
    let envelope = format!(
        r#"{{"id":"{id}","provider":"geo","request":{{"path":"/"}},"callback":{{"url":"http://a.example/"}}}}"#
    );
    let job = Job::parse(envelope.as_bytes(), &Given::default(), &catalog).expect("a job");
    NewJob { job, origin: Origin::default(), owner: None }
}
