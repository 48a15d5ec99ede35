//! How fast, how cheap, how small: the same jobs through both modes, beside bare client loops that
//! make the same two HTTP calls in the same run.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use lapin::options::QueueDeleteOptions;
use paceline::config::{Config, QueueConfig};
use paceline::inlet::topology::{self, Topology};
use paceline::secrets::Secret;
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, ReceiverHandle, ReceiverOptions, ReceiverSim};
use paceline::store::{Store, StoreOptions};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::process::{Child, Command};

use super::machine;
use super::site::{publish, submit};
use crate::scratch::Scratch;
use crate::scratch_database::ScratchDatabase;

/// Calls open at once, of paceline and of the floor.
const CONCURRENCY: usize = 64;
/// Signs the webhooks of the benchmark.
const SECRET: &str = "whsec_cGFjZWxpbmUtYmVuY2gtc2VjcmV0LTMyLWJ5dGU=";
/// A run gives up after this.
const TOO_LONG: Duration = Duration::from_secs(600);

/// One mode, measured.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// `embedded` or `rabbitmq+postgres`.
    pub mode: &'static str,
    /// From the first call to the last webhook.
    pub jobs_per_second: f64,
    /// User and system time of the process.
    pub cpu_us_per_job: f64,
    /// That, divided by the floor's.
    pub times_floor: f64,
    /// Largest resident size of the process.
    pub peak_mib: f64,
    /// Of the run.
    pub seconds: f64,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub jobs: u64,
    pub cores: usize,
    pub cpu: String,
    pub concurrency: usize,
    /// User and system time of two bare calls.
    pub floor_us_per_job: f64,
    pub modes: Vec<Measured>,
    /// Modes that could not run, and why.
    pub left_out: Vec<String>,
}

/// What the child that measures the floor prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Floor {
    pub cpu_us: f64,
}

struct Bench {
    jobs: u64,
    provider: ProviderHandle,
    receiver: ReceiverHandle,
    floor_us: f64,
}

/// Runs it. `say` is told what goes on.
pub async fn run(jobs: u64, mut say: impl FnMut(&str)) -> anyhow::Result<Report> {
    let provider = ProviderSim::start(ProviderOptions { ledger_capacity: 0, ..ProviderOptions::default() }).await?;
    let receiver =
        ReceiverSim::start(ReceiverOptions { secrets: vec![SECRET.to_owned()], ..ReceiverOptions::default() }).await?;
    say("the floor: bare client loops");
    let floor_us = floor(&provider, &receiver, jobs).await?;
    let bench = Bench { jobs, provider, receiver, floor_us };
    let mut modes = Vec::new();
    let mut left_out = Vec::new();
    say("embedded");
    modes.push(bench.embedded().await.context("embedded")?);
    match (std::env::var("AMQP_URL"), std::env::var("DATABASE_URL")) {
        (Ok(amqp), Ok(database)) => {
            say("RabbitMQ and PostgreSQL");
            modes.push(bench.scaled(&Secret::new(amqp), &database).await.context("RabbitMQ and PostgreSQL")?);
        }
        _ => {
            left_out.push("rabbitmq+postgres: AMQP_URL and DATABASE_URL are not set (make bench sets them)".to_owned())
        }
    }
    Ok(Report {
        jobs,
        cores: machine::cores(),
        cpu: machine::cpu_model(),
        concurrency: CONCURRENCY,
        floor_us_per_job: floor_us,
        modes,
        left_out,
    })
}

/// CPU of the same two calls by bare loops, in a process of their own.
async fn floor(provider: &ProviderHandle, receiver: &ReceiverHandle, jobs: u64) -> anyhow::Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["bench", "--jobs", &jobs.to_string(), "--floor", &provider.base_url(), &receiver.hook("")])
        .stderr(Stdio::inherit())
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "the floor could not be measured");
    let floor: Floor = serde_json::from_slice(&output.stdout)?;
    receiver.reset();
    Ok(floor.cpu_us / jobs as f64)
}

