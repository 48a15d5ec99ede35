//! `GET /v1/events`: completions as they happen, as server-sent events.
//!
//! ```text
//! commit ─ wake (this process, or a notification of another) ─▶ tail: what is settled? ─▶ streams: read, filter, write
//! ```
//!
//! One task of the process asks the store how far completions are settled, when it is woken and once a second
//! anyway; it runs while there is a stream. Each stream reads what it may see up to there, so that it holds no
//! more than one batch: a reader that does not take it is cut off, and resumes where it was.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

use super::Parts;
use super::auth::Caller;
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::params::{self, ListKind};
use super::routes::Routes;
use super::serve::Closing;
use crate::config::Scope;
use crate::job::Invalid;
use crate::store::{COMPLETIONS_MAX, CompletionFilter, Event, Horizon, Store, StoreError};
use crate::webhook::{EVENT_BODY_BYTES_MAX, payload_with_id};

/// Streams at once; far fewer than connections, so that they keep nobody else out.
const STREAMS_MAX: usize = 128;
/// Events on their way to one reader.
const IN_FLIGHT_MAX: usize = 16;
/// A reader that takes nothing for so long is cut off.
const SLOW_MAX: Duration = Duration::from_secs(10);
/// A comment is sent when nothing else was for so long: it shows that both sides live.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Between two looks of the tail: at least, at most, and while something is about to be settled.
const LOOK: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));
/// How often the other processes are asked to tell of completions.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The name of the header field by which a reader resumes.
const LAST_EVENT_ID: &str = "last-event-id";

/// The streams of this process. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    store: Store,
    public_url: Option<Arc<str>>,
    places: Arc<Semaphore>,
    tail: Arc<Mutex<Option<watch::Receiver<i64>>>>,
}

impl Streams {
    pub(super) fn new(store: Store, public_url: Option<String>) -> Self {
        let places = Arc::new(Semaphore::new(STREAMS_MAX));
        Self { store, public_url: public_url.map(Arc::from), places, tail: Arc::default() }
    }

    /// How far completions are settled, from now on; begins to ask where nobody did.
    async fn follow(&self) -> Result<watch::Receiver<i64>, Problem> {
        if let Some(followed) = self.followed() {
            return Ok(followed);
        }
        let mut horizon = Horizon::default();
        let mut settled = self.store.settled_completions(&mut horizon).await?;
        // What is under way now has to end first.
        while settled == 0 && horizon.is_waiting() {
            sleep(LOOK.0).await;
            settled = self.store.settled_completions(&mut horizon).await?;
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(followed) = tail.as_ref() {
            return Ok(followed.clone());
        }
        let (sender, receiver) = watch::channel(settled);
        *tail = Some(receiver.clone());
        tokio::spawn(self.clone().run_tail(sender, horizon));
        Ok(receiver)
    }

    fn followed(&self) -> Option<watch::Receiver<i64>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks until there is no stream any more.
    async fn run_tail(self, settled: watch::Sender<i64>, mut horizon: Horizon) {
        let mut changes = self.store.completions();
        let mut asked: Option<Instant> = None;
        let mut failing = false;
        loop {
            {
                // Under the lock nobody begins to follow. One receiver is the one that is kept there.
                let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
                if settled.receiver_count() <= 1 {
                    *tail = None;
                    return;
                }
            }
            if asked.is_none_or(|asked| asked.elapsed() >= ASK_EVERY) {
                asked = Some(Instant::now());
                // What is not told is found by looking.
                drop(self.store.await_completions().await);
            }
            match self.store.settled_completions(&mut horizon).await {
                Ok(position) => {
                    failing = false;
                    settled.send_if_modified(|known| position > std::mem::replace(known, position.max(*known)));
                }
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::warn!(%error, "streams of events wait for the store");
                }
                Err(_) => {}
            }
            sleep(LOOK.0).await;
            if !horizon.is_waiting() {
                let woken = timeout(LOOK.1, changes.changed()).await;
                if matches!(woken, Ok(Err(_))) {
                    sleep(LOOK.1).await;
                }
            }
        }
    }
}

/// The route, and what is said of it.
pub(super) fn routes() -> Routes<Parts> {
    let streaming = Operation::new("streamEvents", "Follow completions as they happen", Scope::Read)
        .about(
            "Server-sent events: `event` is the kind, `data` the event (`/schemas/event.json`), `id` where to resume. It begins \
             now, or after `last-event-id`. At least once: the `id` inside `data` tells an event that comes twice. \
             A reader that falls far behind is cut off, and so is everybody when the server stops: connect again.",
        )
        .query(&params::EVENTS)
        .header(LAST_EVENT_ID)
        .answer_as(200, "A stream without an end", "text/event-stream");
    Routes::new().get("/v1/events", follow, streaming)
}

