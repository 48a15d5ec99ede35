//! A provider that is down: the breaker leaves it alone, probes find out when it is back, and retries stay a share
//! of the calls.

mod common;

use std::time::Duration;

use common::world::{Mode, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Outage, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const JOBS: i64 = 300;
const BREAKER: &str = "key_limits = [ { concurrency = 20 } ]
retry = { max_attempts = 20, base = \"100ms\", cap = \"500ms\" }
breaker = { failures = 5, ratio = \"50%\", window = \"10s\", open = \"2s\", probes = 2 }";

async fn is_left_alone_until_it_is_back(mode: Mode) {
    in_world(mode, async |world| {
        let keys = vec![SimKey::new("a1", "key-one-0123")];
        let options = ProviderOptions { keys, outage: Outage::All, ..ProviderOptions::default() };
        let provider = ProviderSim::start(options).await.expect("a provider");
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], BREAKER);
        let serve = world.serving().await;
        let api = world.api();
        let job = |n: i64| json!({ "id": format!("j{n}"), "provider": world.provider, "request": { "path": "/ok" } });
        api.accept_all(&(0..JOBS).map(job).collect::<Vec<Value>>()).await;
        let waits = async || {
            let jobs = api.get("/v1/jobs?state=waiting&limit=500").await.1;
            let reasons = jobs["items"].as_array().expect("items").iter().map(|job| &job["waiting_for"]["reason"]);
            holds(reasons.filter(|reason| **reason == "breaker").count() > 0)
        };
        until("jobs wait for the breaker", SOON, waits).await;
        // Three times open: nobody calls but two probes each.
        let before = provider.stats().arrivals;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let arrived = provider.stats().arrivals - before;
        assert!((1..=8).contains(&arrived), "{arrived} calls while it was down");
        let shown = api.get(&format!("/v1/providers/{}", world.provider)).await.1;
        assert_ne!(shown["breaker"], "closed", "{shown}");
        provider.set_outage(Outage::None);
        world.all_done(JOBS, SOON).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded'").await, JOBS);
        let calls = i64::try_from(provider.stats().arrivals).expect("few");
        assert!(calls < JOBS + 100, "{calls} calls for {JOBS} jobs");
        until("it is told that it is back", SOON, async || {
            let shown = api.get(&format!("/v1/providers/{}", world.provider)).await.1;
            holds(shown["breaker"] == "closed")
        })
        .await;
        serve.stop().await;
        world.at_rest(JOBS).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_is_down_is_left_alone_until_it_is_back() {
    tokio::join!(is_left_alone_until_it_is_back(Mode::Embedded), is_left_alone_until_it_is_back(Mode::Scaled));
}

/// A fifth of the calls fail, again and again, which opens no breaker; yet the provider does not get all retries at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_stay_a_share_of_the_calls() {
    in_world(Mode::Embedded, async |world| {
        let keys = vec![SimKey::new("a1", "key-one-0123")];
        let options = ProviderOptions { keys, outage: Outage::Marked, ..ProviderOptions::default() };
        let provider = ProviderSim::start(options).await.expect("a provider");
        let policy = "key_limits = [ { requests = 50, per = \"1s\" } ]
retry = { max_attempts = 100, base = \"1ms\", cap = \"1ms\" }
breaker = { failures = 1000000 }";
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], policy);
        let serve = world.serving().await;
        let api = world.api();
        // Every job of these fails for as long as the outage lasts.
        let job = |n: i64| {
            let path = if n % 2 == 0 { "/outage" } else { "/ok" };
            json!({ "id": format!("j{n}"), "provider": world.provider, "request": { "path": path } })
        };
        api.accept_all(&(0..400).map(job).collect::<Vec<Value>>()).await;
        let first = "SELECT COUNT(*) FROM jobs WHERE attempts > 0";
        until("each was tried once", Duration::from_secs(40), async || holds(world.number(first).await == 400)).await;
        // Only the 200 that fail are left. Without a budget they would be made again 50 times a second.
        let made = "SELECT COUNT(*) FROM all_attempts";
        until("some are made again", SOON, async || holds(world.number(made).await > 410)).await;
        let before = world.number(made).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let retries = world.number(made).await - before;
        // A fifth of what was called before, one a second, and what a bucket of ten seconds held.
        assert!((1..=120).contains(&retries), "{retries} retries in 5 s");
        provider.set_outage(Outage::None);
        world.all_done(400, Duration::from_secs(60)).await;
        serve.stop().await;
        world.at_rest(400).await;
    })
    .await;
}
