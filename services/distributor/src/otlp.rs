//! OTLP metrics by HTTP and gRPC.
//!
//! gRPC is HTTP with a prefix before the message and a status behind it: a body is read, held and decompressed within the
//! same bounds as any other. **Source**: OTLP specification; gRPC over HTTP/2.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use koios_server::with_retry_after;
use koios_wire::compression::{Compression, DecompressError};
use koios_wire::otlp::Encoding;
use tonic::{Code, Status};

use crate::error::RETRY_LATER;
use crate::http_api::{Form, note_refusal, receive_and_push, warn_of_exemplars};
use crate::message::Format;
use crate::outcome::Failure;
use crate::{Distributor, Error, Outcome};

/// Path of the one method of `MetricsService`.
pub const EXPORT: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const GRPC_TYPE: HeaderValue = HeaderValue::from_static("application/grpc");
const ACCEPTED_ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip,zstd,snappy");
/// Whether the message is compressed, and its length.
const PREFIX_BYTES: usize = 5;

pub(crate) fn routes(router: Router<Distributor>) -> Router<Distributor> {
    let mut router = router;
    for prefix in ["", "/prometheus"] {
        for path in ["/otlp/v1/metrics", "/api/v1/otlp/v1/metrics"] {
            router = router.route(&format!("{prefix}{path}"), post(export));
        }
    }
    // For senders that shall not reach the listener that peers use.
    router.route(EXPORT, post(export_by_grpc))
}

/// `MetricsService` for a gRPC listener.
pub(crate) fn grpc_router(distributor: Distributor) -> Router {
    Router::new()
        .route(EXPORT, post(export_by_grpc))
        .with_state(distributor)
}

/// `POST /otlp/v1/metrics`.
async fn export(State(distributor): State<Distributor>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let sent = parts.headers.get(header::CONTENT_TYPE);
    let encoding = encoding(sent);
    let form = |headers: &HeaderMap| {
        let compression = headers.get(header::CONTENT_ENCODING);
        Ok(Form {
            tenant: koios_tenancy::tenant_of_write(headers)?,
            format: Format::Otlp(encoding.ok_or_else(|| content_type_error(sent))?),
            compression: Compression::from_header(compression, Compression::Identity)?,
            framed: false,
        })
    };
    let answer_in = encoding.unwrap_or(Encoding::Protobuf);
    match receive_and_push(&distributor, &parts.headers, body, form).await {
        Ok(outcome) => {
            let body = answer(&outcome, answer_in);
            let mut response = with_type(StatusCode::OK, answer_in, body);
            warn_of_exemplars(&mut response, &outcome);
            response
        }
        Err(Failure { error, .. }) => {
            note_refusal(&distributor, &error);
            refused(&error, answer_in)
        }
    }
}

fn refused(error: &Error, encoding: Encoding) -> Response {
    let retry_after = retry_after(error);
    let body = encoding.status(code(error) as i32, &error.to_string(), retry_after);
    let response = with_type(status(error), encoding, body);
    match retry_after {
        Some(retry_after) => with_retry_after(response, retry_after),
        None => response,
    }
}

fn encoding(content_type: Option<&HeaderValue>) -> Option<Encoding> {
    let sent = content_type?.to_str().ok()?;
    let media_type = sent.split(';').next().unwrap_or_default().trim();
    [Encoding::Protobuf, Encoding::Json]
        .into_iter()
        .find(|encoding| media_type.eq_ignore_ascii_case(encoding.content_type()))
}

fn content_type_error(sent: Option<&HeaderValue>) -> Error {
    let sent = sent.map_or("", |v| v.to_str().unwrap_or("(not ASCII)"));
    Error::OtlpContentType {
        sent: sent.chars().take(128).collect(),
    }
}

