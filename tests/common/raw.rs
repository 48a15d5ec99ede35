//! A provider made of bare sockets: when it accepts, what it has read of which connection, and how it answers are the
//! test's to say.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// A connection that does not stand by then waits to be accepted.
const QUEUED_AFTER: Duration = Duration::from_millis(300);

/// How it treats a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200, and the connection stays open.
    Ok,
    /// 200, but none to every third request; the connection is closed right afterwards, without saying so before.
    OkAndClose,
    /// None.
    Silence,
}

/// The provider; gone when dropped.
pub struct RawProvider {
    pub port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    listener: Option<TcpListener>,
    /// They fill the queue of those who wait to be accepted.
    waiting: Vec<TcpStream>,
    accepting: Option<AbortOnDropHandle<()>>,
}

impl RawProvider {
    /// It accepts nobody, and the queue of those who wait for it is full: connecting hangs.
    pub async fn closed() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let listener = socket.listen(1).expect("it listens");
        let address = listener.local_addr().expect("an address");
        let mut waiting = Vec::new();
        while let Ok(stream) = tokio::time::timeout(QUEUED_AFTER, TcpStream::connect(address)).await {
            waiting.push(stream.expect("queued"));
            assert!(waiting.len() < 10, "the queue is never full");
        }
        Self { port: address.port(), heads: Arc::default(), listener: Some(listener), waiting, accepting: None }
    }

    /// It accepts whoever comes.
    pub async fn open(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut raw =
            Self { port, heads: Arc::default(), listener: Some(listener), waiting: Vec::new(), accepting: None };
        raw.accept(answer);
        raw
    }

    /// From now on it accepts, those first who waited.
    pub fn accept(&mut self, answer: Answer) {
        self.waiting.clear();
        let listener = self.listener.take().expect("it does not accept yet");
        let heads = Arc::clone(&self.heads);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer, Arc::clone(&heads)));
            }
        });
        self.accepting = Some(AbortOnDropHandle::new(accepting));
    }

    /// The heads of all requests that came, whole.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

async fn serve(mut stream: TcpStream, answer: Answer, heads: Arc<Mutex<Vec<String>>>) {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => read.extend_from_slice(&buffer[..n]),
            _ => return,
        }
        let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&read[..end]).into_owned();
        read.drain(..end + 4);
        let number = {
            let mut heads = heads.lock().unwrap_or_else(PoisonError::into_inner);
            heads.push(head);
            heads.len()
        };
        match answer {
            Answer::Silence => continue,
            Answer::OkAndClose if number.is_multiple_of(3) => return,
            Answer::Ok | Answer::OkAndClose => {
                let text =
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"ok\":true}";
                if stream.write_all(text).await.is_err() || answer == Answer::OkAndClose {
                    return;
                }
            }
        }
    }
}
