//! How jobs and dead letters look from outside: the shapes of the contract.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::Problem;
use super::params::ListKind;
use crate::clock::{WallMs, rfc3339};
use crate::job::{DeadReason, JobState};
use crate::store::{Attempt, DeadView, JobView, Page};

/// Envelopes and raw messages of one page of dead letters, all together, in bytes. What is left
/// out beyond it is had one by one.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What submitting a job came to.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Accepted {
    /// The job's id.
    pub id: String,
    /// Where it is.
    #[serde(serialize_with = "name")]
    pub state: JobState,
    /// It is new; else the same job was there already.
    pub created: bool,
}

/// What submitting an array of jobs came to, in order.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct AcceptedMany {
    /// One entry an item.
    pub items: Vec<AcceptedItem>,
}

/// What became of one item of an array.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum AcceptedItem {
    /// It is in the store.
    Job(Accepted),
    /// It is not, and this is why.
    Refused {
        /// The same problem document as for a single job.
        error: Problem,
    },
}

/// Of a job, or of each item of an array.
//
// For the document only.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Submitted")]
#[expect(dead_code, reason = "described, never made")]
pub(super) enum SubmittedJson {
    One(Accepted),
    Many(AcceptedMany),
}

/// What replaying a dead letter came to.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ReplayAccepted {
    /// The job's id.
    pub id: String,
    /// The new run.
    pub run: u32,
    /// Where it is.
    #[serde(serialize_with = "name")]
    pub state: JobState,
}

/// What a purge came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Purged {
    /// Dead letters that are gone.
    pub purged: u64,
    /// There are more: ask again.
    pub more: bool,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct PageJson<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// For the parameter `cursor` of the next page.
    pub next_cursor: Option<String>,
}

/// An attempt.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Attempt")]
pub struct AttemptJson {
    /// Which run of the job: each replay is one.
    run: u32,
    /// Counts the attempts of the run.
    n: u32,
    /// When it was sent.
    #[schemars(extend("format" = "date-time"))]
    at: String,
    /// Label of the key.
    key: String,
    /// The provider's status; null: there was no answer.
    status: Option<u16>,
    /// What the answer was taken for.
    outcome: String,
    /// Until the answer, or until it was given up.
    latency_ms: i64,
    /// What was wrong.
    error: Option<String>,
}

/// Why a job waits, and how long.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Waiting")]
pub struct WaitingJson {
    /// `not_before`, `backoff`, `paused`, `no_key` or `breaker`.
    reason: String,
    /// Until then; null: nobody knows.
    #[schemars(extend("format" = "date-time"))]
    until: Option<String>,
}

/// A job.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Job")]
pub struct JobJson {
    /// Unique within its tenant.
    id: String,
    /// Where it is.
    #[serde(serialize_with = "name")]
    state: JobState,
    /// Who is called.
    provider: String,
    /// The lane it waits in.
    lane: String,
    /// Whose job it is.
    tenant: Option<String>,
    /// The producer's own, as it was given.
    #[schemars(schema_with = "crate::job::schema::optional_object")]
    metadata: Box<RawValue>,
    /// Each replay is one.
    run: u32,
    /// When it was accepted.
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    /// When it reached a terminal state.
    #[schemars(extend("format" = "date-time"))]
    finished_at: Option<String>,
    /// Not before; null: it is running, or ended.
    #[schemars(extend("format" = "date-time"))]
    next_attempt_at: Option<String>,
    /// What holds it, beside its turn.
    waiting_for: Option<WaitingJson>,
    /// In their order.
    attempts: Vec<AttemptJson>,
    /// Why it is dead.
    reason: Option<String>,
    /// The last error.
    error: Option<String>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "DeadLetter")]
