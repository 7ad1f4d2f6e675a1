//! Bytes that pass their checksums and were written by nobody: the worst a bucket can hold.

use std::sync::Arc;

use arrow_array::{
    ArrayRef, Float64Array, Int8Array, Int64Array, RecordBatch, TimestampMillisecondArray, UInt32Array,
};
use bytes::Bytes;
use futures::TryStreamExt;
use futures::executor::block_on;
use koios_model::{Labels, Matcher, Matchers, TenantId, TimeRange};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

use crate::meta::{CELL_BYTES, FORMAT_VERSION, PartMeta, SAMPLES_PART, SERIES_PART, TIMES_PART};
use crate::samples_table::SamplesWriter;
use crate::schema::{samples_schema, times_schema};
use crate::series_table::{SeriesRow, encode_series};
use crate::shared_times::PlacedTimes;
use crate::{
    BlockCache, BlockId, BlockMeta, BlockOptions, BlockParts, BlockReader, BlockWriter, Error, Layout,
    MemoryBlock, Result, SmallCells, verify,
};

mod columns;
mod summaries;

fn writer() -> BlockWriter {
    writer_with(layout())
}

fn writer_with(layout: Layout) -> BlockWriter {
    let mut options = BlockOptions::new(BlockId::new(1, 1), TenantId::anonymous(), TimeRange::ALL);
    options.layout = layout;
    BlockWriter::new(options).unwrap()
}

fn layout() -> Layout {
    Layout {
        page_rows: 64,
        group_rows: 128,
        ..Layout::default()
    }
}

/// Of format 1: samples have their times beside them.
fn unshared() -> Layout {
    Layout {
        shared_times: false,
        ..layout()
    }
}

fn block() -> BlockParts {
    let mut writer = writer();
    for i in 0..12 {
        let labels = Labels::from_pairs([("__name__", "m"), ("i", &format!("{i:02}"))]);
        let t: Vec<i64> = (0..50).collect();
        let v: Vec<f64> = t
            .iter()
            .map(|&t| t as f64 / if i % 2 == 0 { 3.0 } else { 10.0 })
            .collect();
        writer.push_series(&labels, None, &t, &v).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

/// Puts `bytes` in place of a part, with checksums that agree.
fn forge(parts: &BlockParts, part: usize, bytes: Vec<u8>) -> BlockParts {
    let mut forged = parts.clone();
    let name = forged.parts[part].0.clone();
    let rows = forged.meta.parts[part].rows;
    forged.meta.parts[part] = PartMeta::of(&name, rows, &bytes);
    forged.parts[part].1 = Bytes::from(bytes);
    forged
}

fn read(parts: &BlockParts) -> Result<()> {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20));
    let source = Arc::new(MemoryBlock::new(parts));
    let block = BlockReader::open(source, Arc::new(parts.meta.clone()), cache)?;
    block_on(async {
        // Also out of the cache.
        for _ in 0..2 {
            for (matchers, range) in [
                (Matchers::default(), TimeRange::ALL),
                (Matchers(vec![Matcher::equal("i", "07")]), TimeRange::new(10, 20)),
            ] {
                let series = block.select(&matchers, range).await?;
                block.read_samples(&series, TimeRange::new(10, 20)).await?;
                block.label_values("i", &matchers, range).await?;
                block.label_names(&matchers, range).await?;
                // Page by page.
                let streamed = block.stream_samples(series, TimeRange::new(13, 17));
                streamed.try_collect::<Vec<_>>().await?;
            }
        }
        verify(&block).await
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn i12_changed_bytes_with_agreeing_checksums_never_panic(
        part in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
    ) {
        let good = block();
        let mut bytes = good.parts[part].1.to_vec();
        for (at, byte, near_the_end) in changes {
            // Footer and indexes are at the end, and hold what is dangerous.
            let from = if near_the_end { bytes.len() / 2 } else { 0 };
            let at = from + at.index(bytes.len() - from);
            bytes[at] = byte;
        }
        // Anything but a panic; what is not noticed has to be harmless.
        let _ = read(&forge(&good, part, bytes));
    }

    #[test]
    fn i12_arbitrary_bytes_are_corrupt(part in 0usize..3, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let mut bytes = bytes;
        bytes.extend_from_slice(b"PAR1");
        let e = read(&forge(&block(), part, bytes)).unwrap_err();
        prop_assert!(e.is_corrupt(), "{e}");
    }

    #[test]
    fn i12_arbitrary_metadata_is_refused(json in ".{0,200}") {
        prop_assert!(BlockMeta::from_json(BlockId::new(1, 1), json.as_bytes()).is_err());
    }
}

#[test]
fn metadata_survives_json_and_is_refused_when_it_is_newer_or_anothers() {
    let meta = block().meta;
    let json = meta.to_json();
    assert_eq!(BlockMeta::from_json(meta.block, &json).unwrap(), meta);
    let other = BlockId::new(1, 2);
    assert!(BlockMeta::from_json(other, &json).unwrap_err().is_corrupt());
    let newer = BlockMeta {
        format: FORMAT_VERSION + 1,
        ..meta.clone()
    };
    let e = BlockMeta::from_json(meta.block, &newer.to_json()).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Version {
                found: 6,
                supported: 5,
                ..
            }
        ),
        "{e}"
    );
    let mut short = meta.clone();
    short.parts[0].cells.pop();
    assert!(
        BlockMeta::from_json(meta.block, &short.to_json())
            .unwrap_err()
            .is_corrupt()
    );
    // Small cells that cannot be.
    let sound = SmallCells {
        from: 0,
        bytes: 1024,
        crc32c: vec![0; meta.parts[0].bytes.div_ceil(1024) as usize],
    };
    let read = |small: SmallCells| {
        let mut meta = meta.clone();
        meta.parts[0].small_cells = Some(small);
        BlockMeta::from_json(meta.block, &meta.to_json())
    };
    read(sound.clone()).unwrap();
    let (mut few, mut later) = (sound.clone(), sound.clone());
    few.crc32c.pop();
    later.from = CELL_BYTES;
    let of = |bytes| SmallCells {
        bytes,
        ..sound.clone()
    };
    for small in [few, later, of(0), of(512), of(1025), of(CELL_BYTES), of(1 << 63)] {
        let text = format!("{small:?}");
        assert!(read(small).unwrap_err().is_corrupt(), "{text}");
    }
}

