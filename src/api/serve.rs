//! Serving a router on a listener, within bounds: connections at once, time without progress, and
//! time to say goodbye.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, FromRequestParts, Request};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use axum::{Extension, Router};
use http::request::Parts;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep};

/// The bounds of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServeLimits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// A connection on which no request is being served is closed when none has arrived *whole*
    /// (request line and header) for that long, however many bytes trickle in; so is one whose
    /// peer does not take its response.
    pub idle: Duration,
    /// After the shutdown, for requests that are being served.
    pub goodbye: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self { connections_max: 1024, idle: Duration::from_secs(30), goodbye: Duration::from_secs(35) }
    }
}

/// Serves until `shutdown` is done, then finishes what is being served and returns.
///
/// # Errors
/// Accepting connections can fail only for good when the listener is gone.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: ServeLimits,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (closing, mut closed) = watch::channel(false);
    let bounded =
        BoundedListener { listener, slots: Arc::new(Semaphore::new(limits.connections_max)), idle: limits.idle };
    let ending = Closing(closed.clone());
    let router =
        router.layer(Extension(ending)).layer(from_fn(note_activity)).into_make_service_with_connect_info::<Arrived>();
    let served = axum::serve(bounded, router).with_graceful_shutdown(async move {
        shutdown.await;
        closing.send_replace(true);
    });
    let mut served = std::pin::pin!(served.into_future());
    tokio::select! {
        result = &mut served => return result,
        _ = closed.wait_for(|closing| *closing) => {}
    }
    match tokio::time::timeout(limits.goodbye, served).await {
        Ok(result) => result,
        Err(_) => {
            tracing::warn!("some requests were still being served at the end of the shutdown");
            Ok(())
        }
    }
}

/// Where a request came from; `0.0.0.0` where nobody knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) IpAddr);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(Ipv4Addr::UNSPECIFIED.into())))
    }
}

/// A connection as its requests know it.
#[derive(Debug, Clone)]
struct Arrived {
    activity: Activity,
    peer: IpAddr,
}

/// Tells answers without an end that the server stops.
#[derive(Debug, Clone)]
pub(super) struct Closing(watch::Receiver<bool>);

impl Closing {
    /// Until it stops.
    pub(super) async fn wait(&mut self) {
        // A server that is gone has stopped as well.
        drop(self.0.wait_for(|closing| *closing).await);
    }
}

/// Requests that are being served on one connection, and when that last changed.
#[derive(Debug, Clone, Default)]
struct Activity(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    serving: AtomicUsize,
    changes: AtomicUsize,
}

/// Counts one request as being served until it is dropped.
struct Serving(Activity);

impl Serving {
    fn begin(activity: Activity) -> Self {
        activity.0.serving.fetch_add(1, Ordering::AcqRel);
        activity.0.changes.fetch_add(1, Ordering::AcqRel);
        Self(activity)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.0.changes.fetch_add(1, Ordering::AcqRel);
        self.0.0.serving.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connected<IncomingStream<'_, BoundedListener>> for Arrived {
    fn connect_info(stream: IncomingStream<'_, BoundedListener>) -> Self {
        Self { activity: stream.io().activity.clone(), peer: stream.remote_addr().ip() }
    }
}

async fn note_activity(ConnectInfo(arrived): ConnectInfo<Arrived>, mut request: Request, next: Next) -> Response {
    let _serving = Serving::begin(arrived.activity);
    request.extensions_mut().insert(Peer(arrived.peer));
    next.run(request).await
}

/// A listener that accepts no more connections than it has slots.
struct BoundedListener {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    idle: Duration,
}

impl Listener for BoundedListener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed; if it were, nothing would be accepted any more.
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return std::future::pending().await };
        let (stream, peer) = Listener::accept(&mut self.listener).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection without TCP_NODELAY");
        }
        let activity = Activity::default();
        let timer = Box::pin(sleep(self.idle));
        (Connection { stream, activity, seen: 0, idle: self.idle, timer, _slot: slot }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when nothing happens on it.
struct Connection {
    stream: TcpStream,
    activity: Activity,
    /// `changes` when the timer was last set.
    seen: usize,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// Fails where no request has come for too long.
    fn check_idle(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let changes = self.activity.0.changes.load(Ordering::Acquire);
        if changes != self.seen {
            self.seen = changes;
            self.restart();
        }
        if self.activity.0.serving.load(Ordering::Acquire) > 0 {
            return Ok(());
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn restart(&mut self) {
        let end = Instant::now() + self.idle;
        self.timer.as_mut().reset(end);
    }

    /// A write that went through is progress; one that waits for its peer is not.
    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.restart();
            return result;
        }
        match self.timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check_idle(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        Poll::Ready(result)
    }
}
