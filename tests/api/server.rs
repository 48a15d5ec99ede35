//! Connections: slow, many, cut, and nonsense.

use super::*;

async fn connect(api: &Api) -> TcpStream {
    TcpStream::connect(api.address).await.expect("a connection")
}

/// What comes until the other side closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    match soon(stream.read_to_end(&mut read)).await {
        Ok(_) => {}
        // Closed while something of ours was still on its way.
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn a_header_that_never_ends_is_cut_off() {
    let limits = ServeLimits { idle: Duration::from_millis(300), ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    let stream = connect(&api).await;
    let (mut reading, mut writing) = stream.into_split();
    // A byte every so often, for as long as the server takes them.
    let trickle = async {
        if writing.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: ").await.is_ok() {
            while writing.write_all(b"y").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let closed = async {
        let mut read = Vec::new();
        reading.read_to_end(&mut read).await.map(|_| read)
    };
    soon(async {
        tokio::select! {
            () = trickle => {}
            result = closed => if let Ok(read) = result { assert!(read.is_empty() || read.starts_with(b"HTTP/1.1 4"), "{read:?}") },
        }
    })
    .await;
    // A silent connection, and one that has had its answer.
    let mut silent = connect(&api).await;
    assert_eq!(rest(&mut silent).await, "");
    let mut used = connect(&api).await;
    used.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
    assert!(rest(&mut used).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_request_that_takes_longer_than_idle_is_not_cut_off() {
    let limits = ServeLimits { idle: Duration::from_millis(300), ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    api.claimed(job("slow")).await;
    // A cancellation that nobody settles is answered after two seconds.
    api.delete("/v1/jobs/slow").await.problem(409, "cancel-pending");
}

#[tokio::test]
async fn connections_are_bounded_and_the_next_gets_its_turn() {
    let limits = ServeLimits { connections_max: 1, ..ServeLimits::default() };
    let api = Api::with(&[], limits).await;
    let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut first = connect(&api).await;
    first.write_all(request).await.expect("sent");
    let mut byte = [0];
    soon(first.read_exact(&mut byte)).await.expect("the first is served");
    let mut second = connect(&api).await;
    second.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.expect("sent");
    let early = tokio::time::timeout(Duration::from_millis(300), second.read_exact(&mut byte)).await;
    assert!(early.is_err(), "the second waits");
    drop(first);
    assert!(rest(&mut second).await.contains(" 200 "), "and is served then");
}

#[tokio::test]
async fn a_shutdown_finishes_what_is_being_served() {
    let mut api = Api::start().await;
    let body = job("late").to_string();
    let mut stream = connect(&api).await;
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The interim answer shows that the handler is reading.
    let mut interim = [0; 25];
    soon(stream.read_exact(&mut interim)).await.expect("100 Continue");
    assert!(interim.starts_with(b"HTTP/1.1 100"));
    drop(api.stop.take());
    stream.write_all(body.as_bytes()).await.expect("sent");
    let answer = rest(&mut stream).await;
    assert!(answer.contains("HTTP/1.1 202"), "{answer}");
    soon(api.stop()).await;
}

#[tokio::test]
async fn nonsense_on_the_wire_is_answered_or_cut_and_harms_nobody() {
    let api = Api::start().await;
    let long = format!("GET /v1/jobs?x={} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(1_000_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(5_000));
    for bytes in ["\r\n\r\nnope\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /v1/jobs HTTP/1.1\r\n\r\n", &long, &many] {
        let mut stream = connect(&api).await;
        if stream.write_all(bytes.as_bytes()).await.is_ok() {
            stream.shutdown().await.unwrap_or_default();
            let answer = rest(&mut stream).await;
            assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"), "{answer}");
        }
    }
    assert_eq!(api.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_traceparent_goes_along_with_the_job() {
    let api = Api::start().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("content-type", "application/json"), ("traceparent", trace)];
    api.send(Method::POST, "/v1/jobs", &headers, job("traced").to_string()).await.ok(202);
    let headers = [("content-type", "application/json"), ("traceparent", "00-nonsense")];
    api.send(Method::POST, "/v1/jobs", &headers, job("untraced").to_string()).await.ok(202);
}
