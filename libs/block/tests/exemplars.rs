//! Exemplars are read as they were written, and merged to each different one once.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{open, options, tiny};
use futures::TryStreamExt;
use futures::executor::block_on;
use koios_block::{
    BlockOptions, BlockParts, BlockReader, BlockWriter, Deletion, ExemplarMerge, MergeInput, merge, verify,
};
use koios_model::{Exemplar, Expiry, Labels, Matcher, Matchers, SeriesClasses, TimeRange};
use proptest::prelude::*;

/// By series: time, bits of the value, labels.
type Model = BTreeMap<Labels, BTreeSet<(i64, u64, Labels)>>;

fn series(name: u8, i: u8) -> Labels {
    Labels::from_pairs([("__name__", format!("m{name}")), ("i", i.to_string())])
}

fn model() -> impl Strategy<Value = Model> {
    let labels = (0u8..3).prop_map(|id| match id {
        0 => Labels::empty(),
        _ => Labels::from_pairs([("trace_id", id.to_string())]),
    });
    let value = prop_oneof![(0u8..3).prop_map(f64::from), Just(f64::NAN)].prop_map(f64::to_bits);
    let exemplars = proptest::collection::btree_set((0i64..50, value, labels), 1..20);
    let series = (0u8..3, 0u8..4).prop_map(|(name, i)| series(name, i));
    proptest::collection::btree_map(series, exemplars, 0..8)
}

fn write(block: u128, exemplars: &Model) -> BlockParts {
    let mut out = BlockWriter::new(BlockOptions {
        layout: tiny(),
        ..options(block)
    })
    .unwrap();
    out.push_series(&Labels::from_pairs([("__name__", "x")]), None, &[1], &[1.0])
        .unwrap();
    for (labels, all) in exemplars {
        let all: Vec<_> = all.iter().map(exemplar).collect();
        out.push_exemplars(labels, &all).unwrap();
    }
    out.finish().unwrap().unwrap()
}

fn exemplar((t, bits, labels): &(i64, u64, Labels)) -> Exemplar {
    Exemplar {
        t: *t,
        v: f64::from_bits(*bits),
        labels: labels.clone(),
    }
}