#[test]
fn a_part_that_ends_early_is_corrupt_at_every_length() {
    let good = block();
    for part in 0..3 {
        let whole = &good.parts[part].1;
        for len in (0..whole.len()).step_by(13) {
            let e = read(&forge(&good, part, whole[..len].to_vec())).unwrap_err();
            assert!(e.is_corrupt(), "{len}: {e}");
        }
    }
}

/// A block of one series of so many samples, to have its samples replaced.
fn block_of_one(samples: i64, layout: Layout) -> (Labels, BlockParts) {
    let labels = Labels::from_pairs([("__name__", "forged")]);
    let mut writer = writer_with(layout);
    let times: Vec<i64> = (0..samples).collect();
    let values = vec![1.5; times.len()];
    writer.push_series(&labels, None, &times, &values).unwrap();
    (labels, writer.finish().unwrap().unwrap())
}

fn forge_part(parts: &BlockParts, name: &str, bytes: Vec<u8>) -> BlockParts {
    let part = parts.parts.iter().position(|(n, _)| n == name);
    forge(parts, part.unwrap(), bytes)
}

fn forge_samples(parts: &BlockParts, bytes: Vec<u8>) -> BlockParts {
    forge_part(parts, SAMPLES_PART, bytes)
}

/// What each way of reading samples says of a block, and the check of all of it.
fn answers(parts: &BlockParts) -> [Result<()>; 3] {
    let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20));
    let source = Arc::new(MemoryBlock::new(parts));
    let block = BlockReader::open(source, Arc::new(parts.meta.clone()), cache).unwrap();
    block_on(async {
        let series = block.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
        let chunks = block.read_chunks(&series, TimeRange::ALL).await.map(|_| ());
        let stream = block.stream_samples(series, TimeRange::ALL);
        let streamed = stream.try_collect::<Vec<_>>().await.map(|_| ());
        [chunks, streamed, verify(&block).await]
    })
}

#[test]
fn i11_times_that_do_not_ascend_from_one_row_group_to_the_next_are_corrupt() {
    let (labels, good) = block_of_one(200, unshared());
    let forged = |times: &[i64]| {
        let mut samples = SamplesWriter::new(good.meta.block, layout(), false, false).unwrap();
        samples.push(0, times, &[1.5; 200], &[], None).unwrap();
        forge_samples(&good, samples.finish().unwrap().to_vec())
    };
    let sound: Vec<i64> = (0..200).collect();
    for answer in answers(&forged(&sound)) {
        answer.unwrap();
    }
    // The newest 128 samples are the first row group, the others the second.
    for step in [1, 2, 100] {
        let mut times = sound.clone();
        times[72..].iter_mut().for_each(|t| *t -= step);
        for answer in answers(&forged(&times)) {
            let e = answer.unwrap_err();
            assert!(e.is_corrupt(), "{e}");
            let Error::Samples {
                part, series, source, ..
            } = e
            else {
                panic!("{e}")
            };
            assert_eq!((part.as_str(), &series), (SAMPLES_PART, &labels));
            assert_eq!(source, koios_chunk::Error::NotAscending { at: 72 });
        }
    }
    // Inside a row group.
    let mut times = sound;
    times[150] = times[149];
    let [chunks, _, checked] = answers(&forged(&times));
    assert!(matches!(chunks.unwrap_err(), Error::Samples { series, .. } if series == labels));
    assert!(checked.unwrap_err().is_corrupt());
}

