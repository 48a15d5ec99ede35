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

mod access;
mod dead_letters;
mod jobs;
mod providers;
mod server;
mod surface;

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
