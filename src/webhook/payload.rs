//! The body of a webhook, as the contract has it:
//!
//! ```json
//! {"type":"job.succeeded","timestamp":"2026-11-20T10:00:00.123Z",
//!  "data":{"job_id":"…","provider":"geocoder","tenant":"acme","metadata":{},"state":"succeeded","attempts":1,
//!          "response":{"status":200,"headers":{},"body":{},"truncated":false},"error":null}}
//! ```
//!
//! * `tenant` is null for jobs without one, `metadata` is `{}` where there is none, `response` is null
//!   where the provider never answered, `error` is null or `{"reason","message"}`.
//! * `response.body` is the provider's JSON to the letter where its content type is JSON (numbers keep
//!   every digit), else a string where it is UTF-8, else `{"base64":"…"}`.
//! * A body over [`EVENT_BODY_BYTES_MAX`] is left out: `response` has `result_url` in place of `body`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::clock::{WallMs, rfc3339};
use crate::job::{EventKind, JobState};
use crate::store::{Event, StoredResponse};

/// The largest response body that goes into an event, in bytes.
pub const EVENT_BODY_BYTES_MAX: usize = 64 * 1024;

/// The provider's header fields that events carry, and prefixes of more. Everything else stays in the
/// store: cookies and the like are nobody's business.
const HEADERS: [&str; 14] = [
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "request-id",
    "retry-after",
    "x-request-id",
];
const HEADER_PREFIXES: [&str; 2] = ["ratelimit", "x-ratelimit-"];

/// The completion of a run of a job.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Event")]
struct Payload<'a> {
    /// Always the same for the same completion: it tells an event that comes twice. A webhook has it in
    /// `webhook-id` instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    /// What happened.
    r#type: EventKind,
    /// When.
    #[schemars(extend("format" = "date-time"))]
    timestamp: String,
    /// The completion.
    data: Data<'a>,
}

/// A job that reached a terminal state.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Completion")]
struct Data<'a> {
    /// Unique within its tenant.
    job_id: &'a str,
    /// Who was called.
    provider: &'a str,
    /// Whose job it is.
    tenant: Option<&'a str>,
    /// The producer's own; empty where there is none.
    #[schemars(extend("type" = "object"))]
    metadata: &'a RawValue,
    /// Where it ended.
    #[schemars(extend("enum" = ["succeeded", "dead", "expired", "cancelled"]))]
    state: &'static str,
    /// Attempts of the run.
    attempts: u32,
    /// The provider's last answer; null: there was none.
    response: Option<Response<'a>>,
    /// Why it did not succeed.
    error: Option<Failure<'a>>,
}

/// The provider's answer.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Response")]
struct Response<'a> {
    /// Its status.
    status: u16,
    /// The header fields that events carry.
    headers: BTreeMap<Cow<'a, str>, &'a RawValue>,
    /// Its body: JSON as it was sent, a text, or `{"base64": "…"}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<Content<'a>>,
    /// Where the body is had, if it is larger than 64 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    result_url: Option<String>,
    /// Only the beginning of the body was kept.
    truncated: bool,
}

/// What went wrong.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Failure")]
struct Failure<'a> {
    /// Why the job was given up, or its state.
    reason: &'a str,
    /// For people.
    message: &'a str,
}

enum Content<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Binary(&'a [u8]),
}

#[derive(Serialize)]
struct Base64 {
    base64: String,
}

impl JsonSchema for Content<'_> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Content".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

impl Serialize for Content<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json(raw) => raw.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Binary(bytes) => Base64 { base64: STANDARD.encode(bytes) }.serialize(serializer),
        }
    }
}

/// The body of the event's webhook. `public_url` is put in front of `result_url`'s path.
///
/// # Errors
/// None that can be named: writing these types into memory does not fail.
pub fn payload(event: &Event, public_url: Option<&str>) -> Result<Bytes, serde_json::Error> {
    write(event, None, public_url)
}

/// The same with the event's id inside, where no header field carries it.
///
/// # Errors
/// As [`payload`].
pub fn payload_with_id(event: &Event, public_url: Option<&str>) -> Result<Bytes, serde_json::Error> {
    write(event, Some(&event.id), public_url)
}

/// The JSON Schema of both.
pub fn event_schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<Payload<'_>>();
    schema.insert("$id".to_owned(), "urn:paceline:schema:event".into());
    schema
}

