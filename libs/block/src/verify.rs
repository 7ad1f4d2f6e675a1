//! Checks a whole block: every byte, and that the parts agree with each other and with `meta.json`.

use std::collections::VecDeque;

use futures::TryStreamExt;
use koios_chunk::Chunk;
use koios_model::merge::sort_and_dedup_starts;
use koios_model::{Labels, Matchers, TimeRange};

use crate::digest::Digest;
use crate::meta::{CELL_BYTES, EXEMPLARS_PART, META_PART, SAMPLES_PART, SERIES_PART};
use crate::reader::{BlockReader, BlockSeries};
use crate::samples::SeriesSamples;
use crate::source::RangeRead;
use crate::{BlockMeta, Error, Result};

/// Bytes read at a time while checksumming a part.
const STEP_BYTES: u64 = 64 * CELL_BYTES;
/// Series whose summaries are read together.
const SUMMARISED_AHEAD: usize = 64;

/// Checks the checksum of every part, past all caches, and that `meta.json` repeats its end as it is.
///
/// # Errors
/// [`Error::Corrupt`] naming the first part that fails, or [`Error::Read`].
pub async fn verify_checksums(source: &dyn RangeRead, meta: &BlockMeta) -> Result<()> {
    for part in &meta.parts {
        let mut crc = 0;
        let mut at = 0;
        while at < part.bytes {
            let range = at..(at + STEP_BYTES).min(part.bytes);
            for bytes in source.read(&part.name, std::slice::from_ref(&range)).await? {
                crc = crc32c::crc32c_append(crc, &bytes);
            }
            at = range.end;
        }
        if crc != part.crc32c {
            return Err(Error::corrupt(meta.block, &part.name, "it failed its checksum"));
        }
        if let Some(end) = &part.end {
            let range = end.from..part.bytes;
            let read = source.read(&part.name, std::slice::from_ref(&range)).await?;
            if read.into_iter().next() != end.bytes(part.bytes) {
                let reason = format!("it has another end of {} than that has", part.name);
                return Err(Error::corrupt(meta.block, META_PART, reason));
            }
        }
    }
    Ok(())
}

/// Reads every series and sample and checks what readers rely on: label order, spans without gap or overlap, times
/// strictly ascending inside span, window and range, ticks that have times, no start timestamps that `meta.json` does not tell of, and the
/// counts in it.
///
/// # Errors
/// [`Error::Corrupt`] naming the first thing that does not hold, or [`Error::Read`].
pub async fn verify(block: &BlockReader) -> Result<()> {
    check(block, None).await
}

/// As [`verify`], of a block with samples as sent, and tells what it holds: what its writer was given, if nothing went wrong.
///
/// # Errors
/// Those of [`verify`].
pub async fn verified_digest(block: &BlockReader) -> Result<Digest> {
    let mut digest = Digest::default();
    check(block, Some(&mut digest)).await?;
    Ok(digest)
}

