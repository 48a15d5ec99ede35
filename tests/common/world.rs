//! The built binary in a place of its own: directory, database, port, provider name.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};
use tokio::process::{Child, Command};

use super::{SOON, broker, holds, store, until};

/// Signs the webhooks of all tests.
pub const SECRET: &str = "whsec_dGVzdC1zZWNyZXQtb2YtdGhlLXdvcmxkLTMyLWJ5dGVz";

/// Where the jobs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One SQLite file.
    Embedded,
    /// RabbitMQ and PostgreSQL.
    Scaled,
}

/// A place for one test.
pub struct World {
    pub mode: Mode,
    /// Nobody else's, so neither are its queues.
    pub provider: String,
    /// The API's.
    pub port: u16,
    folder: tempfile::TempDir,
    database: Option<(String, String)>,
    env: RefCell<Vec<(String, String)>>,
}

/// Runs a test in a world of its own, and clears it away however the test ends.
pub async fn in_world(mode: Mode, test: impl AsyncFnOnce(&World)) {
    let world = World::new(mode).await;
    let done = AssertUnwindSafe(test(&world)).catch_unwind().await;
    if let Err(panic) = done {
        world.tell();
        world.clear().await;
        std::panic::resume_unwind(panic);
    }
    world.clear().await;
}

impl World {
    async fn new(mode: Mode) -> Self {
        let scaled = mode == Mode::Scaled;
        if scaled {
            broker::url();
        }
        let id = uuid::Uuid::now_v7().simple().to_string();
        Self {
            mode,
            provider: format!("t{}", &id[20..]),
            port: free_port(),
            folder: tempfile::tempdir().expect("a folder"),
            database: if scaled { Some(store::create_database().await) } else { None },
            env: RefCell::default(),
        }
    }

    async fn clear(self) {
        if let Some((name, _)) = &self.database {
            let broker = broker::Broker::connect().await;
            for lane in ["default", "high", "low"] {
                broker.delete(&self.queue(lane)).await;
            }
            broker.close().await;
            store::drop_database(name).await;
        }
    }

