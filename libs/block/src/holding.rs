//! Whether blocks have what another holds, of which only the times need be readable.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::ops::Range;

use futures::TryStreamExt;
use koios_chunk::Chunk;
use koios_model::{Exemplar, Labels, Matchers, TimeRange};

use crate::Result;
use crate::reader::{BlockReader, BlockSeries, SeriesCursor};

/// Series whose times are compared together.
const SERIES_AT_ONCE: usize = 256;

/// An exemplar of a series, bit-exact.
type Exact = (Labels, i64, u64, Labels);

/// When the samples of a series are, by kind.
#[derive(Debug, Default)]
struct SeriesTimes {
    floats: BTreeSet<i64>,
    histograms: BTreeSet<i64>,
}

impl SeriesTimes {
    fn includes(&self, other: &Self) -> bool {
        other.floats.is_subset(&self.floats) && other.histograms.is_subset(&self.histograms)
    }
}

/// Whether `others` together certainly have a sample of the same kind wherever a block of samples has one, and all of its exemplars. Of
/// the block no value of a float is read where its times have a part of their own. Values are not compared: of two samples of a series
/// at a time one is kept anyway.
///
/// # Errors
/// [`crate::Error::Corrupt`], [`crate::Error::Samples`] or [`crate::Error::Read`], when what has to be compared cannot be read.
pub async fn is_held_by(block: &BlockReader, others: &[BlockReader]) -> Result<bool> {
    let mut sides: Vec<Side> = others.iter().map(Side::new).collect();
    let mut cursor = block.series_cursor(Matchers::default(), TimeRange::ALL);
    while let Some(series) = cursor.next(SERIES_AT_ONCE).await? {
        let wanted = times_at_most(block, &series).await?;
        let mut found: BTreeMap<&Labels, SeriesTimes> = BTreeMap::new();
        for side in &mut sides {
            let same = side.same(&series).await?;
            for (other, times) in same.iter().zip(times_of(&side.reader, &same).await?) {
                let Ok(at) = series.binary_search_by(|s| s.labels.cmp(&other.labels)) else {
                    continue;
                };
                let all = found.entry(&series[at].labels).or_default();
                all.floats.extend(times.floats);
                all.histograms.extend(times.histograms);
            }
        }
        let is_there = |(series, wanted): (&BlockSeries, &SeriesTimes)| {
            let found = found.get(&series.labels);
            found.is_some_and(|found| found.includes(wanted))
        };
        if !series.iter().zip(&wanted).all(is_there) {
            return Ok(false);
        }
    }
    has_exemplars_of(block, others).await
}

/// A block that is gone through beside another, in label order.
struct Side {
    reader: BlockReader,
    cursor: SeriesCursor,
    ahead: VecDeque<BlockSeries>,
}

impl Side {
    fn new(reader: &BlockReader) -> Self {
        Self {
            reader: reader.clone(),
            cursor: reader.series_cursor(Matchers::default(), TimeRange::ALL),
            ahead: VecDeque::new(),
        }
    }

    /// Those of some series that it has, too, past which it is then: they ascend from call to call.
    async fn same(&mut self, wanted: &[BlockSeries]) -> Result<Vec<BlockSeries>> {
        let mut same = Vec::new();
        let Some(last) = wanted.last() else {
            return Ok(same);
        };
        loop {
            if self.ahead.is_empty() {
                match self.cursor.next(SERIES_AT_ONCE).await? {
                    Some(next) => self.ahead.extend(next),
                    None => return Ok(same),
                }
            }
            let passed = self.ahead.partition_point(|next| next.labels <= last.labels);
            let is_wanted =
                |next: &BlockSeries| wanted.binary_search_by(|w| w.labels.cmp(&next.labels)).is_ok();
            same.extend(self.ahead.drain(..passed).filter(is_wanted));
            if !self.ahead.is_empty() {
                return Ok(same);
            }
        }
    }
}

/// When the samples of some series are; of floats that share their times with other series some that only these have, too.
async fn times_at_most(block: &BlockReader, series: &[BlockSeries]) -> Result<Vec<SeriesTimes>> {
    let Some(table) = &block.times else {
        return times_of(block, series).await;
    };
    let spans = series
        .iter()
        .map(|s| (s.row_count > 0).then(|| table.span(s)).transpose());
    let spans = spans.collect::<Result<Vec<_>>>()?;
    let rows: Vec<Range<u64>> = spans
        .iter()
        .flatten()
        .map(|span| span.rows_of(&(0..span.ticks())))
        .collect();
    let times = table.open().await?.read(rows).await?;
    let mut all = histogram_times(block, series).await?;
    for ((of_series, series), span) in all.iter_mut().zip(series).zip(&spans) {
        if let Some(span) = span {
            let of_span = times.of(span, &(0..span.ticks()), &series.labels)?;
            of_series.floats.extend(of_span);
        }
    }
    Ok(all)
}

/// When the samples of some series are.
async fn times_of(block: &BlockReader, series: &[BlockSeries]) -> Result<Vec<SeriesTimes>> {
    let mut all = histogram_times(block, series).await?;
    let samples = block.read_samples(series, TimeRange::ALL).await?;
    for (times, samples) in all.iter_mut().zip(samples) {
        times.floats.extend(samples.timestamps);
    }
    Ok(all)
}

async fn histogram_times(block: &BlockReader, series: &[BlockSeries]) -> Result<Vec<SeriesTimes>> {
    let read = block.read_histograms(series).await?;
    let times = |(series, chunks): (&BlockSeries, Vec<Chunk>)| {
        let mut histograms = Vec::new();
        for chunk in chunks {
            let decoded = chunk.decode_histograms(TimeRange::ALL, &mut histograms);
            decoded.map_err(|e| block.samples.corrupt_samples(&series.labels, e))?;
        }
        Ok(SeriesTimes {
            histograms: histograms.into_iter().map(|(t, _)| t).collect(),
            ..SeriesTimes::default()
        })
    };
    series.iter().zip(read).map(times).collect()
}

async fn has_exemplars_of(block: &BlockReader, others: &[BlockReader]) -> Result<bool> {
    let mut wanted = exemplars_of(block).await?;
    for other in others {
        if wanted.is_empty() {
            return Ok(true);
        }
        for exemplar in exemplars_of(other).await? {
            wanted.remove(&exemplar);
        }
    }
    Ok(wanted.is_empty())
}

async fn exemplars_of(block: &BlockReader) -> Result<HashSet<Exact>> {
    let mut all = HashSet::new();
    let mut scan = block.scan_exemplars(Matchers::default(), TimeRange::ALL);
    while let Some(some) = scan.try_next().await? {
        for (labels, exemplars) in some {
            let exact = |e: Exemplar| (labels.clone(), e.t, e.v.to_bits(), e.labels);
            all.extend(exemplars.into_iter().map(exact));
        }
    }
    Ok(all)
}
