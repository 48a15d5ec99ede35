//! Errors as RFC 9457 problem documents: the only way an error leaves the API.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, StatusCode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use crate::job::Invalid;
use crate::store::StoreError;

/// What kind of problem it is: the last part of its `type`, and the status that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProblemKind {
    /// A parameter is unknown or has a bad value.
    BadParameter,
    /// The body is not JSON.
    NotJson,
    /// No token, or one that nobody knows.
    Unauthorized,
    /// The token lacks a scope, or the request comes from somewhere it must not come from.
    Forbidden,
    /// There is no such thing, or it is another tenant's.
    NotFound,
    /// The job exists and has no result.
    NoResult,
    /// Too many wrong tokens came from there.
    TooManyAttempts,
    /// A key that is there already, is not there, or would be there twice.
    KeyConflict,
    /// The master key that stored keys need is not set here.
    NoMasterKey,
    /// That route has no such method.
    MethodNotAllowed,
    /// The body did not arrive in time.
    RequestTimeout,
    /// Another job has that id.
    Conflict,
    /// The job is being sent, or it ended.
    TooLate,
    /// The job's owner was asked and has not answered yet.
    CancelPending,
    /// It is no dead letter any more, or never was a job.
    NotReplayable,
    /// The endpoint is disabled or removed: nothing is sent to it.
    EndpointDisabled,
    /// Somebody else changed it, or another order of the kind runs.
    Busy,
    /// The body is larger than allowed.
    TooLarge,
    /// The body is not `application/json`.
    UnsupportedMediaType,
    /// JSON, but not a valid job (or replay): `errors` names the fields.
    Invalid,
    /// A fault of ours.
    Internal,
    /// The store cannot be reached, or too much is going on: try again.
    Unavailable,
}

impl ProblemKind {
    /// Every kind.
    pub const ALL: [Self; 22] = [
        Self::TooManyAttempts,
        Self::KeyConflict,
        Self::NoMasterKey,
        Self::BadParameter,
        Self::NotJson,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::NoResult,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::TooLate,
        Self::CancelPending,
        Self::NotReplayable,
        Self::EndpointDisabled,
        Self::Busy,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::Invalid,
        Self::Internal,
        Self::Unavailable,
    ];

    /// Code, status and title of every kind.
    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BadParameter => ("bad-parameter", StatusCode::BAD_REQUEST, "A parameter is not valid"),
            Self::NotJson => ("not-json", StatusCode::BAD_REQUEST, "The body is not JSON"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "A valid token is needed"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "This is not allowed"),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
            Self::NoResult => ("no-result", StatusCode::NOT_FOUND, "The job has no result"),
            Self::TooManyAttempts => {
                ("too-many-attempts", StatusCode::TOO_MANY_REQUESTS, "Too many wrong tokens came from this address")
            }
            Self::KeyConflict => ("key-conflict", StatusCode::CONFLICT, "This does not fit the keys that are there"),
            Self::NoMasterKey => ("no-master-key", StatusCode::CONFLICT, "The master key is missing or another one"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "This route has no such method")
            }
            Self::RequestTimeout => ("request-timeout", StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time"),
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "Another job has this id"),
            Self::TooLate => ("too-late", StatusCode::CONFLICT, "It is too late for that"),
            Self::CancelPending => ("cancel-pending", StatusCode::CONFLICT, "The cancellation is not settled yet"),
            Self::NotReplayable => ("not-replayable", StatusCode::CONFLICT, "This cannot be replayed"),
            Self::EndpointDisabled => ("endpoint-disabled", StatusCode::CONFLICT, "The endpoint is disabled"),
            Self::Busy => ("busy", StatusCode::CONFLICT, "Something else is under way"),
            Self::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported-media-type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body must be application/json")
            }
            Self::Invalid => ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "A field is not valid"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Something is wrong on this side"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Not available right now"),
        }
    }

    /// The last part of the problem's `type`.
    pub const fn code(self) -> &'static str {
        self.parts().0
    }

    /// The problem's `type`.
    pub fn urn(self) -> String {
        format!("urn:paceline:problem:{}", self.code())
    }

    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        self.parts().1
    }

    /// One line for people, the same for every problem of that kind.
    pub const fn title(self) -> &'static str {
        self.parts().2
    }
}

