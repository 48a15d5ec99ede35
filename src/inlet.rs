//! RabbitMQ as an inlet: deliveries become claimed jobs in the store, and are acknowledged after
//! the commit that says so. From then on the store owns them.
//!
//! [`topology`] is what stands in the broker, `message` turns a delivery into a job or a dead
//! letter, `lane` consumes one queue, `rabbit` supervises the connection, `ways` is what a
//! configuration wants to be let in, [`leftovers`] are queues that nobody consumes.

mod drain;
mod lane;
pub mod leftovers;
mod message;
mod rabbit;
pub mod topology;
mod ways;

pub use rabbit::{Inlet, InletError, InletParts, connect};
pub use ways::{Way, Ways};
