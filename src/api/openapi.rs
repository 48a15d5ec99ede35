//! The OpenAPI 3.1 document: what every route says of itself, put together.
//!
//! Bodies and answers are described from the types that are read and written. What holds of every
//! route (who may call, what a wrong parameter or an absent store is answered with) is said here, once.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::error::{Problem, ProblemKind};
use super::params;
use crate::config::Scope;

/// The methods that routes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Post => "post",
            Self::Delete => "delete",
        }
    }
}

/// An operation and where it is.
pub(super) struct Routed {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) described: Operation,
}

/// Who may call.
#[derive(Debug, Clone, Copy)]
enum Access {
    /// Everybody.
    Open,
    /// A token with the scope; one of a tenant for that tenant.
    Scope(Scope),
    /// A token with the scope that is not bound to a tenant.
    AllTenants(Scope),
}

type Described = fn(&mut SchemaGenerator) -> Schema;

/// A body that is taken.
struct Body {
    schema: Described,
    required: bool,
    examples: Vec<(&'static str, &'static str)>,
}

/// An answer that is no problem.
struct Answer {
    status: u16,
    about: &'static str,
    content_type: &'static str,
    schema: Option<Described>,
    headers: &'static [(&'static str, &'static str)],
    example: Option<&'static str>,
}

/// What is said of a route. Examples are JSON texts; a test holds them against their schemas.
pub(super) struct Operation {
    id: &'static str,
    summary: &'static str,
    about: &'static str,
    access: Access,
    query: Vec<&'static str>,
    headers: Vec<&'static str>,
    body: Option<Body>,
    answers: Vec<Answer>,
    problems: Vec<ProblemKind>,
}

impl Operation {
    /// An operation that everybody may call: `id` is unique and becomes the name in generated clients.
    pub(super) fn open(id: &'static str, summary: &'static str) -> Self {
        Self {
            id,
            summary,
            about: "",
            access: Access::Open,
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            answers: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// One for callers with that scope.
    pub(super) fn new(id: &'static str, summary: &'static str, scope: Scope) -> Self {
        Self { access: Access::Scope(scope), ..Self::open(id, summary) }
    }

    /// One for callers with that scope whose token is not bound to a tenant.
    pub(super) fn for_all(id: &'static str, summary: &'static str, scope: Scope) -> Self {
        Self { access: Access::AllTenants(scope), ..Self::open(id, summary) }
    }

    /// More about it, in Markdown.
    pub(super) fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    /// Its query parameters, described in `params`.
    pub(super) fn query(mut self, names: &[&'static str]) -> Self {
        self.query.extend(names);
        self
    }

    /// A header field that it looks at, described in `params`.
    pub(super) fn header(mut self, name: &'static str) -> Self {
        self.headers.push(name);
        self
    }

    /// The JSON body that it needs.
    pub(super) fn body<T: JsonSchema>(self) -> Self {
        let schema: Described = |generator| generator.subschema_for::<T>();
        Self { body: Some(Body { schema, required: true, examples: Vec::new() }), ..self }
    }

    /// The JSON body that it takes.
    pub(super) fn optional_body<T: JsonSchema>(self) -> Self {
        let schema: Described = |generator| generator.subschema_for::<T>();
        Self { body: Some(Body { schema, required: false, examples: Vec::new() }), ..self }
    }

    /// An example of the body.
    pub(super) fn sends(mut self, name: &'static str, example: &'static str) -> Self {
        if let Some(body) = &mut self.body {
            body.examples.push((name, example));
        }
        self
    }

    /// A JSON answer.
    pub(super) fn answer<T: JsonSchema>(mut self, status: u16, about: &'static str) -> Self {
        let schema: Described = |generator| generator.subschema_for::<T>();
        let content_type = "application/json";
        self.answers.push(Answer { status, about, content_type, schema: Some(schema), headers: &[], example: None });
        self
    }

    /// An answer that is not JSON.
    pub(super) fn answer_as(mut self, status: u16, about: &'static str, content_type: &'static str) -> Self {
        self.answers.push(Answer { status, about, content_type, schema: None, headers: &[], example: None });
        self
    }

    /// Header fields that the last answer always has, and what they say.
    pub(super) fn with(mut self, headers: &'static [(&'static str, &'static str)]) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.headers = headers;
        }
        self
    }

    /// An example of the last answer.
    pub(super) fn example(mut self, example: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.example = Some(example);
        }
        self
    }

    /// The problems of its own; those of every route need not be named.
    pub(super) fn problems(mut self, kinds: &[ProblemKind]) -> Self {
        self.problems.extend(kinds);
        self
    }

    /// Its problems and those that follow from who may call and what is sent.
    fn all_problems(&self) -> Vec<ProblemKind> {
        use ProblemKind::{
            BadParameter, Forbidden, Internal, Invalid, NotJson, RequestTimeout, TooLarge, TooManyAttempts,
            Unauthorized, Unavailable, UnsupportedMediaType,
        };
        let mut kinds = self.problems.clone();
        if matches!(self.access, Access::Open) {
            return kinds;
        }
        kinds.extend([
            Unauthorized,
            TooManyAttempts,
            Forbidden,
            BadParameter,
            UnsupportedMediaType,
            Internal,
            Unavailable,
        ]);
        if self.body.is_some() {
            kinds.extend([NotJson, RequestTimeout, TooLarge, Invalid]);
        }
        kinds
    }
}

/// The document's own text about the whole.
const ABOUT: &str = "\
Paceline takes jobs in, makes their calls at exactly the rate the provider allows, and tells what became of them.

* Errors are problem documents (RFC 9457): `type` says which kind, `errors` names fields and parameters.
* Lists are pages, newest first: ask again with `cursor` set to `next_cursor` until that is null.
* `POST /v1/jobs` is idempotent where the job has an `id`: sent again, it is answered with what is there.
* Bodies are `application/json`, plain or with `content-encoding: gzip`; answers are compressed where `accept-encoding` allows it.
* More members may come into answers; none of these goes.";

const ABOUT_TOKENS: &str = "\
A token of the configuration (`api.tokens`). The scope that an operation needs stands beside it; `admin` implies every other. \
A token that is bound to a tenant sees and makes only what is that tenant's; where an operation says `x-all-tenants`, it is \
refused. Without any configured token, requests to localhost need none, and others are refused.";

/// The document of these routes.
pub(super) fn document(operations: &[Routed]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut taken = settings.clone().for_deserialize().into_generator();
    let mut answered = settings.for_serialize().into_generator();
    let problem = answered.subschema_for::<Problem>();
    let mut paths: Map<String, Value> = Map::new();
    for routed in operations {
        let operation = operation(routed, &mut taken, &mut answered, &problem);
        let path = paths.entry(routed.path).or_insert_with(|| json!({}));
        path[routed.method.name()] = operation;
    }
    let mut schemas = taken.take_definitions(true);
    schemas.extend(answered.take_definitions(true));
    let mut tags: Vec<&str> = operations.iter().map(|routed| tag(routed.path)).collect();
    tags.sort_unstable();
    tags.dedup();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Paceline",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": env!("CARGO_PKG_DESCRIPTION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "tags": tags.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer", "description": ABOUT_TOKENS } },
        },
    })
}

