//! Stops, kills and starts the real broker and database. Only tests/outages.rs and the long rounds of
//! tests/chaos do, one test after the other: everybody else needs them.

use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use super::world::checkout;

static ALONE: Mutex<()> = Mutex::const_new(());

/// The right to stop them. Both run when it is had, and [`Services::up`] is due before it ends.
pub struct Services(#[expect(dead_code, reason = "held, not read")] MutexGuard<'static, ()>);

impl Services {
    pub async fn alone() -> Self {
        let services = Self(ALONE.lock().await);
        services.up().await;
        services
    }

    /// Starts what does not run, and waits until both answer.
    pub async fn up(&self) {
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
    let script = checkout().join("deploy/services");
    let output = Command::new(script).args(arguments).output().await.expect("deploy/services");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "deploy/services {arguments:?}: {said}");
}
