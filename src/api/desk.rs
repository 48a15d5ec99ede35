//! What can be asked about jobs and dead letters, whoever asks: the routes of the API and the
//! command line go through the same door, so that both check and answer alike.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};

use super::auth::Tenancy;
use super::error::{Problem, ProblemKind};
use super::params;
use super::view::{
    Accepted, AcceptedItem, AcceptedMany, DeadJson, JobJson, PageJson, Purged, ReplayAccepted, dead_page, job_page,
};
use crate::clock::{Clock, WallMs};
use crate::job::{Catalog, Given, Invalid, Job, JobState, Request, is_job_id, optional_object, schema};
use crate::kill_point::{KillPoint, reached};
use crate::replays::{Changes, check};
use crate::store::{
    Cancelled, DeadView, Inserted, JobView, NewJob, Origin, PurgeAct, Replay, Replayed, Store, StoredResponse,
    WaitReason,
};

/// Items of an array at most.
pub const ITEMS_MAX: usize = 1_000;
/// How long a cancellation may take to settle before the caller is told to look again.
const CANCEL_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks at it: doubled from the first to the last.
const CANCEL_LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(160));
/// Bodies up to this size are checked in place; larger ones on a thread of their own.
const CHECK_IN_PLACE_BYTES: usize = 128 * 1024;
/// What jobs wait for while their provider's windows are shut.
const WINDOW: &str = "window";
/// Dead letters a transaction of a purge.
const PURGE_BATCH: u32 = 500;
/// Transactions a purge before it answers.
const PURGE_BATCHES_MAX: u32 = 100;

/// Jobs and dead letters of one store. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    pub(super) store: Store,
    catalog: Arc<Catalog>,
    pub(super) clock: Arc<dyn Clock>,
    envelope_bytes_max: usize,
}

/// What submitting came to.
#[derive(Debug, Clone)]
pub enum Submitted {
    /// The body was one job.
    One(Accepted),
    /// It was an array.
    Many(AcceptedMany),
}

/// A checked body.
enum Checked {
    One(Box<Job>),
    Many(Vec<Result<Job, Problem>>),
}

/// The optional body of a replay.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ReplayChanges")]
pub(super) struct ReplayBody {
    /// Another request in place of the job's.
    #[serde(default, deserialize_with = "optional_object")]
    request: Option<Request>,
    /// Another lane than `replay`, which comes last in line.
    #[serde(default)]
    #[schemars(schema_with = "schema::optional_name")]
    lane: Option<String>,
    /// Not sent before.
    #[serde(default)]
    not_before: Option<crate::job::Instant>,
    /// `keep` sends the job's idempotency key again, `new` one of this run; unless given, the key is kept
    /// where an attempt's outcome is unknown and the request is not changed.
    #[serde(default)]
    idempotency_key: Option<KeyChoice>,
}

/// Which idempotency key a replay sends.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum KeyChoice {
    Keep,
    New,
}

impl Desk {
    /// Jobs are checked against `catalog`; one envelope has at most `envelope_bytes_max` bytes.
    pub fn new(store: Store, catalog: Arc<Catalog>, clock: Arc<dyn Clock>, envelope_bytes_max: usize) -> Self {
        Self { store, catalog, clock, envelope_bytes_max }
    }

    /// Takes a job, or an array of them, in. Returns after the commit.
    ///
    /// # Errors
    /// Not JSON, a field that is wrong, a conflict; items of an array have their own errors.
    pub async fn submit(&self, who: &Tenancy, body: Bytes, origin: Origin) -> Result<Submitted, Problem> {
        match self.check(who, body).await? {
            Checked::One(job) => {
                let id = job.id.clone();
                let mut results = self.insert(vec![Ok(*job)], &origin).await?;
                match results.pop() {
                    Some(AcceptedItem::Job(accepted)) => Ok(Submitted::One(accepted)),
                    Some(AcceptedItem::Refused { error }) => Err(error),
                    None => {
                        Err(Problem::new(ProblemKind::Internal, format!("the store said nothing about the job {id}")))
                    }
                }
            }
            Checked::Many(jobs) => {
                self.insert(jobs, &origin).await.map(|items| Submitted::Many(AcceptedMany { items }))
            }
        }
    }

