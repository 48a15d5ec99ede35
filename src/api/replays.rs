//! `/v1/replays`: run many dead letters again, by filter.

use axum::Json;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Parts;
use super::auth::{Caller, Tenancy};
use super::body::{BodyReader, Takes};
use super::desk::{Desk, KeyChoice, known_form, object};
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::params::{self, ListKind};
use super::path::Id;
use super::routes::Routes;
use super::view::PageJson;
use crate::clock::rfc3339;
use crate::config::Scope;
use crate::job::{Instant, Invalid, is_name, object as object_of, schema};
use crate::store::{DeadFilter, DeadReason, Page, ReplayOptions, ReplayOrder, ReplayView};

/// What is asked for.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ReplayOrder", transform = some_or_all)]
struct OrderBody {
    /// Which dead letters.
    #[serde(deserialize_with = "object_of")]
    r#where: Where,
    /// Every dead letter: said aloud where `where` is left out.
    all: bool,
    /// Only counts.
    dry_run: bool,
    /// As for one dead letter.
    idempotency_key: Option<KeyChoice>,
}

/// Either something to filter by, or `"all": true`.
fn some_or_all(schema: &mut schemars::Schema) {
    let names = ["reason", "provider", "lane", "tenant", "replayed", "dead_after", "dead_before"];
    let given = |name: &&str| json!({ "required": [name], "properties": { *name: { "not": { "type": "null" } } } });
    let nothing: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), json!({ "type": "null" }))).collect();
    let some = json!({ "anyOf": names.iter().map(given).collect::<Vec<_>>() });
    schema.insert(
        "oneOf".to_owned(),
        json!([
            { "required": ["where"], "properties": { "where": some, "all": { "const": false } } },
            { "required": ["all"], "properties": { "where": { "properties": nothing }, "all": { "const": true } } },
        ]),
    );
}

/// Which dead letters: those that fit every member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "DeadLetterFilter")]
struct Where {
    /// Given up for that reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<DeadReason>")]
    reason: Option<String>,
    /// For that provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_name")]
    provider: Option<String>,
    /// In that lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_name")]
    lane: Option<String>,
    /// Of that tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_tenant")]
    tenant: Option<String>,
    /// Run again already; `false` unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    replayed: Option<bool>,
    /// Given up at that time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_after: Option<Instant>,
    /// Given up before that time.
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_before: Option<Instant>,
}

/// What became of the wish: a count, or a replay that runs.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Begun {
    /// `dry_run`: nothing was changed.
    Counted {
        /// Always `true`.
        dry_run: bool,
        /// Dead letters that fit.
        total: i64,
    },
    /// It runs.
    Running(Box<ReplayJson>),
}

/// A replay by filter.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Replay")]
pub struct ReplayJson {
    /// Its own.
    id: String,
    /// `running`, `done` or `stopped`.
    #[schemars(extend("enum" = ["running", "done", "stopped"]))]
    state: &'static str,
    /// Whose dead letters; null: everybody's.
    tenant: Option<String>,
    /// Which dead letters.
    r#where: Where,
    /// Dead letters that fitted when it began.
    total: i64,
    /// Run again so far.
    replayed: i64,
    /// Left out: they cannot run by what is configured now, or were run meanwhile.
    skipped: i64,
    /// When it began.
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    /// When it ended.
    #[schemars(extend("format" = "date-time"))]
    finished_at: Option<String>,
}

impl From<ReplayView> for ReplayJson {
    fn from(view: ReplayView) -> Self {
        let DeadFilter { reason, provider, lane, tenant, replayed, dead_after_ms, dead_before_ms } = view.order.filter;
        let (dead_after, dead_before) = (dead_after_ms.map(Instant), dead_before_ms.map(Instant));
        Self {
            id: view.id,
            state: view.state.as_str(),
            tenant: view.tenant,
            r#where: Where { reason, provider, lane, tenant, replayed, dead_after, dead_before },
            total: view.total,
            replayed: view.replayed,
            skipped: view.skipped,
            created_at: rfc3339(view.created_ms),
            finished_at: view.finished_ms.map(rfc3339),
        }
    }
}

