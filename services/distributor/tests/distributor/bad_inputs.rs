//! One test per class of bad input; the numbers in the comments are the rows' in the table of bad inputs.

use std::io::Write as _;

use axum::body::Body;
use koios_tenancy::Limits;
use rstest::rstest;

use crate::messages::*;
use crate::rig::{NOW, Rig, state};

const TYPE: (&str, &str) = ("content-type", "application/x-protobuf");
const NAME: (&[u8], &[u8]) = (b"__name__", b"up");
const NO_NAME: (&[u8], &[u8]) = (b"__name__", b"");
const A: (&[u8], &[u8]) = (b"a", b"1");
/// 200 years in milliseconds, to be far away from now.
const FAR: i64 = 6_311_520_000_000;

/// The process lives and others are served: a good request after the bad one.
async fn assert_alive(rig: &Rig) {
    let good = snappy(&good("alive", &[(NOW, 1.0)]));
    rig.send(&[TYPE, ("x-scope-orgid", "other")], good)
        .await
        .assert(204, "");
}

// Rows 1 to 3.
#[rstest]
#[case::no_type(&[], "unsupported content type")]
#[case::text(&[("content-type", "text/plain")], "unsupported content type \"text/plain\"")]
#[case::brotli(&[TYPE, ("content-encoding", "br")], "unsupported content encoding \"br\", use snappy or zstd")]
#[case::message(
    &[("content-type", "application/x-protobuf;proto=io.prometheus.write.v9.Request")],
    "unknown remote-write message \"io.prometheus.write.v9.Request\""
)]
#[tokio::test(start_paused = true)]
async fn what_a_request_claims_to_be(#[case] headers: &[(&str, &str)], #[case] message: &str) {
    let rig = Rig::single();
    rig.send(headers, snappy(&good("up", &[(NOW, 1.0)])))
        .await
        .assert(415, message);
    assert_alive(&rig).await;
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

// Row 3: what it claims to be is known, but it is not that.
#[tokio::test(start_paused = true)]
async fn i13_a_message_under_the_name_of_another_is_not_taken_for_an_empty_one() {
    let rig = Rig::single();
    let first = good("up", &[(NOW, 1.0)]);
    let series = [series_v2(&[1, 2], &[(NOW, 1.0)])];
    let second = request_v2(&["", "__name__", "up"], &series);
    rig.push(&second)
        .await
        .assert(400, "application/x-protobuf;proto=io.prometheus.write.v2.Request");
    rig.push_v2(&first)
        .await
        .assert(400, "application/x-protobuf;proto=prometheus.WriteRequest");
    assert_eq!(rig.stored(), []);
    rig.push(&first).await.assert(204, "");
    rig.push_v2(&second).await.assert(204, "");
    assert_alive(&rig).await;
}

// Rows 4 to 8.
#[tokio::test(start_paused = true)]
async fn bytes_that_cannot_be_decompressed() {
    let rig = Rig::single();
    rig.send(&[TYPE], "")
        .await
        .assert(400, "snappy: corrupt input (empty body)");
    rig.send(&[TYPE], "\x09random bytes")
        .await
        .assert(400, "snappy: corrupt input");
    let mut bomb = vec![0x80, 0x80, 0x80, 0x80, 0x0a];
    bomb.resize(47, 0);
    rig.send(&[TYPE], bomb)
        .await
        .assert(413, "declared decoded length 2684354560 exceeds limit 33554432");
    let zeros = vec![0; 40 << 20];
    for (encoding, bomb) in [
        ("zstd", zstd::bulk::compress(&zeros, 3).unwrap()),
        ("gzip", gzip(&zeros)),
    ] {
        rig.send(&[TYPE, ("content-encoding", encoding)], bomb)
            .await
            .assert(413, "decompressed size exceeds limit");
    }
    let large = vec![0; 33 << 20];
    let declared = [TYPE, ("content-length", "34603008")];
    rig.send(&declared, large.clone())
        .await
        .assert(413, "request body larger than 33554432");
    let chunks = large.chunks(1 << 20).map(|c| Ok::<_, std::io::Error>(c.to_vec()));
    let chunked = Body::from_stream(futures::stream::iter(chunks.collect::<Vec<_>>()));
    rig.send(&[TYPE], chunked)
        .await
        .assert(413, "request body larger than 33554432");
    assert_alive(&rig).await;
}

// Row 73.
#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming() {
    use futures::StreamExt as _;
    let rig = Rig::single();
    let first = futures::stream::once(async { Ok::<_, std::io::Error>(vec![1, 2, 3]) });
    let body = Body::from_stream(first.chain(futures::stream::pending()));
    rig.send(&[TYPE], body)
        .await
        .assert(408, "request body stopped for more than 30s");
    assert_alive(&rig).await;
}

