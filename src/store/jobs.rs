//! Letting jobs in, claiming them, looking at them, withdrawing them.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::dialect::{Db, Rows, Tx, on_db};
use super::wakes::Pending;
use super::writer::Request;
use super::{
    Attempt, Cancelled, Claimed, DeadReason, Inserted, JobFilter, JobPk, JobView, NewJob, Next, Origin, OwnerId, Page,
    Record, Store, StoreError, act, attempts, due, number, outcomes,
};
use crate::clock::WallMs;
use crate::job::{Job, JobState};

/// Bytes of envelopes in one claim, more or less: the last one may go over it.
const CLAIM_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// A job to let in, with everything worked out that needs no database.
#[derive(Debug)]
pub(super) struct Arrival {
    job: Job,
    origin: Origin,
    hash: [u8; 32],
    envelope: String,
    callback: Option<String>,
    state: JobState,
    due_ms: WallMs,
    owner: Option<OwnerId>,
}

/// The stored form of a job.
fn envelope_text(job: &Job) -> Result<String, StoreError> {
    serde_json::to_string(&job.to_envelope()).map_err(|e| StoreError::Corrupt(format!("job {}: {e}", job.id)))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

impl Arrival {
    pub fn prepare(new: NewJob, now_ms: WallMs) -> Result<Self, StoreError> {
        let NewJob { job, origin, owner } = new;
        let envelope = envelope_text(&job)?;
        let callback = job.callback.as_ref().map(serde_json::to_string).transpose();
        let callback = callback.map_err(|e| StoreError::Corrupt(format!("job {}: {e}", job.id)))?;
        let ahead = job.not_before_ms.filter(|&start| start > now_ms);
        let due_ms = ahead.unwrap_or(now_ms);
        Ok(Self {
            hash: job.hash(),
            envelope,
            callback,
            state: if ahead.is_some() { JobState::Waiting } else { JobState::Queued },
            due_ms: job.deadline_ms.map_or(due_ms, |deadline| due_ms.min(deadline)),
            owner: owner.filter(|_| ahead.is_none()),
            job,
            origin,
        })
    }

    /// How much of a batch it takes.
    pub fn bytes(&self) -> usize {
        self.envelope.len()
    }

    fn identity(&self) -> (&str, &str) {
        (&self.job.id, &self.job.tenant)
    }

    /// The answer, and the claim that goes with it.
    pub fn into_inserted(self, insertion: Insertion, now_ms: WallMs) -> Inserted {
        match insertion {
            Insertion::Exists(state) => Inserted::Exists(state),
            Insertion::Conflict => Inserted::Conflict,
            Insertion::Created(_) if self.owner.is_none() => Inserted::Created(None),
            Insertion::Created(pk) => Inserted::Created(Some(Claimed {
                pk,
                epoch: 1,
                run: 1,
                attempts: 0,
                failures: 0,
                first_attempt_ms: None,
                backoff: Duration::ZERO,
                created_ms: now_ms,
                job: self.job,
            })),
        }
    }
}

/// What letting a job in came to, before the claim is made of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Insertion {
    Created(JobPk),
    Exists(JobState),
    Conflict,
}

/// Inserts the arrivals, each with the time it was accepted at, and answers each, in order.
pub(super) async fn insert(
    tx: &mut Tx,
    arrivals: &[(&Arrival, WallMs)],
    wakes: &mut Pending,
) -> Result<Vec<Insertion>, StoreError> {
    // The first of each identity is inserted; in the order of the index, so that two writers with
    // the same ids cannot wait for each other.
    let mut order: Vec<usize> = (0..arrivals.len()).collect();
    order.sort_by_key(|&i| arrivals[i].0.identity());
    order.dedup_by_key(|i| arrivals[*i].0.identity());
    let first: Vec<(&Arrival, WallMs)> = order.iter().map(|&i| arrivals[i]).collect();
    let created = insert_rows(tx, &first).await?;
    let mut answers = vec![Insertion::Conflict; arrivals.len()];
    let mut others = Vec::new();
    let mut firsts = vec![false; arrivals.len()];
    for i in order {
        firsts[i] = created.contains_key(&arrivals[i].0.identity());
    }
    for (i, (arrival, now_ms)) in arrivals.iter().enumerate() {
        match created.get(&arrival.identity()) {
            Some(&pk) if firsts[i] => {
                answers[i] = Insertion::Created(pk);
                match arrival.owner {
                    Some(_) => wakes.claim(pk, 1, 1, 0, *now_ms),
                    None => wakes.jobs(&arrival.job.provider, true),
                }
            }
            _ => others.push(i),
        }
    }
    if !others.is_empty() {
        let known = identities(tx, others.iter().map(|&i| arrivals[i].0)).await?;
        for i in others {
            let arrival = arrivals[i].0;
            // Removed by retention between the two statements: the next attempt creates it.
            let (hash, state) =
                known.get(&arrival.identity()).ok_or_else(|| StoreError::Unavailable(sqlx::Error::RowNotFound))?;
            answers[i] = if hash[..] == arrival.hash[..] { Insertion::Exists(*state) } else { Insertion::Conflict };
        }
    }
    Ok(answers)
}

