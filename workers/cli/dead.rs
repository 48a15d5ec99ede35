//! `paceline dead`: dead letters.

use clap::{Args, Subcommand};
use paceline::clock::rfc3339;
use serde_json::{Map, Value, json};

use super::Globals;
use super::arguments::{ago, json_argument, when};
use super::backend::{Backend, Missing, Named, job_id, query};
use super::failure::{Exit, Failure};
use super::jobs::{One, Pages, attempts, each, print_page, set};
use super::output::{Out, cell, short, time};
use super::replays::{self, ByFilter};

/// Look at dead letters, run them again, purge them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List dead letters, newest first
    #[command(
        after_long_help = "Examples:\n  paceline dead list --reason permanent --provider geocoder\n  paceline --json dead list --all"
    )]
    List(List),
    /// Show a dead letter: why, every attempt, the whole job
    #[command(after_long_help = "Example:\n  paceline dead show order-17")]
    Show(One),
    /// Run dead letters again
    #[command(after_long_help = REPLAY_EXAMPLES)]
    Replay(Box<Replay>),
    /// List replays by filter, newest first
    #[command(after_long_help = "Example:\n  paceline dead replays --limit 5")]
    Replays(Pages),
    /// Stop a replay by filter; what it has queued again stays queued
    #[command(after_long_help = "Example:\n  paceline dead stop rp_0193c1f0")]
    Stop(One),
    /// Remove dead letters for good
    #[command(
        after_long_help = "Examples:\n  paceline dead purge --replayed true\n  paceline dead purge --reason malformed\n  paceline dead purge --all"
    )]
    Purge(Purge),
}

const REPLAY_EXAMPLES: &str = r#"Examples:
  As it was:
    paceline dead replay 0193c1f0-…
  With another request:
    paceline dead replay 0193c1f0-… \
      --edit-request '{"method":"POST","path":"/v2/search","body":{"q":"Berlin"}}'
  How many were given up after too many attempts, then all of them:
    paceline dead replay --where reason=attempts_exhausted --dry-run
    paceline dead replay --where reason=attempts_exhausted
  Those of one provider that died within the last hour:
    paceline dead replay --where provider=geocoder --where dead_after=1h

With --where or --all the server goes through them, below live traffic, whether or not this command waits;
a server that is restarted goes on. `paceline dead replays` shows how far it is, `paceline dead stop` stops it."#;

/// Which dead letters.
#[derive(Debug, Args)]
pub struct Filter {
    /// attempts_exhausted, permanent, outcome_unknown, malformed, unroutable, rejected, conflict, impossible or gave_up
    #[arg(long)]
    reason: Option<String>,
    /// Of that provider
    #[arg(long)]
    provider: Option<String>,
    /// Of that lane
    #[arg(long)]
    lane: Option<String>,
    /// Of that tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only those that were replayed (true) or were not (false)
    #[arg(long, value_name = "BOOL")]
    replayed: Option<bool>,
    /// Dead since then, or later: a time, or how long ago that was, such as 1h
    #[arg(long, value_name = "WHEN")]
    dead_after: Option<String>,
    /// Dead before then
    #[arg(long, value_name = "WHEN")]
    dead_before: Option<String>,
}

impl Filter {
    fn parameters(&self) -> Result<Vec<(&'static str, Option<String>)>, Failure> {
        let at =
            |name: &str, text: Option<&String>| text.map(|text| ago(name, text).map(|at| rfc3339(at.0))).transpose();
        Ok(vec![
            ("reason", self.reason.clone()),
            ("provider", self.provider.clone()),
            ("lane", self.lane.clone()),
            ("tenant", self.tenant.clone()),
            ("replayed", self.replayed.map(|replayed| replayed.to_string())),
            ("dead_after", at("--dead-after", self.dead_after.as_ref())?),
            ("dead_before", at("--dead-before", self.dead_before.as_ref())?),
        ])
    }
}

/// Which dead letters, and how many.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    pages: Pages,
}

/// Which dead letters, and how they are run.
#[derive(Debug, Args)]
pub struct Replay {
    /// Their ids
    #[arg(required_unless_present_any = ["filters", "all"], value_parser = job_id)]
    ids: Vec<String>,
    /// Their tenant, where the same ids exist for several
    #[arg(long, conflicts_with_all = ["filters", "all"])]
    tenant: Option<String>,
    #[command(flatten)]
    by_filter: ByFilter,
    /// Another request in place of the job's
    #[arg(long, value_name = "JSON|@FILE", conflicts_with_all = ["filters", "all"])]
    edit_request: Option<String>,
    /// The lane to wait in [default: replay]
    #[arg(long, conflicts_with_all = ["filters", "all"])]
    lane: Option<String>,
    /// Not sent before: a time, or a duration from now such as 5m
    #[arg(long, value_name = "WHEN", conflicts_with_all = ["filters", "all"])]
    not_before: Option<String>,
    /// The Idempotency-Key: `keep` the job's, or a `new` one [default: kept where the last call may
    /// have been executed and the request is not edited]
    #[arg(long, value_name = "WHICH", value_parser = ["keep", "new"])]
    idempotency_key: Option<String>,
}

