//! `paceline endpoints`: where completions go.

use std::time::Duration;

use clap::{Args, Subcommand};
use paceline::duration::HumanDuration;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Globals;
use super::arguments::ago;
use super::backend::{Backend, Missing, job_id, query};
use super::deliveries;
use super::failure::{Exit, Failure};
use super::jobs::{Pages, print_page, set};
use super::output::{Out, cell, short, time};

/// Between two looks at a test event, or at a resend that runs.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Register webhook endpoints, look at them, change them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List endpoints, newest first; those of bare callback URLs too
    #[command(after_long_help = "Example:\n  paceline endpoints list --tenant acme")]
    List(List),
    /// Register an endpoint; its secret is shown this once
    #[command(
        after_long_help = "Examples:\n  paceline endpoints add https://hooks.example.com/paceline\n  paceline endpoints add https://hooks.example.com/acme --tenant acme --events job.dead,job.expired\n  paceline endpoints add https://hooks.example.com/some --subscribe named --secret-env HOOK_SECRET"
    )]
    Add(Add),
    /// Show an endpoint
    #[command(after_long_help = "Example:\n  paceline endpoints show ep_0193c1f0")]
    Show(One),
    /// Send nothing more to endpoints until they are enabled; what comes up meanwhile is held back
    #[command(after_long_help = "Example:\n  paceline endpoints disable ep_0193c1f0")]
    Disable(Many),
    /// Send to endpoints again, whoever disabled them
    #[command(
        after_long_help = "What was held back is sent by: paceline endpoints resend ID --since TIME\n\nExample:\n  paceline endpoints enable ep_0193c1f0…"
    )]
    Enable(Many),
    /// Remove endpoints
    #[command(
        after_long_help = "Deliveries to them can be looked at until their jobs are removed.\n\nExample:\n  paceline endpoints delete ep_0193c1f0"
    )]
    Delete(Many),
    /// Give an endpoint a new secret; the old one signs as well for a while
    #[command(
        after_long_help = "Examples:\n  paceline endpoints rotate ep_0193c1f0…\n  paceline endpoints rotate ep_0193c1f0… --overlap 0s    # the old one was leaked"
    )]
    Rotate(Rotate),
    /// Send an endpoint a test event, and say what it answered
    #[command(after_long_help = "Example:\n  paceline endpoints test ep_0193c1f0 --timeout 30s")]
    Test(Test),
    /// Send an endpoint again what it missed since a time
    #[command(
        after_long_help = "What failed or was held back, unless --all is given. Event ids stay the same.\n\nExample:\n  paceline endpoints resend ep_0193c1f0… --since 2h"
    )]
    Resend(Resend),
}

/// Which endpoints, and how many.
#[derive(Debug, Args)]
pub struct List {
    /// Of that tenant
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    pages: Pages,
}

/// An endpoint to register.
#[derive(Debug, Args)]
pub struct Add {
    /// Where to post to
    // Not `url`: that is the server's, of every command.
    #[arg(value_name = "URL")]
    hook: String,
    /// Whose completions it gets [default: those of jobs without a tenant]
    #[arg(long)]
    tenant: Option<String>,
    /// Only these events, such as job.succeeded,job.dead [default: all]
    #[arg(long, value_name = "EVENTS", value_delimiter = ',')]
    events: Vec<String>,
    /// all: every completion of the tenant; named: those of jobs that name it
    #[arg(long, value_name = "WHICH", default_value = "all", value_parser = ["all", "named"])]
    subscribe: String,
    /// For people
    #[arg(long)]
    description: Option<String>,
    /// The environment variable that holds the secret, whsec_… [default: one is made]
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
    /// Sign by Ed25519 (v1a) as well
    #[arg(long)]
    ed25519: bool,
}

/// One endpoint.
#[derive(Debug, Args)]
pub struct One {
    /// Its id, ep_…
    #[arg(value_parser = job_id)]
    id: String,
}

/// Some endpoints.
#[derive(Debug, Args)]
pub struct Many {
    /// Their ids, ep_…
    #[arg(required = true, value_parser = job_id)]
    ids: Vec<String>,
}

