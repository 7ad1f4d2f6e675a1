//! What requests of OTLP are translated to.

mod deltas_test;
mod retry_test;

use koios_model::{TenantId, TenantSeed};
use proptest::prelude::*;
use rstest::rstest;

use super::test_messages::{Message, attribute, request};
use super::*;
use crate::Strings;
use crate::remote_write::{DecodeLimits, RawMetadata, RawSeries, Sink};

const LIMITS: DecodeLimits = DecodeLimits {
    series: 1_000,
    samples: 1_000,
    labels_per_series: 20,
};
const SECOND: u64 = 1_000_000_000;

/// Takes series as text: labels in order, the value, `@` and seconds, and since when if that is known.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) series: Vec<String>,
    pub(super) metadata: Vec<String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<'a> Sink<'a> for Seen {
    fn series(&mut self, series: RawSeries<'a, '_>) {
        let mut labels: Vec<_> = series.labels.iter().filter(|(n, _)| *n != b"__name__").collect();
        labels.sort();
        let name = series.labels.iter().find(|(n, _)| *n == b"__name__");
        let name = name.map_or_else(String::new, |(_, v)| text(v));
        let shown = |(n, v): &(&[u8], &[u8])| format!("{}={:?}", text(n), text(v));
        let labels: Vec<_> = labels.into_iter().map(shown).collect();
        let of = format!("{name}{{{}}}", labels.join(","));
        let seconds = |t: i64| t as f64 / 1000.0;
        let since = |start: i64| match start {
            0 => String::new(),
            start => format!(" since {}", seconds(start)),
        };
        for (at, s) in series.samples.iter().enumerate() {
            let start = since(series.starts.get(at).copied().unwrap_or(0));
            let v = if koios_model::is_stale(s.v) {
                "stale".to_owned()
            } else {
                s.v.to_string()
            };
            self.series.push(format!("{of} {v} @{}{start}", seconds(s.t)));
        }
        for h in series.histograms {
            let v = match &h.histogram {
                Ok(h) if h.is_stale() => "stale".to_owned(),
                Ok(h) => format!(
                    "schema {} count {} sum {} zero {} {:?} {:?}",
                    h.schema,
                    h.count,
                    h.sum,
                    h.zero_count,
                    h.positive().collect::<Vec<_>>(),
                    h.negative().collect::<Vec<_>>()
                ),
                Err(e) => e.to_string(),
            };
            self.series
                .push(format!("{of} {v} @{}{}", seconds(h.t), since(h.start)));
        }
        for e in series.exemplars {
            let labels = series.exemplar_labels[e.labels.clone()].iter();
            let labels: Vec<_> = labels.map(|(n, v)| format!("{}={}", text(n), text(v))).collect();
            self.series
                .push(format!("  # {} {} @{}", labels.join(","), e.v, seconds(e.t)));
        }
    }

    fn metadata(&mut self, m: RawMetadata<'a>) {
        let parts = [m.metric, m.kind.as_bytes(), m.help, m.unit].map(text);
        self.metadata.push(parts.join("|"));
    }
}

pub(super) fn translate(bytes: &[u8], settings: &Settings) -> Result<(Seen, Report), OtlpError> {
    let strings = Strings::new(1 << 20);
    let mut seen = Seen::default();
    let context = Context {
        settings,
        strings: &strings,
        limits: LIMITS,
        label_bytes: 256 << 10,
        accepted_ms: 0..=1_000_000,
        lookback_ms: 300_000,
        deltas: None,
    };
    let report = decode(bytes, &context, &mut seen)?;
    Ok((seen, report))
}

/// With totals of deltas.
pub(super) fn add_up(deltas: &TenantDeltas, settings: &Settings, metric: &Message) -> (Seen, Report) {
    add_up_request(deltas, settings, &request(&[], std::slice::from_ref(metric)))
}

/// The same for a whole request.
pub(super) fn add_up_request(deltas: &TenantDeltas, settings: &Settings, bytes: &[u8]) -> (Seen, Report) {
    let (strings, mut seen) = (Strings::new(1 << 20), Seen::default());
    let seed = TenantSeed::new(b"secret", &TenantId::anonymous());
    let context = Context {
        settings,
        strings: &strings,
        limits: LIMITS,
        label_bytes: 256 << 10,
        accepted_ms: 0..=1_000_000,
        lookback_ms: 300_000,
        deltas: Some((deltas, seed)),
    };
    let report = decode(bytes, &context, &mut seen).unwrap();
    (seen, report)
}

