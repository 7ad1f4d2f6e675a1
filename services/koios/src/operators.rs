//! Endpoints for operators, kept from tenants.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::StatusCode;
use koios_server::{ErrorType, api_error};
use koios_tenancy::TENANT_HEADER;

/// Refuses requests that a gateway, or a client, sent on a tenant's behalf: what these endpoints do and tell concerns all
/// tenants.
pub(crate) fn for_operators(router: Router) -> Router {
    router.route_layer(from_fn(refuse_tenants))
}

async fn refuse_tenants(request: Request, next: Next) -> Response {
    if !request.headers().contains_key(TENANT_HEADER) {
        return next.run(request).await;
    }
    let message = format!(
        "{} is for operators, not for tenants: ask this process directly, without the header {TENANT_HEADER}",
        request.uri().path()
    );
    let mut refusal = api_error(ErrorType::BadData, message);
    *refusal.status_mut() = StatusCode::FORBIDDEN;
    refusal
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[tokio::test]
    async fn i6_a_tenants_request_does_not_reach_operators_endpoints() {
        let router = for_operators(Router::new().route("/ingester/status", get(|| async { "all tenants" })));
        for (tenant, status) in [(None, 200), (Some("team-a"), 403), (Some(""), 403)] {
            let mut request = http::Request::get("/ingester/status");
            if let Some(tenant) = tenant {
                request = request.header("x-scope-orgid", tenant);
            }
            let request = request.body(Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status, "{tenant:?}");
        }
    }
}
