//! What is said of the API is true: the documents are valid, say something of every route, and the server answers as
//! they say.

mod common;

use std::collections::BTreeSet;

use common::tools::python;
use common::world::{Api, Mode, World, checkout, in_world};
use common::{SOON, holds, until};
use paceline::api::{ProblemKind, openapi};
use paceline::job::{Catalog, Envelope, Given, ProviderRules};
use paceline::sim::{ProviderOptions, ProviderSim, ReceiverOptions, ReceiverSim, SimKey};
use serde_json::{Value, json};

// ── the documents by themselves ─────────────────────────────────────────────────────────────────

#[tokio::test]
async fn the_document_is_valid_openapi() {
    in_world(Mode::Embedded, async |world| {
        let printed = world.run(&["schema", "openapi"]).await;
        assert!(printed.status.success(), "{printed:?}");
        let document: Value = serde_json::from_slice(&printed.stdout).expect("JSON");
        assert_eq!(document, openapi());
        let path = world.path("openapi.json");
        let validate = async |document: &Value| {
            std::fs::write(&path, document.to_string()).expect("written");
            let mut command = tokio::process::Command::new(python().await);
            command
                .args(["-m", "openapi_spec_validator", "--schema", "3.1"])
                .arg(&path)
                .output()
                .await
                .expect("it runs")
        };
        let output = validate(&document).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        // It would notice.
        let mut wrong = document.clone();
        wrong["paths"]["/v1/jobs"]["get"]["parameters"][0]["in"] = "nowhere".into();
        assert!(!validate(&wrong).await.status.success());
    })
    .await;
}

/// By construction: nothing is served that `Routes` did not add. Only the health of a process that waits for its store
/// is routed by hand.
#[test]
fn no_route_comes_without_its_description() {
    let folder = checkout().join("src/api");
    let mut by_hand = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let ways = [".route(", ".route_service(", ".nest(", ".nest_service("];
        let lines = text.lines().filter(|line| ways.iter().any(|way| line.contains(way)));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        by_hand.extend(lines.map(|line| format!("{name}: {}", line.trim())));
    }
    by_hand.sort();
    assert_eq!(
        by_hand,
        [
            r#"mod.rs: .route("/healthz", get(health::alive))"#,
            r#"mod.rs: .route("/readyz", get(health::not_ready))"#,
            "routes.rs: Self { router: self.router.route(path, handler), operations: self.operations }",
        ]
    );
}

fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, operation) in methods.as_object().expect("methods") {
            all.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn every_operation_says_what_a_client_needs() {
    let document = openapi();
    let all = operations(&document);
    assert!(all.len() >= 25, "{}", all.len());
    let ids: BTreeSet<&str> = all.iter().filter_map(|(_, _, o)| o["operationId"].as_str()).collect();
    assert_eq!(ids.len(), all.len(), "an operationId is missing or stands twice");
    for (method, path, operation) in &all {
        let place = format!("{method} {path}");
        assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{place}");
        assert!(operation["security"].is_array(), "{place}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].as_str().is_some_and(|text| !text.is_empty()), "{place}: {parameter}");
            assert!(parameter["schema"].is_object(), "{place}: {parameter}");
        }
        let statuses: Vec<u16> = operation["responses"]
            .as_object()
            .expect("responses")
            .keys()
            .map(|s| s.parse().expect("a status"))
            .collect();
        assert!(statuses.iter().any(|status| (200..300).contains(status)), "{place}: {statuses:?}");
        if path.starts_with("/v1/") {
            for status in [400, 401, 403, 415, 500, 503] {
                assert!(statuses.contains(&status), "{place}: {status}");
            }
        }
    }
    // Every member of every schema is explained.
    for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
        for (member, of) in schema["properties"].as_object().into_iter().flatten() {
            let told = of["description"].is_string() || of["$ref"].is_string();
            assert!(told, "{name}.{member}: {of}");
        }
    }
}

/// A schema of the document, its references resolved.
fn validator(document: &Value, schema: &Value) -> jsonschema::Validator {
    let mut root = json!({ "allOf": [schema], "components": document["components"] });
    root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    jsonschema::options().should_validate_formats(true).build(&root).unwrap_or_else(|e| panic!("{e}: {schema}"))
}

