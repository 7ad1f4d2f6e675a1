//! Reads `samples.parquet`: the rows of chosen series inside a range of times.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int64Type, TimestampMillisecondType};
use arrow_array::{Array, RecordBatch, TimestampMillisecondArray};
use arrow_buffer::NullBuffer;
use arrow_schema::Schema;
use arrow_select::concat::concat_batches;
use futures::Stream;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use koios_chunk::{Chunk, Encoder, Starts, decimal};
use koios_model::{Labels, TimeRange};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use crate::Result;
use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::schema::{EXPONENT, FLOAT, MANTISSA, START_TIMESTAMP, TIMESTAMP};

/// Most rows in a row group that is read; writers end them at an eighth of it.
const GROUP_ROWS_MAX: i64 = 4 << 20;
/// Decoded at a time: a row is 25 bytes then, and several row groups are decoded at once.
const BATCH_ROWS: usize = 1 << 14;
/// The largest power of ten that is exact in a float.
pub(crate) const EXPONENT_MAX: u8 = 22;
/// Why a row with two values is refused.
const BOTH_SET: &str = "a sample has both a mantissa and a float";

/// The samples of one series.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeriesSamples {
    /// Milliseconds since the epoch, strictly ascending.
    pub timestamps: Vec<i64>,
    /// Values, bit-exact, as many as timestamps.
    pub values: Vec<f64>,
    /// Start timestamps of those that have one, each with the time of its sample, strictly ascending.
    pub starts: Vec<(i64, i64)>,
}

/// A form that the rows of a series are given in.
pub(crate) trait Form: Default + Send + Sized + 'static {
    /// From neighbouring rows of a series, which descend in time.
    fn new(rows: &SampleRows<'_>, at: Range<usize>, series: &Labels, scratch: &mut Scratch) -> Result<Self>;

    /// How many samples it has.
    fn count(&self) -> usize;

    /// Its first and last time, if it has any samples.
    fn ends(&self) -> Option<TimeRange>;

    /// Moves what comes after it in time to its end.
    fn append(&mut self, later: &mut Self);
}

/// What forms are made with, kept from one series to the next.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    encoder: Encoder,
    timestamps: Vec<i64>,
    mantissas: Vec<i64>,
}

impl Form for SeriesSamples {
    fn new(rows: &SampleRows<'_>, at: Range<usize>, _: &Labels, _: &mut Scratch) -> Result<Self> {
        let mut samples = Self {
            timestamps: rows.timestamps_of(at.clone()).rev().collect(),
            values: Vec::with_capacity(at.len()),
            starts: Vec::new(),
        };
        rows.starts(at.clone())
            .append_at(&samples.timestamps, &mut samples.starts);
        rows.append_values(at, &mut samples.values)?;
        samples.values.reverse();
        Ok(samples)
    }

    fn count(&self) -> usize {
        self.timestamps.len()
    }

    fn ends(&self) -> Option<TimeRange> {
        let ends = self.timestamps.first().zip(self.timestamps.last());
        ends.map(|(&first, &last)| TimeRange::new(first, last))
    }

    fn append(&mut self, later: &mut Self) {
        self.timestamps.append(&mut later.timestamps);
        self.values.append(&mut later.values);
        self.starts.append(&mut later.starts);
    }
}

impl Form for Vec<Chunk> {
    fn new(rows: &SampleRows<'_>, at: Range<usize>, series: &Labels, scratch: &mut Scratch) -> Result<Self> {
        let mut chunks = Self::new();
        let starts = rows.starts(at.clone());
        let encoded = if let Some((mantissas, exponent)) = rows.decimals(&at)? {
            scratch.timestamps.clear();
            scratch.timestamps.extend(rows.timestamps_of(at).rev());
            scratch.mantissas.clear();
            scratch.mantissas.extend(mantissas.iter().rev());
            let Scratch {
                encoder,
                timestamps,
                mantissas,
            } = scratch;
            encoder.encode_decimals(timestamps, mantissas, exponent, &mut chunks)
        } else {
            let samples = <SeriesSamples as Form>::new(rows, at, series, scratch)?;
            let encoder = &mut scratch.encoder;
            encoder.encode_run(&samples.timestamps, &samples.values, &mut chunks)
        };
        let started = encoded.and_then(|()| match starts.is_empty() {
            true => Ok(chunks),
            false => chunks.into_iter().map(|c| c.with_starts(&starts)).collect(),
        });
        started.map_err(|e| rows.part.corrupt_samples(series, e))
    }

    fn count(&self) -> usize {
        self.iter().map(Chunk::count).sum()
    }