    async fn check(&self, who: &Tenancy, body: Bytes) -> Result<Checked, Problem> {
        let (tenant, catalog, bytes_max) = (who.clone(), Arc::clone(&self.catalog), self.envelope_bytes_max);
        if body.len() <= CHECK_IN_PLACE_BYTES {
            return check_body(&body, tenant.tenant(), &catalog, bytes_max);
        }
        let checked = tokio::task::spawn_blocking(move || check_body(&body, tenant.tenant(), &catalog, bytes_max));
        checked.await.map_err(|_| Problem::new(ProblemKind::Internal, "checking the body failed"))?
    }

    /// Inserts what is well and answers for all, in order.
    async fn insert(&self, mut jobs: Vec<Result<Job, Problem>>, origin: &Origin) -> Result<Vec<AcceptedItem>, Problem> {
        self.refuse_unknown_endpoints(&mut jobs).await?;
        let now = self.clock.wall_ms();
        let mut items: Vec<Result<Accepted, Problem>> = Vec::with_capacity(jobs.len());
        let mut new = Vec::with_capacity(jobs.len());
        for checked in jobs {
            items.push(checked.map(|job| {
                let accepted =
                    Accepted { id: job.id.clone(), state: first_state(job.not_before_ms, now), created: true };
                new.push(NewJob { job, origin: origin.clone(), owner: None });
                accepted
            }));
        }
        reached(KillPoint::BeforeAccept);
        let mut inserted = if new.is_empty() { Vec::new() } else { self.store.insert(new, now).await? }.into_iter();
        reached(KillPoint::AfterAccept);
        let mut settle = |accepted: Accepted| match inserted.next() {
            Some(Inserted::Created(_)) => Ok(accepted),
            Some(Inserted::Exists(state)) => Ok(Accepted { state, created: false, ..accepted }),
            Some(Inserted::Conflict) => Err(Problem::new(
                ProblemKind::Conflict,
                format!("a job with the id {:?} exists already and asks for something else", accepted.id),
            )),
            None => Err(Problem::new(ProblemKind::Internal, "the store said nothing about this job")),
        };
        let answer = |result| match result {
            Ok(job) => AcceptedItem::Job(job),
            Err(error) => AcceptedItem::Refused { error },
        };
        Ok(items.into_iter().map(|item| answer(item.and_then(&mut settle))).collect())
    }

    /// A job with all its attempts.
    ///
    /// # Errors
    /// 404 for an unknown id and another tenant's alike.
    pub async fn job(&self, who: &Tenancy, id: &str) -> Result<JobJson, Problem> {
        let id = known_form(id).ok_or_else(Problem::no_job)?;
        let mut view = self.store.job(who.tenant(), id).await?.ok_or_else(Problem::no_job)?;
        self.say_what_holds(std::slice::from_mut(&mut view)).await?;
        Ok(view.into())
    }

    /// A page of jobs, newest first; `query` as in the URL.
    ///
    /// # Errors
    /// Unknown and wrong parameters are named.
    pub async fn jobs(&self, who: Tenancy, query: &str) -> Result<PageJson<JobJson>, Problem> {
        let (mut filter, window) = params::jobs(query)?;
        filter.tenant = who.narrow(filter.tenant)?.tenant().map(str::to_owned);
        let mut page = self.store.jobs(&filter, window.cursor, window.limit).await?;
        self.say_what_holds(&mut page.items).await?;
        Ok(job_page(page))
    }

    /// A queued job whose provider an operator paused, or whose windows are shut, waits for that.
    async fn say_what_holds(&self, views: &mut [JobView]) -> Result<(), Problem> {
        if views.iter().all(|view| view.state != JobState::Queued) {
            return Ok(());
        }
        let paused = self.store.paused_providers().await?;
        for view in views.iter_mut().filter(|view| view.state == JobState::Queued) {
            if paused.contains(&view.job.provider) {
                view.waiting_reason = Some(WaitReason::Paused.as_str().to_owned());
            } else if let Some(until_ms) = self.shut_until(&view.job.provider) {
                (view.waiting_reason, view.due_ms) = (Some(WINDOW.to_owned()), until_ms);
            }
        }
        Ok(())
    }

    /// Until when no call leaves to that provider: its windows are shut.
    fn shut_until(&self, provider: &str) -> Option<Option<WallMs>> {
        let standing = self.catalog.providers.get(provider)?.windows.at(self.clock.wall_ms());
        (!standing.is_open).then_some(standing.until_ms)
    }

