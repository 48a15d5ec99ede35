//! `/healthz` and `/readyz`.
//!
//! Both are open, so that load balancers and orchestrators need no token. Errors of parts may name
//! hosts: with tokens configured, `/readyz` tells them only to a token with the scope `read` that
//! is not bound to a tenant; without tokens, only to this machine. Everybody else reads which part
//! is red, not why.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use http::{HeaderMap, StatusCode, Uri};
use schemars::JsonSchema;
use serde::Serialize;

use super::Parts;
use super::auth::Tokens;
use super::openapi::Operation;
use super::routes::Routes;
use super::serve::Peer;
use crate::config::Scope;
use crate::readiness::{PartState, Readiness};
use crate::store::Store;

/// A store that does not answer within that time is not ready.
const PING_WITHIN: Duration = Duration::from_secs(2);

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let living = Operation::open("getHealth", "Whether the process answers")
        .about("It looks at nothing else, so that a database that is away gets nobody restarted.")
        .answer::<Alive>(200, "It does")
        .example(r#"{"status": "ok", "service": "paceline"}"#);
    let ready = Operation::open("getReadiness", "Whether every part works")
        .about("Why a part failed is told to callers with the scope `read` for all tenants only.")
        .answer::<Ready>(200, "The process has started, and every part works")
        .example(r#"{"ready": true, "parts": {"store": {"state": "ok"}}}"#)
        .answer::<Ready>(503, "Some part does not")
        .example(r#"{"ready": false, "parts": {"store": {"state": "failed"}}}"#);
    Routes::new().get("/healthz", alive, living).get("/readyz", self::ready, ready)
}

/// `{"status":"ok","service":"paceline"}`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    #[schemars(extend("const" = "ok"))]
    status: &'static str,
    /// Tells a client that it is no other server which happens to listen here.
    #[schemars(extend("const" = "paceline"))]
    service: &'static str,
}

/// `GET /healthz`: the process answers. It looks at nothing else, so that a database that is away
/// gets nobody restarted.
pub(super) async fn alive() -> Json<Alive> {
    Json(Alive { status: "ok", service: "paceline" })
}

/// `{"ready":true,"parts":{"store":{"state":"ok"}}}`
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Ready {
    /// The process has started, and every part works.
    ready: bool,
    /// By name.
    parts: BTreeMap<&'static str, Part>,
}

/// A part of the process.
#[derive(Debug, Serialize, JsonSchema)]
struct Part {
    /// `starting`, `ok` or `failed`.
    #[schemars(extend("enum" = ["starting", "ok", "failed"]))]
    state: &'static str,
    /// Why it failed, for callers who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `GET /readyz`: 200 where every part works, else 503.
pub(super) async fn ready(
    State(store): State<Store>,
    State(readiness): State<Readiness>,
    State(tokens): State<Tokens>,
    peer: Peer,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, Json<Ready>) {
    let pinged = match tokio::time::timeout(PING_WITHIN, store.ping()).await {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the store did not answer within 2 s".to_owned()),
    };
    readiness.set("store", pinged);
    report(&readiness, true, &tokens, peer, (&uri, &headers))
}

/// `GET /readyz` while the process starts. Not ready, whatever has begun: a part that has not may not even be declared, and
/// who publishes on this word would find no queue.
pub(super) async fn not_ready(
    State((readiness, tokens)): State<(Readiness, Tokens)>,
    peer: Peer,
    uri: Uri,
    headers: HeaderMap,
) -> (StatusCode, Json<Ready>) {
    report(&readiness, false, &tokens, peer, (&uri, &headers))
}

fn report(
    readiness: &Readiness,
    has_started: bool,
    tokens: &Tokens,
    peer: Peer,
    (uri, headers): (&Uri, &HeaderMap),
) -> (StatusCode, Json<Ready>) {
    let told_why = tokens.identify(peer, uri, headers).and_then(|caller| caller.may_for_all(Scope::Read)).is_ok();
    let part = |(name, state): (&'static str, PartState)| {
        let error = state.error().filter(|_| told_why).map(str::to_owned);
        (name, Part { state: state.as_str(), error })
    };
    let shown = readiness.snapshot();
    let ready = has_started && shown.iter().all(|(_, state)| *state == PartState::Ok);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, parts: shown.into_iter().map(part).collect() }))
}
