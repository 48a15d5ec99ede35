//! Who may do what: every route of the API, without a token, with one that nobody knows, with one of too narrow a scope,
//! with another tenant's; and what becomes of whoever tries many.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use common::SOON;
use common::world::{Mode, free_port, in_world};
use http::{HeaderMap, Method, StatusCode};
use paceline::api::{ApiParts, HookRules, ServeLimits, Tokens, router, serve};
use paceline::clock::SystemClock;
use paceline::config::{Config, Scope, Token};
use paceline::readiness::Readiness;
use paceline::secrets::Secret;
use paceline::store::{Buried, DeadReason, Store, StoreOptions};
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
    [[provider]]
    name = "geo"
    base_url = "http://127.0.0.1:1"
    keys = [ { label = "a1", secret = "env:A1" } ]
    [[provider.budget]]
    name = "org-1"
    keys = [ { label = "b1", secret = "env:B1" } ]
"#;

/// An API with tokens, in which the tenant acme has a job, a dead letter and a replay.
struct Api {
    address: SocketAddr,
    store: Store,
    ids: BTreeMap<&'static str, String>,
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
        let env = [("A1".to_owned(), "key-one".to_owned()), ("B1".to_owned(), "key-two".to_owned())];
        let config = Config::parse(CONFIG, None, &env).expect("valid");
        let folder = tempfile::tempdir().expect("a folder");
        let url = format!("sqlite://{}", folder.path().join("paceline.db").display());
        let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 4 }).await.expect("a store");
        store.migrate().await.expect("a schema");
        let router = router(ApiParts {
            store: store.clone(),
            catalog: Arc::new(config.catalog()),
            clock: Arc::new(SystemClock::new()),
            masters: Arc::default(),
            tokens: Tokens::new(&tokens()),
            public_url: None,
            readiness: Readiness::default(),
            registry: Registry::default(),
            envelope_bytes_max: 1 << 20,
            hooks: HookRules::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, router, ServeLimits::default(), std::future::pending()));
        let mut api = Self { address, store, ids: BTreeMap::new(), _folder: folder };
        api.fill().await;
        api
    }

    async fn fill(&mut self) {
        let job = json!({ "id": "acme-job", "provider": "geo", "request": { "path": "/" }, "metadata": { "of": "acme-only" } });
        let (status, _, answer) = self.call("acme", "POST", "/v1/jobs", Some(job)).await;
        assert_eq!(status, 202, "{answer}");
        let letter = Buried {
            reason: DeadReason::Malformed,
            error: "acme-only".to_owned(),
            tenant: "acme".to_owned(),
            provider: None,
            lane: None,
            raw: bytes::Bytes::from_static(b"acme-only"),
            identity: None,
            headers: "{}".to_owned(),
        };
        let letter = self.store.bury(letter, 1_800_000_000_000).await.expect("buried");
        let (status, _, replay) = self.call("acme", "POST", "/v1/replays", Some(json!({ "all": true }))).await;
        assert_eq!(status, 202, "{replay}");
        self.ids.insert("/v1/jobs", "acme-job".to_owned());
        self.ids.insert("/v1/dead-letters", letter);
        self.ids.insert("/v1/replays", replay["id"].as_str().expect("an id").to_owned());
    }

    /// A route with something that is there in the place of its names.
    fn path(&self, route: &str) -> String {
        let id = self.ids.iter().find(|(list, _)| route.starts_with(**list)).map_or("x", |(_, id)| id.as_str());
        let path =
            route.replace("{id}", id).replace("{name}", "geo").replace("{label}", "a1").replace("{budget}", "org-1");
        let path = path.replace("{file}", "app.js");
        if route == "/v1/dead-letters" { format!("{path}?limit=500") } else { path }
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

    /// What acme has, as it sees it.
    async fn of_acme(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (list, id) in &self.ids {
            all.push(self.call("acme", "GET", &format!("{list}/{id}"), None).await.2);
        }
        all
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
    assert!(before.iter().all(|thing| thing.to_string().contains("acme")), "{before:?}");
    for (method, route, needs) in ROUTES {
        let (Needs::Own(scope) | Needs::All(scope)) = needs else { continue };
        let mut path = api.path(route);
        if *method == "DELETE" && *route == "/v1/dead-letters" {
            path = "/v1/dead-letters?all=true".to_owned();
        }
        let body = match (*method, *route) {
            ("POST", "/v1/replays") => Some(json!({ "all": true })),
            ("POST", "/v1/jobs") => Some(json!({ "id": "globex-job", "provider": "geo", "request": { "path": "/" } })),
            _ => body(method),
        };
        let token = format!("globex-{}", scope.as_str());
        let (status, _, answer) = api.call(&token, method, &path, body).await;
        assert!(!answer.to_string().contains("acme-only"), "{method} {path}: {answer}");
        match needs {
            Needs::All(_) => assert_eq!(status, 403, "{method} {path}: {answer}"),
            // A body that is not for this route is refused first.
            _ if status == 422 => assert_eq!(*method, "POST", "{method} {path}: {answer}"),
            _ if route.contains("{id}") => assert_eq!(status, 404, "{method} {path}: {answer}"),
            _ => assert!(matches!(status, 200 | 202), "{method} {path}: {status} {answer}"),
        }
        let (status, _, answer) = api.call(&token, "GET", "/v1/jobs?tenant=acme", None).await;
        assert_eq!(status, 403, "{answer}");
    }
    assert_eq!(api.of_acme().await, before, "nothing of it was touched");
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
