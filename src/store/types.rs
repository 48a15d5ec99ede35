//! What goes into the store and what comes out of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::WallMs;
use crate::job::{EventKind, Job, JobState};

pub use crate::job::DeadReason;

/// Row number of a job; internal, never shown.
pub type JobPk = i64;

/// Which process holds a job: made new at every start.
pub type OwnerId = String;

/// Why a job is `waiting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WaitReason {
    /// Its own start time.
    NotBefore,
    /// A failed attempt.
    Backoff,
    /// Its provider, budget or key is paused.
    Paused,
    /// No usable key is left.
    NoKey,
    /// The provider is down.
    Breaker,
}

impl WaitReason {
    /// The name in the API and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotBefore => "not_before",
            Self::Backoff => "backoff",
            Self::Paused => "paused",
            Self::NoKey => "no_key",
            Self::Breaker => "breaker",
        }
    }
}

/// What came along with an AMQP message and goes back with its completion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The queue to answer to.
    pub reply_to: Option<String>,
    /// The producer's own id of the conversation.
    pub correlation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// A job to let in.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The checked job.
    pub job: Job,
    /// From its message.
    pub origin: Origin,
    /// Claimed in the same commit for that owner (AMQP), or due for whoever claims it (HTTP).
    /// A job whose `not_before` lies ahead is never claimed at once.
    pub owner: Option<OwnerId>,
}

/// What letting a job in came to.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "nearly all of them are the large one")]
pub enum Inserted {
    /// It is new; the claim where an owner was given and it is due now.
    Created(Option<Claimed>),
    /// The same job was there already.
    Exists(JobState),
    /// Another job has that id.
    Conflict,
}

/// A job in the hands of its owner. Consumed by a [`Record`]: nothing else lets go of it.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// Its row.
    pub pk: JobPk,
    /// Rises with every claim: a late owner's record no longer counts.
    pub epoch: i64,
    /// 1, and one more with each replay.
    pub run: u32,
    /// Attempts made in this run, of every kind.
    pub attempts: u32,
    /// Attempts of this run that counted as failures.
    pub failures: u32,
    /// When this run's first attempt was made.
    pub first_attempt_ms: Option<WallMs>,
    /// The last backoff.
    pub backoff: Duration,
    /// When it was accepted.
    pub created_ms: WallMs,
    /// The job; `idempotency_key` is this run's.
    pub job: Job,
}

/// One call that was made (or tried).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number within the run, from 1.
    pub n: u32,
    /// When it was sent.
    pub at_ms: WallMs,
    /// Label of the key.
    pub key: String,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
    /// Name of the outcome.
    pub outcome: String,
    /// From sending to the end of the response.
    pub latency_ms: i64,
    /// What went wrong, secrets removed.
    pub error: Option<String>,
}

/// A provider's response as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// HTTP status.
    pub status: u16,
    /// Header fields as a JSON object of strings, secrets removed.
    pub headers: String,
    /// `content-type`, if any.
    pub content_type: Option<String>,
    /// The body, secrets removed.
    pub body: Bytes,
    /// The body was longer than what is kept.
    pub truncated: bool,
}

impl StoredResponse {
    /// The value of a header field, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<String> {
        let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&self.headers).ok()?;
        fields.get(name)?.as_str().map(str::to_owned)
    }
}

/// What to write about a claimed job, in one transaction with all that follows from it.
#[derive(Debug, Clone)]
pub struct Record {
    /// The job's row.
    pub pk: JobPk,
    /// The claim's epoch; a record of another epoch changes nothing.
    pub epoch: i64,
    /// The claim's run.
    pub run: u32,
    /// The attempt that was made, if one was.
    pub attempt: Option<Attempt>,
    /// Failures of this run so far.
    pub failures: u32,
    /// When the record was decided.
    pub at_ms: WallMs,
    /// What becomes of the job.
    pub next: Next,
}

