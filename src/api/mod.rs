//! The HTTP API: one file per resource, errors as problem documents, every body and every time
//! bounded.
//!
//! [`router`] builds it from its parts, [`serve`] runs it on a listener until told to stop. What
//! the routes do is in [`Desk`], which the command line uses as well.
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
//! | `GET /metrics` | `read`, of all tenants |
//! | `GET /readyz` | none; its errors are told to `read` |
//! | `GET /healthz` | none |

mod audit;
mod auth;
mod body;
mod control;
mod dead_letters;
mod desk;
mod error;
mod guard;
mod health;
mod jobs;
mod keys;
mod metrics;
mod params;
mod path;
mod provider_view;
mod providers;
mod replays;
mod serve;
mod throttle;
mod view;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRef, Request};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use futures_util::FutureExt;
use http::header::{CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Uri};
use prometheus_client::registry::Registry;

pub use audit::ActJson;
pub use auth::{Caller, OPERATOR, OpenListen, Tenancy, Tokens, check_listen};
pub use body::MANY_BYTES_MAX;
pub use control::Control;
pub use desk::{Desk, ITEMS_MAX, Submitted};
pub use error::{Problem, ProblemKind};
pub use keys::{KeyChanged, KeyItem, Rekeyed, learn_keys};
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

/// A request that takes longer is answered with 503; what it began may still be done.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

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
}

/// What handlers pick from; none takes all of it.
#[derive(Clone)]
struct Parts {
    desk: Desk,
    control: Control,
    store: Store,
    tokens: Tokens,
    readiness: Readiness,
    figures: metrics::Figures,
    reader: body::BodyReader,
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
    store: Store,
    tokens: Tokens,
    readiness: Readiness,
    figures: metrics::Figures,
    reader: body::BodyReader
);

impl From<ApiParts> for Parts {
    fn from(parts: ApiParts) -> Self {
        parts.readiness.declare("store");
        Self {
            control: Control::new(parts.store.clone(), Arc::clone(&parts.catalog), Arc::clone(&parts.clock))
                .with_masters(parts.masters),
            desk: Desk::new(parts.store.clone(), parts.catalog, parts.clock, parts.envelope_bytes_max),
            store: parts.store,
            tokens: parts.tokens,
            readiness: parts.readiness,
            figures: metrics::Figures::new(parts.registry),
            reader: body::BodyReader::new(parts.envelope_bytes_max),
        }
    }
}

/// The API.
pub fn router(parts: ApiParts) -> Router {
    let routes = Router::new()
        .route("/v1/jobs", post(jobs::submit).get(jobs::list))
        .route("/v1/jobs/{id}", get(jobs::show).delete(jobs::cancel))
        .route("/v1/jobs/{id}/result", get(jobs::result))
        .route("/v1/dead-letters", get(dead_letters::list).delete(dead_letters::purge))
        .route("/v1/dead-letters/{id}", get(dead_letters::show))
        .route("/v1/dead-letters/{id}/replay", post(dead_letters::replay))
        .route("/v1/replays", post(replays::begin).get(replays::list))
        .route("/v1/replays/{id}", get(replays::show).delete(replays::stop))
        .route("/v1/providers", get(providers::list))
        .route("/v1/providers/{name}", get(providers::show))
        .route("/v1/providers/{name}/pause", post(providers::pause))
        .route("/v1/providers/{name}/resume", post(providers::resume))
        .route("/v1/providers/{name}/keys", get(keys::list).post(keys::add))
        .route("/v1/providers/{name}/keys/{label}", delete(keys::remove))
        .route("/v1/providers/{name}/keys/{label}/rotate", post(keys::rotate))
        .route("/v1/providers/{name}/keys/{label}/disable", post(providers::disable_key))
        .route("/v1/providers/{name}/keys/{label}/enable", post(providers::enable_key))
        .route("/v1/providers/{name}/budgets/{budget}/resume", post(providers::resume_budget))
        .route("/v1/vault/rekey", post(keys::rekey))
        .route("/v1/audit", get(audit::list))
        .route("/metrics", get(metrics::scrape));
    guarded(routes, parts.into())
}

/// What a process without the API answers: its health and its figures.
pub fn figures_router(parts: ApiParts) -> Router {
    guarded(Router::new().route("/metrics", get(metrics::scrape)), parts.into())
}

/// These routes for known callers, and health for everybody.
fn guarded(routes: Router<Parts>, parts: Parts) -> Router {
    let open = Router::new().route("/healthz", get(health::alive)).route("/readyz", get(health::ready));
    // Closed by default: every other route, also an unknown one, is for known callers only.
    let closed = routes
        .fallback(unknown_route)
        .layer(from_fn(guard::json_bodies_only))
        .layer(from_fn_with_state(parts.clone(), auth::authenticate));
    closed
        .merge(open)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn(finish))
        .layer(from_fn_with_state(parts.clone(), metrics::count))
        .with_state(parts)
}

/// What answers while the store cannot be reached: health, and 503 to everything else.
pub fn starting_router(readiness: Readiness, tokens: Tokens) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::not_ready))
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
