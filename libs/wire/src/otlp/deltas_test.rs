//! How deltas are added up, and what starts come with.

use super::*;

#[test]
fn starts_come_with_what_is_no_delta() {
    let tenant = tenant();
    let point = message().fixed(2, 10 * SECOND).fixed(3, 20 * SECOND).fixed(6, 3);
    let sum = |temporality| {
        let sum = message().message(1, &point).number(2, temporality).number(3, 1);
        metric("m", "", 7, &sum)
    };
    let (seen, _) = add_up(&tenant, &Settings::default(), &sum(2));
    assert_eq!(seen.series, ["m_total{} 3 @20 since 10"]);
    let (seen, _) = add_up(&tenant, &Settings::default(), &sum(1));
    assert_eq!(
        seen.series,
        ["m_total{} 0 @10.001 since 10", "m_total{} 3 @20 since 10"]
    );
}

fn delta_of(kind: u32, point: &Message) -> Message {
    metric(
        "m",
        "",
        kind,
        &message().message(1, point).number(2, 1).number(3, 1),
    )
}

#[test]
fn deltas_of_sums_are_added_up() {
    let tenant = tenant();
    let point = |start: u64, end: u64, n: u64| {
        message()
            .fixed(2, start * SECOND)
            .fixed(3, end * SECOND)
            .fixed(6, n)
    };
    let add = |point: Message| add_up(&tenant, &Settings::default(), &delta_of(7, &point));
    let of_b = |start, end, n| point(start, end, n).attributes(7, &[("a", "b")]);
    let (seen, _) = add(of_b(10, 20, 3));
    assert_eq!(
        seen.series,
        [
            "m_total{a=\"b\"} 0 @10.001 since 10",
            "m_total{a=\"b\"} 3 @20 since 10"
        ]
    );
    assert_eq!(seen.metadata, ["m_total|counter|Help.|"]);
    let (seen, _) = add(of_b(20, 30, 4));
    assert_eq!(seen.series, ["m_total{a=\"b\"} 7 @30 since 10"]);
    let (seen, _) = add(point(20, 30, 4));
    assert_eq!(
        seen.series,
        ["m_total{} 0 @20.001 since 20", "m_total{} 4 @30 since 20"],
        "another series"
    );
    let (seen, report) = add(of_b(5, 15, 3));
    assert_eq!((seen.series.len(), report.rejected), (0, 1));
    assert_eq!(report.first.unwrap().0, PointFault::DeltaOrder);
    let (seen, _) = add(of_b(30, 9_000, 1));
    assert_eq!(
        seen.series,
        ["m_total{a=\"b\"} 1 @9000"],
        "the sink refuses its time"
    );
    let (seen, _) = add(of_b(30, 40, 1));
    assert_eq!(seen.series, ["m_total{a=\"b\"} 8 @40 since 10"]);
    let (seen, _) = add(of_b(40, 50, 0).number(8, 1));
    assert_eq!(seen.series, ["m_total{a=\"b\"} stale @50"]);
    let (seen, _) = add(of_b(50, 60, 1));
    assert_eq!(
        seen.series,
        [
            "m_total{a=\"b\"} 0 @50.001 since 50",
            "m_total{a=\"b\"} 1 @60 since 50"
        ]
    );
    let (_, report) = add(message().fixed(3, SECOND).double(4, f64::NAN));
    assert_eq!(report.first.unwrap().0, PointFault::DeltaValue);
}

#[test]
fn deltas_that_may_fall_never_dip_to_zero() {
    let tenant = tenant();
    let add = |start: u64, end: u64, n: i64| {
        let point = message().fixed(2, start * SECOND).fixed(3, end * SECOND);
        let sum = message().message(1, &point.fixed(6, n as u64)).number(2, 1);
        add_up(&tenant, &Settings::default(), &metric("m", "", 7, &sum))
            .0
            .series
    };
    assert_eq!(add(10, 20, 3), ["m{} 3 @20 since 10"]);
    assert_eq!(add(20, 30, -1), ["m{} 2 @30 since 10"]);
    assert_eq!(add(35, 40, 5), ["m{} 5 @40 since 35"], "a gap");
}

/// A request with a delta of `requests` of each of these scopes.
fn of_scopes(scopes: &[(&str, u64)]) -> Vec<u8> {
    let scopes = scopes.iter().map(|(name, n)| {
        let point = message().fixed(2, 10 * SECOND).fixed(3, 20 * SECOND).fixed(6, *n);
        let metric = delta_of(7, &point);
        message()
            .message(1, &message().bytes(1, name))
            .message(2, &metric)
    });
    let of_resource = scopes.fold(message(), |m, scope| m.message(2, &scope));
    message().message(1, &of_resource).0
}

