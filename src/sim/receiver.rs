//! The webhook receiver: verifies every delivery as a customer would, and keeps count of what arrived.
//!
//! Signatures are checked by the `standardwebhooks` crate, not by code of this project.
//!
//! | path | answer to a verified delivery |
//! |---|---|
//! | `/hook`, and any other path | 204 |
//! | `/hook/fail/2` | 503 the first 2 times for each webhook-id, then 204 |
//! | `/hook/retry-after/3` | 503 with `Retry-After: 3` the first time for each webhook-id, then 204 |
//! | `/hook/status/500` | that status |
//! | `/hook/gone` | 410 |
//! | `/hook/slow/250` | 204 after 250 ms |
//! | `/hook/hang` | none until the sender leaves |
//! | `/hook/redirect?to=…` | 302 with `Location` |
//!
//! Further segments are ignored, so that one behaviour can serve many endpoints (`/hook/fail/2/tenant-a`): an
//! endpoint is its path. A delivery with a bad signature is answered 401, whatever its path.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::request::Parts;
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use standardwebhooks::{HEADER_WEBHOOK_ID, Webhook, WebhookError};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::SimBody;
use super::control;
use super::error::{SimError, WaitTimeout};
use super::ledger::kept;
use super::reply;
use super::serve::{self, Cut, Unread};

/// Most endpoints with statistics of their own.
const ENDPOINTS_MAX: usize = 4_096;
/// Longest `/hook/slow`.
const SLOW_MAX_MS: u64 = 3_600_000;

/// The receiver's options.
#[derive(Clone)]
pub struct ReceiverOptions {
    /// Where to listen; port 0 picks a free one. Only used by [`ReceiverSim::start`].
    pub listen: SocketAddr,
    /// Secrets (`whsec_<base64>`), any of which may have signed. Empty: nothing is verified, and `verified` stays 0.
    pub secrets: Vec<String>,
    /// Most pairs of webhook-id and endpoint that are remembered. Further ones are answered 503 and counted.
    pub ledger_capacity: usize,
    /// Largest body.
    pub body_max_bytes: usize,
    /// Most connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Whether `/_sim/…` answers.
    pub control: bool,
}

impl Default for ReceiverOptions {
    fn default() -> Self {
        ReceiverOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            secrets: Vec::new(),
            ledger_capacity: 500_000,
            body_max_bytes: 1 << 20,
            connections_max: 4_096,
            control: true,
        }
    }
}

impl std::fmt::Debug for ReceiverOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiverOptions")
            .field("listen", &self.listen)
            .field("secrets", &self.secrets.len())
            .field("ledger_capacity", &self.ledger_capacity)
            .finish_non_exhaustive()
    }
}

/// One event at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// The `webhook-id`.
    pub webhook_id: Box<str>,
    /// The endpoint.
    pub path: Box<str>,
    /// The event's `type`, such as `job.succeeded`.
    #[serde(rename = "type")]
    pub event_type: Box<str>,
    /// `data.job_id`.
    pub job_id: Box<str>,
    /// `data.state`.
    pub state: Box<str>,
    /// `data.tenant`.
    pub tenant: Option<Box<str>>,
    /// The first delivery, in microseconds since the receiver started.
    pub first_at_us: u64,
    /// Verified deliveries.
    pub deliveries: u32,
    /// How many of them were answered 2xx; above 1 an acknowledged event was sent again.
    pub acknowledged: u32,
    /// Which of the secrets had signed the last one.
    pub secret: usize,
    /// Whether a later delivery of the same id carried another type, job or state.
    pub changed: bool,
}

/// What the receiver has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiverStats {
    /// Requests, control aside.
    pub requests: u64,
    /// Deliveries with a good signature.
    pub verified: u64,
    /// Deliveries whose signature or its headers were missing, wrong or too old.
    pub bad_signature: u64,
    /// Verified deliveries whose body is not an event of the contract.
    pub malformed: u64,
    /// Distinct webhook-ids.
    pub distinct: u64,
    /// Distinct webhook-ids that were answered 2xx at least once.
    pub acknowledged: u64,
    /// Verified deliveries of an id that the endpoint had seen before (retries included).
    pub duplicates: u64,
    /// Those of an id that the endpoint had answered 2xx before.
    pub duplicates_acknowledged: u64,
    /// Deliveries that did not fit into the ledger.
    pub dropped: u64,
    /// Distinct ids by event type.
    pub by_type: BTreeMap<String, u64>,
    /// Endpoints.
    pub endpoints: BTreeMap<String, EndpointStats>,
}

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointStats {
    /// Requests.
    pub requests: u64,
    /// Answered 2xx.
    pub acknowledged: u64,
    /// Open now.
    pub open: u64,
    /// Most that were open at once.
    pub open_peak: u64,
}

