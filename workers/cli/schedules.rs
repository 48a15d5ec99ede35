//! `paceline schedules`: what recurs, and when next.

use clap::Subcommand;
use paceline::clock::{Clock as _, SystemClock, rfc3339};
use paceline::schedule::{Missed, Schedule};
use serde_json::{Value, json};

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;

/// Jobs that recur
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show every configured schedule with its next times; nothing is contacted
    #[command(after_long_help = "Example:\n  paceline schedules list --count 5")]
    List {
        /// So many next times of each
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        count: u32,
    },
}

/// Lists them.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let Command::List { count } = command;
    let config = globals.load()?;
    let now_ms = SystemClock::new().wall_ms();
    let rows: Vec<(&Schedule, Vec<String>)> =
        config.schedules.iter().map(|schedule| (schedule, next_times(schedule, now_ms, count))).collect();
    if out.is_json() {
        let items: Vec<Value> = rows.iter().map(|(schedule, next)| shown(schedule, next)).collect();
        out.json(&json!({ "items": items }))?;
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        out.line("no schedule is configured")?;
    }
    for (schedule, next) in rows {
        out.line(format!("{}  {}  missed: {}", schedule.name, schedule.cron, missed(schedule.missed)))?;
        next.iter().try_for_each(|time| out.line(format!("    {time}")))?;
    }
    Ok(Exit::Done)
}

fn next_times(schedule: &Schedule, now_ms: i64, count: u32) -> Vec<String> {
    let times = std::iter::successors(schedule.cron.next_after(now_ms), |time| schedule.cron.next_after(*time));
    times.take(usize::try_from(count).unwrap_or(1)).map(rfc3339).collect()
}

fn shown(schedule: &Schedule, next: &[String]) -> Value {
    json!({
        "name": schedule.name,
        "cron": schedule.cron.line(),
        "zone": schedule.cron.zone_name(),
        "missed": missed(schedule.missed),
        "next": next,
    })
}

fn missed(missed: Missed) -> String {
    match missed {
        Missed::Skip => "skip".to_owned(),
        Missed::RunOnce => "run_once".to_owned(),
        Missed::RunAll(most) => format!("run_all, {most} at most"),
    }
}
