//! Drains what no queue matched and what the broker gave up into the dead letters.

use futures_util::StreamExt as _;
use lapin::Connection;
use lapin::options::BasicAckOptions;
use tokio_util::sync::CancellationToken;

use super::rabbit::{InletError, InletParts, answered};
use super::{lane, message};
use crate::job::DeadReason;

/// Unacknowledged messages at most.
const PREFETCH: u16 = 20;

/// Consumes one of the two queues until shutdown.
///
/// # Errors
/// [`InletError`] ends the session.
pub(super) async fn run(
    parts: &InletParts,
    connection: &Connection,
    queue: &'static str,
    reason: DeadReason,
    shutdown: &CancellationToken,
) -> Result<(), InletError> {
    let tag = format!("paceline.{}.{queue}", parts.name);
    let begin = lane::begin(connection, queue, &tag, PREFETCH);
    let (channel, mut consumer) = answered(&format!("consuming {queue}"), begin).await?;
    loop {
        let delivery = tokio::select! {
            () = shutdown.cancelled() => break,
            delivery = consumer.next() => delivery,
        };
        let Some(delivery) = delivery.transpose()? else { return Err(InletError::ConsumerEnded(tag)) };
        let error = match reason {
            DeadReason::Unroutable => format!("no queue for the routing key {:?}", delivery.routing_key.as_str()),
            _ => "the broker gave it up after too many deliveries".to_owned(),
        };
        parts.bury(message::buried(&delivery, reason, error), shutdown).await?;
        if !delivery.acker.ack(BasicAckOptions::default()).await? {
            return Err(InletError::AckLost);
        }
    }
    channel.close(200, "done".into()).await?;
    Ok(())
}
