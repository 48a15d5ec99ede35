//! Whether calls that have their permit may still leave, for those who carry them to a connection: that can take
//! seconds, and the lease may end meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::Time;

/// The end of a pacing group's lease as it is known now. Cheap to clone; every clone hears of changes.
#[derive(Debug, Clone)]
pub struct Leave(Arc<AtomicU64>);

impl Leave {
    /// Calls may leave until then.
    pub(super) fn until(time: Time) -> Self {
        Self(Arc::new(AtomicU64::new(time.as_nanos())))
    }

    pub(super) fn set(&self, until: Time) {
        self.0.store(until.as_nanos(), Ordering::Release);
    }

    /// Whether a call may leave at that time.
    pub fn is_given(&self, now: Time) -> bool {
        now.as_nanos() < self.0.load(Ordering::Acquire)
    }
}
