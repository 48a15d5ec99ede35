//! `paceline bench pacing`: each case beside its target.

use std::time::Duration;

use clap::Args as ClapArgs;

use super::failed;
use crate::bench::pacing::{self, Choice, Judged, Report, Row};
use crate::cli::{Exit, Failure, Out};

/// Measure how much of an allowed rate is used, and that the provider refuses nothing
///
/// Runs `paceline serve` against strict providers on this machine that delay calls before they judge
/// them, and compares what they accepted with what they allow: W ÷ mean(a[i+N] − a[i]) over accepted
/// arrivals a, for N calls a window W. Cases with several processes run where AMQP_URL and
/// DATABASE_URL name RabbitMQ and PostgreSQL. The exit code is 1 where a target was missed.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Examples:
  paceline bench pacing
  paceline bench pacing --only smooth --only token
  paceline bench pacing --long --json")]
pub struct Args {
    /// Only cases whose names begin with this; can be repeated
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,

    /// Windows to measure of every key, at least
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    windows: u32,

    /// Seconds to measure, at least
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Also windows of a minute, which takes more than ten
    #[arg(long)]
    long: bool,
}

/// Measures and prints.
pub async fn run(args: Args, out: &Out) -> Result<Exit, Failure> {
    let Args { only, windows, seconds, long } = args;
    let mut trouble = None;
    let choice = Choice { only, windows, least: Duration::from_secs(seconds), long };
    let said = |what| {
        if let Err(error) = out.note(what) {
            trouble = Some(error);
        }
    };
    let report = pacing::run(&choice, said).await.map_err(failed)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    if out.is_json() {
        out.json(&report)?;
    } else {
        print(&report, out)?;
    }
    Ok(if report.is_good() { Exit::Done } else { Exit::Failed })
}

fn print(report: &Report, out: &Out) -> Result<(), Failure> {
    let machine = &report.machine;
    let [before, after] = machine.load;
    out.line(format!(
        "paceline {}, {}, {} cores, {}, load {before:.1} to {after:.1}\n",
        machine.version, machine.at, machine.cores, machine.cpu
    ))?;
    let rows: Vec<[String; 9]> = report.rows.iter().map(cells).collect();
    let head = ["case", "windows", "calls", "answer", "utilisation", "least key", "reached", "target", "429s"];
    out.table(head, &rows, "nothing was measured")?;
    out.line("")?;
    for row in &report.rows {
        if let Some(note) = &row.note {
            out.line(format!("{}: {note}", row.name))?;
        }
        if !row.is_good() {
            out.line(format!("missed: {}", row.name))?;
        }
    }
    report.left_out.iter().try_for_each(|case| out.line(format!("not measured: {case}")))
}

fn cells(row: &Row) -> [String; 9] {
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let (reached, target) = match row.judged {
        Judged::SecondsLostPerKill => (format!("{:.2} s lost a kill", row.reached), format!("≤ {:.2} s", row.target)),
        Judged::Absolute => (percent(row.reached), format!("≥ {:.1} %", row.target * 100.0)),
        Judged::ShareOfFormula => {
            let formula = percent(row.formula);
            (format!("{} of {formula}", percent(row.reached)), format!("≥ {:.1} % of it", row.target * 100.0))
        }
        Judged::ShareOfOneProcess => {
            (format!("{} of one process", percent(row.reached)), format!("≥ {:.1} %", row.target * 100.0))
        }
    };
    [
        row.name.to_owned(),
        format!("{:.0}", row.windows),
        row.calls.to_string(),
        format!("{:.0} ms", row.round_trip_ms),
        percent(row.utilisation),
        percent(row.utilisation_least),
        reached,
        target,
        row.too_many_requests.to_string(),
    ]
}
