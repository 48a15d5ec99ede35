//! Completions on their way to endpoints, and to the broker: claims, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::dialect::{Db, Rows, Tx, on_db};
use super::endpoints::{EndpointRow, endpoint_of};
use super::events::{kind_of, response_of};
use super::wakes::{DeliveryClaim, Pending};
use super::writer::Request;
use super::{
    DeliveryJob, DeliveryNext, DeliveryRecord, Endpoint, Event, Occasion, OwnerId, Publication, Store, StoreError, act,
};
use crate::clock::WallMs;
use crate::job::JobState;

/// An endpoint that did nothing but fail for so long is disabled.
const FAILING_MAX_MS: i64 = 5 * 86_400_000;
/// Bytes of bodies in one claim, more or less: the last one may go over it.
const CLAIM_BYTES_MAX: i64 = 16 * 1024 * 1024;

/// Rounds of a claim in which nothing but deliveries for disabled endpoints is found.
const SET_ASIDE_ROUNDS: u32 = 32;

/// What a notifier asks for.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub owner: OwnerId,
    pub limit: u32,
    pub now_ms: WallMs,
    pub lease: Duration,
}

impl Claim {
    fn lapses_ms(&self) -> WallMs {
        self.now_ms.saturating_add(i64::try_from(self.lease.as_millis()).unwrap_or(i64::MAX))
    }
}

/// pk, epoch, attempts, those before, event, endpoint, state, made up.
type ClaimedRow = (i64, i64, i64, i64, i64, Option<i64>, String, WallMs);

/// Claims what is due, oldest first. What is due for a disabled endpoint is set aside on the way,
/// so that it cannot stand in front of the others.
pub(super) async fn claim(tx: &mut Tx, claim: &Claim, wakes: &mut Pending) -> Result<Vec<DeliveryJob>, StoreError> {
    let sql = format!(
        "WITH due AS MATERIALIZED (
            SELECT pk, due_ms, COALESCE((SELECT length(e.body) FROM events e WHERE e.pk = deliveries.event_pk), 0) AS bytes
            FROM deliveries
            WHERE kind = 'webhook' AND state = 'pending' AND due_ms <= $1 ORDER BY due_ms, pk LIMIT $2{lock}),
        bounded AS (SELECT pk, SUM(bytes) OVER (ORDER BY due_ms, pk) - bytes AS before FROM due)
        UPDATE deliveries SET
            state = CASE WHEN EXISTS (SELECT 1 FROM endpoints n WHERE n.pk = deliveries.endpoint_pk AND n.enabled)
                THEN 'pending' ELSE 'disabled' END,
            owner = CASE WHEN EXISTS (SELECT 1 FROM endpoints n WHERE n.pk = deliveries.endpoint_pk AND n.enabled)
                THEN $3 ELSE NULL END,
            epoch = deliveries.epoch + 1,
            due_ms = $4
        FROM bounded WHERE deliveries.pk =[bounded.pk] AND bounded.before < $5
        RETURNING deliveries.pk, deliveries.epoch, deliveries.attempts, deliveries.attempts_before, deliveries.event_pk,
            deliveries.endpoint_pk, deliveries.state, deliveries.created_ms",
        lock = tx.skip_locked()
    );
    let sql = tx.spelled(&sql);
    for _ in 0..SET_ASIDE_ROUNDS {
        let sql = sqlx::AssertSqlSafe(sql.as_str());
        let mut rows: Vec<ClaimedRow> = on_db!(tx, |c| sqlx::query_as(sql)
            .bind(claim.now_ms)
            .bind(i64::from(claim.limit))
            .bind(&claim.owner)
            .bind(claim.lapses_ms())
            .bind(CLAIM_BYTES_MAX)
            .fetch_all(c)
            .await)?;
        let found = rows.len();
        rows.retain(|row| row.6 == "pending");
        if found == 0 || !rows.is_empty() {
            rows.iter().for_each(|row| wakes.claim_delivery(row.0, row.1, claim.now_ms));
            return load(tx, rows).await;
        }
    }
    Ok(Vec::new())
}

/// Makes due again what was claimed and nobody heard of; whether there is any of it. What was claimed once more since
/// then is somebody's.
pub(super) async fn release(tx: &mut Tx, claims: &[DeliveryClaim]) -> Result<bool, StoreError> {
    let rows = Rows::new()
        .int("pk", claims.iter().map(|c| Some(c.pk)))
        .int("epoch", claims.iter().map(|c| Some(c.epoch)))
        .int("due_ms", claims.iter().map(|c| Some(c.due_ms)));
    let update = "UPDATE deliveries SET owner = NULL, due_ms = v.due_ms
        FROM v WHERE deliveries.pk =[v.pk] AND deliveries.epoch = v.epoch AND deliveries.state || '' = 'pending'";
    Ok(rows.execute(tx, update).await? > 0)
}

