//! Blocks of the newest format with everything that a block may have: metadata, exemplars, small cells, and native histograms beside
//! summaries, with their sums.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use futures::executor::block_on;
use koios_block::{
    BlockOptions, BlockParts, BlockReader, BlockWriter, EXEMPLARS_PART, RESOLUTION_1H_MS, RESOLUTION_5M_MS,
    SERIES_PART, SeriesColumns,
};
use koios_model::summary::{Downsampled, downsample};
use koios_model::{
    CUSTOM_BOUNDS_SCHEMA, Exemplar, Histogram, Labels, MatchOp, Matcher, Matchers, Metadata, ResetHint,
    Sample, TimeRange, spans_of, stale_nan,
};

use super::common::{id, options, tiny};
use super::{Read, read_back, stored};

const STEP_MS: i64 = 60_000;
/// So many that their labels take small cells.
const SERIES: u64 = 1_500;

/// Splitmix64: what zstd cannot make smaller.
fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn labels(i: u64) -> Labels {
    Labels::from_pairs([
        ("__name__", format!("m{}", i / 400)),
        ("i", format!("{i:04}")),
        (
            "ä.\"b\"",
            format!("{:016x}{:016x}", noise(2 * i), noise(2 * i + 1)),
        ),
    ])
}

/// One metric has all of it, one some, one none.
fn metadata(i: u64) -> Option<Metadata> {
    let metadata = |kind: &str, unit: &str, help: &str| Metadata {
        kind: kind.to_owned(),
        help: help.to_owned(),
        unit: unit.to_owned(),
    };
    match i / 400 {
        0 => Some(metadata(
            "counter",
            "seconds",
            "How long it took, \"all in all\".\nReally: µs.",
        )),
        1 => Some(metadata("gauge", "", "")),
        _ => None,
    }
}

fn floats(i: u64) -> Vec<Sample> {
    let value = |k: i64| match k {
        9 => stale_nan(),
        k if i == 1 => k as f64 / 3.0,
        k => (k % 7 * 10 + (i % 10) as i64) as f64 / 10.0,
    };
    let len = if i < 3 { 150 } else { 1 };
    (0..len)
        .map(|k| Sample {
            t: k * STEP_MS,
            v: value(k),
        })
        .collect()
}

/// Integer counts, float counts, custom buckets, a gauge, a reset, a stale marker.
fn histogram(k: i64) -> Histogram {
    let n = k as f64;
    let (positive_spans, positive_buckets) = spans_of([(-1, n), (3, n / 4.0)]);
    let (negative_spans, negative_buckets) = spans_of([(2, 1.0)]);
    let exponential = Histogram {
        schema: 3,
        count: n + n / 4.0 + 1.5,
        sum: -12.5,
        zero_count: 0.5,
        zero_threshold: 0.001,
        positive_spans,
        positive_buckets: positive_buckets.clone(),
        negative_spans,
        negative_buckets,
        ..Histogram::default()
    };
    match k % 40 {
        0..10 => exponential,
        10..20 => Histogram {
            reset_hint: ResetHint::Gauge,
            ..exponential
        },
        20 => Histogram::stale(),
        _ => Histogram {
            schema: CUSTOM_BOUNDS_SCHEMA,
            count: n + n / 4.0,
            sum: n,
            custom_bounds: vec![0.5, 1.0, 2.5, 10.0],
            positive_spans: spans_of([(0, n), (3, n / 4.0)]).0,
            positive_buckets,
            ..Histogram::default()
        },
    }
}

fn histograms(i: u64) -> Vec<(i64, Arc<Histogram>)> {
    let few = if i == 2 { 200..320 } else { 0..0 };
    few.map(|k| (k * STEP_MS, Arc::new(histogram(k)))).collect()
}

fn starts(i: u64) -> Vec<(i64, i64)> {
    let of_floats = floats(i).into_iter().skip(3).map(|s| (s.t, 7));
    let of_histograms = histograms(i).into_iter().map(|(t, _)| (t, 11));
    if i < 3 {
        of_floats.chain(of_histograms).collect()
    } else {
        Vec::new()
    }
}

fn exemplars(i: u64) -> Vec<Exemplar> {
    let exemplar = |k: i64| Exemplar {
        t: k * 90_000,
        v: k as f64 / 3.0,
        labels: match k {
            0 => Labels::empty(),
            k => Labels::from_pairs([
                ("span", "ü".to_owned()),
                ("trace_id", format!("{:x}", noise(k as u64))),
            ]),
        },
    };
    let few = if i.is_multiple_of(300) { 0..5 } else { 0..0 };
    few.map(exemplar).collect()
}

/// One that has no samples in the block.
fn exemplified() -> Labels {
    Labels::from_pairs([("__name__", "zz"), ("only", "exemplars")])
}

fn write_samples() -> BlockParts {
    let mut writer = BlockWriter::new(BlockOptions {
        layout: tiny(),
        starts: true,
        ..options(50)
    })
    .unwrap();
    for i in 0..SERIES {
        let (timestamps, values): (Vec<i64>, Vec<f64>) = floats(i).iter().map(|s| (s.t, s.v)).unzip();
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &histograms(i),
            starts: &starts(i),
        };
        writer
            .push_columns(&labels(i), metadata(i).as_ref(), columns)
            .unwrap();
        writer.push_exemplars(&labels(i), &exemplars(i)).unwrap();
    }
    writer.push_exemplars(&exemplified(), &exemplars(0)).unwrap();
    writer.finish().unwrap().unwrap()
}

