//! `GET /v1/events` with the built binary: what completes is told, to those who may know, in order, and again to those
//! who were cut off.

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use common::world::{Mode, Serve, World, free_port, in_world};
use common::{SOON, holds, until};
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use paceline::webhook::event_schema;
use serde_json::{Value, json};
use sqlx::postgres::PgListener;
use sqlx::{Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const KEY: (&str, &str) = ("k1", "events-key-000001");

async fn provider(world: &World) -> ProviderHandle {
    let options = ProviderOptions { keys: vec![SimKey::new(KEY.0, KEY.1)], ..ProviderOptions::default() };
    let sim = ProviderSim::start(options).await.expect("a provider");
    world.provider(&sim.base_url(), &[KEY], "");
    sim
}

fn job(world: &World, id: &str, path: &str) -> Value {
    json!({ "id": id, "provider": world.provider, "request": { "path": path } })
}

/// What stands between two empty lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Frame {
    id: String,
    event: String,
    data: String,
}

impl Frame {
    fn parse(text: &str) -> Self {
        let mut frame = Self::default();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("id", value)) => frame.id = value.trim_start().to_owned(),
                Some(("event", value)) => frame.event = value.trim_start().to_owned(),
                Some(("data", value)) => frame.data = value.trim_start().to_owned(),
                _ => {}
            }
        }
        frame
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn job(&self) -> String {
        self.json()["data"]["job_id"].as_str().expect("a job").to_owned()
    }
}

/// A reader, as a browser is one.
struct Reader {
    response: reqwest::Response,
    buffer: String,
    /// The last id that was seen.
    id: String,
}

impl Reader {
    async fn answer(world: &World, query: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let mut request = client.get(format!("http://127.0.0.1:{}/v1/events{query}", world.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.expect("an answer")
    }

    async fn open(world: &World, query: &str, headers: &[(&str, &str)]) -> Self {
        let response = Self::answer(world, query, headers).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(response.headers().get("content-encoding").is_none());
        let mut reader = Self { response, buffer: String::new(), id: String::new() };
        let begin = reader.frame().await.expect("a beginning");
        assert!(!begin.id.is_empty() && begin.data.is_empty(), "{begin:?}");
        reader
    }

    /// The next frame, comments too; `None`: the stream ended.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.buffer.split_once("\n\n") {
                let frame = Frame::parse(frame);
                self.buffer = rest.to_owned();
                if !frame.id.is_empty() {
                    self.id.clone_from(&frame.id);
                }
                return Some(frame);
            }
            let chunk = tokio::time::timeout(SOON, self.response.chunk()).await.expect("a sign of life in time");
            self.buffer += std::str::from_utf8(&chunk.ok().flatten()?).expect("UTF-8");
        }
    }

    /// The next event.
    async fn event(&mut self) -> Frame {
        loop {
            let frame = self.frame().await.expect("the stream goes on");
            if !frame.data.is_empty() {
                return frame;
            }
        }
    }
}

#[tokio::test]
async fn completions_are_told_as_they_happen_and_resumed() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world).await;
        let serve = world.serving().await;
        let api = world.api();
        api.accept(&job(world, "before", "/ok")).await;
        api.job_in("before", &["succeeded"]).await;
        let mut reader = Reader::open(world, "", &[]).await;
        let begin = reader.id.clone();
        let mut dead = Reader::open(world, "?event=job.dead", &[]).await;
        let schema = jsonschema::validator_for(event_schema().as_value()).expect("a schema");
        let mut told = Vec::new();
        for (id, path, event) in [
            ("first", "/ok", "job.succeeded"),
            ("second", "/gone", "job.dead"),
            ("third", "/echo?x=1", "job.succeeded"),
        ] {
            let mut job = job(world, id, path.split('?').next().unwrap_or_default());
            job["metadata"] = json!({ "order": id });
            api.accept(&job).await;
            let frame = reader.event().await;
            assert_eq!((frame.job().as_str(), frame.event.as_str()), (id, event), "nothing from before, and in order");
            let value = frame.json();
            assert!(schema.is_valid(&value), "{value}");
            assert_eq!((&value["type"], &value["data"]["metadata"]["order"]), (&json!(event), &json!(id)));
            assert!(value["id"].as_str().is_some_and(|id| id.starts_with("evt_")), "{value}");
            told.push(frame);
        }
        assert_eq!(dead.event().await, told[1], "the same to whoever asked for it, and nothing else");
        // From where it began, from the middle, and from the end.
        for seen in 0..=told.len() {
            let after = if seen == 0 { &begin } else { &told[seen - 1].id };
            let mut resumed = Reader::open(world, "", &[("last-event-id", after)]).await;
            for expected in &told[seen..] {
                assert_eq!(&resumed.event().await, expected);
            }
        }
        let mut all = Reader::open(world, "", &[("last-event-id", "")]).await;
        api.accept(&job(world, "last", "/ok")).await;
        assert_eq!(all.event().await.job(), "last", "an empty id is none");
        assert_eq!(reader.event().await.job(), "last");
        // Nothing happens: both sides know that the other lives.
        assert_eq!(reader.frame().await, Some(Frame::default()), "a comment");
        let wrong = Reader::answer(world, "", &[("last-event-id", "yesterday")]).await;
        assert_eq!(wrong.status(), 400);
        assert!(wrong.text().await.expect("a problem").contains("last-event-id"));
        assert_eq!(Reader::answer(world, "?event=job.done&colour=red", &[]).await.status(), 400);
        // Readers do not keep a server from stopping.
        let began = Instant::now();
        serve.stop().await;
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(reader.frame().await, None);
    })
    .await;
}

