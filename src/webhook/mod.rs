//! Outgoing webhooks: completion events, signed, to the endpoints that want them, until each has
//! answered 2xx.
//!
//! ```text
//! store ── claim ──▶ payload ──▶ lanes ──▶ sign, send ──▶ classify ──▶ record ── store
//!   ▲        poll says when      who is next   net_guard     2xx? again? over?        │
//!   └──────────────────────────────── wakes ◀─────────────────────────────────────────┘
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `sign` | Standard Webhooks signatures and the secrets of tenants |
//! | `keyring` | the secrets and keys of registered endpoints |
//! | `payload` | the body |
//! | `send` | one POST: guarded, bounded, never redirected |
//! | `classify` | what an answer means: delivered, again, failed, gone |
//! | `lanes` | whose delivery goes next: an endpoint that hangs slows nobody else |
//! | `poll` | when to look into the store |
//! | `notifier` | the loop around them; `stats` is what it counts |
//!
//! A delivery is at least once: it is recorded after the endpoint has answered, so a process that dies
//! in between has it sent again, under the same `webhook-id`.

mod classify;
mod keyring;
mod lanes;
mod notifier;
mod payload;
mod poll;
mod send;
mod sign;
mod stats;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::vault::MasterKeys;

pub use classify::{Answer, Schedule, ScheduleError, next, retry_after};
pub use keyring::{Keyring, KeyringError, Signer};
pub use notifier::Notifier;
pub use payload::{EVENT_BODY_BYTES_MAX, TEST_EVENT, event_schema, payload, payload_with_id};
pub(crate) use poll::Poll;
pub use send::{ClientError, Prepared, SendError, Sender};
pub use sign::{SignError, WebhookSecretError, WebhookSecrets};
pub use stats::NotifierStats;

/// How webhooks are sent.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// What signs them.
    pub secrets: WebhookSecrets,
    /// What opens the secrets that endpoints were given.
    pub masters: Arc<MasterKeys>,
    /// Endpoints may use plain `http`.
    pub allow_http: bool,
    /// Special networks that may be called in spite of the guard.
    pub allow_networks: Vec<IpNet>,
    /// For an attempt as a whole, from the connection to the answer's head.
    pub timeout: Duration,
    /// The waits between attempts.
    pub schedule: Schedule,
    /// Where the API is seen from outside (`https://paceline.example.com`), for `result_url`.
    pub public_url: Option<String>,
    /// Calls at the same time at most; a single endpoint gets half of them.
    pub concurrency: usize,
    /// At shutdown, what is being sent has this long to end.
    pub grace: Duration,
    /// Where it counts: a notifier that follows another one goes on counting there.
    pub stats: NotifierStats,
}

impl WebhookSettings {
    /// The contract's defaults: https only, no special networks, 15 s, its schedule; 128 calls at the
    /// same time, 20 s of grace.
    pub fn new(secrets: WebhookSecrets) -> Self {
        Self {
            secrets,
            masters: Arc::default(),
            allow_http: false,
            allow_networks: Vec::new(),
            timeout: Duration::from_secs(15),
            schedule: Schedule::default(),
            public_url: None,
            concurrency: 128,
            grace: Duration::from_secs(20),
            stats: NotifierStats::default(),
        }
    }
}
