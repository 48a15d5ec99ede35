//! The HTTP API as clients see it: the real router on real sockets, over a real store.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use paceline::api::{ApiParts, HookRules, MANY_BYTES_MAX, ServeLimits, Tokens, router, serve, starting_router};
use paceline::clock::{Clock, SystemClock};
use paceline::config::{Scope, Token};
use paceline::job::{Catalog, JobState, ProviderRules};
use paceline::readiness::Readiness;
use paceline::secrets::Secret;
use paceline::store::{
    Attempt, BudgetReport, Buried, Claimed, DeadReason, KeyReport, LimitReport, Next, Record, Report, Store,
    StoreOptions, StoredResponse, WaitReason, Wake,
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const ENVELOPE_BYTES_MAX: usize = 1024 * 1024;

/// A served API, its store, and a client.
struct Api {
    address: SocketAddr,
    store: Store,
    readiness: Readiness,
    client: reqwest::Client,
    token: Option<&'static str>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<std::io::Result<()>>>,
    _directory: tempfile::TempDir,
}

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.body))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|v| v.to_str().expect("text")).unwrap_or_default()
    }

    /// The body of a problem document of that status and type.
    #[track_caller]
    fn problem(&self, status: u16, kind: &str) -> Value {
        let json = self.json();
        assert_eq!(self.status.as_u16(), status, "{json}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(json["type"], format!("urn:paceline:problem:{kind}"), "{json}");
        assert_eq!(json["status"], status);
        assert!(json["title"].is_string() && json["detail"].is_string(), "{json}");
        assert!(json["instance"].as_str().is_some_and(|i| i.starts_with("urn:uuid:")), "{json}");
        json
    }

    #[track_caller]
    fn ok(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{:?}", self.body);
        assert_eq!(self.header("x-content-type-options"), "nosniff");
        self.json()
    }
}

fn catalog() -> Catalog {
    let mut rules = ProviderRules::default();
    rules.lanes.insert("high".to_owned());
    rules.pins.extend(["a1", "b1", "org-1"].map(str::to_owned));
    rules.keys.extend([("a1".to_owned(), None), ("b1".to_owned(), Some("org-1".to_owned()))]);
    let providers = [("geo".to_owned(), rules), ("mail".to_owned(), ProviderRules::default())].into();
    Catalog { providers, allow_http: false, callbacks: true, endpoints: false, ..Catalog::default() }
}

fn token(name: &str, secret: &str, scopes: &[Scope], tenant: Option<&str>) -> Token {
    Token {
        name: name.to_owned(),
        secret: Secret::new(secret.to_owned()),
        scopes: scopes.to_vec(),
        tenant: tenant.map(str::to_owned),
    }
}

impl Api {
    async fn start() -> Self {
        Self::with(&[], ServeLimits::default()).await
    }

    async fn with(tokens: &[Token], limits: ServeLimits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("paceline.db").display());
        let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 4 }).await.expect("a store");
        store.migrate().await.expect("a schema");
        let readiness = Readiness::default();
        let router = router(ApiParts {
            store: store.clone(),
            catalog: Arc::new(catalog()),
            clock: Arc::new(SystemClock::new()),
            masters: Arc::default(),
            tokens: Tokens::new(tokens),
            readiness: readiness.clone(),
            registry: Registry::default(),
            envelope_bytes_max: ENVELOPE_BYTES_MAX,
            hooks: HookRules::default(),
            public_url: None,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(serve(listener, router, limits, async move {
            // Also when the sender is dropped.
            stopped.await.unwrap_or_default();
        }));
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        Self {
            address,
            store,
            readiness,
            client,
            token: None,
            stop: Some(stop),
            served: Some(served),
            _directory: directory,
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("http://{}{path}", self.address)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.expect("a body") }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    async fn submit(&self, job: Value) -> Answer {
        self.post("/v1/jobs", job.to_string()).await
    }

    /// Puts a job in and gives it to an owner.
    async fn claimed(&self, job: Value) -> Claimed {
        let provider = job["provider"].as_str().expect("a provider").to_owned();
        let lane = job["lane"].as_str().unwrap_or("default").to_owned();
        self.submit(job).await.ok(202);
        self.claim(&provider, &lane).await
    }

    async fn claim(&self, provider: &str, lane: &str) -> Claimed {
        let owner = "owner-1".to_owned();
        let mut claimed = self.store.claim_due(&owner, provider, lane, 1, now()).await.expect("a claim");
        claimed.pop().expect("a due job")
    }

    async fn record(&self, claimed: &Claimed, next: Next) {
        let attempt = Attempt {
            n: claimed.attempts + 1,
            at_ms: now(),
            key: "a1".to_owned(),
            status: Some(500),
            outcome: "transient".to_owned(),
            latency_ms: 12,
            error: Some("500".to_owned()),
        };
        let attempt = (!matches!(next, Next::Running)).then_some(attempt);
        let record = Record {
            pk: claimed.pk,
            epoch: claimed.epoch,
            run: claimed.run,
            attempt,
            failures: claimed.failures + 1,
            at_ms: now(),
            next,
        };
        self.store.record(record).await.expect("recorded");
    }

    async fn finish(&self, claimed: &Claimed, state: JobState) {
        let died = state == JobState::Dead;
        let response = StoredResponse {
            status: if died { 500 } else { 200 },
            headers: "{}".to_owned(),
            content_type: Some("text/html".to_owned()),
            body: Bytes::from_static(b"<script>alert(1)</script>"),
            truncated: false,
        };
        let next = Next::Finish {
            state,
            reason: died.then_some(DeadReason::AttemptsExhausted),
            error: died.then(|| "the provider said 500".to_owned()),
            response: Some(response),
        };
        self.record(claimed, next).await;
    }

    async fn dead(&self, job: Value) -> String {
        let claimed = self.claimed(job).await;
        self.finish(&claimed, JobState::Dead).await;
        claimed.job.id
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        let served = self.served.take().expect("served");
        served.await.expect("no panic").expect("no error");
    }
}

fn now() -> i64 {
    SystemClock::new().wall_ms()
}

fn job(id: &str) -> Value {
    json!({ "id": id, "provider": "geo", "request": { "path": "/v1/geocode", "query": { "q": "Berlin" } } })
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

// ── providers ───────────────────────────────────────────────────────────────────────────────────

fn key<'a>(provider: &'a Value, label: &str) -> &'a Value {
    let budgets = provider["budgets"].as_array().expect("budgets");
    let mut keys = budgets.iter().flat_map(|budget| budget["keys"].as_array().expect("keys"));
    keys.find(|key| key["label"] == label).unwrap_or_else(|| panic!("no key {label}: {provider}"))
}

