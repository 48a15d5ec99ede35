//! One call at the provider: delayed, judged, carried out, delayed, answered.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::request::Parts;
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::behaviour::{Behaviour, Wish, WishError};
use super::body::SimBody;
use super::control;
use super::credential::{Caller, KeyBook, alias};
use super::delay::Dice;
use super::enforce::Nanos;
use super::gate::{Asked, Gate, Open, Ruling};
use super::ledger::{Arrival, Ledger, Verdict, kept};
use super::provider::{CostSource, Outage, ProviderOptions, RateHeaders, RetryAfter};
use super::reply::{self, Headers};
use super::serve::{self, Cut, Unread};

/// Most identities whose failures are remembered; further ones fail for good, saying so.
const FAILURES_MAX: usize = 1 << 20;
/// The value of a header of `/headers`; with its name and separators about 256 bytes.
const FILLING_BYTES: usize = 238;
const JUST_X: HeaderValue = HeaderValue::from_static("x");
const SECOND: Nanos = 1_000_000_000;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Everything the connections of one provider share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub options: ProviderOptions,
    pub clock: Clock,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub arrived: Notify,
    state: Mutex<State>,
    dice: Mutex<Dice>,
    delayed: bool,
}

/// What changes with each call.
#[derive(Debug)]
pub(crate) struct State {
    pub gate: Gate,
    pub ledger: Ledger,
    pub outage: Outage,
    pub tally: Tally,
    book: KeyBook,
    bad: HashSet<usize>,
    failures: HashMap<u64, u32>,
    hasher: RandomState,
}

/// Counters of the whole provider.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub accepted: u64,
    pub refused_limit: u64,
    pub refused_concurrency: u64,
    pub refused_credential: u64,
    pub refused_malformed: u64,
    pub executed: u64,
    pub delays: u64,
    pub delay_sum: Duration,
}

/// Monotonic time, counted from the Unix epoch as it was believed to be at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    epoch: Nanos,
}

/// The delays of one call.
#[derive(Clone, Copy, Debug)]
struct Delays {
    before: Duration,
    work: Duration,
    after: Duration,
}

/// A call with its body.
struct Call {
    head: Parts,
    body: Bytes,
    wish: Result<Wish, WishError>,
}

/// An accepted call that has not ended: counted by limits of concurrency until it is dropped.
struct Held {
    shared: Arc<Shared>,
    open: Open,
}

/// What was decided about a call.
struct Judged {
    act: Act,
    headers: Headers,
    held: Option<Held>,
}

/// A call with its judgement, ready to be answered.
struct Carried {
    call: Call,
    judged: Judged,
}

/// A request whose call has begun.
enum Begun {
    Answered(Box<Response<SimBody>>),
    Carried(Box<Carried>),
    Running(JoinHandle<Option<Result<Carried, Unread>>>),
}

enum Act {
    Refuse { status: StatusCode, code: &'static str, message: String },
    Do { status: StatusCode },
}

impl Clock {
    fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), epoch: nanos(epoch) }
    }

    pub(crate) fn now(&self) -> Nanos {
        self.epoch + nanos(self.start.elapsed())
    }

    pub(crate) fn since_start(&self, now: Nanos) -> Duration {
        Duration::from_nanos(now.saturating_sub(self.epoch))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.lock().gate.release(self.open);
    }
}

impl Shared {
    pub(crate) fn new(options: ProviderOptions, gate: Gate, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let labels = gate.keys().iter().enumerate();
        let bad = labels
            .filter(|(_, key)| options.bad_keys.iter().any(|bad| **bad == *key.label))
            .map(|(at, _)| at)
            .collect();
        let state = State {
            gate,
            ledger: Ledger::new(options.ledger_capacity),
            outage: options.outage,
            tally: Tally::default(),
            book: KeyBook::new(&options.keys),
            bad,
            failures: HashMap::new(),
            hasher: RandomState::new(),
        };
        let all = [&options.delay_before, &options.latency, &options.delay_after];
        Shared {
            delayed: all.iter().any(|delay| delay.is_some()),
            dice: Mutex::new(Dice::new(options.seed)),
            clock: Clock::start(),
            arrived: Notify::new(),
            state: Mutex::new(state),
            options,
            stop,
            tasks,
        }
    }

    /// The state. A panic elsewhere does not make the counters wrong.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self) -> Delays {
        if !self.delayed {
            return Delays { before: Duration::ZERO, work: Duration::ZERO, after: Duration::ZERO };
        }
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        Delays {
            before: dice.draw(self.options.delay_before.as_ref()),
            work: dice.draw(self.options.latency.as_ref()),
            after: dice.draw(self.options.delay_after.as_ref()),
        }
    }
}

