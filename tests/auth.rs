//! Who may do what: every route of the API, without a token, with one that nobody knows, with one of too narrow a scope,
//! with another tenant's; what is written down of it; and what becomes of whoever tries many.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::SOON;
use common::world::{Mode, free_port, in_world};
use http::{HeaderMap, Method, StatusCode};
use paceline::api::{ApiParts, HookRules, ServeLimits, Tokens, router, serve};
use paceline::clock::{Clock as _, SystemClock};
use paceline::config::{Config, Scope, Token};
use paceline::job::JobState;
use paceline::readiness::Readiness;
use paceline::secrets::Secret;
use paceline::store::{ActView, DeadReason, Next, Record, Recorded, Store, StoreOptions, StoredResponse};
use paceline::vault::MasterKeys;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What a route asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Nothing.
    Nothing,
    /// This scope; a token that is bound to a tenant sees and touches only what is that tenant's.
    Own(Scope),
    /// This scope, of a token that is bound to no tenant.
    All(Scope),
}

/// What every route needs. One that is missing here fails the tests below.
const ROUTES: &[(&str, &str, Needs)] = &[
    ("POST", "/v1/jobs", Needs::Own(Scope::Enqueue)),
    ("GET", "/v1/jobs", Needs::Own(Scope::Read)),
    ("GET", "/v1/jobs/{id}", Needs::Own(Scope::Read)),
    ("DELETE", "/v1/jobs/{id}", Needs::Own(Scope::Enqueue)),
    ("GET", "/v1/jobs/{id}/result", Needs::Own(Scope::Read)),
    ("GET", "/v1/dead-letters", Needs::Own(Scope::Read)),
    ("DELETE", "/v1/dead-letters", Needs::Own(Scope::Replay)),
    ("GET", "/v1/dead-letters/{id}", Needs::Own(Scope::Read)),
    ("POST", "/v1/dead-letters/{id}/replay", Needs::Own(Scope::Replay)),
    ("POST", "/v1/replays", Needs::Own(Scope::Replay)),
    ("GET", "/v1/replays", Needs::Own(Scope::Read)),
    ("GET", "/v1/replays/{id}", Needs::Own(Scope::Read)),
    ("DELETE", "/v1/replays/{id}", Needs::Own(Scope::Replay)),
    ("GET", "/v1/providers", Needs::All(Scope::Read)),
    ("GET", "/v1/providers/{name}", Needs::All(Scope::Read)),
    ("POST", "/v1/providers/{name}/pause", Needs::All(Scope::Admin)),
    ("POST", "/v1/providers/{name}/resume", Needs::All(Scope::Admin)),
    ("GET", "/v1/providers/{name}/keys", Needs::All(Scope::Read)),
    ("POST", "/v1/providers/{name}/keys", Needs::All(Scope::Keys)),
    ("DELETE", "/v1/providers/{name}/keys/{label}", Needs::All(Scope::Keys)),
    ("POST", "/v1/providers/{name}/keys/{label}/rotate", Needs::All(Scope::Keys)),
    ("POST", "/v1/providers/{name}/keys/{label}/disable", Needs::All(Scope::Keys)),
    ("POST", "/v1/providers/{name}/keys/{label}/enable", Needs::All(Scope::Keys)),
    ("POST", "/v1/providers/{name}/budgets/{budget}/resume", Needs::All(Scope::Keys)),
    ("POST", "/v1/vault/rekey", Needs::All(Scope::Admin)),
    ("GET", "/v1/audit", Needs::All(Scope::Admin)),
    ("GET", "/metrics", Needs::All(Scope::Read)),
    ("GET", "/v1/events", Needs::Own(Scope::Read)),
    ("GET", "/v1/endpoints", Needs::Own(Scope::Read)),
    ("POST", "/v1/endpoints", Needs::Own(Scope::Admin)),
    ("GET", "/v1/endpoints/{id}", Needs::Own(Scope::Read)),
    ("DELETE", "/v1/endpoints/{id}", Needs::Own(Scope::Admin)),
    ("POST", "/v1/endpoints/{id}/disable", Needs::Own(Scope::Admin)),
    ("POST", "/v1/endpoints/{id}/enable", Needs::Own(Scope::Admin)),
    ("POST", "/v1/endpoints/{id}/rotate", Needs::Own(Scope::Admin)),
    ("POST", "/v1/endpoints/{id}/test", Needs::Own(Scope::Admin)),
    ("POST", "/v1/endpoints/{id}/resend", Needs::Own(Scope::Replay)),
    ("GET", "/v1/deliveries", Needs::Own(Scope::Read)),
    ("GET", "/v1/deliveries/{id}", Needs::Own(Scope::Read)),
    ("POST", "/v1/deliveries/{id}/resend", Needs::Own(Scope::Replay)),
    ("GET", "/openapi.json", Needs::Nothing),
    ("GET", "/asyncapi.json", Needs::Nothing),
    ("GET", "/schemas/job.json", Needs::Nothing),
    ("GET", "/schemas/event.json", Needs::Nothing),
    ("GET", "/", Needs::Nothing),
    ("GET", "/dashboard/{file}", Needs::Nothing),
    ("GET", "/healthz", Needs::Nothing),
    ("GET", "/readyz", Needs::Nothing),
];