#[test]
fn i11_a_row_with_two_values_or_none_is_corrupt() {
    let (_, good) = block_of_one(3, unshared());
    let forged = |mantissas: [Option<i64>; 3], floats: [Option<f64>; 3]| {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![0; 3])),
            Arc::new(TimestampMillisecondArray::from(vec![2, 1, 0]).with_timezone("UTC")),
            Arc::new(Int8Array::from(vec![1; 3])),
            Arc::new(Int64Array::from(mantissas.to_vec())),
            Arc::new(Float64Array::from(floats.to_vec())),
        ];
        let batch = RecordBatch::try_new(samples_schema(false, false), columns).unwrap();
        let mut file = ArrowWriter::try_new(Vec::new(), samples_schema(false, false), None).unwrap();
        file.write(&batch).unwrap();
        forge_samples(&good, file.into_inner().unwrap())
    };
    let (m, f) = (Some(15), Some(0.1));
    for (mantissas, floats) in [
        ([m; 3], [None; 3]),
        ([None; 3], [f; 3]),
        ([m, None, m], [None, f, None]),
    ] {
        for answer in answers(&forged(mantissas, floats)) {
            answer.unwrap();
        }
    }
    for (mantissas, floats) in [
        ([m; 3], [f; 3]),
        ([m; 3], [None, f, None]),
        ([None, None, m], [f; 3]),
        ([m, m, None], [None, f, None]),
        ([m, None, None], [f, None, f]),
        ([None; 3], [f, f, None]),
    ] {
        for answer in answers(&forged(mantissas, floats)) {
            let e = answer.unwrap_err();
            assert!(
                matches!(e, Error::Corrupt { .. }),
                "{mantissas:?} {floats:?}: {e}"
            );
        }
    }
}

fn parquet(batch: &RecordBatch) -> Vec<u8> {
    let mut file = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    file.write(batch).unwrap();
    file.into_inner().unwrap()
}

/// Samples of one series with these ticks.
fn with_ticks(ticks: &[u32]) -> Vec<u8> {
    let n = ticks.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(vec![0; n])),
        Arc::new(UInt32Array::from(ticks.to_vec())),
        Arc::new(Int8Array::from(vec![1; n])),
        Arc::new(Int64Array::from(vec![Some(15); n])),
        Arc::new(Float64Array::from(vec![None; n])),
    ];
    parquet(&RecordBatch::try_new(samples_schema(true, false), columns).unwrap())
}

fn with_times(ids: &[u32], times: &[i64]) -> Vec<u8> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from(ids.to_vec())),
        Arc::new(TimestampMillisecondArray::from(times.to_vec()).with_timezone("UTC")),
    ];
    parquet(&RecordBatch::try_new(times_schema(), columns).unwrap())
}

/// The same block with its one series claiming other times.
fn claim_times(parts: &BlockParts, labels: &Labels, times_last_row: u32, times_row_count: u32) -> BlockParts {
    let row = SeriesRow {
        labels: labels.clone(),
        metadata: None,
        first_row: 0,
        count: u32::try_from(parts.meta.samples).unwrap(),
        times_last_row,
        times_row_count,
        histogram_first_row: 0,
        histogram_count: 0,
        range: parts.meta.range,
    };
    let bytes = encode_series(parts.meta.block, &[row], layout(), true).unwrap();
    forge_part(parts, SERIES_PART, bytes.to_vec())
}

/// A block of three samples at 0, 4 and 5, which are some of six times.
fn block_of_ticks() -> (Labels, BlockParts) {
    let (labels, good) = block_of_one(3, layout());
    let mut block = forge_part(
        &good,
        TIMES_PART,
        with_times(&[0, 1, 2, 3, 4, 5], &[5, 4, 3, 2, 1, 0]),
    );
    block.meta.parts[2].rows = 6;
    block.meta.range = TimeRange::new(0, 5);
    let block = claim_times(&block, &labels, 5, 6);
    (labels, forge_samples(&block, with_ticks(&[5, 4, 0])))
}

