//! Every route with every kind of input, right and wrong, by a tool that knows only the document: schemathesis.
//!
//! The document is the same on every server; what only this server knows (which providers, lanes and keys there are,
//! which jobs, which cursors) is put into the copy that the tool reads, so that what it takes for right can be right.

mod common;

use std::time::Duration;

use common::tools::python;
use common::world::{Mode, World, in_world};
use paceline::sim::{ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};

const TOKEN: &str = "schemathesis-token-0123456789";
/// Cases an operation and phase.
const EXAMPLES: &str = "10";
const SEED: &str = "20261120";

/// A secret that can sign.
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Everything is checked, at each answer.
const CONFIG: &str = r#"
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx"]

[auth.openapi.token]
bearer = "${TOKEN}"
"#;

fn set(document: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer");
    document.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"))[last] = value;
}

/// The parameters of that name under a path.
fn change_parameters(document: &mut Value, name: &str, under: &str, change: impl Fn(&mut Value)) {
    let mut seen = 0;
    for (path, methods) in document["paths"].as_object_mut().expect("paths") {
        for operation in methods.as_object_mut().expect("methods").values_mut() {
            let parameters = operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten();
            for parameter in parameters.filter(|parameter| path.starts_with(under) && parameter["name"] == name) {
                change(parameter);
                seen += 1;
            }
        }
    }
    assert!(seen > 0, "no parameter {name} under {under}");
}

/// What this server knows, and what a schema cannot say of two members at once.
async fn narrowed(world: &World, token: &str) -> Value {
    let api = world.api().with_token(token);
    let mut document = api.get("/openapi.json").await.1;
    let provider = json!({ "enum": [world.provider] });
    let lane = json!({ "enum": ["default", null] });
    for (pointer, value) in [
        ("/components/schemas/Envelope/properties/provider", provider.clone()),
        ("/components/schemas/Envelope/required", json!(["provider", "request"])),
        ("/components/schemas/Envelope/properties/lane", lane.clone()),
        ("/components/schemas/Envelope/properties/key", json!({ "enum": ["k1", null] })),
        ("/components/schemas/Envelope/properties/not_before", json!({ "enum": ["2026-11-20T10:00:00Z", null] })),
        ("/components/schemas/Envelope/properties/deadline", json!({ "enum": ["2099-01-01T00:00:00+01:00", null] })),
        (
            "/components/schemas/Envelope/properties/callback",
            json!({ "enum": [{ "url": "http://127.0.0.1:1/hook" }, null] }),
        ),
        ("/components/schemas/RetryOverrides/properties/base", json!({ "enum": ["250ms", "1s", null] })),
        ("/components/schemas/RetryOverrides/properties/cap", json!({ "enum": ["1m", null] })),
        ("/components/schemas/RetryOverrides/properties/max_elapsed", json!({ "enum": ["1h", null] })),
        ("/components/schemas/NewKey/properties/budget", json!({ "enum": [null] })),
        ("/components/schemas/NewEndpoint/properties/url", json!({ "enum": ["https://hooks.example.com/acme"] })),
        ("/components/schemas/NewEndpoint/properties/secret", json!({ "enum": [SIGNING, null] })),
        ("/components/schemas/Rotation/properties/secret", json!({ "enum": [SIGNING, null] })),
        ("/components/schemas/Rotation/properties/overlap", json!({ "enum": ["1h", null] })),
        ("/components/schemas/ReplayChanges/properties/lane", lane),
        ("/components/schemas/ReplayChanges/properties/not_before", json!({ "enum": ["2099-01-01T00:00:00Z", null] })),
    ] {
        set(&mut document, pointer, value);
    }
    // An endless answer has a test of its own.
    document["paths"].as_object_mut().expect("paths").remove("/v1/events");
    // Of an array, each item is answered by itself, also one that is no job.
    set(&mut document, "/components/schemas/OneOrMany/anyOf/1/items", json!(true));
    for (name, known) in [("name", world.provider.as_str()), ("label", "k1"), ("budget", "k1")] {
        let only = json!({ "type": "string", "enum": [known] });
        change_parameters(&mut document, name, "/v1/providers", |parameter| parameter["schema"] = only.clone());
    }
    for list in ["jobs", "dead-letters", "replays"] {
        let under = format!("/v1/{list}");
        let (_, page) = api.get(&format!("/v1/{list}?limit=2")).await;
        let cursor = page["next_cursor"].as_str().unwrap_or_else(|| panic!("more {list}"));
        let only = json!({ "type": "string", "enum": [cursor] });
        change_parameters(&mut document, "cursor", &under, |parameter| parameter["schema"] = only.clone());
        let there = page["items"][0]["id"].clone();
        change_parameters(&mut document, "id", &under, |parameter| {
            parameter["examples"] = json!({ "there": { "value": there } })
        });
    }
    // These lists have one page.
    for list in ["audit", "deliveries", "endpoints"] {
        let pointer = format!("/paths/~1v1~1{list}/get/parameters");
        let parameters = document.pointer_mut(&pointer).and_then(Value::as_array_mut).expect("parameters");
        parameters.retain(|parameter| parameter["name"] != "cursor");
    }
    // A purge wants a filter or all=true, not both: parameters cannot say that.
    let purge = document["paths"]["/v1/dead-letters"]["delete"]["parameters"].as_array_mut().expect("parameters");
    for parameter in purge {
        match parameter["name"].as_str() {
            Some("all") => parameter["schema"] = json!({ "type": "boolean", "enum": [false] }),
            Some("reason") => parameter["required"] = true.into(),
            _ => {}
        }
    }
    document
}

