//! Registered webhook endpoints as their users meet them: over HTTP with tokens and tenants, at the command line, and
//! as receivers that verify with the official Standard Webhooks libraries.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use common::world::{Mode, World, checkout, in_world};
use common::{SOON, holds, until};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

const KEY: &str = "endpoint-test-key-0123";
const TOKENS: [(&str, &str); 5] = [
    ("ROOT", "root-token-0123456789"),
    ("ACME", "acme-token-0123456789"),
    ("ACME_READ", "acme-read-token-012345"),
    ("ACME_REPLAY", "acme-replay-token-0123"),
    ("GLOBEX", "globex-token-012345678"),
];

/// A provider that answers at once.
async fn provider() -> paceline::sim::ProviderHandle {
    let options = paceline::sim::ProviderOptions {
        keys: vec![paceline::sim::SimKey::new("a1", KEY)],
        ..paceline::sim::ProviderOptions::default()
    };
    paceline::sim::ProviderSim::start(options).await.expect("a provider")
}

/// A world with tokens of every kind.
fn configure_with_tokens(world: &World, base_url: &str) {
    for (name, secret) in TOKENS {
        world.set(name, secret);
    }
    world.set("KEY_a1", KEY);
    world.configure_all(&format!(
        r#"
[api]
listen = "127.0.0.1:{port}"
tokens = [
  {{ name = "root", secret = "env:ROOT", scopes = ["admin"] }},
  {{ name = "acme", secret = "env:ACME", scopes = ["admin"], tenant = "acme" }},
  {{ name = "acme-read", secret = "env:ACME_READ", scopes = ["read", "enqueue"], tenant = "acme" }},
  {{ name = "acme-replay", secret = "env:ACME_REPLAY", scopes = ["replay"], tenant = "acme" }},
  {{ name = "globex", secret = "env:GLOBEX", scopes = ["admin"], tenant = "globex" }},
]
[webhooks]
secret = "env:WEBHOOK_SECRET"
allow_http = true
allow_networks = ["127.0.0.0/8"]
schedule = ["100ms"]
[[provider]]
name = "{provider}"
base_url = "{base_url}"
keys = [ {{ label = "a1", secret = "env:KEY_a1" }} ]
"#,
        port = world.port,
        provider = world.provider,
    ));
}

/// A client with one of the tokens.
struct Client<'a> {
    world: &'a World,
    http: reqwest::Client,
    token: &'static str,
}

impl<'a> Client<'a> {
    fn new(world: &'a World, name: &str) -> Self {
        let token = TOKENS.iter().find(|(known, _)| *known == name).expect("a token").1;
        Self { world, http: reqwest::Client::builder().no_proxy().build().expect("a client"), token }
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("http://127.0.0.1:{}{path}", self.world.port);
        let mut request = self.http.request(method, url).bearer_auth(self.token);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let bytes = response.bytes().await.expect("a body");
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        self.call(Method::GET, path, None).await
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.call(Method::POST, path, Some(body)).await
    }

    async fn register(&self, body: Value) -> Value {
        let (status, endpoint) = self.post("/v1/endpoints", body).await;
        assert_eq!(status, 201, "{endpoint}");
        endpoint
    }
}

fn id(of: &Value) -> &str {
    of["id"].as_str().expect("an id")
}