#[track_caller]
fn fits(document: &Value, schema: &Value, value: &Value, place: &str) {
    let errors: Vec<String> =
        validator(document, schema).iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{place}: {}\n{value:#}", errors.join("\n"));
}

#[test]
fn examples_are_what_their_schemas_say() {
    let document = openapi();
    let mut catalog = Catalog::default();
    catalog.providers.insert("geocoder".to_owned(), ProviderRules::default());
    let (mut bodies, mut answers) = (0, 0);
    for (method, path, operation) in operations(&document) {
        let place = format!("{method} {path}");
        let content = &operation["requestBody"]["content"]["application/json"];
        for (name, example) in content["examples"].as_object().into_iter().flatten() {
            fits(&document, &content["schema"], &example["value"], &format!("{place}: {name}"));
            bodies += 1;
            if place == "post /v1/jobs" {
                let jobs = example["value"].as_array().cloned().unwrap_or_else(|| vec![example["value"].clone()]);
                for job in jobs {
                    let envelope = Envelope::parse(job.to_string().as_bytes()).expect("an envelope");
                    envelope.check(&Given::default(), &catalog, || "fresh".to_owned()).expect("a job");
                }
            }
        }
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let content = &response["content"]["application/json"];
            if !content["example"].is_null() {
                fits(&document, &content["schema"], &content["example"], &format!("{place}: {status}"));
                answers += 1;
            }
        }
    }
    assert!(bodies >= 10 && answers >= 10, "{bodies} bodies, {answers} answers");
}

// ── the server against them ─────────────────────────────────────────────────────────────────────

/// Calls the server, and holds each answer against the document.
struct Judge<'a> {
    document: Value,
    api: Api,
    world: &'a World,
    seen: BTreeSet<String>,
}