/// Begins to answer one request. The call begins at once and on its own, so that one that was sent is judged and
/// carried out even if its caller is gone before the server looks at it again.
pub(crate) fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<SimBody>, Cut>> {
    let begun = begin(&shared, request);
    async move {
        let carried = match begun {
            Begun::Answered(response) => return Ok(*response),
            Begun::Carried(carried) => *carried,
            Begun::Running(task) => match task.await {
                Ok(Some(Ok(carried))) => carried,
                Ok(Some(Err(Unread::TooLarge))) => return Ok(too_large()),
                Ok(Some(Err(Unread::Broken)) | None) | Err(_) => return Err(Cut),
            },
        };
        conclude(&shared, carried).await
    }
}

fn begin(shared: &Arc<Shared>, request: Request<Incoming>) -> Begun {
    if shared.options.control && request.uri().path().starts_with(control::PREFIX) {
        let response = control::provider(shared, request.method(), request.uri());
        return Begun::Answered(Box::new(response));
    }
    let (head, body) = request.into_parts();
    let wish = Wish::read(head.uri.path(), head.uri.query());
    let call = Call { head, body: Bytes::new(), wish };
    if body.is_end_stream() && !shared.delayed && call.slow().is_zero() {
        let judged = judge(shared, &call, Duration::ZERO);
        return Begun::Carried(Box::new(Carried { call, judged }));
    }
    let carried = carry_out(shared.clone(), call, body);
    Begun::Running(shared.tasks.spawn(shared.stop.clone().run_until_cancelled_owned(carried)))
}

/// The way there, the judgement, the work and the way back.
async fn carry_out(shared: Arc<Shared>, mut call: Call, body: Incoming) -> Result<Carried, Unread> {
    call.body = match serve::read(body, shared.options.body_max_bytes).await {
        Ok(body) => body,
        Err(unread) => {
            note_unread(&shared, &call, unread);
            return Err(unread);
        }
    };
    let mut delays = shared.draw();
    delays.work += call.slow();
    wait(delays.before).await;
    let mut judged = judge(&shared, &call, delays.before + delays.work + delays.after);
    if judged.held.is_some() {
        wait(delays.work).await;
        if !call.streams() {
            judged.held = None;
        }
    }
    wait(delays.after).await;
    Ok(Carried { call, judged })
}

async fn wait(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

/// Decides about a call: credential, limits, then what its behaviour answers. One instant, one lock.
fn judge(shared: &Arc<Shared>, call: &Call, delay: Duration) -> Judged {
    let cost = call.cost(&shared.options.cost);
    let secret = call.secret(&shared.options);
    let mut state = shared.lock();
    let now = shared.clock.now();
    let entry = Entry { shared, call, cost, now };
    let judged = match state.who(secret.as_deref(), shared.options.keys_max) {
        Err(verdict) => state.refuse(&entry, None, verdict, Vec::new()),
        Ok(key) if state.gate.keys().get(key).is_some_and(|key| key.revoked) => {
            state.refuse(&entry, Some(key), Verdict::Revoked, Vec::new())
        }
        Ok(key) => state.pass(&entry, key, delay),
    };
    drop(state);
    shared.arrived.notify_waiters();
    judged
}

/// What the decision is about.
struct Entry<'a> {
    shared: &'a Arc<Shared>,
    call: &'a Call,
    cost: u64,
    now: Nanos,
}

impl State {
    fn who(&mut self, secret: Option<&str>, keys_max: usize) -> Result<usize, Verdict> {
        match (self.book.look_up(secret), secret) {
            (Caller::Key(at), _) => Ok(at),
            (Caller::Missing, _) => Err(Verdict::NoCredential),
            (Caller::New, Some(secret)) if self.gate.keys().len() < keys_max => {
                match self.gate.enter(alias(secret), None) {
                    Ok(at) => {
                        self.book.learn(secret, at);
                        Ok(at)
                    }
                    Err(_) => Ok(0), // cannot be: the rules were checked at the start
                }
            }
            (Caller::New, _) => Ok(0),
            (Caller::Unknown, _) => Err(Verdict::UnknownCredential),
        }
    }

