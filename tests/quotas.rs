//! Calendar quotas and true costs by the built binary: what was spent of a day outlives every kind of restart, and
//! what an answer says a call cost takes the place of the estimate.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::world::{Mode, World, in_world};
use common::{SOON, holds, until};
use serde_json::{Value, json};

/// Answers 200 with this body and counts.
struct Provider {
    url: String,
    served: Arc<AtomicU64>,
    #[expect(dead_code, reason = "ends with it")]
    task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Provider {
    async fn start(body: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let served: Arc<AtomicU64> = Arc::default();
        let count = Arc::clone(&served);
        let router = axum::Router::new().fallback(async move || {
            count.fetch_add(1, Ordering::Relaxed);
            ([("content-type", "application/json")], body)
        });
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("served") });
        Self { url, served, task: tokio_util::task::AbortOnDropHandle::new(task) }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    async fn has_served(&self, calls: u64) {
        until(&format!("{calls} calls"), SOON, async || holds(self.served() >= calls)).await;
    }
}

fn jobs(world: &World, from: u64, count: u64, cost: u64) -> Vec<Value> {
    let job = |n| json!({ "id": format!("q{n}"), "provider": world.provider, "request": { "path": "/v1/chat" }, "cost": cost });
    (from..from + count).map(job).collect()
}

/// A day that begins half a day from now, so that none ends during the test.
fn half_a_day_off() -> String {
    let now = jiff::Timestamp::now().checked_add(jiff::SignedDuration::from_hours(12)).expect("a time");
    now.strftime("%H:%M UTC").to_string()
}

/// Nothing more is sent though jobs wait and somebody dispatches, for longer than a lease and several renewals.
async fn nothing_more(provider: &Provider, calls: u64) {
    let until = tokio::time::Instant::now() + Duration::from_secs(9);
    while tokio::time::Instant::now() < until {
        assert!(provider.served() <= calls, "{} calls of {calls}", provider.served());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_spent_of_a_day_outlives_restarts_and_kills() {
    in_world(Mode::Embedded, async |world| {
        let provider = Provider::start("{}").await;
        let quota = |amount: u64| {
            format!("key_limits = [ {{ requests = {amount}, per = \"1d\", resets = \"{}\" }} ]", half_a_day_off())
        };
        let declared = quota(5);
        world.provider(&provider.url, &[("a", "quota-key-1")], &declared);
        let serve = world.serving().await;
        world.api().accept_all(&jobs(world, 0, 3, 1)).await;
        world.all_done(3, SOON).await;
        serve.stop().await;

        let serve = world.serving().await;
        world.api().accept_all(&jobs(world, 3, 9, 1)).await;
        provider.has_served(5).await;
        serve.kill().await;
        let serve = world.serving().await;
        nothing_more(&provider, 5).await;
        serve.stop().await;

        // Two more are declared for the same day.
        world.provider(&provider.url, &[("a", "quota-key-1")], &declared.replace("requests = 5", "requests = 7"));
        let serve = world.serving().await;
        provider.has_served(7).await;
        assert_eq!(provider.served(), 7);
        serve.stop().await;
        assert_eq!(provider.served(), 7);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_says_what_a_call_cost() {
    for (body, all) in [
        (r#"{"usage":{"total_tokens":4}}"#, true),
        (r#"{"usage":{"total_tokens":"4"}}"#, false),
        (r#"{"usage":{"total_tokens":-4}}"#, false),
        (r#"{"usage":{"total_tokens":4"#, false),
        ("", false),
    ] {
        in_world(Mode::Embedded, async |world| {
            let provider = Provider::start(body).await;
            let more = "key_limits = [ { cost = 100, per = \"10m\", algorithm = \"sliding_window\" } ]\n\
                        [[provider.route]]\nmatch = \"/v1/*\"\ncost_from = \"/usage/total_tokens\"";
            world.provider(&provider.url, &[("a", "cost-key-1")], more);
            let serve = world.serving().await;
            world.api().accept_all(&jobs(world, 0, 12, 50)).await;
            if all {
                world.all_done(12, SOON).await;
            } else {
                provider.has_served(2).await;
                // The next ones would have followed at once.
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert_eq!(provider.served(), 2, "{body}");
            }
            serve.stop().await;
        })
        .await;
    }
}
