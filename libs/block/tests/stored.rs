//! Blocks of every format that there ever was, as they were written: they stay readable. With `KOIOS_WRITE_FIXTURES` set a missing
//! one is written; one that is there never changes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::{cache, id, options, tiny};
use futures::executor::block_on;
use koios_block::{
    BlockMeta, BlockOptions, BlockParts, BlockReader, BlockWriter, Layout, META_PART, MemoryBlock,
    RESOLUTION_5M_MS, SeriesColumns, verify, verify_checksums,
};
use koios_chunk::Chunk;
use koios_model::summary::downsample;
use koios_model::{Histogram, Labels, Matchers, Sample, Summary, TimeRange, spans_of};

const STEP_MS: i64 = 15_000;

/// A series as it is read back: times with the bits of values, the times of its histograms, and starts.
#[derive(Debug, Default, PartialEq)]
struct Read {
    floats: Vec<(i64, u64)>,
    histograms: Vec<(i64, Arc<Histogram>)>,
    starts: Vec<(i64, i64)>,
    summaries: Vec<Summary>,
}

fn labels(i: usize) -> Labels {
    Labels::from_pairs([("__name__", format!("m{}", i / 2)), ("i", i.to_string())])
}

/// Half of the series at the same times, one without some of them, one elsewhere.
fn floats(i: usize) -> Vec<Sample> {
    let value = |k: i64| match i {
        0 => k as f64 / 10.0,
        1 => k as f64 / 3.0,
        _ => (k * i as i64) as f64,
    };
    let sample = |k: i64| Sample {
        t: k * STEP_MS + k * k % 7 + if i == 5 { 40 } else { 0 },
        v: value(k),
    };
    (0..90).filter(|k| i != 3 || k % 8 != 5).map(sample).collect()
}

fn histograms(i: usize) -> Vec<(i64, Arc<Histogram>)> {
    let histogram = |k: i64| {
        let (positive_spans, positive_buckets) = spans_of([(-1, k as f64), (3, 2.0)]);
        Histogram {
            schema: 3,
            count: k as f64 + 2.0,
            sum: 12.5,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        }
    };
    let few = if i == 2 { 100..110 } else { 0..0 };
    few.map(|k| (k * STEP_MS, Arc::new(histogram(k)))).collect()
}

fn starts(i: usize) -> Vec<(i64, i64)> {
    let times = floats(i).into_iter().map(|s| s.t);
    times
        .skip(10)
        .map(|t| (t, 10 + i64::try_from(i).unwrap()))
        .collect()
}

/// What a block of a format holds.
fn read_of(format: u32, i: usize) -> Read {
    let samples = floats(i);
    let mut read = Read {
        floats: samples.iter().map(|s| (s.t, s.v.to_bits())).collect(),
        ..Read::default()
    };
    if [2, 5].contains(&format) {
        read.histograms = histograms(i);
    }
    if [3, 5].contains(&format) {
        read.starts = starts(i);
    }
    if format == 4 {
        read.summaries = downsample(&samples, &[], RESOLUTION_5M_MS).summaries;
        read.floats.clear();
    }
    read
}

fn write(format: u32) -> BlockParts {
    let layout = Layout {
        shared_times: format >= 5,
        ..tiny()
    };
    let mut writer = BlockWriter::new(BlockOptions {
        layout,
        starts: [3, 5].contains(&format),
        resolution_ms: if format == 4 { RESOLUTION_5M_MS } else { 0 },
        ..options(u128::from(format))
    })
    .unwrap();
    for i in 0..6 {
        let (samples, read) = (floats(i), read_of(format, i));
        if format == 4 {
            let kept = downsample(&samples, &[], RESOLUTION_5M_MS);
            writer.push_downsampled(&labels(i), None, &kept).unwrap();
            continue;
        }
        let (timestamps, values): (Vec<i64>, Vec<f64>) = samples.iter().map(|s| (s.t, s.v)).unzip();
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &read.histograms,
            starts: &read.starts,
        };
        writer.push_columns(&labels(i), None, columns).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

fn folder(format: u32) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(format!("v{format}"))
}

fn write_missing(format: u32) {
    let folder = folder(format);
    if folder.exists() || std::env::var_os("KOIOS_WRITE_FIXTURES").is_none() {
        return;
    }
    std::fs::create_dir_all(&folder).unwrap();
    let parts = write(format);
    std::fs::write(folder.join(META_PART), parts.meta.to_json()).unwrap();
    for (name, bytes) in parts.parts {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

fn stored(format: u32) -> (BlockMeta, MemoryBlock) {
    write_missing(format);
    let read = |name: &str| -> Bytes { std::fs::read(folder(format).join(name)).unwrap().into() };
    let block = id(u128::from(format));
    let meta = BlockMeta::from_json(block, &read(META_PART)).unwrap();
    let parts = meta
        .parts
        .iter()
        .map(|part| (part.name.clone(), read(&part.name)));
    let parts = MemoryBlock::from_parts(block, parts);
    (meta, parts)
}

fn read_back(block: &BlockReader) -> BTreeMap<Labels, Read> {
    let series = block_on(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let chunks = block_on(block.read_chunks(&series, TimeRange::ALL)).unwrap();
    let decode = |chunks: Vec<Chunk>| {
        let mut read = Read::default();
        for chunk in chunks {
            let (mut t, mut v) = (Vec::new(), Vec::new());
            if chunk.has_summaries() {
                chunk
                    .decode_summaries(TimeRange::ALL, &mut read.summaries)
                    .unwrap();
            } else if chunk.has_histograms() {
                chunk
                    .decode_histograms(TimeRange::ALL, &mut read.histograms)
                    .unwrap();
            } else {
                chunk.decode_range(TimeRange::ALL, &mut t, &mut v).unwrap();
            }
            let bits = v.into_iter().map(f64::to_bits);
            read.floats.extend(t.into_iter().zip(bits));
            if !chunk.has_summaries() {
                chunk.decode_starts(TimeRange::ALL, &mut read.starts).unwrap();
            }
        }
        read
    };
    let all = series.into_iter().zip(chunks);
    all.map(|(series, chunks)| (series.labels, decode(chunks)))
        .collect()
}

#[test]
fn blocks_of_every_format_are_read_as_they_were_written() {
    for format in 1..=5 {
        let (meta, parts) = stored(format);
        assert_eq!((meta.format, meta.series), (format, 6));
        assert_eq!(meta.may_have_starts(), [3, 5].contains(&format));
        block_on(verify_checksums(&parts, &meta)).unwrap();
        let block = BlockReader::open(Arc::new(parts), Arc::new(meta), cache()).unwrap();
        block_on(verify(&block)).unwrap();
        let want: BTreeMap<Labels, Read> = (0..6).map(|i| (labels(i), read_of(format, i))).collect();
        assert_eq!(read_back(&block), want, "format {format}");
    }
}
