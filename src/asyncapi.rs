//! The AsyncAPI 3 document: what goes over RabbitMQ, and the webhooks.
//!
//! Names, kinds and arguments come from the topology that is declared; a test holds the rest against
//! what the inlet reads and the notifier sends.

use serde_json::{Value, json};
use standardwebhooks::{HEADER_WEBHOOK_ID, HEADER_WEBHOOK_SIGNATURE, HEADER_WEBHOOK_TIMESTAMP};

use crate::inlet::topology::{EVENTS, JOBS, REJECTED, UNROUTABLE};
use crate::job::{EventKind, envelope_schema};
use crate::webhook::event_schema;

const ABOUT: &str = "\
Jobs come in through the topic exchange `paceline.jobs`, with publisher confirms: a job that was confirmed is not lost. What \
no queue matches, what is not a job, and what the broker rejects becomes a dead letter with its raw body. Completions go \
to endpoints as webhooks (Standard Webhooks), and can be followed as server-sent events at `GET /v1/events`.";

/// The document.
pub fn asyncapi() -> Value {
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Paceline: messages",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "127.0.0.1:5672", "protocol": "amqp", "protocolVersion": "0-9-1",
                "description": "The broker of `queue.url` (or AMQP_URL), 3.10 or newer.",
            },
        },
        "channels": channels(),
        "operations": operations(),
        "components": {
            "messages": { "job": job_message(), "webhook": webhook_message() },
            "schemas": { "job": envelope_schema(), "event": event_schema() },
        },
    })
}

fn channels() -> Value {
    let amqp = json!([{ "$ref": "#/servers/rabbitmq" }]);
    let exchange = |name: &str, kind: &str| {
        let exchange = json!({ "name": name, "type": kind, "durable": true, "autoDelete": false });
        json!({ "amqp": { "is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0" } })
    };
    let queue = |name: &str| {
        let queue = json!({ "name": name, "durable": true, "exclusive": false, "autoDelete": false });
        json!({ "amqp": { "is": "queue", "queue": queue, "bindingVersion": "0.3.0" } })
    };
    let name = json!({ "description": "1 to 64 of a-z 0-9 _ -" });
    let job = json!({ "job": { "$ref": "#/components/messages/job" } });
    let any = json!({ "any": { "title": "Any message", "description": "Whatever was published, unchanged.", "payload": {} } });
    json!({
        "jobs": {
            "address": "{provider}", "title": "Jobs for a provider's default lane", "servers": amqp, "messages": job,
            "parameters": { "provider": name }, "bindings": exchange(JOBS, "topic"),
            "description": format!(
                "The routing key is the provider's name. The exchange is durable; its alternate exchange is {UNROUTABLE}."),
        },
        "jobsOfLane": {
            "address": "{provider}.{lane}", "title": "Jobs for a lane of a provider", "servers": amqp, "messages": job,
            "parameters": { "provider": name, "lane": name }, "bindings": exchange(JOBS, "topic"),
            "description": "The routing key is the provider's name, a dot, and the lane.",
        },
        "jobQueue": {
            "address": format!("{JOBS}.{{provider}}.{{lane}}"), "title": "The queue of a lane", "servers": amqp, "messages": job,
            "parameters": { "provider": name, "lane": name }, "bindings": queue(&format!("{JOBS}.{{provider}}.{{lane}}")),
            "description": format!(
                "A quorum queue whose arguments never change: dead-letter exchange {REJECTED}, strategy at-least-once, overflow \
                 reject-publish, delivery limit {}.", crate::inlet::topology::DELIVERY_LIMIT),
        },
        "unroutable": {
            "address": UNROUTABLE, "title": "What no queue matched", "servers": amqp, "messages": any,
            "bindings": queue(UNROUTABLE),
            "description": "A quorum queue behind a fanout exchange of the same name, drained into the dead letters.",
        },
        "rejected": {
            "address": REJECTED, "title": "What the broker rejected", "servers": amqp, "messages": any,
            "bindings": queue(REJECTED),
            "description": "A quorum queue behind a fanout exchange of the same name, drained into the dead letters.",
        },
        "events": {
            "address": "{provider}.{event}", "title": "Completions", "servers": amqp, "messages": {},
            "parameters": { "provider": name, "event": { "enum": EventKind::ALL.map(EventKind::as_str) } },
            "bindings": exchange(EVENTS, "topic"),
            "description": "The exchange is declared; nothing is published to it yet.",
        },
        "webhook": {
            "address": null, "title": "The endpoint of a callback",
            "messages": { "webhook": { "$ref": "#/components/messages/webhook" } },
            "description": "An HTTPS URL: `callback` of the job. It answers 2xx when it has the event; until then the same \
                event comes again.",
        },
    })
}