#[test]
fn i13_deltas_of_two_scopes_are_added_up_where_scopes_are_no_labels() {
    let deltas = tenant();
    let bytes = of_scopes(&[("http", 5), ("grpc", 7)]);
    for _ in 0..2 {
        let (seen, report) = add_up_request(&deltas, &Settings::default(), &bytes);
        assert_eq!(
            seen.series,
            [
                "m_total{} 0 @10.001 since 10",
                "m_total{} 5 @20 since 10",
                "m_total{} 12 @20.001 since 10"
            ]
        );
        assert_eq!(report.rejected, 0);
    }
    let promotes = Settings {
        promote_scope_metadata: true,
        ..Settings::default()
    };
    let (seen, _) = add_up_request(&tenant(), &promotes, &bytes);
    assert_eq!(seen.series[3], "m_total{otel_scope_name=\"grpc\"} 7 @20 since 10");
}

#[test]
fn i2_a_request_with_several_deltas_of_a_series_comes_out_the_same_again() {
    let tenant = tenant();
    let point = |start: u64, n: u64| {
        message()
            .fixed(2, start * SECOND)
            .fixed(3, (start + 10) * SECOND)
            .fixed(6, n)
    };
    let sum = message().messages(1, &[point(10, 5), point(20, 2)]);
    let metric = metric("m", "", 7, &sum.number(2, 1).number(3, 1));
    for _ in 0..2 {
        let (seen, report) = add_up(&tenant, &Settings::default(), &metric);
        assert_eq!(
            seen.series,
            [
                "m_total{} 0 @10.001 since 10",
                "m_total{} 5 @20 since 10",
                "m_total{} 7 @30 since 10"
            ]
        );
        assert_eq!(report.rejected, 0);
    }
}

#[test]
fn deltas_of_histograms_are_added_up() {
    let tenant = tenant();
    let explicit = |start: u64, bound: f64| {
        message()
            .fixed(2, start * SECOND)
            .fixed(3, (start + 10) * SECOND)
            .fixed(4, 3)
            .double(5, 1.5)
            .fixed_list(6, &[1, 2])
            .fixed_list(7, &[bound.to_bits()])
    };
    let add = |kind, point: &Message| {
        let settings = Settings::default();
        add_up(&tenant, &settings, &delta_of(kind, point)).0.series
    };
    assert_eq!(add(9, &explicit(10, 1.0)).len(), 8, "zeros and values");
    assert_eq!(
        add(9, &explicit(20, 1.0)),
        [
            "m_sum{} 3 @30 since 10",
            "m_count{} 6 @30 since 10",
            "m_bucket{le=\"1\"} 2 @30 since 10",
            "m_bucket{le=\"+Inf\"} 6 @30 since 10"
        ]
    );
    let other = add(9, &explicit(30, 2.0));
    assert_eq!(other[0], "m_sum{} 0 @30.001 since 30");
    assert_eq!(other[7], "m_bucket{le=\"+Inf\"} 3 @40 since 30");
    let exponential = |start: u64, scale: i64, count: u64| {
        message()
            .fixed(2, start * SECOND)
            .fixed(3, (start + 10) * SECOND)
            .fixed(4, count)
            .double(5, 1.0)
            .signed(6, scale)
            .message(8, &message().signed(1, 0).packed(2, &[1, 2]))
    };
    assert_eq!(
        add(10, &exponential(40, 1, 3)),
        [
            "m{} schema 1 count 0 sum 0 zero 0 [] [] @40.001 since 40",
            "m{} schema 1 count 3 sum 1 zero 0 [(1, 1.0), (2, 2.0)] [] @50 since 40"
        ]
    );
    assert_eq!(
        add(10, &exponential(50, 0, 3)),
        ["m{} schema 0 count 6 sum 2 zero 0 [(1, 4.0), (2, 2.0)] [] @60 since 40"]
    );
    let bad = add(10, &exponential(60, 0, 5));
    assert!(bad[0].contains("invalid native histogram"), "{bad:?}");
    assert_eq!(
        add(10, &exponential(60, 0, 3)),
        ["m{} schema 0 count 9 sum 3 zero 0 [(1, 5.0), (2, 4.0)] [] @70 since 40"],
        "what is no histogram was not added"
    );
}
