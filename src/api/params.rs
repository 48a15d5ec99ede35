//! Parameters of queries: every one is known, given once, and checked; all that is wrong is said
//! at once.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use serde_json::{Value, json};

use super::error::Problem;
use crate::clock::{WallMs, parse_rfc3339};
use crate::job::{EventKind, Invalid, JobState, is_job_id, is_name, schema};
use crate::store::{CompletionFilter, DeadFilter, DeadReason, DeliveryFilter, DeliveryState, JobFilter, Occurrence};
use crate::webhook::TEST_EVENT;

/// Items of a page, unless asked for otherwise.
const LIMIT: u32 = 50;
/// Items of a page at most.
pub const LIMIT_MAX: u32 = 500;
/// Longest name of a tenant, in bytes.
const TENANT_BYTES_MAX: usize = 255;

/// What dead letters are filtered by.
const DEAD_FILTERS: [&str; 7] = ["reason", "provider", "lane", "tenant", "replayed", "dead_after", "dead_before"];

/// Of `GET /v1/jobs`.
pub(super) const JOBS: [&str; 6] = ["state", "provider", "lane", "tenant", "cursor", "limit"];
/// Of `GET /v1/dead-letters`.
pub(super) const DEAD_LETTERS: [&str; 9] =
    ["reason", "provider", "lane", "tenant", "replayed", "dead_after", "dead_before", "cursor", "limit"];
/// Of `DELETE /v1/dead-letters`.
pub(super) const PURGE: [&str; 8] =
    ["reason", "provider", "lane", "tenant", "replayed", "dead_after", "dead_before", "all"];
/// Of `GET /v1/replays`.
pub(super) const REPLAYS: [&str; 2] = ["cursor", "limit"];
/// Of `GET /v1/audit`.
pub(super) const ACTS: [&str; 2] = ["cursor", "limit"];
/// Of calls by id.
pub(super) const TENANT: [&str; 1] = ["tenant"];
/// Of `GET /v1/endpoints`.
pub(super) const ENDPOINTS: [&str; 3] = ["tenant", "cursor", "limit"];
/// Of `GET /v1/deliveries`; what is before a dot tells parameters of one name apart.
pub(super) const DELIVERIES: [&str; 7] =
    ["endpoint", "delivery.state", "job", "delivery.event", "tenant", "cursor", "limit"];
/// Of `GET /v1/events`.
pub(super) const EVENTS: [&str; 3] = ["event", "provider", "tenant"];

/// The form of an id.
const ID: &str = "^(?!\\.{1,2}$)[A-Za-z0-9._:-]{1,128}$";

/// What the document says of a parameter. `place` is `path`, `query` or `header`; a name means the same wherever it
/// stands.
pub(super) fn describe(place: &str, name: &str) -> Value {
    let named = |about: &str| (json!({ "type": "string", "pattern": schema::NAME }), about.to_owned());
    let enumerated = |names: Vec<&str>, about: &str| (json!({ "type": "string", "enum": names }), about.to_owned());
    let instant = |about: &str| {
        (json!({ "type": "string", "format": "date-time", "pattern": schema::INSTANT }), about.to_owned())
    };
    let (schema, about) = match name {
        "state" => enumerated(JobState::ALL.map(JobState::as_str).to_vec(), "Only jobs in that state."),
        "delivery.state" => {
            enumerated(DeliveryState::ALL.map(DeliveryState::as_str).to_vec(), "Only deliveries in that state.")
        }
        "delivery.event" => {
            let kinds = EventKind::ALL.map(EventKind::as_str).into_iter().chain([TEST_EVENT]).collect();
            enumerated(kinds, "Only deliveries of that event.")
        }
        "endpoint" => (json!({ "type": "string", "pattern": ID }), "Only what goes to that endpoint.".to_owned()),
        "job" => (json!({ "type": "string", "pattern": ID }), "Only what tells of that job.".to_owned()),
        "reason" => {
            enumerated(DeadReason::ALL.map(DeadReason::as_str).to_vec(), "Only what was given up for that reason.")
        }
        "event" => enumerated(EventKind::ALL.map(EventKind::as_str).to_vec(), "Only completions of that kind."),
        "provider" => named("Only what is for that provider."),
        "lane" => named("Only what is in that lane."),
        "name" => named("The name of a configured provider."),
        "label" => named("The label of a key."),
        "budget" => named("The name of a budget, or the label of a key that has one of its own."),
        "tenant" => (
            json!({ "type": "string", "maxLength": TENANT_BYTES_MAX, "pattern": schema::PLAIN }),
            "Only what is that tenant's. Where several tenants use the same id, it says which one is meant.".to_owned(),
        ),
        "replayed" => (json!({ "type": "boolean" }), "Only what was run again, or was not.".to_owned()),
        "all" => (json!({ "type": "boolean" }), "Everything: said aloud where no filter is given.".to_owned()),
        "dead_after" => instant("Only what was given up at that time or later."),
        "dead_before" => instant("Only what was given up before that time."),
        "limit" => (
            json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT }),
            "Items of a page at most.".to_owned(),
        ),
        "cursor" => (
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{12}$" }),
            "Where the page begins: `next_cursor` of the page before, as it was given.".to_owned(),
        ),
        "id" => (json!({ "type": "string", "pattern": ID }), "The id.".to_owned()),
        "file" => enumerated(super::dashboard::NAMES.to_vec(), "The name of the file."),
        "traceparent" => (json!({ "type": "string" }), "The W3C trace that the job belongs to.".to_owned()),
        "last-event-id" => (
            json!({ "type": "string" }),
            "The `id` of the last event that was seen: those after it come first. Browsers send it by themselves."
                .to_owned(),
        ),
        // A test finds it: every parameter has a description.
        _ => (json!(true), String::new()),
    };
    let name = name.rsplit('.').next().unwrap_or(name);
    json!({ "name": name, "in": place, "required": place == "path", "schema": schema, "description": about })
}