/// With the default settings.
pub(super) fn read(bytes: &[u8]) -> (Seen, Report) {
    translate(bytes, &Settings::default()).unwrap()
}

fn series(settings: &Settings, bytes: &[u8]) -> Vec<String> {
    translate(bytes, settings).unwrap().0.series
}

fn message() -> Message {
    Message::default()
}

fn number(seconds: u64, v: f64) -> Message {
    message().fixed(3, seconds * SECOND).double(4, v)
}

fn metric(name: &str, unit: &str, kind: u32, data: &Message) -> Message {
    message()
        .bytes(1, name)
        .bytes(2, "Help.")
        .bytes(3, unit)
        .message(kind, data)
}

fn gauge(name: &str, unit: &str, points: &[Message]) -> Message {
    metric(name, unit, 5, &message().messages(1, points))
}

fn sum(name: &str, monotonic: bool, points: &[Message]) -> Message {
    let data = message()
        .messages(1, points)
        .number(2, 2)
        .number(3, u64::from(monotonic));
    metric(name, "By", 7, &data)
}

#[test]
fn gauges_and_sums_become_series_with_metadata() {
    let metrics = [
        gauge(
            "cpu.utilization",
            "1",
            &[number(10, 0.5).attributes(7, &[("cpu.id", "0")])],
        ),
        sum("net.io", true, &[message().fixed(3, 10 * SECOND).fixed(6, 7)]),
        sum(
            "queue.size",
            false,
            &[number(10, -1.0), message().fixed(3, 11 * SECOND)],
        ),
        gauge("none", "s", &[]),
        metric("nothing", "s", 99, &message()),
    ];
    let (seen, report) = read(&request(&[], &metrics));
    assert_eq!(
        seen.series,
        [
            "cpu_utilization_ratio{cpu_id=\"0\"} 0.5 @10",
            "net_io_bytes_total{} 7 @10",
            "queue_size_bytes{} -1 @10",
            "queue_size_bytes{} 0 @11",
        ]
    );
    assert_eq!(
        seen.metadata,
        [
            "cpu_utilization_ratio|gauge|Help.|",
            "net_io_bytes_total|counter|Help.|bytes",
            "queue_size_bytes|gauge|Help.|bytes",
        ]
    );
    assert_eq!((report.points, report.rejected), (4, 0));
}

#[test]
fn a_resource_becomes_job_instance_and_target_info() {
    let resource = [
        ("service.namespace", "shop"),
        ("service.name", "cart"),
        ("service.instance.id", "i-1"),
        ("host.name", "h"),
        ("host.name!", "g"),
    ];
    let points = [
        number(100, 1.0),
        number(500, 2.0).attributes(7, &[("job", "own")]),
    ];
    let bytes = request(&resource, &[gauge("up", "", &points)]);
    let info = |t| {
        format!("target_info{{host_name=\"h\",host_name_=\"g\",instance=\"i-1\",job=\"shop/cart\"}} 1 @{t}")
    };
    let up = |v, t| format!("up{{instance=\"i-1\",job=\"shop/cart\"}} {v} @{t}");
    assert_eq!(
        series(&Settings::default(), &bytes),
        [up(1, 100), up(2, 500), info(100), info(250), info(400), info(500)]
    );
    let keeps = Settings {
        keep_identifying_resource_attributes: true,
        promote_resource_attributes: vec!["host.name".to_owned()],
        ..Settings::default()
    };
    let got = series(&keeps, &bytes);
    assert_eq!(
        got[0],
        "up{host_name=\"h\",instance=\"i-1\",job=\"shop/cart\"} 1 @100"
    );
    assert!(
        got[2].contains("service_instance_id=\"i-1\",service_name=\"cart\""),
        "{}",
        got[2]
    );
    let all = Settings {
        promote_all_resource_attributes: true,
        ignore_resource_attributes: vec!["service.name".to_owned(), "host.name!".to_owned()],
        ..Settings::default()
    };
    assert_eq!(
        series(&all, &bytes)[0],
        "up{host_name=\"h\",instance=\"i-1\",job=\"shop/cart\",service_instance_id=\"i-1\",service_namespace=\"shop\"} 1 @100"
    );
}

