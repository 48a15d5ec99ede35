//! Builds the call: URL below the base, header fields, body, and the key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use url::Url;

use crate::config::Auth;
use crate::job::{Body, Job, Request};
use crate::secrets::Secret;

/// Who calls, unless the job says otherwise.
const AGENT: &str = concat!("paceline/", env!("CARGO_PKG_VERSION"));

/// Why a checked job cannot be made into a call: the configuration has changed since.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The path would leave the base URL.
    #[error("the path leads out of the provider's base URL")]
    LeavesBase,
    /// A field that no longer fits.
    #[error("{0}")]
    Field(String),
}

/// The URL to call, without the key.
pub(super) fn url(base: &Url, request: &Request) -> Result<Url, RequestError> {
    let base_path = base.path().trim_end_matches('/');
    let mut url = base.clone();
    url.set_path(&format!("{base_path}{}", request.path));
    let stays = url.origin() == base.origin()
        && url.path().strip_prefix(base_path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !stays {
        return Err(RequestError::LeavesBase);
    }
    if !request.query.is_empty() {
        let mut pairs = url.query_pairs_mut();
        for (name, value) in &request.query {
            match value {
                serde_json::Value::Array(list) => {
                    for item in list {
                        pairs.append_pair(name, &scalar(item));
                    }
                }
                single => {
                    pairs.append_pair(name, &scalar(single));
                }
            }
        }
    }
    Ok(url)
}

fn scalar(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The whole call. The key goes onto it last, marked sensitive so that no log prints it.
pub(super) fn build(
    base: &Url,
    auth: &Auth,
    key: Option<&Secret>,
    idempotency_header: &HeaderName,
    job: &Job,
) -> Result<http::Request<Bytes>, RequestError> {
    let mut url = url(base, &job.request)?;
    let method = Method::from_bytes(job.request.method.as_bytes())
        .map_err(|_| RequestError::Field("request.method is not an HTTP method".to_owned()))?;
    let mut headers = HeaderMap::with_capacity(job.request.headers.len() + 6);
    for (name, value) in &job.request.headers {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| RequestError::Field(format!("request.headers: {name:?} is not a field name")))?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| RequestError::Field(format!("request.headers.{name}: not a field value")))?;
        headers.append(name, value);
    }
    let body = job.request.body().map_err(|e| RequestError::Field(e.to_string()))?;
    let body = match body {
        Body::None => Bytes::new(),
        Body::Bytes(bytes, content_type) => {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(content_type));
            bytes.into()
        }
    };
    if let Ok(value) = HeaderValue::from_str(&job.idempotency_key) {
        headers.insert(idempotency_header, value);
    }
    if let Some(key) = key {
        put_key(&mut url, &mut headers, auth, key)?;
    }
    headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    let mut request = http::Request::new(body);
    // What it says holds the URL, and with it perhaps the key.
    *request.uri_mut() =
        url.as_str().parse().map_err(|_| RequestError::Field("the URL cannot be called".to_owned()))?;
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    Ok(request)
}

/// The credentials of HTTP Basic.
pub(super) fn basic(user: &str, key: &str) -> String {
    STANDARD.encode(format!("{user}:{key}"))
}

fn put_key(url: &mut Url, headers: &mut HeaderMap, auth: &Auth, key: &Secret) -> Result<(), RequestError> {
    let (name, text) = match auth {
        Auth::Query(name) => {
            url.query_pairs_mut().append_pair(name, key.expose());
            return Ok(());
        }
        Auth::Header { name, scheme: None } => (name.clone(), key.expose().to_owned()),
        Auth::Header { name, scheme: Some(scheme) } => (name.clone(), format!("{scheme} {}", key.expose())),
        Auth::Basic { user } => (AUTHORIZATION, format!("Basic {}", basic(user, key.expose()))),
    };
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| RequestError::Field("the key cannot be sent in a header field".to_owned()))?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{Catalog, Given, ProviderRules};

    fn job(request: serde_json::Value) -> Job {
        let mut catalog = Catalog::default();
        catalog.providers.insert("p".into(), ProviderRules::default());
        let envelope = serde_json::json!({ "id": "j1", "provider": "p", "request": request });
        Job::parse(envelope.to_string().as_bytes(), &Given::default(), &catalog).expect("valid")
    }

    fn built(base: &str, auth: Auth, request: serde_json::Value) -> http::Request<Bytes> {
        let base = Url::parse(base).expect("valid");
        build(&base, &auth, Some(&Secret::new("k y&1".into())), &idempotency_key(), &job(request)).expect("builds")
    }

    fn idempotency_key() -> HeaderName {
        HeaderName::from_static("idempotency-key")
    }

    fn bearer() -> Auth {
        Auth::Header { name: AUTHORIZATION, scheme: Some("Bearer".into()) }
    }

    #[test]
    fn paths_are_appended_to_the_base() {
        for (base, path, expected) in [
            ("https://x", "/v1/a", "https://x/v1/a"),
            ("https://x/", "/v1/a", "https://x/v1/a"),
            ("https://x/base", "/v1/a%20b", "https://x/base/v1/a%20b"),
            ("https://x/base/", "/", "https://x/base/"),
            ("https://x", "/@evil", "https://x/@evil"),
        ] {
            assert_eq!(built(base, bearer(), serde_json::json!({ "path": path })).uri(), expected);
        }
    }

    #[test]
    fn keys_go_where_the_provider_wants_them() {
        let request = serde_json::json!({ "path": "/a", "query": { "b": [1, "x y"], "a": true } });
        let call = built("https://x", bearer(), request.clone());
        assert_eq!(call.headers()[AUTHORIZATION], "Bearer k y&1");
        assert!(call.headers()[AUTHORIZATION].is_sensitive());
        assert_eq!(call.uri().query(), Some("a=true&b=1&b=x+y"));
        let call = built("https://x", Auth::Query("api_key".into()), request);
        assert_eq!(call.uri().query(), Some("a=true&b=1&b=x+y&api_key=k+y%261"));
        let call = built("https://x", Auth::Basic { user: "u".into() }, serde_json::json!({ "path": "/" }));
        assert_eq!(call.headers()[AUTHORIZATION], "Basic dTprIHkmMQ==");
    }

    #[test]
    fn bodies_go_out_as_they_were_written() {
        let call = built("https://x", bearer(), serde_json::json!({ "method": "POST", "path": "/", "text": "hi" }));
        assert_eq!(call.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        let envelope = br#"{"id":"j","provider":"p","request":{"method":"POST","path":"/","body":{"z":1.10,"a":12345678901234567890123}}}"#;
        let mut catalog = Catalog::default();
        catalog.providers.insert("p".into(), ProviderRules::default());
        let job = Job::parse(envelope, &Given::default(), &catalog).expect("valid");
        let call =
            build(&Url::parse("https://x").expect("valid"), &bearer(), None, &idempotency_key(), &job).expect("builds");
        assert_eq!(call.body(), &br#"{"z":1.10,"a":12345678901234567890123}"#[..]);
        assert_eq!(call.headers()["idempotency-key"], "j");
    }
}
