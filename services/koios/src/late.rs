//! Routers whose content comes later: a process listens before it knows its cluster, because its peers may wait for it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use tower::ServiceExt;

/// Passes requests on to a router that is set once; until then answers with what it was given. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LateRouter {
    router: Arc<OnceLock<Router>>,
    until_then: fn() -> Response,
}

impl LateRouter {
    pub(crate) fn new(until_then: fn() -> Response) -> Self {
        Self {
            router: Arc::default(),
            until_then,
        }
    }

    /// Sets the content; only the first call counts.
    pub(crate) fn set(&self, router: Router) {
        // A second call would be a bug in the caller and changes nothing.
        let _ = self.router.set(router);
    }

    /// The router to serve.
    pub(crate) fn into_router(self) -> Router {
        let fallback = move |request: Request<Body>| {
            let this = self.clone();
            async move { this.answer(request).await }
        };
        Router::new().fallback(fallback)
    }

    async fn answer(&self, request: Request<Body>) -> Result<Response, Infallible> {
        match self.router.get() {
            Some(router) => router.clone().oneshot(request).await,
            None => Ok((self.until_then)()),
        }
    }
}