async fn insert_rows<'a>(
    tx: &mut Tx,
    arrivals: &[(&'a Arrival, WallMs)],
) -> Result<HashMap<(&'a str, &'a str), JobPk>, StoreError> {
    let jobs = || arrivals.iter().map(|(a, _)| &a.job);
    let rows = Rows::new()
        .text("tenant", jobs().map(|j| Some(j.tenant.as_str())))
        .text("id", jobs().map(|j| Some(j.id.as_str())))
        .blob("hash", arrivals.iter().map(|(a, _)| Some(&a.hash[..])))
        .text("provider", jobs().map(|j| Some(j.provider.as_str())))
        .text("lane", jobs().map(|j| Some(j.lane.as_str())))
        .text("state", arrivals.iter().map(|(a, _)| Some(a.state.as_str())))
        .int("due_ms", arrivals.iter().map(|(a, _)| Some(a.due_ms)))
        .int("deadline_ms", jobs().map(|j| j.deadline_ms))
        .int("created_ms", arrivals.iter().map(|(_, now_ms)| Some(*now_ms)))
        .text("owner", arrivals.iter().map(|(a, _)| a.owner.as_deref()))
        .int("epoch", arrivals.iter().map(|(a, _)| Some(i64::from(a.owner.is_some()))))
        .text("waiting_reason", arrivals.iter().map(|(a, _)| (a.state == JobState::Waiting).then_some("not_before")))
        .text("delivery", jobs().map(|j| Some(j.delivery.as_str())))
        .int("cost", jobs().map(|j| Some(signed(j.cost))))
        .text("pin", jobs().map(|j| j.key.as_deref()))
        .text("idempotency_key", jobs().map(|j| Some(j.idempotency_key.as_str())))
        .text("reply_to", arrivals.iter().map(|(a, _)| a.origin.reply_to.as_deref()))
        .text("correlation_id", arrivals.iter().map(|(a, _)| a.origin.correlation_id.as_deref()))
        .text("traceparent", arrivals.iter().map(|(a, _)| a.origin.traceparent.as_deref()))
        .text("callback", arrivals.iter().map(|(a, _)| a.callback.as_deref()))
        .text("metadata", jobs().map(|j| j.metadata.as_ref().map(|m| m.get())))
        .int("envelope_bytes", arrivals.iter().map(|(a, _)| Some(length(&a.envelope))))
        .text("envelope", arrivals.iter().map(|(a, _)| Some(a.envelope.as_str())));
    let insert =
        "INSERT INTO jobs (tenant, id, hash, provider, lane, state, due_ms, deadline_ms, created_ms, owner, epoch,
            waiting_reason, delivery, cost, pin, idempotency_key, reply_to, correlation_id, traceparent, callback,
            metadata, envelope_bytes, envelope)
        SELECT tenant, id, hash, provider, lane, state, due_ms, deadline_ms, created_ms, owner, epoch,
            waiting_reason, delivery, cost, pin, idempotency_key, reply_to, correlation_id, traceparent, callback,
            metadata, envelope_bytes, envelope
        FROM v WHERE TRUE
        ON CONFLICT (id, tenant) DO NOTHING
        RETURNING pk, id, tenant";
    let created: Vec<(JobPk, String, String)> = rows.fetch(tx, insert).await?;
    let created: HashMap<(&str, &str), JobPk> =
        created.iter().map(|(pk, id, tenant)| ((id.as_str(), tenant.as_str()), *pk)).collect();
    Ok(arrivals.iter().filter_map(|(a, _)| Some((a.identity(), *created.get(&a.identity())?))).collect())
}

fn length(text: &str) -> i64 {
    i64::try_from(text.len()).unwrap_or(i64::MAX)
}

