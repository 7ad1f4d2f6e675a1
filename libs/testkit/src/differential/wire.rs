//! Remote write 1.0 with what the project's own messages leave out: native histograms, and negative zeros.

use bytes::Bytes;
use koios_model::{Histogram, ResetHint, Span};
use koios_promql::SampleValue;
use koios_wire::pb::prometheus::Label;
use prost::Message;

use crate::query_gen::data::SentSeries;
use crate::remote_write::compressed;

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<FloatHistogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    /// Always written: a negative zero would be left out like any zero, and read as a positive one.
    #[prost(double, optional, tag = "1")]
    value: Option<f64>,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// A histogram with float counts.
#[derive(Clone, PartialEq, Message)]
struct FloatHistogram {
    #[prost(double, optional, tag = "2")]
    count: Option<f64>,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(double, optional, tag = "7")]
    zero_count: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    negative_spans: Vec<BucketSpan>,
    #[prost(double, repeated, tag = "10")]
    negative_counts: Vec<f64>,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<BucketSpan>,
    #[prost(double, repeated, tag = "13")]
    positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    reset_hint: i32,
    #[prost(int64, tag = "15")]
    timestamp: i64,
}

#[derive(Clone, PartialEq, Message)]
struct BucketSpan {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

/// The compressed body of a request with the samples of a time range, both ends included; nothing when there are none.
pub(crate) fn body(series: &[SentSeries], from_ms: i64, to_ms: i64) -> Option<Bytes> {
    let timeseries: Vec<TimeSeries> = series
        .iter()
        .map(|series| time_series(series, from_ms, to_ms))
        .filter(|series| !series.samples.is_empty() || !series.histograms.is_empty())
        .collect();
    (!timeseries.is_empty()).then(|| compressed(&WriteRequest { timeseries }))
}

fn time_series(series: &SentSeries, from_ms: i64, to_ms: i64) -> TimeSeries {
    let mut labels: Vec<Label> = series
        .labels
        .iter()
        .map(|(name, value)| Label {
            name: name.clone(),
            value: value.clone(),
        })
        .collect();
    labels.sort_by(|a, b| a.name.cmp(&b.name));
    let mut out = TimeSeries {
        labels,
        ..TimeSeries::default()
    };
    let within = series
        .samples
        .iter()
        .filter(|(t, _)| (from_ms..=to_ms).contains(t));
    for (timestamp, value) in within {
        match value {
            SampleValue::Float(value) => out.samples.push(Sample {
                value: Some(*value),
                timestamp: *timestamp,
            }),
            SampleValue::Histogram(h) => out.histograms.push(float_histogram(h, *timestamp)),
        }
    }
    out
}

fn spans(spans: &[Span]) -> Vec<BucketSpan> {
    let span = |span: &Span| BucketSpan {
        offset: span.offset,
        length: span.length,
    };
    spans.iter().map(span).collect()
}

fn float_histogram(h: &Histogram, timestamp: i64) -> FloatHistogram {
    FloatHistogram {
        count: Some(h.count),
        sum: h.sum,
        schema: h.schema,
        zero_threshold: h.zero_threshold,
        zero_count: Some(h.zero_count),
        negative_spans: spans(&h.negative_spans),
        negative_counts: h.negative_buckets.clone(),
        positive_spans: spans(&h.positive_spans),
        positive_counts: h.positive_buckets.clone(),
        reset_hint: match h.reset_hint {
            ResetHint::Unknown => 0,
            ResetHint::Reset => 1,
            ResetHint::NotReset => 2,
            ResetHint::Gauge => 3,
        },
        timestamp,
    }
}
