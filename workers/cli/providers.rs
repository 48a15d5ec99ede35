//! `paceline providers`: how things stand, pause, resume.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Globals;
use super::backend::{Backend, Missing, name};
use super::failure::{Exit, Failure};
use super::output::{Out, cell, time};

/// Look at providers, pause them, let them go on
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List providers: state, queue, rate, keys
    #[command(after_long_help = "Example:\n  paceline providers list")]
    List,
    /// Show a provider with its lanes, budgets, keys and leases
    #[command(after_long_help = "Example:\n  paceline providers show geocoder")]
    Show(One),
    /// Send nothing to a provider until it is resumed; its jobs wait
    #[command(
        after_long_help = "Calls that are open end as usual. A pause outlives restarts.\n\nExample:\n  paceline providers pause geocoder"
    )]
    Pause(One),
    /// Let a provider, or one of its budgets, go on
    #[command(
        after_long_help = "Examples:\n  The provider, after `pause`:\n    paceline providers resume geocoder\n  A budget whose quota was used up:\n    paceline providers resume geocoder --budget org-1"
    )]
    Resume(Resume),
}

/// One provider.
#[derive(Debug, Args)]
pub struct One {
    /// Its name
    #[arg(value_parser = name)]
    name: String,
}

/// What goes on.
#[derive(Debug, Args)]
pub struct Resume {
    #[command(flatten)]
    of: One,
    /// Only this budget (its name, or the label of a key without one): it was paused or parked by
    /// what the provider said
    #[arg(long, value_name = "BUDGET", value_parser = name)]
    budget: Option<String>,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = match command {
        Command::List => list(&backend, out).await,
        Command::Show(one) => show(&one, &backend, out).await,
        Command::Pause(one) => said(backend.pause_provider(&one.name, true).await, out),
        Command::Resume(Resume { of, budget: None }) => said(backend.pause_provider(&of.name, false).await, out),
        Command::Resume(Resume { of, budget: Some(budget) }) => {
            said(backend.resume_budget(&of.name, &budget).await, out)
        }
    };
    backend.close().await;
    result
}

/// Tells what an order came to.
pub fn said(order: Result<Value, Failure>, out: &Out) -> Result<Exit, Failure> {
    let order = order?;
    if out.is_json() {
        out.json(&order)?;
    } else {
        let part = ["key", "budget"].into_iter().find(|part| !order[part].is_null());
        let part = part.map(|part| format!(" {part} {}", cell(&order[part]))).unwrap_or_default();
        out.line(format!("{}{part}  {}", cell(&order["provider"]), cell(&order["state"])))?;
    }
    Ok(Exit::Done)
}

async fn list(backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let page = backend.providers().await?;
    if out.is_json() {
        out.json(&page)?;
        return Ok(Exit::Done);
    }
    let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<_> = items.iter().map(row).collect();
    let head = ["NAME", "STATE", "QUEUED", "WAITING", "RUNNING", "ALLOWED/S", "ACHIEVED/S", "429S", "KEYS"];
    out.table(head, &rows, "no providers are configured")?;
    Ok(Exit::Done)
}

fn row(provider: &Value) -> [String; 9] {
    let sum = |state: &str| match provider["queue"].as_array() {
        Some(lanes) => lanes.iter().filter_map(|lane| lane[state].as_i64()).sum::<i64>().to_string(),
        None => "?".to_owned(),
    };
    [
        cell(&provider["name"]),
        cell(&provider["state"]),
        sum("queued"),
        sum("waiting"),
        sum("running"),
        rate(&provider["allowed_per_second"]),
        rate(&provider["achieved_per_second"]),
        cell(&provider["pacing_errors"]),
        keys(provider),
    ]
}

/// How many keys are in which state.
fn keys(provider: &Value) -> String {
    let states = provider["keys"].as_object().into_iter().flatten();
    let listed: Vec<String> = states.map(|(state, count)| format!("{count} {state}")).collect();
    let left_out = provider["keys_left_out"].as_u64().filter(|count| *count > 0);
    let more = left_out.map(|count| format!("{count} more"));
    listed.into_iter().chain(more).collect::<Vec<_>>().join(", ")
}

fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"))
}

async fn show(args: &One, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let provider = backend.provider(&args.name).await?;
    if out.is_json() {
        out.json(&provider)?;
        return Ok(Exit::Done);
    }
    let paused = match provider["paused_by"].as_str() {
        Some(by) => format!(" by {by} since {}", time(&provider["paused_at"])),
        None => String::new(),
    };
    out.line(format!("name       {}", cell(&provider["name"])))?;
    out.line(format!("state      {}{paused}", cell(&provider["state"])))?;
    let achieved = rate(&provider["achieved_per_second"]);
    out.line(format!("calls/s    {achieved} of {} allowed", rate(&provider["allowed_per_second"])))?;
    out.line(format!("open       {}", cell(&provider["open_calls"])))?;
    out.line(format!("breaker    {}", cell(&provider["breaker"])))?;
    out.line(format!("429s       {}\n", cell(&provider["pacing_errors"])))?;
    lanes(&provider, out)?;
    budgets(&provider, out)?;
    leases(&provider, out)?;
    Ok(Exit::Done)
}

fn lanes(provider: &Value, out: &Out) -> Result<(), Failure> {
    let rows: Vec<_> = of(provider, "queue")
        .map(|lane| ["lane", "queued", "waiting", "running", "permits_waiting"].map(|column| cell(&lane[column])))
        .collect();
    out.table(["LANE", "QUEUED", "WAITING", "RUNNING", "IN LINE"], &rows, "the jobs were not counted in time")?;
    out.line("")
}

fn budgets(provider: &Value, out: &Out) -> Result<(), Failure> {
    let row = |budget: &Value| {
        [
            cell(&budget["name"]),
            cell(&budget["state"]),
            time(&budget["until"]),
            rate(&budget["allowed_per_second"]),
            rate(&budget["achieved_per_second"]),
            cell(&budget["pacing_errors"]),
            cell(&budget["signals"]),
        ]
    };
    let rows: Vec<_> = of(provider, "budgets").map(row).collect();
    let head = ["BUDGET", "STATE", "UNTIL", "ALLOWED/S", "ACHIEVED/S", "429S", "SIGNALS"];
    out.table(head, &rows, "no budgets")?;
    out.line("")?;
    let rows: Vec<_> = key_rows(provider).collect();
    out.table(["KEY", "BUDGET", "STATE", "UNTIL", "USED", "BY"], &rows, "no keys")?;
    out.line("")
}

/// Label, budget, state, until, use, and who disabled it: of every key that is listed.
fn key_rows(provider: &Value) -> impl Iterator<Item = [String; 6]> {
    of(provider, "budgets").flat_map(move |budget| {
        of(budget, "keys").map(move |key| {
            [
                cell(&key["label"]),
                cell(&budget["name"]),
                cell(&key["state"]),
                time(&key["until"]),
                used_of(key),
                cell(&key["disabled_by"]),
            ]
        })
    })
}

/// How much of the limits of a key is used.
pub fn used_of(key: &Value) -> String {
    let used: Vec<String> = of(key, "limits").map(used).collect();
    if used.is_empty() { "-".to_owned() } else { used.join(" ") }
}

/// `3/10 requests`
fn used(limit: &Value) -> String {
    format!("{}/{} {}", cell(&limit["used"]), cell(&limit["most"]), cell(&limit["unit"]))
}

fn leases(provider: &Value, out: &Out) -> Result<(), Failure> {
    let row = |lease: &Value| {
        let group = lease["group"].as_str().filter(|group| !group.is_empty()).unwrap_or("(all)");
        let holder = if lease["held"] == true { cell(&lease["owner"]) } else { "-".to_owned() };
        [group.to_owned(), holder, cell(&lease["epoch"]), cell(&lease["expires_in_ms"])]
    };
    let rows: Vec<_> = of(provider, "leases").map(row).collect();
    out.table(["LEASE", "OWNER", "EPOCH", "EXPIRES IN MS"], &rows, "no dispatcher was ever here")
}

fn of<'a>(value: &'a Value, member: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value[member].as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
