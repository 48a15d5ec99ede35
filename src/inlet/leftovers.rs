//! Queues of providers and lanes that are no longer configured: nobody consumes them. They are reported at the start,
//! and drained into the dead letters when an operator says so.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::try_join_all;
use lapin::Connection;
use lapin::message::BasicGetMessage;
use lapin::options::{BasicAckOptions, BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Channel, ErrorKind};

use super::message;
use super::rabbit::{InletError, answered};
use super::topology::{JOBS, Topology};
use crate::clock::Clock;
use crate::job::DeadReason;
use crate::store::Store;

/// Messages that are kept in one commit.
const BATCH_MAX: usize = 64;
/// A queue that is empty for so long after its bindings are gone gets nothing more.
const SETTLED_AFTER: Duration = Duration::from_secs(1);
/// AMQP's reply code for a queue that does not exist.
const NOT_FOUND: u16 = 404;

/// A queue that nobody consumes any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name.
    pub queue: String,
    /// Messages that are ready.
    pub messages: u32,
    /// Those who consume it all the same: a process with another configuration.
    pub consumers: u32,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Messages that are dead letters now.
    pub buried: u64,
    /// It is gone. Else somebody took messages out of it meanwhile and may give them back: it is for another time.
    pub deleted: bool,
}

/// The queues that the store knows of and the configuration does not, where they are in the broker still.
///
/// # Errors
/// [`InletError`] where broker or store do not answer.
pub async fn leftovers(
    connection: &Connection,
    store: &Store,
    topology: &Topology,
) -> Result<Vec<Leftover>, InletError> {
    let configured: BTreeSet<&str> = topology.queues.iter().map(|queue| queue.name.as_str()).collect();
    let mut found = Vec::new();
    for queue in store.queues().await?.into_iter().filter(|queue| !configured.contains(queue.as_str())) {
        match look(connection, &queue).await? {
            Some(leftover) => found.push(leftover),
            None => store.forget_queue(&queue).await?,
        }
    }
    Ok(found)
}

/// A queue as it stands in the broker; `None`: there is none of that name.
///
/// # Errors
/// [`InletError`] where the broker does not answer.
pub async fn look(connection: &Connection, queue: &str) -> Result<Option<Leftover>, InletError> {
    let asked = async {
        // Of its own: the broker closes it where there is no such queue.
        let channel = connection.create_channel().await?;
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let state = match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
            Ok(state) => state,
            Err(error) if is_not_found(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        channel.close(200, "done".into()).await?;
        let (messages, consumers) = (state.message_count(), state.consumer_count());
        Ok(Some(Leftover { queue: queue.to_owned(), messages, consumers }))
    };
    answered(&format!("looking at {queue}"), asked).await
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(told) if told.get_id() == NOT_FOUND)
}

/// Drains a queue into the dead letters (`unroutable`), and deletes it. What is published for it from then on finds no
/// queue. A message is acknowledged after the commit that keeps it, so that this can be stopped at any time.
///
/// # Errors
/// [`InletError`] where broker or store do not answer; doing it again goes on.
pub async fn prune(
    connection: &Connection,
    store: &Store,
    clock: &dyn Clock,
    queue: &str,
) -> Result<Pruned, InletError> {
    let channel = connection.create_channel().await?;
    for key in keys_of(queue) {
        let unbound = channel.queue_unbind(queue.into(), JOBS.into(), key.as_str().into(), FieldTable::default());
        answered(&format!("unbinding {queue}"), async { Ok(unbound.await?) }).await?;
    }
    let mut buried = drain(&channel, store, clock, queue).await?;
    // What was routed here before may arrive a moment later, and a quorum queue cannot be deleted "if empty".
    let is_empty = loop {
        tokio::time::sleep(SETTLED_AFTER).await;
        match look(connection, queue).await? {
            Some(left) if left.consumers > 0 => break false,
            Some(left) if left.messages > 0 => match drain(&channel, store, clock, queue).await? {
                0 => break false,
                more => buried += more,
            },
            _ => break true,
        }
    };
    if is_empty {
        let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default());
        answered(&format!("deleting {queue}"), async { Ok(deleted.await?) }).await?;
        store.forget_queue(queue).await?;
    }
    channel.close(200, "done".into()).await?;
    Ok(Pruned { buried, deleted: is_empty })
}

/// Keeps what is ready; how many that were.
async fn drain(channel: &Channel, store: &Store, clock: &dyn Clock, queue: &str) -> Result<u64, InletError> {
    let mut buried = 0;
    loop {
        let batch = answered(&format!("draining {queue}"), next_batch(channel, queue)).await?;
        let Some(last) = batch.last() else { return Ok(buried) };
        let error = format!("its queue {queue} belongs to no configured provider and lane, and was pruned");
        let letters = batch.iter().map(|got| message::buried(&got.delivery, DeadReason::Unroutable, error.clone()));
        try_join_all(letters.map(|letter| store.bury(letter, clock.wall_ms()))).await?;
        if !last.delivery.acker.ack(BasicAckOptions { multiple: true }).await? {
            return Err(InletError::AckLost);
        }
        buried += batch.len() as u64;
    }
}

/// What was bound to it: its provider and lane, and the bare provider for the default lane.
fn keys_of(queue: &str) -> Vec<String> {
    let Some(place) = queue.strip_prefix(JOBS).and_then(|rest| rest.strip_prefix('.')) else { return Vec::new() };
    let bare = place.strip_suffix(".default").map(str::to_owned);
    std::iter::once(place.to_owned()).chain(bare).collect()
}

async fn next_batch(channel: &Channel, queue: &str) -> Result<Vec<BasicGetMessage>, InletError> {
    let mut batch = Vec::new();
    while batch.len() < BATCH_MAX
        && let Some(got) = channel.basic_get(queue.into(), BasicGetOptions::default()).await?
    {
        batch.push(got);
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bindings_of_a_queue_follow_from_its_name() {
        assert_eq!(keys_of("paceline.jobs.geo.high"), ["geo.high"]);
        assert_eq!(keys_of("paceline.jobs.geo.default"), ["geo.default", "geo"]);
        assert!(keys_of("somebody.elses").is_empty());
    }
}
