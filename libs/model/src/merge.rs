//! The one rule that chooses between different values at one timestamp (I2).
//!
//! Every head, read, merge and compaction uses it, so replicas converge whatever order they saw things in: the rule is
//! commutative, associative and idempotent. Start timestamps are chosen by themselves: of different ones at one timestamp
//! the largest stays, and one that is set before one that is not.

use std::sync::Arc;

use crate::{Histogram, Sample, is_stale};

/// The winner of two float values at one timestamp: not stale before stale, then the larger bit pattern.
pub fn winner(a: f64, b: f64) -> f64 {
    match (is_stale(a), is_stale(b)) {
        (false, true) => a,
        (true, false) => b,
        _ if a.to_bits() >= b.to_bits() => a,
        _ => b,
    }
}

/// The winner of two histograms at one timestamp: not stale before stale, then the larger by all bits.
pub fn histogram_winner<'a>(a: &'a Histogram, b: &'a Histogram) -> &'a Histogram {
    match (a.is_stale(), b.is_stale()) {
        (false, true) => a,
        (true, false) => b,
        _ if a.bits_cmp(b).is_ge() => a,
        _ => b,
    }
}

/// Whether a float wins over a histogram at the same timestamp: not stale before stale, then the float.
pub fn float_wins(v: f64, h: &Histogram) -> bool {
    !is_stale(v) || h.is_stale()
}

/// Sorts start timestamps, each with the time of its sample, by that time and keeps the largest of each: a start belongs
/// to its time, whichever value wins there, so that values and starts may be merged apart.
pub fn sort_and_dedup_starts(starts: &mut Vec<(i64, i64)>) {
    if starts.is_sorted_by(|a, b| a.0 < b.0) {
        return;
    }
    starts.sort_unstable();
    starts.dedup_by(|larger, kept| {
        let same = larger.0 == kept.0;
        if same {
            kept.1 = larger.1;
        }
        same
    });
}

/// The start timestamp among ascending ones that belongs to a time; 0 when none does.
pub fn start_at(starts: &[(i64, i64)], t: i64) -> i64 {
    let found = starts.binary_search_by_key(&t, |start| start.0).ok();
    found.and_then(|at| starts.get(at)).map_or(0, |start| start.1)
}

/// Sorts histograms by time and keeps the winner of each timestamp.
pub fn sort_and_dedup_histograms(histograms: &mut Vec<(i64, Arc<Histogram>)>) {
    if histograms.is_sorted_by(|a, b| a.0 < b.0) {
        return;
    }
    histograms.sort_by_key(|(t, _)| *t);
    histograms.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same && histogram_winner(&kept.1, &later.1).bits_cmp(&kept.1).is_ne() {
            std::mem::swap(&mut kept.1, &mut later.1);
        }
        same
    });
}

/// Drops, where a float and a histogram are at one time, the one that loses. Both must ascend strictly.
pub fn settle_kinds(floats: &mut Vec<Sample>, histograms: &mut Vec<(i64, Arc<Histogram>)>) {
    if floats.is_empty() || histograms.is_empty() {
        return;
    }
    let (mut at, mut lost) = (0, Vec::new());
    histograms.retain(|(t, h)| {
        while floats.get(at).is_some_and(|s| s.t < *t) {
            at += 1;
        }
        let float = floats.get(at).filter(|s| s.t == *t);
        let Some(float) = float else { return true };
        let loses = float_wins(float.v, h);
        if !loses {
            lost.push(*t);
        }
        !loses
    });
    floats.retain(|s| lost.binary_search(&s.t).is_err());
}

/// Merges two runs, each strictly ascending in time, into `out` (cleared first), strictly ascending.
pub fn merge_sorted(a: &[Sample], b: &[Sample], out: &mut Vec<Sample>) {
    out.clear();
    out.reserve(a.len() + b.len());
    let (mut i, mut j) = (0, 0);
    while i < a.len() && j < b.len() {
        match a[i].t.cmp(&b[j].t) {
            std::cmp::Ordering::Less => {
                out.push(a[i]);
                i += 1;
            }
            std::cmp::Ordering::Greater => {
                out.push(b[j]);
                j += 1;
            }
            std::cmp::Ordering::Equal => {
                out.push(Sample {
                    t: a[i].t,
                    v: winner(a[i].v, b[j].v),
                });
                i += 1;
                j += 1;
            }
        }
    }
    out.extend_from_slice(&a[i..]);
    out.extend_from_slice(&b[j..]);
}

