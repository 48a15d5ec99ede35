//! The floor: bare client loops that make the same two HTTP calls, with the same client library and as many at once, in
//! a process of their own.

use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::load::{CONCURRENCY, Load};
use super::process;

/// About as large as an event.
const EVENT: &str = r#"{"type":"job.succeeded","timestamp":"2026-01-01T00:00:00.000Z","data":{"job_id":"bench-00000","provider":"bench","tenant":null,"metadata":{},"state":"succeeded","attempts":1,"response":{"status":200,"headers":{"content-type":"application/json"},"body":{"ok":true},"truncated":false},"error":null}}"#;

/// What the process that makes the calls prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Floor {
    pub jobs: u64,
    pub cpu_us: f64,
}

/// User and system time of the two calls of a job, in µs.
pub async fn measure(load: &Load, jobs: u64) -> anyhow::Result<f64> {
    let output = Command::new(std::env::current_exe()?)
        .args(["bench", "--jobs", &jobs.to_string(), "--floor", &load.provider.base_url(), &load.bare.hook("")])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "the bare calls failed: {}", output.status);
    let floor: Floor = serde_json::from_slice(&output.stdout)?;
    Ok(floor.cpu_us / floor.jobs as f64)
}

/// Makes the calls; this process's CPU time.
pub async fn make_calls(jobs: u64, provider: &str, hook: &str) -> anyhow::Result<Floor> {
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
    Ok(Floor { jobs: share * CONCURRENCY as u64, cpu_us: process::cpu_us(std::process::id())? })
}
