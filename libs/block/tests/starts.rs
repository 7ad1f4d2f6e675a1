//! Start timestamps of a block's samples, of floats and of native histograms.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{open, options, tiny};
use futures::executor::block_on;
use koios_block::{BlockOptions, BlockParts, BlockReader, BlockWriter, Error, SeriesColumns, merge, verify};
use koios_model::{Histogram, Labels, Matchers, TimeRange};
use proptest::prelude::*;

/// Of a series: the start of each float, and of each histogram; 0 is none. No time is in both.
type Series = (BTreeMap<i64, i64>, BTreeMap<i64, i64>);
type Model = BTreeMap<u8, Series>;
/// By series, the starts that there are.
type Starts = BTreeMap<Labels, Vec<(i64, i64)>>;

fn labels(number: u8) -> Labels {
    Labels::from_pairs([("__name__", "m"), ("i", &number.to_string())])
}

fn any_start() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0i64), 3 => Just(-5i64), 2 => 1i64..400, 1 => any::<i64>()]
}

/// Now and then enough samples of a series for several row groups, and for chunks that are trimmed.
fn any_model() -> impl Strategy<Value = Model> {
    let few = || proptest::collection::btree_map(0i64..700, any_start(), 0..50);
    let many = proptest::collection::vec(any_start(), 200..600)
        .prop_map(|starts| (0..).zip(starts).collect::<BTreeMap<i64, i64>>());
    let floats = prop_oneof![3 => few(), 1 => many];
    let both = (floats, few()).prop_map(|(floats, mut histograms)| {
        histograms.retain(|t, _| !floats.contains_key(t));
        (floats, histograms)
    });
    proptest::collection::btree_map(0u8..5, both, 1..5)
}

fn write(n: u128, model: &Model) -> Option<BlockParts> {
    let starts = model
        .values()
        .any(|(f, h)| f.values().chain(h.values()).any(|start| *start != 0));
    let mut writer = BlockWriter::new(BlockOptions {
        layout: tiny(),
        starts,
        ..options(n)
    })
    .unwrap();
    for (number, (floats, histograms)) in model {
        let timestamps: Vec<i64> = floats.keys().copied().collect();
        let values: Vec<f64> = timestamps.iter().map(|t| (t % 7) as f64 / 3.0).collect();
        let at = |t: &i64| (*t, Arc::new(Histogram::default()));
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &histograms.keys().map(at).collect::<Vec<_>>(),
            starts: &starts_of(floats, histograms),
        };
        writer.push_columns(&labels(*number), None, columns).unwrap();
    }
    writer.finish().unwrap()
}

fn starts_of(floats: &BTreeMap<i64, i64>, histograms: &BTreeMap<i64, i64>) -> Vec<(i64, i64)> {
    let all: BTreeMap<i64, i64> = floats.iter().chain(histograms).map(|(t, s)| (*t, *s)).collect();
    all.into_iter().filter(|s| s.1 != 0).collect()
}

fn wanted(model: &Model, range: TimeRange) -> Starts {
    let of = |(number, (floats, histograms)): (&u8, &Series)| {
        let mut starts = starts_of(floats, histograms);
        starts.retain(|s| range.contains(s.0));
        (labels(*number), starts)
    };
    model.iter().map(of).filter(|(_, s)| !s.is_empty()).collect()
}

fn read(block: &BlockReader, range: TimeRange) -> Starts {
    let series = block_on(block.select(&Matchers::default(), range)).unwrap();
    let chunks = block_on(block.read_chunks(&series, range)).unwrap();
    let mut all = Starts::new();
    for (series, chunks) in series.into_iter().zip(chunks) {
        let mut starts = Vec::new();
        for chunk in chunks {
            chunk.decode_starts(range, &mut starts).unwrap();
        }
        starts.sort_unstable();
        if !starts.is_empty() {
            all.insert(series.labels, starts);
        }
    }
    all
}

