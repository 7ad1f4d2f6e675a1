//! Windows whose edges cut summaries: what docs/downsampling.md says of other than whole buckets.

use koios_model::summary::{bucket_end, greater, lesser};
use koios_model::{Sample, is_stale};
use proptest::prelude::*;

use super::{HOUR, Stored, any_counter, any_gauge, any_resolution, close, floats};

/// Samples of one summary, as all that are summarised have it: those of a bucket, as none of these is a stale marker.
pub(super) fn summaries_of<T: Clone>(all: &[T], t: impl Fn(&T) -> i64, resolution_ms: i64) -> Vec<Vec<T>> {
    let mut out: Vec<Vec<T>> = Vec::new();
    for sample in all {
        let of = |s: &T| bucket_end(t(s), resolution_ms);
        match out.last_mut() {
            Some(last) if last.first().is_some_and(|first| of(first) == of(sample)) => {
                last.push(sample.clone())
            }
            _ => out.push(vec![sample.clone()]),
        }
    }
    out
}

/// Evaluations at any times, over ranges of some buckets that begin and end anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Windows {
    pub(super) resolution_ms: i64,
    pub(super) range_ms: i64,
    start: i64,
    step_ms: i64,
}

pub(super) fn any_windows() -> impl Strategy<Value = Windows> {
    (any_resolution(), 1i64..12, 0i64..HOUR, 1i64..HOUR).prop_map(|(resolution_ms, buckets, start, odd)| {
        Windows {
            resolution_ms,
            range_ms: buckets * resolution_ms + odd % resolution_ms,
            start: start + 1,
            step_ms: 7 * 60_000 + odd % 60_000,
        }
    })
}

impl Windows {
    pub(super) fn times(&self, until: i64) -> (i64, i64, i64) {
        (
            self.start,
            until.max(self.start) + self.resolution_ms,
            self.step_ms,
        )
    }

    pub(super) fn query(&self, function: &str) -> String {
        format!("{function}(x_total[{}ms])", self.range_ms)
    }
}

/// The samples that count to a window: those of each summary to the one that its last sample lies in.
pub(super) fn counted<T>(summaries: &[Vec<T>], t: impl Fn(&T) -> i64, (start, end): (i64, i64)) -> Vec<&T> {
    let inside = |s: &&Vec<T>| s.last().is_some_and(|last| start < t(last) && t(last) <= end);
    summaries.iter().filter(inside).flatten().collect()
}

fn aggregate(function: &str, values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    match function {
        "count_over_time" => values.len() as f64,
        "sum_over_time" => sum,
        "avg_over_time" => sum / values.len() as f64,
        "min_over_time" => values.iter().copied().fold(f64::NAN, lesser),
        _ => values.iter().copied().fold(f64::NAN, greater),
    }
}

fn check_aggregates(all: &[Sample], windows: Windows) -> Result<(), TestCaseError> {
    let down = Stored::new(all, &[], i64::MAX, windows.resolution_ms);
    let summaries = summaries_of(all, |s| s.t, windows.resolution_ms);
    let times = windows.times(all.last().map_or(0, |s| s.t));
    for function in [
        "count_over_time",
        "sum_over_time",
        "avg_over_time",
        "min_over_time",
        "max_over_time",
    ] {
        let found = floats(&down, &windows.query(function), times);
        for t in (times.0..=times.1).step_by(times.2 as usize) {
            let found = found.iter().find(|f| f.0 == t).map(|f| f.1);
            let window = (t - windows.range_ms, t);
            let counted: Vec<f64> = counted(&summaries, |s| s.t, window).iter().map(|s| s.v).collect();
            if !counted.is_empty() {
                let wanted = aggregate(function, &counted);
                let found = found.unwrap();
                prop_assert!(
                    close(wanted, found),
                    "{function} at {t}: {found}, not {wanted} of {windows:?}"
                );
                continue;
            }
            // The window lies inside of a summary, or in none.
            let around = summaries.iter().find(|s| s[0].t < t && s.last().unwrap().t > t);
            prop_assert_eq!(found.is_some(), around.is_some(), "{} at {}", function, t);
            let Some((found, around)) = found.zip(around) else {
                continue;
            };
            let values: Vec<f64> = around.iter().map(|s| s.v).collect();
            let whole = aggregate(function, &values);
            match function {
                "count_over_time" | "sum_over_time" => {
                    prop_assert!(found.abs() <= whole.abs() * (1.0 + 1e-9) || whole.is_nan());
                }
                _ => prop_assert!(close(found, whole), "{function} at {t}: {found}, not {whole}"),
            }
        }
    }
    Ok(())
}

/// What a counter rose by from sample to sample.
fn risen(samples: &[Sample]) -> f64 {
    let rise = |w: &[Sample]| if w[1].v < w[0].v { w[1].v } else { w[1].v - w[0].v };
    samples.windows(2).map(rise).sum()
}

/// The greatest difference between two of them.
fn spread(samples: &[Sample]) -> f64 {
    let fold = |of: fn(f64, f64) -> f64| samples.iter().map(|s| s.v).fold(f64::NAN, of);
    fold(greater) - fold(lesser)
}

