//! `/v1/providers`: live state, and the ways out of every state that an operator may need.
//!
//! What is shown and ordered concerns all tenants: a token that is bound to one may do neither.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};

use super::auth::Caller;
use super::body::{BodyReader, Takes};
use super::control::Control;
use super::error::Problem;
use super::params;
use super::path::{Id, Names};
use super::provider_view::{OrderJson, ProviderJson};
use super::view::PageJson;
use crate::config::Scope;
use crate::job::Invalid;

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
    let body = reader.read(body, Takes::One).await?;
    let text = body.bytes.trim_ascii();
    let is_empty_object = text.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii() == b"}");
    if text.is_empty() || is_empty_object {
        return Ok(());
    }
    Err(Problem::invalid(Invalid::at("", "expected no body, or {}: the route says it all")))
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
