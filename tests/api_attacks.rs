//! Attacks on the HTTP layer of a real server: none crashes it, slows others, gets at what it must not, or is taken for
//! something that was not said. What is refused is refused by name.
//!
//! Header fields without end, too many connections and nonsense on the wire are in tests/api.rs; input at random is in
//! tests/fuzz.rs and tests/schemathesis.rs.

mod common;

use std::io::{Read as _, Write as _};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use common::world::{Mode, Serve, World, in_world};
use common::{SOON, holds, until};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A server whose provider cannot be reached, so that jobs stay where they are.
async fn serving(world: &World) -> Serve {
    world.provider("http://127.0.0.1:9", &[("k1", "attacks-key-0001")], "");
    let serve = world.serving().await;
    let paused = world.api().post(&format!("/v1/providers/{}/pause", world.provider), &json!({})).await;
    assert_eq!(paused.0, 200);
    serve
}

/// An answer, whole.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Where the first error is.
    #[track_caller]
    fn wrong(&self, status: u16) -> String {
        let problem = self.json();
        assert_eq!(self.status, status, "{problem}");
        let first = &problem["errors"][0]["path"];
        first.as_str().unwrap_or_else(|| problem["type"].as_str().expect("a type")).to_owned()
    }
}

async fn send(
    world: &World,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    static CLIENT: LazyLock<reqwest::Client> = LazyLock::new(|| {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
        // Every test has a runtime of its own, with which its connections end.
        client.pool_max_idle_per_host(0).build().expect("a client")
    });
    let url = format!("http://127.0.0.1:{}{path}", world.port);
    let mut request = CLIENT.request(method.parse().expect("a method"), url).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.expect("a body").to_vec() }
}

const JSON: (&str, &str) = ("content-type", "application/json");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

async fn post(world: &World, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(world, "POST", path, &[JSON], body).await
}

async fn well(world: &World, serve: &mut Serve) {
    assert!(serve.is_alive() && !serve.log().contains("panicked"), "{}", serve.log());
    assert_eq!(world.api().get("/healthz").await.0, 200);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("written");
    encoder.finish().expect("finished")
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut out).expect("gzip");
    out
}

/// So many bytes of blanks, a thousandth of that when packed.
fn bomb(bytes: usize) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    for _ in 0..bytes / 65_536 {
        encoder.write_all(&[b' '; 65_536]).expect("written");
    }
    encoder.finish().expect("finished")
}

