//! Policies of routes by the built binary: what an answer means, how often and how long a call is tried, and how its
//! idempotency key is sent. No rule makes a call be repeated that may be made at most once.

mod common;

use std::time::{Duration, Instant};

use common::SOON;
use common::world::{Api, Mode, World, in_world};
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim};
use serde_json::{Value, json};

const POLICIES: &str = r#"
retry = { max_attempts = 4, base = "10ms", jitter = "none" }
outcomes = [
  { status = 409, pointer = "/error/code", equals = "BUSY", outcome = "transient" },
  { status = "4xx", header = "x-error: slow*", outcome = "throttled", retry_after_pointer = "/error/wait" },
]

[[provider.route]]
match = "/status/404*"
success = [200, 404]

[[provider.route]]
match = "/status/201*"
success = 200

[[provider.route]]
match = "/status/503/twice"
retry = { max_attempts = 2 }

[[provider.route]]
match = "/hang"
timeout = "300ms"
retry = { max_attempts = 1 }

[[provider.route]]
match = "/echo"
idempotency_header = "X-Request-Key"

[[provider.route]]
match = "/status/500*"
outcomes = [ { status = "5xx", outcome = "throttled" } ]

[[provider.route]]
match = "/status/409*"
outcomes = [ { status = 409, outcome = "transient" } ]

[[provider.route]]
match = "/status/403*"
outcomes = [ { status = [400, "403"], outcome = "key_refused" } ]
"#;

async fn system(test: impl AsyncFnOnce(&World, &Api, &ProviderHandle)) {
    in_world(Mode::Embedded, async |world| {
        let provider = ProviderSim::start(ProviderOptions::default()).await.expect("a provider");
        world.provider(&provider.base_url(), &[("a", "key-of-the-routes")], POLICIES);
        let serve = world.serving().await;
        test(world, &world.api(), &provider).await;
        serve.stop().await;
    })
    .await;
}

fn job(world: &World, id: &str, path: &str, query: Value, more: Value) -> Value {
    let mut job = json!({ "id": id, "provider": world.provider, "request": { "path": path, "query": query } });
    for (name, value) in more.as_object().expect("an object") {
        job[name] = value.clone();
    }
    job
}

fn outcomes(job: &Value) -> Vec<&str> {
    job["attempts"].as_array().expect("attempts").iter().filter_map(|a| a["outcome"].as_str()).collect()
}

fn calls(provider: &ProviderHandle, id: &str) -> usize {
    provider.ledger().iter().filter(|call| call.idempotency_key.as_deref() == Some(id)).count()
}

const ENDED: &[&str] = &["succeeded", "dead"];

#[tokio::test(flavor = "multi_thread")]
async fn answers_mean_what_the_first_route_that_matches_says_else_the_provider() {
    system(async |world, api, _| {
        let none = || json!({});
        let fail = |reason: &str| json!({ "status": 409, "reason": reason });
        for (id, path, query, state, expected) in [
            ("missing", "/status/404", none(), "succeeded", &["success"][..]),
            ("elsewhere", "/status/410", none(), "dead", &["permanent"]),
            ("created", "/status/201", none(), "dead", &["permanent"]),
            ("fine", "/status/204", none(), "succeeded", &["success"]),
            ("busy", "/fail/2", fail("BUSY"), "succeeded", &["transient", "transient", "success"]),
            ("taken", "/fail/2/x", fail("TAKEN"), "dead", &["permanent"]),
            ("twice", "/status/503/twice", none(), "dead", &["transient", "transient"]),
            ("often", "/status/503", none(), "dead", &["transient", "transient", "transient", "transient"]),
        ] {
            api.accept(&job(world, id, path, query, none())).await;
            let job = api.job_in(id, ENDED).await;
            assert_eq!((job["state"].as_str(), outcomes(&job)), (Some(state), expected.to_vec()), "{id}: {job:#}");
        }
        let query = json!({ "status": 400, "h": "x-error:slow down" });
        api.accept(&job(world, "slow", "/fail/1/slow", query, none())).await;
        let slow = api.job_in("slow", ENDED).await;
        assert_eq!(outcomes(&slow), ["rate_limited", "success"], "{slow:#}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rule_repeats_a_call_that_may_be_made_at_most_once() {
    system(async |world, api, provider| {
        let once = json!({ "delivery": "at_most_once" });
        for (id, path) in [("failed", "/status/500"), ("conflict", "/status/409"), ("refused", "/status/403")] {
            api.accept(&job(world, id, path, json!({ "executed": 1 }), once.clone())).await;
            let job = api.job_in(id, ENDED).await;
            assert_eq!(job["state"], "dead", "{job:#}");
            assert_eq!(api.get(&format!("/v1/dead-letters/{id}")).await.1["reason"], "outcome_unknown");
            assert_eq!(calls(provider, id), 1, "{id}");
            // What it means for the key and its budget is heeded all the same: the next ones must not wait for it.
            let keys = format!("/v1/providers/{}/keys/a/enable", world.provider);
            assert_eq!(api.post(&keys, &json!({})).await.0, 200);
            let budget = format!("/v1/providers/{}/budgets/a/resume", world.provider);
            assert_eq!(api.post(&budget, &json!({})).await.0, 200);
        }
        let query = json!({ "status": 409, "reason": "BUSY" });
        api.accept(&job(world, "busy", "/fail/1", query, once)).await;
        assert_eq!(api.job_in("busy", ENDED).await["state"], "dead", "nor does a rule of the provider");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_has_its_own_patience_and_its_own_field_for_the_idempotency_key() {
    system(async |world, api, _| {
        let none = || json!({});
        let begun = Instant::now();
        api.accept(&job(world, "hangs", "/hang", none(), none())).await;
        let job_hung = api.job_in("hangs", ENDED).await;
        assert_eq!(outcomes(&job_hung), ["unknown"], "{job_hung:#}");
        assert!(begun.elapsed() < SOON.min(Duration::from_secs(20)), "{:?}", begun.elapsed());
        let latency = job_hung["attempts"][0]["latency_ms"].as_i64().expect("a latency");
        assert!((250..5_000).contains(&latency), "{latency}");

        api.accept(&job(world, "echo", "/echo", none(), none())).await;
        api.job_in("echo", &["succeeded"]).await;
        let echoed = api.text("/v1/jobs/echo/result").await.to_lowercase();
        assert!(echoed.contains("x-request-key") && !echoed.contains("idempotency-key"), "{echoed}");

        let mut own = job(world, "own", "/echo", none(), none());
        own["request"]["headers"] = json!({ "X-Request-Key": "mine" });
        let (status, problem) = api.post("/v1/jobs", &own).await;
        assert_eq!(status, 422, "{problem}");
        assert!(problem.to_string().contains("idempotency_key"), "{problem}");
    })
    .await;
}
