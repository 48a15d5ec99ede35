//! The call to make, as the producer describes it, and what is refused there.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::object::distinct;
use super::{Invalid, ProviderRules, schema};

/// Header fields that the client or the connection owns (RFC 9110, section 7.6.1, and framing).
pub(super) const HOP_BY_HOP: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "upgrade",
];

/// Header fields that carry credentials by convention; the provider's own is refused as well.
pub(super) const CREDENTIALS: [&str; 6] =
    ["api-key", "authorization", "cookie", "proxy-authenticate", "proxy-authorization", "x-api-key"];

/// `request` of an envelope, as written.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::one_body)]
pub struct Request {
    /// `GET` unless given.
    #[serde(default = "get", skip_serializing_if = "is_get")]
    #[schemars(schema_with = "schema::method")]
    pub method: String,
    /// Starts with `/`; appended to the provider's base URL.
    #[schemars(schema_with = "schema::path")]
    pub path: String,
    /// Parameters; a list repeats its name. Sent sorted by name.
    #[serde(default, deserialize_with = "distinct", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::query")]
    pub query: BTreeMap<String, serde_json::Value>,
    /// Extra header fields.
    #[serde(default, deserialize_with = "distinct", skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "schema::headers")]
    pub headers: BTreeMap<String, String>,
    /// A JSON body, sent exactly as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
    /// A text body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Any other body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_base64")]
    pub base64: Option<String>,
}

fn get() -> String {
    "GET".to_owned()
}

fn is_get(method: &str) -> bool {
    method == "GET"
}

/// The bytes to send, and the content type they have unless the request names one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// No body.
    None,
    /// A body and its default content type.
    Bytes(Vec<u8>, &'static str),
}

impl Request {
    /// Checks everything that can be known without sending.
    pub(super) fn check(&self, rules: &ProviderRules) -> Result<(), Invalid> {
        self.check_method()?;
        check_path(&self.path)?;
        self.check_query(rules)?;
        self.check_headers(rules)?;
        self.check_body()
    }

    fn check_method(&self) -> Result<(), Invalid> {
        let known = Method::from_bytes(self.method.as_bytes()).is_ok()
            && !self.method.bytes().any(|b| b.is_ascii_lowercase())
            && !matches!(self.method.as_str(), "CONNECT" | "TRACE");
        if known {
            Ok(())
        } else {
            Err(Invalid::at(
                "request.method",
                "expected an HTTP method in capitals, such as GET or POST (CONNECT and TRACE are refused)",
            ))
        }
    }

    fn check_query(&self, rules: &ProviderRules) -> Result<(), Invalid> {
        for (name, value) in &self.query {
            let path = format!("request.query.{name}");
            if rules.credential_query.as_deref() == Some(name.as_str()) {
                return Err(Invalid::at(&path, "credentials are added by Paceline and are refused here"));
            }
            let scalar = |v: &serde_json::Value| v.is_string() || v.is_number() || v.is_boolean();
            let fits = scalar(value) || value.as_array().is_some_and(|list| list.iter().all(scalar));
            if !fits {
                return Err(Invalid::at(&path, "expected a string, a number, a boolean, or a list of these"));
            }
        }
        Ok(())
    }

    fn check_headers(&self, rules: &ProviderRules) -> Result<(), Invalid> {
        for (name, value) in &self.headers {
            let path = format!("request.headers.{}", name.escape_debug());
            let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
                return Err(Invalid::at(&path, "expected the name of a header field (letters, digits and - only)"));
            };
            let lower = parsed.as_str();
            if CREDENTIALS.contains(&lower) || rules.credential_header.as_deref() == Some(lower) {
                return Err(Invalid::at(&path, "credentials are added by Paceline and are refused here"));
            }
            if HOP_BY_HOP.contains(&lower) {
                return Err(Invalid::at(&path, "this field belongs to the connection and is set by the client"));
            }
            if lower == rules.idempotency_header {
                return Err(Invalid::at(&path, "use the field idempotency_key of the job instead"));
            }
            if HeaderValue::from_str(value).is_err() {
                return Err(Invalid::at(&path, "expected a value without line breaks and control characters"));
            }
        }
        Ok(())
    }

    fn check_body(&self) -> Result<(), Invalid> {
        let given = [self.body.is_some(), self.text.is_some(), self.base64.is_some()];
        if given.iter().filter(|g| **g).count() > 1 {
            return Err(Invalid::at("request", "expected at most one of body, text and base64"));
        }
        if let Some(body) = &self.body {
            serde_json::from_str::<serde_json::Value>(body.get())
                .map_err(|e| Invalid::at("request.body", format!("expected JSON: {e}")))?;
        }
        if let Some(text) = &self.base64 {
            STANDARD
                .decode(text)
                .map_err(|e| Invalid::at("request.base64", format!("expected standard base64 with padding: {e}")))?;
        }
        Ok(())
    }

    /// The body to send.
    ///
    /// # Errors
    /// [`Invalid`] where `base64` does not decode; a checked request never errs.
    pub fn body(&self) -> Result<Body, Invalid> {
        if let Some(json) = &self.body {
            return Ok(Body::Bytes(json.get().as_bytes().to_vec(), "application/json"));
        }
        if let Some(text) = &self.text {
            return Ok(Body::Bytes(text.as_bytes().to_vec(), "text/plain; charset=utf-8"));
        }
        let Some(encoded) = &self.base64 else { return Ok(Body::None) };
        let bytes = STANDARD.decode(encoded).map_err(|e| Invalid::at("request.base64", e.to_string()))?;
        Ok(Body::Bytes(bytes, "application/octet-stream"))
    }

    /// Content for the canonical hash: defaults filled in, names of header fields lowered.
    pub(super) fn canonical(&self) -> serde_json::Value {
        let headers: BTreeMap<String, &String> =
            self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let body = self.body.as_ref().map(|b| serde_json::from_str::<serde_json::Value>(b.get()).unwrap_or_default());
        serde_json::json!({
            "method": self.method, "path": self.path, "query": self.query, "headers": headers,
            "body": body, "has_body": self.body.is_some(), "text": self.text, "base64": self.base64,
        })
    }
}

