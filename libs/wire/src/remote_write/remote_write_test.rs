use koios_model::{ResetHint, Span};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::pb::prometheus as pb;

const LIMITS: DecodeLimits = DecodeLimits {
    series: 1000,
    samples: 1000,
    labels_per_series: 64,
};

/// Metric, type, help, unit.
type SeenMetadata = (Vec<u8>, &'static str, Vec<u8>, Vec<u8>);

/// What a sink was handed, owned.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    series: Vec<SeenSeries>,
    metadata: Vec<SeenMetadata>,
}

#[derive(Debug, Default, PartialEq)]
struct SeenSeries {
    labels: Vec<(Vec<u8>, Vec<u8>)>,
    label_count: usize,
    samples: Vec<Sample>,
    starts: Vec<i64>,
    histograms: Vec<Histogram>,
    histogram_fault: Option<String>,
    exemplars: usize,
    fault: Option<String>,
    help: Option<Vec<u8>>,
}

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, s: RawSeries<'a, '_>) {
        self.series.push(SeenSeries {
            labels: s.labels.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect(),
            label_count: s.label_count,
            samples: s.samples.to_vec(),
            starts: s
                .starts
                .iter()
                .copied()
                .chain(s.histograms.iter().map(|h| h.start))
                .collect(),
            histograms: s
                .histograms
                .iter()
                .filter_map(|h| h.histogram.clone().ok())
                .collect(),
            histogram_fault: s
                .histograms
                .iter()
                .find_map(|h| h.histogram.as_ref().err().map(ToString::to_string)),
            exemplars: s.exemplars.len(),
            fault: s.fault.map(ToString::to_string),
            help: s.metadata.map(|m| m.help.to_vec()),
        });
    }

    fn metadata(&mut self, m: RawMetadata<'a>) {
        self.metadata
            .push((m.metric.to_vec(), m.kind, m.help.to_vec(), m.unit.to_vec()));
    }
}

fn see(version: Version, bytes: &[u8]) -> Result<Seen, DecodeError> {
    let mut seen = Seen::default();
    decode(version, bytes, LIMITS, &mut seen).map(|()| seen)
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// A message written field by field.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(mut self, field: u32, n: u64) -> Self {
        varint(&mut self.0, u64::from(field) << 3);
        varint(&mut self.0, n);
        self
    }

    fn signed(self, field: u32, n: i64) -> Self {
        self.number(field, ((n << 1) ^ (n >> 63)) as u64)
    }

    fn double(mut self, field: u32, v: f64) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 1);
        self.0.extend_from_slice(&v.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u32, b: impl AsRef<[u8]>) -> Self {
        varint(&mut self.0, u64::from(field) << 3 | 2);
        varint(&mut self.0, b.as_ref().len() as u64);
        self.0.extend_from_slice(b.as_ref());
        self
    }

    fn message(self, field: u32, m: Message) -> Self {
        self.bytes(field, m.0)
    }

    fn packed(self, field: u32, numbers: &[u64]) -> Self {
        let mut packed = Vec::new();
        numbers.iter().for_each(|n| varint(&mut packed, *n));
        self.bytes(field, packed)
    }

    fn deltas(self, field: u32, deltas: &[i64]) -> Self {
        let zigzag: Vec<u64> = deltas.iter().map(|d| ((d << 1) ^ (d >> 63)) as u64).collect();
        self.packed(field, &zigzag)
    }

    fn span(self, field: u32, offset: i64, length: u64) -> Self {
        self.message(field, Message::default().signed(1, offset).number(2, length))
    }
}

fn any_request() -> impl Strategy<Value = pb::WriteRequest> {
    let label = ("[a-z_]{0,8}", "\\PC{0,8}").prop_map(|(name, value)| pb::Label { name, value });
    let sample = (any::<u64>(), any::<i64>()).prop_map(|(bits, timestamp)| pb::Sample {
        value: f64::from_bits(bits),
        timestamp,
    });
    let series = (
        proptest::collection::vec(label, 0..6),
        proptest::collection::vec(sample, 0..6),
    )
        .prop_map(|(labels, samples)| pb::TimeSeries { labels, samples });
    let metadata = (0i32..8, "[a-z]{0,6}", "\\PC{0,8}", "[a-z]{0,4}").prop_map(
        |(r#type, metric_family_name, help, unit)| pb::MetricMetadata {
            r#type,
            metric_family_name,
            help,
            unit,
        },
    );
    (
        proptest::collection::vec(series, 0..6),
        proptest::collection::vec(metadata, 0..4),
    )
        .prop_map(|(timeseries, metadata)| pb::WriteRequest { timeseries, metadata })
}

