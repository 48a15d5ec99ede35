//! How fast and how cheap: jobs that wait already, through one process with every role that they need.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::load::{Load, Mode, START};
use super::meter::{Meter, Taken};

/// What jobs need.
const ROLES: &str = "dispatcher,notifier,scheduler";
/// A measurement gives up after this.
pub const TOO_LONG: Duration = Duration::from_secs(3600);

/// One run.
#[derive(Debug, Serialize)]
pub struct Run {
    /// From the first call to the last webhook.
    pub jobs_per_second: f64,
    pub seconds: f64,
    /// CPU time of two bare calls just before and just after.
    pub floor_us: f64,
    /// CPU time of the process a job, divided by that.
    pub times_floor: f64,
    /// A job.
    #[serde(flatten)]
    pub taken: Taken,
}

impl Run {
    /// Cores in use by all parts together, where all of them are known.
    pub fn cores(&self, mode: Mode) -> Option<f64> {
        let Taken { cpu_us, broker_us, database_us, bench_us, .. } = self.taken;
        let services = match mode {
            Mode::Embedded => 0.0,
            Mode::Scaled => broker_us? + database_us?,
        };
        Some((cpu_us + services + bench_us) * self.jobs_per_second / 1e6)
    }
}

/// Runs jobs; the floor is what two bare calls take.
pub async fn measure(load: &Load, mode: Mode, jobs: u64) -> anyhow::Result<Run> {
    let site = load.site(mode, &[]).await?;
    load.enqueue(&site, jobs).await?;
    let calls_before = load.provider.stats().accepted;
    let meter = Meter::begin(&site, load.families(mode)).await?;
    let process = site.serve(ROLES)?;
    let seconds = drive(load, calls_before, &[jobs]).await.with_context(|| site.log())?[0];
    let taken = meter.end(process).await?.per(jobs);
    let calls = load.provider.stats().accepted - calls_before;
    anyhow::ensure!(calls == jobs, "{calls} calls for {jobs} jobs");
    site.clear().await?;
    Ok(Run { jobs_per_second: jobs as f64 / seconds, seconds, floor_us: f64::NAN, times_floor: f64::NAN, taken })
}

/// Waits for the first call, then for so many webhooks each; the seconds from that call to each.
pub async fn drive(load: &Load, calls_before: u64, webhooks: &[u64]) -> anyhow::Result<Vec<f64>> {
    load.provider.wait_accepted(calls_before + 1, START).await?;
    let began = Instant::now();
    let mut seconds = Vec::with_capacity(webhooks.len());
    for wanted in webhooks {
        load.receiver.wait_distinct(*wanted, TOO_LONG).await?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(seconds)
}

impl Run {
    /// The same, beside the floors before and after it.
    pub fn beside(self, floors: [f64; 2]) -> Self {
        let floor_us = f64::midpoint(floors[0], floors[1]);
        Self { floor_us, times_floor: self.taken.cpu_us / floor_us, ..self }
    }
}
