//! `/v1/endpoints`: where completions go. A token that is bound to a tenant sees and changes only that tenant's.
//!
//! Changing one takes `admin`: it decides where data is sent. Sending again what was missed takes `replay`.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::Parts;
use super::auth::{Caller, Tenancy};
use super::body::{BodyReader, Takes};
use super::error::{Problem, ProblemKind};
use super::hook_view::{DeletedJson, DeliveryJson, EndpointJson, RegisterBody, ResendBody, RotateBody};
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
    use ProblemKind::{Busy, EndpointDisabled, NoMasterKey, NotFound};
    let registering = Operation::new("registerEndpoint", "Register a webhook endpoint", Scope::Admin)
        .about("Its secret is told this once, where it was generated.")
        .body::<RegisterBody>()
        .sends("all completions", r#"{"url": "https://hooks.example.com/paceline"}"#)
        .sends("some", r#"{"url": "https://hooks.example.com/acme", "tenant": "acme", "events": ["job.dead"]}"#)
        .answer::<EndpointJson>(201, "The endpoint")
        .problems(&[Busy, NoMasterKey]);
    let listing = Operation::new("listEndpoints", "List webhook endpoints, newest first", Scope::Read)
        .about("Those of bare callback URLs too.")
        .query(&params::ENDPOINTS)
        .answer::<PageJson<EndpointJson>>(200, "A page of endpoints");
    let showing = Operation::new("getEndpoint", "Look at a webhook endpoint", Scope::Read)
        .answer::<EndpointJson>(200, "The endpoint")
        .problems(&[NotFound]);
    let deleting = Operation::new("deleteEndpoint", "Remove a webhook endpoint", Scope::Admin)
        .about("Its deliveries can be looked at until their jobs are removed.")
        .answer::<DeletedJson>(200, "It is removed")
        .problems(&[NotFound]);
    let switch = |id, summary, about| {
        Operation::new(id, summary, Scope::Admin)
            .about(about)
            .optional_body::<Nothing>()
            .sends("nothing", "{}")
            .answer::<EndpointJson>(200, "The endpoint")
            .problems(&[NotFound])
    };
    let disabling = switch("disableEndpoint", "Send nothing to an endpoint", "Its deliveries are held back.");
    let enabling = switch("enableEndpoint", "Send to an endpoint again", "What was held back is sent by a resend.");
    let rotating = Operation::new("rotateEndpointSecret", "Give an endpoint a new secret", Scope::Admin)
        .about("The old one signs as well until `overlap` has passed.")
        .optional_body::<RotateBody>()
        .sends("both for a day", r#"{"overlap": "24h"}"#)
        .answer::<EndpointJson>(200, "The endpoint, with its secret where that was generated")
        .problems(&[NotFound, Busy, NoMasterKey]);
    let testing = Operation::new("testEndpoint", "Send an endpoint a test event", Scope::Admin)
        .optional_body::<Nothing>()
        .sends("nothing", "{}")
        .answer::<DeliveryJson>(202, "Its delivery")
        .problems(&[NotFound, EndpointDisabled]);
    let resending = Operation::new("resendToEndpoint", "Send an endpoint again what it missed", Scope::Replay)
        .about("What failed or was held back since a time, or all of it. Goes on in the background.")
        .body::<ResendBody>()
        .sends("since a time", r#"{"since": "2026-11-20T10:00:00Z"}"#)
        .answer::<EndpointJson>(202, "The endpoint, with how far that is")
        .problems(&[NotFound, EndpointDisabled, Busy]);
    Routes::new()
        .post("/v1/endpoints", register, registering)
        .get("/v1/endpoints", list, listing)
        .get("/v1/endpoints/{id}", show, showing)
        .delete("/v1/endpoints/{id}", delete, deleting)
        .post("/v1/endpoints/{id}/disable", disable, disabling)
        .post("/v1/endpoints/{id}/enable", enable, enabling)
        .post("/v1/endpoints/{id}/rotate", rotate, rotating)
        .post("/v1/endpoints/{id}/test", test, testing)
        .post("/v1/endpoints/{id}/resend", resend, resending)
}

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
