//! `/v1/dead-letters`: look at, run again, purge.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::auth::Caller;
use super::body::{BodyReader, Takes};
use super::desk::{Desk, ReplayBody};
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::path::Id;
use super::routes::Routes;
use super::view::{DeadJson, PageJson, Purged, ReplayAccepted};
use super::{Parts, params};
use crate::config::Scope;

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let listing = Operation::new("listDeadLetters", "List dead letters, newest first", Scope::Read)
        .about("A page holds at most about 4 MiB of envelopes; those that are left out say `omitted`.")
        .query(&params::DEAD_LETTERS)
        .answer::<PageJson<DeadJson>>(200, "A page of dead letters");
    let showing = Operation::new("getDeadLetter", "Look at a dead letter with all that is known of it", Scope::Read)
        .query(&params::TENANT)
        .answer::<DeadJson>(200, "The dead letter")
        .problems(&[ProblemKind::NotFound]);
    let replaying = Operation::new("replayDeadLetter", "Run a dead letter again", Scope::Replay)
        .about("As it was, or changed by the body. The job is checked like a new one, against what is configured now.")
        .query(&params::TENANT)
        .optional_body::<ReplayBody>()
        .sends("as it was", "{}")
        .sends("changed", r#"{"request": {"path": "/v2/geocode"}, "lane": "default", "idempotency_key": "new"}"#)
        .answer::<ReplayAccepted>(202, "It runs again")
        .example(r#"{"id": "order-4711", "run": 2, "state": "queued"}"#)
        .problems(&[ProblemKind::NotFound, ProblemKind::NotReplayable]);
    let purging = Operation::new("purgeDeadLetters", "Remove dead letters by filter", Scope::Replay)
        .about("At least one filter, or `all=true`. Where `more` is true, ask again.")
        .query(&params::PURGE)
        .answer::<Purged>(200, "How many are gone")
        .example(r#"{"purged": 12, "more": false}"#);
    Routes::new()
        .get("/v1/dead-letters", list, listing)
        .delete("/v1/dead-letters", purge, purging)
        .get("/v1/dead-letters/{id}", show, showing)
        .post("/v1/dead-letters/{id}/replay", replay, replaying)
}

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