// Rows 9 and 10.
#[tokio::test(start_paused = true)]
async fn bytes_that_are_no_message() {
    let rig = Rig::single();
    let whole = good("up", &[(NOW, 1.0)]);
    rig.push(&whole[..whole.len() - 3])
        .await
        .assert(400, "invalid protobuf: unexpected end at byte");
    let groups = vec![9 << 3 | 3; 10_000_000];
    rig.push(&groups)
        .await
        .assert(400, "invalid protobuf: nesting too deep");
    let unknown = [9 << 3, 0].repeat(10_000_000);
    rig.push(&unknown)
        .await
        .assert(400, "invalid protobuf: nesting too deep");
    assert_alive(&rig).await;
}

// Rows 11 to 13, 15 to 18, 20: the bad series is named, the good one beside it is stored.
#[rstest]
#[case::value_not_utf8(&[NAME, (b"a", b"\xff\xfe")], "label value is not valid UTF-8")]
#[case::name_not_utf8(&[NAME, (b"a\xff", b"b")], "label value is not valid UTF-8")]
#[case::no_metric_name(&[A], "missing metric name")]
#[case::no_labels(&[], "missing metric name")]
#[case::empty_metric_name(&[NO_NAME], "missing metric name")]
#[case::duplicate(&[NAME, (b"a", b"1"), (b"a", b"2")], "duplicate label name: \"a\"")]
#[case::duplicate_apart(&[A, NAME, A], "duplicate label name: \"a\"")]
#[case::empty_name(&[NAME, (b"", b"1")], "empty label name")]
#[case::long_name(&[NAME, (&[b'x'; 1 << 20], b"1")], "label name too long (actual: 1048576, limit: 1024)")]
#[case::long_value(&[NAME, (b"a", &[b'x'; 10 << 20])], "label value too long (actual: 10485760, limit: 65536")]
#[case::reserved(&[NAME, (b"__tenant__", b"x")], "label name \"__tenant__\" is reserved")]
#[case::reserved_shard(&[NAME, (b"__shard__", b"x")], "label name \"__shard__\" is reserved")]
#[tokio::test(start_paused = true)]
async fn bad_labels_reject_their_series_alone(#[case] labels: &[(&[u8], &[u8])], #[case] message: &str) {
    let rig = Rig::single();
    let bad = series(labels, &[(NOW, 1.0), (NOW + 1, 1.0)]);
    let answer = rig.push(&request(&[bad, series(&[NAME], &[(NOW, 2.0)])])).await;
    answer.assert(400, message);
    answer.assert(400, "rejected: 2 samples of 1 series, written: 1 samples");
    assert!(answer.body.len() < 2000, "{}", answer.body.len());
    assert_eq!(rig.stored(), [("{__name__=\"up\"}".to_owned(), NOW, 2.0)]);
}

