//! A TCP proxy that a test breaks on purpose: it cuts its connections, stalls or slows them, and
//! refuses new ones.
//!
//! What a client had sent and the proxy did not pass on yet is lost with the client's end of the
//! connection, as it would be with a network between them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

/// Bytes read at once, and chunks held back for each direction of a connection.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_MAX: usize = 64;
/// A slow connection passes this much at once.
const PIECE_BYTES: usize = 512;

/// How it treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Through,
    /// Nothing passes, and nothing ends.
    Stalled,
    /// Nothing comes back.
    Mute,
    Slow {
        bytes_per_s: u32,
    },
    /// New connections end at once.
    Refusing,
}

/// The proxy; gone when dropped, with its connections.
pub struct Proxy {
    pub address: SocketAddr,
    manner: watch::Sender<Manner>,
    cuts: watch::Sender<u64>,
    bytes_there: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// A proxy to `target` (host:port).
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (manner, seen) = watch::channel(Manner::Through);
        let (cuts, cut) = watch::channel(0);
        let bytes_there = Arc::<AtomicU64>::default();
        let connection = Connection { target, manner: seen, cut, bytes_there: Arc::clone(&bytes_there) };
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, connection)));
        Self { address, manner, cuts, bytes_there, _task: task }
    }

    /// The same URL, through the proxy.
    pub fn url(&self, url: &str) -> String {
        let mut url = url::Url::parse(url).expect("a URL");
        url.set_host(Some("127.0.0.1")).expect("a host");
        url.set_port(Some(self.address.port())).expect("a port");
        url.to_string()
    }

    pub fn set(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    /// Bytes passed on to the target, over all connections.
    pub fn bytes_there(&self) -> u64 {
        self.bytes_there.load(Ordering::SeqCst)
    }

    /// Ends every connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// What every connection is made with.
#[derive(Clone)]
struct Connection {
    target: String,
    manner: watch::Receiver<Manner>,
    cut: watch::Receiver<u64>,
    bytes_there: Arc<AtomicU64>,
}

async fn accept(listener: TcpListener, connection: Connection) {
    // Its connections end with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { continue };
                if *connection.manner.borrow() != Manner::Refusing {
                    connections.spawn(relay(near, connection.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(near: TcpStream, connection: Connection) {
    let Connection { target, manner, mut cut, bytes_there } = connection;
    cut.mark_unchanged();
    let Ok(far) = TcpStream::connect(target).await else { return };
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let there = async {
        // With its end what it had sent is gone.
        tokio::select! {
            () = read(near_in, sender) => {}
            () = write(receiver, far_out, manner.clone(), Way::There(bytes_there)) => {}
        }
    };
    let (sender, receiver) = mpsc::channel(CHUNKS_MAX);
    let back = async {
        tokio::join!(read(far_in, sender), write(receiver, near_out, manner.clone(), Way::Back));
    };
    tokio::select! {
        () = there => {}
        () = back => {}
        _ = cut.changed() => {}
    }
}

enum Way {
    /// Counts its bytes.
    There(Arc<AtomicU64>),
    Back,
}

async fn read(mut from: OwnedReadHalf, chunks: mpsc::Sender<Bytes>) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(n) = from.read(&mut buffer).await
        && n > 0
        && chunks.send(Bytes::copy_from_slice(&buffer[..n])).await.is_ok()
    {}
}

async fn write(
    mut chunks: mpsc::Receiver<Bytes>,
    mut to: OwnedWriteHalf,
    mut manner: watch::Receiver<Manner>,
    way: Way,
) {
    while let Some(mut chunk) = chunks.recv().await {
        while !chunk.is_empty() {
            let holds =
                |manner: &Manner| *manner == Manner::Stalled || (*manner == Manner::Mute && matches!(way, Way::Back));
            let Ok(manner) = manner.wait_for(|manner| !holds(manner)).await.map(|manner| *manner) else { return };
            let piece = match manner {
                Manner::Slow { bytes_per_s } => {
                    let piece = chunk.split_to(chunk.len().min(PIECE_BYTES));
                    tokio::time::sleep(Duration::from_secs_f64(piece.len() as f64 / f64::from(bytes_per_s))).await;
                    piece
                }
                _ => chunk.split_to(chunk.len()),
            };
            if to.write_all(&piece).await.is_err() {
                return;
            }
            if let Way::There(bytes) = &way {
                bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        }
    }
}
