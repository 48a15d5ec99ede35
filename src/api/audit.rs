//! `/v1/audit`: what operators did.

use axum::Json;
use axum::extract::{RawQuery, State};
use schemars::JsonSchema;
use serde::Serialize;

use super::Parts;
use super::auth::Caller;
use super::control::Control;
use super::error::Problem;
use super::openapi::Operation;
use super::params::{self, ListKind};
use super::routes::Routes;
use super::view::PageJson;
use crate::clock::rfc3339;
use crate::config::Scope;
use crate::store::{ActView, Page};

/// An act. Never a secret.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[schemars(rename = "Act")]
pub struct ActJson {
    /// When.
    #[schemars(extend("format" = "date-time"))]
    at: String,
    /// The name of the token; `local` where none is configured, `command line` where the store itself was opened.
    who: String,
    /// Such as `key.rotate`.
    act: String,
    /// Such as `geocoder/a1`.
    target: String,
    /// `done` or `refused`.
    outcome: String,
    /// More of it, for people.
    detail: Option<String>,
}

impl From<ActView> for ActJson {
    fn from(view: ActView) -> Self {
        let ActView { pk: _, at_ms, who, act, target, outcome, detail } = view;
        Self { at: rfc3339(at_ms), who, act, target, outcome, detail }
    }
}

impl Control {
    /// What operators did, newest first; `query` as in the URL.
    ///
    /// # Errors
    /// Unknown and wrong parameters are named.
    pub async fn acts(&self, query: &str) -> Result<PageJson<ActJson>, Problem> {
        let window = params::acts(query)?;
        let Page { items, next } = self.store.acts(window.cursor, window.limit).await?;
        let items = items.into_iter().map(ActJson::from).collect();
        Ok(PageJson { items, next_cursor: next.map(|position| ListKind::Acts.encode(position)) })
    }
}

/// The routes of this resource.
pub(super) fn routes() -> Routes<Parts> {
    let listing = Operation::for_all("listActs", "List what operators did, newest first", Scope::Admin)
        .about("Pauses, keys, the master key, purges, replays, webhook endpoints and deliveries: who, what, to what, when. Kept for 400 days.")
        .query(&params::ACTS)
        .answer::<PageJson<ActJson>>(200, "A page of acts");
    Routes::new().get("/v1/audit", list, listing)
}

/// `GET /v1/audit`
pub(super) async fn list(
    caller: Caller,
    State(control): State<Control>,
    RawQuery(query): RawQuery,
) -> Result<Json<PageJson<ActJson>>, Problem> {
    caller.may_for_all(Scope::Admin)?;
    control.acts(query.as_deref().unwrap_or_default()).await.map(Json)
}
