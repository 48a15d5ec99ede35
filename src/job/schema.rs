//! The JSON Schema (2020-12) of a job: what can be known of an envelope without knowing a configuration.
//!
//! It is derived from the types that are read. The functions here add what those types check when
//! they are read or right after: forms of names, paths, header fields and times. Which providers,
//! lanes and keys there are, the size of `metadata`, and rules between two fields that compare
//! times or durations, only the server knows; a test feeds both the same envelopes.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::request::{CREDENTIALS, HOP_BY_HOP};
use super::{DeadReason, Envelope, ID_BYTES_MAX, Instant, JobState};
use crate::duration::HumanDuration;

/// Names of providers, lanes, budgets and labels.
pub(crate) const NAME: &str = "^[a-z0-9_-]{1,64}$";
/// Text without control characters.
pub(crate) const PLAIN: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// RFC 3339 with an offset.
pub(crate) const INSTANT: &str = r"^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[Tt](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)$";
/// One or more of a number and a unit.
const DURATION: &str = r"^\s*(?:\d+(?:ms|s|m|h|d))+\s*$";
/// A method in capitals.
const METHOD: &str = r"^(?!(?:CONNECT|TRACE)$)[-!#$%&'*+.^_`|~0-9A-Z]+$";
/// No second slash at the beginning, no segment `.` or `..` however it is encoded, no blanks, control characters,
/// backslashes, `?` and `#`, and only whole percent-encodings.
const PATH: &str = r"^(?!//)(?!.*(?:/|%2[fF])(?:\.|%2[eE]){1,2}(?:/|%2[fF]|$))/(?:[^\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000?#%\\]|%(?:[234689a-fA-F][0-9a-fA-F]|5[0-9abd-fABD-F]|7[0-9a-eA-E]))*$";
/// Standard base64 with padding, its last bits zero.
const BASE64: &str = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";

/// The schema of a job as it is written, ready to be published.
pub fn envelope_schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Envelope>();
    schema.insert("$id".to_owned(), json!("urn:paceline:schema:job"));
    schema.insert("title".to_owned(), json!("A job for Paceline"));
    schema
}

fn text(pattern: &str) -> Schema {
    json_schema!({ "type": "string", "pattern": pattern })
}

/// The same, or null, which stands for nothing.
fn or_null(mut schema: Schema) -> Schema {
    if let Some(kind) = schema.get("type").cloned() {
        schema.insert("type".to_owned(), json!([kind, "null"]));
    }
    schema
}

/// An id of a job.
pub(crate) fn id(_: &mut SchemaGenerator) -> Schema {
    text(&format!("^(?!\\.{{1,2}}$)[A-Za-z0-9._:-]{{1,{ID_BYTES_MAX}}}$"))
}

pub(super) fn optional_id(generator: &mut SchemaGenerator) -> Schema {
    or_null(id(generator))
}

/// The name of a provider, a lane, a budget or a key.
pub(crate) fn name(_: &mut SchemaGenerator) -> Schema {
    text(NAME)
}

/// The same, or nothing.
pub(crate) fn optional_name(generator: &mut SchemaGenerator) -> Schema {
    or_null(name(generator))
}

/// The name of a tenant, or nothing.
pub(crate) fn optional_tenant(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": PLAIN, "maxLength": 255 })
}

/// An object of whoever wrote it, or nothing.
pub(crate) fn optional_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["object", "null"] })
}

pub(super) fn optional_cost(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "null"], "minimum": 1, "maximum": super::envelope::COST_MAX })
}

pub(super) fn optional_idempotency_key(_: &mut SchemaGenerator) -> Schema {
    or_null(text("^[!-~]{1,255}$"))
}

pub(super) fn optional_attempts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["integer", "null"], "minimum": 1, "maximum": 100 })
}

pub(super) fn optional_endpoint(_: &mut SchemaGenerator) -> Schema {
    or_null(text("^ep_(?!\\.{1,2}$)[A-Za-z0-9._:-]{1,128}$"))
}

pub(super) fn optional_url(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "format": "uri", "maxLength": 2048 })
}

/// Either `endpoint` or `url`.
pub(super) fn one_target(schema: &mut Schema) {
    let given = |name: &str, other: &str| json!({ "required": [name], "properties": { name: { "type": "string" }, other: { "type": "null" } } });
    schema.insert("oneOf".to_owned(), json!([given("endpoint", "url"), given("url", "endpoint")]));
}

pub(super) fn method(_: &mut SchemaGenerator) -> Schema {
    text(METHOD)
}

pub(super) fn path(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": PATH, "maxLength": 8192 })
}

pub(super) fn query(_: &mut SchemaGenerator) -> Schema {
    let scalar = ["string", "number", "boolean"];
    json_schema!({
        "type": "object",
        "additionalProperties": {
            "anyOf": [{ "type": scalar }, { "type": "array", "items": { "type": scalar } }],
        },
    })
}

pub(super) fn headers(_: &mut SchemaGenerator) -> Schema {
    let refused = HOP_BY_HOP.iter().chain(&CREDENTIALS).map(|name| in_any_case(name)).collect::<Vec<_>>().join("|");
    json_schema!({
        "type": "object",
        "propertyNames": { "pattern": format!("^(?!(?:{refused})$)[-!#$%&'*+.^_`|~0-9A-Za-z]+$") },
        "additionalProperties": { "type": "string", "pattern": r"^[^\u0000-\u0008\u000a-\u001f\u007f]*$" },
    })
}

/// A pattern of that name in capitals and small letters.
fn in_any_case(name: &str) -> String {
    let letter = |c: char| match c {
        'a'..='z' => format!("[{c}{}]", c.to_ascii_uppercase()),
        _ => c.to_string(),
    };
    name.chars().map(letter).collect()
}

pub(super) fn optional_base64(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["string", "null"], "pattern": BASE64, "contentEncoding": "base64" })
}

/// At most one of `body`, `text` and `base64`; null is none.
pub(super) fn one_body(schema: &mut Schema) {
    let given = |a: &str, b: &str| {
        let some = json!({ "not": { "type": "null" } });
        json!({ "required": [a, b], "properties": { a: some, b: some } })
    };
    let pairs = [given("body", "text"), given("body", "base64"), given("text", "base64")];
    schema.insert("not".to_owned(), json!({ "anyOf": pairs }));
}

impl JsonSchema for Instant {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Instant".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time", "pattern": INSTANT })
    }
}

impl JsonSchema for HumanDuration {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": DURATION,
            "description": "A number with ms, s, m, h or d, or several of these; at most ten years.",
        })
    }
}

impl JsonSchema for JobState {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JobState".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<Value> = Self::ALL.iter().map(|state| state.as_str().into()).collect();
        json_schema!({
            "type": "string", "enum": names,
            "description": "Where a job is: `queued` (held only by pacing), `waiting` (not before its next attempt), \
                `running` (being sent); the others are terminal.",
        })
    }
}

impl JsonSchema for DeadReason {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeadReason".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<Value> = Self::ALL.iter().map(|reason| reason.as_str().into()).collect();
        json_schema!({ "type": "string", "enum": names, "description": "Why a job or a message was given up." })
    }
}