    fn ends(&self) -> Option<TimeRange> {
        let (first, last) = self.first().zip(self.last())?;
        Some(first.time_range().union(&last.time_range()))
    }

    fn append(&mut self, later: &mut Self) {
        Self::append(self, later);
    }
}

/// A series to read, and whether all of it (and kept by the reader) or what lies on pages around a range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) series: &'a BlockSeries,
    pub(crate) whole: bool,
}

/// The rows of a series in a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<'a> {
    pub(crate) series: &'a Labels,
    pub(crate) first_row: u64,
    /// Not 0.
    pub(crate) row_count: u32,
    pub(crate) whole: bool,
}

/// What one row group holds of the series asked for.
#[derive(Debug)]
pub(crate) struct GroupPlan {
    pub(crate) group: u32,
    pub(crate) pieces: Vec<Piece>,
}

/// Rows of one series in one row group.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) series: Labels,
    /// Relative to the row group.
    pub(crate) rows: Range<u64>,
    /// Whether the series ends here.
    pub(crate) last: bool,
    /// Whether all of it is read, whatever the range, and kept by the reader.
    whole: bool,
}

/// What the rows of a piece became.
#[derive(Debug)]
struct Made<F> {
    form: F,
    piece: Piece,
}

/// Streams the samples inside `range` of series that are in the block's order.
pub(crate) fn stream(
    part: PartFile,
    series: Vec<BlockSeries>,
    range: TimeRange,
    groups_ahead: usize,
) -> BoxStream<'static, Result<SeriesSamples>> {
    stream::once(async move {
        let wanted = series.iter().map(|series| Wanted { series, whole: false });
        read(part, wanted, range, groups_ahead).await
    })
    .try_flatten()
    .boxed()
}

/// Reads series that are in the block's order, in either form; one item for each.
pub(crate) async fn read<'a, F: Form>(
    part: PartFile,
    wanted: impl Iterator<Item = Wanted<'a>>,
    range: TimeRange,
    groups_ahead: usize,
) -> Result<BoxStream<'static, Result<F>>> {
    let footer = part.footer(Arc::<Schema>::clone).await?;
    let spans = wanted.map(|Wanted { series, whole }| Span {
        series: &series.labels,
        first_row: series.first_row,
        row_count: series.row_count,
        whole,
    });
    let plans = plan(&part, &footer, spans)?;
    let of_groups = part.clone();
    let pieces = stream::iter(plans)
        .map(move |plan| {
            let (part, footer) = (of_groups.clone(), footer.clone());
            async move { read_group(&part, &footer, plan, range).await }
        })
        .buffered(groups_ahead)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok)))
        .try_flatten();
    Ok(join_pieces(part, pieces.boxed()).boxed())
}

/// A series split over row groups becomes one item again.
fn join_pieces<F: Form>(
    part: PartFile,
    pieces: BoxStream<'static, Result<Made<F>>>,
) -> impl Stream<Item = Result<F>> + Send + use<F> {
    stream::try_unfold((part, pieces), |(part, mut pieces)| async move {
        let mut of_series = Vec::new();
        while let Some(Made { form, piece }) = pieces.try_next().await? {
            of_series.push(form);
            if piece.last {
                let whole = join(of_series).map_err(|e| part.corrupt_samples(&piece.series, e))?;
                return Ok(Some((whole, (part, pieces))));
            }
        }
        Ok(None)
    })
}

/// Joins what row groups hold of a series, in their order: rows descend in time, also from one row group to the next.
fn join<F: Form>(mut newest_first: Vec<F>) -> Result<F, koios_chunk::Error> {
    let mut whole = newest_first.pop().unwrap_or_default();
    while let Some(mut later) = newest_first.pop() {
        if let Some((before, after)) = whole.ends().zip(later.ends())
            && before.max >= after.min
        {
            return Err(koios_chunk::Error::NotAscending { at: whole.count() });
        }
        whole.append(&mut later);
    }
    Ok(whole)
}

