//! Whatever comes in: no panic, nothing dropped without a word, and the same answer for the same input.
//! Envelopes, configurations, headers about limits, deliveries over AMQP, and the states of a job.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use common::broker::Broker;
use common::world::{Mode, World, checkout, in_world};
use common::{holds, until};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use paceline::config::Config;
use paceline::job::{Catalog, Given, Job, JobEvent, JobState, ProviderRules, transition};
use paceline::pace::Signal;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::{Map, Value, json};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

// ------------------------------------------------------------------------------------------- envelopes

fn catalog() -> Catalog {
    let rules = ProviderRules {
        lanes: ["default", "high", "replay"].map(str::to_owned).into(),
        pins: ["k1"].map(str::to_owned).into(),
        ..ProviderRules::default()
    };
    Catalog {
        providers: BTreeMap::from([("geo".to_owned(), rules)]),
        allow_http: true,
        callbacks: true,
        endpoints: true,
        ..Catalog::default()
    }
}

/// Any JSON, and no deeper than a body would be.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,8}", inner), 0..4).prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// The first of them, which fits; or another, which may not; or any.
fn mostly(known: &'static [&'static str]) -> BoxedStrategy<Value> {
    let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let other = prop::sample::select(known).prop_map(parsed);
    prop_oneof![16 => Just(parsed(known[0])), 3 => other, 1 => any_json()].boxed()
}

/// An envelope in which nothing, or something, is wrong.
fn envelope() -> impl Strategy<Value = Value> {
    let fields: Vec<(&str, &'static [&'static str])> = vec![
        ("id", &["\"a\"", "\"A-1:2_3.4\"", "\"..\"", "\"\"", "null"]),
        ("provider", &["\"geo\"", "\"geo\"", "\"other\""]),
        ("lane", &["\"default\"", "\"high\"", "\"replay\"", "\"none\""]),
        ("tenant", &["\"acme\"", "\"\"", "\"\\u0000\""]),
        ("metadata", &["{}", "{\"a\":[1,2.50,1e400]}", "[]", "\"\\u0000\""]),
        ("cost", &["1", "0", "1000000000000", "18446744073709551616", "1.0"]),
        ("not_before", &["\"2026-11-20T10:00:00Z\"", "\"2026-11-20\"", "\"9999-12-31T23:59:59.999Z\""]),
        ("deadline", &["\"2026-11-20T11:00:00+02:00\"", "\"-009999-01-01T00:00:00Z\""]),
        ("delivery", &["\"at_least_once\"", "\"at_most_once\"", "\"twice\""]),
        ("idempotency_key", &["\"key\"", "\"with space\"", "\"\""]),
        ("key", &["\"k1\"", "\"k9\""]),
        ("retry", &["{}", "{\"max_attempts\":0}", "{\"base\":\"1s\",\"cap\":\"10ms\"}", "{\"jitter\":\"none\"}"]),
        ("callback", &["{\"url\":\"http://example.com/\"}", "{\"url\":\"x\"}", "{\"endpoint\":\"ep_1\"}", "{}"]),
    ];
    let request = (
        mostly(&["\"/\"", "\"/a/b\"", "\"/../x\"", "\"/a?b\"", "\"a\""]),
        mostly(&["\"GET\"", "\"post\"", "\"DELETE\"", "\"G T\""]),
        mostly(&["{}", "{\"a\":\"b\"}", "{\"api_key\":\"x\"}"]),
        mostly(&["{}", "{\"x-a\":\"b\"}", "{\"host\":\"h\"}", "{\"authorization\":\"h\"}", "{\"a\\nb\":\"c\"}"]),
        mostly(&["null", "{\"a\":1}", "\"text\""]),
        0..16_u8,
    );
    let request = request.prop_map(|(path, method, query, headers, body, which)| {
        let mut request = Map::from_iter([("path".to_owned(), path)]);
        let rest = [("method", method), ("query", query), ("headers", headers), ("body", body)];
        let chosen = rest.into_iter().enumerate().filter(|(at, _)| which >> at & 1 == 1);
        request.extend(chosen.map(|(_, (name, value))| (name.to_owned(), value)));
        Value::Object(request)
    });
    let strategies: Vec<BoxedStrategy<Option<(String, Value)>>> = fields
        .into_iter()
        .map(|(name, fitting)| {
            prop::option::of(mostly(fitting).prop_map(move |value| (name.to_owned(), value))).boxed()
        })
        .collect();
    (request, strategies, 0..20_u8).prop_map(|(request, fields, odd)| {
        let mut envelope = Map::from_iter([("request".to_owned(), request)]);
        envelope.extend(fields.into_iter().flatten());
        // Of a name that nobody knows, once in a while.
        if odd == 0 {
            envelope.insert("unknown".to_owned(), 1.into());
        }
        Value::Object(envelope)
    })
}