/// What becomes of a claimed job.
#[derive(Debug, Clone)]
pub enum Next {
    /// It stays with its owner and goes again at the next slot.
    Keep,
    /// It is seen to be `running` (a call that takes long; and every `at_most_once` call, before
    /// its first byte leaves).
    Running,
    /// It goes back to the store until `due_ms`.
    Wait {
        /// Not claimed before.
        due_ms: WallMs,
        /// Shown as `waiting_for`.
        reason: WaitReason,
        /// The backoff, for the next one to build on.
        backoff: Duration,
    },
    /// It goes back to the store, due at once.
    Release,
    /// It reaches a terminal state: one event, its deliveries, and a dead letter if it died.
    Finish {
        /// Terminal.
        state: JobState,
        /// Of `dead`.
        reason: Option<DeadReason>,
        /// What went wrong, secrets removed.
        error: Option<String>,
        /// The provider's last answer.
        response: Option<StoredResponse>,
    },
}

/// What writing a record came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// It is committed.
    Done,
    /// Somebody else owns the job by now, or it ended: nothing was changed.
    Superseded,
    /// It is committed, and somebody asked to cancel the job: the owner should finish it as
    /// cancelled if it is not being sent.
    CancelRequested,
}

/// A message that never became a job.
#[derive(Debug, Clone)]
pub struct Buried {
    /// Why.
    pub reason: DeadReason,
    /// What was wrong with it.
    pub error: String,
    /// As far as it is known.
    pub tenant: String,
    /// As far as it is known.
    pub provider: Option<String>,
    /// As far as it is known.
    pub lane: Option<String>,
    /// The message as it came.
    pub raw: Bytes,
    /// Its headers and properties as a JSON object.
    pub headers: String,
    /// What it is known by when it comes again; `None`: it never does.
    pub identity: Option<Identity>,
}

/// Tells a message from others that never became jobs either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Of all that the producer said.
    pub hash: [u8; 32],
    /// It may be kept already, as one letter: the broker delivered it before, or its producer named it. Without that
    /// two that are alike are two.
    pub again: bool,
}

/// Filters of a list of jobs. `None` lets everything through.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// State.
    pub state: Option<JobState>,
    /// Provider.
    pub provider: Option<String>,
    /// Lane.
    pub lane: Option<String>,
    /// Tenant (`Some("")`: jobs without one).
    pub tenant: Option<String>,
}

/// Filters of a list of dead letters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadFilter {
    /// Reason.
    pub reason: Option<String>,
    /// Provider.
    pub provider: Option<String>,
    /// Lane.
    pub lane: Option<String>,
    /// Tenant.
    pub tenant: Option<String>,
    /// Only those replayed (`true`) or not yet (`false`).
    pub replayed: Option<bool>,
    /// Dead since then, or later.
    #[serde(default)]
    pub dead_after_ms: Option<WallMs>,
    /// Dead before then.
    #[serde(default)]
    pub dead_before_ms: Option<WallMs>,
}

impl DeadFilter {
    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A page of a list, newest first.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins; opaque to clients.
    pub next: Option<i64>,
}

/// A job as it is shown.
#[derive(Debug, Clone)]
pub struct JobView {
    /// Its row, for cursors.
    pub pk: JobPk,
    /// State, run and identity are in here.
    pub job: Job,
    /// Where it is.
    pub state: JobState,
    /// The run.
    pub run: u32,
    /// Accepted.
    pub created_ms: WallMs,
    /// Ended.
    pub finished_ms: Option<WallMs>,
    /// When it is due, while it waits.
    pub due_ms: Option<WallMs>,
    /// Why it waits.
    pub waiting_reason: Option<String>,
    /// Why it is dead.
    pub reason: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// Every attempt with its run, oldest first.
    pub attempts: Vec<(u32, Attempt)>,
}

