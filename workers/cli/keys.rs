//! `paceline keys`: the keys of providers, by label. Never their secrets.

use clap::{Args, Subcommand};
use serde_json::json;

use super::Globals;
use super::backend::{Backend, Missing, name};
use super::failure::{Exit, Failure};
use super::output::{Out, cell, time};
use super::providers::{said, used_of};
use super::secret_input::SecretInput;

/// Look at provider keys; add, rotate, disable, enable and remove them while running
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List keys: where they come from, state, until when, how much of their limits is used
    #[command(after_long_help = "Examples:\n  paceline keys list\n  paceline --json keys list geocoder")]
    List(List),
    /// Add a key: every dispatcher uses it within seconds
    #[command(after_long_help = ADD_HELP)]
    Add(Add),
    /// Give a stored key another secret: calls under way end with the old one, none begins with it
    #[command(after_long_help = ROTATE_HELP)]
    Rotate(Rotate),
    /// Erase the secret of a stored key, which is used no more
    #[command(
        after_long_help = "Its label and what was spent with it are kept: it can be added again under the same label.\n\nExample:\n  paceline keys remove geocoder a3"
    )]
    Remove(One),
    /// Encrypt every stored secret anew with the current master key
    #[command(after_long_help = REKEY_HELP)]
    Rekey,
    /// Use a key no more until it is enabled
    #[command(
        after_long_help = "Calls that are open with it end as usual; jobs pinned to it wait. It outlives restarts.\n\nExample:\n  paceline keys disable geocoder a1"
    )]
    Disable(One),
    /// Use a key again at once, whatever the provider said of it before
    #[command(after_long_help = "Example:\n  paceline keys enable geocoder a1")]
    Enable(One),
}

const ADD_HELP: &str = "\
The secret is stored encrypted with the master key (PACELINE_MASTER_KEY, or the file that
PACELINE_MASTER_KEY_FILE names) of whoever answers: the server, or this command where none runs.
It is read from standard input, a file or a variable, never from the command line.

Examples:
  paceline keys add geocoder a3 < secret.txt
  paceline keys add geocoder b3 --budget org-1 --secret-env NEW_KEY";

const ROTATE_HELP: &str = "\
What was spent counts on, since providers count by account. Whether the key is disabled stays as it is.

Example:
  pass show geocoder/a3 | paceline keys rotate geocoder a3";

const REKEY_HELP: &str = "\
To replace the master key: give every process the new one as PACELINE_MASTER_KEY and the old one as
PACELINE_MASTER_KEY_PREVIOUS (or …_FILE), start them again, run this, and take the old one away.
What webhook endpoints were given to sign with is encrypted anew, too. All secrets are, or none; doing
it again is safe.

Example:
  paceline keys rekey";

/// A key to be added.
#[derive(Debug, Args)]
pub struct Add {
    #[command(flatten)]
    key: One,
    /// Its share where several keys could serve at the same instant [default: 1]
    #[arg(long, value_name = "NUMBER")]
    weight: Option<u32>,
    /// The declared budget that it belongs to [default: its own]
    #[arg(long, value_name = "NAME", value_parser = name)]
    budget: Option<String>,
    #[command(flatten)]
    secret: SecretInput,
}

/// A key to be rotated.
#[derive(Debug, Args)]
pub struct Rotate {
    #[command(flatten)]
    key: One,
    #[command(flatten)]
    secret: SecretInput,
}

/// Which keys.
#[derive(Debug, Args)]
pub struct List {
    /// Of this provider [default: of all]
    #[arg(value_parser = name)]
    provider: Option<String>,
}

/// One key.
#[derive(Debug, Args)]
pub struct One {
    /// Its provider
    #[arg(value_parser = name)]
    provider: String,
    /// Its label
    #[arg(value_parser = name)]
    label: String,
}

/// Does it.
pub async fn run(command: Command, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    // A new store may begin with its keys.
    let missing = if matches!(command, Command::Add(_)) { Missing::Create } else { Missing::Fail };
    let backend = Backend::open(globals, missing).await?;
    let result = match command {
        Command::Add(args) => add(&args, &backend, out).await,
        Command::Rotate(args) => rotate(&args, &backend, out).await,
        Command::Remove(one) => changed(backend.remove_key(&one.provider, &one.label).await, out),
        Command::Rekey => rekey(&backend, out).await,
        Command::List(args) => list(&args, &backend, out).await,
        Command::Disable(one) => said(backend.disable_key(&one.provider, &one.label, true).await, out),
        Command::Enable(one) => said(backend.disable_key(&one.provider, &one.label, false).await, out),
    };
    backend.close().await;
    result
}

async fn add(args: &Add, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let secret = args.secret.read()?;
    let mut body = json!({ "label": args.key.label, "secret": secret.expose() });
    if let Some(weight) = args.weight {
        body["weight"] = weight.into();
    }
    if let Some(budget) = &args.budget {
        body["budget"] = budget.as_str().into();
    }
    changed(backend.add_key(&args.key.provider, body.to_string().into_bytes()).await, out)
}

async fn rotate(args: &Rotate, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let secret = args.secret.read()?;
    let body = json!({ "secret": secret.expose() });
    let One { provider, label } = &args.key;
    changed(backend.rotate_key(provider, label, body.to_string().into_bytes()).await, out)
}

async fn rekey(backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let answer = backend.rekey().await?;
    if out.is_json() {
        out.json(&answer)?;
    } else {
        out.line(format!(
            "{} secrets were encrypted anew; the master key {} opens all of them",
            cell(&answer["rekeyed"]),
            cell(&answer["master"])
        ))?;
    }
    Ok(Exit::Done)
}

fn changed(answer: Result<serde_json::Value, Failure>, out: &Out) -> Result<Exit, Failure> {
    let answer = answer?;
    if out.is_json() {
        out.json(&answer)?;
    } else {
        let [provider, label, state] = ["provider", "label", "state"].map(|field| cell(&answer[field]));
        let version = cell(&answer["version"]);
        out.line(format!("{provider}/{label}: {state}, version {version}"))?;
    }
    Ok(Exit::Done)
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let names: Vec<String> = match &args.provider {
        Some(name) => vec![name.clone()],
        None => {
            let providers = backend.providers().await?;
            let items = providers["items"].as_array().into_iter().flatten();
            items.filter_map(|provider| provider["name"].as_str().map(str::to_owned)).collect()
        }
    };
    let mut items = Vec::new();
    for name in &names {
        items.extend(backend.keys(name).await?["items"].as_array().cloned().unwrap_or_default());
    }
    if out.is_json() {
        out.json(&json!({ "items": items }))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = items.iter().map(row).collect();
    let head = ["PROVIDER", "KEY", "BUDGET", "FROM", "FINGERPRINT", "STATE", "UNTIL", "USED", "BY"];
    out.table(head, &rows, "no keys")?;
    Ok(Exit::Done)
}

fn row(key: &serde_json::Value) -> [String; 9] {
    [
        cell(&key["provider"]),
        cell(&key["label"]),
        cell(&key["budget"]),
        cell(&key["source"]),
        cell(&key["fingerprint"]),
        cell(&key["state"]),
        time(&key["until"]),
        used_of(key),
        cell(&key["disabled_by"]),
    ]
}