fn expected(request: &pb::WriteRequest) -> Seen {
    let series = |s: &pb::TimeSeries| SeenSeries {
        labels: s
            .labels
            .iter()
            .map(|l| (l.name.clone().into_bytes(), l.value.clone().into_bytes()))
            .collect(),
        label_count: s.labels.len(),
        samples: s
            .samples
            .iter()
            .map(|s| Sample {
                t: s.timestamp,
                v: s.value,
            })
            .collect(),
        ..SeenSeries::default()
    };
    let metadata = |m: &pb::MetricMetadata| {
        let text = |s: &String| s.clone().into_bytes();
        let kind = kind_word(m.r#type as u64);
        (text(&m.metric_family_name), kind, text(&m.help), text(&m.unit))
    };
    Seen {
        series: request.timeseries.iter().map(series).collect(),
        metadata: request.metadata.iter().map(metadata).collect(),
    }
}

proptest! {
    #[test]
    fn agrees_with_the_generated_decoder(request in any_request()) {
        prop_assert_eq!(see(Version::V1, &request.encode_to_vec()).unwrap(), expected(&request));
    }

    #[test]
    fn i12_random_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = see(Version::V1, &bytes);
        let _ = see(Version::V2, &bytes);
    }

    #[test]
    fn i12_a_damaged_request_is_decoded_or_refused(request in any_request(), at: prop::sample::Index, byte: u8) {
        let mut bytes = request.encode_to_vec();
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = see(Version::V1, &bytes);
            let _ = see(Version::V2, &bytes);
            let _ = see(Version::V1, &bytes[..at]);
        }
    }

    #[test]
    fn unknown_fields_are_passed_over(request in any_request(), field in 100u32..2000, n: u64) {
        let extra = Message::default().number(field, n).bytes(field + 1, "x").double(field + 2, 1.0).0;
        let mut bytes = extra.clone();
        bytes.extend(request.encode_to_vec());
        bytes.extend(extra);
        prop_assert_eq!(see(Version::V1, &bytes).unwrap(), expected(&request));
    }
}

#[test]
fn a_truncated_request_names_its_end() {
    let series = Message::default().message(1, Message::default().bytes(1, "a").bytes(2, "b"));
    let request = Message::default().message(1, series).0;
    for end in 1..request.len() {
        let error = see(Version::V1, &request[..end]).unwrap_err().to_string();
        assert_eq!(error, format!("invalid protobuf: unexpected end at byte {end}"));
    }
}

#[test]
fn i12_nested_groups_and_floods_of_unknown_fields_are_refused() {
    // Field 9, wire type 3, ten million times.
    let groups = vec![9 << 3 | 3; 10_000_000];
    // Field 9, wire type 0, value 0.
    let unknown = [9 << 3, 0].repeat(5_000_000);
    for bytes in [groups, unknown] {
        for version in [Version::V1, Version::V2] {
            let error = see(version, &bytes).unwrap_err().to_string();
            assert!(error.starts_with("invalid protobuf: nesting too deep"), "{error}");
        }
    }
    // A group that ends is passed over.
    assert_eq!(
        see(Version::V1, &[9 << 3 | 3, 8 << 3, 1, 9 << 3 | 4]),
        Ok(Seen::default())
    );
    assert!(see(Version::V1, &[9 << 3 | 4]).is_err());
}

