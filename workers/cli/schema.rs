//! `paceline schema`: the documents that other tools read.

use clap::ValueEnum;
use paceline::api::openapi;
use paceline::asyncapi::asyncapi;
use paceline::job::envelope_schema;
use paceline::webhook::event_schema;

use super::Globals;
use super::failure::{Exit, Failure};
use super::output::Out;

/// Print a JSON Schema, the OpenAPI or the AsyncAPI document
///
/// To check jobs before they are sent, and to generate clients. A server has the same at /schemas/job.json,
/// /schemas/event.json, /openapi.json and /asyncapi.json. Nothing is contacted, no configuration is read.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  paceline schema job > job.schema.json
  paceline schema openapi > openapi.json")]
pub struct Args {
    /// Of what
    what: What,
}

/// What is described.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// A job as producers write it (JSON Schema 2020-12)
    Job,
    /// A completion as webhooks and streams carry it (JSON Schema 2020-12)
    Event,
    /// The HTTP API (OpenAPI 3.1)
    Openapi,
    /// Exchanges, queues, messages and webhooks (AsyncAPI 3)
    Asyncapi,
}

/// Prints it.
pub fn run(args: &Args, _: &Globals, out: &Out) -> Result<Exit, Failure> {
    let document = match args.what {
        What::Job => envelope_schema().to_value(),
        What::Event => event_schema().to_value(),
        What::Openapi => openapi(),
        What::Asyncapi => asyncapi(),
    };
    if out.is_json() {
        out.json(&document)?;
    } else {
        let text = serde_json::to_string_pretty(&document).map_err(|e| Failure::new(Exit::Failed, e.to_string()))?;
        out.line(text)?;
    }
    Ok(Exit::Done)
}