    /// The provider's answer.
    ///
    /// # Errors
    /// 404 where there is no job, and where it has no result (yet).
    pub async fn result(&self, who: &Tenancy, id: &str) -> Result<StoredResponse, Problem> {
        let id = known_form(id).ok_or_else(Problem::no_job)?;
        if let Some(response) = self.store.result(who.tenant(), id).await? {
            return Ok(response);
        }
        let view = self.store.job(who.tenant(), id).await?.ok_or_else(Problem::no_job)?;
        let detail = if view.state.is_terminal() {
            format!("the job is {} and no response of the provider was kept", view.state)
        } else {
            format!("the job is {}: there is no result yet", view.state)
        };
        Err(Problem::new(ProblemKind::NoResult, detail))
    }

    /// Withdraws a job that is not being sent. A job that is cancelled already stays so.
    ///
    /// # Errors
    /// 409 where it is too late, or its dispatcher has not let go of it within two seconds.
    pub async fn cancel(&self, who: &Tenancy, id: &str) -> Result<JobJson, Problem> {
        let id = known_form(id).ok_or_else(Problem::no_job)?;
        match self.store.cancel(who.tenant(), id, self.clock.wall_ms()).await? {
            Cancelled::Done | Cancelled::TooLate(JobState::Cancelled) => self.job(who, id).await,
            Cancelled::Asked => self.await_cancelled(who, id).await,
            Cancelled::TooLate(state) => Err(too_late(state)),
            Cancelled::NotFound => Err(Problem::no_job()),
        }
    }

    async fn await_cancelled(&self, who: &Tenancy, id: &str) -> Result<JobJson, Problem> {
        let deadline = Instant::now() + CANCEL_WITHIN;
        let mut pause = CANCEL_LOOK.0;
        loop {
            let view = self.store.job(who.tenant(), id).await?.ok_or_else(Problem::no_job)?;
            match view.state {
                JobState::Cancelled => return Ok(view.into()),
                state if state.is_terminal() => return Err(too_late(state)),
                state if Instant::now() >= deadline => {
                    let detail = format!(
                        "the job is {state} and in the hands of a dispatcher, which was asked to let go of it: look again"
                    );
                    return Err(Problem::new(ProblemKind::CancelPending, detail));
                }
                _ => sleep_until(deadline.min(Instant::now() + pause)).await,
            }
            pause = (pause * 2).min(CANCEL_LOOK.1);
        }
    }

    /// A page of dead letters, newest first; `query` as in the URL.
    ///
    /// # Errors
    /// Unknown and wrong parameters are named.
    pub async fn dead_letters(&self, who: Tenancy, query: &str) -> Result<PageJson<DeadJson>, Problem> {
        let (mut filter, window) = params::dead_letters(query)?;
        filter.tenant = who.narrow(filter.tenant)?.tenant().map(str::to_owned);
        Ok(dead_page(self.store.dead_letters(&filter, window.cursor, window.limit).await?))
    }

    /// A dead letter with everything that is known of it.
    ///
    /// # Errors
    /// 404 for an unknown id and another tenant's alike.
    pub async fn dead_letter(&self, who: &Tenancy, id: &str) -> Result<DeadJson, Problem> {
        self.dead_view(who, id).await.map(DeadJson::from)
    }

    async fn dead_view(&self, who: &Tenancy, id: &str) -> Result<DeadView, Problem> {
        let id = known_form(id).ok_or_else(Problem::no_dead_letter)?;
        self.store.dead_letter(who.tenant(), id).await?.ok_or_else(Problem::no_dead_letter)
    }

