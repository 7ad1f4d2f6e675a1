//! Writes a block, series by series, in label order.

use std::sync::Arc;

use bytes::Bytes;
use koios_model::summary::Downsampled;
use koios_model::{Exemplar, Histogram, Labels, Metadata, PartitionId, TenantId, TimeRange};

use crate::exemplars::ExemplarsWriter;
use crate::histograms_table::HistogramsWriter;
use crate::meta::{
    EXEMPLARS_PART, FORMAT_DOWNSAMPLED, FORMAT_FLOATS, FORMAT_HISTOGRAMS, FORMAT_STARTS, FORMAT_TIMES,
    HISTOGRAMS_PART, ReadFrom, SAMPLES_PART, SERIES_PART, TIMES_PART, samples_part,
};
use crate::part_writer::encode_error;
use crate::samples_table::SamplesWriter;
use crate::series_table::{SeriesRow, encode_series};
use crate::small_cells::part_meta;
use crate::summaries_table::SummariesWriter;
use crate::times_table::TimesWriter;
use crate::{BlockId, BlockMeta, Error, Result};

/// What a block is to be, beside its series.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// The block's name.
    pub block: BlockId,
    /// Whose samples.
    pub tenant: TenantId,
    /// The partitions they come from.
    pub partitions: Vec<PartitionId>,
    /// The epoch the writer acts under.
    pub epoch: u64,
    /// The window; samples outside of it are refused.
    pub window: TimeRange,
    /// 0 for samples as sent, else how much time a summary is of, milliseconds: 5 minutes or an hour.
    pub resolution_ms: i64,
    /// 0 for a block cut from a head, else one more than its highest source.
    pub level: u32,
    /// `(index, of)` when the tenant's series are split over several blocks, else `(0, 1)`.
    pub split: (u32, u32),
    /// The blocks it is merged from.
    pub sources: Vec<BlockId>,
    /// The block that it is written from again, where `sources` are those of that block.
    pub rewrites: Option<BlockId>,
    /// The manifest version up to which tombstones are applied.
    pub clean_up_to: u64,
    /// Whether samples may come with start timestamps; if none can, the block has no column for them.
    pub starts: bool,
    /// Whether summaries may come with sums of native histograms; if none can, the block has no column for them.
    pub histogram_sums: bool,
    /// How it is laid out.
    pub layout: Layout,
}

impl BlockOptions {
    /// Options of a block cut from a head: level 0, all series, default layout.
    pub fn new(block: BlockId, tenant: TenantId, window: TimeRange) -> Self {
        Self {
            block,
            tenant,
            partitions: Vec::new(),
            epoch: 0,
            window,
            resolution_ms: 0,
            level: 0,
            split: (0, 1),
            sources: Vec::new(),
            rewrites: None,
            clean_up_to: 0,
            starts: false,
            histogram_sums: false,
            layout: Layout::default(),
        }
    }
}

/// What trades bytes stored against bytes read per query; docs/decisions/0001 and 0020 have the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Most rows in a page of samples.
    pub page_rows: usize,
    /// Most rows in a row group of samples; only a single larger series exceeds it, and is split.
    pub group_rows: usize,
    /// zstd level.
    pub zstd_level: i32,
    /// Whether times that several series have are stored once, which versions before format 5 cannot read. Downsampled blocks
    /// never do.
    pub shared_times: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            page_rows: 16 * 1024,
            group_rows: 512 * 1024,
            zstd_level: 1,
            shared_times: true,
        }
    }
}

impl Layout {
    /// For compacted blocks, which are written once and kept for years.
    pub fn compacted() -> Self {
        Self {
            zstd_level: 3,
            ..Self::default()
        }
    }
}

/// A finished block.
#[derive(Clone, Debug)]
pub struct BlockParts {
    /// What it is.
    pub meta: BlockMeta,
    /// Its parts by name, without `meta.json` (see [`BlockMeta::to_json`]).
    pub parts: Vec<(String, Bytes)>,
}