#[rstest]
#[case::only_identity(&[("service.name", "cart")])]
#[case::no_identity(&[("host.name", "h")])]
#[case::nothing(&[])]
fn no_target_info_without_identity_or_anything_else(#[case] resource: &[(&str, &str)]) {
    let (seen, _) = read(&request(resource, &[gauge("up", "", &[number(1, 1.0)])]));
    assert_eq!(seen.series.len(), 1, "{seen:?}");
}

#[test]
fn i12_target_info_is_not_made_for_times_that_are_refused() {
    let resource = [("service.name", "cart"), ("host.name", "h")];
    let bytes = request(
        &resource,
        &[gauge("up", "", &[number(0, 1.0), number(u64::MAX / SECOND, 1.0)])],
    );
    assert_eq!(read(&bytes).0.series.len(), 2);
    let bytes = request(
        &resource,
        &[gauge("up", "", &[number(0, 1.0), number(9_000_000_000, 1.0)])],
    );
    assert_eq!(read(&bytes).0.series.len(), 2 + 7);
}

#[test]
fn attributes_with_the_same_label_name_are_joined() {
    let point = number(1, 1.0).attributes(7, &[("a_b", "2"), ("a.b", "1"), ("__name__", "x"), ("e", "")]);
    let (seen, _) = read(&request(&[], &[gauge("up", "", std::slice::from_ref(&point))]));
    assert_eq!(seen.series, ["up{a_b=\"1;2\"} 1 @1"]);
    let plain = Settings {
        translation_strategy: TranslationStrategy::NoTranslation,
        ..Settings::default()
    };
    let got = series(&plain, &request(&[], &[gauge("sys.up", "s", &[point])]));
    assert_eq!(got, ["sys.up{a.b=\"1\",a_b=\"2\",e=\"\"} 1 @1"]);
}

#[test]
fn scopes_are_promoted_where_that_is_wanted() {
    let scope = message()
        .bytes(1, "lib")
        .bytes(2, "v1")
        .attributes(3, &[("kind", "k")]);
    let scope_metrics = message()
        .message(2, &gauge("up", "", &[number(1, 1.0)]))
        .bytes(3, "http://schema")
        .message(1, &scope);
    let bytes = message().message(1, &message().message(2, &scope_metrics)).0;
    assert_eq!(series(&Settings::default(), &bytes), ["up{} 1 @1"]);
    let promotes = Settings {
        promote_scope_metadata: true,
        ..Settings::default()
    };
    assert_eq!(
        series(&promotes, &bytes),
        [
            "up{otel_scope_kind=\"k\",otel_scope_name=\"lib\",otel_scope_schema_url=\"http://schema\",otel_scope_version=\"v1\"} 1 @1"
        ]
    );
}

fn explicit(flags: u64) -> Message {
    let exemplar = |v: f64| message().double(3, v).fixed(2, 9 * SECOND).bytes(5, [0, 0xab]);
    let long = "x".repeat(128);
    let point = message()
        .fixed(3, 10 * SECOND)
        .fixed(4, 6)
        .double(5, 12.5)
        .fixed_list(6, &[1, 0, 2, 3])
        .fixed_list(7, &[0.5f64.to_bits(), 1f64.to_bits(), 10f64.to_bits()])
        .message(8, &exemplar(0.25).attributes(7, &[("user", "u")]))
        .message(8, &exemplar(20.0).attributes(7, &[("long", &long)]).bytes(4, [1]))
        .message(8, &message().double(3, 30.0))
        .number(10, flags);
    let data = message().message(1, &point).number(2, 2);
    metric("rpc.duration", "ms", 9, &data)
}

#[test]
fn explicit_histograms_become_classic_ones() {
    let bytes = request(&[], &[explicit(0)]);
    let (seen, _) = read(&bytes);
    assert_eq!(
        seen.series,
        [
            "rpc_duration_milliseconds_sum{} 12.5 @10",
            "rpc_duration_milliseconds_count{} 6 @10",
            "rpc_duration_milliseconds_bucket{le=\"0.5\"} 1 @10",
            "  # trace_id=00ab,user=u 0.25 @9",
            "rpc_duration_milliseconds_bucket{le=\"1\"} 1 @10",
            "rpc_duration_milliseconds_bucket{le=\"10\"} 3 @10",
            "rpc_duration_milliseconds_bucket{le=\"+Inf\"} 6 @10",
            "  # span_id=01,trace_id=00ab 20 @9",
            "  #  30 @10",
        ]
    );
    assert_eq!(
        seen.metadata,
        ["rpc_duration_milliseconds|histogram|Help.|milliseconds"]
    );
}

