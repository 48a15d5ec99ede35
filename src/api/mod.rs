//! The HTTP API: one file per resource, errors as problem documents, every body and every time
//! bounded.
//!
//! [`router`] builds it from its parts, [`serve`] runs it on a listener until told to stop. What
//! the routes do is in [`Desk`], which the command line uses as well.
//!
//! # To add a route
//!
//! Every file of a resource has a `routes()`, which pairs each path with its handler and with what the OpenAPI document
//! says of it; `described` puts them together. There is no way to serve one without the other:
//!
//! ```text
//! pub(super) fn routes() -> Routes<Parts> {
//!     let showing = Operation::new("getThing", "Look at a thing", Scope::Read)   // or ::for_all: not for tokens of a tenant
//!         .about("More, in Markdown.")
//!         .query(&params::TENANT)                                 // the names that params::… reads; new ones: params::describe
//!         .body::<ThingBody>().sends("smallest", r#"{"a": 1}"#)   // #[derive(Deserialize, JsonSchema)]; or .optional_body
//!         .answer::<ThingJson>(200, "The thing")                  // #[derive(Serialize, JsonSchema)], #[schemars(rename = "Thing")]
//!         .example(r#"{"id": "t"}"#)
//!         .problems(&[ProblemKind::NotFound]);                    // its own: those of every route are added
//!     Routes::new().get("/v1/things/{id}", show, showing)
//! }
//! ```
//!
//! Doc comments of the fields become descriptions. Tests hold the document, its examples and the server's real answers
//! against each other (tests/openapi.rs), and call every route with every kind of wrong input (tests/schemathesis.rs).
//!
//! | call | scope |
//! |---|---|
//! | `POST /v1/jobs`, `DELETE /v1/jobs/{id}` | `enqueue` |
//! | `GET /v1/jobs`, `GET /v1/jobs/{id}`, `GET /v1/jobs/{id}/result` | `read` |
//! | `GET /v1/dead-letters`, `GET /v1/dead-letters/{id}` | `read` |
//! | `POST /v1/dead-letters/{id}/replay`, `DELETE /v1/dead-letters` | `replay` |
//! | `GET /v1/providers`, `GET /v1/providers/{name}` | `read`, of all tenants |
//! | `POST /v1/providers/{name}/pause`, `/resume` | `admin` |
//! | `GET /v1/providers/{name}/keys` | `read`, of all tenants |
//! | `POST /v1/providers/{name}/keys`, `DELETE /v1/providers/{name}/keys/{label}` | `keys`, of all tenants |
//! | `POST /v1/providers/{name}/keys/{label}/rotate`, `/disable`, `/enable` | `keys`, of all tenants |
//! | `POST /v1/providers/{name}/budgets/{budget}/resume` | `keys`, of all tenants |
//! | `POST /v1/vault/rekey`, `GET /v1/audit` | `admin`, of all tenants |
//! | `GET /v1/endpoints`, `GET /v1/endpoints/{id}`, `GET /v1/deliveries`, `GET /v1/deliveries/{id}` | `read` |
//! | `POST /v1/endpoints`, `DELETE /v1/endpoints/{id}`, `POST /v1/endpoints/{id}/disable`, `/enable`, `/rotate`, `/test` | `admin`; bound to a tenant, for that one |
//! | `POST /v1/endpoints/{id}/resend`, `POST /v1/deliveries/{id}/resend` | `replay` |
//! | `GET /metrics` | `read`, of all tenants |
//! | `GET /v1/events` | `read` |
//! | `GET /readyz` | none; its errors are told to `read` |
//! | `GET /`, `/dashboard/{file}` | none: the page asks with the reader's token |
//! | `GET /healthz`, `/openapi.json`, `/asyncapi.json`, `/schemas/job.json`, `/schemas/event.json` | none |

