//! The API of a running server, over HTTP.

use std::time::Duration;

use http::{Method, StatusCode};
use paceline::secrets::Secret;
use serde_json::{Value, json};
use url::Url;

use super::failure::{Exit, Failure};

/// A call ends within that time; the server gives up after 30 seconds itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Largest answer about readiness.
const READINESS_BYTES_MAX: usize = 64 * 1024;
/// Whether a server is there is known within that time.
const PROBE_WITHIN: Duration = Duration::from_millis(700);

/// A client of one API.
pub struct HttpApi {
    client: reqwest::Client,
    base: Url,
    token: Option<Secret>,
}

impl HttpApi {
    /// A client of the API at `url`.
    pub fn new(url: &str, token: Option<Secret>) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::usage(format!("--url: {why}, such as http://127.0.0.1:8080"));
        let mut base = Url::parse(url).map_err(|e| wrong(&format!("expected an absolute URL ({e})")))?;
        if !matches!(base.scheme(), "http" | "https") || base.cannot_be_a_base() {
            return Err(wrong("expected http or https"));
        }
        if !base.username().is_empty()
            || base.password().is_some()
            || base.query().is_some()
            || base.fragment().is_some()
        {
            return Err(wrong("expected a URL without user name, password, query and fragment"));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let is_own =
            matches!(base.host_str(), Some(host) if host == "localhost" || host == "[::1]" || host.starts_with("127."));
        if token.is_some() && base.scheme() == "http" && !is_own {
            tracing::warn!(
                "the token goes over plain HTTP to another machine: use https if the way there is not private"
            );
        }
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(ANSWER_WITHIN)
            .user_agent(concat!("paceline/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot make an HTTP client: {}", e.without_url())))?;
        Ok(Self { client, base, token })
    }

    /// Where it is.
    pub fn place(&self) -> String {
        self.base.as_str().trim_end_matches('/').to_owned()
    }

    /// Whether a paceline answers there.
    pub async fn is_there(&self) -> bool {
        let Ok(url) = self.base.join("healthz") else { return false };
        let Ok(answer) = self.client.get(url).timeout(PROBE_WITHIN).send().await else { return false };
        if answer.status() != StatusCode::OK {
            return false;
        }
        let Ok(body) = read(answer, 1024).await else { return false };
        serde_json::from_slice::<Value>(&body).is_ok_and(|json| json["service"] == "paceline")
    }

    /// What `/readyz` says, whatever its status.
    pub async fn readiness(&self) -> Result<Value, Failure> {
        let unreachable =
            |why: String| Failure::new(Exit::Unreachable, format!("cannot reach {}: {why}", self.place()));
        let url = self.base.join("readyz").map_err(|e| unreachable(e.to_string()))?;
        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        let answer = request.send().await.map_err(|e| unreachable(innermost(&e.without_url())))?;
        let body = read(answer, READINESS_BYTES_MAX).await.map_err(unreachable)?;
        serde_json::from_slice(&body).map_err(|e| unreachable(format!("the answer is not JSON: {e}")))
    }

    /// Makes a call; the body of an answer that is no problem document. `path` is put together of segments, each percent-encoded.
    pub async fn call(
        &self,
        method: Method,
        path: &[&str],
        query: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>, Failure> {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        let mut request = self.client.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let unreachable = |e: reqwest::Error| {
            let reason = innermost(&e.without_url());
            Failure::new(Exit::Unreachable, format!("cannot reach {}: {reason}", self.place()))
        };
        let answer = request.send().await.map_err(unreachable)?;
        let status = answer.status();
        let body = read(answer, ANSWER_BYTES_MAX)
            .await
            .map_err(|why| Failure::new(Exit::Unreachable, format!("no whole answer from {}: {why}", self.place())))?;
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let document = serde_json::from_slice::<Value>(body).ok().filter(|json| json["type"].is_string());
        let place = self.place();
        let document = document.unwrap_or_else(|| {
            json!({ "type": "about:blank", "title": format!("{place} answered {status}, and not as paceline does"), "status": status.as_u16() })
        });
        let mut failure = Failure::from_document(status.as_u16(), document);
        if status == StatusCode::UNAUTHORIZED {
            let hint = if self.token.is_some() {
                "the token in the environment is not known there"
            } else {
                "set PACELINE_TOKEN"
            };
            failure.message = format!("{place} wants a token: {hint}");
        }
        failure
    }
}

async fn read(mut answer: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|e| innermost(&e.without_url()))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("it is larger than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The reason behind the wrappings of an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
