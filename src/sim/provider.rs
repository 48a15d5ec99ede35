//! The strict provider: counts as a real one does, and answers 429 to whatever is over a limit.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use paceline::sim::{Lognormal, ProviderOptions, ProviderSim, SimKey};
//!
//! let provider = ProviderSim::start(ProviderOptions {
//!     keys: vec![SimKey::new("a1", "s3cret-1"), SimKey::new("a2", "s3cret-2")],
//!     rules: vec!["key requests 100/10s sliding_log".parse()?, "server concurrency 50".parse()?],
//!     delay_before: Some(Lognormal::ms(15, 120)),
//!     latency: Some(Lognormal::ms(50, 500)),
//!     ..ProviderOptions::default()
//! })
//! .await?;
//! println!("calls go to {}", provider.base_url());
//! println!("{:?} rejected", provider.stats().rejected);
//! provider.shutdown().await;
//! # Ok(())
//! # }
//! ```

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderName;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::credential::{KeyPlace, SimKey};
use super::delay::Lognormal;
use super::error::{SimError, WaitTimeout};
use super::gate::{Gate, Key, Metered, RULES_MAX};
use super::judge::{self, Shared, State, Tally};
use super::ledger::{Arrival, Execution};
use super::measure::Utilisation;
use super::rule::Rule;
use super::serve;

/// The provider's options; [`Default`] gives an unlimited one that accepts everybody.
#[derive(Clone, Debug)]
pub struct ProviderOptions {
    /// Where to listen; port 0 picks a free one. Only used by [`ProviderSim::start`].
    pub listen: SocketAddr,
    /// Keys that are accepted. Empty: everybody is, each credential counts as a key of its own.
    pub keys: Vec<SimKey>,
    /// Where a credential may stand.
    pub key_places: Vec<KeyPlace>,
    /// Labels of keys that `/bad-key` answers with 401.
    pub bad_keys: Vec<String>,
    /// What is enforced; at most 64 rules. A call must pass all that hold for it and is counted by all or none.
    pub rules: Vec<Rule>,
    /// Where the cost of a call stands.
    pub cost: CostSource,
    /// One-way delay before a call is judged.
    pub delay_before: Option<Lognormal>,
    /// Time that an accepted call takes, after it was judged.
    pub latency: Option<Lognormal>,
    /// One-way delay of the answer.
    pub delay_after: Option<Lognormal>,
    /// For the delays.
    pub seed: u64,
    /// The form of `Retry-After` in a 429.
    pub retry_after: RetryAfter,
    /// Headers about the tightest limit in every reply to an accepted key.
    pub rate_headers: RateHeaders,
    /// The outage at the start.
    pub outage: Outage,
    /// Most calls in the ledger; 0 turns it off.
    pub ledger_capacity: usize,
    /// Largest request body.
    pub body_max_bytes: usize,
    /// Most connections; further ones wait to be accepted.
    pub connections_max: usize,
    /// Most keys where everybody is accepted; further ones count as the caller without a credential.
    pub keys_max: usize,
    /// Whether `/_sim/…` answers.
    pub control: bool,
}

/// Where the cost of a call stands. Where it is missing or no whole number the cost is 1; `/cost/17` always costs 17.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CostSource {
    /// Every call costs 1.
    #[default]
    One,
    /// In a request header.
    Header(HeaderName),
    /// In the JSON body, at this pointer (RFC 6901), such as `/max_tokens`.
    Json(String),
}

/// The form of `Retry-After` in a 429; always rounded up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryAfter {
    /// None is sent.
    None,
    /// Delta seconds, at least 1.
    #[default]
    Seconds,
    /// An HTTP date.
    HttpDate,
}

/// Headers about the tightest limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateHeaders {
    /// None are sent.
    #[default]
    None,
    /// `X-RateLimit-Limit/-Remaining/-Reset`, reset in seconds since the epoch.
    XEpochSeconds,
    /// The same, reset in milliseconds since the epoch.
    XEpochMillis,
    /// The same, reset in seconds from now.
    XDeltaSeconds,
    /// `RateLimit-Policy: "default";q=100;w=60` and `RateLimit: "default";r=50;t=30`.
    Ietf,
}

