//! `/v1/dead-letters`: look at, run again, purge.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::auth::Caller;
use super::body::{BodyReader, Takes};
use super::desk::Desk;
use super::error::Problem;
use super::params;
use super::path::Id;
use super::view::{DeadJson, PageJson, Purged, ReplayAccepted};
use crate::config::Scope;

/// `GET /v1/dead-letters`
pub(super) async fn list(
    caller: Caller,
    State(desk): State<Desk>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<DeadJson>>, Problem> {
    let who = caller.may(Scope::Read)?;
    desk.dead_letters(who, query.as_deref().unwrap_or_default()).await.map(Json)
}

/// `GET /v1/dead-letters/{id}`
pub(super) async fn show(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadJson>, Problem> {
    let who = caller.may(Scope::Read)?.narrow(params::tenant(query.as_deref().unwrap_or_default())?)?;
    desk.dead_letter(&who, &id).await.map(Json)
}

/// `POST /v1/dead-letters/{id}/replay`
pub(super) async fn replay(
    caller: Caller,
    State(desk): State<Desk>,
    State(reader): State<BodyReader>,
    Id(id): Id,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<(StatusCode, Json<ReplayAccepted>), Problem> {
    let who = caller.may(Scope::Replay)?.narrow(params::tenant(query.as_deref().unwrap_or_default())?)?;
    let body = reader.read(body, Takes::One).await?;
    let accepted = desk.replay(&who, &id, &body.bytes).await?;
    Ok((StatusCode::ACCEPTED, Json(accepted)))
}

/// `DELETE /v1/dead-letters`
pub(super) async fn purge(
    caller: Caller,
    State(desk): State<Desk>,
    RawQuery(query): RawQuery,
) -> Result<Json<Purged>, Problem> {
    let who = caller.may(Scope::Replay)?;
    desk.purge(who, query.as_deref().unwrap_or_default()).await.map(Json)
}
