//! `paceline enqueue`: one job from arguments, or many from JSON Lines.

use std::time::Duration;

use clap::Args as ClapArgs;
use serde_json::Value;

use super::Globals;
use super::arguments::JobArgs;
use super::backend::{Backend, Missing};
use super::failure::{Exit, Failure};
use super::lines;
use super::output::{Out, cell};

/// Pauses before asking again what got no answer; the ids make that safe.
const AGAIN_AFTER: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// Enqueue one job by arguments, or many from JSON Lines
///
/// Ids are filled in where they are missing, before anything is sent: what got no answer is asked
/// again, and still becomes one job.
#[derive(Debug, ClapArgs)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// JSON Lines, one job a line (`-`: standard input)
    #[arg(value_name = "FILE")]
    pub file: Option<String>,
    /// Begin at that line of the file (1 is the first): where an earlier try ended
    #[arg(long, value_name = "N", default_value_t = 1, requires = "file")]
    pub from_line: u64,
    #[command(flatten)]
    pub job: JobArgs,
}

const EXAMPLES: &str = r#"Examples:
  One call:
    paceline enqueue --provider geocoder --path /v1/geocode --query q=Berlin
  With a body, in the lane `high`, not before five minutes from now:
    paceline enqueue --provider geocoder --path /v1/search \
      --data '{"q":"Berlin"}' --lane high --not-before 5m
  Many, from a file; lines that name no provider are for geocoder:
    paceline enqueue jobs.jsonl --provider geocoder
  From a pipe:
    jq -c '{provider:"geocoder",request:{path:"/v1/geocode",query:{q:.city}}}' \
      cities.json | paceline enqueue -"#;

/// Enqueues.
pub async fn run(args: Args, globals: &Globals, out: &Out) -> Result<Exit, Failure> {
    if let Some(file) = args.file {
        return lines::run(lines::Source { file, from_line: args.from_line }, args.job, globals, out).await;
    }
    let mut envelope = args.job.envelope()?;
    envelope.id.get_or_insert_with(fresh_id);
    let body = serde_json::to_vec(&envelope).map_err(|e| Failure::usage(e.to_string()))?;
    let backend = Backend::open(globals, Missing::Create).await?;
    let result = submit(&backend, body).await;
    backend.close().await;
    let accepted = result?;
    if out.is_json() {
        out.json(&accepted)?;
    } else {
        let known = if accepted["created"] == false { ", was there already" } else { "" };
        out.line(format!("{}  {}{known}", cell(&accepted["id"]), cell(&accepted["state"])))?;
    }
    Ok(Exit::Done)
}

/// An id that sorts by the time it was made.
pub fn fresh_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// Submits, and asks again where there was no answer.
pub async fn submit(backend: &Backend, body: Vec<u8>) -> Result<Value, Failure> {
    for pause in AGAIN_AFTER {
        match backend.submit(body.clone()).await {
            Err(failure) if failure.exit == Exit::Unreachable => {
                tracing::info!(reason = failure.message, "asking again");
                tokio::time::sleep(pause).await;
            }
            settled => return settled,
        }
    }
    backend.submit(body).await
}
