//! Speed: a measurement, not a test. `cargo test --release --test store_contract speed -- --ignored --nocapture`

use super::*;

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
