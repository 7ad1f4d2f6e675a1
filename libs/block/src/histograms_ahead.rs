//! Reads histograms ahead of a merge: some series at a time, as many as take little memory.

use std::collections::VecDeque;

use koios_chunk::Chunk;

use crate::Result;
use crate::reader::{BlockReader, BlockSeries};

/// Most histograms that are read together, unless one series has more: some pages, so that few are decoded twice.
const ROWS_AHEAD: u32 = 4096;
/// The same before it is known how large they are: a page.
const ROWS_FIRST: u32 = 1024;
/// Most bytes of chunks that they take, as far as those before them tell.
const BYTES_AHEAD: u64 = 8 << 20;
/// After few that are large more are read again by so much at a time.
const GROWTH: u32 = 4;

/// The histograms of the next series of a block.
#[derive(Debug)]
pub(crate) struct HistogramsAhead {
    /// Series that have some, in order.
    waiting: VecDeque<BlockSeries>,
    read: VecDeque<Vec<Chunk>>,
    /// How many are read together.
    rows_max: u32,
}

impl Default for HistogramsAhead {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            read: VecDeque::new(),
            rows_max: ROWS_FIRST,
        }
    }
}

impl HistogramsAhead {
    /// Goes on with these series, once those of all before were taken.
    pub(crate) fn go_on_with(&mut self, series: &[BlockSeries]) {
        self.read.clear();
        self.waiting = series.iter().filter(|s| s.histogram_count > 0).cloned().collect();
    }

    /// Those of the next series that has some.
    pub(crate) async fn next(&mut self, reader: &BlockReader) -> Result<Vec<Chunk>> {
        if self.read.is_empty() {
            let (mut batch, mut rows) = (Vec::new(), 0u32);
            while let Some(series) = self.waiting.front()
                && (batch.is_empty() || rows.saturating_add(series.histogram_count) <= self.rows_max)
            {
                rows = rows.saturating_add(series.histogram_count);
                batch.extend(self.waiting.pop_front());
            }
            self.read = reader.read_histograms(&batch).await?.into();
            self.rows_max = next_rows(self.rows_max, rows, self.bytes());
        }
        Ok(self.read.pop_front().unwrap_or_default())
    }

    /// What is read and was not taken.
    fn bytes(&self) -> u64 {
        let chunks = self.read.iter().flatten();
        chunks.map(|chunk| chunk.bytes().len() as u64).sum()
    }
}

/// How many are read together after some that took so many bytes.
fn next_rows(rows_max: u32, rows: u32, bytes: u64) -> u32 {
    let each = bytes.div_ceil(u64::from(rows.max(1))).max(1);
    let fit = u32::try_from(BYTES_AHEAD / each).unwrap_or(u32::MAX);
    fit.clamp(1, rows_max.saturating_mul(GROWTH).min(ROWS_AHEAD))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use koios_model::{Histogram, Labels, Matchers, Span, TenantId, TimeRange};

    use super::*;
    use crate::{BlockCache, BlockId, BlockOptions, BlockWriter, MemoryBlock, SeriesColumns};

    /// A histogram whose buckets have nothing in common.
    fn histogram(buckets: u32, seed: i64) -> Arc<Histogram> {
        let mixed = |i: u32| (i64::from(i) + 1).wrapping_mul(seed + 0x9e37) % 1_000_003;
        Arc::new(Histogram {
            positive_spans: vec![Span {
                offset: 0,
                length: buckets,
            }],
            positive_buckets: (0..buckets).map(|i| mixed(i) as f64 / 7.0).collect(),
            ..Histogram::default()
        })
    }

    /// A block of series of histograms with so many buckets each.
    fn block(series: u32, of_each: u32, buckets: impl Fn(u32) -> u32) -> BlockReader {
        let range = TimeRange::new(0, 1_000_000);
        let options = BlockOptions::new(BlockId::new(1, 1), TenantId::anonymous(), range);
        let mut writer = BlockWriter::new(options).unwrap();
        for i in 0..series {
            let labels = Labels::from_pairs([("__name__", "h".to_owned()), ("i", format!("{i:06}"))]);
            let at = |t| (i64::from(t), histogram(buckets(i), i64::from(t * series + i)));
            let histograms: Vec<_> = (0..of_each).map(at).collect();
            let columns = SeriesColumns {
                histograms: &histograms,
                ..SeriesColumns::default()
            };
            writer.push_columns(&labels, None, columns).unwrap();
        }
        let parts = writer.finish().unwrap().unwrap();
        let cache = Arc::new(BlockCache::new(64 << 20, 1 << 20));
        let source = Arc::new(MemoryBlock::new(&parts));
        BlockReader::open(source, Arc::new(parts.meta), cache).unwrap()
    }

    /// Takes all of a block, and gives the most bytes and the most histograms that were read at a time.
    async fn most_ahead(reader: &BlockReader) -> (u64, usize) {
        let series = reader.select(&Matchers::default(), TimeRange::ALL).await.unwrap();
        let mut ahead = HistogramsAhead::default();
        let (mut bytes, mut rows) = (0, 0);
        // As a merge does: some series at a time.
        for some in series.chunks(50) {
            ahead.go_on_with(some);
            for one in some {
                let chunks = ahead.next(reader).await.unwrap();
                let taken: usize = chunks.iter().map(Chunk::count).sum();
                assert_eq!(taken, one.histogram_count as usize);
                let taken_bytes: u64 = chunks.iter().map(|c| c.bytes().len() as u64).sum();
                bytes = bytes.max(taken_bytes + ahead.bytes());
                rows = rows.max(taken + ahead.read.iter().flatten().map(Chunk::count).sum::<usize>());
            }
        }
        (bytes, rows)
    }

    #[tokio::test]
    async fn i12_histograms_that_are_read_ahead_are_bounded_by_bytes() {
        let (bytes, rows) = most_ahead(&block(60, 100, |_| 4)).await;
        println!("small: {bytes} bytes of {rows}");
        assert!(rows > 2000, "small ones are read some pages at a time: {rows}");
        // Some 5 KB each: twice as much as may be held if their number alone counted.
        let (bytes, rows) = most_ahead(&block(60, 100, |_| 640)).await;
        println!("large: {bytes} bytes of {rows}");
        assert!(
            bytes <= BYTES_AHEAD + (2 << 20),
            "{bytes} bytes of {rows} histograms"
        );
    }

    #[test]
    fn how_many_are_read_follows_what_the_last_ones_took() {
        assert_eq!(next_rows(ROWS_FIRST, 1024, 1024 * 40), ROWS_AHEAD);
        assert_eq!(next_rows(ROWS_AHEAD, 1024, 1024 * 8192), 1024);
        assert_eq!(next_rows(ROWS_AHEAD, 10, u64::from(u32::MAX)), 1);
        // One that is huge does not make many that follow slow for long.
        assert_eq!(next_rows(1, 1, 100), GROWTH);
        assert_eq!(next_rows(ROWS_FIRST, 0, 0), ROWS_AHEAD);
    }
}
