//! Another configuration for a running process: read and checked as a whole first, then taken over in order.

use std::io;
use std::path::PathBuf;

use anyhow::Context as _;
use paceline::config::{Config, ConfigError};
use paceline::reload::Changes;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::generation::Built;
use crate::system::{System, api_parts};

/// Who asks for another configuration, and where it is.
pub struct Reloads {
    hangups: Option<Signal>,
    path: Option<PathBuf>,
}

impl Reloads {
    /// Nobody ever asks.
    pub fn never() -> Self {
        Self { hangups: None, path: None }
    }

    /// SIGHUP asks for the file to be read again.
    ///
    /// # Errors
    /// Where signals cannot be listened for.
    pub fn on_hangup(path: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self { hangups: Some(signal(SignalKind::hangup())?), path })
    }

    /// Waits until somebody asks. Several that ask while one is under way are one.
    pub async fn asked(&mut self) -> Option<()> {
        self.hangups.as_mut()?.recv().await
    }

    fn read(&self) -> Result<Config, ConfigError> {
        Config::load(self.path.as_deref())
    }
}

impl System {
    /// Takes the configuration over as it is now. One that is not valid, or that changes what cannot be changed, leaves
    /// everything as it is.
    ///
    /// # Errors
    /// A part that failed while it drained: the process has to end.
    pub async fn reload(&mut self, reloads: &Reloads) -> anyhow::Result<()> {
        let new = match reloads.read() {
            Ok(new) => new,
            Err(error) => {
                for problem in problems(&error) {
                    tracing::error!(problem, "the new configuration is not valid; the running one stays in effect");
                }
                return Ok(());
            }
        };
        let changes = Changes::between(&self.config, &new);
        if !changes.refused.is_empty() {
            let settings = changes.refused.join(", ");
            tracing::error!(settings, "these settings need a restart; the running configuration stays in effect");
            return Ok(());
        }
        if changes.is_empty() {
            tracing::info!("the configuration says what it said before");
            return Ok(());
        }
        let parts = match api_parts(&self.shared, &new, Registry::default()) {
            Ok(parts) => parts,
            Err(error) => {
                cannot_be_built(&error);
                return Ok(());
            }
        };
        let changed = changes.taken.join(", ");
        if changes.restarts_work && !self.begin_anew(&new, &changed).await? {
            return Ok(());
        }
        if let Some(live) = &self.live {
            live.replace(parts);
        }
        self.config = new;
        tracing::info!(changed, "the new configuration is in effect");
        Ok(())
    }

    /// Lets what is at work drain and hand its leases over, as at a shutdown, and begins under the new configuration: what
    /// was spent is counted on, and a limit that is another one begins as used up. `false`: it cannot be built, and
    /// nothing was changed.
    async fn begin_anew(&mut self, new: &Config, changed: &str) -> anyhow::Result<bool> {
        let built = match Built::new(&self.shared, new) {
            Ok(built) => built,
            Err(error) => {
                cannot_be_built(&error);
                return Ok(false);
            }
        };
        tracing::info!(changed, "taking a new configuration over: calls in flight finish first");
        self.work.drain().await.context("a part of the process failed")?;
        if self.shutdown.is_cancelled() {
            return Ok(false);
        }
        let next = built.start(&self.shared, &self.shutdown);
        std::mem::replace(&mut self.work, next).retire(&self.shared).await;
        Ok(true)
    }
}

fn cannot_be_built(error: &anyhow::Error) {
    let problem = format!("{error:#}");
    tracing::error!(problem, "the new configuration is not valid; the running one stays in effect");
}

/// Each with its place.
fn problems(error: &ConfigError) -> Vec<String> {
    match error {
        ConfigError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        other => vec![other.to_string()],
    }
}