// Rows 16 and 18.
#[tokio::test(start_paused = true)]
async fn many_and_large_labels() {
    let rig = Rig::single();
    let names: Vec<String> = (0..9_999).map(|i| format!("l{i}")).collect();
    let mut labels: Vec<(&[u8], &[u8])> = names.iter().map(|n| (n.as_bytes(), &b"1"[..])).collect();
    labels.push(NAME);
    let answer = rig.push(&request(&[series(&labels, &[(NOW, 1.0)])])).await;
    answer.assert(400, "series has too many labels (actual: 10000, limit: 60)");
    let value = vec![b'x'; 35 << 10];
    let mut labels: Vec<(&[u8], &[u8])> = names
        .iter()
        .take(30)
        .map(|n| (n.as_bytes(), &value[..]))
        .collect();
    labels.push(NAME);
    let answer = rig.push(&request(&[series(&labels, &[(NOW, 1.0)])])).await;
    answer.assert(400, "label set too large");
    assert_eq!(rig.stored(), []);
}

// Rows 14, 15 and 19.
#[tokio::test(start_paused = true)]
async fn labels_are_sorted_empty_ones_dropped_and_any_text_is_stored() {
    let rig = Rig::single();
    let odd = "nul \0 crlf \r\n ansi \u{1b}[31m <script>";
    let labels: &[(&[u8], &[u8])] = &[
        (b"z" as &[u8], b"1" as &[u8]),
        (b"empty", b""),
        NAME,
        (b"a", odd.as_bytes()),
    ];
    rig.push(&request(&[series(labels, &[(NOW, 1.0)])]))
        .await
        .assert(204, "");
    let batches = rig.members[0].batches.lock();
    let stored = batches[0].columns().series().next().unwrap().labels.unwrap();
    assert_eq!(
        stored.iter().collect::<Vec<_>>(),
        [("__name__", "up"), ("a", odd), ("z", "1")]
    );
}

// Rows 21 to 23.
#[rstest]
#[case::tomorrow(NOW + 86_400_000, "timestamp too far in the future (limit: 10m)")]
#[case::far(NOW + FAR, "timestamp too far in the future (limit: 10m)")]
#[case::min(i64::MIN, "timestamp too old")]
#[case::max(i64::MAX, "(did you send seconds?)")]
#[case::zero(0, "(did you send seconds?)")]
#[case::seconds(NOW / 1000, "(did you send seconds?)")]
#[case::behind(NOW - 6 * 3_600_000 - 1, "too old sample (window: 6h)")]
#[tokio::test(start_paused = true)]
async fn a_sample_out_of_time_is_rejected_and_the_others_stored(#[case] t: i64, #[case] message: &str) {
    let rig = Rig::single();
    let samples = [(NOW - 6 * 3_600_000, 1.0), (t, 2.0), (NOW + 600_000, 3.0)];
    let answer = rig.push(&request(&[series(&[NAME], &samples)])).await;
    answer.assert(400, message);
    answer.assert(400, "rejected: 1 samples of 1 series, written: 2 samples");
    let times: Vec<i64> = rig.stored().iter().map(|(_, t, _)| *t).collect();
    assert_eq!(times, [NOW - 6 * 3_600_000, NOW + 600_000]);
}

// Rows 24 and 25.
#[tokio::test(start_paused = true)]
async fn i2_a_repetition_is_nothing_new_and_another_value_is_a_conflict() {
    let rig = Rig::single();
    for _ in 0..100 {
        rig.push(&good("up", &[(NOW, 1.0)])).await.assert(204, "");
    }
    assert_eq!(rig.stored().len(), 1);
    let answer = rig.push(&good("up", &[(NOW, 2.0), (NOW + 1, 1.0)])).await;
    answer.assert(400, "duplicate sample for timestamp");
    assert_eq!(rig.stored().len(), 2, "what was good is stored");
}

// Row 26.
#[tokio::test(start_paused = true)]
async fn i2_every_bit_of_a_value_arrives() {
    let rig = Rig::single();
    let bits = [
        0x7ff0_0000_0000_0002,
        0x7ff8_0000_0000_0001,
        0xfff8_dead_beef_0001,
        f64::INFINITY.to_bits(),
        f64::NEG_INFINITY.to_bits(),
        (-0.0f64).to_bits(),
        1,
    ];
    let samples: Vec<(i64, f64)> = (NOW..).zip(bits.map(f64::from_bits)).collect();
    rig.push(&request(&[series(&[NAME], &samples)]))
        .await
        .assert(204, "");
    let stored: Vec<u64> = rig.stored().iter().map(|(_, _, v)| v.to_bits()).collect();
    assert_eq!(stored, bits);
}