/// Splits the series' spans by row group.
pub(crate) fn plan<'a>(
    part: &PartFile,
    footer: &ArrowReaderMetadata,
    spans: impl Iterator<Item = Span<'a>>,
) -> Result<Vec<GroupPlan>> {
    let mut groups = VecDeque::new();
    let mut end = 0u64;
    for (i, group) in footer.metadata().row_groups().iter().enumerate() {
        let rows = group.num_rows();
        if !(0..=GROUP_ROWS_MAX).contains(&rows) {
            return Err(part.corrupt(format!(
                "row group {i} claims {rows} rows, limit {GROUP_ROWS_MAX}"
            )));
        }
        groups.push_back((i as u32, end..end + rows as u64));
        end += rows as u64;
    }
    let mut plans: Vec<GroupPlan> = Vec::new();
    let mut at = 0u64;
    for s in spans {
        let span = s.first_row..s.first_row.saturating_add(u64::from(s.row_count));
        if span.start < at || span.end > end || span.is_empty() {
            return Err(part.corrupt(format!(
                "series {} claims rows {span:?}, which overlap another's or exceed the {end} there are",
                s.series
            )));
        }
        at = span.end;
        while let Some((group, rows)) = groups.front().cloned() {
            if rows.end <= span.start {
                groups.pop_front();
                continue;
            }
            let piece = Piece {
                series: s.series.clone(),
                rows: span.start.max(rows.start) - rows.start..span.end.min(rows.end) - rows.start,
                last: span.end <= rows.end,
                whole: s.whole,
            };
            let last = piece.last;
            match plans.last_mut() {
                Some(p) if p.group == group => p.pieces.push(piece),
                _ => plans.push(GroupPlan {
                    group,
                    pieces: vec![piece],
                }),
            }
            if last {
                break;
            }
            groups.pop_front();
        }
    }
    Ok(plans)
}

async fn read_group<F: Form>(
    part: &PartFile,
    footer: &ArrowReaderMetadata,
    plan: GroupPlan,
    range: TimeRange,
) -> Result<Vec<Made<F>>> {
    let group = plan.group;
    let index = part.group_index(footer, group).await?;
    let kept = pages_in_range(part, &index, range)?;
    let chosen = |piece: &Piece| match piece.whole {
        true => vec![piece.rows.clone(); 1],
        false => intersect(&piece.rows, &kept),
    };
    let chosen: Vec<Vec<Range<u64>>> = plan.pieces.iter().map(chosen).collect();
    let total = usize::try_from(index.metadata().row_group(0).num_rows()).unwrap_or(0);
    let ranges = chosen.iter().flatten().map(|r| r.start as usize..r.end as usize);
    let selection = RowSelection::from_consecutive_ranges(ranges, total);
    let selects_any = selection.selects_any();
    let kept_by_reader = plan.pieces.iter().filter(|p| p.whole).map(|p| p.rows.clone());
    let kept_by_reader: Vec<Range<u64>> = kept_by_reader.collect();
    let schema = footer.parquet_schema();
    let read = GroupRead {
        group,
        columns: ProjectionMask::columns(schema, [TIMESTAMP, EXPONENT, MANTISSA, FLOAT, START_TIMESTAMP]),
        selection: Some(selection),
    };
    let counts = chosen
        .iter()
        .map(|ranges| ranges.iter().map(|r| r.end - r.start).sum());
    let counts = counts.map(|count: u64| usize::try_from(count).unwrap_or(usize::MAX));
    let mut reading = Reading {
        range,
        pieces: plan.pieces.into_iter().zip(counts).collect(),
        carried: Vec::new(),
        carried_rows: 0,
        scratch: Scratch::default(),
        made: Vec::new(),
    };
    if selects_any {
        let fold = part.fold_group(footer, read, BATCH_ROWS, reading, |part, reading, batch| {
            reading.add(part, &batch)
        });
        reading = fold.await?;
    }
    let made = reading.finish(part)?;
    part.forget_used_up(group, &index, &kept_by_reader);
    Ok(made)
}

/// The rows of a group on their way to what is made of them.
#[derive(Debug)]
struct Reading<F> {
    range: TimeRange,
    /// What is still to be made, each with its number of rows.
    pieces: VecDeque<(Piece, usize)>,
    /// Rows of the first of them from batches before.
    carried: Vec<RecordBatch>,
    carried_rows: usize,
    scratch: Scratch,
    made: Vec<Made<F>>,
}