/// A job in every state, dead letters, and replays, so that there is something to find.
async fn fill(world: &World) {
    let api = world.api().with_token(TOKEN);
    let job = |id: &str, path: &str| json!({ "id": id, "provider": world.provider, "request": { "path": path } });
    let mut jobs = Vec::new();
    for n in 0..3 {
        jobs.push(job(&format!("ok-{n}"), "/ok"));
        jobs.push(job(&format!("dead-{n}"), "/gone"));
        let mut later = job(&format!("later-{n}"), "/ok");
        later["not_before"] = "2099-01-01T00:00:00Z".into();
        jobs.push(later);
    }
    api.accept_all(&jobs).await;
    for n in 0..3 {
        api.job_in(&format!("ok-{n}"), &["succeeded"]).await;
        api.job_in(&format!("dead-{n}"), &["dead"]).await;
        api.post("/v1/replays", &json!({ "where": { "reason": "gave_up" } })).await;
    }
}

async fn nothing_is_found(mode: Mode, phases: &str) {
    in_world(mode, async |world| {
        let options =
            ProviderOptions { keys: vec![SimKey::new("k1", "schemathesis-key-1")], ..ProviderOptions::default() };
        let sim = ProviderSim::start(options).await.expect("a provider");
        world.provider(&sim.base_url(), &[("k1", "schemathesis-key-1")], "");
        let configured = std::fs::read_to_string(world.path("paceline.toml")).expect("a configuration");
        let tokens = "[api]\ntokens = [ { name = \"tool\", secret = \"env:TOKEN\", scopes = [\"admin\"] } ]\n";
        world.configure_all(&configured.replace("[api]\n", tokens));
        world.set("TOKEN", TOKEN);
        world.prepare().await;
        let serve = world.serving().await;
        fill(world).await;
        let document = narrowed(world, TOKEN).await;
        std::fs::write(world.path("openapi.json"), document.to_string()).expect("written");
        std::fs::write(world.path("schemathesis.toml"), CONFIG).expect("written");
        let program = python().await.with_file_name("schemathesis");
        let run = tokio::process::Command::new(program)
            .args(["--config-file", "schemathesis.toml", "run", "openapi.json", "--checks", "all", "--mode", "all"])
            // Wrong tokens are answered 429 soon: tests/auth.rs tries every route with them.
            .args(["--exclude-checks", "ignored_auth"])
            .args(["--phases", phases, "--seed", SEED, "--max-examples", EXAMPLES])
            .args(["--continue-on-failure", "--no-shrink", "--request-timeout", "20", "--warnings", "off"])
            .args(["--url", &format!("http://127.0.0.1:{}", world.port)])
            .current_dir(world.folder())
            .env("TOKEN", TOKEN)
            .env("NO_COLOR", "1")
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(300), run).await.expect("it ends").expect("it runs");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
        // It did try everything.
        let operations =
            document["paths"].as_object().expect("paths").values().map(|p| p.as_object().map_or(0, |p| p.len()));
        let operations: usize = operations.sum();
        assert!(told.contains(&format!("{operations} selected / {operations} total")), "{told}");
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn every_route_withstands_every_input_on_sqlite() {
    nothing_is_found(Mode::Embedded, "examples,coverage,fuzzing").await;
}

#[tokio::test]
async fn every_route_withstands_every_input_on_postgresql() {
    nothing_is_found(Mode::Scaled, "examples,fuzzing,stateful").await;
}
