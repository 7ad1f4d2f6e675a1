//! Merges blocks: the map (series, timestamp) -> winner of all inputs, exactly.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt};
use koios_model::merge::{merge_sorted, settle_kinds, sort_and_dedup_histograms, sort_and_dedup_starts};
use koios_model::{Expiry, Histogram, Labels, Matchers, Metadata, Sample, TimeRange};

use crate::Result;
use crate::exemplar_merge::ExemplarMerge;
use crate::histograms_ahead::HistogramsAhead;
use crate::reader::{BlockReader, BlockSeries, SeriesCursor};
use crate::samples::{self, SeriesSamples};
use crate::writer::{BlockWriter, SeriesColumns};

/// Series whose labels are read ahead: as many as a page has.
const SERIES_AHEAD: usize = 2048;
/// Most rows of floats that are decoded together, unless one series has more: some pages, so that few are decoded twice.
const ROWS_AHEAD: u64 = 128 * 1024;

/// Samples of a block that count no more: those of matching series in a range of time.
#[derive(Clone, Debug)]
pub struct Deletion {
    /// All must hold.
    pub matchers: Matchers,
    /// Sample times, closed.
    pub range: TimeRange,
}

/// A block that is merged.
#[derive(Clone, Debug)]
pub struct MergeInput {
    /// The block.
    pub block: BlockReader,
    /// What of it is left out.
    pub deletions: Vec<Deletion>,
    /// What of it is left out because of its age.
    pub expiry: Expiry,
}

impl From<BlockReader> for MergeInput {
    fn from(block: BlockReader) -> Self {
        Self {
            block,
            deletions: Vec::new(),
            expiry: Expiry::default(),
        }
    }
}

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
    /// Start timestamps, each with the time of its sample, strictly ascending; the largest of each time.
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
    /// Samples after deletions and merging.
    pub samples_out: u64,
}

/// Merges whole blocks, series by series in label order; of each input some thousand series' labels and some pages of samples are
/// in memory at a time.
#[derive(Debug)]
pub struct BlockMerge {
    inputs: Vec<Input>,
    stats: MergeStats,
}

