//! What is written about claimed jobs, with all that follows from it in the same transaction:
//! attempts, states, completion events, their deliveries, dead letters.

use std::collections::{HashMap, HashSet};

use super::dialect::{Rows, Tx};
use super::wakes::Pending;
use super::writer::Request;
use super::{Attempt, JobPk, Next, Record, Recorded, Store, StoreError, attempts, dead, events, fanout};
use crate::clock::WallMs;
use crate::job::{JobEvent, JobState, transition};

/// Writes `records` and answers each, in order.
pub(super) async fn record(tx: &mut Tx, records: &[&Record], wakes: &mut Pending) -> Result<Vec<Recorded>, StoreError> {
    let mut answers = vec![Recorded::Superseded; records.len()];
    let mut left: Vec<usize> = (0..records.len()).collect();
    // Several records of one job are written one after the other, in the order they came.
    while !left.is_empty() {
        let mut seen = HashSet::with_capacity(left.len());
        let (mut round, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|&i| seen.insert(records[i].pk));
        left = later;
        // Rows are always locked in this order, so that two writers cannot wait for each other.
        round.sort_unstable_by_key(|&i| records[i].pk);
        let changes = round.iter().map(|&i| Change::of(records[i])).collect::<Result<Vec<_>, _>>()?;
        for (&i, answer) in round.iter().zip(record_round(tx, &changes, wakes).await?) {
            answers[i] = answer;
        }
    }
    Ok(answers)
}

/// A record, translated into what it does to its row.
struct Change<'a> {
    record: &'a Record,
    state: JobState,
    /// The owner keeps it.
    holds: bool,
    /// It goes back to the store, or ends there if somebody asked to cancel it.
    goes_back: bool,
    due_ms: Option<WallMs>,
    backoff_ms: Option<i64>,
    waiting_reason: Option<&'static str>,
    reason: Option<&'static str>,
    error: Option<&'a str>,
}

impl<'a> Change<'a> {
    fn of(record: &'a Record) -> Result<Self, StoreError> {
        let after = |from, event| transition(from, event).map_err(|e| StoreError::Corrupt(e.to_string()));
        let mut change = Self {
            record,
            state: JobState::Queued,
            holds: false,
            goes_back: false,
            due_ms: None,
            backoff_ms: None,
            waiting_reason: None,
            reason: None,
            error: record.attempt.as_ref().and_then(|a| a.error.as_deref()),
        };
        match &record.next {
            Next::Keep => {
                change.state = after(JobState::Running, JobEvent::Due)?;
                change.holds = true;
            }
            Next::Running => {
                change.state = after(JobState::Queued, JobEvent::Send)?;
                change.holds = true;
            }
            Next::Wait { due_ms, reason, backoff } => {
                change.state = after(JobState::Running, JobEvent::Postpone)?;
                change.goes_back = true;
                change.due_ms = Some(*due_ms);
                change.backoff_ms = Some(i64::try_from(backoff.as_millis()).unwrap_or(i64::MAX));
                change.waiting_reason = Some(reason.as_str());
            }
            Next::Release => {
                change.state = after(JobState::Running, JobEvent::Release)?;
                change.goes_back = true;
                change.due_ms = Some(record.at_ms);
            }
            Next::Finish { state, reason, error, .. } => {
                if !state.is_terminal() {
                    return Err(StoreError::Corrupt(format!("a job cannot end as {state}")));
                }
                change.state = *state;
                change.reason = reason.map(super::DeadReason::as_str);
                change.error = error.as_deref();
            }
        }
        Ok(change)
    }

    fn first(&self) -> Option<&'a Attempt> {
        attempts::first_of(self.record)
    }

    const fn ends(&self) -> bool {
        matches!(self.record.next, Next::Finish { .. })
    }
}