#[tokio::test]
async fn a_tenant_hears_of_its_own_only() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world).await;
        let configured = std::fs::read_to_string(world.path("paceline.toml")).expect("a configuration");
        let tokens = "[api]\ntokens = [ { name = \"ops\", secret = \"env:OPS\", scopes = [\"admin\"] },
            { name = \"acme\", secret = \"env:ACME\", scopes = [\"read\"], tenant = \"acme\" },
            { name = \"shop\", secret = \"env:SHOP\", scopes = [\"enqueue\"], tenant = \"shop\" } ]\n";
        world.configure_all(&configured.replace("[api]\n", tokens));
        let names = ["OPS", "ACME", "SHOP"];
        for name in names {
            world.set(name, &format!("events-token-of-{name}"));
        }
        let serve = world.serving().await;
        let [ops, acme, shop] = names.map(|name| format!("Bearer events-token-of-{name}"));
        assert_eq!(Reader::answer(world, "", &[]).await.status(), 401);
        assert_eq!(Reader::answer(world, "", &[("authorization", &shop)]).await.status(), 403);
        assert_eq!(Reader::answer(world, "?tenant=shop", &[("authorization", &acme)]).await.status(), 403);
        let mut own = Reader::open(world, "", &[("authorization", &acme)]).await;
        let begin = own.id.clone();
        let mut all = Reader::open(world, "", &[("authorization", &ops)]).await;
        let mut narrowed = Reader::open(world, "?tenant=shop", &[("authorization", &ops)]).await;
        let api = world.api().with_token("events-token-of-OPS");
        for n in 0..4 {
            for tenant in ["shop", "acme", ""] {
                let mut job = job(world, &format!("{tenant}-{n}"), "/ok");
                job["tenant"] = tenant.into();
                api.accept(&job).await;
                let id = job["id"].as_str().expect("an id").to_owned();
                assert_eq!(all.event().await.job(), id);
            }
        }
        for n in 0..4 {
            assert_eq!(own.event().await.job(), format!("acme-{n}"));
            assert_eq!(narrowed.event().await.job(), format!("shop-{n}"));
        }
        let mut resumed = Reader::open(world, "", &[("authorization", &acme), ("last-event-id", &begin)]).await;
        for n in 0..4 {
            assert_eq!(
                resumed.event().await.job(),
                format!("acme-{n}"),
                "also where everything is looked through again"
            );
        }
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_is_cut_off_and_misses_nothing() {
    const JOBS: usize = 240;
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world).await;
        let serve = world.serving().await;
        let mut slow = TcpStream::connect(("127.0.0.1", world.port)).await.expect("a connection");
        slow.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("sent");
        let mut read = vec![0; 1];
        slow.read_exact(&mut read).await.expect("the beginning of an answer");
        // Some 14 MB, more than the buffers on the way take.
        let jobs: Vec<Value> = (0..JOBS).map(|n| job(world, &format!("big-{n}"), "/big/60000")).collect();
        world.api().accept_all(&jobs).await;
        let port = slow.local_addr().expect("an address").port();
        until("the reader is cut off", SOON * 3, async || holds(serve.connections_to(port) == 0)).await;
        assert!(world.api().get("/healthz").await.0 == 200);
        // What was on its way is still read, or lost with the connection.
        let mut chunk = vec![0; 65_536];
        while let Ok(n @ 1..) = slow.read(&mut chunk).await {
            read.extend_from_slice(&chunk[..n]);
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let whole: Vec<Frame> =
            text.split("\n\n").map(Frame::parse).filter(|f| !f.id.is_empty() && f.data.ends_with('}')).collect();
        assert!(whole.len() < JOBS, "it was slow");
        let begin =
            text.split("id: ").nth(1).and_then(|rest| rest.split('\n').next()).expect("a beginning").trim().to_owned();
        let last = whole.last().map_or(begin, |frame| frame.id.clone());
        let mut seen: BTreeSet<String> = whole.iter().map(Frame::job).collect();
        let mut resumed = Reader::open(world, "", &[("last-event-id", &last)]).await;
        while seen.len() < JOBS {
            assert!(seen.insert(resumed.event().await.job()), "not twice");
        }
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn streams_are_bounded_and_keep_nobody_else_out() {
    in_world(Mode::Embedded, async |world| {
        let _sim = provider(world).await;
        let serve = world.serving().await;
        let mut readers = Vec::new();
        for _ in 0..128 {
            readers.push(Reader::open(world, "", &[]).await);
        }
        let refused = Reader::answer(world, "", &[]).await;
        assert_eq!((refused.status().as_u16(), refused.headers().contains_key("retry-after")), (503, true));
        world.api().accept(&job(world, "one", "/ok")).await;
        for reader in &mut readers {
            assert_eq!(reader.event().await.job(), "one");
        }
        drop(readers);
        until("their places are free again", SOON, async || {
            holds(Reader::answer(world, "", &[]).await.status() == 200)
        })
        .await;
        serve.stop().await;
    })
    .await;
}

// ── several processes ───────────────────────────────────────────────────────────────────────────

async fn apart(world: &World) -> (Serve, Serve) {
    world.prepare().await;
    let mut api = world.serve_as("api", &["--role", "api"]);
    world.ready(&mut api).await;
    world.set("PACELINE__METRICS__LISTEN", &format!("127.0.0.1:{}", free_port()));
    (api, world.serve_as("dispatcher", &["--role", "dispatcher,scheduler"]))
}

#[tokio::test]
async fn what_another_process_completed_is_notified() {
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world).await;
        let (api, dispatcher) = apart(world).await;
        let mut listener = PgListener::connect(world.database()).await.expect("a connection");
        listener.listen("paceline").await.expect("listening");
        let mut told = async |what: &str| {
            let heard = async {
                loop {
                    let said = listener.recv().await.expect("a notification").payload().to_owned();
                    if said.ends_with(what) {
                        return;
                    }
                }
            };
            tokio::time::timeout(SOON, heard).await.unwrap_or_else(|_| panic!("nobody said {what}"));
        };
        world.api().accept(&job(world, "unasked", "/ok")).await;
        world.api().job_in("unasked", &["succeeded"]).await;
        let mut reader = Reader::open(world, "", &[]).await;
        told(" completions?").await;
        world.api().accept(&job(world, "asked", "/ok")).await;
        told(" completions").await;
        assert_eq!(reader.event().await.job(), "asked");
        // And without notifications: those who listen are cut off, and it is found by looking.
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
            AND pid <> pg_backend_pid() AND query ILIKE 'LISTEN%'";
        world.execute(cut).await;
        world.api().accept(&job(world, "cut", "/ok")).await;
        assert_eq!(reader.event().await.job(), "cut");
        api.stop().await;
        dispatcher.stop().await;
    })
    .await;
}

