//! Opens a block and finds its series.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use koios_chunk::Chunk;
use koios_model::{Labels, Matchers, Metadata, TimeRange};
use koios_runtime::Cpu;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::cache::BlockCache;
use crate::chunk_read::{ChunkRead, HISTOGRAM_ROWS, Summaries};
use crate::exemplars::{self, SeriesExemplars};
use crate::group_rows::GroupRows;
use crate::held_cells::HeldCells;
use crate::histogram_rows::read_histograms;
use crate::meta::{
    BlockMeta, EXEMPLARS_PART, HISTOGRAMS_PART, META_PART, SERIES_PART, TIMES_PART, samples_part,
};
use crate::part::PartFile;
use crate::row_chunk::RowChunk;
use crate::samples::{self, SamplesTable, SeriesSamples};
use crate::series::{FoundRows, SeriesTable, VALUE_BYTES, label_column, looked_up};
use crate::source::RangeRead;
use crate::strings::StringList;
use crate::summary_rows::read_summaries;
use crate::tail::Tail;
use crate::times::TimesTable;
use crate::{Error, Result};

/// Row groups that are fetched and decoded at the same time by one reader.
pub(crate) const GROUPS_AHEAD: usize = 4;
/// What making a series of a row costs, as bytes looked up.
const BUILT_SERIES_BYTES: usize = 64;

/// A series of a block: its labels and where its samples are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSeries {
    /// The labels.
    pub labels: Labels,
    /// Its row in `series.parquet`, and its number in `samples.parquet`.
    pub id: u32,
    /// The row of its first sample.
    pub first_row: u64,
    /// How many floats it has.
    pub row_count: u32,
    /// The row of `times.parquet` with its oldest float's time, where there is that part.
    pub times_last_row: u32,
    /// How many rows of it there are from its newest float's time to that.
    pub times_row_count: u32,
    /// The row of its first native histogram.
    pub histogram_first_row: u64,
    /// How many native histograms it has.
    pub histogram_count: u32,
    /// Its first and last sample time.
    pub range: TimeRange,
    /// What is known of the metric, if anything.
    pub metadata: Option<Arc<Metadata>>,
}

impl BlockSeries {
    /// How many floats would take as much memory as all its samples.
    pub fn rows_as_floats(&self) -> u64 {
        u64::from(self.row_count) + u64::from(self.histogram_count) * HISTOGRAM_ROWS
    }
}

/// An open block. Cheap to clone; nothing is read before it is asked for.
#[derive(Clone, Debug)]
pub struct BlockReader {
    meta: Arc<BlockMeta>,
    pub(crate) series: SeriesTable,
    pub(crate) samples: PartFile,
    /// Where series share their times.
    pub(crate) times: Option<TimesTable>,
    /// Where there are any.
    pub(crate) histograms: Option<PartFile>,
    /// Where there are any.
    pub(crate) exemplars: Option<PartFile>,
    /// Whether the samples of series that are looked for will be read.
    samples_follow: bool,
    /// Whether summaries are read with the sums of their histograms.
    histogram_sums: bool,
}

impl BlockReader {
    /// Opens a block whose `meta.json` was read and checked. Footers and indexes are fetched at first use, through the
    /// cache.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] when the metadata lacks a part.
    pub fn open(source: Arc<dyn RangeRead>, meta: Arc<BlockMeta>, cache: Arc<BlockCache>) -> Result<Self> {
        let part = |name| PartFile::new(Arc::clone(&source), Arc::clone(&cache), Arc::clone(&meta), name);
        let unknown = || {
            let reason = format!("there is no resolution of {} ms", meta.resolution_ms);
            Error::corrupt(meta.block, META_PART, reason)
        };
        let samples_part = samples_part(meta.resolution_ms).ok_or_else(unknown)?;
        let (series, samples) = (part(SERIES_PART)?, part(samples_part)?);
        let times = meta.has_times_part().then(|| part(TIMES_PART)).transpose()?;
        let there = |name: &str| meta.parts.iter().any(|p| p.name == name);
        let histograms = there(HISTOGRAMS_PART)
            .then(|| part(HISTOGRAMS_PART))
            .transpose()?;
        let exemplars = if there(EXEMPLARS_PART) {
            Some(PartFile::new(source, cache, Arc::clone(&meta), EXEMPLARS_PART)?)
        } else {
            None
        };
        Ok(Self {
            series: SeriesTable::new(series, meta.range),
            samples,
            times: times.map(TimesTable::new),
            histograms,
            exemplars,
            meta,
            samples_follow: false,
            histogram_sums: false,
        })
    }