fn write(event: &Event, id: Option<&str>, public_url: Option<&str>) -> Result<Bytes, serde_json::Error> {
    let state = state_of(event.kind).as_str();
    let metadata: Option<&RawValue> = event.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let payload = Payload {
        id,
        r#type: event.kind,
        timestamp: rfc3339(event.at_ms),
        data: Data {
            job_id: &event.job_id,
            provider: &event.provider,
            tenant: Some(event.tenant.as_str()).filter(|tenant| !tenant.is_empty()),
            metadata: metadata.unwrap_or(empty_object()),
            state,
            attempts: event.attempts,
            response: event.response.as_ref().map(|r| response(r, &event.job_id, public_url)),
            error: failure(event, state),
        },
    };
    serde_json::to_vec(&payload).map(Bytes::from)
}

#[derive(Serialize)]
struct TestPayload<'a> {
    r#type: &'static str,
    timestamp: String,
    data: TestData<'a>,
}

#[derive(Serialize)]
struct TestData<'a> {
    endpoint_id: &'a str,
    message: &'static str,
}

/// The name of a test event.
pub const TEST_EVENT: &str = "endpoint.test";

/// The body of a test event.
///
/// # Errors
/// None that can be named, as of [`payload`].
pub(super) fn test_payload(endpoint_id: &str, at_ms: WallMs) -> Result<Bytes, serde_json::Error> {
    let data = TestData { endpoint_id, message: "no job ended: somebody tries this endpoint out" };
    let payload = TestPayload { r#type: TEST_EVENT, timestamp: rfc3339(at_ms), data };
    serde_json::to_vec(&payload).map(Bytes::from)
}

fn empty_object() -> &'static RawValue {
    serde_json::from_str("{}").unwrap_or(RawValue::NULL)
}

const fn state_of(kind: EventKind) -> JobState {
    match kind {
        EventKind::Succeeded => JobState::Succeeded,
        EventKind::Dead => JobState::Dead,
        EventKind::Expired => JobState::Expired,
        EventKind::Cancelled => JobState::Cancelled,
    }
}

fn failure<'a>(event: &'a Event, state: &'static str) -> Option<Failure<'a>> {
    let told = event.reason.is_some() || event.error.is_some();
    (told || event.kind == EventKind::Dead).then(|| Failure {
        reason: event.reason.as_deref().unwrap_or(state),
        message: event.error.as_deref().unwrap_or_default(),
    })
}

fn response<'a>(stored: &'a StoredResponse, job_id: &str, public_url: Option<&str>) -> Response<'a> {
    let fits = stored.body.len() <= EVENT_BODY_BYTES_MAX;
    Response {
        status: stored.status,
        headers: allowed(&stored.headers),
        body: fits.then(|| content(stored)),
        result_url: (!fits).then(|| {
            let base = public_url.unwrap_or_default().trim_end_matches('/');
            format!("{base}/v1/jobs/{job_id}/result")
        }),
        truncated: stored.truncated,
    }
}

fn content(stored: &StoredResponse) -> Content<'_> {
    let json = stored.content_type.as_deref().is_some_and(is_json);
    if json && let Ok(raw) = serde_json::from_slice(&stored.body) {
        return Content::Json(raw);
    }
    std::str::from_utf8(&stored.body).map_or(Content::Binary(&stored.body), Content::Text)
}

/// `application/json`, or anything with the suffix `+json` (RFC 6839), whatever its parameters.
fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    matches!(essence.as_str(), "application/json" | "text/json") || essence.ends_with("+json")
}