/// Positions are given out in another order than transactions commit.
#[tokio::test]
async fn what_commits_late_is_not_skipped() {
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world).await;
        let (api, dispatcher) = apart(world).await;
        let mut late = job(world, "late", "/ok");
        late["not_before"] = "2099-01-01T00:00:00Z".into();
        world.api().accept(&late).await;
        let mut reader = Reader::open(world, "", &[]).await;
        // Another process ends a job, and has not committed yet.
        let mut other = PgConnection::connect(world.database()).await.expect("a connection");
        let mut open = other.begin().await.expect("a transaction");
        let ended = "UPDATE jobs SET state = 'cancelled', finished_ms = 1 WHERE id = 'late'";
        sqlx::query(ended).execute(&mut *open).await.expect("changed");
        let event = "INSERT INTO events (id, job_pk, run, state, at_ms, attempts)
            SELECT 'evt_late', pk, 1, 'cancelled', 1, 0 FROM jobs WHERE id = 'late'";
        sqlx::query(event).execute(&mut *open).await.expect("inserted");
        world.api().accept(&job(world, "soon", "/ok")).await;
        world.api().job_in("soon", &["succeeded"]).await;
        let early = tokio::time::timeout(Duration::from_secs(2), reader.event()).await;
        assert!(early.is_err(), "told before it was settled: {early:?}");
        open.commit().await.expect("committed");
        assert_eq!(reader.event().await.job(), "late", "in the order of their positions");
        assert_eq!(reader.event().await.job(), "soon");
        api.stop().await;
        dispatcher.stop().await;
    })
    .await;
}