fn operations() -> Value {
    let channel = |name: &str| json!({ "$ref": format!("#/channels/{name}") });
    let message = |channel: &str, name: &str| json!([{ "$ref": format!("#/channels/{channel}/messages/{name}") }]);
    json!({
        "takeJob": {
            "action": "receive", "channel": channel("jobs"), "messages": message("jobs", "job"),
            "summary": "Producers publish a job.",
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": false, "ack": true, "bindingVersion": "0.3.0" } },
        },
        "takeJobOfLane": {
            "action": "receive", "channel": channel("jobsOfLane"), "messages": message("jobsOfLane", "job"),
            "summary": "Producers publish a job to a lane.",
            "bindings": { "amqp": { "deliveryMode": 2, "mandatory": false, "ack": true, "bindingVersion": "0.3.0" } },
        },
        "consumeJobs": {
            "action": "receive", "channel": channel("jobQueue"), "messages": message("jobQueue", "job"),
            "summary": "Dispatchers take as many as they can send in the next seconds; acknowledged after the commit.",
        },
        "buryUnroutable": {
            "action": "receive", "channel": channel("unroutable"), "summary": "Becomes dead letters, reason `unroutable`.",
        },
        "buryRejected": {
            "action": "receive", "channel": channel("rejected"), "summary": "Becomes dead letters, reason `rejected`.",
        },
        "sendWebhook": {
            "action": "send", "channel": channel("webhook"), "messages": message("webhook", "webhook"),
            "summary": "A completion is delivered at least once.",
            "bindings": { "http": { "method": "POST", "bindingVersion": "0.3.0" } },
        },
    })
}

fn job_message() -> Value {
    json!({
        "name": "job", "title": "A job", "contentType": "application/json",
        "payload": { "schemaFormat": "application/schema+json;version=draft-2020-12", "schema": envelope_schema() },
        "headers": {
            "type": "object",
            "properties": {
                "traceparent": { "type": "string", "maxLength": 255, "description": "W3C trace context, kept with the job." },
            },
        },
        "description": "Properties: `message_id` serves as the job's id (where both are given they agree); `reply_to` and \
            `correlation_id` are kept with the job. Persistent, with publisher confirms.",
        "examples": [{
            "name": "smallest",
            "payload": { "provider": "geocoder", "request": { "path": "/v1/geocode" } },
        }],
    })
}

fn webhook_message() -> Value {
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "name": "webhook", "title": "A completion", "contentType": "application/json",
        "payload": { "schemaFormat": "application/schema+json;version=draft-2020-12", "schema": event_schema() },
        "headers": {
            "type": "object", "required": [HEADER_WEBHOOK_ID, HEADER_WEBHOOK_TIMESTAMP, HEADER_WEBHOOK_SIGNATURE],
            "properties": {
                HEADER_WEBHOOK_ID: text("The event's id: the same at every attempt."),
                HEADER_WEBHOOK_TIMESTAMP: text("When this attempt was made, in seconds since 1970."),
                HEADER_WEBHOOK_SIGNATURE: text("`v1,` and the HMAC-SHA256 of id, timestamp and body; one a secret, with blanks between."),
            },
        },
    })
}
