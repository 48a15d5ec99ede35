//! One request on its way to a connection: whether it left is known, and whether it may leave is asked until it does.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::ResponseFuture;
use tokio::time::{Instant, Sleep, sleep_until};

use super::connect::Connections;

/// While a request waits for a connection it is asked this often whether it may still leave. Well below the margin
/// between the end of a lease and the moment at which somebody else can take it.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A call that left later than this after its permit has a departure of its own.
const LATE: Duration = Duration::from_millis(500);

/// Who makes a call: is asked, and told, while it is under way.
pub trait Caller: Send + Sync {
    /// Whether the call may still leave. Asked until it has left.
    fn may_leave(&self) -> bool;
    /// It left just now, long after it was allowed to: it waited for a connection.
    fn left_late(&self);
}

/// How long each part of a call may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// From the beginning until a connection takes the request.
    pub connect: Duration,
    /// From then on until the answer begins.
    pub first_byte: Duration,
    /// From the beginning until the answer has ended.
    pub whole: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// Nothing of it was written.
    Unsent(String),
    /// It may not leave any more; nothing of it was written.
    Withheld,
    /// It was, wholly or in part.
    Lost(String),
}

/// What became of a request, decided once: by the connection that begins to write it, or by whoever gives it up.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Left(Instant),
    Withdrawn,
}

/// The body of a request. A connection that begins to write the request asks first whether there is a body: that is
/// when it leaves. One that was withdrawn in that moment ends with an error before anything is written.
#[derive(Debug)]
pub(super) struct Outgoing {
    body: Full<Bytes>,
    fate: Arc<OnceLock<Fate>>,
}

/// Ends a connection that took a request which was given up.
#[derive(Debug, thiserror::Error)]
#[error("the request was withdrawn")]
pub(super) struct Withdrawn;

impl Outgoing {
    fn is_withdrawn(&self) -> bool {
        matches!(self.fate.get_or_init(|| Fate::Left(Instant::now())), Fate::Withdrawn)
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        if self.is_withdrawn() {
            return Poll::Ready(Some(Err(Withdrawn)));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(|never| match never {})
    }

    fn is_end_stream(&self) -> bool {
        !self.is_withdrawn() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of unknown length: the body is asked for before the head is flushed.
        if let Some(Fate::Withdrawn) = self.fate.get() { SizeHint::default() } else { self.body.size_hint() }
    }
}

/// Sends a request, unless its caller says that it may not leave any more.
pub(super) async fn send(
    connections: &Connections,
    request: http::Request<Bytes>,
    (begun, times): (Instant, Times),
    caller: &dyn Caller,
) -> Result<http::Response<Incoming>, Unanswered> {
    let fate = Arc::default();
    let request = request.map(|body| Outgoing { body: Full::new(body), fate: Arc::clone(&fate) });
    let sending = Sending {
        timer: Box::pin(sleep_until(begun + ASK_EVERY)),
        response: connections.request(request),
        fate,
        begun,
        times,
        caller,
        left: None,
    };
    sending.await
}

struct Sending<'a> {
    response: ResponseFuture,
    fate: Arc<OnceLock<Fate>>,
    begun: Instant,
    times: Times,
    caller: &'a dyn Caller,
    /// When a connection began to write it, as far as it was noticed.
    left: Option<Instant>,
    timer: Pin<Box<Sleep>>,
}

impl Future for Sending<'_> {
    type Output = Result<http::Response<Incoming>, Unanswered>;

    /// A request is handed to a connection nowhere but in here, right after it was asked whether it may leave. The
    /// connection writes it at once; one of HTTP/2 when it has a stream to spare, and until then is asked again and again.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(over) = self.given_up() {
            return Poll::Ready(Err(over));
        }
        if let Poll::Ready(answer) = Pin::new(&mut self.response).poll(cx) {
            return Poll::Ready(answer.map_err(|error| match self.withdraw() {
                true => Unanswered::Unsent(chain(&error)),
                false => Unanswered::Lost(chain(&error)),
            }));
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if let Some(over) = self.given_up() {
                return Poll::Ready(Err(over));
            }
            let next = self.next_look();
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }
}

impl Sending<'_> {
    /// Why it is not waited for any longer, where that is so.
    fn given_up(&mut self) -> Option<Unanswered> {
        self.look_whether_it_left();
        let now = Instant::now();
        if let Some(left) = self.left {
            let (by, limit) = self.answer_by(left);
            return (now >= by).then(|| Unanswered::Lost(format!("no answer within {limit:?}")));
        }
        let (by, limit) = self.leave_by();
        let late = now >= by;
        let may_wait = !late && self.caller.may_leave();
        // Unless it leaves in this moment.
        if may_wait || !self.withdraw() {
            return None;
        }
        Some(match late {
            true => Unanswered::Unsent(format!("no connection within {limit:?}")),
            false => Unanswered::Withheld,
        })
    }

    /// From now on no connection writes it. `false`: one has begun to.
    fn withdraw(&self) -> bool {
        matches!(self.fate.get_or_init(|| Fate::Withdrawn), Fate::Withdrawn)
    }

    fn look_whether_it_left(&mut self) {
        if self.left.is_some() {
            return;
        }
        if let Some(&Fate::Left(at)) = self.fate.get() {
            self.left = Some(at);
            if at > self.begun + LATE {
                self.caller.left_late();
            }
        }
    }

    /// The end of the time until the answer begins, and the limit that sets it.
    fn answer_by(&self, left: Instant) -> (Instant, Duration) {
        let Times { first_byte, whole, .. } = self.times;
        (left + first_byte, first_byte).min((self.begun + whole, whole))
    }

    /// The same of the time until it leaves.
    fn leave_by(&self) -> (Instant, Duration) {
        let limit = self.times.connect.min(self.times.whole);
        (self.begun + limit, limit)
    }

    fn next_look(&self) -> Instant {
        match self.left {
            Some(left) => self.answer_by(left).0,
            None => self.leave_by().0.min(Instant::now() + ASK_EVERY),
        }
    }
}

/// The error and its causes in one line. None of them holds the URL.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
