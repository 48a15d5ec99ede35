//! `paceline deliveries`: completions on their way, and what became of each attempt.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::Globals;
use super::backend::{Backend, Missing, job_id, query};
use super::failure::{Exit, Failure};
use super::jobs::{Pages, each, print_page, set};
use super::output::{Out, cell, short, time};

/// Look at deliveries of completions, send them again
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List deliveries, newest first
    #[command(
        after_long_help = "Examples:\n  paceline deliveries list --state failed\n  paceline deliveries list --endpoint ep_0193c1f0… --event job.dead\n  paceline --json deliveries list --job order-17"
    )]
    List(List),
    /// Show a delivery with all its attempts
    #[command(after_long_help = "Example:\n  paceline deliveries show dl_17")]
    Show(One),
    /// Send deliveries again, under the same event ids
    #[command(after_long_help = "Example:\n  paceline deliveries resend dl_17 dl_18")]
    Resend(Many),
}

/// Which deliveries, and how many.
#[derive(Debug, Args)]
pub struct List {
    /// pending, delivered, failed or disabled
    #[arg(long)]
    state: Option<String>,
    /// To the endpoint of that id
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// Of the job of that id
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// job.succeeded, job.dead, job.expired, job.cancelled or endpoint.test
    #[arg(long)]
    event: Option<String>,
    /// Of that tenant
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    pages: Pages,
}

/// One delivery.
#[derive(Debug, Args)]
pub struct One {
    /// Its id, dl_…
    #[arg(value_parser = job_id)]
    id: String,
}

/// Some deliveries.
#[derive(Debug, Args)]
pub struct Many {
    /// Their ids, dl_…
    #[arg(required = true, value_parser = job_id)]
    ids: Vec<String>,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = match command {
        Command::List(args) => list(&args, &backend, out).await,
        Command::Show(one) => print(&backend.delivery(&one.id).await?, out).map(|()| Exit::Done),
        Command::Resend(many) => {
            each(&many.ids, out, async |id| {
                let delivery = backend.resend_delivery(id).await?;
                if out.is_json() { out.json(&delivery) } else { out.line(format!("{id}  due again")) }
            })
            .await
        }
    };
    backend.close().await;
    result
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let [limit, cursor] = args.pages.parameters();
    let mut parameters = [
        ("state", args.state.clone()),
        ("endpoint", args.endpoint.clone()),
        ("job", args.job.clone()),
        ("event", args.event.clone()),
        ("tenant", args.tenant.clone()),
        limit,
        cursor,
    ];
    loop {
        let page = backend.deliveries(&query(&parameters)).await?;
        print_page(&page, args.pages.is_all(), out, |items| {
            let head = ["ID", "STATE", "EVENT", "JOB", "TRIES", "TO", "NEXT OR END", "WHY"];
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(head, &rows, "no deliveries")
        })?;
        match page["next_cursor"].as_str().filter(|_| args.pages.is_all()) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

/// The endpoint, or where in the broker.
fn target(delivery: &Value) -> String {
    match (delivery["endpoint"]["id"].as_str(), delivery["reply_to"].as_str()) {
        (Some(endpoint), _) => endpoint.to_owned(),
        (None, Some(queue)) => format!("queue {queue}"),
        (None, None) if delivery["kind"] == "amqp" => "paceline.events".to_owned(),
        (None, None) => "(removed)".to_owned(),
    }
}

fn attempts(delivery: &Value) -> &[Value] {
    delivery["attempts"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn row(delivery: &Value) -> [String; 8] {
    let ended = &delivery["finished_at"];
    [
        cell(&delivery["id"]),
        cell(&delivery["state"]),
        cell(&delivery["event"]),
        cell(&delivery["job_id"]),
        attempts(delivery).len().to_string(),
        target(delivery),
        time(if ended.is_null() { &delivery["next_attempt_at"] } else { ended }),
        short(attempts(delivery).last().map_or(&Value::Null, |attempt| &attempt["error"]), 60),
    ]
}

/// One, with its attempts.
pub fn print(delivery: &Value, out: &Out) -> Result<(), Failure> {
    if out.is_json() {
        return out.json(delivery);
    }
    for (label, text) in [
        ("id", cell(&delivery["id"])),
        ("state", cell(&delivery["state"])),
        ("event", format!("{} ({})", cell(&delivery["event"]), cell(&delivery["event_id"]))),
        ("job", cell(&delivery["job_id"])),
        ("tenant", cell(&delivery["tenant"])),
        ("to", target(delivery)),
        ("url", cell(&delivery["endpoint"]["url"])),
        ("created", time(&delivery["created_at"])),
        ("next attempt", time(&delivery["next_attempt_at"])),
        ("finished", time(&delivery["finished_at"])),
    ] {
        if text != "-" {
            out.line(format!("{label:<13}{text}"))?;
        }
    }
    out.line("")?;
    let row = |attempt: &Value| {
        [
            cell(&attempt["n"]),
            time(&attempt["at"]),
            cell(&attempt["status"]),
            format!("{} ms", cell(&attempt["latency_ms"])),
            short(&attempt["error"], 100),
        ]
    };
    let rows: Vec<_> = attempts(delivery).iter().map(row).collect();
    out.table(["TRY", "AT", "STATUS", "TOOK", "ERROR"], &rows, "no attempts yet")
}