#[tokio::test]
async fn a_provider_is_shown_as_its_dispatcher_tells_it() {
    let api = Api::start().await;
    let unknown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&unknown["state"], &unknown["keys"]), (&json!("open"), &json!({ "unknown": 2 })));
    api.submit(json!({ "id": "hi", "provider": "geo", "lane": "high", "request": { "path": "/" } })).await.ok(202);
    let me = "12-ab".to_owned();
    let groups = [String::new()];
    let leases = api.store.leases_take("geo", &[""], &groups, &me, Duration::from_secs(60)).await.expect("asked");
    assert!(matches!(leases.answers[..], [paceline::store::LeaseTake::Taken { epoch: 1, .. }]));
    let limit = LimitReport { unit: "requests".into(), amount: 600, per_ms: Some(60_000), used: 7, most: 600 };
    let a1 = KeyReport { label: "a1".into(), state: "refused".into(), until_ms: Some(0), limits: vec![limit] };
    let gone = KeyReport { label: "gone".into(), state: "open".into(), ..KeyReport::default() };
    let budget = |name: &str, key: KeyReport| BudgetReport {
        name: name.into(),
        state: "open".into(),
        allowed_per_second: Some(10.0),
        achieved_per_second: 2.5,
        pacing_errors: 1,
        signals: Some("ietf".into()),
        keys: vec![key],
        ..BudgetReport::default()
    };
    let report = Report {
        allowed_per_second: Some(10.0),
        achieved_per_second: 2.5,
        open: 3,
        breaker: Some("half_open".into()),
        permits_waiting: vec![("high".into(), 4)],
        budgets: vec![budget("a1", a1), budget("gone", gone)],
        keys_left_out: 0,
    };
    api.store.write_report("geo", &me, Some(&report)).await.expect("written");
    // One that holds nothing any more is not believed.
    let stale = Report { achieved_per_second: 1_000.0, ..report.clone() };
    api.store.write_report("geo", &"old".to_owned(), Some(&stale)).await.expect("written");
    let shown = api.get("/v1/providers/geo").await.ok(200);
    for (member, expected) in [
        ("allowed_per_second", json!(10.0)),
        ("achieved_per_second", json!(2.5)),
        ("utilisation", json!(0.25)),
        ("open_calls", json!(3)),
        ("breaker", json!("half_open")),
        ("pacing_errors", json!(1)),
        ("keys", json!({ "refused": 1, "unknown": 1 })),
        ("keys_left_out", json!(0)),
        ("paused_by", json!(null)),
    ] {
        assert_eq!(shown[member], expected, "{member} of {shown}");
    }
    let lanes: Vec<_> = shown["queue"].as_array().expect("lanes").iter().map(|lane| &lane["lane"]).collect();
    assert_eq!(lanes, ["default", "high", "replay"]);
    assert_eq!(
        shown["queue"][1],
        json!({ "lane": "high", "queued": 1, "waiting": 0, "running": 0, "permits_waiting": 4 })
    );
    let a1 = key(&shown, "a1");
    assert_eq!((&a1["until"], &a1["limits"][0]["used"]), (&json!("1970-01-01T00:00:00.000Z"), &json!(7)));
    assert_eq!((&shown["budgets"][1]["name"], &shown["budgets"][1]["declared"]), (&json!("org-1"), &json!(true)));
    assert_eq!((&shown["leases"][0]["owner"], &shown["leases"][0]["held"]), (&json!(me), &json!(true)));
    let all = api.get("/v1/providers").await.ok(200);
    assert_eq!(all["items"][0]["achieved_per_second"], 2.5);
    assert_eq!((&all["items"][1]["name"], &all["next_cursor"]), (&json!("mail"), &json!(null)));
    api.stop().await;
}

#[tokio::test]
async fn orders_are_kept_and_shown_at_once() {
    let api = Api::start().await;
    let paused = api.post("/v1/providers/geo/pause", "").await.ok(200);
    assert_eq!(
        (&paused["provider"], &paused["state"], &paused["by"]),
        (&json!("geo"), &json!("paused"), &json!("local"))
    );
    api.submit(job("j")).await.ok(202);
    let job = api.get("/v1/jobs/j").await.ok(200);
    assert_eq!((&job["state"], &job["waiting_for"]), (&json!("queued"), &json!({ "reason": "paused", "until": null })));
    assert_eq!(api.get("/v1/jobs").await.ok(200)["items"][0]["waiting_for"]["reason"], "paused");
    assert_eq!(api.get("/v1/providers/geo").await.ok(200)["state"], "paused");
    api.post("/v1/providers/geo/resume", " {} ").await.ok(200);
    assert_eq!(api.get("/v1/jobs/j").await.ok(200)["waiting_for"], json!(null));
    let disabled = api.post("/v1/providers/geo/keys/b1/disable", "{}").await.ok(200);
    assert_eq!((&disabled["key"], &disabled["state"]), (&json!("b1"), &json!("disabled")));
    let shown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&key(&shown, "b1")["state"], &key(&shown, "b1")["disabled_by"]), (&json!("disabled"), &json!("local")));
    api.post("/v1/providers/geo/keys/b1/enable", "").await.ok(200);
    assert_eq!(key(&api.get("/v1/providers/geo").await.ok(200), "b1")["state"], "unknown");
    for budget in ["org-1", "a1"] {
        let resumed = api.post(&format!("/v1/providers/geo/budgets/{budget}/resume"), "").await.ok(200);
        assert_eq!((&resumed["budget"], &resumed["state"]), (&json!(budget), &json!("resumed")));
    }
    let kept = api.store.orders(Some("geo")).await.expect("read");
    assert_eq!(kept.iter().map(|order| order.version).collect::<Vec<_>>(), [1, 1, 2, 2]);
    api.stop().await;
}

