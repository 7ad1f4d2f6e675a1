//! Floats and native histograms at one time of one series (I2).

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use koios_head::{Applied, ConflictValue, Head, HeadOptions};
use koios_model::merge::settle_kinds;
use koios_model::{
    BatchColumns, Histogram, Labels, Matchers, Sample, SeriesHash, TimeRange, is_stale, stale_nan,
};

const T: i64 = 1_000_000;

fn histogram(sum: f64) -> Histogram {
    Histogram {
        sum,
        ..Histogram::default()
    }
}

fn batch(floats: &[(i64, f64)], histograms: &[(i64, Histogram)]) -> BatchColumns {
    let mut batch = BatchColumns::default();
    // Another one before it, so that places and series differ.
    for (hash, name) in [(7, "other"), (1, "f")] {
        let labels = Labels::from_pairs([("__name__", name.to_owned())]);
        batch.push_series(SeriesHash(hash), labels.as_ref());
        if hash == 7 {
            batch.push_sample(T - 1, 1.0);
        }
    }
    floats.iter().for_each(|(t, v)| batch.push_sample(*t, *v));
    histograms
        .iter()
        .for_each(|(t, h)| batch.push_histogram(*t, h.clone()));
    batch
}

fn float(v: f64) -> BatchColumns {
    batch(&[(T, v)], &[])
}

fn native(h: Histogram) -> BatchColumns {
    batch(&[], &[(T, h)])
}

/// What a read gives of the series: the bits of a float, or the sum of a histogram.
fn read(head: &Head) -> (Vec<u64>, Vec<f64>) {
    let matchers = Matchers::default();
    let of = |id: &koios_head::SeriesId| head.labels(*id).is_some_and(|l| l.to_string().contains("\"f\""));
    let id = head.select(&matchers, TimeRange::ALL).into_iter().find(of);
    let mut held = head.held_samples(id.unwrap(), TimeRange::ALL).unwrap();
    settle_kinds(&mut held.samples, &mut held.histograms);
    let floats = held.samples.iter().map(|s: &Sample| s.v.to_bits()).collect();
    (floats, held.histograms.iter().map(|(_, h)| h.sum).collect())
}

/// All conflicts and those of them that are kept, of floats and of histograms.
fn told(applied: &Applied) -> [(u64, u64); 2] {
    let of_histograms = (applied.histogram_conflicts, applied.histogram_conflicts_kept);
    let floats = applied.conflicts - of_histograms.0;
    [(floats, applied.conflicts_kept - of_histograms.1), of_histograms]
}

#[test]
fn i2_a_float_and_a_histogram_at_one_time_are_a_conflict() {
    let one = || native(histogram(1.0));
    let both = |v| batch(&[(T, v)], &[(T, histogram(1.0))]);
    let later = batch(&[], &[(T + 1, histogram(1.0))]);
    for (case, first, second, conflicts) in [
        ("histogram loses", float(5.0), one(), [(0, 0), (1, 0)]),
        ("float wins", one(), float(5.0), [(1, 1), (0, 0)]),
        ("stale float loses", one(), float(stale_nan()), [(1, 0), (0, 0)]),
        (
            "stale float is beaten",
            float(stale_nan()),
            one(),
            [(0, 0), (1, 1)],
        ),
        (
            "ended twice",
            float(stale_nan()),
            native(Histogram::stale()),
            [(0, 0), (0, 0)],
        ),
        ("both in one", batch(&[], &[]), both(5.0), [(0, 0), (1, 0)]),
        (
            "stale float in one",
            batch(&[], &[]),
            both(stale_nan()),
            [(1, 0), (0, 0)],
        ),
        (
            "a histogram beside both",
            both(5.0),
            native(histogram(2.0)),
            [(0, 0), (1, 0)],
        ),
        ("not at the same time", float(5.0), later, [(0, 0), (0, 0)]),
    ] {
        let mut head = Head::new(HeadOptions::default());
        head.apply(&first, 0, 1);
        assert_eq!(told(&head.apply(&second, 0, 2)), conflicts, "{case}");
        let mut other_order = Head::new(HeadOptions::default());
        other_order.apply(&second, 0, 1);
        other_order.apply(&first, 0, 2);
        assert_eq!(read(&head), read(&other_order), "replicas agree: {case}");
    }
}