/// What is out of order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outage {
    /// Nothing.
    #[default]
    None,
    /// Calls to `/outage`.
    Marked,
    /// Every accepted call is answered 503.
    All,
}

impl Default for ProviderOptions {
    fn default() -> Self {
        ProviderOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            keys: Vec::new(),
            key_places: KeyPlace::usual(),
            bad_keys: Vec::new(),
            rules: Vec::new(),
            cost: CostSource::One,
            delay_before: None,
            latency: None,
            delay_after: None,
            seed: 0,
            retry_after: RetryAfter::Seconds,
            rate_headers: RateHeaders::None,
            outage: Outage::None,
            ledger_capacity: 200_000,
            body_max_bytes: 16 << 20,
            connections_max: 4_096,
            keys_max: 10_000,
            control: true,
        }
    }
}

/// Starts providers.
#[derive(Debug)]
pub struct ProviderSim;

impl ProviderSim {
    /// Listens at `options.listen` and serves until the handle is shut down or dropped.
    pub async fn start(options: ProviderOptions) -> Result<ProviderHandle, SimError> {
        let listener = serve::listen(options.listen).await?;
        ProviderSim::start_on(options, listener, CancellationToken::new())
    }

    /// Serves a listener of the caller's until `shutdown` is cancelled, or the handle is shut down or dropped. Must be
    /// called within a Tokio runtime.
    pub fn start_on(
        options: ProviderOptions,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<ProviderHandle, SimError> {
        check(&options)?;
        let addr = serve::address(&listener, options.listen)?;
        let broken = |error: super::enforce::LimitError| option("rules", error);
        let mut gate = Gate::new(&options.rules, &options.keys).map_err(broken)?;
        if options.keys.is_empty() {
            gate.enter(Arc::from("anonymous"), None).map_err(broken)?;
        }
        let stop = shutdown.child_token();
        let tasks = TaskTracker::new();
        let connections = options.connections_max;
        let shared = Arc::new(Shared::new(options, gate, stop.clone(), tasks.clone()));
        let answering = shared.clone();
        let handler = move |request| judge::answer(answering.clone(), request);
        tasks.spawn(serve::serve(listener, stop, tasks.clone(), connections, handler));
        Ok(ProviderHandle { addr, shared })
    }
}

fn check(options: &ProviderOptions) -> Result<(), SimError> {
    if options.rules.len() > RULES_MAX {
        return Err(option("rules", format!("at most {RULES_MAX} rules")));
    }
    for rule in &options.rules {
        rule.limit.check().map_err(|error| option("rules", format!("`{rule}`: {error}")))?;
    }
    let delays =
        [("delay_before", &options.delay_before), ("latency", &options.latency), ("delay_after", &options.delay_after)];
    for (field, delay) in delays {
        if let Some(delay) = delay {
            delay.check().map_err(|error| option(field, error))?;
        }
    }
    let (mut labels, mut secrets) = (HashSet::new(), HashSet::new());
    for key in &options.keys {
        if key.label.is_empty() || !labels.insert(&key.label) {
            return Err(option("keys", format!("label {:?} is empty or not unique", key.label)));
        }
        if key.secret.is_empty() || !secrets.insert(&key.secret) {
            return Err(option("keys", format!("the secret of {:?} is empty or not unique", key.label)));
        }
    }
    if let Some(unknown) = options.bad_keys.iter().find(|label| !labels.contains(label)) {
        return Err(option("bad_keys", format!("no key has the label {unknown:?}")));
    }
    if options.connections_max == 0 {
        return Err(option("connections_max", "must be above zero"));
    }
    Ok(())
}

fn option(field: &'static str, problem: impl ToString) -> SimError {
    SimError::Option { field, problem: problem.to_string() }
}

/// A running provider. Dropping it ends the server.
#[derive(Debug)]
pub struct ProviderHandle {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

impl ProviderHandle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://127.0.0.1:<port>`, without a slash at the end.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every call as it arrived, in the order of judgement; at most `ledger_capacity`.
    pub fn ledger(&self) -> Vec<Arrival> {
        self.shared.lock().ledger.arrivals().to_vec()
    }

    /// Idempotency keys that were executed at least `least` times (2 for an audit of repeats), from the ledger.
    pub fn executions(&self, least: u64) -> Vec<Execution> {
        self.shared.lock().ledger.executions(least)
    }

