//! The command line as its users meet it: the built binary, over a store and over a server.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paceline::api::{ApiParts, HookRules, ServeLimits, Tokens, router, serve};
use paceline::clock::{Clock, SystemClock};
use paceline::config::{Config, Scope, Token};
use paceline::job::JobState;
use paceline::readiness::Readiness;
use paceline::secrets::Secret;
use paceline::store::{DeadReason, Next, Record, Store, StoreOptions, StoredResponse};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const KEY: &str = "geo-key-0123456789";
const TOKEN: &str = "cli-token-0123456789";

/// A directory with a configuration, in which commands run.
struct Place {
    directory: tempfile::TempDir,
    runtime: Runtime,
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    #[track_caller]
    fn code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "out: {}\nerr: {}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        for text in [&self.out, &self.err] {
            assert!(!text.contains(KEY) && !text.contains(TOKEN), "a secret is shown: {text}");
        }
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }

    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs it with that on its standard input.
fn feed(command: &mut Command, input: &str) -> Said {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut stdin = child.stdin.take().expect("a pipe");
    let text = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let said = child.wait_with_output().expect("ended").into();
    writer.join().expect("no panic").unwrap_or_default();
    said
}

/// Nobody listens on port 1.
const CONFIG: &str = r#"
[store]
url = "sqlite://paceline.db"
[api]
listen = "127.0.0.1:1"
[[provider]]
name = "geo"
base_url = "https://api.example.com"
keys = [ { label = "a1", secret = "env:GEO_A1" } ]
key_limits = [ { requests = 600, per = "1m", algorithm = "sliding_window" } ]
lanes = { high = 8, default = 4 }
"#;

impl Place {
    fn new() -> Self {
        let place =
            Self { directory: tempfile::tempdir().expect("a directory"), runtime: Runtime::new().expect("a runtime") };
        std::fs::write(place.path("paceline.toml"), CONFIG).expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_paceline"));
        command.args(args).current_dir(self.directory.path()).env_clear().env("GEO_A1", KEY).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("run").into()
    }

    fn pipe(&self, args: &[&str], input: &str) -> Said {
        feed(&mut self.command(args), input)
    }

    /// Closes the store and gives its lock back.
    fn close(&self, store: Store) {
        self.runtime.block_on(store.close());
        drop(store);
    }

    fn store(&self) -> Store {
        let url = format!("sqlite://{}", self.path("paceline.db").display());
        self.runtime.block_on(async {
            let store = Store::open(&StoreOptions { url, exclusive: true, connections_max: 2 }).await.expect("a store");
            store.migrate().await.expect("a schema");
            store
        })
    }

    /// Lets the due jobs end.
    fn end(&self, store: &Store, state: JobState) {
        self.runtime.block_on(async {
            let now = SystemClock::new().wall_ms();
            for claimed in store.claim_due(&"owner".to_owned(), "geo", "default", 100, now).await.expect("claimed") {
                let died = state == JobState::Dead;
                let next = Next::Finish {
                    state,
                    reason: died.then_some(DeadReason::Permanent),
                    error: died.then(|| "the provider said\u{1b}[31m 404".to_owned()),
                    response: Some(StoredResponse {
                        status: 200,
                        headers: "{}".to_owned(),
                        content_type: None,
                        body: bytes::Bytes::from_static(b"{\"ok\":true}\x00\xff"),
                        truncated: false,
                    }),
                };
                let record = Record {
                    pk: claimed.pk,
                    epoch: claimed.epoch,
                    run: claimed.run,
                    attempt: None,
                    failures: 0,
                    at_ms: now,
                    next,
                };
                store.record(record).await.expect("recorded");
            }
        });
    }

    /// With the store opened, and closed again.
    fn ended(&self, state: JobState) {
        let store = self.store();
        self.end(&store, state);
        self.close(store);
    }