/// The child of [`floor`]: makes the calls and tells its own CPU time.
pub async fn make_floor_calls(jobs: u64, provider: &str, hook: &str) -> anyhow::Result<Floor> {
    let client = reqwest::Client::builder().no_proxy().retry(reqwest::retry::never()).build()?;
    let share = jobs.div_ceil(CONCURRENCY as u64);
    let mut loops = tokio::task::JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (client, call, hook) = (client.clone(), format!("{provider}/ok"), hook.to_owned());
        loops.spawn(async move {
            for n in 0..share {
                let body = format!(r#"{{"n":{n}}}"#);
                let answer = client.post(&call).header("content-type", "application/json").body(body).send().await?;
                answer.bytes().await?;
                let answer = client.post(&hook).header("content-type", "application/json").body(EVENT).send().await?;
                answer.bytes().await?;
            }
            Ok::<(), reqwest::Error>(())
        });
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    Ok(Floor { cpu_us: machine::cpu_us(std::process::id())? })
}

/// About as large as an event.
const EVENT: &str = r#"{"type":"job.succeeded","timestamp":"2026-01-01T00:00:00.000Z","data":{"job_id":"bench-00000","provider":"bench","tenant":null,"metadata":{},"state":"succeeded","attempts":1,"response":{"status":200,"headers":{"content-type":"application/json"},"body":{"ok":true},"truncated":false},"error":null}}"#;

impl Bench {
    async fn embedded(&self) -> anyhow::Result<Measured> {
        let scratch = Scratch::new("bench")?;
        let file = scratch.path("paceline.toml");
        let store_url = format!("sqlite://{}", scratch.path("bench.db").display());
        std::fs::write(&file, self.config("bench", &store_url, "embedded:"))?;
        let config = Config::parse(&std::fs::read_to_string(&file)?, Some(file.clone()), &env())?;
        let store = Store::open(&StoreOptions { url: store_url, exclusive: true, connections_max: 4 }).await?;
        store.migrate().await?;
        submit(&store, &config, (0..self.jobs).map(|n| self.job("bench", n))).await?;
        store.close().await;
        drop(store);
        self.measure("embedded", &file).await
    }

    async fn scaled(&self, amqp: &Secret, database: &str) -> anyhow::Result<Measured> {
        let scratch = Scratch::new("bench")?;
        let database = ScratchDatabase::create(database).await?;
        let provider = format!("bench-{}", std::process::id());
        let file = scratch.path("paceline.toml");
        std::fs::write(&file, self.config(&provider, database.url(), amqp.expose()))?;
        let config = Config::parse(&std::fs::read_to_string(&file)?, Some(file.clone()), &env())?;
        anyhow::ensure!(matches!(config.queue, QueueConfig::Amqp(_)), "AMQP_URL is not amqp://…");
        let connection = paceline::inlet::connect(amqp, "paceline bench").await?;
        let channel = connection.create_channel().await?;
        Topology::of(&config).declare(&channel).await?;
        publish(&channel, &provider, (0..self.jobs).map(|n| self.job(&provider, n))).await?;
        let measured = self.measure("rabbitmq+postgres", &file).await;
        let queue = topology::queue_name(&provider, "default");
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        database.remove().await?;
        measured
    }

    fn job(&self, provider: &str, n: u64) -> serde_json::Value {
        json!({
            "id": format!("bench-{n}"), "provider": provider,
            "request": { "method": "POST", "path": "/ok", "body": { "n": n } },
            "callback": { "url": self.receiver.hook("") },
        })
    }

    fn config(&self, provider: &str, store: &str, queue: &str) -> String {
        format!(
            r#"
            [store]
            url = "{store}"
            [queue]
            url = "{queue}"
            [webhooks]
            secret = "env:PACELINE_BENCH_SECRET"
            allow_http = true
            allow_networks = ["127.0.0.0/8"]
            [[provider]]
            name = "{provider}"
            base_url = "{base_url}"
            limits = [ {{ concurrency = {CONCURRENCY} }} ]
            "#,
            base_url = self.provider.base_url(),
        )
    }

    /// Runs `paceline serve` as a process of its own until every webhook has arrived.
    async fn measure(&self, mode: &'static str, config: &Path) -> anyhow::Result<Measured> {
        self.receiver.reset();
        let before = self.provider.stats().accepted;
        let mut process = serve(config)?;
        let id = process.id().context("the process has ended")?;
        self.provider.wait_accepted(before + 1, Duration::from_secs(30)).await?;
        let began = Instant::now();
        self.receiver.wait_distinct(self.jobs, TOO_LONG).await?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu_us_per_job = machine::cpu_us(id)? / self.jobs as f64;
        let peak_mib = machine::peak_mib(id)?;
        process.start_kill()?;
        process.wait().await?;
        let calls = self.provider.stats().accepted - before;
        anyhow::ensure!(calls == self.jobs, "{calls} calls for {} jobs", self.jobs);
        Ok(Measured {
            mode,
            jobs_per_second: self.jobs as f64 / seconds,
            cpu_us_per_job,
            times_floor: cpu_us_per_job / self.floor_us,
            peak_mib,
            seconds,
        })
    }
}

fn serve(config: &Path) -> anyhow::Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .arg("serve")
        .args(["--role", "dispatcher,notifier,scheduler", "--config"])
        .arg(config)
        .env("PACELINE_BENCH_SECRET", SECRET)
        .env_remove("AMQP_URL")
        .env_remove("DATABASE_URL")
        .env("RUST_LOG", "warn")
        .kill_on_drop(true)
        .spawn()?)
}

fn env() -> Vec<(String, String)> {
    vec![("PACELINE_BENCH_SECRET".to_owned(), SECRET.to_owned())]
}