#[test]
fn i12_counts_are_bounded() {
    let empty_series = [1 << 3 | 2, 0].repeat(1001);
    assert_eq!(
        see(Version::V1, &empty_series).unwrap_err().to_string(),
        "too many series in request (limit: 1000), which has more than 1000: send smaller batches or raise \
         limits.max-series-per-request"
    );
    let samples = Message::default().bytes(1, [2 << 3 | 2, 0].repeat(1001)).0;
    assert_eq!(
        see(Version::V1, &samples).unwrap_err().to_string(),
        "too many samples in request (limit: 1000), which has more than 1000: send smaller batches or raise \
         limits.max-samples-per-request"
    );
    let labels = Message::default().bytes(1, [1 << 3 | 2, 0].repeat(10_000)).0;
    let seen = see(Version::V1, &labels).unwrap();
    assert_eq!(
        (seen.series[0].labels.len(), seen.series[0].label_count),
        (64, 10_000)
    );
    let symbols = [4 << 3 | 2, 0].repeat(16_001);
    assert_eq!(
        see(Version::V2, &symbols).unwrap_err().to_string(),
        "too many symbols in request (limit: 16000, 16 for each series of limits.max-series-per-request), which has more \
         than 16000: send smaller batches or raise it"
    );
    let metadata = [3 << 3 | 2, 0].repeat(1001);
    assert_eq!(
        see(Version::V1, &metadata),
        Err(DecodeError::TooManyMetrics { limit: 1000 })
    );
    let exemplars = Message::default().bytes(1, [3 << 3 | 2, 0].repeat(1001)).0;
    assert_eq!(
        see(Version::V1, &exemplars),
        Err(DecodeError::TooManyExemplars { limit: 1000 })
    );
}

fn v2(symbols: &[&str], series: Message) -> Vec<u8> {
    // The series first: fields may come in any order.
    let start = Message::default().message(5, series);
    symbols.iter().fold(start, |m, s| m.bytes(4, s)).0
}

#[test]
fn version_2_resolves_symbols() {
    let series = Message::default()
        .packed(1, &[1, 2])
        .number(1, 3)
        .number(1, 4)
        .message(2, Message::default().double(1, 2.5).number(2, 77).number(3, 1))
        .message(4, Message::default())
        .message(5, Message::default().number(1, 1).number(3, 4));
    let seen = see(Version::V2, &v2(&["", "__name__", "up", "job", "node"], series)).unwrap();
    let text = |s: &str| s.as_bytes().to_vec();
    assert_eq!(
        seen.series,
        [SeenSeries {
            labels: vec![(text("__name__"), text("up")), (text("job"), text("node"))],
            label_count: 2,
            samples: vec![Sample { t: 77, v: 2.5 }],
            starts: vec![1],
            exemplars: 1,
            help: Some(text("node")),
            ..SeenSeries::default()
        }]
    );
}

#[test]
fn version_2_names_wrong_references() {
    let refs = |refs: &[u64]| v2(&["", "a", "b", "c"], Message::default().packed(1, refs));
    let fault = |bytes: &[u8]| see(Version::V2, bytes).unwrap().series[0].fault.clone().unwrap();
    assert_eq!(
        fault(&refs(&[1, 7])),
        "symbol reference 7 out of range (4 symbols)"
    );
    assert_eq!(fault(&refs(&[1, 2, 3])), "odd number of label references (3)");
    let bad_help = Message::default().message(5, Message::default().number(3, 9));
    assert_eq!(
        fault(&v2(&[""], bad_help)),
        "symbol reference 9 out of range (1 symbols)"
    );
    let first = see(Version::V2, &v2(&["x"], Message::default()))
        .unwrap_err()
        .to_string();
    assert!(first.starts_with("invalid symbol table: symbols[0]"), "{first}");
}

#[test]
fn series_of_2_0_need_a_sample_a_histogram_or_an_exemplar() {
    let fault = |series: Message| {
        let seen = see(Version::V2, &v2(&["", "__name__", "up"], series)).unwrap();
        seen.series[0].fault.clone()
    };
    let labels = || Message::default().packed(1, &[1, 2]);
    let with_metadata = labels().message(5, Message::default().number(1, 1));
    for nothing in [labels(), with_metadata] {
        assert_eq!(
            fault(nothing).unwrap(),
            "TimeSeries must contain at least one sample or histogram"
        );
    }
    for field in [2, 3, 4] {
        assert_eq!(
            fault(labels().message(field, Message::default())),
            None,
            "{field}"
        );
    }
    let v1 = Message::default().message(1, Message::default()).0;
    assert_eq!(see(Version::V1, &v1).unwrap().series[0].fault, None);
}

/// One observation in a positive bucket and two in the zero bucket.
fn good_integer() -> Message {
    Message::default()
        .number(1, 3)
        .double(3, 1.5)
        .signed(4, 3)
        .double(5, 0.001)
        .number(6, 2)
        .span(11, -2, 1)
        .deltas(12, &[1])
        .number(15, 1_000)
}

