//! Reads `samples-5m.parquet` and `samples-1h.parquet`: all summaries of chosen series, with the sums of histograms or without.

use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int64Type, TimestampMillisecondType, UInt32Type};
use arrow_array::{Array, Float64Array, Int64Array, RecordBatch, StructArray};
use arrow_schema::Schema;
use koios_chunk::{Chunk, decimal, encode_summaries};
use koios_model::{Labels, Summary};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};

use crate::Result;
use crate::histogram_rows::HistogramRows;
use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::row_plan::{Piece, Span, plan};
use crate::sample_rows::EXPONENT_MAX;
use crate::schema::{
    AGGREGATES, COUNT, EXPONENT, FIRST_TIMESTAMP, HISTOGRAM_SUM, HISTOGRAMS, TIMESTAMP, float_of, mantissa_of,
};
use crate::summaries_table::set_written;

/// Decoded at a time: a row is a hundred bytes then.
const BATCH_ROWS: usize = 4096;

/// The columns to read: the sums of histograms are as large as all others, and few need them.
pub(crate) fn summary_columns(footer: &ArrowReaderMetadata, sums: bool) -> ProjectionMask {
    if sums {
        return ProjectionMask::all();
    }
    let fields = footer.schema().fields().iter().enumerate();
    let roots = fields.filter(|(_, field)| field.name() != HISTOGRAM_SUM);
    ProjectionMask::roots(footer.parquet_schema(), roots.map(|(place, _)| place))
}

/// All summaries of series that are in the block's order and have some, as chunks, one entry for each; with the sums of their
/// histograms, or without.
pub(crate) async fn read_summaries(
    part: &PartFile,
    series: &[BlockSeries],
    sums: bool,
) -> Result<Vec<Vec<Chunk>>> {
    let footer = part.footer(Arc::<Schema>::clone).await?;
    let spans = series.iter().map(|s| Span {
        series: &s.labels,
        first_row: s.first_row,
        row_count: s.row_count,
        whole: true,
        times: None,
    });
    let mut reading = Reading::default();
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
            columns: summary_columns(&footer, sums),
            selection: Some(RowSelection::from_consecutive_ranges(rows, total)),
        };
        reading.pieces = group.pieces.into_iter();
        reading.left = 0;
        reading = part
            .fold_group(&footer, read, BATCH_ROWS, reading, |part, reading, batch| {
                reading.add(part, &batch)
            })
            .await?;
        reading.close_finished(part)?;
        if reading.left > 0 || reading.pieces.len() > 0 {
            return Err(part.corrupt("a page holds fewer summaries than its index says"));
        }
        let index = part.group_index(&footer, group.group).await?;
        part.forget_used_up(group.group, &index, &all_rows);
    }
    if reading.all.len() != series.len() {
        return Err(part.corrupt("it lacks summaries that its series announce"));
    }
    Ok(reading.all)
}

/// Rows on their way into chunks.
#[derive(Debug, Default)]
struct Reading {
    pieces: std::vec::IntoIter<Piece>,
    /// Rows of the current piece that have not come yet.
    left: usize,
    labels: Option<Labels>,
    /// Whether the series ends with the current piece.
    last: bool,
    /// Those of the current series, the newest first.
    summaries: Vec<Summary>,
    all: Vec<Vec<Chunk>>,
}

impl Reading {
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let rows = Rows::new(part, batch)?;
        for row in 0..batch.num_rows() {
            if self.left == 0 {
                self.close_finished(part)?;
                let Some(piece) = self.pieces.next() else {
                    return Err(part.corrupt("it has more summaries than its series announce"));
                };
                self.left = usize::try_from(piece.rows.end - piece.rows.start).unwrap_or(0);
                self.labels = Some(piece.series);
                self.last = piece.last;
            }
            self.left = self.left.saturating_sub(1);
            self.summaries.push(rows.summary(row)?);
        }
        Ok(())
    }

    /// Encodes the current series if all of it has come.
    fn close_finished(&mut self, part: &PartFile) -> Result<()> {
        if self.left > 0 || !std::mem::take(&mut self.last) {
            return Ok(());
        }
        let labels = self.labels.take().unwrap_or_else(Labels::empty);
        self.summaries.reverse();
        let mut chunks = Vec::new();
        encode_summaries(&self.summaries, &mut chunks).map_err(|e| part.corrupt_samples(&labels, e))?;
        self.summaries.clear();
        self.all.push(chunks);
        Ok(())
    }
}

