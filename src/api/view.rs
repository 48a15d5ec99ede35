//! How jobs and dead letters look from outside: the shapes of the contract.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::Problem;
use super::params::ListKind;
use crate::clock::{WallMs, rfc3339};
use crate::job::JobState;
use crate::store::{Attempt, DeadView, JobView, Page};

/// Envelopes and raw messages of one page of dead letters, all together, in bytes. What is left
/// out beyond it is had one by one.
const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What submitting a job came to.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
pub struct AcceptedMany {
    /// One entry an item.
    pub items: Vec<AcceptedItem>,
}

/// What became of one item of an array.
#[derive(Debug, Clone, Serialize)]
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

/// What replaying a dead letter came to.
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Dead letters that are gone.
    pub purged: u64,
    /// There are more: ask again.
    pub more: bool,
}

/// A page of a list.
#[derive(Debug, Clone, Serialize)]
pub struct PageJson<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// For the parameter `cursor` of the next page.
    pub next_cursor: Option<String>,
}

/// An attempt.
#[derive(Debug, Clone, Serialize)]
pub struct AttemptJson {
    run: u32,
    n: u32,
    at: String,
    key: String,
    status: Option<u16>,
    outcome: String,
    latency_ms: i64,
    error: Option<String>,
}

/// Why a job waits, and how long.
#[derive(Debug, Clone, Serialize)]
pub struct WaitingJson {
    reason: String,
    until: Option<String>,
}

/// A job.
#[derive(Debug, Clone, Serialize)]
pub struct JobJson {
    id: String,
    #[serde(serialize_with = "name")]
    state: JobState,
    provider: String,
    lane: String,
    tenant: Option<String>,
    metadata: Box<RawValue>,
    run: u32,
    created_at: String,
    finished_at: Option<String>,
    next_attempt_at: Option<String>,
    waiting_for: Option<WaitingJson>,
    attempts: Vec<AttemptJson>,
    reason: Option<String>,
    error: Option<String>,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize)]
pub struct DeadJson {
    id: String,
    provider: Option<String>,
    lane: Option<String>,
    tenant: Option<String>,
    reason: String,
    error: Option<String>,
    attempts: Vec<AttemptJson>,
    envelope: Option<Box<RawValue>>,
    raw: Option<String>,
    headers: Option<Box<RawValue>>,
    /// The page was full: `envelope` and `raw` are had from the dead letter itself.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    omitted: bool,
    dead_at: String,
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