impl<F: Form> Reading<F> {
    /// Takes the next rows.
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let rows = SampleRows::new(part, batch)?;
        let mut at = 0;
        while at < batch.num_rows() {
            self.make_empty_ones();
            let Some((piece, count)) = self.pieces.pop_front() else {
                return Err(part.corrupt("a page holds more rows than its index says"));
            };
            let needed = count - self.carried_rows;
            let here = needed.min(batch.num_rows() - at);
            if here == count {
                self.make(&rows, at..at + here, piece)?;
            } else {
                self.carried.push(batch.slice(at, here));
                self.carried_rows += here;
                if here < needed {
                    self.pieces.push_front((piece, count));
                } else {
                    let joined = concat_batches(batch.schema_ref(), &std::mem::take(&mut self.carried));
                    let joined = joined.map_err(|e| part.corrupt(e))?;
                    self.carried_rows = 0;
                    self.make(&SampleRows::new(part, &joined)?, 0..count, piece)?;
                }
            }
            at += here;
        }
        Ok(())
    }

    fn make(&mut self, rows: &SampleRows<'_>, at: Range<usize>, piece: Piece) -> Result<()> {
        let wanted = if piece.whole { TimeRange::ALL } else { self.range };
        let at = rows.within(at, wanted);
        let form = F::new(rows, at, &piece.series, &mut self.scratch)?;
        self.made.push(Made { form, piece });
        Ok(())
    }

    /// Pieces of which no page is in range.
    fn make_empty_ones(&mut self) {
        while self.pieces.front().is_some_and(|(_, count)| *count == 0) {
            let form = F::default();
            let made = self.pieces.pop_front().map(|(piece, _)| Made { form, piece });
            self.made.extend(made);
        }
    }

    fn finish(mut self, part: &PartFile) -> Result<Vec<Made<F>>> {
        self.make_empty_ones();
        match self.pieces.is_empty() {
            true => Ok(self.made),
            false => Err(part.corrupt("a page holds fewer rows than its index says")),
        }
    }
}

/// The rows of a group on pages whose times overlap the range, ascending.
fn pages_in_range(part: &PartFile, index: &ArrowReaderMetadata, range: TimeRange) -> Result<Vec<Range<u64>>> {
    let metadata = index.metadata();
    let rows = u64::try_from(metadata.row_group(0).num_rows()).unwrap_or(0);
    let column = index
        .parquet_schema()
        .columns()
        .iter()
        .position(|c| c.path().parts() == [TIMESTAMP])
        .ok_or_else(|| part.corrupt(format!("it lacks column {TIMESTAMP}")))?;
    let Some(provider) = metadata.page_index() else {
        return Ok(vec![0..rows; 1]);
    };
    let (Some(ColumnIndexMetaData::INT64(times)), Some(offsets)) =
        (provider.column_index(0, column), provider.offset_index(0, column))
    else {
        return Ok(vec![0..rows; 1]);
    };
    let starts: Vec<u64> = offsets
        .page_locations()
        .iter()
        .map(|p| u64::try_from(p.first_row_index).unwrap_or(u64::MAX))
        .collect();
    if !starts.is_sorted_by(|a, b| a < b) {
        return Err(part.corrupt(format!("the pages of {TIMESTAMP} are out of order")));
    }
    let mut kept: Vec<Range<u64>> = Vec::new();
    for (page, &start) in starts.iter().enumerate() {
        let end = starts.get(page + 1).copied().unwrap_or(rows).min(rows);
        let overlaps = match (times.min_value(page), times.max_value(page)) {
            (Some(&min), Some(&max)) => range.overlaps(&TimeRange::new(min, max)),
            _ => true,
        };
        if overlaps && start < end {
            match kept.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => kept.push(start..end),
            }
        }
    }
    Ok(kept)
}

/// The parts of `span` inside ascending, disjoint `kept`.
fn intersect(span: &Range<u64>, kept: &[Range<u64>]) -> Vec<Range<u64>> {
    let from = kept.partition_point(|k| k.end <= span.start);
    kept.iter()
        .skip(from)
        .take_while(|k| k.start < span.end)
        .map(|k| k.start.max(span.start)..k.end.min(span.end))
        .collect()
}

/// Decoded columns of some rows.
#[derive(Debug)]
pub(crate) struct SampleRows<'a> {
    part: &'a PartFile,
    timestamps: &'a [i64],
    exponents: &'a [i8],
    mantissas: &'a arrow_array::Int64Array,
    floats: &'a arrow_array::Float64Array,
    /// None where no sample of the block has one.
    starts: Option<&'a TimestampMillisecondArray>,
}

