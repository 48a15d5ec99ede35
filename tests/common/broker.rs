//! RabbitMQ as a producer and an operator see it.

use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

/// Where the broker is. One that cannot be had is a failure, never a skipped test.
pub fn url() -> String {
    std::env::var("AMQP_URL")
        .ok()
        .filter(|url| url.starts_with("amqp"))
        .expect("AMQP_URL does not name a RabbitMQ: run `make test`, which starts one")
}

/// The port of [`url`].
pub fn port() -> u16 {
    url::Url::parse(&url()).expect("AMQP_URL").port().unwrap_or(5672)
}

/// Properties as a careful producer sets them.
pub fn properties(id: Option<&str>) -> BasicProperties {
    let properties = BasicProperties::default().with_delivery_mode(2).with_content_type("application/json".into());
    match id {
        Some(id) => properties.with_message_id(id.into()),
        None => properties,
    }
}

/// A completion as it came over the broker.
#[derive(Clone, Debug)]
pub struct Completion {
    pub routing_key: String,
    /// The `message_id`.
    pub event: String,
    pub correlation: String,
    /// Its `type`.
    pub kind: String,
    pub job: String,
}

/// A connection with publisher confirms.
pub struct Broker {
    connection: Connection,
    channel: Channel,
}

impl Broker {
    pub async fn connect() -> Self {
        Self::try_connect().await.expect("the broker of AMQP_URL")
    }

    pub async fn try_connect() -> Result<Self, lapin::Error> {
        let connection = Connection::connect(&url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    /// A channel of its own: a refused declaration closes it.
    pub async fn channel(&self) -> Channel {
        self.connection.create_channel().await.expect("a channel")
    }

    /// Publishes and waits for the broker's word that it is safe.
    pub async fn publish_as(&self, key: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish("paceline.jobs".into(), key.into(), options, body, properties)
            .await
            .expect("published");
        assert!(matches!(confirm.await.expect("confirmed"), Confirmation::Ack(None)), "the broker has it");
    }

    pub async fn publish(&self, key: &str, id: Option<&str>, body: &[u8]) {
        self.publish_as(key, properties(id), body).await;
    }

    /// Publishes many, confirms pipelined.
    pub async fn publish_all(&self, key: &str, jobs: impl IntoIterator<Item = (String, Vec<u8>)>) {
        let mut confirms = Vec::new();
        for (id, body) in jobs {
            let (exchange, options) = ("paceline.jobs".into(), BasicPublishOptions::default());
            let properties = properties(Some(&id));
            confirms.push(
                self.channel.basic_publish(exchange, key.into(), options, &body, properties).await.expect("published"),
            );
        }
        for confirm in confirms {
            assert!(matches!(confirm.await.expect("confirmed"), Confirmation::Ack(None)), "the broker has it");
        }
    }

    /// Messages that are ready, and consumers; `None` where there is no such queue.
    pub async fn queue(&self, name: &str) -> Option<(u32, u32)> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.channel().await;
        let queue = channel.queue_declare(name.into(), options, FieldTable::default()).await.ok()?;
        let counts = (queue.message_count(), queue.consumer_count());
        channel.close(200, "done".into()).await.ok();
        Some(counts)
    }

    pub async fn delete(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.ok();
        channel.close(200, "done".into()).await.ok();
    }

    pub async fn purge(&self, queue: &str) {
        let channel = self.channel().await;
        channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.ok();
        channel.close(200, "done".into()).await.ok();
    }

    /// Declares a durable queue with these arguments.
    pub async fn declare(&self, name: &str, arguments: FieldTable) -> Result<(), lapin::Error> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel().await.queue_declare(name.into(), options, arguments).await.map(drop)
    }

    /// A queue that gets a copy of what an exchange gets under such routing keys.
    pub async fn listen(&self, queue: &str, exchange: &str, keys: &str) {
        let channel = self.channel().await;
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(queue.into(), options, FieldTable::default()).await.expect("declared");
        let options = QueueBindOptions::default();
        channel
            .queue_bind(queue.into(), exchange.into(), keys.into(), options, FieldTable::default())
            .await
            .expect("bound");
        channel.close(200, "done".into()).await.ok();
    }

    /// Takes every message out of a queue: properties and body.
    pub async fn take_all(&self, queue: &str) -> Vec<Vec<u8>> {
        let channel = self.channel().await;
        let mut all = Vec::new();
        while let Some(message) =
            channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.expect("an answer")
        {
            all.push([format!("{:?} ", message.properties).into_bytes(), message.delivery.data.clone()].concat());
        }
        channel.close(200, "done".into()).await.ok();
        all
    }

    /// Takes every completion out of a queue.
    pub async fn completions(&self, queue: &str) -> Vec<Completion> {
        let (channel, mut all) = (self.channel().await, Vec::new());
        while let Some(message) =
            channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.expect("an answer")
        {
            let told = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string).unwrap_or_default();
            let body: serde_json::Value = serde_json::from_slice(&message.delivery.data).expect("JSON");
            all.push(Completion {
                routing_key: message.delivery.routing_key.to_string(),
                event: told(message.properties.message_id()),
                correlation: told(message.properties.correlation_id()),
                kind: body["type"].as_str().unwrap_or_default().to_owned(),
                job: body["data"]["job_id"].as_str().unwrap_or_default().to_owned(),
            });
        }
        channel.close(200, "done".into()).await.ok();
        all
    }

    pub async fn close(self) {
        self.connection.close(200, "done".into()).await.ok();
    }
}

/// The arguments that the contract freezes for a job queue.
pub fn job_queue_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    for (name, value) in [
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text("paceline.rejected")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongLongInt(20)),
    ] {
        arguments.insert(ShortString::from(name), value);
    }
    arguments
}
