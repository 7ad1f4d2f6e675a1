//! Seeds of remote write: requests of both versions with everything that a series may have.
//!
//! **Source**: Prometheus `prompb/types.proto`, `prompb/io/prometheus/write/v2/types.proto`.

use koios_testkit::fuzz::remote_write;
use koios_wire::remote_write::{DecodeLimits, RawMetadata, RawSeries, Sink, Version, decode};
use prost::Message;

use crate::assert_seed;

const T: i64 = 1_760_000_000_000;

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, repeated, tag = "4")]
    symbols: Vec<String>,
    #[prost(message, repeated, tag = "5")]
    timeseries: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    histograms: Vec<Histogram>,
    #[prost(message, repeated, tag = "4")]
    exemplars: Vec<Exemplar>,
    #[prost(message, optional, tag = "5")]
    metadata: Option<Metadata>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    t: i64,
    #[prost(int64, tag = "3")]
    start: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Exemplar {
    #[prost(uint32, repeated, tag = "1")]
    labels: Vec<u32>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    t: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Metadata {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(uint32, tag = "3")]
    help: u32,
    #[prost(uint32, tag = "4")]
    unit: u32,
}

/// As both versions have it.
#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(uint64, optional, tag = "1")]
    count: Option<u64>,
    #[prost(double, optional, tag = "2")]
    count_float: Option<f64>,
    #[prost(double, tag = "3")]
    sum: f64,
    #[prost(sint32, tag = "4")]
    schema: i32,
    #[prost(double, tag = "5")]
    zero_threshold: f64,
    #[prost(uint64, optional, tag = "6")]
    zero_count: Option<u64>,
    #[prost(double, optional, tag = "7")]
    zero_count_float: Option<f64>,
    #[prost(message, repeated, tag = "8")]
    negative_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "9")]
    negative_deltas: Vec<i64>,
    #[prost(message, repeated, tag = "11")]
    positive_spans: Vec<Span>,
    #[prost(sint64, repeated, tag = "12")]
    positive_deltas: Vec<i64>,
    #[prost(double, repeated, tag = "13")]
    positive_counts: Vec<f64>,
    #[prost(int32, tag = "14")]
    reset_hint: i32,
    #[prost(int64, tag = "15")]
    t: i64,
    #[prost(double, repeated, tag = "16")]
    custom_bounds: Vec<f64>,
    #[prost(int64, tag = "17")]
    start: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Span {
    #[prost(sint32, tag = "1")]
    offset: i32,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, Message)]
struct RequestV1 {
    #[prost(message, repeated, tag = "1")]
    timeseries: Vec<SeriesV1>,
    #[prost(message, repeated, tag = "3")]
    metadata: Vec<MetadataV1>,
}

#[derive(Clone, PartialEq, Message)]
struct SeriesV1 {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    exemplars: Vec<ExemplarV1>,
    #[prost(message, repeated, tag = "4")]
    histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExemplarV1 {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(double, tag = "2")]
    value: f64,
    #[prost(int64, tag = "3")]
    t: i64,
}

#[derive(Clone, PartialEq, Message)]
struct MetadataV1 {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    metric: String,
    #[prost(string, tag = "4")]
    help: String,
    #[prost(string, tag = "5")]
    unit: String,
}

fn span(offset: i32, length: u32) -> Span {
    Span { offset, length }
}

fn integers(t: i64) -> Histogram {
    Histogram {
        count: Some(12),
        sum: 18.4,
        zero_threshold: 0.001,
        zero_count: Some(2),
        positive_spans: vec![span(0, 2), span(1, 2)],
        positive_deltas: vec![1, 1, -1, 0],
        negative_spans: vec![span(-1, 1)],
        negative_deltas: vec![5],
        t,
        ..Histogram::default()
    }
}

fn floats(t: i64) -> Histogram {
    Histogram {
        count_float: Some(3.5),
        sum: -1.25,
        schema: 1,
        zero_count_float: Some(0.5),
        positive_spans: vec![span(2, 1)],
        positive_counts: vec![3.0],
        reset_hint: 3,
        t,
        ..Histogram::default()
    }
}

fn custom(t: i64) -> Histogram {
    Histogram {
        count: Some(6),
        sum: 7.5,
        schema: -53,
        positive_spans: vec![span(0, 1), span(1, 2)],
        positive_deltas: vec![1, 1, 1],
        custom_bounds: vec![0.5, 1.0, 2.5],
        t,
        ..Histogram::default()
    }
}

fn sample(i: i64, start: i64) -> Sample {
    Sample {
        value: i as f64 / 4.0,
        t: T + 15_000 * i,
        start,
    }
}

const SYMBOLS: [&str; 11] = [
    "",
    "__name__",
    "up_total",
    "job",
    "größe",
    "trace_id",
    "4bf92f35",
    "Help, with a\nline break.",
    "seconds",
    "span_id",
    "00f067aa",
];
/// `__name__` and `job`, as symbols.
const LABELS: [u32; 4] = [1, 2, 3, 4];
const METADATA: Metadata = Metadata {
    kind: 1,
    help: 7,
    unit: 8,
};

