//! What arrived at the provider, call by call, and how often each idempotency key was executed.
//!
//! The ledger is for audits from the outside ("executed more than once", "over the limit"), so it never forgets
//! silently: once full it counts what it could not write.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use serde::{Serialize, Serializer};

/// Longest path and idempotency key that is kept, in bytes.
const TEXT_MAX: usize = 256;

/// One call as it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arrival {
    /// When it was judged, since the provider started, on a monotonic clock.
    #[serde(rename = "at_us", serialize_with = "micros")]
    pub at: Duration,
    /// The label of its key, or `sha256:…` of a key that was not configured; empty without an accepted credential.
    #[serde(serialize_with = "text")]
    pub key: Arc<str>,
    /// The method.
    #[serde(serialize_with = "shown")]
    pub method: Method,
    /// The path, without the query (which may hold a credential).
    pub path: Box<str>,
    /// The `Idempotency-Key`, where one was sent.
    pub idempotency_key: Option<Box<str>>,
    /// Accepted, or why not.
    pub verdict: Verdict,
    /// Its cost in units.
    pub cost: u64,
    /// The status answered; none where the call gets no answer.
    pub status: Option<u16>,
    /// Whether it had its effect.
    pub executed: bool,
}

/// Accepted, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    /// It passed the credential and every limit. What it answered is its status.
    Accepted,
    /// Over a limit: 429.
    OverLimit {
        /// Index into the rules of the options.
        rule: usize,
    },
    /// Too many open calls: 429.
    OverConcurrency {
        /// Index into the rules of the options.
        rule: usize,
    },
    /// No credential: 401.
    NoCredential,
    /// A credential that is not accepted: 401.
    UnknownCredential,
    /// A key that was accepted once: 401.
    Revoked,
    /// A body over the largest size: 413.
    TooLarge,
    /// A path or query of the simulator that makes no sense: 400.
    Nonsense,
}

/// How often one idempotency key came through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Execution {
    /// The key.
    pub idempotency_key: Box<str>,
    /// Calls that passed credential and limits, whatever they answered.
    pub accepted: u64,
    /// Calls that had their effect: see [`super::behaviour::Behaviour`].
    pub executed: u64,
}

/// The bounded book of arrivals. A capacity of zero turns it off.
#[derive(Debug)]
pub(crate) struct Ledger {
    capacity: usize,
    arrivals: Vec<Arrival>,
    executions: HashMap<Box<str>, (u64, u64)>,
    dropped: u64,
}

impl Ledger {
    pub(crate) fn new(capacity: usize) -> Self {
        Ledger { capacity, arrivals: Vec::new(), executions: HashMap::new(), dropped: 0 }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    pub(crate) fn write(&mut self, arrival: Arrival) {
        if self.capacity == 0 {
            return;
        }
        if self.arrivals.len() == self.capacity {
            self.dropped += 1;
            return;
        }
        if let (Verdict::Accepted, Some(key)) = (arrival.verdict, &arrival.idempotency_key) {
            let entry = self.executions.entry(key.clone()).or_default();
            entry.0 += 1;
            entry.1 += u64::from(arrival.executed);
        }
        self.arrivals.push(arrival);
    }

    pub(crate) fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// Calls that were not written because the ledger was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The idempotency keys executed at least `least` times, in order of the keys.
    pub(crate) fn executions(&self, least: u64) -> Vec<Execution> {
        let mut found: Vec<Execution> = self
            .executions
            .iter()
            .filter(|(_, (_, executed))| *executed >= least)
            .map(|(key, &(accepted, executed))| Execution { idempotency_key: key.clone(), accepted, executed })
            .collect();
        found.sort_by(|a, b| a.idempotency_key.cmp(&b.idempotency_key));
        found
    }

    pub(crate) fn clear(&mut self) {
        *self = Ledger::new(self.capacity);
    }
}

/// Cuts a text to what the ledger keeps.
pub(crate) fn kept(text: &str) -> Box<str> {
    let end = text.floor_char_boundary(TEXT_MAX);
    Box::from(&text[..end])
}

fn micros<S: Serializer>(at: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_u64(u64::try_from(at.as_micros()).unwrap_or(u64::MAX))
}

fn shown<S: Serializer>(method: &Method, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(method.as_str())
}

fn text<S: Serializer>(text: &Arc<str>, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(text)
}
