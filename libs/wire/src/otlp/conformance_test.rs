//! Rules of Prometheus' translation, one by one, where `otlp_test.rs` does not have them: no receiver of OTLP that could be
//! asked beside this one is at hand.
//!
//! **Source**: Prometheus 3.14 `storage/remote/otlptranslator/prometheusremotewrite`.

use rstest::rstest;

use super::test_messages::{Message, request};
use super::tests::{add_up, read, tenant, translate};
use super::{PointFault, Settings, TranslationStrategy};

const MILLI: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLI;

fn message() -> Message {
    Message::default()
}

/// A data point of a gauge or sum.
fn number(v: f64) -> Message {
    message().fixed(3, SECOND).double(4, v)
}

fn metric(name: &str, kind: u32, data: &Message) -> Message {
    message().bytes(1, name).message(kind, data)
}

fn gauge(point: &Message) -> Message {
    metric("m", 5, &message().message(1, point))
}

fn of(kind: u32, point: &Message) -> Message {
    metric("m", kind, &message().message(1, point).number(2, 2).number(3, 1))
}

fn exemplar(v: f64) -> Message {
    message().fixed(2, SECOND).double(3, v)
}

/// A data point of an explicit histogram.
fn explicit(counts: &[u64], bounds: &[f64]) -> Message {
    let bounds: Vec<u64> = bounds.iter().map(|b| b.to_bits()).collect();
    message()
        .fixed(3, SECOND)
        .fixed(4, counts.iter().sum())
        .fixed_list(6, counts)
        .fixed_list(7, &bounds)
}

/// A data point of an exponential histogram.
fn exponential(scale: i64, offset: i64, counts: &[u64]) -> Message {
    message()
        .fixed(3, SECOND)
        .fixed(4, counts.iter().sum())
        .signed(6, scale)
        .message(8, &message().signed(1, offset).packed(2, counts))
}