pub struct DeadJson {
    /// The job's; its own where the message never became one.
    id: String,
    /// Who should have been called, where that is known.
    provider: Option<String>,
    /// The lane.
    lane: Option<String>,
    /// Whose it is.
    tenant: Option<String>,
    /// Why it was given up.
    #[schemars(with = "DeadReason")]
    reason: String,
    /// The last error.
    error: Option<String>,
    /// In their order.
    attempts: Vec<AttemptJson>,
    /// The job as it was taken in, every default filled in; null: it never was one.
    #[schemars(schema_with = "crate::job::schema::optional_object")]
    envelope: Option<Box<RawValue>>,
    /// The message in base64, where it never became a job.
    #[schemars(extend("contentEncoding" = "base64"))]
    raw: Option<String>,
    /// The message's properties and headers, where it came over AMQP.
    #[schemars(schema_with = "crate::job::schema::optional_object")]
    headers: Option<Box<RawValue>>,
    /// The page was full: `envelope` and `raw` are had from the dead letter itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
    /// When it was given up.
    #[schemars(extend("format" = "date-time"))]
    dead_at: String,
    /// When it was run again.
    #[schemars(extend("format" = "date-time"))]
    replayed_at: Option<String>,
}

fn name<S: serde::Serializer>(state: &JobState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.as_str())
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn at(ms: Option<WallMs>) -> Option<String> {
    ms.map(rfc3339)
}

fn attempts(of: Vec<(u32, Attempt)>) -> Vec<AttemptJson> {
    of.into_iter()
        .map(|(run, attempt)| AttemptJson {
            run,
            n: attempt.n,
            at: rfc3339(attempt.at_ms),
            key: attempt.key,
            status: attempt.status,
            outcome: attempt.outcome,
            latency_ms: attempt.latency_ms,
            error: attempt.error,
        })
        .collect()
}

/// Text that should be JSON; as a JSON string where it is not, so that it is seen.
fn raw_json(text: String) -> Option<Box<RawValue>> {
    RawValue::from_string(text.clone()).or_else(|_| serde_json::value::to_raw_value(&text)).ok()
}

impl From<JobView> for JobJson {
    fn from(view: JobView) -> Self {
        let waits = matches!(view.state, JobState::Waiting | JobState::Queued);
        let due = at(view.due_ms.filter(|_| waits));
        Self {
            id: view.job.id,
            state: view.state,
            provider: view.job.provider,
            lane: view.job.lane,
            tenant: some(view.job.tenant),
            metadata: view.job.metadata.unwrap_or_else(|| RawValue::NULL.to_owned()),
            run: view.run,
            created_at: rfc3339(view.created_ms),
            finished_at: at(view.finished_ms),
            next_attempt_at: due.clone(),
            waiting_for: view.waiting_reason.filter(|_| waits).map(|reason| WaitingJson { reason, until: due }),
            attempts: attempts(view.attempts),
            reason: view.reason,
            error: view.error,
        }
    }
}

impl From<DeadView> for DeadJson {
    fn from(view: DeadView) -> Self {
        Self {
            id: view.id,
            provider: view.provider,
            lane: view.lane,
            tenant: some(view.tenant),
            reason: view.reason,
            error: view.error,
            attempts: attempts(view.attempts),
            envelope: view.envelope.and_then(raw_json),
            raw: view.raw.map(|bytes| STANDARD.encode(bytes)),
            headers: view.headers.and_then(raw_json),
            omitted: false,
            dead_at: rfc3339(view.dead_ms),
            replayed_at: at(view.replayed_ms),
        }
    }
}

/// A page of jobs.
pub(super) fn job_page(page: Page<JobView>) -> PageJson<JobJson> {
    PageJson {
        items: page.items.into_iter().map(JobJson::from).collect(),
        next_cursor: page.next.map(|position| ListKind::Jobs.encode(position)),
    }
}

/// A page of dead letters, its envelopes and raw messages bounded.
pub(super) fn dead_page(page: Page<DeadView>) -> PageJson<DeadJson> {
    let mut left = PAGE_BYTES_MAX;
    let shorten = |view: DeadView| {
        let size = view.envelope.as_ref().map_or(0, String::len) + view.raw.as_ref().map_or(0, bytes::Bytes::len);
        match left.checked_sub(size) {
            Some(rest) => {
                left = rest;
                DeadJson::from(view)
            }
            None => DeadJson { omitted: true, ..DeadJson::from(DeadView { envelope: None, raw: None, ..view }) },
        }
    };
    PageJson {
        items: page.items.into_iter().map(shorten).collect(),
        next_cursor: page.next.map(|position| ListKind::DeadLetters.encode(position)),
    }
}
