//! Merging replicas' blocks is the map (series, timestamp) -> winner.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Model, bits, open, options, read_all, tiny, write};
use koios_block::{BlockOptions, BlockWriter, Deletion, MergeInput, merge, verify};
use koios_model::merge::winner;
use koios_model::{Expiry, Labels, Matcher, Matchers, SeriesClasses, TimeRange, stale_nan};
use proptest::prelude::*;

fn model() -> impl Strategy<Value = Model> {
    let value = prop_oneof![
        (0i32..4).prop_map(f64::from),
        Just(stale_nan()),
        Just(f64::NAN),
        Just(-0.0)
    ];
    let samples = proptest::collection::btree_map(0i64..60, value, 1..40);
    let labels = (0u8..6, 0u8..3)
        .prop_map(|(n, j)| Labels::from_pairs([("__name__", format!("m{n}")), ("j", j.to_string())]));
    proptest::collection::btree_map(labels, samples, 1..10)
}

fn merged_by_map(inputs: &[Model]) -> Model {
    let mut all = Model::new();
    for (labels, samples) in inputs.iter().flatten() {
        let series = all.entry(labels.clone()).or_default();
        for (&t, &v) in samples {
            series.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn i10_a_merge_is_the_map_of_winners(inputs in proptest::collection::vec(model(), 1..4), drop_before in 0i64..30, kept_from in 0i64..30) {
        let blocks: Vec<_> = inputs.iter().enumerate().map(|(i, m)| open(&write(i as u128, tiny(), m))).collect();
        let mut out = BlockWriter::new(BlockOptions { layout: tiny(), ..options(99) }).unwrap();
        // Of the first block what is old and of one name; whoever else has it keeps it.
        let deletion = Deletion {
            matchers: Matchers(vec![Matcher::equal("__name__", "m1")]),
            range: TimeRange::new(0, drop_before - 1),
        };
        // Of all of them what is old of another.
        let rule = Matchers(vec![Matcher::equal("__name__", "m0")]);
        let expiry = Expiry::new(SeriesClasses::new([rule]), [Some(kept_from), None]);
        let inputs_with = blocks.into_iter().enumerate().map(|(i, block)| MergeInput {
            block,
            deletions: if i == 0 { vec![deletion.clone()] } else { Vec::new() },
            expiry: expiry.clone(),
        });
        let stats = futures::executor::block_on(merge(inputs_with, &mut out)).unwrap();
        let mut left = inputs.clone();
        for (labels, samples) in left.iter_mut().take(1).flatten() {
            samples.retain(|&t, _| labels.get("__name__") != Some("m1") || t >= drop_before);
        }
        for (labels, samples) in left.iter_mut().flatten() {
            samples.retain(|&t, _| labels.get("__name__") != Some("m0") || t >= kept_from);
        }
        let mut want = merged_by_map(&left);
        want.retain(|_, s| !s.is_empty());
        let got = match out.finish().unwrap() {
            Some(parts) => {
                let block = open(&parts);
                futures::executor::block_on(verify(&block)).unwrap();
                futures::executor::block_on(read_all(&block)).unwrap()
            }
            None => Model::new(),
        };
        prop_assert_eq!(bits(&got), bits(&want));
        prop_assert_eq!(stats.samples_in, inputs.iter().flat_map(Model::values).map(|s| s.len() as u64).sum::<u64>());
        prop_assert_eq!(stats.samples_out, want.values().map(|s| s.len() as u64).sum::<u64>());
    }
}