/// What is kept of a series: sums of each form, one of histograms that cannot be added, and one that nobody added up.
fn kept(i: u64, resolution_ms: i64) -> Downsampled {
    let mut kept = downsample(&floats(i), &histograms(i), resolution_ms);
    let of_histograms = kept.summaries.iter_mut().filter(|s| s.histograms > 0);
    for (k, summary) in of_histograms.enumerate() {
        summary.histogram_sum = match k {
            0 => None,
            1 => Some(Arc::new(Histogram::stale())),
            k => Some(Arc::new(histogram(if k % 2 == 0 { 5 } else { 27 }))),
        };
    }
    kept
}

fn write_summaries(resolution_ms: i64) -> BlockParts {
    let mut writer = BlockWriter::new(BlockOptions {
        layout: tiny(),
        resolution_ms,
        histogram_sums: true,
        sources: vec![id(50)],
        ..options(u128::from(resolution_ms.unsigned_abs()))
    })
    .unwrap();
    for i in 0..6 {
        writer
            .push_downsampled(&labels(i), metadata(i).as_ref(), &kept(i, resolution_ms))
            .unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// Bit for bit: a stale marker is a NaN, which equals nothing.
fn same(a: &[(i64, Arc<Histogram>)], b: &[(i64, Arc<Histogram>)]) -> bool {
    let alike = a
        .iter()
        .zip(b)
        .all(|(a, b)| a.0 == b.0 && a.1.bits_cmp(&b.1).is_eq());
    a.len() == b.len() && alike
}

fn samples() -> BlockReader {
    stored("v5-whole", id(50), write_samples)
}

#[test]
fn all_that_a_block_may_have_is_read_as_it_was_written() {
    let block = samples();
    let of = |i| {
        let read = Read {
            metadata: metadata(i).map(Arc::new),
            floats: floats(i).iter().map(|s| (s.t, s.v.to_bits())).collect(),
            histograms: histograms(i),
            starts: starts(i),
            summaries: Vec::new(),
        };
        (labels(i), read)
    };
    let want: BTreeMap<Labels, Read> = (0..SERIES).map(of).collect();
    let read = read_back(&block);
    assert!(read.keys().eq(want.keys()));
    for (labels, want) in &want {
        let found = &read[labels];
        assert!(same(&found.histograms, &want.histograms), "{labels}");
        assert_eq!(
            (&found.metadata, &found.floats, &found.starts, &found.summaries),
            (&want.metadata, &want.floats, &want.starts, &want.summaries),
            "{labels}"
        );
    }
}

#[test]
fn exemplars_are_read_as_they_were_written() {
    let block = samples();
    let all = block.scan_exemplars(Matchers::default(), TimeRange::ALL);
    let read: Vec<_> = block_on(all.try_collect::<Vec<_>>()).unwrap().concat();
    let mut found = BTreeMap::<Labels, Vec<Exemplar>>::new();
    read.into_iter()
        .for_each(|(labels, exemplars)| found.entry(labels).or_default().extend(exemplars));
    let mut want: BTreeMap<_, _> = (0..SERIES).map(|i| (labels(i), exemplars(i))).collect();
    want.retain(|_, exemplars| !exemplars.is_empty());
    want.insert(exemplified(), exemplars(0));
    assert_eq!(found, want);
    assert!(block.meta().part(EXEMPLARS_PART).is_some());
}

#[test]
fn small_cells_are_used_as_they_were_written() {
    let block = samples();
    let part = block.meta().part(SERIES_PART).unwrap();
    let small = part.small_cells.as_ref().unwrap();
    assert_eq!((small.from, small.bytes), (0, 8192));
    // One series, by a label that has a column.
    for i in [0, 777, SERIES - 1] {
        let matchers = Matchers(vec![
            Matcher::new(MatchOp::Equal, "i".to_owned(), format!("{i:04}")).unwrap(),
        ]);
        let found = block_on(samples().select(&matchers, TimeRange::ALL)).unwrap();
        assert_eq!(found.iter().map(|s| &s.labels).collect::<Vec<_>>(), [&labels(i)]);
    }
}

#[test]
fn summaries_of_both_resolutions_are_read_as_they_were_written() {
    for (name, resolution_ms) in [("v4-5m", RESOLUTION_5M_MS), ("v4-1h", RESOLUTION_1H_MS)] {
        let block = stored(name, id(u128::from(resolution_ms.unsigned_abs())), || {
            write_summaries(resolution_ms)
        });
        assert_eq!(
            (block.meta().format, block.meta().resolution_ms),
            (4, resolution_ms)
        );
        let read = read_back(&block);
        assert_eq!(read.len(), 6);
        for i in 0..6 {
            let (read, kept) = (&read[&labels(i)], kept(i, resolution_ms));
            assert_eq!(read.summaries, kept.summaries, "{name}");
            assert!(same(&read.histograms, &kept.histograms), "{name}");
            assert_eq!(read.metadata, metadata(i).map(Arc::new));
        }
        assert!(
            read[&labels(2)]
                .summaries
                .iter()
                .any(|s| s.histogram_sum.is_some())
        );
        let mut without = read_back(&block.with_histogram_sums(false))
            .remove(&labels(2))
            .unwrap();
        without.summaries.retain(|s| s.histogram_sum.is_some());
        assert!(without.summaries.is_empty());
    }
}