    /// The same block for who wants the samples of the series that it looks for: while series are fetched, so is where their samples
    /// and times are, so that nobody has to wait for it afterwards.
    #[must_use]
    pub fn with_samples_to_follow(mut self) -> Self {
        self.samples_follow = true;
        self
    }

    /// The same block, whose summaries are read with the sums of their histograms, or without: these are large, and few need them.
    #[must_use]
    pub fn with_histogram_sums(mut self, wanted: bool) -> Self {
        self.histogram_sums = wanted;
        self
    }

    /// The same block, decoded on `cpu`'s threads instead of inline.
    #[must_use]
    pub fn with_cpu(mut self, cpu: Cpu) -> Self {
        self.series.set_cpu(cpu.clone());
        if let Some(times) = &mut self.times {
            times.set_cpu(cpu.clone());
        }
        if let Some(histograms) = &mut self.histograms {
            histograms.set_cpu(cpu.clone());
        }
        if let Some(exemplars) = &mut self.exemplars {
            exemplars.set_cpu(cpu.clone());
        }
        self.samples.set_cpu(cpu);
        self
    }

    /// The same block for a read that holds what it fetches: what is fetched ahead for it, and what it comes to again.
    #[must_use]
    pub fn with_held(mut self, held: &HeldCells) -> Self {
        // Series are gone through at a pace of their own.
        self.series.set_held(held.beside());
        if let Some(times) = &mut self.times {
            times.set_held(held.clone());
        }
        if let Some(histograms) = &mut self.histograms {
            histograms.set_held(held.clone());
        }
        self.samples.set_held(held.clone());
        self
    }

    /// Keeps what was read of it before its checksums were known, as far as it passes them.
    pub fn keep(&self, tail: &Tail) {
        let others = [self.times.as_ref().map(TimesTable::part), self.exemplars.as_ref()];
        let parts = [self.series.part(), &self.samples].into_iter();
        let mut parts = parts.chain(others.into_iter().flatten());
        if let Some(part) = parts.find(|p| p.part().name == tail.part()) {
            part.keep(tail);
        }
    }

    /// What the block is.
    pub fn meta(&self) -> &Arc<BlockMeta> {
        &self.meta
    }

    pub(crate) fn samples_part(&self) -> &PartFile {
        &self.samples
    }

    pub(crate) fn samples_table(&self) -> SamplesTable {
        SamplesTable {
            part: self.samples.clone(),
            times: self.times.clone(),
        }
    }

