//! One attempt: a signed POST that reaches only what the guard lets it reach, and takes no more time
//! and memory than it may.
//!
//! The status decides; the answer's body is read only so that its connection can be used again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use reqwest::dns::Resolve;
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};
use url::Url;

use super::WebhookSettings;
use super::classify::{Answer, retry_after};
use super::keyring::{Keyring, Signer};
use super::payload::{payload, test_payload};
use super::sign::SignError;
use crate::clock::WallMs;
use crate::duration::HumanDuration;
use crate::net_guard::{GuardedResolver, NetGuard, Refused};
use crate::store::{DeliveryJob, Endpoint, Occasion};

/// For a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of an answer's body at most this much is read, for at most so long; a longer one costs its
/// connection.
const DRAIN_BYTES_MAX: usize = 4 * 1024;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(1);
/// Connections that nobody uses are closed after this long.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Longest text about a connection that is kept, in bytes.
const DETAIL_BYTES_MAX: usize = 300;

/// A delivery with its body written, once for the attempt.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The delivery's row.
    pub pk: i64,
    /// The claim's epoch.
    pub epoch: i64,
    /// Number of the attempt, from 1.
    pub n: u32,
    /// Its place in the schedule, from 1: [`Prepared::LAST`] is never tried again.
    pub step: u32,
    /// Where it goes. For logs there is the id: a URL can hold a token.
    pub endpoint: Arc<Endpoint>,
    /// What signs it.
    pub signer: Signer,
    /// `webhook-id`.
    pub event_id: String,
    /// The body.
    pub body: Bytes,
}

impl Prepared {
    /// The place in the schedule that is behind the end of every one.
    pub const LAST: u32 = u32::MAX;

    /// Writes the body and lets go of the rest.
    ///
    /// # Errors
    /// Those of [`payload`]: none that can be named.
    pub fn new(job: DeliveryJob, public_url: Option<&str>) -> Result<Self, serde_json::Error> {
        let step = job.attempts.saturating_sub(job.attempts_before).saturating_add(1);
        let (event_id, body, step) = match job.occasion {
            Occasion::Completion(event) => {
                let body = payload(&event, public_url)?;
                (event.id.clone(), body, step)
            }
            Occasion::Test { event_id, at_ms } => (event_id, test_payload(&job.endpoint.id, at_ms)?, Self::LAST),
        };
        Ok(Self {
            pk: job.pk,
            epoch: job.epoch,
            n: job.attempts.saturating_add(1),
            step,
            signer: Signer::from(&*job.endpoint),
            endpoint: job.endpoint,
            event_id,
            body,
        })
    }
}