/// A new secret.
#[derive(Debug, Args)]
pub struct Rotate {
    #[command(flatten)]
    endpoint: One,
    /// How long the old secret signs as well
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    overlap: HumanDuration,
    /// The environment variable that holds the new secret, whsec_… [default: one is made]
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
}

/// A test.
#[derive(Debug, Args)]
pub struct Test {
    #[command(flatten)]
    endpoint: One,
    /// Give up waiting for the answer after that time
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    timeout: HumanDuration,
}

/// What to send again.
#[derive(Debug, Args)]
pub struct Resend {
    #[command(flatten)]
    endpoint: One,
    /// From that time on, or how long ago that was
    #[arg(long, value_name = "TIME")]
    since: String,
    /// What was delivered, too
    #[arg(long)]
    all: bool,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let missing = if matches!(command, Command::Add(_)) { Missing::Create } else { Missing::Fail };
    let backend = Backend::open(globals, missing).await?;
    let result = match command {
        Command::List(args) => list(&args, &backend, out).await,
        Command::Add(args) => add(args, &backend, out).await,
        Command::Show(one) => show(&backend.endpoint(&one.id).await?, out),
        Command::Disable(many) => enable(&many, false, &backend, out).await,
        Command::Enable(many) => enable(&many, true, &backend, out).await,
        Command::Delete(many) => delete(&many, &backend, out).await,
        Command::Rotate(args) => rotate(&args, &backend, out).await,
        Command::Test(args) => test(&args, &backend, out).await,
        Command::Resend(args) => resend(&args, &backend, out).await,
    };
    backend.close().await;
    result
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let [limit, cursor] = args.pages.parameters();
    let mut parameters = [("tenant", args.tenant.clone()), limit, cursor];
    loop {
        let page = backend.endpoints(&query(&parameters)).await?;
        print_page(&page, args.pages.is_all(), out, |items| {
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(["ID", "STATE", "GETS", "TENANT", "SINCE", "URL"], &rows, "no endpoints")
        })?;
        match page["next_cursor"].as_str().filter(|_| args.pages.is_all()) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

fn state(endpoint: &Value) -> String {
    match (endpoint["enabled"].as_bool(), endpoint["disabled_reason"].as_str()) {
        (Some(true), _) if !endpoint["failing_since"].is_null() => "failing".to_owned(),
        (Some(true), _) => "enabled".to_owned(),
        (_, Some(reason)) => format!("disabled ({reason})"),
        _ => "disabled".to_owned(),
    }
}

fn gets(endpoint: &Value) -> String {
    let which = if endpoint["implicit"] == true { "callbacks" } else { endpoint["subscribe"].as_str().unwrap_or("-") };
    let events: Vec<&str> = endpoint["events"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if events.is_empty() { which.to_owned() } else { format!("{which}: {}", events.join(",")) }
}

fn row(endpoint: &Value) -> [String; 6] {
    [
        cell(&endpoint["id"]),
        state(endpoint),
        gets(endpoint),
        cell(&endpoint["tenant"]),
        time(&endpoint["created_at"]),
        short(&endpoint["url"], 80),
    ]
}

fn show(endpoint: &Value, out: &Out) -> Result<Exit, Failure> {
    if out.is_json() {
        out.json(endpoint)?;
        return Ok(Exit::Done);
    }
    let line = |label: &str, text: String| out.line(format!("{label:<15}{text}"));
    line("id", cell(&endpoint["id"]))?;
    line("url", cell(&endpoint["url"]))?;
    line("state", state(endpoint))?;
    line("gets", gets(endpoint))?;
    for (label, member) in [
        ("tenant", "tenant"),
        ("description", "description"),
        ("failing since", "failing_since"),
        ("secret", "secret_version"),
        ("public key", "public_key"),
        ("created", "created_at"),
    ] {
        if !endpoint[member].is_null() {
            let version = if label == "secret" { "version " } else { "" };
            let text = if member.ends_with("_at") || member.ends_with("since") {
                time(&endpoint[member])
            } else {
                cell(&endpoint[member])
            };
            line(label, format!("{version}{text}"))?;
        }
    }
    for older in endpoint["older_secrets"].as_array().into_iter().flatten() {
        let until = time(&older["signs_until"]);
        line("", format!("version {} signs until {until}", cell(&older["version"])))?;
    }
    if !endpoint["resend"].is_null() {
        line("resend", resend_line(&endpoint["resend"]))?;
    }
    if let Some(secret) = endpoint["secret"].as_str() {
        line("secret", secret.to_owned())?;
        out.note("keep the secret: it is not shown again")?;
    }
    Ok(Exit::Done)
}

fn resend_line(resend: &Value) -> String {
    format!(
        "{} since {}: {} deliveries are due again",
        cell(&resend["state"]),
        time(&resend["since"]),
        cell(&resend["resent"])
    )
}

/// A secret from the environment: on the command line everybody on the machine could read it.
fn secret(name: &str) -> Result<Value, Failure> {
    match std::env::var(name) {
        Ok(secret) if !secret.trim().is_empty() => Ok(secret.trim().into()),
        _ => Err(Failure::usage(format!("the environment variable {name} is not set"))),
    }
}

async fn add(args: Add, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut body = Map::from_iter([
        ("url".to_owned(), json!(args.hook)),
        ("subscribe".to_owned(), json!(args.subscribe)),
        ("ed25519".to_owned(), json!(args.ed25519)),
    ]);
    let mut give = |name: &str, value: Option<Value>| value.map(|value| body.insert(name.to_owned(), value));
    give("tenant", args.tenant.map(Value::from));
    give("description", args.description.map(Value::from));
    give("events", (!args.events.is_empty()).then(|| json!(args.events)));
    give("secret", args.secret_env.as_deref().map(secret).transpose()?);
    let endpoint = backend.register_endpoint(Value::from(body).to_string().into_bytes()).await?;
    show(&endpoint, out)
}

async fn enable(many: &Many, enabled: bool, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    super::jobs::each(&many.ids, out, async |id| {
        let endpoint = backend.enable_endpoint(id, enabled).await?;
        if out.is_json() { out.json(&endpoint) } else { out.line(format!("{id}  {}", state(&endpoint))) }
    })
    .await
}

async fn delete(many: &Many, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    super::jobs::each(&many.ids, out, async |id| {
        let deleted = backend.delete_endpoint(id).await?;
        if out.is_json() { out.json(&deleted) } else { out.line(format!("{id}  deleted")) }
    })
    .await
}

async fn rotate(args: &Rotate, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut body = json!({ "overlap": args.overlap.to_string() });
    if let Some(name) = &args.secret_env {
        body["secret"] = secret(name)?;
    }
    show(&backend.rotate_endpoint(&args.endpoint.id, body.to_string().into_bytes()).await?, out)
}

async fn test(args: &Test, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut delivery = backend.test_endpoint(&args.endpoint.id).await?;
    let id = delivery["id"].as_str().unwrap_or_default().to_owned();
    let deadline = Instant::now() + args.timeout.0;
    while delivery["state"] == "pending" && backend.is_server() && Instant::now() < deadline {
        tokio::time::sleep(LOOK_EVERY).await;
        delivery = backend.delivery(&id).await?;
    }
    deliveries::print(&delivery, out)?;
    if !backend.is_server() {
        out.note("no server runs: it is sent when one does (paceline serve)")?;
        return Ok(Exit::Done);
    }
    Ok(match delivery["state"].as_str() {
        Some("delivered") => Exit::Done,
        Some("pending") => Exit::Wait,
        _ => Exit::Failed,
    })
}

async fn resend(args: &Resend, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let body = json!({ "since": ago("--since", &args.since)?, "all": args.all });
    let mut endpoint = backend.resend_endpoint(&args.endpoint.id, body.to_string().into_bytes()).await?;
    while endpoint["resend"]["state"] == "running" && backend.is_server() {
        tokio::time::sleep(LOOK_EVERY).await;
        endpoint = backend.endpoint(&args.endpoint.id).await?;
    }
    if out.is_json() {
        out.json(&endpoint)?;
    } else {
        out.line(resend_line(&endpoint["resend"]))?;
    }
    if !backend.is_server() {
        out.note("no server runs: it goes on when one does (paceline serve)")?;
    }
    Ok(Exit::Done)
}