/// What a changed row says: pk, state, cancel requested, tenant, id, provider, lane, attempts,
/// created, callback, reply to, correlation id, trace, metadata.
type Hit = (
    JobPk,
    String,
    bool,
    String,
    String,
    String,
    String,
    i64,
    WallMs,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// The owner's hold is asked for where the job stays in its hands; a job that was released
/// meanwhile, and that nobody claimed again, still takes the end of its call, which is known now.
const CHANGE: &str = "UPDATE jobs SET
    state = CASE WHEN v.goes_back AND jobs.cancel_requested THEN 'cancelled' ELSE v.state END,
    attempts = COALESCE(v.attempt, jobs.attempts),
    failures = v.failures,
    first_attempt_ms = COALESCE(jobs.first_attempt_ms, v.attempt_ms),
    first_at_ms = COALESCE(jobs.first_at_ms, v.first_at_ms),
    first_key = COALESCE(jobs.first_key, v.first_key),
    first_status = COALESCE(jobs.first_status, v.first_status),
    first_outcome = COALESCE(jobs.first_outcome, v.first_outcome),
    first_latency_ms = COALESCE(jobs.first_latency_ms, v.first_latency_ms),
    first_error = COALESCE(jobs.first_error, v.first_error),
    backoff_ms = COALESCE(v.backoff_ms, jobs.backoff_ms),
    due_ms = CASE WHEN v.due_ms IS NULL THEN jobs.due_ms
                  WHEN jobs.deadline_ms < v.due_ms THEN jobs.deadline_ms
                  ELSE v.due_ms END,
    owner = CASE WHEN v.holds THEN jobs.owner ELSE NULL END,
    started = (v.state = 'running' AND jobs.delivery = 'at_most_once'),
    waiting_reason = CASE WHEN jobs.cancel_requested THEN NULL ELSE v.waiting_reason END,
    reason = v.reason,
    error = CASE WHEN v.ends THEN v.error ELSE COALESCE(v.error, jobs.error) END,
    finished_ms = CASE WHEN v.ends OR (v.goes_back AND jobs.cancel_requested) THEN v.at_ms ELSE NULL END
FROM v
WHERE jobs.pk =[v.pk] AND jobs.epoch = v.epoch AND jobs.run = v.run
    AND jobs.state IN ('queued', 'waiting', 'running')
    AND (jobs.owner IS NOT NULL OR NOT v.holds)
RETURNING jobs.pk, jobs.state, jobs.cancel_requested, jobs.tenant, jobs.id, jobs.provider, jobs.lane,
    jobs.attempts, jobs.created_ms, jobs.callback, jobs.reply_to, jobs.correlation_id, jobs.traceparent, jobs.metadata";

async fn record_round(tx: &mut Tx, changes: &[Change<'_>], wakes: &mut Pending) -> Result<Vec<Recorded>, StoreError> {
    let hits = change_rows(tx, changes).await?;
    let done: Vec<&Record> = changes.iter().map(|c| c.record).filter(|r| hits.contains_key(&r.pk)).collect();
    attempts::insert(tx, &done).await?;
    let mut answers = Vec::with_capacity(changes.len());
    let mut ended = Vec::new();
    for change in changes {
        let Some(hit) = hits.get(&change.record.pk) else {
            answers.push(Recorded::Superseded);
            continue;
        };
        answers.push(if change.holds && hit.2 { Recorded::CancelRequested } else { Recorded::Done });
        let state = JobState::from_name(&hit.1).ok_or_else(|| StoreError::Corrupt(format!("a job is {:?}", hit.1)))?;
        if state.is_terminal() {
            ended.push(events::Ended::new(change.record, state, change.reason, change.error, hit)?);
        } else if change.goes_back {
            let everywhere = matches!(change.record.next, Next::Release);
            wakes.jobs(&hit.5, everywhere);
        }
    }
    let event_pks = events::insert(tx, &ended).await?;
    if !ended.is_empty() {
        wakes.completions();
    }
    fanout::insert(tx, &ended, &event_pks, wakes).await?;
    dead::upsert(tx, &ended).await?;
    Ok(answers)
}

async fn change_rows(tx: &mut Tx, changes: &[Change<'_>]) -> Result<HashMap<JobPk, Hit>, StoreError> {
    let attempt = |c: &Change<'_>| c.record.attempt.as_ref().map(|a| (i64::from(a.n), a.at_ms));
    let rows = Rows::new()
        .int("pk", changes.iter().map(|c| Some(c.record.pk)))
        .int("epoch", changes.iter().map(|c| Some(c.record.epoch)))
        .int("run", changes.iter().map(|c| Some(i64::from(c.record.run))))
        .text("state", changes.iter().map(|c| Some(c.state.as_str())))
        .flag("holds", changes.iter().map(|c| c.holds))
        .flag("goes_back", changes.iter().map(|c| c.goes_back))
        .flag("ends", changes.iter().map(Change::ends))
        .int("attempt", changes.iter().map(|c| attempt(c).map(|a| a.0)))
        .int("attempt_ms", changes.iter().map(|c| attempt(c).map(|a| a.1)))
        .int("first_at_ms", changes.iter().map(|c| c.first().map(|a| a.at_ms)))
        .text("first_key", changes.iter().map(|c| c.first().map(|a| a.key.as_str())))
        .int("first_status", changes.iter().map(|c| c.first()?.status.map(i64::from)))
        .text("first_outcome", changes.iter().map(|c| c.first().map(|a| a.outcome.as_str())))
        .int("first_latency_ms", changes.iter().map(|c| c.first().map(|a| a.latency_ms)))
        .text("first_error", changes.iter().map(|c| c.first()?.error.as_deref()))
        .int("failures", changes.iter().map(|c| Some(i64::from(c.record.failures))))
        .int("backoff_ms", changes.iter().map(|c| c.backoff_ms))
        .int("due_ms", changes.iter().map(|c| c.due_ms))
        .int("at_ms", changes.iter().map(|c| Some(c.record.at_ms)))
        .text("waiting_reason", changes.iter().map(|c| c.waiting_reason))
        .text("reason", changes.iter().map(|c| c.reason))
        .text("error", changes.iter().map(|c| c.error));
    let hits: Vec<Hit> = rows.fetch(tx, CHANGE).await?;
    Ok(hits.into_iter().map(|hit| (hit.0, hit)).collect())
}

/// The columns of [`Hit`] by name, for those that follow.
pub(super) struct HitView<'a> {
    pub tenant: &'a str,
    pub id: &'a str,
    pub provider: &'a str,
    pub lane: &'a str,
    pub attempts: i64,
    pub created_ms: WallMs,
    pub callback: Option<&'a str>,
    pub reply_to: Option<&'a str>,
    pub correlation_id: Option<&'a str>,
    pub traceparent: Option<&'a str>,
    pub metadata: Option<&'a str>,
}

impl<'a> From<&'a Hit> for HitView<'a> {
    fn from(hit: &'a Hit) -> Self {
        Self {
            tenant: &hit.3,
            id: &hit.4,
            provider: &hit.5,
            lane: &hit.6,
            attempts: hit.7,
            created_ms: hit.8,
            callback: hit.9.as_deref(),
            reply_to: hit.10.as_deref(),
            correlation_id: hit.11.as_deref(),
            traceparent: hit.12.as_deref(),
            metadata: hit.13.as_deref(),
        }
    }
}

impl Store {
    /// Writes what becomes of a claimed job.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was committed is not known. Doing it again is safe,
    /// and answered with [`Recorded::Superseded`] where the first one ended the job.
    pub async fn record(&self, record: Record) -> Result<Recorded, StoreError> {
        self.inner.outcomes.ask(|reply| Request::Record(Box::new(record), reply)).await
    }
}