/// Starts receivers.
#[derive(Debug)]
pub struct ReceiverSim;

impl ReceiverSim {
    /// Listens at `options.listen` and serves until the handle is shut down or dropped.
    pub async fn start(options: ReceiverOptions) -> Result<ReceiverHandle, SimError> {
        let listener = serve::listen(options.listen).await?;
        ReceiverSim::start_on(options, listener, CancellationToken::new())
    }

    /// Serves a listener of the caller's until `shutdown` is cancelled, or the handle is shut down or dropped. Must be
    /// called within a Tokio runtime.
    pub fn start_on(
        options: ReceiverOptions,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<ReceiverHandle, SimError> {
        let addr = serve::address(&listener, options.listen)?;
        let mut verifiers = Vec::new();
        for (at, secret) in options.secrets.iter().enumerate() {
            let verifier = Webhook::new(secret).map_err(|_| SimError::Option {
                field: "secrets",
                problem: format!("number {at} is not whsec_<base64>"),
            })?;
            verifiers.push(verifier);
        }
        let stop = shutdown.child_token();
        let tasks = TaskTracker::new();
        let connections = options.connections_max.max(1);
        let shared = Arc::new(Shared {
            options,
            verifiers,
            start: Instant::now(),
            book: Mutex::new(Book::default()),
            changed: Notify::new(),
            stop: stop.clone(),
            tasks: tasks.clone(),
        });
        let answering = shared.clone();
        let handler = move |request| answer(answering.clone(), request);
        tasks.spawn(serve::serve(listener, stop, tasks.clone(), connections, handler));
        Ok(ReceiverHandle { addr, shared })
    }
}

/// A running receiver. Dropping it ends the server.
#[derive(Debug)]
pub struct ReceiverHandle {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl ReceiverHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:<port>`, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// `http://127.0.0.1:<port>/hook<suffix>`; the suffix begins with a slash or is empty.
    pub fn hook(&self, suffix: &str) -> String {
        format!("http://{}/hook{suffix}", self.addr)
    }

    /// Every event at every endpoint, in the order of first delivery.
    pub fn events(&self) -> Vec<EventRecord> {
        self.shared.with_events(|events, _| events.to_vec())
    }

    /// Counters.
    pub fn stats(&self) -> ReceiverStats {
        self.shared.stats()
    }

    /// Forgets all.
    pub fn reset(&self) {
        self.shared.clear();
    }

    /// Waits until `wanted` distinct events were delivered and verified, whatever was answered.
    pub async fn wait_distinct(&self, wanted: u64, within: Duration) -> Result<(), WaitTimeout> {
        self.wait("distinct events", wanted, within, |stats| stats.distinct).await
    }

    /// Waits until `wanted` distinct events were answered 2xx.
    pub async fn wait_acknowledged(&self, wanted: u64, within: Duration) -> Result<(), WaitTimeout> {
        self.wait("acknowledged events", wanted, within, |stats| stats.acknowledged).await
    }

    /// Waits until a count reaches `wanted`, looking each time that something arrived.
    pub async fn wait(
        &self,
        what: &'static str,
        wanted: u64,
        within: Duration,
        count: impl Fn(&ReceiverStats) -> u64,
    ) -> Result<(), WaitTimeout> {
        let deadline = Instant::now() + within;
        loop {
            let mut changed = pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let seen = count(&self.shared.lock().stats);
            if seen >= wanted {
                return Ok(());
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(WaitTimeout { what, wanted, seen, waited: within });
            }
        }
    }

    /// Ends the server and its connections, and waits until all are gone.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for ReceiverHandle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Everything the connections of one receiver share.
pub(crate) struct Shared {
    options: ReceiverOptions,
    verifiers: Vec<Webhook>,
    start: Instant,
    book: Mutex<Book>,
    changed: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What has arrived.
#[derive(Debug, Default)]
struct Book {
    stats: ReceiverStats,
    events: Vec<EventRecord>,
    by_id: HashMap<Box<str>, Vec<usize>>,
    acknowledged: HashSet<Box<str>>,
}

/// The part of an event that is kept.
#[derive(Default, Deserialize)]
struct Event {
    #[serde(rename = "type", default)]
    event_type: Box<str>,
    #[serde(default)]
    data: EventData,
}

#[derive(Default, Deserialize)]
struct EventData {
    #[serde(default)]
    job_id: Box<str>,
    #[serde(default)]
    state: Box<str>,
    #[serde(default)]
    tenant: Option<Box<str>>,
}

/// What an endpoint does with a verified delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Manner {
    Accept,
    Fail { times: u64 },
    RetryAfter { seconds: u64 },
    Status(StatusCode),
    Slow(Duration),
    Hang,
    Redirect,
}

/// A request that is being answered, counted as open at its endpoint until it is dropped.
struct Visit<'a> {
    shared: &'a Shared,
    path: Box<str>,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.shared.lock().stats.endpoints.get_mut(&*self.path) {
            endpoint.open = endpoint.open.saturating_sub(1);
        }
    }
}

