//! `/metrics`, and the API's own figures.
//!
//! With tokens configured, `/metrics` wants one with the scope `read` that is not bound to a
//! tenant (the figures are of all of them); without, it is for this machine, as every route.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::auth::Caller;
use super::error::{Problem, ProblemKind};
use crate::config::Scope;
use crate::store::{Depth, Store};

/// The store's figures are left out of a scrape that would take longer.
const DEPTH_WITHIN: Duration = Duration::from_secs(2);

/// Upper bounds of the histogram of request times, in seconds.
const SECONDS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: String,
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DepthLabels {
    provider: String,
    lane: String,
    state: String,
}

type Seconds = Family<RouteLabel, Histogram, fn() -> Histogram>;

/// The registry to serve, and the figures of the API in it.
#[derive(Clone)]
pub(super) struct Figures {
    registry: Arc<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Seconds,
}

impl Figures {
    /// Adds the API's own figures to `registry`.
    pub(super) fn new(mut registry: Registry) -> Self {
        let requests = Family::default();
        let seconds: Seconds = Family::new_with_constructor(|| Histogram::new(SECONDS));
        registry.register(
            "paceline_http_requests",
            "Requests to the API by route, method and status",
            requests.clone(),
        );
        registry.register("paceline_http_request_seconds", "Time to answer, by route", seconds.clone());
        Self { registry: Arc::new(registry), requests, seconds }
    }
}

/// Counts and times every request. Labels are bounded: routes as they are declared, known methods.
pub(super) async fn count(State(figures): State<Figures>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    let method = if known.contains(request.method()) { request.method().to_string() } else { "other".to_owned() };
    let began = std::time::Instant::now();
    let response = next.run(request).await;
    let status = u32::from(response.status().as_u16());
    figures.seconds.get_or_create(&RouteLabel { route: route.clone() }).observe(began.elapsed().as_secs_f64());
    figures.requests.get_or_create(&RequestLabels { route, method, status }).inc();
    response
}

/// `GET /metrics`: everything that is registered, and how much is in the store.
pub(super) async fn scrape(
    caller: Caller,
    State(figures): State<Figures>,
    State(store): State<Store>,
) -> Result<Response, Problem> {
    caller.may_for_all(Scope::Read)?;
    let depth = match tokio::time::timeout(DEPTH_WITHIN, store.depth()).await {
        Ok(Ok(depth)) => Some(depth),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the store's figures are left out of this scrape");
            None
        }
        Err(_) => None,
    };
    let text = encode(&figures.registry, depth.as_ref())
        .map_err(|_| Problem::new(ProblemKind::Internal, "the figures cannot be written"))?;
    let mut response = text.into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(response)
}

fn encode(registry: &Registry, depth: Option<&Depth>) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, registry)?;
    encode_registry(&mut text, &store_figures(depth))?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// What the store holds at the time of a scrape.
fn store_figures(depth: Option<&Depth>) -> Registry {
    let mut registry = Registry::default();
    let counted: Gauge = Gauge::default();
    counted.set(i64::from(depth.is_some()));
    registry.register("paceline_store_counted", "Whether the store counted its jobs for this scrape in time", counted);
    let Some(depth) = depth else { return registry };
    let jobs = Family::<DepthLabels, Gauge>::default();
    for (provider, lane, state, count) in &depth.jobs {
        let labels = DepthLabels { provider: provider.clone(), lane: lane.clone(), state: state.clone() };
        jobs.get_or_create(&labels).set(*count);
    }
    registry.register("paceline_jobs", "Jobs that are not finished, by provider, lane and state", jobs);
    let of = |count: i64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(count);
        gauge
    };
    registry.register(
        "paceline_deliveries_pending",
        "Webhook deliveries that are not settled",
        of(depth.deliveries_pending),
    );
    registry.register("paceline_dead_letters", "Dead letters that are kept", of(depth.dead_letters));
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_ends_once_and_says_whether_the_store_answered() {
        let figures = Figures::new(Registry::default());
        let text = encode(&figures.registry, None).expect("written");
        assert!(text.contains("paceline_store_counted 0") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
        let depth = Depth {
            jobs: vec![("geo".into(), "default".into(), "queued".into(), 7)],
            deliveries_pending: 2,
            dead_letters: 3,
        };
        let text = encode(&figures.registry, Some(&depth)).expect("written");
        assert!(text.contains("paceline_jobs{provider=\"geo\",lane=\"default\",state=\"queued\"} 7"), "{text}");
        assert!(text.contains("paceline_dead_letters 3") && text.contains("paceline_store_counted 1"), "{text}");
    }
}