fn histogram() -> Message {
    Message::default()
        .number(1, 1)
        .span(11, 0, 1)
        .packed(12, &[2])
        .number(15, NOW as u64)
}

// Rows 27 and 28.
#[rstest]
#[case::negative(histogram().packed(12, &[3]).span(11, 0, 1), "invalid native histogram: positive bucket number 2 has a count")]
#[case::long_span(histogram().span(11, 0, i32::MAX as u64), "invalid native histogram: ")]
#[case::schema(histogram().signed(4, 99), "invalid native histogram: schema 99")]
#[case::count(histogram().number(1, 5), "invalid native histogram: 1 observations in buckets, but the count is 5")]
#[case::bounds(histogram().signed(4, -53).double(16, 2.0).double(16, 1.0), "custom bounds must be strictly increasing")]
#[case::nan_bounds(histogram().signed(4, -53).double(16, f64::NAN), "custom bounds must be strictly increasing")]
#[tokio::test(start_paused = true)]
async fn native_histograms_are_checked(#[case] histogram: Message, #[case] message: &str) {
    let rig = Rig::single();
    let with_histogram = series(&[NAME, (b"a", b"b")], &[(NOW, 1.0)]).message(4, &histogram);
    let answer = rig
        .push(&request(&[with_histogram, series(&[NAME], &[(NOW, 2.0)])]))
        .await;
    answer.assert(400, message);
    assert_eq!(rig.stored().len(), 2, "float samples are stored");
}

#[tokio::test(start_paused = true)]
async fn good_native_histograms_and_exemplars_are_written() {
    let rig = Rig::single();
    let exemplar = Message::default()
        .packed(1, &[3, 4])
        .double(2, 0.5)
        .number(3, NOW as u64);
    let both = series_v2(&[1, 2], &[(NOW, 1.0)])
        .message(3, &histogram())
        .message(4, &exemplar);
    let symbols = ["", "__name__", "up", "trace_id", "abc"];
    let answer = rig.push_v2(&request_v2(&symbols, &[both])).await;
    answer.assert(204, "");
    for kind in ["samples", "histograms", "exemplars"] {
        let header = format!("x-prometheus-remote-write-{kind}-written");
        assert_eq!(answer.header(&header), "1", "{kind}");
    }
    let batches = rig.members[0].batches.lock();
    let columns = batches[0].columns();
    assert_eq!(columns.histograms[0].histogram.positive_buckets, [1.0]);
    assert_eq!(columns.exemplars[0].exemplar.labels.get("trace_id"), Some("abc"));
}

// Rows 29 and 30.
#[tokio::test(start_paused = true)]
async fn version_2_says_exactly_what_was_written() {
    let rig = Rig::single();
    let symbols = ["", "__name__", "up", "b"];
    let refs = |refs: &[u64]| request_v2(&symbols, &[series_v2(refs, &[(NOW, 1.0)])]);
    rig.push_v2(&refs(&[1, 7]))
        .await
        .assert(400, "symbol reference 7 out of range (4 symbols)");
    rig.push_v2(&refs(&[1, 2, 3]))
        .await
        .assert(400, "odd number of label references (3)");
    let no_empty = request_v2(&["__name__", "up"], &[series_v2(&[0, 1], &[(NOW, 1.0)])]);
    rig.push_v2(&no_empty)
        .await
        .assert(400, "symbols[0] must be the empty string");
    assert_eq!(rig.stored(), []);

    let mixed = [
        series_v2(&[1, 2], &[(NOW, 1.0), (NOW + 1, 2.0)]),
        series_v2(&[1, 9], &[(NOW, 3.0)]),
        series_v2(&[1, 3], &[(NOW, 4.0), (0, 5.0)]).message(4, &Message::default()),
    ];
    let answer = rig.push_v2(&request_v2(&symbols, &mixed)).await;
    answer.assert(400, "symbol reference 9 out of range (4 symbols)");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "3");
    assert_eq!(answer.header("x-prometheus-remote-write-histograms-written"), "0");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "0");
    assert_eq!(rig.stored().len(), 3);

    let answer = rig.push_v2(&refs(&[1, 2])).await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "1");
}

