//! Merges blocks: the map (series, timestamp) -> winner of all inputs, exactly.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use koios_chunk::Chunk;
use koios_model::merge::{merge_sorted, settle_kinds, sort_and_dedup_histograms, sort_and_dedup_starts};
use koios_model::{Histogram, Labels, Metadata, Sample, TimeRange};

use crate::Result;
use crate::reader::{BlockReader, BlockSeries};
use crate::samples::SeriesSamples;
use crate::writer::{BlockWriter, SeriesColumns};

/// Most histograms that are read ahead, unless one series has more.
const HISTOGRAMS_AHEAD: u32 = 16 * 1024;

/// One series of a merge.
#[derive(Debug)]
pub struct MergedSeries {
    /// The labels.
    pub labels: Labels,
    /// What is known of the metric: of several inputs the greatest, so that the order of inputs does not matter.
    pub metadata: Option<Arc<Metadata>>,
    /// Floats, strictly ascending in time; the winner of each timestamp.
    pub samples: Vec<Sample>,
    /// Native histograms, strictly ascending in time; none where a float is.
    pub histograms: Vec<(i64, Arc<Histogram>)>,
    /// Start timestamps, each with the time of its sample, strictly ascending; the largest of each time. There may be some
    /// of samples that `edit` dropped.
    pub starts: Vec<(i64, i64)>,
}

/// What a merge took in and gave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergeStats {
    /// Series of all inputs.
    pub series_in: u64,
    /// Samples of all inputs.
    pub samples_in: u64,
    /// Different series.
    pub series_out: u64,
    /// Samples after merging and after the caller's edits.
    pub samples_out: u64,
}

/// Merges whole blocks, series by series in label order; a few row groups of each input are in memory at a time.
#[derive(Debug)]
pub struct BlockMerge {
    inputs: Vec<Input>,
    stats: MergeStats,
}

impl BlockMerge {
    /// Starts a merge.
    pub fn new(inputs: &[BlockReader]) -> Self {
        Self {
            inputs: inputs.iter().map(Input::new).collect(),
            stats: MergeStats::default(),
        }
    }

    /// The next series, or `None` at the end.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`] of any input; the merge is over then.
    pub async fn next(&mut self) -> Result<Option<MergedSeries>> {
        for input in &mut self.inputs {
            input.fill().await?;
        }
        let Some(labels) = self
            .inputs
            .iter()
            .filter_map(|i| i.head.as_ref())
            .map(|h| &h.labels)
            .min()
        else {
            return Ok(None);
        };
        let labels = labels.clone();
        let mut merged = MergedSeries {
            labels,
            metadata: None,
            samples: Vec::new(),
            histograms: Vec::new(),
            starts: Vec::new(),
        };
        let mut buffer = Vec::new();
        for input in &mut self.inputs {
            if input.head.as_ref().is_none_or(|h| h.labels != merged.labels) {
                continue;
            }
            let Some(series) = input.head.take() else { continue };
            let samples = input.samples(&series, &mut merged.starts).await?;
            let histograms = input.histograms(&series, &mut merged.starts).await?;
            self.stats.series_in += 1;
            self.stats.samples_in += (samples.len() + histograms.len()) as u64;
            merged.histograms.extend(histograms);
            merged.metadata = merged.metadata.max(series.metadata);
            if merged.samples.is_empty() {
                merged.samples = samples;
            } else {
                merge_sorted(&merged.samples, &samples, &mut buffer);
                std::mem::swap(&mut merged.samples, &mut buffer);
            }
        }
        sort_and_dedup_histograms(&mut merged.histograms);
        settle_kinds(&mut merged.samples, &mut merged.histograms);
        sort_and_dedup_starts(&mut merged.starts);
        self.stats.series_out += 1;
        self.stats.samples_out += (merged.samples.len() + merged.histograms.len()) as u64;
        Ok(Some(merged))
    }

    /// What was merged so far.
    pub fn stats(&self) -> MergeStats {
        self.stats
    }
}

/// Merges `inputs` into `out`. `edit` sees each merged series before it is written and may drop samples (tombstones,
/// retention) or, by emptying both, the series. Where an input may have start timestamps, so must the output.
///
/// # Errors
/// Those of [`BlockMerge::next`] and [`BlockWriter::push_series`].
pub async fn merge(
    inputs: &[BlockReader],
    out: &mut BlockWriter,
    mut edit: impl FnMut(&mut MergedSeries),
) -> Result<MergeStats> {
    let mut merge = BlockMerge::new(inputs);
    let mut written = 0u64;
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    while let Some(mut series) = merge.next().await? {
        edit(&mut series);
        timestamps.clear();
        values.clear();
        timestamps.extend(series.samples.iter().map(|s| s.t));
        values.extend(series.samples.iter().map(|s| s.v));
        written += (series.samples.len() + series.histograms.len()) as u64;
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &series.histograms,
            starts: &series.starts,
        };
        out.push_columns(&series.labels, series.metadata.as_deref(), columns)?;
    }
    Ok(MergeStats {
        samples_out: written,
        ..merge.stats()
    })
}

