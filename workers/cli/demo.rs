//! `paceline demo`: the whole system at work in under a minute.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use indicatif::{ProgressBar, ProgressStyle};

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;
use crate::demo::{self, Progress, Summary};

/// Without a terminal a line is printed this often.
const LINE_EVERY: Duration = Duration::from_secs(3);

/// See the whole system at work in under a minute, with nothing else installed
///
/// Starts everything on one temporary SQLite file, beside a simulated provider that allows each of
/// three keys 60 calls in any 6 seconds and answers 429 to every call over it. A batch of jobs is
/// enqueued: most succeed, some fail for a while and are retried, some die. Completions go to a
/// receiver that verifies their signatures. Then the provider is repaired and the dead letters are
/// replayed. Nothing is left behind and no configuration is read.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// How many jobs
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(60..=1000))]
    jobs: u64,
}

/// Runs it and prints the summary.
pub async fn run(args: Args, _globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    if !out.is_json() {
        out.line(format!(
            "{} jobs for a provider that allows each of 3 keys 60 calls in any 6 seconds: 30 calls a second.\n\
             Some calls fail for a while, some for good. Completions go out as signed webhooks.\n",
            args.jobs
        ))?;
    }
    let mut shown = Shown::new(out);
    let result = demo::run(args.jobs, |progress| shown.show(progress)).await;
    shown.bar.finish_and_clear();
    let summary = result.map_err(|error| Failure::new(Exit::Failed, format!("the demo failed: {error:#}")))?;
    let good = summary.is_good();
    if out.is_json() {
        out.json(&summary)?;
    } else {
        print(&summary, out)?;
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

struct Shown {
    bar: ProgressBar,
    lines: bool,
    last: Option<Instant>,
}

impl Shown {
    fn new(out: &Out) -> Self {
        let bar = if out.shows_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} jobs  {msg}") {
            bar.set_style(style);
        }
        Self { bar, lines: !out.is_json() && !out.shows_progress(), last: None }
    }

    fn show(&mut self, progress: &Progress) {
        let Progress { phase, done, jobs, calls, too_many, webhooks } = progress;
        let text = format!("{phase}: {calls} calls, {too_many} × 429, {webhooks} webhooks");
        self.bar.set_length(*jobs);
        self.bar.set_position(*done);
        self.bar.set_message(text.clone());
        if self.lines && self.last.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            self.last = Some(Instant::now());
            println!("{done:>5}/{jobs} jobs  {text}");
        }
    }
}

fn print(summary: &Summary, out: &Out) -> Result<(), Failure> {
    let row = |name: &str, figure: String, remark: String| out.line(format!("  {name:<14}{figure:>8}   {remark}"));
    let utilisation = summary.utilisation.map_or("-".to_owned(), |u| format!("{:.1} %", u * 100.0));
    out.line("")?;
    row(
        "jobs",
        summary.jobs.to_string(),
        format!("{} succeeded, {} dead in the end", summary.succeeded, summary.dead),
    )?;
    row("calls", summary.calls.to_string(), format!("{} of them retries of calls that failed", summary.retries))?;
    row(
        "utilisation",
        utilisation,
        format!("of the {:.0} calls a second that the provider allows", summary.allowed_per_second),
    )?;
    row("429 answers", summary.too_many_requests.to_string(), "calls over the limit".to_owned())?;
    row(
        "dead letters",
        summary.dead_letters.to_string(),
        format!("{} replayed, {} of them succeeded", summary.replayed, summary.recovered),
    )?;
    row(
        "webhooks",
        summary.webhooks_verified.to_string(),
        format!("verified of {}, {} with a bad signature", summary.webhooks_expected, summary.webhooks_bad_signature),
    )?;
    row("time", format!("{:.1} s", summary.seconds), String::new())?;
    out.line("\nNext: `paceline serve --help`, and README.md for a configuration of your own.")
}