/// An event, its job, and the answer: pk, id, state, at, attempts, reason, error, job, provider,
/// tenant, metadata, and what was answered.
pub(super) type EventRow = (
    i64,
    String,
    String,
    WallMs,
    i64,
    Option<String>,
    Option<String>,
    String,
    String,
    String,
    Option<String>,
    Option<i64>,
    Option<String>,
    Option<String>,
    bool,
    Option<Vec<u8>>,
);

pub(super) fn event_of(row: EventRow) -> Result<(i64, Event), StoreError> {
    let (pk, id, state, at_ms, attempts, reason, error, job_id, provider, tenant, metadata, a, b, c, d, e) = row;
    let kind = JobState::from_name(&state).and_then(kind_of);
    let kind = kind.ok_or_else(|| StoreError::Corrupt(format!("event {id} is of state {state:?}")))?;
    let response = response_of((a, b, c, d, e));
    let attempts = super::number(attempts);
    Ok((pk, Event { id, kind, at_ms, attempts, reason, error, response, job_id, provider, tenant, metadata }))
}

/// The events of these rows, by row.
async fn events(tx: &mut Tx, pks: &HashSet<i64>) -> Result<HashMap<i64, Arc<Event>>, StoreError> {
    let keys = Rows::new().int("pk", pks.iter().map(|pk| Some(*pk)));
    let select =
        "SELECT e.pk, e.id, e.state, e.at_ms, e.attempts, e.reason, e.error, j.id, j.provider, j.tenant, j.metadata,
            e.status, e.headers, e.content_type, e.truncated, e.body
        FROM v JOIN events e ON e.pk =[v.pk] JOIN jobs j ON j.pk =[e.job_pk]";
    let events: Vec<EventRow> = keys.fetch(tx, select).await?;
    events.into_iter().map(|row| event_of(row).map(|(pk, event)| (pk, Arc::new(event)))).collect()
}

/// Reads the events and endpoints of what was claimed.
async fn load(tx: &mut Tx, mut rows: Vec<ClaimedRow>) -> Result<Vec<DeliveryJob>, StoreError> {
    rows.sort_unstable_by_key(|row| row.0);
    let known = events(tx, &rows.iter().map(|row| row.4).filter(|pk| *pk != NO_EVENT).collect()).await?;
    let endpoint_pks: HashSet<i64> = rows.iter().filter_map(|row| row.5).collect();
    let keys = Rows::new().int("pk", endpoint_pks.into_iter().map(Some));
    let select = "SELECT n.pk, n.id, n.tenant, n.url, n.implicit, n.secrets FROM v JOIN endpoints n ON n.pk =[v.pk]";
    let endpoints = keys.fetch::<EndpointRow>(tx, select).await?.into_iter().map(endpoint_of);
    let endpoints = endpoints.map(|of| of.map(|of| (of.pk, of))).collect::<Result<HashMap<i64, Arc<Endpoint>>, _>>()?;
    rows.into_iter()
        .map(|(pk, epoch, attempts, before, event_pk, endpoint_pk, _, created_ms)| {
            let lost = || StoreError::Corrupt(format!("delivery {pk} has lost its event or its endpoint"));
            let occasion = if event_pk == NO_EVENT {
                Occasion::Test { event_id: test_event_id(pk, created_ms), at_ms: created_ms }
            } else {
                Occasion::Completion(known.get(&event_pk).cloned().ok_or_else(lost)?)
            };
            let endpoint = endpoint_pk.and_then(|pk| endpoints.get(&pk)).cloned().ok_or_else(lost)?;
            let (attempts, attempts_before) = (super::number(attempts), super::number(before));
            Ok(DeliveryJob { pk, epoch, attempts, attempts_before, endpoint, occasion })
        })
        .collect()
}

/// Stands in a delivery for the event of a test, which is made up from its row.
pub(super) const NO_EVENT: i64 = 0;

/// The id of a test event.
pub(super) fn test_event_id(pk: i64, created_ms: WallMs) -> String {
    format!("evt_test_{created_ms:x}_{pk:x}")
}

/// pk, epoch, attempts, those before, event, reply to.
type PublicationRow = (i64, i64, i64, i64, i64, Option<String>);