fn read(block: &BlockReader, matchers: Matchers, range: TimeRange) -> Model {
    let batches: Vec<_> = block_on(block.scan_exemplars(matchers, range).try_collect()).unwrap();
    let mut found = Model::new();
    for (labels, all) in batches.into_iter().flatten() {
        let keys = all.into_iter().map(|e| (e.t, e.v.to_bits(), e.labels));
        found.entry(labels).or_default().extend(keys);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(exemplars in model(), name in 0u8..4, from in 0i64..50) {
        let block = open(&write(1, &exemplars));
        block_on(verify(&block)).unwrap();
        prop_assert_eq!(&read(&block, Matchers::default(), TimeRange::ALL), &exemplars);
        let mut wanted = exemplars;
        wanted.retain(|labels, _| labels.get("__name__") == Some(&format!("m{name}")));
        for all in wanted.values_mut() {
            all.retain(|(t, _, _)| *t >= from);
        }
        wanted.retain(|_, all| !all.is_empty());
        let matchers = Matchers(vec![Matcher::equal("__name__", format!("m{name}"))]);
        prop_assert_eq!(read(&block, matchers, TimeRange::new(from, i64::MAX)), wanted);
    }

    #[test]
    fn i10_a_merge_has_each_exemplar_once_but_those_deleted(inputs in proptest::collection::vec(model(), 1..4), until in 0i64..50) {
        let deletion = Deletion {
            matchers: Matchers(vec![Matcher::equal("__name__", "m1")]),
            range: TimeRange::new(0, until),
        };
        let rule = Matchers(vec![Matcher::equal("__name__", "m0")]);
        let expiry = Expiry::new(SeriesClasses::new([rule]), [Some(20)]);
        let blocks = inputs.iter().enumerate().map(|(i, m)| MergeInput {
            block: open(&write(i as u128, m)),
            deletions: vec![deletion.clone()],
            expiry: expiry.clone(),
        });
        let mut out = BlockWriter::new(BlockOptions { layout: tiny(), ..options(99) }).unwrap();
        block_on(merge(blocks, &mut out)).unwrap();
        let merged = open(&out.finish().unwrap().unwrap());
        block_on(verify(&merged)).unwrap();
        let mut wanted = Model::new();
        for (labels, all) in inputs.iter().flatten() {
            let deleted = labels.get("__name__") == Some("m1");
            let old = labels.get("__name__") == Some("m0");
            let kept = all.iter().filter(|(t, _, _)| (!deleted || *t > until) && (!old || *t >= 20)).cloned();
            wanted.entry(labels.clone()).or_default().extend(kept);
        }
        wanted.retain(|_, all| !all.is_empty());
        prop_assert_eq!(read(&merged, Matchers::default(), TimeRange::ALL), wanted);
    }
}

#[test]
fn a_series_may_have_more_exemplars_than_a_row_group() {
    let many = (0..40_000).map(|t| (t, 0, Labels::empty())).collect();
    let exemplars = Model::from([
        (series(0, 0), many),
        (series(2, 0), BTreeSet::from([(1, 0, Labels::empty())])),
    ]);
    let block = open(&write(1, &exemplars));
    block_on(verify(&block)).unwrap();
    assert_eq!(read(&block, Matchers::default(), TimeRange::ALL), exemplars);
    let mut merge = ExemplarMerge::new(&[block.into()]);
    let up_to = series(1, 0);
    let (labels, all) = block_on(merge.next(Some(&up_to))).unwrap().unwrap();
    assert_eq!((labels, all.len()), (series(0, 0), 40_000));
    assert_eq!(block_on(merge.next(Some(&up_to))).unwrap(), None);
    assert!(block_on(merge.next(None)).unwrap().is_some());
}

#[test]
fn series_of_exemplars_come_in_order() {
    let mut out = BlockWriter::new(options(1)).unwrap();
    let one = [exemplar(&(1, 0, Labels::empty()))];
    out.push_exemplars(&series(1, 0), &one).unwrap();
    let error = out.push_exemplars(&series(0, 0), &one).unwrap_err();
    assert!(error.to_string().contains("ascending label order"), "{error}");
}

#[test]
fn a_block_may_have_exemplars_alone() {
    let exemplars = Model::from([(
        series(0, 0),
        BTreeSet::from([(3, 7, Labels::empty()), (9, 7, Labels::empty())]),
    )]);
    let mut out = BlockWriter::new(options(1)).unwrap();
    for (labels, all) in &exemplars {
        let all: Vec<_> = all.iter().map(exemplar).collect();
        out.push_exemplars(labels, &all).unwrap();
    }
    let parts = out.finish().unwrap().expect("it is one");
    assert_eq!((parts.meta.series, parts.meta.samples), (0, 0));
    assert_eq!(parts.meta.range, TimeRange::new(3, 9));
    let block = open(&parts);
    block_on(verify(&block)).unwrap();
    assert_eq!(read(&block, Matchers::default(), TimeRange::ALL), exemplars);
    assert_eq!(
        block_on(block.select(&Matchers::default(), TimeRange::ALL)).unwrap(),
        []
    );
    assert!(
        block_on(block.label_names(&Matchers::default(), TimeRange::ALL))
            .unwrap()
            .is_empty()
    );
    assert!(
        block_on(block.label_values("i", &Matchers::default(), TimeRange::ALL))
            .unwrap()
            .is_empty()
    );
    // Beside samples of another range.
    let mut out = BlockWriter::new(options(2)).unwrap();
    let other = open(&write(3, &Model::new()));
    block_on(merge([block.into(), other.into()], &mut out)).unwrap();
    let merged = out.finish().unwrap().unwrap();
    assert_eq!(
        (merged.meta.samples, merged.meta.range),
        (1, TimeRange::new(1, 9))
    );
    let merged = open(&merged);
    block_on(verify(&merged)).unwrap();
    assert_eq!(read(&merged, Matchers::default(), TimeRange::new(4, 9)).len(), 1);
    // Nothing is no block.
    assert!(BlockWriter::new(options(4)).unwrap().finish().unwrap().is_none());
}

#[test]
fn a_block_of_an_earlier_version_says_the_times_of_its_samples_alone() {
    let exemplars = Model::from([(series(0, 0), BTreeSet::from([(9, 7, Labels::empty())]))]);
    let mut parts = write(1, &exemplars);
    assert_eq!(parts.meta.range, TimeRange::new(1, 9));
    parts.meta.range = TimeRange::new(1, 1);
    block_on(verify(&open(&parts))).unwrap();
    parts.meta.range = TimeRange::new(1, 8);
    assert!(block_on(verify(&open(&parts))).is_err());
}

#[test]
fn i11_a_block_whose_range_is_not_that_of_what_it_has_is_corrupt() {
    let exemplars = |times: &[i64]| -> Model {
        let all = times.iter().map(|&t| (t, 0, Labels::empty()));
        Model::from([(series(1, 1), all.collect())])
    };
    // Its sample is at 1; of a block of an earlier version that may be all of the range.
    for (times, range, is_sound) in [
        (&[5, 9][..], (1, 9), true),
        (&[5, 9], (1, 1), true),
        (&[5, 9], (5, 9), false),
        (&[5, 9], (0, 9), false),
        (&[5, 9], (1, 10), false),
        (&[], (1, 1), true),
        (&[], (1, 2), false),
    ] {
        let mut parts = write(1, &exemplars(times));
        parts.meta.range = TimeRange::new(range.0, range.1);
        let verified = block_on(verify(&open(&parts)));
        assert_eq!(verified.is_ok(), is_sound, "{times:?} {range:?}: {verified:?}");
    }
}
