//! Builders shared by the tests of blocks.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use async_trait::async_trait;
use bytes::Bytes;
use futures::channel::oneshot;
use koios_block::{
    BlockCache, BlockId, BlockOptions, BlockParts, BlockReader, BlockWriter, Layout, MemoryBlock, RangeRead,
    Result,
};
use koios_model::{Labels, TenantId, TimeRange};
use parking_lot::Mutex;

/// Series with their samples.
pub(crate) type Model = BTreeMap<Labels, BTreeMap<i64, f64>>;

pub(crate) fn id(n: u128) -> BlockId {
    BlockId::new(1_700_000_000_000, n)
}

pub(crate) fn options(n: u128) -> BlockOptions {
    BlockOptions::new(id(n), TenantId::anonymous(), TimeRange::ALL)
}

/// Small pages and row groups, so that little data crosses their borders.
pub(crate) fn tiny() -> Layout {
    Layout {
        page_rows: 64,
        group_rows: 256,
        ..Layout::default()
    }
}

pub(crate) fn write(n: u128, layout: Layout, model: &Model) -> BlockParts {
    let mut writer = BlockWriter::new(BlockOptions { layout, ..options(n) }).unwrap();
    for (labels, samples) in model {
        let t: Vec<i64> = samples.keys().copied().collect();
        let v: Vec<f64> = samples.values().copied().collect();
        writer.push_series(labels, None, &t, &v).unwrap();
    }
    writer.finish().unwrap().unwrap()
}

pub(crate) fn cache() -> Arc<BlockCache> {
    Arc::new(BlockCache::new(64 << 20, 16 << 20).with_series_and_samples(16 << 20, 16 << 20))
}

pub(crate) fn open(parts: &BlockParts) -> BlockReader {
    open_over(Arc::new(MemoryBlock::new(parts)), parts)
}

pub(crate) fn open_over(source: Arc<dyn RangeRead>, parts: &BlockParts) -> BlockReader {
    BlockReader::open(source, Arc::new(parts.meta.clone()), cache()).unwrap()
}

/// The block with a cache of its own.
pub(crate) fn open_with(cache: BlockCache, parts: &BlockParts) -> BlockReader {
    let source = Arc::new(MemoryBlock::new(parts));
    BlockReader::open(source, Arc::new(parts.meta.clone()), Arc::new(cache)).unwrap()
}

pub(crate) async fn read_all(block: &BlockReader) -> Result<Model> {
    let series = block.select(&Default::default(), TimeRange::ALL).await?;
    let samples = block.read_samples(&series, TimeRange::ALL).await?;
    Ok(series
        .into_iter()
        .zip(samples)
        .map(|(s, c)| (s.labels, c.timestamps.into_iter().zip(c.values).collect()))
        .collect())
}

/// The i-th of values that do not compress, whether bytes stand as they are or those of a place together. By splitmix64.
pub(crate) fn incompressible(i: i64) -> f64 {
    let mut z = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from_bits((z ^ (z >> 31)) >> 2)
}

/// Values by their bits, so that NaNs compare.
pub(crate) fn bits(model: &Model) -> BTreeMap<&Labels, Vec<(i64, u64)>> {
    model
        .iter()
        .map(|(l, s)| (l, s.iter().map(|(&t, v)| (t, v.to_bits())).collect()))
        .collect()
}

/// Counts what is read.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: MemoryBlock,
    pub(crate) requests: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

impl Counting {
    pub(crate) fn new(parts: &BlockParts) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryBlock::new(parts),
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn take(&self) -> (u64, u64) {
        (
            self.requests.swap(0, Ordering::Relaxed),
            self.bytes.swap(0, Ordering::Relaxed),
        )
    }
}

#[async_trait]
impl RangeRead for Counting {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.requests.fetch_add(ranges.len() as u64, Ordering::Relaxed);
        let total: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        self.bytes.fetch_add(total, Ordering::Relaxed);
        self.inner.read(part, ranges).await
    }
}

/// A storage that answers all at once when nothing goes on without an answer: that is a round trip.
#[derive(Debug)]
pub(crate) struct InRounds {
    inner: MemoryBlock,
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

impl InRounds {
    pub(crate) fn new(parts: &BlockParts) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryBlock::new(parts),
            waiting: Mutex::default(),
        })
    }

    /// Runs work, and tells how many round trips it takes.
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> (T, u32) {
        let mut work = std::pin::pin!(work);
        let mut context = Context::from_waker(Waker::noop());
        let mut rounds = 0;
        loop {
            // Streams may give way to others before all of them are asked.
            for _ in 0..50 {
                if let Poll::Ready(done) = work.as_mut().poll(&mut context) {
                    return (done, rounds);
                }
            }
            let waiting = std::mem::take(&mut *self.waiting.lock());
            assert!(!waiting.is_empty(), "waits for nothing");
            rounds += 1;
            for answered in waiting {
                let _ = answered.send(());
            }
        }
    }
}

#[async_trait]
impl RangeRead for InRounds {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let (answered, answer) = oneshot::channel();
        self.waiting.lock().push(answered);
        let _ = answer.await;
        self.inner.read(part, ranges).await
    }
}
