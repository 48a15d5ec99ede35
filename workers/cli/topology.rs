//! `paceline topology`: what stands in RabbitMQ.

use clap::Subcommand;
use paceline::config::{Config, QueueConfig};
use paceline::inlet::{self, topology::Topology};

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;

/// The exchanges, queues and bindings in RabbitMQ
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the configured providers need; nothing is contacted
    Print,
    /// Declare it; what is there already stays as it is
    ///
    /// `paceline serve` does this by itself. Use it where producers start first.
    Apply,
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
            out.line(format!(
                "declared {} exchanges, {} queues, {} bindings",
                topology.exchanges.len(),
                topology.queues.len(),
                topology.bindings.len()
            ))?;
        }
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

async fn apply(config: &Config, topology: &Topology) -> Result<(), Failure> {
    let QueueConfig::Amqp(url) = &config.queue else {
        return Err(Failure::usage("there is no RabbitMQ in the configuration: set queue.url or AMQP_URL"));
    };
    let unreachable = |e: inlet::InletError| Failure::new(Exit::Unreachable, format!("RabbitMQ: {e}"));
    let connection = inlet::connect(url, "paceline topology").await.map_err(unreachable)?;
    let channel = connection.create_channel().await.map_err(|e| unreachable(e.into()))?;
    topology.declare(&channel).await.map_err(|e| Failure::new(Exit::Failed, format!("RabbitMQ refuses: {e}")))?;
    connection.close(200, "done".into()).await.map_err(|e| unreachable(e.into()))
}