    /// Shows what the processes said, for whoever reads a failure.
    fn tell(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder.path()) else { return };
        let mut logs: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        logs.retain(|path| path.extension().is_some_and(|e| e == "log"));
        logs.sort();
        for log in logs {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("---- the end of {}\n{last}", log.file_name().unwrap_or_default().display());
        }
    }

    /// A secret, or anything else in the environment of the processes to start.
    pub fn set(&self, name: &str, value: &str) {
        self.env.borrow_mut().retain(|(known, _)| known != name);
        self.env.borrow_mut().push((name.to_owned(), value.to_owned()));
    }

    /// Takes it out of the environment again.
    pub fn unset(&self, name: &str) {
        self.env.borrow_mut().retain(|(known, _)| known != name);
    }

    /// What [`World::set`] put there.
    pub fn get(&self, name: &str) -> String {
        let env = self.env.borrow();
        env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()).unwrap_or_default()
    }

    /// Writes the configuration: what every test needs, and the providers.
    pub fn configure(&self, providers: &str) {
        let text = format!(
            "[api]\nlisten = \"127.0.0.1:{}\"\n[webhooks]\nsecret = \"env:WEBHOOK_SECRET\"\nallow_http = true\n\
             allow_networks = [\"127.0.0.0/8\"]\nschedule = [\"1s\", \"1s\", \"2s\", \"5s\", \"5s\", \"5s\", \"10s\"]\n{providers}",
            self.port
        );
        std::fs::write(self.path("paceline.toml"), text).expect("written");
    }

    /// Writes the configuration as it is given.
    pub fn configure_all(&self, text: &str) {
        std::fs::write(self.path("paceline.toml"), text).expect("written");
    }

    /// The directory of its processes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// One provider, named after this world: its keys are in the environment as `KEY_<label>`.
    pub fn provider(&self, base_url: &str, keys: &[(&str, &str)], more: &str) {
        let mut list = Vec::new();
        for (label, secret) in keys {
            self.set(&format!("KEY_{label}"), secret);
            list.push(format!("{{ label = \"{label}\", secret = \"env:KEY_{label}\" }}"));
        }
        // Providers of tests fail on purpose, and most of them would be left alone for it.
        let breaker = if more.contains("breaker") { "" } else { "breaker = { failures = 1000000 }" };
        self.configure(&format!(
            "[[provider]]\nname = \"{}\"\nbase_url = \"{base_url}\"\nkeys = [ {} ]\n{breaker}\n{more}\n",
            self.provider,
            list.join(", ")
        ));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn queue(&self, lane: &str) -> String {
        format!("paceline.jobs.{}.{lane}", self.provider)
    }

    /// The URL of its PostgreSQL database.
    pub fn database(&self) -> &str {
        &self.database.as_ref().expect("a world on PostgreSQL").1
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).current_dir(self.folder.path()).env_clear().stdin(Stdio::null());
        command.env("NO_COLOR", "1").env("WEBHOOK_SECRET", SECRET).env("RUST_BACKTRACE", "1");
        if let Some((_, url)) = &self.database {
            command.env("DATABASE_URL", url).env("AMQP_URL", broker::url());
        }
        command.envs(self.env.borrow().iter().cloned()).kill_on_drop(true);
        command
    }

    /// Runs a command of the command line to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("it runs")
    }

    /// The same with something on its standard input.
    pub async fn run_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        use tokio::io::AsyncWriteExt as _;
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // One that ends without reading it closes the pipe.
        stdin.write_all(input).await.ok();
        drop(stdin);
        child.wait_with_output().await.expect("it runs")
    }

    /// Schema and topology, before any process runs.
    pub async fn prepare(&self) {
        if self.mode == Mode::Embedded {
            return;
        }
        for command in [&["migrate"][..], &["topology", "apply"]] {
            // Many tests at once may keep the database from answering for a while.
            until(&format!("{command:?}"), SOON * 3, async || {
                let output = self.run(command).await;
                if !output.status.success() {
                    eprintln!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
                }
                holds(output.status.success())
            })
            .await;
        }
    }

    /// `serve`, all roles.
    pub fn serve(&self) -> Serve {
        self.serve_as("serve", &[])
    }

    /// `serve` with arguments, logging into `<name>.log`.
    pub fn serve_as(&self, name: &str, arguments: &[&str]) -> Serve {
        let log = self.path(&format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let arguments: Vec<&str> = ["serve"].into_iter().chain(arguments.iter().copied()).collect();
        let child = self.command(&arguments).stdout(Stdio::null()).stderr(file).spawn().expect("it starts");
        Serve { child, log }
    }

    /// `serve`, once it is ready.
    pub async fn serving(&self) -> Serve {
        let mut serve = self.serve();
        self.ready(&mut serve).await;
        serve
    }

    pub async fn ready(&self, serve: &mut Serve) {
        let api = self.api();
        until("/readyz is green", SOON, async || {
            assert!(serve.is_alive(), "it ended:\n{}", serve.log());
            let (status, _) = api.try_get("/readyz").await?;
            holds(status == 200)
        })
        .await;
    }

    pub fn api(&self) -> Api {
        self.api_within(Duration::from_secs(35))
    }

    /// The API for a client of that patience.
    pub fn api_within(&self, timeout: Duration) -> Api {
        let http =
            reqwest::Client::builder().no_proxy().timeout(timeout).pool_max_idle_per_host(0).build().expect("a client");
        Api { http, base: format!("http://127.0.0.1:{}", self.port) }
    }

    /// The number that a query gives, asked behind the back of the processes.
    pub async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        let row: (i64,) = match &self.database {
            Some((_, url)) => {
                let mut connection = PgConnection::connect(url).await.expect("the database");
                let row = sqlx::query_as(sql).fetch_one(&mut connection).await.expect("an answer");
                connection.close().await.ok();
                row
            }
            None => {
                let url = format!("sqlite://{}?mode=ro", self.path("paceline.db").display());
                let mut connection = SqliteConnection::connect(&url).await.expect("the file");
                let row = sqlx::query_as(sql).fetch_one(&mut connection).await.expect("an answer");
                connection.close().await.ok();
                row
            }
        };
        row.0
    }

    /// The rows that a query gives.
    pub async fn rows<T>(&self, sql: &str) -> Vec<T>
    where
        T: for<'r> sqlx::FromRow<'r, PgRow> + for<'r> sqlx::FromRow<'r, SqliteRow> + Send + Unpin,
    {
        self.try_rows(sql).await.expect("an answer")
    }

    /// The same, where the database may be away.
    pub async fn try_rows<T>(&self, sql: &str) -> Result<Vec<T>, sqlx::Error>
    where
        T: for<'r> sqlx::FromRow<'r, PgRow> + for<'r> sqlx::FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.database {
            Some((_, url)) => {
                let mut connection = PgConnection::connect(url).await?;
                let rows = sqlx::query_as(sql).fetch_all(&mut connection).await?;
                connection.close().await?;
                Ok(rows)
            }
            None => {
                let url = format!("sqlite://{}?mode=ro", self.path("paceline.db").display());
                let mut connection = SqliteConnection::connect(&url).await?;
                let rows = sqlx::query_as(sql).fetch_all(&mut connection).await?;
                connection.close().await?;
                Ok(rows)
            }
        }
    }

    /// A statement behind the back of the processes (PostgreSQL).
    pub async fn execute(&self, sql: &str) {
        let mut connection = PgConnection::connect(self.database()).await.expect("the database");
        sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("done");
        connection.close().await.ok();
    }

    /// Jobs that are not terminal, also those that somebody holds.
    pub async fn open_jobs(&self) -> i64 {
        self.number("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'waiting', 'running')").await
    }

    /// Waits until every one of so many jobs is terminal.
    pub async fn all_done(&self, jobs: i64, within: Duration) {
        until(&format!("{jobs} jobs are done"), within, async || {
            let done = "SELECT COUNT(*) FROM jobs WHERE state IN ('succeeded', 'dead', 'expired', 'cancelled')";
            holds(self.number(done).await >= jobs && self.open_jobs().await == 0)
        })
        .await;
    }

    /// What has to hold at rest, whatever happened: `jobs` terminal jobs, one event each, nobody
    /// holds anything.
    pub async fn at_rest(&self, jobs: i64) {
        assert_eq!(self.number("SELECT COUNT(*) FROM jobs").await, jobs, "jobs");
        assert_eq!(self.open_jobs().await, 0, "open jobs");
        assert_eq!(self.number("SELECT COUNT(*) FROM jobs WHERE owner IS NOT NULL").await, 0, "held jobs");
        let runs = self.number("SELECT CAST(SUM(run) AS BIGINT) FROM jobs").await;
        assert_eq!(self.number("SELECT COUNT(*) FROM events").await, runs, "events");
    }
}