/// Hash and state of the jobs that are there already.
async fn identities<'a>(
    tx: &mut Tx,
    arrivals: impl Iterator<Item = &'a Arrival> + Clone,
) -> Result<HashMap<(&'a str, &'a str), (Vec<u8>, JobState)>, StoreError> {
    let rows = Rows::new()
        .text("id", arrivals.clone().map(|a| Some(a.job.id.as_str())))
        .text("tenant", arrivals.clone().map(|a| Some(a.job.tenant.as_str())));
    let select = "SELECT j.id, j.tenant, j.hash, j.state FROM v JOIN jobs j ON j.id =[v.id] AND j.tenant = v.tenant";
    let found: Vec<(String, String, Vec<u8>, String)> = rows.fetch(tx, select).await?;
    let mut known = HashMap::with_capacity(found.len());
    for (id, tenant, hash, state) in found {
        known.insert((id, tenant), (hash, state_of(&state)?));
    }
    Ok(arrivals
        .filter_map(|a| {
            let key = (a.job.id.clone(), a.job.tenant.clone());
            Some((a.identity(), known.get(&key)?.clone()))
        })
        .collect())
}

pub(super) fn state_of(name: &str) -> Result<JobState, StoreError> {
    JobState::from_name(name).ok_or_else(|| StoreError::Corrupt(format!("a job is {name:?}")))
}

/// What a dispatcher asks for.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub owner: OwnerId,
    pub provider: String,
    pub lane: String,
    /// What is pinned to one of these is left to others.
    pub away: Arc<[String]>,
    pub limit: u32,
    pub now_ms: WallMs,
}

/// A claimed row: pk, epoch, run, attempts, failures, first attempt, backoff, created, due, key, envelope.
type ClaimedRow = (JobPk, i64, i64, i64, i64, Option<WallMs>, i64, WallMs, WallMs, String, String);

/// Claims what is due, oldest first. A row that cannot be read becomes a dead letter here: it
/// would come back for ever.
pub(super) async fn claim(tx: &mut Tx, claim: &Claim, wakes: &mut Pending) -> Result<Vec<Claimed>, StoreError> {
    let sql = format!(
        "WITH RECURSIVE {due},
        chosen AS (SELECT pk, due_ms, envelope_bytes FROM due ORDER BY due_ms, pk LIMIT $4),
        bounded AS (SELECT pk, SUM(envelope_bytes) OVER (ORDER BY due_ms, pk) - envelope_bytes AS before FROM chosen)
        UPDATE jobs SET owner = $5, epoch = jobs.epoch + 1, state = 'queued', waiting_reason = NULL
        FROM bounded WHERE jobs.pk =[bounded.pk] AND bounded.before < $6
        RETURNING jobs.pk, jobs.epoch, jobs.run, jobs.attempts, jobs.failures, jobs.first_attempt_ms, jobs.backoff_ms,
            jobs.created_ms, jobs.due_ms, jobs.idempotency_key, jobs.envelope",
        due = due::due(tx, claim.away.is_empty())
    );
    let sql = tx.spelled(&sql);
    let mut rows: Vec<ClaimedRow> = on_db!(tx, |c| {
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(&claim.provider)
            .bind(&claim.lane)
            .bind(claim.now_ms)
            .bind(i64::from(claim.limit))
            .bind(&claim.owner)
            .bind(CLAIM_BYTES_MAX);
        let query = if claim.away.is_empty() { query } else { query.bind(due::json(&claim.away)) };
        query.fetch_all(c).await
    })?;
    rows.sort_unstable_by_key(|row| (row.8, row.0));
    let mut claimed = Vec::with_capacity(rows.len());
    let mut unreadable = Vec::new();
    for (pk, epoch, run, attempts, failures, first_attempt_ms, backoff_ms, created_ms, _, key, envelope) in rows {
        match Job::from_stored(&envelope) {
            Ok(mut job) => {
                job.idempotency_key = key;
                let (run, attempts, failures) = (number(run), number(attempts), number(failures));
                let backoff = millis(backoff_ms);
                wakes.claim(pk, epoch, run, failures, claim.now_ms);
                claimed.push(Claimed {
                    pk,
                    epoch,
                    run,
                    attempts,
                    failures,
                    first_attempt_ms,
                    backoff,
                    created_ms,
                    job,
                });
            }
            Err(invalid) => {
                tracing::error!(pk, error = %invalid, "a stored job cannot be read: it is dead now");
                let next = Next::Finish {
                    state: JobState::Dead,
                    reason: Some(DeadReason::Malformed),
                    error: Some(format!("the stored envelope cannot be read: {invalid}")),
                    response: None,
                };
                let (run, failures) = (number(run), number(failures));
                unreadable.push(Record { pk, epoch, run, attempt: None, failures, at_ms: claim.now_ms, next });
            }
        }
    }
    outcomes::record(tx, &unreadable.iter().collect::<Vec<_>>(), wakes).await?;
    Ok(claimed)
}