    /// The series that match and have samples around `range` (first to last sample overlaps it), in label order.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn select(&self, matchers: &Matchers, range: TimeRange) -> Result<Vec<BlockSeries>> {
        let mut cursor = self.series_cursor(matchers.clone(), range);
        let mut all = Vec::new();
        while let Some(batch) = cursor.next(usize::MAX).await? {
            all.extend(batch);
        }
        Ok(all)
    }

    /// All series in batches as they are read, never all at once in memory, and none of them kept: for those who read
    /// whole blocks, once.
    pub fn scan_series(&self) -> BoxStream<'static, Result<Vec<BlockSeries>>> {
        let table = self.series.clone();
        stream::once(async move {
            let footer = table.footer().await?;
            let groups = stream::iter(0..table.group_count(&footer)?);
            Ok(groups
                .map(move |group| {
                    let (table, footer) = (table.clone(), footer.clone());
                    async move { table.scan_group(&footer, group).await }
                })
                .buffered(GROUPS_AHEAD))
        })
        .try_flatten()
        .boxed()
    }

    /// As [`Self::select`], but in batches as small as their reader wants them and without reading ahead, unless the cursor is told
    /// to: for those who read many blocks side by side.
    pub fn series_cursor(&self, matchers: Matchers, range: TimeRange) -> SeriesCursor {
        SeriesCursor {
            table: self.series.clone(),
            following: self.samples_follow.then(|| self.samples_table()),
            matchers,
            range,
            group: 0,
            groups_ahead: 0,
            bytes_ahead: 0,
            rows: VecDeque::new(),
        }
    }

    /// The samples of `series` around `range`, one entry per series in the order given, which is the block's: chunks that
    /// overlap the range, ascending and disjoint, none where there are none. Of a chunk that is mostly outside only what
    /// is in range is given. What was read whole is kept in the cache. All is in memory at once: [`Self::stream_samples`]
    /// is for very many series.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`], [`crate::Error::Samples`] or [`crate::Error::Read`].
    pub async fn read_chunks(&self, series: &[BlockSeries], range: TimeRange) -> Result<Vec<Vec<Chunk>>> {
        self.look_up_chunks(series, range).finish().await
    }

    /// As [`Self::read_chunks`], up to what is cached: for those who want to know how much is still to be read before it is.
    pub fn look_up_chunks(&self, series: &[BlockSeries], range: TimeRange) -> ChunkRead {
        ChunkRead::new(
            self.samples_table(),
            self.histograms.clone(),
            (self.meta.resolution_ms != 0).then_some(Summaries {
                resolution_ms: self.meta.resolution_ms,
                sums: self.histogram_sums,
            }),
            series,
            range,
        )
    }

    /// All summaries of series of a downsampled block, in its order and with the sums of histograms, as chunks, one entry for each
    /// series.
    ///
    /// # Errors
    /// As [`Self::read_chunks`].
    pub async fn read_summaries(&self, series: &[BlockSeries]) -> Result<Vec<Vec<Chunk>>> {
        let with: Vec<BlockSeries> = series.iter().filter(|s| s.row_count > 0).cloned().collect();
        let mut read = read_summaries(&self.samples, &with, true).await?.into_iter();
        let of = |s: &BlockSeries| match s.row_count {
            0 => Vec::new(),
            _ => read.next().unwrap_or_default(),
        };
        Ok(series.iter().map(of).collect())
    }

    /// All native histograms of series in the block's order, as chunks, one entry for each series.
    ///
    /// # Errors
    /// As [`Self::read_chunks`].
    pub async fn read_histograms(&self, series: &[BlockSeries]) -> Result<Vec<Vec<Chunk>>> {
        let with: Vec<BlockSeries> = series.iter().filter(|s| s.histogram_count > 0).cloned().collect();
        let mut read = Vec::new();
        if let Some(first) = with.first() {
            read = read_histograms(self.histograms_part(first)?, &with, false).await?;
        }
        let mut read = read.into_iter();
        let of = |s: &BlockSeries| match s.histogram_count {
            0 => Vec::new(),
            _ => read.next().unwrap_or_default(),
        };
        Ok(series.iter().map(of).collect())
    }

    /// The exemplars of matching series in a closed range of time, in label order and ascending in time, some thousands at a
    /// time: a series may go on in the next item.
    pub fn scan_exemplars(
        &self,
        matchers: Matchers,
        range: TimeRange,
    ) -> BoxStream<'static, Result<Vec<SeriesExemplars>>> {
        match self.exemplars.clone() {
            Some(part) => exemplars::scan(part, matchers, range),
            None => stream::empty().boxed(),
        }
    }

    /// The part that holds the histograms of a series.
    fn histograms_part(&self, series: &BlockSeries) -> Result<&PartFile> {
        self.histograms.as_ref().ok_or_else(|| {
            self.samples
                .corrupt(format!("{} has histograms, the block has none", series.labels))
        })
    }

    /// As [`Self::read_chunks`], decoded, floats only, and only what lies inside `range`.
    ///
    /// # Errors
    /// As [`Self::read_chunks`].
    pub async fn read_samples(&self, series: &[BlockSeries], range: TimeRange) -> Result<Vec<SeriesSamples>> {
        let chunks = self.read_chunks(series, range).await?;
        let decode = |(series, chunks): (&BlockSeries, Vec<Chunk>)| {
            let mut samples = SeriesSamples::default();
            for chunk in chunks.into_iter().filter(|chunk| !chunk.has_histograms()) {
                let decoded = chunk.decode_range(range, &mut samples.timestamps, &mut samples.values);
                let decoded = decoded.and_then(|()| chunk.decode_starts(range, &mut samples.starts));
                decoded.map_err(|e| self.samples.corrupt_samples(&series.labels, e))?;
            }
            Ok(samples)
        };
        series.iter().zip(chunks).map(decode).collect()
    }

    /// The floats of `series`, which must have some and be in the block's order, one item per series in the same order. Only pages
    /// with rows of the series inside the range are fetched; a few row groups are in memory at a time.
    pub fn stream_samples(
        &self,
        series: Vec<BlockSeries>,
        range: TimeRange,
    ) -> BoxStream<'static, Result<SeriesSamples>> {
        samples::stream(self.samples_table(), series, range, GROUPS_AHEAD)
    }

    /// The names of the labels of matching series with samples around `range`.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn label_names(&self, matchers: &Matchers, range: TimeRange) -> Result<StringList> {
        let footer = self.series.footer().await?;
        let groups = self.series.group_count(&footer)?;
        if !matchers.0.is_empty() || self.series.is_cut_by(range) {
            let mut names = BTreeSet::new();
            let mut cursor = self.series_cursor(matchers.clone(), range);
            while let Some(found) = cursor.next_matching(usize::MAX).await? {
                let add = |(chunk, rows): &Matching| chunk.add_names(rows, &mut names);
                found.iter().for_each(add);
            }
            return Ok(StringList::from_sorted(names.iter().map(String::as_str)));
        }
        let mut names = StringList::default();
        for group in 0..groups {
            names = names.union(&self.series.names(&footer, group).await?);
        }
        Ok(names)
    }

    /// The values of one label among matching series with samples around `range`.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn label_values(
        &self,
        name: &str,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<StringList> {
        let footer = self.series.footer().await?;
        let in_columns = matchers.iter().all(|m| label_column(&footer, m.name()).is_some());
        let Some(column) = label_column(&footer, name).filter(|_| in_columns) else {
            let mut values = BTreeSet::new();
            let mut cursor = self.series_cursor(matchers.clone(), range);
            while let Some(found) = cursor.next_matching(usize::MAX).await? {
                let add = |(chunk, rows): &Matching| chunk.add_values(name, rows, &mut values);
                found.iter().for_each(add);
            }
            return Ok(StringList::from_sorted(values.iter().map(String::as_str)));
        };
        let mut values = StringList::default();
        for group in 0..self.series.group_count(&footer)? {
            let rows = self
                .series
                .candidates(&footer, group, matchers, range, None)
                .await?;
            let Some(rows) = rows else { continue };
            let column = self.series.column(&footer, group, column).await?;
            let Some(column) = column else { continue };
            let of_group = match rows.mask().cloned() {
                None => column.values().clone(),
                Some(mask) => {
                    let work = move || column.values_of(&mask);
                    self.series.look_up(rows.rows() * VALUE_BYTES, work).await?
                }
            };
            values = values.union(&of_group);
        }
        Ok(values)
    }
}

