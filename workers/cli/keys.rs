//! `paceline keys`: the keys of providers, by label. Never their secrets.

use clap::{Args, Subcommand};
use serde_json::json;

use super::Globals;
use super::backend::{Backend, Missing, name};
use super::failure::{Exit, Failure};
use super::output::Out;
use super::providers::{key_rows, said};

/// Look at provider keys, disable them, enable them
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List keys: state, until when, how much of their limits is used
    List(List),
    /// Use a key no more until it is enabled
    #[command(
        after_long_help = "Calls that are open with it end as usual; jobs pinned to it wait. It outlives restarts.\n\nExample:\n  paceline keys disable geocoder a1"
    )]
    Disable(One),
    /// Use a key again at once, whatever the provider said of it before
    #[command(after_long_help = "Example:\n  paceline keys enable geocoder a1")]
    Enable(One),
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
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = match command {
        Command::List(args) => list(&args, &backend, out).await,
        Command::Disable(one) => said(backend.disable_key(&one.provider, &one.label, true).await, out),
        Command::Enable(one) => said(backend.disable_key(&one.provider, &one.label, false).await, out),
    };
    backend.close().await;
    result
}

async fn list(args: &List, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let providers = match &args.provider {
        Some(name) => vec![backend.provider(name).await?],
        None => backend.providers().await?["items"].as_array().cloned().unwrap_or_default(),
    };
    if out.is_json() {
        let budgets = |provider: &serde_json::Value| provider["budgets"].as_array().cloned().unwrap_or_default();
        let mut items = Vec::new();
        for provider in &providers {
            for budget in budgets(provider) {
                for key in budget["keys"].as_array().into_iter().flatten() {
                    let mut key = key.clone();
                    key["provider"] = provider["name"].clone();
                    key["budget"] = budget["name"].clone();
                    items.push(key);
                }
            }
        }
        out.json(&json!({ "items": items }))?;
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = providers.iter().flat_map(key_rows).collect();
    out.table(["PROVIDER", "KEY", "BUDGET", "STATE", "UNTIL", "USED", "BY"], &rows, "no keys")?;
    let left_out: u64 = providers.iter().filter_map(|provider| provider["keys_left_out"].as_u64()).sum();
    if left_out > 0 {
        out.note(format!("{left_out} more keys are not listed"))?;
    }
    Ok(Exit::Done)
}
