//! Remote write over HTTP: headers, body, answer.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use koios_model::TenantId;
use koios_runtime::ClockHandle;
use koios_server::plain_error;
use koios_wire::compression::Compression;
use koios_wire::remote_write::Version;
use tracing::Instrument as _;

use crate::admission::HeldBytes;
use crate::error::{BODY_BYTES_PER_SECOND_MIN, BODY_STALL_MAX};
use crate::message::Format;
use crate::outcome::{Failure, Written};
use crate::{Distributor, Error, Outcome};
use crate::{import, influx, otlp};

const SAMPLES_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-samples-written");
const HISTOGRAMS_WRITTEN: HeaderName =
    HeaderName::from_static("x-prometheus-remote-write-histograms-written");
const EXEMPLARS_WRITTEN: HeaderName = HeaderName::from_static("x-prometheus-remote-write-exemplars-written");

/// A refused body up to this many times the limit is still read and thrown away, so that its sender gets to the answer.
const DISCARD_FACTOR: u64 = 2;
/// Most bytes that room is made for before they come.
const ROOM_MAX: u64 = 64 << 10;

pub(crate) fn router(distributor: Distributor) -> Router {
    let mut router = Router::new();
    for path in [
        "/api/v1/push",
        "/api/v1/write",
        "/prometheus/api/v1/push",
        "/prometheus/api/v1/write",
    ] {
        router = router.route(path, post(push));
    }
    influx::routes(otlp::routes(import::routes(router))).with_state(distributor)
}

async fn push(State(distributor): State<Distributor>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    match receive_and_push(&distributor, &parts.headers, body, Form::of_remote_write).await {
        Ok(outcome) => {
            let mut response = answer(&outcome);
            if outcome.is_deduplicated() && response.status() == StatusCode::NO_CONTENT {
                // So Mimir tells a sender that it is not the elected one. Senders take it for success like any 2xx.
                *response.status_mut() = StatusCode::ACCEPTED;
            }
            response
        }
        Err(failure) => refused(&distributor, &failure),
    }
}

/// Notes a request that was not taken, and answers it.
pub(crate) fn refused(distributor: &Distributor, failure: &Failure) -> Response {
    note_refusal(distributor, &failure.error);
    with_counts(failure.error.response(), failure.written)
}

/// Counts and logs a request that was not taken.
pub(crate) fn note_refusal(distributor: &Distributor, error: &Error) {
    distributor.shared.metrics.refused(error.reason());
    distributor.shared.log_failure(error);
}

/// What a request says about its body.
pub(crate) struct Form {
    pub(crate) tenant: TenantId,
    pub(crate) format: Format,
    pub(crate) compression: Compression,
    /// Whether the message comes as gRPC frames it.
    pub(crate) framed: bool,
}

/// Takes a request whose body has the form that `form` finds in its headers.
pub(crate) async fn receive_and_push(
    distributor: &Distributor,
    headers: &HeaderMap,
    mut body: Body,
    form: impl FnOnce(&HeaderMap) -> Result<Form, Error>,
) -> Result<Outcome, Failure> {
    let shared = &distributor.shared;
    let started = shared.clock().elapsed();
    let form = match form(headers).and_then(|form| shared.check_memory().map(|()| form)) {
        Ok(form) => form,
        Err(error) => {
            let limit = shared.limits.default_limits().max_request_bytes;
            discard(&mut body, limit, shared.clock()).await;
            return Err(error.into());
        }
    };
    let mut held = shared.open_bytes(&form.tenant);
    let limit = shared.limits.of(&form.tenant).max_request_bytes;
    let body = match read(headers, &mut body, limit, &mut held, shared.clock()).await {
        Ok(body) => body,
        Err(error) => {
            if !matches!(error, Error::BodyStalled { .. } | Error::BodyTooSlow { .. }) {
                discard(&mut body, limit, shared.clock()).await;
            }
            return Err(error.into());
        }
    };
    let (body, compression) = match form.framed {
        true => otlp::unframe(body, form.compression)?,
        false => (body, form.compression),
    };
    shared.stage("receive", started);
    let span = tracing::debug_span!("push", tenant = %form.tenant, bytes = body.len());
    distributor
        .push_message(&form.tenant, form.format, compression, body, held)
        .instrument(span)
        .await
}

impl Form {
    /// Snappy is what Prometheus means when it says nothing.
    fn of_remote_write(headers: &HeaderMap) -> Result<Self, Error> {
        let encoding = headers.get(header::CONTENT_ENCODING);
        Ok(Self {
            tenant: koios_tenancy::tenant_of_write(headers)?,
            format: Format::RemoteWrite(version(headers.get(header::CONTENT_TYPE))?),
            compression: Compression::from_header(encoding, Compression::Snappy)?,
            framed: false,
        })
    }
}

/// `application/x-protobuf`, with the message's name in the parameter `proto`; without it, the first version.
fn version(content_type: Option<&HeaderValue>) -> Result<Version, Error> {
    let content_type = ContentType::of(content_type);
    if !content_type.is("application/x-protobuf") {
        return Err(Error::ContentType {
            sent: content_type.to_tell(),
        });
    }
    match content_type.parameter("proto") {
        None | Some("prometheus.WriteRequest") => Ok(Version::V1),
        Some("io.prometheus.write.v2.Request") => Ok(Version::V2),
        Some(other) => Err(Error::Message {
            sent: other.chars().take(128).collect(),
        }),
    }
}

/// A `Content-Type` as it was sent; empty where there is none.
///
/// **Source**: RFC 9110 section 8.3.1: case does not matter but in values, which may be quoted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContentType<'a>(&'a str);

