//! `paceline jobs`: look at, wait for, cancel.

use std::time::Duration;

use clap::{Args, Subcommand};
use paceline::duration::HumanDuration;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Globals;
use super::backend::{Backend, Missing, Named, job_id, query};
use super::failure::{Exit, Failure};
use super::output::{Out, cell, short, time};

/// Between two looks at a job that is waited for: doubled from the first to the last.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// A server that restarts meanwhile is given that long to come back.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Look at jobs, wait for them, cancel them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List jobs, newest first
    #[command(
        after_long_help = "Examples:\n  paceline jobs list --state dead --provider geocoder\n  paceline --json jobs list --all | jq -r .id"
    )]
    List(List),
    /// Show a job with all its attempts
    #[command(
        after_long_help = "Examples:\n  paceline jobs show order-17\n  paceline --json jobs show order-17 --tenant acme"
    )]
    Show(One),
    /// Write a provider's response body to standard output
    #[command(after_long_help = "Example:\n  paceline jobs result order-17 > answer.json")]
    Result(One),
    /// Cancel jobs that are not being sent
    #[command(after_long_help = "Example:\n  paceline jobs cancel order-17 order-18")]
    Cancel(Many),
    /// Wait until jobs have ended
    #[command(
        after_long_help = "Ends with 0 where every job succeeded, else with 6.\n\nExample:\n  paceline jobs wait --timeout 5m 0193c1f0-…"
    )]
    Wait(Wait),
}

/// Which jobs, and how many.
#[derive(Debug, Args)]
pub struct List {
    /// queued, waiting, running, succeeded, dead, expired or cancelled
    #[arg(long)]
    state: Option<String>,
    /// Of that provider
    #[arg(long)]
    provider: Option<String>,
    /// Of that lane
    #[arg(long)]
    lane: Option<String>,
    /// Of that tenant
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    pages: Pages,
}

/// How much of a list.
#[derive(Debug, Args)]
pub struct Pages {
    /// Items at most, 1 to 500
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Go on where a list ended (its next_cursor)
    #[arg(long)]
    cursor: Option<String>,
    /// Every page; with --json as JSON Lines
    #[arg(long, conflicts_with_all = ["limit", "cursor"])]
    all: bool,
}

impl Pages {
    /// Whether every page is wanted.
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// The parameters of the first page.
    pub fn parameters(&self) -> [(&'static str, Option<String>); 2] {
        let limit = if self.all { paceline::api::LIMIT_MAX } else { self.limit };
        [("limit", Some(limit.to_string())), ("cursor", self.cursor.clone())]
    }
}

/// One job.
#[derive(Debug, Args)]
pub struct One {
    /// Its id
    #[arg(value_parser = job_id)]
    id: String,
    /// Its tenant, where the same id exists for several
    #[arg(long)]
    tenant: Option<String>,
}

impl One {
    /// The id and the tenant.
    pub fn named(&self) -> Named<'_> {
        Named { id: &self.id, tenant: self.tenant.as_deref() }
    }
}

/// Some jobs.
#[derive(Debug, Args)]
pub struct Many {
    /// Their ids
    #[arg(required = true, value_parser = job_id)]
    ids: Vec<String>,
    /// Their tenant, where the same ids exist for several
    #[arg(long)]
    tenant: Option<String>,
}

impl Many {
    /// One of them, and the tenant.
    pub fn named<'a>(&'a self, id: &'a str) -> Named<'a> {
        Named { id, tenant: self.tenant.as_deref() }
    }
}

