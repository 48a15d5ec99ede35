//! Stops, kills and starts the real broker and database. Only tests/outages/outages.rs and the long rounds of
//! tests/chaos do, one test after the other: everybody else needs them.

use std::time::Duration;

use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use super::world::checkout;

/// A start that fails is tried so often again, after so long.
const STARTS_MAX: u32 = 3;
const START_AGAIN_AFTER: Duration = Duration::from_secs(2);

static ALONE: Mutex<()> = Mutex::const_new(());

/// The right to stop them. Both run when it is had, and [`Services::up`] is due before it ends.
pub struct Services(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Services {
    pub async fn alone() -> Self {
        let services = Self(ALONE.lock().await);
        services.up().await;
        services
    }

    /// Starts what does not run, and waits until both answer. A server that was killed may not be quite
    /// gone when the next one looks.
    pub async fn up(&self) {
        for _ in 0..STARTS_MAX {
            match try_control(&["up"]).await {
                Ok(()) => return,
                Err(said) => eprintln!("deploy/services up: {said}"),
            }
            tokio::time::sleep(START_AGAIN_AFTER).await;
        }
        control(&["up"]).await;
    }

    pub async fn stop(&self, service: &str) {
        control(&["stop", service]).await;
    }

    /// kill -9.
    pub async fn kill(&self, service: &str) {
        control(&["kill", service]).await;
    }

    /// Ends every connection to the broker, which goes on.
    pub async fn cut_connections(&self) {
        control(&["ctl", "close_all_connections", "cut by a test"]).await;
    }

    pub async fn restart(&self, service: &str) {
        control(&["restart", service]).await;
    }
}

async fn control(arguments: &[&str]) {
    try_control(arguments).await.unwrap_or_else(|said| panic!("deploy/services {arguments:?}: {said}"));
}

/// What it said, where it failed.
async fn try_control(arguments: &[&str]) -> Result<(), String> {
    let script = checkout().join("deploy/services");
    let output = Command::new(script).args(arguments).output().await.expect("deploy/services");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
