//! The broker and the database stop, die and come back while the built binary works: it waits, says
//! so, loses nothing, and goes on without a restart. One test after the other.

use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use crate::common::broker::{self, Broker};
use crate::common::cut::Cut;
use crate::common::proxy::{Manner, Proxy};
use crate::common::services::Services;
use crate::common::world::{Mode, SECRET, Serve, World, in_world};
use crate::common::{SOON, holds, until};
use futures_util::FutureExt as _;
use lapin::options::{BasicGetOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use paceline::sim::{
    Lognormal, ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim, SimKey,
};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

const KEY: &str = "outage-key-0123456789";
/// A service needs some seconds to be back, and a reconnection waits up to 13.
const BACK: Duration = Duration::from_secs(40);

/// Runs a test that stops services; afterwards both run again, however it ended.
async fn outage(test: impl AsyncFnOnce(&Services, &World)) {
    let services = Services::alone().await;
    in_world(Mode::Scaled, async |world| {
        let done = AssertUnwindSafe(test(&services, world)).catch_unwind().await;
        services.up().await;
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    })
    .await;
}

async fn provider(world: &World, open: u64) -> ProviderHandle {
    let options = ProviderOptions {
        keys: vec![SimKey::new("a1", KEY)],
        latency: Some(Lognormal::ms(20, 60)),
        ..ProviderOptions::default()
    };
    let sim = ProviderSim::start(options).await.expect("a provider");
    world.provider(
        &sim.base_url(),
        &[("a1", KEY)],
        &format!("key_limits = [ {{ concurrency = {open} }} ]\ntimeout = \"5s\""),
    );
    sim
}

async fn receiver() -> ReceiverHandle {
    let options = ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() };
    ReceiverSim::start(options).await.expect("a receiver")
}

fn jobs(world: &World, prefix: &str, count: usize, path: &str, hook: &str) -> Vec<Value> {
    let job = |n| {
        json!({
            "id": format!("{prefix}{n}"), "provider": world.provider,
            "request": { "method": "POST", "path": path }, "callback": { "url": hook },
        })
    };
    (0..count).map(job).collect()
}

async fn publish(world: &World, jobs: &[Value]) {
    let broker = Broker::connect().await;
    let message = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
    broker.publish_all(&world.provider, jobs.iter().map(message)).await;
    broker.close().await;
}

/// The waits that the log names, one a try, in milliseconds.
fn waits(serve: &Serve, what: &str) -> Vec<f64> {
    let log = serve.log();
    let lines = log.lines().filter(|line| line.contains(what));
    lines
        .filter_map(|line| {
            let wait = line.split("wait=").nth(1)?.split_whitespace().next()?;
            let split = wait.find(|c: char| c.is_ascii_alphabetic() || c == 'µ')?;
            let number: f64 = wait[..split].parse().ok()?;
            Some(if &wait[split..] == "s" { number * 1e3 } else { number })
        })
        .collect()
}

fn assert_growing(waits: &[f64]) {
    assert!(waits.len() >= 3, "one line a try: {waits:?}");
    assert!(waits[2] > waits[0] * 1.5, "they grow: {waits:?}");
    assert!(waits.iter().all(|wait| *wait <= 13_500.0), "{waits:?}");
}

