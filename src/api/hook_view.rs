//! How endpoints and deliveries look from outside, and what is asked of them.

use std::collections::BTreeSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::duration::HumanDuration;
use crate::job::{EventKind, Instant};
use crate::store::{DeliveryView, EndpointView, Occurrence, ResendView, Subscribe, delivery_id};
use crate::webhook::{Keyring, TEST_EVENT};

fn subscribe(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": [Subscribe::All.as_str(), Subscribe::Named.as_str(), null] })
}

/// An endpoint to register: the body of `POST /v1/endpoints`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewEndpoint")]
pub struct RegisterBody {
    /// Where to post to.
    pub(super) url: String,
    /// Only these events; all where it is absent.
    #[serde(default)]
    #[schemars(with = "Option<Vec<EventKind>>", length(min = 1))]
    pub(super) events: Option<BTreeSet<EventKind>>,
    /// Whose completions, where the token is bound to no tenant.
    #[serde(default)]
    #[schemars(schema_with = "crate::job::schema::optional_tenant")]
    pub(super) tenant: Option<String>,
    /// `all` unless given.
    #[serde(default)]
    #[schemars(schema_with = "subscribe")]
    pub(super) subscribe: Option<Subscribe>,
    /// For people.
    #[serde(default)]
    pub(super) description: Option<String>,
    /// `whsec_…`; generated where it is absent.
    #[serde(default)]
    pub(super) secret: Option<String>,
    /// Sign by Ed25519 as well.
    #[serde(default)]
    pub(super) ed25519: bool,
}

/// The body of `POST /v1/endpoints/{id}/rotate`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Rotation")]
pub struct RotateBody {
    /// The new secret; generated where it is absent.
    pub(super) secret: Option<String>,
    /// How long the replaced secret signs as well; 24 h unless given.
    pub(super) overlap: Option<HumanDuration>,
}

/// The body of `POST /v1/endpoints/{id}/resend`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ResendSince")]
pub struct ResendBody {
    /// Deliveries made up from then on.
    pub(super) since: Instant,
    /// Those that were delivered, too.
    #[serde(default)]
    pub(super) all: bool,
}

/// An endpoint.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Endpoint")]
pub struct EndpointJson {
    /// `ep_…`
    id: String,
    /// Where it is posted to.
    url: String,
    /// Whose completions.
    tenant: Option<String>,
    /// For people.
    description: Option<String>,
    /// Only these events; null: all.
    events: Option<Vec<&'static str>>,
    /// `all` completions of its tenant, or those of jobs whose callback names it.
    subscribe: &'static str,
    /// Made from a bare callback URL.
    implicit: bool,
    /// It gets deliveries.
    enabled: bool,
    /// Why it does not.
    disabled_reason: Option<String>,
    /// Since then every attempt failed.
    #[schemars(extend("format" = "date-time"))]
    failing_since: Option<String>,
    /// Rises with every rotation.
    secret_version: Option<u32>,
    /// Replaced, and still signing.
    older_secrets: Vec<OlderJson>,
    /// Of Ed25519, where it signs by that, too.
    public_key: Option<String>,
    /// The last order to send again what it missed.
    resend: Option<ResendJson>,
    /// When it was registered.
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    /// Only where it was just made: it is not shown again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) secret: Option<String>,
}

/// A secret that was replaced and still signs.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "OlderSecret")]
struct OlderJson {
    /// Its version.
    version: u32,
    /// Until then it signs as well.
    #[schemars(extend("format" = "date-time"))]
    signs_until: String,
    /// Of Ed25519.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
}

/// The last order to send an endpoint again what it missed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Resend")]
pub struct ResendJson {
    /// `running`, `done` or `stopped`.
    state: &'static str,
    /// Deliveries made up from then on.
    #[schemars(extend("format" = "date-time"))]
    since: String,
    /// Those that were delivered, too.
    all: bool,
    /// Sent again so far.
    resent: i64,
    /// When it began.
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    /// When it ended.
    #[schemars(extend("format" = "date-time"))]
    finished_at: Option<String>,
}

impl From<ResendView> for ResendJson {
    fn from(view: ResendView) -> Self {
        Self {
            state: view.state.as_str(),
            since: rfc3339(view.order.since_ms),
            all: view.order.everything,
            resent: view.resent,
            created_at: rfc3339(view.created_ms),
            finished_at: view.finished_ms.map(rfc3339),
        }
    }
}