impl Where {
    /// Letters that were replayed already are left alone unless they are asked for.
    fn filter(self) -> DeadFilter {
        DeadFilter {
            reason: self.reason,
            provider: self.provider,
            lane: self.lane,
            tenant: self.tenant,
            replayed: Some(self.replayed.unwrap_or(false)),
            dead_after_ms: self.dead_after.map(|at| at.0),
            dead_before_ms: self.dead_before.map(|at| at.0),
        }
    }

    fn check(&self) -> Result<(), Problem> {
        let mut wrong = Vec::new();
        let mut expect = |name: &str, fits: bool, what: &str| {
            if !fits {
                wrong.push(Invalid { path: format!("$.where.{name}"), message: format!("expected {what}") });
            }
        };
        let reasons = DeadReason::ALL.map(DeadReason::as_str);
        let is_reason = |reason: &String| reasons.contains(&reason.as_str());
        expect("reason", self.reason.as_ref().is_none_or(is_reason), &format!("one of {}", reasons.join(", ")));
        expect("provider", self.provider.as_deref().is_none_or(is_name), "a name of a-z 0-9 _ -");
        expect("lane", self.lane.as_deref().is_none_or(is_name), "a name of a-z 0-9 _ -");
        let is_tenant = |tenant: &String| params::is_tenant(tenant);
        expect("tenant", self.tenant.as_ref().is_none_or(is_tenant), "at most 255 bytes without control characters");
        if wrong.is_empty() { Ok(()) } else { Err(Problem::invalid_fields(wrong)) }
    }
}