mod audit;
mod auth;
mod body;
mod control;
mod dashboard;
mod dead_letters;
mod deliveries;
mod desk;
mod documents;
mod endpoints;
mod error;
mod events;
mod guard;
mod health;
mod hook_view;
mod hooks;
mod jobs;
mod keys;
mod live;
mod metrics;
mod openapi;
mod params;
mod path;
mod provider_view;
mod providers;
mod replays;
mod routes;
mod serve;
mod throttle;
mod unpack;
mod view;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt;
use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Uri};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};

pub use audit::ActJson;
pub use auth::{Caller, OPERATOR, OpenListen, Tenancy, Tokens, check_listen};
pub use body::MANY_BYTES_MAX;
pub use control::Control;
pub use desk::{Desk, ITEMS_MAX, Submitted};
pub use error::{Problem, ProblemKind};
pub use hook_view::{DeletedJson, DeliveryJson, EndpointJson, RegisterBody, ResendBody, ResendJson, RotateBody};
pub use hooks::{HookRules, Hooks};
pub use keys::{KeyChanged, KeyItem, Rekeyed, learn_keys};
pub use live::Live;
pub use params::LIMIT_MAX;
pub use provider_view::{OrderJson, ProviderJson};
pub use replays::{Begun, ReplayJson};
pub use serve::{ServeLimits, serve};
pub use view::{
    Accepted, AcceptedItem, AcceptedMany, AttemptJson, DeadJson, JobJson, PageJson, Purged, ReplayAccepted, WaitingJson,
};

use crate::clock::Clock;
use crate::job::Catalog;
use crate::readiness::Readiness;
use crate::store::Store;
use crate::vault::MasterKeys;
use routes::Routes;

/// A request that takes longer is answered with 503; what it began may still be done.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Answers below that size are not compressed.
const COMPRESSED_BYTES_MIN: u16 = 1024;

/// What the API is made of.
pub struct ApiParts {
    /// The open store.
    pub store: Store,
    /// What jobs are checked against.
    pub catalog: Arc<Catalog>,
    /// Wall time of new jobs, cancellations and replays.
    pub clock: Arc<dyn Clock>,
    /// What opens stored keys.
    pub masters: Arc<MasterKeys>,
    /// Who may call; without any, only this machine.
    pub tokens: Tokens,
    /// How the parts of the process are.
    pub readiness: Readiness,
    /// What `/metrics` shows; the API adds its own figures.
    pub registry: Registry,
    /// Largest envelope of a job, in bytes.
    pub envelope_bytes_max: usize,
    /// What webhook endpoints are judged by.
    pub hooks: HookRules,
    /// How clients reach the API, put before the path of a `result_url`.
    pub public_url: Option<String>,
}

/// What handlers pick from; none takes all of it.
#[derive(Clone)]
struct Parts {
    desk: Desk,
    control: Control,
    hooks: Hooks,
    store: Store,
    tokens: Tokens,
    readiness: Readiness,
    figures: metrics::Figures,
    reader: body::BodyReader,
    streams: events::Streams,
    documents: documents::Documents,
}

macro_rules! substates {
    ($($field:ident: $kind:ty),*) => {
        $(impl FromRef<Parts> for $kind {
            fn from_ref(parts: &Parts) -> Self {
                parts.$field.clone()
            }
        })*
    };
}

substates!(
    desk: Desk,
    control: Control,
    hooks: Hooks,
    store: Store,
    tokens: Tokens,
    readiness: Readiness,
    figures: metrics::Figures,
    reader: body::BodyReader,
    streams: events::Streams,
    documents: documents::Documents
);

impl From<ApiParts> for Parts {
    fn from(parts: ApiParts) -> Self {
        parts.readiness.declare("store");
        Self {
            control: Control::new(parts.store.clone(), Arc::clone(&parts.catalog), Arc::clone(&parts.clock))
                .with_masters(parts.masters, parts.hooks.keyring.clone()),
            hooks: Hooks::new(parts.store.clone(), Arc::clone(&parts.clock), parts.hooks),
            desk: Desk::new(parts.store.clone(), parts.catalog, parts.clock, parts.envelope_bytes_max),
            streams: events::Streams::new(parts.store.clone(), parts.public_url),
            store: parts.store,
            tokens: parts.tokens,
            readiness: parts.readiness,
            figures: metrics::Figures::new(parts.registry),
            reader: body::BodyReader::new(parts.envelope_bytes_max),
            documents: documents::Documents::default(),
        }
    }
}

