//! Reads `histograms.parquet`: all histograms of chosen series.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int32Type, TimestampMillisecondType};
use arrow_array::{Array, ArrayRef, ListArray, RecordBatch, TimestampMillisecondArray};
use arrow_buffer::NullBuffer;
use arrow_schema::Schema;
use koios_chunk::{Chunk, Starts, encode_histograms};
use koios_model::{Histogram, Labels, ResetHint, spans_of};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::RowSelection;

use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::row_plan::{Piece, Span, plan};
use crate::schema::{
    COUNT, CUSTOM_BOUNDS, NEGATIVE, NEGATIVE_COUNTS, POSITIVE, POSITIVE_COUNTS, RESET_HINT, SCHEMA,
    START_TIMESTAMP, SUM, TIMESTAMP, ZERO_COUNT, ZERO_THRESHOLD,
};
use crate::{Error, Result};

/// Histograms in a chunk: enough that what a chunk costs is little beside them.
const CHUNK_HISTOGRAMS: usize = 240;
/// Decoded at a time.
const BATCH_ROWS: usize = 4096;

/// All histograms of series that are in the block's order and have some, as chunks, one entry for each. Whether the reader
/// keeps them is `kept`.
pub(crate) async fn read_histograms(
    part: &PartFile,
    series: &[BlockSeries],
    kept: bool,
) -> Result<Vec<Vec<Chunk>>> {
    let footer = part.footer(Arc::<Schema>::clone).await?;
    let spans = series.iter().map(|s| Span {
        series: &s.labels,
        first_row: s.histogram_first_row,
        row_count: s.histogram_count,
        whole: kept,
        times: None,
    });
    let mut all: Vec<Vec<Chunk>> = Vec::with_capacity(series.len());
    let mut current = Series::default();
    for group in plan(part, &footer, spans)? {
        let total = footer.metadata().row_groups().get(group.group as usize);
        let total = total.map_or(0, |g| usize::try_from(g.num_rows()).unwrap_or(0));
        let rows = group
            .pieces
            .iter()
            .map(|p| p.rows.start as usize..p.rows.end as usize);
        let all_rows: Vec<Range<u64>> = group.pieces.iter().map(|p| p.rows.clone()).collect();
        let read = GroupRead {
            group: group.group,
            columns: ProjectionMask::all(),
            selection: Some(RowSelection::from_consecutive_ranges(rows, total)),
        };
        let reading = Reading {
            pieces: group.pieces.into_iter(),
            left: 0,
            current,
            all,
        };
        let mut done = part
            .fold_group(&footer, read, BATCH_ROWS, reading, |part, reading, batch| {
                reading.add(part, &batch)
            })
            .await?;
        done.close_finished(part)?;
        if done.left > 0 || done.pieces.len() > 0 {
            return Err(part.corrupt("a page holds fewer histograms than its index says"));
        }
        if kept {
            let index = part.group_index(&footer, group.group).await?;
            part.forget_used_up(group.group, &index, &all_rows);
        }
        (all, current) = (done.all, done.current);
    }
    if all.len() != series.len() {
        return Err(part.corrupt("it lacks histograms that its series announce"));
    }
    Ok(all)
}

/// What is known of the series that is being read.
#[derive(Debug, Default)]
struct Series {
    labels: Option<Labels>,
    last: bool,
    histograms: Vec<(i64, Histogram)>,
    starts: Starts,
}

/// Rows of a row group on their way into chunks.
#[derive(Debug)]
struct Reading {
    pieces: std::vec::IntoIter<Piece>,
    /// Rows of the current piece that have not come yet.
    left: usize,
    current: Series,
    all: Vec<Vec<Chunk>>,
}

