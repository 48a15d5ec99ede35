//! The examples as a reader runs them: producers in six languages publish to a real broker, a real dispatcher makes the calls,
//! the receivers verify the webhooks. Nothing is lost or doubled when the broker does not answer, is cut off, or refuses.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use common::broker;
use common::proxy::{Manner, Proxy};
use common::world::{Mode, SECRET, World, checkout, free_port, in_world};
use common::{SOON, holds, until};
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use lapin::options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use paceline::secrets::Secret;
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use paceline::webhook::WebhookSecrets;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

const PRODUCERS: [&str; 6] = ["publish.py", "publish.js", "publish.go", "Publish.java", "publish.rb", "publish.php"];
const RECEIVERS: [&str; 2] = ["receive_webhooks.py", "receive_webhooks.js"];
const KEY: &str = "key-of-the-examples";
/// Compilers of two languages, on a machine that is busy.
const RUNS_WITHIN: Duration = Duration::from_secs(120);
const LINES_MAX: usize = 39;

// ------------------------------------------------------------------------------------------- running an example

/// Programs by name, as `deploy/services` tells them; installed where they are missing.
struct Runtimes {
    programs: BTreeMap<String, String>,
    /// `go run` leaves its program behind when it is killed, so that one is built.
    go_program: String,
}

impl Runtimes {
    async fn get() -> &'static Self {
        static RUNTIMES: OnceCell<Runtimes> = OnceCell::const_new();
        RUNTIMES.get_or_init(Self::find).await
    }

    async fn find() -> Self {
        let lines = said(services(&["runtimes"]).await);
        let pairs = lines.lines().filter_map(|line| line.split_once('='));
        let mut programs: BTreeMap<String, String> =
            pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        programs.insert("python".to_owned(), said(services(&["python"]).await).trim().to_owned());
        let go_program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("publish-go").display().to_string();
        let mut build = Command::new(&programs["go"]);
        build.args(["build", "-o", &go_program]).arg(checkout().join("examples/publish.go"));
        said(build.env("GO111MODULE", "off").env("GOPATH", &programs["go_path"]).output().await.expect("go"));
        Self { programs, go_program }
    }

    /// The command that its header tells.
    fn command(&self, example: &str) -> Command {
        let program = |name: &str| Command::new(&self.programs[name]);
        let (_, language) = example.rsplit_once('.').expect("an extension");
        let mut command = match language {
            "py" => program("python"),
            "js" => program("node"),
            "rb" => program("ruby"),
            "php" => program("php"),
            "java" => program("java"),
            "go" => Command::new(&self.go_program),
            other => panic!("who runs {other}?"),
        };
        match language {
            "js" => drop(command.env("NODE_PATH", &self.programs["node_path"])),
            "java" => drop(command.args(["-cp", &self.programs["java_class_path"]])),
            _ => {}
        }
        if language != "go" {
            command.arg(checkout().join("examples").join(example));
        }
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }
}

async fn services(arguments: &[&str]) -> Output {
    Command::new(checkout().join("deploy/services")).args(arguments).output().await.expect("deploy/services")
}

