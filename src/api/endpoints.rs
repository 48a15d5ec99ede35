//! `/v1/endpoints`: where completions go. A token that is bound to a tenant sees and changes only that tenant's.
//!
//! Changing one takes `admin`: it decides where data is sent. Sending again what was missed takes `replay`.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::auth::{Caller, Tenancy};
use super::body::{BodyReader, Takes};
use super::error::Problem;
use super::hook_view::{DeletedJson, DeliveryJson, EndpointJson};
use super::hooks::Hooks;
use super::params;
use super::path::Id;
use super::view::PageJson;
use crate::config::Scope;

/// `POST /v1/endpoints`
pub(super) async fn register(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<EndpointJson>), Problem> {
    let who = caller.may(Scope::Admin)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    Ok((StatusCode::CREATED, Json(hooks.register(who, &body.bytes).await?)))
}

/// `GET /v1/endpoints`
pub(super) async fn list(
    caller: Caller,
    State(hooks): State<Hooks>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<EndpointJson>>, Problem> {
    let who = caller.may(Scope::Read)?;
    hooks.endpoints(who, query.as_deref().unwrap_or_default()).await.map(Json)
}

/// `GET /v1/endpoints/{id}`
pub(super) async fn show(
    caller: Caller,
    State(hooks): State<Hooks>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<EndpointJson>, Problem> {
    let who = caller.may(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    hooks.endpoint(&who, &id).await.map(Json)
}

/// `DELETE /v1/endpoints/{id}`
pub(super) async fn delete(
    caller: Caller,
    State(hooks): State<Hooks>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<DeletedJson>, Problem> {
    let who = caller.may(Scope::Admin)?;
    params::none(query.as_deref().unwrap_or_default())?;
    hooks.delete(&who, &id).await.map(Json)
}

/// Lets a caller with that scope through, whose request says nothing but what its route says.
async fn check(
    caller: &Caller,
    scope: Scope,
    query: Option<String>,
    reader: &BodyReader,
    body: Body,
) -> Result<Tenancy, Problem> {
    let who = caller.may(scope)?;
    params::none(query.as_deref().unwrap_or_default())?;
    reader.nothing(body).await?;
    Ok(who)
}

/// `POST /v1/endpoints/{id}/disable`
pub(super) async fn disable(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<EndpointJson>, Problem> {
    let who = check(&caller, Scope::Admin, query, &reader, body).await?;
    hooks.enable(&who, &id, false).await.map(Json)
}

/// `POST /v1/endpoints/{id}/enable`
pub(super) async fn enable(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<EndpointJson>, Problem> {
    let who = check(&caller, Scope::Admin, query, &reader, body).await?;
    hooks.enable(&who, &id, true).await.map(Json)
}

/// `POST /v1/endpoints/{id}/rotate`
pub(super) async fn rotate(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Json<EndpointJson>, Problem> {
    let who = caller.may(Scope::Admin)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    hooks.rotate(&who, &id, &body.bytes).await.map(Json)
}

/// `POST /v1/endpoints/{id}/test`
pub(super) async fn test(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<DeliveryJson>), Problem> {
    let who = check(&caller, Scope::Admin, query, &reader, body).await?;
    Ok((StatusCode::ACCEPTED, Json(hooks.test(&who, &id).await?)))
}

/// `POST /v1/endpoints/{id}/resend`
pub(super) async fn resend(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<EndpointJson>), Problem> {
    let who = caller.may(Scope::Replay)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    Ok((StatusCode::ACCEPTED, Json(hooks.resend_since(&who, &id, &body.bytes).await?)))
}
