//! What pushed families are written as.

use koios_model::{Histogram as Native, ResetHint};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::remote_write::{self, DecodeLimits, RawMetadata, RawSeries, Sink, Version};

const NOW: i64 = 1_000_000;
const LIMIT: usize = 1 << 20;

/// The messages of client libraries, as far as tests need them.
mod pushed {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Label {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) value: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Time {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<Label>,
        #[prost(double, tag = "2")]
        pub(super) value: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Time>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Value {
        #[prost(double, tag = "1")]
        pub(super) value: f64,
        #[prost(message, optional, tag = "2")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Quantile {
        #[prost(double, tag = "1")]
        pub(super) quantile: f64,
        #[prost(double, tag = "2")]
        pub(super) value: f64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Summary {
        #[prost(uint64, tag = "1")]
        pub(super) count: u64,
        #[prost(double, tag = "2")]
        pub(super) sum: f64,
        #[prost(message, repeated, tag = "3")]
        pub(super) quantile: Vec<Quantile>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Bucket {
        #[prost(uint64, tag = "1")]
        pub(super) count: u64,
        #[prost(double, tag = "2")]
        pub(super) bound: f64,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Span {
        #[prost(sint32, tag = "1")]
        pub(super) offset: i32,
        #[prost(uint32, tag = "2")]
        pub(super) length: u32,
    }

    /// As Go writes it: repeated numbers one by one.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Histogram {
        #[prost(uint64, tag = "1")]
        pub(super) count: u64,
        #[prost(double, tag = "2")]
        pub(super) sum: f64,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(double, tag = "4")]
        pub(super) count_float: f64,
        #[prost(sint32, tag = "5")]
        pub(super) schema: i32,
        #[prost(double, tag = "6")]
        pub(super) zero_threshold: f64,
        #[prost(uint64, tag = "7")]
        pub(super) zero_count: u64,
        #[prost(message, repeated, tag = "9")]
        pub(super) negative_span: Vec<Span>,
        #[prost(sint64, repeated, packed = "false", tag = "10")]
        pub(super) negative_delta: Vec<i64>,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<Span>,
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        pub(super) positive_delta: Vec<i64>,
        #[prost(double, repeated, packed = "true", tag = "14")]
        pub(super) positive_count: Vec<f64>,
        #[prost(message, repeated, tag = "16")]
        pub(super) exemplars: Vec<Exemplar>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<Label>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Value>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Value>,
        #[prost(message, optional, tag = "4")]
        pub(super) summary: Option<Summary>,
        #[prost(message, optional, tag = "5")]
        pub(super) untyped: Option<Value>,
        #[prost(int64, optional, tag = "6")]
        pub(super) time: Option<i64>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Family {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(string, tag = "2")]
        pub(super) help: String,
        #[prost(uint64, tag = "3")]
        pub(super) kind: u64,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
        #[prost(string, tag = "5")]
        pub(super) unit: String,
    }
}

use pushed::{Bucket, Exemplar, Family, Histogram, Label, Metric, Quantile, Span, Summary, Time, Value};

fn family(name: &str, kind: u64, metric: Metric) -> Family {
    Family {
        name: name.to_owned(),
        help: format!("{name} helps"),
        kind,
        metric: vec![metric],
        unit: "s".to_owned(),
    }
}

fn labels(name: &str, value: &str) -> Vec<Label> {
    vec![Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }]
}

fn value(value: f64) -> Option<Value> {
    Some(Value {
        value,
        exemplar: None,
    })
}

fn delimited(families: &[Family]) -> Vec<u8> {
    families
        .iter()
        .flat_map(Family::encode_length_delimited_to_vec)
        .collect()
}

/// What was written, as it is read again.
#[derive(Default)]
struct Seen {
    /// Labels, value, time.
    samples: Vec<String>,
    /// Labels, histogram, time.
    natives: Vec<(String, Native, i64)>,
    /// Labels of the series, value, time.
    exemplars: Vec<(String, f64, i64)>,
    metadata: Vec<String>,
}

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let text = String::from_utf8_lossy;
        let labels: Vec<_> = series
            .labels
            .iter()
            .map(|(n, v)| format!("{}={}", text(n), text(v)))
            .collect();
        let labels = labels.join(",");
        for sample in series.samples {
            self.samples.push(format!("{labels} {} {}", sample.v, sample.t));
        }
        for raw in series.histograms {
            self.natives
                .push((labels.clone(), raw.histogram.clone().unwrap(), raw.t));
        }
        for exemplar in series.exemplars {
            self.exemplars.push((labels.clone(), exemplar.v, exemplar.t));
        }
    }

    fn metadata(&mut self, m: RawMetadata<'a>) {
        let parts = [m.metric, m.kind.as_bytes(), m.help, m.unit].map(String::from_utf8_lossy);
        self.metadata.push(parts.join("|"));
    }
}

