//! `paceline audit`: what operators did.

use serde_json::Value;

use super::Globals;
use super::backend::{Backend, Missing, query};
use super::failure::{Exit, Failure};
use super::jobs::{Pages, print_page, set};
use super::output::{Out, cell, time};

/// List what operators did: who, what, to what, when, newest first
#[derive(Debug, clap::Args)]
#[command(
    after_long_help = "Pauses, keys, purges, replays, webhook endpoints and deliveries, by the name of the token; `local` where none is configured, `command line`\nwhere a command opened the store itself. Kept for 400 days.\n\nExample:\n  paceline audit --limit 20"
)]
pub struct Args {
    #[command(flatten)]
    pages: Pages,
}

/// Does it.
pub async fn run(args: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    let backend = Backend::open(globals, Missing::Fail).await?;
    let result = list(&args.pages, &backend, out).await;
    backend.close().await;
    result
}

async fn list(pages: &Pages, backend: &Backend, out: &Out) -> Result<Exit, Failure> {
    let mut parameters = pages.parameters();
    loop {
        let page = backend.acts(&query(&parameters)).await?;
        print_page(&page, pages.is_all(), out, |items| {
            let rows: Vec<_> = items.iter().map(row).collect();
            out.table(["WHEN", "WHO", "ACT", "TARGET", "OUTCOME", "DETAIL"], &rows, "nothing was done")
        })?;
        match page["next_cursor"].as_str().filter(|_| pages.is_all()) {
            Some(next) => set(&mut parameters, "cursor", next),
            None => return Ok(Exit::Done),
        }
    }
}

fn row(act: &Value) -> [String; 6] {
    let [who, what, target, outcome, detail] =
        ["who", "act", "target", "outcome", "detail"].map(|field| cell(&act[field]));
    [time(&act["at"]), who, what, target, outcome, detail]
}