#[test]
fn i13_exemplars_keep_one_value_of_a_label() {
    let trace = message().double(3, 0.5).fixed(2, 9 * SECOND).bytes(5, [0xab]);
    let exemplars = [
        trace.attributes(7, &[("trace_id", "other"), ("user", "u"), ("user", "v")]),
        message().double(3, 1.0).attributes(7, &[("trace_id", "sent")]),
    ];
    let point = exemplars.iter().fold(number(10, 1.0), |p, e| p.message(5, e));
    let (seen, _) = read(&request(&[], &[sum("m", true, &[point])]));
    assert_eq!(
        seen.series,
        [
            "m_bytes_total{} 1 @10",
            "  # trace_id=ab,user=u 0.5 @9",
            "  # trace_id=sent 1 @10"
        ]
    );
}

#[test]
fn explicit_histograms_become_native_ones_where_that_is_wanted() {
    let settings = Settings {
        convert_histograms_to_nhcb: true,
        ..Settings::default()
    };
    let got = series(&settings, &request(&[], &[explicit(0)]));
    assert_eq!(
        got[0],
        "rpc_duration_milliseconds{} schema -53 count 6 sum 12.5 zero 0 [(0, 1.0), (2, 2.0), (3, 3.0)] [] @10"
    );
    assert_eq!(got.len(), 4, "with its exemplars");
    let got = series(&settings, &request(&[], &[explicit(1)]));
    assert_eq!(got[0], "rpc_duration_milliseconds{} stale @10");
}

#[test]
fn what_was_not_recorded_becomes_a_stale_marker() {
    let (seen, _) = read(&request(
        &[],
        &[gauge("up", "", &[number(1, 5.0).number(8, 1)]), explicit(1)],
    ));
    let values: Vec<_> = seen.series.iter().filter(|s| !s.starts_with("  #")).collect();
    assert_eq!(values.len(), 1 + 6);
    assert!(values.iter().all(|s| s.contains("} stale @")), "{values:?}");
}

#[test]
fn exponential_histograms_become_native_ones() {
    let buckets = |offset, counts: &[u64]| message().signed(1, offset).packed(2, counts);
    let point = |scale| {
        message()
            .fixed(3, 10 * SECOND)
            .fixed(4, 7)
            .double(5, 2.5)
            .signed(6, scale)
            .fixed(7, 1)
            .message(8, &buckets(-1, &[2, 0, 1]))
            .message(9, &buckets(0, &[3]))
    };
    let data = message()
        .messages(1, &[point(3), point(-5), point(9)])
        .number(2, 2);
    let (seen, report) = read(&request(&[], &[metric("rpc", "s", 10, &data)]));
    assert_eq!(
        seen.series,
        [
            "rpc_seconds{} schema 3 count 7 sum 2.5 zero 1 [(0, 2.0), (2, 1.0)] [(1, 3.0)] @10",
            "rpc_seconds{} schema 8 count 7 sum 2.5 zero 1 [(0, 2.0), (1, 1.0)] [(1, 3.0)] @10",
        ]
    );
    assert_eq!((report.points, report.rejected, report.faults), (3, 1, 1));
    let (fault, of) = report.first.unwrap();
    assert_eq!(of, "rpc");
    assert_eq!(
        fault.to_string(),
        "scale of an exponential histogram must be at least -4, is -5"
    );
}

#[test]
fn summaries_keep_their_quantiles() {
    let quantile = |q: f64, v: f64| message().double(1, q).double(2, v);
    let point = message()
        .fixed(3, SECOND)
        .fixed(4, 3)
        .double(5, 1.5)
        .messages(6, &[quantile(0.5, 0.25), quantile(1.0, 1.0)]);
    let (seen, _) = read(&request(
        &[],
        &[metric("rpc", "s", 11, &message().message(1, &point))],
    ));
    assert_eq!(
        seen.series,
        [
            "rpc_seconds_sum{} 1.5 @1",
            "rpc_seconds_count{} 3 @1",
            "rpc_seconds{quantile=\"0.5\"} 0.25 @1",
            "rpc_seconds{quantile=\"1\"} 1 @1",
        ]
    );
}

