//! A router whose parts are replaced while it serves: under another configuration the same listener answers by other
//! tokens and other providers. Requests that are being served end as they began.

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use tower_service::Service as _;

use super::metrics::Figures;
use super::{ApiParts, Parts, api_router, metrics_router};

/// What a process answers, and goes on to answer when its parts are replaced. A handle: clones are one.
#[derive(Clone)]
pub struct Live {
    current: Arc<RwLock<Router>>,
    figures: Figures,
    build: fn(Parts) -> Router,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    /// The API.
    pub fn api(parts: ApiParts) -> Self {
        Self::new(parts, api_router)
    }

    /// What a process without the API answers.
    pub fn figures(parts: ApiParts) -> Self {
        Self::new(parts, metrics_router)
    }

    fn new(parts: ApiParts, build: fn(Parts) -> Router) -> Self {
        let parts = Parts::from(parts);
        let figures = parts.figures.clone();
        Self { current: Arc::new(RwLock::new(build(parts))), figures, build }
    }

    /// Answers with these parts from now on. What was registered for `/metrics` at first stays; the registry of these
    /// parts is not used.
    pub fn replace(&self, parts: ApiParts) {
        let parts = Parts { figures: self.figures.clone(), ..Parts::from(parts) };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = (self.build)(parts);
    }

    /// The router to serve.
    pub fn router(&self) -> Router {
        let live = self.clone();
        Router::new().fallback(async move |request: Request| live.answer(request).await)
    }

    async fn answer(&self, request: Request) -> Response {
        let mut router = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let answered: Result<Response, Infallible> = router.call(request).await;
        match answered {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}
