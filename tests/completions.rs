//! Completions over RabbitMQ: events for whoever listens, answers for whoever asked, through crashes, cut connections and
//! queues that are gone.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use common::broker::{self, Broker};
use common::proxy::{Manner, Proxy};
use common::world::{Mode, World, checkout, in_world};
use common::{SOON, holds, until};
use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};
use tokio::process::Command;

const KEY: &str = "completion-test-key-0123";

async fn provider() -> ProviderHandle {
    let options = ProviderOptions { keys: vec![SimKey::new("a1", KEY)], ..ProviderOptions::default() };
    ProviderSim::start(options).await.expect("a provider")
}

/// A queue that is gone with its connection, bound to the events of this world's provider.
async fn listen(broker: &Broker, world: &World, keys: &[&str]) -> (Channel, String, Consumer) {
    let channel = broker.channel().await;
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let (kind, none) = (lapin::ExchangeKind::Topic, FieldTable::default());
    channel.exchange_declare("paceline.events".into(), kind, options, none).await.expect("declared");
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await.expect("a queue");
    let name = queue.name().as_str().to_owned();
    for key in keys {
        let key = format!("{}.{key}", world.provider);
        let (exchange, options) = ("paceline.events".into(), QueueBindOptions::default());
        let bound =
            channel.queue_bind(name.as_str().into(), exchange, key.as_str().into(), options, FieldTable::default());
        bound.await.expect("bound");
    }
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(name.as_str().into(), "".into(), options, FieldTable::default());
    let consumer = consumer.await.expect("a consumer");
    (channel, name, consumer)
}

/// The next message: its routing key, its properties, its body.
async fn next(consumer: &mut Consumer) -> (String, lapin::BasicProperties, Value) {
    let delivery = tokio::time::timeout(SOON, consumer.next()).await.expect("in time").expect("open").expect("well");
    delivery.acker.ack(BasicAckOptions::default()).await.expect("acknowledged");
    let body = serde_json::from_slice(&delivery.data).expect("JSON");
    (delivery.routing_key.as_str().to_owned(), delivery.properties.clone(), body)
}

