//! The control endpoints of both simulators, for processes that hold no handle.
//!
//! | provider | does |
//! |---|---|
//! | `GET /_sim/stats` | [`super::ProviderStats`] |
//! | `GET /_sim/ledger?from=0&limit=1000` | `{"from","total","dropped","items":[Arrival]}` |
//! | `GET /_sim/executions?least=2` | `[Execution]` executed at least so often |
//! | `POST /_sim/reset` | measurements, counters and ledger start again; limits stay as they are |
//! | `POST /_sim/outage?mode=none\|marked\|all` | declares or ends an outage |
//! | `POST /_sim/revoke?key=a1&on=1` | a key is refused, or accepted again (`on=0`) |
//!
//! | receiver | does |
//! |---|---|
//! | `GET /_sim/stats` | [`super::ReceiverStats`] |
//! | `GET /_sim/events?from=0&limit=1000` | `{"from","total","dropped","items":[EventRecord]}` in order of arrival |
//! | `POST /_sim/reset` | forgets all |

use hyper::{Method, Response, StatusCode, Uri};
use serde::Serialize;

use super::body::SimBody;
use super::judge::Shared;
use super::provider::{Outage, stats_of};
use super::receiver;
use super::reply;

/// Where they live.
pub(crate) const PREFIX: &str = "/_sim/";
/// Most entries of a page.
const PAGE_MAX: usize = 10_000;

#[derive(Serialize)]
struct Page<'a, T> {
    from: usize,
    total: usize,
    dropped: u64,
    items: &'a [T],
}

/// Answers a control request to the provider.
pub(crate) fn provider(shared: &Shared, method: &Method, uri: &Uri) -> Response<SimBody> {
    let name = uri.path().trim_start_matches(PREFIX);
    match (method, name) {
        (&Method::GET, "stats") => reply::json(StatusCode::OK, &stats_of(shared)),
        (&Method::GET, "ledger") => {
            let state = shared.lock();
            page(uri, state.ledger.arrivals(), state.ledger.dropped())
        }
        (&Method::GET, "executions") => {
            let found = shared.lock().ledger.executions(number(uri, "least").unwrap_or(1));
            reply::json(StatusCode::OK, &found)
        }
        (&Method::POST, "reset") => {
            shared.reset_measures();
            reply::empty(StatusCode::NO_CONTENT)
        }
        (&Method::POST, "outage") => {
            let mode = match parameter(uri, "mode").as_deref() {
                Some("none") => Outage::None,
                Some("marked") => Outage::Marked,
                Some("all") => Outage::All,
                _ => return wrong("mode must be none, marked or all"),
            };
            shared.lock().outage = mode;
            reply::empty(StatusCode::NO_CONTENT)
        }
        (&Method::POST, "revoke") => {
            let label = parameter(uri, "key").unwrap_or_default();
            match shared.revoke(&label, parameter(uri, "on").as_deref() != Some("0")) {
                true => reply::empty(StatusCode::NO_CONTENT),
                false => wrong("no key has this label"),
            }
        }
        _ => unknown(),
    }
}

/// Answers a control request to the receiver.
pub(crate) fn receiver(shared: &receiver::Shared, method: &Method, uri: &Uri) -> Response<SimBody> {
    let name = uri.path().trim_start_matches(PREFIX);
    match (method, name) {
        (&Method::GET, "stats") => reply::json(StatusCode::OK, &shared.stats()),
        (&Method::GET, "events") => shared.with_events(|events, dropped| page(uri, events, dropped)),
        (&Method::POST, "reset") => {
            shared.clear();
            reply::empty(StatusCode::NO_CONTENT)
        }
        _ => unknown(),
    }
}

fn page<T: Serialize>(uri: &Uri, all: &[T], dropped: u64) -> Response<SimBody> {
    let index = |name| number(uri, name).and_then(|value| usize::try_from(value).ok());
    let from = index("from").unwrap_or(0).min(all.len());
    let size = index("limit").unwrap_or(1_000).min(PAGE_MAX);
    let items = &all[from..from.saturating_add(size).min(all.len())];
    reply::json(StatusCode::OK, &Page { from, total: all.len(), dropped, items })
}

fn parameter(uri: &Uri, name: &str) -> Option<String> {
    let query = uri.query()?.as_bytes();
    let found = url::form_urlencoded::parse(query).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned())
}

fn number(uri: &Uri, name: &str) -> Option<u64> {
    parameter(uri, name)?.parse().ok()
}

fn wrong(problem: &str) -> Response<SimBody> {
    reply::error(StatusCode::BAD_REQUEST, "bad_request", problem)
}

fn unknown() -> Response<SimBody> {
    reply::error(StatusCode::NOT_FOUND, "not_found", "no such control endpoint or method")
}
