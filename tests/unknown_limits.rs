//! A provider whose limit nobody declared, for real: `paceline serve` on SQLite finds what a strict provider allows.

mod common;

use std::time::Duration;

use common::world::{Mode, World, in_world};
use paceline::sim::{Lognormal, ProviderHandle, ProviderOptions, ProviderSim, RetryAfter, SimKey};
use serde_json::{Value, json};

/// The provider accepts so many calls in any window of so many seconds, and nobody is told.
const LIMIT: u64 = 60;
const WINDOW_S: u64 = 2;
const JOBS: u64 = 700;
const KEYS: [(&str, &str); 1] = [("a1", "unknown-key-1")];

async fn provider(world: &World) -> ProviderHandle {
    let options = ProviderOptions {
        keys: KEYS.iter().map(|(label, secret)| SimKey::new(*label, *secret)).collect(),
        rules: vec![format!("key requests {LIMIT}/{WINDOW_S}s sliding_log").parse().expect("a rule")],
        delay_before: Some(Lognormal::ms(5, 20)),
        latency: Some(Lognormal::ms(10, 40)),
        retry_after: RetryAfter::None,
        seed: 5,
        ..ProviderOptions::default()
    };
    let sim = ProviderSim::start(options).await.expect("a provider");
    // One attempt: whatever costs one ends the job.
    world.provider(&sim.base_url(), &KEYS, "retry = { max_attempts = 1 }");
    sim
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_strict_provider_is_found_without_being_declared() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider(world).await;
        let serve = world.serving().await;
        let job = |n| json!({ "id": format!("u{n}"), "provider": world.provider, "request": { "path": "/ok" } });
        let jobs: Vec<Value> = (0..JOBS).map(job).collect();
        world.api().accept_all(&jobs).await;
        // By then a rate was found, and half of the jobs are done.
        sim.wait_accepted(JOBS / 2, Duration::from_secs(40)).await.expect("calls go out");
        let (before, began) = (sim.stats(), std::time::Instant::now());
        world.all_done(JOBS as i64, Duration::from_secs(60)).await;
        let (after, took) = (sim.stats(), began.elapsed());
        let rate = (after.accepted - before.accepted) as f64 / took.as_secs_f64();
        let share = rate / (LIMIT as f64 / WINDOW_S as f64);
        let refused = (before.refused_limit, after.refused_limit - before.refused_limit);
        println!("{share:.3} of what is allowed; {refused:?} refused before and after half of the jobs");
        assert!((0.6..=1.01).contains(&share), "{share}");
        assert!(refused.0 >= 1 && refused.0 <= 100 && refused.1 <= 12, "{refused:?}");
        let succeeded = world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await;
        assert_eq!(succeeded, JOBS as i64, "a refusal costs no attempt");
        serve.stop().await;
    })
    .await;
}
