//! Reads samples as chunks: those of cached series at once, the others from pages.

use futures::TryStreamExt;
use futures::future::join;
use koios_chunk::{Chunk, Encoder};
use koios_model::{Labels, TimeRange};
use parquet::arrow::ProjectionMask;

use crate::Result;
use crate::cache::{SamplesKey, SamplesKind};
use crate::histogram_rows::read_histograms;
use crate::meta::CELL_BYTES;
use crate::part::PartFile;
use crate::reader::{BlockSeries, GROUPS_AHEAD};
use crate::row_plan::Span;
use crate::samples::{self, SamplesTable};
use crate::samples_ahead::fetch_rows;
use crate::samples_choice::Wanted;
use crate::summary_rows::{read_summaries, summary_columns};

/// Most samples of a series that is read whole to be kept, whatever part of it was asked for.
const SHORT_SERIES_ROWS: u32 = 1 << 13;
/// Smallest chunk that is trimmed: of a smaller one little is to be saved.
const TRIMMED_SAMPLES_MIN: usize = 128;
/// Floats that take about the memory of a histogram.
pub(crate) const HISTOGRAM_ROWS: u64 = 16;
/// Times, of 8 bytes, that take about the memory of a float that is decoded and encoded.
const TIMES_PER_ROW: u64 = 5;
/// Chunks whose trimming is not worth a change of threads: a few microseconds each.
const TRIMMED_INLINE: usize = 64;

/// What it costs at most that a series is not a neighbour of the one before: of some columns a cell more.
const APART_BYTES: u64 = 3 * CELL_BYTES;

/// How far in a block estimates have come of what is missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct MissingUpTo {
    row: u64,
    histogram: u64,
    times_last_row: Option<u32>,
}

/// A read of samples that has looked up what is cached and has read nothing yet.
#[derive(Debug)]
pub struct ChunkRead {
    table: SamplesTable,
    histograms: Option<PartFile>,
    /// Where the table holds summaries: which of them.
    downsampled: Option<Summaries>,
    range: TimeRange,
    /// What is known of each series, in the order asked for.
    found: Vec<SeriesChunks>,
    /// The places in `found` of the series whose floats are not cached.
    missing: Vec<(usize, BlockSeries)>,
    /// The places in `found` of the series whose histograms are not cached.
    missing_histograms: Vec<(usize, BlockSeries)>,
}

/// How summaries are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summaries {
    pub(crate) resolution_ms: i64,
    /// With the sums of histograms.
    pub(crate) sums: bool,
}

impl Summaries {
    /// Whether those of a series are read with sums.
    fn sums_of(self, series: &BlockSeries) -> bool {
        self.sums && series.histogram_count > 0
    }
}

/// Chunks of a series that overlap the range.
#[derive(Debug)]
struct SeriesChunks {
    series: Labels,
    chunks: Vec<Chunk>,
}

impl ChunkRead {
    pub(crate) fn new(
        table: SamplesTable,
        histograms: Option<PartFile>,
        downsampled: Option<Summaries>,
        series: &[BlockSeries],
        range: TimeRange,
    ) -> Self {
        let part = &table.part;
        let (mut missing, mut missing_histograms) = (Vec::new(), Vec::new());
        let of_histograms = histograms_range(range, downsampled);
        let look_up = |(place, series): (usize, &BlockSeries)| {
            let mut chunks = Vec::new();
            let mut look_up = |key, range, missing: &mut Vec<_>| match part.cache().samples(&key) {
                Some(cached) => chunks.extend(around(&cached, range)),
                None => missing.push((place, series.clone())),
            };
            if series.row_count > 0 {
                look_up(key(part, series, downsampled), range, &mut missing);
            }
            if series.histogram_count > 0 {
                let key = histograms_key(part, series);
                look_up(key, of_histograms, &mut missing_histograms);
            }
            SeriesChunks {
                series: series.labels.clone(),
                chunks,
            }
        };
        let found = series.iter().enumerate().map(look_up).collect();
        Self {
            table,
            histograms,
            downsampled,
            range,
            found,
            missing,
            missing_histograms,
        }
    }