impl Shared {
    /// The book. A panic elsewhere does not make the counters wrong.
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> ReceiverStats {
        self.lock().stats.clone()
    }

    /// Reads the events in place, and how many did not fit.
    pub(crate) fn with_events<T>(&self, read: impl FnOnce(&[EventRecord], u64) -> T) -> T {
        let book = self.lock();
        read(&book.events, book.stats.dropped)
    }

    pub(crate) fn clear(&self) {
        let mut book = self.lock();
        let mut endpoints = std::mem::take(&mut book.stats.endpoints);
        *book = Book::default();
        endpoints.retain(|_, endpoint| endpoint.open > 0);
        for endpoint in endpoints.values_mut() {
            let open = endpoint.open;
            *endpoint = EndpointStats { open, open_peak: open, ..EndpointStats::default() };
        }
        book.stats.endpoints = endpoints;
    }

    fn enter(&self, path: &str) -> Visit<'_> {
        let mut book = self.lock();
        book.stats.requests += 1;
        let endpoints = &mut book.stats.endpoints;
        let known = endpoints.contains_key(path) || endpoints.len() < ENDPOINTS_MAX;
        let path = if known { path } else { "(others)" };
        let endpoint = endpoints.entry(path.to_owned()).or_default();
        endpoint.requests += 1;
        endpoint.open += 1;
        endpoint.open_peak = endpoint.open_peak.max(endpoint.open);
        Visit { shared: self, path: Box::from(path) }
    }

    /// The index of the secret that signed.
    fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<usize, WebhookError> {
        let mut reason = WebhookError::InvalidSignature;
        for (at, verifier) in self.verifiers.iter().enumerate() {
            match verifier.verify(body, headers) {
                Ok(()) => return Ok(at),
                Err(error) => reason = error,
            }
        }
        Err(reason)
    }
}

impl Book {
    /// Notes a delivery; returns its place and how often the endpoint has seen it, this time included.
    fn note(&mut self, new: EventRecord, capacity: usize) -> Option<(usize, u64)> {
        let places = self.by_id.get(&new.webhook_id).map_or(&[][..], Vec::as_slice);
        if let Some(&at) = places.iter().find(|at| self.events[**at].path == new.path) {
            let seen = &mut self.events[at];
            seen.deliveries += 1;
            seen.secret = new.secret;
            seen.changed |= (&seen.event_type, &seen.job_id, &seen.state) != (&new.event_type, &new.job_id, &new.state);
            self.stats.duplicates += 1;
            self.stats.duplicates_acknowledged += u64::from(seen.acknowledged > 0);
            return Some((at, u64::from(seen.deliveries)));
        }
        if self.events.len() >= capacity {
            self.stats.dropped += 1;
            return None;
        }
        if places.is_empty() {
            self.stats.distinct += 1;
            // Types come from outside: only as many as there can be in the contract are told apart.
            let known = self.stats.by_type.len() < 64;
            let name = if known { &*new.event_type } else { "(others)" };
            *self.stats.by_type.entry(name.to_owned()).or_default() += 1;
        }
        let at = self.events.len();
        self.by_id.entry(new.webhook_id.clone()).or_default().push(at);
        self.events.push(new);
        Some((at, 1))
    }

