//! The messages of OTLP metrics: each field's name in JSON, its number, and what it holds.

use crate::protobuf_writer::Writer;

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) number: u32,
    pub(super) kind: Kind,
    pub(super) repeated: bool,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Text,
    /// Bytes that OTLP writes in hex.
    Hex,
    Base64,
    Bool,
    Double,
    Uint,
    Uint32,
    Int,
    /// Eight bytes.
    Fixed,
    SignedFixed,
    /// Small whether above or below zero.
    Zigzag32,
    Temporality,
    Message(&'static [Field]),
}

impl Kind {
    /// Writes a whole number, if the field can hold it; tells whether it can.
    pub(super) fn write_whole(self, field: u32, n: i128, writer: &mut Writer) -> bool {
        let holds = match self {
            Self::Uint | Self::Fixed => u64::try_from(n).is_ok(),
            Self::Uint32 | Self::Temporality => u32::try_from(n).is_ok(),
            Self::Int | Self::SignedFixed => i64::try_from(n).is_ok(),
            Self::Zigzag32 => i32::try_from(n).is_ok(),
            _ => false,
        };
        if holds {
            let n = n as i64;
            match self {
                Self::Fixed | Self::SignedFixed => writer.fixed64(field, n.cast_unsigned()),
                Self::Zigzag32 => writer.number(field, ((n << 1) ^ (n >> 63)).cast_unsigned()),
                _ => writer.number(field, n.cast_unsigned()),
            }
        }
        holds
    }
}

/// The number of a temporality.
pub(super) fn temporality(name: &str) -> Option<u64> {
    match name {
        "AGGREGATION_TEMPORALITY_UNSPECIFIED" => Some(0),
        "AGGREGATION_TEMPORALITY_DELTA" => Some(1),
        "AGGREGATION_TEMPORALITY_CUMULATIVE" => Some(2),
        digits => digits.parse::<u32>().ok().map(u64::from),
    }
}

const fn one(name: &'static str, number: u32, kind: Kind) -> Field {
    Field {
        name,
        number,
        kind,
        repeated: false,
    }
}

const fn many(name: &'static str, number: u32, kind: Kind) -> Field {
    Field {
        name,
        number,
        kind,
        repeated: true,
    }
}

/// `ExportMetricsServiceRequest`.
pub(super) static REQUEST: [Field; 1] = [many("resourceMetrics", 1, Kind::Message(&RESOURCE_METRICS))];

static RESOURCE_METRICS: [Field; 3] = [
    one("resource", 1, Kind::Message(&RESOURCE)),
    many("scopeMetrics", 2, Kind::Message(&SCOPE_METRICS)),
    one("schemaUrl", 3, Kind::Text),
];

static RESOURCE: [Field; 1] = [many("attributes", 1, Kind::Message(&KEY_VALUE))];

static SCOPE_METRICS: [Field; 3] = [
    one("scope", 1, Kind::Message(&SCOPE)),
    many("metrics", 2, Kind::Message(&METRIC)),
    one("schemaUrl", 3, Kind::Text),
];

static SCOPE: [Field; 3] = [
    one("name", 1, Kind::Text),
    one("version", 2, Kind::Text),
    many("attributes", 3, Kind::Message(&KEY_VALUE)),
];

static KEY_VALUE: [Field; 2] = [
    one("key", 1, Kind::Text),
    one("value", 2, Kind::Message(&ANY_VALUE)),
];

/// `AnyValue`, the only message that may hold itself.
pub(super) static ANY_VALUE: [Field; 7] = [
    one("stringValue", 1, Kind::Text),
    one("boolValue", 2, Kind::Bool),
    one("intValue", 3, Kind::Int),
    one("doubleValue", 4, Kind::Double),
    one("arrayValue", 5, Kind::Message(&ARRAY_VALUE)),
    one("kvlistValue", 6, Kind::Message(&KEY_VALUE_LIST)),
    one("bytesValue", 7, Kind::Base64),
];

static ARRAY_VALUE: [Field; 1] = [many("values", 1, Kind::Message(&ANY_VALUE))];

static KEY_VALUE_LIST: [Field; 1] = [many("values", 1, Kind::Message(&KEY_VALUE))];