/// The allowed ones of header fields that are kept as a JSON object; none where it is not one.
fn allowed(headers: &str) -> BTreeMap<Cow<'_, str>, &RawValue> {
    let mut fields: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(headers).unwrap_or_default();
    fields.retain(|name, _| {
        let name = name.to_ascii_lowercase();
        HEADERS.contains(&name.as_str()) || HEADER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    });
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(kind: EventKind, response: Option<StoredResponse>) -> Event {
        Event {
            id: "evt_1".into(),
            kind,
            at_ms: 1_795_168_800_123,
            attempts: 3,
            reason: None,
            error: None,
            response,
            job_id: "order-1".into(),
            provider: "geocoder".into(),
            tenant: "acme".into(),
            metadata: Some(r#"{"order":12345678901234567890123}"#.into()),
        }
    }

    fn stored(content_type: Option<&str>, body: &[u8]) -> StoredResponse {
        StoredResponse {
            status: 200,
            headers: r#"{"Content-Type":"x","set-cookie":"s=1","x-ratelimit-remaining":"4","server":"y"}"#.into(),
            content_type: content_type.map(str::to_owned),
            body: Bytes::copy_from_slice(body),
            truncated: false,
        }
    }

    fn text(event: &Event) -> String {
        String::from_utf8(payload(event, None).expect("written").to_vec()).expect("UTF-8")
    }

    fn value(event: &Event) -> Value {
        serde_json::from_str(&text(event)).expect("JSON")
    }

    fn body_of(content_type: Option<&str>, body: &[u8]) -> Value {
        value(&event(EventKind::Succeeded, Some(stored(content_type, body))))["data"]["response"]["body"].take()
    }

    #[test]
    fn the_body_is_the_contracts_to_the_letter() {
        let body = br#"{"a": 1.10, "n":12345678901234567890.5,"a":2}"#;
        let event = event(EventKind::Succeeded, Some(stored(Some("application/json"), body)));
        assert_eq!(
            text(&event),
            concat!(
                r#"{"type":"job.succeeded","timestamp":"2026-11-20T10:00:00.123Z","data":{"job_id":"order-1","#,
                r#""provider":"geocoder","tenant":"acme","metadata":{"order":12345678901234567890123},"#,
                r#""state":"succeeded","attempts":3,"response":{"status":200,"#,
                r#""headers":{"Content-Type":"x","x-ratelimit-remaining":"4"},"#,
                r#""body":{"a": 1.10, "n":12345678901234567890.5,"a":2},"truncated":false},"error":null}}"#,
            )
        );
    }

    #[test]
    fn a_body_is_json_text_or_base64() {
        let json = Some("application/problem+json; charset=utf-8");
        assert_eq!(body_of(json, b"null"), Value::Null);
        assert_eq!(body_of(json, br#"{"a":[1]}"#), json!({"a": [1]}));
        assert_eq!(body_of(json, b"{not json"), json!("{not json"));
        assert_eq!(body_of(json, b"\"\xff\""), json!({"base64": "Iv8i"}));
        assert_eq!(body_of(Some("text/plain"), b"{}"), json!("{}"));
        assert_eq!(body_of(Some("image/png"), b"\x89PNG"), json!({"base64": "iVBORw=="}));
        assert_eq!(body_of(None, "ä\u{0}\n".as_bytes()), json!("ä\u{0}\n"));
        assert_eq!(body_of(None, b""), json!(""));
    }

    #[test]
    fn a_body_over_64_kib_is_left_out_and_fetched_by_its_url() {
        let with = |bytes| event(EventKind::Succeeded, Some(stored(None, &vec![b'a'; bytes])));
        let full = value(&with(EVENT_BODY_BYTES_MAX));
        assert_eq!(full["data"]["response"]["body"].as_str().map(str::len), Some(EVENT_BODY_BYTES_MAX));
        assert_eq!(full["data"]["response"].get("result_url"), None);
        let over = with(EVENT_BODY_BYTES_MAX + 1);
        let response = &value(&over)["data"]["response"];
        assert_eq!(response.get("body"), None);
        assert_eq!(response["result_url"], "/v1/jobs/order-1/result");
        let public = payload(&over, Some("https://paceline.example.com/")).expect("written");
        let public: Value = serde_json::from_slice(&public).expect("JSON");
        assert_eq!(public["data"]["response"]["result_url"], "https://paceline.example.com/v1/jobs/order-1/result");
    }

    #[test]
    fn errors_name_a_reason_and_what_is_missing_is_null() {
        let mut dead = event(EventKind::Dead, None);
        dead.reason = Some("permanent".into());
        dead.error = Some("answered 404".into());
        dead.tenant = String::new();
        dead.metadata = None;
        let data = &value(&dead)["data"];
        assert_eq!(data["error"], json!({"reason": "permanent", "message": "answered 404"}));
        assert_eq!((&data["response"], &data["tenant"], &data["metadata"]), (&Value::Null, &Value::Null, &json!({})));
        let expired = Event { error: Some("past its deadline".into()), ..event(EventKind::Expired, None) };
        assert_eq!(value(&expired)["data"]["error"], json!({"reason": "expired", "message": "past its deadline"}));
        assert_eq!(value(&event(EventKind::Cancelled, None))["data"]["error"], Value::Null);
        let kinds = [EventKind::Succeeded, EventKind::Dead, EventKind::Expired, EventKind::Cancelled];
        for kind in kinds {
            let body = value(&event(kind, None));
            assert_eq!(body["type"], format!("job.{}", body["data"]["state"].as_str().expect("text")));
        }
    }

    #[test]
    fn rows_that_are_odd_still_become_events() {
        let mut odd = event(EventKind::Succeeded, Some(stored(None, b"x")));
        odd.metadata = Some("{broken".into());
        odd.response.as_mut().expect("given").headers = "[]".into();
        let data = &value(&odd)["data"];
        assert_eq!(data["metadata"], json!({}));
        assert_eq!(data["response"]["headers"], json!({}));
    }
}
