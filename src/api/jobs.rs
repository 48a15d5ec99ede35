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
use super::error::Problem;
use super::params;
use super::path::Id;
use super::view::{JobJson, PageJson};
use crate::config::Scope;
use crate::store::{Origin, StoredResponse};

/// The provider's status, on a result.
static PROVIDER_STATUS: HeaderName = HeaderName::from_static("paceline-provider-status");
/// `true` where only the beginning of the provider's body was kept.
static TRUNCATED: HeaderName = HeaderName::from_static("paceline-truncated");

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