    /// Counters and utilisation.
    pub fn stats(&self) -> ProviderStats {
        stats_of(&self.shared)
    }

    /// Starts measurements, counters and the ledger again, after a warm-up; limits stay as they are.
    pub fn reset_measures(&self) {
        self.shared.reset_measures();
    }

    /// Declares or ends an outage.
    pub fn set_outage(&self, outage: Outage) {
        self.shared.lock().outage = outage;
    }

    /// Refuses a key from now on (401), or accepts it again. False if no key has this label.
    pub fn set_revoked(&self, label: &str, revoked: bool) -> bool {
        self.shared.revoke(label, revoked)
    }

    /// Waits until `wanted` calls have been accepted since the start or the last reset.
    pub async fn wait_accepted(&self, wanted: u64, within: Duration) -> Result<(), WaitTimeout> {
        self.wait("accepted calls", wanted, within, |tally| tally.accepted).await
    }

    /// Waits until `wanted` calls have been judged, whatever the verdict.
    pub async fn wait_arrived(&self, wanted: u64, within: Duration) -> Result<(), WaitTimeout> {
        self.wait("calls", wanted, within, |tally| tally.accepted + tally.rejected()).await
    }

    async fn wait(
        &self,
        what: &'static str,
        wanted: u64,
        within: Duration,
        count: impl Fn(&Tally) -> u64,
    ) -> Result<(), WaitTimeout> {
        let deadline = Instant::now() + within;
        loop {
            let mut changed = pin!(self.shared.arrived.notified());
            changed.as_mut().enable();
            let seen = count(&self.shared.lock().tally);
            if seen >= wanted {
                return Ok(());
            }
            if timeout_at(deadline, changed).await.is_err() {
                return Err(WaitTimeout { what, wanted, seen, waited: within });
            }
        }
    }

    /// Ends the server, its connections and every call in hand, and waits until all are gone.
    pub async fn shutdown(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

impl Drop for ProviderHandle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What a provider has counted since its start or the last reset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderStats {
    /// Since the start.
    pub uptime_ms: u64,
    /// Calls judged: accepted and rejected.
    pub arrivals: u64,
    /// Calls that passed credential and limits, whatever they answered.
    pub accepted: u64,
    /// All others.
    pub rejected: u64,
    /// Rejected over a limit (429).
    pub refused_limit: u64,
    /// Rejected over a limit of concurrency (429).
    pub refused_concurrency: u64,
    /// Rejected for their credential (401).
    pub refused_credential: u64,
    /// Rejected for a body too large or a path of the simulator that makes no sense (413, 400).
    pub refused_malformed: u64,
    /// Calls that had their effect.
    pub executed: u64,
    /// Idempotency keys that were executed more than once; none where the ledger is off.
    pub executed_more_than_once: Option<u64>,
    /// Accepted calls that are open now.
    pub open: u64,
    /// Most that were.
    pub open_peak: u64,
    /// Mean of all delays given to accepted calls: the round trip as far as the provider causes it.
    pub mean_delay_ms: Option<f64>,
    /// Rules, in the order of the options.
    pub rules: Vec<RuleStats>,
    /// Keys, in the order of the options.
    pub keys: Vec<KeyStats>,
    /// Calls in the ledger.
    pub ledger_written: u64,
    /// Calls that did not fit into it.
    pub ledger_dropped: u64,
}

/// One rule, over all whom it counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleStats {
    /// As text.
    pub rule: String,
    /// Calls that it refused.
    pub refused: u64,
    /// W ÷ mean(aᵢ₊ₙ − aᵢ), the mean over the differences of all callers; none before more than N units arrived, and
    /// for concurrency.
    pub utilisation: Option<f64>,
    /// Windows measured, added over all callers.
    pub windows: f64,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeyStats {
    /// Its label, or `sha256:…`.
    pub key: String,
    /// Its account, where it shares one.
    pub account: Option<String>,
    /// Calls accepted.
    pub accepted: u64,
    /// Calls rejected, for whatever reason.
    pub rejected: u64,
    /// Rejected over a limit.
    pub refused_limit: u64,
    /// Rejected over a limit of concurrency.
    pub refused_concurrency: u64,
    /// Rejected while revoked.
    pub refused_credential: u64,
    /// Calls that had their effect.
    pub executed: u64,
    /// Units of accepted calls.
    pub cost: u64,
    /// Open now.
    pub open: u64,
    /// Most that were open at once.
    pub open_peak: u64,
    /// Utilisation of each limit that counts this key alone.
    pub utilisation: Vec<RuleUse>,
}

/// How far one key used one limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleUse {
    /// Index into the rules.
    pub rule: usize,
    /// W ÷ mean(aᵢ₊ₙ − aᵢ).
    pub utilisation: f64,
    /// Windows measured.
    pub windows: f64,
}

impl Tally {
    fn rejected(&self) -> u64 {
        self.refused_limit + self.refused_concurrency + self.refused_credential + self.refused_malformed
    }
}

impl Shared {
    pub(crate) fn reset_measures(&self) {
        let mut state = self.lock();
        state.tally = Tally::default();
        state.gate.reset_measures();
        state.ledger.clear();
    }