#[tokio::test]
async fn orders_about_what_is_not_there_or_that_say_too_much_change_nothing() {
    let api = Api::start().await;
    let long = "x".repeat(5_000);
    for name in
        ["nobody", "%2e%2e%2e", "geo%00", "GEO", "geo%2Fkeys", "%F0%9F%92%A9", "'; DROP TABLE orders; --", &long]
    {
        let name = name.replace(' ', "%20");
        for what in ["pause", "resume", "keys/a1/disable", "budgets/a1/resume"] {
            let problem = api.post(&format!("/v1/providers/{name}/{what}"), "").await.problem(404, "not-found");
            assert!(problem["detail"].as_str().expect("a text").len() < 300, "{problem}");
        }
        api.get(&format!("/v1/providers/{name}")).await.problem(404, "not-found");
        api.post(&format!("/v1/providers/geo/keys/{name}/disable"), "").await.problem(404, "not-found");
        api.post(&format!("/v1/providers/geo/budgets/{name}/resume"), "").await.problem(404, "not-found");
    }
    api.post("/v1/providers/%ff/pause", "").await.problem(404, "not-found");
    api.post("/v1/providers/geo/keys/%ff/disable", "").await.problem(404, "not-found");
    // A key within a declared budget is no budget, a budget no key.
    api.post("/v1/providers/geo/budgets/b1/resume", "").await.problem(404, "not-found");
    api.post("/v1/providers/geo/keys/org-1/disable", "").await.problem(404, "not-found");
    for body in ["{\"until\":\"tomorrow\"}", "[]", "null", "{", "x"] {
        api.post("/v1/providers/geo/pause", body).await.problem(422, "invalid");
    }
    api.send(Method::POST, "/v1/providers/geo/pause", &[], "x=1").await.problem(415, "unsupported-media-type");
    api.post("/v1/providers/geo/pause?force=true", "").await.problem(400, "bad-parameter");
    api.get("/v1/providers?limit=5").await.problem(400, "bad-parameter");
    api.get("/v1/providers/geo/pause").await.problem(405, "method-not-allowed");
    api.delete("/v1/providers/geo").await.problem(405, "method-not-allowed");
    let body = format!("{{{}}}", " ".repeat(2 * ENVELOPE_BYTES_MAX));
    api.post("/v1/providers/geo/pause", body).await.problem(413, "too-large");
    assert!(api.store.orders(None).await.expect("read").is_empty());
    api.stop().await;
}

#[tokio::test]
async fn orders_want_their_scope_and_all_tenants() {
    let tokens = [
        token("keeper", "keeper-token-01234", &[Scope::Keys], None),
        token("mine", "tenant-token-01234", &[Scope::Admin], Some("acme")),
        token("dash", "reader-token-01234", &[Scope::Read], None),
        token("ops", "admins-token-01234", &[Scope::Admin], None),
    ];
    let mut api = Api::with(&tokens, ServeLimits::default()).await;
    let (pause, disable, resume) = ("/pause", "/keys/a1/disable", "/budgets/a1/resume");
    for (secret, allowed) in [
        ("keeper-token-01234", vec![disable, resume]),
        ("tenant-token-01234", vec![]),
        ("reader-token-01234", vec![]),
        ("admins-token-01234", vec![pause, disable, resume]),
    ] {
        api.token = Some(secret);
        for what in [pause, disable, resume] {
            let answer = api.post(&format!("/v1/providers/geo{what}"), "").await;
            match allowed.contains(&what) {
                true => drop(answer.ok(200)),
                false => drop(answer.problem(403, "forbidden")),
            }
        }
        let reads = ["reader-token-01234", "admins-token-01234"].contains(&secret);
        let expected = if reads { 200 } else { 403 };
        assert_eq!(api.get("/v1/providers").await.status, expected, "{secret}");
        assert_eq!(api.get("/v1/providers/geo").await.status, expected, "{secret}");
    }
    api.token = Some("reader-token-01234");
    let shown = api.get("/v1/providers/geo").await.ok(200);
    assert_eq!((&shown["paused_by"], &key(&shown, "a1")["disabled_by"]), (&json!("ops"), &json!("keeper")));
    api.token = None;
    api.post("/v1/providers/geo/resume", "").await.problem(401, "unauthorized");
    api.stop().await;
}

// ── jobs ────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_job_is_accepted_once_and_known_by_its_id() {
    let api = Api::start().await;
    let first = api.submit(job("order-1")).await.ok(202);
    assert_eq!(first, json!({ "id": "order-1", "state": "queued", "created": true }));
    let again = api.submit(job("order-1")).await.ok(200);
    assert_eq!(again, json!({ "id": "order-1", "state": "queued", "created": false }));
    let mut other = job("order-1");
    other["request"]["path"] = "/v1/other".into();
    let problem = api.submit(other).await.problem(409, "conflict");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("order-1")), "{problem}");
    let shown = api.get("/v1/jobs/order-1").await.ok(200);
    for (member, expected) in [
        ("id", json!("order-1")),
        ("state", json!("queued")),
        ("provider", json!("geo")),
        ("lane", json!("default")),
        ("tenant", json!(null)),
        ("metadata", json!(null)),
        ("run", json!(1)),
        ("attempts", json!([])),
        ("finished_at", json!(null)),
        ("next_attempt_at", json!(null)),
        ("waiting_for", json!(null)),
        ("error", json!(null)),
    ] {
        assert_eq!(shown[member], expected, "{member} of {shown}");
    }
    let created = shown["created_at"].as_str().expect("a time");
    assert!(created.len() == 24 && created.ends_with('Z'), "{created}");
}