impl BlockMerge {
    /// Starts a merge.
    pub fn new(inputs: impl IntoIterator<Item = MergeInput>) -> Self {
        Self {
            inputs: inputs.into_iter().map(Input::new).collect(),
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
        let (mut buffer, mut starts) = (Vec::new(), Vec::new());
        for input in &mut self.inputs {
            if input.head.as_ref().is_none_or(|h| h.labels != merged.labels) {
                continue;
            }
            let Some(series) = input.head.take() else { continue };
            starts.clear();
            let mut samples = input.floats(&series, &mut starts).await?;
            let mut histograms = input.histograms(&series, &mut starts).await?;
            input.reader.check_starts(&series, &starts)?;
            self.stats.series_in += 1;
            self.stats.samples_in += (samples.len() + histograms.len()) as u64;
            for range in input.deleted(&series) {
                samples.retain(|s| !range.contains(s.t));
                histograms.retain(|(t, _)| !range.contains(*t));
                starts.retain(|(t, _)| !range.contains(*t));
            }
            merged.histograms.extend(histograms);
            merged.starts.append(&mut starts);
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

/// Writes merged series; keeps its columns from one to the next.
#[derive(Debug, Default)]
pub struct MergedWriter {
    timestamps: Vec<i64>,
    values: Vec<f64>,
}

impl MergedWriter {
    /// Writes a series to `out`; one without samples is left out.
    ///
    /// # Errors
    /// Those of [`BlockWriter::push_columns`].
    pub fn push(&mut self, series: &MergedSeries, out: &mut BlockWriter) -> Result<()> {
        self.timestamps.clear();
        self.values.clear();
        self.timestamps.extend(series.samples.iter().map(|s| s.t));
        self.values.extend(series.samples.iter().map(|s| s.v));
        let columns = SeriesColumns {
            timestamps: &self.timestamps,
            values: &self.values,
            histograms: &series.histograms,
            starts: &series.starts,
        };
        out.push_columns(&series.labels, series.metadata.as_deref(), columns)
    }
}

/// Merges `inputs` into `out`. Where an input may have start timestamps, so must the output.
///
/// # Errors
/// Those of [`BlockMerge::next`] and [`MergedWriter::push`].
pub async fn merge(
    inputs: impl IntoIterator<Item = MergeInput>,
    out: &mut BlockWriter,
) -> Result<MergeStats> {
    let inputs: Vec<MergeInput> = inputs.into_iter().collect();
    let mut exemplars = ExemplarMerge::new(&inputs);
    let (mut merge, mut writer) = (BlockMerge::new(inputs), MergedWriter::default());
    while let Some(series) = merge.next().await? {
        writer.push(&series, out)?;
    }
    while let Some((labels, of_series)) = exemplars.next(None).await? {
        out.push_exemplars(&labels, &of_series)?;
    }
    Ok(merge.stats())
}

/// One block being read from start to end.
struct Input {
    reader: BlockReader,
    deletions: Vec<Deletion>,
    expiry: Expiry,
    cursor: SeriesCursor,
    pending: VecDeque<BlockSeries>,
    samples: SamplesAhead,
    histograms: HistogramsAhead,
    head: Option<BlockSeries>,
}

/// The floats of the next series of a block.
#[derive(Default)]
struct SamplesAhead {
    stream: Option<BoxStream<'static, Result<SeriesSamples>>>,
    /// Series of it that were not taken yet.
    left: usize,
}

impl SamplesAhead {
    /// Those of a series, which the `pending` ones follow.
    async fn next(
        &mut self,
        reader: &BlockReader,
        series: &BlockSeries,
        pending: &VecDeque<BlockSeries>,
    ) -> Option<Result<SeriesSamples>> {
        if self.left == 0 {
            let (mut together, mut rows) = (vec![series.clone()], u64::from(series.row_count));
            for next in pending.iter().filter(|s| s.row_count > 0) {
                rows += u64::from(next.row_count);
                if rows > ROWS_AHEAD {
                    break;
                }
                together.push(next.clone());
            }
            self.left = together.len();
            let table = reader.samples_table();
            self.stream = Some(samples::stream(table, together, TimeRange::ALL, 1));
        }
        self.left -= 1;
        self.stream.as_mut()?.next().await
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
    fn new(input: MergeInput) -> Self {
        let MergeInput {
            block: reader,
            deletions,
            expiry,
        } = input;
        Self {
            cursor: reader.series_cursor(Matchers::default(), TimeRange::ALL),
            reader,
            deletions,
            expiry,
            pending: VecDeque::new(),
            samples: SamplesAhead::default(),
            histograms: HistogramsAhead::default(),
            head: None,
        }
    }

    /// When samples of a series are deleted.
    fn deleted<'a>(&'a self, series: &'a BlockSeries) -> impl Iterator<Item = TimeRange> + 'a {
        let of_series =
            |d: &&Deletion| d.range.overlaps(&series.range) && d.matchers.matches(series.labels.as_ref());
        let old = self.expiry.gone(series.labels.as_ref());
        self.deletions
            .iter()
            .filter(of_series)
            .map(|d| d.range)
            .chain(old)
    }

    /// Makes `head` the next series, unless the block is at its end.
    async fn fill(&mut self) -> Result<()> {
        while self.head.is_none() {
            if let Some(next) = self.pending.pop_front() {
                self.head = Some(next);
                return Ok(());
            }
            let Some(batch) = self.cursor.next(SERIES_AHEAD).await? else {
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
            self.histograms.go_on_with(&batch);
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

    async fn floats(&mut self, series: &BlockSeries, starts: &mut Vec<(i64, i64)>) -> Result<Vec<Sample>> {
        if series.row_count == 0 {
            return Ok(Vec::new());
        }
        let lost = || {
            self.reader
                .samples_part()
                .corrupt(format!("it lacks the samples of {}", series.labels))
        };
        let next = self.samples.next(&self.reader, series, &self.pending).await;
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