#[test]
fn i2_what_is_kept_may_come_again_and_what_is_not_is_told_again() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&native(histogram(1.0)), 0, 1);
    assert_eq!(told(&head.apply(&float(5.0), 0, 2)), [(1, 1), (0, 0)]);
    for lsn in 3..6 {
        let again = head.apply(&float(5.0), 0, lsn);
        assert_eq!((again.conflicts, again.duplicates), (0, 2));
        let again = head.apply(&native(histogram(1.0)), 0, lsn);
        assert_eq!(told(&again), [(0, 0), (1, 0)]);
    }
    assert_eq!(read(&head), (vec![5.0f64.to_bits()], vec![]));
    // One that was kept before another replaced it is no news either, as among floats alone.
    assert_eq!(told(&head.apply(&float(7.0), 0, 6)), [(1, 1), (0, 0)]);
    for v in [5.0, 7.0] {
        let again = head.apply(&float(v), 0, 7);
        assert_eq!((again.conflicts, again.duplicates), (0, 2), "{v}");
    }
    assert_eq!(told(&head.apply(&float(6.0), 0, 8)), [(1, 0), (0, 0)]);
    assert_eq!(read(&head), (vec![7.0f64.to_bits()], vec![]));
}

#[test]
fn i2_a_sealed_or_deleted_one_is_known_as_it_is_held() {
    for is_deleted in [false, true] {
        for (first, second) in [
            (float(5.0), native(histogram(1.0))),
            (native(histogram(1.0)), float(5.0)),
        ] {
            let mut head = Head::new(HeadOptions::default());
            head.apply(&first, 0, 1);
            match is_deleted {
                true => drop(head.delete(&Matchers::default(), TimeRange::ALL)),
                false => drop(head.cut(0)),
            }
            let applied = head.apply(&second, 0, 2);
            assert_eq!(applied.conflicts, u64::from(!is_deleted));
        }
    }
}

/// A batch of rows of one series, each with floats or a histogram.
fn rows(rows: &[(&[f64], Option<Histogram>)]) -> BatchColumns {
    let mut batch = batch(&[], &[]);
    for (floats, histogram) in rows {
        let labels = Labels::from_pairs([("__name__", "f".to_owned())]);
        batch.push_series(SeriesHash(1), labels.as_ref());
        floats.iter().for_each(|v| batch.push_sample(T, *v));
        let histogram = histogram.clone().into_iter();
        histogram.for_each(|h| batch.push_histogram(T, h));
    }
    batch
}

