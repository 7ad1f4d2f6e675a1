//! Reads `times.parquet`: the times of chosen series.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::Schema;
use futures::stream::{self, StreamExt, TryStreamExt};
use koios_model::{Labels, TimeRange};
use koios_runtime::Cpu;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};

use crate::Result;
use crate::clocks::TICKS_PER_TIME_MAX;
use crate::part::{GroupRead, PartFile};
use crate::reader::{BlockSeries, GROUPS_AHEAD};
use crate::row_chunk::{column, times};
use crate::row_plan::GROUP_ROWS_MAX;
use crate::schema::{TIME_ID, TIMESTAMP};
use crate::timed_pages::{TimedPage, timed_pages};

/// Decoded at a time.
const BATCH_ROWS: usize = 1 << 14;

/// The times of a block's samples.
#[derive(Clone, Debug)]
pub(crate) struct TimesTable {
    part: PartFile,
}

/// Where the times of a series are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TimeSpan {
    /// Its rows of the part: the last one has its oldest time, which is tick 0.
    rows: Range<u64>,
    /// In which they are.
    range: TimeRange,
}

impl TimeSpan {
    #[cfg(test)]
    pub(crate) fn new(rows: Range<u64>, range: TimeRange) -> Self {
        Self { rows, range }
    }

    /// How many ticks there are.
    pub(crate) fn ticks(&self) -> u64 {
        self.rows.end - self.rows.start
    }

    /// The rows of the part that hold some ticks, which there must be.
    pub(crate) fn rows_of(&self, ticks: &Range<u64>) -> Range<u64> {
        self.rows.end - ticks.end..self.rows.end - ticks.start
    }
}

/// Times that were read.
#[derive(Debug)]
pub(crate) struct Times {
    part: PartFile,
    /// Rows of the part, ascending and disjoint, each with how many of the rows before are here.
    runs: Vec<(Range<u64>, usize)>,
    /// The times of all of them, those of the last row first: they ascend where rows descend.
    backwards: Vec<i64>,
}

impl Times {
    /// The times of some ticks of a series; they ascend.
    pub(crate) fn of(&self, span: &TimeSpan, ticks: &Range<u64>, series: &Labels) -> Result<&[i64]> {
        let lost = || {
            self.part
                .corrupt(format!("it lacks the times of series {series}"))
        };
        let times = self.slice(span, ticks).ok_or_else(lost)?;
        match times.is_sorted_by(|a, b| a < b) {
            true => Ok(times),
            false => Err(self
                .part
                .corrupt(format!("the times of series {series} do not descend"))),
        }
    }

    fn slice(&self, span: &TimeSpan, ticks: &Range<u64>) -> Option<&[i64]> {
        let rows = span.rows_of(ticks);
        let after = self.runs.partition_point(|(run, _)| run.start <= rows.start);
        let (run, before) = self.runs.get(after.checked_sub(1)?)?;
        if rows.end > run.end {
            return None;
        }
        let first = before + usize::try_from(rows.start - run.start).ok()?;
        let last = first + usize::try_from(rows.end - rows.start).ok()?;
        let len = self.backwards.len();
        self.backwards
            .get(len.checked_sub(last)?..len.checked_sub(first)?)
    }
}

impl TimesTable {
    pub(crate) fn new(part: PartFile) -> Self {
        Self { part }
    }

    pub(crate) fn set_cpu(&mut self, cpu: Cpu) {
        self.part.set_cpu(cpu);
    }

    pub(crate) fn part(&self) -> &PartFile {
        &self.part
    }

    /// Where the times of a series are, as it says.
    pub(crate) fn span(&self, series: &BlockSeries) -> Result<TimeSpan> {
        let (count, ticks) = (series.row_count, series.times_row_count);
        let end = u64::from(series.times_last_row) + 1;
        let is_sound = ticks >= count
            && ticks <= count.saturating_mul(TICKS_PER_TIME_MAX)
            && u64::from(ticks) <= end
            && end <= self.part.part().rows;
        if !is_sound {
            return Err(self.part.corrupt(format!(
                "series {} with {count} samples claims {ticks} of its {} rows, the last of them {}",
                series.labels,
                self.part.part().rows,
                series.times_last_row
            )));
        }
        Ok(TimeSpan {
            rows: end - u64::from(ticks)..end,
            range: series.range,
        })
    }

