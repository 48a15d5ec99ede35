//! What `paceline bench` measures by default, all of it in one report.

use anyhow::Context as _;
use serde::Serialize;

use super::backlog::{self, Backlog};
use super::floor;
use super::latency::{self, Latency};
use super::load::{CONCURRENCY, Load, Mode};
use super::machine::Machine;
use super::roles::{self, Roles};
use super::services::{Services, Versions};
use super::throughput::{self, Run};

/// The floor is measured with at least, and at most, so many jobs.
const FLOOR_JOBS: (u64, u64) = (5_000, 50_000);

/// One measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// Jobs a second, CPU time and memory, beside the floor
    Throughput,
    /// CPU time of each role on its own
    Roles,
    /// From a job to its call and from its outcome to its webhook, while nothing else is going on
    Latency,
    /// Whether many waiting jobs slow anything down
    Backlog,
}

/// What to measure, and how much of it.
#[derive(Debug, Clone)]
pub struct Choice {
    pub measures: Vec<Measure>,
    pub modes: Vec<Mode>,
    pub jobs: u64,
    pub runs: u32,
    pub samples: u64,
    pub backlogs: Vec<u64>,
    pub drains: bool,
    /// Whether completions go to RabbitMQ, too.
    pub events: bool,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub machine: Machine,
    pub services: Option<Versions>,
    pub jobs: u64,
    pub concurrency: usize,
    pub events: bool,
    pub modes: Vec<Measured>,
    /// What is not known or could not run, and why.
    pub left_out: Vec<String>,
}

/// One mode.
#[derive(Debug, Serialize)]
pub struct Measured {
    pub mode: Mode,
    pub runs: Vec<Run>,
    pub roles: Option<Roles>,
    pub latency: Option<Latency>,
    pub backlogs: Vec<Backlog>,
}

impl Choice {
    fn wants(&self, measure: Measure) -> bool {
        self.measures.contains(&measure)
    }
}

/// Measures; `say` is told what goes on.
pub async fn run(choice: &Choice, mut say: impl FnMut(String)) -> anyhow::Result<Report> {
    let machine = Machine::now()?;
    let load = Load::start(Services::from_env(), choice.events).await?;
    let services = match &load.services {
        Some(services) => Some(services.versions().await?),
        None => None,
    };
    let mut left_out: Vec<String> = load.unknown().collect();
    let mut modes: Vec<Measured> = Vec::new();
    for mode in &choice.modes {
        if *mode == Mode::Scaled && load.services.is_none() {
            left_out.push(format!("{}: AMQP_URL and DATABASE_URL are not set (make bench sets them)", mode.name()));
        } else {
            modes.push(Measured { mode: *mode, runs: Vec::new(), roles: None, latency: None, backlogs: Vec::new() });
        }
    }
    if choice.wants(Measure::Throughput) {
        throughputs(choice, &load, &mut modes, &mut say).await?;
    }
    for Measured { mode, roles, latency, backlogs, .. } in &mut modes {
        let (name, jobs) = (mode.name(), choice.jobs);
        if choice.wants(Measure::Roles) {
            say(format!("{name}: each role on its own"));
            *roles = Some(roles::measure(&load, *mode, jobs).await.context(name)?);
        }
        if choice.wants(Measure::Latency) {
            say(format!("{name}: {} jobs, one at a time", choice.samples));
            *latency = Some(latency::measure(&load, *mode, choice.samples).await.context(name)?);
        }
        for waiting in choice.backlogs.iter().filter(|_| choice.wants(Measure::Backlog)) {
            say(format!("{name}: {waiting} jobs that wait"));
            backlogs.push(backlog::measure(&load, *mode, jobs, *waiting, choice.drains).await.context(name)?);
        }
    }
    let (jobs, events) = (choice.jobs, choice.events);
    Ok(Report { machine: machine.done(), services, jobs, concurrency: CONCURRENCY, events, modes, left_out })
}

/// Runs by turns, with the floor between any two: whatever the machine does meanwhile it does to all of them.
async fn throughputs(
    choice: &Choice,
    load: &Load,
    modes: &mut [Measured],
    say: &mut impl FnMut(String),
) -> anyhow::Result<()> {
    let floor_jobs = choice.jobs.clamp(FLOOR_JOBS.0, FLOOR_JOBS.1);
    let mut before = floor::measure(load, floor_jobs).await?;
    for n in 1..=choice.runs {
        for Measured { mode, runs, .. } in &mut *modes {
            say(format!("{}: run {n} of {}", mode.name(), choice.runs));
            let run = throughput::measure(load, *mode, choice.jobs).await.context(mode.name())?;
            let after = floor::measure(load, floor_jobs).await?;
            runs.push(run.beside([before, after]));
            before = after;
        }
    }
    Ok(())
}
