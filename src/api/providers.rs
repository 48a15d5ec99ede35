//! `/v1/providers`: live state, and the ways out of every state that an operator may need.
//!
//! What is shown and ordered concerns all tenants: a token that is bound to one may do neither.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};

use super::auth::Caller;
use super::body::BodyReader;
use super::control::Control;
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::path::{Id, Names};
use super::provider_view::{OrderJson, ProviderJson};
use super::routes::Routes;
use super::view::PageJson;
use super::{Parts, params};
use crate::config::Scope;

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let listing = Operation::for_all("listProviders", "Look at every provider", Scope::Read)
        .answer::<PageJson<ProviderJson>>(200, "All of them, in one page");
    let showing = Operation::for_all("getProvider", "Look at a provider, its budgets and keys", Scope::Read)
        .about("Live state as the dispatchers tell it. Secrets are never shown.")
        .answer::<ProviderJson>(200, "The provider")
        .problems(&[ProblemKind::NotFound]);
    let order = |id, summary, scope, about| {
        Operation::for_all(id, summary, scope)
            .about(about)
            .optional_body::<Nothing>()
            .sends("nothing", "{}")
            .answer::<OrderJson>(200, "The order, which is kept and obeyed by every dispatcher")
            .problems(&[ProblemKind::NotFound])
    };
    let pausing = order("pauseProvider", "Send nothing to a provider", Scope::Admin, "Its jobs wait.")
        .example(r#"{"provider": "geocoder", "state": "paused", "by": "ops", "at": "2026-11-20T10:00:00.000Z"}"#);
    let resuming = order("resumeProvider", "Send to a provider again", Scope::Admin, "");
    let disabling = order(
        "disableKey",
        "Use a key no more",
        Scope::Keys,
        "Jobs that are pinned to it wait, with the reason `no_key`.",
    );
    let enabling = order(
        "enableKey",
        "Use a key again",
        Scope::Keys,
        "Also one that the provider refused, whatever was learnt of it.",
    );
    let freeing = order(
        "resumeBudget",
        "Use a budget again",
        Scope::Keys,
        "One that was paused or parked by what the provider said.",
    );
    Routes::new()
        .get("/v1/providers", list, listing)
        .get("/v1/providers/{name}", show, showing)
        .post("/v1/providers/{name}/pause", pause, pausing)
        .post("/v1/providers/{name}/resume", resume, resuming)
        .post("/v1/providers/{name}/keys/{label}/disable", disable_key, disabling)
        .post("/v1/providers/{name}/keys/{label}/enable", enable_key, enabling)
        .post("/v1/providers/{name}/budgets/{budget}/resume", resume_budget, freeing)
}

/// An empty object: the route says it all.
#[derive(schemars::JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct Nothing {}

/// `GET /v1/providers`
pub(super) async fn list(
    caller: Caller,
    State(control): State<Control>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<ProviderJson>>, Problem> {
    caller.may_for_all(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    control.providers().await.map(Json)
}

/// `GET /v1/providers/{name}`
pub(super) async fn show(
    caller: Caller,
    State(control): State<Control>,
    Id(name): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<ProviderJson>, Problem> {
    caller.may_for_all(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    control.provider(&name).await.map(Json)
}

/// Lets a caller with that scope through, whose request says nothing but what its route says.
pub(super) async fn check(
    caller: &Caller,
    scope: Scope,
    query: Option<String>,
    reader: &BodyReader,
    body: Body,
) -> Result<(), Problem> {
    caller.may_for_all(scope)?;
    params::none(query.as_deref().unwrap_or_default())?;
    reader.nothing(body).await
}

/// `POST /v1/providers/{name}/pause`
pub(super) async fn pause(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Id(name): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<OrderJson>, Problem> {
    check(&caller, Scope::Admin, query, &reader, body).await?;
    control.pause(&name, true, caller.name()).await.map(Json)
}

/// `POST /v1/providers/{name}/resume`
pub(super) async fn resume(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Id(name): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<OrderJson>, Problem> {
    check(&caller, Scope::Admin, query, &reader, body).await?;
    control.pause(&name, false, caller.name()).await.map(Json)
}

/// `POST /v1/providers/{name}/keys/{label}/disable`
pub(super) async fn disable_key(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Names(name, label): Names,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<OrderJson>, Problem> {
    check(&caller, Scope::Keys, query, &reader, body).await?;
    control.disable_key(&name, &label, true, caller.name()).await.map(Json)
}

/// `POST /v1/providers/{name}/keys/{label}/enable`
pub(super) async fn enable_key(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Names(name, label): Names,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<OrderJson>, Problem> {
    check(&caller, Scope::Keys, query, &reader, body).await?;
    control.disable_key(&name, &label, false, caller.name()).await.map(Json)
}

/// `POST /v1/providers/{name}/budgets/{budget}/resume`
pub(super) async fn resume_budget(
    caller: Caller,
    State(control): State<Control>,
    State(reader): State<BodyReader>,
    Names(name, budget): Names,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<OrderJson>, Problem> {
    check(&caller, Scope::Keys, query, &reader, body).await?;
    control.resume_budget(&name, &budget, caller.name()).await.map(Json)
}
