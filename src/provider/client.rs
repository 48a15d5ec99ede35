//! Sends one call and bounds what comes back. Never follows a redirect, never uses a proxy that
//! nobody configured, never sends twice by itself, and never lets a URL into an error: it can hold a
//! key.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::connect::{Connections, connections};
use super::sending::{Caller, Times, Unanswered, chain, send};
use super::{redact, request};
use crate::config::{Auth, Policy, Provider};
use crate::job::Job;
use crate::secrets::Secret;

/// What is kept of a response body.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A client of one provider. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    connections: Connections,
    base_url: url::Url,
    auth: Auth,
    /// A call that found no connection until then would be counted after its slot is free again.
    counted_within: Duration,
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
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
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
    /// It surely never reached the provider: nothing of it was written.
    #[error("not sent: {0}")]
    NotSent(String),
    /// Its caller said that it may not leave any more, before it did.
    #[error("not sent: it was not allowed to leave any more")]
    Withheld,
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
        Ok(Self {
            connections: connections(provider)?,
            base_url: provider.base_url.clone(),
            auth: provider.auth.clone(),
            counted_within: provider.pool.counted_within,
        })
    }

    fn times(&self, policy: &Policy) -> Times {
        Times {
            connect: policy.connect_timeout().min(self.counted_within),
            first_byte: policy.first_byte_timeout(),
            whole: policy.timeout,
        }
    }

    /// Makes the call as its policy says, unless `caller` says before it has left that it may not. `on_head` hears of
    /// the first byte of the answer: windows are anchored there, long before a slow body ends.
    ///
    /// # Errors
    /// [`CallError`] tells a call that was never sent from one whose fate is unknown.
    pub async fn call(
        &self,
        job: &Job,
        key: Option<&Secret>,
        policy: &Policy,
        caller: &dyn Caller,
        on_head: impl FnOnce(u16, &HeaderMap),
    ) -> Result<Answer, CallError> {
        let request = request::build(&self.base_url, &self.auth, key, &policy.idempotency_header, job)?;
        let forms = key.map(|k| redact::forms(k.expose(), &self.auth)).unwrap_or_default();
        let (begun, times) = (Instant::now(), self.times(policy));
        let response = send(&self.connections, request, (begun, times), caller).await.map_err(|error| match error {
            Unanswered::Unsent(text) => CallError::NotSent(redact::text(&text, &forms)),
            Unanswered::Withheld => CallError::Withheld,
            Unanswered::Lost(text) => CallError::Lost(redact::text(&text, &forms)),
        })?;
        on_head(response.status().as_u16(), response.headers());
        let status = response.status().as_u16();
        let headers = masked(response.headers(), &forms);
        let (body, truncated) = timeout_at(begun + times.whole, read(response.into_body()))
            .await
            .map_err(|_| CallError::Lost(format!("status {status}, then no whole body within {:?}", times.whole)))?
            .map_err(|error| {
                let text = redact::text(&chain(&error), &forms);
                CallError::Lost(format!("status {status}, then half a body: {text}"))
            })?;
        Ok(Answer { status, headers, body: redact::bytes(body, &forms), truncated })
    }
}

async fn read(mut body: Incoming) -> Result<(Bytes, bool), hyper::Error> {
    // Most answers are one chunk, which is not copied.
    let Some(first) = chunk(&mut body).await? else { return Ok((Bytes::new(), false)) };
    let Some(second) = chunk(&mut body).await? else {
        let truncated = first.len() > BODY_BYTES_MAX;
        return Ok((first.slice(..first.len().min(BODY_BYTES_MAX)), truncated));
    };
    let mut kept = BytesMut::from(first);
    kept.extend_from_slice(&second);
    while kept.len() <= BODY_BYTES_MAX {
        match chunk(&mut body).await? {
            Some(chunk) => kept.extend_from_slice(&chunk),
            None => break,
        }
    }
    let truncated = kept.len() > BODY_BYTES_MAX;
    kept.truncate(BODY_BYTES_MAX);
    Ok((kept.freeze(), truncated))
}

/// The next bytes of a body; trailers are left out.
async fn chunk(body: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
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
