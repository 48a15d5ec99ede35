//! What a kill costs: processes are killed and restarted at once, and nothing is refused all the same.
//!
//! A kill may cost the rest of the lease (nobody else may send before it has run out; none where a
//! restarted process sees that its predecessor is dead) and what was written ahead: the successor
//! counts all of it as sent, so every key waits for one window at most.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use paceline::sim::{ProviderHandle, ProviderSim};
use paceline::store::Store;
use tokio::process::Child;

use super::case::Case;
use super::{ROLES, Row, row};
use crate::bench::services::Services;
use crate::bench::site::Site;

const KILLS: u32 = 5;
const KILL_EVERY: Duration = Duration::from_secs(10);
const START: Duration = Duration::from_secs(60);
/// A process needs so long to start, and one that waits for a lease asks for it this often.
const STARTING: Duration = Duration::from_millis(1_500);
/// What was on its way may arrive so long after the takeover, and is counted then.
const STRAGGLERS: Duration = Duration::from_secs(1);
const RESERVE: f64 = 1.2;

/// A case whose jobs are enqueued.
pub struct Killed {
    case: Case,
    provider: ProviderHandle,
    site: Site,
    processes: usize,
    /// The store, where others may look into it while it is in use.
    store: Option<Store>,
}

impl Killed {
    /// Starts its provider and enqueues its jobs.
    pub async fn new(case: &Case, services: Option<&Services>, processes: usize) -> anyhow::Result<Self> {
        let seconds = (KILL_EVERY * (KILLS + 3)).as_secs_f64();
        let jobs = (case.calls_per_second()? * seconds * RESERVE) as u64;
        let provider = ProviderSim::start(case.provider(0)?).await?;
        let (section, env) = case.declared(&provider.base_url());
        let site = Site::new(case.name, services, &section, env).await?;
        site.enqueue(case.jobs(&site.provider, jobs)).await?;
        let store = if services.is_some() { Some(site.store().await?) } else { None };
        Ok(Self { case: case.clone(), provider, site, processes, store })
    }

    /// Runs it.
    pub async fn measure(self) -> anyhow::Result<Row> {
        let mut running =
            (0..self.processes).map(|_| self.site.serve(ROLES)).collect::<anyhow::Result<Vec<Child>>>()?;
        let measured = self.observe(&mut running).await;
        for process in &mut running {
            process.start_kill()?;
            process.wait().await?;
        }
        self.provider.shutdown().await;
        let measured = measured.with_context(|| self.site.log())?;
        if !measured.is_good() {
            tracing::warn!(case = self.case.name, log = %self.site.log(), "a figure was not reached");
        }
        if let Some(store) = &self.store {
            store.close().await;
        }
        self.site.clear().await?;
        Ok(measured)
    }

    async fn observe(&self, running: &mut [Child]) -> anyhow::Result<Row> {
        let (_, per) = self.case.rate()?;
        self.provider.wait_accepted(1, START).await?;
        tokio::time::sleep(per * 2).await;
        let before = self.provider.stats();
        self.provider.reset_measures();
        let began = Instant::now();
        let mut bounds = Duration::ZERO;
        for kill in 1..=KILLS {
            tokio::time::sleep((KILL_EVERY * kill).saturating_sub(began.elapsed())).await;
            let (victim, rest) = self.victim(running, kill).await?;
            let process = running.get_mut(victim).context("there is nobody to kill")?;
            process.start_kill()?;
            process.wait().await?;
            *process = self.site.serve(ROLES)?;
            bounds += rest + STARTING + STRAGGLERS + per;
        }
        tokio::time::sleep((KILL_EVERY * (KILLS + 1)).saturating_sub(began.elapsed())).await;
        let (stats, took) = (self.provider.stats(), began.elapsed().as_secs_f64());
        let row = row(&self.case, &stats, before.refused_limit)?;
        let sent_for = stats.accepted as f64 / (self.case.calls_per_second()? * row.formula);
        Ok(Row {
            windows: took / per.as_secs_f64(),
            reached: (took - sent_for).max(0.0) / f64::from(KILLS),
            target: bounds.as_secs_f64() / f64::from(KILLS),
            note: Some(format!("{KILLS} kills, {:.0} % of the calls of an undisturbed run", sent_for / took * 100.0)),
            ..row
        })
    }

    /// Whom to kill, and how long its leases hold. Where several hold some, they take turns.
    async fn victim(&self, running: &[Child], kill: u32) -> anyhow::Result<(usize, Duration)> {
        let Some(store) = &self.store else { return Ok((0, Duration::ZERO)) };
        let leases = store.leases().await?;
        let held = |process: &Child| {
            let own = process.id().map(|id| format!("{id}-")).unwrap_or_default();
            let owned = leases.iter().filter(|lease| lease.owner.as_deref().is_some_and(|o| o.starts_with(&own)));
            owned.map(|lease| lease.expires_in).max()
        };
        let owners: Vec<(usize, Duration)> =
            running.iter().enumerate().filter_map(|(n, process)| Some((n, held(process)?))).collect();
        owners.get(kill as usize % owners.len().max(1)).copied().context("nobody holds a lease")
    }
}
