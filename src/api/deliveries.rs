//! `/v1/deliveries`: completions on their way, with every attempt.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::auth::Caller;
use super::body::BodyReader;
use super::error::Problem;
use super::hook_view::DeliveryJson;
use super::hooks::Hooks;
use super::params;
use super::path::Id;
use super::view::PageJson;
use crate::config::Scope;

/// `GET /v1/deliveries`
pub(super) async fn list(
    caller: Caller,
    State(hooks): State<Hooks>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<DeliveryJson>>, Problem> {
    let who = caller.may(Scope::Read)?;
    hooks.deliveries(who, query.as_deref().unwrap_or_default()).await.map(Json)
}

/// `GET /v1/deliveries/{id}`
pub(super) async fn show(
    caller: Caller,
    State(hooks): State<Hooks>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<DeliveryJson>, Problem> {
    let who = caller.may(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    hooks.delivery(&who, &id).await.map(Json)
}

/// `POST /v1/deliveries/{id}/resend`
pub(super) async fn resend(
    caller: Caller,
    State(hooks): State<Hooks>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<DeliveryJson>), Problem> {
    let who = caller.may(Scope::Replay)?;
    params::none(query.as_deref().unwrap_or_default())?;
    reader.nothing(body).await?;
    Ok((StatusCode::ACCEPTED, Json(hooks.resend(&who, &id).await?)))
}
