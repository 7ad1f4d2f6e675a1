//! Error bodies: Prometheus' JSON envelope for queries, plain text for writes.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

/// The kinds of errors that Prometheus' API knows, with their status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// 400: the request is wrong.
    BadData,
    /// 404: no such thing.
    NotFound,
    /// 405: not with this method.
    MethodNotAllowed,
    /// 413: more bytes than allowed.
    TooLarge,
    /// 414: a longer URI than allowed.
    UriTooLong,
    /// 415: an unknown content type or encoding.
    Unsupported,
    /// 422: the query is valid but cannot be evaluated.
    Execution,
    /// 429: slow down.
    TooManyRequests,
    /// 499: the client went away.
    Canceled,
    /// 500: a bug.
    Internal,
    /// 503: took too long.
    Timeout,
    /// 503: not able now, a retry may help.
    Unavailable,
}

/// nginx' code for a request that its client gave up.
const CLIENT_CLOSED_REQUEST: u16 = 499;

impl ErrorType {
    /// The status code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadData => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::Unsupported => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Execution => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Canceled => {
                StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word in `errorType`. Kinds that Prometheus lacks go under the one that tells a client the same.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadData
            | Self::MethodNotAllowed
            | Self::TooLarge
            | Self::UriTooLong
            | Self::Unsupported => "bad_data",
            Self::NotFound => "not_found",
            Self::Execution => "execution",
            Self::TooManyRequests => "too_many_requests",
            Self::Canceled => "canceled",
            Self::Internal => "internal",
            Self::Timeout => "timeout",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Prometheus' envelope, in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    status: &'static str,
    error_type: &'static str,
    error: &'a str,
}

/// `{"status":"error","errorType":…,"error":…}` with the kind's status code.
pub fn api_error(kind: ErrorType, message: impl AsRef<str>) -> Response {
    let envelope = Envelope {
        status: "error",
        error_type: kind.as_str(),
        error: message.as_ref(),
    };
    // Strings always have a JSON form.
    let body = serde_json::to_string(&envelope).unwrap_or_default();
    let json = HeaderValue::from_static("application/json");
    (kind.status(), [(header::CONTENT_TYPE, json)], body).into_response()
}

/// A plain text error, as senders of samples expect it.
pub fn plain_error(status: StatusCode, message: impl AsRef<str>) -> Response {
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    let mut body = message.as_ref().to_owned();
    body.push('\n');
    (status, [(header::CONTENT_TYPE, text)], body).into_response()
}

/// The same answer, telling the client when to try again; at least a second.
#[must_use]
pub fn with_retry_after(mut response: Response, after: Duration) -> Response {
    let seconds = after.as_secs().max(1);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}