/// The samples of one series, as a [`BlockWriter`] takes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeriesColumns<'a> {
    /// Times of floats, strictly ascending.
    pub timestamps: &'a [i64],
    /// The floats, as many.
    pub values: &'a [f64],
    /// Native histograms with their times, strictly ascending; at none of them is there a float.
    pub histograms: &'a [(i64, Arc<Histogram>)],
    /// Start timestamps, each with the time of its sample of either kind, strictly ascending; those of other times are left
    /// out. Only where the block was said to have some.
    pub starts: &'a [(i64, i64)],
}

/// Writes one block.
///
/// Until it is finished it holds what is encoded, up to 64 Ki rows of each part that are not yet, and, where series share times,
/// the runs of times to compare with: at most 64 MiB of them, and 4 MiB of what is known of others.
#[derive(Debug)]
pub struct BlockWriter {
    options: BlockOptions,
    rows: Vec<SeriesRow>,
    samples: SamplesWriter,
    /// Where series share them.
    times: Option<Box<TimesWriter>>,
    /// Of a downsampled block, in place of the samples.
    summaries: Option<Box<SummariesWriter>>,
    /// From the first histogram on.
    histograms: Option<HistogramsWriter>,
    /// From the first exemplar on.
    exemplars: Option<ExemplarsWriter>,
    range: Option<TimeRange>,
}

impl BlockWriter {
    /// Starts a block.
    ///
    /// # Errors
    /// [`Error::Encode`] when the layout is impossible.
    pub fn new(options: BlockOptions) -> Result<Self> {
        let BlockOptions { block, layout, .. } = options;
        let shared = options.resolution_ms == 0 && layout.shared_times;
        let samples = SamplesWriter::new(block, layout, shared, options.starts)?;
        let times = shared
            .then(|| TimesWriter::new(block, layout).map(Box::new))
            .transpose()?;
        let summaries = match samples_part(options.resolution_ms) {
            Some(SAMPLES_PART) => None,
            Some(part) => Some(Box::new(SummariesWriter::new(
                options.block,
                part,
                options.layout,
                options.histogram_sums,
            )?)),
            None => {
                let reason = format!("there is no resolution of {} ms", options.resolution_ms);
                return Err(encode_error(options.block, SAMPLES_PART, reason));
            }
        };
        Ok(Self {
            summaries,
            options,
            rows: Vec::new(),
            samples,
            times,
            histograms: None,
            exemplars: None,
            range: None,
        })
    }

    /// Appends a series with its samples; one without samples is left out.
    ///
    /// # Errors
    /// [`Error::Input`] unless labels come in strictly ascending order and times strictly ascend inside the window.
    pub fn push_series(
        &mut self,
        labels: &Labels,
        metadata: Option<&Metadata>,
        timestamps: &[i64],
        values: &[f64],
    ) -> Result<()> {
        let columns = SeriesColumns {
            timestamps,
            values,
            ..SeriesColumns::default()
        };
        self.push_columns(labels, metadata, columns)
    }