/// Claims what is to be published to the broker, oldest first.
async fn claim_publications(tx: &mut Tx, claim: &Claim, wakes: &mut Pending) -> Result<Vec<Publication>, StoreError> {
    let sql = format!(
        "WITH due AS MATERIALIZED (
            SELECT pk, due_ms, COALESCE((SELECT length(e.body) FROM events e WHERE e.pk = deliveries.event_pk), 0) AS bytes
            FROM deliveries
            WHERE kind = 'amqp' AND state = 'pending' AND due_ms <= $1 ORDER BY due_ms, pk LIMIT $2{lock}),
        bounded AS (SELECT pk, SUM(bytes) OVER (ORDER BY due_ms, pk) - bytes AS before FROM due)
        UPDATE deliveries SET owner = $3, epoch = deliveries.epoch + 1, due_ms = $4
        FROM bounded WHERE deliveries.pk =[bounded.pk] AND bounded.before < $5
        RETURNING deliveries.pk, deliveries.epoch, deliveries.attempts, deliveries.attempts_before, deliveries.event_pk,
            deliveries.reply_to",
        lock = tx.skip_locked()
    );
    let sql = sqlx::AssertSqlSafe(tx.spelled(&sql));
    let mut rows: Vec<PublicationRow> = on_db!(tx, |c| sqlx::query_as(sql)
        .bind(claim.now_ms)
        .bind(i64::from(claim.limit))
        .bind(&claim.owner)
        .bind(claim.lapses_ms())
        .bind(CLAIM_BYTES_MAX)
        .fetch_all(c)
        .await)?;
    rows.iter().for_each(|row| wakes.claim_delivery(row.0, row.1, claim.now_ms));
    // Of one job in the order of its runs.
    rows.sort_unstable_by_key(|row| row.0);
    let pks: HashSet<i64> = rows.iter().map(|row| row.4).collect();
    let known = events(tx, &pks).await?;
    let keys = Rows::new().int("pk", pks.into_iter().map(Some));
    let select = "SELECT e.pk, j.correlation_id, j.traceparent
        FROM v JOIN events e ON e.pk =[v.pk] JOIN jobs j ON j.pk =[e.job_pk]";
    let origins: Vec<(i64, Option<String>, Option<String>)> = keys.fetch(tx, select).await?;
    let origins: HashMap<i64, _> = origins.into_iter().map(|(pk, id, trace)| (pk, (id, trace))).collect();
    rows.into_iter()
        .map(|(pk, epoch, attempts, before, event_pk, reply_to)| {
            let event = known.get(&event_pk).cloned();
            let event = event.ok_or_else(|| StoreError::Corrupt(format!("delivery {pk} has lost its event")))?;
            let (correlation_id, traceparent) = origins.get(&event_pk).cloned().unwrap_or_default();
            let (attempts, attempts_before) = (super::number(attempts), super::number(before));
            Ok(Publication { pk, epoch, attempts, attempts_before, reply_to, correlation_id, traceparent, event })
        })
        .collect()
}

/// When the next delivery of that kind is due, or the claim of one lapses.
async fn next_due(db: &Db, kind: &str) -> Result<Option<WallMs>, StoreError> {
    let sql = "SELECT due_ms FROM deliveries WHERE kind = $1 AND state = 'pending' ORDER BY due_ms, pk LIMIT 1";
    let row: Option<(WallMs,)> = on_db!(read db, |c| sqlx::query_as(sql).bind(kind).fetch_optional(c).await)?;
    Ok(row.map(|r| r.0))
}

/// Writes what became of claimed deliveries. A record of an earlier claim changes nothing, but for one that the broker
/// has confirmed: it is published, whoever holds it now.
pub(super) async fn record(tx: &mut Tx, records: &[&DeliveryRecord]) -> Result<(), StoreError> {
    let is_published = |r: &&DeliveryRecord| r.next == DeliveryNext::Published;
    let (published, mut left): (Vec<_>, Vec<_>) = records.iter().copied().partition(is_published);
    forget(tx, &published).await?;
    while !left.is_empty() {
        let mut seen = HashSet::with_capacity(left.len());
        let (mut round, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|r| seen.insert(r.pk));
        left = later;
        round.sort_unstable_by_key(|r| r.pk);
        record_round(tx, &round).await?;
    }
    Ok(())
}

/// The first attempt of a delivery stands in its row.
const fn is_first(record: &DeliveryRecord) -> bool {
    record.n == 1
}