/// Jobs end while the broker is away, and while it dies: every event is in the queue of who listens once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_wait_for_a_broker_that_stops_and_none_is_lost() {
    outage(async |services, world| {
        let _sim = provider(world, 16).await;
        world.prepare().await;
        let queue = format!("events-of-{}", world.provider);
        let broker = Broker::connect().await;
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        broker.declare(&queue, quorum).await.expect("a queue that lasts");
        let (exchange, key) = ("paceline.events".into(), format!("{}.#", world.provider));
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        let channel = broker.channel().await;
        channel.queue_bind(queue.as_str().into(), exchange, key.as_str().into(), options, none).await.expect("bound");
        broker.close().await;
        let serve = world.serving().await;
        let api = world.api();
        let job = |id: String| json!({ "id": id, "provider": world.provider, "request": { "path": "/ok" } });
        for (round, how) in ["stop", "kill"].into_iter().enumerate() {
            let some = |part: &str| (0..100).map(|n| job(format!("{part}{round}-{n}"))).collect::<Vec<_>>();
            api.accept_all(&some("before")).await;
            match how {
                "stop" => services.stop("rabbitmq").await,
                _ => services.kill("rabbitmq").await,
            }
            api.accept_all(&some("while")).await;
            let ended = i64::try_from(200 * (round + 1)).expect("few");
            until("they end all the same", SOON, async || {
                holds(world.number("SELECT COUNT(*) FROM events").await == ended)
            })
            .await;
            services.up().await;
            until("they are published", BACK, async || {
                holds(world.number("SELECT COUNT(*) FROM deliveries").await == 0)
            })
            .await;
        }
        let figures = api.text("/metrics").await;
        let of_events = |outcome| format!("paceline_publications_total{{kind=\"event\",outcome=\"{outcome}\"}}");
        assert!(figures.contains(&of_events("delivered")) && !figures.contains(&of_events("retry")), "{figures}");
        let broker = Broker::connect().await;
        let channel = broker.channel().await;
        let mut seen = BTreeSet::new();
        while let Some(message) =
            channel.basic_get(queue.as_str().into(), BasicGetOptions { no_ack: true }).await.expect("an answer")
        {
            seen.extend(message.properties.message_id().as_ref().map(|id| id.as_str().to_owned()));
        }
        let events: Vec<(String,)> = world.rows("SELECT id FROM events").await;
        assert_eq!(seen, events.into_iter().map(|event| event.0).collect());
        broker.delete(&queue).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_absent_at_the_start_is_waited_for() {
    outage(async |services, world| {
        let _sim = provider(world, 8).await;
        services.stop("rabbitmq").await;
        let serve = world.serve();
        let api = world.api();
        let said = api.red_parts(&["queue"], SOON).await.concat();
        assert!(said.contains("onnection refused"), "{said}");
        assert_eq!(api.get("/healthz").await.0, 200);
        assert_eq!(api.get("/readyz").await.0, 503);
        // HTTP does not need it.
        api.accept(&json!({ "id": "h1", "provider": world.provider, "request": { "path": "/ok" } })).await;
        api.job_in("h1", &["succeeded"]).await;
        until("it tries again and again", SOON, async || holds(waits(&serve, "RabbitMQ").len() >= 3)).await;
        assert_growing(&waits(&serve, "RabbitMQ"));
        services.up().await;
        api.green(BACK).await;
        publish(world, &jobs(world, "b", 5, "/ok", "http://127.0.0.1:1/")).await;
        for n in 0..5 {
            api.job_in(&format!("b{n}"), &["succeeded"]).await;
        }
        serve.stop().await;
    })
    .await;
}

/// It is there when it is opened, and gone when it is asked what must be known before anything starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_during_the_start_is_waited_for() {
    outage(async |_, world| {
        let _sim = provider(world, 8).await;
        world.prepare().await;
        let mut holder = PgConnection::connect(world.database()).await.expect("the database");
        let lock = "BEGIN; LOCK TABLE vault_keys IN ACCESS EXCLUSIVE MODE";
        sqlx::raw_sql(lock).execute(&mut holder).await.expect("locked");
        let mut serve = world.serve();
        let cut = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'paceline' AND wait_event_type = 'Lock'";
        until("it asks", SOON, async || holds(world.number(cut).await > 0)).await;
        until("it tries again", SOON, async || holds(!waits(&serve, "the database").is_empty())).await;
        holder.close().await.expect("let go");
        world.ready(&mut serve).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_absent_at_the_start_is_waited_for() {
    outage(async |services, world| {
        let _sim = provider(world, 8).await;
        services.stop("postgres").await;
        let mut serve = world.serve();
        let api = world.api();
        api.red_parts(&["store"], SOON).await;
        assert_eq!(api.get("/healthz").await.0, 200);
        let (status, problem) =
            api.post("/v1/jobs", &json!({ "provider": world.provider, "request": { "path": "/ok" } })).await;
        assert_eq!((status, &problem["type"]), (503, &json!("urn:paceline:problem:unavailable")), "{problem}");
        until("it tries again and again", SOON, async || holds(waits(&serve, "the database").len() >= 3)).await;
        assert_growing(&waits(&serve, "the database"));
        assert!(serve.is_alive());
        services.up().await;
        api.green(BACK).await;
        publish(world, &jobs(world, "b", 5, "/ok", "http://127.0.0.1:1/")).await;
        for n in 0..5 {
            api.job_in(&format!("b{n}"), &["succeeded"]).await;
        }
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_or_dies_while_it_is_consumed_loses_and_doubles_nothing() {
    outage(async |services, world| {
        let sim = provider(world, 2).await;
        let hooks = receiver().await;
        let serve = world.serving().await;
        let api = world.api();
        publish(world, &jobs(world, "r", 300, "/slow/40", &hooks.hook(""))).await;
        sim.wait_accepted(50, SOON).await.expect("calls");
        services.restart("rabbitmq").await;
        api.green(BACK).await;
        publish(world, &jobs(world, "s", 50, "/ok", &hooks.hook(""))).await;
        let calls = sim.stats().accepted;
        sim.wait_accepted(calls + 20, SOON).await.expect("it goes on");
        services.kill("rabbitmq").await;
        api.red_parts(&["queue"], SOON).await;
        // What was let in goes on, and so does HTTP.
        api.accept(&json!({ "id": "h1", "provider": world.provider, "request": { "path": "/ok" } })).await;
        services.up().await;
        api.green(BACK).await;
        world.all_done(351, Duration::from_secs(90)).await;
        world.at_rest(351).await;
        assert_eq!(sim.executions(2), [], "no call was made twice");
        assert_eq!(sim.stats().executed, 351);
        hooks.wait_acknowledged(350, SOON).await.expect("every event");
        serve.stop().await;
    })
    .await;
}

/// Longer than the time after which a silent process counts as dead.
const LONG: Duration = Duration::from_secs(17);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_while_jobs_run_loses_and_doubles_nothing() {
    outage(async |services, world| {
        let sim = provider(world, 8).await;
        let hooks = receiver().await;
        let serve = world.serving().await;
        let api = world.api();
        publish(world, &jobs(world, "d", 64, "/slow/1200", &hooks.hook(""))).await;
        let mut once = jobs(world, "o", 4, "/slow/1200", &hooks.hook(""));
        once.iter_mut().for_each(|job| job["delivery"] = "at_most_once".into());
        api.accept_all(&once).await;
        for (round, outage) in ["restart", "stop", "kill"].into_iter().enumerate() {
            let calls = sim.stats().accepted;
            sim.wait_accepted(calls + 9, SOON).await.expect("calls go out");
            match outage {
                "restart" => services.restart("postgres").await,
                "stop" => {
                    services.stop("postgres").await;
                    let began = tokio::time::Instant::now();
                    api.red_parts(&["store"], SOON).await;
                    let job = json!({ "id": "refused", "provider": world.provider, "request": { "path": "/ok" } });
                    let (status, problem) = api.post("/v1/jobs", &job).await;
                    assert_eq!(
                        (status, &problem["type"]),
                        (503, &json!("urn:paceline:problem:unavailable")),
                        "{problem}"
                    );
                    assert_eq!(api.get("/v1/jobs/d1").await.0, 503);
                    assert_eq!(api.get("/healthz").await.0, 200);
                    // These wait in the broker, or unacknowledged.
                    publish(world, &jobs(world, "w", 20, "/ok", &hooks.hook(""))).await;
                    tokio::time::sleep_until(began + LONG).await;
                    services.up().await;
                }
                _ => {
                    services.kill("postgres").await;
                    services.up().await;
                }
            }
            api.green(BACK).await;
            let id = format!("after{round}");
            api.accept(&json!({ "id": id, "provider": world.provider, "request": { "path": "/ok" } })).await;
        }
        let all = 64 + 4 + 20 + 3;
        world.all_done(all, Duration::from_secs(60)).await;
        let succeeded = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
        assert_eq!(succeeded, all, "every outcome was recorded");
        assert_eq!(sim.executions(2), [], "and no call was made twice");
        world.at_rest(all).await;
        hooks.wait_acknowledged(88, BACK).await.expect("every event");
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_in_order_even_while_the_database_is_away() {
    outage(async |services, world| {
        let sim = provider(world, 2).await;
        let mut serve = world.serving().await;
        let api = world.api();
        services.stop("postgres").await;
        api.red_parts(&["store"], SOON).await;
        let broker = Broker::connect().await;
        publish(world, &jobs(world, "f", 10, "/ok", "http://127.0.0.1:1/")).await;
        // In the hands of the inlet, or in the broker where the lease has ended by now.
        until("deliveries wait for the store", SOON, async || {
            let queue = broker.queue(&world.queue("default")).await;
            holds(serve.log().contains("deliveries wait") || queue == Some((10, 0)))
        })
        .await;
        broker.close().await;
        serve.terminate();
        let status = serve.ended(Duration::from_secs(20)).await;
        assert_eq!(status.code(), Some(0), "{}", serve.log());
        services.up().await;
        let serve = world.serving().await;
        world.all_done(10, Duration::from_secs(60)).await;
        world.at_rest(10).await;
        assert_eq!(sim.stats().executed, 10);
        serve.stop().await;
    })
    .await;
}

/// Deliveries that wait for the store when their connection breaks go back to the broker, and so does
/// the room that was reserved for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_may_fail_at_once() {
    outage(async |services, world| {
        let sim = provider(world, 2).await;
        // Room for one, so that none is left when what was reserved is not given back.
        let limits =
            "key_limits = [ { requests = 1, per = \"2s\", algorithm = \"sliding_window\" } ]\ntimeout = \"2s\"";
        world.provider(&sim.base_url(), &[("a1", KEY)], limits);
        for prepare in [&["migrate"][..], &["topology", "apply"]] {
            assert!(world.run(prepare).await.status.success(), "{prepare:?}");
        }
        publish(world, &jobs(world, "a", 4, "/ok", "http://127.0.0.1:1/")).await;
        let mut lock = PgConnection::connect(world.database()).await.expect("the database");
        sqlx::raw_sql("BEGIN; LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE").execute(&mut lock).await.expect("locked");
        let serve = world.serve();
        let cut = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        // As often as there is room, so that none would be left.
        for round in 1..=3 {
            let broker = Broker::connect().await;
            let said = |what: &str| serve.log().matches(what).count();
            let before = said("deliveries wait");
            until("deliveries wait for the store", SOON, async || {
                holds(broker.queue(&world.queue("default")).await?.1 == 1)?;
                world.number(cut).await;
                holds(said("deliveries wait") > before)
            })
            .await;
            services.cut_connections().await;
            until("the session is over", SOON, async || {
                world.number(cut).await;
                holds(said("RabbitMQ cannot be used") >= round)
            })
            .await;
        }
        lock.close().await.expect("unlocked");
        world.all_done(4, Duration::from_secs(60)).await;
        world.at_rest(4).await;
        assert_eq!((sim.stats().executed, sim.executions(2)), (4, Vec::new()));
        serve.stop().await;
    })
    .await;
}

/// To the database its process looks dead, and yet it lives: its heartbeats did not arrive for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_rescues_the_jobs_of_the_living() {
    outage(async |_services, world| {
        let sim = provider(world, 8).await;
        let hooks = receiver().await;
        let serve = world.serving().await;
        publish(world, &jobs(world, "l", 24, "/slow/2500", &hooks.hook(""))).await;
        let mut once = jobs(world, "o", 4, "/slow/2500", &hooks.hook(""));
        once.iter_mut().for_each(|job| job["delivery"] = "at_most_once".into());
        world.api().accept_all(&once).await;
        sim.wait_accepted(8, SOON).await.expect("calls");
        // As after an outage: the upkeep looks before the next heartbeat is written.
        until("all is done in spite of it", Duration::from_secs(40), async || {
            world.execute("UPDATE owners SET seen_ms = 0").await;
            holds(world.open_jobs().await == 0 && world.number("SELECT COUNT(*) FROM jobs").await == 28)
        })
        .await;
        assert!(!serve.log().contains("rescued"), "{}", serve.log());
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, 28);
        assert_eq!(sim.executions(2), []);
        world.at_rest(28).await;
        serve.stop().await;
    })
    .await;
}

/// A connection that breaks while it commits: nobody knows whether it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_whose_answers_are_lost_leave_no_orphans_and_double_no_call() {
    outage(async |_services, world| {
        let sim = provider(world, 8).await;
        let hooks = receiver().await;
        let mut url = url::Url::parse(world.database()).expect("a URL");
        let database = format!("{}:{}", url.host_str().expect("a host"), url.port().unwrap_or(5432));
        let cut = Cut::start(database).await;
        url.set_port(Some(cut.address.port())).expect("a port");
        world.set("DATABASE_URL", url.as_str());
        let serve = world.serving().await;
        cut.every(4);
        let over_http = jobs(world, "h", 100, "/fail/1", &hooks.hook(""));
        for batch in over_http.chunks(10) {
            until("they are accepted", SOON, async || {
                let answer = world.api().try_post("/v1/jobs", &Value::Array(batch.to_vec())).await?;
                holds(answer.0 == 202)
            })
            .await;
        }
        for batch in jobs(world, "b", 150, "/ok", &hooks.hook("")).chunks(15) {
            publish(world, batch).await;
        }
        until("enough of them are cut", SOON, async || {
            let (before, after) = cut.counts();
            holds(before >= 15 && after >= 15)
        })
        .await;
        cut.every(0);
        world.all_done(250, Duration::from_secs(60)).await;
        world.at_rest(250).await;
        let succeeded = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
        assert_eq!(succeeded, 250);
        assert_eq!(sim.executions(2), [], "no call was made twice");
        hooks.wait_acknowledged(250, BACK).await.expect("every event");
        serve.stop().await;
    })
    .await;
}

/// A broker behind this keeps its connections and stays silent from `hang` on.
async fn silent_from(hang: tokio_util::sync::CancellationToken) -> u16 {
    let broker = url::Url::parse(&broker::url()).expect("a URL");
    let broker = format!("{}:{}", broker.host_str().expect("a host"), broker.port().unwrap_or(5672));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (broker, hang) = (broker.clone(), hang.clone());
            tokio::spawn(async move {
                let mut far = tokio::net::TcpStream::connect(broker).await.expect("the broker");
                tokio::select! {
                    copied = tokio::io::copy_bidirectional(&mut near, &mut far) => drop(copied),
                    () = hang.cancelled() => std::future::pending().await,
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_says_nothing_any_more_does_not_keep_a_process_from_stopping() {
    outage(async |_services, world| {
        let sim = provider(world, 4).await;
        let hang = tokio_util::sync::CancellationToken::new();
        let mut url = url::Url::parse(&broker::url()).expect("a URL");
        url.set_port(Some(silent_from(hang.clone()).await)).expect("a port");
        url.set_host(Some("127.0.0.1")).expect("a host");
        world.set("AMQP_URL", url.as_str());
        let mut serve = world.serving().await;
        hang.cancel();
        serve.terminate();
        let status = serve.ended(Duration::from_secs(30)).await;
        assert!(status.success(), "{status}");
        drop(sim);
    })
    .await;
}

/// A database that keeps its connections and answers nothing must not keep a process from stopping for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_says_nothing_any_more_does_not_keep_a_process_from_stopping() {
    outage(async |_services, world| {
        let _sim = provider(world, 4).await;
        let database = url::Url::parse(world.database()).expect("a URL");
        let place = format!("{}:{}", database.host_str().expect("a host"), database.port().unwrap_or(5432));
        for signals in [1, 2] {
            let proxy = Proxy::start(place.clone()).await;
            world.set("DATABASE_URL", &proxy.url(world.database()));
            let mut serve = world.serving().await;
            proxy.set(Manner::Stalled);
            let asked = std::time::Instant::now();
            serve.terminate();
            if signals == 2 {
                until("it drains", SOON, async || holds(serve.log().contains("draining"))).await;
                // Closer together they count as one.
                tokio::time::sleep(Duration::from_millis(100)).await;
                serve.terminate();
            }
            let status = serve.ended(Duration::from_secs(30)).await;
            let took = asked.elapsed();
            println!("{signals} signals: {took:?}");
            match signals {
                1 => assert!(took < Duration::from_secs(20), "{took:?}:\n{}", serve.log()),
                _ => assert!(took < Duration::from_secs(3) && !status.success(), "{took:?}, {status}"),
            }
        }
    })
    .await;
}
