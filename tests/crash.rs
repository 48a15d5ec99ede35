//! kill -9 and SIGTERM of the built binary at work, in both modes: nothing lost, nothing doubled but
//! calls that were in flight at a kill, and those under the same idempotency key.

mod common;

use std::time::{Duration, Instant};

use common::broker::Broker;
use common::world::{Mode, SECRET, World, free_port, in_world};
use common::{SOON, holds, until};
use paceline::sim::{
    Lognormal, ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim, SimKey,
};
use serde_json::{Value, json};

const KEY: &str = "crash-key-0123456789";
/// Calls open at once.
const OPEN: u64 = 16;
/// From the arrival of a call to the commit of its outcome, on a machine that is busy.
const IN_FLIGHT: Duration = Duration::from_millis(2_500);

/// After a crash nobody knows which calls are open still: their slots come back after the timeout.
async fn provider(world: &World, latency: Option<Lognormal>, timeout: &str, more: &str) -> ProviderHandle {
    let keys = vec![SimKey::new("a1", KEY)];
    let options = ProviderOptions { keys, latency, seed: 11, ..ProviderOptions::default() };
    let sim = ProviderSim::start(options).await.expect("a provider");
    let limits = format!("key_limits = [ {{ concurrency = {OPEN} }} ]\ntimeout = \"{timeout}\"\n");
    world.provider(&sim.base_url(), &[("a1", KEY)], &format!("{limits}{more}"));
    sim
}

async fn receiver() -> ReceiverHandle {
    let options = ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() };
    ReceiverSim::start(options).await.expect("a receiver")
}

/// Lets jobs in the way of the mode.
async fn submit(world: &World, jobs: &[Value]) {
    match world.mode {
        Mode::Embedded => world.api().accept_all(jobs).await,
        Mode::Scaled => {
            let broker = Broker::connect().await;
            let message = |job: &Value| (job["id"].as_str().expect("an id").to_owned(), job.to_string().into_bytes());
            broker.publish_all(&world.provider, jobs.iter().map(message)).await;
            broker.close().await;
        }
    }
}

fn job(world: &World, id: &str, path: &str) -> Value {
    json!({ "id": id, "provider": world.provider, "request": { "method": "POST", "path": path } })
}

async fn killed_again_and_again(mode: Mode) {
    in_world(mode, async |world| {
        let retry = "retry = { max_attempts = 3, base = \"50ms\", cap = \"200ms\" }";
        let sim = provider(world, Some(Lognormal::ms(40, 200)), "2s", retry).await;
        let began = Instant::now();
        let hooks = receiver().await;
        let count = 700;
        let jobs: Vec<Value> = (0..count)
            .map(|n| {
                let path = if n % 20 == 7 {
                    "/fail/1"
                } else if n % 50 == 11 {
                    "/gone"
                } else {
                    "/ok"
                };
                let mut job = job(world, &format!("k{n}"), path);
                job["callback"] = json!({ "url": hooks.hook("") });
                job
            })
            .collect();
        let mut serve = world.serving().await;
        submit(world, &jobs).await;
        let mut kills = Vec::new();
        for calls in [60, 230, 400] {
            sim.wait_accepted(calls, Duration::from_secs(60)).await.expect("calls go out");
            serve.kill().await;
            kills.push(began.elapsed());
            serve = world.serve();
        }
        world.all_done(count, Duration::from_secs(90)).await;
        hooks.wait_acknowledged(count as u64, Duration::from_secs(60)).await.expect("every event arrives");
        world.at_rest(count).await;
        let dead = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'dead' AND reason = 'permanent'").await;
        assert_eq!(dead, 14, "those that are gone, and no others");
        let succeeded = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
        assert_eq!(succeeded, count - 14);
        let stats = hooks.stats();
        assert_eq!((stats.distinct, stats.bad_signature, stats.malformed), (count as u64, 0, 0));
        assert!(hooks.events().iter().all(|event| !event.changed), "an event is the same every time");
        repeats_were_in_flight(&sim, &kills);
        serve.stop().await;
    })
    .await;
}