impl Reading {
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let rows = Rows::new(part, batch)?;
        for row in 0..batch.num_rows() {
            if self.left == 0 {
                self.close_finished(part)?;
                let Some(piece) = self.pieces.next() else {
                    return Err(part.corrupt("it has more histograms than its series announce"));
                };
                self.left = usize::try_from(piece.rows.end - piece.rows.start).unwrap_or(0);
                self.current.labels = Some(piece.series);
                self.current.last = piece.last;
            }
            self.left = self.left.saturating_sub(1);
            let (t, histogram) = rows.histogram(row)?;
            self.current.starts.push(t, rows.start(row));
            self.current.histograms.push((t, histogram));
        }
        Ok(())
    }

    /// Encodes the current series if all of it has come.
    fn close_finished(&mut self, part: &PartFile) -> Result<()> {
        if self.left > 0 || !self.current.last {
            return Ok(());
        }
        let Series {
            labels,
            histograms,
            starts,
            ..
        } = std::mem::take(&mut self.current);
        let labels = labels.unwrap_or_else(Labels::empty);
        let chunks = encode_histograms(histograms, CHUNK_HISTOGRAMS);
        let chunk = |bytes| Chunk::parse(bytes)?.with_starts(&starts);
        let chunks = chunks.and_then(|chunks| chunks.into_iter().map(chunk).collect());
        self.all
            .push(chunks.map_err(|e| part.corrupt_samples(&labels, e))?);
        Ok(())
    }
}

/// The columns of a batch.
struct Rows<'a> {
    timestamps: &'a [i64],
    histograms: HistogramRows<'a>,
    /// None where no sample of the block has one.
    starts: Option<&'a TimestampMillisecondArray>,
}

impl<'a> Rows<'a> {
    fn new(part: &'a PartFile, batch: &'a RecordBatch) -> Result<Self> {
        let times = |name: &str| {
            let column = batch.column_by_name(name);
            let column = column.and_then(|c| c.as_primitive_opt::<TimestampMillisecondType>());
            column.ok_or_else(|| wrong(part, name))
        };
        let timestamps = times(TIMESTAMP)?;
        if timestamps.null_count() > 0 {
            return Err(wrong(part, TIMESTAMP));
        }
        let has_starts = batch.column_by_name(START_TIMESTAMP).is_some();
        Ok(Self {
            timestamps: timestamps.values().as_ref(),
            histograms: HistogramRows::new(part, |name| batch.column_by_name(name), None)?,
            starts: has_starts.then(|| times(START_TIMESTAMP)).transpose()?,
        })
    }

    /// The start timestamp of a row; 0 for none.
    fn start(&self, row: usize) -> i64 {
        let starts = self.starts.filter(|starts| starts.is_valid(row));
        starts.map_or(0, |starts| starts.value(row))
    }

    fn histogram(&self, row: usize) -> Result<(i64, Histogram)> {
        Ok((self.timestamps[row], self.histograms.histogram(row)?))
    }
}

fn wrong(part: &PartFile, name: &str) -> Error {
    part.corrupt(format!(
        "column {name} is missing, of the wrong type, or has nulls"
    ))
}

/// The columns of histograms.
pub(crate) struct HistogramRows<'a> {
    part: &'a PartFile,
    hints: &'a [i8],
    schemas: &'a [i8],
    sums: &'a [f64],
    counts: &'a [f64],
    zero_counts: &'a [f64],
    zero_thresholds: &'a [f64],
    positive: Lists<'a>,
    negative: Lists<'a>,
    bounds: &'a ListArray,
}

/// Indices of buckets and their counts.
struct Lists<'a> {
    indices: &'a ListArray,
    counts: &'a ListArray,
}