/// Which dead letters to remove.
#[derive(Debug, Args)]
pub struct Purge {
    #[command(flatten)]
    filter: Filter,
    /// Every dead letter
    #[arg(long)]
    all: bool,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = match command {
        Command::List(args) => list(&args, &backend, out).await,
        Command::Show(args) => show(&args, &backend, out).await,
        Command::Replay(args) => replay(*args, &backend, out).await,
        Command::Replays(pages) => replays::list(&pages, &backend, out).await,
        Command::Stop(args) => replays::stop(&args, &backend, out).await,
        Command::Purge(args) => purge(&args, &backend, out).await,
    };
    backend.close().await;
    result
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut parameters = args.filter.parameters()?;
    parameters.extend(args.pages.parameters());
    loop {
        let page = backend.dead_letters(&query(&parameters)).await?;
        print_page(&page, args.pages.is_all(), out, |items| {
            let head = ["ID", "REASON", "PROVIDER", "LANE", "TRIES", "DEAD SINCE", "REPLAYED", "ERROR"];
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(head, &rows, "no dead letters")
        })?;
        match page["next_cursor"].as_str().filter(|_| args.pages.is_all()) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

fn row(dead: &Value) -> [String; 8] {
    [
        cell(&dead["id"]),
        cell(&dead["reason"]),
        cell(&dead["provider"]),
        cell(&dead["lane"]),
        dead["attempts"].as_array().map_or(0, Vec::len).to_string(),
        time(&dead["dead_at"]),
        time(&dead["replayed_at"]),
        short(&dead["error"], 60),
    ]
}

async fn show(args: &One, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let dead = backend.dead_letter(args.named()).await?;
    if out.is_json() {
        out.json(&dead)?;
        return Ok(Exit::Done);
    }
    for (label, member) in [
        ("id", "id"),
        ("reason", "reason"),
        ("error", "error"),
        ("provider", "provider"),
        ("lane", "lane"),
        ("tenant", "tenant"),
        ("dead since", "dead_at"),
        ("replayed", "replayed_at"),
        ("raw", "raw"),
        ("headers", "headers"),
    ] {
        if !dead[member].is_null() {
            out.line(format!("{label:<13}{}", cell(&dead[member])))?;
        }
    }
    out.line("")?;
    attempts(&dead["attempts"], out)?;
    if !dead["envelope"].is_null() {
        let envelope = serde_json::to_string_pretty(&dead["envelope"]).unwrap_or_default();
        out.line(format!("\n{envelope}"))?;
    }
    Ok(Exit::Done)
}

async fn replay(args: Replay, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    if args.by_filter.is_given() {
        return replays::replay(&args.by_filter, args.idempotency_key.as_deref(), backend, out).await;
    }
    if let Some(option) = args.by_filter.stray() {
        return Err(Failure::usage(format!("{option} belongs to --where and --all")));
    }
    let mut body = Map::new();
    if let Some(text) = &args.edit_request {
        let request = json_argument("--edit-request", text)?;
        let request: Value = serde_json::from_str(request.get()).map_err(|e| Failure::usage(e.to_string()))?;
        body.insert("request".to_owned(), request);
    }
    if let Some(text) = &args.not_before {
        body.insert("not_before".to_owned(), json!(when("--not-before", text)?));
    }
    body.extend(args.lane.map(|lane| ("lane".to_owned(), Value::from(lane))));
    body.extend(args.idempotency_key.map(|which| ("idempotency_key".to_owned(), Value::from(which))));
    let body = Value::Object(body).to_string().into_bytes();
    each(&args.ids, out, async |id| {
        let accepted = backend.replay(Named { id, tenant: args.tenant.as_deref() }, &body).await?;
        if out.is_json() {
            out.json(&accepted)
        } else {
            out.line(format!("{id}  {}, run {}", cell(&accepted["state"]), cell(&accepted["run"])))
        }
    })
    .await
}

async fn purge(args: &Purge, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut parameters = args.filter.parameters()?;
    parameters.push(("all", args.all.then(|| "true".to_owned())));
    let query = query(&parameters);
    if query.is_empty() {
        return Err(Failure::usage(
            "say which dead letters: --reason, --provider, --lane, --tenant, --replayed, --dead-after, --dead-before; or --all",
        ));
    }
    let mut purged = 0;
    loop {
        let answer = backend.purge(&query).await?;
        purged += answer["purged"].as_u64().unwrap_or_default();
        if answer["more"] != true {
            break;
        }
    }
    if out.is_json() {
        out.json(&json!({ "purged": purged }))?;
    } else {
        out.line(format!("{purged} purged"))?;
    }
    Ok(Exit::Done)
}