fn assert_corrupt(parts: &BlockParts, part: &str, words: &str) {
    for answer in answers(parts) {
        let e = answer.unwrap_err();
        assert!(matches!(&e, Error::Corrupt { part: of, .. } if of == part), "{e}");
        assert!(e.to_string().contains(words), "{e}");
    }
}

#[test]
fn i11_ticks_that_no_writer_writes_are_corrupt() {
    let (_, sound) = block_of_ticks();
    for answer in answers(&sound) {
        answer.unwrap();
    }
    for (ticks, words) in [
        ([5, 5, 0], "do not descend"),
        ([4, 5, 0], "do not descend"),
        ([0, 4, 5], "do not descend"),
        ([6, 4, 0], "are none of those that its rows can have"),
        ([u32::MAX, 4, 0], "are none of those that its rows can have"),
        ([5, 4, 1], "do not begin and end with its times"),
        ([4, 3, 0], "do not begin and end with its times"),
    ] {
        assert_corrupt(&forge_samples(&sound, with_ticks(&ticks)), SAMPLES_PART, words);
    }
    // Two row groups, one tick in both.
    let (_, good) = block_of_one(200, layout());
    let mut samples = SamplesWriter::new(good.meta.block, layout(), true, false).unwrap();
    let mut times: Vec<i64> = (0..200).collect();
    let mut placed = PlacedTimes::alone(0, 200);
    samples.push(0, &times, &[1.5; 200], &[], Some(&placed)).unwrap();
    for answer in answers(&forge_samples(&good, samples.finish().unwrap().to_vec())) {
        answer.unwrap();
    }
    times[71] = 72;
    placed.set_ticks((0..71).chain([72]).chain(72..200).collect());
    let mut samples = SamplesWriter::new(good.meta.block, layout(), true, false).unwrap();
    samples.push(0, &times, &[1.5; 200], &[], Some(&placed)).unwrap();
    assert_corrupt(
        &forge_samples(&good, samples.finish().unwrap().to_vec()),
        SAMPLES_PART,
        "are none of those that its rows can have",
    );
}

#[test]
fn i11_times_that_no_writer_writes_are_corrupt() {
    let (labels, sound) = block_of_ticks();
    for times in [
        [5, 4, 3, 2, 1, 1],
        [0, 1, 2, 3, 4, 5],
        [5, 4, 3, 2, 1, 7],
        [5, 5, 3, 2, 1, 0],
    ] {
        let forged = forge_part(&sound, TIMES_PART, with_times(&[0, 1, 2, 3, 4, 5], &times));
        assert_corrupt(&forged, TIMES_PART, "do not descend");
    }
    // Fewer than the series claims, and than meta.json says.
    assert_corrupt(
        &forge_part(&sound, TIMES_PART, with_times(&[0, 1, 2], &[5, 4, 3])),
        TIMES_PART,
        "meta.json says 6",
    );
    // Other readers join by number.
    let forged = forge_part(
        &sound,
        TIMES_PART,
        with_times(&[0, 1, 2, 3, 5, 4], &[5, 4, 3, 2, 1, 0]),
    );
    let [_, _, checked] = answers(&forged);
    assert!(checked.unwrap_err().to_string().contains("row 4 has number 5"));
    // Claims of rows that there are not, of too few, and of so many that reading them would be a waste.
    for (last_row, row_count) in [
        (6, 6),
        (u32::MAX, 6),
        (4, 6),
        (5, 0),
        (5, 2),
        (5, u32::MAX),
        (0, 1),
    ] {
        assert_corrupt(
            &claim_times(&sound, &labels, last_row, row_count),
            TIMES_PART,
            "claims",
        );
    }
    let mut wide = forge_part(
        &sound,
        TIMES_PART,
        with_times(&(0..13).collect::<Vec<_>>(), &(0..13).rev().collect::<Vec<_>>()),
    );
    wide.meta.parts[2].rows = 13;
    let wide = forge_samples(&wide, with_ticks(&[12, 4, 0]));
    assert_corrupt(&claim_times(&wide, &labels, 12, 13), TIMES_PART, "claims");
    // A block of this format has the part.
    let mut without = sound;
    without.meta.parts.remove(2);
    let source = Arc::new(MemoryBlock::new(&without));
    let opened = BlockReader::open(
        source,
        Arc::new(without.meta.clone()),
        Arc::new(BlockCache::new(0, 0)),
    );
    assert!(opened.is_err_and(|e| e.is_corrupt() && e.to_string().contains(TIMES_PART)));
}
