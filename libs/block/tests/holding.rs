//! Whether blocks have what another holds.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Counting, incompressible, options};
use futures::executor::block_on;
use koios_block::{BlockCache, BlockParts, BlockReader, BlockWriter, SeriesColumns, is_held_by};
use koios_model::{Histogram, Labels};

/// Series with floats and histograms, each at its times.
fn written(n: u128, series: i64, floats: &[i64], histograms: &[i64]) -> BlockParts {
    let mut w = BlockWriter::new(options(n)).unwrap();
    for i in 0..series {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:06}"))]);
        let values: Vec<f64> = floats.iter().map(|t| incompressible(i * 1000 + t)).collect();
        let histogram = |t: i64| {
            let sum = incompressible(i * 1000 + t);
            let histogram = Histogram {
                sum,
                ..Histogram::default()
            };
            (t, Arc::new(histogram))
        };
        let histograms: Vec<_> = histograms.iter().map(|t| histogram(*t)).collect();
        let columns = SeriesColumns {
            timestamps: floats,
            values: &values,
            histograms: &histograms,
            starts: &[],
        };
        w.push_columns(&labels, None, columns).unwrap();
    }
    w.finish().unwrap().unwrap()
}

/// A block of which nothing that was read is kept, and what counts its reads.
fn open(parts: &BlockParts) -> (BlockReader, Arc<Counting>) {
    let source = Counting::new(parts);
    let cache = Arc::new(BlockCache::new(0, 0));
    let reader = BlockReader::open(Arc::clone(&source) as _, Arc::new(parts.meta.clone()), cache);
    (reader.unwrap(), source)
}

#[test]
fn a_sample_of_the_same_kind_is_looked_for_at_each_time_in_all_blocks_together() {
    let held = |series, others: &[BlockParts]| {
        let (block, _) = open(&written(1, series, &[1, 2, 3], &[10, 11]));
        let others: Vec<_> = others.iter().map(|parts| open(parts).0).collect();
        block_on(is_held_by(&block, &others)).unwrap()
    };
    let of = |n, series, floats: &[i64], histograms: &[i64]| written(n, series, floats, histograms);
    for series in [2, 300] {
        assert!(!held(series, &[]));
        assert!(held(series, &[of(2, series, &[0, 1, 2, 3], &[10, 11, 12])]));
        assert!(held(
            series,
            &[of(2, series, &[1, 3], &[11]), of(3, series, &[2], &[10])]
        ));
        assert!(!held(series, &[of(2, series, &[1, 3], &[10, 11])]));
        assert!(!held(series, &[of(2, series, &[1, 2, 3], &[10])]));
        assert!(!held(series, &[of(2, series, &[1, 2, 3, 10, 11], &[])]));
        assert!(!held(series, &[of(2, series - 1, &[1, 2, 3], &[10, 11])]));
    }
}

#[test]
fn histograms_are_read_once() {
    let times: Vec<i64> = (100..200).collect();
    let parts = written(1, 100, &[1, 2, 3], &times);
    let (block, _) = open(&parts);
    let (other, reads) = open(&parts);
    assert!(block_on(is_held_by(&block, &[other])).unwrap());
    let bytes: usize = parts.parts.iter().map(|(_, bytes)| bytes.len()).sum();
    let (_, read) = reads.take();
    assert!(
        read < bytes as u64 * 2,
        "{read} bytes of a block of {bytes} were read"
    );
}
