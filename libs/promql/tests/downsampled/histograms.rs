//! Native histograms, downsampled.

use std::sync::Arc;

use koios_model::{Histogram, ResetHint, TimeRange, spans_of};
use koios_promql::{AnnotationTexts, Columns, Value, merge_summaries};
use proptest::prelude::*;

use super::edges::{any_windows, counted, summaries_of};
use super::{Histograms, MINUTES_5, Stored, aligned, any_resolution, check_same, close, floats, run};

/// The histograms of the one series, by time, and what else was said.
fn histograms(
    stored: &Stored,
    query: &str,
    times: (i64, i64, i64),
) -> (Vec<(i64, Arc<Histogram>)>, AnnotationTexts) {
    let output = run(stored, query, times);
    let texts = output.annotation_texts();
    let Value::Matrix(series) = output.value else {
        panic!("{:?}", output.value)
    };
    let points = series.iter().flat_map(|s| s.histograms());
    (points.map(|(t, h)| (t, Arc::clone(h))).collect(), texts)
}

fn check_close(wanted: &Histogram, found: &Histogram) -> Result<(), TestCaseError> {
    let whole = |h: &Histogram| (h.schema, h.custom_bounds.clone(), h.zero_threshold.to_bits());
    prop_assert_eq!(whole(wanted), whole(found));
    let all = |h: &Histogram| -> Vec<(i32, f64)> {
        let numbers = [h.count, h.sum, h.zero_count].map(|v| (0, v)).into_iter();
        let positive = h.positive().filter(|b| b.1 != 0.0);
        numbers
            .chain(positive)
            .chain(h.negative().filter(|b| b.1 != 0.0))
            .collect()
    };
    let (wanted, found) = (all(wanted), all(found));
    prop_assert_eq!(wanted.len(), found.len(), "{:?} {:?}", wanted, found);
    for (w, f) in wanted.iter().zip(&found) {
        prop_assert!(w.0 == f.0 && close(w.1, f.1), "{wanted:?} {found:?}");
    }
    Ok(())
}

/// How the histograms of a series may differ.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Exponential buckets of some schemas.
    Exponential,
    /// Custom buckets, whose bounds may differ.
    Custom,
    /// Now and then of the other kind.
    Mixed,
}

fn observed(kind: Kind, gauge: bool, (count, shape): (u32, u32)) -> Arc<Histogram> {
    let n = f64::from(count);
    let custom = match kind {
        Kind::Exponential => false,
        Kind::Custom => true,
        Kind::Mixed => shape == 0,
    };
    let (positive_spans, positive_buckets) = spans_of([(0, n), (1, 2.0 * n), (3, f64::from(shape % 3))]);
    let common = Histogram {
        reset_hint: if gauge {
            ResetHint::Gauge
        } else {
            ResetHint::Unknown
        },
        count: 4.5 * n + f64::from(shape % 3),
        sum: 3.1 * n,
        positive_spans,
        positive_buckets,
        ..Histogram::default()
    };
    if custom {
        let bounds: &[f64] = match shape % 4 {
            0 => &[1.0, 2.0, 3.0, 4.0],
            1 => &[1.0, 2.5, 3.0, 4.0, 5.0],
            _ => &[0.5, 1.0, 2.0, 4.0, 8.0],
        };
        return Arc::new(Histogram {
            schema: koios_model::CUSTOM_BOUNDS_SCHEMA,
            custom_bounds: bounds.to_vec(),
            ..common
        });
    }
    let (negative_spans, negative_buckets) = spans_of([(-1, n / 2.0)]);
    Arc::new(Histogram {
        schema: if shape < 40 { 2 } else { (shape % 3) as i32 },
        zero_count: n,
        zero_threshold: 0.001,
        negative_spans,
        negative_buckets,
        ..common
    })
}

/// Counters that sometimes begin anew, and gauges; each quarter of a minute, with gaps.
fn any_histograms() -> impl Strategy<Value = Histograms> {
    let kind = prop_oneof![4 => Just(Kind::Exponential), 3 => Just(Kind::Custom), 1 => Just(Kind::Mixed)];
    let step = (prop_oneof![30 => Just(1i64), 1 => 2i64..60], 0u32..9, 0u32..60);
    (kind, any::<bool>(), prop::collection::vec(step, 50..800)).prop_map(|(kind, gauge, steps)| {
        let (mut at, mut count) = (0, 0);
        let histogram = |(gap, more, odd): (i64, u32, u32)| {
            at += gap * 15_000;
            count = if gauge || odd == 0 { more } else { count + more };
            let shape = if gauge { odd } else { odd.min(30) };
            (at, observed(kind, gauge, (count, shape)))
        };
        steps.into_iter().map(histogram).collect()
    })
}

