//! What `paceline serve`, its broker, its database and this program took while something went on.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::process::Child;

use super::process::{self, Family};
use super::services::Families;
use super::site::Site;
use super::writes::Writes;

/// A process that has used no more than a tick in this time has finished what it had in hand.
const QUIET: Duration = Duration::from_millis(200);
const TICK_US: f64 = 10_000.0;
/// It is not waited for any longer.
const QUIET_WITHIN: u32 = 50;

/// Everything, in µs and bytes.
#[derive(Debug, Clone, Serialize)]
pub struct Taken {
    pub cpu_us: f64,
    /// By the names of threads that live.
    pub threads_us: BTreeMap<String, f64>,
    /// None where there is none, or where its processes are not known.
    pub broker_us: Option<f64>,
    pub database_us: Option<f64>,
    /// This program: the provider and the receiver of webhooks.
    pub bench_us: f64,
    pub transactions: f64,
    pub bytes: f64,
    pub peak_mib: f64,
}

/// Counters before a process begins.
pub struct Meter<'a> {
    site: &'a Site,
    families: Option<&'a Families>,
    broker_us: Option<f64>,
    database_us: Option<f64>,
    bench_us: f64,
    writes: Writes,
}

impl<'a> Meter<'a> {
    /// Reads them.
    pub async fn begin(site: &'a Site, families: Option<&'a Families>) -> anyhow::Result<Self> {
        Ok(Self {
            site,
            families,
            broker_us: families.and_then(broker_us),
            database_us: families.and_then(database_us),
            bench_us: process::cpu_us(std::process::id())?,
            writes: site.writes(None).await?,
        })
    }

    /// Reads them again when the process has finished what it had in hand, and ends it.
    pub async fn end(self, mut process: Child) -> anyhow::Result<Taken> {
        let id = process.id().ok_or_else(|| anyhow::anyhow!("the process has ended by itself\n{}", self.site.log()))?;
        quiet(id).await?;
        let difference = |after: Option<f64>, before: Option<f64>| Some(after? - before?);
        let broker_us = difference(self.families.and_then(broker_us), self.broker_us);
        let database_us = difference(self.families.and_then(database_us), self.database_us);
        let bench_us = process::cpu_us(std::process::id())? - self.bench_us;
        let (cpu_us, threads_us) = (process::cpu_us(id)?, process::cpu_us_by_thread(id)?);
        let peak_mib = process::peak_mib(id)?;
        // An embedded store is looked at while it is open, another one when all sessions have ended.
        let embedded = if self.families.is_none() { Some(self.site.writes(Some(id)).await?) } else { None };
        process.start_kill()?;
        process.wait().await?;
        let writes = match embedded {
            Some(writes) => writes,
            None => self.site.writes(None).await?.since(self.writes),
        };
        let Writes { transactions, bytes } = writes;
        Ok(Taken { cpu_us, threads_us, broker_us, database_us, bench_us, transactions, bytes, peak_mib })
    }
}

impl Taken {
    /// All of it divided by a number of jobs, but for memory.
    pub fn per(&self, jobs: u64) -> Self {
        let each = |total: f64| total / jobs.max(1) as f64;
        Self {
            cpu_us: each(self.cpu_us),
            threads_us: self.threads_us.iter().map(|(name, us)| (name.clone(), each(*us))).collect(),
            broker_us: self.broker_us.map(each),
            database_us: self.database_us.map(each),
            bench_us: each(self.bench_us),
            transactions: each(self.transactions),
            bytes: each(self.bytes),
            peak_mib: self.peak_mib,
        }
    }
}

fn broker_us(families: &Families) -> Option<f64> {
    families.broker.as_ref().ok().copied().map(Family::cpu_us)
}

fn database_us(families: &Families) -> Option<f64> {
    families.database.as_ref().ok().copied().map(Family::cpu_us)
}

/// Waits until a process does nothing any more.
async fn quiet(process: u32) -> anyhow::Result<()> {
    for _ in 0..QUIET_WITHIN {
        let before = process::cpu_us(process)?;
        tokio::time::sleep(QUIET).await;
        if process::cpu_us(process)? - before <= TICK_US {
            return Ok(());
        }
    }
    Ok(())
}
