//! From one completion to its deliveries: to the endpoints that want to hear of it, to the broker's exchange of events,
//! and to the queue that the job's producer waits at. Those that somebody in this process takes are claimed for him
//! in the same statement.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::dialect::{Rows, Tx};
use super::endpoints::{self, Target};
use super::events::{Ended, kind_of};
use super::handover::Reservation;
use super::wakes::Pending;
use super::{DeliveryJob, Event, JobPk, Occasion, Publication, StoreError, StoredResponse};
use crate::clock::WallMs;
use crate::job::Callback;

/// A delivery to make up.
struct Due<'a> {
    ended: &'a Ended<'a>,
    event_pk: i64,
    to: To<'a>,
    taken: Option<Taken<'a>>,
}

/// Where a completion goes.
#[derive(Clone, Copy)]
enum To<'a> {
    Endpoint(&'a Target),
    /// The broker's exchange of events.
    Exchange,
    /// The queue that the job's producer waits at.
    Queue(&'a str),
}

impl<'a> To<'a> {
    const fn kind(self) -> &'static str {
        match self {
            Self::Endpoint(_) => "webhook",
            Self::Exchange | Self::Queue(_) => "amqp",
        }
    }

    const fn is_pending(self) -> bool {
        !matches!(self, Self::Endpoint(Target { enabled: false, .. }))
    }

    fn endpoint_pk(self) -> Option<i64> {
        match self {
            Self::Endpoint(target) => Some(target.endpoint.pk),
            Self::Exchange | Self::Queue(_) => None,
        }
    }

    const fn reply_to(self) -> Option<&'a str> {
        match self {
            Self::Queue(name) => Some(name),
            Self::Endpoint(_) | Self::Exchange => None,
        }
    }
}

/// Who takes it.
enum Taken<'a> {
    Webhook(Reservation<DeliveryJob>, &'a Target),
    Publication(Reservation<Publication>),
}

impl<'a> Taken<'a> {
    fn by(to: To<'a>, ended: &Ended<'_>, wakes: &Pending) -> Option<Self> {
        let body = ended.response.map_or(0, |response| response.body.len());
        match to {
            To::Endpoint(Target { enabled: false, .. }) => None,
            To::Endpoint(target) => wakes.takers().webhook(body).map(|room| Self::Webhook(room, target)),
            To::Exchange | To::Queue(_) => wakes.takers().publication(body).map(Self::Publication),
        }
    }

    fn owner(&self) -> &str {
        match self {
            Self::Webhook(reservation, _) => &reservation.owner,
            Self::Publication(reservation) => &reservation.owner,
        }
    }

    const fn lapses_ms(&self) -> WallMs {
        match self {
            Self::Webhook(reservation, _) => reservation.lapses_ms,
            Self::Publication(reservation) => reservation.lapses_ms,
        }
    }
}

/// The epoch of the claim that a delivery is made up with.
const FIRST_EPOCH: i64 = 1;