/// A dead letter as it is shown.
#[derive(Debug, Clone)]
pub struct DeadView {
    /// Its row, for cursors.
    pub pk: i64,
    /// The job's id, or its own.
    pub id: String,
    /// Tenant.
    pub tenant: String,
    /// Provider, if it is known.
    pub provider: Option<String>,
    /// Lane, if it is known.
    pub lane: Option<String>,
    /// Why.
    pub reason: String,
    /// The last error.
    pub error: Option<String>,
    /// Every attempt with its run, oldest first; empty where it never was a job.
    pub attempts: Vec<(u32, Attempt)>,
    /// The job's envelope as JSON text.
    pub envelope: Option<String>,
    /// The message as it came, where it never became a job.
    pub raw: Option<Bytes>,
    /// That message's headers, as a JSON object.
    pub headers: Option<String>,
    /// When it died.
    pub dead_ms: WallMs,
    /// When it was last replayed.
    pub replayed_ms: Option<WallMs>,
}

/// How a dead letter is run again.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Another request, checked already.
    pub request: Option<crate::job::Request>,
    /// Another lane; `replay` unless given.
    pub lane: Option<String>,
    /// Not before.
    pub not_before_ms: Option<WallMs>,
    /// `Some(true)`: keep the idempotency key; `Some(false)`: a new one; else by the rule: kept
    /// where an attempt of the last run was unknown and the request is not edited.
    pub keep_key: Option<bool>,
    /// Who asks; an edit by them is written down as an act ([`super::ActKind::DeadReplayEdited`]).
    pub by: Option<String>,
}

/// What replaying a dead letter came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// It is queued as that run.
    Queued {
        /// The run.
        run: u32,
    },
    /// There is no such dead letter.
    NotFound,
    /// It was replayed already, and is in that state.
    NotDead(JobState),
    /// It never was a job: there is nothing to run.
    NotAJob,
}

/// What cancelling came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It is cancelled.
    Done,
    /// A dispatcher holds it and was asked; look again.
    Asked,
    /// It is being sent, or it ended: too late.
    TooLate(JobState),
    /// There is no such job.
    NotFound,
}

/// Something to tell one endpoint, claimed by a notifier.
#[derive(Debug, Clone)]
pub struct DeliveryJob {
    /// Its row.
    pub pk: i64,
    /// Rises with every claim.
    pub epoch: i64,
    /// Attempts made so far.
    pub attempts: u32,
    /// Those of them that were made before somebody asked to send it again: the schedule begins after them.
    pub attempts_before: u32,
    /// Where it goes.
    pub endpoint: Arc<Endpoint>,
    /// What to tell.
    pub occasion: Occasion,
}

/// What an endpoint is told.
#[derive(Debug, Clone)]
pub enum Occasion {
    /// A job ended.
    Completion(Arc<Event>),
    /// Somebody tries the endpoint out.
    Test {
        /// Stable over its attempts.
        event_id: String,
        /// When it was asked for.
        at_ms: WallMs,
    },
}

/// A completion event to publish to the broker, claimed by a notifier.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Its row.
    pub pk: i64,
    /// Rises with every claim.
    pub epoch: i64,
    /// Attempts made so far.
    pub attempts: u32,
    /// As in [`DeliveryJob`].
    pub attempts_before: u32,
    /// The queue that its producer waits at; `None`: the exchange of events.
    pub reply_to: Option<String>,
    /// The producer's own id of the conversation.
    pub correlation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// What happened.
    pub event: Arc<Event>,
}

/// A webhook endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its row.
    pub pk: i64,
    /// `ep_…`
    pub id: String,
    /// Tenant, or empty.
    pub tenant: String,
    /// Where to post to.
    pub url: String,
    /// Made from a bare callback URL.
    pub implicit: bool,
    /// What signs for it; `None`: the secret of its tenant.
    pub secrets: Option<super::EndpointSecrets>,
}

/// A completion.
#[derive(Debug, Clone)]
pub struct Event {
    /// Stable: derived from job, run and state.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub at_ms: WallMs,
    /// Attempts of the run.
    pub attempts: u32,
    /// Why a dead job died.
    pub reason: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// The provider's last answer.
    pub response: Option<StoredResponse>,
    /// Whose completion it is.
    pub job_id: String,
    /// The provider.
    pub provider: String,
    /// Tenant, or empty.
    pub tenant: String,
    /// The job's metadata as JSON text.
    pub metadata: Option<String>,
}

