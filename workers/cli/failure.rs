//! How a command ends.

use std::io::Write;
use std::process::ExitCode;

use paceline::api::Problem;
use paceline::store::StoreError;
use serde_json::{Value, json};

/// What the exit code says; `paceline --help` shows the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed, or something was refused.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// Neither the API nor the store can be reached.
    Unreachable = 3,
    /// No such job or dead letter.
    NotFound = 4,
    /// Conflict, or too late.
    Conflict = 5,
    /// Waited for too long, or for a job that did not succeed.
    Wait = 6,
    /// Nobody reads the output any more.
    BrokenPipe = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was told.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What the exit code says.
    pub exit: Exit,
    /// For people.
    pub message: String,
    /// The problem document, where there is one.
    pub problem: Option<Value>,
}

impl Failure {
    /// A failure with its exit code.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), problem: None }
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// A problem document, as it came over HTTP.
    pub fn from_document(status: u16, document: Value) -> Self {
        let exit = match status {
            404 => Exit::NotFound,
            409 => Exit::Conflict,
            503 => Exit::Unreachable,
            _ if document["type"] == "urn:paceline:problem:bad-parameter" => Exit::Usage,
            _ => Exit::Failed,
        };
        Self { exit, message: problem_text(&document), problem: Some(document) }
    }

    /// Tells it once, on standard error.
    pub fn report(&self, as_json: bool) {
        let text = if as_json {
            let mut error = json!({ "message": self.message, "exit": self.exit as u8 });
            if let Some(problem) = &self.problem {
                error["problem"] = problem.clone();
            }
            json!({ "error": error }).to_string()
        } else if self.exit == Exit::BrokenPipe {
            return;
        } else {
            format!("error: {}", super::output::for_terminal(&self.message))
        };
        // Where standard error is gone as well, the exit code is all there is.
        writeln!(std::io::stderr(), "{text}").unwrap_or_default();
    }
}

/// A problem document in a line: every wrong field, or the detail.
pub fn problem_text(document: &Value) -> String {
    let errors: Vec<String> = document["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| format!("{}: {}", e["path"].as_str().unwrap_or("$"), e["message"].as_str().unwrap_or_default()))
        .collect();
    if !errors.is_empty() {
        return errors.join("; ");
    }
    let detail = document["detail"].as_str().or_else(|| document["title"].as_str());
    detail.unwrap_or("refused, without saying why").to_owned()
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::from_document(problem.kind.status().as_u16(), problem.to_json())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::Unavailable(_) | StoreError::Locked { .. } => Exit::Unreachable,
            StoreError::Url(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(Exit::BrokenPipe, "the reader of the output went away"),
            _ => Self::new(Exit::Failed, format!("cannot write: {error}")),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