/// Adds the deliveries that the ended jobs asked for. `event_pks`: the rows of their events, by job.
pub(super) async fn insert(
    tx: &mut Tx,
    ended: &[Ended<'_>],
    event_pks: &HashMap<JobPk, i64>,
    wakes: &mut Pending,
) -> Result<(), StoreError> {
    if ended.is_empty() {
        return Ok(());
    }
    let targets = Targets::read(tx, ended).await?;
    let mut due = Vec::new();
    for of in ended {
        let lost = || StoreError::Corrupt(format!("the event of job {} was not written", of.job.id));
        let event_pk = *event_pks.get(&of.record.pk).ok_or_else(lost)?;
        let endpoints = targets.of(of).into_iter().map(To::Endpoint);
        let exchange = wakes.publishes.then_some(To::Exchange);
        let queue = of.job.reply_to.map(To::Queue);
        for to in endpoints.chain(exchange).chain(queue) {
            due.push(Due { ended: of, event_pk, to, taken: Taken::by(to, of, wakes) });
        }
    }
    if due.iter().any(|d| d.to.is_pending() && d.taken.is_none()) {
        wakes.deliveries();
    }
    let rows = insert_rows(tx, &due).await?;
    pass_on(due, &rows, wakes)
}

/// Rows by event, endpoint and queue: no two deliveries of one completion go to the same place.
type Pks = HashMap<(i64, Option<i64>, Option<String>), i64>;

async fn insert_rows(tx: &mut Tx, due: &[Due<'_>]) -> Result<Pks, StoreError> {
    let lapses = |d: &Due<'_>| d.taken.as_ref().map_or(d.ended.record.at_ms, Taken::lapses_ms);
    let rows = Rows::new()
        .int("event_pk", due.iter().map(|d| Some(d.event_pk)))
        .text("kind", due.iter().map(|d| Some(d.to.kind())))
        .int("endpoint_pk", due.iter().map(|d| d.to.endpoint_pk()))
        .text("reply_to", due.iter().map(|d| d.to.reply_to()))
        .text("state", due.iter().map(|d| Some(if d.to.is_pending() { "pending" } else { "disabled" })))
        .text("owner", due.iter().map(|d| d.taken.as_ref().map(Taken::owner)))
        .int("epoch", due.iter().map(|d| Some(if d.taken.is_some() { FIRST_EPOCH } else { 0 })))
        .int("due_ms", due.iter().map(|d| Some(lapses(d))))
        .int("at_ms", due.iter().map(|d| Some(d.ended.record.at_ms)));
    let insert =
        "INSERT INTO deliveries (event_pk, kind, endpoint_pk, reply_to, state, owner, epoch, due_ms, created_ms)
        SELECT event_pk, kind, endpoint_pk, reply_to, state, owner, epoch, due_ms, at_ms FROM v WHERE TRUE
        RETURNING pk, event_pk, endpoint_pk, reply_to";
    let rows: Vec<(i64, i64, Option<i64>, Option<String>)> = rows.fetch(tx, insert).await?;
    Ok(rows.into_iter().map(|(pk, event, endpoint, queue)| ((event, endpoint, queue), pk)).collect())
}

/// What is taken leaves with the commit.
fn pass_on(due: Vec<Due<'_>>, pks: &Pks, wakes: &mut Pending) -> Result<(), StoreError> {
    let mut made: Option<(i64, Arc<Event>)> = None;
    for Due { ended, event_pk, to, taken } in due {
        let Some(taken) = taken else { continue };
        let place = (event_pk, to.endpoint_pk(), to.reply_to().map(str::to_owned));
        let lost = || StoreError::Corrupt(format!("a delivery of job {} was not written", ended.job.id));
        let pk = *pks.get(&place).ok_or_else(lost)?;
        let event = match &made {
            Some((of, event)) if *of == event_pk => Arc::clone(event),
            _ => Arc::clone(&made.insert((event_pk, Arc::new(event(ended)?))).1),
        };
        let (epoch, attempts, attempts_before) = (FIRST_EPOCH, 0, 0);
        wakes.claim_delivery(pk, epoch, ended.record.at_ms);
        match taken {
            Taken::Webhook(reservation, target) => {
                let (endpoint, occasion) = (Arc::clone(&target.endpoint), Occasion::Completion(event));
                let delivery = DeliveryJob { pk, epoch, attempts, attempts_before, endpoint, occasion };
                wakes.webhooks.push(reservation.with(delivery));
            }
            Taken::Publication(reservation) => {
                let publication = Publication {
                    pk,
                    epoch,
                    attempts,
                    attempts_before,
                    reply_to: place.2,
                    correlation_id: ended.job.correlation_id.map(str::to_owned),
                    traceparent: ended.job.traceparent.map(str::to_owned),
                    event,
                };
                wakes.publications.push(reservation.with(publication));
            }
        }
    }
    Ok(())
}

/// As it would be read again.
fn event(ended: &Ended<'_>) -> Result<Event, StoreError> {
    let Ended { event_id, record, job, state, reason, error, response, .. } = ended;
    let kind = kind_of(*state).ok_or_else(|| StoreError::Corrupt(format!("event {event_id} is of state {state}")))?;
    Ok(Event {
        id: event_id.clone(),
        kind,
        at_ms: record.at_ms,
        attempts: super::number(job.attempts),
        reason: reason.map(str::to_owned),
        error: error.map(str::to_owned),
        // The bytes alone: they may be a small part of the buffer that a connection read into.
        response: response.map(|r| StoredResponse { body: Bytes::copy_from_slice(&r.body), ..r.clone() }),
        job_id: job.id.to_owned(),
        provider: job.provider.to_owned(),
        tenant: job.tenant.to_owned(),
        metadata: job.metadata.map(str::to_owned),
    })
}

/// The endpoints that some jobs may concern.
struct Targets<'a> {
    subscribers: HashMap<String, Vec<Target>>,
    by_url: HashMap<(&'a str, &'a str), Target>,
    by_id: HashMap<(String, String), Target>,
}

impl<'a> Targets<'a> {
    async fn read(tx: &mut Tx, ended: &'a [Ended<'a>]) -> Result<Self, StoreError> {
        let now_ms = ended.first().map(|e| e.record.at_ms).unwrap_or_default();
        let tenants: BTreeSet<&str> = ended.iter().map(|e| e.job.tenant).collect();
        let asked = || ended.iter().filter_map(|e| Some((e.job.tenant, wanted(e)?)));
        let urls: BTreeSet<_> = asked().filter_map(|(tenant, c)| Some((tenant, c.url.as_deref()?))).collect();
        let ids: BTreeSet<_> = asked().filter_map(|(tenant, c)| Some((tenant, c.endpoint.as_deref()?))).collect();
        Ok(Self {
            subscribers: endpoints::subscribers(tx, &tenants).await?,
            by_url: endpoints::implicit(tx, &urls, now_ms).await?,
            by_id: endpoints::named(tx, &ids).await?,
        })
    }

    /// Those that want to hear of it: those that get everything of the tenant, and the one that the job names. Each once.
    fn of<'t>(&'t self, ended: &'t Ended<'_>) -> Vec<&'t Target> {
        let Some(kind) = kind_of(ended.state) else { return Vec::new() };
        let tenant = ended.job.tenant;
        let mut targets: Vec<&Target> = self.subscribers.get(tenant).into_iter().flatten().collect();
        if let Some(callback) = wanted(ended) {
            let url = callback.url.as_deref().and_then(|url| self.by_url.get(&(tenant, url)));
            let named = callback.endpoint.as_ref().map(|id| self.by_id.get(&(tenant.to_owned(), id.clone())));
            if let Some(None) = named {
                let endpoint = callback.endpoint.as_deref();
                tracing::warn!(job = ended.job.id, endpoint, "no such endpoint: the completion stays undelivered");
            }
            targets.extend(url.into_iter().chain(named.flatten()));
        }
        let wanting = targets.into_iter().filter(|target| target.wants(kind));
        wanting.map(|target| (target.endpoint.pk, target)).collect::<BTreeMap<_, _>>().into_values().collect()
    }
}

/// The callback of a job that asked to hear of this end of it.
fn wanted<'a>(ended: &'a Ended<'a>) -> Option<&'a Callback> {
    let kind = kind_of(ended.state)?;
    ended.callback.as_ref().filter(|callback| callback.wants(kind))
}
