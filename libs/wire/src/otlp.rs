//! OTLP metrics, decoded by hand and translated to series as Prometheus does.
//!
//! [`decode`] walks a request once, resource by resource, and hands every series to a [`Sink`]. Data points lie in scratch
//! space that the next one overwrites; names and values that are not in the request as they are meant are kept in
//! [`Strings`], whose size is bounded (I12). Requests in JSON are first written as protobuf ([`json`]). What comes as
//! deltas is added up in [`Deltas`].
//!
//! **Source**: OpenTelemetry `opentelemetry/proto/metrics/v1/metrics.proto`; Prometheus 3.14
//! `storage/remote/otlptranslator/prometheusremotewrite`.

mod answer;
mod delta;
pub mod json;
mod labels;
mod names;
mod native;
mod point;
mod settings;

#[cfg(test)]
mod test_messages;
mod translate;
mod value;

pub use answer::Encoding;
pub use delta::{Changes, Deltas, FORGOTTEN_AFTER, TenantDeltas};
pub use json::JsonError;
pub use settings::{Settings, TranslationStrategy};

pub use translate::{Context, Report, decode};

use crate::remote_write::DecodeError;
use crate::strings::Full;

/// Why a request cannot be taken at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OtlpError {
    /// No such message, or one beyond its limits.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// No such text.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Lists in maps in lists.
    #[error(
        "attribute nesting exceeds {}: send attributes that are nested less",
        value::DEPTH_MAX
    )]
    TooDeep,
    /// More attributes than any sender has reason for.
    #[error(
        "a resource, scope, data point or attribute has more than {} attributes: send fewer",
        value::ATTRIBUTES_MAX
    )]
    TooManyAttributes,
    /// More bytes than allowed once it is protobuf.
    #[error(
        "request takes more than {limit} bytes as protobuf: send smaller batches or raise limits.max-request-bytes"
    )]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// Names and values take more than they may when written out.
    #[error(
        "names and attribute values of the request take more than {limit} bytes when written out: send smaller batches or \
         raise limits.max-request-bytes"
    )]
    Strings {
        /// The limit.
        limit: usize,
    },
}

impl From<Full> for OtlpError {
    fn from(full: Full) -> Self {
        Self::Strings { limit: full.limit }
    }
}

/// What is wrong with a data point. A retry cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointFault {
    /// Nothing is left of the metric's name.
    #[error("metric has no name that can be used")]
    MetricName,
    /// Nothing is left of an attribute's name.
    #[error("attribute has no name that can be used")]
    LabelName,
    /// Neither cumulative nor delta.
    #[error("unspecified aggregation temporality: send cumulative values, or deltas")]
    Temporality,
    /// A delta without an end, or one that ends before it starts.
    #[error("delta has no interval: its end must be set and not before its start")]
    DeltaInterval,
    /// A delta that ends before, or when, the last one did.
    #[error(
        "delta is older than what its series has already: send deltas in order, and each series to one distributor"
    )]
    DeltaOrder,
    /// A delta of an interval that came before with another value.
    #[error(
        "delta came before with another value, which is kept: give each sender a service.instance.id of its own"
    )]
    DeltaChanged,
    /// More deltas than milliseconds for a series.
    #[error(
        "deltas of too many senders or scopes are added up in one series: set \
         limits.otlp-promote-resource-attributes or limits.otlp-promote-scope-metadata so that they get series of \
         their own"
    )]
    DeltaCrowded,
    /// A delta that no total can hold.
    #[error("delta is not a finite number")]
    DeltaValue,
    /// No room for a further series, or for more buckets of one.
    #[error(
        "no room for the totals of more deltas (limit: {} MiB for all tenants together, half of it for each): send \
         cumulative values",
        delta::BYTES_MAX >> 20
    )]
    DeltaRoom,
    /// More totals of one request than can be taken back one by one.
    #[error(
        "too many deltas of the same histograms in one request, whose totals take more than {} MiB: send smaller ones",
        delta::REPLACED_BYTES_MAX >> 20
    )]
    DeltasReplaced,
    /// More buckets, bounds or quantiles than any data point has.
    #[error(
        "data point has more than {} buckets, bounds or quantiles: send fewer",
        point::BUCKETS_MAX
    )]
    TooMany,
    /// Too coarse.
    #[error("scale of an exponential histogram must be at least -4, is {scale}")]
    Scale {
        /// As sent.
        scale: i32,
    },
    /// A bucket beyond the range of numbers.
    #[error("bucket index of an exponential histogram is out of range")]
    BucketIndex,
}

#[cfg(test)]
#[path = "otlp/conformance_test.rs"]
mod conformance;
#[cfg(test)]
#[path = "otlp/otlp_test.rs"]
mod tests;