async fn check(block: &BlockReader, mut digest: Option<&mut Digest>) -> Result<()> {
    let meta = block.meta();
    let corrupt = |part: &str, reason: String| Err(Error::corrupt(meta.block, part, reason));
    let (mut series_count, mut rows, mut histogram_rows) = (0u64, 0u64, 0u64);
    let mut range: Option<TimeRange> = None;
    let mut previous: Option<Labels> = None;
    let mut batches = block.scan_series();
    while let Some(batch) = batches.try_next().await? {
        let downsampled = meta.resolution_ms != 0;
        let with_floats = batch.iter().filter(|s| s.row_count > 0 && !downsampled);
        let mut samples = block.stream_samples(with_floats.cloned().collect(), TimeRange::ALL);
        let summarised = batch.iter().filter(|s| s.row_count > 0 && downsampled).cloned();
        let mut summaries = SummariesAhead {
            block,
            series: summarised.collect::<Vec<_>>().into_iter(),
            read: VecDeque::new(),
        };
        for s in batch {
            if previous.as_ref().is_some_and(|p| *p >= s.labels) {
                return corrupt(SERIES_PART, format!("series {} is out of label order", s.labels));
            }
            let has_histograms = s.histogram_count > 0;
            if u64::from(s.id) != series_count
                || s.first_row != rows
                || has_histograms && s.histogram_first_row != histogram_rows
            {
                return corrupt(
                    SERIES_PART,
                    format!("series {} has a wrong number or span", s.labels),
                );
            }
            let mut columns = SeriesSamples::default();
            let floats = match s.row_count {
                0 => Some(Floats {
                    ascend: true,
                    ..Floats::default()
                }),
                _ if downsampled => summaries.next().await?,
                _ => {
                    let read = samples.try_next().await?;
                    read.map(|read| {
                        columns = read;
                        Floats::of_samples(&columns)
                    })
                }
            };
            let Some(floats) = floats else {
                return corrupt(SAMPLES_PART, format!("it lacks the samples of {}", s.labels));
            };
            let mut ends = floats.ends;
            let mut histograms = 0;
            // Decoding checks that times ascend.
            let read = block.read_histograms(std::slice::from_ref(&s)).await?;
            let chunks: Vec<Chunk> = read.into_iter().flatten().collect();
            for chunk in &chunks {
                histograms += chunk.count();
                let range = chunk.time_range();
                ends = Some(ends.map_or(range, |e| e.union(&range)));
            }
            let starts = &mut columns.starts;
            for chunk in &chunks {
                let decoded = chunk.decode_starts(TimeRange::ALL, starts);
                decoded.map_err(|e| block.samples_part().corrupt_samples(&s.labels, e))?;
            }
            block.check_starts(&s, starts)?;
            if let Some(digest) = digest.as_deref_mut() {
                add_to(digest, block, &s, columns, &chunks)?;
            }
            if floats.rows as u64 != u64::from(s.row_count)
                || histograms as u64 != u64::from(s.histogram_count)
                || ends != Some(s.range)
                || !floats.ascend
            {
                return corrupt(
                    SAMPLES_PART,
                    format!("the samples of {} are not as announced", s.labels),
                );
            }
            range = Some(range.map_or(s.range, |r| r.union(&s.range)));
            series_count += 1;
            rows += u64::from(s.row_count);
            histogram_rows += u64::from(s.histogram_count);
            previous = Some(s.labels);
        }
    }
    let rows = rows + histogram_rows;
    let of_exemplars = verify_exemplars(block).await?;
    let both = of_exemplars.map(|e| range.map_or(e, |r| r.union(&e)));
    // Of blocks of earlier versions it is that of the samples alone.
    let is_range = both.or(range).is_none_or(|both| both == meta.range) || range == Some(meta.range);
    if series_count != meta.series || rows != meta.samples || !is_range {
        return corrupt(
            SERIES_PART,
            format!(
                "it holds {series_count} series and {rows} samples in {range:?}, meta.json says {} and {} in {:?}",
                meta.series, meta.samples, meta.range
            ),
        );
    }
    if let Some(times) = &block.times {
        times.verify().await?;
    }
    Ok(())
}

fn add_to(
    digest: &mut Digest,
    block: &BlockReader,
    series: &BlockSeries,
    columns: SeriesSamples,
    chunks: &[Chunk],
) -> Result<()> {
    let (mut histograms, mut starts) = (Vec::new(), columns.starts);
    for chunk in chunks {
        let decoded = chunk.decode_histograms(TimeRange::ALL, &mut histograms);
        decoded.map_err(|e| block.samples_part().corrupt_samples(&series.labels, e))?;
    }
    sort_and_dedup_starts(&mut starts);
    let floats = columns.timestamps.iter().copied();
    let floats = floats.zip(columns.values.iter().copied());
    digest.add_columns(&series.labels, floats, &histograms, &starts);
    Ok(())
}

