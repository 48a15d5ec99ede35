//! Exchanges, queues and bindings: what producers publish to and dispatchers consume from.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde::Serialize;

use super::rabbit::{InletError, answered};
use crate::config::Config;
use crate::job::REPLAY_LANE;

/// Where producers publish to.
pub const JOBS: &str = "paceline.jobs";
/// Where completions are published to.
pub const EVENTS: &str = "paceline.events";
/// The alternate exchange of [`JOBS`], and the queue behind it.
pub const UNROUTABLE: &str = "paceline.unroutable";
/// The dead-letter exchange of the job queues, and the queue behind it.
pub const REJECTED: &str = "paceline.rejected";
/// How everything of our own in the broker begins.
pub const OWN_PREFIX: &str = "paceline.";
/// Deliveries of one message before the broker rejects it.
pub const DELIVERY_LIMIT: i64 = 20;

/// The queue of a provider's lane.
pub fn queue_name(provider: &str, lane: &str) -> String {
    format!("{JOBS}.{provider}.{lane}")
}

/// An exchange to declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exchange {
    /// Its name.
    pub name: &'static str,
    /// `topic` or `fanout`.
    pub kind: &'static str,
    /// What its queues do not match goes here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alternate: Option<&'static str>,
}

/// A durable quorum queue to declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Whether it is a job queue, with a dead-letter exchange, a delivery limit and
    /// reject-publish.
    pub jobs: bool,
}

/// A binding to declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// From this exchange
    pub exchange: &'static str,
    /// to this queue
    pub queue: String,
    /// for this routing key.
    pub key: String,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// Exchanges.
    pub exchanges: Vec<Exchange>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Bindings.
    pub bindings: Vec<Binding>,
}

impl Topology {
    /// What the configured providers need.
    pub fn of(config: &Config) -> Self {
        let exchange = |name, kind, alternate| Exchange { name, kind, alternate };
        let mut topology = Self {
            exchanges: vec![
                exchange(UNROUTABLE, "fanout", None),
                exchange(REJECTED, "fanout", None),
                exchange(JOBS, "topic", Some(UNROUTABLE)),
                exchange(EVENTS, "topic", None),
            ],
            queues: Vec::new(),
            bindings: Vec::new(),
        };
        for name in [UNROUTABLE, REJECTED] {
            topology.queues.push(Queue { name: name.to_owned(), jobs: false });
            topology.bindings.push(Binding { exchange: name, queue: name.to_owned(), key: String::new() });
        }
        for (provider, lane) in lanes(config) {
            let queue = queue_name(provider, lane);
            topology.queues.push(Queue { name: queue.clone(), jobs: true });
            let mut bind = |key: String| topology.bindings.push(Binding { exchange: JOBS, queue: queue.clone(), key });
            bind(format!("{provider}.{lane}"));
            if lane == "default" {
                bind(provider.to_owned());
            }
        }
        topology
    }

    /// The queues that jobs come through.
    pub fn job_queues(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().filter(|queue| queue.jobs).map(|queue| queue.name.as_str())
    }

    /// Declares all of it. What stands there already is left as it is, if it is the same. A thousand new queues take half
    /// a minute: each has a time of its own.
    ///
    /// # Errors
    /// [`InletError::Topology`] with the broker's words, `PRECONDITION_FAILED` where something of that name has other
    /// arguments; [`InletError::Silent`] where it does not answer.
    pub async fn declare(&self, channel: &Channel) -> Result<(), InletError> {
        for exchange in &self.exchanges {
            let kind = if exchange.kind == "topic" { ExchangeKind::Topic } else { ExchangeKind::Fanout };
            let mut arguments = FieldTable::default();
            if let Some(alternate) = exchange.alternate {
                arguments.insert("alternate-exchange".into(), text(alternate));
            }
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            stands(exchange.name, channel.exchange_declare(exchange.name.into(), kind, options, arguments)).await?;
        }
        for queue in &self.queues {
            let options = QueueDeclareOptions { durable: true, ..Default::default() };
            let declared = channel.queue_declare(queue.name.as_str().into(), options, queue.arguments());
            stands(&queue.name, declared).await?;
        }
        for binding in &self.bindings {
            let bound = channel.queue_bind(
                binding.queue.as_str().into(),
                binding.exchange.into(),
                binding.key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            stands(&binding.queue, bound).await?;
        }
        Ok(())
    }
}

/// One declaration, answered in time.
async fn stands<T>(name: &str, declared: impl Future<Output = Result<T, lapin::Error>>) -> Result<(), InletError> {
    let declared = async { declared.await.map_err(InletError::Topology) };
    answered(&format!("declaring {name}"), declared).await.map(drop)
}

impl Queue {
    /// The arguments of the queue: frozen, since a queue cannot be declared again with others.
    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), text("quorum"));
        if self.jobs {
            arguments.insert("x-dead-letter-exchange".into(), text(REJECTED));
            arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
            arguments.insert("x-overflow".into(), text("reject-publish"));
            arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
        }
        arguments
    }
}

/// Every lane that producers can publish to. Replays never come through the broker.
pub(super) fn lanes(config: &Config) -> impl Iterator<Item = (&str, &str)> {
    config.providers.iter().flat_map(|provider| {
        provider
            .pool
            .lanes
            .iter()
            .filter(|lane| lane.name != REPLAY_LANE)
            .map(|lane| (provider.name.as_str(), lane.name.as_str()))
    })
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_has_a_queue_and_the_default_lane_takes_the_bare_name() {
        let text = "[[provider]]\nname = \"geo\"\nbase_url = \"http://x\"\nlanes = { high = 2 }";
        let config = Config::parse(text, None, &[]).expect("valid");
        let topology = Topology::of(&config);
        let keys: Vec<(&str, &str)> = topology
            .bindings
            .iter()
            .filter(|b| b.exchange == JOBS)
            .map(|b| (b.key.as_str(), b.queue.as_str()))
            .collect();
        assert_eq!(
            keys,
            [
                ("geo.high", "paceline.jobs.geo.high"),
                ("geo.default", "paceline.jobs.geo.default"),
                ("geo", "paceline.jobs.geo.default"),
            ]
        );
        assert!(!topology.queues.iter().any(|q| q.name.ends_with(".replay")));
    }
}
