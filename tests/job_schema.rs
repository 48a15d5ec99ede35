//! The JSON Schema of a job and the reader of jobs take the same envelopes.
//!
//! Where they may differ is listed: what depends on a configuration, and what no schema can say. Nothing that is
//! accepted is refused by the schema, ever.

use std::collections::BTreeMap;

use paceline::job::{Catalog, Given, Invalid, Job, ProviderRules, envelope_schema};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn catalog() -> Catalog {
    let rules = ProviderRules {
        lanes: ["default", "high", "replay"].map(str::to_owned).into(),
        pins: ["k1"].map(str::to_owned).into(),
        ..ProviderRules::default()
    };
    let providers = BTreeMap::from([("geo".to_owned(), rules)]);
    Catalog { providers, allow_http: true, callbacks: true, endpoints: true, ..Catalog::default() }
}

fn read(envelope: &Value) -> Result<Job, Invalid> {
    let given = Given { provider: Some("geo"), ..Given::default() };
    Job::parse(envelope.to_string().as_bytes(), &given, &catalog())
}

fn schema() -> jsonschema::Validator {
    let schema = envelope_schema().to_value();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::meta::validate(&schema).expect("a valid schema");
    jsonschema::validator_for(&schema).expect("a schema")
}

/// What the server refuses and the schema cannot: by the place and what is said there.
const BEYOND: [(&str, &str); 12] = [
    ("$.provider", ""),
    ("$.lane", ""),
    ("$.key", ""),
    ("$.tenant", "at most 255 bytes"),
    ("$.metadata", "at most 4096 bytes"),
    // The 30th of February, the year 10000 in another zone.
    ("$.not_before", "RFC 3339"),
    ("$.deadline", ""),
    // More than ten years, more digits than a number has.
    ("$.retry", "duration"),
    ("$.retry.cap", "at least retry.base"),
    ("$.callback.url", ""),
    ("$.request.path", "at most 8 KiB"),
    // The provider's own names of credentials and of the idempotency key.
    ("$.request.headers", "idempotency_key"),
];

fn is_beyond(invalid: &Invalid) -> bool {
    BEYOND.iter().any(|(place, words)| invalid.path.starts_with(place) && invalid.message.contains(words))
}

fn agree(schema: &jsonschema::Validator, envelope: &Value) -> Result<bool, String> {
    let told: Vec<String> = schema.iter_errors(envelope).map(|e| format!("{}: {e}", e.instance_path())).collect();
    match (read(envelope), told.is_empty()) {
        (Ok(_), true) => Ok(true),
        (Err(_), false) => Ok(false),
        (Ok(_), false) => Err(format!("the schema refuses what is a job: {}\n{envelope}", told.join("; "))),
        (Err(invalid), true) if is_beyond(&invalid) => Ok(false),
        (Err(invalid), true) => Err(format!("the schema accepts what is refused with {invalid}\n{envelope}")),
    }
}

fn with(member: &str, value: Value) -> Value {
    json!({ "request": { "path": "/" }, member: value })
}

fn request(member: &str, value: Value) -> Value {
    let mut request = json!({ "path": "/" });
    request[member] = value;
    json!({ "request": request })
}

fn good() -> Vec<Value> {
    let mut good = vec![
        json!({ "request": { "path": "/" } }),
        json!({ "id": null, "provider": null, "request": { "path": "/", "body": null, "text": null, "base64": null }, "lane": null,
            "tenant": null, "metadata": null, "cost": null, "not_before": null, "deadline": null, "delivery": null,
            "idempotency_key": null, "key": null, "retry": null, "callback": null }),
        json!({ "request": { "path": "/", "body": null, "text": "a" } }),
        with(
            "retry",
            json!({ "max_attempts": 100, "base": "1s", "cap": "1h30m", "jitter": "decorrelated", "max_elapsed": "7d" }),
        ),
        with("retry", json!({ "max_attempts": 3.0, "base": null, "jitter": null })),
        with("callback", json!({ "url": "http://example.com/", "endpoint": null, "events": ["job.dead"] })),
        with("callback", json!({ "endpoint": "ep_1", "events": null })),
        with("metadata", json!({ "a": [1, 2.5, { "b": null }] })),
        request("query", json!({ "a": "b", "c": 1, "d": true, "e": ["x", 2.5, false], "f": [] })),
        request("headers", json!({ "x-a": "b\tc ~ä\u{80}", "Accept": "" })),
    ];
    good.extend(["a", "A-1:2_3.4", "...", "..a"].map(|id| with("id", id.into())));
    good.extend(["default", "high"].map(|lane| with("lane", lane.into())));
    good.extend(["", "acme", "a b", "ä"].map(|tenant| with("tenant", tenant.into())));
    good.extend([json!(1), json!(2.0), json!(1e12), json!(1_000_000_000_000_u64)].map(|cost| with("cost", cost)));
    good.extend(
        [
            "2026-11-20T10:00:00Z",
            "2026-11-20t10:00:00.123456789z",
            "2024-02-29T23:59:59+23:59",
            "0001-01-01T00:00:00-01:00",
        ]
        .map(|at| with("not_before", at.into())),
    );
    good.extend(
        ["GET", "POST", "PURGE", "M-SEARCH", "X!#$%&'*+.^_`|~9", "TRACED"].map(|m| request("method", m.into())),
    );
    good.extend(
        [
            "/",
            "/v1/geocode",
            "/a//b",
            "/a/..b",
            "/@me",
            "/a:b",
            "/%e4%bd%a0",
            "/ä",
            "/.../x",
            "/a%2fb",
            "/%20",
            "/%ff",
            "/\u{feff}",
        ]
        .map(|path| request("path", path.into())),
    );
    good.extend(["", "AA==", "AAA=", "AAAA", "/+8="].map(|text| request("base64", text.into())));
    good
}