/// Executed more than once: only calls that were in flight at a kill.
fn repeats_were_in_flight(sim: &ProviderHandle, kills: &[Duration]) {
    let repeated = sim.executions(2);
    let ledger = sim.ledger();
    for execution in &repeated {
        let mut arrivals: Vec<Duration> = ledger
            .iter()
            .filter(|call| call.executed && call.idempotency_key.as_deref() == Some(&*execution.idempotency_key))
            .map(|call| call.at)
            .collect();
        arrivals.pop();
        for at in arrivals {
            let excused = kills.iter().any(|kill| at <= *kill + Duration::from_millis(500) && at + IN_FLIGHT >= *kill);
            assert!(excused, "{} was executed at {at:?} and again, kills at {kills:?}", execution.idempotency_key);
        }
    }
    assert!(repeated.len() as u64 <= OPEN * kills.len() as u64 * 2, "{} repeats", repeated.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_embedded() {
    killed_again_and_again(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_again_and_again_with_rabbitmq_and_postgresql() {
    killed_again_and_again(Mode::Scaled).await;
}

async fn drains(mode: Mode) {
    in_world(mode, async |world| {
        let sim = provider(world, None, "3s", "").await;
        let hooks = receiver().await;
        let mut serve = world.serving().await;
        let count = 64;
        let jobs: Vec<Value> = (0..count)
            .map(|n| {
                let mut job = job(world, &format!("s{n}"), "/slow/1500");
                job["callback"] = json!({ "url": hooks.hook("") });
                job
            })
            .collect();
        submit(world, &jobs).await;
        sim.wait_accepted(OPEN, SOON).await.expect("the first calls");
        serve.terminate();
        let status = serve.ended(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{}", serve.log());
        let sent = i64::try_from(sim.stats().executed).expect("few");
        assert!(sent < count, "it took nothing new: {sent}");
        let ended = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
        assert_eq!(ended, sent, "what was in flight was finished");
        assert_eq!(
            world.number("SELECT COUNT(*) FROM jobs WHERE owner IS NOT NULL").await,
            0,
            "nothing is left claimed"
        );
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'running'").await, 0);
        assert_eq!(world.number("SELECT COUNT(*) FROM owners").await, 0, "nobody is left in the list of the living");
        let began = Instant::now();
        let serve = world.serve();
        sim.wait_accepted(sent.unsigned_abs() + 1, SOON).await.expect("it goes on");
        assert!(began.elapsed() < Duration::from_secs(8), "at once, not after a rescue: {:?}", began.elapsed());
        world.all_done(count, Duration::from_secs(60)).await;
        assert_eq!(sim.executions(2), [], "nothing was sent twice");
        hooks.wait_acknowledged(count.unsigned_abs(), SOON).await.expect("every event");
        world.at_rest(count).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_in_both_modes() {
    tokio::join!(drains(Mode::Embedded), drains(Mode::Scaled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_at_once_and_as_safely_as_a_crash() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(world, None, "6s", "").await;
        let mut serve = world.serving().await;
        submit(world, &[job(world, "slow", "/slow/5500"), job(world, "next", "/ok")]).await;
        world.api().job_in("slow", &["running"]).await;
        world.api().job_in("next", &["succeeded"]).await;
        serve.terminate();
        until("it drains", SOON, async || holds(serve.log().contains("draining"))).await;
        // Signals within 20 ms are one wish (a supervisor signals the process and its group): the next one is another.
        let began = Instant::now();
        until("it ends", SOON, async || match serve.is_alive() {
            true => {
                serve.terminate();
                None
            }
            false => Some(()),
        })
        .await;
        let status = serve.ended(Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(130), "{}", serve.log());
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let serve = world.serve();
        sim.wait_accepted(3, SOON).await.expect("the call that was cut off is made again");
        let again = sim.executions(2);
        assert_eq!(again.len(), 1);
        assert_eq!(&*again[0].idempotency_key, "slow", "under the same idempotency key");
        serve.kill().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_may_be_made_once_is_not_made_again_after_a_crash() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(world, None, "3s", "").await;
        let hooks = receiver().await;
        let serve = world.serving().await;
        let mut once = job(world, "once", "/slow/2000");
        once["delivery"] = "at_most_once".into();
        once["callback"] = json!({ "url": hooks.hook("") });
        submit(world, &[once]).await;
        sim.wait_accepted(1, SOON).await.expect("it is sent");
        serve.kill().await;
        let serve = world.serving().await;
        let api = world.api();
        let dead = api.job_in("once", &["dead"]).await;
        assert_eq!(dead["reason"], "outcome_unknown", "{dead}");
        assert_eq!(dead["attempts"][0]["outcome"], "unknown");
        assert_eq!(sim.stats().executed, 1, "nobody knows, so nobody tries again");
        // On purpose, and under the same key: the provider can tell that it is the same call.
        let (status, answer) = api.post("/v1/dead-letters/once/replay", &json!({})).await;
        assert_eq!(status, 202, "{answer}");
        api.job_in("once", &["succeeded"]).await;
        assert_eq!(&*sim.executions(2)[0].idempotency_key, "once");
        hooks.wait_acknowledged(2, SOON).await.expect("one event a run");
        assert_eq!(hooks.stats().by_type.get("job.dead"), Some(&1));
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_serve_on_the_same_file_is_refused() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world, None, "3s", "").await;
        let first = world.serving().await;
        let mut second = world.serve_as("same-port", &[]);
        assert_eq!(second.ended(SOON).await.code(), Some(1));
        assert!(second.log().contains("cannot listen on"), "{}", second.log());
        world.set("PACELINE__API__LISTEN", &format!("127.0.0.1:{}", free_port()));
        let mut third = world.serve_as("other-port", &[]);
        let status = third.ended(SOON).await;
        assert_eq!(status.code(), Some(1));
        let said = third.log();
        assert!(said.contains("paceline.db") && said.contains("in use by another paceline process"), "{said}");
        // With the first one gone, even by kill -9, the file is free.
        first.kill().await;
        let fourth = world.serve_as("after", &[]);
        until("it serves", SOON, async || holds(fourth.log().contains("the API listens"))).await;
        fourth.stop().await;
    })
    .await;
}