    fn pass(&mut self, entry: &Entry<'_>, key: usize, delay: Duration) -> Judged {
        let wish = match &entry.call.wish {
            Ok(wish) => wish,
            Err(_) => return self.refuse(entry, Some(key), Verdict::Nonsense, Vec::new()),
        };
        let path = entry.call.head.uri.path();
        let ruling = self.gate.judge(entry.now, Asked { key, path, cost: entry.cost });
        let mut headers = self.rate_headers(entry, key);
        let open = match ruling {
            Ruling::Passed(open) => open,
            Ruling::Refused { rule, concurrency, wait } => {
                headers.extend(retry_after(entry, concurrency, wait));
                let verdict = match concurrency {
                    true => Verdict::OverConcurrency { rule },
                    false => Verdict::OverLimit { rule },
                };
                return self.refuse(entry, Some(key), verdict, headers);
            }
        };
        let status = self.status(entry.call, wish, key);
        let executed = wish.executed.unwrap_or_else(|| executes(&wish.behaviour, status));
        self.tally.accepted += 1;
        self.tally.executed += u64::from(executed);
        self.tally.delays += 1;
        self.tally.delay_sum += delay;
        if let Some(key) = self.gate.key_mut(key) {
            key.counts.executed += u64::from(executed);
        }
        let answered = answers(&wish.behaviour, status).then_some(status.as_u16());
        self.write(entry, Some(key), Verdict::Accepted, answered, executed);
        headers.extend(wish.headers.iter().cloned());
        let held = Held { shared: entry.shared.clone(), open };
        Judged { act: Act::Do { status }, headers, held: Some(held) }
    }

    fn refuse(&mut self, entry: &Entry<'_>, key: Option<usize>, verdict: Verdict, headers: Headers) -> Judged {
        let (status, code) = match verdict {
            Verdict::OverLimit { .. } => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Verdict::OverConcurrency { .. } => (StatusCode::TOO_MANY_REQUESTS, "too_many_open"),
            Verdict::NoCredential => (StatusCode::UNAUTHORIZED, "no_credential"),
            Verdict::UnknownCredential => (StatusCode::UNAUTHORIZED, "unknown_credential"),
            Verdict::Revoked => (StatusCode::UNAUTHORIZED, "revoked"),
            Verdict::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Verdict::Nonsense | Verdict::Accepted => (StatusCode::BAD_REQUEST, "nonsense"),
        };
        let message = match (verdict, &entry.call.wish) {
            (Verdict::OverLimit { rule } | Verdict::OverConcurrency { rule }, _) => {
                self.gate.rules().get(rule).map(|rule| format!("over the limit: {rule}"))
            }
            (Verdict::Nonsense, Err(error)) => Some(error.to_string()),
            _ => None,
        };
        self.tally.refuse(verdict);
        if let (Some(key), 401) = (key.and_then(|at| self.gate.key_mut(at)), status.as_u16()) {
            key.counts.refused_credential += 1;
        }
        self.write(entry, key, verdict, Some(status.as_u16()), false);
        let message = message.unwrap_or_else(|| code.to_owned());
        Judged { act: Act::Refuse { status, code, message }, headers, held: None }
    }