/// What is true of every envelope, whatever it says.
fn an_envelope_is_a_job_or_says_why_not(bytes: &[u8]) -> Result<bool, TestCaseError> {
    let given = Given { provider: Some("geo"), ..Given::default() };
    let job = match Job::parse(bytes, &given, &catalog()) {
        Ok(job) => job,
        Err(invalid) => {
            prop_assert!(invalid.path.starts_with('$'), "{invalid}");
            prop_assert!(!invalid.message.is_empty());
            return Ok(false);
        }
    };
    // What is stored is the same job, to whoever reads it and to whoever sends it again.
    let stored = serde_json::to_string(&job.to_envelope()).expect("an envelope");
    let again = Job::from_stored(&stored).map_err(|e| TestCaseError::fail(format!("{e}: {stored}")))?;
    prop_assert_eq!(job.hash(), again.hash(), "{}", &stored);
    let sent_again = Job::parse(stored.as_bytes(), &given, &catalog());
    let sent_again = sent_again.map_err(|e| TestCaseError::fail(format!("{e}: {stored}")))?;
    prop_assert_eq!(job.hash(), sent_again.hash(), "{}", &stored);
    prop_assert_eq!(job.id, again.id);
    Ok(true)
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn any_bytes_are_a_job_or_an_error_with_a_place(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        an_envelope_is_a_job_or_says_why_not(&bytes)?;
    }

    #[test]
    fn any_json_is_a_job_or_an_error_with_a_place(value in any_json()) {
        an_envelope_is_a_job_or_says_why_not(value.to_string().as_bytes())?;
    }

    #[test]
    fn an_envelope_is_the_same_job_however_often_it_is_stored_and_sent(value in envelope()) {
        an_envelope_is_a_job_or_says_why_not(value.to_string().as_bytes())?;
    }

    /// A producer that sends half of its message, or a wire that changes a byte.
    #[test]
    fn a_broken_envelope_is_refused_or_a_job(value in envelope(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = value.to_string().into_bytes();
        let at = at.index(bytes.len());
        an_envelope_is_a_job_or_says_why_not(&bytes[..at])?;
        bytes[at] = byte;
        an_envelope_is_a_job_or_says_why_not(&bytes)?;
    }
}

/// The envelopes above are not all refused: else nothing was tested.
#[test]
fn many_of_the_envelopes_are_jobs() {
    let mut runner = proptest::test_runner::TestRunner::new(cases(1));
    let good = (0..500).filter(|_| {
        let value = envelope().new_tree(&mut runner).expect("a value").current();
        an_envelope_is_a_job_or_says_why_not(value.to_string().as_bytes()).expect("it holds")
    });
    let good = good.count();
    assert!((10..490).contains(&good), "{good} of 500");
}

// -------------------------------------------------------------------------------------- configurations

/// Pieces of configurations, right and wrong.
const LINES: [&str; 34] = [
    "[store]",
    "[queue]",
    "[api]",
    "[webhooks]",
    "[[provider]]",
    "[[provider.route]]",
    "[[provider.budget]]",
    "url = \"sqlite://x.db\"",
    "url = \"postgres://u@h/d\"",
    "url = \"\"",
    "url = 1",
    "retention = { succeeded = \"7d\", dead = \"0s\" }",
    "listen = \"127.0.0.1:0\"",
    "listen = \"0.0.0.0:80\"",
    "name = \"geo\"",
    "name = \"G E O\"",
    "base_url = \"https://api.example.com/v1\"",
    "base_url = \"ftp://x\"",
    "timeout = \"30s\"",
    "timeout = \"0ms\"",
    "timeout = \"99999999999999999999d\"",
    "safety = \"strict\"",
    "safety = { headroom = \"101%\" }",
    "key_limits = [ { requests = 1, per = \"1s\" } ]",
    "limits = [ { concurrency = 0 } ]",
    "limits = [ { cost = 1, requests = 1, per = \"1ns\" } ]",
    "keys = [ { label = \"a\", secret = \"env:A\" } ]",
    "keys = [ { label = \"a\", secret = \"inline\" } ]",
    "lanes = { high = 8, low = 0 }",
    "retry = { max_attempts = 0, base = \"1s\", cap = \"1ms\" }",
    "match = \"POST /v1/*\"",
    "match = \"\"",
    "schedule = [\"5s\", \"-1s\"]",
    "unknown_key = true",
];

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn any_lines_are_a_configuration_or_say_what_is_wrong(
        lines in prop::collection::vec(0..LINES.len(), 0..14),
    ) {
        let text: Vec<&str> = lines.iter().map(|line| LINES[*line]).collect();
        a_configuration_or_why_not(&text.join("\n"))?;
    }

    /// The commented example with one stretch replaced by another.
    #[test]
    fn a_configuration_with_a_slip_says_what_is_wrong(
        from in any::<prop::sample::Index>(), length in 0..20_usize, put in ".{0,8}",
    ) {
        let text = std::fs::read_to_string(checkout().join("examples/paceline.toml")).expect("the example");
        let chars: Vec<char> = text.chars().collect();
        let from = from.index(chars.len());
        let to = (from + length).min(chars.len());
        let slipped: String = chars[..from].iter().copied().chain(put.chars()).chain(chars[to..].iter().copied()).collect();
        a_configuration_or_why_not(&slipped)?;
    }

    #[test]
    fn any_override_is_taken_or_named(name in "PACELINE__[A-Z_]{0,24}", value in ".{0,16}") {
        let parsed = Config::parse("", None, &[(name.clone(), value)]);
        if let Err(error) = parsed {
            prop_assert!(error.to_string().contains(&name) || !error.to_string().is_empty());
        }
    }
}