/// Checks `increase` and `rate`, or `delta`: before extrapolation they are wrong by less than `slack` of the summary that an edge
/// cuts, and are extrapolated only towards edges that cut none, never beyond these.
fn check_changes(
    all: &[Sample],
    windows: Windows,
    function: &str,
    change: fn(&[Sample]) -> f64,
    slack: fn(&[Sample]) -> f64,
) -> Result<(), TestCaseError> {
    let down = Stored::new(all, &[], i64::MAX, windows.resolution_ms);
    let raw = Stored::raw(all, &[]);
    let summaries = summaries_of(all, |s| s.t, windows.resolution_ms);
    let times = windows.times(all.last().map_or(0, |s| s.t));
    let cut_at = |t: i64| summaries.iter().find(|s| s[0].t <= t && s.last().unwrap().t > t);
    let found = floats(&down, &windows.query(function), times);
    let of_all = floats(&raw, &windows.query(function), times);
    for (t, found) in found {
        let found = if function == "rate" {
            found * windows.range_ms as f64 / 1000.0
        } else {
            found
        };
        let start = t - windows.range_ms;
        let inside: Vec<Sample> = all.iter().filter(|s| s.t > start && s.t <= t).copied().collect();
        let (left, right) = (cut_at(start), cut_at(t));
        if left.is_none() && right.is_none() {
            // As of all samples, extrapolation included.
            let wanted = of_all.iter().find(|w| w.0 == t).map(|w| w.1).unwrap();
            let wanted = if function == "rate" {
                wanted * windows.range_ms as f64 / 1000.0
            } else {
                wanted
            };
            prop_assert!(close(found, wanted), "{function} at {t}: {found}, not {wanted}");
            continue;
        }
        let same = left.zip(right).is_some_and(|(l, r)| l[0].t == r[0].t);
        let slack = left.map_or(0.0, |s| slack(s)) + right.filter(|_| !same).map_or(0.0, |s| slack(s));
        let (least, most) = (change(&inside) - slack, change(&inside) + slack);
        // How far it may be extrapolated.
        let first = left.map_or_else(|| inside[0].t, |_| start);
        let last = right.map_or_else(|| inside.last().unwrap().t, |_| t);
        let factor = windows.range_ms as f64 / (last - first).max(1) as f64;
        let (least, most) = (least.min(least * factor), most.max(most * factor));
        let rounding = 1e-6 * (1.0 + least.abs().max(most.abs()));
        prop_assert!(
            least - rounding <= found && found <= most + rounding,
            "{function} at {t}: {found} is not between {least} and {most} of {windows:?}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn each_summary_counts_to_the_window_that_its_last_sample_lies_in(
        counter in any_counter(), gauge in any_gauge(), windows in any_windows(),
    ) {
        check_aggregates(&counter, windows)?;
        check_aggregates(&gauge, windows)?;
    }

    #[test]
    fn increases_are_wrong_by_less_than_that_of_the_bucket_that_an_edge_cuts(
        all in any_counter(), windows in any_windows(),
    ) {
        check_changes(&all, windows, "increase", risen, risen)?;
        check_changes(&all, windows, "rate", risen, risen)?;
    }

    #[test]
    fn deltas_are_wrong_by_no_more_than_the_values_of_the_bucket_that_an_edge_cuts_differ(
        all in any_gauge(), windows in any_windows(),
    ) {
        let all: Vec<Sample> = all.into_iter().filter(|s| !s.v.is_nan()).collect();
        let change = |s: &[Sample]| s.last().map_or(0.0, |l| l.v) - s.first().map_or(0.0, |f| f.v);
        check_changes(&all, windows, "delta", change, spread)?;
    }

    #[test]
    fn the_last_and_the_first_sample_are_some_that_were_sent_less_than_a_bucket_away(
        all in any_counter(), windows in any_windows(),
    ) {
        let (raw, down) = (Stored::raw(&all, &[]), Stored::new(&all, &[], i64::MAX, windows.resolution_ms));
        prop_assert!(all.iter().all(|s| !is_stale(s.v)));
        let times = windows.times(all.last().unwrap().t);
        for (function, end) in [("last_over_time", true), ("first_over_time", false)] {
            let found = floats(&down, &windows.query(function), times);
            for (t, _) in floats(&raw, &windows.query(function), times) {
                let value = found.iter().find(|f| f.0 == t).map(|f| f.1);
                let mut inside = all.iter().filter(|s| s.t > t - windows.range_ms && s.t <= t).map(|s| s.t);
                let true_t = if end { inside.next_back() } else { inside.next() }.unwrap();
                let near = |s: &&Sample| s.t.abs_diff(true_t) < windows.resolution_ms.unsigned_abs();
                prop_assert!(all.iter().filter(near).any(|s| Some(s.v) == value), "{function} at {t}: {value:?}");
            }
        }
        let present = floats(&down, &windows.query("present_over_time"), times);
        for (t, _) in floats(&raw, &windows.query("present_over_time"), times) {
            prop_assert!(present.contains(&(t, 1.0)));
        }
    }
}