#[tokio::test]
async fn an_id_is_made_where_none_is_chosen_and_a_start_time_is_waited_for() {
    let api = Api::start().await;
    let body = json!({ "provider": "geo", "request": { "path": "/" }, "not_before": "2099-01-01T00:00:00+01:00",
        "metadata": { "n": 1.50 }, "tenant": "acme" });
    let accepted = api.submit(body).await.ok(202);
    assert_eq!(accepted["state"], "waiting");
    let id = accepted["id"].as_str().expect("an id");
    let shown = api.get(&format!("/v1/jobs/{id}")).await.ok(200);
    assert_eq!(shown["waiting_for"], json!({ "reason": "not_before", "until": "2098-12-31T23:00:00.000Z" }));
    assert_eq!(shown["next_attempt_at"], "2098-12-31T23:00:00.000Z");
    assert_eq!(shown["tenant"], "acme");
    assert_eq!(shown["metadata"].to_string(), r#"{"n":1.5}"#);
}

#[tokio::test]
async fn what_is_not_a_job_is_refused_with_the_field() {
    let api = Api::start().await;
    for body in ["", "{", "nope", "[1,", "{\"provider\":\"geo\"}}"] {
        api.post("/v1/jobs", body).await.problem(400, "not-json");
    }
    api.post("/v1/jobs", vec![b'"', 0xff, b'"']).await.problem(400, "not-json");
    let deep = "[".repeat(50_000) + &"]".repeat(50_000);
    for (body, path) in [
        (json!({ "provider": "geo", "request": {} }).to_string(), "$.request"),
        (json!({ "provider": "nope", "request": { "path": "/" } }).to_string(), "$.provider"),
        (json!({ "request": { "path": "/" } }).to_string(), "$.provider"),
        (json!({ "provider": "geo", "request": { "path": "//evil" } }).to_string(), "$.request.path"),
        (json!({ "provider": "geo", "request": { "path": "/a/../b" } }).to_string(), "$.request.path"),
        (json!({ "provider": "geo", "request": { "path": "@evil" } }).to_string(), "$.request.path"),
        (
            json!({ "provider": "geo", "request": { "path": "/", "headers": { "x": "a\r\nb" } } }).to_string(),
            "$.request.headers.x",
        ),
        (
            json!({ "provider": "geo", "request": { "path": "/", "headers": { "Authorization": "x" } } }).to_string(),
            "$.request.headers.Authorization",
        ),
        (json!({ "provider": "geo", "request": { "path": "/" }, "lane": "fast" }).to_string(), "$.lane"),
        (json!({ "provider": "geo", "request": { "path": "/" }, "id": "a b" }).to_string(), "$.id"),
        (json!({ "provider": "geo", "request": { "path": "/" }, "key": "zz" }).to_string(), "$.key"),
        (format!("{{\"provider\":\"geo\",\"request\":{{\"path\":\"/\",\"body\":{deep}}}}}"), "$.request.body"),
        ("7".to_owned(), "$"),
        ("null".to_owned(), "$"),
    ] {
        let problem = api.post("/v1/jobs", body.clone()).await.problem(422, "invalid");
        assert_eq!(problem["errors"][0]["path"], path, "{body:.80}: {problem}");
        assert!(problem["errors"][0]["message"].as_str().is_some_and(|m| !m.is_empty()));
    }
    let problem =
        api.post("/v1/jobs", r#"{"provider":"geo","request":{"path":"/"},"colour":1}"#).await.problem(422, "invalid");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("colour")), "{problem}");
    assert_eq!(api.get("/v1/jobs").await.ok(200)["items"], json!([]), "nothing came in");
}

#[tokio::test]
async fn an_array_is_answered_item_by_item_in_order() {
    let api = Api::start().await;
    api.submit(job("old")).await.ok(202);
    let mut conflict = job("old");
    conflict["cost"] = 7.into();
    let large = "x".repeat(ENVELOPE_BYTES_MAX);
    let body = json!([
        job("a"), { "provider": "nope", "request": { "path": "/" } }, job("old"), 7, conflict, job("a"),
        { "provider": "geo", "request": { "path": "/", "text": large } }, { "provider": "geo", "request": { "path": "/" } }
    ]);
    let answer = api.submit(body).await.ok(202);
    let items = answer["items"].as_array().expect("items");
    assert_eq!(items.len(), 8);
    assert_eq!(items[0], json!({ "id": "a", "state": "queued", "created": true }));
    assert_eq!(items[1]["error"]["status"], 422);
    assert_eq!(items[1]["error"]["errors"][0]["path"], "$.provider");
    assert_eq!(items[2], json!({ "id": "old", "state": "queued", "created": false }));
    assert_eq!(items[3]["error"]["errors"][0]["path"], "$");
    assert_eq!(items[4]["error"]["status"], 409);
    assert_eq!(items[5], json!({ "id": "a", "state": "queued", "created": false }));
    assert_eq!(items[6]["error"]["status"], 413);
    assert_eq!(items[7]["created"], true);
    assert_eq!(api.submit(json!([])).await.ok(202), json!({ "items": [] }));
    let too_many = vec![job("x"); 1001];
    let problem = api.submit(json!(too_many)).await.problem(422, "invalid");
    assert_eq!(problem["errors"][0]["path"], "$");
    let many: Vec<Value> = (0..1000).map(|n| job(&format!("many-{n}"))).collect();
    let answer = api.submit(json!(many)).await.ok(202);
    assert!(answer["items"].as_array().is_some_and(|i| i.len() == 1000 && i.iter().all(|i| i["created"] == true)));
}

#[tokio::test]
async fn bodies_that_are_too_large_are_told_so() {
    let api = Api::start().await;
    let text =
        |bytes: usize| json!({ "provider": "geo", "request": { "path": "/", "text": "x".repeat(bytes) } }).to_string();
    api.post("/v1/jobs", text(ENVELOPE_BYTES_MAX - 200)).await.ok(202);
    for bytes in [ENVELOPE_BYTES_MAX, 10 * 1024 * 1024] {
        let problem = api.post("/v1/jobs", text(bytes)).await.problem(413, "too-large");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains("1048576")), "{problem}");
    }
    let item = text(900_000);
    let array = |items: usize| format!("[{}]", vec![item.as_str(); items].join(","));
    assert!(array(18).len() < MANY_BYTES_MAX && array(19).len() > MANY_BYTES_MAX);
    assert_eq!(api.post("/v1/jobs", array(18)).await.ok(202)["items"].as_array().map(Vec::len), Some(18));
    let problem = api.post("/v1/jobs", array(19)).await.problem(413, "too-large");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains(&MANY_BYTES_MAX.to_string())), "{problem}");
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let api = Api::start().await;
    for n in 0..5 {
        api.submit(job(&format!("geo-{n}"))).await.ok(202);
    }
    api.submit(json!({ "id": "m", "provider": "mail", "request": { "path": "/" }, "tenant": "acme" })).await.ok(202);
    api.submit(json!({ "id": "h", "provider": "geo", "lane": "high", "request": { "path": "/" } })).await.ok(202);
    let ids = |page: &Value| -> Vec<String> {
        page["items"].as_array().into_iter().flatten().filter_map(|i| i["id"].as_str().map(str::to_owned)).collect()
    };
    let all = api.get("/v1/jobs").await.ok(200);
    assert_eq!(ids(&all), ["h", "m", "geo-4", "geo-3", "geo-2", "geo-1", "geo-0"]);
    assert_eq!(all["next_cursor"], json!(null));
    assert_eq!(ids(&api.get("/v1/jobs?provider=mail").await.ok(200)), ["m"]);
    assert_eq!(ids(&api.get("/v1/jobs?tenant=acme").await.ok(200)), ["m"]);
    assert_eq!(ids(&api.get("/v1/jobs?lane=high&state=queued").await.ok(200)), ["h"]);
    assert!(ids(&api.get("/v1/jobs?state=dead").await.ok(200)).is_empty());
    let (mut seen, mut path) = (Vec::new(), "/v1/jobs?limit=3".to_owned());
    loop {
        let page = api.get(&path).await.ok(200);
        seen.extend(ids(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/jobs?limit=3&cursor={cursor}");
    }
    assert_eq!(seen, ids(&all));
    let problem = api.get("/v1/jobs?state=done&colour=red&limit=501&cursor=AAAA").await.problem(400, "bad-parameter");
    let paths: Vec<_> = problem["errors"].as_array().into_iter().flatten().map(|e| e["path"].clone()).collect();
    assert_eq!(paths, ["?colour", "?state", "?limit", "?cursor"]);
    api.get("/v1/jobs/m?x=1").await.problem(400, "bad-parameter");
    api.post("/v1/jobs?x=1", job("q").to_string()).await.problem(400, "bad-parameter");
}

#[tokio::test]
async fn ids_that_cannot_be_are_simply_not_there() {
    let api = Api::start().await;
    let long = "x".repeat(129);
    for id in ["nope", "a%20b", "%0d%0ax:%20y", "%ff", "%2e%2e%2f", long.as_str(), "a%2fb"] {
        let answer = api.get(&format!("/v1/jobs/{id}")).await;
        answer.problem(404, "not-found");
        api.get(&format!("/v1/jobs/{id}/result")).await.problem(404, "not-found");
        api.delete(&format!("/v1/jobs/{id}")).await.problem(404, "not-found");
        api.get(&format!("/v1/dead-letters/{id}")).await.problem(404, "not-found");
        api.post(&format!("/v1/dead-letters/{id}/replay"), "{}").await.problem(404, "not-found");
    }
}

#[tokio::test]
async fn a_result_is_a_file_that_no_browser_runs() {
    let api = Api::start().await;
    let claimed = api.claimed(job("r-1")).await;
    let problem = api.get("/v1/jobs/r-1/result").await.problem(404, "no-result");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("queued")), "{problem}");
    api.finish(&claimed, JobState::Succeeded).await;
    let answer = api.get("/v1/jobs/r-1/result").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(&answer.body[..], b"<script>alert(1)</script>");
    for (name, expected) in [
        ("content-type", "text/html"),
        ("content-disposition", "attachment"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "sandbox; default-src 'none'"),
        ("paceline-provider-status", "200"),
        ("paceline-truncated", "false"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), expected, "{name}");
    }
    let shown = api.get("/v1/jobs/r-1").await.ok(200);
    assert_eq!(shown["state"], "succeeded");
    let attempt = &shown["attempts"][0];
    assert_eq!((&attempt["run"], &attempt["n"], &attempt["key"]), (&json!(1), &json!(1), &json!("a1")));
    assert_eq!((&attempt["status"], &attempt["latency_ms"]), (&json!(500), &json!(12)));
    assert!(attempt["at"].is_string() && shown["finished_at"].is_string());
    api.submit(job("r-2")).await.ok(202);
    api.delete("/v1/jobs/r-2").await.ok(200);
    let problem = api.get("/v1/jobs/r-2/result").await.problem(404, "no-result");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("cancelled")), "{problem}");
}

