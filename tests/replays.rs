//! Replays by filter: durable, below live traffic, resumed after a crash without doubling, stoppable.

mod common;

use std::time::Duration;

use common::world::{Api, Mode, World, in_world};
use common::{SOON, holds, until};
use paceline::sim::{Outage, ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

async fn sim() -> ProviderHandle {
    let keys = vec![SimKey::new("a1", "key-one-0123")];
    ProviderSim::start(ProviderOptions { keys, outage: Outage::Marked, ..ProviderOptions::default() })
        .await
        .expect("a provider")
}

/// So many jobs that the provider refuses for good.
async fn bury(world: &World, api: &Api, jobs: usize) {
    let job = |n: usize| {
        let request = json!({ "path": "/outage", "query": { "status": 422 } });
        json!({ "id": format!("d{n}"), "provider": world.provider, "request": request })
    };
    for chunk in (0..jobs).collect::<Vec<_>>().chunks(500) {
        api.accept_all(&chunk.iter().map(|n| job(*n)).collect::<Vec<_>>()).await;
    }
    world.all_done(i64::try_from(jobs).expect("few"), Duration::from_secs(60)).await;
    assert_eq!(world.number("SELECT COUNT(*) FROM dead_letters").await, i64::try_from(jobs).expect("few"));
}

async fn replay(api: &Api, id: &str) -> Value {
    let (status, replay) = api.get(&format!("/v1/replays/{id}")).await;
    assert_eq!(status, 200, "{replay}");
    replay
}

async fn runs_all_again(mode: Mode) {
    in_world(mode, async |world| {
        let provider = sim().await;
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], "");
        let serve = world.serving().await;
        let api = world.api();
        bury(world, &api, 450).await;
        let fits = json!({ "reason": "permanent", "provider": world.provider });
        let (status, counted) = api.post("/v1/replays", &json!({ "where": fits, "dry_run": true })).await;
        assert_eq!((status, counted), (200, json!({ "dry_run": true, "total": 450 })));
        assert_eq!(world.open_jobs().await, 0, "a dry run changes nothing");
        provider.set_outage(Outage::None);
        let (status, begun) = api.post("/v1/replays", &json!({ "where": fits })).await;
        assert_eq!((status, &begun["state"], &begun["total"]), (202, &json!("running"), &json!(450)), "{begun}");
        let id = begun["id"].as_str().expect("an id").to_owned();
        // The first batch is committed: now the process dies.
        until("some run again", SOON, async || holds(world.number("SELECT MAX(run) FROM jobs").await > 1)).await;
        serve.kill().await;
        let serve = world.serving().await;
        until("the replay is done", SOON, async || holds(replay(&world.api(), &id).await["state"] == "done")).await;
        world.all_done(450, Duration::from_secs(60)).await;
        let done = replay(&world.api(), &id).await;
        assert_eq!((&done["replayed"], &done["skipped"]), (&json!(450), &json!(0)), "{done}");
        assert!(done["finished_at"].is_string());
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE state = 'succeeded' AND run = 2").await, 450);
        let none = world.run(&["--json", "dead", "replay", "--where", "reason=permanent", "--dry-run"]).await;
        assert!(String::from_utf8_lossy(&none.stdout).contains("\"total\":0"), "replayed letters are left alone");
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_on_after_a_crash_and_doubles_nothing() {
    tokio::join!(runs_all_again(Mode::Embedded), runs_all_again(Mode::Scaled));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_fills_its_lane_only_so_far_can_be_stopped_and_live_jobs_go_first() {
    in_world(Mode::Embedded, async |world| {
        let provider = sim().await;
        let limits = "key_limits = [ { requests = 40, per = \"1s\", algorithm = \"sliding_window\" } ]";
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], "");
        let serve = world.serving().await;
        bury(world, &world.api(), 1_500).await;
        serve.stop().await;
        // From now on at 40 a second.
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], limits);
        provider.set_outage(Outage::None);
        let serve = world.serving().await;
        let api = world.api();
        let begun = world.run(&["--json", "dead", "replay", "--all", "--no-wait"]).await;
        let begun: Value = serde_json::from_slice(&begun.stdout).expect("JSON");
        let id = begun["id"].as_str().expect("an id").to_owned();
        let queued = "SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'waiting', 'running')";
        until("its lane is full", SOON, async || holds(world.number(queued).await >= 400)).await;
        // A live job overtakes hundreds of replays.
        api.accept(&json!({ "id": "live", "provider": world.provider, "request": { "path": "/ok" } })).await;
        api.job_in_within("live", &["succeeded"], Duration::from_secs(3)).await;
        assert!(world.number(queued).await <= 1_000, "no more than some hundred wait at once");
        let listed = world.run(&["dead", "replays"]).await;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains(&id) && listed.contains("running"), "{listed}");
        let stopped = world.run(&["dead", "stop", &id]).await;
        assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
        let replayed = replay(&api, &id).await["replayed"].as_i64().expect("a number");
        assert!((1..1_500).contains(&replayed), "{replayed}");
        world.all_done(1_501, Duration::from_secs(60)).await;
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs WHERE run = 2").await, replayed, "nothing after the stop");
        let (status, problem) = api.delete(&format!("/v1/replays/{id}")).await;
        assert_eq!((status, &problem["type"]), (409, &json!("urn:paceline:problem:too-late")), "{problem}");
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_replay_is_named() {
    in_world(Mode::Embedded, async |world| {
        let provider = sim().await;
        world.provider(&provider.base_url(), &[("a1", "key-one-0123")], "");
        let serve = world.serving().await;
        let api = world.api();
        for (body, path) in [
            (json!({}), "$.where"),
            (json!({ "where": {} }), "$.where"),
            (json!({ "where": { "reason": "permanent" }, "all": true }), "$.where"),
            (json!({ "where": { "reason": "bored" } }), "$.where.reason"),
            (json!({ "where": { "provider": "A B" } }), "$.where.provider"),
            (json!({ "where": { "tenant": "a\nb" } }), "$.where.tenant"),
            (json!({ "where": { "colour": "red" } }), "$.where.colour"),
            (json!({ "where": { "dead_after": "yesterday" } }), "$.where.dead_after"),
            (json!({ "all": true, "idempotency_key": "maybe" }), "$.idempotency_key"),
            (json!([]), "$"),
        ] {
            let (status, problem) = api.post("/v1/replays", &body).await;
            assert_eq!((status, &problem["errors"][0]["path"]), (422, &json!(path)), "{body}: {problem}");
        }
        for path in ["/v1/replays/rp_none", "/v1/replays/a%00b", "/v1/replays/.."] {
            assert_eq!(api.get(path).await.0, 404, "{path}");
        }
        let (status, empty) = api.post("/v1/replays", &json!({ "all": true })).await;
        assert_eq!((status, &empty["total"]), (202, &json!(0)));
        let id = empty["id"].as_str().expect("an id").to_owned();
        until("nothing is done soon", SOON, async || holds(replay(&api, &id).await["state"] == "done")).await;
        for arguments in [
            &["dead", "replay"][..],
            &["dead", "replay", "x", "--where", "reason=permanent"],
            &["dead", "replay", "--where", "reason"],
            &["dead", "replay", "--all", "--lane", "high"],
            &["dead", "replay", "x", "--dry-run"],
        ] {
            assert_eq!(world.run(arguments).await.status.code(), Some(2), "{arguments:?}");
        }
        serve.stop().await;
    })
    .await;
}
