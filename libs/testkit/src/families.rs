//! Metric families in protobuf, as targets with native histograms are scraped.
//!
//! **Source**: Prometheus `client_model` `io/prometheus/client/metrics.proto`.

use prost::Message;

/// What an answer to a scrape says that it is.
pub const CONTENT_TYPE: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
/// The types of families that are made here, as they are numbered.
pub const COUNTER: i32 = 0;
/// See [`COUNTER`].
pub const HISTOGRAM: i32 = 4;
/// See [`COUNTER`].
pub const GAUGE_HISTOGRAM: i32 = 5;

/// A metric with all its label sets.
#[derive(Clone, PartialEq, Message)]
pub struct Family {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its help text.
    #[prost(string, tag = "2")]
    pub help: String,
    /// Its type.
    #[prost(int32, tag = "3")]
    pub kind: i32,
    /// One for each label set.
    #[prost(message, repeated, tag = "4")]
    pub metric: Vec<Metric>,
}

/// A label.
#[derive(Clone, PartialEq, Message)]
pub struct Label {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// What is exposed of a label set.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// The labels.
    #[prost(message, repeated, tag = "1")]
    pub label: Vec<Label>,
    /// Of a counter.
    #[prost(message, optional, tag = "3")]
    pub counter: Option<Counter>,
    /// Of a histogram.
    #[prost(message, optional, tag = "7")]
    pub histogram: Option<Histogram>,
}

/// A counter.
#[derive(Clone, PartialEq, Message)]
pub struct Counter {
    /// Its value.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// An example of what it counts.
    #[prost(message, optional, tag = "2")]
    pub exemplar: Option<Exemplar>,
}

/// An example of what is counted.
#[derive(Clone, PartialEq, Message)]
pub struct Exemplar {
    /// Its labels.
    #[prost(message, repeated, tag = "1")]
    pub label: Vec<Label>,
    /// Its value.
    #[prost(double, tag = "2")]
    pub value: f64,
    /// Its time.
    #[prost(message, optional, tag = "3")]
    pub time: Option<Time>,
}

/// A time.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Time {
    /// Seconds since 1970.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// And nanoseconds.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

/// A bucket of a classic histogram, and where a native one has its exemplars.
#[derive(Clone, PartialEq, Message)]
pub struct Bucket {
    /// Observations up to the bound.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// The bound.
    #[prost(double, tag = "2")]
    pub bound: f64,
    /// An example of them.
    #[prost(message, optional, tag = "3")]
    pub exemplar: Option<Exemplar>,
}

/// Consecutive buckets.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Span {
    /// How many are left out before.
    #[prost(sint32, tag = "1")]
    pub offset: i32,
    /// How many there are.
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

/// A histogram: classic by its buckets, native by its spans.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// All observations, where they are counted in integers.
    #[prost(uint64, tag = "1")]
    pub count: u64,
    /// Their sum.
    #[prost(double, tag = "2")]
    pub sum: f64,
    /// Classic buckets.
    #[prost(message, repeated, tag = "3")]
    pub bucket: Vec<Bucket>,
    /// All observations, where they are counted in floats.
    #[prost(double, tag = "4")]
    pub count_float: f64,
    /// The resolution.
    #[prost(sint32, tag = "5")]
    pub schema: i32,
    /// Width of the zero bucket.
    #[prost(double, tag = "6")]
    pub zero_threshold: f64,
    /// Observations in it.
    #[prost(uint64, tag = "7")]
    pub zero_count: u64,
    /// The same in floats.
    #[prost(double, tag = "8")]
    pub zero_count_float: f64,
    /// Buckets below zero.
    #[prost(message, repeated, tag = "9")]
    pub negative_span: Vec<Span>,
    /// Each count less the one before.
    #[prost(sint64, repeated, packed = "false", tag = "10")]
    pub negative_delta: Vec<i64>,
    /// Buckets above zero.
    #[prost(message, repeated, tag = "12")]
    pub positive_span: Vec<Span>,
    /// Each count less the one before.
    #[prost(sint64, repeated, packed = "false", tag = "13")]
    pub positive_delta: Vec<i64>,
    /// Counts in floats.
    #[prost(double, repeated, packed = "false", tag = "14")]
    pub positive_count: Vec<f64>,
}

/// The body of an answer to a scrape.
pub fn delimited(families: &[Family]) -> Vec<u8> {
    families
        .iter()
        .flat_map(Message::encode_length_delimited_to_vec)
        .collect()
}
