//! Whether blocks have what another holds, of which only the times need be readable.

use std::collections::{HashSet, VecDeque};
use std::iter;
use std::ops::Range;

use futures::TryStreamExt;
use koios_chunk::Chunk;
use koios_model::{Exemplar, Labels, Matchers, TimeRange};

use crate::Result;
use crate::reader::{BlockReader, BlockSeries, SeriesCursor};

/// Series that are looked up together.
const SERIES_AT_ONCE: usize = 256;
/// Rows of a block whose times are compared together: some ten MiB of them.
const ROWS_AT_ONCE: u64 = 1 << 20;

/// An exemplar of a series, bit-exact.
type Exact = (Labels, i64, u64, Labels);

/// When the samples of a series are, by kind, ascending.
#[derive(Debug, Default)]
struct SeriesTimes {
    floats: Vec<i64>,
    histograms: Vec<i64>,
}

impl SeriesTimes {
    fn remove(&mut self, others: &Self) {
        let remove = |from: &mut Vec<i64>, times: &[i64]| from.retain(|t| times.binary_search(t).is_err());
        remove(&mut self.floats, &others.floats);
        remove(&mut self.histograms, &others.histograms);
    }

    fn is_empty(&self) -> bool {
        self.floats.is_empty() && self.histograms.is_empty()
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
        for run in runs(&series, ROWS_AT_ONCE) {
            let mut missing = times_at_most(block, run).await?;
            for side in &mut sides {
                side.remove_from(run, &mut missing).await?;
            }
            if !missing.iter().all(SeriesTimes::is_empty) {
                return Ok(false);
            }
        }
    }
    has_exemplars_of(block, others).await
}

/// Neighbours that have at most so many rows together; one that has more is by itself.
fn runs(series: &[BlockSeries], rows_max: u64) -> impl Iterator<Item = &[BlockSeries]> {
    let mut left = series;
    iter::from_fn(move || {
        let mut rows = 0u64;
        let fits = |series: &&BlockSeries| {
            let of_times = u64::from(series.times_row_count);
            rows = rows.saturating_add(series.rows_as_floats().max(of_times));
            rows <= rows_max
        };
        let count = left.iter().take_while(fits).count().max(1);
        let (run, rest) = left.split_at_checked(count)?;
        left = rest;
        Some(run)
    })
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

    /// Removes the times that it has from those that are missing of some series, which are asked for as by [`Self::same`].
    async fn remove_from(&mut self, wanted: &[BlockSeries], missing: &mut [SeriesTimes]) -> Result<()> {
        let same = self.same(wanted).await?;
        for run in runs(&same, ROWS_AT_ONCE) {
            for (series, times) in run.iter().zip(times_of(&self.reader, run).await?) {
                let at = wanted.binary_search_by(|w| w.labels.cmp(&series.labels));
                if let Some(missing) = at.ok().and_then(|at| missing.get_mut(at)) {
                    missing.remove(&times);
                }
            }
        }
        Ok(())
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
            of_series.floats = of_span.to_vec();
        }
    }
    Ok(all)
}

/// When the samples of some series are.
async fn times_of(block: &BlockReader, series: &[BlockSeries]) -> Result<Vec<SeriesTimes>> {
    let mut all = histogram_times(block, series).await?;
    let has_floats = |series: &BlockSeries| series.row_count > 0;
    let with = series.iter().filter(|s| has_floats(s)).cloned().collect();
    let mut floats = block.stream_samples(with, TimeRange::ALL);
    for (times, series) in all.iter_mut().zip(series).filter(|(_, s)| has_floats(s)) {
        let samples = floats.try_next().await?;
        let lost = || {
            block
                .samples
                .corrupt(format!("it lacks the samples of {}", series.labels))
        };
        times.floats = samples.ok_or_else(lost)?.timestamps;
    }
    Ok(all)
}

/// When the histograms of some series are.
async fn histogram_times(block: &BlockReader, series: &[BlockSeries]) -> Result<Vec<SeriesTimes>> {
    let read = block.read_histograms(series).await?;
    let mut decoded = Vec::new();
    let times = |(series, chunks): (&BlockSeries, Vec<Chunk>)| {
        let mut histograms = Vec::new();
        // Decoded they take many times as much.
        for chunk in chunks {
            let done = chunk.decode_histograms(TimeRange::ALL, &mut decoded);
            done.map_err(|e| block.samples.corrupt_samples(&series.labels, e))?;
            histograms.extend(decoded.drain(..).map(|(t, _)| t));
        }
        Ok(SeriesTimes {
            histograms,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_taken_until_their_rows_reach_a_bound() {
        let series = |row_count, times_row_count, histogram_count| BlockSeries {
            labels: Labels::default(),
            id: 0,
            first_row: 0,
            row_count,
            times_last_row: 0,
            times_row_count,
            histogram_first_row: 0,
            histogram_count,
            range: TimeRange::ALL,
            metadata: None,
        };
        let all = [
            series(50, 0, 0),
            series(50, 60, 0),
            series(1, 0, 0),
            // A histogram takes as much as some floats.
            series(0, 0, 10),
            series(5000, 0, 0),
            series(1, 0, 0),
            series(1, 99, 0),
        ];
        let lens = |rows_max| -> Vec<usize> { runs(&all, rows_max).map(<[_]>::len).collect() };
        assert_eq!(lens(100), [1, 2, 1, 1, 2]);
        assert_eq!(lens(0), [1; 7]);
        assert_eq!(lens(u64::MAX), [7]);
        assert_eq!(runs(&[], 100).count(), 0);
    }
}
