//! One HTTP/1.1 server for both simulators: hyper itself, since the simulator shares the machine with what it measures.

use std::error::Error as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::body::SimBody;
use super::error::SimError;

/// A request that gets no answer: its connection is reset.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the connection is reset on purpose")]
pub(crate) struct Cut;

/// A body that was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Over the largest size.
    TooLarge,
    /// The caller left.
    Broken,
}

/// Accepts connections until `stop`; then drops all of them, as a server does that is switched off.
pub(crate) async fn serve<H, F>(
    listener: TcpListener,
    stop: CancellationToken,
    tasks: TaskTracker,
    connections_max: usize,
    handler: H,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<SimBody>, Cut>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(connections_max));
    let accepting = async {
        loop {
            let Ok(seat) = room.clone().acquire_owned().await else {
                return;
            };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that ended before it was taken.
                    tracing::debug!(%error, "simulator could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            let (handler, stop) = (handler.clone(), stop.clone());
            tasks.spawn(async move {
                stop.run_until_cancelled(converse(stream, handler)).await;
                drop(seat);
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
}

async fn converse<H, F>(stream: TcpStream, handler: H)
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Result<Response<SimBody>, Cut>>,
{
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "simulator could not set TCP_NODELAY");
    }
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(handler));
    let Err(error) = Pin::new(&mut connection).await else {
        return;
    };
    if error.source().is_some_and(|source| source.is::<Cut>()) {
        let stream = connection.into_parts().io.into_inner();
        if let Err(error) = stream.set_zero_linger() {
            tracing::debug!(%error, "simulator closes instead of resetting");
        }
    }
}

/// Reads a body whole, up to `bytes_max`.
pub(crate) async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Unread> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(Unread::TooLarge);
    }
    let mut first = Bytes::new();
    let mut all: Vec<u8> = Vec::new();
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        let data = match frame {
            None => break,
            Some(Err(_)) => return Err(Unread::Broken),
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if first.len() + all.len() + data.len() > bytes_max {
            return Err(Unread::TooLarge);
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { Bytes::from(all) })
}

/// Binds an address.
pub(crate) async fn listen(addr: SocketAddr) -> Result<TcpListener, SimError> {
    TcpListener::bind(addr).await.map_err(|source| SimError::Listen { addr, source })
}

/// Where a listener listens.
pub(crate) fn address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, SimError> {
    listener.local_addr().map_err(|source| SimError::Listen { addr: asked, source })
}