#[rstest]
#[case::a_sum_that_was_not_sent_is_no_series(
    of(9, &explicit(&[1], &[])),
    &["m_count{} 1 @1", "m_bucket{le=\"+Inf\"} 1 @1"],
)]
#[case::bounds_are_written_without_exponents(
    of(9, &explicit(&[1, 1, 1, 0], &[-0.0, 1e-7, 1e21])),
    &[
        "m_count{} 3 @1", "m_bucket{le=\"-0\"} 1 @1", "m_bucket{le=\"0.0000001\"} 2 @1",
        "m_bucket{le=\"1000000000000000000000\"} 3 @1", "m_bucket{le=\"+Inf\"} 3 @1",
    ],
)]
#[case::bounds_without_a_count_are_none(
    of(9, &explicit(&[1], &[1.0, 2.0])),
    &["m_count{} 1 @1", "m_bucket{le=\"1\"} 1 @1", "m_bucket{le=\"+Inf\"} 1 @1"],
)]
#[case::the_count_is_that_of_the_last_bucket_whatever_the_others_say(
    of(9, &explicit(&[1, 1], &[1.0]).fixed(4, 5)),
    &["m_count{} 5 @1", "m_bucket{le=\"1\"} 1 @1", "m_bucket{le=\"+Inf\"} 5 @1"],
)]
#[case::an_exemplar_lies_in_the_first_bucket_that_it_does_not_exceed(
    of(9, &explicit(&[1, 1, 1], &[1.0, 2.0]).messages(8, &[exemplar(1.0), exemplar(1.5), exemplar(3.0)])),
    &[
        "m_count{} 3 @1", "m_bucket{le=\"1\"} 1 @1", "  #  1 @1", "m_bucket{le=\"2\"} 2 @1", "  #  1.5 @1",
        "m_bucket{le=\"+Inf\"} 3 @1", "  #  3 @1",
    ],
)]
#[case::an_exemplar_that_is_no_number_exceeds_none(
    of(9, &explicit(&[1, 1], &[1.0]).messages(8, &[exemplar(f64::NAN), exemplar(3.0)])),
    &["m_count{} 2 @1", "m_bucket{le=\"1\"} 1 @1", "  #  NaN @1", "m_bucket{le=\"+Inf\"} 2 @1", "  #  3 @1"],
)]
#[case::an_exemplar_of_the_first_millisecond_is_of_its_data_point(
    of(7, &number(1.0).message(5, &message().fixed(2, MILLI - 1).fixed(6, 7))),
    &["m_total{} 1 @1", "  #  7 @1"],
)]
#[case::ids_of_zeros_are_none(
    of(7, &number(1.0).message(5, &exemplar(7.0).bytes(4, [0; 8]).bytes(5, [0; 16]))),
    &["m_total{} 1 @1", "  #  7 @1"],
)]
#[case::gauges_take_no_exemplars(gauge(&number(1.0).message(5, &exemplar(7.0))), &["m{} 1 @1"])]
#[case::finest_of_the_native_schemas(
    of(10, &exponential(8, 0, &[1, 2])),
    &["m{} schema 8 count 3 sum 0 zero 0 [(1, 1.0), (2, 2.0)] [] @1"],
)]
#[case::finer_ones_are_made_coarser_from_an_odd_offset(
    of(10, &exponential(10, -3, &[1, 1, 1, 1, 1])),
    &["m{} schema 8 count 5 sum 0 zero 0 [(0, 3.0), (1, 2.0)] [] @1"],
)]
#[case::coarsest_of_the_native_schemas(
    of(10, &exponential(-4, -1, &[1])),
    &["m{} schema -4 count 1 sum 0 zero 0 [(0, 1.0)] [] @1"],
)]
#[case::negative_buckets_and_the_zero_bucket_are_made_coarser_alike(
    of(10, &exponential(9, 1, &[2, 1]).fixed(4, 10).fixed(7, 4)
        .message(9, &message().signed(1, -4).packed(2, &[1, 0, 2]))),
    &["m{} schema 8 count 10 sum 0 zero 4 [(1, 2.0), (2, 1.0)] [(-1, 1.0), (0, 2.0)] @1"],
)]
#[case::exemplars_of_an_exponential_histogram_with_ids_and_what_was_filtered(
    of(10, &exponential(0, 0, &[1]).message(11, &exemplar(1.5).bytes(4, [2; 8]).bytes(5, [1; 16])
        .attributes(7, &[("user.id", "u")]))),
    &[
        "m{} schema 0 count 1 sum 0 zero 0 [(1, 1.0)] [] @1",
        "  # span_id=0202020202020202,trace_id=01010101010101010101010101010101,user.id=u 1.5 @1",
    ],
)]
#[case::an_end_of_an_explicit_histogram_without_a_sum(
    of(9, &explicit(&[], &[]).number(10, 1)),
    &["m_count{} stale @1", "m_bucket{le=\"+Inf\"} stale @1"],
)]
#[case::a_summary_without_quantiles(
    metric("m", 11, &message().message(1, &message().fixed(3, SECOND).fixed(4, 2).double(5, 1.5))),
    &["m_sum{} 1.5 @1", "m_count{} 2 @1"],
)]
#[case::an_end_of_an_exponential_histogram(
    of(10, &exponential(3, 0, &[1]).number(10, 1)),
    &["m{} stale @1"],
)]
#[case::an_end_of_a_summary(
    metric("m", 11, &message().message(1, &message().fixed(3, SECOND).number(8, 1)
        .message(6, &message().double(1, 0.99).double(2, 1.0)))),
    &["m_sum{} stale @1", "m_count{} stale @1", "m{quantile=\"0.99\"} stale @1"],
)]
#[case::other_flags_mean_nothing(gauge(&number(1.0).number(8, 6)), &["m{} 1 @1"])]
#[case::a_value_that_is_missing_is_zero(gauge(&message().fixed(3, SECOND)), &["m{} 0 @1"])]
#[case::times_are_cut_to_milliseconds(
    gauge(&message().fixed(2, 2 * MILLI - 1).fixed(3, 3 * MILLI - 1).double(4, 1.0)),
    &["m{} 1 @0.002 since 0.001"],
)]
fn data_points(#[case] metric: Message, #[case] wanted: &[&str]) {
    let (seen, report) = read(&request(&[], &[metric]));
    assert_eq!(seen.series, wanted);
    assert_eq!(report.rejected, 0, "{report:?}");
}