#[tokio::test]
async fn a_job_that_waits_is_cancelled_and_one_that_ended_is_not() {
    let api = Api::start().await;
    api.submit(job("c-1")).await.ok(202);
    assert_eq!(api.delete("/v1/jobs/c-1").await.ok(200)["state"], "cancelled");
    assert_eq!(api.delete("/v1/jobs/c-1").await.ok(200)["state"], "cancelled", "asking twice is no error");
    let backing_off = api.claimed(job("c-2")).await;
    let due_ms = now() + 3_600_000;
    api.record(&backing_off, Next::Wait { due_ms, reason: WaitReason::Backoff, backoff: Duration::from_secs(1) }).await;
    assert_eq!(api.get("/v1/jobs/c-2").await.ok(200)["waiting_for"]["reason"], "backoff");
    assert_eq!(api.delete("/v1/jobs/c-2").await.ok(200)["state"], "cancelled");
    let running = api.claimed(job("c-3")).await;
    api.record(&running, Next::Running).await;
    let problem = api.delete("/v1/jobs/c-3").await.problem(409, "too-late");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("running")), "{problem}");
    api.finish(&running, JobState::Succeeded).await;
    api.delete("/v1/jobs/c-3").await.problem(409, "too-late");
}

#[tokio::test]
async fn a_claimed_job_is_cancelled_when_its_owner_lets_go() {
    let api = Api::start().await;
    let mut wakes = api.store.wakes();
    let claimed = api.claimed(job("o-1")).await;
    let owner = async {
        loop {
            if wakes.recv().await.expect("a wake") == Wake::Cancel(claimed.pk) {
                break;
            }
        }
        let next = Next::Finish { state: JobState::Cancelled, reason: None, error: None, response: None };
        api.record(&claimed, next).await;
    };
    let (answer, ()) = soon(async { tokio::join!(api.delete("/v1/jobs/o-1"), owner) }).await;
    assert_eq!(answer.ok(200)["state"], "cancelled");
    api.claimed(job("o-2")).await;
    let problem = soon(api.delete("/v1/jobs/o-2")).await.problem(409, "cancel-pending");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("look again")), "{problem}");
}

