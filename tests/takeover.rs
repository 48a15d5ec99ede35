//! No limit is exceeded however processes come and go: killed and restarted at once, taking over
//! from each other, or stopped in order. The provider is the judge: it is strict, and delays calls
//! before it counts them.

mod common;

use std::time::{Duration, Instant};

use common::broker::Broker;
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
        // Two of them send, each with one key: all with both would have been refused by now.
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
        until("the other one has all leases", SOON, async || {
            let owners = world.number("SELECT COUNT(DISTINCT owner) FROM leases WHERE owner IS NOT NULL").await;
            let held = world.number("SELECT COUNT(*) FROM leases WHERE owner IS NOT NULL").await;
            holds((owners, held) == (1, 2))
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

/// Four budgets of a key each, and four keys that are their own: eight pacing groups.
async fn eight_budgets(world: &World) -> ProviderHandle {
    let labels: Vec<String> = (1..=4).flat_map(|n| [format!("a{n}"), format!("k{n}")]).collect();
    let options = ProviderOptions {
        keys: labels.iter().map(|label| SimKey::new(label, format!("takeover-key-{label}"))).collect(),
        rules: vec![format!("key requests {LIMIT}/2s sliding_log").parse().expect("a rule")],
        delay_before: Some(Lognormal::ms(15, 120)),
        latency: Some(Lognormal::ms(20, 100)),
        seed: 11,
        ..ProviderOptions::default()
    };
    let sim = ProviderSim::start(options).await.expect("a provider");
    for label in &labels {
        world.set(&format!("KEY_{label}"), &format!("takeover-key-{label}"));
    }
    let key = |label: String| format!("{{ label = \"{label}\", secret = \"env:KEY_{label}\" }}");
    let limits = format!("[ {{ requests = {LIMIT}, per = \"2s\", algorithm = \"sliding_window\" }} ]");
    let single: Vec<String> = (1..=4).map(|n| key(format!("a{n}"))).collect();
    let budget = |n| {
        let key = key(format!("k{n}"));
        format!("[[provider.budget]]\nname = \"b{n}\"\nkeys = [ {key} ]\nlimits = {limits}\n")
    };
    let budgets: String = (1..=4).map(budget).collect();
    world.configure(&format!(
        "[[provider]]\nname = \"{}\"\nbase_url = \"{}\"\nkeys = [ {} ]\nkey_limits = {limits}\n{budgets}",
        world.provider,
        sim.base_url(),
        single.join(", ")
    ));
    sim
}

/// How many of the eight leases each of the live dispatchers holds, most first.
async fn shares(world: &World) -> Vec<i64> {
    let mut shares = Vec::new();
    for place in 0..8 {
        let sql = format!(
            "SELECT COALESCE((SELECT COUNT(*) FROM leases WHERE owner IS NOT NULL
                AND expires_ms > EXTRACT(EPOCH FROM clock_timestamp()) * 1000
                GROUP BY owner ORDER BY COUNT(*) DESC, owner OFFSET {place} LIMIT 1), 0)"
        );
        shares.push(world.number(&sql).await);
    }
    shares.retain(|share| *share > 0);
    shares
}

async fn shared(world: &World, expected: &[i64], within: Duration) {
    until(&format!("leases are shared {expected:?}"), within, async || holds(shares(world).await == expected)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_are_spread_evenly_over_those_that_live_and_pinned_jobs_find_their_way() {
    in_world(Mode::Scaled, async |world| {
        let sim = eight_budgets(world).await;
        let first = world.serving().await;
        let role = ["--role", "dispatcher,scheduler"];
        let mut others: Vec<_> = ["b", "c", "d"].iter().map(|name| world.serve_as(name, &role)).collect();
        shared(world, &[2, 2, 2, 2], SOON).await;
        let free: u64 = 1_700;
        world.api().accept_all(&jobs(world, free)).await;
        // Pinned ones come over the broker, to whoever consumes.
        let broker = Broker::connect().await;
        let pins: Vec<String> = (1..=4).flat_map(|n| [format!("a{n}"), format!("b{n}"), format!("k{n}")]).collect();
        let pinned = pins.iter().flat_map(|pin| (0..10).map(move |n| (pin, n)));
        let pinned: Vec<(String, Vec<u8>)> = pinned
            .map(|(pin, n)| {
                let id = format!("{pin}-{n}");
                let job = json!({ "id": id, "provider": world.provider, "request": { "path": "/ok" }, "key": pin });
                (id, job.to_string().into_bytes())
            })
            .collect();
        let all = i64::try_from(free).expect("few") + 120;
        broker.publish_all(&world.provider, pinned).await;
        broker.close().await;
        sim.wait_accepted(200, Duration::from_secs(60)).await.expect("calls go out");
        others.remove(0).kill().await;
        // Its leases run out, and go to the three that live.
        shared(world, &[3, 3, 2], SOON).await;
        assert_nothing_was_refused(&sim);
        others.push(world.serve_as("e", &role));
        shared(world, &[2, 2, 2, 2], SOON).await;
        world.all_done(all, Duration::from_secs(120)).await;
        assert_nothing_was_refused(&sim);
        let other_key = "SELECT COUNT(*) FROM jobs JOIN all_attempts a ON a.job_pk = jobs.pk
            WHERE pin IS NOT NULL AND a.key <> REPLACE(pin, 'b', 'k') AND a.key <> ''";
        assert_eq!(world.number(other_key).await, 0, "each with its own key");
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, all);
        first.stop().await;
        for other in others {
            other.stop().await;
        }
        assert_eq!(shares(world).await, [0_i64; 0], "everything was handed over");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_with_other_groups_waits_for_the_old_one_and_knows_what_it_spent() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world).await;
        let role = ["--role", "dispatcher,scheduler"];
        let first = world.serving().await;
        world.api().accept_all(&jobs(world, 200)).await;
        sim.wait_accepted(40, Duration::from_secs(60)).await.expect("calls go out");
        let whole = "SELECT COUNT(*) FROM leases WHERE name = '' AND owner IS NOT NULL";
        let single = "SELECT COUNT(*) FROM leases WHERE name <> '' AND owner IS NOT NULL";
        assert_eq!((world.number(whole).await, world.number(single).await), (0, 2));
        // A limit of the provider as a whole ties both keys together.
        let limit = format!(
            "key_limits = [ {{ requests = {LIMIT}, per = \"2s\", algorithm = \"sliding_window\" }} ]\n\
             limits = [ {{ concurrency = 500 }} ]"
        );
        world.provider(&sim.base_url(), &KEYS, &limit);
        let second = world.serve_as("b", &role);
        let announced = "SELECT COUNT(*) FROM dispatchers";
        until("the second one is there", SOON, async || holds(world.number(announced).await == 2)).await;
        let reached = sim.stats().accepted;
        sim.wait_accepted(reached + 20, SOON).await.expect("the first one goes on");
        assert_eq!(world.number(whole).await, 0, "the second one waits");
        first.kill().await;
        sim.wait_accepted(reached + 80, Duration::from_secs(60)).await.expect("the second one goes on");
        assert_eq!(world.number(whole).await, 1);
        world.all_done(200, Duration::from_secs(90)).await;
        second.stop().await;
        assert_nothing_was_refused(&sim);
    })
    .await;
}