    /// The status that a behaviour answers this time.
    fn status(&mut self, call: &Call, wish: &Wish, key: usize) -> StatusCode {
        if self.outage == Outage::All {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        match &wish.behaviour {
            Behaviour::Status(status) | Behaviour::Redirect { status, .. } => *status,
            Behaviour::Gone => StatusCode::NOT_FOUND,
            Behaviour::BadKey if self.bad.contains(&key) => StatusCode::UNAUTHORIZED,
            Behaviour::Outage { status } if self.outage == Outage::Marked => *status,
            Behaviour::Fail { times, status } if self.fails(call, *times) => *status,
            _ => StatusCode::OK,
        }
    }

    /// Whether this is one of the first `times` calls of its identity.
    fn fails(&mut self, call: &Call, times: u32) -> bool {
        let identity = match call.idempotency_key() {
            Some(key) => self.hasher.hash_one(key),
            None => self.hasher.hash_one((call.head.uri.path(), call.head.uri.query())),
        };
        if self.failures.len() >= FAILURES_MAX && !self.failures.contains_key(&identity) {
            tracing::warn!("simulator remembers no more failures: this call fails");
            return true;
        }
        let seen = self.failures.entry(identity).or_default();
        *seen = seen.saturating_add(1);
        *seen <= times
    }

    fn write(&mut self, entry: &Entry<'_>, key: Option<usize>, verdict: Verdict, status: Option<u16>, executed: bool) {
        if !self.ledger.is_on() {
            return;
        }
        let label = key.and_then(|at| self.gate.keys().get(at)).map(|key| key.label.clone());
        self.ledger.write(Arrival {
            at: entry.shared.clock.since_start(entry.now),
            key: label.unwrap_or_else(|| Arc::from("")),
            method: entry.call.head.method.clone(),
            path: kept(entry.call.head.uri.path()),
            idempotency_key: entry.call.idempotency_key().map(kept),
            verdict,
            cost: entry.cost,
            status,
            executed,
        });
    }

    fn rate_headers(&mut self, entry: &Entry<'_>, key: usize) -> Headers {
        let style = entry.shared.options.rate_headers;
        if style == RateHeaders::None {
            return Vec::new();
        }
        let path = entry.call.head.uri.path();
        let Some((rule, gauge)) = self.gate.tightest(entry.now, key, path) else {
            return Vec::new();
        };
        let at = entry.now.saturating_add(gauge.reset_in);
        let delta = gauge.reset_in.div_ceil(SECOND);
        let reset = match style {
            RateHeaders::XEpochSeconds => at.div_ceil(SECOND),
            RateHeaders::XEpochMillis => at.div_ceil(1_000_000),
            RateHeaders::XDeltaSeconds | RateHeaders::Ietf | RateHeaders::None => delta,
        };
        if style == RateHeaders::Ietf {
            let per = self.gate.rules().get(rule).and_then(|rule| rule.limit.rate().1);
            let window = per.map_or(1, |per| nanos(per).div_ceil(SECOND));
            let policy = format!("\"default\";q={};w={window}", gauge.limit);
            let left = format!("\"default\";r={};t={delta}", gauge.remaining);
            return [("ratelimit-policy", policy), ("ratelimit", left)]
                .into_iter()
                .filter_map(|(name, text)| Some((HeaderName::from_static(name), HeaderValue::from_str(&text).ok()?)))
                .collect();
        }
        vec![
            (HeaderName::from_static("x-ratelimit-limit"), HeaderValue::from(gauge.limit)),
            (HeaderName::from_static("x-ratelimit-remaining"), HeaderValue::from(gauge.remaining)),
            (HeaderName::from_static("x-ratelimit-reset"), HeaderValue::from(reset)),
        ]
    }
}

impl Tally {
    fn refuse(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Accepted => {}
            Verdict::OverLimit { .. } => self.refused_limit += 1,
            Verdict::OverConcurrency { .. } => self.refused_concurrency += 1,
            Verdict::NoCredential | Verdict::UnknownCredential | Verdict::Revoked => {
                self.refused_credential += 1;
            }
            Verdict::TooLarge | Verdict::Nonsense => self.refused_malformed += 1,
        }
    }
}

impl Call {
    fn slow(&self) -> Duration {
        match &self.wish {
            Ok(Wish { behaviour: Behaviour::Slow(by), .. }) => *by,
            _ => Duration::ZERO,
        }
    }

    /// Whether the call stays open while it is answered.
    fn streams(&self) -> bool {
        use Behaviour::{Big, Drip, Half, Hang};
        let Ok(wish) = &self.wish else { return false };
        matches!(wish.behaviour, Hang | Half | Drip { .. } | Big(_))
    }

    fn idempotency_key(&self) -> Option<&str> {
        self.head.headers.get(IDEMPOTENCY_KEY)?.to_str().ok()
    }

    fn secret(&self, options: &ProviderOptions) -> Option<String> {
        let query = self.head.uri.query();
        options.key_places.iter().find_map(|place| place.find(&self.head.headers, query))
    }

    fn cost(&self, source: &CostSource) -> u64 {
        if let Ok(Wish { behaviour: Behaviour::Cost(cost), .. }) = &self.wish {
            return *cost;
        }
        let found = match source {
            CostSource::One => None,
            CostSource::Header(name) => {
                let value = self.head.headers.get(name).and_then(|value| value.to_str().ok());
                value.and_then(|text| text.trim().parse().ok())
            }
            CostSource::Json(pointer) => serde_json::from_slice::<serde_json::Value>(&self.body)
                .ok()
                .and_then(|body| body.pointer(pointer)?.as_u64()),
        };
        found.unwrap_or(1)
    }
}