/// Counters of the same buckets all along.
fn any_counters() -> impl Strategy<Value = Histograms> {
    prop::collection::vec((0u32..9, 0u32..60), 50..800).prop_map(|steps| {
        let mut count = 0;
        let histogram = |((more, reset), i): ((u32, u32), i64)| {
            count = if reset == 0 { more } else { count + more };
            (i * 15_000, observed(Kind::Exponential, false, (count, 1)))
        };
        steps.into_iter().zip(1..).map(histogram).collect()
    })
}

/// What is observed from histogram to histogram.
fn risen(all: &[(i64, Arc<Histogram>)]) -> f64 {
    let rise = |(a, b): (f64, f64)| if b < a { b } else { b - a };
    all.windows(2).map(|w| rise((w[0].1.count, w[1].1.count))).sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn aligned_sums_and_averages_are_as_of_all(
        all in any_histograms(), until in 0..6 * super::HOUR, buckets in 1i64..8, resolution in any_resolution(),
    ) {
        let (raw, down) = (Stored::raw(&[], &all), Stored::new(&[], &all, until, resolution));
        for function in ["sum_over_time", "avg_over_time"] {
            let query = format!("{function}(x_total[{}ms])", buckets * resolution);
            let (wanted, said) = histograms(&raw, &query, aligned(1, resolution));
            let (found, repeated) = histograms(&down, &query, aligned(1, resolution));
            let times = |all: &[(i64, Arc<Histogram>)]| all.iter().map(|h| h.0).collect::<Vec<_>>();
            prop_assert_eq!(times(&wanted), times(&found), "{}", query);
            for (w, f) in wanted.iter().zip(&found) {
                check_close(&w.1, &f.1)?;
            }
            // What cannot be added is told; of differing bounds all that shows in what is kept.
            prop_assert_eq!(&said.warnings, &repeated.warnings);
            prop_assert!(repeated.infos.iter().all(|info| said.infos.contains(info)), "{:?}", repeated.infos);
        }
    }

    #[test]
    fn aligned_rates_are_as_of_all(
        all in any_counters(), until in 0..6 * super::HOUR, buckets in 1i64..8, resolution in any_resolution(),
    ) {
        let (raw, down) = (Stored::raw(&[], &all), Stored::new(&[], &all, until, resolution));
        for query in [
            "histogram_count(increase(x_total[W]))", "histogram_sum(rate(x_total[W]))",
            "histogram_quantile(0.7, rate(x_total[W]))", "count_over_time(x_total[W])",
            "histogram_count(last_over_time(x_total[W]))", "histogram_quantile(0.7, sum_over_time(x_total[W]))",
            "histogram_count(avg_over_time(x_total[W]))",
        ] {
            let query = query.replace('W', &format!("{}ms", buckets * resolution));
            check_same((&raw, &down), &query, aligned(1, resolution))?;
        }
    }

    #[test]
    fn increases_are_wrong_by_less_than_that_of_the_bucket_that_an_edge_cuts(
        all in any_counters(), windows in any_windows(),
    ) {
        let (raw, down) = (Stored::raw(&[], &all), Stored::new(&[], &all, i64::MAX, windows.resolution_ms));
        let summaries = summaries_of(&all, |h| h.0, windows.resolution_ms);
        let times = windows.times(all.last().unwrap().0);
        let cut_at = |t: i64| summaries.iter().find(|s| s[0].0 <= t && s.last().unwrap().0 > t);
        let query = format!("histogram_count({})", windows.query("increase"));
        let of_all = floats(&raw, &query, times);
        for (t, found) in floats(&down, &query, times) {
            let start = t - windows.range_ms;
            let (left, right) = (cut_at(start), cut_at(t));
            if left.is_none() && right.is_none() {
                let wanted = of_all.iter().find(|w| w.0 == t).unwrap().1;
                prop_assert!(close(wanted, found), "{found} at {t}, not {wanted}");
                continue;
            }
            let inside: Histograms = all.iter().filter(|h| h.0 > start && h.0 <= t).cloned().collect();
            let same = left.zip(right).is_some_and(|(l, r)| l[0].0 == r[0].0);
            let slack = left.map_or(0.0, |s| risen(s)) + right.filter(|_| !same).map_or(0.0, |s| risen(s));
            let true_rise = risen(&inside);
            prop_assert!((found - true_rise).abs() <= slack + 1e-6,
                "{found} at {t} is wrong by more than {slack}: {true_rise} of {windows:?}");
        }
    }
}