/// What became of a delivery attempt.
#[derive(Debug, Clone)]
pub struct DeliveryRecord {
    /// The delivery's row.
    pub pk: i64,
    /// The claim's epoch.
    pub epoch: i64,
    /// Number of the attempt, from 1.
    pub n: u32,
    /// When it was sent.
    pub at_ms: WallMs,
    /// HTTP status, where there was one.
    pub status: Option<u16>,
    /// How long it took.
    pub latency_ms: i64,
    /// What went wrong.
    pub error: Option<String>,
    /// What becomes of it.
    pub next: DeliveryNext,
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryNext {
    /// The endpoint has it.
    Delivered,
    /// The broker has it: nothing of it is kept.
    Published,
    /// Again at that time.
    Retry {
        /// Not before.
        due_ms: WallMs,
    },
    /// The schedule is spent: kept, visible, can be resent.
    Failed,
    /// The endpoint is gone (410): it is disabled, with all that is pending for it.
    Gone,
}

/// What asking for a lease came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaseTake {
    /// It is the asker's.
    Taken {
        /// Rises whenever the lease is taken: what an earlier owner writes no longer counts.
        epoch: i64,
        /// What was last written; `None` where nothing ever was.
        last: Option<LeaseState>,
    },
    /// Somebody else has it.
    Held {
        /// Who.
        owner: OwnerId,
        /// When it can be taken, unless it is renewed.
        expires_in: Duration,
    },
}

/// What asking for leases came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeasesTaken {
    /// In the order of the names.
    pub answers: Vec<LeaseTake>,
    /// Of groups that the asker does not know: they may have had the same budgets. What is older than what
    /// was left of a taken group says nothing new of it.
    pub left: Vec<LeaseState>,
}

/// What is written of a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseWrite {
    /// Of which pacing group.
    pub name: String,
    /// In which it is held.
    pub epoch: i64,
    /// What was spent, and may be spent (JSON).
    pub state: String,
}

/// Who holds what of a provider, and who dispatches it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseSurvey {
    /// Every lease that there ever was, by name.
    pub leases: Vec<LeaseSeen>,
    /// Those that live, by name.
    pub dispatchers: Vec<DispatcherSeen>,
}

/// A lease as those see it who would take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseSeen {
    /// The pacing group; empty: all of the provider.
    pub name: String,
    /// Who took it last; one whose lease has run out is not alive. `None`: it was let go of.
    pub owner: Option<OwnerId>,
    /// Nothing: it can be taken.
    pub expires_in: Duration,
}

/// A dispatcher of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DispatcherSeen {
    /// Who.
    pub owner: OwnerId,
    /// Stands for the pacing groups that it knows.
    pub structure: String,
}

/// What owners of a lease left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    /// What was spent, as its writer put it (JSON).
    pub state: String,
    /// How long ago it was written, by the database's clock; never negative.
    pub saved_ago: Duration,
    /// It was written when the lease was let go of, and nobody had the lease since: it is complete.
    pub clean: bool,
}

/// A lease as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Provider.
    pub provider: String,
    /// The pacing group within the provider; empty: all of the provider.
    pub name: String,
    /// Who took it last; it may have expired. `None`: it was let go of.
    pub owner: Option<OwnerId>,
    /// How often it was taken.
    pub epoch: i64,
    /// Nothing: it can be taken.
    pub expires_in: Duration,
    /// It was let go of with its state complete.
    pub clean: bool,
}

/// Something that a waiting part should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wake {
    /// Jobs of that provider are due.
    Jobs(String),
    /// A lease of that provider was let go of, or somebody who wants some began to dispatch it.
    Lease(String),
    /// Deliveries are due.
    Deliveries,
    /// Somebody asked to cancel a claimed job.
    Cancel(JobPk),
    /// An operator gave an order about that provider.
    Orders(String),
}