/// A path that stays below the base URL whatever a server or proxy on the way makes of it.
fn check_path(path: &str) -> Result<(), Invalid> {
    let refuse = |why: &str| Err(Invalid::at("request.path", why));
    if !path.starts_with('/') {
        return refuse("expected a path that starts with /");
    }
    if path.starts_with("//") {
        return refuse("expected a path, not another host: it must not start with //");
    }
    if path.contains(['?', '#']) {
        return refuse("expected a path without ? and #: use request.query for parameters");
    }
    if path.contains('\\') || path.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return refuse("expected a path without backslashes, blanks and control characters: percent-encode them");
    }
    if !percent_encoding_is_valid(path) {
        return refuse("expected % to be followed by two hexadecimal digits");
    }
    let decoded = percent_encoding::percent_decode_str(path).collect::<Vec<u8>>();
    if decoded.iter().any(|b| b.is_ascii_control() || *b == b'\\') {
        return refuse("expected a path without encoded control characters and backslashes");
    }
    if decoded.split(|b| *b == b'/').any(|segment| segment == b".." || segment == b".") {
        return refuse("expected a path without the segments . and .. (also percent-encoded)");
    }
    if path.len() > 8 * 1024 {
        return refuse("expected at most 8 KiB");
    }
    Ok(())
}

fn percent_encoding_is_valid(path: &str) -> bool {
    let bytes = path.as_bytes();
    bytes.iter().enumerate().filter(|(_, b)| **b == b'%').all(|(i, _)| {
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        digit(i + 1) && digit(i + 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> ProviderRules {
        ProviderRules {
            credential_header: Some("x-secret".into()),
            credential_query: Some("api_token".into()),
            ..ProviderRules::default()
        }
    }

    fn check(json: serde_json::Value) -> Result<(), Invalid> {
        serde_json::from_value::<Request>(json).expect("well-formed").check(&rules())
    }

    #[test]
    fn paths_that_would_leave_the_base_url_are_refused() {
        for path in [
            "",
            "evil",
            "//evil",
            "@evil",
            "/..",
            "/a/../b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a\\..\\b",
            "/a%5c..",
            "/a?b=1",
            "/a#b",
            "/a b",
            "/a\r\nHost: evil",
            "/a%0d%0a",
            "/a%",
            "/a%zz",
            "http://evil/",
            "/./a",
            "/%00",
        ] {
            let error = check(serde_json::json!({ "path": path })).expect_err(path);
            assert_eq!(error.path, "$.request.path", "{path}");
        }
        for path in ["/", "/v1/geocode", "/a//b", "/a/..b", "/@me", "/a:b", "/%e4%bd%a0", "/ä"] {
            check(serde_json::json!({ "path": path })).expect(path);
        }
    }

    #[test]
    fn headers_that_inject_or_carry_credentials_are_refused() {
        for (name, value) in [
            ("x-a", "b\r\nx: y"),
            ("x\r\na", "b"),
            ("Authorization", "Bearer x"),
            ("X-Secret", "x"),
            ("Host", "evil"),
            ("Transfer-Encoding", "chunked"),
            ("Idempotency-Key", "x"),
            ("", "x"),
        ] {
            let error = check(serde_json::json!({ "path": "/", "headers": { name: value } })).expect_err(name);
            assert!(error.path.starts_with("$.request.headers."), "{error}");
        }
        check(serde_json::json!({ "path": "/", "headers": { "X-Trace": "1" } })).expect("fine");
    }

    #[test]
    fn queries_bodies_and_methods_are_checked() {
        let field = |json| check(json).expect_err("refused").path;
        assert_eq!(
            field(serde_json::json!({ "path": "/", "query": { "api_token": "x" } })),
            "$.request.query.api_token"
        );
        assert_eq!(field(serde_json::json!({ "path": "/", "query": { "a": {} } })), "$.request.query.a");
        assert_eq!(field(serde_json::json!({ "path": "/", "method": "get" })), "$.request.method");
        assert_eq!(field(serde_json::json!({ "path": "/", "method": "TRACE" })), "$.request.method");
        assert_eq!(field(serde_json::json!({ "path": "/", "text": "a", "base64": "" })), "$.request");
        assert_eq!(field(serde_json::json!({ "path": "/", "base64": "?" })), "$.request.base64");
    }
}
