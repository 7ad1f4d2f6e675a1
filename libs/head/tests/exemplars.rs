//! Exemplars, and when they are cut.

use koios_head::{Head, HeadOptions};
use koios_model::{BatchColumns, Exemplar, Labels, Matchers, SeriesHash, TimeRange};

const WINDOW_MS: i64 = 1000;

fn options() -> HeadOptions {
    HeadOptions {
        window_ms: WINDOW_MS,
        samples_per_chunk: 5,
        exemplars_max: 10,
        ..HeadOptions::default()
    }
}

fn labels(series: u32) -> Labels {
    Labels::from_pairs([("__name__", "up".to_owned()), ("instance", series.to_string())])
}

fn batch(series: u32, samples: &[i64], exemplars: &[i64]) -> BatchColumns {
    let mut b = BatchColumns::default();
    b.push_series(SeriesHash(u128::from(series) + 1), labels(series).as_ref());
    samples.iter().for_each(|t| b.push_sample(*t, *t as f64));
    for &t in exemplars {
        let labels = Labels::from_pairs([("trace_id", "a")]);
        b.push_exemplar(Exemplar { t, v: 1.0, labels });
    }
    b
}

/// A head whose first window is cut and listed, of two series.
fn listed() -> Head {
    let mut head = Head::new(options());
    for series in 0..2 {
        let times: Vec<i64> = (0..100).map(|i| i * 10 + i64::from(series)).collect();
        head.apply(&batch(series, &times, &[]), 0, 1);
    }
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    head
}

fn state(head: &Head) -> (u64, u64, Option<u64>) {
    let windows = head.windows();
    let w = windows[0];
    (w.uncut_samples, w.uncut_exemplars, w.unlisted_from_lsn)
}

#[test]
fn i10_late_exemplars_have_their_window_cut_once_more_without_samples() {
    let mut head = listed();
    assert_eq!(state(&head), (0, 0, None));
    head.apply(&batch(7, &[], &[998]), 0, 9);
    assert_eq!(state(&head), (0, 1, Some(9)), "the log is needed for it");
    let cut = head.cut(0);
    assert!(!cut.is_empty());
    assert_eq!((cut.samples, cut.series.len(), cut.exemplars), (0, 0, 1));
    assert_eq!(state(&head), (0, 0, Some(9)));
    // The upload fails; the next one takes them again.
    head.cut_abandoned(cut.id);
    assert_eq!(state(&head), (0, 1, Some(9)));
    // Meanwhile samples need not wait for them.
    assert_eq!(head.forget(i64::MAX), 200);
    assert_eq!(state(&head), (0, 1, Some(9)));
    let again = head.cut(0);
    assert_eq!((again.samples, again.exemplars), (0, 1));
    head.cut_listed(again.id);
    assert_eq!(state(&head), (0, 0, None));
    assert_eq!(head.forget(i64::MAX), 0);
    assert!(head.windows().is_empty());
    // Blocks have all of them, and no series is left here.
    assert!(head.exemplars(&Matchers::default(), TimeRange::ALL).is_empty());
}

#[test]
fn the_same_exemplar_again_is_no_reason_to_cut() {
    let mut head = listed();
    head.apply(&batch(0, &[], &[500]), 0, 2);
    let cut = head.cut(0);
    head.cut_listed(cut.id);
    head.apply(&batch(0, &[], &[500]), 0, 3);
    assert_eq!(state(&head), (0, 0, None));
    assert_eq!(head.cut(0).samples, 0);
}

#[test]
fn late_exemplars_that_newer_ones_displaced_cost_no_block() {
    let mut head = listed();
    head.apply(&batch(0, &[], &[500]), 0, 2);
    let newer: Vec<i64> = (0..10).map(|i| 5000 + i).collect();
    head.apply(&batch(0, &[], &newer), 0, 3);
    assert_eq!(head.cut(0).samples, 0);
    assert_eq!(state(&head), (0, 0, None));
    // One that is older than all that are kept was never there.
    head.apply(&batch(0, &[], &[600]), 0, 4);
    assert_eq!(state(&head), (0, 0, None));
}

#[test]
fn i1_exemplars_of_a_window_without_samples_are_cut() {
    let mut head = Head::new(options());
    head.apply(&batch(0, &[], &[500]), 0, 2);
    assert_eq!(state(&head), (0, 1, Some(2)));
    assert_eq!(head.time_range(), None);
    let cut = head.cut(0);
    assert_eq!(
        (cut.is_empty(), cut.window, cut.exemplars),
        (false, TimeRange::new(0, 999), 1)
    );
    head.cut_listed(cut.id);
    assert_eq!(head.unlisted_from_lsn(), None);
    // Of samples nothing is forgotten with them.
    head.forget(i64::MAX);
    assert!(head.windows().is_empty());
    assert_eq!(head.forgotten_below_ms(), i64::MIN);
    assert!(head.cut(0).is_empty());
}

#[test]
fn a_window_whose_only_exemplars_were_displaced_is_let_go() {
    let mut head = Head::new(options());
    head.apply(&batch(0, &[], &[500]), 0, 2);
    let newer: Vec<i64> = (0..10).map(|i| 5000 + i).collect();
    head.apply(&batch(0, &[], &newer), 0, 3);
    assert!(head.cut(0).is_empty());
    let held: Vec<i64> = head.windows().iter().map(|w| w.start).collect();
    assert_eq!(held, [5000]);
    assert_eq!(head.unlisted_from_lsn(), Some(3));
}

#[test]
fn a_head_from_a_snapshot_is_told_which_windows_have_late_exemplars() {
    let mut head = listed();
    head.apply(&batch(0, &[], &[500]), 0, 2);
    let (strip, next) = head.snapshot(0, usize::MAX).unwrap();
    assert_eq!(next, None);
    let mut loaded = Head::new(options());
    loaded.load(&strip.open().unwrap()).unwrap();
    loaded.load_accounts(&head.snapshot_accounts()).unwrap();
    assert_eq!(loaded.windows()[0].uncut_exemplars, 0);
    loaded.mark_exemplars_uncut(WINDOW_MS);
    assert_eq!(
        loaded.windows()[0].uncut_exemplars,
        0,
        "there are none of that one"
    );
    loaded.mark_exemplars_uncut(0);
    assert_eq!(loaded.windows()[0].uncut_exemplars, 1);
    assert_eq!(
        loaded.unlisted_from_lsn(),
        Some(0),
        "the snapshot alone would have them"
    );
    assert_eq!(loaded.cut(0).exemplars, 1);
}

#[test]
fn other_bounds_hold_at_once_and_for_what_comes() {
    let mut head = Head::new(options());
    let times = |head: &Head| -> Vec<i64> {
        let found = head.exemplars(&Matchers::default(), TimeRange::ALL);
        found.into_iter().flat_map(|(_, e)| e).map(|e| e.t).collect()
    };
    let all: Vec<i64> = (1..=12).collect();
    head.apply(&batch(0, &[5], &all), 0, 1);
    assert_eq!(times(&head), (3..=12).collect::<Vec<_>>());
    head.bound_exemplars(3);
    assert_eq!(times(&head), [10, 11, 12]);
    head.apply(&batch(0, &[], &[9, 13]), 0, 2);
    assert_eq!(times(&head), [11, 12, 13]);
    head.bound_exemplars(4);
    head.apply(&batch(0, &[], &[14]), 0, 3);
    assert_eq!(times(&head), [11, 12, 13, 14]);
    head.bound_exemplars(0);
    head.apply(&batch(0, &[], &[15]), 0, 4);
    assert!(times(&head).is_empty());
}