/// A running `paceline serve`; killed where it is forgotten.
pub struct Serve {
    child: Child,
    log: PathBuf,
}

impl Serve {
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Memory that it has in use, in bytes.
    pub fn memory_bytes(&self) -> usize {
        let pid = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
    }

    /// User and system time so far: of proc(5)'s stat, in ticks of 1/100 s.
    pub fn cpu(&self) -> Duration {
        let pid = self.child.id().expect("it runs");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("its status");
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let ticks = after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks"));
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Established connections of the process to a port of this machine.
    pub fn connections_to(&self, port: u16) -> usize {
        self.sockets_to(port).len()
    }

    /// The same, each by a name that no later one has.
    pub fn sockets_to(&self, port: u16) -> BTreeSet<String> {
        let pid = self.child.id().expect("it runs");
        let own: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .expect("its files")
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned()))
            .collect();
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the system's connections");
        let remote = format!(":{port:04X}");
        let to_port = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_there = fields.len() > 9 && fields[2].ends_with(&remote) && fields[3] == "01";
            (is_there && own.contains(fields[9])).then(|| fields[9].to_owned())
        });
        to_port.collect()
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("killed");
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Sends a signal, by its name as of `kill`.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = std::process::Command::new("kill").args([name, &pid]).status().expect("kill");
        assert!(sent.success(), "kill {name}");
    }

    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        tokio::time::timeout(within, self.child.wait()).await.expect("it ends in time").expect("its status")
    }

    /// SIGTERM, then until it has drained.
    pub async fn stop(mut self) {
        self.terminate();
        let status = self.ended(Duration::from_secs(40)).await;
        assert!(status.success(), "{status}:\n{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

/// The HTTP API as a client meets it.
#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    base: String,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub headers: http::HeaderMap,
    pub body: Vec<u8>,
}

impl Api {
    /// For a caller with that token.
    pub fn with_token(self, token: &str) -> Self {
        let value = format!("Bearer {token}").parse().expect("a header");
        let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(35)).default_headers(headers);
        Self { http: client.pool_max_idle_per_host(0).build().expect("a client"), ..self }
    }

    /// Any call, with everything that comes back.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let method = method.to_uppercase().parse().expect("a method");
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let content_type = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        Answer { status, content_type, headers, body: response.bytes().await.expect("a body").to_vec() }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let body = response.bytes().await.ok()?;
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    pub async fn try_get(&self, path: &str) -> Option<(u16, Value)> {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.try_get(path).await.expect("an answer")
    }

    pub async fn text(&self, path: &str) -> String {
        let response = self.http.get(format!("{}{path}", self.base)).send().await.expect("an answer");
        response.text().await.expect("a text")
    }

    pub async fn try_post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        let request = self.http.post(format!("{}{path}", self.base)).header("content-type", "application/json");
        self.send(request.body(body.to_string())).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.try_post(path, body).await.expect("an answer")
    }

    pub async fn try_delete(&self, path: &str) -> Option<(u16, Value)> {
        self.send(self.http.delete(format!("{}{path}", self.base))).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        self.try_delete(path).await.expect("an answer")
    }

    /// Enqueues one, which must be accepted.
    pub async fn accept(&self, job: &Value) {
        let (status, answer) = self.post("/v1/jobs", job).await;
        assert_eq!(status, 202, "{answer}");
    }

    /// Enqueues many, all of which must be accepted.
    pub async fn accept_all(&self, jobs: &[Value]) {
        for batch in jobs.chunks(500) {
            let (status, answer) = self.post("/v1/jobs", &Value::Array(batch.to_vec())).await;
            assert_eq!(status, 202, "{answer}");
            for item in answer["items"].as_array().expect("items") {
                assert!(item["error"].is_null(), "{item}");
            }
        }
    }

    /// A job, once it is in one of these states.
    pub async fn job_in(&self, id: &str, states: &[&str]) -> Value {
        self.job_in_within(id, states, SOON).await
    }

    pub async fn job_in_within(&self, id: &str, states: &[&str], within: Duration) -> Value {
        let mut last = Value::Null;
        let seen = tokio::time::timeout(
            within,
            until("", within * 2, async || {
                let (status, job) = self.try_get(&format!("/v1/jobs/{id}")).await?;
                last = job.clone();
                (status == 200 && states.contains(&job["state"].as_str()?)).then_some(job)
            }),
        );
        match seen.await {
            Ok(job) => job,
            Err(_) => panic!("job {id} is not {states:?} within {within:?}: {last:#}"),
        }
    }

    /// The dead letters of a reason, with all that is known of each, once there are `count`.
    pub async fn dead_letters(&self, reason: &str, count: usize) -> Vec<Value> {
        let mut items = Vec::new();
        let enough = until("", SOON * 2, async || {
            let (_, page) = self.try_get(&format!("/v1/dead-letters?reason={reason}&limit=500")).await?;
            items.clone_from(page["items"].as_array()?);
            holds(items.len() >= count)
        });
        let enough = tokio::time::timeout(SOON, enough).await.is_ok();
        let shown = || items.iter().map(|item| format!("{} {}\n", item["error"], item["headers"])).collect::<String>();
        assert!(enough && items.len() == count, "{count} dead letters {reason}, found {}:\n{}", items.len(), shown());
        let mut letters = Vec::new();
        for item in items {
            let (status, letter) = self.get(&format!("/v1/dead-letters/{}", item["id"].as_str().expect("an id"))).await;
            assert_eq!(status, 200);
            letters.push(letter);
        }
        letters
    }

    /// Why `/readyz` is red: the failed parts, by name, with what they say.
    pub async fn red(&self) -> Vec<(String, String)> {
        let Some((_, ready)) = self.try_get("/readyz").await else { return Vec::new() };
        let parts = ready["parts"].as_object().cloned().unwrap_or_default();
        let failed = |part: &Value| part["state"] != "ok";
        let said = |part: &Value| part["error"].as_str().unwrap_or_default().to_owned();
        parts.iter().filter(|(_, part)| failed(part)).map(|(name, part)| (name.clone(), said(part))).collect()
    }

    /// Waits until `/readyz` names exactly these parts as not ready; what they say.
    pub async fn red_parts(&self, names: &[&str], within: Duration) -> Vec<String> {
        until(&format!("/readyz names {names:?}"), within, async || {
            let red = self.red().await;
            let fits = red.iter().map(|(name, _)| name.as_str()).eq(names.iter().copied());
            (fits && (names.is_empty() || red.iter().all(|(_, said)| !said.is_empty())))
                .then(|| red.into_iter().map(|(_, said)| said).collect())
        })
        .await
    }

    /// Waits until `/readyz` is green.
    pub async fn green(&self, within: Duration) {
        until("/readyz is green", within, async || holds(self.try_get("/readyz").await?.0 == 200)).await;
    }
}

/// A port below the range of outgoing connections, so that nobody is given it while a process that
/// was killed is away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 9_000).unwrap_or(0);
    loop {
        let step = NEXT.fetch_add(7, Ordering::Relaxed);
        let port = 10_000 + (start.wrapping_add(step)) % 9_000;
        if TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
            return port;
        }
    }
}

/// The program under test: the one that was built along, or another build of it (`PACELINE_PROGRAM`).
fn program() -> OsString {
    std::env::var_os("PACELINE_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_paceline").into())
}

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
