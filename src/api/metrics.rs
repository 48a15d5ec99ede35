//! `/metrics`, and the API's own figures.
//!
//! With tokens configured, `/metrics` wants one with the scope `read` that is not bound to a
//! tenant (the figures are of all of them); without, it is for this machine, as every route.

use std::collections::HashMap;
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

use super::Parts;
use super::auth::Caller;
use super::error::{Problem, ProblemKind};
use super::openapi::Operation;
use super::routes::Routes;
use crate::config::Scope;
use crate::store::{Depth, LeaseView, Store};

/// The store's figures are left out of a scrape that would take longer.
const DEPTH_WITHIN: Duration = Duration::from_secs(2);

/// Leases of one provider that are told one by one.
const LEASES_MAX: usize = 100;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabels {
    provider: String,
    group: String,
    owner: String,
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

/// The route, and what is said of it.
pub(super) fn routes() -> Routes<Parts> {
    let scraping = Operation::for_all("getMetrics", "Figures for Prometheus", Scope::Read).answer_as(
        200,
        "In the OpenMetrics text format",
        CONTENT_TYPE_OF_FIGURES,
    );
    Routes::new().get("/metrics", scrape, scraping)
}

const CONTENT_TYPE_OF_FIGURES: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
    let leases = match tokio::time::timeout(DEPTH_WITHIN, store.leases()).await {
        Ok(Ok(leases)) => leases,
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    let text = encode(&figures.registry, depth.as_ref(), &leases)
        .map_err(|_| Problem::new(ProblemKind::Internal, "the figures cannot be written"))?;
    let mut response = text.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE_OF_FIGURES));
    Ok(response)
}

fn encode(registry: &Registry, depth: Option<&Depth>, leases: &[LeaseView]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, registry)?;
    encode_registry(&mut text, &lease_figures(leases))?;
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

/// Who holds which lease, and how often it was taken: the first ones of each provider. A lease that
/// nobody holds has no owner.
fn lease_figures(leases: &[LeaseView]) -> Registry {
    let epochs = Family::<LeaseLabels, Gauge>::default();
    let mut told: HashMap<&str, usize> = HashMap::new();
    for lease in leases {
        let told = told.entry(lease.provider.as_str()).or_default();
        *told += 1;
        if *told > LEASES_MAX {
            continue;
        }
        let owner = lease.owner.clone().filter(|_| !lease.expires_in.is_zero());
        let (provider, group) = (lease.provider.clone(), lease.name.clone());
        let labels = LeaseLabels { provider, group, owner: owner.unwrap_or_default() };
        epochs.get_or_create(&labels).set(lease.epoch);
    }
    let mut registry = Registry::default();
    registry.register("paceline_lease_epoch", "How often the lease was taken; its owner is a label", epochs);
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_told_with_their_owners_and_within_bounds() {
        let lease = |n: usize, owner: Option<&str>, left: u64| LeaseView {
            provider: "geo".into(),
            name: format!("g{n:03}"),
            owner: owner.map(str::to_owned),
            epoch: 7,
            expires_in: Duration::from_secs(left),
            clean: false,
        };
        let mut leases = vec![lease(0, Some("12-ab"), 5), lease(1, Some("12-ab"), 0), lease(2, None, 0)];
        leases.extend((3..500).map(|n| lease(n, None, 0)));
        let text = encode(&Registry::default(), None, &leases).expect("written");
        for (group, owner) in [("g000", "12-ab"), ("g001", ""), ("g002", "")] {
            let labels = format!("{{provider=\"geo\",group=\"{group}\",owner=\"{owner}\"}}");
            assert!(text.contains(&format!("paceline_lease_epoch{labels} 7\n")), "{group}: {text}");
        }
        assert_eq!(text.matches("paceline_lease_epoch{").count(), LEASES_MAX);
    }

    #[test]
    fn a_scrape_ends_once_and_says_whether_the_store_answered() {
        let figures = Figures::new(Registry::default());
        let text = encode(&figures.registry, None, &[]).expect("written");
        assert!(text.contains("paceline_store_counted 0") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(text.matches("# EOF").count(), 1);
        let depth = Depth {
            jobs: vec![("geo".into(), "default".into(), "queued".into(), 7)],
            deliveries_pending: 2,
            dead_letters: 3,
        };
        let text = encode(&figures.registry, Some(&depth), &[]).expect("written");
        assert!(text.contains("paceline_jobs{provider=\"geo\",lane=\"default\",state=\"queued\"} 7"), "{text}");
        assert!(text.contains("paceline_dead_letters 3") && text.contains("paceline_store_counted 1"), "{text}");
    }
}