/// A request with one data point, with attributes, of a scope that says all that it can of itself.
fn scoped(resource: &[(&str, &str)], attributes: &[(&str, &str)], scope_name: &str) -> Vec<u8> {
    let scope = message()
        .bytes(1, scope_name)
        .bytes(2, "v1")
        .attributes(3, &[("a.b", "scope's")]);
    let metrics = message()
        .message(1, &scope)
        .bytes(3, "schema")
        .message(2, &gauge(&number(1.0).attributes(7, attributes)));
    let resource = message().attributes(1, resource);
    let of_resource = message().message(1, &resource).message(2, &metrics);
    message().message(1, &of_resource).0
}

#[rstest]
#[case::a_name_alone(&[("service.name", "n")], &[], &["m{job=\"n\"} 1 @1"])]
#[case::a_namespace_alone_is_no_job(&[("service.namespace", "ns")], &[], &["m{} 1 @1"])]
#[case::an_empty_namespace_is_one(
    &[("service.name", "n"), ("service.namespace", "")], &[], &["m{job=\"/n\"} 1 @1"],
)]
#[case::an_instance_alone_is_enough_for_target_info(
    &[("service.instance.id", "i"), ("x", "y")],
    &[],
    &["m{instance=\"i\"} 1 @1", "target_info{instance=\"i\",x=\"y\"} 1 @1"],
)]
#[case::the_resource_says_which_job_it_is(
    &[("service.name", "n")], &[("job", "own"), ("instance", "own")], &["m{instance=\"own\",job=\"n\"} 1 @1"],
)]
#[case::attributes_of_the_resource_that_get_one_name_are_joined(
    &[("service.name", "n"), ("x.y", "2"), ("x-y", "1")],
    &[],
    &["m{job=\"n\"} 1 @1", "target_info{job=\"n\",x_y=\"1;2\"} 1 @1"],
)]
#[case::one_without_a_value_is_not_joined(
    &[("service.name", "n"), ("x.y", "2"), ("x-y", "")],
    &[],
    &["m{job=\"n\"} 1 @1", "target_info{job=\"n\",x_y=\"2\"} 1 @1"],
)]
fn resources(
    #[case] resource: &[(&str, &str)],
    #[case] attributes: &[(&str, &str)],
    #[case] wanted: &[&str],
) {
    let (seen, _) = read(&scoped(resource, attributes, "scope"));
    assert_eq!(seen.series, wanted);
}

#[rstest]
#[case::a_label_of_its_own_stays(&[("x", "own")], "", &["m{job=\"n\",x=\"own\"} 1 @1"])]
#[case::one_that_it_does_not_have_is_added(&[], "", &["m{job=\"n\",x=\"y\"} 1 @1"])]
#[case::the_scope_comes_before_its_own(
    &[("otel_scope_name", "own"), ("otel.scope.a.b", "own")],
    "scope",
    &["m{job=\"n\",otel_scope_a_b=\"scope's\",otel_scope_name=\"scope\",otel_scope_schema_url=\"schema\",otel_scope_version=\"v1\",x=\"y\"} 1 @1"],
)]
#[case::a_scope_without_a_name_is_none(
    &[("otel_scope_name", "own")], "", &["m{job=\"n\",otel_scope_name=\"own\",x=\"y\"} 1 @1"],
)]
fn what_is_promoted(#[case] attributes: &[(&str, &str)], #[case] scope: &str, #[case] wanted: &[&str]) {
    let settings = Settings {
        promote_resource_attributes: vec!["x".to_owned()],
        promote_scope_metadata: true,
        ..Settings::default()
    };
    let bytes = scoped(&[("service.name", "n"), ("x", "y")], attributes, scope);
    let (seen, _) = translate(&bytes, &settings).unwrap();
    let mut wanted = wanted.to_vec();
    // Nothing of the scope, and all of the resource.
    wanted.push("target_info{job=\"n\",x=\"y\"} 1 @1");
    assert_eq!(seen.series, wanted);
}

#[rstest]
#[case::gauge(gauge(&number(1.0)), "m|gauge||")]
#[case::monotonic_sum(of(7, &number(1.0)), "m_total|counter||")]
#[case::other_sum(metric("m", 7, &message().message(1, &number(1.0)).number(2, 2)), "m|gauge||")]
#[case::explicit_histogram(of(9, &explicit(&[1], &[])), "m|histogram||")]
#[case::exponential_histogram(of(10, &exponential(0, 0, &[1])), "m|histogram||")]
#[case::summary(metric("m", 11, &message().message(1, &message().fixed(3, SECOND))), "m|summary||")]
fn types(#[case] metric: Message, #[case] wanted: &str) {
    let (seen, _) = read(&request(&[], &[metric]));
    assert_eq!(seen.metadata, [wanted]);
}

