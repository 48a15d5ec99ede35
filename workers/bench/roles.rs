//! What each role costs: the same jobs, one role after the other in a process of its own. So nothing of one role is
//! counted for another; work that they share in one process, such as a commit, is done twice here.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::load::{Load, Mode, START};
use super::meter::{Meter, Taken};
use super::process;
use super::site::Site;
use super::throughput::TOO_LONG;

/// The scheduler has looked at everything once after so long, and is measured for so long.
const SETTLED: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);

/// A role that works on jobs.
#[derive(Debug, Serialize)]
pub struct Role {
    pub role: &'static str,
    /// From its first call or webhook to its last.
    pub jobs_per_second: f64,
    /// A job.
    #[serde(flatten)]
    pub taken: Taken,
}

/// All of them.
#[derive(Debug, Serialize)]
pub struct Roles {
    pub roles: Vec<Role>,
    /// CPU time of the scheduler a second, with those jobs in the store.
    pub scheduler_us_per_second: f64,
}

/// Measures them one after the other.
pub async fn measure(load: &Load, mode: Mode, jobs: u64) -> anyhow::Result<Roles> {
    let site = load.site(mode, &[]).await?;
    load.enqueue(&site, jobs).await?;
    let dispatcher = dispatcher(load, &site, mode, jobs).await.with_context(|| site.log())?;
    let notifier = notifier(load, &site, mode, jobs).await.with_context(|| site.log())?;
    let scheduler_us_per_second = scheduler(&site).await.with_context(|| site.log())?;
    site.clear().await?;
    Ok(Roles { roles: vec![dispatcher, notifier], scheduler_us_per_second })
}

async fn dispatcher(load: &Load, site: &Site, mode: Mode, jobs: u64) -> anyhow::Result<Role> {
    let before = load.provider.stats().accepted;
    let meter = Meter::begin(site, load.families(mode)).await?;
    let process = site.serve("dispatcher")?;
    load.provider.wait_accepted(before + 1, START).await?;
    let began = Instant::now();
    load.provider.wait_accepted(before + jobs, TOO_LONG).await?;
    let jobs_per_second = jobs as f64 / began.elapsed().as_secs_f64();
    Ok(Role { role: "dispatcher", jobs_per_second, taken: meter.end(process).await?.per(jobs) })
}

async fn notifier(load: &Load, site: &Site, mode: Mode, jobs: u64) -> anyhow::Result<Role> {
    let meter = Meter::begin(site, load.families(mode)).await?;
    let process = site.serve("notifier")?;
    load.receiver.wait_distinct(1, START).await?;
    let began = Instant::now();
    load.receiver.wait_distinct(jobs, TOO_LONG).await?;
    let jobs_per_second = jobs as f64 / began.elapsed().as_secs_f64();
    Ok(Role { role: "notifier", jobs_per_second, taken: meter.end(process).await?.per(jobs) })
}

async fn scheduler(site: &Site) -> anyhow::Result<f64> {
    let mut process = site.serve("scheduler")?;
    tokio::time::sleep(SETTLED).await;
    let id = process.id().context("the process has ended by itself")?;
    let (before, began) = (process::cpu_us(id)?, Instant::now());
    tokio::time::sleep(IDLE).await;
    let per_second = (process::cpu_us(id)? - before) / began.elapsed().as_secs_f64();
    process.start_kill()?;
    process.wait().await?;
    Ok(per_second)
}