fn with_type(status: StatusCode, encoding: Encoding, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(encoding.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// What was not taken is told in a successful answer: nothing of the request may be sent again.
fn answer(outcome: &Outcome, encoding: Encoding) -> Vec<u8> {
    let mut message = outcome.complaint().unwrap_or_default();
    if outcome.conflicts > 0 {
        message = format!("{message} (samples in conflict: {})", outcome.conflicts);
    }
    // Whose the samples were that are not kept is not known, and a data point has up to thousands.
    let rejected = outcome.points.rejected().saturating_add(outcome.conflicts_lost);
    encoding.response(rejected.min(outcome.points.all), &message)
}

/// The method `Export`.
async fn export_by_grpc(State(distributor): State<Distributor>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let form = |headers: &HeaderMap| {
        Ok(Form {
            tenant: koios_tenancy::tenant_of_write(headers)?,
            format: Format::Otlp(Encoding::Protobuf),
            compression: Compression::from_header(headers.get(GRPC_ENCODING), Compression::Identity)?,
            framed: true,
        })
    };
    let mut response = match receive_and_push(&distributor, &parts.headers, body, form).await {
        Ok(outcome) => reply(&answer(&outcome, Encoding::Protobuf)),
        Err(Failure { error, .. }) => {
            note_refusal(&distributor, &error);
            grpc_status(&error).into_http()
        }
    };
    let headers = response.headers_mut();
    headers.insert(GRPC_ACCEPT_ENCODING, ACCEPTED_ENCODINGS);
    response
}

/// The message without its prefix, and how it is compressed: as the headers say, or not at all.
pub(crate) fn unframe(mut body: Bytes, compression: Compression) -> Result<(Bytes, Compression), Error> {
    let prefix = body.get(..PREFIX_BYTES).map(<[u8; PREFIX_BYTES]>::try_from);
    let Some(Ok([flag, a, b, c, d])) = prefix else {
        return Err(Error::Framing);
    };
    let message = body.split_off(PREFIX_BYTES);
    if message.len() as u64 != u64::from(u32::from_be_bytes([a, b, c, d])) {
        return Err(Error::Framing);
    }
    match flag {
        0 => Ok((message, Compression::Identity)),
        1 => Ok((message, compression)),
        _ => Err(Error::Framing),
    }
}

/// A successful reply: one message, then the status.
fn reply(message: &[u8]) -> Response {
    let mut framed = BytesMut::with_capacity(PREFIX_BYTES + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    let trailers = HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from(Code::Ok as i32))]);
    let body = Full::new(framed.freeze()).with_trailers(async move { Some(Ok::<_, Infallible>(trailers)) });
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC_TYPE);
    response
}

fn grpc_status(error: &Error) -> Status {
    let code = code(error);
    let message = match error {
        Error::BodyTooLarge { .. } | Error::FrameTooLarge { .. } => {
            format!("message larger than max: {error}")
        }
        Error::Decompress(e) if e.is_too_large() => format!("message larger than max: {e}"),
        error => error.to_string(),
    };
    let Some(retry_after) = retry_after(error) else {
        return Status::new(code, message);
    };
    let details = Encoding::Protobuf.status(code as i32, &message, Some(retry_after));
    Status::with_details(code, message, details.into())
}

/// The status code. Of the 5xx, senders try again only after 502, 503 and 504, so that a bug of ours must be one of these:
/// else the data would be lost.
fn status(error: &Error) -> StatusCode {
    match error.status() {
        StatusCode::INTERNAL_SERVER_ERROR => StatusCode::SERVICE_UNAVAILABLE,
        status => status,
    }
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Internal(_) => Some(RETRY_LATER),
        error => error.retry_after(),
    }
}

/// gRPC's code for an error. Of these, senders try again only after `Unavailable` and `DeadlineExceeded`, and after
/// `ResourceExhausted` where a delay is given.
fn code(error: &Error) -> Code {
    match status(error) {
        _ if matches!(error, Error::Decompress(DecompressError::Unsupported { .. })) => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i13_a_bug_of_ours_does_not_make_senders_throw_their_data_away() {
        let bug = Error::Internal("oh".to_owned());
        for encoding in [Encoding::Protobuf, Encoding::Json] {
            let response = refused(&bug, encoding);
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["retry-after"], "5");
        }
        let status = grpc_status(&bug);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(!status.details().is_empty());
        let theirs = refused(&Error::Framing, Encoding::Protobuf);
        assert_eq!(theirs.status(), 400);
        assert!(!theirs.headers().contains_key("retry-after"));
    }
}