fn written(families: &[Family]) -> Seen {
    let bytes = to_remote_write(&delimited(families), NOW, 16 << 20).unwrap();
    let limits = DecodeLimits {
        series: 100_000,
        samples: 100_000,
        labels_per_series: 5,
    };
    let mut seen = Seen::default();
    remote_write::decode(Version::V1, &bytes, limits, &mut seen).unwrap();
    seen
}

#[test]
fn values_come_with_labels_times_and_what_is_said_of_them() {
    let metric = |set: fn(&mut Metric)| {
        let mut metric = Metric::default();
        set(&mut metric);
        metric
    };
    let request = written(&[
        family(
            "jobs_total",
            0,
            metric(|m| {
                m.label = labels("queue", "a b");
                m.counter = value(3.0);
            }),
        ),
        family("temperature", 1, metric(|m| m.gauge = value(-1.5))),
        family(
            "thing",
            3,
            metric(|m| {
                m.untyped = value(f64::NAN);
                m.time = Some(-5);
            }),
        ),
    ]);
    assert_eq!(
        request.samples,
        [
            "__name__=jobs_total,queue=a b 3 1000000",
            "__name__=temperature -1.5 1000000",
            "__name__=thing NaN -5"
        ]
    );
    assert_eq!(
        request.metadata,
        [
            "jobs_total|counter|jobs_total helps|s",
            "temperature|gauge|temperature helps|s",
            "thing|unknown|thing helps|s"
        ]
    );
}

#[test]
fn summaries_and_classic_histograms_come_in_parts() {
    let summary = Metric {
        summary: Some(Summary {
            count: 7,
            sum: 1.25,
            quantile: vec![
                Quantile {
                    quantile: 0.5,
                    value: 2.0,
                },
                Quantile {
                    quantile: 1.0,
                    value: 4.0,
                },
            ],
        }),
        ..Metric::default()
    };
    let bucket = |count, bound| Bucket {
        count,
        bound,
        exemplar: None,
    };
    let histogram = Metric {
        histogram: Some(Histogram {
            count: 5,
            sum: 9.0,
            bucket: vec![bucket(1, 0.25), bucket(4, 10.0)],
            ..Histogram::default()
        }),
        ..Metric::default()
    };
    let request = written(&[family("wait", 2, summary), family("took", 4, histogram)]);
    assert_eq!(
        request.samples,
        [
            "__name__=wait,quantile=0.5 2 1000000",
            "__name__=wait,quantile=1.0 4 1000000",
            "__name__=wait_count 7 1000000",
            "__name__=wait_sum 1.25 1000000",
            "__name__=took_bucket,le=0.25 1 1000000",
            "__name__=took_bucket,le=10.0 4 1000000",
            "__name__=took_bucket,le=+Inf 5 1000000",
            "__name__=took_count 5 1000000",
            "__name__=took_sum 9 1000000",
        ]
    );
}

#[test]
fn native_histograms_stay_native_and_keep_classic_buckets_beside() {
    let exemplar = Exemplar {
        label: labels("trace", "x"),
        value: 0.5,
        timestamp: Some(Time {
            seconds: 12,
            nanos: 345_678_901,
        }),
    };
    let mut histogram = Histogram {
        count: 6,
        sum: 3.5,
        schema: -1,
        zero_threshold: 0.001,
        zero_count: 1,
        negative_span: vec![Span {
            offset: -2,
            length: 1,
        }],
        negative_delta: vec![2],
        positive_span: vec![Span { offset: 0, length: 2 }],
        positive_delta: vec![1, 1],
        exemplars: vec![exemplar],
        ..Histogram::default()
    };
    let metric = |histogram: &Histogram| Metric {
        label: labels("a", "b"),
        histogram: Some(histogram.clone()),
        ..Metric::default()
    };
    let request = written(&[family("took", 5, metric(&histogram))]);
    let [(labels, native, t)] = request.natives.as_slice() else {
        panic!("one histogram: {:?}", request.natives);
    };
    let span = |offset, length| koios_model::Span { offset, length };
    assert_eq!((labels.as_str(), *t), ("__name__=took,a=b", NOW));
    assert_eq!(
        *native,
        Native {
            reset_hint: ResetHint::Gauge,
            schema: -1,
            zero_threshold: 0.001,
            zero_count: 1.0,
            count: 6.0,
            sum: 3.5,
            positive_spans: vec![span(0, 2)],
            negative_spans: vec![span(-2, 1)],
            positive_buckets: vec![1.0, 2.0],
            negative_buckets: vec![2.0],
            custom_bounds: Vec::new(),
        }
    );
    assert_eq!(request.exemplars, [("__name__=took,a=b".to_owned(), 0.5, 12_345)]);
    assert!(request.samples.is_empty());

    histogram.bucket.push(Bucket {
        count: 6,
        bound: f64::INFINITY,
        exemplar: None,
    });
    let request = written(&[family("took", 4, metric(&histogram))]);
    assert_eq!(request.natives.len(), 1);
    assert_eq!(
        request.samples,
        [
            "__name__=took_bucket,a=b,le=+Inf 6 1000000",
            "__name__=took_count,a=b 6 1000000",
            "__name__=took_sum,a=b 3.5 1000000"
        ]
    );
}