impl Judge<'_> {
    async fn call(&mut self, method: &str, template: &str, path: &str, body: Option<Value>, status: u16) -> Value {
        let answer = self.api.call(method, path, body.as_ref()).await;
        let operation = &self.document["paths"][template][method];
        let place = format!("{method} {path}: {}", answer.status);
        assert_eq!(answer.status, status, "{place}: {}", String::from_utf8_lossy(&answer.body));
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{place} is not in the document");
        let (kind, content) = response["content"].as_object().and_then(|c| c.iter().next()).expect("a content type");
        let essence = answer.content_type.split(';').next().unwrap_or_default();
        assert!(
            kind == "*/*" || kind.split(';').next() == Some(essence),
            "{place}: {} is not {kind}",
            answer.content_type
        );
        for header in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
            assert!(answer.headers.contains_key(header), "{place}: no {header}");
        }
        self.seen.insert(format!("{method} {template} {status}"));
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if content["schema"].is_object() {
            fits(&self.document, &content["schema"], &value, &place);
        }
        value
    }

    async fn get(&mut self, template: &str, path: &str, status: u16) -> Value {
        self.call("get", template, path, None, status).await
    }

    async fn jobs(&mut self) {
        let provider = self.world.provider.clone();
        let job = |id: &str, path: &str| json!({ "id": id, "provider": provider, "request": { "method": "POST", "path": path }, "metadata": { "a": [1] } });
        let (jobs, by_id, result) = ("/v1/jobs", "/v1/jobs/{id}", "/v1/jobs/{id}/result");
        self.call("post", jobs, jobs, Some(job("ok", "/ok")), 202).await;
        self.call("post", jobs, jobs, Some(job("ok", "/ok")), 200).await;
        self.call("post", jobs, jobs, Some(job("ok", "/other")), 409).await;
        let many = json!([job("dies", "/gone"), { "provider": "nobody" }, job("other", "/ok")]);
        self.call("post", jobs, jobs, Some(many), 202).await;
        self.call("post", jobs, jobs, Some(json!({ "provider": 1 })), 422).await;
        self.call("post", jobs, jobs, Some(json!("not a job")), 422).await;
        let mut later = job("later", "/ok");
        later["not_before"] = "2099-01-01T00:00:00Z".into();
        self.call("post", jobs, jobs, Some(later), 202).await;
        self.get(by_id, "/v1/jobs/later", 200).await;
        self.api.job_in("ok", &["succeeded"]).await;
        self.api.job_in("dies", &["dead"]).await;
        for id in ["ok", "dies"] {
            self.get(by_id, &format!("/v1/jobs/{id}"), 200).await;
            self.get(result, &format!("/v1/jobs/{id}/result"), 200).await;
        }
        self.get(by_id, "/v1/jobs/nothing", 404).await;
        self.get(result, "/v1/jobs/later/result", 404).await;
        let page = self.get(jobs, "/v1/jobs?limit=2", 200).await;
        let cursor = page["next_cursor"].as_str().expect("more").to_owned();
        self.get(jobs, &format!("/v1/jobs?limit=2&cursor={cursor}"), 200).await;
        self.get(jobs, "/v1/jobs?state=gone&colour=red", 400).await;
        self.call("delete", by_id, "/v1/jobs/later", None, 200).await;
        self.call("delete", by_id, "/v1/jobs/ok", None, 409).await;
        self.call("delete", by_id, "/v1/jobs/nothing", None, 404).await;
    }

    async fn dead_letters(&mut self) {
        let (list, by_id, replay) = ("/v1/dead-letters", "/v1/dead-letters/{id}", "/v1/dead-letters/{id}/replay");
        self.get(list, "/v1/dead-letters?replayed=false", 200).await;
        self.get(by_id, "/v1/dead-letters/dies", 200).await;
        self.get(by_id, "/v1/dead-letters/nothing", 404).await;
        let (replays, one) = ("/v1/replays", "/v1/replays/{id}");
        self.call("post", replays, replays, Some(json!({ "all": true, "dry_run": true })), 200).await;
        self.call("post", replays, replays, Some(json!({})), 422).await;
        let begun = self.call("post", replays, replays, Some(json!({ "where": { "reason": "permanent" } })), 202).await;
        let id = begun["id"].as_str().expect("an id").to_owned();
        self.get(replays, replays, 200).await;
        until("the replay ends", SOON, async || {
            let (_, replay) = self.api.try_get(&format!("/v1/replays/{id}")).await?;
            holds(replay["state"] == "done")
        })
        .await;
        self.get(one, &format!("/v1/replays/{id}"), 200).await;
        self.call("delete", one, &format!("/v1/replays/{id}"), None, 409).await;
        self.get(one, "/v1/replays/nothing", 404).await;
        until("it is dead again", SOON, async || {
            let (_, job) = self.api.try_get("/v1/jobs/dies").await?;
            holds(job["state"] == "dead" && job["run"] == 2)
        })
        .await;
        self.call("post", replay, "/v1/dead-letters/dies/replay", Some(json!({ "lane": "nowhere" })), 422).await;
        self.call("post", replay, "/v1/dead-letters/dies/replay", Some(json!({ "lane": "default" })), 202).await;
        self.api.job_in("dies", &["dead"]).await;
        self.call("delete", list, "/v1/dead-letters", None, 400).await;
        self.call("delete", list, "/v1/dead-letters?all=true", None, 200).await;
    }

    async fn providers(&mut self) {
        let (list, one) = ("/v1/providers", "/v1/providers/{name}");
        let name = self.world.provider.clone();
        self.get(list, list, 200).await;
        self.get(one, &format!("/v1/providers/{name}"), 200).await;
        self.get(one, "/v1/providers/nobody", 404).await;
        let (keys, stored) = (format!("{one}/keys"), format!("{one}/keys/{{label}}"));
        let at = format!("/v1/providers/{name}/keys");
        let secret = |n: u8| Some(json!({ "label": "k9", "secret": format!("not-a-real-one-{n}") }));
        self.call("post", &keys, &at, secret(1), 201).await;
        self.call("post", &keys, &at, secret(2), 409).await;
        self.call("get", &keys, &at, None, 200).await;
        let rotate = (format!("{stored}/rotate"), format!("{at}/k9/rotate"));
        self.call("post", &rotate.0, &rotate.1, Some(json!({ "secret": "not-a-real-one-3" })), 200).await;
        self.call("post", "/v1/vault/rekey", "/v1/vault/rekey", None, 200).await;
        self.call("delete", &stored, &format!("{at}/k9"), None, 200).await;
        self.call("get", "/v1/audit", "/v1/audit?limit=2", None, 200).await;
        for (what, path) in [
            ("/pause", "pause"),
            ("/resume", "resume"),
            ("/keys/{label}/disable", "keys/k1/disable"),
            ("/keys/{label}/enable", "keys/k1/enable"),
            ("/budgets/{budget}/resume", "budgets/k1/resume"),
        ] {
            let template = format!("{one}{what}");
            self.call("post", &template, &format!("/v1/providers/{name}/{path}"), Some(json!({})), 200).await;
            self.call("post", &template, &format!("/v1/providers/{name}/{path}"), None, 200).await;
            self.call("post", &template, &format!("/v1/providers/{name}/{path}"), Some(json!({ "a": 1 })), 422).await;
        }
    }

    async fn endpoints(&mut self, url: &str) {
        let (list, one) = ("/v1/endpoints", "/v1/endpoints/{id}");
        self.call("post", list, list, Some(json!({ "url": "ftp://example.com" })), 422).await;
        let made = self.call("post", list, list, Some(json!({ "url": url })), 201).await;
        let path = format!("{list}/{}", made["id"].as_str().expect("an id"));
        self.get(list, list, 200).await;
        self.get(one, &path, 200).await;
        self.get(one, "/v1/endpoints/ep_nothing", 404).await;
        let act = |what: &str| (format!("{one}/{what}"), format!("{path}/{what}"));
        let (template, rotate) = act("rotate");
        self.call("post", &template, &rotate, Some(json!({ "overlap": "1h" })), 200).await;
        let (template, test) = act("test");
        let sent = self.call("post", &template, &test, None, 202).await;
        let (deliveries, delivery) = ("/v1/deliveries", "/v1/deliveries/{id}");
        let of_it = format!("{deliveries}/{}", sent["id"].as_str().expect("an id"));
        until("it is delivered", SOON, async || {
            let (_, delivery) = self.api.try_get(&of_it).await?;
            holds(delivery["state"] == "delivered")
        })
        .await;
        self.get(delivery, &of_it, 200).await;
        self.get(delivery, "/v1/deliveries/dlv_nothing", 404).await;
        let page = self.get(deliveries, deliveries, 200).await;
        assert!(page["items"].as_array().is_some_and(|items| !items.is_empty()), "{page}");
        self.call("post", &format!("{delivery}/resend"), &format!("{of_it}/resend"), Some(json!({})), 202).await;
        let (template, resend) = act("resend");
        self.call("post", &template, &resend, Some(json!({ "since": "2026-01-01T00:00:00Z" })), 202).await;
        for what in ["disable", "enable"] {
            let (template, path) = act(what);
            self.call("post", &template, &path, None, 200).await;
            self.call("post", &template, &path, Some(json!({ "a": 1 })), 422).await;
        }
        self.call("delete", one, &path, None, 200).await;
        self.call("delete", one, &path, None, 404).await;
    }

    async fn rest(&mut self) {
        for path in [
            "/healthz",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/asyncapi.json",
            "/schemas/job.json",
            "/schemas/event.json",
            "/",
        ] {
            self.get(path, path, 200).await;
        }
        self.get("/dashboard/{file}", "/dashboard/app.js", 200).await;
        self.get("/dashboard/{file}", "/dashboard/nothing.js", 404).await;
    }
}