/// Builds the answer; waits for ever where none is given.
async fn conclude(shared: &Shared, carried: Carried) -> Result<Response<SimBody>, Cut> {
    let Carried { call, mut judged } = carried;
    let mut response = match (&judged.act, &call.wish) {
        (Act::Refuse { status, code, message }, _) => reply::error(*status, code, message),
        (Act::Do { status }, Ok(wish)) if status.is_client_error() || status.is_server_error() => {
            let code = wish.reason.as_deref().unwrap_or("asked_for");
            reply::error(*status, code, "this answer was asked for")
        }
        (Act::Do { .. }, Ok(Wish { behaviour: Behaviour::Reset { .. }, .. })) => return Err(Cut),
        (Act::Do { .. }, Ok(Wish { behaviour: Behaviour::Hang, .. })) => {
            shared.stop.cancelled().await; // or until the caller leaves, which drops all of this
            return Err(Cut);
        }
        (Act::Do { status }, Ok(wish)) => succeed(&call, wish, *status),
        (Act::Do { .. }, Err(_)) => reply::empty(StatusCode::BAD_REQUEST),
    };
    if let (true, Some(held)) = (call.streams(), judged.held.take()) {
        let body = std::mem::replace(response.body_mut(), SimBody::whole(Bytes::new()));
        *response.body_mut() = body.holding(held);
    }
    for (name, value) in judged.headers {
        response.headers_mut().append(name, value);
    }
    Ok(response)
}

fn succeed(call: &Call, wish: &Wish, status: StatusCode) -> Response<SimBody> {
    match &wish.behaviour {
        Behaviour::Echo => reply::echo(&call.head, &call.body),
        Behaviour::Html => reply::garbage(),
        Behaviour::Big(bytes) => reply::bytes(SimBody::filler(*bytes)),
        Behaviour::Drip { bytes, every } => reply::bytes(SimBody::drip(*bytes, *every)),
        Behaviour::Half => reply::bytes(SimBody::half(1_000)),
        Behaviour::Headers(count) => {
            let mut response = reply::json_bytes(status, Bytes::from_static(b"{\"ok\":true}"));
            let value = HeaderValue::from_str(&"x".repeat(FILLING_BYTES)).unwrap_or(JUST_X);
            for at in 0..*count {
                if let Ok(name) = HeaderName::try_from(format!("x-filling-{at}")) {
                    response.headers_mut().insert(name, value.clone());
                }
            }
            response
        }
        Behaviour::Redirect { to, .. } => {
            let mut response = reply::empty(status);
            if let Ok(to) = HeaderValue::from_str(to) {
                response.headers_mut().insert(LOCATION, to);
            }
            response
        }
        Behaviour::Cost(cost) => reply::json(status, &json!({"ok": true, "usage": {"total_tokens": cost}})),
        _ if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED => reply::empty(status),
        _ => reply::json_bytes(status, Bytes::from_static(b"{\"ok\":true}")),
    }
}

/// A call whose body is over the largest size is in the ledger too; a broken one never arrived.
fn note_unread(shared: &Arc<Shared>, call: &Call, unread: Unread) {
    if unread != Unread::TooLarge {
        return;
    }
    let now = shared.clock.now();
    let entry = Entry { shared, call, cost: 0, now };
    // The answer is made by whoever waits for it, if anybody still does.
    drop(shared.lock().refuse(&entry, None, Verdict::TooLarge, Vec::new()));
    shared.arrived.notify_waiters();
}

fn too_large() -> Response<SimBody> {
    reply::error(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large")
}

/// Whether a call that answers `status` had its effect.
fn executes(behaviour: &Behaviour, status: StatusCode) -> bool {
    match behaviour {
        Behaviour::Reset { before } => !before && status.is_success(),
        Behaviour::Redirect { .. } => false,
        _ => status.as_u16() < 400,
    }
}

/// Whether there is an answer at all; an outage answers for every behaviour.
fn answers(behaviour: &Behaviour, status: StatusCode) -> bool {
    status.as_u16() >= 400 || !matches!(behaviour, Behaviour::Reset { .. } | Behaviour::Hang)
}

fn retry_after(entry: &Entry<'_>, concurrency: bool, wait: Option<Nanos>) -> Option<(HeaderName, HeaderValue)> {
    let wait = match (concurrency, wait) {
        (true, _) => SECOND,
        (false, wait) => wait?,
    };
    let value = match entry.shared.options.retry_after {
        RetryAfter::None => return None,
        RetryAfter::Seconds => HeaderValue::from(wait.div_ceil(SECOND).max(1)),
        RetryAfter::HttpDate => {
            let at = entry.now.saturating_add(wait).div_ceil(SECOND);
            let at = UNIX_EPOCH + Duration::from_secs(at);
            HeaderValue::from_str(&httpdate::fmt_http_date(at)).ok()?
        }
    };
    Some((RETRY_AFTER, value))
}

fn nanos(span: Duration) -> Nanos {
    Nanos::try_from(span.as_nanos()).unwrap_or(Nanos::MAX)
}