    /// Runs a dead letter again, as `body` says (nothing, or a JSON object). The job as it will
    /// run is checked against what is configured now.
    ///
    /// # Errors
    /// 404; 409 where it is dead no more or never was a job; 422 names the field.
    pub async fn replay(&self, who: &Tenancy, id: &str, body: &[u8]) -> Result<ReplayAccepted, Problem> {
        let body = replay_body(body)?;
        let view = self.dead_view(who, id).await?;
        let Some(envelope) = view.envelope else { return Err(never_a_job()) };
        let changes = Changes { request: body.request, lane: body.lane, not_before: body.not_before };
        check(&envelope, changes.clone(), &self.catalog, self.clock.wall_ms()).map_err(Problem::invalid)?;
        let how = Replay {
            request: changes.request,
            lane: changes.lane,
            not_before_ms: body.not_before.map(|t| t.0),
            keep_key: body.idempotency_key.map(|choice| matches!(choice, KeyChoice::Keep)),
            by: Some(who.by().to_owned()),
        };
        let now = self.clock.wall_ms();
        match self.store.replay(who.tenant(), &view.id, &how, now).await? {
            Replayed::Queued { run } => {
                Ok(ReplayAccepted { id: view.id, run, state: first_state(how.not_before_ms, now) })
            }
            Replayed::NotFound => Err(Problem::no_dead_letter()),
            Replayed::NotAJob => Err(never_a_job()),
            Replayed::NotDead(state) => {
                let detail = format!("the job was replayed already and is {state}");
                Err(Problem::new(ProblemKind::NotReplayable, detail))
            }
        }
    }

    /// Removes dead letters by filter, in bounded batches; `query` as in the URL.
    ///
    /// # Errors
    /// A query without any filter must say `all=true`.
    pub async fn purge(&self, who: Tenancy, query: &str) -> Result<Purged, Problem> {
        let mut filter = params::purge(query)?;
        let who = who.narrow(filter.tenant)?;
        filter.tenant = who.tenant().map(str::to_owned);
        let (mut purged, mut act_pk) = (0, None);
        let asked = format!(" of those that fit {}", serde_json::to_string(&filter).unwrap_or_default());
        for _ in 0..PURGE_BATCHES_MAX {
            let by = PurgeAct { who: who.by(), filter: &asked, act_pk, purged, now_ms: self.clock.wall_ms() };
            let (gone, pk) = self.store.purge_dead_by(&filter, PURGE_BATCH, &by).await?;
            act_pk = Some(pk);
            purged += gone;
            if gone < u64::from(PURGE_BATCH) {
                return Ok(Purged { purged, more: false });
            }
        }
        Ok(Purged { purged, more: true })
    }
}

/// Ids of another form exist nowhere.
pub(super) fn known_form(id: &str) -> Option<&str> {
    is_job_id(id).then_some(id)
}

fn first_state(not_before: Option<WallMs>, now: WallMs) -> JobState {
    if not_before.is_some_and(|at| at > now) { JobState::Waiting } else { JobState::Queued }
}

fn too_late(state: JobState) -> Problem {
    Problem::new(
        ProblemKind::TooLate,
        format!("the job is {state}: it can be cancelled only while it is queued or waiting"),
    )
}

fn never_a_job() -> Problem {
    Problem::new(ProblemKind::NotReplayable, "this message never became a job: there is nothing to run")
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::new(ProblemKind::NotJson, format!("expected JSON: {error}"))
}

/// Reads and checks a body: an object is a job, an array is many.
fn check_body(body: &[u8], tenant: Option<&str>, catalog: &Catalog, bytes_max: usize) -> Result<Checked, Problem> {
    let given = Given { tenant, ..Given::default() };
    if body.trim_ascii_start().first() != Some(&b'[') {
        let json: &RawValue = serde_json::from_slice(body).map_err(|e| not_json(&e))?;
        return check_one(json.get(), &given, catalog).map(|job| Checked::One(Box::new(job)));
    }
    let items: Vec<&RawValue> = serde_json::from_slice(body).map_err(|e| not_json(&e))?;
    if items.len() > ITEMS_MAX {
        let message = format!("expected at most {ITEMS_MAX} jobs in one array, found {}", items.len());
        return Err(Problem::invalid(Invalid::at("", message)));
    }
    let check = |item: &RawValue| {
        if item.get().len() > bytes_max {
            return Err(Problem::new(ProblemKind::TooLarge, format!("a job may have at most {bytes_max} bytes")));
        }
        check_one(item.get(), &given, catalog)
    };
    Ok(Checked::Many(items.into_iter().map(check).collect()))
}

fn check_one(json: &str, given: &Given<'_>, catalog: &Catalog) -> Result<Job, Problem> {
    if !json.starts_with('{') {
        return Err(Problem::invalid(Invalid::at(
            "",
            "expected an object: a job, such as {\"provider\":\"…\",\"request\":{\"path\":\"/…\"}}",
        )));
    }
    Job::parse(json.as_bytes(), given, catalog).map_err(Problem::invalid)
}