#[tokio::test]
async fn the_server_answers_as_the_document_says() {
    in_world(Mode::Embedded, async |world| {
        let options =
            ProviderOptions { keys: vec![SimKey::new("k1", "openapi-key-0001")], ..ProviderOptions::default() };
        let sim = ProviderSim::start(options).await.expect("a provider");
        world.set("PACELINE_MASTER_KEY", "bm8gc2VjcmV0OiB0aGUgbWFzdGVyIGtleSBvZiBhIHQ=");
        world.provider(&sim.base_url(), &[("k1", "openapi-key-0001")], "");
        let serve = world.serving().await;
        let (status, document) = world.api().get("/openapi.json").await;
        assert_eq!((status, &document), (200, &openapi()));
        let mut judge = Judge { document, api: world.api(), world, seen: BTreeSet::new() };
        judge.jobs().await;
        judge.dead_letters().await;
        judge.providers().await;
        let receiver = ReceiverOptions { secrets: Vec::new(), ..ReceiverOptions::default() };
        let receiver = ReceiverSim::start(receiver).await.expect("a receiver");
        judge.endpoints(&receiver.hook("")).await;
        judge.rest().await;
        // Nobody forgets to try a route that comes later: every success of the document was seen.
        let streams =
            ["get /v1/events 200".to_owned(), "get /readyz 503".to_owned(), "delete /v1/replays/{id} 200".to_owned()];
        let promised = operations(&judge.document).into_iter().flat_map(|(method, path, operation)| {
            let statuses: Vec<String> =
                operation["responses"].as_object().expect("responses").keys().cloned().collect();
            statuses
                .into_iter()
                .filter(|s| s.starts_with('2'))
                .map(move |status| format!("{method} {path} {status}"))
                .collect::<Vec<_>>()
        });
        let missed: Vec<String> = promised.filter(|p| !judge.seen.contains(p) && !streams.contains(p)).collect();
        assert!(missed.is_empty(), "not tried: {missed:?}");
        serve.stop().await;
    })
    .await;
}