/// What it printed; it must have succeeded.
fn said(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// A producer at work. What it complains about is in a file.
struct Producer {
    child: Child,
    complaints: std::path::PathBuf,
    count: usize,
    prefix: String,
}

impl Producer {
    async fn start(example: &str, count: usize, url: &str, provider: &str, hook: &str, folder: &Path) -> Self {
        let prefix = format!("{}-", example.replace('.', "-"));
        let complaints = folder.join(format!("{example}.log"));
        let mut command = Runtimes::get().await.command(example);
        command.args([&count.to_string(), provider, hook, &prefix]).env("AMQP_URL", url);
        let stderr = File::create(&complaints).expect("a file");
        let child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("it starts");
        Self { child, complaints, count, prefix }
    }

    /// How often it was in doubt.
    fn doubts(&self) -> usize {
        let text = std::fs::read_to_string(&self.complaints).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("not confirmed, again in a second: ")).count()
    }

    async fn doubts_again(&self, more_than: usize) {
        until(&format!("{} is in doubt", self.prefix), SOON * 3, async || holds(self.doubts() > more_than)).await;
    }

    fn ids(&self) -> BTreeSet<String> {
        (0..self.count).map(|n| format!("{}{n}", self.prefix)).collect()
    }

    /// Waits until it has told that all is confirmed.
    async fn done(self) {
        let (count, prefix) = (self.count, &self.prefix);
        let output = tokio::time::timeout(RUNS_WITHIN, self.child.wait_with_output()).await.expect("it ends");
        let output = output.expect("an end");
        let last = format!("{count} jobs published and confirmed, {prefix}0 to {prefix}{}\n", count - 1);
        assert!(output.status.success(), "{}", std::fs::read_to_string(&self.complaints).unwrap_or_default());
        assert_eq!(String::from_utf8_lossy(&output.stdout), last);
    }
}

/// A receiver that answers; its port.
async fn receiver(example: &str, ledger: &Path) -> (Child, u16) {
    let port = free_port();
    let mut command = Runtimes::get().await.command(example);
    let child = command.arg(port.to_string()).arg(ledger).env("PACELINE_WEBHOOK_SECRET", SECRET).spawn();
    until(example, SOON, async || TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    (child.expect("it starts"), port)
}

fn entries(ledger: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(ledger).unwrap_or_default();
    // The last line may be in the making.
    text.split_inclusive('\n').filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok()).collect()
}

async fn provider_sim(world: &World) -> ProviderHandle {
    let options = ProviderOptions { keys: vec![SimKey::new("a1", KEY)], ..ProviderOptions::default() };
    let sim = ProviderSim::start(options).await.expect("a provider");
    world.provider(&sim.base_url(), &[("a1", KEY)], "");
    sim
}

/// Every one of these jobs was called once and told of once, with a signature that the receiver found good.
async fn each_once(world: &World, ids: &BTreeSet<String>, sim: &ProviderHandle, ledger: &Path) {
    let count = ids.len();
    world.all_done(i64::try_from(count).expect("few"), RUNS_WITHIN).await;
    until("every webhook is written down", SOON * 2, async || holds(entries(ledger).len() >= count)).await;
    let calls: Vec<String> =
        sim.ledger().iter().filter_map(|call| Some(call.idempotency_key.as_deref()?.to_owned())).collect();
    assert_eq!(calls.len(), count, "one call a job");
    assert_eq!(&calls.into_iter().collect::<BTreeSet<_>>(), ids);
    let mut told = BTreeSet::new();
    for entry in entries(ledger) {
        assert_eq!((&entry["verified"], &entry["event"]["type"]), (&json!(true), &json!("job.succeeded")), "{entry}");
        let id = entry["event"]["data"]["job_id"].as_str().expect("an id").to_owned();
        assert!(told.insert(id), "twice: {entry}");
    }
    assert_eq!(&told, ids);
    world.at_rest(i64::try_from(count).expect("few")).await;
}

// ------------------------------------------------------------------------------------------------- producers

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn producers_in_six_languages_publish_jobs_that_succeed_and_are_told_of() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider_sim(world).await;
        let ledger = world.path("webhooks.jsonl");
        let (_receiver, port) = receiver("receive_webhooks.js", &ledger).await;
        let serve = world.serving().await;
        let (url, hook) = (broker::url(), format!("http://127.0.0.1:{port}/"));
        let start = |example| Producer::start(example, 50, &url, &world.provider, &hook, world.folder());
        let producers = join_all(PRODUCERS.map(start)).await;
        let ids = producers.iter().flat_map(Producer::ids).collect();
        for producer in producers {
            assert_eq!(producer.doubts(), 0, "{}", producer.prefix);
            producer.done().await;
        }
        each_once(world, &ids, &sim, &ledger).await;
        serve.stop().await;
    })
    .await;
}

