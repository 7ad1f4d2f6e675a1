//! Blocks as they were once written: they stay readable. With `KOIOS_WRITE_FIXTURES` set a missing one is written; one that is there
//! never changes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod formats;
mod whole;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use common::cache;
use futures::executor::block_on;
use koios_block::{
    BlockId, BlockMeta, BlockParts, BlockReader, META_PART, MemoryBlock, verify, verify_checksums,
};
use koios_chunk::Chunk;
use koios_model::{Histogram, Labels, Matchers, Metadata, Summary, TimeRange};

/// A series as it is read back: times with the bits of values, the times of its histograms, and starts.
#[derive(Debug, Default, PartialEq)]
struct Read {
    metadata: Option<Arc<Metadata>>,
    floats: Vec<(i64, u64)>,
    histograms: Vec<(i64, Arc<Histogram>)>,
    starts: Vec<(i64, i64)>,
    summaries: Vec<Summary>,
}

fn folder(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name)
}

fn write_missing(name: &str, write: impl FnOnce() -> BlockParts) {
    let folder = folder(name);
    if folder.exists() || std::env::var_os("KOIOS_WRITE_FIXTURES").is_none() {
        return;
    }
    std::fs::create_dir_all(&folder).unwrap();
    let parts = write();
    std::fs::write(folder.join(META_PART), parts.meta.to_json()).unwrap();
    for (name, bytes) in parts.parts {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A stored block, checked as a whole; it is written where it is missing.
fn stored(name: &str, block: BlockId, write: impl FnOnce() -> BlockParts) -> BlockReader {
    write_missing(name, write);
    let read = |part: &str| -> Bytes { std::fs::read(folder(name).join(part)).unwrap().into() };
    let meta = BlockMeta::from_json(block, &read(META_PART)).unwrap();
    let parts = meta
        .parts
        .iter()
        .map(|part| (part.name.clone(), read(&part.name)));
    let parts = MemoryBlock::from_parts(block, parts);
    block_on(verify_checksums(&parts, &meta)).unwrap();
    let block = BlockReader::open(Arc::new(parts), Arc::new(meta), cache()).unwrap();
    block_on(verify(&block)).unwrap();
    block.with_histogram_sums(true)
}

fn read_back(block: &BlockReader) -> BTreeMap<Labels, Read> {
    let series = block_on(block.select(&Matchers::default(), TimeRange::ALL)).unwrap();
    let chunks = block_on(block.read_chunks(&series, TimeRange::ALL)).unwrap();
    let decode = |metadata, chunks: Vec<Chunk>| {
        let mut read = Read {
            metadata,
            ..Read::default()
        };
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
    all.map(|(series, chunks)| (series.labels, decode(series.metadata, chunks)))
        .collect()
}