fn verdict(histogram: Message) -> Option<String> {
    let v1 = Message::default().message(1, Message::default().message(4, Message(histogram.0.clone())));
    let v2 = Message::default()
        .bytes(4, "")
        .message(5, Message::default().message(3, histogram));
    let first = see(Version::V1, &v1.0).unwrap();
    let second = see(Version::V2, &v2.0).unwrap();
    assert_eq!(first.series[0].histogram_fault, second.series[0].histogram_fault);
    let [first_kept, second_kept] = [&first, &second].map(|seen| &seen.series[0].histograms);
    assert_eq!(first_kept.len(), second_kept.len());
    assert!(
        first_kept
            .iter()
            .zip(second_kept)
            .all(|(a, b)| a.bits_cmp(b).is_eq())
    );
    first.series[0].histogram_fault.clone()
}

#[test]
fn good_histograms_have_no_fault() {
    assert_eq!(verdict(good_integer()), None);
    let float = Message::default()
        .double(2, 1.5)
        .double(3, 0.0)
        .double(7, 0.5)
        .span(11, 0, 2)
        .bytes(13, [0.25f64, 0.75].map(f64::to_le_bytes).concat());
    assert_eq!(verdict(float), None);
    let custom = Message::default()
        .number(1, 3)
        .signed(4, -53)
        .span(11, 0, 3)
        .deltas(12, &[1, 0, 0])
        .bytes(16, [0.5f64, 1.0].map(f64::to_le_bytes).concat());
    assert_eq!(verdict(custom), None);
    let nan_observed = Message::default().number(1, 9).double(3, f64::NAN).number(6, 2);
    assert_eq!(verdict(nan_observed), None);
}

#[test]
fn bad_histograms_are_named() {
    let bounds = |b: &[f64]| b.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>();
    let custom = |b: &[f64]| Message::default().signed(4, -53).bytes(16, bounds(b));
    for (histogram, want) in [
        (good_integer().signed(4, 99), "schema 99 is unknown"),
        (good_integer().signed(4, 53), "schema 53 is unknown"),
        (good_integer().signed(4, -5), "schema -5 is unknown"),
        (
            good_integer().number(1, 4),
            "3 observations in buckets, but the count is 4",
        ),
        (
            good_integer().span(11, 0, i32::MAX as u64),
            "positive spans need 2147483648 buckets, have 1",
        ),
        (
            good_integer().span(11, -1, 0),
            "positive span number 2 has a negative offset -1",
        ),
        (
            good_integer().span(8, 0, 2).deltas(9, &[1, -3]),
            "negative bucket number 2 has a count of -2",
        ),
        (
            good_integer().span(8, 0, 2).deltas(9, &[i64::MAX, 1]),
            "negative bucket number 2 overflows",
        ),
        (
            good_integer()
                .number(1, 5)
                .span(11, i64::from(i32::MAX), 1)
                .deltas(12, &[1])
                .span(11, i64::from(i32::MAX), 0),
            "positive span number 3 is at an index out of range",
        ),
        (good_integer().double(5, f64::NAN), "zero threshold is NaN"),
        (
            good_integer().bytes(16, bounds(&[1.0])),
            "schema 3 allows no custom bounds",
        ),
        (Message::default().double(2, -1.0), "but the count is -1"),
        (
            Message::default().double(2, 1.0).double(7, -1.0),
            "zero bucket has a count of -1",
        ),
        (
            Message::default()
                .double(2, 1.0)
                .span(11, 0, 1)
                .double(13, f64::NAN),
            "positive bucket number 1 has a count of NaN",
        ),
        (
            Message::default().deltas(12, &[0; 5000]),
            "more than 4096 buckets or spans",
        ),
        (
            custom(&[1.0, 1.0]),
            "custom bounds must be strictly increasing, bound number 2 is 1",
        ),
        (custom(&[2.0, 1.0]), "custom bounds must be strictly increasing"),
        (custom(&[f64::NAN]), "custom bounds must be strictly increasing"),
        (
            custom(&[1.0, f64::INFINITY]),
            "custom bounds must be strictly increasing",
        ),
        (
            custom(&[1.0]).number(1, 1).span(11, -1, 1).deltas(12, &[1]),
            "positive span number 1 is at an index out of range",
        ),
        (custom(&[1.0]).number(6, 1), "custom buckets allow no zero bucket"),
        (
            custom(&[1.0]).span(11, 0, 3),
            "spans reach bucket 3 of 1 custom bounds",
        ),
    ] {
        let got = verdict(histogram).unwrap_or_default();
        assert!(
            got.starts_with("invalid native histogram: ") && got.contains(want),
            "{want}: {got}"
        );
    }
}

