//! Utilisation while nothing disturbs: warm up, then measure a number of windows of every key.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use paceline::sim::{ProviderHandle, ProviderSim, ProviderStats};
use tokio::process::Child;

use super::case::Case;
use super::{ROLES, Row, row};
use crate::bench::services::Services;
use crate::bench::site::Site;

/// A process has sent its first call after so long.
const START: Duration = Duration::from_secs(60);
/// So many windows pass before measuring (what a start does differently is over then, and edges of fixed windows are
/// known), and so much time.
const WARM_UP_WINDOWS: f64 = 1.5;
const WARM_UP: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Jobs in reserve: a measurement that ran out of them would measure its own end.
const RESERVE: f64 = 1.2;

/// A case whose jobs are enqueued.
pub struct Steady {
    case: Case,
    windows: f64,
    provider: ProviderHandle,
    site: Site,
    processes: usize,
    jobs: u64,
}

impl Steady {
    /// Starts its provider and enqueues its jobs.
    pub async fn new(
        case: &Case,
        name: &str,
        least: (u32, Duration),
        services: Option<&Services>,
        processes: usize,
    ) -> anyhow::Result<Self> {
        let windows = case.windows(least)?;
        let (limit, per) = case.rate()?;
        let provider = ProviderSim::start(case.provider(0)?).await?;
        let (section, env) = case.declared(&provider.base_url());
        let site = Site::new(name, services, &section, env).await?;
        let seconds = per.as_secs_f64() * (windows + WARM_UP_WINDOWS + 1.5) + 2.0 * WARM_UP.as_secs_f64();
        let jobs = (case.calls_per_second()? * seconds * RESERVE) as u64 + limit * case.keys as u64;
        site.enqueue(case.jobs(&site.provider, jobs)).await?;
        Ok(Self { case: case.clone(), windows, provider, site, processes, jobs })
    }

    /// Runs it.
    pub async fn measure(self) -> anyhow::Result<Row> {
        let mut processes =
            (0..self.processes).map(|_| self.site.serve(ROLES)).collect::<anyhow::Result<Vec<Child>>>()?;
        let measured = self.observe().await;
        let owners = if self.processes > 1 { Some(self.owners().await?) } else { None };
        for process in &mut processes {
            process.start_kill()?;
            process.wait().await?;
        }
        self.provider.shutdown().await;
        let measured = measured.with_context(|| self.site.log())?;
        if !measured.is_good() {
            tracing::warn!(case = self.case.name, log = %self.site.log(), "a figure was not reached");
        }
        self.site.clear().await?;
        Ok(Row { note: owners.map(|owners| format!("{owners} of {} processes called", self.processes)), ..measured })
    }

    async fn observe(&self) -> anyhow::Result<Row> {
        let (_, per) = self.case.rate()?;
        self.provider.wait_accepted(1, START).await?;
        tokio::time::sleep(per.mul_f64(WARM_UP_WINDOWS).max(WARM_UP)).await;
        let before = self.provider.stats();
        self.provider.reset_measures();
        let began = Instant::now();
        let too_long = per.mul_f64((self.windows + 2.0) * 2.0) + START;
        let stats = loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stats = self.provider.stats();
            if fewest_windows(&stats, self.case.keys) >= self.windows {
                break stats;
            }
            anyhow::ensure!(began.elapsed() < too_long, "too slow: {:?} after {too_long:?}", stats.rules);
        };
        let left = self.jobs.saturating_sub(before.accepted + stats.accepted);
        anyhow::ensure!(left > 0, "the jobs ran out");
        row(&self.case, &stats, before.refused_limit)
    }

    /// How many processes hold a lease.
    async fn owners(&self) -> anyhow::Result<usize> {
        let store = self.site.store().await?;
        let leases = store.leases().await;
        store.close().await;
        let owners: BTreeSet<String> = leases?.into_iter().filter_map(|lease| lease.owner).collect();
        Ok(owners.len())
    }
}

fn fewest_windows(stats: &ProviderStats, keys: usize) -> f64 {
    let measured: Vec<f64> =
        stats.keys.iter().filter_map(|key| Some(key.utilisation.iter().find(|used| used.rule == 0)?.windows)).collect();
    if measured.len() < keys { 0.0 } else { measured.into_iter().fold(f64::INFINITY, f64::min) }
}
