//! Routes together with what the document says of them: there is no way to add the one without the other.

use axum::Router;
use axum::handler::Handler;
use axum::routing;

use super::openapi::{Method, Operation, Routed};

/// Routes of one resource, or of several.
pub(super) struct Routes<S> {
    router: Router<S>,
    operations: Vec<Routed>,
}

impl<S: Clone + Send + Sync + 'static> Routes<S> {
    pub(super) fn new() -> Self {
        Self { router: Router::new(), operations: Vec::new() }
    }

    /// `GET path`, and `HEAD`.
    pub(super) fn get<H: Handler<T, S>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        described: Operation,
    ) -> Self {
        self.add(Method::Get, path, routing::get(handler), described)
    }

    /// `POST path`
    pub(super) fn post<H: Handler<T, S>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        described: Operation,
    ) -> Self {
        self.add(Method::Post, path, routing::post(handler), described)
    }

    /// `DELETE path`
    pub(super) fn delete<H: Handler<T, S>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
        described: Operation,
    ) -> Self {
        self.add(Method::Delete, path, routing::delete(handler), described)
    }

    /// These and those of another resource.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.operations.extend(other.operations);
        Self { router: self.router.merge(other.router), operations: self.operations }
    }

    /// The routes to serve, and what is said of them.
    pub(super) fn split(self) -> (Router<S>, Vec<Routed>) {
        (self.router, self.operations)
    }

    fn add(
        mut self,
        method: Method,
        path: &'static str,
        handler: routing::MethodRouter<S>,
        described: Operation,
    ) -> Self {
        self.operations.push(Routed { method, path, described });
        Self { router: self.router.route(path, handler), operations: self.operations }
    }
}