    fn acknowledge(&mut self, at: usize, id: &str, path: &str) {
        // Between note and acknowledge everything may have been forgotten.
        if let Some(event) = self.events.get_mut(at).filter(|event| *event.webhook_id == *id) {
            event.acknowledged += 1;
            if self.acknowledged.insert(Box::from(id)) {
                self.stats.acknowledged += 1;
            }
        }
        if let Some(endpoint) = self.stats.endpoints.get_mut(path) {
            endpoint.acknowledged += 1;
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<SimBody>, Cut> {
    if shared.options.control && request.uri().path().starts_with(control::PREFIX) {
        return Ok(control::receiver(&shared, request.method(), request.uri()));
    }
    let (head, body) = request.into_parts();
    let visit = shared.enter(head.uri.path());
    let body = match serve::read(body, shared.options.body_max_bytes).await {
        Ok(body) => body,
        Err(Unread::Broken) => return Err(Cut),
        Err(Unread::TooLarge) => return Ok(reply::empty(StatusCode::PAYLOAD_TOO_LARGE)),
    };
    if head.method != Method::POST {
        return Ok(reply::empty(StatusCode::METHOD_NOT_ALLOWED));
    }
    let noted = receive(&shared, &visit, &head, &body);
    shared.changed.notify_waiters();
    let (at, seen) = match noted {
        Ok(noted) => noted,
        Err(response) => return Ok(*response),
    };
    let response = behave(&shared, &head, seen).await?;
    if response.status().is_success() {
        shared.lock().acknowledge(at, webhook_id(&head), &visit.path);
        shared.changed.notify_waiters();
    }
    Ok(response)
}

/// Verifies a delivery and writes it down; returns its place and how often this endpoint has seen it.
fn receive(
    shared: &Shared,
    visit: &Visit<'_>,
    head: &Parts,
    body: &Bytes,
) -> Result<(usize, u64), Box<Response<SimBody>>> {
    let signed = match shared.verifiers.is_empty() {
        true => Ok(0),
        false => shared.verify(&head.headers, body),
    };
    let parsed = serde_json::from_slice::<Event>(body);
    let mut book = shared.lock();
    let secret = match signed {
        Ok(secret) => secret,
        Err(error) => {
            book.stats.bad_signature += 1;
            let message = error.to_string();
            return Err(Box::new(reply::error(StatusCode::UNAUTHORIZED, "bad_signature", &message)));
        }
    };
    book.stats.verified += u64::from(!shared.verifiers.is_empty());
    let event = parsed.unwrap_or_default();
    if event.event_type.is_empty() || event.data.job_id.is_empty() {
        book.stats.malformed += 1;
    }
    let record = EventRecord {
        webhook_id: kept(webhook_id(head)),
        path: visit.path.clone(),
        event_type: kept(&event.event_type),
        job_id: kept(&event.data.job_id),
        state: kept(&event.data.state),
        tenant: event.data.tenant.as_deref().map(kept),
        first_at_us: u64::try_from(shared.start.elapsed().as_micros()).unwrap_or(u64::MAX),
        deliveries: 1,
        acknowledged: 0,
        secret,
        changed: false,
    };
    let noted = book.note(record, shared.options.ledger_capacity);
    noted.ok_or_else(|| {
        Box::new(reply::error(StatusCode::SERVICE_UNAVAILABLE, "ledger_full", "the receiver remembers no more events"))
    })
}

async fn behave(shared: &Shared, head: &Parts, seen: u64) -> Result<Response<SimBody>, Cut> {
    Ok(match Manner::read(head.uri.path()) {
        Manner::Accept => reply::empty(StatusCode::NO_CONTENT),
        Manner::Fail { times } if seen <= times => reply::empty(StatusCode::SERVICE_UNAVAILABLE),
        Manner::Fail { .. } => reply::empty(StatusCode::NO_CONTENT),
        Manner::RetryAfter { seconds } if seen == 1 => {
            let mut response = reply::empty(StatusCode::SERVICE_UNAVAILABLE);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
            response
        }
        Manner::RetryAfter { .. } => reply::empty(StatusCode::NO_CONTENT),
        Manner::Status(status) => reply::empty(status),
        Manner::Slow(by) => {
            tokio::time::sleep(by).await;
            reply::empty(StatusCode::NO_CONTENT)
        }
        Manner::Hang => {
            shared.stop.cancelled().await; // or until the sender leaves, which drops all of this
            return Err(Cut);
        }
        Manner::Redirect => {
            let mut response = reply::empty(StatusCode::FOUND);
            let query = head.uri.query().unwrap_or_default().as_bytes();
            let to = url::form_urlencoded::parse(query).find(|(name, _)| name == "to");
            let to = to.map_or_else(|| "/hook".to_owned(), |(_, to)| to.into_owned());
            if let Ok(to) = HeaderValue::from_str(&to) {
                response.headers_mut().insert(LOCATION, to);
            }
            response
        }
    })
}

impl Manner {
    /// What cannot be read accepts.
    fn read(path: &str) -> Self {
        let mut segments = path.trim_start_matches('/').split('/').skip(1);
        let name = segments.next().unwrap_or_default();
        let amount = segments.next().and_then(|text| text.parse::<u64>().ok());
        match name {
            "fail" => Manner::Fail { times: amount.unwrap_or(1) },
            "retry-after" => Manner::RetryAfter { seconds: amount.unwrap_or(1) },
            "status" => {
                let code = amount.and_then(|code| u16::try_from(code).ok());
                let code = code.filter(|code| (200..=599).contains(code));
                code.and_then(|code| StatusCode::from_u16(code).ok()).map_or(Manner::Accept, Manner::Status)
            }
            "gone" => Manner::Status(StatusCode::GONE),
            "slow" => Manner::Slow(Duration::from_millis(amount.unwrap_or(250).min(SLOW_MAX_MS))),
            "hang" => Manner::Hang,
            "redirect" => Manner::Redirect,
            _ => Manner::Accept,
        }
    }
}

fn webhook_id(head: &Parts) -> &str {
    head.headers.get(HEADER_WEBHOOK_ID).and_then(|id| id.to_str().ok()).unwrap_or_default()
}