const SCOPES: [Scope; 5] = [Scope::Enqueue, Scope::Read, Scope::Replay, Scope::Keys, Scope::Admin];

/// The routes as the router names them, which has none without its part of the document: (method, path).
fn routes() -> BTreeSet<(String, String)> {
    let document = paceline::api::openapi();
    let paths = document["paths"].as_object().expect("paths");
    let operations = |(path, operations): (&String, &Value)| {
        let operations = operations.as_object().expect("operations").keys();
        operations.map(|method| (method.to_uppercase(), path.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(operations).collect()
}

#[test]
fn it_is_said_of_every_route_what_it_needs() {
    let known: BTreeSet<_> =
        ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    let found = routes();
    assert!(found.len() >= 29, "the router was read: {found:?}");
    assert_eq!(found, known, "left: what the router has, right: what this test knows");
}

const CONFIG: &str = r#"
    [webhooks]
    secret = "env:HOOKS"
    allow_http = true
    allow_networks = ["127.0.0.0/8"]
    [[provider]]
    name = "geo"
    base_url = "http://127.0.0.1:1"
    keys = [ { label = "a1", secret = "env:A1" } ]
    [[provider.budget]]
    name = "org-1"
    keys = [ { label = "b1", secret = "env:B1" } ]
"#;

const NOW: i64 = 1_800_000_000_000;

/// What stands in the place of `{id}`, by the route or how it begins: the longest one counts.
type Ids = BTreeMap<&'static str, String>;

/// Of things that never were, in the form of those that are.
fn nobodys() -> Ids {
    let zeros = "0".repeat(32);
    BTreeMap::from([
        ("/v1/jobs", "nobody-job".to_owned()),
        ("/v1/jobs/{id}/result", "nobody-done".to_owned()),
        ("/v1/dead-letters", "nobody-done".to_owned()),
        ("/v1/replays", format!("rp_{zeros}")),
        ("/v1/endpoints", format!("ep_{zeros}")),
        ("/v1/deliveries", "dl_999999".to_owned()),
    ])
}

fn id_for<'a>(route: &str, ids: &'a Ids) -> &'a str {
    let fitting = ids.iter().filter(|(begin, _)| route.starts_with(**begin));
    fitting.max_by_key(|(begin, _)| begin.len()).map_or("x", |(_, id)| id.as_str())
}

/// A route with names in the place of its braces.
fn filled(route: &str, ids: &Ids) -> String {
    let named = route
        .replace("{name}", "geo")
        .replace("{label}", "s1")
        .replace("{budget}", "org-1")
        .replace("{file}", "app.js");
    named.replace("{id}", id_for(route, ids))
}

/// A body that the route takes.
fn body_for(method: &str, route: &str) -> Option<Value> {
    match (method, route) {
        ("POST", "/v1/jobs") => Some(json!({ "id": "new-job", "provider": "geo", "request": { "path": "/" } })),
        ("POST", "/v1/replays") => Some(json!({ "all": true })),
        ("POST", "/v1/endpoints") => Some(json!({ "url": "http://127.0.0.1:9/new" })),
        ("POST", "/v1/endpoints/{id}/resend") => Some(json!({ "since": "2026-01-01T00:00:00Z" })),
        ("POST", "/v1/providers/{name}/keys") => Some(json!({ "label": "s1", "secret": "key-three" })),
        ("POST", "/v1/providers/{name}/keys/{label}/rotate") => Some(json!({ "secret": "key-four" })),
        _ => body(method),
    }
}

/// The table with what removes things at its end.
fn removing_last() -> Vec<(&'static str, &'static str, Needs)> {
    let (last, mut all): (Vec<_>, Vec<_>) = ROUTES.iter().copied().partition(|(method, _, _)| *method == "DELETE");
    all.extend(last);
    all
}

/// An API with tokens, in which the tenant acme has a job, a dead one, a replay, an endpoint and a delivery.
struct Api {
    address: SocketAddr,
    store: Store,
    ids: Ids,
    _folder: tempfile::TempDir,
}

fn secret(name: &str) -> String {
    format!("secret-of-the-token-{name}")
}

fn token(name: &str, scopes: &[Scope], tenant: Option<&str>) -> Token {
    let secret = Secret::new(secret(name));
    Token { name: name.to_owned(), secret, scopes: scopes.to_vec(), tenant: tenant.map(str::to_owned) }
}

/// A token of each scope, bound to nobody and to a tenant; one of all others; and one of everything.
fn tokens() -> Vec<Token> {
    let mut tokens = vec![token("root", &[Scope::Admin], None), token("acme", &[Scope::Admin], Some("acme"))];
    for scope in SCOPES {
        let name = scope.as_str();
        let others: Vec<Scope> = SCOPES.into_iter().filter(|other| *other != scope && *other != Scope::Admin).collect();
        tokens.push(token(name, &[scope], None));
        tokens.push(token(&format!("all-but-{name}"), &others, None));
        tokens.push(token(&format!("globex-{name}"), &[scope], Some("globex")));
    }
    tokens
}

impl Api {
    async fn start() -> Self {
        let hooks = format!("whsec_{}", STANDARD.encode([7; 32]));
        let env = [("A1", "key-one"), ("B1", "key-two"), ("HOOKS", hooks.as_str())];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Config::parse(CONFIG, None, &env).expect("valid");
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 4 }).await.expect("a store");
        store.migrate().await.expect("a schema");
        let master = |name: &str| (name == "PACELINE_MASTER_KEY").then(|| STANDARD.encode([8; 32]));
        let masters = Arc::new(MasterKeys::from_env(&master).expect("a master key"));
        let router = router(ApiParts {
            store: store.clone(),
            catalog: Arc::new(config.catalog()),
            clock: Arc::new(SystemClock::new()),
            masters: Arc::clone(&masters),
            tokens: Tokens::new(&tokens()),
            public_url: None,
            readiness: Readiness::default(),
            registry: Registry::default(),
            envelope_bytes_max: 1 << 20,
            hooks: HookRules::of(&config.webhooks, masters).expect("a secret of the scheme"),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, router, ServeLimits::default(), std::future::pending()));
        let mut api = Self { address, store, ids: BTreeMap::new(), _folder: folder };
        api.fill().await;
        api
    }

    /// All of it is acme's, and says so.
    async fn fill(&mut self) {
        let hook = json!({ "url": "http://127.0.0.1:9/acme-only", "description": "acme-only" });
        let (status, _, endpoint) = self.call("acme", "POST", "/v1/endpoints", Some(hook)).await;
        assert_eq!(status, 201, "{endpoint}");
        for id in ["acme-done", "acme-job"] {
            let job =
                json!({ "id": id, "provider": "geo", "request": { "path": "/" }, "metadata": { "of": "acme-only" } });
            let (status, _, answer) = self.call("acme", "POST", "/v1/jobs", Some(job)).await;
            assert_eq!(status, 202, "{answer}");
            if id == "acme-done" {
                self.end().await;
            }
        }
        let (status, _, replay) = self.call("acme", "POST", "/v1/replays", Some(json!({ "all": true }))).await;
        assert_eq!((status, &replay["total"]), (202, &json!(1)), "{replay}");
        let (_, _, deliveries) = self.call("acme", "GET", "/v1/deliveries", None).await;
        let id_of = |thing: &Value| thing["id"].as_str().expect("an id").to_owned();
        self.ids = BTreeMap::from([
            ("/v1/jobs", "acme-job".to_owned()),
            ("/v1/jobs/{id}/result", "acme-done".to_owned()),
            ("/v1/dead-letters", "acme-done".to_owned()),
            ("/v1/replays", id_of(&replay)),
            ("/v1/endpoints", id_of(&endpoint)),
            ("/v1/deliveries", id_of(&deliveries["items"][0])),
        ]);
    }

    /// Ends the job that waits as its dispatcher would: dead, with an answer.
    async fn end(&self) {
        let claimed = self.store.claim_due(&"test".to_owned(), "geo", "default", 1, NOW).await.expect("claimed");
        let job = claimed.first().expect("it waits");
        let response = StoredResponse {
            status: 404,
            headers: "{}".to_owned(),
            content_type: Some("text/plain".to_owned()),
            body: bytes::Bytes::from_static(b"acme-only"),
            truncated: false,
        };
        let (reason, error) = (Some(DeadReason::Permanent), Some("acme-only".to_owned()));
        let next = Next::Finish { state: JobState::Dead, reason, error, response: Some(response) };
        let (pk, epoch, run) = (job.pk, job.epoch, job.run);
        let record = Record { pk, epoch, run, attempt: None, failures: 1, at_ms: NOW, next };
        assert_eq!(self.store.record(record).await.expect("recorded"), Recorded::Done);
    }

    /// A route with something that is there in the place of its names.
    fn path(&self, route: &str) -> String {
        let path = filled(route, &self.ids);
        if route == "/v1/dead-letters" { format!("{path}?limit=500") } else { path }
    }

    /// What was written down, newest first.
    async fn acts(&self) -> Vec<ActView> {
        self.store.acts(None, 500).await.expect("listed").items
    }

    async fn call(&self, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, HeaderMap, Value) {
        self.call_from([127, 0, 0, 1].into(), Some(&secret(token)), method, path, body).await
    }

    /// From another address of this machine; `secret` as it is.
    async fn call_from(
        &self,
        from: Ipv4Addr,
        secret: Option<&str>,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, HeaderMap, Value) {
        let client = reqwest::Client::builder().no_proxy().local_address(IpAddr::V4(from)).build().expect("a client");
        let method: Method = method.parse().expect("a method");
        let mut request = client.request(method, format!("http://{}{path}", self.address));
        if let Some(secret) = secret {
            request = request.bearer_auth(secret);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // A stream of events does not end.
        let is_stream = headers.get("content-type").is_some_and(|kind| kind == "text/event-stream");
        let text = if is_stream { String::new() } else { response.text().await.expect("a body") };
        (status, headers, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// What acme has, as it sees it: each thing, and all lists.
    async fn of_acme(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (method, route, needs) in ROUTES {
            if *method == "GET" && matches!(needs, Needs::Own(_)) && *route != "/v1/events" {
                let (status, _, answer) = self.call("acme", "GET", &self.path(route), None).await;
                assert_eq!(status, 200, "{route}: {answer}");
                all.push(answer);
            }
        }
        all
    }

    /// Everything that is told of a thing, but for its id, the time, and the number of the answer.
    async fn told(&self, token: &str, (method, route): (&str, &str), ids: &Ids) -> (u16, String, String) {
        let (path, body) = (filled(route, ids), body_for(method, route));
        let (status, mut headers, mut answer) = self.call(token, method, &path, body).await;
        if let Some(problem) = answer.as_object_mut() {
            problem.remove("instance");
        }
        for varying in ["date", "content-length"] {
            headers.remove(varying);
        }
        let hidden = |text: String| text.replace(id_for(route, ids), "ID");
        (status, hidden(format!("{headers:?}")), hidden(answer.to_string()))
    }
}

fn body(method: &str) -> Option<Value> {
    (method == "POST").then(|| json!({}))
}

#[tokio::test]
async fn no_route_is_open_to_whoever_has_no_token_or_a_wrong_one() {
    let api = Api::start().await;
    for (n, (method, route, needs)) in ROUTES.iter().enumerate() {
        let path = api.path(route);
        // An address for each: one that sends many wrong tokens is not heard any more.
        let from = Ipv4Addr::new(127, 0, 1, u8::try_from(n + 1).expect("few"));
        let known = secret("root");
        let almost = &known[..known.len() - 1];
        for secret in [None, Some("wrong"), Some(""), Some(almost)] {
            let (status, headers, answer) = api.call_from(from, secret, method, &path, body(method)).await;
            if *needs == Needs::Nothing {
                assert!(matches!(status, 200 | 503), "{method} {path}: {answer}");
                continue;
            }
            assert_eq!(status, 401, "{method} {path} with {secret:?}: {answer}");
            assert!(headers["www-authenticate"].to_str().expect("a text").starts_with("Bearer "));
            assert!(!answer.to_string().contains("acme"), "{answer}");
        }
    }
    for (method, path) in [("GET", "/v1/nothing"), ("POST", "/v1/nothing"), ("GET", "/v1/jobs/%2e%2e/%2e%2e/metrics")] {
        let (status, _, _) = api.call_from([127, 0, 2, 1].into(), None, method, path, None).await;
        assert_eq!(status, 401, "not even whether there is {method} {path}");
    }
}

#[tokio::test]
async fn every_route_wants_its_scope() {
    let api = Api::start().await;
    for (method, route, needs) in ROUTES {
        let (Needs::Own(scope) | Needs::All(scope)) = needs else { continue };
        let path = api.path(route);
        let name = scope.as_str();
        let (status, headers, answer) = api.call(&format!("all-but-{name}"), method, &path, body(method)).await;
        assert_eq!(status, 403, "{method} {path} without {name}: {answer}");
        let challenge = headers["www-authenticate"].to_str().expect("a text");
        assert!(challenge.contains("insufficient_scope") && challenge.contains(name), "{challenge}");
        for token in [name, "root"] {
            let (status, _, answer) = api.call(token, method, &path, body(method)).await;
            assert!(!matches!(status, 401 | 403 | 405 | 429), "{method} {path} with {token}: {status} {answer}");
        }
    }
}

#[tokio::test]
async fn a_tenant_sees_and_touches_only_what_is_its_own() {
    let api = Api::start().await;
    let before = api.of_acme().await;
    assert!(before.len() >= 11 && before.iter().all(|thing| thing.to_string().contains("acme")), "{before:?}");
    for (method, route, needs) in removing_last() {
        let (Needs::Own(scope) | Needs::All(scope)) = needs else { continue };
        let token = format!("globex-{}", scope.as_str());
        if matches!(needs, Needs::Own(_)) && route.contains("{id}") {
            let theirs = api.told(&token, (method, route), &api.ids).await;
            let nobodys = api.told(&token, (method, route), &nobodys()).await;
            assert_eq!(theirs.0, 404, "{method} {route}: {theirs:?}");
            assert_eq!(theirs, nobodys, "{method} {route}: left: of another tenant's, right: of nobody's");
            assert!(!theirs.2.contains("acme"), "{method} {route}: {theirs:?}");
            continue;
        }
        let path = if (method, route) == ("DELETE", "/v1/dead-letters") { "/v1/dead-letters?all=true" } else { route };
        let (status, _, answer) = api.call(&token, method, &filled(path, &api.ids), body_for(method, route)).await;
        assert!(!answer.to_string().contains("acme"), "{method} {path}: {answer}");
        match needs {
            Needs::All(_) => assert_eq!(status, 403, "{method} {path}: {answer}"),
            _ => assert!(matches!(status, 200..=202), "{method} {path}: {status} {answer}"),
        }
    }
    assert_eq!(api.of_acme().await, before, "nothing of it was touched");
    let touched = |act: &&ActView| act.who.starts_with("globex") && api.ids.values().any(|id| act.target.contains(id));
    assert_eq!(api.acts().await.iter().find(touched), None);
    // It is there for whoever it belongs to.
    for (method, route, needs) in removing_last() {
        if matches!(needs, Needs::Own(_)) && route.contains("{id}") {
            let (status, _, answer) = api.told("acme", (method, route), &api.ids).await;
            assert!(matches!(status, 200..=202), "{method} {route}: {status} {answer}");
        }
    }
}

#[tokio::test]
async fn no_filter_and_no_body_leads_to_another_tenant() {
    let api = Api::start().await;
    let before = api.of_acme().await;
    for list in ["/v1/jobs", "/v1/dead-letters", "/v1/endpoints", "/v1/deliveries", "/v1/events"] {
        let (status, _, answer) = api.call("globex-read", "GET", &format!("{list}?tenant=acme"), None).await;
        assert_eq!(status, 403, "{list}: {answer}");
        assert!(!answer.to_string().contains("acme-only"), "{answer}");
    }
    let (endpoint, replay) = (&api.ids["/v1/endpoints"], &api.ids["/v1/replays"]);
    let (_, _, acmes) = api.call("acme", "GET", "/v1/jobs?limit=1", None).await;
    let cursor = acmes["next_cursor"].as_str().expect("there are two");
    for query in [
        format!("/v1/deliveries?endpoint={endpoint}"),
        "/v1/deliveries?job=acme-done".to_owned(),
        format!("/v1/jobs?cursor={cursor}"),
    ] {
        let (status, _, answer) = api.call("globex-read", "GET", &query, None).await;
        assert_eq!((status, &answer["items"]), (200, &json!([])), "{query}: {answer}");
    }
    let job = |more: Value| {
        let mut job = json!({ "provider": "geo", "request": { "path": "/" } });
        job.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        job
    };
    for (token, method, path, body, expected) in [
        ("globex-enqueue", "POST", "/v1/jobs", Some(job(json!({ "tenant": "acme" }))), 422),
        ("globex-enqueue", "POST", "/v1/jobs", Some(job(json!({ "callback": { "endpoint": endpoint } }))), 422),
        ("globex-admin", "POST", "/v1/endpoints", Some(json!({ "url": "http://127.0.0.1:9/", "tenant": "acme" })), 403),
        ("globex-replay", "POST", "/v1/replays", Some(json!({ "where": { "tenant": "acme" } })), 403),
        ("globex-replay", "DELETE", "/v1/dead-letters?tenant=acme", None, 403),
        ("globex-replay", "DELETE", &format!("/v1/replays/{replay}?tenant=acme"), None, 400),
    ] {
        let (status, _, answer) = api.call(token, method, path, body).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(!answer.to_string().contains("acme-only"), "{answer}");
    }
    // The same id is another job.
    let same = job(json!({ "id": "acme-job" }));
    let (status, _, answer) = api.call("globex-enqueue", "POST", "/v1/jobs", Some(same)).await;
    assert_eq!((status, &answer["created"]), (202, &json!(true)), "{answer}");
    assert_eq!(api.of_acme().await, before, "nothing of it was touched");
}

/// Making and cancelling jobs is what producers do; whatever else changes something is written down.
#[tokio::test]
async fn every_act_of_an_operator_is_written_down() {
    let begun = SystemClock::new().wall_ms();
    let api = Api::start().await;
    let mut seen = BTreeSet::new();
    for (method, route, needs) in removing_last() {
        let (Needs::Own(scope) | Needs::All(scope)) = needs else { continue };
        if method == "GET" {
            continue;
        }
        let before = api.acts().await.len();
        let all = if (method, route) == ("DELETE", "/v1/dead-letters") { "?all=true" } else { "" };
        let path = format!("{}{all}", filled(route, &api.ids));
        let (status, _, answer) = api.call("root", method, &path, body_for(method, route)).await;
        assert!(matches!(status, 200..=202), "{method} {path}: {status} {answer}");
        let acts = api.acts().await;
        if scope == Scope::Enqueue {
            assert_eq!(acts.len(), before, "{method} {path} is a producer's");
            continue;
        }
        assert_eq!(acts.len(), before + 1, "{method} {path} leaves an act");
        let act = &acts[0];
        assert_eq!((act.who.as_str(), act.outcome.as_str()), ("root", "done"), "{act:?}");
        assert!(act.at_ms >= begun && seen.insert(act.act.clone()), "an act of its own: {act:?}");
        let target = match route {
            _ if route.contains("{id}") => id_for(route, &api.ids).to_owned(),
            _ if route.contains("{budget}") => "geo/org-1".to_owned(),
            _ if route.contains("keys") => "geo/s1".to_owned(),
            _ if route.contains("{name}") => "geo".to_owned(),
            "/v1/vault/rekey" => "vault".to_owned(),
            "/v1/dead-letters" => "dead-letters".to_owned(),
            _ => answer["id"].as_str().expect("what was made").to_owned(),
        };
        assert_eq!(act.target, target, "{method} {path}");
    }
    assert!(seen.len() >= 20, "{seen:?}");
    let all = format!("{:?}", api.acts().await);
    assert!(!all.contains("key-three") && !all.contains("key-four") && !all.contains("whsec_"), "{all}");
}

#[tokio::test]
async fn whoever_tries_many_tokens_is_not_heard_and_nobody_else_is_locked_out() {
    let api = Api::start().await;
    let (bad, good): (Ipv4Addr, Ipv4Addr) = ([127, 0, 3, 1].into(), [127, 0, 3, 2].into());
    let root = secret("root");
    // A token that works from there before goes on working.
    let reader = secret("read");
    assert_eq!(api.call_from(bad, Some(&reader), "GET", "/v1/jobs", None).await.0, 200);
    let mut statuses = Vec::new();
    for n in 0..20 {
        let wrong = format!("wrong-{n}");
        let path = if n % 2 == 0 { "/v1/jobs" } else { "/metrics" };
        let (status, headers, answer) = api.call_from(bad, Some(&wrong), "GET", path, None).await;
        if status == 429 {
            let seconds: u64 = headers["retry-after"].to_str().expect("a text").parse().expect("seconds");
            assert!((1..=6).contains(&seconds), "{seconds}");
            assert_eq!(answer["type"], "urn:paceline:problem:too-many-attempts");
        }
        statuses.push(status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 10, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 10, "{statuses:?}");
    assert_eq!(api.call_from(bad, Some(&root), "GET", "/v1/jobs", None).await.0, 429, "a right guess is not told");
    let told = api.call_from(bad, Some(&root), "GET", "/readyz", None).await;
    assert_eq!(told.0, StatusCode::OK, "health is for everybody");
    assert_eq!(api.call_from(bad, Some(&reader), "GET", "/v1/jobs", None).await.0, 200, "it worked from there before");
    assert_eq!(api.call_from(good, Some(&root), "GET", "/v1/jobs", None).await.0, 200, "another address is free");
}

#[tokio::test]
async fn nothing_is_served_to_other_machines_without_a_token() {
    in_world(Mode::Embedded, async |world| {
        world.configure("");
        world.set("PACELINE__API__LISTEN", &format!("0.0.0.0:{}", free_port()));
        let mut refused = world.serve();
        assert!(!refused.ended(SOON).await.success());
        assert!(refused.log().contains("api.tokens"), "{}", refused.log());
    })
    .await;
}
