//! `paceline bench`: throughput, CPU and memory of both modes, beside the floor; `bench pacing`: how
//! much of an allowed rate is used.

mod pacing;

use clap::{Args as ClapArgs, Subcommand};

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;
use crate::bench::throughput::{self, Report};

/// Measure throughput, CPU per job and memory of this machine, beside the floor
///
/// Drives jobs through `paceline serve` against an unlimited provider on this machine: each is one
/// call, one stored result and one signed webhook. The floor is what bare client loops need for the
/// same two HTTP calls, in the same run. RabbitMQ and PostgreSQL are measured where AMQP_URL and
/// DATABASE_URL name them; a database and a queue are made for the run and removed.
#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,

    /// How many jobs
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(100..=10_000_000))]
    jobs: u64,

    /// Only make bare calls to these two URLs and print the CPU time they took
    #[arg(long, num_args = 2, value_names = ["PROVIDER", "HOOK"], hide = true)]
    floor: Option<Vec<String>>,
}

/// What else can be measured.
#[derive(Debug, Subcommand)]
enum What {
    Pacing(pacing::Args),
}

/// Measures and prints.
pub async fn run(args: Args, _globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    if let Some(What::Pacing(args)) = args.what {
        return pacing::run(args, out).await;
    }
    if let Some([provider, hook]) = args.floor.as_deref() {
        let floor = throughput::make_floor_calls(args.jobs, provider, hook).await.map_err(failed)?;
        out.json(&floor)?;
        return Ok(Exit::Done);
    }
    let mut trouble = None;
    let report = throughput::run(args.jobs, |what| {
        if let Err(error) = out.note(format!("measuring: {what}")) {
            trouble = Some(error);
        }
    })
    .await
    .map_err(failed)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    if out.is_json() {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(Exit::Done)
}

fn print(report: &Report, out: &Out) -> Result<(), Failure> {
    let Report { jobs, cores, cpu, concurrency, floor_us_per_job, .. } = report;
    out.line(format!("{jobs} jobs, {concurrency} calls at once, {cores} cores, {cpu}"))?;
    out.line(format!("floor: {floor_us_per_job:.1} µs of CPU a job (two bare calls)\n"))?;
    let rows: Vec<[String; 5]> = report
        .modes
        .iter()
        .map(|m| {
            [
                m.mode.to_owned(),
                format!("{:.0}", m.jobs_per_second),
                format!("{:.1}", m.cpu_us_per_job),
                format!("{:.1}", m.times_floor),
                format!("{:.0}", m.peak_mib),
            ]
        })
        .collect();
    out.table(["mode", "jobs/s", "CPU µs/job", "× floor", "peak MiB"], &rows, "nothing was measured")?;
    report.left_out.iter().try_for_each(|mode| out.line(format!("not measured: {mode}")))
}

fn failed(error: anyhow::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{error:#}"))
}