// ── dead letters ────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_dead_letter_tells_everything_and_is_run_again() {
    let api = Api::start().await;
    let id = api.dead(job("d-1")).await;
    let page = api.get("/v1/dead-letters?reason=attempts_exhausted&provider=geo&replayed=false").await.ok(200);
    assert_eq!(page["items"][0]["id"], "d-1");
    assert_eq!(page["next_cursor"], json!(null));
    let dead = api.get("/v1/dead-letters/d-1").await.ok(200);
    assert_eq!(dead["reason"], "attempts_exhausted");
    assert_eq!(dead["error"], "the provider said 500");
    assert_eq!(dead["envelope"]["request"]["query"]["q"], "Berlin");
    assert_eq!(dead["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!((&dead["raw"], &dead["replayed_at"]), (&json!(null), &json!(null)));
    assert!(dead["dead_at"].is_string());
    let replayed = api.post(&format!("/v1/dead-letters/{id}/replay"), "").await.ok(202);
    assert_eq!(replayed, json!({ "id": "d-1", "run": 2, "state": "queued" }));
    let shown = api.get("/v1/jobs/d-1").await.ok(200);
    assert_eq!((&shown["state"], &shown["lane"], &shown["run"]), (&json!("queued"), &json!("replay"), &json!(2)));
    let problem = api.post("/v1/dead-letters/d-1/replay", "{}").await.problem(409, "not-replayable");
    assert!(problem["detail"].as_str().is_some_and(|d| d.contains("queued")), "{problem}");
    assert!(api.get("/v1/dead-letters/d-1").await.ok(200)["replayed_at"].is_string());
    assert_eq!(api.get("/v1/dead-letters?replayed=false").await.ok(200)["items"], json!([]));
}

#[tokio::test]
async fn a_replay_is_edited_and_checked_like_a_new_job() {
    let api = Api::start().await;
    api.dead(job("e-1")).await;
    let replay = async |body: Value| api.post("/v1/dead-letters/e-1/replay", body.to_string()).await;
    for (body, path) in [
        (json!({ "request": { "path": "//evil" } }), "$.request.path"),
        (json!({ "request": { "path": "/", "headers": { "cookie": "x" } } }), "$.request.headers.cookie"),
        (json!({ "request": { "method": "GET" } }), "$.request"),
        (json!({ "lane": "fast" }), "$.lane"),
        (json!({ "not_before": "tomorrow" }), "$.not_before"),
        (json!({ "idempotency_key": "maybe" }), "$.idempotency_key"),
        (json!([]), "$"),
    ] {
        let problem = replay(body.clone()).await.problem(422, "invalid");
        assert_eq!(problem["errors"][0]["path"], path, "{body}: {problem}");
    }
    api.post("/v1/dead-letters/e-1/replay", "{").await.problem(400, "not-json");
    let large = json!({ "request": { "path": "/", "text": "x".repeat(ENVELOPE_BYTES_MAX) } });
    replay(large).await.problem(413, "too-large");
    let body = json!({ "request": { "method": "POST", "path": "/v2", "body": { "a": 1 } }, "lane": "high",
        "not_before": "2099-01-01T00:00:00Z", "idempotency_key": "new" });
    assert_eq!(replay(body).await.ok(202)["state"], "waiting");
    let shown = api.get("/v1/jobs/e-1").await.ok(200);
    assert_eq!((&shown["state"], &shown["lane"]), (&json!("waiting"), &json!("high")));
    assert_eq!(api.get("/v1/dead-letters/e-1").await.ok(200)["envelope"]["request"]["path"], "/v2");
}

#[tokio::test]
async fn a_replay_after_the_deadline_goes_without_it() {
    let api = Api::start().await;
    let mut with_deadline = job("l-1");
    with_deadline["deadline"] = "2098-01-01T00:00:00Z".into();
    api.dead(with_deadline).await;
    let body = json!({ "not_before": "2099-01-01T00:00:00Z" }).to_string();
    assert_eq!(api.post("/v1/dead-letters/l-1/replay", body).await.ok(202)["state"], "waiting");
}

#[tokio::test]
async fn a_message_that_never_was_a_job_is_kept_whole_and_not_run() {
    let api = Api::start().await;
    let buried = Buried {
        reason: DeadReason::Malformed,
        error: "expected JSON".to_owned(),
        tenant: String::new(),
        provider: None,
        lane: None,
        raw: Bytes::from_static(b"\x00\xff not json"),
        headers: json!({ "x": "y" }).to_string(),
        identity: None,
    };
    let id = api.store.bury(buried, now()).await.expect("buried");
    let dead = api.get(&format!("/v1/dead-letters/{id}")).await.ok(200);
    assert_eq!((&dead["raw"], &dead["headers"]["x"]), (&json!("AP8gbm90IGpzb24="), &json!("y")));
    assert_eq!((&dead["envelope"], &dead["attempts"]), (&json!(null), &json!([])));
    api.post(&format!("/v1/dead-letters/{id}/replay"), "{}").await.problem(409, "not-replayable");
    api.get(&format!("/v1/jobs/{id}")).await.problem(404, "not-found");
}

#[tokio::test]
async fn dead_letters_are_purged_by_filter_and_never_by_accident() {
    let api = Api::start().await;
    for n in 0..3 {
        api.dead(job(&format!("p-{n}"))).await;
    }
    api.dead(json!({ "id": "p-mail", "provider": "mail", "request": { "path": "/" } })).await;
    let problem = api.delete("/v1/dead-letters").await.problem(400, "bad-parameter");
    assert_eq!(problem["errors"][0]["path"], "?all");
    api.delete("/v1/dead-letters?all=true&provider=geo").await.problem(400, "bad-parameter");
    api.delete("/v1/dead-letters?provder=geo").await.problem(400, "bad-parameter");
    assert_eq!(api.delete("/v1/dead-letters?provider=mail").await.ok(200), json!({ "purged": 1, "more": false }));
    assert_eq!(api.get("/v1/dead-letters?limit=2").await.ok(200)["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(api.delete("/v1/dead-letters?all=true").await.ok(200), json!({ "purged": 3, "more": false }));
    assert_eq!(api.get("/v1/dead-letters").await.ok(200)["items"], json!([]));
}

#[tokio::test]
async fn a_page_of_large_dead_letters_stays_bounded() {
    let api = Api::start().await;
    for n in 0..6 {
        let id = format!("big-{n}");
        api.dead(json!({ "id": id, "provider": "geo", "request": { "path": "/", "text": "x".repeat(900_000) } })).await;
    }
    let page = api.get("/v1/dead-letters").await;
    assert!(page.body.len() < 5 * 1024 * 1024, "{}", page.body.len());
    let items = page.ok(200)["items"].as_array().cloned().expect("items");
    assert_eq!(items.len(), 6);
    assert_eq!(items.iter().filter(|item| item["omitted"] == true && item["envelope"].is_null()).count(), 2);
    assert!(api.get("/v1/dead-letters/big-0").await.ok(200)["envelope"].is_object());
}

// ── who may ask ─────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn without_tokens_only_this_machine_is_served_and_no_foreign_page() {
    let api = Api::start().await;
    let own = format!("http://{}", api.address);
    for host in ["localhost", "localhost:1234", "127.0.0.1", "127.1.2.3:80", "[::1]:8080"] {
        assert_eq!(api.send(Method::GET, "/v1/jobs", &[("host", host)], "").await.status, 200, "{host}");
    }
    for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io"] {
        // The page itself is for everybody: what it asks for is refused here.
        for path in ["/v1/jobs", "/v1/providers", "/metrics", "/nowhere"] {
            api.send(Method::GET, path, &[("host", host)], "").await.problem(403, "forbidden");
        }
    }
    let json = ("content-type", "application/json");
    assert_eq!(api.send(Method::POST, "/v1/jobs", &[json, ("origin", &own)], job("x").to_string()).await.status, 202);
    for origin in ["http://evil.example", "null", "http://localhost:3000", "https://127.0.0.1"] {
        let answer = api.send(Method::POST, "/v1/jobs", &[json, ("origin", origin)], job("y").to_string()).await;
        answer.problem(403, "forbidden");
        api.send(Method::DELETE, "/v1/jobs/x", &[("origin", origin)], "").await.problem(403, "forbidden");
    }
    assert_eq!(api.get("/v1/jobs/x").await.ok(200)["state"], "queued");
}

#[tokio::test]
async fn bodies_are_json_and_nothing_else() {
    let api = Api::start().await;
    let body = || job("ct").to_string();
    for kind in
        ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"]
    {
        api.send(Method::POST, "/v1/jobs", &[("content-type", kind)], body())
            .await
            .problem(415, "unsupported-media-type");
        let path = "/v1/dead-letters/x/replay";
        api.send(Method::POST, path, &[("content-type", kind)], "").await.problem(415, "unsupported-media-type");
    }
    api.send(Method::POST, "/v1/jobs", &[], body()).await.problem(415, "unsupported-media-type");
    let packed = [("content-type", "application/json"), ("content-encoding", "br")];
    api.send(Method::POST, "/v1/jobs", &packed, body()).await.problem(415, "unsupported-media-type");
    let utf8 = [("content-type", "application/json; charset=utf-8")];
    api.send(Method::POST, "/v1/jobs", &utf8, body()).await.ok(202);
}

const ENQUEUER: &str = "enqueue-secret-0123456789";
const READER: &str = "read-secret-0123456789";
const OTHER: &str = "other-secret-0123456789";
const REPLAYER: &str = "replay-secret-0123456789";
const ADMIN: &str = "admin-secret-0123456789";

async fn guarded() -> Api {
    let tokens = [
        token("orders", ENQUEUER, &[Scope::Enqueue], Some("acme")),
        token("dash", READER, &[Scope::Read], Some("acme")),
        token("other", OTHER, &[Scope::Enqueue, Scope::Read, Scope::Replay], Some("other")),
        token("fixer", REPLAYER, &[Scope::Replay], None),
        token("ops", ADMIN, &[Scope::Admin], None),
    ];
    Api::with(&tokens, ServeLimits::default()).await
}

#[tokio::test]
async fn with_tokens_everything_but_health_wants_one() {
    let api = guarded().await;
    for (method, path) in [
        (Method::GET, "/v1/jobs"),
        (Method::GET, "/v1/jobs/x"),
        (Method::POST, "/v1/jobs"),
        (Method::DELETE, "/v1/jobs/x"),
        (Method::GET, "/v1/dead-letters"),
        (Method::DELETE, "/v1/dead-letters?all=true"),
        (Method::GET, "/metrics"),
        (Method::GET, "/nowhere"),
    ] {
        let answer = api.send(method, path, &[], "").await;
        answer.problem(401, "unauthorized");
        assert_eq!(answer.header("www-authenticate"), "Bearer realm=\"paceline\"");
    }
    for value in ["Bearer nope", "Bearer ", "bearer", "Basic YTpi", "read-secret-0123456789"] {
        let answer = api.send(Method::GET, "/v1/jobs", &[("authorization", value)], "").await;
        answer.problem(401, "unauthorized");
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{value}");
    }
    let foreign = [("authorization", "Bearer admin-secret-0123456789"), ("host", "paceline.example")];
    assert_eq!(api.send(Method::GET, "/v1/jobs", &foreign, "").await.status, 200, "a token is enough from anywhere");
    assert_eq!(api.get("/healthz").await.status, 200);
    assert_eq!(api.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_missing_scope_is_named() {
    let mut api = guarded().await;
    for (token, method, path, scope) in [
        (READER, Method::POST, "/v1/jobs", "enqueue"),
        (READER, Method::DELETE, "/v1/jobs/x", "enqueue"),
        (ENQUEUER, Method::GET, "/v1/jobs", "read"),
        (ENQUEUER, Method::GET, "/v1/jobs/x/result", "read"),
        (ENQUEUER, Method::GET, "/v1/dead-letters/x", "read"),
        (READER, Method::POST, "/v1/dead-letters/x/replay", "replay"),
        (READER, Method::DELETE, "/v1/dead-letters?all=true", "replay"),
        (ENQUEUER, Method::GET, "/metrics", "read"),
    ] {
        api.token = Some(token);
        let answer = api.send(method, path, &[], "").await;
        let problem = answer.problem(403, "forbidden");
        assert!(problem["detail"].as_str().is_some_and(|d| d.contains(scope)), "{problem}");
        assert!(answer.header("www-authenticate").contains(&format!("scope=\"{scope}\"")), "{path}");
    }
    api.token = Some(READER);
    api.get("/metrics").await.problem(403, "forbidden");
    api.token = Some(ADMIN);
    assert_eq!(api.get("/metrics").await.status, 200);
    assert_eq!(api.submit(job("by-admin")).await.status, 202);
}

#[tokio::test]
async fn a_bound_token_sees_and_makes_only_its_tenant_s() {
    let mut api = guarded().await;
    api.token = Some(ENQUEUER);
    api.submit(job("t-1")).await.ok(202);
    let mut foreign = job("t-2");
    foreign["tenant"] = "other".into();
    let problem = api.submit(foreign.clone()).await.problem(422, "invalid");
    assert_eq!(problem["errors"][0]["path"], "$.tenant");
    api.token = Some(OTHER);
    api.submit(foreign).await.ok(202);
    api.submit(job("t-1")).await.ok(202);
    api.token = Some(ADMIN);
    let dead =
        api.dead(json!({ "id": "t-dead", "provider": "mail", "tenant": "acme", "request": { "path": "/" } })).await;
    assert_eq!(api.get("/v1/jobs?tenant=acme").await.ok(200)["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(api.get("/v1/jobs/t-1?tenant=other").await.ok(200)["tenant"], "other");
    api.token = Some(OTHER);
    let page = api.get("/v1/jobs").await.ok(200);
    assert!(
        page["items"].as_array().is_some_and(|i| i.len() == 2 && i.iter().all(|i| i["tenant"] == "other")),
        "{page}"
    );
    api.get("/v1/jobs?tenant=acme").await.problem(403, "forbidden");
    let unknown = api.get(&format!("/v1/jobs/{dead}")).await.problem(404, "not-found")["detail"].clone();
    assert_eq!(api.get("/v1/jobs/nothing").await.problem(404, "not-found")["detail"], unknown);
    api.get(&format!("/v1/dead-letters/{dead}")).await.problem(404, "not-found");
    api.post(&format!("/v1/dead-letters/{dead}/replay"), "{}").await.problem(404, "not-found");
    assert_eq!(api.get("/v1/dead-letters").await.ok(200)["items"], json!([]));
    assert_eq!(api.delete("/v1/dead-letters?all=true").await.ok(200)["purged"], 0, "all is all of its own");
    assert_eq!(api.delete("/v1/jobs/t-1").await.ok(200)["tenant"], "other");
    api.token = Some(READER);
    assert_eq!(api.get("/v1/jobs/t-1").await.ok(200)["state"], "queued", "acme's job of that id is another");
    assert_eq!(api.get(&format!("/v1/dead-letters/{dead}")).await.ok(200)["tenant"], "acme");
    api.token = Some(REPLAYER);
    assert_eq!(api.post(&format!("/v1/dead-letters/{dead}/replay"), "{}").await.ok(202)["run"], 2);
}

// ── the rest of the surface ─────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn unknown_routes_and_methods_are_problems_too() {
    let api = Api::start().await;
    for path in ["/index", "/v1", "/v2/jobs", "/v1/jobs/a/b/c", "/v1/jobs/", "/%ff"] {
        api.get(path).await.problem(404, "not-found");
    }
    for (method, path, allow) in [
        (Method::PUT, "/v1/jobs", "POST"),
        (Method::POST, "/v1/jobs/x", "DELETE"),
        (Method::PATCH, "/v1/dead-letters/x", "GET"),
        (Method::GET, "/v1/dead-letters/x/replay", "POST"),
        (Method::POST, "/healthz", "GET"),
    ] {
        let answer = api.send(method, path, &[("content-type", "application/json")], "{}").await;
        answer.problem(405, "method-not-allowed");
        assert!(answer.header("allow").contains(allow), "{path}: {}", answer.header("allow"));
    }
}

#[tokio::test]
async fn health_is_about_the_process_and_readiness_about_its_parts() {
    let api = Api::start().await;
    assert_eq!(api.get("/healthz").await.ok(200), json!({ "status": "ok", "service": "paceline" }));
    api.readiness.declare("queue");
    let starting = api.get("/readyz").await.ok(503);
    assert_eq!(
        starting,
        json!({ "ready": false, "parts": { "queue": { "state": "starting" }, "store": { "state": "ok" } } })
    );
    api.readiness.set("queue", Err("connection refused".to_owned()));
    let failed = api.get("/readyz").await.ok(503);
    assert_eq!(failed["parts"]["queue"], json!({ "state": "failed", "error": "connection refused" }));
    let stranger = api.send(Method::GET, "/readyz", &[("host", "evil.example")], "").await.ok(503);
    assert_eq!(stranger["parts"]["queue"], json!({ "state": "failed" }), "not told why");
    api.readiness.set("queue", Ok(()));
    assert_eq!(api.get("/readyz").await.ok(200)["ready"], true);
}

/// The store is opened first: who publishes then would find no queue yet.
#[tokio::test]
async fn a_process_that_starts_is_not_ready_whatever_of_it_works_already() {
    let readiness = Readiness::default();
    readiness.set("store", Ok(()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/readyz", listener.local_addr().expect("an address"));
    let (_running, stopped) = oneshot::channel::<()>();
    let router = starting_router(readiness, Tokens::new(&[]));
    tokio::spawn(serve(listener, router, ServeLimits::default(), async move { stopped.await.unwrap_or_default() }));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let answer = client.get(url).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let told: Value = serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("JSON");
    assert_eq!(told, json!({ "ready": false, "parts": { "store": { "state": "ok" } } }));
}

#[tokio::test]
async fn a_store_that_is_gone_is_a_503_that_says_so() {
    let api = Api::start().await;
    api.submit(job("s-1")).await.ok(202);
    api.store.close().await;
    let ready = api.get("/readyz").await.ok(503);
    assert_eq!(ready["parts"]["store"]["state"], "failed");
    let answer = api.submit(job("s-2")).await;
    answer.problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "1");
    api.get("/v1/jobs/s-1").await.problem(503, "unavailable");
    assert_eq!(api.get("/healthz").await.status, 200);
    let metrics = api.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.body).contains("paceline_store_counted 0"));
}

#[tokio::test]
async fn metrics_count_requests_and_jobs() {
    let api = Api::start().await;
    api.submit(job("m-1")).await.ok(202);
    api.get("/v1/jobs/unknown").await.problem(404, "not-found");
    api.dead(json!({ "id": "m-dead", "provider": "mail", "request": { "path": "/" } })).await;
    let answer = api.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body.to_vec()).expect("text");
    for line in [
        "paceline_http_requests_total{route=\"/v1/jobs\",method=\"POST\",status=\"202\"} 2",
        "paceline_http_requests_total{route=\"/v1/jobs/{id}\",method=\"GET\",status=\"404\"} 1",
        "paceline_jobs{provider=\"geo\",lane=\"default\",state=\"queued\"} 1",
        "paceline_dead_letters 1",
        "paceline_store_counted 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

// ── the server ──────────────────────────────────────────────────────────────────────────────────

async fn connect(api: &Api) -> TcpStream {
    TcpStream::connect(api.address).await.expect("a connection")
}

/// What comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    match soon(stream.read_to_end(&mut read)).await {
        Ok(_) => {}
        // Closed while something of ours was still on its way.
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut_off() {
    let limits = ServeLimits { idle: Duration::from_millis(300), ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    let stream = connect(&api).await;
    let (mut reading, mut writing) = stream.into_split();
    // A byte every so often, for as long as the server takes them.
    let trickle = async {
        if writing.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ").await.is_ok() {
            while writing.write_all(b"y").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let closed = async {
        let mut read = Vec::new();
        reading.read_to_end(&mut read).await.map(|_| read)
    };
    soon(async {
        tokio::select! {
            () = trickle => {}
            result = closed => if let Ok(read) = result { assert!(read.is_empty() || read.starts_with(b"HTTP/1.1 4"), "{read:?}") },
        }
    })
    .await;
    // A silent connection, and one that has had its answer.
    let mut silent = connect(&api).await;
    assert_eq!(rest(&mut silent).await, "");
    let mut used = connect(&api).await;
    used.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    assert!(rest(&mut used).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_request_that_takes_longer_than_idle_is_not_cut_off() {
    let limits = ServeLimits { idle: Duration::from_millis(300), ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    api.claimed(job("slow")).await;
    // A cancellation that nobody settles is answered after two seconds.
    api.delete("/v1/jobs/slow").await.problem(409, "cancel-pending");
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_gets_its_turn() {
    let limits = ServeLimits { connections_max: 1, ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut first = connect(&api).await;
    first.write_all(request).await.expect("sent");
    let mut byte = [0];
    soon(first.read_exact(&mut byte)).await.expect("the first is served");
    let mut second = connect(&api).await;
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.expect("sent");
    let early = tokio::time::timeout(Duration::from_millis(300), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "the second waits");
    drop(first);
    assert!(rest(&mut second).await.contains(" 200 "), "and is served then");
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_being_served() {
    let mut api = Api::start().await;
    let body = job("late").to_string();
    let mut stream = connect(&api).await;
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The interim answer shows that the handler is reading.
    let mut interim = [0; 25];
    soon(stream.read_exact(&mut interim)).await.expect("100 Continue");
    assert!(interim.starts_with(b"HTTP/1.1 100"));
    drop(api.stop.take());
    stream.write_all(body.as_bytes()).await.expect("sent");
    let answer = rest(&mut stream).await;
    assert!(answer.contains("HTTP/1.1 202"), "{answer}");
    soon(api.stop()).await;
}

#[tokio::test]
async fn nonsense_on_the_wire_is_answered_or_cut_and_harms_nobody() {
    let api = Api::start().await;
    let long = format!("GET /v1/jobs?x={} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(1_000_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(5_000));
    for bytes in ["\r\n\r\nnope\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /v1/jobs HTTP/1.1\r\n\r\n", &long, &many] {
        let mut stream = connect(&api).await;
        if stream.write_all(bytes.as_bytes()).await.is_ok() {
            stream.shutdown().await.unwrap_or_default();
            let answer = rest(&mut stream).await;
            assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"), "{answer}");
        }
    }
    assert_eq!(api.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_traceparent_goes_along_with_the_job() {
    let api = Api::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("content-type", "application/json"), ("traceparent", trace)];
    api.send(Method::POST, "/v1/jobs", &headers, job("traced").to_string()).await.ok(202);
    let headers = [("content-type", "application/json"), ("traceparent", "00-nonsense")];
    api.send(Method::POST, "/v1/jobs", &headers, job("untraced").to_string()).await.ok(202);
}