#[tokio::test(start_paused = true)]
async fn a_series_of_version_2_without_samples_is_rejected_and_the_others_are_stored() {
    let rig = Rig::single();
    let symbols = ["", "__name__", "up", "empty"];
    let exemplar = Message::default().double(2, 0.5).number(3, NOW as u64);
    let mixed = [
        series_v2(&[1, 3], &[]),
        series_v2(&[1, 2], &[(NOW, 1.0)]),
        // As Prometheus sends them: each exemplar in a series of its own.
        series_v2(&[1, 2], &[]).message(4, &exemplar),
    ];
    let answer = rig.push_v2(&request_v2(&symbols, &mixed)).await;
    answer.assert(400, "TimeSeries must contain at least one sample or histogram");
    assert_eq!(answer.header("x-prometheus-remote-write-samples-written"), "1");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "1");
    assert_eq!(rig.stored(), [("{__name__=\"up\"}".to_owned(), NOW, 1.0)]);
    rig.push_v2(&request_v2(&symbols, &mixed[1..]))
        .await
        .assert(204, "");
}

// Row 31.
#[tokio::test(start_paused = true)]
async fn bad_exemplars_are_dropped_with_a_warning() {
    let rig = Rig::single();
    let too_old = Message::default().double(2, 1.0);
    let with_exemplar = series(&[NAME], &[(NOW, 1.0)]).message(3, &too_old);
    let answer = rig.push(&request(&[with_exemplar])).await;
    answer.assert(204, "");
    assert!(answer.header("warning").contains("dropped: 1"), "{answer:?}");
    assert!(
        rig.metrics
            .encode()
            .contains("koios_distributor_exemplars_dropped_total 1")
    );
}