#[test]
fn native_histograms_of_floats_have_counts_of_floats() {
    let histogram = Histogram {
        count_float: 2.5,
        positive_span: vec![Span { offset: 3, length: 2 }],
        positive_count: vec![1.5, 1.0],
        ..Histogram::default()
    };
    let metric = Metric {
        histogram: Some(histogram),
        ..Metric::default()
    };
    let request = written(&[family("took", 4, metric)]);
    let (_, native, _) = request.natives.first().unwrap();
    assert_eq!((native.count, native.sum), (2.5, 0.0));
    assert_eq!(native.positive_buckets, [1.5, 1.0]);
}

#[test]
fn exemplars_go_with_their_counter_or_bucket() {
    let exemplar = Some(Exemplar {
        label: labels("trace", "x"),
        value: 2.0,
        timestamp: None,
    });
    let counter = Metric {
        counter: Some(Value {
            value: 3.0,
            exemplar: exemplar.clone(),
        }),
        ..Metric::default()
    };
    let histogram = Metric {
        histogram: Some(Histogram {
            count: 1,
            bucket: vec![Bucket {
                count: 1,
                bound: 1.0,
                exemplar,
            }],
            ..Histogram::default()
        }),
        ..Metric::default()
    };
    let request = written(&[family("jobs_total", 0, counter), family("took", 4, histogram)]);
    let series = |name: &str| (name.to_owned(), 2.0, NOW);
    assert_eq!(
        request.exemplars,
        [
            series("__name__=jobs_total"),
            series("__name__=took_bucket,le=1.0")
        ]
    );
}

#[test]
fn many_metrics_of_a_family_are_no_unknown_fields() {
    let mut all = family("m", 1, Metric::default());
    all.metric = (0..70_000)
        .map(|_| Metric {
            gauge: value(1.0),
            ..Metric::default()
        })
        .collect();
    assert_eq!(written(&[all]).samples.len(), 70_000);
}

#[test]
fn i12_little_that_becomes_much_is_refused() {
    // One byte each: a family that says nothing.
    let error = to_remote_write(&vec![0; LIMIT], NOW, LIMIT).unwrap_err();
    assert_eq!(error, FamiliesError::TooLarge { limit: LIMIT });
    let long = Metric {
        label: labels("a", &"b".repeat(10_000)),
        histogram: Some(Histogram {
            bucket: vec![Bucket::default(); 1_000],
            ..Histogram::default()
        }),
        ..Metric::default()
    };
    let sent = delimited(&[family("took", 4, long)]);
    assert!(sent.len() < 20_000);
    let error = to_remote_write(&sent, NOW, LIMIT).unwrap_err();
    assert_eq!(
        error.to_string(),
        "metric families take more than 1048576 bytes as series: push fewer at once or raise limits.max-request-bytes"
    );
}

#[test]
fn an_unknown_type_is_named() {
    let error = to_remote_write(&delimited(&[family("m", 9, Metric::default())]), NOW, LIMIT).unwrap_err();
    assert_eq!(
        error.to_string(),
        "metric family \"m\" is of unknown type 9, use 0 (counter) to 5 (gauge histogram)"
    );
}

proptest! {
    #[test]
    fn i12_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _outcome = to_remote_write(&bytes, NOW, 4_096);
    }

    #[test]
    fn i12_damaged_families_never_panic(at in 0usize..200, bit in 0u8..8) {
        let metric = Metric {
            label: labels("a", "b"),
            histogram: Some(Histogram {
                count: 1,
                bucket: vec![Bucket::default(); 3],
                positive_span: vec![Span { offset: 0, length: 1 }],
                positive_delta: vec![1],
                ..Histogram::default()
            }),
            ..Metric::default()
        };
        let mut bytes = delimited(&[family("took", 4, metric)]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
        let _outcome = to_remote_write(&bytes, NOW, 4_096);
    }
}