/// What an order is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The provider as a whole.
    Provider,
    /// One of its keys, by label.
    Key(String),
    /// One of its budgets: by name, or by the label of its only key.
    Budget(String),
}

impl Subject {
    /// The names in the database: what it is, and which.
    pub(super) fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Provider => ("provider", ""),
            Self::Key(label) => ("key", label),
            Self::Budget(name) => ("budget", name),
        }
    }
}

/// An operator's last word about a provider, a key or a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// The provider.
    pub provider: String,
    /// What it is about.
    pub subject: Subject,
    /// Out of use until the next order; else in use, whatever was learnt before.
    pub held: bool,
    /// Rises with every order about that subject, from 1.
    pub version: u64,
    /// Who gave it.
    pub by: String,
    /// When.
    pub at_ms: WallMs,
}

/// A report as it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct ReportView {
    /// The provider.
    pub provider: String,
    /// The process that wrote it.
    pub owner: OwnerId,
    /// How long ago, by the database's clock. Nothing is written while nothing changes.
    pub age: Duration,
    /// What it says.
    pub report: Report,
}

/// How things stand with a provider in the process that spends its budgets, or some of them.
///
/// Bounded: at most [`Report::KEYS_MAX`] keys are told one by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Calls a second that all limits together allow now; `None`: time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// Calls a second that left in the last minute.
    pub achieved_per_second: f64,
    /// Calls that are open.
    pub open: u64,
    /// Of the breaker: `open` or `half_open`; `None`: closed.
    pub breaker: Option<String>,
    /// Jobs in hand that wait for a permit: lane and how many.
    pub permits_waiting: Vec<(String, u64)>,
    /// The budgets that this process may spend, those with a key out of use first.
    pub budgets: Vec<BudgetReport>,
    /// Keys that are not told one by one.
    pub keys_left_out: u64,
}

impl Report {
    /// Keys that are told one by one, at most.
    pub const KEYS_MAX: usize = 1_000;
}

/// How a budget stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BudgetReport {
    /// Its name, or the label of its only key.
    pub name: String,
    /// Whether it was declared, and not made for a single key.
    pub declared: bool,
    /// `open`, `paused` or `parked`.
    pub state: String,
    /// When that ends by itself, if it does.
    pub until_ms: Option<WallMs>,
    /// Calls a second that its limits allow now; `None`: time does not limit them.
    pub allowed_per_second: Option<f64>,
    /// Calls a second that left in the last minute.
    pub achieved_per_second: f64,
    /// When it has room for one more call, if that lies ahead and is known.
    pub next_slot_ms: Option<WallMs>,
    /// Calls that left since the process took it over.
    pub calls: u64,
    /// Of these, 429s in spite of a permit.
    pub pacing_errors: u64,
    /// The dialect of the last response that said something about limits.
    pub signals: Option<String>,
    /// How far it is with limits that nobody declared: `slow_start`, `told`, `refused`, `found`, `settled` or
    /// `probing_again`; `None`: they are declared.
    pub probing: Option<String>,
    /// Calls a second that the provider is believed to allow then.
    pub found_per_second: Option<f64>,
    /// Limits of its keys together.
    pub limits: Vec<LimitReport>,
    /// Its keys.
    pub keys: Vec<KeyReport>,
}

/// How a key stands. Never its secret.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyReport {
    /// Its label.
    pub label: String,
    /// `open`, `paused`, `refused`, `probing` or `disabled`.
    pub state: String,
    /// When that ends by itself, or the key is tried again, if it is.
    pub until_ms: Option<WallMs>,
    /// Its own limits.
    pub limits: Vec<LimitReport>,
}

/// How much of a limit is taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitReport {
    /// `requests`, `cost` or `concurrency`.
    pub unit: String,
    /// The amount per period as declared.
    pub amount: u64,
    /// The period; `None` for concurrency.
    pub per_ms: Option<u64>,
    /// Taken now, by this system and by others.
    pub used: u64,
    /// The most that can be taken now.
    pub most: u64,
}