/// Through a slow line, so that there is always something on its way: a hundred jobs are about 25 kB.
async fn publish_over_a_bad_line(world: &World, example: &'static str, hook: &str) -> BTreeSet<String> {
    let proxy = Proxy::start(format!("127.0.0.1:{}", broker::port())).await;
    let slow = Manner::Slow { bytes_per_s: 8_000 };
    proxy.set(slow);
    let url = proxy.url(&broker::url());
    let producer = Producer::start(example, 200, &url, &world.provider, hook, world.folder()).await;
    let in_the_middle = async || {
        let at = proxy.bytes_there() + 8_000;
        until(&format!("{example} publishes"), SOON * 3, async || holds(proxy.bytes_there() >= at)).await;
    };
    in_the_middle().await;
    // All that is on its way arrives, and no confirm comes back: whoever waits without a bound waits for ever.
    proxy.set(Manner::Mute);
    producer.doubts_again(0).await;
    proxy.set(slow);
    in_the_middle().await;
    let doubts = producer.doubts();
    proxy.cut();
    producer.doubts_again(doubts).await;
    proxy.set(Manner::Through);
    let ids = producer.ids();
    producer.done().await;
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_falls_silent_and_is_cut_off_costs_no_job_and_doubles_none() {
    in_world(Mode::Scaled, async |world| {
        let sim = provider_sim(world).await;
        let ledger = world.path("webhooks.jsonl");
        let (_receiver, port) = receiver("receive_webhooks.py", &ledger).await;
        let serve = world.serving().await;
        let hook = format!("http://127.0.0.1:{port}/");
        let published = join_all(PRODUCERS.map(|example| publish_over_a_bad_line(world, example, &hook))).await;
        each_once(world, &published.into_iter().flatten().collect(), &sim, &ledger).await;
        serve.stop().await;
    })
    .await;
}

/// A part of the broker of its own: there the exchange for jobs has no alternate, and queues are as a test wants them.
async fn in_virtual_host(test: impl AsyncFnOnce(&str)) {
    let name = format!("examples-{}", uuid::Uuid::now_v7().simple());
    let mut url = url::Url::parse(&broker::url()).expect("a URL");
    url.set_path(&name);
    said(services(&["ctl", "add_vhost", &name]).await);
    said(services(&["ctl", "set_permissions", "-p", &name, url.username(), ".*", ".*", ".*"]).await);
    let done = AssertUnwindSafe(test(url.as_str())).catch_unwind().await;
    said(services(&["ctl", "delete_vhost", &name]).await);
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

async fn declare_small_queue(channel: &Channel, queue: &str, messages_max: i64) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(messages_max));
    arguments.insert("x-overflow".into(), AMQPValue::LongString(LongString::from("reject-publish")));
    channel.queue_declare(queue.into(), QueueDeclareOptions::default(), arguments).await.expect("a queue");
    let (key, options) = (queue.into(), QueueBindOptions::default());
    channel.queue_bind(queue.into(), "paceline.jobs".into(), key, options, FieldTable::default()).await.expect("bound");
}