/// The resource that a path is about.
fn tag(path: &str) -> &str {
    path.strip_prefix("/v1/").and_then(|rest| rest.split('/').next()).unwrap_or("system")
}

fn operation(routed: &Routed, taken: &mut SchemaGenerator, answered: &mut SchemaGenerator, problem: &Schema) -> Value {
    let Routed { path, described, .. } = routed;
    let mut out = json!({
        "operationId": described.id, "summary": described.summary, "tags": [tag(path)],
        "responses": responses(described, answered, problem),
    });
    if !described.about.is_empty() {
        out["description"] = described.about.into();
    }
    match described.access {
        Access::Open => out["security"] = json!([]),
        Access::Scope(scope) => out["security"] = json!([{ "token": [scope.as_str()] }]),
        Access::AllTenants(scope) => {
            out["security"] = json!([{ "token": [scope.as_str()] }]);
            out["x-all-tenants"] = true.into();
        }
    }
    let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Value> = in_path
        .map(|name| params::describe("path", name))
        .chain(described.query.iter().map(|name| params::describe("query", name)))
        .chain(described.headers.iter().map(|name| params::describe("header", name)))
        .collect();
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    if let Some(body) = &described.body {
        let examples: Map<String, Value> =
            (body.examples.iter()).map(|(name, text)| ((*name).to_owned(), json!({ "value": parsed(text) }))).collect();
        out["requestBody"] = json!({
            "required": body.required,
            "content": { "application/json": { "schema": (body.schema)(taken), "examples": examples } },
        });
    }
    out
}

fn responses(described: &Operation, answered: &mut SchemaGenerator, problem: &Schema) -> Value {
    let mut responses: Map<String, Value> = Map::new();
    for answer in &described.answers {
        let headers: Map<String, Value> = (answer.headers.iter())
            .map(|(name, about)| {
                let header = json!({ "description": about, "required": true, "schema": { "type": "string" } });
                ((*name).to_owned(), header)
            })
            .collect();
        let mut content = json!({});
        if let Some(schema) = answer.schema {
            content["schema"] = schema(answered).to_value();
        }
        if let Some(example) = answer.example {
            content["example"] = parsed(example);
        }
        let mut response = json!({ "description": answer.about, "content": { answer.content_type: content } });
        if !headers.is_empty() {
            response["headers"] = headers.into();
        }
        responses.insert(answer.status.to_string(), response);
    }
    let mut problems: BTreeMap<u16, Vec<ProblemKind>> = BTreeMap::new();
    for kind in described.all_problems() {
        let kinds = problems.entry(kind.status().as_u16()).or_default();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    for (status, kinds) in problems {
        let of_kinds = self::problems(&kinds, problem);
        // A status with an answer of its own (`/readyz`) has that.
        responses.entry(status.to_string()).or_insert(of_kinds);
    }
    responses.into()
}

/// The answer with one of these problems, which have one status.
fn problems(kinds: &[ProblemKind], problem: &Schema) -> Value {
    let types: Vec<String> = kinds.iter().map(|kind| kind.urn()).collect();
    let about: Vec<String> = kinds.iter().map(|kind| format!("`{}`: {}", kind.code(), kind.title())).collect();
    let schema = json!({ "allOf": [problem, { "properties": { "type": { "enum": types } } }] });
    json!({ "description": about.join("; "), "content": { "application/problem+json": { "schema": schema } } })
}

/// An example; one that is no JSON is shown as a text, and a test finds it.
fn parsed(example: &str) -> Value {
    serde_json::from_str(example).unwrap_or_else(|_| example.into())
}