fn codes(problem: &Value) -> (&str, &str) {
    (problem["type"].as_str().unwrap_or_default(), problem["errors"][0]["path"].as_str().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_belong_to_their_tenant_and_changing_them_takes_a_scope() {
    in_world(Mode::Embedded, async |world| {
        let provider = provider().await;
        configure_with_tokens(world, &provider.base_url());
        let mut serve = world.serve();
        let root = Client::new(world, "ROOT");
        until("it listens", SOON, async || {
            assert!(serve.is_alive(), "{}", serve.log());
            holds(root.http.get(format!("http://127.0.0.1:{}/readyz", world.port)).send().await.ok()?.status() == 200)
        })
        .await;
        let (acme, reader) = (Client::new(world, "ACME"), Client::new(world, "ACME_READ"));
        let (replayer, globex) = (Client::new(world, "ACME_REPLAY"), Client::new(world, "GLOBEX"));
        let url = "http://127.0.0.1:9/hook";
        let mine = acme.register(json!({ "url": url, "events": ["job.dead"], "description": "of acme" })).await;
        assert_eq!((mine["tenant"].as_str(), mine["subscribe"].as_str()), (Some("acme"), Some("all")));
        let secret = mine["secret"].as_str().expect("shown once");
        assert!(secret.starts_with("whsec_"));
        let theirs = root.register(json!({ "url": url, "tenant": "globex", "subscribe": "named" })).await;
        let path = format!("/v1/endpoints/{}", id(&mine));

        // Shown once, kept nowhere.
        let (_, shown) = acme.get(&path).await;
        assert!(shown.get("secret").is_none() && shown["secret_version"] == 1, "{shown}");
        let (status, _) = reader.get(&path).await;
        assert_eq!(status, 200);
        for file in ["paceline.db", "paceline.db-wal"] {
            assert!(!contains(&world.path(file), &secret["whsec_".len()..]), "a derived secret is stored nowhere");
        }

        // Another tenant's is not there.
        for client in [&acme, &reader] {
            let (status, _) = client.get(&format!("/v1/endpoints/{}", id(&theirs))).await;
            assert_eq!(status, 404);
            let (_, list) = client.get("/v1/endpoints").await;
            assert_eq!(list["items"].as_array().expect("items").len(), 1, "{list}");
        }
        for (method, rest) in [
            (Method::POST, "/disable"),
            (Method::POST, "/enable"),
            (Method::POST, "/rotate"),
            (Method::POST, "/test"),
            (Method::DELETE, ""),
        ] {
            let body = (method == Method::POST).then(|| json!({}));
            let (status, problem) = globex.call(method.clone(), &format!("{path}{rest}"), body.clone()).await;
            assert_eq!(status, 404, "{rest}: {problem}");
            let (status, problem) = reader.call(method, &format!("{path}{rest}"), body).await;
            assert_eq!(status, 403, "{rest}: {problem}");
        }
        let since = json!({ "since": "2026-01-01T00:00:00Z" });
        assert_eq!(globex.post(&format!("{path}/resend"), since.clone()).await.0, 404);
        assert_eq!(reader.post(&format!("{path}/resend"), since.clone()).await.0, 403);
        assert_eq!(replayer.post(&format!("{path}/resend"), since).await.0, 202);
        let (status, problem) = acme.post("/v1/endpoints", json!({ "url": url, "tenant": "globex" })).await;
        assert_eq!((status, codes(&problem).0), (403, "urn:paceline:problem:forbidden"));
        let (_, all) = root.get("/v1/endpoints").await;
        assert_eq!(all["items"].as_array().expect("items").len(), 2);
        let (_, some) = root.get("/v1/endpoints?tenant=globex").await;
        assert_eq!(id(&some["items"][0]), id(&theirs));

        // A job of acme cannot name globex's endpoint, nor one that is not there.
        for named in [id(&theirs), "ep_nowhere"] {
            let job =
                json!({ "provider": world.provider, "request": { "path": "/" }, "callback": { "endpoint": named } });
            let (status, problem) = reader.post("/v1/jobs", job).await;
            assert_eq!((status, codes(&problem).1), (422, "$.callback.endpoint"), "{problem}");
        }
        let (status, gone) = acme.call(Method::DELETE, &path, None).await;
        assert_eq!((status, &gone), (200, &json!({ "id": id(&mine), "deleted": true })));
        assert_eq!(acme.get(&path).await.0, 404);
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_an_endpoint_names_the_field() {
    in_world(Mode::Embedded, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        let serve = world.serving().await;
        let api = world.api();
        let url = "http://127.0.0.1:9/hook";
        let short = "whsec_c2hvcnQ=";
        let long = "x".repeat(2000);
        for (body, path) in [
            (json!({}), "$"),
            (json!({ "url": 1 }), "$.url"),
            (json!({ "url": "nope" }), "$.url"),
            (json!({ "url": url, "colour": "red" }), "$.colour"),
            (json!({ "url": url, "events": ["job.done"] }), "$.events[0]"),
            (json!({ "url": url, "events": [] }), "$.events"),
            (json!({ "url": url, "subscribe": "some" }), "$.subscribe"),
            (json!({ "url": url, "description": long }), "$.description"),
            (json!({ "url": url, "tenant": "a\u{7}" }), "$.tenant"),
            (json!({ "url": url, "secret": "hunter2-not-of-the-scheme" }), "$.secret"),
            (json!({ "url": url, "secret": "whsec_hunter2!" }), "$.secret"),
            (json!({ "url": url, "secret": short }), "$.secret"),
        ] {
            let (status, problem) = api.post("/v1/endpoints", &body).await;
            assert_eq!((status, codes(&problem).1), (422, path), "{body}: {problem}");
            assert!(!problem.to_string().contains("hunter2"), "{problem}");
        }
        let (_, endpoint) = api.post("/v1/endpoints", &json!({ "url": url })).await;
        let path = format!("/v1/endpoints/{}", id(&endpoint));
        for (rest, body, field) in [
            ("/rotate", json!({ "overlap": "31d" }), "$.overlap"),
            ("/rotate", json!({ "overlap": "soon" }), "$.overlap"),
            ("/rotate", json!({ "secret": short }), "$.secret"),
            ("/resend", json!({}), "$"),
            ("/resend", json!({ "since": "yesterday" }), "$.since"),
            ("/disable", json!({ "why": 1 }), "$"),
        ] {
            let (status, problem) = api.post(&format!("{path}{rest}"), &body).await;
            assert_eq!((status, codes(&problem).1), (422, field), "{rest} {body}: {problem}");
        }
        for query in ["?colour=red", "?state=lost", "?event=job.done", "?limit=0", "?cursor=x", "?endpoint=a%20b"] {
            let (status, problem) = api.get(&format!("/v1/deliveries{query}")).await;
            assert_eq!(status, 400, "{query}: {problem}");
        }
        for gone in ["/v1/endpoints/ep_1", "/v1/deliveries/dl_1", "/v1/deliveries/1"] {
            assert_eq!(api.get(gone).await.0, 404, "{gone}");
        }
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_webhook_secret_nothing_can_be_registered_and_it_is_said() {
    in_world(Mode::Embedded, async |world| {
        world.set("KEY_a1", KEY);
        world.configure_all(&format!(
            "[api]\nlisten = \"127.0.0.1:{}\"\n[[provider]]\nname = \"geo\"\nbase_url = \"http://127.0.0.1:9\"\nkeys = [ {{ label = \"a1\", secret = \"env:KEY_a1\" }} ]\n",
            world.port
        ));
        let serve = world.serving().await;
        let (status, problem) = world.api().post("/v1/endpoints", &json!({ "url": "https://example.com/" })).await;
        assert_eq!(status, 422);
        assert!(problem["detail"].as_str().expect("a detail").contains("webhooks.secret"), "{problem}");
        assert_eq!(world.api().get("/v1/endpoints").await, (200, json!({ "items": [], "next_cursor": null })));
        serve.stop().await;
    })
    .await;
}

// ------------------------------------------------------------------------------------ the official libraries

/// The Python to use, and the folder of the JavaScript packages. What cannot be had is a failure.
async fn libraries() -> (PathBuf, PathBuf) {
    let folder = checkout().join("target/standard_webhooks");
    let script = checkout().join("tests/standard_webhooks/install");
    let output = Command::new(script).arg(folder).output().await.expect("a script");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).expect("paths");
    let mut lines = said.lines().map(PathBuf::from);
    (lines.next().expect("a python"), lines.next().expect("a folder"))
}

/// A receiver in another language, in a process of its own.
struct Foreign {
    _child: Child,
    url: String,
    secrets: PathBuf,
    ledger: PathBuf,
}

impl Foreign {
    async fn start(world: &World, name: &str, mut command: Command, script: &str) -> Self {
        let (secrets, ledger) = (world.path(&format!("{name}.secrets")), world.path(&format!("{name}.ledger")));
        std::fs::write(&secrets, "").expect("written");
        std::fs::write(&ledger, "").expect("written");
        command.arg(checkout().join("tests/standard_webhooks").join(script)).arg(&secrets).arg(&ledger);
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect(name);
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines.next_line().await.expect("readable").expect("a port");
        Self { _child: child, url: format!("http://127.0.0.1:{port}/hook"), secrets, ledger }
    }

    fn know(&self, secrets: &[(&str, &str)]) {
        let lines: String = secrets.iter().map(|(name, secret)| format!("{name}={secret}\n")).collect();
        std::fs::write(&self.secrets, lines).expect("written");
    }

    fn seen(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.ledger).expect("the ledger");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// By whom the last of so many requests was verified.
    async fn verified(&self, count: usize) -> (String, Vec<String>) {
        let seen = until(&format!("{count} requests at {}", self.url), SOON, async || {
            let seen = self.seen();
            (seen.len() >= count).then_some(seen)
        })
        .await;
        assert_eq!(seen.len(), count, "{seen:?}");
        let last = &seen[count - 1];
        assert_eq!(last["changed"], json!([]), "a changed body does not verify: {last}");
        let by = last["by"].as_array().expect("names").iter().map(|name| name.as_str().expect("a name").to_owned());
        (last["type"].as_str().expect("a type").to_owned(), by.collect())
    }
}

async fn finish(world: &World, job: &str) {
    let body = json!({ "id": job, "provider": world.provider, "request": { "path": "/v1/geocode" } });
    world.api().accept(&body).await;
    world.api().job_in(job, &["succeeded"]).await;
}

/// Registers, delivers, rotates with and without an overlap: at every moment the official libraries verify with
/// what their receiver was told, and with nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_libraries_for_python_and_javascript_verify_through_a_rotation() {
    let (python, packages) = libraries().await;
    in_world(Mode::Embedded, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        let serve = world.serving().await;
        let api = world.api();
        let mut node = Command::new("node");
        node.env("NODE_PATH", &packages);
        let receivers = [
            Foreign::start(world, "python", Command::new(&python), "receiver.py").await,
            Foreign::start(world, "javascript", node, "receiver.cjs").await,
        ];
        let given = "whsec_Z2l2ZW4tYnktdGhlLXJlY2VpdmVyLTMyLWJ5dGVzLiE=";
        for (at, receiver) in receivers.iter().enumerate() {
            let named = json!({ "url": receiver.url, "subscribe": "all", "ed25519": true });
            let (status, endpoint) = api.post("/v1/endpoints", &named).await;
            assert_eq!(status, 201, "{endpoint}");
            let path = format!("/v1/endpoints/{}", id(&endpoint));
            let text = |of: &Value, member: &str| of[member].as_str().expect(member).to_owned();
            let (first, first_key) = (text(&endpoint, "secret"), text(&endpoint, "public_key"));
            let is_node = at == 1;
            let by = |names: &[&str]| -> Vec<String> {
                let keys = names.iter().filter(|name| is_node || !name.ends_with("key"));
                keys.map(|name| (*name).to_owned()).collect()
            };
            let wrong = common::world::SECRET;
            receiver.know(&[("first", &first), ("first-key", &first_key), ("wrong", wrong)]);
            finish(world, &format!("job-{at}-1")).await;
            assert_eq!(receiver.verified(1).await, ("job.succeeded".to_owned(), by(&["first", "first-key"])));

            // Both while it lasts: a receiver that knows only one of them verifies.
            let (status, rotated) = api.post(&format!("{path}/rotate"), &json!({})).await;
            assert_eq!((status, rotated["secret_version"].as_i64()), (200, Some(2)), "{rotated}");
            assert_eq!(rotated["older_secrets"].as_array().expect("a list").len(), 1);
            let (second, second_key) = (text(&rotated, "secret"), text(&rotated, "public_key"));
            assert!(second != first && second_key != first_key);
            receiver.know(&[
                ("second", &second),
                ("second-key", &second_key),
                ("first", &first),
                ("first-key", &first_key),
                ("wrong", wrong),
            ]);
            finish(world, &format!("job-{at}-2")).await;
            let all = by(&["second", "second-key", "first", "first-key"]);
            assert_eq!(receiver.verified(2).await.1, all);

            // A secret of the receiver's own, and the others end at once.
            let (status, rotated) =
                api.post(&format!("{path}/rotate"), &json!({ "secret": given, "overlap": "0s" })).await;
            assert_eq!((status, rotated["secret_version"].as_i64()), (200, Some(3)), "{rotated}");
            assert!(rotated.get("secret").is_none(), "whoever gave it knows it: {rotated}");
            receiver.know(&[("second", &second), ("first", &first), ("given", given), ("wrong", wrong)]);
            finish(world, &format!("job-{at}-3")).await;
            assert_eq!(receiver.verified(3).await.1, ["given"]);

            // A test event is verified alike.
            let (status, test) = api.post(&format!("{path}/test"), &json!({})).await;
            assert_eq!((status, test["event"].as_str()), (202, Some("endpoint.test")), "{test}");
            assert_eq!(receiver.verified(4).await, ("endpoint.test".to_owned(), vec!["given".to_owned()]));
            let (status, _) = api.delete(&path).await;
            assert_eq!(status, 200);
        }
        assert!(!contains(&world.path("paceline.db"), &given["whsec_".len()..]), "a given secret is sealed");
        assert!(!contains(&world.path("paceline.db-wal"), &given["whsec_".len()..]), "a given secret is sealed");
        serve.stop().await;
    })
    .await;
}

fn contains(path: &Path, text: &str) -> bool {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

// ------------------------------------------------------------------------------------------- the command line

async fn paceline(world: &World, arguments: &[&str]) -> (i32, Value) {
    let arguments: Vec<&str> = ["--json"].into_iter().chain(arguments.iter().copied()).collect();
    let Output { status, stdout, stderr } = world.run(&arguments).await;
    let text = if stdout.is_empty() { stderr } else { stdout };
    let text = String::from_utf8_lossy(&text).into_owned();
    let value = text.lines().next().and_then(|line| serde_json::from_str(line).ok());
    (status.code().unwrap_or(-1), value.unwrap_or_else(|| panic!("{arguments:?}: {text}")))
}

/// A receiver that answers with the status it is told.
async fn receiver() -> (paceline::sim::ReceiverHandle, String) {
    let options = paceline::sim::ReceiverOptions {
        secrets: vec![common::world::SECRET.to_owned()],
        ..paceline::sim::ReceiverOptions::default()
    };
    let receiver = paceline::sim::ReceiverSim::start(options).await.expect("a receiver");
    let url = receiver.hook("");
    (receiver, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_and_deliveries_at_the_command_line() {
    in_world(Mode::Embedded, async |world| {
        let provider = provider().await;
        let (receiver, url) = receiver().await;
        configure_quick(world, &provider.base_url());
        world.set("HOOK_SECRET", common::world::SECRET);
        // Without a server, on the store itself.
        let (code, endpoint) =
            paceline(world, &["endpoints", "add", &url, "--secret-env", "HOOK_SECRET", "--description", "mine"]).await;
        assert_eq!((code, endpoint["subscribe"].as_str()), (0, Some("all")), "{endpoint}");
        let id = id(&endpoint).to_owned();
        let serve = world.serving().await;
        let (code, test) = paceline(world, &["endpoints", "test", &id]).await;
        assert_eq!((code, test["state"].as_str(), test["attempts"][0]["status"].as_i64()), (0, Some("delivered"), Some(204)), "{test}");
        finish(world, "job-1").await;
        receiver.wait_acknowledged(1, SOON).await.ok();

        // Nobody listens: the delivery fails, is looked at, and sent again.
        let nobody = "http://127.0.0.1:9/";
        let (_, dark) = paceline(world, &["endpoints", "add", nobody, "--subscribe", "named"]).await;
        let dark = self::id(&dark).to_owned();
        let (code, failed) = paceline(world, &["endpoints", "test", &dark]).await;
        assert_eq!((code, failed["state"].as_str()), (1, Some("failed")), "{failed}");
        assert!(failed["attempts"][0]["error"].as_str().expect("why").contains("cannot connect"), "{failed}");
        assert_eq!(failed["attempts"].as_array().map(Vec::len), Some(1), "a test is sent once: {failed}");
        let job = json!({ "id": "dark", "provider": world.provider, "request": { "path": "/v1/x" }, "callback": { "endpoint": dark } });
        world.api().accept(&job).await;
        let list = ["deliveries", "list", "--endpoint", &dark, "--state", "failed", "--event", "job.succeeded"];
        let failed = until("the delivery failed", SOON, async || {
            let (_, page) = paceline(world, &list).await;
            page["items"].get(0).cloned()
        })
        .await;
        assert_eq!((failed["job_id"].as_str(), failed["attempts"].as_array().map(Vec::len)), (Some("dark"), Some(2)));
        let delivery = self::id(&failed).to_owned();
        let (code, again) = paceline(world, &["deliveries", "resend", &delivery]).await;
        assert_eq!((code, again["state"].as_str()), (0, Some("pending")), "{again}");
        until("it failed again, by a schedule of its own", SOON, async || {
            let (_, shown) = paceline(world, &["deliveries", "show", &delivery]).await;
            holds(shown["state"] == "failed" && shown["attempts"].as_array()?.len() == 4)
        })
        .await;
        let (code, endpoint) = paceline(world, &["endpoints", "resend", &dark, "--since", "1h"]).await;
        assert_eq!((code, endpoint["resend"]["state"].as_str()), (0, Some("done")), "{endpoint}");
        assert!(endpoint["resend"]["resent"].as_i64().expect("a number") >= 1);

        // Disabled, nothing goes; enabled, it does.
        let (code, off) = paceline(world, &["endpoints", "disable", &id]).await;
        assert_eq!((code, off["enabled"].as_bool(), off["disabled_reason"].as_str()), (0, Some(false), Some("operator")));
        assert_eq!(paceline(world, &["endpoints", "test", &id]).await.0, 5);
        let (_, on) = paceline(world, &["endpoints", "enable", &id]).await;
        assert_eq!(on["enabled"], true);
        let (code, rotated) = paceline(world, &["endpoints", "rotate", &id, "--overlap", "1h"]).await;
        assert_eq!((code, rotated["secret_version"].as_i64()), (0, Some(2)), "{rotated}");
        assert!(rotated["secret"].as_str().expect("shown once").starts_with("whsec_"));
        assert_eq!(paceline(world, &["endpoints", "show", &id]).await.1["older_secrets"][0]["version"], 1);
        let (_, page) = paceline(world, &["endpoints", "list"]).await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(2));
        assert_eq!(paceline(world, &["endpoints", "delete", &dark]).await.0, 0);
        assert_eq!(paceline(world, &["endpoints", "show", &dark]).await.0, 4);
        for human in [&["endpoints", "list"][..], &["endpoints", "show", &id], &["deliveries", "list"], &["deliveries", "show", &delivery]] {
            let output = world.run(human).await;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && !text.contains("whsec_"), "{human:?}: {text}");
        }
        serve.stop().await;
    })
    .await;
}

fn configure_quick(world: &World, base_url: &str) {
    world.set("KEY_a1", KEY);
    world.configure_all(&format!(
        "[api]\nlisten = \"127.0.0.1:{}\"\n[webhooks]\nsecret = \"env:WEBHOOK_SECRET\"\nallow_http = true\n\
         allow_networks = [\"127.0.0.0/8\"]\nschedule = [\"100ms\"]\n[[provider]]\nname = \"{}\"\nbase_url = \"{base_url}\"\n\
         keys = [ {{ label = \"a1\", secret = \"env:KEY_a1\" }} ]\n",
        world.port, world.provider
    ));
}

/// The endpoint of a bare callback URL that answered 410 can be enabled again, and gets what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bare_url_that_was_gone_can_be_enabled_again() {
    in_world(Mode::Embedded, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        let (gone, url) = receiver_of(vec![410, 200]).await;
        let serve = world.serving().await;
        let api = world.api();
        let job = |id: &str| json!({ "id": id, "provider": world.provider, "request": { "path": "/v1/x" }, "callback": { "url": url } });
        api.accept(&job("one")).await;
        let endpoint = until("it is disabled", SOON, async || {
            let (_, page) = api.try_get("/v1/endpoints").await?;
            let endpoint = page["items"].get(0)?.clone();
            (endpoint["enabled"] == false).then_some(endpoint)
        })
        .await;
        assert_eq!((endpoint["implicit"].as_bool(), endpoint["disabled_reason"].as_str()), (Some(true), Some("gone")));
        let path = format!("/v1/endpoints/{}", id(&endpoint));
        let (status, problem) = api.post(&format!("{path}/rotate"), &json!({})).await;
        assert_eq!(status, 422, "{problem}");
        let (status, on) = api.post(&format!("{path}/enable"), &json!({})).await;
        assert_eq!((status, on["enabled"].as_bool(), &on["disabled_reason"]), (200, Some(true), &Value::Null));
        let (status, _) = api.post(&format!("{path}/resend"), &json!({ "since": "2020-01-01T00:00:00Z" })).await;
        assert_eq!(status, 202);
        until("it has arrived", SOON, async || {
            let (_, page) = api.try_get("/v1/deliveries?job=one").await?;
            holds(page["items"][0]["state"] == "delivered" && gone.lock().expect("whole").len() == 2)
        })
        .await;
        let ids = gone.lock().expect("whole").clone();
        assert_eq!(ids[0], ids[1], "under the same id");
        serve.stop().await;
    })
    .await;
}

type Ids = std::sync::Arc<std::sync::Mutex<Vec<String>>>;

/// A receiver that answers with these statuses in turn, the last one again and again; the ids that it saw.
async fn receiver_of(statuses: Vec<u16>) -> (Ids, String) {
    use axum::http::HeaderMap;
    let ids = Ids::default();
    let seen = Ids::clone(&ids);
    let answer = move |headers: HeaderMap| {
        let mut seen = seen.lock().expect("whole");
        let status = statuses[seen.len().min(statuses.len() - 1)];
        seen.push(headers["webhook-id"].to_str().expect("text").to_owned());
        std::future::ready(http::StatusCode::from_u16(status).expect("a status"))
    };
    let router = axum::Router::new().route("/", axum::routing::post(answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (ids, url)
}