/// A place among the matching series of a block. Between two batches it holds a bit for each row of a row group, or of as many as are
/// looked at together.
#[derive(Debug)]
pub struct SeriesCursor {
    table: SeriesTable,
    /// Where the samples of the series are, until some may match: see [`BlockReader::with_samples_to_follow`].
    following: Option<SamplesTable>,
    matchers: Matchers,
    range: TimeRange,
    /// The row group to begin after `rows`.
    group: u32,
    /// How many of them are looked at together, and the rows of them fetched ahead; none where it is 0.
    groups_ahead: usize,
    /// How many bytes of them, unless one alone takes more.
    bytes_ahead: u64,
    /// What is left of those before it.
    rows: VecDeque<GroupRows>,
}

/// Rows of a chunk that match.
pub(crate) type Matching = (Arc<RowChunk>, Vec<usize>);

impl SeriesCursor {
    /// Looks for matching rows in so many row groups together, as long as that takes no more than so many bytes, and fetches those rows
    /// at once, where the read holds what it fetches: for those who want all of them.
    #[must_use]
    pub fn with_groups_ahead(mut self, groups: usize, bytes_max: u64) -> Self {
        self.groups_ahead = groups;
        self.bytes_ahead = bytes_max;
        self
    }

    /// The next series, in label order: at least one and at most `series_max` (at least 1); `None` at the end.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`].
    pub async fn next(&mut self, series_max: usize) -> Result<Option<Vec<BlockSeries>>> {
        let Some(found) = self.next_matching(series_max).await? else {
            return Ok(None);
        };
        let count = found.iter().map(|(_, rows)| rows.len()).sum();
        let series = move || {
            let mut all = Vec::with_capacity(count);
            let mut packed = Vec::new();
            for (chunk, rows) in found {
                all.extend(rows.into_iter().filter_map(|row| chunk.series(row, &mut packed)));
            }
            all
        };
        let bytes = count * BUILT_SERIES_BYTES;
        self.table.look_up(bytes, series).await.map(Some)
    }