impl<'a> ContentType<'a> {
    pub(crate) fn of(header: Option<&'a HeaderValue>) -> Self {
        Self(header.map_or("", |v| v.to_str().unwrap_or("(not ASCII)")))
    }

    /// Whether it is of a media type, whatever its parameters.
    pub(crate) fn is(self, media_type: &str) -> bool {
        let sent = self.0.split(';').next().unwrap_or_default();
        sent.trim().eq_ignore_ascii_case(media_type)
    }

    /// The value of a parameter, without quotes.
    pub(crate) fn parameter(self, name: &str) -> Option<&'a str> {
        let parameters = self.0.split(';').skip(1).filter_map(|p| p.split_once('='));
        let mut named = parameters.filter(|(of, _)| of.trim().eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim().trim_matches('"'))
    }

    /// As far as an answer repeats it.
    pub(crate) fn to_tell(self) -> String {
        self.0.chars().take(128).collect()
    }
}

/// Reads the body while its bytes may be held.
async fn read(
    headers: &HeaderMap,
    body: &mut Body,
    limit: u64,
    held: &mut HeldBytes,
    clock: &ClockHandle,
) -> Result<Bytes, Error> {
    let declared = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.parse::<u64>().ok());
    if declared.is_some_and(|n| n > limit) {
        return Err(Error::BodyTooLarge { declared, limit });
    }
    let room = declared.unwrap_or(0).min(ROOM_MAX);
    let mut bytes = BytesMut::with_capacity(usize::try_from(room).unwrap_or(0));
    let mut coming = Coming::from_now(body, clock);
    // What is only declared is not held: it costs its sender nothing.
    while let Some(data) = coming.data().await? {
        let data = data.map_err(|e| body_error(&e))?;
        if bytes.len() as u64 + data.len() as u64 > limit {
            // Where it ends is not waited for.
            let declared = None;
            return Err(Error::BodyTooLarge { declared, limit });
        }
        held.grow(data.len() as u64)?;
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// A body that has to keep coming, and not too slowly.
struct Coming<'a> {
    body: &'a mut Body,
    clock: &'a ClockHandle,
    started: Duration,
    bytes: u64,
}

impl<'a> Coming<'a> {
    fn from_now(body: &'a mut Body, clock: &'a ClockHandle) -> Self {
        Self {
            body,
            clock,
            started: clock.elapsed(),
            bytes: 0,
        }
    }

    /// What comes next, while it comes in time: at the end the time that it may take has grown with what came.
    async fn data(&mut self) -> Result<Option<Result<Bytes, axum::Error>>, Error> {
        let took = self.clock.elapsed().saturating_sub(self.started);
        let earned = Duration::from_secs(self.bytes / BODY_BYTES_PER_SECOND_MIN);
        let left = BODY_STALL_MAX.saturating_add(earned).saturating_sub(took);
        let (limit, bytes) = (left.min(BODY_STALL_MAX), self.bytes);
        let late = |_| match limit < BODY_STALL_MAX {
            true => Error::BodyTooSlow {
                bytes,
                took: took + limit,
            },
            false => Error::BodyStalled { limit },
        };
        let frame = self.clock.timeout(limit, self.body.frame()).await.map_err(late)?;
        // Trailers are no bytes of the body.
        let data = frame.map(|frame| frame.map(|frame| frame.into_data().unwrap_or_default()));
        if let Some(Ok(data)) = &data {
            self.bytes += data.len() as u64;
        }
        Ok(data)
    }
}

/// What a listener refuses for its size is too large here, too.
fn body_error(error: &axum::Error) -> Error {
    let first: &(dyn std::error::Error + 'static) = error;
    let mut chain = std::iter::successors(Some(first), |e| e.source());
    match chain.find_map(|e| e.downcast_ref::<tonic::Status>()) {
        Some(status) if status.code() == tonic::Code::ResourceExhausted => Error::FrameTooLarge {
            said: status.message().to_owned(),
        },
        _ => Error::Body {
            reason: error.to_string(),
        },
    }
}

/// Reads a refused body to its end, within reason: closing while the sender still sends would take the answer with it.
async fn discard(body: &mut Body, limit: u64, clock: &ClockHandle) {
    let most = limit.saturating_mul(DISCARD_FACTOR);
    let mut coming = Coming::from_now(body, clock);
    while coming.bytes <= most && matches!(coming.data().await, Ok(Some(Ok(_)))) {}
}

pub(crate) fn answer(outcome: &Outcome) -> Response {
    let mut response = match outcome.complaint() {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(complaint) => {
            tracing::debug!(?complaint, "write request accepted in part");
            plain_error(StatusCode::BAD_REQUEST, complaint)
        }
    };
    warn_of_exemplars(&mut response, outcome);
    with_counts(response, outcome.confirmed())
}

/// Says how many exemplars were dropped, which is no reason to refuse anything.
pub(crate) fn warn_of_exemplars(response: &mut Response, outcome: &Outcome) {
    if outcome.exemplars_dropped > 0 {
        let dropped = outcome.exemplars_dropped;
        let text = format!(
            "299 koios \"exemplars were dropped for their time, their labels or limits.max-exemplars (dropped: {dropped})\""
        );
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(header::WARNING, value);
        }
    }
}

/// Remote write 2.0 wants to know what was written, whatever the status; Prometheus looks at it after 1.0, too.
fn with_counts(mut response: Response, written: Written) -> Response {
    let headers = response.headers_mut();
    headers.insert(SAMPLES_WRITTEN, HeaderValue::from(written.samples));
    headers.insert(HISTOGRAMS_WRITTEN, HeaderValue::from(written.histograms));
    headers.insert(EXEMPLARS_WRITTEN, HeaderValue::from(written.exemplars));
    response
}