// ── who may call ────────────────────────────────────────────────────────────────────────────────

const SCOPES: [&str; 5] = ["enqueue", "read", "replay", "keys", "admin"];

/// A token of each scope, bound to a tenant and not.
fn with_tokens(world: &World) {
    let mut tokens = Vec::new();
    for scope in SCOPES {
        for (bound, tenant) in [("", ""), ("-acme", ", tenant = \"acme\"")] {
            let name = format!("{scope}{bound}");
            let variable = name.to_uppercase().replace('-', "_");
            world.set(&variable, &secret(&name));
            tokens
                .push(format!("{{ name = \"{name}\", secret = \"env:{variable}\", scopes = [\"{scope}\"]{tenant} }}"));
        }
    }
    let configured = std::fs::read_to_string(world.path("paceline.toml")).expect("a configuration");
    let tokens = format!("[api]\ntokens = [ {} ]\n", tokens.join(", "));
    world.configure_all(&configured.replace("[api]\n", &tokens));
}

fn secret(name: &str) -> String {
    format!("token-of-{name}-0123456789")
}

#[tokio::test]
async fn every_operation_asks_for_the_scope_that_it_says() {
    in_world(Mode::Embedded, async |world| {
        world.provider("http://127.0.0.1:9", &[("k1", "openapi-key-0001")], "");
        with_tokens(world);
        let serve = world.serving().await;
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("a client");
        let status = async |method: &str, path: &str, token: Option<&str>| {
            let url = format!("http://127.0.0.1:{}{path}", world.port);
            let mut request = client.request(method.to_uppercase().parse().expect("a method"), url);
            if method == "post" {
                request = request.header("content-type", "application/json").body("[]");
            }
            if let Some(name) = token {
                request = request.bearer_auth(secret(name));
            }
            // The status alone: some answers have no end.
            request.send().await.expect("an answer").status().as_u16()
        };
        for (method, template, operation) in operations(&openapi()) {
            let path = template.replace("{id}", "nothing").replace("{name}", "nobody").replace("{label}", "k1");
            let path = path.replace("{budget}", "k1").replace("{file}", "app.js");
            let place = format!("{method} {template}");
            let Some(needed) = operation["security"][0]["token"][0].as_str() else {
                assert!([200, 503].contains(&status(&method, &path, None).await), "{place} is open");
                continue;
            };
            assert_eq!(status(&method, &path, None).await, 401, "{place}");
            for scope in SCOPES {
                let fits = scope == needed || scope == "admin";
                let free = status(&method, &path, Some(scope)).await;
                assert_eq!(free == 403, !fits, "{place} with {scope}: {free}");
                let bound = status(&method, &path, Some(&format!("{scope}-acme"))).await;
                let fits = fits && operation["x-all-tenants"] != true;
                assert_eq!(bound == 403, !fits, "{place} with {scope} of a tenant: {bound}");
                assert!(free != 401 && bound != 401, "{place}");
            }
        }
        serve.stop().await;
    })
    .await;
}

/// `ProblemKind::ALL` has every kind: the document lists them.
#[test]
fn every_kind_of_problem_is_listed() {
    let code = std::fs::read_to_string(checkout().join("src/api/error.rs")).expect("the code");
    let kinds =
        code.split("pub enum ProblemKind {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("the kinds");
    let kinds: BTreeSet<&str> = kinds
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('/'))
        .filter_map(|line| line.strip_suffix(','))
        .collect();
    let listed: Vec<String> = ProblemKind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
    assert_eq!(kinds, listed.iter().map(String::as_str).collect());
    let types = &openapi()["components"]["schemas"]["Problem"]["properties"]["type"]["enum"];
    assert_eq!(types.as_array().map(Vec::len), Some(kinds.len()));
}