impl<'a> SampleRows<'a> {
    fn new(part: &'a PartFile, batch: &'a RecordBatch) -> Result<Self> {
        let wrong = |name: &str| {
            part.corrupt(format!(
                "column {name} is missing, of the wrong type, or has nulls"
            ))
        };
        let dense = |name: &str| batch.column_by_name(name).filter(|c| c.null_count() == 0);
        Ok(Self {
            part,
            timestamps: dense(TIMESTAMP)
                .and_then(|c| c.as_primitive_opt::<TimestampMillisecondType>())
                .map(|a| a.values().as_ref())
                .ok_or_else(|| wrong(TIMESTAMP))?,
            exponents: dense(EXPONENT)
                .and_then(|c| c.as_primitive_opt::<Int8Type>())
                .map(|a| a.values().as_ref())
                .ok_or_else(|| wrong(EXPONENT))?,
            mantissas: batch
                .column_by_name(MANTISSA)
                .and_then(|c| c.as_primitive_opt::<Int64Type>())
                .ok_or_else(|| wrong(MANTISSA))?,
            floats: batch
                .column_by_name(FLOAT)
                .and_then(|c| c.as_primitive_opt::<Float64Type>())
                .ok_or_else(|| wrong(FLOAT))?,
            starts: match batch.column_by_name(START_TIMESTAMP) {
                None => None,
                Some(c) => Some(
                    c.as_primitive_opt::<TimestampMillisecondType>()
                        .ok_or_else(|| wrong(START_TIMESTAMP))?,
                ),
            },
        })
    }

    /// Which of the rows of one series lie in `range`.
    fn within(&self, rows: Range<usize>, range: TimeRange) -> Range<usize> {
        // Rows of a series descend in time.
        let times = self.timestamps.get(rows.clone()).unwrap_or_default();
        let from = rows.start + times.partition_point(|&t| t > range.max);
        let to = rows.start + times.partition_point(|&t| t >= range.min);
        from..to.max(from)
    }

    fn timestamps_of(&self, rows: Range<usize>) -> impl DoubleEndedIterator<Item = i64> + ExactSizeIterator {
        self.timestamps.get(rows).unwrap_or_default().iter().copied()
    }

    /// The start timestamps of the rows.
    fn starts(&self, rows: Range<usize>) -> Starts {
        let mut out = Starts::default();
        if let Some(starts) = self.starts {
            for row in rows.rev() {
                let t = self.timestamps.get(row).copied().unwrap_or(0);
                out.push(
                    t,
                    if starts.is_valid(row) {
                        starts.value(row)
                    } else {
                        0
                    },
                );
            }
        }
        out
    }

    /// The mantissas of the rows and their one exponent, where they are all decimals of the same. Most series are.
    fn decimals(&self, rows: &Range<usize>) -> Result<Option<(&'a [i64], u8)>> {
        let exponents = self.exponents.get(rows.clone()).unwrap_or_default();
        let Some(&exponent) = exponents.first() else {
            return Ok(None);
        };
        let set = |nulls: Option<&NullBuffer>| {
            let nulls = nulls.map_or(0, |n| n.slice(rows.start, rows.len()).null_count());
            rows.len() - nulls
        };
        let (mantissas, floats) = (set(self.mantissas.nulls()), set(self.floats.nulls()));
        if mantissas + floats > rows.len() {
            return Err(self.part.corrupt(BOTH_SET));
        }
        if mantissas < rows.len() || exponents.iter().any(|&e| e != exponent) {
            return Ok(None);
        }
        let mantissas = self.mantissas.values().get(rows.clone()).unwrap_or_default();
        Ok(Some((mantissas, self.checked_exponent(exponent)?)))
    }

    /// Most runs are all decimals of one exponent or all floats, and then need no look at single rows.
    fn append_values(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<()> {
        if let Some((mantissas, exponent)) = self.decimals(&rows)? {
            let decimals = mantissas.iter();
            out.extend(decimals.map(|&m| decimal::from_mantissa(m, exponent)));
            return Ok(());
        }
        let floats = self.floats.slice(rows.start, rows.len());
        if floats.null_count() == 0 {
            out.extend_from_slice(floats.values());
            return Ok(());
        }
        for row in rows {
            out.push(self.value(row)?);
        }
        Ok(())
    }

    fn checked_exponent(&self, exponent: i8) -> Result<u8> {
        match u8::try_from(exponent) {
            Ok(e) if e <= EXPONENT_MAX => Ok(e),
            _ => Err(self.part.corrupt(format!("a sample has exponent {exponent}"))),
        }
    }

    fn value(&self, row: usize) -> Result<f64> {
        match (self.mantissas.is_valid(row), self.floats.is_valid(row)) {
            (true, false) => {
                let exponent = self.checked_exponent(self.exponents[row])?;
                Ok(decimal::from_mantissa(self.mantissas.value(row), exponent))
            }
            (false, true) => Ok(self.floats.value(row)),
            (true, true) => Err(self.part.corrupt(BOTH_SET)),
            (false, false) => Err(self.part.corrupt("a sample has neither a mantissa nor a float")),
        }
    }
}
