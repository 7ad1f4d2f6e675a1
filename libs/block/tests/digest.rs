//! What a block is read back as has the digest of what its writer was given, and nothing else has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;

use common::{open, options, tiny};
use futures::executor::block_on;
use koios_block::{
    BlockOptions, BlockParts, BlockWriter, Digest, MergedSeries, MergedWriter, TIMES_PART, merge,
    verified_digest, verify,
};
use koios_model::{Histogram, Labels, Sample};

/// Three series with the same times, the first of them with a histogram at the end. The time in the middle is later by `late`, ms.
fn series(late: i64, middle: f64) -> Vec<MergedSeries> {
    let of = |i: i64| MergedSeries {
        labels: Labels::from_pairs([("__name__", "m"), ("i", &i.to_string())]),
        metadata: None,
        samples: (0..300)
            .map(|n| match n {
                150 => (n * 15_000 + late, middle),
                _ => (n * 15_000, n as f64 / 3.0),
            })
            .map(|(t, v)| Sample { t, v })
            .collect(),
        histograms: match i {
            0 => vec![(300 * 15_000, Arc::new(Histogram::default()))],
            _ => Vec::new(),
        },
        starts: vec![(0, -5), (15_000, -5)],
    };
    (0..3).map(of).collect()
}

/// The block, and the digest of what was written into it.
fn write(series: &[MergedSeries]) -> (BlockParts, Digest) {
    let layout = tiny();
    let starts = true;
    let mut out = BlockWriter::new(BlockOptions {
        layout,
        starts,
        ..options(1)
    })
    .unwrap();
    let (mut writer, mut digest) = (MergedWriter::default(), Digest::default());
    for series in series {
        writer.push(series, &mut out).unwrap();
        digest.add(series);
    }
    (out.finish().unwrap().unwrap(), digest)
}

#[test]
fn i10_a_block_reads_back_as_what_its_writer_was_given() {
    let mut all = series(0, 0.5);
    // No block has it.
    all.push(MergedSeries {
        labels: Labels::from_pairs([("__name__", "z")]),
        metadata: None,
        samples: Vec::new(),
        histograms: Vec::new(),
        starts: Vec::new(),
    });
    let (parts, given) = write(&all);
    assert_eq!(given.samples(), 901);
    assert!(block_on(verified_digest(&open(&parts))).unwrap() == given);
    // Merged again, too.
    let mut out = BlockWriter::new(BlockOptions {
        starts: true,
        ..options(2)
    })
    .unwrap();
    block_on(merge([open(&parts).into(), open(&parts).into()], &mut out)).unwrap();
    let merged = out.finish().unwrap().unwrap();
    assert!(block_on(verified_digest(&open(&merged))).unwrap() == given);
    for other in [series(1, 0.5), series(0, -0.5)] {
        let (_, other) = write(&other);
        assert!(other != given);
    }
}

#[test]
fn i11_a_time_that_is_not_the_one_that_was_written_is_noticed() {
    let (parts, given) = write(&series(0, 0.5));
    let (late, _) = write(&series(1, 0.5));
    // All checksums agree, all counts, and all times ascend: only one of them is another.
    let mut forged = parts;
    let at = |parts: &BlockParts| {
        parts
            .parts
            .iter()
            .position(|(name, _)| name == TIMES_PART)
            .unwrap()
    };
    let (to, from) = (at(&forged), at(&late));
    forged.parts[to] = late.parts[from].clone();
    forged.meta.parts[to] = late.meta.parts[from].clone();
    block_on(verify(&open(&forged))).unwrap();
    assert!(block_on(verified_digest(&open(&forged))).unwrap() != given);
}