#[test]
fn i2_of_what_comes_in_one_batch_all_but_one_is_lost_whichever_rows_bring_it() {
    let h = |sum: f64| Some(histogram(sum));
    let (one, two): (&[f64], &[f64]) = (&[1.0], &[2.0]);
    let (none, ended): (&[f64], &[f64]) = (&[], &[stale_nan()]);
    let nothing = || batch(&[], &[]);
    for (case, before, came, conflicts) in [
        (
            "two rows",
            nothing(),
            rows(&[(one, None), (two, None)]),
            [(1, 0), (0, 0)],
        ),
        (
            "two rows, the larger first",
            nothing(),
            rows(&[(two, None), (one, None)]),
            [(1, 0), (0, 0)],
        ),
        (
            "the same twice",
            nothing(),
            rows(&[(one, None), (one, None)]),
            [(0, 0), (0, 0)],
        ),
        (
            "one row",
            nothing(),
            rows(&[(&[5.0, 7.0, 9.0], None)]),
            [(2, 0), (0, 0)],
        ),
        (
            "one row, descending",
            nothing(),
            rows(&[(&[9.0, 7.0, 5.0], None)]),
            [(2, 0), (0, 0)],
        ),
        (
            "one row, with one twice",
            nothing(),
            rows(&[(&[5.0, 7.0, 7.0], None)]),
            [(1, 0), (0, 0)],
        ),
        // What an earlier batch brought is replaced once.
        (
            "over an older one",
            float(0.0),
            rows(&[(one, None), (two, None)]),
            [(2, 1), (0, 0)],
        ),
        (
            "over an older one, in one row",
            float(0.0),
            rows(&[(&[1.0, 2.0], None)]),
            [(2, 1), (0, 0)],
        ),
        (
            "beside an older one",
            float(1.5),
            rows(&[(one, None), (two, None)]),
            [(2, 1), (0, 0)],
        ),
        (
            "with the older one",
            float(1.0),
            rows(&[(one, None), (two, None)]),
            [(1, 0), (0, 0)],
        ),
        (
            "with the older one, in one row",
            float(1.0),
            rows(&[(&[1.0, 2.0], None)]),
            [(1, 0), (0, 0)],
        ),
        (
            "histograms",
            nothing(),
            rows(&[(none, h(1.0)), (none, h(2.0))]),
            [(0, 0), (1, 0)],
        ),
        (
            "histograms over an older one",
            native(histogram(0.0)),
            rows(&[(none, h(1.0)), (none, h(2.0)), (none, h(2.0))]),
            [(0, 0), (2, 1)],
        ),
        (
            "ended and not",
            nothing(),
            rows(&[(ended, None), (none, h(1.0))]),
            [(1, 0), (0, 0)],
        ),
        (
            "ended and not, after another",
            nothing(),
            rows(&[(none, h(1.0)), (ended, None), (none, h(2.0))]),
            [(1, 0), (1, 0)],
        ),
        (
            "float and histogram",
            nothing(),
            rows(&[(one, None), (none, h(1.0))]),
            [(0, 0), (1, 0)],
        ),
    ] {
        let mut head = Head::new(HeadOptions::default());
        head.apply(&before, 0, 1);
        assert_eq!(told(&head.apply(&came, 0, 2)), conflicts, "{case}");
    }
}

#[test]
fn i13_a_conflict_names_its_series_its_time_and_both_values() {
    let mut head = Head::new(HeadOptions::default());
    head.apply(&float(5.0), 0, 1);
    let conflict = head.apply(&native(histogram(1.0)), 0, 2).first_conflict.unwrap();
    let labels = head.labels(conflict.series).unwrap();
    assert_eq!(labels.to_string(), "{__name__=\"f\"}");
    let values = (conflict.held, conflict.came);
    let held = ConflictValue::Float(5.0f64.to_bits());
    assert_eq!((conflict.t, values), (T, (held, ConflictValue::Histogram)));
    let conflict = head.apply(&float(7.0), 0, 3).first_conflict.unwrap();
    let came = ConflictValue::Float(7.0f64.to_bits());
    assert_eq!((conflict.t, (conflict.held, conflict.came)), (T, (held, came)));
    assert!(!is_stale(f64::from_bits(read(&head).0[0])));
}

#[test]
fn a_float_and_a_histogram_of_other_values_are_kept_as_the_rule_says() {
    let mut head = Head::new(HeadOptions::default());
    // Of two floats in one batch one is kept, of two batches the later one may be.
    let applied = head.apply(&batch(&[(T, 5.0), (T, 7.0)], &[]), 0, 1);
    assert_eq!(told(&applied), [(1, 0), (0, 0)]);
    assert_eq!(told(&head.apply(&float(9.0), 0, 2)), [(1, 1), (0, 0)]);
    assert_eq!(told(&head.apply(&float(8.0), 0, 3)), [(1, 0), (0, 0)]);
}