/// A problem document: `type`, `title`, `status`, `detail`, `instance`, and `errors` where fields
/// or parameters are wrong.
///
/// `instance` is a fresh URN that appears in the log beside failures of this side.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct Problem {
    /// What kind.
    pub kind: ProblemKind,
    /// What happened this time, for people.
    pub detail: String,
    /// The fields or parameters that are wrong.
    pub errors: Vec<Invalid>,
    challenge: Option<String>,
    retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem with what happened this time.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), challenge: None, retry_after_s: None }
    }

    /// Wrong fields of a job or a replay; `detail` is the first of them.
    pub fn invalid(error: Invalid) -> Self {
        Self { errors: vec![error.clone()], ..Self::new(ProblemKind::Invalid, error.to_string()) }
    }

    /// Several wrong fields at once; `detail` is the first of them.
    pub fn invalid_fields(errors: Vec<Invalid>) -> Self {
        let detail = errors.first().map(Invalid::to_string).unwrap_or_default();
        Self { errors, ..Self::new(ProblemKind::Invalid, detail) }
    }

    /// Wrong parameters of a query, named `?name`.
    pub fn parameters(errors: Vec<Invalid>) -> Self {
        let detail = errors.first().map(Invalid::to_string).unwrap_or_default();
        Self { errors, ..Self::new(ProblemKind::BadParameter, detail) }
    }

    /// No job by that id, or none that the caller may see.
    pub fn no_job() -> Self {
        Self::new(
            ProblemKind::NotFound,
            "there is no job with this id (a job in the broker is unknown until it is claimed)",
        )
    }

    /// No dead letter by that id, or none that the caller may see.
    pub fn no_dead_letter() -> Self {
        Self::new(ProblemKind::NotFound, "there is no dead letter with this id")
    }

    /// With a `Retry-After` header: whole seconds, rounded up.
    pub(super) fn retry_after(self, wait: std::time::Duration) -> Self {
        Self { retry_after_s: Some(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)), ..self }
    }

    /// No endpoint by that id, or none that the caller may see.
    pub fn no_endpoint() -> Self {
        Self::new(ProblemKind::NotFound, "there is no endpoint with this id")
    }

    /// No delivery by that id, or none that the caller may see.
    pub fn no_delivery() -> Self {
        Self::new(ProblemKind::NotFound, "there is no delivery with this id")
    }

    /// With a `WWW-Authenticate` header of the Bearer scheme; `parameters` follow the realm.
    pub(super) fn challenge(self, parameters: &str) -> Self {
        Self { challenge: Some(format!("Bearer realm=\"paceline\"{parameters}")), ..self }
    }

    /// The document as it is sent, `instance` left out.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.serialize_with(serializer, None)
    }
}

/// A field or a parameter that is wrong.
#[derive(Serialize, JsonSchema)]
struct FieldError<'a> {
    /// A field as a JSON path (`$.request.path`), a parameter as `?name`.
    path: &'a str,
    /// What was expected there.
    message: &'a str,
}

impl JsonSchema for Problem {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Problem".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let types: Vec<String> = ProblemKind::ALL.iter().map(|kind| kind.urn()).collect();
        json_schema!({
            "type": "object",
            "description": "What went wrong (RFC 9457).",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": { "type": "string", "enum": types, "description": "Which kind: the same for every problem of that kind." },
                "title": { "type": "string", "description": "One line for people, the same for every problem of that kind." },
                "status": { "type": "integer", "minimum": 400, "maximum": 599, "description": "The HTTP status." },
                "detail": { "type": "string", "description": "What happened this time, for people." },
                "instance": {
                    "type": "string", "format": "uri",
                    "description": "Names this occurrence; failures of the server's side are in its log under this name.",
                },
                "errors": {
                    "type": "array", "items": generator.subschema_for::<FieldError<'_>>(),
                    "description": "The fields or parameters that are wrong.",
                },
            },
        })
    }
}

impl Problem {
    fn serialize_with<S: Serializer>(&self, serializer: S, instance: Option<&str>) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", &self.kind.urn())?;
        map.serialize_entry("title", self.kind.title())?;
        map.serialize_entry("status", &self.kind.status().as_u16())?;
        map.serialize_entry("detail", &self.detail)?;
        if let Some(instance) = instance {
            map.serialize_entry("instance", instance)?;
        }
        if !self.errors.is_empty() {
            let errors: Vec<_> =
                self.errors.iter().map(|e| FieldError { path: &e.path, message: &e.message }).collect();
            map.serialize_entry("errors", &errors)?;
        }
        map.end()
    }
}

/// A problem together with the name of its occurrence.
struct Occurrence<'a>(&'a Problem, &'a str);

impl Serialize for Occurrence<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize_with(serializer, Some(self.1))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        let instance = format!("urn:uuid:{}", uuid::Uuid::now_v7());
        if status.is_server_error() {
            tracing::warn!(instance, status = status.as_u16(), detail = self.detail, "request failed");
        } else {
            tracing::debug!(instance, status = status.as_u16(), detail = self.detail, "request refused");
        }
        let body = serde_json::to_vec(&Occurrence(&self, &instance)).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let retry_after_s = self.retry_after_s.or((status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        if let Some(seconds) = retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = self.challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// What the database said is logged here and not sent: it may name hosts and tables.
impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "the store failed");
        match error {
            StoreError::Unavailable(_) => Self::new(
                ProblemKind::Unavailable,
                "the store is not available; nothing was changed that was not confirmed: try again",
            ),
            _ => Self::new(ProblemKind::Internal, "the store could not do this; the log says more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_members_of_rfc_9457() {
        let problem = Problem::invalid(Invalid::at("request.path", "expected a path"));
        let json = problem.to_json();
        assert_eq!(json["type"], "urn:paceline:problem:invalid");
        assert_eq!(json["status"], 422);
        assert_eq!(json["detail"], "$.request.path: expected a path");
        assert_eq!(json["errors"][0]["path"], "$.request.path");
        assert_eq!(json["errors"][0]["message"], "expected a path");
        assert!(json["title"].is_string());
    }

    #[test]
    fn a_store_that_is_away_is_a_503_without_the_database_s_words() {
        let problem = Problem::from(StoreError::Unavailable(sqlx::Error::PoolTimedOut));
        assert_eq!(problem.kind, ProblemKind::Unavailable);
        assert!(!problem.detail.contains("pool"));
        let problem = Problem::from(StoreError::Corrupt("row 7".into()));
        assert_eq!(problem.kind, ProblemKind::Internal);
        assert!(!problem.detail.contains("row 7"));
    }
}