fn bad() -> Vec<Value> {
    let mut bad = vec![
        json!({}),
        json!([]),
        json!(null),
        json!("x"),
        json!([["/"]]),
        json!({ "request": null }),
        json!({ "request": ["GET", "/"] }),
        json!({ "request": {} }),
        json!({ "request": { "path": "/", "colour": 1 } }),
        json!({ "request": { "path": "/" }, "colour": "red" }),
        json!({ "request": { "path": "/", "body": 1, "text": "a" } }),
        json!({ "request": { "path": "/", "text": "", "base64": "" } }),
        with("retry", json!([3])),
        with("retry", json!({ "tries": 3 })),
        with("retry", json!({ "max_attempts": 0 })),
        with("retry", json!({ "max_attempts": 101 })),
        with("retry", json!({ "base": 5 })),
        with("retry", json!({ "jitter": "some" })),
        with("callback", json!({})),
        with("callback", json!({ "url": null })),
        with("callback", json!({ "url": "http://example.com/", "endpoint": "ep_1" })),
        with("callback", json!({ "endpoint": "1" })),
        with("callback", json!({ "endpoint": "ep_" })),
        with("callback", json!({ "endpoint": "ep_a/b" })),
        with("callback", json!({ "url": "http://example.com/", "events": ["job.done"] })),
        with("callback", json!(["ep_1"])),
        with("metadata", json!([])),
        with("delivery", json!("twice")),
    ];
    bad.extend(
        [json!(""), json!("."), json!(".."), json!("a b"), json!("a/b"), json!("ä"), json!("x".repeat(129)), json!(7)]
            .map(|id| with("id", id)),
    );
    bad.extend(["GEO", "a.b", ""].map(|lane| with("lane", lane.into())));
    bad.extend(["\u{0}", "a\nb", "\u{7f}", "\u{85}"].map(|tenant| with("tenant", tenant.into())));
    bad.extend(
        [json!(0), json!(-1), json!(1.5), json!(1e300), json!("1"), json!(1_000_000_000_001_u64)]
            .map(|cost| with("cost", cost)),
    );
    bad.extend(
        [
            "",
            "2026-11-20",
            "2026-11-20T10:00:00",
            "2026-11-20 10:00:00Z",
            "2026-13-20T10:00:00Z",
            "2026-11-20T24:00:00Z",
            "2016-12-31T23:59:60Z",
            "2026-11-20T10:00:00+0100",
            "2026-11-20T10:00:00.Z",
            "2026-11-20T10:00:00Z[UTC]",
            "tomorrow",
        ]
        .map(|at| with("not_before", at.into())),
    );
    bad.extend(["1", "s", "1w", "-1s", "1.5s", "1 h", ""].map(|base| with("retry", json!({ "base": base }))));
    bad.extend(["", "a b", "ä", "a\n"].map(|key| with("idempotency_key", key.into())));
    bad.extend(["get", "G T", "", "TRACE", "CONNECT", "GÄT"].map(|m| request("method", m.into())));
    bad.push(request("method", json!(null)));
    bad.extend(
        [
            "",
            "evil",
            "//evil",
            "/..",
            "/a/../b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/.",
            "/a%2f..%2fb",
            "/a\\b",
            "/a%5c..",
            "/a%5Cb",
            "/a?b",
            "/a#b",
            "/a b",
            "/a\u{a0}b",
            "/a\r\nx",
            "/a%0d",
            "/a%",
            "/a%zz",
            "/a%7f",
            "/%00",
            "/a\u{2028}",
        ]
        .map(|path| request("path", path.into())),
    );
    bad.extend(
        [
            json!({ "a": null }),
            json!({ "a": {} }),
            json!({ "a": [null] }),
            json!({ "a": [[1]] }),
            json!([]),
            json!(null),
        ]
        .map(|query| request("query", query)),
    );
    bad.extend(
        ["Host", "transfer-encoding", "AUTHORIZATION", "Cookie", "x-api-key", "", "a b", "a:b", "ä", "a\n"]
            .map(|name| request("headers", json!({ name: "v" }))),
    );
    bad.extend(["a\r\nb", "\u{0}", "\u{7f}"].map(|value| request("headers", json!({ "x-a": value }))));
    bad.extend(
        ["A", "AA", "AAA", "A===", "AB==", "AAB=", "A A=", "____", "AA=="].map(|text| request("base64", text.into())),
    );
    bad.pop();
    bad
}

