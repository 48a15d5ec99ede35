//! A proxy before PostgreSQL that loses the answers of commits: the database has committed, or has
//! never heard of it, and nobody can tell which.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// The proxy; gone when dropped.
pub struct Cut {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    #[expect(dead_code, reason = "ends with it")]
    task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Every so manieth commit is cut; 0: none.
    every: AtomicU64,
    commits: AtomicU64,
    before: AtomicU64,
    after: AtomicU64,
}

impl Cut {
    /// A proxy to `database` (host:port).
    pub async fn start(database: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared::default());
        let task = tokio::spawn(accept(listener, database, Arc::clone(&shared)));
        Self { address, shared, task: AbortOnDropHandle::new(task) }
    }

    pub fn every(&self, commits: u64) {
        self.shared.every.store(commits, Ordering::SeqCst);
    }

    /// Commits cut before, and after the database had them.
    pub fn counts(&self) -> (u64, u64) {
        (self.shared.before.load(Ordering::SeqCst), self.shared.after.load(Ordering::SeqCst))
    }
}

async fn accept(listener: TcpListener, database: String, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let (database, shared) = (database.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(&database).await else { return };
            let ((from_client, mut to_client), (mut from_server, to_server)) =
                (client.into_split(), server.into_split());
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let back = async {
                tokio::select! {
                    _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
                    _ = stopped => {}
                }
            };
            let forth = async {
                let done = requests(from_client, to_server, &shared, stop).await;
                drop(done);
            };
            tokio::join!(back, forth);
        });
    }
}

/// Forwards message by message, and looks for commits.
async fn requests(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    shared: &Shared,
    stop: tokio::sync::oneshot::Sender<()>,
) -> std::io::Result<()> {
    let mut typed = false;
    loop {
        let kind = if typed { Some(client.read_u8().await?) } else { None };
        let length = client.read_u32().await?;
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        // Protocol 3.0; before it may come the question for TLS.
        typed |= body.starts_with(&[0, 3, 0, 0]);
        let mut message = Vec::with_capacity(body.len() + 5);
        message.extend(kind);
        message.extend(length.to_be_bytes());
        message.extend(&body);
        let every = shared.every.load(Ordering::SeqCst);
        if kind == Some(b'Q') && body.starts_with(b"COMMIT") && every > 0 {
            let n = shared.commits.fetch_add(1, Ordering::SeqCst);
            if n.is_multiple_of(every) {
                if n.is_multiple_of(2 * every) {
                    shared.before.fetch_add(1, Ordering::SeqCst);
                    return Ok(());
                }
                shared.after.fetch_add(1, Ordering::SeqCst);
                // No answer comes back from now on; then the database gets it, and its connection ends.
                drop(stop);
                server.write_all(&message).await?;
                return server.shutdown().await;
            }
        }
        server.write_all(&message).await?;
    }
}
