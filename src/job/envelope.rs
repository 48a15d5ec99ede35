//! The wire form of a job, and the checked one.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::object::{object, optional_object, optional_whole};
use super::request::Request;
use super::{AddedKeys, Invalid, is_job_id, is_name, schema};
use crate::clock::{WallMs, parse_rfc3339, rfc3339};
use crate::duration::HumanDuration;
use crate::retry::Jitter;
use crate::send_window::SendWindows;

/// Largest `metadata`, in bytes.
const METADATA_BYTES_MAX: usize = 4 * 1024;
/// Longest idempotency key and tenant, in bytes.
const TEXT_BYTES_MAX: usize = 255;
/// Longest URL of a callback, in bytes.
const URL_BYTES_MAX: usize = 2048;
/// Largest `cost`: far beyond any real one, far below overflow.
pub(super) const COST_MAX: u64 = 1_000_000_000_000;

/// What is known of a provider when a job for it is checked.
#[derive(Debug, Clone)]
pub struct ProviderRules {
    /// The lanes of the provider, `default` and `replay` among them.
    pub lanes: BTreeSet<String>,
    /// Key labels and budget names that a job can be pinned to.
    pub pins: BTreeSet<String>,
    /// The labels of its keys, with the declared budget of each.
    pub keys: BTreeMap<String, Option<String>>,
    /// Those of them whose secrets are stored.
    pub stored: BTreeSet<String>,
    /// Calls are made without a key, for which one label stands in `keys`.
    pub keyless: bool,
    /// The names of its declared budgets.
    pub budgets: BTreeSet<String>,
    /// The header field that carries the key, in lower case.
    pub credential_header: Option<String>,
    /// The query parameter that carries the key.
    pub credential_query: Option<String>,
    /// When calls may leave.
    pub windows: SendWindows,
    /// The header fields of the idempotency key, in lower case: that of the provider, and those of its routes.
    pub idempotency_headers: BTreeSet<String>,
}

impl Default for ProviderRules {
    fn default() -> Self {
        Self {
            lanes: BTreeSet::from(["default".to_owned(), "replay".to_owned()]),
            pins: BTreeSet::new(),
            keys: BTreeMap::new(),
            stored: BTreeSet::new(),
            keyless: false,
            budgets: BTreeSet::new(),
            credential_header: Some("authorization".to_owned()),
            credential_query: None,
            windows: SendWindows::default(),
            idempotency_headers: BTreeSet::from(["idempotency-key".to_owned()]),
        }
    }
}

/// What jobs are checked against.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The configured providers.
    pub providers: BTreeMap<String, ProviderRules>,
    /// Callbacks may use plain `http`.
    pub allow_http: bool,
    /// Bare callback URLs can be signed (`webhooks.secret` is configured).
    pub callbacks: bool,
    /// Callbacks may name registered endpoints.
    pub endpoints: bool,
    /// Keys that were added while running.
    pub added: AddedKeys,
}

/// What is known of a job beside its envelope.
#[derive(Debug, Clone, Default)]
pub struct Given<'a> {
    /// From the routing key.
    pub provider: Option<&'a str>,
    /// From the routing key.
    pub lane: Option<&'a str>,
    /// From the `message_id` property.
    pub id: Option<&'a str>,
    /// Of the token: the job belongs to it.
    pub tenant: Option<&'a str>,
    /// A dead letter runs again: only that may be in the lane of replays.
    pub is_replay: bool,
}

/// The lane of replays; every provider has it.
pub const REPLAY_LANE: &str = "replay";

/// How often a call may be made when its fate is unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// Sent again with the same `Idempotency-Key`.
    #[default]
    AtLeastOnce,
    /// Sent again only when the call surely was not executed.
    AtMostOnce,
}

impl Delivery {
    /// The name in the envelope and the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at_least_once",
            Self::AtMostOnce => "at_most_once",
        }
    }
}

