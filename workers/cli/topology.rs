//! `paceline topology`: what stands in RabbitMQ.

use clap::Subcommand;
use lapin::Connection;
use paceline::api::OPERATOR;
use paceline::clock::{Clock, SystemClock};
use paceline::config::{Config, QueueConfig};
use paceline::inlet::leftovers::{self, Leftover, Pruned};
use paceline::inlet::topology::{JOBS, Topology};
use paceline::inlet::{self, InletError};
use paceline::store::{Act, ActKind, Store};
use serde_json::json;

use super::Globals;
use super::backend::{Missing, open_store};
use super::failure::{Exit, Failure};
use super::output::Out;

/// The exchanges, queues and bindings in RabbitMQ
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the configured providers need; nothing is contacted
    #[command(after_long_help = "Example:\n  paceline topology print")]
    Print,
    /// Declare it; what is there already stays as it is
    ///
    /// `paceline serve` does this by itself. Use it where producers start first.
    #[command(after_long_help = "Example:\n  paceline topology apply")]
    Apply,
    /// Drain and delete queues of providers and lanes that are no longer configured
    ///
    /// What waits in them becomes dead letters (unroutable), body and headers kept; then the queue is
    /// deleted. Queues that somebody consumes are left alone. It can be stopped and run again at any time.
    #[command(
        after_long_help = "Examples:\n  paceline topology prune --dry-run\n  paceline topology prune --queue paceline.jobs.geocoder.default"
    )]
    Prune(Prune),
}

/// What to prune.
#[derive(Debug, clap::Args)]
pub struct Prune {
    /// Only this queue; also one that was declared before the store remembered queues
    #[arg(long, value_name = "NAME")]
    queue: Option<String>,
    /// Show what there is, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Prints or declares.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let config = globals.load()?;
    let topology = Topology::of(&config);
    match command {
        Command::Print => {
            if out.is_json() {
                out.json(&serde_json::to_value(&topology).unwrap_or_default())?;
            } else {
                print(&topology, out)?;
            }
        }
        Command::Apply => {
            apply(&config, &topology).await?;
            remember(&config, &topology).await;
            out.line(format!(
                "declared {} exchanges, {} queues, {} bindings",
                topology.exchanges.len(),
                topology.queues.len(),
                topology.bindings.len()
            ))?;
        }
        Command::Prune(prune) => return self::prune(&prune, &config, &topology, out).await,
    }
    Ok(Exit::Done)
}

fn print(topology: &Topology, out: &Out) -> Result<(), Failure> {
    for exchange in &topology.exchanges {
        let alternate = exchange.alternate.map(|name| format!(", alternate {name}")).unwrap_or_default();
        out.line(format!("exchange  {} ({}{alternate})", exchange.name, exchange.kind))?;
    }
    for queue in &topology.queues {
        out.line(format!("queue     {} (quorum)", queue.name))?;
    }
    for binding in &topology.bindings {
        let key = if binding.key.is_empty() { "everything" } else { &binding.key };
        out.line(format!("binding   {} -> {} for {key}", binding.exchange, binding.queue))?;
    }
    Ok(())
}

fn unreachable(error: InletError) -> Failure {
    Failure::new(Exit::Unreachable, format!("RabbitMQ: {error}"))
}

async fn connect(config: &Config) -> Result<Connection, Failure> {
    let QueueConfig::Amqp(url) = &config.queue else {
        return Err(Failure::usage("there is no RabbitMQ in the configuration: set queue.url or AMQP_URL"));
    };
    inlet::connect(url, "paceline topology").await.map_err(unreachable)
}

async fn close(connection: &Connection) -> Result<(), Failure> {
    connection.close(200, "done".into()).await.map_err(|e| unreachable(e.into()))
}

async fn apply(config: &Config, topology: &Topology) -> Result<(), Failure> {
    let connection = connect(config).await?;
    let channel = connection.create_channel().await.map_err(|e| unreachable(e.into()))?;
    topology.declare(&channel).await.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
    close(&connection).await
}

/// For `prune`. A store that is not there yet is no reason to fail: `serve` remembers them, too.
async fn remember(config: &Config, topology: &Topology) {
    let names: Vec<String> = topology.job_queues().map(str::to_owned).collect();
    let remembered = async {
        let (store, _) = open_store(config, Missing::Fail).await?;
        let remembered = store.remember_queues(&names).await;
        store.close().await;
        remembered.map_err(Failure::from)
    };
    if let Err(failure) = remembered.await {
        tracing::info!("the store does not know of these queues yet: {}", failure.message);
    }
}

async fn prune(prune: &Prune, config: &Config, topology: &Topology, out: &Out) -> Result<Exit, Failure> {
    if let Some(queue) = &prune.queue {
        if topology.job_queues().any(|name| name == queue) {
            return Err(Failure::usage(format!("{queue} belongs to a configured provider and lane")));
        }
        if !queue.starts_with(&format!("{JOBS}.")) {
            return Err(Failure::usage(format!("{queue} is no queue of jobs: these begin with {JOBS}.")));
        }
    }
    let connection = connect(config).await?;
    let (store, _) = open_store(config, Missing::Fail).await?;
    let done = prune_all(prune, &connection, &store, topology, out).await;
    store.close().await;
    close(&connection).await?;
    done
}

/// Prunes a queue, and writes that down as what an operator did.
async fn prune_one(connection: &Connection, store: &Store, queue: &str) -> Result<Pruned, Failure> {
    let clock = SystemClock::new();
    let pruned = leftovers::prune(connection, store, &clock, queue).await.map_err(unreachable)?;
    let detail = format!("{} messages are dead letters now", pruned.buried);
    let (kind, done, detail) = (ActKind::QueuePrune, pruned.deleted, Some(detail.as_str()));
    let act = Act { who: OPERATOR, kind, target: queue, done, detail, at_ms: clock.wall_ms() };
    store.write_act(act).await?;
    Ok(pruned)
}

async fn prune_all(
    prune: &Prune,
    connection: &Connection,
    store: &Store,
    topology: &Topology,
    out: &Out,
) -> Result<Exit, Failure> {
    let found = match &prune.queue {
        Some(queue) => leftovers::look(connection, queue).await.map_err(unreachable)?.into_iter().collect(),
        None => leftovers::leftovers(connection, store, topology).await.map_err(unreachable)?,
    };
    let (mut shown, mut exit) = (Vec::new(), Exit::Done);
    for Leftover { queue, messages, consumers } in found {
        let in_use = consumers > 0;
        let pruned = match prune.dry_run || in_use {
            true => None,
            false => Some(prune_one(connection, store, &queue).await?),
        };
        let deleted = pruned.is_some_and(|pruned| pruned.deleted);
        if !prune.dry_run && !deleted {
            exit = Exit::Failed;
        }
        let buried = pruned.map_or(0, |pruned| pruned.buried);
        if !out.is_json() {
            let what = match pruned {
                _ if in_use => format!("{messages} messages; somebody consumes it: left alone"),
                None => format!("{messages} messages"),
                Some(Pruned { deleted: true, .. }) => format!("{buried} messages are dead letters now; deleted"),
                Some(_) => format!("{buried} messages are dead letters now; not empty, left for another time"),
            };
            out.line(format!("{queue}  {what}"))?;
        }
        shown.push(json!({
            "queue": queue, "messages": messages, "consumers": consumers, "buried": buried, "deleted": deleted,
        }));
    }
    if out.is_json() {
        out.json(&json!({ "queues": shown, "dry_run": prune.dry_run }))?;
    } else if shown.is_empty() {
        out.line("every queue belongs to a configured provider and lane")?;
    }
    Ok(exit)
}