fn decoded(histogram: Message) -> Histogram {
    let v1 = Message::default().message(1, Message::default().message(4, histogram));
    see(Version::V1, &v1.0)
        .unwrap()
        .series
        .remove(0)
        .histograms
        .remove(0)
}

#[test]
fn histograms_are_taken_as_floats_without_empty_buckets() {
    let span = |offset, length| Span { offset, length };
    let integer = good_integer()
        .number(1, 9)
        .number(14, 1)
        .span(11, 1, 3)
        .deltas(12, &[4, -5, 1])
        .span(8, 7, 0);
    let want = Histogram {
        reset_hint: ResetHint::Reset,
        schema: 3,
        zero_threshold: 0.001,
        zero_count: 2.0,
        count: 9.0,
        sum: 1.5,
        positive_spans: vec![span(-2, 1), span(1, 1), span(1, 1)],
        positive_buckets: vec![1.0, 5.0, 1.0],
        ..Histogram::default()
    };
    assert_eq!(decoded(integer), want);
    let float = Message::default()
        .double(2, 1.5)
        .double(7, 0.5)
        .number(14, 3)
        .span(8, 3, 2)
        .bytes(10, [0.25f64, 0.75].map(f64::to_le_bytes).concat());
    let want = Histogram {
        reset_hint: ResetHint::Gauge,
        zero_count: 0.5,
        count: 1.5,
        negative_spans: vec![span(3, 2)],
        negative_buckets: vec![0.25, 0.75],
        ..Histogram::default()
    };
    assert_eq!(decoded(float), want);
    let stale = decoded(good_integer().double(3, koios_model::stale_nan()));
    assert!(stale.is_stale() && stale.positive_buckets.is_empty());
}

/// The exemplars of the first series: labels, value, time.
#[derive(Default)]
struct Exemplars(Vec<SeenExemplar>);

/// Labels, value, time.
type SeenExemplar = (Vec<(String, String)>, f64, i64);

impl<'a> Sink<'a> for Exemplars {
    fn series(&mut self, s: RawSeries<'a, '_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for e in s.exemplars {
            let labels = s.exemplar_labels[e.labels.clone()].iter();
            let labels = labels.map(|(n, v)| (text(n), text(v))).collect();
            self.0.push((labels, e.v, e.t));
        }
    }

