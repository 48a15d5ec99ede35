//! Whether a backlog costs anything: the same number of jobs while few or very many more wait behind them.

use anyhow::Context as _;
use serde::Serialize;

use super::load::{Load, Mode};
use super::meter::Meter;
use super::throughput::drive;

const ROLES: &str = "dispatcher,notifier,scheduler";

/// One size.
#[derive(Debug, Serialize)]
pub struct Backlog {
    /// Jobs that still waited when the measured ones were done.
    pub waiting: u64,
    /// Of the jobs before them.
    pub jobs_per_second: f64,
    /// CPU time of the process; a call and a webhook are half a job each, since those of later jobs are counted, too.
    pub cpu_us: f64,
    /// Until the measured jobs were done.
    pub peak_mib: f64,
    pub drained: Option<Drained>,
}

/// The rest of them.
#[derive(Debug, Serialize)]
pub struct Drained {
    /// Of all jobs.
    pub jobs_per_second: f64,
    /// Of the last ones, as many as were measured first.
    pub last_jobs_per_second: f64,
    pub cpu_us: f64,
    pub peak_mib: f64,
}

/// Measures `jobs` jobs before `waiting` others, and all of them where it `drains`.
pub async fn measure(load: &Load, mode: Mode, jobs: u64, waiting: u64, drains: bool) -> anyhow::Result<Backlog> {
    let site = load.site(mode, &[]).await?;
    load.enqueue(&site, jobs + waiting).await?;
    let calls_before = load.provider.stats().accepted;
    let meter = Meter::begin(&site, load.families(mode)).await?;
    let mut process = site.serve(ROLES)?;
    let id = process.id().context("the process has ended by itself")?;
    let seconds = drive(load, calls_before, &[jobs]).await.with_context(|| site.log())?[0];
    let calls = load.provider.stats().accepted - calls_before;
    let done = f64::midpoint(calls as f64, load.receiver.stats().distinct as f64);
    let cpu_us = super::process::cpu_us(id)? / done;
    let peak_mib = super::process::peak_mib(id)?;
    let jobs_per_second = jobs as f64 / seconds;
    let drained = if drains {
        let (all, last) = (jobs + waiting, jobs.min(waiting));
        // The first call was long ago; only differences count.
        let times = drive(load, calls_before, &[all - last, all]).await.with_context(|| site.log())?;
        let taken = meter.end(process).await?.per(all);
        Some(Drained {
            jobs_per_second: all as f64 / (seconds + times[1]),
            last_jobs_per_second: last as f64 / (times[1] - times[0]),
            cpu_us: taken.cpu_us,
            peak_mib: taken.peak_mib,
        })
    } else {
        process.start_kill()?;
        process.wait().await?;
        None
    };
    site.clear().await?;
    Ok(Backlog { waiting, jobs_per_second, cpu_us, peak_mib, drained })
}