/// pk, state, run, created, finished, due, waiting reason, reason, error, envelope.
type ViewRow =
    (JobPk, String, i64, WallMs, Option<WallMs>, WallMs, Option<String>, Option<String>, Option<String>, String);

const VIEW: &str =
    "SELECT pk, state, run, created_ms, finished_ms, due_ms, waiting_reason, reason, error, envelope FROM jobs";

fn view(row: ViewRow, attempts: Vec<(u32, Attempt)>) -> Result<JobView, StoreError> {
    let (pk, state, run, created_ms, finished_ms, due_ms, waiting_reason, reason, error, envelope) = row;
    let state = state_of(&state)?;
    let job = Job::from_stored(&envelope).map_err(|e| StoreError::Corrupt(format!("job {pk}: {e}")))?;
    let due_ms = (state == JobState::Waiting).then_some(due_ms);
    Ok(JobView {
        pk,
        job,
        state,
        run: number(run),
        created_ms,
        finished_ms,
        due_ms,
        waiting_reason,
        reason,
        error,
        attempts,
    })
}

/// The job of that id; without a tenant the first one that has it.
async fn job(db: &Db, tenant: Option<&str>, id: &str) -> Result<Option<JobView>, StoreError> {
    let sql = format!("{VIEW} WHERE id = $1 AND ($2 IS NULL OR tenant = $2) ORDER BY tenant LIMIT 1");
    let sql = sqlx::AssertSqlSafe(sql);
    let row: Option<ViewRow> = on_db!(read db, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    let Some(row) = row else { return Ok(None) };
    let attempts = attempts::of_jobs(db, &[row.0]).await?.remove(&row.0).unwrap_or_default();
    view(row, attempts).map(Some)
}

/// The conditions of a list: columns of our own, values as parameters.
#[derive(Default)]
pub(super) struct Conditions<'a> {
    text: String,
    values: Vec<&'a str>,
}

impl<'a> Conditions<'a> {
    /// `column = value`, where there is one to compare with.
    pub fn equal(mut self, column: &str, value: Option<&'a str>) -> Self {
        if let Some(value) = value {
            self.values.push(value);
            let n = self.values.len();
            self.text.push_str(&format!(" AND {column} = ${n}"));
        }
        self
    }

    /// A condition without parameters.
    pub fn fixed(mut self, condition: Option<&str>) -> Self {
        if let Some(condition) = condition {
            self.text.push_str(&format!(" AND {condition}"));
        }
        self
    }

    /// The text behind `WHERE TRUE`, and the values.
    pub fn parts(self) -> (String, Vec<&'a str>) {
        (self.text, self.values)
    }
}

async fn list(db: &Db, filter: &JobFilter, cursor: Option<i64>, limit: u32) -> Result<Page<JobView>, StoreError> {
    let (text, values) = Conditions::default()
        .equal("state", filter.state.map(JobState::as_str))
        // Lets the rare ends use their index. Most jobs succeed: those are found on the way down.
        .fixed(filter.state.filter(|s| s.is_terminal() && *s != JobState::Succeeded).map(|_| "finished_ms IS NOT NULL"))
        .equal("provider", filter.provider.as_deref())
        .equal("lane", filter.lane.as_deref())
        .equal("tenant", filter.tenant.as_deref())
        .parts();
    let (a, b) = (values.len() + 1, values.len() + 2);
    let sql = sqlx::AssertSqlSafe(format!("{VIEW} WHERE TRUE{text} AND pk < ${a} ORDER BY pk DESC LIMIT ${b}"));
    let rows: Vec<ViewRow> = on_db!(read db, |c| {
        let mut query = sqlx::query_as(sql);
        for value in values {
            query = query.bind(value);
        }
        query.bind(cursor.unwrap_or(i64::MAX)).bind(i64::from(limit)).fetch_all(c).await
    })?;
    let pks: Vec<JobPk> = rows.iter().map(|row| row.0).collect();
    let full = u32::try_from(rows.len()).is_ok_and(|n| n == limit);
    let mut made = attempts::of_jobs(db, &pks).await?;
    let mut items = Vec::with_capacity(rows.len());
    for row in rows {
        let attempts = made.remove(&row.0).unwrap_or_default();
        match view(row, attempts) {
            Ok(view) => items.push(view),
            // One that cannot be read must not hide the others.
            Err(error) => tracing::error!(%error, "left out of a list"),
        }
    }
    Ok(Page { next: pks.last().filter(|_| full).copied(), items })
}

