//! Rows of `samples.parquet` as they are decoded.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int8Type, Int64Type, TimestampMillisecondType, UInt32Type};
use arrow_array::{Array, RecordBatch, TimestampMillisecondArray};
use arrow_buffer::NullBuffer;
use koios_chunk::{Starts, decimal};

use crate::part::PartFile;
use crate::row_plan::Piece;
use crate::schema::{EXPONENT, FLOAT, MANTISSA, START_TIMESTAMP, TICK, TIMESTAMP};
use crate::times::Times;
use crate::{Error, Result};

/// The largest power of ten that is exact in a float.
pub(crate) const EXPONENT_MAX: u8 = 22;
/// Why a row with two values is refused.
const BOTH_SET: &str = "a sample has both a mantissa and a float";

fn wrong_column(part: &PartFile, name: &str) -> Error {
    part.corrupt(format!(
        "column {name} is missing, of the wrong type, or has nulls"
    ))
}

/// The ticks of some rows.
pub(crate) fn dense_ticks<'a>(part: &PartFile, batch: &'a RecordBatch) -> Result<&'a [u32]> {
    let column = batch.column_by_name(TICK).filter(|c| c.null_count() == 0);
    let column = column.and_then(|c| c.as_primitive_opt::<UInt32Type>());
    column
        .map(|c| c.values().as_ref())
        .ok_or_else(|| wrong_column(part, TICK))
}

/// Decoded columns of some rows.
#[derive(Debug)]
pub(crate) struct SampleRows<'a> {
    part: &'a PartFile,
    /// Empty where samples have ticks.
    timestamps: &'a [i64],
    /// Empty where they have times.
    ticks: &'a [u32],
    exponents: &'a [i8],
    mantissas: &'a arrow_array::Int64Array,
    floats: &'a arrow_array::Float64Array,
    /// None where no sample of the block has one.
    starts: Option<&'a TimestampMillisecondArray>,
}

impl<'a> SampleRows<'a> {
    /// Rows with times, or with ticks.
    pub(crate) fn new(part: &'a PartFile, batch: &'a RecordBatch, ticks: bool) -> Result<Self> {
        let wrong = |name: &str| wrong_column(part, name);
        let dense = |name: &str| batch.column_by_name(name).filter(|c| c.null_count() == 0);
        let (mut timestamps, mut tick_column): (&[i64], &[u32]) = (&[], &[]);
        if ticks {
            tick_column = dense_ticks(part, batch)?;
        } else {
            let column = dense(TIMESTAMP).and_then(|c| c.as_primitive_opt::<TimestampMillisecondType>());
            timestamps = column.ok_or_else(|| wrong(TIMESTAMP))?.values();
        }
        Ok(Self {
            part,
            timestamps,
            ticks: tick_column,
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

    pub(crate) fn part(&self) -> &'a PartFile {
        self.part
    }

    /// The rows of a series and their times, which ascend in a sound block.
    pub(crate) fn timestamps_beside<'b>(
        &self,
        at: Range<usize>,
        buffer: &'b mut Vec<i64>,
    ) -> (Range<usize>, &'b [i64]) {
        let times = self.timestamps.get(at.clone()).unwrap_or_default();
        buffer.clear();
        buffer.extend(times.iter().rev());
        (at, buffer.as_slice())
    }

    /// Those of the rows of a piece that have some of its ticks, and their times, which ascend.
    pub(crate) fn timestamps_of_ticks<'b>(
        &self,
        at: Range<usize>,
        piece: &Piece,
        wanted: &Range<u64>,
        times: &'b Times,
        buffer: &'b mut Vec<i64>,
    ) -> Result<(Range<usize>, &'b [i64])> {
        let wrong = |what: &str| {
            self.part
                .corrupt(format!("the ticks of series {} {what}", piece.series))
        };
        let span = piece.times.as_ref().ok_or_else(|| wrong("have no times"))?;
        let ticks = self.ticks.get(at.clone()).unwrap_or_default();
        if !ticks.is_sorted_by(|a, b| a > b) {
            return Err(wrong("do not descend"));
        }
        let possible = piece.ticks(span);
        let ends = ticks.first().zip(ticks.last());
        if ends.is_some_and(|(&newest, &oldest)| {
            u64::from(newest) >= possible.end || u64::from(oldest) < possible.start
        }) {
            return Err(wrong("are none of those that its rows can have"));
        }
        let is_whole = at.len() as u64 == piece.rows.end - piece.rows.start;
        if is_whole && ends.is_some_and(|(&newest, &oldest)| !piece.has_ends(span, newest, oldest)) {
            return Err(wrong("do not begin and end with its times"));
        }
        let from = ticks.partition_point(|&tick| u64::from(tick) >= wanted.end);
        let to = ticks.partition_point(|&tick| u64::from(tick) >= wanted.start);
        let ticks = ticks.get(from..to).unwrap_or_default();
        let at = at.start + from..at.start + to.max(from);
        let all = times.of(span, wanted, &piece.series)?;
        let place = |tick: u32| (u64::from(tick) - wanted.start) as usize;
        if let (Some(&newest), Some(&oldest)) = (ticks.first(), ticks.last())
            && (newest - oldest) as usize + 1 == ticks.len()
        {
            let all = all.get(place(oldest)..=place(newest));
            return Ok((at, all.unwrap_or_default()));
        }
        buffer.clear();
        buffer.extend(ticks.iter().rev().filter_map(|&tick| all.get(place(tick))));
        Ok((at, buffer.as_slice()))
    }

    /// The start timestamps of the rows, which have these times.
    pub(crate) fn starts(&self, rows: Range<usize>, timestamps: &[i64]) -> Starts {
        let mut out = Starts::default();
        if let Some(starts) = self.starts {
            for (row, &t) in rows.rev().zip(timestamps) {
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
    pub(crate) fn decimals(&self, rows: &Range<usize>) -> Result<Option<(&'a [i64], u8)>> {
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
    pub(crate) fn append_values(&self, rows: Range<usize>, out: &mut Vec<f64>) -> Result<()> {
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