    /// How many rows the series have that are not cached: [`Self::finish`] decodes no more. A histogram counts as the
    /// floats that take as much memory, and so do times that stand in rows of their own.
    pub fn rows_missing(&self) -> u64 {
        let of_times = |s: &BlockSeries| match self.table.times {
            Some(_) => u64::from(s.times_row_count).div_ceil(TIMES_PER_ROW),
            None => 0,
        };
        let of_sums = |s: &BlockSeries| match self.downsampled {
            Some(summaries) if summaries.sums_of(s) => u64::from(s.row_count) * HISTOGRAM_ROWS,
            _ => 0,
        };
        let floats = self.missing.iter();
        let floats = floats.map(|(_, s)| u64::from(s.row_count) + of_times(s) + of_sums(s));
        let histograms = self.missing_histograms.iter();
        let histograms = histograms.map(|(_, s)| u64::from(s.histogram_count) * HISTOGRAM_ROWS);
        floats.chain(histograms).sum()
    }

    /// How many bytes of memory it keeps from going: those of cached chunks, as what they are of may leave the cache meanwhile.
    pub fn bytes_cached(&self) -> u64 {
        let chunks = self.found.iter().flat_map(|found| &found.chunks);
        chunks.map(|chunk| chunk.bytes().len() as u64).sum()
    }

    /// About how many bytes of the block reading what is missing takes, after reads of series before these that came up to a place.
    pub fn bytes_missing(&self, up_to: &mut MissingUpTo) -> u64 {
        let rows = |part: &PartFile, before: &mut u64, first: u64, count: u32| {
            let apart = part.bytes_of_rows(first.saturating_sub(*before)).min(APART_BYTES);
            *before = first.saturating_add(u64::from(count));
            // Something is to be read, however small rows are.
            part.bytes_of_rows(u64::from(count)).saturating_add(apart).max(1)
        };
        let mut bytes = 0u64;
        for (_, series) in &self.missing {
            let floats = rows(
                &self.table.part,
                &mut up_to.row,
                series.first_row,
                series.row_count,
            );
            bytes = bytes.saturating_add(floats);
            // Series of one target share their times.
            let last_row = Some(series.times_last_row);
            if let Some(times) = self
                .table
                .times
                .as_ref()
                .filter(|_| up_to.times_last_row != last_row)
            {
                let of_times = times.part().bytes_of_rows(u64::from(series.times_row_count));
                bytes = bytes.saturating_add(of_times);
                up_to.times_last_row = last_row;
            }
        }
        for (_, series) in &self.missing_histograms {
            let part = self.histograms.as_ref().unwrap_or(&self.table.part);
            let (first, count) = (series.histogram_first_row, series.histogram_count);
            bytes = bytes.saturating_add(rows(part, &mut up_to.histogram, first, count));
        }
        bytes
    }

    /// Fetches what several reads of one block, of series in its order, are missing, for the block's reader to hold until they
    /// decode it: as much as it has room for.
    ///
    /// # Errors
    /// [`crate::Error::Read`] when bytes cannot be had; [`crate::Error::Corrupt`], which who reads what is damaged is told, too.
    pub async fn fetch_ahead(reads: &[&Self]) -> Result<()> {
        let Some(Self {
            table,
            histograms,
            downsampled,
            range,
            ..
        }) = reads.first()
        else {
            return Ok(());
        };
        let missing: Vec<&BlockSeries> = reads.iter().flat_map(|r| &r.missing).map(|(_, s)| s).collect();
        let floats = async {
            match (missing.is_empty(), downsampled) {
                (true, _) => Ok(()),
                (false, Some(summaries)) => {
                    let sums = missing.iter().any(|s| summaries.sums_of(s));
                    let rows = missing.iter().map(|s| float_rows(s)).collect();
                    fetch_rows(&table.part, rows, |footer| summary_columns(footer, sums)).await
                }
                (false, None) => {
                    let wanted = missing.iter().map(|series| wanted(series, *range)).collect();
                    table.fetch_pages(wanted, *range).await
                }
            }
        };
        let with_histograms = reads.iter().flat_map(|r| &r.missing_histograms);
        let with_histograms: Vec<Span<'_>> = with_histograms.map(|(_, s)| histogram_rows(s)).collect();
        let of_histograms = async {
            match histograms {
                Some(part) if !with_histograms.is_empty() => {
                    fetch_rows(part, with_histograms, |_| ProjectionMask::all()).await
                }
                _ => Ok(()),
            }
        };
        let (floats, of_histograms) = join(floats, of_histograms).await;
        floats.and(of_histograms)
    }

