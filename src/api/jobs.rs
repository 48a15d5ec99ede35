//! `/v1/jobs`: take in, look at, cancel.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::auth::Caller;
use super::body::{BodyReader, Takes};
use super::desk::{Desk, Submitted};
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::path::Id;
use super::routes::Routes;
use super::view::{Accepted, JobJson, PageJson, SubmittedJson};
use super::{Parts, params};
use crate::config::Scope;
use crate::job::Envelope;
use crate::store::{Origin, StoredResponse};

/// The provider's status, on a result.
static PROVIDER_STATUS: HeaderName = HeaderName::from_static("paceline-provider-status");
/// `true` where only the beginning of the provider's body was kept.
static TRUNCATED: HeaderName = HeaderName::from_static("paceline-truncated");

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let submitting = Operation::new("submitJobs", "Enqueue a job, or an array of jobs", Scope::Enqueue)
        .about(
            "Answers after the commit: a job that is accepted is not lost. The same id with the same content is the \
             same job, and answered with what is there; with other content it is a conflict. Items of an array are \
             answered one by one, in their order.",
        )
        .header("traceparent")
        .body::<OneOrMany>()
        .sends("smallest", r#"{"provider": "geocoder", "request": {"path": "/v1/geocode"}}"#)
        .sends(
            "whole",
            r#"{"id": "order-4711", "provider": "geocoder", "lane": "default", "cost": 2, "deadline": "2099-01-01T00:00:00Z",
                "request": {"method": "POST", "path": "/v1/search", "query": {"q": "Berlin", "tag": ["a", "b"]},
                            "headers": {"accept-language": "de"}, "body": {"limit": 10}},
                "retry": {"max_attempts": 8, "base": "1s"}, "metadata": {"order": 4711}}"#,
        )
        .sends("many", r#"[{"provider": "geocoder", "request": {"path": "/a"}}, {"provider": "geocoder", "request": {"path": "/b"}}]"#)
        .answer::<Accepted>(200, "The job was there already")
        .example(r#"{"id": "order-4711", "state": "running", "created": false}"#)
        .answer::<SubmittedJson>(202, "It is accepted; of an array, what became of each item")
        .example(r#"{"id": "order-4711", "state": "queued", "created": true}"#)
        .problems(&[ProblemKind::Conflict]);
    let listing = Operation::new("listJobs", "List jobs, newest first", Scope::Read)
        .query(&params::JOBS)
        .answer::<PageJson<JobJson>>(200, "A page of jobs");
    let showing = Operation::new("getJob", "Look at a job and its attempts", Scope::Read)
        .about("A job that still lies in the broker is unknown until a dispatcher has claimed it.")
        .query(&params::TENANT)
        .answer::<JobJson>(200, "The job")
        .example(JOB)
        .problems(&[ProblemKind::NotFound]);
    let cancelling = Operation::new("cancelJob", "Cancel a job that is queued or waiting", Scope::Enqueue)
        .about("A job that is cancelled already stays so.")
        .query(&params::TENANT)
        .answer::<JobJson>(200, "The job, which is cancelled")
        .problems(&[ProblemKind::NotFound, ProblemKind::TooLate, ProblemKind::CancelPending]);
    let fetching = Operation::new("getResult", "Fetch the provider's response body", Scope::Read)
        .about("With the provider's content type, as an attachment that no browser runs.")
        .query(&params::TENANT)
        .answer_as(200, "The body as the provider sent it", "*/*")
        .with(&[
            ("paceline-provider-status", "The provider's status"),
            ("paceline-truncated", "`true` where only the beginning was kept"),
            ("content-disposition", "Always `attachment`"),
            ("content-security-policy", "Always a sandbox"),
        ])
        .problems(&[ProblemKind::NotFound, ProblemKind::NoResult]);
    Routes::new()
        .post("/v1/jobs", submit, submitting)
        .get("/v1/jobs", list, listing)
        .get("/v1/jobs/{id}", show, showing)
        .delete("/v1/jobs/{id}", cancel, cancelling)
        .get("/v1/jobs/{id}/result", result, fetching)
}

/// A job, or an array of at most 1,000.
//
// For the document only: the desk reads the body.
#[derive(schemars::JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "described, never made")]
enum OneOrMany {
    One(Box<Envelope>),
    Many(#[schemars(length(max = 1000))] Vec<Envelope>),
}

const JOB: &str = r#"{"id": "order-4711", "state": "succeeded", "provider": "geocoder", "lane": "default", "tenant": null,
    "metadata": {"order": 4711}, "run": 1, "created_at": "2026-11-20T10:00:00.000Z",
    "finished_at": "2026-11-20T10:00:00.123Z", "next_attempt_at": null, "waiting_for": null,
    "attempts": [{"run": 1, "n": 1, "at": "2026-11-20T10:00:00.010Z", "key": "a1", "status": 200,
                  "outcome": "success", "latency_ms": 113, "error": null}],
    "reason": null, "error": null}"#;

/// `POST /v1/jobs`: one job (202 where it is new, 200 where it was there already), or an array.
pub(super) async fn submit(
    caller: Caller,
    State(desk): State<Desk>,
    State(reader): State<BodyReader>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let who = caller.may(Scope::Enqueue)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::OneOrMany).await?;
    Ok(match desk.submit(&who, body.bytes.clone(), origin(&headers)).await? {
        Submitted::One(job) if job.created => (StatusCode::ACCEPTED, Json(job)).into_response(),
        Submitted::One(job) => (StatusCode::OK, Json(job)).into_response(),
        Submitted::Many(items) => (StatusCode::ACCEPTED, Json(items)).into_response(),
    })
}

/// `GET /v1/jobs`
pub(super) async fn list(
    caller: Caller,
    State(desk): State<Desk>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<JobJson>>, Problem> {
    let who = caller.may(Scope::Read)?;
    desk.jobs(who, query.as_deref().unwrap_or_default()).await.map(Json)
}

/// `GET /v1/jobs/{id}`
pub(super) async fn show(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<JobJson>, Problem> {
    let who = caller.may(Scope::Read)?.narrow(params::tenant(query.as_deref().unwrap_or_default())?)?;
    desk.job(&who, &id).await.map(Json)
}

/// `GET /v1/jobs/{id}/result`
pub(super) async fn result(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let who = caller.may(Scope::Read)?.narrow(params::tenant(query.as_deref().unwrap_or_default())?)?;
    desk.result(&who, &id).await.map(as_attachment)
}

/// `DELETE /v1/jobs/{id}`
pub(super) async fn cancel(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<JobJson>, Problem> {
    let who = caller.may(Scope::Enqueue)?.narrow(params::tenant(query.as_deref().unwrap_or_default())?)?;
    desk.cancel(&who, &id).await.map(Json)
}

/// The trace that the request belongs to goes along with the job.
fn origin(headers: &HeaderMap) -> Origin {
    let traceparent = headers.get("traceparent").and_then(|value| value.to_str().ok());
    // version-traceid-parentid-flags: 55 characters of lower-case hexadecimal digits and dashes.
    let fits =
        |text: &&str| text.len() == 55 && text.bytes().all(|b| b == b'-' || matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    Origin { traceparent: traceparent.filter(fits).map(str::to_owned), ..Origin::default() }
}

/// The provider's body as a file that no browser runs, whatever it contains.
fn as_attachment(response: StoredResponse) -> Response {
    let plain = HeaderValue::from_static("application/octet-stream");
    // The bytes are those of the provider, as it packed them.
    let encoding = response.header("content-encoding").and_then(|text| HeaderValue::from_str(&text).ok());
    let content_type = response.content_type.and_then(|text| HeaderValue::from_str(&text).ok()).unwrap_or(plain);
    let mut answer = response.body.into_response();
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, encoding);
    }
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(PROVIDER_STATUS.clone(), HeaderValue::from(response.status));
    headers.insert(TRUNCATED.clone(), HeaderValue::from_static(if response.truncated { "true" } else { "false" }));
    answer
}
