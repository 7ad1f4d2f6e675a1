//! Routers whose content comes later: a process listens before it knows its cluster, because its peers may wait for it.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::response::Response;
use http::header;
use koios_server::{ErrorType, api_error};
use tower::ServiceExt;

/// Longest text of a refusal.
const REFUSAL_BYTES_MAX: usize = 4096;

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
            None => Ok(in_the_callers_form(request.uri().path(), (self.until_then)()).await),
        }
    }
}

/// Senders of samples get text as it is; whoever else speaks HTTP reads errors as JSON, whatever their status.
async fn in_the_callers_form(path: &str, refusal: Response) -> Response {
    let sends_samples = ["/api/v1/push", "/write", "/v1/metrics"]
        .iter()
        .any(|end| path.ends_with(end));
    let kind = refusal.headers().get(header::CONTENT_TYPE);
    if sends_samples || !kind.is_some_and(|k| k.as_bytes().starts_with(b"text/plain")) {
        return refusal;
    }
    let (head, body) = refusal.into_parts();
    let text = to_bytes(body, REFUSAL_BYTES_MAX).await.unwrap_or_default();
    let mut answer = api_error(ErrorType::Unavailable, String::from_utf8_lossy(&text).trim_end());
    for (name, value) in head.headers.iter().filter(|(n, _)| *n == header::RETRY_AFTER) {
        answer.headers_mut().insert(name, value.clone());
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;
    use koios_server::{plain_error, with_retry_after};

    use super::*;

    async fn ask(router: &LateRouter, path: &str) -> (StatusCode, http::HeaderMap, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().into_router().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (
            head.status,
            head.headers,
            String::from_utf8(body.to_vec()).unwrap(),
        )
    }

    #[tokio::test]
    async fn i13_who_asks_before_the_start_is_told_so_in_its_own_form() {
        let until_then = || {
            let refusal = plain_error(StatusCode::SERVICE_UNAVAILABLE, "starting: see /ready");
            with_retry_after(refusal, Duration::from_secs(1))
        };
        let router = LateRouter::new(until_then);
        for (path, form, text) in [
            (
                "/api/v1/query?query=up",
                "application/json",
                r#"{"status":"error","errorType":"unavailable","error":"starting: see /ready"}"#,
            ),
            (
                "/prometheus/api/v1/labels",
                "application/json",
                r#"{"status":"error","errorType":"unavailable","error":"starting: see /ready"}"#,
            ),
            (
                "/api/v1/push",
                "text/plain; charset=utf-8",
                "starting: see /ready\n",
            ),
            (
                "/prometheus/api/v1/write",
                "text/plain; charset=utf-8",
                "starting: see /ready\n",
            ),
            (
                "/otlp/v1/metrics",
                "text/plain; charset=utf-8",
                "starting: see /ready\n",
            ),
        ] {
            let (status, headers, body) = ask(&router, path).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!(
                (headers["content-type"].to_str().unwrap(), body.as_str()),
                (form, text)
            );
            assert_eq!(headers["retry-after"], "1", "{path}");
        }
        router.set(Router::new().fallback(|| async { "started" }));
        assert_eq!(ask(&router, "/api/v1/query").await.2, "started");
    }

    #[tokio::test]
    async fn grpc_keeps_its_own_form() {
        let router = LateRouter::new(|| tonic::Status::unavailable("starting").into_http());
        let (status, headers, body) = ask(&router, "/koios.v1.Store/Select").await;
        assert_eq!((status, body.as_str()), (StatusCode::OK, ""));
        assert_eq!(headers["grpc-message"], "starting");
    }
}
