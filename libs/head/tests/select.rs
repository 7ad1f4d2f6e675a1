//! Selects against trying every matcher on every series.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use koios_head::{Head, HeadOptions};
use koios_model::{
    BatchColumns, Expiry, Labels, MatchOp, Matcher, Matchers, SeriesClasses, SeriesHash, TimeRange,
};
use proptest::prelude::*;

const WINDOW_MS: i64 = 1000;

fn labels(i: usize) -> Labels {
    Labels::from_pairs([
        ("__name__", ["up", "down", "requests_total"][i % 3].to_owned()),
        ("instance", format!("host-{:02}", i / 3)),
        ("zone", ["", "a", "b", "ab"][i % 4].to_owned()),
        (["x", "y"][i % 2], "1".to_owned()),
    ])
}

fn fill(head: &mut Head, which: std::ops::Range<usize>, t: i64) {
    let mut b = BatchColumns::default();
    for i in which {
        b.push_series(SeriesHash(i as u128 % 50), labels(i).as_ref());
        b.push_sample(t, 1.0);
    }
    head.apply(&b, 0, 1);
}

/// Series 0..60 early (forgotten), 40..160 in the middle, 120..200 late.
fn head() -> (Head, Vec<(Labels, Vec<i64>)>) {
    let mut head = Head::new(HeadOptions {
        window_ms: WINDOW_MS,
        ..HeadOptions::default()
    });
    fill(&mut head, 0..60, 500);
    let early = head.cut(0);
    fill(&mut head, 40..160, 1500);
    head.cut_listed(early.id);
    head.forget(WINDOW_MS);
    fill(&mut head, 120..200, 2500);
    let model = (40..200)
        .map(|i| {
            let mut times = Vec::new();
            if i < 160 {
                times.push(1500)
            }
            if i >= 120 {
                times.push(2500)
            }
            (labels(i), times)
        })
        .collect();
    (head, model)
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let op = prop_oneof![
        Just(MatchOp::Equal),
        Just(MatchOp::NotEqual),
        Just(MatchOp::Regex),
        Just(MatchOp::NotRegex)
    ];
    let name = prop::sample::select(vec!["__name__", "instance", "zone", "x", "y", "missing"]);
    let value = prop::sample::select(vec![
        "",
        "up",
        "down|up",
        "up|",
        "host-1.*",
        "host-1.+",
        "host-(15|16|99)",
        ".*2",
        "a",
        "b|",
        "[ab]*",
        ".*",
        ".+",
        "1",
        "nope",
        "requests.*l",
    ]);
    (op, name, value).prop_map(|(op, name, value)| Matcher::new(op, name, value).unwrap())
}

/// Before, between and after the times of samples; none for ever.
fn kept_from() -> impl Strategy<Value = Option<i64>> {
    prop::sample::select(vec![
        None,
        Some(900),
        Some(1500),
        Some(1501),
        Some(2500),
        Some(2501),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn select_finds_what_matches(ms in proptest::collection::vec(matcher(), 0..4), range in prop::sample::select(vec![
        TimeRange::ALL, TimeRange::new(0, 999), TimeRange::new(1000, 1999), TimeRange::new(2100, 9999),
    ])) {
        let (head, model) = head();
        let matchers = Matchers(ms);
        // No sample of a window is outside the range unless all are, so "may have samples" is exact here.
        let mut expected: Vec<Labels> = model.iter()
            .filter(|(l, times)| matchers.matches(l.as_ref()) && times.iter().any(|t| range.contains(*t)))
            .map(|(l, _)| l.clone()).collect();
        expected.sort();
        let got: Vec<Labels> = head.select(&matchers, range).into_iter().map(|id| head.labels(id).unwrap()).collect();
        prop_assert_eq!(&got, &expected);
        let mut names: Vec<String> = expected.iter().flat_map(|l| l.iter().map(|(n, _)| n.to_owned())).collect();
        names.sort();
        names.dedup();
        prop_assert_eq!(head.label_names(&matchers, range, &Expiry::default()), names);
        for name in ["instance", "zone", "missing"] {
            let mut values: Vec<String> = expected.iter().filter_map(|l| l.get(name).map(str::to_owned)).collect();
            values.sort();
            values.dedup();
            prop_assert_eq!(head.label_values(name, &matchers, range, &Expiry::default()), values);
        }
    }

    #[test]
    fn i10_series_are_left_out_of_which_all_is_too_old(
        rules in proptest::collection::vec((matcher(), kept_from()), 0..4), rest in kept_from(), name in prop::option::of(matcher()),
        range in prop::sample::select(vec![TimeRange::ALL, TimeRange::new(1000, 1999), TimeRange::new(2000, 9999)]),
    ) {
        let (head, model) = head();
        let (rules, kept_from): (Vec<_>, Vec<_>) = rules.into_iter().map(|(m, from)| (Matchers(vec![m]), from)).unzip();
        let expiry = Expiry::new(SeriesClasses::new(rules), kept_from.into_iter().chain([rest]));
        let matchers = Matchers(name.into_iter().collect());
        let is_kept = |l: &Labels, t: i64| range.contains(t) && expiry.kept_from(l.as_ref()).is_none_or(|from| from <= t);
        let mut expected: Vec<Labels> = model.iter()
            .filter(|(l, times)| matchers.matches(l.as_ref()) && times.iter().any(|t| is_kept(l, *t)))
            .map(|(l, _)| l.clone()).collect();
        expected.sort();
        let found = head.select_kept(&matchers, range, &expiry);
        let got: Vec<Labels> = found.into_iter().map(|id| head.labels(id).unwrap()).collect();
        prop_assert_eq!(&got, &expected);
        let names: BTreeSet<&str> = expected.iter().flat_map(|l| l.iter().map(|(n, _)| n)).collect();
        prop_assert_eq!(head.label_names(&matchers, range, &expiry), Vec::from_iter(names));
        let values: BTreeSet<&str> = expected.iter().filter_map(|l| l.get("instance")).collect();
        prop_assert_eq!(head.label_values("instance", &matchers, range, &expiry), Vec::from_iter(values));
    }
}