/// Sorts samples by time and keeps the winner of each timestamp.
pub fn sort_and_dedup(samples: &mut Vec<Sample>) {
    samples.sort_by_key(|s| s.t);
    samples.dedup_by(|later, kept| {
        let same = later.t == kept.t;
        if same {
            kept.v = winner(kept.v, later.v);
        }
        same
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stale_nan;

    fn any_value() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<u64>().prop_map(f64::from_bits),
            Just(stale_nan()),
            Just(0.0),
            Just(-0.0),
            Just(f64::NAN)
        ]
    }

    proptest! {
        #[test]
        fn i2_winner_is_commutative_associative_idempotent(a in any_value(), b in any_value(), c in any_value()) {
            let bits = |v: f64| v.to_bits();
            prop_assert_eq!(bits(winner(a, b)), bits(winner(b, a)));
            prop_assert_eq!(bits(winner(a, winner(b, c))), bits(winner(winner(a, b), c)));
            prop_assert_eq!(bits(winner(a, a)), bits(a));
        }

        #[test]
        fn i2_merge_equals_map_model(xs in proptest::collection::vec((0i64..50, any_value()), 0..80),
                                     ys in proptest::collection::vec((0i64..50, any_value()), 0..80)) {
            let sorted = |v: &[(i64, f64)]| {
                let mut s: Vec<_> = v.iter().map(|&(t, v)| Sample { t, v }).collect();
                sort_and_dedup(&mut s);
                s
            };
            let mut model = std::collections::BTreeMap::<i64, f64>::new();
            for &(t, v) in xs.iter().chain(&ys) {
                model.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
            }
            let mut out = Vec::new();
            merge_sorted(&sorted(&xs), &sorted(&ys), &mut out);
            let model: Vec<_> = model.into_iter().map(|(t, v)| Sample { t, v }).collect();
            prop_assert_eq!(out, model);
        }
    }

    proptest! {
        #[test]
        fn i2_the_largest_start_of_a_time_stays_whatever_the_order(
            mut starts in proptest::collection::vec((0i64..9, -3i64..5), 0..30), turn in any::<prop::sample::Index>(),
        ) {
            let mut model = std::collections::BTreeMap::<i64, i64>::new();
            for &(t, start) in &starts {
                model.entry(t).and_modify(|s| *s = start.max(*s)).or_insert(start);
            }
            let turned = turn.index(starts.len() + 1);
            let mut again = [&starts[turned..], &starts[..turned], &starts[..]].concat();
            sort_and_dedup_starts(&mut starts);
            sort_and_dedup_starts(&mut again);
            prop_assert_eq!(&starts, &again);
            for t in -1..10 {
                prop_assert_eq!(start_at(&starts, t), model.get(&t).copied().unwrap_or(0));
            }
        }
    }

    #[test]
    fn i2_at_one_time_there_is_a_float_or_a_histogram() {
        let float = |t, v| Sample { t, v };
        let mut floats = vec![
            float(1, 1.0),
            float(2, stale_nan()),
            float(3, stale_nan()),
            float(5, 2.0),
        ];
        let value = Arc::new(Histogram::default());
        let stale = Arc::new(Histogram::stale());
        let mut histograms = vec![
            (0, Arc::clone(&value)),
            (1, Arc::clone(&value)),
            (2, Arc::clone(&value)),
            (3, stale),
            (4, value),
        ];
        settle_kinds(&mut floats, &mut histograms);
        assert_eq!(floats.iter().map(|s| s.t).collect::<Vec<_>>(), [1, 3, 5]);
        assert_eq!(histograms.iter().map(|h| h.0).collect::<Vec<_>>(), [0, 2, 4]);
    }

    #[test]
    fn i2_a_value_beats_a_stale_marker() {
        assert_eq!(winner(stale_nan(), 1.0), 1.0);
        assert_eq!(winner(-1.0, stale_nan()), -1.0);
    }
}
