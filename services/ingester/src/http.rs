//! What operators call.

use axum::extract::{Query, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::StatusCode;
use koios_model::TenantId;
use koios_server::DeadlineAdvice;
use koios_wire::{FlushRequest, ServiceError, ServiceErrorCode};
use serde::{Deserialize, Serialize};

use crate::{Ingester, IngesterStatus};

/// `POST /ingester/flush?wait=true&tenant=a`, `GET /ingester/status`.
pub fn router(ingester: Ingester) -> Router {
    Router::new()
        .route("/ingester/flush", post(flush))
        .route("/ingester/status", get(status))
        .with_state(ingester)
}

/// What a flush says that takes longer than a request may: only the caller goes.
const FLUSH_GOES_ON: &str = "the flush goes on, so look for the blocks later; tenant= narrows a flush to one tenant, and \
                             http.request-timeout says how long one may be waited for";

#[derive(Debug, Deserialize)]
struct FlushParameters {
    #[serde(default)]
    wait: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
}

#[derive(Debug, Serialize)]
struct Flushed {
    blocks: u64,
    samples: u64,
}

async fn flush(
    State(ingester): State<Ingester>,
    Query(parameters): Query<FlushParameters>,
    advice: Option<Extension<DeadlineAdvice>>,
) -> Response {
    let tenant = match parameters.tenant.as_deref().map(TenantId::new).transpose() {
        Ok(tenant) => tenant,
        Err(e) => return refused(&ServiceError::invalid(e.to_string())),
    };
    let wait = matches!(parameters.wait.as_deref(), Some("true" | "1" | ""));
    if let Some(Extension(advice)) = advice {
        advice.set(FLUSH_GOES_ON);
    }
    let request = FlushRequest { tenant, wait };
    match ingester.inner.flush(request).await {
        Ok(done) => {
            let code = if wait {
                StatusCode::OK
            } else {
                StatusCode::ACCEPTED
            };
            let body = Json(Flushed {
                blocks: done.blocks,
                samples: done.samples,
            });
            (code, body).into_response()
        }
        Err(e) => refused(&e),
    }
}

async fn status(State(ingester): State<Ingester>) -> Json<IngesterStatus> {
    Json(ingester.status())
}

fn refused(error: &ServiceError) -> Response {
    let code = match error.code {
        ServiceErrorCode::InvalidArgument | ServiceErrorCode::TooLarge => StatusCode::BAD_REQUEST,
        ServiceErrorCode::NotFound => StatusCode::NOT_FOUND,
        ServiceErrorCode::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        ServiceErrorCode::Corruption | ServiceErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ServiceErrorCode::Stale
        | ServiceErrorCode::UnknownSeries
        | ServiceErrorCode::Behind
        | ServiceErrorCode::NotCounting
        | ServiceErrorCode::Unavailable
        | ServiceErrorCode::BucketUnavailable
        | ServiceErrorCode::Unimplemented
        | ServiceErrorCode::DeadlineExceeded => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = serde_json::json!({
        "status": "error",
        "errorType": error.code.as_str(),
        "error": error.message,
    });
    (code, Json(body)).into_response()
}
