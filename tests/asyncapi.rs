//! The AsyncAPI document is valid, and says what the topology declares, the inlet reads and the notifier sends.

use std::collections::BTreeSet;

use paceline::asyncapi::asyncapi;
use paceline::config::Config;
use paceline::inlet::topology::{Topology, queue_name};
use serde_json::Value;

/// The specification's own schema: `schemas/3.0.0-without-$id.json` of the npm package @asyncapi/specs 6.11.1 (Apache-2.0),
/// without blanks.
const SPECIFICATION: &str = include_str!("tools/asyncapi-3.0.0.json");

fn topology() -> Topology {
    let text = "[[provider]]\nname = \"geo\"\nbase_url = \"http://x\"\nlanes = { high = 2 }";
    Topology::of(&Config::parse(text, None, &[]).expect("valid"))
}

#[test]
fn the_document_is_valid_asyncapi() {
    let specification: Value = serde_json::from_str(SPECIFICATION).expect("JSON");
    let validator = jsonschema::draft7::new(&specification).expect("a schema");
    let document = asyncapi();
    let errors: Vec<String> = validator.iter_errors(&document).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    // It would notice.
    let mut wrong = document;
    wrong["operations"]["takeJob"]["action"] = "take".into();
    assert!(!validator.is_valid(&wrong));
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk<'a>(value: &'a Value, seen: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                seen.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| walk(value, seen));
            }
            Value::Array(items) => items.iter().for_each(|value| walk(value, seen)),
            _ => {}
        }
    }
    let document = asyncapi();
    let mut seen = Vec::new();
    for part in ["channels", "operations"] {
        walk(&document[part], &mut seen);
    }
    assert!(seen.len() >= 10, "{seen:?}");
    for reference in seen {
        let pointer = reference.strip_prefix('#').expect("inside the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    // Schemas are whole by themselves: their references are relative to them.
    for schema in ["job", "event"] {
        jsonschema::validator_for(&document["components"]["schemas"][schema]).expect("a schema");
    }
}

#[test]
fn exchanges_and_queues_are_those_that_are_declared() {
    let (document, topology) = (asyncapi(), topology());
    let bindings = || document["channels"].as_object().expect("channels").values().map(|c| &c["bindings"]["amqp"]);
    let said: BTreeSet<(&str, &str)> =
        bindings().filter_map(|b| Some((b["exchange"]["name"].as_str()?, b["exchange"]["type"].as_str()?))).collect();
    let topics = topology.exchanges.iter().filter(|e| e.kind == "topic").map(|e| (e.name, e.kind));
    assert_eq!(said, topics.collect());
    let queues: BTreeSet<String> = bindings()
        .filter_map(|b| b["queue"]["name"].as_str())
        .map(|name| name.replace("{provider}", "geo").replace("{lane}", "high"))
        .collect();
    let mut declared: BTreeSet<String> = topology.queues.iter().map(|q| q.name.clone()).collect();
    assert!(declared.remove(&queue_name("geo", "default")));
    assert_eq!(queues, declared);
    for exchange in topology.exchanges.iter().filter(|e| e.kind == "fanout") {
        assert!(document["channels"].as_object().expect("channels").values().any(|c| c["address"] == exchange.name));
    }
    let jobs = topology.exchanges.iter().find(|e| e.name == "paceline.jobs").expect("the exchange");
    let about = document["channels"]["jobs"]["description"].as_str().expect("a text");
    assert!(about.contains(jobs.alternate.expect("an alternate exchange")), "{about}");
}

/// Those of webhooks are the constants that the sender uses.
#[test]
fn header_fields_of_jobs_are_those_that_are_read() {
    let document = asyncapi();
    let read = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/inlet/message.rs")).expect("the code");
    let fields = document["components"]["messages"]["job"]["headers"]["properties"].as_object().expect("fields");
    for name in fields.keys() {
        assert!(read.contains(&format!("\"{name}\"")), "{name} is not read");
    }
}