impl BlockReader {
    /// That a series has no start timestamps of which `meta.json` does not tell: what is merged from it would have no place for
    /// them.
    pub(crate) fn check_starts(&self, series: &BlockSeries, starts: &[(i64, i64)]) -> Result<()> {
        match starts.is_empty() || self.meta().may_have_starts() {
            true => Ok(()),
            false => Err(Error::corrupt(
                self.meta().block,
                META_PART,
                format!("it tells of no start timestamps, which {} has", series.labels),
            )),
        }
    }
}

/// What the floats of a series turned out to be.
#[derive(Clone, Copy, Debug, Default)]
struct Floats {
    rows: usize,
    ends: Option<TimeRange>,
    ascend: bool,
}

impl Floats {
    fn of_samples(samples: &SeriesSamples) -> Self {
        let t = &samples.timestamps;
        Self {
            rows: t.len(),
            ends: t.first().zip(t.last()).map(|(&a, &b)| TimeRange::new(a, b)),
            ascend: t.is_sorted_by(|a, b| a < b),
        }
    }

    /// Decoding has checked that they ascend and do not overlap.
    fn of_summaries(block: &BlockReader, series: &BlockSeries, chunks: &[Chunk]) -> Result<Self> {
        let mut summaries = Vec::new();
        for chunk in chunks {
            let decoded = chunk.decode_summaries(TimeRange::ALL, &mut summaries);
            decoded.map_err(|e| block.samples_part().corrupt_samples(&series.labels, e))?;
        }
        let ends = summaries.first().zip(summaries.last());
        Ok(Self {
            rows: summaries.len(),
            ends: ends.map(|(a, b)| TimeRange::new(a.first_t, b.last_t)),
            ascend: summaries.is_sorted_by(|a, b| a.last_t < b.first_t),
        })
    }
}

/// The summaries of the next series, some of them at a time.
struct SummariesAhead<'a> {
    block: &'a BlockReader,
    series: std::vec::IntoIter<BlockSeries>,
    read: VecDeque<Floats>,
}

impl SummariesAhead<'_> {
    async fn next(&mut self) -> Result<Option<Floats>> {
        if self.read.is_empty() {
            let series: Vec<BlockSeries> = self.series.by_ref().take(SUMMARISED_AHEAD).collect();
            let read = self.block.read_summaries(&series).await?;
            for (series, chunks) in series.iter().zip(&read) {
                self.read
                    .push_back(Floats::of_summaries(self.block, series, chunks)?);
            }
        }
        Ok(self.read.pop_front())
    }
}

/// Series in label order, each one's exemplars ascending in time, and as many as announced. Gives the range of their times.
async fn verify_exemplars(block: &BlockReader) -> Result<Option<TimeRange>> {
    let corrupt = |reason: &str| Err(Error::corrupt(block.meta().block, EXEMPLARS_PART, reason));
    let (mut rows, mut last) = (0u64, None::<(Labels, i64)>);
    let mut range: Option<TimeRange> = None;
    let mut batches = block.scan_exemplars(Matchers::default(), TimeRange::ALL);
    while let Some(batch) = batches.try_next().await? {
        for (labels, exemplars) in batch {
            for exemplar in exemplars {
                let here = (labels.clone(), exemplar.t);
                if last.as_ref().is_some_and(|last| *last > here) {
                    return corrupt("its exemplars are out of order");
                }
                last = Some(here);
                let at = TimeRange::new(exemplar.t, exemplar.t);
                range = Some(range.map_or(at, |r| r.union(&at)));
                rows += 1;
            }
        }
    }
    let part = block.meta().parts.iter().find(|p| p.name == EXEMPLARS_PART);
    if rows != part.map_or(0, |p| p.rows) {
        return corrupt("it has another number of exemplars than meta.json says");
    }
    Ok(range)
}