fn a_configuration_or_why_not(text: &str) -> Result<(), TestCaseError> {
    let environment: Vec<(String, String)> =
        ["A", "GEO_A1", "GEO_A2"].map(|name| (name.to_owned(), "chaos-secret-5f3a".to_owned())).into();
    match Config::parse(text, Some("paceline.toml".into()), &environment) {
        // What it means can be asked for without harm.
        Ok(config) => drop(config.catalog()),
        Err(error) => {
            let said = error.to_string();
            prop_assert!(!said.trim().is_empty());
            prop_assert!(!said.contains("chaos-secret-5f3a"), "a secret is shown: {}", said);
        }
    }
    Ok(())
}

// --------------------------------------------------------------------------------- headers about limits

const HEADERS: [&str; 22] = [
    "retry-after",
    "retry-after-ms",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-reset",
    "anthropic-ratelimit-tokens-remaining",
    "x-shopify-shop-api-call-limit",
    "x-hubspot-ratelimit-max",
    "sforce-limit-info",
    "twilio-concurrent-requests",
    "x-amzn-ratelimit-limit",
    "date",
];

fn header_value() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,24}",
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        any::<u32>().prop_map(|n| format!("{n}s")),
        "[0-9]{1,30}",
        "\"[a-z]{1,4}\";[qrtw]=[0-9-]{1,20};[qrtw]=[0-9.]{1,20}",
        "[0-9]{1,20}/[0-9]{1,20}",
        "api-usage=[0-9]{1,20}/[0-9]{1,20}",
        "[0-9]{1,4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
        Just("Fri, 31 Dec 9999 23:59:59 GMT".to_owned()),
        "([0-9]{1,9}[hms]){1,3}",
    ]
}

