//! Logs and figures: what an operator sees.

mod pacing;
mod schedules;

use std::io::IsTerminal as _;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use pacing::{BUDGETS_MAX, PacingMetrics, Told};
pub use schedules::{Made, ScheduleMetrics};

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ProviderLabel {
    /// Its name.
    pub provider: String,
}

/// A provider and what a call came to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// Its name.
    pub provider: String,
    /// Name of the outcome, or of the state.
    pub outcome: &'static str,
}

/// Figures of the way in.
#[derive(Debug, Clone, Default)]
pub struct InletMetrics {
    let_in: Family<ProviderLabel, Counter>,
    without_id: Family<ProviderLabel, Counter>,
}

impl InletMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("paceline_inlet_messages", "Messages from RabbitMQ that became jobs", self.let_in.clone());
        registry.register(
            "paceline_inlet_messages_without_id",
            "Messages whose producer chose no id: they may run twice if an acknowledgement is lost",
            self.without_id.clone(),
        );
    }

    /// A message became a job.
    pub fn let_in(&self, provider: &str, id_was_given: bool) {
        let label = ProviderLabel { provider: provider.to_owned() };
        self.let_in.get_or_create(&label).inc();
        if !id_was_given {
            self.without_id.get_or_create(&label).inc();
        }
    }
}

/// Figures of dispatching.
#[derive(Debug, Clone)]
pub struct DispatchMetrics {
    calls: Family<OutcomeLabel, Counter>,
    finished: Family<OutcomeLabel, Counter>,
    latency: Family<ProviderLabel, Histogram>,
    in_line: Family<ProviderLabel, Gauge>,
    open: Family<ProviderLabel, Gauge>,
    /// Budget by budget.
    pub pacing: PacingMetrics,
}

impl Default for DispatchMetrics {
    fn default() -> Self {
        let buckets = || Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]);
        Self {
            calls: Family::default(),
            finished: Family::default(),
            latency: Family::new_with_constructor(buckets),
            in_line: Family::default(),
            open: Family::default(),
            pacing: PacingMetrics::default(),
        }
    }
}

impl DispatchMetrics {
    /// Makes them visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("paceline_calls", "Calls that ended, by outcome", self.calls.clone());
        registry.register("paceline_jobs_finished", "Jobs that reached a terminal state", self.finished.clone());
        registry.register(
            "paceline_call_seconds",
            "From sending a call to the end of its answer",
            self.latency.clone(),
        );
        registry.register("paceline_jobs_in_line", "Jobs in hand that wait for a permit", self.in_line.clone());
        registry.register("paceline_calls_open", "Calls that are open now", self.open.clone());
        self.pacing.register(registry);
    }

    /// A call ended.
    pub fn call(&self, provider: &ProviderLabel, outcome: &'static str, seconds: f64) {
        let label = OutcomeLabel { provider: provider.provider.clone(), outcome };
        self.calls.get_or_create(&label).inc();
        self.latency.get_or_create(provider).observe(seconds);
    }

    /// A job ended.
    pub fn finished(&self, provider: &ProviderLabel, state: &'static str) {
        let label = OutcomeLabel { provider: provider.provider.clone(), outcome: state };
        self.finished.get_or_create(&label).inc();
    }

    /// How things stand.
    pub fn gauges(&self, provider: &ProviderLabel, in_line: usize, open: usize) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.in_line.get_or_create(provider).set(count(in_line));
        self.open.get_or_create(provider).set(count(open));
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the AMQP client says of each message that comes back, with the whole of it: what became of it is said by whoever
/// published it.
const RETURNED: &str = "lapin::returned_messages";

/// Logs to standard error, filtered by `RUST_LOG` (`info` unless set).
pub fn init_logs(format: LogFormat, default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let filter = match format!("{RETURNED}=error").parse() {
        Ok(quieter) => filter.add_directive(quieter),
        Err(_) => filter,
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = result {
        tracing::debug!(error, "logs were set up already");
    }
}