/// `GET /v1/events`
async fn follow(
    caller: Caller,
    State(streams): State<Streams>,
    closing: Option<Extension<Closing>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let who = caller.may(Scope::Read)?;
    let mut filter = params::events(query.as_deref().unwrap_or_default())?;
    filter.tenant = who.narrow(filter.tenant)?.tenant().map(str::to_owned);
    let resumed = resumed_after(&headers)?;
    let place = Arc::clone(&streams.places).try_acquire_owned().map_err(|_| {
        Problem::new(ProblemKind::Unavailable, format!("this process has {STREAMS_MAX} streams of events already"))
    })?;
    let mut settled = streams.follow().await?;
    let position = resumed.unwrap_or_else(|| *settled.borrow_and_update());
    let (sender, receiver) = mpsc::channel(IN_FLIGHT_MAX);
    let stream = Stream { streams, filter, position, settled, sender, _place: place };
    tokio::spawn(async move {
        let run = stream.run();
        match closing {
            Some(Extension(mut closing)) => tokio::select! { () = run => {}, () = closing.wait() => {} },
            None => run.await,
        }
    });
    let chunks = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
        receiver.recv().await.map(|chunk| (Ok::<_, std::convert::Infallible>(chunk), receiver))
    });
    let mut response = Body::from_stream(chunks).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // For proxies that collect answers before they pass them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// The position after which a reader goes on. An empty id is none: that is what browsers mean by it.
fn resumed_after(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let position = value.to_str().ok().and_then(|text| ListKind::Events.decode(text));
    position.map(Some).ok_or_else(|| {
        let message = "expected the id of an event of this stream".to_owned();
        Problem::parameters(vec![Invalid { path: LAST_EVENT_ID.to_owned(), message }])
    })
}

/// One reader.
struct Stream {
    streams: Streams,
    filter: CompletionFilter,
    /// Everything up to here was sent, or is not for this reader.
    position: i64,
    settled: watch::Receiver<i64>,
    sender: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
}

/// Why a stream ends.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the reader went away")]
    Gone,
    #[error("the reader takes nothing")]
    Slow,
    #[error("the store failed: {0}")]
    Store(#[from] StoreError),
}

impl Stream {
    async fn run(mut self) {
        if let Err(why) = self.write_all().await {
            tracing::debug!(%why, "a stream of events ends");
        }
    }

    async fn write_all(&mut self) -> Result<(), Ended> {
        // A reader that is cut off before the first event comes back to here.
        let begin = format!("retry: 2000\nid: {}\n\n", ListKind::Events.encode(self.position));
        self.send(begin.into()).await?;
        loop {
            let up_to = *self.settled.borrow_and_update();
            while self.position < up_to {
                self.write_batch(up_to).await?;
            }
            tokio::select! {
                changed = self.settled.changed() => changed.map_err(|_| Ended::Gone)?,
                () = sleep(HEARTBEAT) => self.send(Bytes::from_static(b":\n\n")).await?,
                () = self.sender.closed() => return Err(Ended::Gone),
            }
        }
    }

    async fn write_batch(&mut self, up_to: i64) -> Result<(), Ended> {
        let (store, range) = (&self.streams.store, (self.position, up_to));
        let batch = store.completions_between(range, &self.filter, EVENT_BODY_BYTES_MAX).await?;
        let full = batch.len() == COMPLETIONS_MAX;
        for (position, event) in batch {
            self.send(message(position, &event, self.streams.public_url.as_deref())).await?;
            self.position = position;
        }
        if !full {
            self.position = up_to;
        }
        Ok(())
    }

    async fn send(&self, chunk: Bytes) -> Result<(), Ended> {
        match timeout(SLOW_MAX, self.sender.send(chunk)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Ended::Gone),
            Err(_) => Err(Ended::Slow),
        }
    }
}

/// An event as it is written. Line breaks can only be blanks between the tokens of a provider's JSON.
fn message(position: i64, event: &Event, public_url: Option<&str>) -> Bytes {
    let data = payload_with_id(event, public_url).unwrap_or_default();
    let mut out = BytesMut::with_capacity(data.len() + 64);
    out.put_slice(
        format!("id: {}\nevent: {}\ndata: ", ListKind::Events.encode(position), event.kind.as_str()).as_bytes(),
    );
    out.extend(data.iter().map(|byte| if matches!(byte, b'\r' | b'\n') { b' ' } else { *byte }));
    out.put_slice(b"\n\n");
    out.freeze()
}