fn replay_body(body: &[u8]) -> Result<ReplayBody, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(ReplayBody::default());
    }
    object(body, "{} or {\"request\":{\"path\":\"/…\"}}")
}

/// Reads an object whose wrong fields are named; `example` is shown where it is none.
pub(super) fn object<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, Problem> {
    let json: &RawValue = serde_json::from_slice(body).map_err(|e| not_json(&e))?;
    if !json.get().starts_with('{') {
        return Err(Problem::invalid(Invalid::at("", format!("expected an object, such as {example}"))));
    }
    let mut reader = serde_json::Deserializer::from_str(json.get());
    serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let path = e.path().to_string();
        Problem::invalid(Invalid::at(&path, e.into_inner().to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str) -> Result<Checked, Problem> {
        let mut catalog = Catalog::default();
        catalog.providers.insert("geo".to_owned(), crate::job::ProviderRules::default());
        check_body(body.as_bytes(), Some("acme"), &catalog, 1024)
    }

    fn kind(body: &str) -> ProblemKind {
        match check(body) {
            Err(problem) => problem.kind,
            Ok(_) => panic!("accepted: {body}"),
        }
    }

    #[test]
    fn what_is_not_json_and_what_is_not_a_job_are_told_apart() {
        for body in ["", " ", "{", "nope", "{\"a\":1} x", "[1,", "\u{feff}{}"] {
            assert_eq!(kind(body), ProblemKind::NotJson, "{body}");
        }
        for body in
            ["1", "\"x\"", "null", "{}", "{\"provider\":\"geo\"}", "{\"provider\":1,\"request\":{\"path\":\"/\"}}"]
        {
            assert_eq!(kind(body), ProblemKind::Invalid, "{body}");
        }
    }

    #[test]
    fn items_of_an_array_have_their_own_errors() {
        let large =
            format!("{{\"provider\":\"geo\",\"request\":{{\"path\":\"/\",\"text\":\"{}\"}}}}", "x".repeat(2000));
        let body = format!(
            "[{{\"provider\":\"geo\",\"request\":{{\"path\":\"/a\"}}}}, 1, {{\"provider\":\"nope\",\"request\":{{\"path\":\"/\"}}}}, {large}]"
        );
        let Ok(Checked::Many(items)) = check(&body) else { panic!("an array") };
        assert_eq!(items[0].as_ref().expect("fine").tenant, "acme");
        let kinds: Vec<_> = items.iter().map(|item| item.as_ref().err().map(|p| p.kind)).collect();
        let invalid = Some(ProblemKind::Invalid);
        assert_eq!(kinds, [None, invalid, invalid, Some(ProblemKind::TooLarge)]);
        let too_many = format!("[{}]", vec!["1"; ITEMS_MAX + 1].join(","));
        assert_eq!(kind(&too_many), ProblemKind::Invalid);
    }

    #[test]
    fn deep_json_is_refused_not_followed() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let body = format!("{{\"provider\":\"geo\",\"request\":{{\"path\":\"/\",\"body\":{deep}}}}}");
        assert_eq!(kind(&body), ProblemKind::Invalid);
        let body = format!("{{\"provider\":\"geo\",\"request\":{{\"path\":\"/\",\"query\":{{\"a\":{deep}}}}}}}");
        assert_eq!(kind(&body), ProblemKind::Invalid);
        let Ok(Checked::Many(items)) = check(&deep) else { panic!("an array of one array") };
        assert!(items.iter().all(Result::is_err));
    }

    #[test]
    fn a_replay_s_body_is_optional_and_strict() {
        assert!(replay_body(b"").is_ok());
        assert!(replay_body(b" {} ").is_ok());
        assert_eq!(replay_body(b"{").expect_err("broken").kind, ProblemKind::NotJson);
        let wrong = replay_body(b"{\"idempotency_key\":\"maybe\"}").expect_err("unknown choice");
        assert_eq!(wrong.errors[0].path, "$.idempotency_key");
        let wrong = replay_body(b"{\"requets\":{}}").expect_err("unknown field");
        assert!(wrong.detail.contains("requets"), "{wrong}");
        let wrong = replay_body(b"{\"request\":{\"method\":\"GET\"}}").expect_err("no path");
        assert_eq!(wrong.errors[0].path, "$.request");
    }
}
