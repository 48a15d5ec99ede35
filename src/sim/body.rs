//! Bodies of answers: whole, endless, dripping or cut off.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::Sleep;

/// Bytes sent at once by a large body.
const CHUNK_BYTES: usize = 16 << 10;
/// What half an answer waits for before the other half fails, or nothing of it would be sent.
const LEAVING: Duration = Duration::from_millis(20);
static FILLER: [u8; CHUNK_BYTES] = [b'x'; CHUNK_BYTES];

/// A body that ends before it should.
#[derive(Debug, thiserror::Error)]
#[error("the answer ends here on purpose")]
pub(crate) struct CutOff;

#[derive(Debug)]
enum Kind {
    Whole(Option<Bytes>),
    Filler { left: u64 },
    Drip { left: u64, every: Duration, sleep: Pin<Box<Sleep>> },
    Half { whole: u64, pause: Option<Pin<Box<Sleep>>> },
}

/// The body of an answer; a call that streams stays open until its body is dropped.
pub(crate) struct SimBody {
    kind: Kind,
    _open: Option<Box<dyn Any + Send>>,
}

impl SimBody {
    fn of(kind: Kind) -> Self {
        SimBody { kind, _open: None }
    }

    /// All of it at once.
    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        SimBody::of(Kind::Whole((!bytes.is_empty()).then_some(bytes)))
    }

    /// `bytes` of filler, made as they are sent.
    pub(crate) fn filler(bytes: u64) -> Self {
        SimBody::of(Kind::Filler { left: bytes })
    }

    /// One byte at a time.
    pub(crate) fn drip(bytes: u64, every: Duration) -> Self {
        SimBody::of(Kind::Drip { left: bytes, every, sleep: Box::pin(tokio::time::sleep(every)) })
    }

    /// Announces `whole` bytes, sends half of them, fails once these had time to leave.
    pub(crate) fn half(whole: u64) -> Self {
        SimBody::of(Kind::Half { whole, pause: None })
    }

    /// Keeps `open` until the body is gone.
    pub(crate) fn holding(self, open: impl Any + Send) -> Self {
        SimBody { _open: Some(Box::new(open)), ..self }
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let bytes = match &mut self.kind {
            Kind::Whole(bytes) => bytes.take(),
            Kind::Filler { left } => chunk(left, CHUNK_BYTES as u64),
            Kind::Drip { left: 0, .. } => None,
            Kind::Drip { left, every, sleep } => {
                ready!(sleep.as_mut().poll(cx));
                sleep.as_mut().reset(tokio::time::Instant::now() + *every);
                chunk(left, 1)
            }
            Kind::Half { pause: Some(pause), .. } => {
                ready!(pause.as_mut().poll(cx));
                return Poll::Ready(Some(Err(CutOff)));
            }
            Kind::Half { whole, pause } => {
                *pause = Some(Box::pin(tokio::time::sleep(LEAVING)));
                chunk(&mut (*whole / 2), CHUNK_BYTES as u64)
            }
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Whole(None) | Kind::Filler { left: 0 } | Kind::Drip { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.kind {
            Kind::Whole(bytes) => bytes.as_ref().map_or(0, |bytes| bytes.len() as u64),
            Kind::Filler { left } | Kind::Drip { left, .. } => *left,
            Kind::Half { whole, .. } => *whole,
        })
    }
}

/// The next bytes of a filler, and what is left after them.
fn chunk(left: &mut u64, most: u64) -> Option<Bytes> {
    let size = (*left).min(most).min(CHUNK_BYTES as u64);
    *left -= size;
    let size = usize::try_from(size).unwrap_or(CHUNK_BYTES);
    (size > 0).then(|| Bytes::from_static(&FILLER[..size]))
}