    /// The times of some rows, in any order, by one read; fetches only what is not cached of the pages they are on.
    pub(crate) async fn read(&self, mut rows: Vec<Range<u64>>) -> Result<Times> {
        rows.retain(|rows| !rows.is_empty());
        rows.sort_unstable_by_key(|rows| rows.start);
        let mut runs: Vec<(Range<u64>, usize)> = Vec::new();
        for rows in rows {
            match runs.last_mut() {
                Some((last, _)) if rows.start <= last.end => last.end = last.end.max(rows.end),
                last => {
                    let before = last.map_or(0, |(last, before)| *before + (last.end - last.start) as usize);
                    runs.push((rows, before));
                }
            }
        }
        if runs.is_empty() {
            return Ok(Times {
                part: self.part.clone(),
                runs,
                backwards: Vec::new(),
            });
        }
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let mut groups = Vec::new();
        for (group, rows) in self.groups(&footer)? {
            let inside = |(run, _): &(Range<u64>, usize)| {
                let part = run.start.max(rows.start)..run.end.min(rows.end);
                (!part.is_empty())
                    .then(|| (part.start - rows.start) as usize..(part.end - rows.start) as usize)
            };
            let inside: Vec<Range<usize>> = runs.iter().filter_map(inside).collect();
            if !inside.is_empty() {
                groups.push((group, (rows.end - rows.start) as usize, inside));
            }
        }
        let mut read: Vec<Vec<i64>> = stream::iter(groups)
            .map(|(group, total, inside)| self.read_group(&footer, group, total, inside))
            .buffered(GROUPS_AHEAD)
            .try_collect()
            .await?;
        let backwards = match read.len() {
            0 | 1 => read.pop().unwrap_or_default(),
            _ => {
                let joined = move || -> Vec<i64> { read.into_iter().rev().flatten().collect() };
                self.part.compute(joined).await?
            }
        };
        Ok(Times {
            part: self.part.clone(),
            runs,
            backwards,
        })
    }

    /// The row groups and their rows.
    fn groups(&self, footer: &ArrowReaderMetadata) -> Result<Vec<(u32, Range<u64>)>> {
        let mut groups = Vec::new();
        let mut end = 0u64;
        for (group, metadata) in (0u32..).zip(footer.metadata().row_groups()) {
            let rows = metadata.num_rows();
            if !(0..=GROUP_ROWS_MAX).contains(&rows) {
                return Err(self.part.corrupt(format!(
                    "row group {group} claims {rows} rows, limit {GROUP_ROWS_MAX}"
                )));
            }
            let start = end;
            end += rows as u64;
            groups.push((group, start..end));
        }
        if end != self.part.part().rows {
            let listed = self.part.part().rows;
            return Err(self
                .part
                .corrupt(format!("it has {end} rows, meta.json says {listed}")));
        }
        Ok(groups)
    }

    /// The times of some rows of a row group, the last one first.
    async fn read_group(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        total: usize,
        inside: Vec<Range<usize>>,
    ) -> Result<Vec<i64>> {
        let count = inside.iter().map(ExactSizeIterator::len).sum();
        let read = GroupRead {
            group,
            columns: ProjectionMask::columns(footer.parquet_schema(), [TIMESTAMP]),
            selection: Some(RowSelection::from_consecutive_ranges(inside.into_iter(), total)),
        };
        let backwards = Backwards {
            times: vec![0; count],
            left: count,
        };
        let fold = self
            .part
            .fold_group(footer, read, BATCH_ROWS, backwards, |part, backwards, batch| {
                backwards.add(part, &batch)
            });
        let Backwards { times, left } = fold.await?;
        match left {
            0 => Ok(times),
            _ => Err(self.part.corrupt("a page holds fewer times than its index says")),
        }
    }

