//! What became of the times of schedules.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What became of one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// Its job was made.
    Made,
    /// Another scheduler had made it.
    Exists,
    /// It was missed, and nobody makes up for it.
    Skipped,
    /// Its job cannot be made.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    schedule: String,
    outcome: &'static str,
}

/// Counters of recurring jobs. Cheap to clone: all clones count together.
#[derive(Debug, Clone, Default)]
pub struct ScheduleMetrics {
    times: Family<Labels, Counter>,
}

impl ScheduleMetrics {
    /// For `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("paceline_scheduled_jobs", "Times of schedules, by what became of them", self.times.clone());
    }

    /// So many times of a schedule became that.
    pub fn count(&self, schedule: &str, made: Made, times: u64) {
        let outcome = match made {
            Made::Made => "made",
            Made::Exists => "exists",
            Made::Skipped => "skipped",
            Made::Failed => "failed",
        };
        self.times.get_or_create(&Labels { schedule: schedule.to_owned(), outcome }).inc_by(times);
    }
}
