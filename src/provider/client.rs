//! Sends one call and bounds what comes back. Never follows a redirect, never uses a proxy that
//! nobody configured, never retries by itself, and never lets a URL into an error: it can hold a
//! key.

use std::error::Error as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::{redact, request};
use crate::config::{Auth, Policy, Provider};
use crate::job::Job;
use crate::secrets::Secret;

/// A connection must stand within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections kept open to a provider.
const IDLE_CONNECTIONS_MAX: usize = 256;
/// Idle connections are closed before most servers close them.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// What is kept of a response body.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A client of one provider. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base_url: url::Url,
    auth: Auth,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificate authority cannot be read.
    #[error("cannot read {path}")]
    CaFile {
        /// Its path.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The TLS library refused.
    #[error("cannot set up the HTTP client")]
    Tls(#[source] reqwest::Error),
}

/// A provider's answer, keys masked.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header fields.
    pub headers: HeaderMap,
    /// The body, or its first mebibyte.
    pub body: Bytes,
    /// There was more.
    pub truncated: bool,
}

/// A call without a whole answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It surely never reached the provider.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have reached the provider.
    #[error("{0}")]
    Lost(String),
    /// It cannot be made at all.
    #[error(transparent)]
    Request(#[from] request::RequestError),
}

impl Client {
    /// A client for that provider.
    ///
    /// # Errors
    /// [`ClientError`] where its certificate authority or TLS cannot be set up.
    pub fn new(provider: &Provider) -> Result<Self, ClientError> {
        let shortest = provider.policies().map(|policy| policy.timeout).min().unwrap_or(CONNECT_TIMEOUT);
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .referer(false)
            .user_agent(concat!("paceline/", env!("CARGO_PKG_VERSION")))
            // Shorter than the whole: a connection that does not come is known not to have been used.
            .connect_timeout(CONNECT_TIMEOUT.min(shortest.mul_f32(0.8)))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true);
        if let Some(path) = &provider.ca_file {
            let pem = std::fs::read(path).map_err(|source| ClientError::CaFile { path: path.clone(), source })?;
            let bundle = reqwest::Certificate::from_pem_bundle(&pem).map_err(ClientError::Tls)?;
            builder = builder.tls_certs_merge(bundle);
        }
        Ok(Self {
            http: builder.build().map_err(ClientError::Tls)?,
            base_url: provider.base_url.clone(),
            auth: provider.auth.clone(),
        })
    }

    /// Makes the call as its policy says. `on_head` hears of the first byte of the answer: windows are anchored
    /// there, long before a slow body ends.
    ///
    /// # Errors
    /// [`CallError`] tells a call that was never sent from one whose fate is unknown.
    pub async fn call(
        &self,
        job: &Job,
        key: Option<&Secret>,
        policy: &Policy,
        on_head: impl FnOnce(u16, &HeaderMap),
    ) -> Result<Answer, CallError> {
        let request = request::build(&self.base_url, &self.auth, key, &policy.idempotency_header, job)?;
        let forms = key.map(|k| redact::forms(k.expose(), &self.auth)).unwrap_or_default();
        let deadline = tokio::time::Instant::now() + policy.timeout;
        let response = tokio::time::timeout_at(deadline, self.http.execute(request))
            .await
            .map_err(|_| CallError::Lost(format!("no answer within {:?}", policy.timeout)))?
            .map_err(|e| not_answered(e, &forms))?;
        on_head(response.status().as_u16(), response.headers());
        let status = response.status().as_u16();
        let headers = masked(response.headers(), &forms);
        let (body, truncated) = tokio::time::timeout_at(deadline, read(response))
            .await
            .map_err(|_| CallError::Lost(format!("status {status}, then no whole body within {:?}", policy.timeout)))?
            .map_err(|e| CallError::Lost(format!("status {status}, then half a body: {}", chain(e, &forms))))?;
        Ok(Answer { status, headers, body: redact::bytes(body, &forms), truncated })
    }
}

/// No connection and no TLS session: surely not sent. Everything else may have been.
fn not_answered(error: reqwest::Error, forms: &[String]) -> CallError {
    let not_sent = error.is_connect() || error.is_builder();
    let text = chain(error, forms);
    if not_sent { CallError::NotSent(text) } else { CallError::Lost(text) }
}

async fn read(mut response: reqwest::Response) -> Result<(Bytes, bool), reqwest::Error> {
    let Some(first) = response.chunk().await? else { return Ok((Bytes::new(), false)) };
    let Some(second) = response.chunk().await? else {
        let truncated = first.len() > BODY_BYTES_MAX;
        return Ok((first.slice(..first.len().min(BODY_BYTES_MAX)), truncated));
    };
    let mut body = BytesMut::from(first);
    body.extend_from_slice(&second);
    while body.len() <= BODY_BYTES_MAX {
        match response.chunk().await? {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    let truncated = body.len() > BODY_BYTES_MAX;
    body.truncate(BODY_BYTES_MAX);
    Ok((body.freeze(), truncated))
}

fn masked(headers: &HeaderMap, forms: &[String]) -> HeaderMap {
    let mut out = headers.clone();
    for value in out.values_mut() {
        let Ok(text) = value.to_str() else { continue };
        let clean = redact::text(text, forms);
        if clean != text
            && let Ok(clean) = clean.parse()
        {
            *value = clean;
        }
    }
    out
}

/// The error and its causes in one line, without the URL.
fn chain(error: reqwest::Error, forms: &[String]) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    redact::text(&text, forms)
}
