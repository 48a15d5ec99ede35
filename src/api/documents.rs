//! What tools read about the API: the OpenAPI and AsyncAPI documents and the JSON Schemas.
//!
//! They are the same on every server of a version and tell nothing of this one, so everybody may
//! read them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use serde_json::Value;

use super::Parts;
use super::openapi::{Operation, Routed, document};
use super::routes::Routes;
use crate::asyncapi::asyncapi;
use crate::job::envelope_schema;
use crate::webhook::event_schema;

const SCHEMA: &str = "application/schema+json";
const ASYNCAPI: &str = "application/vnd.aai.asyncapi+json;version=3.0.0";

/// The documents as they are sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Documents {
    openapi: Bytes,
    asyncapi: Bytes,
    job: Bytes,
    event: Bytes,
}

impl Documents {
    pub(super) fn new(operations: &[Routed]) -> Self {
        let text = |value: &Value| Bytes::from(value.to_string());
        Self {
            openapi: text(&document(operations)),
            asyncapi: text(&asyncapi()),
            job: text(envelope_schema().as_value()),
            event: text(event_schema().as_value()),
        }
    }
}

/// The routes, and what is said of them.
pub(super) fn routes() -> Routes<Parts> {
    let openapi = Operation::open("getOpenApi", "This document")
        .about("The same on every server of this version.")
        .answer::<Anything>(200, "OpenAPI 3.1");
    let asyncapi = Operation::open("getAsyncApi", "Exchanges, queues, messages and webhooks").answer_as(
        200,
        "AsyncAPI 3",
        ASYNCAPI,
    );
    let job = Operation::open("getJobSchema", "The JSON Schema of a job").answer_as(200, "JSON Schema 2020-12", SCHEMA);
    let event = Operation::open("getEventSchema", "The JSON Schema of a completion event").answer_as(
        200,
        "JSON Schema 2020-12",
        SCHEMA,
    );
    let send = |bytes: Bytes, kind: &'static str| -> Response {
        let kept = (CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
        ([(CONTENT_TYPE, HeaderValue::from_static(kind)), kept], bytes).into_response()
    };
    Routes::new()
        .get("/openapi.json", async move |State(d): State<Documents>| send(d.openapi, "application/json"), openapi)
        .get("/asyncapi.json", async move |State(d): State<Documents>| send(d.asyncapi, ASYNCAPI), asyncapi)
        .get("/schemas/job.json", async move |State(d): State<Documents>| send(d.job, SCHEMA), job)
        .get("/schemas/event.json", async move |State(d): State<Documents>| send(d.event, SCHEMA), event)
}

/// An object.
#[derive(schemars::JsonSchema)]
struct Anything {}