fn has_column(parts: &BlockParts) -> bool {
    let named = |bytes: &[u8]| bytes.windows(15).any(|w| w == b"start_timestamp");
    parts.parts.iter().any(|(_, bytes)| named(bytes))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn i2_starts_are_read_back_with_their_samples(model in any_model(), min in 0i64..700, len in 0i64..90) {
        let Some(parts) = write(1, &model) else { return Ok(()) };
        let any = !wanted(&model, TimeRange::ALL).is_empty();
        prop_assert_eq!((parts.meta.may_have_starts(), parts.meta.format), (any, 5));
        prop_assert_eq!(has_column(&parts), any, "a block without starts pays nothing");
        let block = open(&parts);
        block_on(verify(&block)).unwrap();
        let range = TimeRange::new(min, min + len);
        prop_assert_eq!(read(&block, range), wanted(&model, range), "from pages");
        // The second time from the cache.
        for range in [TimeRange::ALL, range, TimeRange::ALL] {
            prop_assert_eq!(read(&block, range), wanted(&model, range));
        }
        let series = block_on(block.select(&Matchers::default(), range)).unwrap();
        let samples = block_on(block.read_samples(&series, range)).unwrap();
        for samples in samples {
            prop_assert!(samples.starts.iter().all(|s| samples.timestamps.contains(&s.0)));
        }
    }

    #[test]
    fn i10_a_merge_keeps_the_largest_start_of_each_time(inputs in proptest::collection::vec(any_model(), 1..4)) {
        let blocks: Vec<_> = (0u128..).zip(&inputs).filter_map(|(i, model)| Some(open(&write(i, model)?))).collect();
        let mut want: BTreeMap<Labels, BTreeMap<i64, i64>> = BTreeMap::new();
        for (labels, starts) in inputs.iter().flat_map(|model| wanted(model, TimeRange::ALL)) {
            let of_series = want.entry(labels).or_default();
            for (t, start) in starts {
                of_series.entry(t).and_modify(|s| *s = start.max(*s)).or_insert(start);
            }
        }
        let starts = blocks.iter().any(|block| block.meta().may_have_starts());
        let mut out = BlockWriter::new(BlockOptions { layout: tiny(), starts, ..options(99) }).unwrap();
        block_on(merge(blocks.iter().cloned().map(Into::into), &mut out)).unwrap();
        let want: Starts = want.into_iter().map(|(labels, starts)| (labels, starts.into_iter().collect())).collect();
        if let Some(parts) = out.finish().unwrap() {
            let block = open(&parts);
            block_on(verify(&block)).unwrap();
            prop_assert_eq!(read(&block, TimeRange::ALL), want);
        }
    }
}

#[test]
fn starts_are_refused_where_there_is_no_column_for_them() {
    let columns = |starts| SeriesColumns {
        timestamps: &[1, 2],
        values: &[1.0, 2.0],
        starts,
        ..SeriesColumns::default()
    };
    let mut writer = BlockWriter::new(options(1)).unwrap();
    let refused = writer.push_columns(&labels(1), None, columns(&[(1, 1)]));
    assert!(matches!(refused, Err(Error::Input { .. })), "{refused:?}");
    let starts = true;
    let mut writer = BlockWriter::new(BlockOptions { starts, ..options(1) }).unwrap();
    let refused = writer.push_columns(&labels(1), None, columns(&[(2, 1), (1, 1)]));
    assert!(matches!(refused, Err(Error::Input { .. })), "{refused:?}");
    writer.push_columns(&labels(1), None, columns(&[(1, 1)])).unwrap();
}

#[test]
fn i11_start_timestamps_that_meta_json_denies_are_the_fault_of_the_block_that_has_them() {
    let model = |starts: [(i64, i64); 2]| {
        let [float, histogram] = starts.map(|start| BTreeMap::from([start]));
        Model::from([(1, (float, histogram))])
    };
    for starts in [[(1, 5), (2, 0)], [(1, 0), (2, 5)]] {
        let mut parts = write(7, &model(starts)).unwrap();
        parts.meta.starts = false;
        let block = open(&parts);
        let mut out = BlockWriter::new(options(99)).unwrap();
        let merged = block_on(merge([block.clone().into()], &mut out)).map(|_| ());
        for refused in [merged, block_on(verify(&block))] {
            let e = refused.unwrap_err();
            let names = |e: &Error| matches!(e, Error::Corrupt { block, .. } if *block == parts.meta.block);
            assert!(names(&e), "{e:?}");
        }
    }
}