    fn metadata(&mut self, _: RawMetadata<'a>) {}
}

#[test]
fn exemplars_keep_their_labels_apart() {
    let label = |n: &str, v: &str| Message::default().bytes(1, n).bytes(2, v);
    let one = Message::default()
        .message(1, label("trace_id", "a"))
        .double(2, 0.5)
        .number(3, 7);
    let two = Message::default()
        .message(1, label("trace_id", "b"))
        .message(1, label("span_id", "c"));
    let v1 = Message::default().message(1, Message::default().message(3, one).message(3, two));
    let mut first = Exemplars::default();
    decode(Version::V1, &v1.0, LIMITS, &mut first).unwrap();
    let one = Message::default().packed(1, &[1, 2]).double(2, 0.5).number(3, 7);
    let two = Message::default().packed(1, &[1, 3, 4, 5]);
    let series = Message::default().message(4, one).message(4, two);
    let mut second = Exemplars::default();
    let symbols = ["", "trace_id", "a", "b", "span_id", "c"];
    decode(Version::V2, &v2(&symbols, series), LIMITS, &mut second).unwrap();
    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    let want = [
        (vec![pair("trace_id", "a")], 0.5, 7),
        (vec![pair("trace_id", "b"), pair("span_id", "c")], 0.0, 0),
    ];
    assert_eq!(first.0, want);
    assert_eq!(second.0, want);
}

#[test]
fn start_timestamps_of_2_0_come_with_their_samples() {
    let sample = |t: u64| Message::default().double(1, 1.0).number(2, t);
    let histogram = || Message::default().number(1, 0).number(15, 40);
    let series = Message::default()
        .packed(1, &[1, 2])
        .message(2, sample(10))
        .message(2, sample(20).number(3, 5))
        .message(2, sample(30).number(3, (-7i64) as u64))
        .message(2, sample(35).number(3, 0))
        .message(3, histogram())
        .message(3, histogram().number(17, 9));
    let bare = Message::default().packed(1, &[1, 2]).message(2, sample(10));
    let request = Message::default()
        .bytes(4, "")
        .bytes(4, "__name__")
        .bytes(4, "up")
        .message(5, series)
        .message(5, bare);
    let seen = see(Version::V2, &request.0).unwrap();
    let starts: Vec<_> = seen.series.iter().map(|s| s.starts.clone()).collect();
    assert_eq!(starts, [vec![0, 5, -7, 0, 9], vec![]]);
    assert_eq!(seen.series[0].samples.len(), 4);
    // Remote write 1.0 knows no such field of samples.
    let series = Message::default().message(2, sample(10).number(3, 5));
    let seen = see(Version::V1, &Message::default().message(1, series).0).unwrap();
    assert_eq!(
        (seen.series[0].samples.len(), seen.series[0].starts.len()),
        (1, 0)
    );
}

#[test]
fn i13_a_message_of_the_other_version_is_no_empty_one() {
    let label = Message::default().bytes(1, "__name__").bytes(2, "up");
    let sample = || Message::default().double(1, 1.0).number(2, 10);
    let first = Message::default().message(1, Message::default().message(1, label).message(2, sample()));
    let metadata = Message::default().message(3, Message::default().number(1, 1).bytes(2, "up"));
    let second = Message::default()
        .bytes(4, "")
        .message(5, Message::default().packed(1, &[1, 2]).message(2, sample()));
    let symbols = Message::default().bytes(4, "");
    for (version, message, other) in [
        (Version::V1, &second, "io.prometheus.write.v2.Request"),
        (Version::V1, &symbols, "io.prometheus.write.v2.Request"),
        (Version::V2, &first, "prometheus.WriteRequest"),
        (Version::V2, &metadata, "prometheus.WriteRequest"),
    ] {
        let error = see(version, &message.0).unwrap_err().to_string();
        let advice = format!("send it with content-type application/x-protobuf;proto={other}");
        assert!(error.contains(&advice), "{error}");
    }
    // Other senders' fields of the same numbers.
    for (version, fields) in [(Version::V1, [2, 4, 5]), (Version::V2, [1, 2, 3])] {
        let message = fields
            .iter()
            .fold(Message::default(), |m, field| m.number(*field, 1));
        assert!(see(version, &message.0).unwrap().series.is_empty());
    }
}

#[test]
fn histograms_finer_than_any_that_is_kept_are_made_coarser() {
    // As Prometheus' `reduceResolution` does: bucket 0 ends where it did, and `2^n` of those beside it become one.
    let counts = [1i64, 2, 3, 4, 5, 6];
    let deltas: Vec<i64> = counts
        .iter()
        .scan(0, |last, c| Some(c - std::mem::replace(last, *c)))
        .collect();
    for (schema, first, want) in [
        (
            8,
            -2,
            vec![(-2, 1.0), (-1, 2.0), (0, 3.0), (1, 4.0), (2, 5.0), (3, 6.0)],
        ),
        (9, -2, vec![(-1, 1.0), (0, 5.0), (1, 9.0), (2, 6.0)]),
        (10, -2, vec![(0, 6.0), (1, 15.0)]),
        (52, -2, vec![(0, 6.0), (1, 15.0)]),
        (52, i64::from(i32::MAX) - 8, vec![(1, 21.0)]),
    ] {
        let integer = Message::default()
            .number(1, 21)
            .signed(4, schema)
            .span(11, first, 6)
            .deltas(12, &deltas)
            .span(8, first, 6)
            .deltas(9, &[0; 6]);
        let integer = decoded(integer);
        let counts = counts.map(|c| (c as f64).to_le_bytes()).concat();
        let float = Message::default()
            .double(2, 21.0)
            .signed(4, schema)
            .span(11, first, 6)
            .bytes(13, counts);
        assert_eq!(integer, decoded(float));
        assert_eq!(integer.schema, 8);
        assert_eq!(
            integer.positive().collect::<Vec<_>>(),
            want,
            "{schema} from {first}"
        );
        assert_eq!(integer.negative().count(), 0);
    }
}