/// Withdraws a job that nobody holds; asks its owner where somebody does.
async fn cancel(
    tx: &mut Tx,
    tenant: Option<&str>,
    id: &str,
    now_ms: WallMs,
    wakes: &mut Pending,
) -> Result<Cancelled, StoreError> {
    let sql = format!(
        "SELECT pk, state, epoch, run, failures, owner FROM jobs
         WHERE id = $1 AND ($2 IS NULL OR tenant = $2) ORDER BY tenant LIMIT 1{}",
        tx.for_update()
    );
    let sql = sqlx::AssertSqlSafe(sql);
    let row: Option<(JobPk, String, i64, i64, i64, Option<String>)> =
        on_db!(tx, |c| sqlx::query_as(sql).bind(id).bind(tenant).fetch_optional(c).await)?;
    let Some((pk, state, epoch, run, failures, owner)) = row else { return Ok(Cancelled::NotFound) };
    let state = state_of(&state)?;
    if state.is_terminal() || state == JobState::Running {
        return Ok(Cancelled::TooLate(state));
    }
    if owner.is_some() {
        let sql = "UPDATE jobs SET cancel_requested = TRUE WHERE pk = $1";
        on_db!(tx, |c| sqlx::query(sql).bind(pk).execute(c).await.map(drop))?;
        wakes.cancel(pk);
        return Ok(Cancelled::Asked);
    }
    let next = Next::Finish { state: JobState::Cancelled, reason: None, error: None, response: None };
    let record = Record { pk, epoch, run: number(run), attempt: None, failures: number(failures), at_ms: now_ms, next };
    outcomes::record(tx, &[&record], wakes).await?;
    Ok(Cancelled::Done)
}

/// Jobs that one asks for at once are at most this many.
const CANCELS_MAX: i64 = 1_000;

/// What somebody asked an owner to let go of, and it has not yet.
async fn cancel_requests(db: &Db, owner: &str, provider: &str) -> Result<Vec<JobPk>, StoreError> {
    let sql = "SELECT pk FROM jobs WHERE owner = $1 AND cancel_requested AND provider = $2 ORDER BY pk LIMIT $3";
    let rows: Vec<(JobPk,)> =
        on_db!(read db, |c| sqlx::query_as(sql).bind(owner).bind(provider).bind(CANCELS_MAX).fetch_all(c).await)?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

/// What a replay changes in a job's row.
pub(super) struct Rerun<'a> {
    pub pk: JobPk,
    pub run: u32,
    pub job: &'a Job,
    pub idempotency_key: &'a str,
    pub now_ms: WallMs,
}

/// Makes a dead job a new run of itself.
pub(super) async fn rerun(tx: &mut Tx, rerun: &Rerun<'_>, wakes: &mut Pending) -> Result<(), StoreError> {
    let envelope = envelope_text(rerun.job)?;
    let ahead = rerun.job.not_before_ms.filter(|&start| start > rerun.now_ms);
    let state = if ahead.is_some() { JobState::Waiting } else { JobState::Queued };
    let sql = "UPDATE jobs SET state = $2, waiting_reason = $3, due_ms = $4, deadline_ms = $5, lane = $6, run = $7,
            idempotency_key = $8, envelope_bytes = $9, envelope = $10,
            attempts = 0, failures = 0, backoff_ms = 0, first_attempt_ms = NULL, finished_ms = NULL,
            owner = NULL, epoch = epoch + 1, started = FALSE, orphaned = FALSE, cancel_requested = FALSE,
            reason = NULL, error = NULL
        WHERE pk = $1";
    on_db!(tx, |c| sqlx::query(sql)
        .bind(rerun.pk)
        .bind(state.as_str())
        .bind(ahead.map(|_| "not_before"))
        .bind(ahead.unwrap_or(rerun.now_ms))
        .bind(rerun.job.deadline_ms)
        .bind(&rerun.job.lane)
        .bind(i64::from(rerun.run))
        .bind(rerun.idempotency_key)
        .bind(length(&envelope))
        .bind(&envelope)
        .execute(c)
        .await
        .map(drop))?;
    wakes.jobs(&rerun.job.provider, true);
    Ok(())
}