proptest! {
    #![proptest_config(cases(3_000))]

    #[test]
    fn any_headers_are_read_the_same_way_twice(
        heads in prop::collection::vec((0..HEADERS.len(), header_value()), 0..12),
        status in 100..1_000_u16,
        clock in prop::option::of(any::<u64>().prop_map(Duration::from_millis)),
    ) {
        let heads: Vec<(&str, &str)> = heads.iter().map(|(name, value)| (HEADERS[*name], value.as_str())).collect();
        let signal = Signal::parse(heads.iter().copied(), status, clock);
        prop_assert_eq!(&signal, &Signal::parse(heads.iter().copied(), status, clock));
        // 429 means that there were too many calls, whatever stands beside it.
        prop_assert!(signal.limited || status != 429);
    }
}

// -------------------------------------------------------------------------------------- states of a job

/// A job as its events make it: how often it ended, and how often it was begun again.
fn walk(events: &[JobEvent], seen: &mut BTreeSet<(usize, usize)>) -> Result<(), TestCaseError> {
    let place = |state: JobState| JobState::ALL.iter().position(|known| *known == state).unwrap_or(usize::MAX);
    let (mut state, mut runs, mut ends, mut sends, mut successes) = (JobState::Queued, 1, 0, 0, 0);
    for event in events {
        let Ok(next) = transition(state, *event) else { continue };
        let event_place = JobEvent::ALL.iter().position(|known| known == event).unwrap_or(usize::MAX);
        seen.insert((place(state), event_place));
        runs += usize::from(*event == JobEvent::Replay);
        ends += usize::from(next.is_terminal());
        sends += usize::from(*event == JobEvent::Send);
        successes += usize::from(next == JobState::Succeeded);
        prop_assert!(!state.is_terminal() || *event == JobEvent::Replay, "{} left by {:?}", state, event);
        prop_assert!(next != JobState::Running || state == JobState::Queued, "sent from {}", state);
        state = next;
    }
    // Each run ends at most once, and only what was sent can succeed.
    prop_assert_eq!(ends, runs - usize::from(!state.is_terminal()));
    prop_assert!(successes <= sends && successes <= 1);
    Ok(())
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn whatever_happens_each_run_ends_once(events in prop::collection::vec(prop::sample::select(&JobEvent::ALL[..]), 0..40)) {
        walk(&events, &mut BTreeSet::new())?;
    }
}

#[test]
fn random_walks_go_over_every_transition() {
    let legal: BTreeSet<(usize, usize)> = (0..JobState::ALL.len())
        .flat_map(|state| (0..JobEvent::ALL.len()).map(move |event| (state, event)))
        .filter(|(state, event)| transition(JobState::ALL[*state], JobEvent::ALL[*event]).is_ok())
        .collect();
    let mut seen = BTreeSet::new();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let strategy = prop::collection::vec(prop::sample::select(&JobEvent::ALL[..]), 40);
    for _ in 0..500 {
        let events = strategy.new_tree(&mut runner).expect("events").current();
        walk(&events, &mut seen).expect("it holds");
    }
    assert_eq!(seen, legal);
}

// ------------------------------------------------------------------------------- deliveries over AMQP