/// The columns of a batch.
struct Rows<'a> {
    part: &'a PartFile,
    first_times: &'a [i64],
    times: &'a [i64],
    counts: &'a [u32],
    histograms: &'a [u32],
    exponents: &'a [i8],
    aggregates: Vec<(&'a Int64Array, &'a Float64Array)>,
    /// None where they are not read, or the block has none.
    sums: Option<(&'a StructArray, HistogramRows<'a>)>,
}

impl<'a> Rows<'a> {
    fn new(part: &'a PartFile, batch: &'a RecordBatch) -> Result<Self> {
        let wrong = |name: &str| {
            part.corrupt(format!(
                "column {name} is missing, of the wrong type, or has nulls"
            ))
        };
        let dense = |name: &str| {
            let column = batch.column_by_name(name).filter(|c| c.null_count() == 0);
            column.ok_or_else(|| wrong(name))
        };
        let times = |name: &str| -> Result<&'a [i64]> {
            let column = dense(name)?.as_primitive_opt::<TimestampMillisecondType>();
            column.map(|a| a.values().as_ref()).ok_or_else(|| wrong(name))
        };
        let counts = |name: &str| -> Result<&'a [u32]> {
            let column = dense(name)?.as_primitive_opt::<UInt32Type>();
            column.map(|a| a.values().as_ref()).ok_or_else(|| wrong(name))
        };
        let exponents = dense(EXPONENT)?.as_primitive_opt::<Int8Type>();
        let aggregates = AGGREGATES.iter().map(|name| {
            let (mantissas, floats) = (mantissa_of(name), float_of(name));
            let mantissas = batch.column_by_name(&mantissas)?.as_primitive_opt::<Int64Type>();
            let floats = batch.column_by_name(&floats)?.as_primitive_opt::<Float64Type>();
            mantissas.zip(floats)
        });
        let sums = batch.column_by_name(HISTOGRAM_SUM).map(|column| {
            let sums = column.as_struct_opt().ok_or_else(|| wrong(HISTOGRAM_SUM))?;
            let histograms = HistogramRows::new(part, |name| sums.column_by_name(name), sums.nulls())?;
            Ok((sums, histograms))
        });
        Ok(Self {
            part,
            first_times: times(FIRST_TIMESTAMP)?,
            times: times(TIMESTAMP)?,
            counts: counts(COUNT)?,
            histograms: counts(HISTOGRAMS)?,
            exponents: exponents
                .map(|a| a.values().as_ref())
                .ok_or_else(|| wrong(EXPONENT))?,
            aggregates: aggregates
                .collect::<Option<_>>()
                .ok_or_else(|| wrong("of an aggregate"))?,
            sums: sums.transpose()?,
        })
    }

    fn summary(&self, row: usize) -> Result<Summary> {
        let exponent = u8::try_from(self.exponents[row])
            .ok()
            .filter(|e| *e <= EXPONENT_MAX);
        let exponent = exponent.ok_or_else(|| self.part.corrupt("a summary has no such exponent"))?;
        let mut summary = Summary {
            first_t: self.first_times[row],
            last_t: self.times[row],
            count: self.counts[row],
            histograms: self.histograms[row],
            ..Summary::default()
        };
        let mut numbers = [None; AGGREGATES.len()];
        for (number, (mantissas, floats)) in numbers.iter_mut().zip(&self.aggregates) {
            *number = match (mantissas.is_valid(row), floats.is_valid(row)) {
                (true, true) => return Err(self.part.corrupt("a summary has a number twice")),
                (true, false) => Some(decimal::from_mantissa(mantissas.value(row), exponent)),
                (false, true) => Some(floats.value(row)),
                (false, false) => None,
            };
        }
        if summary.first_t > summary.last_t || (summary.count > 0) != numbers[1].is_some() {
            return Err(self.part.corrupt("a summary contradicts itself"));
        }
        set_written(&mut summary, numbers);
        if let Some((_, histograms)) = self.sums.as_ref().filter(|(sums, _)| sums.is_valid(row)) {
            if summary.histograms == 0 {
                return Err(self
                    .part
                    .corrupt("a summary without histograms has a sum of some"));
            }
            summary.histogram_sum = Some(Arc::new(histograms.histogram(row)?));
        }
        Ok(summary)
    }
}