impl EndpointJson {
    /// As it is at `now_ms`; public keys need the keyring.
    pub(super) fn new(view: EndpointView, keyring: Option<&Keyring>, now_ms: i64) -> Self {
        let public = |version| keyring.and_then(|keyring| keyring.public_key(&view.id, version).ok());
        let public = |version| view.secrets.as_ref().filter(|secrets| secrets.ed25519).and_then(|_| public(version));
        let older = view.secrets.iter().flat_map(|secrets| &secrets.older);
        let older = older.filter(|older| older.until_ms > now_ms).map(|older| OlderJson {
            version: older.secret.version,
            signs_until: rfc3339(older.until_ms),
            public_key: public(older.secret.version),
        });
        Self {
            older_secrets: older.collect(),
            secret_version: view.secrets.as_ref().map(|secrets| secrets.current.version),
            public_key: view.secrets.as_ref().and_then(|secrets| public(secrets.current.version)),
            tenant: Some(view.tenant).filter(|tenant| !tenant.is_empty()),
            url: view.url,
            description: view.description,
            events: view.events.map(|events| events.into_iter().map(EventKind::as_str).collect()),
            subscribe: view.subscribe.as_str(),
            implicit: view.implicit,
            enabled: view.enabled,
            disabled_reason: view.disabled_reason,
            failing_since: view.failing_since_ms.map(rfc3339),
            resend: view.resend.map(ResendJson::from),
            created_at: rfc3339(view.created_ms),
            secret: None,
            id: view.id,
        }
    }
}

/// What was removed.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Deleted")]
pub struct DeletedJson {
    /// Its id.
    pub(super) id: String,
    /// Always `true`.
    pub(super) deleted: bool,
}

/// A delivery.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "WebhookDelivery")]
pub struct DeliveryJson {
    /// `dl_…`
    id: String,
    /// `webhook`; or `amqp`, to the broker, which has not confirmed it yet, or does not take it.
    kind: &'static str,
    /// `pending`, `delivered`, `failed` or `disabled`.
    state: &'static str,
    /// The event, the same for every endpoint.
    event_id: String,
    /// What happened.
    event: &'static str,
    /// Whose completion it is.
    job_id: Option<String>,
    /// Whose job it was.
    tenant: Option<String>,
    /// Where it goes; null: to the broker.
    endpoint: Option<EndpointRef>,
    /// The queue that the producer waits at.
    reply_to: Option<String>,
    /// When it was made up.
    #[schemars(extend("format" = "date-time"))]
    created_at: String,
    /// Not before.
    #[schemars(extend("format" = "date-time"))]
    next_attempt_at: Option<String>,
    /// When it was settled.
    #[schemars(extend("format" = "date-time"))]
    finished_at: Option<String>,
    /// In their order.
    attempts: Vec<AttemptJson>,
}

/// The endpoint of a delivery.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "EndpointRef")]
struct EndpointRef {
    /// `ep_…`
    id: String,
    /// Where it is posted to.
    url: String,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "DeliveryAttempt")]
struct AttemptJson {
    /// Counts them.
    n: u32,
    /// When.
    #[schemars(extend("format" = "date-time"))]
    at: String,
    /// What was answered; null: nothing.
    status: Option<u16>,
    /// Until the answer.
    latency_ms: i64,
    /// What was wrong.
    error: Option<String>,
}

impl From<DeliveryView> for DeliveryJson {
    fn from(view: DeliveryView) -> Self {
        let attempts = view.attempts.into_iter().map(|attempt| AttemptJson {
            n: attempt.n,
            at: rfc3339(attempt.at_ms),
            status: attempt.status,
            latency_ms: attempt.latency_ms,
            error: attempt.error,
        });
        Self {
            id: delivery_id(view.pk),
            kind: if view.is_amqp { "amqp" } else { "webhook" },
            state: view.state.as_str(),
            event_id: view.event_id,
            event: match view.occurrence {
                Occurrence::Completion(kind) => kind.as_str(),
                Occurrence::Test => TEST_EVENT,
            },
            job_id: view.job,
            tenant: Some(view.tenant).filter(|tenant| !tenant.is_empty()),
            endpoint: view.endpoint.map(|(id, url)| EndpointRef { id, url }),
            reply_to: view.reply_to,
            created_at: rfc3339(view.created_ms),
            next_attempt_at: view.due_ms.map(rfc3339),
            finished_at: view.finished_ms.map(rfc3339),
            attempts: attempts.collect(),
        }
    }
}
