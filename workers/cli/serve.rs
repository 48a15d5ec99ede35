//! `paceline serve`: run the system.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use paceline::config::{Config, QueueConfig};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Globals;
use super::backend::without_password;
use super::failure::{Exit, Failure};
use super::output::Out;
use crate::reload::Reloads;
use crate::system::{Role, System};

/// Run the system: API, dispatcher, notifier and scheduler in one process, or some of them
///
/// Without any configuration of store and queue everything is kept in one SQLite file,
/// ./paceline.db, and nothing else is needed. With AMQP_URL and DATABASE_URL (or the
/// configuration) it works on RabbitMQ and PostgreSQL, and several processes can share the work.
///
/// Run each role in as many processes as you like. One process at a time makes the calls of a
/// provider; others with the role dispatcher stand by and take over when it stops or dies.
///
/// SIGTERM or Ctrl-C drains: nothing new is taken, calls in flight finish, outcomes are committed.
/// A second signal ends the process at once, which is as safe as a crash. SIGHUP takes a changed
/// configuration over; one that is not valid changes nothing, and the log says why.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  paceline serve
  paceline serve --config paceline.toml
  AMQP_URL=amqp://… DATABASE_URL=postgres://… paceline serve
  paceline serve --role api,notifier")]
pub struct Args {
    /// What this process does
    #[arg(long, value_delimiter = ',', default_value = "api,dispatcher,notifier,scheduler", value_name = "ROLES")]
    role: Vec<Role>,

    /// Logs as JSON, one object a line
    #[arg(long)]
    log_json: bool,
}

impl Args {
    /// How this command logs.
    pub fn log_json(&self) -> bool {
        self.log_json
    }
}

/// Serves until a signal.
pub async fn run(args: Args, globals: &Globals, _out: &Out) -> Result<Exit, Failure> {
    // Before anything takes time: a signal that nobody listens for ends the process.
    let hangups = listen(SignalKind::hangup())?;
    let config = globals.load()?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
    tell(&config);
    let failed = |error: anyhow::Error| Failure::new(Exit::Failed, format!("{error:#}"));
    let reloads = Reloads::on_hangup(hangups, config.path.clone());
    let system = System::start(config, &args.role, shutdown).await.map_err(failed)?;
    system.run(reloads).await.map_err(failed)?;
    tracing::info!("stopped");
    Ok(Exit::Done)
}

/// What this process works on, said once in the log.
fn tell(config: &Config) {
    let file = config.path.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
    let store = without_password(config.store.url.expose());
    let queue = match &config.queue {
        QueueConfig::Embedded => "embedded".to_owned(),
        QueueConfig::Amqp(url) => without_password(url.expose()),
    };
    tracing::info!(configuration = file, store, queue, providers = config.providers.len(), "starting");
}

/// Signals closer together than this count as one.
const SAME_SIGNAL: Duration = Duration::from_millis(20);

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::new(Exit::Failed, format!("cannot listen for signals: {e}")))
}

/// The first signal drains, the second ends.
fn stop_on_signals(shutdown: CancellationToken) -> Result<(), Failure> {
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            // Some supervisors signal the process and its group: that is one wish, not two.
            if first.is_some_and(|first| first.elapsed() < SAME_SIGNAL) {
                continue;
            }
            first.get_or_insert_with(Instant::now);
            if shutdown.is_cancelled() {
                tracing::warn!("second signal: ending at once; what was in hand is rescued by the next process");
                std::process::exit(130);
            }
            tracing::info!("draining: nothing new is taken, calls in flight finish; a second signal ends at once");
            shutdown.cancel();
        }
    });
    Ok(())
}