/// What completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EventKind {
    /// `job.succeeded`
    #[serde(rename = "job.succeeded")]
    Succeeded,
    /// `job.dead`
    #[serde(rename = "job.dead")]
    Dead,
    /// `job.expired`
    #[serde(rename = "job.expired")]
    Expired,
    /// `job.cancelled`
    #[serde(rename = "job.cancelled")]
    Cancelled,
}

impl EventKind {
    /// Every event.
    pub const ALL: [Self; 4] = [Self::Succeeded, Self::Dead, Self::Expired, Self::Cancelled];

    /// The name in events, filters and routing keys.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "job.succeeded",
            Self::Dead => "job.dead",
            Self::Expired => "job.expired",
            Self::Cancelled => "job.cancelled",
        }
    }

    /// The event of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where the completion event goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(transform = schema::one_target)]
pub struct Callback {
    /// A registered endpoint (`ep_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_endpoint")]
    pub endpoint: Option<String>,
    /// A bare URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_url")]
    pub url: Option<String>,
    /// Only these events; all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<BTreeSet<EventKind>>,
}

impl Callback {
    /// Whether it wants to hear of that.
    pub fn wants(&self, event: EventKind) -> bool {
        self.events.as_ref().is_none_or(|wanted| wanted.contains(&event))
    }
}

/// `retry` of an envelope: what it says stands in for the provider's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryOverrides {
    /// Failure attempts before the job is dead, 1 to 100.
    #[serde(default, deserialize_with = "optional_whole", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_attempts")]
    pub max_attempts: Option<u32>,
    /// First backoff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<HumanDuration>,
    /// Longest backoff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<HumanDuration>,
    /// How backoffs are spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// From the first attempt on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_elapsed: Option<HumanDuration>,
}

/// An instant written as RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub WallMs);

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(self.0))
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_rfc3339(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A job as a producer writes it: the same over HTTP, AMQP and the command line.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Unique within its tenant; the same id with the same content is the same job. A new one unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_id")]
    pub id: Option<String>,
    /// A configured provider. Over AMQP it may be left to the routing key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_name")]
    pub provider: Option<String>,
    /// The call to make.
    #[serde(deserialize_with = "object")]
    pub request: Request,
    /// One of the provider's lanes, `default` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_name")]
    pub lane: Option<String>,
    /// Whose job it is: that of the token unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_tenant")]
    pub tenant: Option<String>,
    /// An object of at most 4 KiB, echoed in events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_object")]
    pub metadata: Option<Box<RawValue>>,
    /// Units for `cost` limits, 1 unless given.
    #[serde(default, deserialize_with = "optional_whole", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_cost")]
    pub cost: Option<u64>,
    /// Not sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Instant>,
    /// Not sent after: then the job is `expired`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Instant>,
    /// What to do when the fate of a call is unknown, `at_least_once` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<Delivery>,
    /// Sent as `Idempotency-Key` on every attempt; the id unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_idempotency_key")]
    pub idempotency_key: Option<String>,
    /// The key label or budget name that the job is pinned to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::optional_name")]
    pub key: Option<String>,
    /// What stands in for the provider's retry policy.
    #[serde(default, deserialize_with = "optional_object", skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryOverrides>,
    /// Where the completion event goes.
    #[serde(default, deserialize_with = "optional_object", skip_serializing_if = "Option::is_none")]
    pub callback: Option<Callback>,
}

/// A checked job.
#[derive(Debug, Clone)]
pub struct Job {
    /// Unique within the tenant.
    pub id: String,
    /// Whether the producer chose the id (else the same message may become two jobs).
    pub id_was_given: bool,
    /// Whose job it is; empty where there are no tenants.
    pub tenant: String,
    /// The configured provider to call.
    pub provider: String,
    /// The lane it waits in.
    pub lane: String,
    /// The call to make.
    pub request: Request,
    /// Echoed in events.
    pub metadata: Option<Box<RawValue>>,
    /// Units for `cost` limits.
    pub cost: u64,
    /// Not sent before.
    pub not_before_ms: Option<WallMs>,
    /// Not sent after.
    pub deadline_ms: Option<WallMs>,
    /// What to do when a call's fate is unknown.
    pub delivery: Delivery,
    /// Sent with every attempt; the id unless given.
    pub idempotency_key: String,
    /// The key label or budget name it is pinned to.
    pub key: Option<String>,
    /// What stands in for the provider's retry policy.
    pub retry: RetryOverrides,
    /// Where its completion goes.
    pub callback: Option<Callback>,
}