#[test]
fn faulty_data_points_are_counted_and_the_others_taken() {
    let unspecified = message().messages(1, &[number(1, 1.0), number(2, 1.0)]);
    let odd_label = number(1, 1.0).message(7, &attribute("", &message().bytes(1, "x")));
    let metrics = [
        metric("s", "", 7, &unspecified),
        gauge("...", "", &[number(1, 1.0)]),
        gauge("ok", "", &[odd_label, number(3, 1.0)]),
    ];
    let (seen, report) = read(&request(&[], &metrics));
    assert_eq!(seen.series, ["ok{} 1 @3"]);
    assert_eq!((report.points, report.rejected, report.faults), (5, 4, 4));
    assert_eq!(report.first.unwrap(), (PointFault::Temporality, "s".to_owned()));
}

#[test]
fn i12_requests_beyond_their_limits_are_refused() {
    let many: Vec<_> = (0..1_001).map(|_| number(1, 1.0)).collect();
    let refused = |bytes: &[u8]| translate(bytes, &Settings::default()).unwrap_err().to_string();
    assert_eq!(
        refused(&request(&[], &[gauge("up", "", &many)])),
        "too many samples in request (limit: 1000), which has more than 1000: send smaller batches or raise \
         limits.max-samples-per-request"
    );
    let attributes: Vec<(&str, &str)> = vec![("a", "b"); 5_000];
    let error = refused(&request(&attributes, &[]));
    assert_eq!(
        error,
        "a resource, scope, data point or attribute has more than 1024 attributes: send fewer"
    );
    let numbers = (0..1_000).map(|i| number(1, 1.0).message(7, &attribute("k", &message().number(3, i))));
    let numbers: Vec<_> = numbers.collect();
    let strings = Strings::new(10_000);
    let context = Context {
        settings: &Settings::default(),
        strings: &strings,
        limits: LIMITS,
        label_bytes: 256 << 10,
        accepted_ms: 0..=1,
        lookback_ms: 1,
        deltas: None,
    };
    let bytes = request(&[], &[gauge("up", "", &numbers)]);
    assert_eq!(
        decode(&bytes, &context, &mut Seen::default()),
        Err(OtlpError::Strings { limit: 10_000 })
    );
    let cut = request(&[], &[gauge("up", "", &[number(1, 1.0)])]);
    assert!(refused(&cut[..cut.len() - 2]).starts_with("invalid protobuf: unexpected end"));
}

#[test]
fn labels_beyond_the_limit_are_counted() {
    let names: Vec<String> = (0..100).map(|i| format!("l{i}")).collect();
    let attributes: Vec<(&str, &str)> = names.iter().map(|n| (n.as_str(), "v")).collect();
    #[derive(Default)]
    struct Counts(Vec<(usize, usize)>);
    impl<'a> Sink<'a> for Counts {
        fn series(&mut self, series: RawSeries<'a, '_>) {
            self.0.push((series.labels.len(), series.label_count));
        }
        fn metadata(&mut self, _: RawMetadata<'a>) {}
    }
    let (strings, settings) = (Strings::new(1 << 20), Settings::default());
    let context = Context {
        settings: &settings,
        strings: &strings,
        limits: LIMITS,
        label_bytes: 256 << 10,
        accepted_ms: 0..=1,
        lookback_ms: 1,
        deltas: None,
    };
    let bytes = request(
        &[],
        &[gauge("up", "", &[number(1, 1.0).attributes(7, &attributes)])],
    );
    let mut counts = Counts::default();
    decode(&bytes, &context, &mut counts).unwrap();
    assert_eq!(counts.0, [(36, 101)]);
}

pub(super) fn tenant() -> TenantDeltas {
    Deltas::default().of(&TenantId::anonymous(), std::time::Duration::ZERO)
}

proptest! {
    #[test]
    fn i12_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = translate(&bytes, &Settings::default());
    }

    #[test]
    fn i12_mutated_requests_never_panic(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let mut bytes = request(&[("service.name", "x"), ("a", "b")], &[explicit(0), gauge("g", "1", &[number(1, 1.0)])]);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let settings = Settings { convert_histograms_to_nhcb: byte % 2 == 0, ..Settings::default() };
        let _ = translate(&bytes, &settings);
        bytes.truncate(cut.index(bytes.len()));
        let _ = translate(&bytes, &settings);
    }
}