/// (provider, lane, state, jobs) of jobs that are not terminal.
pub(super) async fn depth(db: &Db) -> Result<Vec<(String, String, String, i64)>, StoreError> {
    let unclaimed = [due::UNPINNED, due::PINNED].map(|place| {
        format!("SELECT provider, lane, state, COUNT(*) AS jobs FROM jobs WHERE {place} GROUP BY provider, lane, state")
    });
    let sql = sqlx::AssertSqlSafe(format!(
        "SELECT provider, lane, state, CAST(SUM(jobs) AS BIGINT) FROM (
            {}
            UNION ALL
            SELECT provider, lane, state, COUNT(*) AS jobs FROM jobs WHERE owner IS NOT NULL GROUP BY provider, lane, state
        ) AS open GROUP BY provider, lane, state ORDER BY provider, lane, state",
        unclaimed.join(" UNION ALL ")
    ));
    Ok(on_db!(read db, |c| sqlx::query_as(sql).fetch_all(c).await)?)
}

impl Store {
    /// Lets jobs in; the answers are in their order.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: whether it was committed is not known. Doing it again is safe:
    /// what is there already is answered with [`Inserted::Exists`].
    pub async fn insert(&self, jobs: Vec<NewJob>, now_ms: WallMs) -> Result<Vec<Inserted>, StoreError> {
        let owners: BTreeSet<&OwnerId> = jobs.iter().filter_map(|job| job.owner.as_ref()).collect();
        for owner in owners {
            self.introduce(owner).await?;
        }
        let arrivals = jobs.into_iter().map(|job| Arrival::prepare(job, now_ms)).collect::<Result<Vec<_>, _>>()?;
        self.inner.arrivals.ask(|reply| Request::Insert(arrivals, now_ms, reply)).await
    }

    /// Claims jobs that are due, oldest first, at most `limit` and about 16 MiB of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]. A claim whose answer is lost is found again by
    /// [`Store::rescue`] when its owner falls silent.
    pub async fn claim_due(
        &self,
        owner: &OwnerId,
        provider: &str,
        lane: &str,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.claim_due_but(owner, provider, lane, &Arc::default(), limit, now_ms).await
    }

    /// The same without what is pinned to one of `away`: keys and budgets that others pace.
    ///
    /// # Errors
    /// As [`Store::claim_due`].
    pub async fn claim_due_but(
        &self,
        owner: &OwnerId,
        provider: &str,
        lane: &str,
        away: &Arc<[String]>,
        limit: u32,
        now_ms: WallMs,
    ) -> Result<Vec<Claimed>, StoreError> {
        self.introduce(owner).await?;
        self.inner.wakes.interested_in(provider);
        let (owner, provider, lane) = (owner.clone(), provider.to_owned(), lane.to_owned());
        let wanted = Claim { owner, provider, lane, away: Arc::clone(away), limit, now_ms };
        if self.db().is_sqlite() {
            return self.inner.outcomes.ask(|reply| Request::Claim(wanted, reply)).await;
        }
        act!(self, |tx, wakes| claim(tx, &wanted, wakes).await)
    }

    /// A job with its attempts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn job(&self, tenant: Option<&str>, id: &str) -> Result<Option<JobView>, StoreError> {
        self.db().in_time(job(self.db(), tenant, id)).await
    }

    /// Jobs, newest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn jobs(&self, filter: &JobFilter, cursor: Option<i64>, limit: u32) -> Result<Page<JobView>, StoreError> {
        self.db().in_time(list(self.db(), filter, cursor, limit)).await
    }

    /// Counts the jobs that have not ended: provider, lane, state, jobs. Walks over all of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn queue_depth(&self) -> Result<Vec<(String, String, String, i64)>, StoreError> {
        self.db().in_time(depth(self.db())).await
    }

    /// Withdraws a job; asks its dispatcher ([`Wake::Cancel`](super::Wake::Cancel)) where one holds it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn cancel(&self, tenant: Option<&str>, id: &str, now_ms: WallMs) -> Result<Cancelled, StoreError> {
        act!(self, |tx, wakes| cancel(tx, tenant, id, now_ms, wakes).await)
    }

    /// The jobs of a provider in the owner's hands that somebody asked to cancel: for whoever was not woken.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn cancel_requests(&self, owner: &OwnerId, provider: &str) -> Result<Vec<JobPk>, StoreError> {
        self.db().in_time(cancel_requests(self.db(), owner, provider)).await
    }
}