/// The routes for known callers, by resource, each with its part of the document.
fn described() -> Routes<Parts> {
    jobs::routes()
        .and(dead_letters::routes())
        .and(replays::routes())
        .and(providers::routes())
        .and(keys::routes())
        .and(audit::routes())
        .and(endpoints::routes())
        .and(deliveries::routes())
        .and(events::routes())
        .and(metrics::routes())
}

/// The routes for everybody.
fn open() -> Routes<Parts> {
    health::routes().and(documents::routes()).and(dashboard::routes())
}

/// The API.
pub fn router(parts: ApiParts) -> Router {
    api_router(parts.into())
}

fn api_router(parts: Parts) -> Router {
    let (routes, mut operations) = described().split();
    let (open, open_operations) = open().split();
    operations.extend(open_operations);
    let parts = Parts { documents: documents::Documents::new(&operations), ..parts };
    guarded(routes, open, parts)
}

/// The OpenAPI document of this version.
pub fn openapi() -> Value {
    let (_, mut operations) = described().split();
    operations.extend(open().split().1);
    openapi::document(&operations)
}

/// What a process without the API answers: its health and its figures.
pub fn figures_router(parts: ApiParts) -> Router {
    metrics_router(parts.into())
}

fn metrics_router(parts: Parts) -> Router {
    guarded(metrics::routes().split().0, health::routes().split().0, parts)
}

/// These routes for known callers, and those for everybody.
fn guarded(routes: Router<Parts>, open: Router<Parts>, parts: Parts) -> Router {
    // Closed by default: every other route, also an unknown one, is for known callers only.
    let closed = routes
        .fallback(unknown_route)
        .layer(from_fn(unpack::unpack))
        .layer(from_fn(guard::json_bodies_only))
        .layer(from_fn_with_state(parts.clone(), auth::authenticate));
    // A stream of events is flushed event by event, which a compressor would hold back.
    let worth_it = SizeAbove::new(COMPRESSED_BYTES_MIN).and(NotForContentType::SSE).and(NotForContentType::IMAGES);
    closed
        .merge(open)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn(finish))
        .layer(CompressionLayer::new().compress_when(worth_it))
        .layer(from_fn_with_state(parts.clone(), metrics::count))
        .with_state(parts)
}

/// What answers while the process starts, which waits for the store: health, the dashboard, which shows it, and 503 to
/// everything else.
pub fn starting_router(readiness: Readiness, tokens: Tokens) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::not_ready))
        .merge(dashboard::routes().split().0)
        .fallback(async || Problem::new(ProblemKind::Unavailable, "starting: the store cannot be reached yet"))
        .layer(from_fn(finish))
        .with_state((readiness, tokens))
}

async fn unknown_route(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    Problem::new(ProblemKind::NotFound, format!("there is no route {path}"))
}

async fn unknown_method() -> Problem {
    Problem::new(ProblemKind::MethodNotAllowed, "the header allow names the methods of this route")
}

/// Ends what takes too long, turns a panic into a problem, and sets the headers of every answer.
async fn finish(request: Request, next: Next) -> Response {
    let answered = tokio::time::timeout(ANSWER_WITHIN, AssertUnwindSafe(next.run(request)).catch_unwind()).await;
    let mut response = match answered {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            Problem::new(ProblemKind::Internal, "this request made a part of the server fail").into_response()
        }
        Err(_) => {
            let detail = "no answer within 30 s; what the request asked for may still happen: look, or ask again with the same id";
            Problem::new(ProblemKind::Unavailable, detail).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