impl<'a> HistogramRows<'a> {
    /// Of columns by their names, dense but for rows that are `absent` as a whole.
    pub(crate) fn new(
        part: &'a PartFile,
        column: impl Fn(&str) -> Option<&'a ArrayRef>,
        absent: Option<&NullBuffer>,
    ) -> Result<Self> {
        let covered = |nulls: &NullBuffer| absent.is_some_and(|absent| absent.contains(nulls));
        let dense = |name: &str| {
            let column = column(name).filter(|c| c.null_count() == 0 || c.nulls().is_some_and(covered));
            column.ok_or_else(|| wrong(part, name))
        };
        let small = |name: &str| -> Result<&'a [i8]> {
            let column = dense(name)?.as_primitive_opt::<Int8Type>();
            column
                .map(|a| a.values().as_ref())
                .ok_or_else(|| wrong(part, name))
        };
        let floats = |name: &str| -> Result<&'a [f64]> {
            let column = dense(name)?.as_primitive_opt::<Float64Type>();
            column
                .map(|a| a.values().as_ref())
                .ok_or_else(|| wrong(part, name))
        };
        let list = |name: &str| -> Result<&'a ListArray> {
            let column = dense(name)?.as_list_opt::<i32>();
            column
                .filter(|l| l.values().null_count() == 0)
                .ok_or_else(|| wrong(part, name))
        };
        Ok(Self {
            part,
            hints: small(RESET_HINT)?,
            schemas: small(SCHEMA)?,
            sums: floats(SUM)?,
            counts: floats(COUNT)?,
            zero_counts: floats(ZERO_COUNT)?,
            zero_thresholds: floats(ZERO_THRESHOLD)?,
            positive: Lists {
                indices: list(POSITIVE)?,
                counts: list(POSITIVE_COUNTS)?,
            },
            negative: Lists {
                indices: list(NEGATIVE)?,
                counts: list(NEGATIVE_COUNTS)?,
            },
            bounds: list(CUSTOM_BOUNDS)?,
        })
    }

    /// That of a row.
    pub(crate) fn histogram(&self, row: usize) -> Result<Histogram> {
        let (positive_spans, positive_buckets) = spans_of(self.positive.buckets(self.part, row)?);
        let (negative_spans, negative_buckets) = spans_of(self.negative.buckets(self.part, row)?);
        Ok(Histogram {
            reset_hint: match self.hints[row] {
                1 => ResetHint::Reset,
                2 => ResetHint::NotReset,
                3 => ResetHint::Gauge,
                _ => ResetHint::Unknown,
            },
            schema: i32::from(self.schemas[row]),
            zero_threshold: self.zero_thresholds[row],
            zero_count: self.zero_counts[row],
            count: self.counts[row],
            sum: self.sums[row],
            positive_spans,
            negative_spans,
            positive_buckets,
            negative_buckets,
            custom_bounds: floats_of(self.bounds, row).unwrap_or_default(),
        })
    }
}

impl Lists<'_> {
    /// The buckets of a row, which ascend.
    fn buckets(&self, part: &PartFile, row: usize) -> Result<Vec<(i32, f64)>> {
        let wrong =
            || part.corrupt("the buckets of a histogram are not as many as their counts, or not in order");
        let range = range_of(self.indices, row).ok_or_else(wrong)?;
        let indices = self.indices.values().as_primitive_opt::<Int32Type>();
        let indices = indices.and_then(|i| i.values().get(range)).ok_or_else(wrong)?;
        let counts = floats_of(self.counts, row).ok_or_else(wrong)?;
        if indices.len() != counts.len() || !indices.is_sorted_by(|a, b| a < b) {
            return Err(wrong());
        }
        Ok(indices.iter().copied().zip(counts).collect())
    }
}

fn range_of(list: &ListArray, row: usize) -> Option<Range<usize>> {
    let offsets = list.value_offsets();
    let (from, to) = (offsets.get(row)?, offsets.get(row + 1)?);
    Some(usize::try_from(*from).ok()?..usize::try_from(*to).ok()?)
}

fn floats_of(list: &ListArray, row: usize) -> Option<Vec<f64>> {
    let range = range_of(list, row)?;
    let values = list.values().as_primitive_opt::<Float64Type>()?;
    values.values().get(range).map(<[f64]>::to_vec)
}
