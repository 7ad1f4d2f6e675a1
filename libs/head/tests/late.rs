//! What late samples cost, and what becomes of those that repeat others.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use koios_head::{Applied, Head, HeadOptions};
use koios_model::{BatchColumns, Histogram, Labels, Matchers, Sample, SeriesHash, TimeRange};

const STEP_MS: i64 = 15_000;
const WINDOW_MS: i64 = 2 * 3600 * 1000;

fn empty_batch() -> BatchColumns {
    let mut batch = BatchColumns::default();
    let labels = Labels::from_pairs([("__name__", "up".to_owned())]);
    batch.push_series(SeriesHash(1), labels.as_ref());
    batch
}

fn floats(times: &[i64]) -> BatchColumns {
    let mut batch = empty_batch();
    times.iter().for_each(|t| batch.push_sample(*t, *t as f64));
    batch
}

fn histograms(times: &[i64]) -> BatchColumns {
    let mut batch = empty_batch();
    for t in times {
        let histogram = Histogram {
            sum: *t as f64,
            ..Histogram::default()
        };
        batch.push_histogram(*t, histogram);
    }
    batch
}

/// Times in the order in which they come: each tenth up to an hour late.
fn with_late_ones(steps: i64) -> Vec<i64> {
    let mut coming: Vec<(i64, i64)> = (0..steps)
        .map(|i| {
            let delay = if i % 10 == 3 { 1 + i * 7919 % 240 } else { 0 };
            (i + delay, i * STEP_MS)
        })
        .collect();
    coming.sort_unstable();
    coming.into_iter().map(|(_, t)| t).collect()
}

fn apply_one_by_one(head: &mut Head, times: &[i64], batch: impl Fn(&[i64]) -> BatchColumns) -> Applied {
    let mut sum = Applied::default();
    for t in times {
        let applied = head.apply(&batch(&[*t]), 0, 1);
        sum.samples += applied.samples;
        sum.out_of_order += applied.out_of_order;
        sum.duplicates += applied.duplicates;
        sum.conflicts += applied.conflicts;
        sum.compared += applied.compared;
    }
    sum
}

fn held(head: &Head) -> Vec<i64> {
    let id = head.select(&Matchers::default(), TimeRange::ALL)[0];
    let held = head.held_samples(id, TimeRange::ALL).unwrap();
    let floats = held.samples.iter().map(|s: &Sample| s.t);
    let mut times: Vec<i64> = floats.chain(held.histograms.iter().map(|(t, _)| *t)).collect();
    times.sort_unstable();
    times
}

fn check_cost_of_late_samples(batch: fn(&[i64]) -> BatchColumns) {
    let mut head = Head::new(HeadOptions::default());
    let times = with_late_ones(4 * 480);
    let applied = apply_one_by_one(&mut head, &times, batch);
    let mut expected = times.clone();
    expected.sort_unstable();
    assert_eq!(held(&head), expected);
    assert_eq!((applied.duplicates, applied.conflicts), (0, 0));
    assert!(applied.out_of_order > 180, "{}", applied.out_of_order);
    let each = applied.compared / applied.out_of_order;
    assert!(each <= 24, "{each} held samples decoded per late one");
}

#[test]
fn a_late_sample_costs_a_fraction_of_a_chunk() {
    check_cost_of_late_samples(floats);
}

#[test]
fn a_late_histogram_costs_a_fraction_of_a_chunk() {
    check_cost_of_late_samples(histograms);
}

#[test]
fn different_values_at_the_newest_time_cost_nothing_while_it_is_open() {
    let mut head = Head::new(HeadOptions::default());
    let mut compared = 0;
    for i in 0..100 {
        head.apply(&floats(&[i * STEP_MS]), 0, 1);
        let mut other = empty_batch();
        other.push_sample(i * STEP_MS, 0.5);
        let applied = head.apply(&other, 0, 1);
        assert_eq!(applied.conflicts, 1, "the sender must be told");
        compared += applied.compared;
    }
    assert_eq!(compared, 0);
}