static METRIC: [Field; 8] = [
    one("name", 1, Kind::Text),
    one("description", 2, Kind::Text),
    one("unit", 3, Kind::Text),
    one("gauge", 5, Kind::Message(&GAUGE)),
    one("sum", 7, Kind::Message(&SUM)),
    one("histogram", 9, Kind::Message(&HISTOGRAM)),
    one("exponentialHistogram", 10, Kind::Message(&EXPONENTIAL_HISTOGRAM)),
    one("summary", 11, Kind::Message(&SUMMARY)),
];

static GAUGE: [Field; 1] = [many("dataPoints", 1, Kind::Message(&NUMBER_POINT))];

static SUM: [Field; 3] = [
    many("dataPoints", 1, Kind::Message(&NUMBER_POINT)),
    one("aggregationTemporality", 2, Kind::Temporality),
    one("isMonotonic", 3, Kind::Bool),
];

static HISTOGRAM: [Field; 2] = [
    many("dataPoints", 1, Kind::Message(&HISTOGRAM_POINT)),
    one("aggregationTemporality", 2, Kind::Temporality),
];

static EXPONENTIAL_HISTOGRAM: [Field; 2] = [
    many("dataPoints", 1, Kind::Message(&EXPONENTIAL_POINT)),
    one("aggregationTemporality", 2, Kind::Temporality),
];

static SUMMARY: [Field; 1] = [many("dataPoints", 1, Kind::Message(&SUMMARY_POINT))];

static NUMBER_POINT: [Field; 7] = [
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed),
    one("timeUnixNano", 3, Kind::Fixed),
    one("asDouble", 4, Kind::Double),
    one("asInt", 6, Kind::SignedFixed),
    many("exemplars", 5, Kind::Message(&EXEMPLAR)),
    one("flags", 8, Kind::Uint32),
];

static HISTOGRAM_POINT: [Field; 9] = [
    many("attributes", 9, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed),
    one("timeUnixNano", 3, Kind::Fixed),
    one("count", 4, Kind::Fixed),
    one("sum", 5, Kind::Double),
    many("bucketCounts", 6, Kind::Fixed),
    many("explicitBounds", 7, Kind::Double),
    many("exemplars", 8, Kind::Message(&EXEMPLAR)),
    one("flags", 10, Kind::Uint32),
];

static EXPONENTIAL_POINT: [Field; 11] = [
    many("attributes", 1, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed),
    one("timeUnixNano", 3, Kind::Fixed),
    one("count", 4, Kind::Fixed),
    one("sum", 5, Kind::Double),
    one("scale", 6, Kind::Zigzag32),
    one("zeroCount", 7, Kind::Fixed),
    one("positive", 8, Kind::Message(&BUCKETS)),
    one("negative", 9, Kind::Message(&BUCKETS)),
    one("flags", 10, Kind::Uint32),
    many("exemplars", 11, Kind::Message(&EXEMPLAR)),
];

static BUCKETS: [Field; 2] = [
    one("offset", 1, Kind::Zigzag32),
    many("bucketCounts", 2, Kind::Uint),
];

static SUMMARY_POINT: [Field; 7] = [
    many("attributes", 7, Kind::Message(&KEY_VALUE)),
    one("startTimeUnixNano", 2, Kind::Fixed),
    one("timeUnixNano", 3, Kind::Fixed),
    one("count", 4, Kind::Fixed),
    one("sum", 5, Kind::Double),
    many("quantileValues", 6, Kind::Message(&QUANTILE)),
    one("flags", 8, Kind::Uint32),
];

static QUANTILE: [Field; 2] = [one("quantile", 1, Kind::Double), one("value", 2, Kind::Double)];

static EXEMPLAR: [Field; 6] = [
    many("filteredAttributes", 7, Kind::Message(&KEY_VALUE)),
    one("timeUnixNano", 2, Kind::Fixed),
    one("asDouble", 3, Kind::Double),
    one("asInt", 6, Kind::SignedFixed),
    one("spanId", 4, Kind::Hex),
    one("traceId", 5, Kind::Hex),
];
