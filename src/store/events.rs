//! Completions: one for each run of a job.

use std::collections::HashMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::dialect::{Db, Rows, Tx, on_db};
use super::outcomes::HitView;
use super::{JobPk, Next, Record, Store, StoreError, StoredResponse};
use crate::clock::WallMs;
use crate::job::{Callback, EventKind, JobState};

/// A run that ended just now.
pub(super) struct Ended<'a> {
    pub event_id: String,
    pub record: &'a Record,
    pub job: HitView<'a>,
    pub state: JobState,
    pub reason: Option<&'a str>,
    pub error: Option<&'a str>,
    pub response: Option<&'a StoredResponse>,
    pub callback: Option<Callback>,
}

impl<'a> Ended<'a> {
    pub fn new(
        record: &'a Record,
        state: JobState,
        reason: Option<&'a str>,
        error: Option<&'a str>,
        job: impl Into<HitView<'a>>,
    ) -> Result<Self, StoreError> {
        let job = job.into();
        let callback = job.callback.map(serde_json::from_str).transpose();
        let callback = callback.map_err(|e| StoreError::Corrupt(format!("the callback of job {}: {e}", job.id)))?;
        let (error, response) = match &record.next {
            Next::Finish { response, .. } => (error, response.as_ref()),
            _ => (None, None),
        };
        let event_id = event_id(job.tenant, job.id, job.created_ms, record.run, state);
        Ok(Self { event_id, record, job, state, reason, error, response, callback })
    }
}

/// Always the same for the same completion. The time of acceptance is part of it: an id that is
/// used again after retention has events of its own.
fn event_id(tenant: &str, id: &str, created_ms: WallMs, run: u32, state: JobState) -> String {
    let mut hash = Sha256::new();
    for part in [tenant, id, state.as_str()] {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.update(created_ms.to_be_bytes());
    hash.update(run.to_be_bytes());
    let digest = hash.finalize();
    let mut text = String::with_capacity(36);
    text.push_str("evt_");
    for byte in &digest[..16] {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text
}

/// The event of a terminal state.
pub(super) const fn kind_of(state: JobState) -> Option<EventKind> {
    match state {
        JobState::Succeeded => Some(EventKind::Succeeded),
        JobState::Dead => Some(EventKind::Dead),
        JobState::Expired => Some(EventKind::Expired),
        JobState::Cancelled => Some(EventKind::Cancelled),
        JobState::Queued | JobState::Waiting | JobState::Running => None,
    }
}

/// Adds their events; the rows, by job.
pub(super) async fn insert(tx: &mut Tx, ended: &[Ended<'_>]) -> Result<HashMap<JobPk, i64>, StoreError> {
    let rows = Rows::new()
        .text("id", ended.iter().map(|e| Some(e.event_id.as_str())))
        .int("job_pk", ended.iter().map(|e| Some(e.record.pk)))
        .int("run", ended.iter().map(|e| Some(i64::from(e.record.run))))
        .text("state", ended.iter().map(|e| Some(e.state.as_str())))
        .int("at_ms", ended.iter().map(|e| Some(e.record.at_ms)))
        .int("attempts", ended.iter().map(|e| Some(e.job.attempts)))
        .text("reason", ended.iter().map(|e| e.reason))
        .text("error", ended.iter().map(|e| e.error))
        .int("status", ended.iter().map(|e| e.response.map(|r| i64::from(r.status))))
        .text("headers", ended.iter().map(|e| e.response.map(|r| r.headers.as_str())))
        .text("content_type", ended.iter().map(|e| e.response.and_then(|r| r.content_type.as_deref())))
        .flag("truncated", ended.iter().map(|e| e.response.is_some_and(|r| r.truncated)))
        .blob("body", ended.iter().map(|e| e.response.map(|r| &r.body[..])));
    let insert = "INSERT INTO events
        (id, job_pk, run, state, at_ms, attempts, reason, error, status, headers, content_type, truncated, body)
        SELECT id, job_pk, run, state, at_ms, attempts, reason, error, status, headers, content_type, truncated, body
        FROM v WHERE TRUE RETURNING job_pk, pk";
    let rows: Vec<(JobPk, i64)> = rows.fetch(tx, insert).await?;
    Ok(rows.into_iter().collect())
}

/// The columns of a kept answer, as they are read: status, headers, content type, truncated, body.
pub(super) type ResponseRow = (Option<i64>, Option<String>, Option<String>, bool, Option<Vec<u8>>);

pub(super) fn response_of(row: ResponseRow) -> Option<StoredResponse> {
    let (status, headers, content_type, truncated, body) = row;
    Some(StoredResponse {
        status: u16::try_from(status?).ok()?,
        headers: headers.unwrap_or_else(|| "{}".to_owned()),
        content_type,
        body: Bytes::from(body.unwrap_or_default()),
        truncated,
    })
}

/// The answer of the job's present run, once that has ended.
async fn result(db: &Db, tenant: Option<&str>, id: &str) -> Result<Option<StoredResponse>, StoreError> {
    let sql = "SELECT e.status, e.headers, e.content_type, e.truncated, e.body
        FROM jobs j JOIN events e ON e.job_pk = j.pk AND e.run = j.run
        WHERE j.id = $1 AND ($2 IS NULL OR j.tenant = $2) ORDER BY j.tenant LIMIT 1";
    let row: Option<ResponseRow> =
        on_db!(read db, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    Ok(row.and_then(response_of))
}

impl Store {
    /// The provider's answer in the job's present run, once that has ended with one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn result(&self, tenant: Option<&str>, id: &str) -> Result<Option<StoredResponse>, StoreError> {
        self.db().in_time(result(self.db(), tenant, id)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_are_stable_and_tell_runs_states_and_jobs_apart() {
        let id = event_id("acme", "a", 1, 1, JobState::Dead);
        assert_eq!(id, event_id("acme", "a", 1, 1, JobState::Dead));
        assert_eq!(id.len(), 36);
        let others = [
            event_id("acme", "a", 1, 2, JobState::Dead),
            event_id("acme", "a", 1, 1, JobState::Expired),
            event_id("acm", "ea", 1, 1, JobState::Dead),
            event_id("acme", "a", 2, 1, JobState::Dead),
        ];
        assert!(others.iter().all(|other| *other != id));
    }
}