fn check_that_repetitions_leave_nothing(batch: fn(&[i64]) -> BatchColumns) {
    let mut head = Head::new(HeadOptions::default());
    let times: Vec<i64> = (0..1000).map(|i| i * STEP_MS).collect();
    let first = apply_one_by_one(&mut head, &times, batch);
    assert_eq!(first.samples, 1000);
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    let (windows, bytes) = (head.windows(), head.memory_bytes());
    apply_one_by_one(&mut head, &times, batch);
    assert!(
        head.memory_bytes() < bytes + (16 << 10),
        "repetitions pile up: {bytes} to {} bytes",
        head.memory_bytes()
    );
    while head.check_late(1) {}
    assert_eq!(head.windows(), windows, "what is cut is not cut again");
    assert_eq!(head.cut(0).samples, 0);
    assert_eq!(held(&head), times);
}

#[test]
fn repetitions_leave_nothing() {
    check_that_repetitions_leave_nothing(floats);
    check_that_repetitions_leave_nothing(histograms);
}

#[test]
fn i10_a_repetition_that_waits_to_be_compared_does_not_outlive_what_it_repeats() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&floats(&[0, STEP_MS]), 0, 1);
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    head.apply(&floats(&[0]), 0, 2);
    assert_eq!(head.forget(WINDOW_MS), 2);
    assert_eq!((head.series_count(), head.windows().len()), (0, 0));
    assert_eq!(head.unlisted_from_lsn(), None, "the log is not needed for it");
}

#[test]
fn i5_late_samples_are_read_before_they_are_compared() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&floats(&[100 * STEP_MS]), 0, 1);
    for i in (0..100).rev() {
        head.apply(&floats(&[i * STEP_MS]), 0, 1);
        assert_eq!(held(&head).first(), Some(&(i * STEP_MS)));
    }
}

#[test]
fn a_snapshot_stops_before_late_samples_that_were_not_compared() {
    let mut head = Head::new(HeadOptions::default());
    let of = |series: u128, times: &[i64]| {
        let mut batch = BatchColumns::default();
        let labels = Labels::from_pairs([("__name__", format!("up_{series}"))]);
        batch.push_series(SeriesHash(series), labels.as_ref());
        times.iter().for_each(|t| batch.push_sample(*t, 1.0));
        batch
    };
    for series in 0..10 {
        head.apply(&of(series, &[0, STEP_MS]), 0, 1);
        if series % 4 == 3 {
            head.apply(&of(series, &[0]), 0, 2);
        }
    }
    let (strip, next) = head.snapshot(0, usize::MAX).unwrap();
    assert_eq!((strip.series, next), (3, Some(3)));
    assert_eq!(head.snapshot(3, usize::MAX).unwrap().1, Some(3), "not by itself");
    head.check_late_from(3, 1);
    let (strip, next) = head.snapshot(3, usize::MAX).unwrap();
    assert_eq!((strip.series, next), (4, Some(7)));
    head.check_late_from(7, usize::MAX);
    let (strip, next) = head.snapshot(7, usize::MAX).unwrap();
    assert_eq!((strip.series, next), (3, None));
}

#[test]
fn conflicts_of_histograms_are_told_apart() {
    let mut head = Head::new(HeadOptions::default());
    let mut other = histograms(&[STEP_MS]);
    other.push_histogram(2 * STEP_MS, Histogram::default());
    head.apply(&histograms(&[STEP_MS, 2 * STEP_MS]), 0, 1);
    let applied = head.apply(&other, 0, 1);
    assert_eq!((applied.conflicts, applied.histogram_conflicts), (1, 1));
    let mut head = Head::new(HeadOptions::default());
    head.apply(&floats(&[STEP_MS]), 0, 1);
    let mut other = empty_batch();
    other.push_sample(STEP_MS, 0.5);
    let applied = head.apply(&other, 0, 1);
    assert_eq!((applied.conflicts, applied.histogram_conflicts), (1, 0));
}
