//! Why a request as a whole was not taken.

use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use koios_model::PartitionId;
use koios_runtime::MemoryShort;
use koios_server::config::format_duration;
use koios_server::{plain_error, with_retry_after};
use koios_wire::compression::DecompressError;
use koios_wire::exposition::TextError;
use koios_wire::families::FamiliesError;
use koios_wire::influx::InfluxError;
use koios_wire::otlp::OtlpError;
use koios_wire::remote_write::DecodeError;

/// Why nothing, or not everything, of a request was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No tenant can be made out.
    #[error(transparent)]
    Tenant(#[from] koios_tenancy::Error),
    /// Not protobuf.
    #[error("unsupported content type {sent:?}, use application/x-protobuf")]
    ContentType {
        /// As sent.
        sent: String,
    },
    /// Neither text nor metric families.
    #[error(
        "unsupported content type {sent:?}, use text/plain, application/openmetrics-text or \
         application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
    )]
    TextContentType {
        /// As sent.
        sent: String,
    },
    /// A part of the URL that does not say what it should.
    #[error("invalid {name} {sent:?}: expected {wanted}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// As sent.
        sent: String,
        /// What it should say.
        wanted: &'static str,
    },
    /// A message this version does not know.
    #[error(
        "unknown remote-write message {sent:?}, use prometheus.WriteRequest or io.prometheus.write.v2.Request"
    )]
    Message {
        /// As sent.
        sent: String,
    },
    /// The body cannot be decompressed.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// The body is too large.
    #[error(
        "request body larger than {limit} bytes (actual: {}): send smaller batches or raise limits.max-request-bytes",
        actual_bytes(*.declared, *.limit)
    )]
    BodyTooLarge {
        /// What the request says of itself; none where it says nothing or less than came.
        declared: Option<u64>,
        /// The limit.
        limit: u64,
    },
    /// The body is too large for the listener that it came to.
    #[error("{said}")]
    FrameTooLarge {
        /// The listener's words.
        said: String,
    },
    /// The body ended before it was complete.
    #[error("request body could not be read: {reason}")]
    Body {
        /// The connection's words.
        reason: String,
    },
    /// The body stopped coming.
    #[error("request body stopped for more than {}: send it at once", format_duration(*.limit))]
    BodyStalled {
        /// How long was waited.
        limit: Duration,
    },
    /// The body comes too slowly.
    #[error("request body comes too slowly, {bytes} bytes in {} (limit: {} bytes a second after {}): send smaller batches", format_duration(*.took), BODY_BYTES_PER_SECOND_MIN, format_duration(BODY_STALL_MAX))]
    BodyTooSlow {
        /// How many came.
        bytes: u64,
        /// In what time.
        took: Duration,
    },
    /// The body is no such message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The body is no such text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The body is no such metric families.
    #[error(transparent)]
    Families(#[from] FamiliesError),
    /// The line protocol exceeds a limit.
    #[error(transparent)]
    Influx(#[from] InfluxError),
    /// The body is no request of OTLP.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// Not one message as gRPC frames it.
    #[error("request is not one message as gRPC frames it")]
    Framing,
    /// Neither of OTLP's encodings.
    #[error("unsupported content type {sent:?}, use application/x-protobuf or application/json")]
    OtlpContentType {
        /// As sent.
        sent: String,
    },
    /// Labels that refer to one long symbol many times.
    #[error(
        "labels of the request take more than {limit} bytes when written out (actual: at least {bytes}): send smaller \
         batches or raise limits.max-request-bytes"
    )]
    LabelBytes {
        /// What they had come to.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// More series than a request may have.
    #[error(
        "too many series in request (limit: {limit}), which has more than {limit}: send smaller batches or raise \
         limits.max-series-per-request"
    )]
    TooManySeries {
        /// The limit.
        limit: usize,
    },
    /// The request alone takes more than its tenant may hold.
    #[error(
        "request takes {bytes} bytes while it is decoded, more than half of http.max-write-bytes-in-flight (limit: \
         {limit}): send smaller batches or raise http.max-write-bytes-in-flight"
    )]
    RequestTooLarge {
        /// What it has come to.
        bytes: u64,
        /// What a tenant may hold.
        limit: u64,
    },
    /// Too many bytes are held already.
    #[error(
        "too many bytes of write requests in flight (actual: {}, limit: {limit}, {}): try again or raise \
         http.max-write-bytes-in-flight",
        actual_bytes(*.bytes, *.limit), .of.as_str()
    )]
    Busy {
        /// What they would come to; none of all tenants together, as how much others send is nobody's business.
        bytes: Option<u64>,
        /// The limit.
        limit: u64,
        /// Whose requests they are.
        of: InFlight,
    },
    /// New series came together with those of other requests, or too few members said whether they exist.
    #[error(
        "{series} series may exceed the series limit {limit}, which shows once others have been written and enough \
         replicas answer: try again, or raise {setting}"
    )]
    SeriesUndecided {
        /// How many were not written for it.
        series: u64,
        /// The setting of the limit.
        setting: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The process is about to run out of memory.
    #[error(transparent)]
    Memory(#[from] MemoryShort),
    /// The tenant sends too fast.
    #[error(
        "ingestion rate limit ({rate}/s) exceeded by a request of {samples} samples (burst: {burst}): slow down, or raise \
         limits.ingestion-rate or limits.ingestion-burst"
    )]
    RateLimited {
        /// The limit, samples per second.
        rate: u64,
        /// How many may come at once.
        burst: u64,
        /// What was sent.
        samples: u64,
        /// When they would be admitted.
        retry_after: Duration,
    },
    /// The cluster has not formed yet.
    #[error("no partitions have been formed yet: waiting for ingesters in enough zones")]
    NoPartitions,
    /// Too few members acknowledged a partition's part.
    #[error("not enough replicas acknowledged ({acknowledged}/{needed}) by partition {partition}: {reason}")]
    NotEnoughReplicas {
        /// The partition.
        partition: PartitionId,
        /// How many did.
        acknowledged: usize,
        /// How many must.
        needed: usize,
        /// What the first other said.
        reason: String,
    },
    /// So many members will never take a partition's part that there is no majority.
    #[error("partition {partition} cannot take the request: {reason}: send smaller batches")]
    RefusedByMembers {
        /// The partition.
        partition: PartitionId,
        /// What the first of them said.
        reason: String,
    },
    /// A bug.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Whose bytes in flight a limit is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// All tenants'.
    All,
    /// One tenant's, which may be half.
    OneTenant,
}

