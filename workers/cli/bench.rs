//! `paceline bench`: throughput, CPU time, memory and latency of both modes, beside the floor; `bench pacing`: how
//! much of an allowed rate is used.

mod pacing;
mod tables;

use clap::{Args as ClapArgs, Subcommand};

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;
use crate::bench::floor;
use crate::bench::load::Mode;
use crate::bench::whole::{self, Choice, Measure};

/// Measure throughput, CPU time, memory and latency on this machine, beside the floor
///
/// Drives jobs through `paceline serve` against an unlimited provider on this machine: each is one
/// call, one stored result and one signed webhook. The floor is what bare client loops need for the
/// same two HTTP calls, in the same run. RabbitMQ and PostgreSQL are measured where AMQP_URL and
/// DATABASE_URL name them; a database and a queue are made for the run and removed. What their
/// processes take is known where they run on this machine.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  paceline bench
  paceline bench --jobs 50000 --runs 5 --only throughput
  paceline bench --backlog 10000,1000000 --drain --mode embedded --json")]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    /// How many jobs a run
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    jobs: u64,

    /// Runs of each mode, by turns, with the floor between any two
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,

    /// Jobs whose latency is measured, one at a time
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    samples: u64,

    /// So many jobs wait behind those that are measured; several sizes show whether that costs anything
    #[arg(long, value_delimiter = ',', value_name = "JOBS", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    backlog: Vec<u64>,

    /// Measure until a backlog is empty
    #[arg(long, requires = "backlog")]
    drain: bool,

    /// Only these; all by default, backlogs where there are sizes
    #[arg(long, value_delimiter = ',', value_name = "MEASURES")]
    only: Vec<Measure>,

    /// Only this mode; can be repeated
    #[arg(long, value_name = "MODE")]
    mode: Vec<Mode>,

    /// Do not publish completions to RabbitMQ, as with queue.events = false
    #[arg(long)]
    without_events: bool,

    /// Only make bare calls to these two URLs and print the CPU time they took
    #[arg(long, num_args = 2, value_names = ["PROVIDER", "HOOK"], hide = true)]
    floor: Option<Vec<String>>,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum What {
    Pacing(pacing::Args),
}

impl Args {
    fn choice(self) -> Choice {
        let Self { jobs, runs, samples, backlog, drain, only, mode, without_events, .. } = self;
        let all = [Measure::Throughput, Measure::Roles, Measure::Latency, Measure::Backlog];
        Choice {
            measures: if only.is_empty() { all.to_vec() } else { only },
            modes: if mode.is_empty() { Mode::ALL.to_vec() } else { mode },
            jobs,
            runs,
            samples,
            backlogs: backlog,
            drains: drain,
            events: !without_events,
        }
    }
}

/// Measures and prints.
pub async fn run(args: Args, _globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    if let Some(What::Pacing(args)) = args.what {
        return pacing::run(args, out).await;
    }
    if let Some([provider, hook]) = args.floor.as_deref() {
        let floor = floor::make_calls(args.jobs, provider, hook).await.map_err(failed)?;
        out.json(&floor)?;
        return Ok(Exit::Done);
    }
    if args.backlog.is_empty() && args.only.contains(&Measure::Backlog) {
        return Err(Failure::usage("--only backlog needs sizes, such as --backlog 10000,1000000"));
    }
    let mut trouble = None;
    let said = |what| {
        if let Err(error) = out.note(format!("measuring: {what}")) {
            trouble = Some(error);
        }
    };
    let report = whole::run(&args.choice(), said).await.map_err(failed)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    if out.is_json() {
        out.json(&report)?;
    } else {
        tables::print(&report, out)?;
    }
    Ok(Exit::Done)
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{error:#}"))
}