/// First no queue takes its messages, then one that is full again and again.
async fn publish_where_nobody_listens(channel: &Channel, example: &str, url: &str, folder: &Path) {
    let producer = Producer::start(example, 30, url, example, "", folder).await;
    producer.doubts_again(0).await;
    declare_small_queue(channel, example, 10).await;
    // The first doubt may still be about the missing queue.
    producer.doubts_again(producer.doubts() + 1).await;
    let (expected, mut seen) = (producer.ids(), BTreeSet::new());
    until(&format!("all messages of {example}"), RUNS_WITHIN, async || {
        let message = channel.basic_get(example.into(), BasicGetOptions { no_ack: true }).await.expect("an answer")?;
        let properties = &message.properties;
        assert_eq!(properties.delivery_mode(), &Some(2), "persistent");
        assert_eq!(properties.content_type().as_ref().map(|text| text.as_str()), Some("application/json"));
        let id = properties.message_id().as_ref().expect("an id").to_string();
        let job: Value = serde_json::from_slice(&message.data).expect("JSON");
        let number = id.rsplit('-').next().and_then(|n| n.parse::<u64>().ok());
        assert_eq!((job["request"]["body"]["n"].as_u64(), &job["callback"]), (number, &Value::Null), "{job}");
        seen.insert(id);
        holds(seen == expected)
    })
    .await;
    producer.done().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_no_queue_takes_or_the_broker_refuses_are_published_again() {
    in_virtual_host(async |url| {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker");
        let channel = connection.create_channel().await.expect("a channel");
        let (kind, options) = (ExchangeKind::Topic, ExchangeDeclareOptions { durable: true, ..Default::default() });
        channel.exchange_declare("paceline.jobs".into(), kind, options, FieldTable::default()).await.expect("declared");
        let folder = tempfile::tempdir().expect("a folder");
        join_all(PRODUCERS.map(|example| publish_where_nobody_listens(&channel, example, url, folder.path()))).await;
        connection.close(200, "done".into()).await.ok();
    })
    .await;
}

// ------------------------------------------------------------------------------------------------- receivers

/// Secret, signed time relative to now, and what is done to the headers of a good event.
struct Event {
    what: &'static str,
    secret: &'static str,
    late_by_s: i64,
    spoil: fn(&mut BTreeMap<&'static str, String>),
    good: bool,
}

const STRANGER: &str = "whsec_YW5vdGhlci1zZWNyZXQtb2YtMzItYnl0ZXMtbG9uZyEh";

fn events() -> Vec<Event> {
    let event = |what, secret, late_by_s, good, spoil| Event { what, secret, late_by_s, spoil, good };
    let set = |what, good, spoil| event(what, SECRET, 0, good, spoil);
    vec![
        set("as it is sent", true, |_| {}),
        set("several signatures, ours the last", true, |h| {
            let ours = h["webhook-signature"].clone();
            h.insert("webhook-signature", format!("v1a,b3RoZXI= v1,{} {ours}", "A".repeat(44)));
        }),
        event("four minutes old", SECRET, 240, true, |_| {}),
        event("six minutes old", SECRET, 360, false, |_| {}),
        event("from the future", SECRET, -360, false, |_| {}),
        event("signed by a stranger", STRANGER, 0, false, |_| {}),
        set("another id", false, |h| drop(h.insert("webhook-id", "evt_other".to_owned()))),
        set("another body", false, |h| drop(h.insert("body", "{\"type\":\"job.dead\"}".to_owned()))),
        set("a time that is no number", false, |h| drop(h.insert("webhook-timestamp", "1e9".to_owned()))),
        set("a negative time", false, |h| drop(h.insert("webhook-timestamp", "-1".to_owned()))),
        set("no signature", false, |h| drop(h.remove("webhook-signature"))),
        set("no time", false, |h| drop(h.remove("webhook-timestamp"))),
        set("no id", false, |h| drop(h.remove("webhook-id"))),
        set("an empty signature", false, |h| drop(h.insert("webhook-signature", "v1,".to_owned()))),
        set("another scheme", false, |h| {
            let ours = h["webhook-signature"].replacen("v1,", "v9,", 1);
            h.insert("webhook-signature", ours);
        }),
        set("a signature cut short", false, |h| {
            h.get_mut("webhook-signature").expect("one").pop();
        }),
        set("two megabytes", false, |h| drop(h.insert("body", "x".repeat(2 << 20)))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_take_what_is_signed_and_fresh_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let http = reqwest::Client::builder().no_proxy().timeout(SOON).build().expect("a client");
    for example in RECEIVERS {
        let ledger = folder.path().join(example);
        let (_receiver, port) = receiver(example, &ledger).await;
        for (n, event) in events().into_iter().enumerate() {
            let (id, body) = (format!("evt_{n}"), format!("{{\"type\":\"job.succeeded\",\"n\":{n}}}"));
            let at_s = jiff::Timestamp::now().as_second() - event.late_by_s;
            let secrets = WebhookSecrets::new(&Secret::new(event.secret.to_owned())).expect("a secret");
            let signature = secrets.sign("", &id, at_s, body.as_bytes()).expect("signed");
            let mut parts = BTreeMap::from([
                ("webhook-id", id.clone()),
                ("webhook-timestamp", at_s.to_string()),
                ("webhook-signature", signature),
                ("body", body),
            ]);
            (event.spoil)(&mut parts);
            let mut request =
                http.post(format!("http://127.0.0.1:{port}/")).body(parts.remove("body").expect("a body"));
            for (name, value) in parts {
                request = request.header(name, value);
            }
            // It may end the connection on a body that is too long.
            let status = request.send().await.map_or(0, |response| response.status().as_u16());
            assert_eq!(status == 204, event.good, "{example}: {}: {status}", event.what);
            let kept =
                entries(&ledger).into_iter().filter(|entry| entry["id"] == json!(id) && entry["verified"] == true);
            let kept: Vec<Value> = kept.map(|entry| entry["event"]["n"].clone()).collect();
            assert_eq!(kept, if event.good { vec![json!(n)] } else { vec![] }, "{example}: {}", event.what);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ curl

async fn enqueue(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new("sh");
    command.arg(checkout().join("examples/enqueue.sh")).args(arguments).envs(env.iter().copied());
    tokio::time::timeout(RUNS_WITHIN, command.kill_on_drop(true).output()).await.expect("it ends").expect("it ran")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_from_curl_runs_once_however_often_it_is_sent() {
    in_world(Mode::Embedded, async |world| {
        let sim = provider_sim(world).await;
        let serve = world.serving().await;
        let url = format!("http://127.0.0.1:{}", world.port);
        let env = [("PACELINE_URL", url.as_str())];
        for _ in 0..2 {
            let answer = said(enqueue(&[&world.provider, "/v1/echo", "{\"n\":1}", "curl-1"], &env).await);
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(answer["id"], "curl-1");
            world.api().job_in("curl-1", &["succeeded"]).await;
        }
        said(enqueue(&[&world.provider, "/v1/echo"], &env).await);
        world.all_done(2, SOON).await;
        assert_eq!(sim.ledger().iter().map(|call| call.method.as_str()).collect::<Vec<_>>(), ["POST", "GET"]);
        let refused = enqueue(&["nobody", "/v1/echo"], &env).await;
        assert!(!refused.status.success(), "a provider that does not exist");
        assert!(String::from_utf8_lossy(&refused.stdout).contains("nobody"), "it shows the answer");
        serve.stop().await;
    })
    .await;
}

#[tokio::test]
async fn curl_sends_the_token() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answer = async {
        let (mut stream, _) = listener.accept().await.expect("a request");
        let mut request = Vec::new();
        while !request.ends_with(b"}}") {
            assert!(stream.read_buf(&mut request).await.expect("readable") > 0, "a whole request");
        }
        stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}").await.expect("written");
        String::from_utf8(request).expect("text").to_lowercase()
    };
    let env = [("PACELINE_URL", url.as_str()), ("PACELINE_TOKEN", "a-token-of-sixteen")];
    let (request, output) = tokio::join!(answer, enqueue(&["geocoder", "/v1/echo"], &env));
    said(output);
    assert!(request.contains("\r\nauthorization: bearer a-token-of-sixteen\r\n"), "{request}");
}

// -------------------------------------------------------------------------------------------------- readable

#[test]
fn every_example_is_short() {
    let mut seen = 0;
    for entry in std::fs::read_dir(checkout().join("examples")).expect("examples") {
        let path = entry.expect("an entry").path();
        let extension = path.extension().and_then(|text| text.to_str()).unwrap_or_default();
        if !["py", "js", "go", "java", "rb", "php", "sh"].contains(&extension) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let lines = text.lines().count();
        assert!((5..=LINES_MAX).contains(&lines), "{}: {lines} lines", path.display());
        seen += 1;
    }
    assert!(seen > PRODUCERS.len() + RECEIVERS.len(), "{seen} examples");
}