proptest! {
    // Each has many queries of all histograms.
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn each_summary_counts_to_the_window_that_its_last_histogram_lies_in(
        all in any_counters(), windows in any_windows(),
    ) {
        let (raw, down) = (Stored::raw(&[], &all), Stored::new(&[], &all, i64::MAX, windows.resolution_ms));
        let summaries = summaries_of(&all, |h| h.0, windows.resolution_ms);
        let times = windows.times(all.last().unwrap().0);
        for function in ["sum_over_time", "avg_over_time"] {
            for (t, found) in histograms(&down, &windows.query(function), times).0 {
                let counted = counted(&summaries, |h| h.0, (t - windows.range_ms, t));
                let Some((first, last)) = counted.first().zip(counted.last()) else {
                    // A share of the summary that the window lies inside of.
                    prop_assert!(found.count <= all.iter().map(|h| h.1.count).sum());
                    continue;
                };
                let query = format!("{function}(x_total[{}ms])", last.0 - first.0 + 1);
                let wanted = histograms(&raw, &query, (last.0, last.0, 1)).0;
                check_close(&wanted[0].1, &found)?;
            }
        }
    }
}

#[test]
fn of_what_an_earlier_version_downsampled_there_are_no_sums_and_an_info_says_so() {
    let all: Histograms = (1..200)
        .map(|i| (i * 15_000, observed(Kind::Exponential, false, (i as u32, 1))))
        .collect();
    let mut down = Stored::new(&[], &all, i64::MAX, MINUTES_5);
    let query = "sum_over_time(x_total[10m])";
    assert_eq!(histograms(&down, query, aligned(1, MINUTES_5)).0.len(), 11);
    for summary in &mut down.downsampled.summaries {
        summary.histogram_sum = None;
    }
    let (found, said) = histograms(&down, query, aligned(1, MINUTES_5));
    assert!(found.is_empty());
    assert!(said.infos[0].contains("no sums are kept"), "{said:?}");
    assert!(!floats(&down, "count_over_time(x_total[10m])", aligned(1, MINUTES_5)).is_empty());
}

#[test]
fn of_what_adds_up_to_too_many_buckets_there_is_no_sum_and_of_everything_else_there_is() {
    let wide = |i: i32| {
        let (positive_spans, positive_buckets) = spans_of((i * 4096..(i + 1) * 4096).map(|at| (at, 1.0)));
        Arc::new(Histogram {
            count: 4096.0,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        })
    };
    let few = (21..200).map(|i| {
        let h = observed(Kind::Exponential, false, (i as u32, 1));
        (i * 15_000, h)
    });
    let all: Histograms = (1..=17)
        .map(|i| (i64::from(i) * 15_000, wide(i)))
        .chain(few)
        .collect();
    let (raw, down) = (
        Stored::raw(&[], &all),
        Stored::new(&[], &all, i64::MAX, MINUTES_5),
    );
    let query = "sum_over_time(x_total[5m])";
    let times = aligned(1, MINUTES_5);
    let (wanted, _) = histograms(&raw, query, times);
    let (found, said) = histograms(&down, query, times);
    assert!(wanted[0].1.positive_buckets.len() > 1 << 16);
    assert_eq!(wanted[0].0, MINUTES_5);
    let times_of = |all: &[(i64, Arc<Histogram>)]| all.iter().map(|h| h.0).collect::<Vec<_>>();
    assert_eq!(times_of(&found), times_of(&wanted[1..]));
    assert!(said.infos[0].contains("too many buckets"), "{said:?}");
    let query = "count_over_time(x_total[5m])";
    assert_eq!(floats(&down, query, times), floats(&raw, query, times));
}

#[test]
fn summaries_keep_their_sums_beside_samples() {
    let all: Histograms = (1..60)
        .map(|i| (i * 15_000, observed(Kind::Custom, true, (i as u32, 3))))
        .collect();
    let down = Stored::new(&[], &all, i64::MAX, MINUTES_5);
    let mut out = Columns::default();
    merge_summaries(
        &down.downsampled.summaries,
        &Columns::default(),
        TimeRange::ALL,
        &mut out,
    );
    assert_eq!(out.summaries(), down.downsampled.summaries);
    assert!(out.summaries().iter().all(|s| s.histogram_sum.is_some()));
    assert!(out.bytes() > 3 * size_of::<Histogram>());
}