/// Removes what is published.
async fn forget(tx: &mut Tx, records: &[&DeliveryRecord]) -> Result<(), StoreError> {
    let tried = records.iter().filter(|r| !is_first(r));
    let rows = Rows::new().int("pk", tried.map(|r| Some(r.pk)));
    rows.execute(tx, "DELETE FROM delivery_attempts WHERE delivery_pk IN {SELECT pk FROM v}").await?;
    let rows = Rows::new().int("pk", records.iter().map(|r| Some(r.pk)));
    rows.execute(tx, "DELETE FROM deliveries WHERE pk IN {SELECT pk FROM v}").await?;
    Ok(())
}

async fn record_round(tx: &mut Tx, records: &[&DeliveryRecord]) -> Result<(), StoreError> {
    let state = |r: &DeliveryRecord| match r.next {
        DeliveryNext::Delivered | DeliveryNext::Published => "delivered",
        DeliveryNext::Retry { .. } => "pending",
        DeliveryNext::Failed => "failed",
        DeliveryNext::Gone => "disabled",
    };
    let due = |r: &DeliveryRecord| match r.next {
        DeliveryNext::Retry { due_ms } => Some(due_ms),
        _ => None,
    };
    let rows = Rows::new()
        .int("pk", records.iter().map(|r| Some(r.pk)))
        .int("epoch", records.iter().map(|r| Some(r.epoch)))
        .int("n", records.iter().map(|r| Some(i64::from(r.n))))
        .text("state", records.iter().map(|r| Some(state(r))))
        .int("due_ms", records.iter().map(|r| due(r)))
        .int("finished_ms", records.iter().map(|r| due(r).is_none().then_some(r.at_ms)))
        .int("first_at_ms", records.iter().map(|r| is_first(r).then_some(r.at_ms)))
        .int("first_status", records.iter().map(|r| r.status.map(i64::from).filter(|_| is_first(r))))
        .int("first_latency_ms", records.iter().map(|r| is_first(r).then_some(r.latency_ms)))
        .text("first_error", records.iter().map(|r| r.error.as_deref().filter(|_| is_first(r))));
    let update = "UPDATE deliveries SET state = v.state, attempts = v.n, owner = NULL,
            due_ms = COALESCE(v.due_ms, deliveries.due_ms), finished_ms = v.finished_ms,
            first_at_ms = COALESCE(deliveries.first_at_ms, v.first_at_ms),
            first_status = COALESCE(deliveries.first_status, v.first_status),
            first_latency_ms = COALESCE(deliveries.first_latency_ms, v.first_latency_ms),
            first_error = COALESCE(deliveries.first_error, v.first_error)
        FROM v WHERE deliveries.pk =[v.pk] AND deliveries.epoch = v.epoch AND deliveries.state || '' = 'pending'
        RETURNING deliveries.pk, deliveries.endpoint_pk";
    let hits: Vec<(i64, Option<i64>)> = rows.fetch(tx, update).await?;
    let hits: HashMap<i64, Option<i64>> = hits.into_iter().collect();
    let done: Vec<&DeliveryRecord> = records.iter().filter(|r| hits.contains_key(&r.pk)).copied().collect();
    insert_attempts(tx, &done).await?;
    let gone: BTreeSet<i64> = done
        .iter()
        .filter(|r| r.next == DeliveryNext::Gone)
        .filter_map(|r| hits.get(&r.pk).copied().flatten())
        .collect();
    let rows = Rows::new().int("pk", gone.into_iter().map(Some));
    let disable = "UPDATE endpoints SET enabled = FALSE, disabled_reason = 'gone' FROM v WHERE endpoints.pk =[v.pk]";
    // What else is pending for it is set aside when it is claimed, never in one great update.
    rows.execute(tx, disable).await?;
    let attempts = done.iter().filter_map(|r| Some((hits.get(&r.pk).copied().flatten()?, *r)));
    note_health(tx, attempts).await
}