/// The parameters of one query, and what was wrong with them so far.
#[derive(Debug)]
struct Params {
    given: BTreeMap<String, String>,
    errors: Vec<Invalid>,
}

impl Params {
    fn read(query: &str, known: &[&str]) -> Self {
        let mut params = Self { given: BTreeMap::new(), errors: Vec::new() };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&name.as_ref()) {
                params.wrong(&name, format!("unknown parameter; known: {}", known.join(", ")));
            } else if params.given.insert(name.to_string(), value.into_owned()).is_some() {
                params.wrong(&name, "expected this parameter once");
            }
        }
        params
    }

    fn wrong(&mut self, name: &str, message: impl Into<String>) {
        self.errors.push(Invalid { path: format!("?{}", name.escape_debug()), message: message.into() });
    }

    /// Takes a parameter, read by `parse`, which says what was expected.
    fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.given.remove(name)?;
        parse(&value).map_err(|expected| self.wrong(name, format!("expected {expected}, found {value:?}"))).ok()
    }

    fn name(&mut self, name: &str) -> Option<String> {
        self.take(
            name,
            |value| {
                if is_name(value) { Ok(value.to_owned()) } else { Err("a name of a-z 0-9 _ -".to_owned()) }
            },
        )
    }

    fn tenant(&mut self) -> Option<String> {
        self.take("tenant", |value| {
            if is_tenant(value) {
                Ok(value.to_owned())
            } else {
                Err(format!("at most {TENANT_BYTES_MAX} bytes without control characters"))
            }
        })
    }

    fn boolean(&mut self, name: &str) -> Option<bool> {
        self.take(name, |value| value.parse().map_err(|_| "true or false".to_owned()))
    }

    fn instant(&mut self, name: &str) -> Option<WallMs> {
        self.take(name, |value| parse_rfc3339(value).map_err(|_| "a time such as 2026-11-20T10:00:00Z".to_owned()))
    }

    fn reason(&mut self) -> Option<String> {
        let names = DeadReason::ALL.map(DeadReason::as_str);
        self.take("reason", |value| {
            if names.contains(&value) { Ok(value.to_owned()) } else { Err(format!("one of {}", names.join(", "))) }
        })
    }

    fn window(&mut self, list: ListKind) -> Window {
        let limit = self.take("limit", |value| {
            let limit = value.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
            limit.ok_or_else(|| format!("1 to {LIMIT_MAX}"))
        });
        let cursor = self.take("cursor", |value| list.decode(value).ok_or_else(|| "a cursor of this list".to_owned()));
        Window { cursor, limit: limit.unwrap_or(LIMIT) }
    }

    fn dead_filter(&mut self) -> DeadFilter {
        DeadFilter {
            reason: self.reason(),
            provider: self.name("provider"),
            lane: self.name("lane"),
            tenant: self.tenant(),
            replayed: self.boolean("replayed"),
            dead_after_ms: self.instant("dead_after"),
            dead_before_ms: self.instant("dead_before"),
        }
    }

    fn finish<T>(self, value: T) -> Result<T, Problem> {
        if self.errors.is_empty() { Ok(value) } else { Err(Problem::parameters(self.errors)) }
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins.
    pub cursor: Option<i64>,
    /// How many items at most.
    pub limit: u32,
}

