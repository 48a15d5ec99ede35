//! Tools of others that tests call: a Python with what tests/tools/requirements.txt names.

use std::path::PathBuf;

use tokio::process::Command;

use super::world::checkout;

/// The interpreter. A tool that cannot be had is a failure, never a skipped test.
pub async fn python() -> PathBuf {
    let script = checkout().join("tests/tools/python");
    let found = Command::new(script).output().await.expect("tests/tools/python");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    PathBuf::from(String::from_utf8(found.stdout).expect("a path").trim())
}
