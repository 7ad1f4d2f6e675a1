//! The endpoints that every process has.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};

use crate::metrics::{EXPOSITION_TYPE, Metrics};
use crate::readiness::Readiness;

/// `/ready`, `/-/ready`, `/-/healthy` (also below `/prometheus`) and `/metrics`, by GET and HEAD.
pub fn common_routes(readiness: Readiness, metrics: Metrics) -> Router {
    let health = Router::new()
        .route("/-/healthy", get(|| async { "Koios is healthy.\n" }))
        .route("/prometheus/-/healthy", get(|| async { "Koios is healthy.\n" }))
        .route("/ready", get(ready))
        .route("/-/ready", get(ready))
        .route("/prometheus/-/ready", get(ready))
        .with_state(readiness);
    let exposition = Router::new().route("/metrics", get(expose)).with_state(metrics);
    health.merge(exposition)
}

async fn ready(State(readiness): State<Readiness>) -> Response {
    let reasons = readiness.reasons();
    if reasons.is_empty() {
        return "ready\n".into_response();
    }
    let mut body = "not ready\n".to_owned();
    for reason in reasons {
        body.push_str(&reason);
        body.push('\n');
    }
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    let kind = HeaderValue::from_static(EXPOSITION_TYPE);
    ([(header::CONTENT_TYPE, kind)], metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    use super::*;

    async fn ask(router: &Router, method: &str, path: &str) -> (StatusCode, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .body(Body::empty())
            .unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_is_told_to_get_and_head() {
        let readiness = Readiness::default();
        let component = readiness.component("wal");
        let router = common_routes(readiness, Metrics::new());
        for path in ["/ready", "/-/ready", "/prometheus/-/ready"] {
            component.not_ready("replaying");
            let (status, body) = ask(&router, "GET", path).await;
            assert_eq!(
                (status, body.as_str()),
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\nwal: replaying\n")
            );
            assert_eq!(
                ask(&router, "HEAD", path).await.0,
                StatusCode::SERVICE_UNAVAILABLE
            );
            component.ready();
            assert_eq!(
                ask(&router, "GET", path).await,
                (StatusCode::OK, "ready\n".to_owned())
            );
            assert_eq!(ask(&router, "HEAD", path).await, (StatusCode::OK, String::new()));
        }
        assert_eq!(ask(&router, "HEAD", "/-/healthy").await.0, StatusCode::OK);
        assert!(ask(&router, "GET", "/metrics").await.1.ends_with("# EOF\n"));
    }
}