/// Why an attempt had no answer. Never holds the URL, which can hold a token.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The URL cannot be read.
    #[error("the endpoint's URL is not valid: {0}")]
    Url(#[from] url::ParseError),
    /// Plain `http`, or something that is no web address.
    #[error(
        "the endpoint's URL must start with https:// (http:// only where webhooks.allow_http is set), found {0}://"
    )]
    Scheme(String),
    /// The guard does not let it be called.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The event cannot be signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The event's id cannot be a header field.
    #[error("the event's id cannot be sent")]
    Id(#[from] header::InvalidHeaderValue),
    /// Nothing in time.
    #[error("no answer within {0}")]
    Timeout(HumanDuration),
    /// No connection: no such host, refused, TLS.
    #[error("cannot connect: {}", detail(.0))]
    Connect(#[source] reqwest::Error),
    /// The connection ended early, or what came is not HTTP.
    #[error("the connection broke: {}", detail(.0))]
    Broken(#[source] reqwest::Error),
}

/// The client cannot be made: TLS, as a rule.
#[derive(Debug, thiserror::Error)]
#[error("the client of the webhooks cannot be made: {0}")]
pub struct ClientError(#[from] reqwest::Error);

/// Sends attempts. One for all endpoints: connections are kept and used again.
#[derive(Debug)]
pub struct Sender {
    client: reqwest::Client,
    guard: NetGuard,
    keyring: Keyring,
    allow_http: bool,
    timeout: Duration,
}

impl Sender {
    /// A sender with these secrets, bounds and permissions.
    ///
    /// # Errors
    /// [`ClientError`] where TLS cannot be set up.
    pub fn new(settings: &WebhookSettings) -> Result<Self, ClientError> {
        let guard = NetGuard::new(&settings.allow_networks);
        let resolver = guard.resolver();
        Self::resolving(settings, guard, resolver)
    }

    /// The same with names looked up elsewhere than the system does; what is found is judged alike.
    ///
    /// # Errors
    /// [`ClientError`] where TLS cannot be set up.
    pub fn over(settings: &WebhookSettings, resolver: Arc<dyn Resolve>) -> Result<Self, ClientError> {
        let guard = NetGuard::new(&settings.allow_networks);
        let resolver = guard.resolver_over(resolver);
        Self::resolving(settings, guard, resolver)
    }

    fn resolving(settings: &WebhookSettings, guard: NetGuard, resolver: GuardedResolver) -> Result<Self, ClientError> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("Paceline/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(resolver)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .https_only(!settings.allow_http)
            .connect_timeout(settings.timeout.min(CONNECT_TIMEOUT))
            .timeout(settings.timeout.saturating_add(DRAIN_TIME_MAX))
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(settings.concurrency)
            .build()?;
        Ok(Self {
            client,
            guard,
            keyring: Keyring::new(settings.secrets.clone(), Arc::clone(&settings.masters)),
            allow_http: settings.allow_http,
            timeout: settings.timeout,
        })
    }

    /// Posts the delivery, signed with the time `at_ms`, and says what came back.
    ///
    /// # Errors
    /// [`SendError`] where there was no answer.
    pub async fn send(&self, delivery: &Prepared, at_ms: WallMs) -> Result<Answer, SendError> {
        let url = self.target(&delivery.endpoint.url)?;
        let head = self.head(delivery, at_ms)?;
        let call = self.client.post(url).headers(head).body(delivery.body.clone()).send();
        let response = match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.failure(error.without_url())),
            Err(_) => return Err(SendError::Timeout(HumanDuration(self.timeout))),
        };
        let answer = Answer { status: response.status(), retry_after: retry_after(response.headers(), at_ms) };
        drain(response).await;
        Ok(answer)
    }

    /// The URL, if it may be called as far as can be told before its name is looked up.
    fn target(&self, text: &str) -> Result<Url, SendError> {
        let url = Url::parse(text)?;
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            other => return Err(SendError::Scheme(other.to_owned())),
        }
        self.guard.check_url(&url)?;
        Ok(url)
    }

    fn head(&self, delivery: &Prepared, at_ms: WallMs) -> Result<HeaderMap, SendError> {
        let timestamp_s = at_ms.div_euclid(1000);
        let Prepared { signer, event_id, body, .. } = delivery;
        let signature = self.keyring.sign(signer, event_id, timestamp_s, body, at_ms)?;
        let mut head = HeaderMap::with_capacity(4);
        head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        head.insert(HeaderName::from_static(HEADER_WEBHOOK_ID), HeaderValue::from_str(&delivery.event_id)?);
        head.insert(HeaderName::from_static(HEADER_WEBHOOK_TIMESTAMP), HeaderValue::from(timestamp_s));
        head.insert(HeaderName::from_static(HEADER_WEBHOOK_SIGNATURE), HeaderValue::from_str(&signature)?);
        Ok(head)
    }

    fn failure(&self, error: reqwest::Error) -> SendError {
        if let Some(refused) = causes(&error).find_map(|cause| cause.downcast_ref::<Refused>()) {
            return SendError::Refused(refused.clone());
        }
        if error.is_connect() {
            SendError::Connect(error)
        } else if error.is_timeout() {
            SendError::Timeout(HumanDuration(self.timeout))
        } else {
            SendError::Broken(error)
        }
    }
}

/// Reads the rest of a short answer; a long or slow one is dropped, and its connection with it.
async fn drain(mut response: reqwest::Response) {
    let reading = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Ok(Some(chunk)) = response.chunk().await {
            left = match left.checked_sub(chunk.len()) {
                Some(left) => left,
                None => return,
            };
        }
    };
    // Whether it ended in time changes nothing: the status has been read.
    drop(tokio::time::timeout(DRAIN_TIME_MAX, reading).await);
}

fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
}

/// The innermost cause: "Connection refused" rather than "error sending request".
fn detail(error: &reqwest::Error) -> String {
    let mut text = causes(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    let end = (0..=DETAIL_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}
