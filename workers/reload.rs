//! Another configuration for a running process: read and checked as a whole first, then taken over in order.

use std::path::PathBuf;

use paceline::config::{Config, ConfigError};
use paceline::reload::Changes;
use prometheus_client::registry::Registry;
use tokio::signal::unix::Signal;

use crate::system::{System, api_parts};
use crate::work::Built;

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
    pub fn on_hangup(hangups: Signal, path: Option<PathBuf>) -> Self {
        Self { hangups: Some(hangups), path }
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
    pub async fn reload(&mut self, reloads: &Reloads) {
        let new = match reloads.read() {
            Ok(new) => new,
            Err(error) => {
                for problem in problems(&error) {
                    tracing::error!(problem, "the new configuration is not valid; the running one stays in effect");
                }
                return;
            }
        };
        let changes = Changes::between(&self.config, &new);
        if !changes.refused.is_empty() {
            let settings = changes.refused.join(", ");
            tracing::error!(settings, "these settings need a restart; the running configuration stays in effect");
            return;
        }
        if changes.is_empty() {
            tracing::info!("the configuration says what it said before");
            return;
        }
        let parts = match api_parts(&self.shared, &new, Registry::default()) {
            Ok(parts) => parts,
            Err(error) => {
                cannot_be_built(&error);
                return;
            }
        };
        let built = match Built::new(&self.shared, &new, &changes.concerned) {
            Ok(built) => built,
            Err(error) => {
                cannot_be_built(&error);
                return;
            }
        };
        let changed = changes.taken.join(", ");
        if !self.replace(built, &new, &changes).await {
            return;
        }
        if let Some(live) = &self.live {
            live.replace(parts);
        }
        self.config = new;
        tracing::info!(changed, "the new configuration is in effect");
    }

    /// Lets the parts that are concerned drain and hand their leases over, as at a shutdown, and begins new ones: what was
    /// spent is counted on, and a limit that is another one begins as used up. `false`: the process shuts down instead.
    async fn replace(&mut self, built: Built, new: &Config, changes: &Changes) -> bool {
        if !changes.concerned.is_nothing() {
            let changed = changes.taken.join(", ");
            tracing::info!(
                changed,
                "taking a new configuration over: calls in flight of what is concerned finish first"
            );
            self.work.end(&self.shared, &changes.concerned).await;
        }
        if self.shutdown.is_cancelled() {
            return false;
        }
        self.work.begin(built, &self.shared, new).await;
        true
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
