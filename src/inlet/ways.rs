//! What is let in, and to whom: replaced as a whole when another configuration comes, while the connection stays.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::topology::Topology;
use crate::dispatch::Intake;
use crate::job::Catalog;
use crate::store::OwnerId;

/// Every way in under one configuration.
#[derive(Debug)]
pub struct Ways {
    /// What has to stand in the broker.
    pub topology: Topology,
    /// One a lane of every provider that is dispatched.
    pub lanes: Vec<Way>,
    /// What messages are checked against.
    pub catalog: Catalog,
    /// Largest envelope.
    pub envelope_bytes_max: usize,
}

/// From the queue of a lane to its dispatcher.
#[derive(Debug, Clone)]
pub struct Way {
    /// Whose jobs come this way.
    pub provider: String,
    /// Of which lane.
    pub lane: String,
    /// Deliveries ahead.
    pub prefetch: u16,
    /// The dispatcher's door.
    pub intake: Intake,
    /// Who claims them: the dispatcher, and no other one before or after it.
    pub owner: OwnerId,
    /// When the dispatcher stops, nothing more is let in.
    pub stop: CancellationToken,
    /// Runs for as long as something may still be claimed for the owner.
    pub ends: TaskTracker,
}

impl Way {
    /// The lane, as that owner has it.
    pub(super) fn identity(&self) -> (OwnerId, String) {
        (self.owner.clone(), self.lane.clone())
    }
}