    /// Serves the API over the store of this place.
    fn serve(&self, store: &Store, tokens: &[Token]) -> SocketAddr {
        let env = [("GEO_A1".to_owned(), KEY.to_owned())];
        let config = Config::parse(CONFIG, None, &env).expect("valid");
        let router = router(ApiParts {
            store: store.clone(),
            catalog: Arc::new(config.catalog()),
            clock: Arc::new(SystemClock::new()),
            masters: Arc::default(),
            tokens: Tokens::new(tokens),
            readiness: Readiness::default(),
            registry: Registry::default(),
            envelope_bytes_max: config.api.envelope_bytes_max,
            hooks: HookRules::of(&config.webhooks, Arc::default()).expect("a secret of the scheme"),
            public_url: None,
        });
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        self.runtime.spawn(serve(listener, router, ServeLimits::default(), std::future::pending()));
        address
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
}

#[test]
fn a_job_goes_from_arguments_to_the_store_and_is_looked_at() {
    let place = Place::new();
    let said = place.run(&[
        "--json",
        "enqueue",
        "--provider",
        "geo",
        "--path",
        "/v1/search",
        "--data",
        "{\"n\": 1.50}",
        "--query",
        "a=1",
        "--query",
        "a=2",
        "--header",
        "x-trace: 7",
        "--lane",
        "high",
        "--id",
        "order-1",
        "--metadata",
        "{\"order\":1}",
        "--not-before",
        "1h",
        "--key",
        "a1",
        "--cost",
        "3",
        "--tenant",
        "acme",
        "--at-most-once",
        "--max-attempts",
        "2",
    ]);
    assert_eq!(said.code(0).json(), json!({ "id": "order-1", "state": "waiting", "created": true }));
    let shown = place.run(&["jobs", "show", "order-1", "--json"]).code(0).json();
    assert_eq!(
        (&shown["state"], &shown["lane"], &shown["tenant"]),
        (&json!("waiting"), &json!("high"), &json!("acme"))
    );
    assert_eq!(shown["metadata"], json!({ "order": 1 }));
    let said = place.run(&["jobs", "show", "order-1"]).code(0);
    assert!(said.out.contains("waiting for  not_before") && said.out.contains("order-1"), "{}", said.out);
    let store = place.store();
    let view = place.runtime.block_on(store.job(None, "order-1")).expect("read").expect("there");
    assert_eq!(view.job.request.method, "POST");
    assert_eq!(view.job.request.body.as_deref().map(|b| b.get()), Some("{\"n\": 1.50}"), "exactly as it was written");
    assert_eq!(view.job.request.query["a"], json!(["1", "2"]));
    assert_eq!((view.job.cost, view.job.key.as_deref(), view.job.retry.max_attempts), (3, Some("a1"), Some(2)));
    place.close(store);
    let said = place.run(&["enqueue", "--provider", "geo", "--path", "/"]).code(0);
    assert!(said.out.ends_with("queued\n"), "{}", said.out);
    let listed = place.run(&["jobs", "list"]).code(0);
    assert!(listed.out.starts_with("ID ") && listed.out.lines().count() == 3, "{}", listed.out);
    assert_eq!(
        place.run(&["--json", "jobs", "list", "--state", "waiting"]).code(0).json()["items"][0]["id"],
        "order-1"
    );
}

#[test]
fn what_is_wrong_with_a_job_is_told_before_or_after_sending() {
    let place = Place::new();
    for (args, hint) in [
        (&["enqueue"][..], "--provider"),
        (&["enqueue", "--provider", "geo"], "--path"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--data", "{"], "--data: expected JSON"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--data", "@/nowhere"], "/nowhere"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--header", "x"], "NAME:VALUE"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--query", "x"], "NAME=VALUE"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--deadline", "soon"], "--deadline"),
        (&["enqueue", "--provider", "geo", "--path", "/", "--data", "{}", "--text", "x"], "cannot be used with"),
        (&["enqueue", "-", "--path", "/"], "cannot be used with"),
        (&["jobs", "show", "a b"], "expected an id"),
        (&["jobs", "nope"], "unrecognized"),
    ] {
        let said = place.run(args).code(2);
        assert!(said.err.contains(hint) && said.out.is_empty(), "{args:?}: {}", said.err);
    }
    let said = place.run(&["enqueue", "--provider", "nope", "--path", "/"]).code(1);
    assert!(said.err.contains("$.provider") && said.err.contains("geo"), "{}", said.err);
    let said = place.run(&["--json", "enqueue", "--provider", "geo", "--path", "//evil"]).code(1);
    let error: Value = serde_json::from_str(&said.err).expect("JSON on standard error");
    assert_eq!(error["error"]["problem"]["errors"][0]["path"], "$.request.path");
    let said = place.run(&["--json", "jobs", "nope"]).code(2);
    let error: Value = serde_json::from_str(&said.err).expect("JSON on standard error");
    assert_eq!(error["error"]["exit"], 2);
    place.run(&["enqueue", "--provider", "geo", "--path", "/", "--id", "x"]).code(0);
    place.run(&["enqueue", "--provider", "geo", "--path", "/other", "--id", "x"]).code(5);
    let again = place.run(&["enqueue", "--provider", "geo", "--path", "/", "--id", "x"]).code(0);
    assert!(again.out.contains("was there already"), "{}", again.out);
}

#[test]
fn json_lines_are_enqueued_in_batches_and_wrong_ones_told_by_number() {
    let place = Place::new();
    let mut text = String::new();
    for n in 1..=1200 {
        text += &match n {
            7 => "{\"request\":\n".to_owned(),
            8 => "\n".to_owned(),
            900 => json!({ "provider": "nope", "request": { "path": "/" } }).to_string() + "\n",
            _ => json!({ "id": format!("l-{n}"), "request": { "path": "/", "body": [n] } }).to_string() + "\n",
        };
    }
    write(&place.path("jobs.jsonl"), &text);
    let said = place.run(&["enqueue", "jobs.jsonl", "--provider", "geo"]).code(1);
    assert!(said.out.starts_with("1197 enqueued, 0 there already, 2 refused in "), "{}", said.out);
    assert!(said.err.contains("line 7: ") && said.err.contains("line 900: $.provider"), "{}", said.err);
    let said = place.run(&["--json", "enqueue", "jobs.jsonl", "--provider", "geo", "--from-line", "899"]).code(1);
    let lines = said.lines();
    assert_eq!(lines[0], json!({ "line": 899, "id": "l-899", "state": "queued", "created": false }));
    assert_eq!((&lines[1]["line"], &lines[1]["error"]["errors"][0]["path"]), (&json!(900), &json!("$.provider")));
    assert_eq!(lines.last().map(|l| l["summary"]["existed"].clone()), Some(json!(301)));
    let piped = place.pipe(&["enqueue", "-", "--provider", "geo"], "{\"request\":{\"path\":\"/p\"}}").code(0);
    assert!(piped.out.starts_with("1 enqueued"), "the last line needs no line end: {}", piped.out);
    let all = place.run(&["--json", "jobs", "list", "--all"]).code(0).lines();
    assert_eq!(all.len(), 1198);
    let page = place.run(&["jobs", "list", "--limit", "2"]).code(0);
    assert!(page.err.contains("--cursor"), "{}", page.err);
}

#[test]
fn lines_of_a_silent_pipe_are_sent_and_a_reader_that_leaves_ends_it_quietly() {
    let place = Place::new();
    let mut command = place.command(&["--json", "enqueue", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = child.stdout.take().expect("a pipe");
    let line = "{\"provider\":\"geo\",\"request\":{\"path\":\"/\"}}\n";
    stdin.write_all(line.as_bytes()).expect("taken");
    let mut byte = [0];
    stdout.read_exact(&mut byte).expect("it is answered while the pipe is open");
    drop(stdout);
    // The next answer has no reader. Standard input may be closed before all of it is taken.
    stdin.write_all(line.repeat(3).as_bytes()).unwrap_or_default();
    drop(stdin);
    let said: Said = child.wait_with_output().expect("ended").into();
    said.code(141);
}

#[test]
fn help_teaches_and_its_reader_may_leave() {
    let place = Place::new();
    let help = place.run(&["--help"]).code(0).out;
    for word in ["Exit codes", "Examples", "enqueue", "jobs", "dead", "check", "plan", "migrate"] {
        assert!(help.contains(word), "{word}");
    }
    for command in [
        &["enqueue", "--help"][..],
        &["jobs", "list", "--help"],
        &["dead", "replay", "--help"],
        &["dead", "purge", "--help"],
    ] {
        assert!(place.run(command).code(0).out.contains("Example"), "{command:?}");
    }
    place.run(&["--version"]).code(0);
}

#[test]
fn jobs_are_waited_for_cancelled_and_their_results_written() {
    let place = Place::new();
    for id in ["w-1", "w-2"] {
        place.run(&["enqueue", "--provider", "geo", "--path", "/", "--id", id]).code(0);
    }
    let late = place.run(&["jobs", "wait", "w-1", "--timeout", "200ms"]).code(6);
    assert!(late.out.contains("queued") && late.out.contains("time is up"), "{}", late.out);
    let said = place.run(&["jobs", "result", "w-1"]).code(4);
    assert!(said.err.contains("no result yet"), "{}", said.err);
    assert_eq!(place.run(&["jobs", "cancel", "w-2", "--json"]).code(0).json()["state"], "cancelled");
    place.ended(JobState::Succeeded);
    place.run(&["jobs", "wait", "w-1"]).code(0);
    place.run(&["jobs", "wait", "w-1", "w-2"]).code(6);
    let result = place.command(&["jobs", "result", "w-1"]).output().expect("run");
    assert_eq!(result.stdout, b"{\"ok\":true}\x00\xff");
    let said = place.run(&["jobs", "cancel", "w-1"]).code(5);
    assert!(said.err.contains("succeeded"), "{}", said.err);
    let said = place.run(&["jobs", "cancel", "nope", "w-2"]).code(4);
    assert!(said.err.contains("nope: ") && said.out.contains("w-2  cancelled"), "the rest is done: {}", said.out);
    place.run(&["jobs", "show", "nope"]).code(4);
}

#[test]
fn dead_letters_are_shown_run_again_and_purged() {
    let place = Place::new();
    for id in ["d-1", "d-2", "d-3"] {
        place.run(&["enqueue", "--provider", "geo", "--path", "/", "--id", id]).code(0);
    }
    place.ended(JobState::Dead);
    let listed = place.run(&["dead", "list"]).code(0).out;
    assert!(listed.contains("d-1") && listed.contains("permanent"), "{listed}");
    assert!(!listed.contains('\u{1b}'), "nothing that a terminal would act on");
    let shown = place.run(&["dead", "show", "d-1"]).code(0).out;
    assert!(shown.contains("\"path\": \"/\"") && shown.contains("permanent"), "{shown}");
    let said = place.run(&["dead", "replay", "d-1", "--edit-request", "{\"path\":\"//evil\"}"]).code(1);
    assert!(said.err.contains("$.request.path"), "{}", said.err);
    place.run(&["dead", "replay", "d-1", "--edit-request", "{"]).code(2);
    write(&place.path("request.json"), "{\"path\":\"/v2\"}");
    let args = ["dead", "replay", "d-1", "--edit-request", "@request.json", "--lane", "high", "--not-before", "1h"];
    assert!(place.run(&args).code(0).out.contains("waiting, run 2"));
    let said = place.run(&["--json", "dead", "replay", "d-1", "d-2", "nope"]).code(5);
    assert_eq!(said.json(), json!({ "id": "d-2", "run": 2, "state": "queued" }));
    assert_eq!(said.err.lines().count(), 2, "{}", said.err);
    assert_eq!(place.run(&["--json", "dead", "list", "--replayed", "false"]).code(0).json()["items"][0]["id"], "d-3");
    place.run(&["dead", "purge"]).code(2);
    place.run(&["dead", "purge", "--reason", "bored"]).code(2);
    assert_eq!(place.run(&["dead", "purge", "--replayed", "true"]).code(0).out, "2 purged\n");
    assert_eq!(place.run(&["--json", "dead", "purge", "--all"]).code(0).json(), json!({ "purged": 1 }));
}

#[test]
fn keys_and_providers_are_held_and_let_go_on() {
    let place = Place::new();
    let said = place.run(&["keys", "list"]).code(3);
    assert!(said.err.contains("not there yet"), "{}", said.err);
    place.close(place.store());
    assert_eq!(place.run(&["keys", "disable", "geo", "a1"]).code(0).out, "geo key a1  disabled\n");
    let listed = place.run(&["--json", "keys", "list", "geo"]).code(0).json();
    let key = &listed["items"][0];
    let seen = ["provider", "budget", "label", "state", "disabled_by"].map(|member| key[member].clone());
    assert_eq!(seen, ["geo", "a1", "a1", "disabled", "command line"].map(Value::from));
    let table = place.run(&["keys", "list"]).code(0).out;
    assert!(table.starts_with("PROVIDER") && table.contains("disabled"), "{table}");
    let enabled = place.run(&["--json", "keys", "enable", "geo", "a1"]).code(0).json();
    assert_eq!((&enabled["key"], &enabled["state"]), (&json!("a1"), &json!("enabled")));
    assert_eq!(place.run(&["providers", "pause", "geo"]).code(0).out, "geo  paused\n");
    place.run(&["enqueue", "--provider", "geo", "--path", "/", "--id", "p-1"]).code(0);
    assert_eq!(place.run(&["--json", "jobs", "show", "p-1"]).code(0).json()["waiting_for"]["reason"], "paused");
    let shown = place.run(&["providers", "show", "geo"]).code(0).out;
    for part in ["paused by command line", "LANE", "BUDGET", "KEY"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(place.run(&["providers", "list"]).code(0).out.contains("1 unknown"));
    assert_eq!(place.run(&["providers", "resume", "geo"]).code(0).out, "geo  resumed\n");
    let resumed = place.run(&["providers", "resume", "geo", "--budget", "a1"]).code(0).out;
    assert_eq!(resumed, "geo budget a1  resumed\n");
    for unknown in [["keys", "disable", "geo", "zz"], ["keys", "enable", "mail", "a1"]] {
        place.run(&unknown).code(4);
    }
    place.run(&["providers", "show", "nobody"]).code(4);
    place.run(&["providers", "resume", "geo", "--budget", "zz"]).code(4);
    for wrong in ["..", "A1", "a/b", "", "\u{1b}[31m"] {
        place.run(&["keys", "disable", "geo", wrong]).code(2);
        place.run(&["providers", "pause", wrong]).code(2);
    }
}

#[test]
fn a_server_is_reached_by_its_url_with_a_token_from_the_environment() {
    let place = Place::new();
    let store = place.store();
    let scopes = vec![Scope::Enqueue, Scope::Read, Scope::Replay];
    let secret = Secret::new(TOKEN.to_owned());
    let address = place.serve(&store, &[Token { name: "cli".to_owned(), secret, scopes, tenant: None }]);
    let url = format!("http://{address}");
    let said = place.run(&["--url", &url, "jobs", "list"]).code(1);
    assert!(said.err.contains("PACELINE_TOKEN"), "{}", said.err);
    let with = |args: &[&str]| -> Said {
        place.command(args).env("PACELINE_URL", &url).env("PACELINE_TOKEN", TOKEN).output().expect("run").into()
    };
    with(&["enqueue", "--provider", "geo", "--path", "/", "--id", "h-1"]).code(0);
    with(&["enqueue", "--provider", "geo", "--path", "/other", "--id", "h-1"]).code(5);
    place.end(&store, JobState::Dead);
    assert_eq!(with(&["--json", "jobs", "show", "h-1"]).code(0).json()["state"], "dead");
    with(&["jobs", "wait", "h-1", "--timeout", "5s"]).code(6);
    with(&["dead", "replay", "h-1"]).code(0);
    with(&["jobs", "cancel", "h-1"]).code(0);
    with(&["jobs", "show", "nope"]).code(4);
    assert_eq!(with(&["--json", "providers", "show", "geo"]).code(0).json()["name"], "geo");
    let said = with(&["keys", "disable", "geo", "a1"]).code(1);
    assert!(said.err.contains("scope \"keys\""), "{}", said.err);
    with(&["jobs", "list", "--state", "done"]).code(2);
    write(&place.path("many.jsonl"), &"{\"provider\":\"geo\",\"request\":{\"path\":\"/\"}}\n".repeat(1100));
    let said = with(&["enqueue", "many.jsonl"]).code(0);
    assert!(said.out.starts_with("1100 enqueued") && said.out.contains(&url), "{}", said.out);
    let own: Said = place
        .command(&["--url", &url, "--token-env", "OTHER", "jobs", "list"])
        .env("OTHER", "another-token-0123456789")
        .output()
        .expect("run")
        .into();
    let said = own.code(1);
    assert!(said.err.contains("not known") && !said.err.contains("another-token"), "{}", said.err);
}

#[test]
fn a_running_server_is_found_by_the_configuration_else_the_store_is_opened() {
    let place = Place::new();
    let store = place.store();
    let said = place.run(&["jobs", "list"]).code(3);
    assert!(said.err.contains("in use") && said.err.contains("127.0.0.1:1"), "{}", said.err);
    let address = place.serve(&store, &[]);
    let listen = address.to_string();
    let found: Said = place
        .command(&["-v", "enqueue", "--provider", "geo", "--path", "/"])
        .env("PACELINE__API__LISTEN", &listen)
        .output()
        .expect("run")
        .into();
    assert!(found.code(0).err.contains("running server"));
    let empty = Place::new();
    let said = empty.run(&["jobs", "list"]).code(3);
    assert!(said.err.contains("not there yet"), "{}", said.err);
    assert!(!empty.path("paceline.db").exists(), "looking makes nothing");
    let said = place.run(&["--url", "http://127.0.0.1:1", "jobs", "list"]).code(3);
    assert!(said.err.contains("cannot reach http://127.0.0.1:1"), "{}", said.err);
    for url in ["nonsense", "ftp://x", "http://user:pw@127.0.0.1/", "http://127.0.0.1/?x=1"] {
        let said = place.run(&["--url", url, "jobs", "list"]).code(2);
        assert!(said.err.contains("--url") && !said.err.contains("pw@"), "{}", said.err);
    }
}

#[test]
fn the_configuration_is_checked_and_shown_without_secrets() {
    let place = Place::new();
    let said = place.run(&["check"]).code(0);
    for word in ["valid: paceline.toml", "geo at https://api.example.com", "a1", "600 requests", "high 8"] {
        assert!(said.out.contains(word), "{word}: {}", said.out);
    }
    let json = place.run(&["check", "--json"]).code(0).json();
    assert_eq!((&json["valid"], &json["providers"][0]["keys"]), (&json!(true), &json!(["a1"])));
    let database = "postgres://paceline:hunter2@db.example/paceline";
    let said: Said = place.command(&["check"]).env("DATABASE_URL", database).output().expect("run").into();
    let said = said.code(0);
    assert!(said.out.contains("paceline:***@db.example") && !said.out.contains("hunter2"), "{}", said.out);
    let said: Said = place.command(&["check"]).env_remove("GEO_A1").output().expect("run").into();
    assert!(said.code(2).err.contains("GEO_A1"));
    write(&place.path("wrong.toml"), "[stor]\nurl = \"x\"\n");
    let said = place.run(&["--config", "wrong.toml", "check", "--json"]).code(2);
    assert!(said.err.contains("stor"), "{}", said.err);
    let said = place.run(&["--config", "missing.toml", "check"]).code(2);
    assert!(said.err.contains("missing.toml"), "{}", said.err);
    std::fs::remove_file(place.path("paceline.toml")).expect("removed");
    assert!(place.run(&["check"]).code(0).out.contains("no provider is configured"));
}

/// Told before anything runs, with what needs it; and nothing is changed.
#[test]
fn a_master_key_that_is_missing_malformed_or_wrong_is_told_by_check() {
    let place = Place::new();
    write(&place.path("paceline.toml"), &format!("{CONFIG}\n[webhooks]\nsecret = \"env:HOOKS\"\n"));
    let secret = |byte: u8| format!("whsec_{}", STANDARD.encode([byte; 32]));
    let with = |key: Option<&str>, arguments: &[&str], input: &str| {
        let mut command = place.command(arguments);
        command.env("HOOKS", secret(3)).env("GIVEN", secret(4));
        feed(key.into_iter().fold(&mut command, |command, key| command.env("PACELINE_MASTER_KEY", key)), input)
    };
    let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
    let said = with(None, &["check"], "").code(0);
    assert!(said.out.contains("vault      no master key; nothing is stored that needs one"), "{}", said.out);
    assert!(!place.path("paceline.db").exists(), "looking makes nothing");
    let said = with(Some("hunter2"), &["check"], "").code(2);
    assert!(said.err.contains("PACELINE_MASTER_KEY") && !said.err.contains("hunter2"), "{}", said.err);
    // What is stored needs its own one.
    with(Some(&one), &["keys", "add", "geo", "stored"], "a-secret-of-the-provider").code(0);
    with(Some(&one), &["endpoints", "add", "https://8.8.8.8/hook", "--secret-env", "GIVEN"], "").code(0);
    let json = with(Some(&one), &["check", "--json"], "").code(0).json();
    let id = json["vault"]["master"].as_str().expect("an id");
    assert_eq!(json["vault"]["stored"], json!([id]), "{json}");
    for wrong in [Some(two.as_str()), None] {
        let said = with(wrong, &["check"], "").code(2);
        for what in ["keys of providers in the store", "secrets of webhook endpoints in the store", id] {
            assert!(said.err.contains(what), "{what}: {}", said.err);
        }
        let listed = with(wrong, &["keys", "list", "geo", "--json"], "").code(0).json();
        assert_eq!(listed["items"][1]["version"], 1, "{listed}");
    }
    with(Some(&one), &["check"], "").code(0);
    // What the configuration says is stored.
    let vault = CONFIG.replace("paceline.db", "other.db").replace("env:GEO_A1", "vault");
    write(&place.path("vault.toml"), &vault);
    let said = with(None, &["--config", "vault.toml", "check"], "").code(2);
    assert!(said.err.contains("geo/a1") && said.err.contains("PACELINE_MASTER_KEY"), "{}", said.err);
    let said = with(Some(&two), &["--config", "vault.toml", "check"], "").code(0);
    assert!(said.out.contains("which opens what is stored"), "{}", said.out);
}

/// A provider of which `more` says what is risky.
fn checked(place: &Place, more: &str, arguments: &[&str]) -> Said {
    let head = "[[provider]]\nname = \"p\"\nbase_url = \"https://api.example.com\"\n";
    write(&place.path("risky.toml"), &format!("{head}{more}"));
    place.run(&[&["--config", "risky.toml", "check"], arguments].concat())
}

#[test]
fn what_can_be_reached_and_what_is_promised_is_told() {
    let place = Place::new();
    let limits = "keys = [ { label = \"a\", secret = \"env:GEO_A1\" } ]\ncounted_within = \"4s\"\nkey_limits = [\n\
        { requests = 10, per = \"1s\", algorithm = \"sliding_window\" }, { requests = 600, per = \"1m\" }, { concurrency = 50 } ]\n";
    let json = checked(&place, limits, &["--json", "--latency", "2s"]).code(0).json();
    let expected = json["providers"][0]["expected"].as_array().expect("limits");
    let told: Vec<_> = expected.iter().map(|e| (e["promise"].as_str(), e["utilisation"].as_f64())).collect();
    assert_eq!(told[0], (Some("promised"), Some(0.3332)), "one second, answers after two");
    assert_eq!((told[1].0, told[2]), (Some("conditional"), (Some("promised"), Some(1.0))));
    assert!(expected[1]["condition"].as_str().is_some_and(|text| text.contains("no burst")), "{expected:?}");
    let quick = checked(&place, limits, &["--latency", "20ms"]).code(0).out;
    for word in ["97.9 %", "promised", "conditional [1]", "[1] smooth: a server that allows no burst"] {
        assert!(quick.contains(word), "{word}: {quick}");
    }
    assert!(!quick.contains("warnings"), "{quick}");
    let likely = checked(&place, &format!("safety = \"balanced\"\n{limits}"), &["--json"]).code(0).json();
    assert_eq!(likely["providers"][0]["expected"][0]["promise"], "likely");
}

#[test]
fn what_is_valid_and_risky_is_a_warning() {
    let place = Place::new();
    let key = "keys = [ { label = \"a\", secret = \"env:GEO_A1\" } ]\n";
    let window = "{ requests = 100, per = \"10s\", algorithm = \"sliding_window\" }";
    let cases = [
        (format!("key_limits = [ {window} ]\n"), "no_key", "provider \"p\""),
        (key.to_owned(), "no_limit", "provider \"p\""),
        (
            format!(
                "{key}key_limits = [ {{ requests = 10, per = \"1s\", algorithm = \"token_bucket\" }} ]\ncounted_within = \"2s\""
            ),
            "small_burst",
            "key_limits[0]",
        ),
        (format!("{key}key_limits = [ {{ requests = 1, per = \"10s\" }} ]"), "smooth_of_few", "key_limits[0]"),
        (format!("{key}counted_within = \"60s\"\nkey_limits = [ {window} ]"), "counted_late", "key_limits[0]"),
        (format!("{key}key_limits = [ {window} ]\nlanes = {{ high = 1000, low = 1 }}"), "starved_lane", "lanes.low"),
        (format!("{key}key_limits = [ {window} ]\nlimits = [ {{ concurrency = 1 }} ]"), "few_open_calls", "limits[0]"),
        (format!("{key}key_limits = [ {window} ]\nsafety = {{ headroom = \"0%\" }}"), "no_headroom", "safety"),
        (
            format!("{key}key_limits = [ {window} ]\nretry = {{ base = \"9s\", max_elapsed = \"5s\" }}"),
            "gives_up_at_once",
            "retry.max_elapsed",
        ),
        (
            format!("{key}key_limits = [ {window} ]\n[[provider.route]]\nmatch = \"POST /a\""),
            "repeats_calls",
            "route[0]",
        ),
        (
            format!("{key}key_limits = [ {window} ]\n[[provider.route]]\nmatch = \"/a//b\""),
            "matches_nothing",
            "route[0]",
        ),
        (
            format!(
                "{key}key_limits = [ {window} ]\n[[provider.route]]\nmatch = \"*\"\n[[provider.route]]\nmatch = \"/a\"\nsuccess = 404"
            ),
            "shadowed_route",
            "route[1]",
        ),
    ];
    for (more, code, at) in cases {
        let json = checked(&place, &more, &["--json"]).code(0).json();
        let warnings = json["warnings"].as_array().expect("warnings");
        let found = warnings.iter().find(|w| w["code"] == code).unwrap_or_else(|| panic!("{code}: {warnings:?}"));
        assert!(found["place"].as_str().is_some_and(|place| place.contains(at)), "{found}");
        let shown = checked(&place, &more, &["--strict"]).code(1);
        assert!(shown.out.contains("--strict") && shown.out.contains(code), "{}", shown.out);
    }
    let slow =
        checked(&place, &format!("{key}key_limits = [ {window} ]"), &["--json", "--latency", "5s"]).code(0).json();
    assert_eq!(slow["warnings"][0]["code"], "slow_answers", "{slow}");
    let fine = checked(&place, &format!("{key}key_limits = [ {window} ]"), &["--strict", "--json"]).code(0).json();
    assert_eq!(fine["warnings"], json!([]));
    let said = checked(&place, key, &["--latency", "soon"]).code(2);
    assert!(said.err.contains("expected a duration"), "{}", said.err);
}

#[test]
fn what_holds_for_one_call_is_explained() {
    let place = Place::new();
    let policies = "keys = [ { label = \"a\", secret = \"env:GEO_A1\" } ]\nlimits = [ { requests = 9, per = \"1s\" } ]\n\
        [[provider.route]]\nmatch = \"POST /v1/search*\"\nlimits = [ { requests = 2, per = \"1s\" } ]\ntimeout = \"3s\"\n\
        success = [200, 404]\noutcomes = [ { status = 409, outcome = \"throttled\" } ]\n";
    let shown = checked(&place, policies, &["--call", "POST /v1/search"]).code(0).out;
    for word in
        ["route[0] POST /v1/search*", "3s", "200, 404", "409 → rate_limited", "route[0].limits[0]", "repeats_calls"]
    {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    let json = checked(&place, policies, &["--json", "--call", "/v1/search"]).code(0).json();
    let call = &json["calls"][0];
    assert_eq!((call["method"].as_str(), call["policies_of"].as_str()), (Some("GET"), Some("the provider")));
    assert_eq!((call["limits"].as_array().map(Vec::len), &call["warnings"]), (Some(1), &json!([])));
    checked(&place, policies, &["--strict", "--call", "POST /v1/search"]).code(1);
    let said = checked(&place, policies, &["--call", "post v1"]).code(2);
    assert!(said.err.contains("POST /v1/search"), "{}", said.err);
    let said = checked(&place, policies, &["--call", "/a", "--provider", "q"]).code(2);
    assert!(said.err.contains("there is no provider \"q\""), "{}", said.err);
}

#[test]
fn schedules_are_listed_with_their_next_times() {
    let place = Place::new();
    let text = "[[provider]]\nname = \"p\"\nbase_url = \"https://x\"\n[[schedules]]\nname = \"nightly\"\ncron = \"30 2 * * *\"\n\
        zone = \"Europe/Berlin\"\njob = { provider = \"p\", request = { path = \"/tidy\" } }\n";
    write(&place.path("recurring.toml"), text);
    let json = place.run(&["--config", "recurring.toml", "--json", "schedules", "list", "--count", "2"]).code(0).json();
    let first = &json["items"][0];
    assert_eq!((first["name"].as_str(), first["zone"].as_str()), (Some("nightly"), Some("Europe/Berlin")));
    assert_eq!(first["next"].as_array().map(Vec::len), Some(2), "{first}");
    assert!(first["next"][0].as_str().is_some_and(|time| time.ends_with(":30:00.000Z")), "{first}");
    let shown = place.run(&["--config", "recurring.toml", "schedules", "list"]).code(0).out;
    assert!(shown.contains("nightly  30 2 * * * Europe/Berlin  missed: run_once"), "{shown}");
    write(&place.path("recurring.toml"), &text.replace("30 2", "60 2"));
    let said = place.run(&["--config", "recurring.toml", "schedules", "list"]).code(2);
    assert!(said.err.contains("schedules \"nightly\": cron: minute: expected"), "{}", said.err);
}

#[test]
fn the_schema_is_brought_up_to_date_once() {
    let place = Place::new();
    let first = place.run(&["migrate", "--json"]).code(0).json();
    assert!(first["applied"].as_u64().is_some_and(|n| n >= 1), "{first}");
    assert!(place.run(&["migrate"]).code(0).out.contains("up to date"));
    let store = place.store();
    let said = place.run(&["migrate"]).code(3);
    assert!(said.err.contains("in use"), "{}", said.err);
    place.close(store);
}

#[test]
fn shells_and_manuals_know_every_command() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = place.run(&["completions", shell]).code(0);
        assert!(said.out.contains("dead") && said.out.contains("replay"), "{shell}: {}", said.out);
    }
    place.run(&["completions", "tcsh"]).code(2);
    let page = place.run(&["man"]).code(0).out;
    assert!(page.starts_with(".ie") && page.contains("paceline") && page.contains("Exit codes"), "{page}");
    let said = place.run(&["man", "--out", "pages", "--json"]).code(0).json();
    let written = said["written"].as_array().expect("a list").len();
    assert!(written > 20, "{said}");
    for name in ["paceline.1", "paceline-enqueue.1", "paceline-dead-replay.1"] {
        let page = std::fs::read_to_string(place.path("pages").join(name)).expect("a page");
        assert!(page.contains(&name[..name.len() - 2].replace('-', "\\-")), "{name}: {page}");
    }
    std::fs::write(place.path("file"), "").expect("written");
    let said = place.run(&["man", "--out", "file/pages"]).code(1);
    assert!(said.err.contains("cannot write"), "{}", said.err);
}

/// Every command and every flag says what it does.
#[test]
fn every_command_has_a_help_that_teaches() {
    let place = Place::new();
    let mut names = vec![Vec::<String>::new()];
    let mut seen = 0;
    while let Some(name) = names.pop() {
        let mut arguments: Vec<&str> = name.iter().map(String::as_str).collect();
        arguments.push("--help");
        let help = place.run(&arguments).code(0).out;
        seen += 1;
        assert!(help.contains("Usage: paceline"), "{help}");
        let below = help.split("\nCommands:\n").nth(1).unwrap_or_default();
        for line in below.lines().take_while(|line| line.starts_with("  ")) {
            let Some(word) = line.strip_prefix("  ").filter(|line| !line.starts_with(' ')) else { continue };
            let (word, about) = word.split_once(' ').unwrap_or((word, ""));
            assert!(!about.trim().is_empty(), "{name:?} {word} says nothing of itself");
            names.push(name.iter().cloned().chain([word.to_owned()]).collect());
        }
    }
    assert!(seen > 25, "{seen} commands");
}
