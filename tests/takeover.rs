//! No limit is exceeded however processes come and go: killed and restarted at once, taking over
//! from each other, or stopped in order. The provider is the judge: it is strict, and delays calls
//! before it counts them.

mod common;

use std::time::{Duration, Instant};

use common::world::{Mode, World, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const LIMIT: u64 = 20;
const KEYS: [(&str, &str); 2] = [("a1", "takeover-key-1"), ("a2", "takeover-key-2")];

/// Each key allows 20 calls in any 2 seconds.
async fn provider(world: &World) -> ProviderHandle {
    let options = ProviderOptions {
        keys: KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect(),
        rules: vec![format!("key requests {LIMIT}/2s sliding_log").parse().expect("a rule")],
        delay_before: Some(Lognormal::ms(15, 120)),
        latency: Some(Lognormal::ms(20, 100)),
        seed: 5,
        ..ProviderOptions::default()
    };
    let sim = ProviderSim::start(options).await.expect("a provider");
    let limit = format!("key_limits = [ {{ requests = {LIMIT}, per = \"2s\", algorithm = \"sliding_window\" }} ]");
    world.provider(&sim.base_url(), &KEYS, &limit);
    sim
}

fn jobs(world: &World, count: u64) -> Vec<Value> {
    let job = |n| json!({ "id": format!("t{n}"), "provider": world.provider, "request": { "path": "/ok" } });
    (0..count).map(job).collect()
}

fn assert_nothing_was_refused(sim: &ProviderHandle) {
    let stats = sim.stats();
    assert_eq!(stats.refused_limit, 0, "429 in spite of leases: {stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_and_restarted_at_once_exceeds_nothing() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(world).await;
        let mut serve = world.serving().await;
        world.api().accept_all(&jobs(world, 200)).await;
        for accepted in [30, 70, 90, 130] {
            sim.wait_accepted(accepted, Duration::from_secs(60)).await.expect("calls go out");
            serve.kill().await;
            serve = world.serving().await;
        }
        world.all_done(200, Duration::from_secs(90)).await;
        serve.stop().await;
        assert_nothing_was_refused(&sim);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_take_over_from_each_other_exceed_nothing() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world).await;
        let mut first = world.serving().await;
        let role = ["--role", "dispatcher,scheduler"];
        let mut others = vec![world.serve_as("b", &role), world.serve_as("c", &role)];
        world.api().accept_all(&jobs(world, 240)).await;
        sim.wait_accepted(60, Duration::from_secs(60)).await.expect("calls go out");
        // Only one of them sends: three at once would have been refused by now.
        assert_nothing_was_refused(&sim);
        first.kill().await;
        sim.wait_accepted(110, Duration::from_secs(60)).await.expect("another one takes over");
        others.remove(0).kill().await;
        others.push(world.serve_as("d", &role));
        sim.wait_accepted(160, Duration::from_secs(60)).await.expect("and another one");
        first = world.serving().await;
        world.all_done(240, Duration::from_secs(90)).await;
        assert_nothing_was_refused(&sim);
        first.stop().await;
        for other in others {
            other.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_hands_over_at_once() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world).await;
        let first = world.serving().await;
        let second = world.serve_as("b", &["--role", "dispatcher,scheduler"]);
        world.api().accept_all(&jobs(world, 160)).await;
        sim.wait_accepted(50, Duration::from_secs(60)).await.expect("calls go out");
        let began = Instant::now();
        first.stop().await;
        let reached = sim.stats().accepted;
        sim.wait_accepted(reached + 1, SOON).await.expect("the other one goes on");
        assert!(began.elapsed() < Duration::from_secs(5), "no lease had to run out: {:?}", began.elapsed());
        until("the lease has one owner", SOON, async || {
            holds(world.number("SELECT COUNT(*) FROM leases WHERE owner IS NOT NULL").await == 1)
        })
        .await;
        world.all_done(160, Duration::from_secs(60)).await;
        second.stop().await;
        assert_nothing_was_refused(&sim);
        let held = world.number("SELECT COUNT(*) FROM leases WHERE owner IS NOT NULL").await;
        assert_eq!(held, 0, "a lease that was let go of belongs to nobody");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_takes_only_the_places_that_may_be_in_use() {
    in_world(Mode::Embedded, async |world| {
        let sim = ProviderSim::start(ProviderOptions::default()).await.expect("a provider");
        world.provider(&sim.base_url(), &KEYS[..1], "key_limits = [ { concurrency = 40 } ]");
        let serve = world.serving().await;
        let job = |n| json!({ "id": format!("t{n}"), "provider": world.provider, "request": { "path": "/slow/300" } });
        world.api().accept_all(&(0..12).map(job).collect::<Vec<_>>()).await;
        sim.wait_accepted(5, SOON).await.expect("calls go out");
        serve.kill().await;
        let began = Instant::now();
        let serve = world.serving().await;
        world.all_done(12, SOON).await;
        // A call without answer holds its place for 30 s, the timeout; most places never were in use.
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        serve.stop().await;
    })
    .await;
}