    /// The next rows that match, none of the lists empty; `None` at the end.
    pub(crate) async fn next_matching(&mut self, series_max: usize) -> Result<Option<Vec<Matching>>> {
        // Not held between batches: footers of many blocks are large, and cached.
        let footer = self.table.footer().await?;
        let groups = self.table.group_count(&footer)?;
        loop {
            if let Some(rows) = self.rows.front_mut() {
                let following = self.following.take();
                let found = self
                    .table
                    .next_rows(&footer, rows, series_max, following.as_ref())
                    .await?;
                if rows.done() {
                    self.rows.pop_front();
                }
                let found = self.matching(found).await?;
                if !found.is_empty() {
                    return Ok(Some(found));
                }
            } else if self.group < groups {
                self.look_at_groups(&footer, groups).await?;
            } else {
                return Ok(None);
            }
        }
    }

    /// Finds the rows of the next row groups that may match. Where they have to be fetched, this is done at once.
    async fn look_at_groups(&mut self, footer: &ArrowReaderMetadata, end: u32) -> Result<()> {
        self.table.go_on();
        let (mut next, mut bytes) = (Vec::new(), 0u64);
        while self.group < end && next.len() < self.groups_ahead.max(1) {
            let group = self.group;
            if !self.table.is_excluded(footer, group, &self.matchers) {
                let of_group = self.table.bytes_to_look_at(footer, group, &self.matchers);
                bytes = bytes.saturating_add(of_group);
                if bytes > self.bytes_ahead && !next.is_empty() {
                    break;
                }
                next.push(group);
            }
            self.group += 1;
        }
        let (matchers, following) = (&self.matchers, self.following.as_ref());
        let rows = self
            .table
            .candidates_of(footer, &next, matchers, self.range, following);
        self.rows = rows.await?.into();
        if self.groups_ahead > 0 {
            self.table
                .fetch_rows_ahead(footer, &self.rows, &mut self.following)
                .await?;
        }
        Ok(())
    }

    /// Those rows whose labels match.
    async fn matching(&self, found: Vec<FoundRows>) -> Result<Vec<Matching>> {
        let bytes_of = |f: &FoundRows| {
            let rows: usize = f.rows.iter().map(ExactSizeIterator::len).sum();
            rows * VALUE_BYTES + f.chunk.bytes_to_look_at(rows)
        };
        let bytes: usize = found.iter().map(bytes_of).sum();
        let bytes = looked_up(bytes.saturating_mul(self.matchers.0.len()), &self.matchers.0);
        let matchers = self.matchers.clone();
        let matching = move || {
            let of_chunk = |FoundRows { chunk, rows }| {
                let rows = RowChunk::matching(&chunk, &matchers, &rows);
                (!rows.is_empty()).then_some((chunk, rows))
            };
            found.into_iter().filter_map(of_chunk).collect()
        };
        self.table.look_up(bytes, matching).await
    }
}
