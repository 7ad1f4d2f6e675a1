//! Reads `times.parquet`: the times of chosen series.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{Array, RecordBatch};
use arrow_schema::Schema;
use koios_model::{Labels, TimeRange};
use koios_runtime::Cpu;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};

use crate::Result;
use crate::held_cells::HeldCells;
use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::row_chunk::{column, times};
use crate::row_plan::GROUP_ROWS_MAX;
use crate::schema::{TIME_ID, TIMESTAMP};
use crate::shared_times::TICKS_PER_TIME_MAX;
use crate::timed_pages::{TimedPage, timed_pages};

/// Decoded at a time.
const BATCH_ROWS: usize = 1 << 14;
/// Most row groups, and about the most bytes, that are fetched together. The times of a row group of samples are mostly in one
/// or two; this many only if a hundred million series have a sample each.
const GROUPS_TOGETHER: usize = 256;
const BYTES_TOGETHER: u64 = 64 << 20;

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

    pub(crate) fn set_held(&mut self, held: HeldCells) {
        self.part.set_held(held);
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

    /// Reads where its row groups are.
    pub(crate) async fn open(&self) -> Result<TimeGroups> {
        let footer = self.part.footer(Arc::<Schema>::clone).await?;
        let mut ends = Vec::new();
        let mut end = 0u64;
        for (group, metadata) in footer.metadata().row_groups().iter().enumerate() {
            let rows = metadata.num_rows();
            // An empty one holds nothing, and there could be any number of them.
            if !(1..=GROUP_ROWS_MAX).contains(&rows) {
                return Err(self.part.corrupt(format!(
                    "row group {group} claims {rows} rows, there must be 1 to {GROUP_ROWS_MAX}"
                )));
            }
            end += rows.unsigned_abs();
            ends.push(end);
        }
        if end != self.part.part().rows {
            let listed = self.part.part().rows;
            return Err(self
                .part
                .corrupt(format!("it has {end} rows, meta.json says {listed}")));
        }
        Ok(TimeGroups {
            part: self.part.clone(),
            footer,
            ends: ends.into(),
        })
    }

    /// Checks that rows are numbered, which other readers rely on.
    pub(crate) async fn verify(&self) -> Result<()> {
        let TimeGroups { footer, ends, .. } = self.open().await?;
        let mut next = 0;
        for (group, _) in (0u32..).zip(ends.iter()) {
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

/// The row groups of times.
#[derive(Clone, Debug)]
pub(crate) struct TimeGroups {
    part: PartFile,
    footer: ArrowReaderMetadata,
    /// The rows up to the end of each; they strictly ascend.
    ends: Arc<[u64]>,
}

/// What is read of a row group.
struct Inside {
    group: usize,
    /// Relative to the row group; ascending and disjoint.
    rows: Vec<Range<usize>>,
}

impl TimeGroups {
    /// The rows of a row group.
    fn rows(&self, group: usize) -> Range<u64> {
        let end_of = |group: Option<usize>| group.and_then(|group| self.ends.get(group)).copied();
        end_of(group.checked_sub(1)).unwrap_or(0)..end_of(Some(group)).unwrap_or(0)
    }

    /// Splits ascending, disjoint runs by row group.
    fn split(&self, runs: &[Range<u64>]) -> Vec<Inside> {
        let mut split: Vec<Inside> = Vec::new();
        for run in runs {
            let mut from = run.start;
            let mut group = self.ends.partition_point(|&end| end <= from);
            while let Some(&end) = self.ends.get(group).filter(|_| from < run.end) {
                let start = self.rows(group).start;
                let to = run.end.min(end);
                let rows = (from - start) as usize..(to - start) as usize;
                match split.last_mut() {
                    Some(last) if last.group == group => last.rows.push(rows),
                    _ => split.push(Inside {
                        group,
                        rows: vec![rows; 1],
                    }),
                }
                from = to;
                group += 1;
            }
        }
        split
    }

    /// How many of these row groups, which are not none, are read together.
    fn together(&self, split: &[Inside]) -> usize {
        let groups = self.footer.metadata().row_groups();
        let mut bytes = 0u64;
        let fits = |inside: &&Inside| {
            let size = groups
                .get(inside.group)
                .map_or(0, |group| group.compressed_size());
            bytes = bytes.saturating_add(size.unsigned_abs());
            bytes <= BYTES_TOGETHER
        };
        split.iter().take(GROUPS_TOGETHER).take_while(fits).count().max(1)
    }

    /// The pages that some rows, in any order, are on. What is not cached of the indexes that tell is fetched together.
    pub(crate) async fn pages(&self, rows: Vec<Range<u64>>) -> Result<TimePages> {
        let mut pages = Some(Vec::new());
        for together in self.split(&runs(rows)).chunks(GROUPS_TOGETHER) {
            let groups = together.iter().map(|inside| inside.group as u32);
            let groups: Vec<u32> = groups.collect();
            let indexes = self.part.group_indexes(&self.footer, &groups).await?;
            for (inside, index) in together.iter().zip(indexes) {
                let start = self.rows(inside.group).start;
                let here = |page: TimedPage| TimedPage {
                    rows: page.rows.start + start..page.rows.end + start,
                    ..page
                };
                match (timed_pages(&self.part, &index)?, &mut pages) {
                    (Some(of_group), Some(pages)) => pages.extend(of_group.into_iter().map(here)),
                    _ => pages = None,
                }
            }
        }
        Ok(TimePages(pages))
    }

    /// The times of some rows, in any order, by one read; fetches only what is not cached of the pages they are on, all of it
    /// together.
    pub(crate) async fn read(&self, rows: Vec<Range<u64>>) -> Result<Times> {
        let runs = runs(rows);
        let split = self.split(&runs);
        let count = split.iter().flat_map(|inside| &inside.rows);
        let count = count.map(ExactSizeIterator::len).sum();
        let mut backwards = Backwards {
            times: vec![0; count],
            left: count,
        };
        let mut left = split.as_slice();
        while let Some((together, rest)) = left.split_at_checked(self.together(left))
            && !together.is_empty()
        {
            backwards = self.read_together(together, backwards).await?;
            left = rest;
        }
        let mut before = 0;
        let counted = |run: Range<u64>| {
            let first = before;
            before += (run.end - run.start) as usize;
            (run, first)
        };
        Ok(Times {
            part: self.part.clone(),
            runs: runs.into_iter().map(counted).collect(),
            backwards: backwards.times,
        })
    }

    /// How some rows of a row group are read.
    fn group_read(&self, inside: &Inside) -> GroupRead {
        let rows = self.rows(inside.group);
        let total = (rows.end - rows.start) as usize;
        GroupRead {
            group: inside.group as u32,
            columns: ProjectionMask::columns(self.footer.parquet_schema(), [TIMESTAMP]),
            selection: Some(RowSelection::from_consecutive_ranges(
                inside.rows.iter().cloned(),
                total,
            )),
        }
    }

    /// Fetches what reading some rows, in any order, begins with, for this read to hold until it does.
    pub(crate) async fn fetch_ahead(&self, rows: Vec<Range<u64>>) -> Result<()> {
        for together in self.split(&runs(rows)).chunks(GROUPS_TOGETHER) {
            let groups: Vec<u32> = together.iter().map(|inside| inside.group as u32).collect();
            let indexes = self.part.group_indexes(&self.footer, &groups).await?;
            let reads = together.iter().map(|inside| self.group_read(inside));
            self.part.fetch_groups_ahead(reads.zip(indexes).collect()).await?;
        }
        Ok(())
    }

    async fn read_together(&self, together: &[Inside], mut backwards: Backwards) -> Result<Backwards> {
        let reads = together.iter().map(|inside| self.group_read(inside)).collect();
        let fetched = self.part.fetch_groups(&self.footer, reads, BATCH_ROWS).await?;
        for (inside, fetched) in together.iter().zip(fetched) {
            let count: usize = inside.rows.iter().map(ExactSizeIterator::len).sum();
            let left = backwards.left.checked_sub(count);
            let fold =
                self.part
                    .fold_fetched(fetched, backwards, |part, backwards: &mut Backwards, batch| {
                        backwards.add(part, &batch)
                    });
            backwards = fold.await?;
            if left != Some(backwards.left) {
                return Err(self
                    .part
                    .corrupt("a page holds another number of times than its index says"));
            }
        }
        Ok(backwards)
    }
}

/// Joins rows in any order to ascending, disjoint runs.
fn runs(mut rows: Vec<Range<u64>>) -> Vec<Range<u64>> {
    rows.retain(|rows| !rows.is_empty());
    rows.sort_unstable_by_key(|rows| rows.start);
    let mut runs: Vec<Range<u64>> = Vec::new();
    for rows in rows {
        match runs.last_mut() {
            Some(last) if rows.start <= last.end => last.end = last.end.max(rows.end),
            _ => runs.push(rows),
        }
    }
    runs
}

/// Pages of times, ascending; `None` where there is no index of them.
#[derive(Debug)]
pub(crate) struct TimePages(Option<Vec<TimedPage>>);

impl TimePages {
    /// Those of `ticks` of a series, of which the pages were asked for, that may lie in a range of times.
    pub(crate) fn ticks_in(&self, span: &TimeSpan, ticks: Range<u64>, range: TimeRange) -> Range<u64> {
        let is_covered = range.min <= span.range.min && span.range.max <= range.max;
        let Some(pages) = self.0.as_ref().filter(|_| !is_covered) else {
            return ticks;
        };
        let rows = span.rows_of(&ticks);
        let first = pages.partition_point(|page| page.rows.end <= rows.start);
        let mut inside: Option<Range<u64>> = None;
        for (at, page) in pages.iter().enumerate().skip(first) {
            if page.rows.start >= rows.end {
                break;
            }
            let neighbour = |at: Option<usize>| at.and_then(|at| pages.get(at));
            let times = times_on(
                span,
                page,
                neighbour(at.checked_sub(1)),
                neighbour(at.checked_add(1)),
            );
            if range.overlaps(&times) {
                let here = page.rows.start.max(rows.start)..page.rows.end.min(rows.end);
                let start = inside.map_or(here.start, |inside| inside.start);
                inside = Some(start..here.end);
            }
        }
        // Rows ascend where ticks descend.
        inside.map_or(0..0, |rows| span.rows.end - rows.end..span.rows.end - rows.start)
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