    pub(crate) fn revoke(&self, label: &str, revoked: bool) -> bool {
        let mut state = self.lock();
        let found = state.gate.keys().iter().position(|key| *key.label == *label);
        match found.and_then(|at| state.gate.key_mut(at)) {
            Some(key) => {
                key.revoked = revoked;
                true
            }
            None => false,
        }
    }
}

pub(crate) fn stats_of(shared: &Shared) -> ProviderStats {
    let state = shared.lock();
    let State { gate, ledger, tally, .. } = &*state;
    let uptime = shared.clock.since_start(shared.clock.now());
    let delay_ms = tally.delay_sum.as_secs_f64() * 1e3 / tally.delays.max(1) as f64;
    let repeated = ledger.is_on().then(|| ledger.executions(2).len() as u64);
    ProviderStats {
        uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
        arrivals: tally.accepted + tally.rejected(),
        accepted: tally.accepted,
        rejected: tally.rejected(),
        refused_limit: tally.refused_limit,
        refused_concurrency: tally.refused_concurrency,
        refused_credential: tally.refused_credential,
        refused_malformed: tally.refused_malformed,
        executed: tally.executed,
        executed_more_than_once: repeated,
        open: gate.open,
        open_peak: gate.open_peak,
        mean_delay_ms: (tally.delays > 0).then_some(delay_ms),
        rules: gate.rules().iter().enumerate().map(|(at, rule)| rule_stats(gate, at, rule)).collect(),
        keys: gate.keys().iter().map(|key| key_stats(gate, key)).collect(),
        ledger_written: ledger.arrivals().len() as u64,
        ledger_dropped: ledger.dropped(),
    }
}

fn rule_stats(gate: &Gate, at: usize, rule: &Rule) -> RuleStats {
    let mine = || gate.all_metered().filter(move |metered| metered.rule == at);
    RuleStats {
        rule: rule.to_string(),
        refused: mine().map(|metered| metered.refused).sum(),
        utilisation: Utilisation::pooled(mine().filter_map(|metered| metered.used.as_ref())),
        windows: mine().map(|metered| windows(rule, metered)).sum(),
    }
}

fn key_stats(gate: &Gate, key: &Key) -> KeyStats {
    let counts = key.counts;
    let used = |metered: &Metered| {
        let rule = gate.rules().get(metered.rule)?;
        Some(RuleUse {
            rule: metered.rule,
            utilisation: metered.used.as_ref()?.value()?,
            windows: windows(rule, metered),
        })
    };
    KeyStats {
        key: key.label.to_string(),
        account: key.account.as_deref().map(str::to_owned),
        accepted: counts.accepted,
        rejected: counts.refused_limit + counts.refused_concurrency + counts.refused_credential,
        refused_limit: counts.refused_limit,
        refused_concurrency: counts.refused_concurrency,
        refused_credential: counts.refused_credential,
        executed: counts.executed,
        cost: counts.cost,
        open: counts.open,
        open_peak: counts.open_peak,
        utilisation: key.party.iter().filter_map(used).collect(),
    }
}

fn windows(rule: &Rule, metered: &Metered) -> f64 {
    metered.used.as_ref().map_or(0.0, |used| used.gaps() as f64 / rule.limit.rate().0 as f64)
}
