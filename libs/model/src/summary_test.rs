//! Claims about downsampling.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;

fn samples(values: &[(i64, f64)]) -> Vec<Sample> {
    values.iter().map(|&(t, v)| Sample { t, v }).collect()
}

fn histogram(count: f64) -> Arc<Histogram> {
    Arc::new(Histogram {
        count,
        zero_count: count,
        sum: count,
        ..Histogram::default()
    })
}

#[test]
fn buckets_are_open_on_the_left_and_closed_on_the_right() {
    for (t, end) in [
        (0, 0),
        (1, 300),
        (299, 300),
        (300, 300),
        (301, 600),
        (-1, 0),
        (-300, -300),
        (-299, 0),
    ] {
        assert_eq!(bucket_end(t, 300), end, "{t}");
    }
    assert_eq!(bucket_end(i64::MAX, 300), i64::MAX);
}

#[test]
fn a_counter_keeps_what_it_counted_before_it_began_anew() {
    let all = samples(&[(10, 5.0), (20, 9.0), (30, 2.0), (40, 4.0), (310, 1.0)]);
    let down = downsample(&all, &[], 300).summaries;
    assert_eq!(down.len(), 2);
    assert_eq!((down[0].resets, down[0].increase()), (9.0, 8.0));
    assert_eq!((down[0].first, down[0].last, down[0].sum), (5.0, 4.0, 20.0));
    assert_eq!((down[0].min, down[0].max, down[0].count), (2.0, 9.0, 4));
    assert_eq!((down[1].first_t, down[1].last_t, down[1].resets), (310, 310, 0.0));
}

#[test]
fn stale_markers_end_a_summary_and_stay() {
    let all = samples(&[(10, 1.0), (20, stale_nan()), (30, 2.0)]);
    let down = downsample(&all, &[], 300).summaries;
    let seen: Vec<_> = down.iter().map(|s| (s.first_t, s.count, s.is_stale())).collect();
    assert_eq!(seen, [(10, 1, false), (20, 0, true), (30, 1, false)]);
    assert!(is_stale(down[1].last));
}

#[test]
fn of_histograms_the_ends_and_both_sides_of_a_reset_are_kept() {
    let counts = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0];
    let all: Vec<_> = counts
        .iter()
        .enumerate()
        .map(|(i, &c)| (10 * i as i64 + 10, histogram(c)))
        .collect();
    let down = downsample(&samples(&[(300, 7.0)]), &all, 300);
    let kept: Vec<_> = down.histograms.iter().map(|(t, h)| (*t, h.count)).collect();
    assert_eq!(kept, [(10, 1.0), (40, 4.0), (50, 1.0), (70, 3.0)]);
    let seen: Vec<_> = down
        .summaries
        .iter()
        .map(|s| (s.last_t, s.histograms, s.count))
        .collect();
    assert_eq!(seen, [(70, 7, 0), (300, 0, 1)]);
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => (0i32..50).prop_map(f64::from),
        1 => Just(f64::NAN),
        1 => Just(stale_nan()),
        1 => Just(f64::INFINITY),
        1 => Just(-0.0),
    ]
}

fn any_floats() -> impl Strategy<Value = Vec<Sample>> {
    prop::collection::vec((1i64..90, any_value()), 0..120).prop_map(|gaps| {
        let mut t = 1;
        let step = |(gap, v)| {
            t += gap;
            Sample { t, v }
        };
        gaps.into_iter().map(step).collect()
    })
}

proptest! {
    #[test]
    fn i10_summaries_say_of_each_bucket_what_its_samples_do(all in any_floats(), resolution in 1i64..700) {
        let down = downsample(&all, &[], resolution).summaries;
        prop_assert!(down.windows(2).all(|w| w[0].last_t < w[1].first_t));
        let mut rest = all.as_slice();
        for summary in &down {
            let n = rest.partition_point(|s| s.t <= summary.last_t);
            let (mine, later) = rest.split_at(n);
            rest = later;
            prop_assert_eq!(mine.first().unwrap().t, summary.first_t);
            prop_assert_eq!(mine.last().unwrap().t, summary.last_t);
            let end = bucket_end(summary.first_t, resolution);
            prop_assert!(mine.iter().all(|s| bucket_end(s.t, resolution) == end));
            if summary.is_stale() {
                prop_assert!(mine.len() == 1 && is_stale(mine[0].v));
                continue;
            }
            prop_assert!(mine.iter().all(|s| !is_stale(s.v)));
            prop_assert_eq!(summary.count as usize, mine.len());
            let resets: f64 = mine.windows(2).filter(|w| w[1].v < w[0].v).map(|w| w[0].v).sum();
            let sum: f64 = mine.iter().map(|s| s.v).sum();
            let min = mine.iter().map(|s| s.v).fold(f64::NAN, lesser);
            let max = mine.iter().map(|s| s.v).fold(f64::NAN, greater);
            let same = |a: f64, b: f64| a == b || a.is_nan() && b.is_nan();
            prop_assert!(same(summary.resets, resets), "{summary:?}");
            prop_assert!(same(summary.sum, sum), "{summary:?} {sum}");
            prop_assert!(same(summary.min, min) && same(summary.max, max), "{summary:?}");
            prop_assert_eq!(summary.first.to_bits(), mine[0].v.to_bits());
            prop_assert_eq!(summary.last.to_bits(), mine[n - 1].v.to_bits());
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn what_is_summarised_in_two_pieces_is_the_same_once_united(all in any_floats(), at in 0usize..120) {
        let all: Vec<Sample> = all.into_iter().filter(|s| s.v.is_finite()).collect();
        let (before, after) = all.split_at(at.min(all.len()));
        let Some(whole) = downsample(&all, &[], 1 << 30).summaries.pop() else { return Ok(()) };
        prop_assume!(bucket_end(all[0].t, 1 << 30) == bucket_end(whole.last_t, 1 << 30));
        let (a, b) = (downsample(before, &[], 1 << 30), downsample(after, &[], 1 << 30));
        let mut pieces = a.summaries.into_iter().chain(b.summaries);
        let mut united = pieces.next().unwrap();
        pieces.for_each(|p| united.absorb(&p));
        prop_assert_eq!(united.floats(), whole.floats());
        prop_assert_eq!((united.range(), united.count), (whole.range(), whole.count));
    }
}