/// What a producer may put into a message, from sound to absurd.
fn message() -> impl Strategy<Value = (Vec<u8>, BasicProperties, Option<&'static str>)> {
    let body = prop_oneof![
        4 => envelope().prop_map(|mut value| {
            if let Some(fields) = value.as_object_mut() {
                fields.retain(|name, _| name != "id" && name != "provider" && name != "lane");
            }
            value.to_string().into_bytes()
        }),
        1 => any_json().prop_map(|value| value.to_string().into_bytes()),
        1 => prop::collection::vec(any::<u8>(), 0..300),
        1 => Just(b"{\"a\\u0000b\":1}".to_vec()),
        1 => Just(vec![b'['; 50_000]),
    ];
    let text = prop_oneof![Just(String::new()), Just("\0".to_owned()), "[ -~]{1,40}", "\\PC{1,40}"];
    let header = prop_oneof![
        text.clone().prop_map(|text| AMQPValue::LongString(text.into())),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        any::<f64>().prop_map(AMQPValue::Double),
        any::<bool>().prop_map(AMQPValue::Boolean),
        Just(AMQPValue::Void),
    ];
    let name = prop_oneof![Just("traceparent".to_owned()), Just("x-death".to_owned()), "[a-z]{1,8}"];
    let properties = (
        prop::option::of(text.clone()),
        prop::option::of(text.clone()),
        prop::option::of(text),
        prop::collection::vec((name, header), 0..4),
        any::<u8>(),
    );
    let properties = properties.prop_map(|(id, reply_to, correlation, headers, priority)| {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(name.into(), value);
        }
        let mut properties =
            BasicProperties::default().with_delivery_mode(2).with_headers(table).with_priority(priority);
        if let Some(text) = id {
            properties = properties.with_message_id(text.into());
        }
        if let Some(text) = reply_to {
            properties = properties.with_reply_to(text.into());
        }
        if let Some(text) = correlation {
            properties = properties.with_correlation_id(text.into());
        }
        properties
    });
    (body, properties, prop::sample::select(&[None, None, Some("default"), Some("high")][..]))
}

/// Every message ends as a job or as a dead letter, and the sound one behind them is let in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_producer_publishes_becomes_a_job_or_a_dead_letter() {
    const MESSAGES: usize = 400;
    in_world(Mode::Scaled, async |world: &World| {
        let more = "lanes = { high = 8, default = 4 }\ntimeout = \"1s\"\nretry = { max_attempts = 1 }";
        world.provider("http://127.0.0.1:9/", &[("k1", "fuzz-key-0123456789")], more);
        let serve = world.serving().await;
        let broker = Broker::connect().await;
        let mut runner = proptest::test_runner::TestRunner::deterministic();
        for n in 0..MESSAGES {
            let (body, properties, lane) = message().new_tree(&mut runner).expect("a message").current();
            let key = lane.map_or(world.provider.clone(), |lane| format!("{}.{lane}", world.provider));
            // An id of its own, so that each of them leaves something: what is given twice is one job.
            let properties = match properties.message_id() {
                Some(id) if id.as_str().len() > 1 => properties.with_message_id(format!("m{n}").into()),
                // What cannot be an id is one all the same of a message that is no job.
                Some(id) if !id.as_str().is_empty() => {
                    let id = format!("{}{n}", id.as_str());
                    properties.with_message_id(id.into())
                }
                _ => properties,
            };
            broker.publish_as(&key, properties, &body).await;
        }
        let last = json!({ "id": "last", "request": { "path": "/" } });
        broker.publish(&world.provider, Some("last"), last.to_string().as_bytes()).await;
        world.api().job_in_within("last", &["dead"], Duration::from_secs(60)).await;
        until("every message is a job or a dead letter", Duration::from_secs(60), async || {
            for lane in ["default", "high"] {
                holds(broker.queue(&world.queue(lane)).await?.0 == 0)?;
            }
            let jobs = world.number("SELECT COUNT(*) FROM jobs").await;
            let letters = world.number("SELECT COUNT(*) FROM dead_letters WHERE job_pk IS NULL").await;
            holds(jobs + letters > i64::try_from(MESSAGES).expect("few"))
        })
        .await;
        let jobs = world.number("SELECT COUNT(*) FROM jobs").await;
        let letters = world.number("SELECT COUNT(*) FROM dead_letters WHERE job_pk IS NULL").await;
        assert!(jobs > 20 && letters > 20, "{jobs} jobs, {letters} letters");
        assert!(!serve.log().contains("RabbitMQ cannot be used"), "no message ends the session:\n{}", serve.log());
        broker.close().await;
        serve.stop().await;
    })
    .await;
}