/// One block being read from start to end.
struct Input {
    reader: BlockReader,
    batches: BoxStream<'static, Result<Vec<BlockSeries>>>,
    pending: VecDeque<BlockSeries>,
    samples: Option<BoxStream<'static, Result<SeriesSamples>>>,
    histograms: HistogramsAhead,
    head: Option<BlockSeries>,
}

/// The histograms of the next series of a block.
#[derive(Default)]
struct HistogramsAhead {
    /// Series that have some, in order.
    waiting: VecDeque<BlockSeries>,
    read: VecDeque<Vec<Chunk>>,
}

impl HistogramsAhead {
    fn new(series: &[BlockSeries]) -> Self {
        Self {
            waiting: series.iter().filter(|s| s.histogram_count > 0).cloned().collect(),
            read: VecDeque::new(),
        }
    }

    /// Those of the next series that has some.
    async fn next(&mut self, reader: &BlockReader) -> Result<Vec<Chunk>> {
        if self.read.is_empty() {
            let (mut batch, mut rows) = (Vec::new(), 0);
            while let Some(series) = self.waiting.front()
                && (batch.is_empty() || rows + series.histogram_count <= HISTOGRAMS_AHEAD)
            {
                rows += series.histogram_count;
                batch.extend(self.waiting.pop_front());
            }
            self.read = reader.read_histograms(&batch).await?.into();
        }
        Ok(self.read.pop_front().unwrap_or_default())
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("block", &self.reader.meta().block)
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl Input {
    fn new(reader: &BlockReader) -> Self {
        Self {
            reader: reader.clone(),
            batches: reader.scan_series(),
            pending: VecDeque::new(),
            samples: None,
            histograms: HistogramsAhead::default(),
            head: None,
        }
    }

    /// Makes `head` the next series, unless the block is at its end.
    async fn fill(&mut self) -> Result<()> {
        while self.head.is_none() {
            if let Some(next) = self.pending.pop_front() {
                self.head = Some(next);
                return Ok(());
            }
            let Some(batch) = self.batches.try_next().await? else {
                return Ok(());
            };
            if batch
                .windows(2)
                .any(|w| w[0].labels.cmp(&w[1].labels) != Ordering::Less)
            {
                return Err(self
                    .reader
                    .samples_part()
                    .corrupt("its series are not in label order"));
            }
            // Samples follow in the same order, so one stream per batch serves all its series.
            let with_floats = batch.iter().filter(|s| s.row_count > 0).cloned().collect();
            self.samples = Some(self.reader.stream_samples(with_floats, TimeRange::ALL));
            self.histograms = HistogramsAhead::new(&batch);
            self.pending = batch.into();
        }
        Ok(())
    }

    async fn histograms(
        &mut self,
        series: &BlockSeries,
        starts: &mut Vec<(i64, i64)>,
    ) -> Result<Vec<(i64, Arc<Histogram>)>> {
        let mut histograms = Vec::new();
        if series.histogram_count > 0 {
            for chunk in self.histograms.next(&self.reader).await? {
                let decoded = chunk.decode_histograms(TimeRange::ALL, &mut histograms);
                let decoded = decoded.and_then(|()| chunk.decode_starts(TimeRange::ALL, starts));
                decoded.map_err(|e| self.reader.samples_part().corrupt_samples(&series.labels, e))?;
            }
        }
        Ok(histograms)
    }

    async fn samples(&mut self, series: &BlockSeries, starts: &mut Vec<(i64, i64)>) -> Result<Vec<Sample>> {
        if series.row_count == 0 {
            return Ok(Vec::new());
        }
        let lost = || {
            self.reader
                .samples_part()
                .corrupt(format!("it lacks the samples of {}", series.labels))
        };
        let next = match &mut self.samples {
            Some(samples) => samples.next().await,
            None => None,
        };
        let columns = next.ok_or_else(lost)??;
        starts.extend_from_slice(&columns.starts);
        Ok(columns
            .timestamps
            .iter()
            .zip(&columns.values)
            .map(|(&t, &v)| Sample { t, v })
            .collect())
    }
}