    /// Appends a series with all that is known of its samples. One without any is left out.
    ///
    /// # Errors
    /// As [`Self::push_series`], when there are starts that the block was not said to have, and unless
    /// [all histograms can be kept](Histogram::can_be_kept).
    pub fn push_columns(
        &mut self,
        labels: &Labels,
        metadata: Option<&Metadata>,
        columns: SeriesColumns<'_>,
    ) -> Result<()> {
        let SeriesColumns {
            timestamps,
            values,
            histograms,
            starts,
        } = columns;
        let ends = |first: Option<i64>, last: Option<i64>| first.zip(last).map(|(a, b)| TimeRange::new(a, b));
        let of_floats = ends(timestamps.first().copied(), timestamps.last().copied());
        let of_histograms = ends(histograms.first().map(|h| h.0), histograms.last().map(|h| h.0));
        let both = of_floats.zip(of_histograms).map(|(a, b)| a.union(&b));
        let Some(range) = both.or(of_floats).or(of_histograms) else {
            return Ok(());
        };
        self.check(labels, timestamps, values, range)?;
        if self.summaries.is_some() {
            return Err(self.refused(labels, "it is not downsampled, which the block is"));
        }
        if !starts.is_empty() && !self.options.starts {
            return Err(self.refused(
                labels,
                "it has start timestamps, for which the block has no column",
            ));
        }
        if !starts.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(self.refused(labels, "the times of its start timestamps must strictly ascend"));
        }
        if !histograms.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(self.refused(labels, "the times of its histograms must strictly ascend"));
        }
        self.check_histograms(labels, histograms.iter().map(|(_, h)| h))?;
        let id =
            u32::try_from(self.rows.len()).map_err(|_| self.refused(labels, "the block has 2^32 series"))?;
        let number =
            |len: usize| u32::try_from(len).map_err(|_| self.refused(labels, "it has over 2^32 samples"));
        let (count, histogram_count) = (number(timestamps.len())?, number(histograms.len())?);
        let placed = self
            .times
            .as_mut()
            .map(|times| times.push(timestamps))
            .transpose()?;
        let first_row = self
            .samples
            .push(id, timestamps, values, starts, placed.as_ref())?;
        let placed = placed.unwrap_or_default();
        let histogram_first_row = self.push_histograms(id, histograms, starts)?;
        self.range = Some(self.range.map_or(range, |r| r.union(&range)));
        self.rows.push(SeriesRow {
            labels: labels.clone(),
            metadata: metadata.filter(|m| **m != Metadata::default()).cloned(),
            first_row,
            count,
            times_last_row: placed.last_row,
            times_row_count: placed.row_count,
            histogram_first_row,
            histogram_count,
            range,
        });
        Ok(())
    }

    /// Appends a series to a downsampled block. One of which nothing is kept is left out.
    ///
    /// # Errors
    /// [`Error::Input`] unless labels come in strictly ascending order, and summaries ascend inside the window and do not
    /// overlap, and unless [all histograms and sums can be kept](Histogram::can_be_kept).
    pub fn push_downsampled(
        &mut self,
        labels: &Labels,
        metadata: Option<&Metadata>,
        kept: &Downsampled,
    ) -> Result<()> {
        let Downsampled {
            summaries,
            histograms,
        } = kept;
        let Some((first, last)) = summaries.first().zip(summaries.last()) else {
            return Ok(());
        };
        let range = TimeRange::new(first.first_t, last.last_t);
        self.check(labels, &[], &[], range)?;
        if !summaries.is_sorted_by(|a, b| a.last_t < b.first_t) {
            return Err(self.refused(labels, "its summaries must ascend and not overlap"));
        }
        if self.summaries.is_none() {
            return Err(self.refused(labels, "it is downsampled, which the block is not"));
        }
        if !histograms.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(self.refused(labels, "the times of its histograms must strictly ascend"));
        }
        let has_sums = summaries.iter().any(|s| s.histogram_sum.is_some());
        if has_sums && !self.options.histogram_sums {
            return Err(self.refused(
                labels,
                "it has sums of histograms, for which the block has no column",
            ));
        }
        let sums = summaries.iter().filter_map(|s| s.histogram_sum.as_ref());
        self.check_histograms(labels, histograms.iter().map(|(_, h)| h).chain(sums))?;
        let (id, count, histogram_count) = (
            self.number(labels, self.rows.len())?,
            self.number(labels, summaries.len())?,
            self.number(labels, histograms.len())?,
        );
        let first_row = match &mut self.summaries {
            Some(writer) => writer.push(id, summaries)?,
            None => 0,
        };
        let histogram_first_row = self.push_histograms(id, histograms, &[])?;
        self.range = Some(self.range.map_or(range, |r| r.union(&range)));
        self.rows.push(SeriesRow {
            labels: labels.clone(),
            metadata: metadata.filter(|m| **m != Metadata::default()).cloned(),
            first_row,
            count,
            times_last_row: 0,
            times_row_count: 0,
            histogram_first_row,
            histogram_count,
            range,
        });
        Ok(())
    }

    /// Appends histograms of a series; gives the first one's row.
    fn push_histograms(
        &mut self,
        id: u32,
        histograms: &[(i64, Arc<Histogram>)],
        starts: &[(i64, i64)],
    ) -> Result<u64> {
        match &mut self.histograms {
            Some(writer) => writer.push(id, histograms, starts),
            None if histograms.is_empty() => Ok(0),
            none => {
                let BlockOptions {
                    block,
                    layout,
                    starts: has_starts,
                    ..
                } = self.options;
                let writer = HistogramsWriter::new(block, layout, has_starts)?;
                none.insert(writer).push(id, histograms, starts)
            }
        }
    }

    /// A number of rows as blocks have them.
    fn number(&self, labels: &Labels, len: usize) -> Result<u32> {
        u32::try_from(len).map_err(|_| self.refused(labels, "the block would have 2^32 rows of it"))
    }

    /// Appends exemplars of a series, whether it has samples here or not; a block may have nothing else.
    ///
    /// # Errors
    /// [`Error::Input`] unless series come in strictly ascending label order, apart from those that have samples.
    pub fn push_exemplars(&mut self, labels: &Labels, exemplars: &[Exemplar]) -> Result<()> {
        if exemplars.is_empty() {
            return Ok(());
        }
        let last = self.exemplars.as_ref().and_then(ExemplarsWriter::last);
        if last.is_some_and(|last| last >= labels) {
            return Err(self.refused(
                labels,
                "exemplars must come in strictly ascending label order of their series",
            ));
        }
        match &mut self.exemplars {
            Some(writer) => writer.push(labels, exemplars)?,
            none => {
                let writer = ExemplarsWriter::new(self.options.block, self.options.layout)?;
                none.insert(writer).push(labels, exemplars)?;
            }
        }
        for e in exemplars {
            let at = TimeRange::new(e.t, e.t);
            self.range = Some(self.range.map_or(at, |r| r.union(&at)));
        }
        Ok(())
    }

    /// The last series that was taken.
    pub fn last_series(&self) -> Option<&Labels> {
        self.rows.last().map(|row| &row.labels)
    }

    fn check(&self, labels: &Labels, timestamps: &[i64], values: &[f64], range: TimeRange) -> Result<()> {
        if self.rows.last().is_some_and(|last| last.labels >= *labels) {
            return Err(self.refused(labels, "series must come in strictly ascending label order"));
        }
        if timestamps.len() != values.len() {
            return Err(self.refused(labels, "it has unequal numbers of timestamps and values"));
        }
        if !timestamps.is_sorted_by(|a, b| a < b) {
            return Err(self.refused(labels, "its timestamps must strictly ascend"));
        }
        let window = self.options.window;
        if range.min < window.min || range.max > window.max {
            return Err(self.refused(labels, "it has samples outside of the block's window"));
        }
        Ok(())
    }

    /// Refuses what no reader would take.
    fn check_histograms<'a>(
        &self,
        labels: &Labels,
        mut histograms: impl Iterator<Item = &'a Arc<Histogram>>,
    ) -> Result<()> {
        match histograms.all(|h| h.can_be_kept()) {
            true => Ok(()),
            false => Err(self.refused(
                labels,
                "it has a histogram whose buckets do not ascend or are too many, or of no such schema",
            )),
        }
    }

    fn refused(&self, labels: &Labels, reason: &'static str) -> Error {
        Error::Input {
            block: self.options.block,
            series: labels.to_string(),
            reason,
        }
    }

    /// How many series were taken.
    pub fn series_count(&self) -> usize {
        self.rows.len()
    }

    /// How many samples were taken, histograms included.
    pub fn sample_count(&self) -> u64 {
        self.float_rows() + self.histograms.as_ref().map_or(0, HistogramsWriter::rows)
    }

    fn float_rows(&self) -> u64 {
        self.summaries
            .as_ref()
            .map_or_else(|| self.samples.rows(), |summaries| summaries.rows())
    }

    /// Roughly the encoded size so far, so that the caller can end the block and start another.
    pub fn encoded_bytes(&self) -> usize {
        self.samples.encoded_bytes()
            + self.times.as_ref().map_or(0, |times| times.encoded_bytes())
            + self
                .summaries
                .as_ref()
                .map_or(0, |summaries| summaries.encoded_bytes())
            + self
                .histograms
                .as_ref()
                .map_or(0, HistogramsWriter::encoded_bytes)
            + self.exemplars.as_ref().map_or(0, ExemplarsWriter::encoded_bytes)
    }

    /// Finishes the block; `None` when neither a sample nor an exemplar was pushed.
    ///
    /// # Errors
    /// [`Error::Encode`] only.
    pub fn finish(self) -> Result<Option<BlockParts>> {
        let Some(range) = self.range else {
            return Ok(None);
        };
        let samples_in_all = self.sample_count();
        let options = self.options;
        let sample_rows = self
            .summaries
            .as_ref()
            .map_or_else(|| self.samples.rows(), |summaries| summaries.rows());
        let (samples_part, samples) = match self.summaries {
            Some(summaries) => summaries.finish()?,
            None => (SAMPLES_PART, self.samples.finish()?),
        };
        let series = encode_series(options.block, &self.rows, options.layout, self.times.is_some())?;
        let mut part_metas = vec![
            part_meta(SERIES_PART, self.rows.len() as u64, &series),
            part_meta(samples_part, sample_rows, &samples),
        ];
        let mut parts = vec![
            (SERIES_PART.to_owned(), series),
            (samples_part.to_owned(), samples),
        ];
        let mut format = FORMAT_FLOATS;
        let shared = self.times.is_some();
        if let Some(times) = self.times {
            let rows = times.rows();
            let bytes = times.finish()?;
            part_metas.push(part_meta(TIMES_PART, rows, &bytes));
            parts.push((TIMES_PART.to_owned(), bytes));
        }
        if let Some(histograms) = self.histograms {
            let rows = histograms.rows();
            let bytes = histograms.finish()?;
            part_metas.push(part_meta(HISTOGRAMS_PART, rows, &bytes));
            parts.push((HISTOGRAMS_PART.to_owned(), bytes));
            format = FORMAT_HISTOGRAMS;
        }
        if let Some(exemplars) = self.exemplars {
            let rows = exemplars.rows();
            let bytes = exemplars.finish()?;
            part_metas.push(part_meta(EXEMPLARS_PART, rows, &bytes));
            parts.push((EXEMPLARS_PART.to_owned(), bytes));
        }
        if options.starts {
            format = FORMAT_STARTS;
        }
        if options.resolution_ms != 0 {
            format = FORMAT_DOWNSAMPLED;
        } else if shared {
            format = FORMAT_TIMES;
        }
        let meta = BlockMeta {
            format,
            block: options.block,
            tenant: options.tenant,
            partitions: options.partitions,
            epoch: options.epoch,
            range,
            window: options.window,
            resolution_ms: options.resolution_ms,
            level: options.level,
            split: options.split,
            starts: shared && options.starts,
            series: self.rows.len() as u64,
            samples: samples_in_all,
            parts: part_metas,
            sources: options.sources,
            rewrites: options.rewrites,
            clean_up_to: options.clean_up_to,
            writer: concat!("koios ", env!("CARGO_PKG_VERSION")).to_owned(),
            read_from: ReadFrom::default(),
        };
        Ok(Some(BlockParts { meta, parts }))
    }
}
