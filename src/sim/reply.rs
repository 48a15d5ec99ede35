//! Answers, built from parts.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::body::SimBody;

/// Headers of an answer.
pub(crate) type Headers = Vec<(HeaderName, HeaderValue)>;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// An answer with any body.
pub(crate) fn of(status: StatusCode, kind: HeaderValue, body: SimBody) -> Response<SimBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<SimBody> {
    let mut response = Response::new(SimBody::whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

/// JSON that is there already.
pub(crate) fn json_bytes(status: StatusCode, body: impl Into<Bytes>) -> Response<SimBody> {
    of(status, JSON, SimBody::whole(body))
}

/// JSON of a value.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response<SimBody> {
    match serde_json::to_vec(value) {
        Ok(bytes) => json_bytes(status, bytes),
        Err(error) => {
            tracing::error!(%error, "simulator could not write an answer");
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// An error as providers word it.
pub(crate) fn error(status: StatusCode, code: &str, message: &str) -> Response<SimBody> {
    json(status, &json!({"error": {"code": code, "type": code, "message": message}}))
}

/// Garbage with the status of success.
pub(crate) fn garbage() -> Response<SimBody> {
    let page: &[u8] = b"<!doctype html><title>Welcome</title><p>{\"ok\": tru\x00\xff";
    of(StatusCode::OK, HTML, SimBody::whole(Bytes::from_static(page)))
}

/// Bytes without meaning.
pub(crate) fn bytes(body: SimBody) -> Response<SimBody> {
    of(StatusCode::OK, BYTES, body)
}

/// A request as it was received.
pub(crate) fn echo(request: &Parts, body: &Bytes) -> Response<SimBody> {
    let query: Vec<(String, String)> = match request.uri.query() {
        Some(query) => url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        None => Vec::new(),
    };
    let mut value = json!({
        "method": request.method.as_str(),
        "path": request.uri.path(),
        "query": query,
        "headers": listed(&request.headers),
    });
    match std::str::from_utf8(body) {
        Ok(text) => value["body"] = json!(text),
        Err(_) => value["body_base64"] = json!(STANDARD.encode(body)),
    }
    json(StatusCode::OK, &value)
}

/// Headers by name; several of one name are joined by commas.
fn listed(headers: &HeaderMap) -> BTreeMap<&str, String> {
    let mut all: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.as_str())
            .and_modify(|joined| {
                joined.push_str(", ");
                joined.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    all
}