    /// The ticks of a series that may lie in a range of times, as far as the index of pages tells.
    pub(crate) async fn ticks_in(&self, span: &TimeSpan, range: TimeRange) -> Result<Range<u64>> {
        if range.min <= span.range.min && span.range.max <= range.max {
            return Ok(0..span.ticks());
        }
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let mut pages = Vec::new();
        for (group, rows) in self.groups(&footer)? {
            if rows.start < span.rows.end && span.rows.start < rows.end {
                let index = self.part.group_index(&footer, group).await?;
                let Some(of_group) = timed_pages(&self.part, &index)? else {
                    return Ok(0..span.ticks());
                };
                let here = |page: TimedPage| TimedPage {
                    rows: page.rows.start + rows.start..page.rows.end + rows.start,
                    ..page
                };
                let around =
                    |page: &TimedPage| page.rows.start < span.rows.end && span.rows.start < page.rows.end;
                pages.extend(of_group.into_iter().map(here).filter(around));
            }
        }
        let mut ticks: Option<Range<u64>> = None;
        for (at, page) in pages.iter().enumerate() {
            let neighbour = |at: Option<usize>| at.and_then(|at| pages.get(at));
            let times = times_on(
                span,
                page,
                neighbour(at.checked_sub(1)),
                neighbour(at.checked_add(1)),
            );
            if range.overlaps(&times) {
                let rows = page.rows.start.max(span.rows.start)..page.rows.end.min(span.rows.end);
                let of_page = span.rows.end - rows.end..span.rows.end - rows.start;
                ticks = Some(match ticks {
                    None => of_page,
                    Some(ticks) => ticks.start.min(of_page.start)..ticks.end.max(of_page.end),
                });
            }
        }
        Ok(ticks.unwrap_or(0..0))
    }

    /// Checks that rows are numbered, which other readers rely on.
    pub(crate) async fn verify(&self) -> Result<()> {
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let mut next = 0;
        for (group, _) in self.groups(&footer)? {
            let read = GroupRead {
                group,
                columns: ProjectionMask::columns(footer.parquet_schema(), [TIME_ID]),
                selection: None,
            };
            let fold = self
                .part
                .fold_group(&footer, read, BATCH_ROWS, next, |part, next, batch| {
                    let ids = column(part, &batch, TIME_ID)?.as_primitive_opt::<UInt32Type>();
                    let ids = ids.filter(|ids| ids.null_count() == 0);
                    let ids =
                        ids.ok_or_else(|| part.corrupt(format!("column {TIME_ID} has the wrong type")))?;
                    for &id in ids.values() {
                        if u64::from(id) != *next {
                            return Err(part.corrupt(format!("row {next} has number {id}")));
                        }
                        *next += 1;
                    }
                    Ok(())
                });
            next = fold.await?;
        }
        match next == self.part.part().rows {
            true => Ok(()),
            false => Err(self
                .part
                .corrupt(format!("it has {next} times, meta.json says another number"))),
        }
    }
}

/// When those times of a series are that are on a page, of which the neighbours tell where the times of others stand there, too.
/// From page to page the times of a series descend.
fn times_on(
    span: &TimeSpan,
    page: &TimedPage,
    before: Option<&TimedPage>,
    after: Option<&TimedPage>,
) -> TimeRange {
    let own = |page: &&TimedPage| span.rows.start <= page.rows.start && page.rows.end <= span.rows.end;
    if let Some(times) = Some(page).filter(own).and_then(|page| page.times) {
        return times;
    }
    let newer = before.filter(own).and_then(|page| page.times);
    let older = after.filter(own).and_then(|page| page.times);
    TimeRange {
        min: older.map_or(span.range.min, |times| times.max),
        max: newer.map_or(span.range.max, |times| times.min),
    }
}

/// Rows on their way into [`Times`].
struct Backwards {
    times: Vec<i64>,
    /// How many are still to come.
    left: usize,
}

impl Backwards {
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let read = times(part, batch, TIMESTAMP)?;
        let from = self.left.checked_sub(read.len());
        let slots = from.and_then(|from| self.times.get_mut(from..self.left));
        let slots = slots.ok_or_else(|| part.corrupt("a page holds more times than its index says"))?;
        for (slot, &time) in slots.iter_mut().zip(read.iter().rev()) {
            *slot = time;
        }
        self.left -= read.len();
        Ok(())
    }
}