fn exemplar(labels: &[u32], t: i64) -> Exemplar {
    Exemplar {
        labels: labels.to_vec(),
        value: 0.25,
        t,
    }
}

fn series() -> Series {
    Series {
        labels: LABELS.to_vec(),
        ..Series::default()
    }
}

fn v2(series: Vec<Series>) -> Vec<u8> {
    let symbols = SYMBOLS.map(str::to_owned).to_vec();
    let request = Request {
        symbols,
        timeseries: series,
    };
    [vec![1], request.encode_to_vec()].concat()
}

fn v1() -> Vec<u8> {
    let label = |name: &str, value: &str| Label {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let series = SeriesV1 {
        labels: vec![label("__name__", "up_total"), label("job", "größe")],
        samples: (0..3).map(|i| sample(i, 0)).collect(),
        exemplars: vec![ExemplarV1 {
            labels: vec![label("trace_id", "4bf92f35")],
            value: 0.25,
            t: T + 7,
        }],
        histograms: Vec::new(),
    };
    let of_histograms = SeriesV1 {
        labels: vec![label("__name__", "sizes")],
        histograms: vec![integers(T), floats(T + 1), custom(T + 2)],
        ..SeriesV1::default()
    };
    let request = RequestV1 {
        timeseries: vec![series, of_histograms],
        metadata: vec![MetadataV1 {
            kind: 1,
            metric: "up_total".to_owned(),
            help: "Help.".to_owned(),
            unit: "seconds".to_owned(),
        }],
    };
    [vec![0], request.encode_to_vec()].concat()
}

/// What a request has.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    samples: usize,
    starts: usize,
    histograms: usize,
    exemplars: usize,
    metadata: usize,
}

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        assert_eq!(series.fault, None);
        self.samples += series.samples.len();
        self.starts += series.starts.iter().filter(|start| **start != 0).count();
        for raw in series.histograms {
            assert!(raw.histogram.is_ok(), "{raw:?}");
            self.histograms += 1;
            self.starts += usize::from(raw.start != 0);
        }
        self.exemplars += series.exemplars.len();
        self.metadata += usize::from(series.metadata.is_some());
    }

    fn metadata(&mut self, _: RawMetadata<'a>) {
        self.metadata += 1;
    }
}

fn seen(input: &[u8]) -> Seen {
    let (first, message) = input.split_first().unwrap();
    let version = if first % 2 == 0 { Version::V1 } else { Version::V2 };
    let limits = DecodeLimits {
        series: 10,
        samples: 100,
        labels_per_series: 10,
    };
    let mut seen = Seen::default();
    decode(version, message, limits, &mut seen).unwrap();
    seen
}

#[test]
fn seeds_of_requests_have_everything_that_series_have() {
    let samples = || (0..3).map(|i| sample(i, 0)).collect();
    let started = || {
        (0..3)
            .map(|i| sample(i, if i < 2 { T - 60_000 } else { T + 16_000 }))
            .collect()
    };
    let histograms = vec![
        integers(T),
        Histogram {
            start: T - 60_000,
            ..integers(T + 1)
        },
        floats(T + 2),
        custom(T + 3),
    ];
    let exemplars = || {
        vec![
            exemplar(&[5, 6], T + 7),
            exemplar(&[5, 6, 9, 10], T + 15_007),
            exemplar(&[], T),
        ]
    };
    let with_exemplars = Series {
        samples: samples(),
        exemplars: exemplars(),
        ..series()
    };
    let exemplars_alone = Series {
        exemplars: exemplars(),
        ..series()
    };
    let with_metadata = Series {
        samples: samples(),
        metadata: Some(METADATA),
        ..series()
    };
    let with_starts = Series {
        samples: started(),
        ..series()
    };
    let of_histograms = Series {
        histograms,
        metadata: Some(Metadata { kind: 3, ..METADATA }),
        ..series()
    };
    let everything = Series {
        samples: started(),
        exemplars: exemplars(),
        metadata: Some(METADATA),
        ..series()
    };
    let wanted = |samples, starts, histograms, exemplars, metadata| Seen {
        samples,
        starts,
        histograms,
        exemplars,
        metadata,
    };
    for (name, input, has) in [
        ("v1-everything", v1(), wanted(3, 0, 3, 1, 1)),
        (
            "v2-exemplars",
            v2(vec![with_exemplars, exemplars_alone]),
            wanted(3, 0, 0, 6, 0),
        ),
        ("v2-metadata", v2(vec![with_metadata]), wanted(3, 0, 0, 0, 1)),
        ("v2-starts", v2(vec![with_starts]), wanted(3, 3, 0, 0, 0)),
        (
            "v2-histograms",
            v2(vec![of_histograms.clone()]),
            wanted(0, 1, 4, 0, 1),
        ),
        (
            "v2-everything",
            v2(vec![everything, of_histograms]),
            wanted(3, 4, 4, 3, 2),
        ),
    ] {
        assert_eq!(seen(&input), has, "{name}");
        remote_write(&input);
        assert!(input.len() < 1024, "{name} has {} bytes", input.len());
        assert_seed("remote_write", name, &input);
    }
}