#[rstest]
#[case::sum(7)]
#[case::explicit_histogram(9)]
#[case::exponential_histogram(10)]
fn a_temporality_that_was_not_sent_is_refused(#[case] kind: u32) {
    let point = message().fixed(3, SECOND);
    let unspecified = metric("m", kind, &message().message(1, &point));
    let (seen, report) = read(&request(&[], &[unspecified, gauge(&number(1.0))]));
    assert_eq!(seen.series, ["m{} 1 @1"], "what needs none is taken");
    assert_eq!((report.points, report.rejected), (2, 1));
    assert_eq!(report.first.unwrap().0, PointFault::Temporality);
}

#[rstest]
#[case(
    TranslationStrategy::UnderscoreEscapingWithSuffixes,
    "http_rtt_milliseconds_total{http_method=\"GET\"}"
)]
#[case(
    TranslationStrategy::UnderscoreEscapingWithoutSuffixes,
    "http_rtt{http_method=\"GET\"}"
)]
#[case(
    TranslationStrategy::NoUtf8EscapingWithSuffixes,
    "http.rtt_milliseconds_total{http.method=\"GET\"}"
)]
#[case(TranslationStrategy::NoTranslation, "http.rtt{http.method=\"GET\"}")]
fn strategies(#[case] translation_strategy: TranslationStrategy, #[case] wanted: &str) {
    let settings = Settings {
        translation_strategy,
        ..Settings::default()
    };
    let point = number(1.0).attributes(7, &[("http.method", "GET")]);
    let sum = message().message(1, &point).number(2, 2).number(3, 1);
    let metric = metric("http.rtt", 7, &sum).bytes(3, "ms");
    let (seen, _) = translate(&request(&[], &[metric]), &settings).unwrap();
    assert_eq!(seen.series, [format!("{wanted} 1 @1")]);
}

#[rstest]
#[case::characters_stay(TranslationStrategy::NoTranslation, "x.y", "_")]
#[case::with_suffixes_too(TranslationStrategy::NoUtf8EscapingWithSuffixes, "x.y", "_")]
#[case::characters_are_replaced(TranslationStrategy::UnderscoreEscapingWithoutSuffixes, "x_y", "key_z")]
fn labels_of_resources_and_data_points_go_by_the_strategy(
    #[case] translation_strategy: TranslationStrategy,
    #[case] promoted: &str,
    #[case] odd: &str,
) {
    let settings = Settings {
        translation_strategy,
        promote_all_resource_attributes: true,
        ignore_resource_attributes: vec!["service.name".to_owned()],
        ..Settings::default()
    };
    // Only what is promoted must have more than underscores where characters stay.
    let own = if odd == "_" { "_" } else { "_z" };
    let bytes = scoped(&[("service.name", "n"), ("x.y", "v")], &[(own, "o")], "");
    let (seen, report) = translate(&bytes, &settings).unwrap();
    assert_eq!(report.rejected, 0, "{report:?}");
    let mut labels = [
        (odd, format!("{odd}=\"o\"")),
        ("job", "job=\"n\"".to_owned()),
        (promoted, format!("{promoted}=\"v\"")),
    ];
    labels.sort();
    let labels: Vec<String> = labels.into_iter().map(|(_, text)| text).collect();
    let info = format!("target_info{{job=\"n\",{promoted}=\"v\"}} 1 @1");
    assert_eq!(seen.series, [format!("m{{{}}} 1 @1", labels.join(",")), info]);
}

#[test]
fn deltas_that_may_fall_are_added_up_without_a_suffix() {
    let deltas = tenant();
    let add = |start: u64, v: f64| {
        let point = message()
            .fixed(2, start * SECOND)
            .fixed(3, (start + 10) * SECOND)
            .double(4, v);
        let falling = metric("m", 7, &message().message(1, &point).number(2, 1));
        add_up(&deltas, &Settings::default(), &falling).0
    };
    let first = add(10, 2.5);
    assert_eq!(first.series, ["m{} 2.5 @20 since 10"]);
    assert_eq!(first.metadata, ["m|gauge||"]);
    assert_eq!(add(20, -1.0).series, ["m{} 1.5 @30 since 10"]);
}
