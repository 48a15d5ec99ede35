//! `/v1/deliveries`: completions on their way, with every attempt.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::Parts;
use super::auth::Caller;
use super::body::BodyReader;
use super::error::{Problem, ProblemKind};
use super::hook_view::DeliveryJson;
use super::hooks::Hooks;
use super::openapi::Operation;
use super::params;
use super::path::Id;
use super::providers::Nothing;
use super::routes::Routes;
use super::view::PageJson;
use crate::config::Scope;

/// The routes, and what the document says of them.
pub(super) fn routes() -> Routes<Parts> {
    let listing = Operation::new("listDeliveries", "List deliveries of completions, newest first", Scope::Read)
        .query(&params::DELIVERIES)
        .answer::<PageJson<DeliveryJson>>(200, "A page of deliveries, with their attempts");
    let showing = Operation::new("getDelivery", "Look at a delivery and its attempts", Scope::Read)
        .answer::<DeliveryJson>(200, "The delivery")
        .problems(&[ProblemKind::NotFound]);
    let resending = Operation::new("resendDelivery", "Send a delivery again", Scope::Replay)
        .about("Under the same event id; its schedule begins anew.")
        .optional_body::<Nothing>()
        .sends("nothing", "{}")
        .answer::<DeliveryJson>(202, "The delivery, which is due")
        .problems(&[ProblemKind::NotFound, ProblemKind::EndpointDisabled, ProblemKind::Busy]);
    Routes::new().get("/v1/deliveries", list, listing).get("/v1/deliveries/{id}", show, showing).post(
        "/v1/deliveries/{id}/resend",
        resend,
        resending,
    )
}

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