impl Envelope {
    /// Reads an envelope; nothing is looked up yet.
    ///
    /// # Errors
    /// [`Invalid`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, Invalid> {
        // Else a list would be read as the fields in their order.
        if bytes.trim_ascii_start().first() == Some(&b'[') {
            return Err(Invalid::at("", "expected an object, found a list"));
        }
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let envelope = serde_path_to_error::deserialize(&mut json).map_err(|e| {
            let path = e.path().to_string();
            Invalid::at(&path, e.into_inner().to_string())
        })?;
        json.end().map_err(|e| Invalid::at("", e.to_string()))?;
        Ok(envelope)
    }

    /// Checks it against what is configured and fills the defaults in. `fresh_id` is used where
    /// nobody chose an id.
    ///
    /// # Errors
    /// [`Invalid`] names the field and what was expected.
    pub fn check(
        self,
        given: &Given<'_>,
        catalog: &Catalog,
        fresh_id: impl FnOnce() -> String,
    ) -> Result<Job, Invalid> {
        let chosen_id = agree("id", self.id, given.id, "the message_id property")?;
        let id_was_given = chosen_id.is_some();
        let id = chosen_id.unwrap_or_else(fresh_id);
        if !is_job_id(&id) {
            return Err(Invalid::at("id", "expected 1 to 128 of A-Z a-z 0-9 . _ : - (and neither . nor ..)"));
        }
        let provider = agree("provider", self.provider, given.provider, "the routing key")?
            .ok_or_else(|| Invalid::at("provider", "expected the name of a configured provider, found nothing"))?;
        let rules = catalog.providers.get(&provider).ok_or_else(|| {
            let known = catalog.providers.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Invalid::at("provider", format!("unknown provider {provider:?}; configured: {known}"))
        })?;
        let lane = agree("lane", self.lane, given.lane, "the routing key")?.unwrap_or_else(|| "default".to_owned());
        let usable = |lane: &str| given.is_replay || lane != REPLAY_LANE;
        if !rules.lanes.contains(&lane) || !usable(&lane) {
            let known = rules.lanes.iter().map(String::as_str).filter(|lane| usable(lane));
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Invalid::at("lane", format!("unknown lane {lane:?} of {provider}; it has: {known}")));
        }
        let tenant = agree("tenant", self.tenant, given.tenant, "the token")?.unwrap_or_default();
        if tenant.len() > TEXT_BYTES_MAX || tenant.chars().any(char::is_control) {
            return Err(Invalid::at("tenant", "expected at most 255 bytes without control characters"));
        }
        self.request.check(rules)?;
        check_metadata(self.metadata.as_deref())?;
        let cost = self.cost.unwrap_or(1);
        if !(1..=COST_MAX).contains(&cost) {
            return Err(Invalid::at("cost", format!("expected 1 to {COST_MAX}")));
        }
        let idempotency_key = self.idempotency_key.unwrap_or_else(|| id.clone());
        if !is_header_text(&idempotency_key) {
            return Err(Invalid::at("idempotency_key", "expected 1 to 255 visible ASCII characters"));
        }
        let is_known = |key: &String| rules.pins.contains(key) || catalog.added.contains(&provider, key);
        if let Some(key) = self.key.as_ref().filter(|key| !is_known(key)) {
            return Err(Invalid::at("key", format!("unknown key label or budget {key:?} of {provider}")));
        }
        if let (Some(from), Some(to)) = (self.not_before, self.deadline)
            && to <= from
        {
            return Err(Invalid::at("deadline", "expected a time after not_before"));
        }
        let retry = self.retry.unwrap_or_default();
        check_retry(&retry)?;
        check_callback(self.callback.as_ref(), catalog)?;
        Ok(Job {
            id,
            id_was_given,
            tenant,
            provider,
            lane,
            request: self.request,
            metadata: self.metadata,
            cost,
            not_before_ms: self.not_before.map(|t| t.0),
            deadline_ms: self.deadline.map(|t| t.0),
            delivery: self.delivery.unwrap_or_default(),
            idempotency_key,
            key: self.key,
            retry,
            callback: self.callback,
        })
    }
}

