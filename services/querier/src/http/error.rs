//! Errors as Prometheus answers them.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use koios_promql::QueryError;

use super::json::write_string;

/// An error answer: HTTP status, `errorType` and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) error_type: &'static str,
    pub(crate) message: String,
}

/// The status of a request whose client is gone.
fn client_closed() -> StatusCode {
    StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST)
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, error_type: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            error_type,
            message: message.into(),
        }
    }

    /// 400 `bad_data`.
    pub(crate) fn bad_data(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_data", message)
    }

    /// 400 in Prometheus' words for a parameter.
    pub(crate) fn invalid(parameter: &str, why: impl std::fmt::Display) -> Self {
        Self::bad_data(format!("invalid parameter {parameter:?}: {why}"))
    }
}

impl From<QueryError> for ApiError {
    fn from(e: QueryError) -> Self {
        let kind = e.kind();
        let status = match kind.http_status() {
            499 => client_closed(),
            code => StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        Self::new(status, kind.error_type(), e.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = Vec::with_capacity(self.message.len() + 64);
        body.extend_from_slice(br#"{"status":"error","errorType":"#);
        write_string(&mut body, self.error_type);
        body.extend_from_slice(br#","error":"#);
        write_string(&mut body, &self.message);
        body.push(b'}');
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::TOO_MANY_REQUESTS || self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