impl InFlight {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "for all tenants together",
            Self::OneTenant => "for one tenant half of http.max-write-bytes-in-flight",
        }
    }
}

/// How many bytes exceed a limit, as far as that is known or told.
fn actual_bytes(declared: Option<u64>, limit: u64) -> String {
    declared.map_or_else(|| format!("more than {limit}"), |bytes| bytes.to_string())
}

/// How long a body may stop coming before its sender is taken for gone.
pub(crate) const BODY_STALL_MAX: Duration = Duration::from_secs(30);
/// How fast a body has to come in the long run. What comes slower holds memory for longer than it is worth.
pub(crate) const BODY_BYTES_PER_SECOND_MIN: u64 = 32 << 10;

/// When to try again after a lack of replicas or room.
const RETRY_SOON: Duration = Duration::from_secs(1);
/// When to try again while memory is short, which lasts longer, or after a bug.
pub(crate) const RETRY_LATER: Duration = Duration::from_secs(5);

impl Error {
    /// The status code: 4xx when a retry cannot help, 429 and 5xx when it may (I13).
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Tenant(_)
            | Self::Parameter { .. }
            | Self::Decode(_)
            | Self::Text(_)
            | Self::TooManySeries { .. }
            | Self::Framing
            | Self::Body { .. } => StatusCode::BAD_REQUEST,
            Self::ContentType { .. }
            | Self::TextContentType { .. }
            | Self::OtlpContentType { .. }
            | Self::Message { .. } => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Otlp(OtlpError::Strings { .. } | OtlpError::TooLarge { .. })
            | Self::Influx(InfluxError::Strings { .. })
            | Self::Families(FamiliesError::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Otlp(_) | Self::Influx(_) | Self::Families(_) => StatusCode::BAD_REQUEST,
            Self::Decompress(DecompressError::Unsupported { .. }) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Decompress(e) if e.is_too_large() => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Decompress(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. }
            | Self::FrameTooLarge { .. }
            | Self::LabelBytes { .. }
            | Self::RequestTooLarge { .. }
            | Self::RefusedByMembers { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyStalled { .. } | Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Busy { .. }
            | Self::SeriesUndecided { .. }
            | Self::Memory(_)
            | Self::NoPartitions
            | Self::NotEnoughReplicas { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Its word in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::ContentType { .. }
            | Self::TextContentType { .. }
            | Self::OtlpContentType { .. }
            | Self::Message { .. } => "content_type",
            Self::Otlp(OtlpError::Decode(_)) => "protobuf",
            Self::Otlp(OtlpError::Strings { .. } | OtlpError::TooLarge { .. })
            | Self::Influx(InfluxError::Strings { .. })
            | Self::Families(FamiliesError::TooLarge { .. }) => "too_large",
            Self::Families(_) => "families",
            Self::Influx(_) => "line_protocol",
            Self::Otlp(_) => "otlp",
            Self::Parameter { .. } => "parameter",
            Self::Text(_) => "text",
            Self::TooManySeries { .. } => "too_many_series",
            Self::Decompress(_) => "compression",
            Self::BodyTooLarge { .. }
            | Self::FrameTooLarge { .. }
            | Self::LabelBytes { .. }
            | Self::RequestTooLarge { .. }
            | Self::RefusedByMembers { .. } => "too_large",
            Self::Body { .. } | Self::BodyStalled { .. } | Self::BodyTooSlow { .. } | Self::Framing => "body",
            Self::SeriesUndecided { .. } => "series_undecided",
            Self::Decode(_) => "protobuf",
            Self::Busy { .. } => "busy",
            Self::Memory(_) => "memory",
            Self::RateLimited { .. } => "rate_limit",
            Self::NoPartitions => "no_partitions",
            Self::NotEnoughReplicas { .. } => "replicas",
            Self::Internal(_) => "internal",
        }
    }

    /// When to try again, where that may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Busy { .. }
            | Self::SeriesUndecided { .. }
            | Self::NoPartitions
            | Self::NotEnoughReplicas { .. } => Some(RETRY_SOON),
            Self::Memory(_) => Some(RETRY_LATER),
            _ => None,
        }
    }

    /// The answer to the sender.
    pub fn response(&self) -> Response {
        let response = plain_error(self.status(), self.to_string());
        match self.retry_after() {
            Some(retry_after) => with_retry_after(response, retry_after),
            None => response,
        }
    }
}