/// Which list a cursor belongs to: one of another list is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListKind {
    Jobs = 1,
    DeadLetters = 2,
    Replays = 3,
    Endpoints = 4,
    Deliveries = 5,
    Events = 6,
    Acts = 9,
}

impl ListKind {
    pub(super) fn encode(self, position: i64) -> String {
        let mut bytes = vec![self as u8];
        bytes.extend(position.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    pub(super) fn decode(self, cursor: &str) -> Option<i64> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (kind, position) = bytes.split_first()?;
        let position = i64::from_be_bytes(position.try_into().ok()?);
        (*kind == self as u8).then_some(position)
    }
}

/// `GET /v1/jobs?…`: `state`, `provider`, `lane`, `tenant`, `cursor`, `limit` (1 to 500, 50 unless given).
pub fn jobs(query: &str) -> Result<(JobFilter, Window), Problem> {
    let mut params = Params::read(query, &JOBS);
    let state = params.take("state", |value| {
        let names = || format!("one of {}", JobState::ALL.map(JobState::as_str).join(", "));
        JobState::from_name(value).ok_or_else(names)
    });
    let filter =
        JobFilter { state, provider: params.name("provider"), lane: params.name("lane"), tenant: params.tenant() };
    let window = params.window(ListKind::Jobs);
    params.finish((filter, window))
}

/// `GET /v1/dead-letters?…`: `reason`, `provider`, `lane`, `tenant`, `replayed`, `dead_after`, `dead_before`, `cursor`,
/// `limit`.
pub fn dead_letters(query: &str) -> Result<(DeadFilter, Window), Problem> {
    let mut params = Params::read(query, &DEAD_LETTERS);
    let filter = params.dead_filter();
    let window = params.window(ListKind::DeadLetters);
    params.finish((filter, window))
}

/// `GET /v1/replays?…`: `cursor`, `limit`.
pub fn replays(query: &str) -> Result<Window, Problem> {
    let mut params = Params::read(query, &REPLAYS);
    let window = params.window(ListKind::Replays);
    params.finish(window)
}

/// `GET /v1/audit?…`: `cursor`, `limit`.
pub fn acts(query: &str) -> Result<Window, Problem> {
    let mut params = Params::read(query, &ACTS);
    let window = params.window(ListKind::Acts);
    params.finish(window)
}

/// `GET /v1/endpoints?…`: `tenant`, `cursor`, `limit`.
pub fn endpoints(query: &str) -> Result<(Option<String>, Window), Problem> {
    let mut params = Params::read(query, &["tenant", "cursor", "limit"]);
    let tenant = params.tenant();
    let window = params.window(ListKind::Endpoints);
    params.finish((tenant, window))
}

/// `GET /v1/deliveries?…`: `endpoint`, `state`, `job`, `event`, `tenant`, `cursor`, `limit`.
pub fn deliveries(query: &str) -> Result<(DeliveryFilter, Window), Problem> {
    let mut params = Params::read(query, &["endpoint", "state", "job", "event", "tenant", "cursor", "limit"]);
    let id = |value: &str| is_job_id(value).then(|| value.to_owned()).ok_or_else(|| "an id".to_owned());
    let state = params.take("state", |value| {
        let names = || format!("one of {}", DeliveryState::ALL.map(DeliveryState::as_str).join(", "));
        DeliveryState::from_name(value).ok_or_else(names)
    });
    let occurrence = params.take("event", |value| match EventKind::from_name(value) {
        Some(kind) => Ok(Occurrence::Completion(kind)),
        None if value == TEST_EVENT => Ok(Occurrence::Test),
        None => Err(format!("one of {}, {TEST_EVENT}", EventKind::ALL.map(EventKind::as_str).join(", "))),
    });
    let filter = DeliveryFilter {
        endpoint: params.take("endpoint", id),
        state,
        job: params.take("job", id),
        occurrence,
        tenant: params.tenant(),
    };
    let window = params.window(ListKind::Deliveries);
    params.finish((filter, window))
}

/// Whether this may be a tenant's name.
pub(super) fn is_tenant(name: &str) -> bool {
    name.len() <= TENANT_BYTES_MAX && !name.chars().any(char::is_control)
}

/// `DELETE /v1/dead-letters?…`: the filters of the list, at least one of them, or `all=true`.
pub fn purge(query: &str) -> Result<DeadFilter, Problem> {
    let mut params = Params::read(query, &PURGE);
    let filter = params.dead_filter();
    let all = params.boolean("all").unwrap_or(false);
    let filtered = !filter.is_empty();
    if params.errors.is_empty() && filtered == all {
        let message = if all {
            "expected either filters or all=true, not both"
        } else {
            &format!("expected at least one of {}; or all=true to purge every dead letter", DEAD_FILTERS.join(", "))
        };
        params.wrong("all", message);
    }
    params.finish(filter)
}

/// The only parameter of calls by id: `tenant`, where the same id may exist for several.
pub fn tenant(query: &str) -> Result<Option<String>, Problem> {
    let mut params = Params::read(query, &TENANT);
    let tenant = params.tenant();
    params.finish(tenant)
}

/// `GET /v1/events?…`: `event`, `provider`, `tenant`.
pub fn events(query: &str) -> Result<CompletionFilter, Problem> {
    let mut params = Params::read(query, &EVENTS);
    let event = params.take("event", |value| {
        let known = EventKind::ALL.into_iter().find(|kind| kind.as_str() == value);
        known.ok_or_else(|| format!("one of {}", EventKind::ALL.map(EventKind::as_str).join(", ")))
    });
    let filter = CompletionFilter { event, provider: params.name("provider"), tenant: params.tenant() };
    params.finish(filter)
}

/// For calls without any parameter.
pub fn none(query: &str) -> Result<(), Problem> {
    let mut params = Params { given: BTreeMap::new(), errors: Vec::new() };
    for (name, _) in url::form_urlencoded::parse(query.as_bytes()) {
        params.wrong(&name, "unknown parameter; this call has none");
    }
    params.finish(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong<T: std::fmt::Debug>(result: Result<T, Problem>) -> Vec<String> {
        result.expect_err("refused").errors.into_iter().map(|e| e.path).collect()
    }

    #[test]
    fn filters_are_read_and_everything_wrong_is_named_at_once() {
        let (filter, window) = jobs("state=dead&provider=geo&lane=high&tenant=a%20b&limit=7").expect("fine");
        assert_eq!(filter.state, Some(JobState::Dead));
        assert_eq!(filter.tenant.as_deref(), Some("a b"));
        assert_eq!(window, Window { cursor: None, limit: 7 });
        assert_eq!(jobs("").expect("fine").1.limit, LIMIT);
        let found = wrong(jobs("state=done&colour=red&provider=GEO&limit=0&cursor=x&lane=a&lane=b"));
        assert_eq!(found, ["?colour", "?lane", "?state", "?provider", "?limit", "?cursor"]);
    }

    #[test]
    fn cursors_belong_to_their_list() {
        for position in [0, 1, i64::MAX, i64::MIN] {
            let cursor = ListKind::Jobs.encode(position);
            assert_eq!(jobs(&format!("cursor={cursor}")).expect("fine").1.cursor, Some(position));
            assert_eq!(wrong(dead_letters(&format!("cursor={cursor}"))), ["?cursor"]);
        }
        for cursor in ["", "AQ", "AQAAAAAAAAABAA", "%00", "AAAAAAAAAAAA="] {
            assert_eq!(wrong(jobs(&format!("cursor={cursor}"))), ["?cursor"], "{cursor}");
        }
    }

    #[test]
    fn a_purge_wants_a_filter_or_everything_said_aloud() {
        assert_eq!(wrong(purge("")), ["?all"]);
        assert_eq!(wrong(purge("all=false")), ["?all"]);
        assert_eq!(wrong(purge("all=true&reason=permanent")), ["?all"]);
        assert_eq!(wrong(purge("reason=bored")), ["?reason"]);
        assert!(purge("all=true").is_ok());
        assert_eq!(purge("replayed=true").expect("fine").replayed, Some(true));
    }
}
