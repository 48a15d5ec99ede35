//! The way in over RabbitMQ, against the real broker and the built binary: what stands in the broker,
//! what becomes of every kind of message, how much is let in, and when it is acknowledged.

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::broker::{Broker, job_queue_arguments, port as broker_port, properties};
use common::world::{Mode, World, in_world};
use common::{SOON, holds, until};
use lapin::types::{AMQPValue, FieldTable};
use paceline::sim::{ProviderHandle, ProviderOptions, ProviderSim, SimKey};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::RwLock;

/// `paceline.unroutable` and `paceline.rejected` belong to all processes on one broker: who looks at
/// what comes out of them is alone.
static SHARED_QUEUES: RwLock<()> = RwLock::const_new(());

const KEY: &str = "inlet-key-0123456789";

async fn provider(world: &World, rules: &[&str], more: &str) -> ProviderHandle {
    let options = ProviderOptions {
        keys: vec![SimKey::new("a1", KEY)],
        rules: rules.iter().map(|rule| rule.parse().expect("a rule")).collect(),
        ..ProviderOptions::default()
    };
    let sim = ProviderSim::start(options).await.expect("a provider");
    world.provider(&sim.base_url(), &[("a1", KEY)], more);
    sim
}

fn job(n: usize) -> Vec<u8> {
    json!({ "request": { "method": "POST", "path": "/v1/echo", "body": { "n": n } } }).to_string().into_bytes()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_broker_is_what_the_contract_says() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "lanes = { high = 8, low = 1 }").await;
        for _ in 0..2 {
            let applied = world.run(&["topology", "apply"]).await;
            assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
        }
        let broker = Broker::connect().await;
        for lane in ["default", "high", "low"] {
            // The broker refuses a declaration that differs in any argument.
            broker.declare(&world.queue(lane), job_queue_arguments()).await.expect(lane);
        }
        assert_eq!(broker.queue(&world.queue("replay")).await, None, "replays never come through the broker");
        let mut other = job_queue_arguments();
        other.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(21));
        let refused = broker.declare(&world.queue("default"), other).await.expect_err("other arguments");
        assert!(refused.to_string().contains("x-delivery-limit"), "{refused}");
        for queue in ["paceline.unroutable", "paceline.rejected"] {
            assert!(broker.queue(queue).await.is_some(), "{queue}");
        }
        // By the provider's bare name into its default lane, by its lanes into theirs, each once.
        for (key, lane) in [("", "default"), (".default", "default"), (".high", "high"), (".low", "low")] {
            broker.publish(&format!("{}{key}", world.provider), None, b"x").await;
            until(&format!("one message in {lane}"), SOON, async || {
                holds(broker.queue(&world.queue(lane)).await?.0 == 1)
            })
            .await;
            for lane in ["default", "high", "low"] {
                broker.purge(&world.queue(lane)).await;
            }
        }
        let serve = world.serving().await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_other_arguments_is_named_and_hinders_nothing_but_itself() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "").await;
        let broker = Broker::connect().await;
        let queue = world.queue("default");
        let mut classic = FieldTable::default();
        classic.insert("x-queue-type".into(), text("classic"));
        broker.declare(&queue, classic).await.expect("a classic queue");
        let serve = world.serve();
        let api = world.api();
        let said = api.red_parts(&["queue"], SOON).await.concat();
        assert!(said.contains(&queue) && said.contains("other arguments") && said.contains("inequivalent"), "{said}");
        let tries = || serve.log().matches("other arguments").count();
        until("it tries again and again", SOON, async || holds(tries() >= 4)).await;
        assert!(serve.connections_to(broker_port()) <= 2, "a failed try leaves no connection behind");
        // HTTP does not need the broker.
        api.accept(&json!({ "id": "h1", "provider": world.provider, "request": { "path": "/ok" } })).await;
        api.job_in("h1", &["succeeded"]).await;
        broker.delete(&queue).await;
        api.green(SOON).await;
        broker.publish(&world.provider, Some("a1"), &job(1)).await;
        api.job_in("a1", &["succeeded"]).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_come_by_routing_key_and_are_who_they_say() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "lanes = { high = 8, low = 1 }").await;
        let serve = world.serving().await;
        let (api, broker) = (world.api(), Broker::connect().await);
        let p = &world.provider;
        let body = |id: Option<&str>| {
            let mut job = json!({ "provider": p, "request": { "path": "/ok" } });
            if let Some(id) = id {
                job["id"] = id.into();
            }
            job.to_string().into_bytes()
        };
        broker.publish(p, Some("by-property"), &body(None)).await;
        broker.publish(&format!("{p}.high"), None, &body(Some("by-body"))).await;
        broker.publish(&format!("{p}.low"), Some("by-both"), &body(Some("by-both"))).await;
        broker.publish(p, Some("said-one-thing"), &body(Some("and-another"))).await;
        // The provider's bare name says nothing of a lane, so the envelope may; `<p>.default` says one.
        let lane = br#"{"lane":"high","request":{"path":"/ok"}}"#;
        broker.publish(p, Some("by-envelope"), lane).await;
        broker.publish(&format!("{p}.default"), Some("two-lanes"), lane).await;
        for (id, lane) in [("by-property", "default"), ("by-body", "high"), ("by-both", "low"), ("by-envelope", "high")]
        {
            let job = api.job_in(id, &["succeeded"]).await;
            assert_eq!(job["lane"], lane);
            assert_eq!(job["attempts"].as_array().map(Vec::len), Some(1));
        }
        let letters = api.dead_letters("malformed", 2).await;
        for (said, field, by) in [("said-one-thing", "$.id", "message_id"), ("two-lanes", "$.lane", "routing key")] {
            let letter = letters.iter().find(|l| l["headers"]["message_id"] == said).expect(said);
            let error = letter["error"].as_str().expect("an error");
            assert!(error.starts_with(field) && error.contains(by), "{error}");
        }
        for id in ["said-one-thing", "and-another", "two-lanes"] {
            assert_eq!(api.get(&format!("/v1/jobs/{id}")).await.0, 404);
        }
        // Without any id it is a job all the same, and counted.
        broker.publish(p, None, &body(None)).await;
        until("five calls", SOON, async || holds(sim.stats().executed == 5)).await;
        let metrics = api.text("/metrics").await;
        let counted = metrics.lines().find(|line| line.contains("without_id") && !line.starts_with('#'));
        assert!(counted.is_some_and(|line| line.ends_with(" 1")), "{counted:?}");
        world.all_done(5, SOON).await;
        world.at_rest(5).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_no_job_is_kept_whole_and_says_what_is_wrong() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "lanes = { high = 8 }\nauth = { query = \"api_key\" }").await;
        let serve = world.serving().await;
        let (api, broker) = (world.api(), Broker::connect().await);
        let p = world.provider.as_str();
        let with = |request: Value| json!({ "request": request }).to_string().into_bytes();
        let deep =
            format!("{{\"request\":{{\"path\":\"/\",\"body\":{}{}}}}}", "[".repeat(200_000), "]".repeat(200_000));
        let cases: Vec<(&str, Vec<u8>, &str)> = vec![
            ("not JSON", b"hello".to_vec(), "$"),
            ("empty", Vec::new(), "$"),
            ("invalid UTF-8", b"{\"request\":{\"path\":\"/\xff\xfe\"}}".to_vec(), "$"),
            ("a list", b"[{\"request\":{\"path\":\"/\"}}]".to_vec(), "$"),
            ("more after it", b"{\"request\":{\"path\":\"/\"}} x".to_vec(), "$"),
            ("ten mebibytes", vec![b' '; 10 << 20], "$"),
            ("deep", deep.into_bytes(), "$.request.body"),
            ("unknown field", br#"{"requst":{},"request":{"path":"/"}}"#.to_vec(), "$.requst"),
            ("unknown field with a NUL", b"{\"a\\u0000b\":1,\"request\":{\"path\":\"/\"}}".to_vec(), "$"),
            ("no request", b"{}".to_vec(), "$"),
            ("another provider", br#"{"provider":"nobody","request":{"path":"/"}}"#.to_vec(), "$.provider"),
            ("unknown lane", br#"{"lane":"low","request":{"path":"/"}}"#.to_vec(), "$.lane"),
            ("reserved lane", br#"{"lane":"replay","request":{"path":"/"}}"#.to_vec(), "$.lane"),
            ("path to another host", with(json!({ "path": "//evil.example" })), "$.request.path"),
            ("path without slash", with(json!({ "path": "@evil.example" })), "$.request.path"),
            ("path that climbs", with(json!({ "path": "/a/%2e%2e/b" })), "$.request.path"),
            ("path with query", with(json!({ "path": "/a?b=c" })), "$.request.path"),
            (
                "header value with a line break",
                with(json!({ "path": "/", "headers": { "x-a": "b\r\nx-c: d" } })),
                "$.request.headers.x-a",
            ),
            (
                "header name with a line break",
                with(json!({ "path": "/", "headers": { "x\r\na": "b" } })),
                "$.request.headers",
            ),
            (
                "credential in a header",
                with(json!({ "path": "/", "headers": { "Authorization": "Bearer x" } })),
                "$.request.headers.Authorization",
            ),
            (
                "credential in the query",
                with(json!({ "path": "/", "query": { "api_key": "x" } })),
                "$.request.query.api_key",
            ),
            ("two bodies", with(json!({ "path": "/", "text": "a", "base64": "YQ==" })), "$.request"),
            ("method in small letters", with(json!({ "path": "/", "method": "post" })), "$.request.method"),
            ("cost of nothing", br#"{"cost":0,"request":{"path":"/"}}"#.to_vec(), "$.cost"),
            ("a time that is none", br#"{"deadline":"tomorrow","request":{"path":"/"}}"#.to_vec(), "$.deadline"),
            ("an id that is none", br#"{"id":"a b","request":{"path":"/"}}"#.to_vec(), "$.id"),
        ];
        for (name, body, _) in &cases {
            let mut headers = FieldTable::default();
            headers.insert("x-case".into(), text(name));
            headers.insert("x-nul".into(), text("a\0b"));
            broker.publish_as(p, properties(None).with_headers(headers), body).await;
        }
        broker.publish(p, Some("after-all-of-them"), &job(1)).await;
        api.job_in("after-all-of-them", &["succeeded"]).await;
        let letters = api.dead_letters("malformed", cases.len()).await;
        for (name, body, field) in &cases {
            let letter = letters.iter().find(|l| l["headers"]["headers"]["x-case"] == *name).expect(name);
            let raw = STANDARD.decode(letter["raw"].as_str().expect(name)).expect(name);
            assert!(raw == *body, "{name}: the raw body is kept");
            let error = letter["error"].as_str().expect(name);
            assert!(error.starts_with(field), "{name}: {error}");
            let rest = &error[field.len()..];
            assert!(rest.starts_with(':') || rest.starts_with('.') || rest.starts_with('['), "{name}: {error}");
            assert_eq!(letter["provider"], p);
            assert_eq!(letter["headers"]["routing_key"], p);
            assert_eq!(letter["headers"]["headers"]["x-nul"].as_str().map(|t| t.starts_with('a')), Some(true));
            assert_eq!(letter["replayed_at"], Value::Null);
        }
        assert_eq!(sim.stats().arrivals, 1, "none of them was called");
        let (status, problem) = api
            .post(&format!("/v1/dead-letters/{}/replay", letters[0]["id"].as_str().expect("an id")), &json!({}))
            .await;
        assert_eq!(
            (status, &problem["status"]),
            (409, &json!(409)),
            "what never was a job cannot be run again: {problem}"
        );
        world.at_rest(1).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_properties_spoil_no_job() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "").await;
        let serve = world.serving().await;
        let (api, broker) = (world.api(), Broker::connect().await);
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
        let odd = [
            properties(Some("nul")).with_correlation_id("a\0b".into()).with_reply_to("c\0d".into()),
            properties(Some("long")).with_correlation_id("x".repeat(255).into()),
            properties(Some("traced")).with_headers(headers).with_content_type("text/plain".into()),
            properties(Some("with-nul-inside")),
        ];
        for properties in odd {
            broker.publish_as(&world.provider, properties, &job(1)).await;
        }
        let body = br#"{"id":"nul-body","metadata":{"m":"\u0000"},"request":{"method":"POST","path":"/echo","query":{"q":"a\u0000"},"text":"\u0000","headers":{}}}"#;
        broker.publish(&world.provider, None, body).await;
        for id in ["nul", "long", "traced", "nul-body"] {
            api.job_in(id, &["succeeded"]).await;
        }
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_queue_matches_and_what_the_broker_gives_up_become_dead_letters() {
    let _alone = SHARED_QUEUES.write().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "").await;
        assert!(world.run(&["topology", "apply"]).await.status.success());
        let broker = Broker::connect().await;
        for queue in ["paceline.unroutable", "paceline.rejected"] {
            broker.purge(queue).await;
        }
        // Somebody else's consumer that always fails: over the limit of deliveries the broker gives up.
        broker.publish(&world.provider, Some("unlucky"), &job(1)).await;
        let channel = broker.channel().await;
        until("the broker rejects it", SOON, async || {
            let options = lapin::options::BasicGetOptions { no_ack: false };
            match channel.basic_get(world.queue("default").into(), options).await.expect("a queue") {
                Some(got) => {
                    let again = lapin::options::BasicNackOptions { requeue: true, multiple: false };
                    got.acker.nack(again).await.expect("returned");
                    None
                }
                None => holds(broker.queue("paceline.rejected").await?.0 == 1),
            }
        })
        .await;
        let serve = world.serving().await;
        let api = world.api();
        let mut headers = FieldTable::default();
        headers.insert("x-from".into(), text("a test"));
        let nowhere = properties(Some("lost")).with_headers(headers);
        broker.publish_as("nobody.default", nowhere, br#"{"request":{"path":"/ok"}}"#).await;
        broker.publish(&format!("{}.nolane", world.provider), None, b"\xff").await;
        broker.publish("", None, b"no key").await;
        let letters = api.dead_letters("unroutable", 3).await;
        let of = |key: &str| letters.iter().find(|l| l["headers"]["routing_key"] == key).expect("kept").clone();
        let lost = of("nobody.default");
        assert_eq!(
            STANDARD.decode(lost["raw"].as_str().expect("raw")).expect("base64"),
            br#"{"request":{"path":"/ok"}}"#
        );
        assert_eq!(lost["headers"]["headers"]["x-from"], "a test");
        assert_eq!(lost["headers"]["message_id"], "lost");
        assert!(lost["error"].as_str().is_some_and(|e| e.contains("nobody.default")), "{lost}");
        assert_eq!(of(&format!("{}.nolane", world.provider))["raw"], STANDARD.encode(b"\xff"));
        let rejected = api.dead_letters("rejected", 1).await;
        assert_eq!(rejected[0]["raw"], STANDARD.encode(job(1)));
        assert_eq!(rejected[0]["headers"]["message_id"], "unlucky");
        assert_eq!(sim.stats().arrivals, 0);
        for queue in ["paceline.unroutable", "paceline.rejected"] {
            until("it is drained", SOON, async || holds(broker.queue(queue).await?.0 == 0)).await;
        }
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_id_is_the_same_job_and_another_body_under_it_a_conflict() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "").await;
        let serve = world.serving().await;
        let (api, broker) = (world.api(), Broker::connect().await);
        let p = world.provider.as_str();
        // At once over both ways in, as fast as it goes.
        let over_http = json!({ "id": "twice", "provider": p, "request": { "method": "POST", "path": "/v1/echo", "body": { "n": 1 } } });
        let publish = broker.publish_all(p, (0..20).map(|_| ("twice".to_owned(), job(1))));
        let (_, first, second) = tokio::join!(publish, api.post("/v1/jobs", &over_http), api.post("/v1/jobs", &over_http));
        for (status, answer) in [&first, &second] {
            assert!([200, 202].contains(status), "{answer}");
        }
        api.job_in("twice", &["succeeded"]).await;
        let (status, again) = api.post("/v1/jobs", &over_http).await;
        assert_eq!((status, &again["created"], &again["state"]), (200, &json!(false), &json!("succeeded")));
        // Written another way, and yet the same.
        let same = br#"{ "request" : {"body":{"n":1}, "path":"/v1/echo","method":"POST"}, "lane":"default" }"#;
        broker.publish(p, Some("twice"), same).await;
        broker.publish(p, Some("twice"), &job(2)).await;
        broker.publish(p, Some("twice"), &job(3)).await;
        let (status, _) = api.post("/v1/jobs", &json!({ "id": "twice", "provider": p, "request": { "path": "/other" } })).await;
        assert_eq!(status, 409);
        let letters = api.dead_letters("conflict", 2).await;
        let mut raw: Vec<Value> = letters.iter().map(|l| l["raw"].clone()).collect();
        raw.sort_by_key(Value::to_string);
        let mut expected = vec![json!(STANDARD.encode(job(2))), json!(STANDARD.encode(job(3)))];
        expected.sort_by_key(Value::to_string);
        assert_eq!(raw, expected);
        assert!(letters.iter().all(|l| l["id"] != "twice" && l["headers"]["message_id"] == "twice"));
        assert_eq!(sim.stats().executed, 1, "one job, one call");
        world.at_rest(1).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backlog_stays_in_the_broker_while_the_budget_is_slow() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let more = "key_limits = [ { requests = 10, per = \"1s\", algorithm = \"sliding_window\" } ]\ntimeout = \"2s\"";
        let sim = provider(world, &["key requests 10/1s sliding_log"], more).await;
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        let jobs = 600;
        broker.publish_all(&world.provider, (0..jobs).map(|n| (format!("b{n}"), job(n)))).await;
        for calls in [5, 20, 40] {
            sim.wait_accepted(calls, SOON).await.expect("calls go out");
            let stored = world.number("SELECT COUNT(*) FROM jobs").await;
            let ready = i64::from(broker.queue(&world.queue("default")).await.expect("a queue").0);
            let called = i64::try_from(sim.stats().accepted).expect("few");
            let unacknowledged = jobs as i64 - stored - ready;
            // Two seconds of work are 20 jobs: in line, and once more on the way to it.
            assert!(stored <= called + 45, "{stored} are in the store after {called} calls");
            assert!(unacknowledged <= 45, "{unacknowledged} are unacknowledged");
            assert!(ready >= jobs as i64 - called - 90, "only {ready} wait in the broker after {called} calls");
        }
        assert_eq!(sim.stats().rejected, 0, "no 429");
        serve.stop().await;
        // What was not let in is there for the next one.
        let left = i64::from(broker.queue(&world.queue("default")).await.expect("a queue").0);
        let stored = world.number("SELECT COUNT(*) FROM jobs").await;
        assert_eq!(left + stored, jobs as i64, "nothing is lost and nothing doubled");
        broker.close().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_for_long_the_consumer_goes_and_comes_back() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let more = "key_limits = [ { requests = 3, per = \"9s\", algorithm = \"sliding_window\" } ]\ntimeout = \"2s\"";
        let sim = provider(world, &["key requests 3/9s sliding_log"], more).await;
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        let queue = world.queue("default");
        broker.publish_all(&world.provider, (0..40).map(|n| (format!("s{n}"), job(n)))).await;
        sim.wait_accepted(3, SOON).await.expect("the first window");
        until("the consumer is cancelled", SOON, async || holds(broker.queue(&queue).await?.1 == 0)).await;
        let ready = broker.queue(&queue).await.expect("a queue").0;
        let stored = world.number("SELECT COUNT(*) FROM jobs").await;
        assert_eq!(i64::from(ready) + stored, 40, "all that had been delivered is in the store");
        assert!(ready >= 25, "{ready} are left in the broker");
        sim.wait_accepted(6, Duration::from_secs(30)).await.expect("the second window");
        until("it consumes again", Duration::from_secs(30), async || holds(broker.queue(&queue).await?.0 < ready))
            .await;
        assert_eq!(sim.stats().rejected, 0);
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_is_deleted_comes_back_with_its_consumer() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "lanes = { high = 8 }").await;
        let serve = world.serving().await;
        let (api, broker) = (world.api(), Broker::connect().await);
        for (round, lane) in ["default", "high"].into_iter().enumerate() {
            broker.delete(&world.queue(lane)).await;
            until("it is there again and consumed", SOON, async || {
                holds(broker.queue(&world.queue(lane)).await?.1 == 1)
            })
            .await;
            for other in ["default", "high"] {
                let id = format!("d{round}-{other}");
                broker.publish(&format!("{}.{other}", world.provider), Some(&id), &job(round)).await;
                api.job_in(&id, &["succeeded"]).await;
            }
        }
        api.green(SOON).await;
        assert!(serve.log().contains("ended the consumer"), "{}", serve.log());
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// A database that does not answer: every table is locked by somebody else.
async fn silence(url: &str) -> PgConnection {
    let mut connection = PgConnection::connect(url).await.expect("the database");
    sqlx::raw_sql("BEGIN; LOCK TABLE jobs, dead_letters IN ACCESS EXCLUSIVE MODE")
        .execute(&mut connection)
        .await
        .expect("locked");
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_is_acknowledged_only_after_its_commit() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "").await;
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        let queue = world.queue("default");
        let lock = silence(world.database()).await;
        let jobs = (0..30).map(|n| (format!("c{n}"), job(n)));
        let conflicting = (0..3).map(|n| (format!("c{n}"), job(100 + n)));
        broker.publish_all(&world.provider, jobs.chain(conflicting)).await;
        broker.publish(&world.provider, None, b"no job").await;
        until("all of it is delivered", SOON, async || holds(broker.queue(&queue).await?.0 == 0)).await;
        // Nothing of it is acknowledged: with the process gone, the broker has all of it again.
        serve.kill().await;
        until("all of it is back", SOON, async || holds(broker.queue(&queue).await?.0 == 34)).await;
        let serve = world.serve();
        until("all of it is delivered again", SOON, async || holds(broker.queue(&queue).await? == (0, 1))).await;
        assert_eq!(sim.stats().arrivals, 0, "no call without its claim");
        lock.close().await.expect("unlocked");
        world.all_done(30, SOON).await;
        let api = world.api();
        api.dead_letters("conflict", 3).await;
        api.dead_letters("malformed", 1).await;
        assert_eq!(sim.stats().executed, 30);
        assert_eq!(sim.executions(2), []);
        world.at_rest(30).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

/// The database hears of the jobs, and the broker hears of nothing: the connection breaks in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redelivery_after_the_commit_is_the_same_job() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "").await;
        let broker = Broker::connect().await;
        let serve = world.serving().await;
        let queue = world.queue("default");
        let consumed =
            async |what: &str| until(what, SOON, async || holds(broker.queue(&queue).await? == (0, 1))).await;
        for round in 0..3 {
            let jobs = (0..40).map(|n| (format!("r{n}"), job(n)));
            broker.publish_all(&world.provider, jobs).await;
            match round {
                // What the queue holds when it is deleted is gone: the first round has to be let in by then.
                0 => world.all_done(40, SOON).await,
                1 => {
                    broker.delete(&queue).await;
                    consumed("the queue is back").await;
                }
                _ => consumed("all are consumed").await,
            }
        }
        world.all_done(40, SOON).await;
        assert_eq!(sim.stats().executed, 40);
        assert_eq!(sim.executions(2), []);
        broker.close().await;
        serve.stop().await;
        world.at_rest(40).await;
    })
    .await;
}

/// What the broker delivers again, since nobody acknowledged it, is the same letter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_job_and_is_delivered_again_is_one_dead_letter() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "").await;
        world.prepare().await;
        let broker = Broker::connect().await;
        broker.publish(&world.provider, None, b"once").await;
        broker.publish(&world.provider, Some("named"), b"named").await;
        broker.publish(&world.provider, Some("named"), b"named").await;
        // Killed between the commits and the acknowledgement.
        world.set("PACELINE_KILL_POINT", "after_ack");
        let mut killed = world.serve();
        killed.ended(SOON).await;
        world.set("PACELINE_KILL_POINT", "");
        let serve = world.serving().await;
        // Two of one content, neither of which was delivered before.
        for _ in 0..2 {
            broker.publish(&world.provider, None, b"alike").await;
        }
        let letters = world.api().dead_letters("malformed", 4).await;
        let raw = |letter: &Value| STANDARD.decode(letter["raw"].as_str().expect("raw")).expect("base64");
        let mut bodies: Vec<Vec<u8>> = letters.iter().map(raw).collect();
        bodies.sort();
        assert_eq!(bodies, [&b"alike"[..], b"alike", b"named", b"once"]);
        until("all is acknowledged", SOON, async || holds(broker.queue(&world.queue("default")).await?.0 == 0)).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_the_database_refuses_is_a_dead_letter_and_hinders_nobody() {
    let _shared = SHARED_QUEUES.read().await;
    in_world(Mode::Scaled, async |world| {
        let sim = provider(world, &[], "").await;
        world.prepare().await;
        world.execute("ALTER TABLE jobs ADD CONSTRAINT of_this_test CHECK (id <> 'poison')").await;
        let broker = Broker::connect().await;
        for n in 0..20 {
            let id = if n == 7 { "poison".to_owned() } else { format!("good{n}") };
            broker.publish(&world.provider, Some(&id), &job(n)).await;
        }
        let serve = world.serving().await;
        world.all_done(19, SOON).await;
        let letters = world.api().dead_letters("rejected", 1).await;
        assert!(letters[0]["error"].as_str().is_some_and(|error| error.contains("of_this_test")), "{}", letters[0]);
        assert_eq!(STANDARD.decode(letters[0]["raw"].as_str().expect("raw")).expect("base64"), job(7));
        assert_eq!((sim.stats().executed, sim.executions(2)), (19, Vec::new()));
        assert!(!serve.log().contains("RabbitMQ cannot be used now"), "{}", serve.log());
        until("all is acknowledged", SOON, async || holds(broker.queue(&world.queue("default")).await?.0 == 0)).await;
        broker.close().await;
        serve.stop().await;
    })
    .await;
}

fn shown(output: &std::process::Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// A provider that was taken out of the configuration leaves its queue behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_of_providers_that_are_gone_are_reported_and_pruned_into_dead_letters() {
    let _shared = SHARED_QUEUES.write().await;
    in_world(Mode::Scaled, async |world| {
        let _sim = provider(world, &[], "lanes = { high = 8 }").await;
        world.prepare().await;
        let broker = Broker::connect().await;
        for n in 0..150 {
            broker.publish(&world.provider, Some(&format!("m{n}")), &job(n)).await;
        }
        broker.publish(&format!("{}.high", world.provider), None, b"no job at all").await;
        let (default, high) = (world.queue("default"), world.queue("high"));
        // Nothing is to be pruned while it is configured.
        let nothing = shown(&world.run(&["topology", "prune", "--json"]).await);
        assert_eq!(nothing["queues"], json!([]));
        let refused = world.run(&["topology", "prune", "--queue", &default]).await;
        assert!(!refused.status.success(), "it belongs to somebody");

        world.configure_all(&format!("[api]\nlisten = \"127.0.0.1:{}\"\n", world.port));
        let serve = world.serving().await;
        until("it is reported", SOON, async || {
            holds([&default, &high].iter().all(|queue| serve.log().contains(queue.as_str())))
        })
        .await;
        let dry = shown(&world.run(&["topology", "prune", "--dry-run", "--json"]).await);
        assert_eq!(dry["queues"][0]["queue"], json!(default));
        assert_eq!((&dry["queues"][0]["messages"], &dry["queues"][0]["deleted"]), (&json!(150), &json!(false)));
        assert_eq!(broker.queue(&default).await, Some((150, 0)), "nothing was changed");

        let pruned = world.run(&["topology", "prune", "--json"]).await;
        assert!(pruned.status.success(), "{}", String::from_utf8_lossy(&pruned.stderr));
        let pruned = shown(&pruned);
        assert_eq!((&pruned["queues"][0]["buried"], &pruned["queues"][1]["buried"]), (&json!(150), &json!(1)));
        assert_eq!((broker.queue(&default).await, broker.queue(&high).await), (None, None));
        let (_, acts) = world.api().get("/v1/audit").await;
        let acts = acts["items"].as_array().expect("items").iter().filter(|act| act["act"] == "queue.prune");
        let pruned: std::collections::BTreeSet<_> = acts.filter_map(|act| act["target"].as_str()).collect();
        assert_eq!(pruned, [default.as_str(), high.as_str()].into(), "written down");
        let letters = world.api().dead_letters("unroutable", 151).await;
        let kept: std::collections::BTreeSet<Vec<u8>> =
            letters.iter().map(|l| STANDARD.decode(l["raw"].as_str().expect("raw")).expect("base64")).collect();
        assert_eq!(kept.len(), 151, "every body as it came");
        assert!(letters.iter().any(|letter| letter["headers"]["message_id"] == "m7"), "and its properties");
        let again = shown(&world.run(&["topology", "prune", "--json"]).await);
        assert_eq!(again["queues"], json!([]), "forgotten");
        broker.close().await;
        serve.stop().await;
    })
    .await;
}