impl Job {
    /// Reads and checks in one go.
    ///
    /// # Errors
    /// [`Invalid`] names the field.
    pub fn parse(bytes: &[u8], given: &Given<'_>, catalog: &Catalog) -> Result<Self, Invalid> {
        Envelope::parse(bytes)?.check(given, catalog, fresh_id)
    }

    /// The envelope with everything filled in, as it is stored and shown.
    pub fn to_envelope(&self) -> Envelope {
        Envelope {
            id: Some(self.id.clone()),
            provider: Some(self.provider.clone()),
            request: self.request.clone(),
            lane: Some(self.lane.clone()),
            tenant: (!self.tenant.is_empty()).then(|| self.tenant.clone()),
            metadata: self.metadata.clone(),
            cost: (self.cost != 1).then_some(self.cost),
            not_before: self.not_before_ms.map(Instant),
            deadline: self.deadline_ms.map(Instant),
            delivery: (self.delivery != Delivery::default()).then_some(self.delivery),
            idempotency_key: (self.idempotency_key != self.id).then(|| self.idempotency_key.clone()),
            key: self.key.clone(),
            retry: (self.retry != RetryOverrides::default()).then(|| self.retry.clone()),
            callback: self.callback.clone(),
        }
    }

    /// Takes a stored envelope back: it was checked when it came in, and what is configured may
    /// have changed since, so nothing is looked up.
    ///
    /// # Errors
    /// [`Invalid`] where the stored text is not an envelope.
    pub fn from_stored(text: &str) -> Result<Self, Invalid> {
        let stored = Envelope::parse(text.as_bytes())?;
        let missing = |field: &str| Invalid::at(field, "missing in the stored envelope");
        let id = stored.id.ok_or_else(|| missing("id"))?;
        Ok(Self {
            idempotency_key: stored.idempotency_key.unwrap_or_else(|| id.clone()),
            id,
            id_was_given: true,
            tenant: stored.tenant.unwrap_or_default(),
            provider: stored.provider.ok_or_else(|| missing("provider"))?,
            lane: stored.lane.ok_or_else(|| missing("lane"))?,
            request: stored.request,
            metadata: stored.metadata,
            cost: stored.cost.unwrap_or(1),
            not_before_ms: stored.not_before.map(|t| t.0),
            deadline_ms: stored.deadline.map(|t| t.0),
            delivery: stored.delivery.unwrap_or_default(),
            key: stored.key,
            retry: stored.retry.unwrap_or_default(),
            callback: stored.callback,
        })
    }

    /// SHA-256 of the canonical envelope: every default filled in, members sorted, the id left
    /// out. Two envelopes that ask for the same have the same hash.
    pub fn hash(&self) -> [u8; 32] {
        let raw = |text: &RawValue| serde_json::from_str::<serde_json::Value>(text.get()).unwrap_or_default();
        let canonical = serde_json::json!({
            "provider": self.provider, "lane": self.lane, "tenant": self.tenant,
            "request": self.request.canonical(),
            "metadata": self.metadata.as_deref().map(raw),
            "cost": self.cost, "not_before": self.not_before_ms, "deadline": self.deadline_ms,
            "delivery": self.delivery, "idempotency_key": self.idempotency_key, "key": self.key,
            "retry": self.retry, "callback": self.callback,
        });
        Sha256::digest(canonical.to_string()).into()
    }
}

