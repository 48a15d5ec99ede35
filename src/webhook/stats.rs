//! What the notifier counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::store::DeliveryNext;

/// Upper edges of the classes of an attempt's time, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

/// `outcome="…"`.
type Labels = [(&'static str, &'static str); 1];

/// Counters of the webhooks, to be registered where metrics are served. Cheap to clone: all clones
/// count together.
#[derive(Debug, Clone)]
pub struct NotifierStats {
    attempts: Family<Labels, Counter>,
    seconds: Histogram,
    /// Calls that are open.
    pub(super) open: Gauge,
    /// Claimed deliveries that wait for their turn.
    pub(super) waiting: Gauge,
    /// Claimed deliveries that were let go of unsent.
    pub(super) released: Counter,
    /// Records that could not be written: those deliveries are sent again.
    pub(super) unrecorded: Counter,
}

impl Default for NotifierStats {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            seconds: Histogram::new(SECONDS),
            open: Gauge::default(),
            waiting: Gauge::default(),
            released: Counter::default(),
            unrecorded: Counter::default(),
        }
    }
}

impl NotifierStats {
    /// Registers everything, as `webhook_…` under the registry's own prefix.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("webhook");
        registry.register("attempts", "Attempts to deliver a webhook, by what became of it", self.attempts.clone());
        registry.register("attempt_seconds", "Time of an attempt until its answer's head", self.seconds.clone());
        registry.register("open", "Webhook calls that are open", self.open.clone());
        registry.register("waiting", "Claimed deliveries that wait for their turn", self.waiting.clone());
        registry.register(
            "released",
            "Claimed deliveries let go of unsent, to be claimed again",
            self.released.clone(),
        );
        registry.register("unrecorded", "Attempts whose record could not be written", self.unrecorded.clone());
    }

    /// Attempts so far that came to `next`'s kind.
    pub fn attempts(&self, next: DeliveryNext) -> u64 {
        self.attempts.get_or_create(&labels(next)).get()
    }

    pub(super) fn attempted(&self, next: DeliveryNext, latency_ms: i64) {
        self.attempts.get_or_create(&labels(next)).inc();
        let ms = u32::try_from(latency_ms.max(0)).unwrap_or(u32::MAX);
        self.seconds.observe(f64::from(ms) / 1000.0);
    }
}

const fn labels(next: DeliveryNext) -> Labels {
    let outcome = match next {
        DeliveryNext::Delivered | DeliveryNext::Published => "delivered",
        DeliveryNext::Retry { .. } => "retry",
        DeliveryNext::Failed => "failed",
        DeliveryNext::Gone => "gone",
    };
    [("outcome", outcome)]
}