// What no member keeps does not count as written, whether the series is known or not.
#[tokio::test(start_paused = true)]
async fn exemplars_of_series_with_long_labels_are_dropped() {
    let rig = Rig::single();
    let long = [b'x'; 2 << 10];
    let exemplar = Message::default().double(2, 0.5).number(3, NOW as u64);
    for t in NOW..NOW + 3 {
        let with_exemplar = series(&[NAME, (b"long", &long)], &[(t, 1.0)]).message(3, &exemplar);
        let answer = rig.push(&request(&[with_exemplar])).await;
        answer.assert(204, "");
        assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "0");
        assert!(answer.header("warning").contains("dropped: 1"), "{answer:?}");
        let shorter = series(&[NAME, (b"long", &long[100..])], &[(t, 1.0)]).message(3, &exemplar);
        let answer = rig.push(&request(&[shorter])).await;
        assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "1");
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_may_have_no_exemplars_loses_nothing_else() {
    let limits = Limits {
        max_exemplars: 0,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let exemplar = Message::default().double(2, 0.5).number(3, NOW as u64);
    let with_exemplar = series(&[NAME], &[(NOW, 1.0)]).message(3, &exemplar);
    let answer = rig.push(&request(&[with_exemplar])).await;
    answer.assert(204, "");
    assert_eq!(answer.header("x-prometheus-remote-write-exemplars-written"), "0");
    assert!(
        answer.header("warning").contains("limits.max-exemplars"),
        "{answer:?}"
    );
    assert_eq!(rig.stored(), [("{__name__=\"up\"}".to_owned(), NOW, 1.0)]);
}

// Rows 32 and 34.
#[tokio::test(start_paused = true)]
async fn limits_on_rate_and_series() {
    let limits = Limits {
        ingestion_rate: 10,
        ingestion_burst: 10,
        max_series_per_request: 100,
        max_samples_per_request: 1000,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let many: Vec<Message> = (0..101).map(|_| series(&[NAME], &[])).collect();
    rig.push(&request(&many))
        .await
        .assert(400, "too many series in request (limit: 100)");
    let samples: Vec<(i64, f64)> = (0..1001).map(|i| (NOW + i, 1.0)).collect();
    rig.push(&good("up", &samples))
        .await
        .assert(400, "too many samples in request (limit: 1000)");
    rig.push(&good("up", &samples[..10])).await.assert(204, "");
    let answer = rig.push(&good("up", &samples[..5])).await;
    answer.assert(429, "ingestion rate limit (10/s) exceeded");
    assert_eq!(answer.header("retry-after"), "1");
}

// Row 34, in what names a series again for each of its samples.
#[tokio::test(start_paused = true)]
async fn texts_may_have_more_samples_than_series() {
    let limits = Limits {
        max_series_per_request: 100,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let exposed = |series: i64, times: i64| -> String {
        let lines = (0..times).flat_map(|t| (0..series).map(move |i| (i, NOW - t)));
        lines.map(|(i, t)| format!("x{{i=\"{i}\"}} 1 {t}\n")).collect()
    };
    let import = "/api/v1/import/prometheus";
    rig.request("POST", import, &[], exposed(100, 3))
        .await
        .assert(204, "");
    assert_eq!(rig.stored().len(), 300);
    let lines = |series: i64| -> String { (0..series).map(|i| format!("m,i={i} f=1\n")).collect() };
    rig.request("POST", "/write", &[], lines(100))
        .await
        .assert(204, "");
    let refused = "too many series in request (limit: 100)";
    rig.request("POST", import, &[], exposed(101, 1))
        .await
        .assert(400, refused);
    rig.request("POST", "/write", &[], lines(101))
        .await
        .assert(400, refused);
    assert_eq!(rig.stored().len(), 400);
}

// Row 33.
#[tokio::test(start_paused = true)]
async fn series_beyond_the_limit_are_rejected_and_known_ones_stored() {
    let limits = Limits {
        max_series: 10,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let numbered = |i: i64, t: i64| series(&[(b"__name__", format!("m{i}").as_bytes())], &[(t, 1.0)]);
    for i in 0..10 {
        rig.push(&request(&[numbered(i, NOW)])).await.assert(204, "");
    }
    let now = NOW + 1000;
    let answer = rig.push(&request(&[numbered(10, now)])).await;
    answer.assert(400, "series limit 10 exceeded (now 10)");
    for i in 0..10 {
        rig.push(&request(&[numbered(i, now + 1)])).await.assert(204, "");
    }
    let many: Vec<Message> = (5..25).map(|i| numbered(i, now + 2)).collect();
    rig.push(&request(&many))
        .await
        .assert(400, "rejected: 15 samples of 15 series, written: 5 samples");
}

// A symbol table makes a small request out of labels that are large when written out.
#[tokio::test(start_paused = true)]
async fn i12_labels_by_reference_are_bounded() {
    let limits = Limits {
        max_request_bytes: 1 << 20,
        ..Limits::default()
    };
    let rig = Rig::new(state(1, 1, 1, 1), limits);
    let long = "x".repeat(60 << 10);
    let many: Vec<Message> = (0..100).map(|i| series_v2(&[1, 2], &[(NOW + i, 1.0)])).collect();
    let answer = rig.push_v2(&request_v2(&["", "__name__", &long], &many)).await;
    answer.assert(413, "labels of the request take more than 1048576 bytes");
    let names: Vec<String> = (0..100).map(|i| format!("m{i}")).collect();
    let mut symbols = vec!["", "__name__", &long[..16 << 10]];
    symbols.extend(names.iter().map(String::as_str));
    let help = Message::default().number(1, 1).number(3, 2);
    let many: Vec<Message> = (3..103)
        .map(|name| series_v2(&[1, name], &[(NOW, 1.0)]).message(5, &help))
        .collect();
    let answer = rig.push_v2(&request_v2(&symbols, &many)).await;
    answer.assert(413, "labels of the request take more than 1048576 bytes");
    assert_eq!(rig.stored(), []);
}

// Rows 44 and 45.
#[rstest]
#[case::path("../../etc", "tenant ID ")]
#[case::dot(".", "tenant ID ")]
#[case::dots("..", "tenant ID ")]
#[case::slash("a/b", "tenant ID ")]
#[case::long(&"x".repeat(151), "tenant ID too long")]
#[case::escaped("%2e%2e", "tenant ID ")]
#[case::homoglyph("аbc", "tenant ID ")]
#[case::reserved("__markers__", "tenant ID ")]
#[case::empty("", "tenant ID is empty")]
#[case::several("a|b", "tenant ID \"a|b\" names several")]
#[tokio::test(start_paused = true)]
async fn i6_bad_tenants_are_refused(#[case] tenant: &str, #[case] message: &str) {
    let rig = Rig::single();
    let body = snappy(&good("up", &[(NOW, 1.0)]));
    rig.send(&[TYPE, ("x-scope-orgid", tenant)], body)
        .await
        .assert(400, message);
    assert_eq!(rig.stored(), []);
}

#[tokio::test(start_paused = true)]
async fn i6_doubled_headers_are_refused() {
    let rig = Rig::single();
    for name in ["x-scope-orgid", "authorization"] {
        let body = snappy(&good("up", &[(NOW, 1.0)]));
        rig.send(&[TYPE, (name, "a"), (name, "a")], body)
            .await
            .assert(400, "header must appear once");
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_of_both_versions_arrives() {
    let rig = Rig::single();
    let metadata = Message::default()
        .number(1, 1)
        .bytes(2, "up")
        .bytes(4, "Is it up")
        .bytes(5, "bool");
    rig.push(&Message::default().message(3, &metadata).0)
        .await
        .assert(204, "");
    let of_series = Message::default().number(1, 2).number(3, 3);
    let with_metadata = series_v2(&[1, 2], &[(NOW, 1.0)]).message(5, &of_series);
    // What is said of the parts of a histogram is said of it; a native one has no parts.
    let of_histogram = Message::default().number(1, 3);
    let part = |name| series_v2(&[1, name], &[(NOW, 1.0)]).message(5, &of_histogram);
    let native = series_v2(&[1, 6], &[])
        .message(3, &histogram())
        .message(5, &of_histogram);
    rig.push_v2(&request_v2(
        &[
            "",
            "__name__",
            "down",
            "Is it down",
            "t_bucket",
            "t_sum",
            "t_native_sum",
        ],
        &[with_metadata, part(4), part(5), native],
    ))
    .await
    .assert(204, "");
    let got: Vec<(String, String, String, String)> = rig.members[0]
        .metadata()
        .into_iter()
        .map(|(metric, m)| (metric, m.kind, m.help, m.unit))
        .collect();
    let text = |fields: [&str; 4]| {
        let [a, b, c, d] = fields.map(str::to_owned);
        (a, b, c, d)
    };
    assert_eq!(
        got,
        [
            text(["up", "counter", "Is it up", "bool"]),
            text(["down", "gauge", "Is it down", ""]),
            text(["t", "histogram", "", ""]),
            text(["t_native_sum", "histogram", "", ""]),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn every_path_and_encoding_is_served() {
    use tower::ServiceExt as _;
    let rig = Rig::single();
    let message = good("up", &[(NOW, 1.0)]);
    for path in [
        "/api/v1/push",
        "/api/v1/write",
        "/prometheus/api/v1/push",
        "/prometheus/api/v1/write",
    ] {
        for (encoding, body) in [
            ("snappy", snappy(&message)),
            ("zstd", zstd::bulk::compress(&message, 1).unwrap()),
            ("gzip", gzip(&message)),
        ] {
            let request = http::Request::post(path)
                .header(
                    "content-type",
                    "application/x-protobuf; proto=prometheus.WriteRequest",
                )
                .header("content-encoding", encoding)
                .body(Body::from(body))
                .unwrap();
            let answer = rig.router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), 204, "{path} {encoding}");
        }
    }
    assert_eq!(rig.stored().len(), 1);
}
