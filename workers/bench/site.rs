//! A place for one measurement: a configuration, jobs enqueued ahead, and `paceline serve` as
//! processes of their own.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions};
use paceline::api::{Desk, Tenancy};
use paceline::clock::SystemClock;
use paceline::config::Config;
use paceline::inlet::topology::{self, Topology};
use paceline::store::{Origin, Store, StoreOptions};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::services::Services;
use super::writes::{self, Writes};
use crate::scratch::Scratch;
use crate::scratch_database::ScratchDatabase;

/// Messages published before their confirms are awaited.
const PUBLISH_BATCH: usize = 500;
/// Jobs submitted at once.
const SUBMIT_BATCH: usize = 1_000;
/// An envelope is at most so large.
const ENVELOPE_BYTES_MAX: usize = 1024 * 1024;
/// The embedded store.
const FILE: &str = "bench.db";
/// So much of a log is shown.
const LOG_LINES: usize = 20;

/// What is scaled: a database and a broker beside the scratch directory.
struct Scaled {
    database: ScratchDatabase,
    connection: lapin::Connection,
    channel: lapin::Channel,
}

/// The place.
pub struct Site {
    /// The provider's name, nobody else's.
    pub provider: String,
    config: Config,
    store_url: String,
    env: Vec<(String, String)>,
    file: PathBuf,
    scratch: Scratch,
    scaled: Option<Scaled>,
}

impl Site {
    /// A place with one provider, whose section of the configuration is given without its name (other sections may
    /// follow), and the environment that it refers to. Without services everything is in one SQLite file.
    pub async fn new(
        name: &str,
        services: Option<&Services>,
        provider: &str,
        env: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let scratch = Scratch::new("bench")?;
        let database = match services {
            Some(services) => Some(ScratchDatabase::create(&services.database).await?),
            None => None,
        };
        let store_url = match &database {
            Some(database) => database.url().to_owned(),
            None => format!("sqlite://{}", scratch.path(FILE).display()),
        };
        let queue = services.map_or("embedded:", |services| services.amqp.expose());
        let name = format!("bench-{}-{name}", std::process::id());
        let text = format!(
            "[store]\nurl = \"{store_url}\"\n[queue]\nurl = \"{queue}\"\n\
             [metrics]\nlisten = \"127.0.0.1:0\"\n[[provider]]\nname = \"{name}\"\n{provider}"
        );
        let file = scratch.path("paceline.toml");
        std::fs::write(&file, &text)?;
        let config = Config::parse(&text, Some(file.clone()), &env)?;
        let scaled = match (services, database) {
            (Some(services), Some(database)) => {
                let connection = paceline::inlet::connect(&services.amqp, "paceline bench").await?;
                let channel = connection.create_channel().await?;
                Topology::of(&config).declare(&channel).await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                Some(Scaled { database, connection, channel })
            }
            _ => None,
        };
        Ok(Self { provider: name, config, store_url, env, file, scratch, scaled })
    }

    /// Where its jobs are kept. On SQLite only while nothing serves.
    pub async fn store(&self) -> anyhow::Result<Store> {
        let options =
            StoreOptions { url: self.store_url.clone(), exclusive: self.scaled.is_none(), connections_max: 4 };
        let store = Store::open(&options).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Puts jobs where their producer would: into the broker, or into the store.
    pub async fn enqueue(&self, jobs: impl Iterator<Item = Value>) -> anyhow::Result<()> {
        if let Some(scaled) = &self.scaled {
            return publish(&scaled.channel, &self.provider, jobs).await;
        }
        let store = self.store().await?;
        let submitted = submit(&store, &self.config, jobs).await;
        store.close().await;
        submitted
    }

    /// Publishes one job as its producer would, and waits for the confirm.
    pub async fn publish(&self, job: &Value) -> anyhow::Result<()> {
        let scaled = self.scaled.as_ref().context("there is no broker")?;
        publish(&scaled.channel, &self.provider, std::iter::once(job.clone())).await
    }

    /// What was written so far. Into SQLite: by a process that runs; nothing without one.
    pub async fn writes(&self, process: Option<u32>) -> anyhow::Result<Writes> {
        match (&self.scaled, process) {
            (Some(scaled), _) => writes::postgres(&scaled.database).await,
            (None, Some(process)) => writes::sqlite(&self.scratch.path(FILE), process),
            (None, None) => Ok(Writes::default()),
        }
    }

    /// Starts one more process with these roles, which ends with its handle at the latest.
    pub fn serve(&self, roles: &str) -> anyhow::Result<Child> {
        let log = File::options().create(true).append(true).open(self.scratch.path("serve.log"))?;
        Command::new(std::env::current_exe()?)
            .args(["serve", "--role", roles, "--config"])
            .arg(&self.file)
            .envs(self.env.iter().cloned())
            .env_remove("AMQP_URL")
            .env_remove("DATABASE_URL")
            .env("RUST_LOG", "info,sqlx=warn,lapin=warn")
            .env("NO_COLOR", "1")
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("paceline serve")
    }

    /// The last lines that its processes wrote.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.scratch.path("serve.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Removes what it left outside its scratch directory.
    pub async fn clear(self) -> anyhow::Result<()> {
        let Some(Scaled { database, connection, channel }) = self.scaled else { return Ok(()) };
        let queue = topology::queue_name(&self.provider, "default");
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
        connection.close(200, "done".into()).await?;
        database.remove().await
    }
}

/// Submits jobs as the API would.
async fn submit(store: &Store, config: &Config, jobs: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock::new());
    let desk = Desk::new(store.clone(), Arc::new(config.catalog()), clock, ENVELOPE_BYTES_MAX);
    let mut jobs = jobs.peekable();
    while jobs.peek().is_some() {
        let batch: Vec<Value> = jobs.by_ref().take(SUBMIT_BATCH).collect();
        desk.submit(&Tenancy::all(), Bytes::from(serde_json::to_vec(&batch)?), Origin::default())
            .await
            .map_err(|problem| anyhow::anyhow!("a job was refused: {}", problem.detail))?;
    }
    Ok(())
}

/// Publishes jobs as a producer would, and awaits every confirm.
async fn publish(channel: &lapin::Channel, provider: &str, jobs: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    let mut jobs = jobs.peekable();
    while jobs.peek().is_some() {
        let mut confirms = Vec::with_capacity(PUBLISH_BATCH);
        for job in jobs.by_ref().take(PUBLISH_BATCH) {
            let body = serde_json::to_vec(&job)?;
            let properties =
                BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
            let options = BasicPublishOptions::default();
            let exchange = topology::JOBS.into();
            confirms.push(channel.basic_publish(exchange, provider.into(), options, &body, properties).await?);
        }
        for confirm in confirms {
            let confirmed = confirm.await?;
            anyhow::ensure!(confirmed.is_ack(), "the broker did not take a message");
        }
    }
    Ok(())
}