#[test]
fn they_agree_on_every_form_of_every_member() {
    let schema = schema();
    for envelope in good() {
        assert_eq!(agree(&schema, &envelope), Ok(true), "{envelope}");
    }
    for envelope in bad() {
        assert_eq!(agree(&schema, &envelope), Ok(false), "{envelope}");
        assert!(!schema.is_valid(&envelope), "only the server refuses {envelope}");
    }
}

/// Pieces of which some fit and some do not, put together at random.
fn pieces(fitting: &'static [&'static str]) -> BoxedStrategy<Value> {
    let piece = prop::sample::select(fitting).prop_map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
    let text = "[ -~äöü/%.\\\\?#]{0,12}".prop_map(Value::from);
    prop_oneof![6 => piece, 1 => text, 1 => any::<f64>().prop_map(Value::from), 1 => Just(Value::Null), 1 => Just(json!([]))].boxed()
}

fn envelopes() -> impl Strategy<Value = Value> {
    let members: Vec<(&str, BoxedStrategy<Value>)> = vec![
        ("id", pieces(&["\"a\"", "\"..\"", "\"b:1\""])),
        ("lane", pieces(&["\"default\"", "\"high\""])),
        ("tenant", pieces(&["\"acme\"", "\"\\u0000\""])),
        ("metadata", pieces(&["{}", "{\"a\":1e400}"])),
        ("cost", pieces(&["1", "2", "0", "1.0"])),
        ("not_before", pieces(&["\"2026-11-20T10:00:00Z\"", "\"2026-02-30T10:00:00Z\""])),
        ("deadline", pieces(&["\"2099-11-20T10:00:00+01:00\"", "\"9999-12-31T23:59:59Z\""])),
        ("delivery", pieces(&["\"at_most_once\"", "\"once\""])),
        ("idempotency_key", pieces(&["\"k\"", "\"a b\""])),
        ("key", pieces(&["\"k1\"", "\"k2\""])),
        ("retry", pieces(&["{\"base\":\"5s\",\"cap\":\"1s\"}", "{\"max_attempts\":3}", "{\"base\":\"99999d\"}"])),
        (
            "callback",
            pieces(&["{\"url\":\"http://example.com/\"}", "{\"url\":\"ftp://x\"}", "{\"endpoint\":\"ep_1\"}"]),
        ),
        ("unknown", pieces(&["1"])),
    ];
    let request: Vec<(&str, BoxedStrategy<Value>)> = vec![
        ("method", pieces(&["\"GET\"", "\"post\""])),
        ("query", pieces(&["{\"a\":\"b\"}", "{\"a\":{}}"])),
        ("headers", pieces(&["{\"x-a\":\"b\"}", "{\"host\":\"b\"}", "{\"idempotency-key\":\"b\"}"])),
        ("body", pieces(&["{\"a\":1}", "1"])),
        ("text", pieces(&["\"x\""])),
        ("base64", pieces(&["\"AA==\"", "\"A\""])),
    ];
    let some = |members: Vec<(&'static str, BoxedStrategy<Value>)>| -> BoxedStrategy<Map<String, Value>> {
        let one = |(name, strategy): (&'static str, BoxedStrategy<Value>)| {
            prop_oneof![2 => Just(None), 1 => strategy.prop_map(move |value| Some((name.to_owned(), value)))].boxed()
        };
        let all: Vec<_> = members.into_iter().map(one).collect();
        all.prop_map(|members| members.into_iter().flatten().collect()).boxed()
    };
    (some(members), some(request), pieces(&["\"/\"", "\"/a/b\"", "\"/../x\"", "\"/a%20b\""])).prop_map(
        |(mut members, mut request, path)| {
            request.insert("path".to_owned(), path);
            members.insert("request".to_owned(), request.into());
            Value::Object(members)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn they_agree_on_envelopes_at_random(envelope in envelopes()) {
        static SCHEMA: std::sync::LazyLock<jsonschema::Validator> = std::sync::LazyLock::new(schema);
        if let Err(why) = agree(&SCHEMA, &envelope) {
            prop_assert!(false, "{}", why);
        }
    }
}