/// Since when an endpoint has only failed, and its end where that is too long.
async fn note_health<'a>(
    tx: &mut Tx,
    attempts: impl Iterator<Item = (i64, &'a DeliveryRecord)>,
) -> Result<(), StoreError> {
    // One success among them is enough; else the first failure counts.
    let mut seen: BTreeMap<i64, (bool, WallMs, WallMs)> = BTreeMap::new();
    for (endpoint_pk, record) in attempts.filter(|(_, record)| record.next != DeliveryNext::Gone) {
        let works = record.next == DeliveryNext::Delivered;
        let (any, first_ms, last_ms) = seen.entry(endpoint_pk).or_insert((works, record.at_ms, record.at_ms));
        *any |= works;
        *first_ms = (*first_ms).min(record.at_ms);
        *last_ms = (*last_ms).max(record.at_ms);
    }
    let rows = Rows::new()
        .int("pk", seen.keys().map(|pk| Some(*pk)))
        .flag("works", seen.values().map(|of| of.0))
        .int("first_ms", seen.values().map(|of| Some(of.1)))
        .int("since_ms", seen.values().map(|of| Some(of.2.saturating_sub(FAILING_MAX_MS))));
    let update = "UPDATE endpoints SET
            failing_since_ms = CASE WHEN v.works THEN NULL ELSE COALESCE(endpoints.failing_since_ms, v.first_ms) END,
            enabled = v.works OR COALESCE(endpoints.failing_since_ms, v.first_ms) > v.since_ms,
            disabled_reason = CASE WHEN v.works OR COALESCE(endpoints.failing_since_ms, v.first_ms) > v.since_ms
                THEN endpoints.disabled_reason ELSE 'failing' END
        FROM v WHERE endpoints.pk =[v.pk] AND endpoints.enabled
            AND (endpoints.failing_since_ms IS NOT NULL OR NOT v.works)
        RETURNING endpoints.id, endpoints.enabled";
    let changed: Vec<(String, bool)> = rows.fetch(tx, update).await?;
    for (endpoint, _) in changed.iter().filter(|(_, enabled)| !enabled) {
        tracing::error!(endpoint, "this endpoint has failed for five days; nothing more is sent to it");
    }
    Ok(())
}

/// Adds the attempts that come after the first.
async fn insert_attempts(tx: &mut Tx, records: &[&DeliveryRecord]) -> Result<(), StoreError> {
    let records: Vec<&DeliveryRecord> = records.iter().filter(|r| !is_first(r)).copied().collect();
    let rows = Rows::new()
        .int("delivery_pk", records.iter().map(|r| Some(r.pk)))
        .int("n", records.iter().map(|r| Some(i64::from(r.n))))
        .int("at_ms", records.iter().map(|r| Some(r.at_ms)))
        .int("status", records.iter().map(|r| r.status.map(i64::from)))
        .int("latency_ms", records.iter().map(|r| Some(r.latency_ms)))
        .text("error", records.iter().map(|r| r.error.as_deref()));
    let insert = "INSERT INTO delivery_attempts (delivery_pk, n, at_ms, status, latency_ms, error)
        SELECT delivery_pk, n, at_ms, status, latency_ms, error FROM v WHERE TRUE
        ON CONFLICT (delivery_pk, n) DO NOTHING";
    rows.execute(tx, insert).await?;
    Ok(())
}

pub(super) async fn depth(db: &Db) -> Result<i64, StoreError> {
    let sql = "SELECT COUNT(*) FROM deliveries WHERE state = 'pending'";
    let row: (i64,) = on_db!(read db, |c| sqlx::query_as(sql).fetch_one(c).await)?;
    Ok(row.0)
}

impl Store {
    /// Writes what becomes of a claimed delivery; a late record changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; doing it again is safe.
    pub async fn record_delivery(&self, record: DeliveryRecord) -> Result<(), StoreError> {
        self.inner.deliveries.ask(|reply| Request::RecordDelivery(Box::new(record), reply)).await
    }

    /// Claims deliveries that are due, oldest first, until `now_ms` + `lease`: then they are due again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn claim_deliveries(
        &self,
        owner: &OwnerId,
        limit: u32,
        now_ms: WallMs,
        lease: Duration,
    ) -> Result<Vec<DeliveryJob>, StoreError> {
        self.introduce(owner).await?;
        let wanted = Claim { owner: owner.clone(), limit, now_ms, lease };
        if self.db().is_sqlite() {
            return self.inner.deliveries.ask(|reply| Request::ClaimDeliveries(wanted, reply)).await;
        }
        act!(self, |tx, wakes| claim(tx, &wanted, wakes).await)
    }

    /// The same for what is published to the broker.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn claim_publications(
        &self,
        owner: &OwnerId,
        limit: u32,
        now_ms: WallMs,
        lease: Duration,
    ) -> Result<Vec<Publication>, StoreError> {
        self.introduce(owner).await?;
        let claim = Claim { owner: owner.clone(), limit, now_ms, lease };
        act!(self, |tx, wakes| claim_publications(tx, &claim, wakes).await)
    }

    /// When the next webhook is due, or the claim of one lapses.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_delivery_due(&self) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(next_due(self.db(), "webhook")).await
    }

    /// The same for what is published to the broker.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn next_publication_due(&self) -> Result<Option<WallMs>, StoreError> {
        self.db().in_time(next_due(self.db(), "amqp")).await
    }
}