/// A UUIDv7: sorts by the time it was made.
fn fresh_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// One value from two places, which must be the same where both name one.
fn agree(field: &str, own: Option<String>, other: Option<&str>, place: &str) -> Result<Option<String>, Invalid> {
    match (own, other) {
        (Some(own), Some(other)) if own != other => {
            Err(Invalid::at(field, format!("{own:?} differs from {other:?}, which {place} says")))
        }
        (Some(own), _) => Ok(Some(own)),
        (None, other) => Ok(other.map(str::to_owned)),
    }
}

fn is_header_text(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

fn check_metadata(metadata: Option<&RawValue>) -> Result<(), Invalid> {
    let Some(raw) = metadata else { return Ok(()) };
    if raw.get().len() > METADATA_BYTES_MAX {
        return Err(Invalid::at("metadata", format!("expected at most {METADATA_BYTES_MAX} bytes")));
    }
    match serde_json::from_str::<serde_json::Value>(raw.get()) {
        Ok(serde_json::Value::Object(_)) => Ok(()),
        Ok(_) => Err(Invalid::at("metadata", "expected an object")),
        Err(e) => Err(Invalid::at("metadata", e.to_string())),
    }
}

fn check_retry(retry: &RetryOverrides) -> Result<(), Invalid> {
    if retry.max_attempts.is_some_and(|n| !(1..=100).contains(&n)) {
        return Err(Invalid::at("retry.max_attempts", "expected 1 to 100"));
    }
    if let (Some(base), Some(cap)) = (retry.base, retry.cap)
        && cap < base
    {
        return Err(Invalid::at("retry.cap", "expected at least retry.base"));
    }
    Ok(())
}

fn check_callback(callback: Option<&Callback>, catalog: &Catalog) -> Result<(), Invalid> {
    let Some(callback) = callback else { return Ok(()) };
    match (&callback.endpoint, &callback.url) {
        (Some(_), None) if !catalog.endpoints => Err(Invalid::at(
            "callback.endpoint",
            "registered endpoints need webhooks.secret in the configuration, by which their events are signed",
        )),
        (Some(endpoint), None) if endpoint.strip_prefix("ep_").is_some_and(is_job_id) => Ok(()),
        (Some(_), None) => Err(Invalid::at("callback.endpoint", "expected the id of a registered endpoint, ep_…")),
        (None, Some(_)) if !catalog.callbacks => Err(Invalid::at(
            "callback.url",
            "bare URLs need webhooks.secret in the configuration, by which their events are signed",
        )),
        (None, Some(url)) => check_callback_url(url, catalog.allow_http),
        _ => Err(Invalid::at("callback", "expected either endpoint or url")),
    }
}

fn check_callback_url(text: &str, allow_http: bool) -> Result<(), Invalid> {
    hook_url(text, allow_http).map(drop).map_err(|expected| Invalid::at("callback.url", expected))
}

/// Reads a URL that completions are to be sent to; what it resolves to is judged elsewhere.
///
/// # Errors
/// What was expected.
pub fn hook_url(text: &str, allow_http: bool) -> Result<url::Url, String> {
    let url = url::Url::parse(text).map_err(|e| format!("expected an absolute URL: {e}"))?;
    if text.len() > URL_BYTES_MAX {
        return Err(format!("expected at most {URL_BYTES_MAX} bytes"));
    }
    match url.scheme() {
        "https" => {}
        "http" if allow_http => {}
        "http" => return Err("expected https (http is allowed by webhooks.allow_http)".to_owned()),
        other => return Err(format!("expected https, found {other}")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("expected a URL without user name and password".to_owned());
    }
    Ok(url)
}

/// The routing key of an AMQP publication: `<provider>` or `<provider>.<lane>`.
///
/// # Errors
/// [`Invalid`] where it is neither.
pub fn split_routing_key(key: &str) -> Result<(&str, Option<&str>), Invalid> {
    let (provider, lane) = match key.split_once('.') {
        Some((provider, lane)) => (provider, Some(lane)),
        None => (key, None),
    };
    if is_name(provider) && lane.is_none_or(is_name) {
        Ok((provider, lane))
    } else {
        Err(Invalid::at("", format!("expected a routing key <provider> or <provider>.<lane>, found {key:?}")))
    }
}