/// Which jobs, and how long.
#[derive(Debug, Args)]
pub struct Wait {
    #[command(flatten)]
    jobs: Many,
    /// Give up after that time, such as 30s or 5m [default: never]
    #[arg(long, value_name = "DURATION")]
    timeout: Option<HumanDuration>,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = match command {
        Command::List(args) => list(&args, &backend, out).await,
        Command::Show(args) => show(&args, &backend, out).await,
        Command::Result(args) => {
            let written = backend.result(args.named()).await.and_then(|body| out.bytes(&body));
            written.map(|()| Exit::Done)
        }
        Command::Cancel(args) => cancel(&args, &backend, out).await,
        Command::Wait(args) => wait(&args, &backend, out).await,
    };
    backend.close().await;
    result
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let [limit, cursor] = args.pages.parameters();
    let mut parameters = vec![
        ("state", args.state.clone()),
        ("provider", args.provider.clone()),
        ("lane", args.lane.clone()),
        ("tenant", args.tenant.clone()),
        limit,
        cursor,
    ];
    loop {
        let page = backend.jobs(&query(&parameters)).await?;
        print_page(&page, args.pages.all, out, |items| {
            let head = ["ID", "STATE", "PROVIDER", "LANE", "TRIES", "CREATED", "NEXT OR END", "WHY"];
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(head, &rows, "no jobs")
        })?;
        match page["next_cursor"].as_str().filter(|_| args.pages.all) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

/// Replaces a parameter.
pub fn set(parameters: &mut [(&str, Option<String>)], name: &str, value: &str) {
    if let Some(parameter) = parameters.iter_mut().find(|(known, _)| *known == name) {
        parameter.1 = Some(value.to_owned());
    }
}

/// Prints a page as a table, a JSON document, or (all pages) JSON Lines.
pub fn print_page(
    page: &Value,
    all: bool,
    out: &Out,
    table: impl FnOnce(&[Value]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    match (out.is_json(), all) {
        (true, true) => return items.iter().try_for_each(|item| out.json(item)),
        (true, false) => return out.json(page),
        (false, _) => table(items)?,
    }
    match page["next_cursor"].as_str() {
        Some(next) if !all => out.note(format!("there are more: --cursor {next}, or --all")),
        _ => Ok(()),
    }
}

fn row(job: &Value) -> [String; 8] {
    let moment = if job["finished_at"].is_null() { &job["next_attempt_at"] } else { &job["finished_at"] };
    let why = if job["error"].is_null() { &job["waiting_for"]["reason"] } else { &job["error"] };
    [
        cell(&job["id"]),
        cell(&job["state"]),
        cell(&job["provider"]),
        cell(&job["lane"]),
        job["attempts"].as_array().map_or(0, Vec::len).to_string(),
        time(&job["created_at"]),
        time(moment),
        short(why, 60),
    ]
}

async fn show(args: &One, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let job = backend.job(args.named()).await?;
    if out.is_json() {
        out.json(&job)?;
        return Ok(Exit::Done);
    }
    for (label, member) in [
        ("id", "id"),
        ("state", "state"),
        ("provider", "provider"),
        ("lane", "lane"),
        ("tenant", "tenant"),
        ("run", "run"),
        ("created", "created_at"),
        ("next attempt", "next_attempt_at"),
        ("finished", "finished_at"),
        ("reason", "reason"),
        ("error", "error"),
        ("metadata", "metadata"),
    ] {
        if !job[member].is_null() {
            out.line(format!("{label:<13}{}", cell(&job[member])))?;
        }
    }
    if let Some(reason) = job["waiting_for"]["reason"].as_str() {
        out.line(format!("{:<13}{reason}", "waiting for"))?;
    }
    out.line("")?;
    attempts(&job["attempts"], out)?;
    Ok(Exit::Done)
}

/// The attempts of a job or a dead letter.
pub fn attempts(of: &Value, out: &Out) -> Result<(), Failure> {
    let row = |attempt: &Value| {
        [
            format!("{}.{}", cell(&attempt["run"]), cell(&attempt["n"])),
            time(&attempt["at"]),
            cell(&attempt["key"]),
            cell(&attempt["status"]),
            cell(&attempt["outcome"]),
            format!("{} ms", cell(&attempt["latency_ms"])),
            short(&attempt["error"], 80),
        ]
    };
    let rows: Vec<_> = of.as_array().into_iter().flatten().map(row).collect();
    out.table(["RUN.TRY", "AT", "KEY", "STATUS", "OUTCOME", "TOOK", "ERROR"], &rows, "no attempts yet")
}

async fn cancel(args: &Many, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    each(&args.ids, out, async |id| {
        let job = backend.cancel(args.named(id)).await?;
        if out.is_json() { out.json(&job) } else { out.line(format!("{id}  {}", cell(&job["state"]))) }
    })
    .await
}

/// Does something to each of some things. One that fails does not keep the rest from it; the first
/// failure says how the command ends.
pub async fn each(ids: &[String], out: &Out, act: impl AsyncFn(&str) -> Result<(), Failure>) -> Result<Exit, Failure> {
    let mut first: Option<Failure> = None;
    for id in ids {
        match act(id).await {
            Ok(()) => {}
            Err(failure) if ids.len() == 1 || matches!(failure.exit, Exit::BrokenPipe | Exit::Unreachable) => {
                return Err(failure);
            }
            Err(failure) => {
                let named = Failure { message: format!("{id}: {}", failure.message), ..failure };
                named.report(out.is_json());
                first.get_or_insert(named);
            }
        }
    }
    Ok(first.map_or(Exit::Done, |failure| failure.exit))
}

async fn wait(args: &Wait, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout.0);
    let mut exit = Exit::Done;
    for id in &args.jobs.ids {
        let job = wait_for(backend, args.jobs.named(id), deadline).await?;
        let ended = is_ended(&job);
        if out.is_json() {
            out.json(&if ended { job.clone() } else { json!({ "id": id, "state": job["state"], "timed_out": true }) })?;
        } else {
            let late = if ended { "" } else { ", and the time is up" };
            out.line(format!("{id}  {}{late}", cell(&job["state"])))?;
        }
        if job["state"] != "succeeded" {
            exit = Exit::Wait;
        }
    }
    Ok(exit)
}

/// The job when it has ended, or as it is when the time is up.
async fn wait_for(backend: &Backend, named: Named<'_>, deadline: Option<Instant>) -> Result<Value, Failure> {
    let mut pause = LOOK.0;
    let mut away_since: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let is_late = deadline.is_some_and(|end| now >= end);
        match backend.job(named).await {
            Ok(job) if is_ended(&job) || is_late => return Ok(job),
            Ok(_) => away_since = None,
            Err(failure) if failure.exit == Exit::Unreachable && !is_late => {
                if now.duration_since(*away_since.get_or_insert(now)) > BACK_WITHIN {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        let until = deadline.map_or(now + pause, |end| end.min(now + pause));
        tokio::time::sleep_until(until).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

fn is_ended(job: &Value) -> bool {
    job["state"].as_str().and_then(paceline::job::JobState::from_name).is_some_and(paceline::job::JobState::is_terminal)
}
