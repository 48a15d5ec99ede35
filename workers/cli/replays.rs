//! `paceline dead replay --where …`, `dead replays`, `dead stop`: many dead letters at once.

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use super::arguments::ago;
use super::backend::{Backend, query};
use super::failure::{Exit, Failure};
use super::jobs::{One, Pages, print_page, set};
use super::output::{Out, cell, time};

/// Between two looks at a replay that runs.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Which dead letters run again, where they are not named one by one.
#[derive(Debug, Args)]
pub struct ByFilter {
    /// Every dead letter that fits: reason, provider, lane, tenant, replayed, dead_after or dead_before; several have
    /// to fit together
    #[arg(long = "where", value_name = "NAME=VALUE", value_parser = pair, conflicts_with = "ids")]
    filters: Vec<(String, String)>,
    /// Every dead letter that was not replayed yet
    #[arg(long, conflicts_with_all = ["ids", "filters"])]
    all: bool,
    /// Count them, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not wait until all are queued again
    #[arg(long)]
    no_wait: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, such as reason=attempts_exhausted")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

impl ByFilter {
    /// Whether letters are chosen so.
    pub fn is_given(&self) -> bool {
        self.all || !self.filters.is_empty()
    }

    /// Options that say nothing without a filter.
    pub fn stray(&self) -> Option<&'static str> {
        [("--dry-run", self.dry_run), ("--no-wait", self.no_wait)].into_iter().find(|(_, on)| *on).map(|(name, _)| name)
    }

    fn body(&self, idempotency_key: Option<&str>) -> Result<Value, Failure> {
        let mut fits = Map::new();
        for (name, value) in &self.filters {
            let value = match name.as_str() {
                "replayed" => {
                    value.parse().map(Value::Bool).map_err(|_| Failure::usage("replayed is true or false"))?
                }
                "dead_after" | "dead_before" => json!(ago(name, value)?),
                _ => Value::from(value.clone()),
            };
            if fits.insert(name.clone(), value).is_some() {
                return Err(Failure::usage(format!("--where {name}=… is given twice")));
            }
        }
        let mut body = json!({ "where": fits, "all": self.all, "dry_run": self.dry_run });
        if let Some(which) = idempotency_key {
            body["idempotency_key"] = which.into();
        }
        Ok(body)
    }
}

/// Begins a replay by filter, and waits until it has gone through all.
pub async fn replay(
    args: &ByFilter,
    idempotency_key: Option<&str>,
    backend: &Backend,
    out: &Out,
) -> Result<Exit, Failure> {
    let begun = backend.begin_replay(args.body(idempotency_key)?.to_string().into_bytes()).await?;
    if args.dry_run {
        return if out.is_json() {
            out.json(&begun)
        } else {
            out.line(format!("{} dead letters would run again; nothing was changed", cell(&begun["total"])))
        }
        .map(|()| Exit::Done);
    }
    let id = begun["id"].as_str().unwrap_or_default().to_owned();
    let last = if args.no_wait || !backend.is_server() { begun } else { until_done(&id, backend, out).await? };
    if out.is_json() {
        out.json(&last)?;
        return Ok(Exit::Done);
    }
    out.line(line(&last))?;
    if !backend.is_server() {
        out.note("no server runs: it goes on when one does (paceline serve)")?;
    } else if args.no_wait {
        out.note(format!("look: paceline dead replays; stop it: paceline dead stop {id}"))?;
    }
    Ok(Exit::Done)
}

fn line(replay: &Value) -> String {
    format!(
        "{}  {}: {} of {} queued again, {} skipped",
        cell(&replay["id"]),
        cell(&replay["state"]),
        cell(&replay["replayed"]),
        cell(&replay["total"]),
        cell(&replay["skipped"])
    )
}

async fn until_done(id: &str, backend: &Backend, out: &Out) -> Result<Value, Failure> {
    let bar = if out.shows_progress() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} queued again  {elapsed}") {
        bar.set_style(style);
    }
    loop {
        let replay = backend.replay_by_filter(id).await?;
        let number = |name: &str| replay[name].as_u64().unwrap_or_default();
        bar.set_length(number("total"));
        bar.set_position(number("replayed") + number("skipped"));
        if replay["state"] != "running" {
            bar.finish_and_clear();
            return Ok(replay);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lists replays by filter.
pub async fn list(pages: &Pages, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut parameters = pages.parameters();
    loop {
        let page = backend.replays(&query(&parameters)).await?;
        print_page(&page, pages.is_all(), out, |items| {
            let head = ["ID", "STATE", "QUEUED", "SKIPPED", "OF", "SINCE", "UNTIL", "WHERE"];
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(head, &rows, "no replays")
        })?;
        match page["next_cursor"].as_str().filter(|_| pages.is_all()) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

fn row(replay: &Value) -> [String; 8] {
    let fits = replay["where"].as_object().into_iter().flatten();
    let fits: Vec<String> = fits.map(|(name, value)| format!("{name}={}", cell(value))).collect();
    [
        cell(&replay["id"]),
        cell(&replay["state"]),
        cell(&replay["replayed"]),
        cell(&replay["skipped"]),
        cell(&replay["total"]),
        time(&replay["created_at"]),
        time(&replay["finished_at"]),
        fits.join(" "),
    ]
}

/// Stops one.
pub async fn stop(args: &One, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let replay = backend.stop_replay(args.named().id).await?;
    if out.is_json() { out.json(&replay) } else { out.line(line(&replay)) }.map(|()| Exit::Done)
}