impl Desk {
    /// Begins a replay by filter, or counts what it would run.
    ///
    /// # Errors
    /// 422 names the field; nothing to filter by must be said aloud: `"all": true`.
    pub async fn begin_replay(&self, who: Tenancy, body: &[u8]) -> Result<Begun, Problem> {
        let body: OrderBody = object(body, EXAMPLE)?;
        body.r#where.check()?;
        if body.all != (body.r#where == Where::default()) {
            let message = format!("expected either members to filter by, or \"all\": true; such as {EXAMPLE}");
            return Err(Problem::invalid(Invalid { path: "$.where".to_owned(), message }));
        }
        let who = who.narrow(body.r#where.tenant.clone())?;
        let filter = DeadFilter { tenant: who.tenant().map(str::to_owned), ..body.r#where.filter() };
        let keep_key = body.idempotency_key.map(|choice| matches!(choice, KeyChoice::Keep));
        let order = ReplayOrder { filter, options: ReplayOptions { keep_key } };
        let now = self.clock.wall_ms();
        match self.store.begin_replay(who.tenant(), &order, body.dry_run, who.by(), now).await? {
            (total, None) => Ok(Begun::Counted { dry_run: true, total }),
            (_, Some(id)) => self.replay_by_filter(&who, &id).await.map(|view| Begun::Running(Box::new(view))),
        }
    }

    /// A replay by filter.
    ///
    /// # Errors
    /// 404.
    pub async fn replay_by_filter(&self, who: &Tenancy, id: &str) -> Result<ReplayJson, Problem> {
        let view = match known_form(id) {
            Some(id) => self.store.replay_view(who.tenant(), id).await?,
            None => None,
        };
        view.map(ReplayJson::from).ok_or_else(|| Problem::new(ProblemKind::NotFound, "there is no replay of that id"))
    }

    /// Replays by filter, newest first.
    ///
    /// # Errors
    /// A parameter that is wrong.
    pub async fn replays(&self, who: &Tenancy, query: &str) -> Result<PageJson<ReplayJson>, Problem> {
        let window = params::replays(query)?;
        let Page { items, next } = self.store.replays(who.tenant(), window.cursor, window.limit).await?;
        let items = items.into_iter().map(ReplayJson::from).collect();
        Ok(PageJson { items, next_cursor: next.map(|position| ListKind::Replays.encode(position)) })
    }

    /// Stops a replay by filter: what it has queued again stays queued.
    ///
    /// # Errors
    /// 404; 409 where it does not run.
    pub async fn stop_replay(&self, who: &Tenancy, id: &str) -> Result<ReplayJson, Problem> {
        let view = self.replay_by_filter(who, id).await?;
        let stopped = self.store.stop_replay(who.tenant(), &view.id, who.by(), self.clock.wall_ms()).await?;
        let view = self.replay_by_filter(who, &view.id).await?;
        if stopped {
            return Ok(view);
        }
        Err(Problem::new(
            ProblemKind::TooLate,
            format!("the replay is {}: only one that runs can be stopped", view.state),
        ))
    }
}

const EXAMPLE: &str = "{\"where\": {\"reason\": \"attempts_exhausted\"}, \"dry_run\": true}";

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let beginning = Operation::new("beginReplay", "Run many dead letters again, by filter", Scope::Replay)
        .about("Goes on in the background, in the lane `replay`, a few hundred jobs at once; `dry_run` only counts.")
        .body::<OrderBody>()
        .sends("count first", r#"{"where": {"reason": "attempts_exhausted", "provider": "geocoder"}, "dry_run": true}"#)
        .sends("everything", r#"{"all": true}"#)
        .answer::<Begun>(200, "How many it would be (`dry_run`)")
        .example(r#"{"dry_run": true, "total": 1200}"#)
        .answer::<Begun>(202, "It runs")
        .example(
            r#"{"id": "0199c1f0-0000-7000-8000-000000000000", "state": "running", "tenant": null, "where": {"replayed": false},
                "total": 1200, "replayed": 0, "skipped": 0, "created_at": "2026-11-20T10:00:00.000Z", "finished_at": null}"#,
        );
    let listing = Operation::new("listReplays", "List replays by filter, newest first", Scope::Read)
        .query(&params::REPLAYS)
        .answer::<PageJson<ReplayJson>>(200, "A page of replays");
    let showing = Operation::new("getReplay", "Look at the progress of a replay", Scope::Read)
        .answer::<ReplayJson>(200, "The replay")
        .problems(&[ProblemKind::NotFound]);
    let stopping = Operation::new("stopReplay", "Stop a replay", Scope::Replay)
        .about("What it has queued again stays queued.")
        .answer::<ReplayJson>(200, "The replay, which is stopped")
        .problems(&[ProblemKind::NotFound, ProblemKind::TooLate]);
    Routes::new()
        .post("/v1/replays", begin, beginning)
        .get("/v1/replays", list, listing)
        .get("/v1/replays/{id}", show, showing)
        .delete("/v1/replays/{id}", stop, stopping)
}

/// `POST /v1/replays`
pub(super) async fn begin(
    caller: Caller,
    State(desk): State<Desk>,
    State(reader): State<BodyReader>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<Response, Problem> {
    let who = caller.may(Scope::Replay)?;
    params::none(query.as_deref().unwrap_or_default())?;
    let body = reader.read(body, Takes::One).await?;
    let begun = desk.begin_replay(who, &body.bytes).await?;
    let status = if matches!(begun, Begun::Counted { .. }) { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(begun)).into_response())
}

/// `GET /v1/replays`
pub(super) async fn list(
    caller: Caller,
    State(desk): State<Desk>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<ReplayJson>>, Problem> {
    let who = caller.may(Scope::Read)?;
    desk.replays(&who, query.as_deref().unwrap_or_default()).await.map(Json)
}

/// `GET /v1/replays/{id}`
pub(super) async fn show(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<ReplayJson>, Problem> {
    let who = caller.may(Scope::Read)?;
    params::none(query.as_deref().unwrap_or_default())?;
    desk.replay_by_filter(&who, &id).await.map(Json)
}

/// `DELETE /v1/replays/{id}`
pub(super) async fn stop(
    caller: Caller,
    State(desk): State<Desk>,
    Id(id): Id,
    RawQuery(query): RawQuery,
) -> Result<Json<ReplayJson>, Problem> {
    let who = caller.may(Scope::Replay)?;
    params::none(query.as_deref().unwrap_or_default())?;
    desk.stop_replay(&who, &id).await.map(Json)
}