// ── gzip ────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn packed_bodies_are_taken_and_their_size_is_that_of_their_contents() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        let job = |id: &str| json!({ "id": id, "provider": world.provider, "request": { "path": "/" } }).to_string();
        let packed = async |body: Vec<u8>| send(world, "POST", "/v1/jobs", &[JSON, GZIP], body).await;
        assert_eq!(packed(gzip(job("one").as_bytes())).await.status, 202);
        assert_eq!(packed(gzip(job("one").as_bytes())).await.status, 200, "the same job");
        let many: Vec<String> = (0..1000).map(|n| job(&format!("many-{n}"))).collect();
        let answer = packed(gzip(format!("[{}]", many.join(",")).as_bytes())).await;
        assert_eq!(answer.json()["items"].as_array().map(Vec::len), Some(1000));
        // 1 MiB for one job, 16 MiB for many, however small they are on the wire.
        let large = |bytes: usize| {
            json!({ "provider": world.provider, "request": { "path": "/", "text": "x".repeat(bytes) } }).to_string()
        };
        assert_eq!(packed(gzip(large(1_000_000).as_bytes())).await.status, 202);
        assert_eq!(packed(gzip(large(1_100_000).as_bytes())).await.wrong(413), "urn:paceline:problem:too-large");
        let many = format!("[{}]", vec![large(900_000); 19].join(","));
        assert_eq!(packed(gzip(many.as_bytes())).await.status, 413);
        // What is no gzip, only half of it, or more than it.
        let whole = gzip(job("half").as_bytes());
        assert_eq!(packed(whole[..whole.len() / 2].to_vec()).await.wrong(400), "urn:paceline:problem:not-json");
        assert_eq!(packed(job("plain").into_bytes()).await.status, 400);
        assert_eq!(packed(vec![0x1f, 0x8b, 8, 0xff, 0, 0]).await.status, 400);
        assert_eq!(packed([&whole[..], b"more"].concat()).await.status, 400);
        // In two parts, which are one.
        let text = job("parts");
        let (first, second) = text.split_at(text.len() / 2);
        assert_eq!(packed([gzip(first.as_bytes()), gzip(second.as_bytes())].concat()).await.status, 202);
        // Packed in another way, twice, or said twice.
        for encodings in
            [&["br"][..], &["deflate"], &["gzip, gzip"], &["gzip", "gzip"], &["identity", "gzip"], &["gzip;q=1"], &[""]]
        {
            let headers: Vec<_> =
                [JSON].into_iter().chain(encodings.iter().map(|e| ("content-encoding", *e))).collect();
            let answer = send(world, "POST", "/v1/jobs", &headers, gzip(&gzip(job("twice").as_bytes()))).await;
            assert_eq!(answer.wrong(415), "urn:paceline:problem:unsupported-media-type", "{encodings:?}");
        }
        let headers = [JSON, ("content-encoding", "identity")];
        assert_eq!(send(world, "POST", "/v1/jobs", &headers, job("identity")).await.status, 202);
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 1004);
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn bombs_are_defused() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        // 256 MiB in 256 KiB.
        let bomb = bytes::Bytes::from(bomb(256 << 20));
        assert!(bomb.len() < 1 << 19, "{}", bomb.len());
        let before = serve.memory_bytes();
        let began = Instant::now();
        let throws = (0..20).map(|n| {
            let path = ["/v1/jobs", "/v1/replays", "/v1/dead-letters/x/replay"][n % 3];
            send(world, "POST", path, &[JSON, GZIP], bomb.clone())
        });
        let mut most = before;
        let watch = async {
            loop {
                most = most.max(serve.memory_bytes());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answers = tokio::select! {
            answers = futures_util::future::join_all(throws) => answers,
            () = watch => unreachable!("watches for ever"),
        };
        for answer in answers {
            assert_eq!(answer.status, 413);
        }
        assert!(most - before < 256 << 20, "{} MiB more", (most - before) >> 20);
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn answers_are_packed_only_for_those_who_take_it() {
    in_world(Mode::Embedded, async |world| {
        let serve = serving(world).await;
        let plain = send(world, "GET", "/openapi.json", &[], "").await;
        assert!(!plain.headers.contains_key("content-encoding"));
        let packed = send(world, "GET", "/openapi.json", &[("accept-encoding", "br, gzip")], "").await;
        assert_eq!(packed.headers["content-encoding"], "gzip");
        assert_eq!(packed.headers["vary"], "accept-encoding");
        assert!(packed.body.len() * 4 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
        assert_eq!(gunzip(&packed.body), plain.body);
        for refused in ["br", "gzip;q=0", "identity"] {
            let answer = send(world, "GET", "/openapi.json", &[("accept-encoding", refused)], "").await;
            assert!(!answer.headers.contains_key("content-encoding"), "{refused}");
        }
        let small = send(world, "GET", "/healthz", &[("accept-encoding", "gzip")], "").await;
        assert!(!small.headers.contains_key("content-encoding"), "not worth it");
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn no_page_of_another_origin_is_let_in() {
    in_world(Mode::Embedded, async |world| {
        let serve = serving(world).await;
        let own = format!("http://127.0.0.1:{}", world.port);
        for (method, origin) in
            [("OPTIONS", "https://evil.example"), ("GET", "https://evil.example"), ("OPTIONS", &own), ("GET", &own)]
        {
            let wanted = ("access-control-request-method", "POST");
            let answer = send(world, method, "/v1/jobs", &[("origin", origin), wanted], "").await;
            let allowed = answer.headers.keys().any(|name| name.as_str().starts_with("access-control"));
            assert!(!allowed, "{method} {origin}: {:?}", answer.headers);
        }
        serve.stop().await;
    })
    .await;
}

// ── JSON ────────────────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn json_that_readers_choke_on_is_refused_by_name_or_kept_to_the_letter() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        let name = &world.provider;
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        let nested = format!("{}1{}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
        let job = |members: &str| format!("{{\"provider\":\"{name}\",\"request\":{{\"path\":\"/\"}},{members}}}");
        let request = |members: &str| format!("{{\"provider\":\"{name}\",\"request\":{{\"path\":\"/\",{members}}}}}");
        let cases = [
            // Depth of 10,000, wherever something of any form may stand.
            (request(&format!("\"body\":{deep}")), "$.request.body"),
            (request(&format!("\"body\":{nested}")), "$.request.body"),
            (request(&format!("\"query\":{{\"q\":{deep}}}")), "$.request.query"),
            (job(&format!("\"metadata\":{nested}")), "$.metadata"),
            (job(&format!("\"lane\":{deep}")), "$.lane"),
            (nested.clone(), "$.a"),
            // Twice: none is dropped silently.
            (job("\"id\":\"a\",\"id\":\"b\""), "$.id"),
            (request("\"path\":\"/b\""), "$.request.path"),
            (request("\"query\":{\"q\":\"a\",\"q\":\"b\"}"), "$.request.query"),
            (request("\"headers\":{\"x-a\":\"1\",\"x-a\":\"2\"}"), "$.request.headers"),
            (job("\"retry\":{\"max_attempts\":1,\"max_attempts\":2}"), "$.retry"),
            // Half a character.
            (job("\"id\":\"\\ud800\""), "$.id"),
            (request("\"text\":\"\\udc00x\""), "$.request.text"),
            (request("\"body\":\"\\ud800\\u0041\""), "$.request.body"),
            (request("\"headers\":{\"x-a\":\"\\ud800\"}"), "$.request.headers"),
            (job("\"metadata\":{\"a\":\"\\ud800\"}"), "$.metadata"),
            // Numbers beyond every type.
            (job("\"cost\":1e400"), "$.cost"),
            (job(&format!("\"cost\":{}", "9".repeat(400))), "$.cost"),
            (job("\"cost\":-1"), "$.cost"),
            (job("\"retry\":{\"max_attempts\":4294967296}"), "$.retry.max_attempts"),
            (job("\"retry\":{\"base\":\"99999999999999999999s\"}"), "$.retry.base"),
            (job("\"deadline\":\"9999-12-31T23:59:59Z\""), "$.deadline"),
            // Names that nobody knows.
            (job("\"prioritty\":1"), "$.prioritty"),
            (request("\"methood\":\"GET\""), "$.request.methood"),
            (job("\"retry\":{\"tries\":1}"), "$.retry.tries"),
            (job("\"callback\":{\"uri\":\"x\"}"), "$.callback.uri"),
            (job("\"\\u0000\\r\\n\":1"), "$"),
        ];
        for (body, place) in cases {
            let answer = post(world, "/v1/jobs", body.clone()).await;
            let path = answer.wrong(422);
            let last = place.rsplit('.').next().unwrap_or_default();
            let named = path.starts_with(place) || answer.json()["detail"].as_str().is_some_and(|d| d.contains(last));
            let shown: String = body.chars().take(120).collect();
            assert!(named, "{shown}: {}", answer.json());
            assert!(answer.body.len() < 2_000, "{shown}: an answer of {} bytes", answer.body.len());
        }
        // As items of an array each has an error of its own; and an array may be deep, too.
        let answer = post(world, "/v1/jobs", format!("[{deep},{}]", job("\"id\":\"fine\""))).await;
        let items = answer.json();
        assert_eq!((&items["items"][0]["error"]["status"], &items["items"][1]["id"]), (&json!(422), &json!("fine")));
        assert_eq!(post(world, "/v1/jobs", deep.clone()).await.status, 202, "one item, which is none");
        for path in ["/v1/replays", "/v1/dead-letters/x/replay"] {
            assert!([400, 422].contains(&post(world, path, deep.clone()).await.status), "{path}");
            assert!([400, 422].contains(&post(world, path, nested.clone()).await.status), "{path}");
        }
        // What is the producer's own goes on as it is, to the last digit.
        let digits = "1234567890".repeat(1_000);
        let body =
            request(&format!("\"body\":{{\"n\":{digits},\"e\":1e400,\"d\":1,\"d\":2,\"s\":\"\\ud83d\\ude00\"}}"));
        let body = body.replacen('{', "{\"id\":\"exact\",\"metadata\":{\"n\":123456789012345678901234567890.50},", 1);
        assert_eq!(post(world, "/v1/jobs", body).await.status, 202);
        let shown = send(world, "GET", "/v1/jobs/exact", &[], "").await;
        assert!(String::from_utf8_lossy(&shown.body).contains("123456789012345678901234567890.50"));
        let stored: Vec<(String,)> = world.rows("SELECT envelope FROM jobs WHERE id = 'exact'").await;
        assert!(
            stored[0].0.contains(&format!("{{\"n\":{digits},\"e\":1e400,\"d\":1,\"d\":2,\"s\":\"\\ud83d\\ude00\"}}"))
        );
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

// ── names, filters, header fields ───────────────────────────────────────────────────────────────

#[tokio::test]
async fn filters_are_values_and_never_sql() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        for n in 0..3 {
            let job = json!({ "id": format!("kept-{n}"), "provider": world.provider, "tenant": "acme", "request": { "path": "/" } });
            assert_eq!(post(world, "/v1/jobs", job.to_string()).await.status, 202);
        }
        let lists = [
            ("/v1/jobs", &["state", "provider", "lane", "tenant", "cursor", "limit"][..]),
            ("/v1/dead-letters", &["reason", "provider", "lane", "tenant", "replayed", "dead_after", "dead_before", "cursor", "limit"]),
            ("/v1/replays", &["cursor", "limit"]),
            ("/v1/jobs/kept-0", &["tenant"]),
            ("/v1/events", &["event", "provider", "tenant"]),
        ];
        let values = [
            "' OR '1'='1", "'; DROP TABLE jobs; --", "\" OR 1=1 --", "1) OR (1=1", "acme' --", "%", "_", "ac%", "\\", "\\' OR 1=1",
            "$1", "?1", ":a", "\u{0}", "/*", "acme\u{0}", "NULL", "1 UNION SELECT secret FROM endpoints", "١", "\u{202e}",
        ];
        for (path, names) in lists {
            for name in names {
                for value in values {
                    if path == "/v1/events" && (*value == *"_" || *name == "tenant" && !value.contains('\0')) {
                        continue; // A stream of nobody's events has no end.
                    }
                    let query: String = url::form_urlencoded::Serializer::new(String::new()).append_pair(name, value).finish();
                    let answer = send(world, "GET", &format!("{path}?{query}"), &[], "").await;
                    match answer.status {
                        400 => assert_eq!(answer.wrong(400), format!("?{name}"), "{path} {name}={value:?}"),
                        404 => assert_eq!((path, *name), ("/v1/jobs/kept-0", "tenant"), "{value:?}"),
                        200 => assert_eq!(answer.json()["items"], json!([]), "{path} {name}={value:?}"),
                        other => panic!("{other}: {path} {name}={value:?}: {}", String::from_utf8_lossy(&answer.body)),
                    }
                    if path == "/v1/dead-letters" && *name != "cursor" && *name != "limit" {
                        let purged = send(world, "DELETE", &format!("{path}?{query}"), &[], "").await;
                        assert!(purged.status == 400 || purged.json()["purged"] == 0, "{name}={value:?}");
                    }
                }
            }
        }
        for value in values {
            let filter = json!({ "where": { "tenant": value, "provider": value }, "dry_run": true });
            let answer = post(world, "/v1/replays", filter.to_string()).await;
            assert!(answer.status == 422 || answer.json()["total"] == 0, "{value:?}");
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 3);
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

/// Sends bytes as they are, and reads what comes until the other side closes.
async fn raw(world: &World, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.expect("a connection");
    stream.write_all(bytes).await.expect("sent");
    let mut read = Vec::new();
    match tokio::time::timeout(SOON * 2, stream.read_to_end(&mut read)).await.expect("it is closed in time") {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    String::from_utf8_lossy(&read).into_owned()
}

#[tokio::test]
async fn no_path_leads_out_and_nothing_of_it_comes_into_a_header() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        let pieces = [
            "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/paceline.db", "....//....//", "..\\..\\paceline.toml",
            "..%5c..%5cpaceline.toml", "%c0%ae%c0%ae%c0%af", "%252e%252e%252f", "a%00.json", "%0d%0aset-cookie:%20a=b",
            "%0d%0a%0d%0a<script>", "%e5%98%8a%e5%98%8dset-cookie:a", "x%20HTTP/1.1%0d%0ahost:%20evil", "file:///etc/passwd", "//evil.example/",
        ];
        for prefix in ["/", "/v1/", "/v1/jobs/", "/v1/dead-letters/", "/v1/replays/", "/v1/providers/", "/schemas/"] {
            for piece in pieces {
                for tail in ["", "/result"] {
                    let head = format!("GET {prefix}{piece}{tail} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
                    let answer = raw(world, head.as_bytes()).await;
                    let status = answer.split(' ').nth(1).unwrap_or_default();
                    assert!(["400", "404"].contains(&status), "{prefix}{piece}{tail}: {answer}");
                    let (headers, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
                    assert!(!headers.contains("set-cookie") && !headers.contains("evil"), "{answer}");
                    assert!(!body.contains("root:") && !body.contains("[[provider]]") && !body.contains("SQLite"), "{answer}");
                    assert!(!body.contains("<script>") || headers.contains("application/problem+json"), "{answer}");
                }
            }
        }
        // A field with a line break in it, a field of two lines, two lengths, a length and chunks.
        for fields in [
            "x-a: b\rset-cookie: a=b\r\n", "x-a: b\r\n continued\r\n", "content-length: 0\r\ncontent-length: 5\r\n",
            "content-length: 5\r\ntransfer-encoding: chunked\r\n", "transfer-encoding: chunked, identity\r\n", "x a: b\r\n",
        ] {
            let head = format!("POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n{fields}\r\n0\r\n\r\n");
            let answer = raw(world, head.as_bytes()).await;
            assert!(!answer.starts_with("HTTP/1.1 2") && !answer.starts_with("HTTP/1.1 5"), "{fields:?}: {answer}");
            assert!(!answer.contains("set-cookie"), "{answer}");
        }
        assert_eq!(world.number("SELECT COUNT(*) FROM jobs").await, 0);
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

// ── much, and slow ──────────────────────────────────────────────────────────────────────────────

#[tokio::test]
async fn a_hundred_thousand_tiny_requests_on_one_connection_are_answered() {
    const REQUESTS: usize = 100_000;
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        let before = serve.memory_bytes();
        let stream = TcpStream::connect(("127.0.0.1", world.port)).await.expect("a connection");
        let (mut reading, mut writing) = stream.into_split();
        let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let last = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let write = async {
            let batch = request.repeat(1_000);
            for _ in 0..REQUESTS / 1_000 {
                writing.write_all(&batch).await.expect("taken");
            }
            writing.write_all(last).await.expect("taken");
        };
        let read = async {
            // `{"status":"ok","service":"paceline"}`: one brace an answer, whichever pieces they come in.
            let mut answers = 0;
            let mut chunk = vec![0; 1 << 16];
            while let Ok(n @ 1..) = reading.read(&mut chunk).await {
                answers += chunk[..n].iter().filter(|byte| **byte == b'}').count();
            }
            answers
        };
        // Others are served meanwhile.
        let others = async {
            for _ in 0..20 {
                let began = Instant::now();
                assert_eq!(world.api().get("/v1/jobs").await.0, 200);
                assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
            }
        };
        let work = async { tokio::join!(write, read, others).1 };
        let answers = tokio::time::timeout(Duration::from_secs(120), work).await.expect("in time");
        assert_eq!(answers, REQUESTS + 1);
        let more = serve.memory_bytes().saturating_sub(before);
        assert!(more < 64 << 20, "{} MiB more", more >> 20);
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn bodies_that_are_too_large_by_their_own_word_are_not_waited_for() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        for length in ["107374182400", "18446744073709551615"] {
            for path in ["/v1/jobs", "/v1/replays", "/v1/dead-letters/x/replay", "/v1/providers/x/pause"] {
                let began = Instant::now();
                let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n[");
                let answer = raw(world, head.as_bytes()).await;
                assert!(answer.starts_with("HTTP/1.1 4"), "{path}: {answer}");
                assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
            }
        }
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up() {
    in_world(Mode::Embedded, async |world| {
        let mut serve = serving(world).await;
        let slow = async || {
            let mut stream = TcpStream::connect(("127.0.0.1", world.port)).await.expect("a connection");
            let head = "POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.expect("sent");
            let (mut reading, mut writing) = stream.into_split();
            let trickle = async {
                while writing.write_all(b"1\r\n \r\n").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let answer = async {
                let mut first = vec![0; 12];
                reading.read_exact(&mut first).await.expect("an answer");
                String::from_utf8_lossy(&first).into_owned()
            };
            tokio::select! { answer = answer => answer, () = trickle => "cut off".to_owned() }
        };
        let began = Instant::now();
        let all = futures_util::future::join_all((0..100).map(|_| slow()));
        let others = async {
            while began.elapsed() < Duration::from_secs(10) {
                assert_eq!(world.api().get("/v1/jobs").await.0, 200, "others are served");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let (answers, ()) = tokio::join!(all, others);
        assert!(answers.iter().all(|answer| answer == "HTTP/1.1 408" || answer == "cut off"), "{answers:?}");
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        until("memory is given back", SOON, async || holds(world.api().get("/healthz").await.0 == 200)).await;
        well(world, &mut serve).await;
        serve.stop().await;
    })
    .await;
}