    /// Reads what is missing: see [`crate::BlockReader::read_chunks`].
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`], [`crate::Error::Samples`] or [`crate::Error::Read`].
    pub async fn finish(mut self) -> Result<Vec<Vec<Chunk>>> {
        self.look_again();
        match self.downsampled {
            Some(summaries) => self.read_missing_summaries(summaries).await?,
            None => self.read_missing().await?,
        }
        self.read_missing_histograms().await?;
        let range = self.range;
        let edges = self.found.iter().flat_map(|found| &found.chunks);
        let edges = edges.filter(|chunk| is_trimmed(chunk, range)).count();
        if edges > 0 {
            self = self.trim(edges).await?;
        }
        Ok(self.found.into_iter().map(|found| found.chunks).collect())
    }

    /// Others may have read what was missing while this waited for its turn.
    fn look_again(&mut self) {
        let (part, found, range) = (&self.table.part, &mut self.found, self.range);
        let downsampled = self.downsampled;
        let of_histograms = histograms_range(range, downsampled);
        self.missing.retain(|(place, series)| {
            let Some(cached) = part.cache().samples(&key(part, series, downsampled)) else {
                return true;
            };
            if let Some(found) = found.get_mut(*place) {
                found.chunks.splice(0..0, around(&cached, range));
            }
            false
        });
        self.missing_histograms.retain(|(place, series)| {
            let Some(cached) = part.cache().samples(&histograms_key(part, series)) else {
                return true;
            };
            if let Some(found) = found.get_mut(*place) {
                found.chunks.extend(around(&cached, of_histograms));
            }
            false
        });
    }

    async fn read_missing(&mut self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        let (part, range) = (&self.table.part, self.range);
        let wanted = self.missing.iter().map(|(_, series)| wanted(series, range));
        let mut read = samples::read::<Vec<Chunk>>(self.table.clone(), wanted, range, GROUPS_AHEAD).await?;
        for (place, series) in &self.missing {
            let chunks = read.try_next().await?;
            let lost = || part.corrupt(format!("it lacks the samples of {}", series.labels));
            let chunks = chunks.ok_or_else(lost)?;
            if let Some(found) = self.found.get_mut(*place) {
                found.chunks.splice(0..0, around(&chunks, range));
            }
            if is_read_whole(series, range) {
                part.cache().put_samples(key(part, series, None), chunks.into());
            }
        }
        Ok(())
    }

    async fn read_missing_summaries(&mut self, summaries: Summaries) -> Result<()> {
        let (with, without): (Vec<_>, Vec<_>) = std::mem::take(&mut self.missing)
            .into_iter()
            .partition(|(_, s)| summaries.sums_of(s));
        self.read_summaries_of(&with, summaries, true).await?;
        self.read_summaries_of(&without, summaries, false).await
    }

    async fn read_summaries_of(
        &mut self,
        missing: &[(usize, BlockSeries)],
        summaries: Summaries,
        sums: bool,
    ) -> Result<()> {
        let series: Vec<BlockSeries> = missing.iter().map(|(_, s)| s.clone()).collect();
        if series.is_empty() {
            return Ok(());
        }
        let part = &self.table.part;
        let read = read_summaries(part, &series, sums).await?;
        for ((place, series), chunks) in missing.iter().zip(read) {
            if let Some(found) = self.found.get_mut(*place) {
                found.chunks.splice(0..0, around(&chunks, self.range));
            }
            let key = key(part, series, Some(summaries));
            part.cache().put_samples(key, chunks.into());
        }
        Ok(())
    }

    async fn read_missing_histograms(&mut self) -> Result<()> {
        if self.missing_histograms.is_empty() {
            return Ok(());
        }
        let series: Vec<BlockSeries> = self.missing_histograms.iter().map(|(_, s)| s.clone()).collect();
        let Some(part) = &self.histograms else {
            return Err(self
                .table
                .part
                .corrupt("its series announce histograms, which it has none of"));
        };
        let read = read_histograms(part, &series, true).await?;
        let range = histograms_range(self.range, self.downsampled);
        for ((place, series), chunks) in self.missing_histograms.iter().zip(read) {
            if let Some(found) = self.found.get_mut(*place) {
                found.chunks.extend(around(&chunks, range));
            }
            let key = histograms_key(&self.table.part, series);
            self.table.part.cache().put_samples(key, chunks.into());
        }
        Ok(())
    }

    /// Leaves only what is in range of chunks that are mostly outside, so that little asked for is little sent.
    async fn trim(mut self, edges: usize) -> Result<Self> {
        let part = self.table.part.clone();
        let trim = move || {
            let mut encoder = Encoder::default();
            for SeriesChunks { series, chunks } in &mut self.found {
                if chunks.iter().any(|chunk| is_trimmed(chunk, self.range)) {
                    let trimmed = trimmed(chunks, self.range, &mut encoder);
                    *chunks = trimmed.map_err(|e| self.table.part.corrupt_samples(series, e))?;
                }
            }
            Ok(self)
        };
        if edges <= TRIMMED_INLINE {
            return trim();
        }
        part.compute(trim).await?
    }
}

fn key(part: &PartFile, series: &BlockSeries, downsampled: Option<Summaries>) -> SamplesKey {
    SamplesKey {
        block: part.block(),
        first_row: series.first_row,
        row_count: series.row_count,
        kind: match downsampled {
            Some(summaries) if summaries.sums_of(series) => SamplesKind::Sums,
            _ => SamplesKind::Floats,
        },
    }
}

fn histograms_key(part: &PartFile, series: &BlockSeries) -> SamplesKey {
    SamplesKey {
        block: part.block(),
        first_row: series.histogram_first_row,
        row_count: series.histogram_count,
        kind: SamplesKind::Histograms,
    }
}

fn wanted(series: &BlockSeries, range: TimeRange) -> Wanted<'_> {
    Wanted {
        series,
        whole: is_read_whole(series, range),
    }
}

/// The rows of a series in a table that has all of them, and what belongs to them.
fn float_rows(series: &BlockSeries) -> Span<'_> {
    Span {
        series: &series.labels,
        first_row: series.first_row,
        row_count: series.row_count,
        whole: true,
        times: None,
    }
}

fn histogram_rows(series: &BlockSeries) -> Span<'_> {
    Span {
        first_row: series.histogram_first_row,
        row_count: series.histogram_count,
        ..float_rows(series)
    }
}

/// Whether all of a series is read: a short one is on a page or two, and all of it costs little more than a part.
fn is_read_whole(series: &BlockSeries, range: TimeRange) -> bool {
    let covered = range.min <= series.range.min && series.range.max <= range.max;
    covered || series.row_count <= SHORT_SERIES_ROWS
}

/// The times of which histograms are read: of a summary in the range both ends, on whichever side of it.
fn histograms_range(range: TimeRange, downsampled: Option<Summaries>) -> TimeRange {
    let reach = downsampled.map_or(0, |summaries| summaries.resolution_ms);
    TimeRange::new(range.min.saturating_sub(reach), range.max.saturating_add(reach))
}

fn around(chunks: &[Chunk], range: TimeRange) -> Vec<Chunk> {
    let around = chunks.iter().filter(|c| c.time_range().overlaps(&range));
    around.cloned().collect()
}

/// Whether the range covers less than a quarter of a chunk's time.
fn is_trimmed(chunk: &Chunk, range: TimeRange) -> bool {
    let all = chunk.time_range();
    let (from, to) = (all.min.max(range.min), all.max.min(range.max));
    !chunk.has_histograms()
        && !chunk.has_summaries()
        && chunk.count() >= TRIMMED_SAMPLES_MIN
        && to.abs_diff(from) < all.max.abs_diff(all.min) / 4
}

fn trimmed(
    chunks: &[Chunk],
    range: TimeRange,
    encoder: &mut Encoder,
) -> Result<Vec<Chunk>, koios_chunk::Error> {
    let mut out = Vec::with_capacity(chunks.len());
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    for chunk in chunks {
        if !is_trimmed(chunk, range) {
            out.push(chunk.clone());
            continue;
        }
        timestamps.clear();
        values.clear();
        chunk.decode_range(range, &mut timestamps, &mut values)?;
        encoder.encode_started_run(&timestamps, &values, &chunk.starts()?, &mut out)?;
    }
    Ok(out)
}
