//! Errors as Prometheus answers them.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use koios_promql::{ErrorKind, QueryError};
use koios_server::{ErrorType, api_error, with_retry_after};

/// When a client may try again what was refused for now.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) kind: ErrorType,
    pub(crate) message: String,
    /// Answered with 403 whatever the kind.
    forbidden: bool,
}

impl ApiError {
    pub(crate) fn new(kind: ErrorType, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            forbidden: false,
        }
    }

    /// 403.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self {
            forbidden: true,
            ..Self::new(ErrorType::BadData, message)
        }
    }

    /// 400 `bad_data`.
    pub(crate) fn bad_data(message: impl Into<String>) -> Self {
        Self::new(ErrorType::BadData, message)
    }

    /// 400 in Prometheus' words for a parameter.
    pub(crate) fn invalid(parameter: &str, why: impl std::fmt::Display) -> Self {
        Self::bad_data(format!("invalid parameter {parameter:?}: {why}"))
    }
}

impl From<QueryError> for ApiError {
    fn from(e: QueryError) -> Self {
        let kind = match e.kind() {
            ErrorKind::Timeout => ErrorType::Timeout,
            ErrorKind::Canceled => ErrorType::Canceled,
            ErrorKind::Execution => ErrorType::Execution,
            ErrorKind::BadData => ErrorType::BadData,
            ErrorKind::Unavailable => ErrorType::Unavailable,
            ErrorKind::Internal => ErrorType::Internal,
        };
        Self::new(kind, e.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = api_error(self.kind, &self.message);
        if self.forbidden {
            *response.status_mut() = StatusCode::FORBIDDEN;
        }
        match self.kind {
            ErrorType::TooManyRequests | ErrorType::Unavailable => with_retry_after(response, RETRY_AFTER),
            _ => response,
        }
    }
}