fn told(value: Option<&lapin::types::ShortString>) -> &str {
    value.map(|text| text.as_str()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_answers_carry_the_body_of_the_webhook_and_where_they_belong() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.prepare().await;
        let broker = Broker::connect().await;
        let (_events, _, mut events) = listen(&broker, world, &["job.*"]).await;
        let (_dead, _, mut dead) = listen(&broker, world, &["job.dead"]).await;
        let (_replies, queue, mut replies) = listen(&broker, world, &[]).await;
        let serve = world.serving().await;
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(trace.into()));
        let properties = broker::properties(Some("asked"))
            .with_reply_to(queue.as_str().into())
            .with_correlation_id("c-17".into())
            .with_headers(headers);
        let job = json!({ "request": { "path": "/v1/geocode" }, "metadata": { "order": 17 } });
        broker.publish_as(&world.provider, properties, job.to_string().as_bytes()).await;

        let (key, properties, body) = next(&mut replies).await;
        assert_eq!(key, queue);
        assert_eq!((body["type"].as_str(), body["data"]["job_id"].as_str()), (Some("job.succeeded"), Some("asked")));
        assert_eq!(body["data"]["metadata"], json!({ "order": 17 }));
        assert_eq!(body["data"]["response"]["status"], 200);
        assert_eq!(told(properties.correlation_id().as_ref()), "c-17");
        assert_eq!((*properties.delivery_mode(), told(properties.content_type().as_ref())), (Some(2), "application/json"));
        let carried = properties.headers().as_ref().and_then(|headers| headers.inner().get("traceparent").cloned());
        assert_eq!(carried, Some(AMQPValue::LongString(trace.into())));

        let (key, event, same) = next(&mut events).await;
        assert_eq!((key, &same), (format!("{}.job.succeeded", world.provider), &body));
        assert!(told(event.message_id().as_ref()).starts_with("evt_"));
        assert_eq!(event.message_id(), properties.message_id());

        // Over HTTP, and one that dies: an event, and nobody to answer.
        let dies = json!({ "id": "dies", "provider": world.provider, "request": { "path": "/status/404" } });
        world.api().accept(&dies).await;
        for consumer in [&mut events, &mut dead] {
            let (key, _, body) = next(consumer).await;
            assert_eq!(key, format!("{}.job.dead", world.provider));
            assert_eq!(body["data"]["error"]["reason"], "permanent");
        }
        // Cancelled and expired come about without any call.
        let later = json!({ "id": "later", "provider": world.provider, "request": { "path": "/" }, "not_before": "2099-01-01T00:00:00Z" });
        world.api().accept(&later).await;
        assert_eq!(world.api().delete("/v1/jobs/later").await.0, 200);
        assert_eq!(next(&mut events).await.0, format!("{}.job.cancelled", world.provider));
        until("nothing is kept of what the broker has", SOON, async || {
            holds(world.number("SELECT COUNT(*) FROM deliveries").await == 0)
        })
        .await;
        let figures = world.api().text("/metrics").await;
        assert!(figures.contains(r#"paceline_publications_total{kind="reply",outcome="delivered"} 1"#), "{figures}");
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// Whoever asked is gone: it is said, tried twice more, and kept. What others wait for goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_nobody_waits_for_is_given_up_and_said() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.prepare().await;
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        for (id, queue) in [("gone", "amq.gen-nobody"), ("own", "paceline.rejected"), ("empty", "")] {
            let properties = broker::properties(Some(id)).with_reply_to(queue.into()).with_correlation_id("c".into());
            broker.publish_as(&world.provider, properties, br#"{"request":{"path":"/v1/x"}}"#).await;
        }
        let (_replies, queue, mut replies) = listen(&broker, world, &[]).await;
        let properties = broker::properties(Some("there")).with_reply_to(queue.as_str().into());
        broker.publish_as(&world.provider, properties, br#"{"request":{"path":"/v1/x"}}"#).await;
        assert_eq!(next(&mut replies).await.2["data"]["job_id"], "there");
        let given_up = async |id: &str| {
            until(&format!("{id} is given up"), SOON, async || {
                let (_, page) = world.api().try_get(&format!("/v1/deliveries?job={id}&state=failed")).await?;
                page["items"].get(0).cloned()
            })
            .await
        };
        let gone = given_up("gone").await;
        let attempts = gone["attempts"].as_array().expect("attempts");
        assert_eq!(attempts.len(), 3, "{gone}");
        assert!(attempts[0]["error"].as_str().expect("why").contains("amq.gen-nobody"), "{gone}");
        let own = given_up("own").await;
        assert_eq!(own["attempts"].as_array().map(Vec::len), Some(1), "{own}");
        assert!(own["attempts"][0]["error"].as_str().expect("why").contains("Paceline's own"), "{own}");
        assert!(serve.log().contains("a completion for RabbitMQ is given up"), "{}", serve.log());
        // The client's word on each message that came back would be a second one, with the whole of the message.
        assert!(!serve.log().contains("BasicReturnMessage"), "{}", serve.log());
        // Somebody waits again: it can be sent again.
        let path = format!("/v1/deliveries/{}/resend", gone["id"].as_str().expect("an id"));
        assert_eq!(world.api().post(&path, &json!({})).await.0, 202);
        until("it was tried again", SOON, async || {
            holds(
                world.api().try_get("/v1/deliveries?job=gone&state=failed").await?.1["items"][0]["attempts"]
                    .as_array()?
                    .len()
                    == 6,
            )
        })
        .await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// Everything that was published, by event id, and how often.
async fn collected(consumer: &mut Consumer, wanted: usize) -> BTreeMap<String, usize> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    while seen.len() < wanted {
        let (_, properties, _) = next(consumer).await;
        *seen.entry(told(properties.message_id().as_ref()).to_owned()).or_default() += 1;
    }
    seen
}

async fn enqueue(world: &World, count: usize) {
    let job = |n: usize| json!({ "id": format!("j{n}"), "provider": world.provider, "request": { "path": "/v1/x" } });
    world.api().accept_all(&(0..count).map(job).collect::<Vec<_>>()).await;
}

async fn event_ids(world: &World) -> BTreeSet<String> {
    world.rows::<(String,)>("SELECT id FROM events").await.into_iter().map(|row| row.0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_publishes_no_event_is_lost() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        // Slowly, so that there is something to publish whenever it dies.
        world.provider(&provider.base_url(), &[("a1", KEY)], "key_limits = [ { requests = 40, per = \"1s\" } ]");
        world.prepare().await;
        let broker = Broker::connect().await;
        let (_channel, _, mut events) = listen(&broker, world, &["job.*"]).await;
        let jobs = 300;
        let mut serve = world.serving().await;
        enqueue(world, jobs).await;
        for (at, point) in ["before_publish:3", "after_publish:2", "after_publish_record:2"].into_iter().enumerate() {
            // Killed as soon as anything is out, then at named steps of the publisher.
            if at == 0 {
                until("something is out", SOON, async || {
                    let out = "SELECT COUNT(*) FROM events WHERE pk NOT IN (SELECT event_pk FROM deliveries)";
                    holds(world.number(out).await > 0)
                })
                .await;
                serve.kill().await;
            } else {
                tokio::time::timeout(SOON * 3, serve.ended(SOON * 3)).await.expect("it dies there");
            }
            world.set(paceline::kill_point::VARIABLE, if cfg!(debug_assertions) && at < 2 { point } else { "" });
            serve = world.serve_as(&format!("serve-{at}"), &[]);
        }
        world.all_done(i64::try_from(jobs).expect("few"), SOON * 3).await;
        until("all is published", SOON * 3, async || holds(world.number("SELECT COUNT(*) FROM deliveries").await == 0))
            .await;
        let seen = collected(&mut events, jobs).await;
        assert_eq!(seen.into_keys().collect::<BTreeSet<_>>(), event_ids(world).await);
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// The way to the broker is cut again and again while completions go: none is lost, and no attempt is spent on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_cannot_be_reached_costs_time_and_no_event() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        let proxy = Proxy::start(format!("127.0.0.1:{}", broker::port())).await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.prepare().await;
        let broker = Broker::connect().await;
        let (_channel, _, mut events) = listen(&broker, world, &["job.*"]).await;
        world.set("AMQP_URL", &proxy.url(&broker::url()));
        let serve = world.serving().await;
        let jobs = 400;
        enqueue(world, jobs).await;
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            proxy.cut();
        }
        let seen = collected(&mut events, jobs).await;
        assert_eq!(seen.into_keys().collect::<BTreeSet<_>>(), event_ids(world).await);
        until("all is recorded", SOON, async || holds(world.number("SELECT COUNT(*) FROM deliveries").await == 0))
            .await;
        let figures = world.api().text("/metrics").await;
        let of_events = |outcome| format!("paceline_publications_total{{kind=\"event\",outcome=\"{outcome}\"}}");
        assert!(figures.contains(&of_events("delivered")) && !figures.contains(&of_events("retry")), "{figures}");
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// The database is silent and then gone, again and again, while completions go: whatever of a claim or a record is in doubt
/// then is handed back as soon as the database answers, and does not wait until the claim runs out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_breaks_off_holds_no_event_up_for_long() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        let database = url::Url::parse(world.database()).expect("a URL");
        let target = format!("{}:{}", database.host_str().expect("a host"), database.port().unwrap_or(5432));
        let proxy = Proxy::start(target).await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.prepare().await;
        world.set("DATABASE_URL", &proxy.url(world.database()));
        let serve = world.serving().await;
        let jobs = 1_500;
        enqueue(world, jobs).await;
        // Often, and shortly: what is on its way then is mostly a commit now and then.
        for _ in 0..60 {
            proxy.set(Manner::Mute);
            tokio::time::sleep(Duration::from_millis(20)).await;
            proxy.cut();
            proxy.set(Manner::Through);
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        world.all_done(i64::try_from(jobs).expect("few"), SOON * 3).await;
        until("all is published", SOON, async || holds(world.number("SELECT COUNT(*) FROM deliveries").await == 0))
            .await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_can_be_turned_off_and_answers_cannot() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.set("PACELINE__QUEUE__EVENTS", "false");
        world.prepare().await;
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        let (_replies, queue, mut replies) = listen(&broker, world, &["job.*"]).await;
        let properties = broker::properties(Some("asked")).with_reply_to(queue.as_str().into());
        broker.publish_as(&world.provider, properties, br#"{"request":{"path":"/v1/x"}}"#).await;
        assert_eq!(next(&mut replies).await.0, queue);
        let counted =
            |figures: &str, kind: &str| figures.contains(&format!("paceline_publications_total{{kind=\"{kind}\""));
        until("the answer is recorded", SOON, async || {
            let figures = world.api().text("/metrics").await;
            assert!(!counted(&figures, "event"), "{figures}");
            holds(counted(&figures, "reply") && world.number("SELECT COUNT(*) FROM deliveries").await == 0)
        })
        .await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// The example in Python asks and gets its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_python_asks_and_gets_its_answer() {
    in_world(Mode::Scaled, async |world| {
        let provider = provider().await;
        world.provider(&provider.base_url(), &[("a1", KEY)], "");
        world.prepare().await;
        let serve = world.serving().await;
        let lines = std::fs::read_to_string(checkout().join("examples/rpc.py")).expect("the example").lines().count();
        assert!(lines < 40, "{lines} lines");
        for (path, id, code, kind) in
            [("/v1/geocode", "rpc-1", 0, "job.succeeded"), ("/status/404", "rpc-2", 1, "job.dead")]
        {
            let mut command = Command::new(python().await);
            command.arg(checkout().join("examples/rpc.py")).args([&world.provider, path, id]);
            command.env("AMQP_URL", broker::url()).stdout(Stdio::piped()).kill_on_drop(true);
            let output = tokio::time::timeout(SOON * 2, command.output()).await.expect("in time").expect("it runs");
            assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            assert_eq!(
                (answer["type"].as_str(), answer["data"]["job_id"].as_str()),
                (Some(kind), Some(id)),
                "{answer}"
            );
        }
        serve.stop().await;
    })
    .await;
}

/// A python3 that has pika; one that cannot be had is a failure.
async fn python() -> String {
    match std::env::var("PACELINE_PYTHON") {
        Ok(path) if !path.is_empty() => path,
        _ => {
            let found =
                Command::new(checkout().join("deploy/services")).arg("python").output().await.expect("a script");
            assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
            String::from_utf8(found.stdout).expect("a path").trim().to_owned()
        }
    }
}
