//! The job: what a producer asks for, who it is, and the states it goes through.
//!
//! [`Envelope`] is the wire form (the same over AMQP, HTTP and the command line), [`Job`] is an
//! envelope that was checked: parse, don't validate twice. [`transition`] is the only place that
//! says which state follows which.

mod added;
mod envelope;
mod object;
mod reason;
mod request;
pub(crate) mod schema;
mod state;

pub use added::{AddedKeys, StoredLabels};
pub use envelope::{
    Callback, Catalog, Delivery, Envelope, EventKind, Given, Instant, Job, ProviderRules, REPLAY_LANE, RetryOverrides,
    hook_url, split_routing_key,
};
pub(crate) use object::{object, optional_object, optional_whole};
pub use reason::DeadReason;
pub use request::{Body, Request, is_reserved};
pub use schema::envelope_schema;
pub use state::{IllegalEvent, JobEvent, JobState, transition};

/// A field that is wrong, and what was expected there.
///
/// `path` is a JSON path from the envelope's root (`$.request.path`), so that a producer in any
/// language finds the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Invalid {
    /// Where, as a JSON path.
    pub path: String,
    /// What was expected, and what was found.
    pub message: String,
}

impl Invalid {
    /// An error at `path` (`$` is put in front).
    pub fn at(path: &str, message: impl Into<String>) -> Self {
        let path = match path {
            // What is not JSON at all has no place.
            "" | "." | "?" => "$".to_owned(),
            p if p.starts_with('[') => format!("${p}"),
            p => format!("$.{p}"),
        };
        Self { path, message: message.into() }
    }
}

/// Longest id of a job, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// `1 to 128 of [A-Za-z0-9._:-]`, but not `.` and `..`, which no URL can carry.
pub fn is_job_id(text: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

/// Names of providers, lanes, budgets and labels: `[a-z0-9_-]{1,64}`.
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}
