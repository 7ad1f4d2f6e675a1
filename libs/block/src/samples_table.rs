//! Encodes `samples.parquet`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, Int64Builder};
use arrow_array::{ArrayRef, Int8Array, TimestampMillisecondArray, UInt32Array};
use bytes::Bytes;
use koios_chunk::decimal;
use koios_model::merge::start_at;
use parquet::basic::Encoding;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::meta::SAMPLES_PART;
use crate::part_writer::{PartWriter, base_properties, small_delta_blocks};
use crate::schema::{EXPONENT, FLOAT, MANTISSA, SERIES, START_TIMESTAMP, TICK, TIMESTAMP, samples_schema};
use crate::shared_times::PlacedTimes;
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Rows collected before they are handed to the encoder.
const BATCH_ROWS: usize = 64 * 1024;

/// Collects samples as columns and encodes them; row groups end at series boundaries.
pub(crate) struct SamplesWriter {
    group_rows: usize,
    file: PartWriter,
    rows: u64,
    group: usize,
    series: Vec<u32>,
    times: TimeColumn,
    exponents: Vec<i8>,
    mantissas: Int64Builder,
    floats: Float64Builder,
    /// None where the block has no such column.
    starts: Option<StartsColumn>,
}

/// When samples are, on the way into a file.
#[derive(Debug)]
enum TimeColumn {
    Timestamps(Vec<i64>),
    Ticks(Vec<u32>),
}

impl TimeColumn {
    /// Appends those of some samples of a series, the last one first.
    fn push(&mut self, range: Range<usize>, timestamps: &[i64], placed: Option<&PlacedTimes>) {
        match self {
            Self::Timestamps(all) => all.extend(timestamps.get(range).unwrap_or_default().iter().rev()),
            Self::Ticks(all) => {
                let tick = |place| placed.map_or(0, |placed| placed.tick(place));
                all.extend(range.rev().map(tick));
            }
        }
    }

    /// What was appended since the last time.
    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Timestamps(all) => {
                let times = TimestampMillisecondArray::from(std::mem::take(all));
                Arc::new(times.with_timezone("UTC"))
            }
            Self::Ticks(all) => Arc::new(UInt32Array::from(std::mem::take(all))),
        }
    }
}

/// A column of start timestamps on its way into a file.
#[derive(Debug, Default)]
pub(crate) struct StartsColumn {
    starts: Vec<Option<i64>>,
}

impl StartsColumn {
    /// Appends that of the sample at `t`, out of ascending ones.
    pub(crate) fn push(&mut self, t: i64, starts: &[(i64, i64)]) {
        let start = start_at(starts, t);
        self.starts.push((start != 0).then_some(start));
    }

    /// What was appended since the last time.
    pub(crate) fn finish(&mut self) -> ArrayRef {
        let starts = std::mem::take(&mut self.starts);
        Arc::new(TimestampMillisecondArray::from(starts).with_timezone("UTC"))
    }
}

impl fmt::Debug for SamplesWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplesWriter")
            .field("file", &self.file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl SamplesWriter {
    /// Of samples whose times stand beside them, unless they come with `ticks`.
    pub(crate) fn new(block: BlockId, layout: Layout, ticks: bool, starts: bool) -> Result<Self> {
        let (schema, properties) = (samples_schema(ticks, starts), properties(block, layout, ticks)?);
        Ok(Self {
            group_rows: layout.group_rows.max(1),
            file: PartWriter::new(block, SAMPLES_PART, schema, properties)?,
            rows: 0,
            group: 0,
            series: Vec::new(),
            times: match ticks {
                true => TimeColumn::Ticks(Vec::new()),
                false => TimeColumn::Timestamps(Vec::new()),
            },
            exponents: Vec::new(),
            mantissas: Int64Builder::new(),
            floats: Float64Builder::new(),
            starts: starts.then(StartsColumn::default),
        })
    }

    /// Appends the samples of a series, as long as each other and ascending in time, and returns its first row. `placed` is
    /// where their times are, if not here. Rows descend in time: the step to the next series is then a large positive delta,
    /// which widens 32 values of the delta encoding, where a negative one would widen all 128 of its block. It halves
    /// what timestamps cost.
    pub(crate) fn push(
        &mut self,
        id: u32,
        timestamps: &[i64],
        values: &[f64],
        starts: &[(i64, i64)],
        placed: Option<&PlacedTimes>,
    ) -> Result<u64> {
        if self.group > 0 && self.group + timestamps.len() > self.group_rows {
            self.end_group()?;
        }
        let first_row = self.rows;
        let mut end = timestamps.len();
        while end > 0 {
            let range = end.saturating_sub(self.group_rows)..end;
            end = range.start;
            if self.group > 0 && self.group + range.len() > self.group_rows {
                self.end_group()?;
            }
            self.times.push(range.clone(), timestamps, placed);
            let t = timestamps.get(range.clone()).unwrap_or_default();
            self.append(id, values.get(range).unwrap_or_default());
            if let Some(column) = &mut self.starts {
                t.iter().rev().for_each(|&t| column.push(t, starts));
            }
            if self.series.len() >= BATCH_ROWS {
                self.write_batch()?;
            }
        }
        Ok(first_row)
    }

    fn append(&mut self, id: u32, values: &[f64]) {
        let n = values.len();
        let exponent = decimal::exponent_for_run(values);
        self.series.resize(self.series.len() + n, id);
        self.exponents.resize(self.exponents.len() + n, exponent as i8);
        for &v in values.iter().rev() {
            match decimal::to_mantissa(v, exponent) {
                Some(m) => {
                    self.mantissas.append_value(m);
                    self.floats.append_null();
                }
                None => {
                    self.mantissas.append_null();
                    self.floats.append_value(v);
                }
            }
        }
        self.rows += n as u64;
        self.group += n;
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.series.is_empty() {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(std::mem::take(&mut self.series))),
            self.times.finish(),
            Arc::new(Int8Array::from(std::mem::take(&mut self.exponents))),
            Arc::new(self.mantissas.finish()),
            Arc::new(self.floats.finish()),
        ];
        columns.extend(self.starts.as_mut().map(StartsColumn::finish));
        self.file.write(columns)
    }

    fn end_group(&mut self) -> Result<()> {
        self.write_batch()?;
        self.group = 0;
        self.file.end_group()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_so_far()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.end_group()?;
        self.file.finish()
    }
}

fn properties(block: BlockId, layout: Layout, ticks: bool) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let sorted = |column_idx, descending| SortingColumn {
        column_idx,
        descending,
        nulls_first: false,
    };
    let mut builder = base_properties(block, SAMPLES_PART, layout)?
        .set_data_page_row_count_limit(layout.page_rows)
        .set_delta_binary_packed_encoder_options(small_delta_blocks(block, SAMPLES_PART)?)
        .set_sorting_columns(Some(vec![sorted(0, false), sorted(1, true)]))
        .set_column_statistics_enabled(path(SERIES), EnabledStatistics::Chunk);
    let time = if ticks { TICK } else { TIMESTAMP };
    // By these a short range of a series of several pages is found.
    builder = builder.set_column_statistics_enabled(path(time), EnabledStatistics::Page);
    // Start timestamps have it where they are too many for a dictionary.
    for name in [time, MANTISSA, START_TIMESTAMP] {
        builder = builder.set_column_encoding(path(name), Encoding::DELTA_BINARY_PACKED);
    }
    // Signs and exponents of a series' floats are much alike, and are next to each other then.
    builder = builder.set_column_encoding(path(FLOAT), Encoding::BYTE_STREAM_SPLIT);
    for name in [time, MANTISSA, FLOAT] {
        builder = builder.set_column_dictionary_enabled(path(name), false);
    }
    Ok(builder
        .set_column_dictionary_enabled(path(EXPONENT), true)
        .set_column_dictionary_enabled(path(START_TIMESTAMP), true)
        .build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;

    #[test]
    fn pages_tell_their_ticks_or_times_which_costs_little() {
        let times: Vec<i64> = (0..200_000).map(|i| i * 15_000).collect();
        let values: Vec<f64> = (0..200_000).map(|i| f64::from(i * 7919 % 1000) / 10.0).collect();
        for ticks in [true, false] {
            let mut writer = SamplesWriter::new(BlockId::new(1, 1), Layout::default(), ticks, false).unwrap();
            let placed = ticks.then(|| PlacedTimes::alone(0, 200_000));
            writer.push(0, &times, &values, &[], placed.as_ref()).unwrap();
            let bytes = writer.finish().unwrap();
            let file = SerializedFileReader::new(bytes.clone()).unwrap();
            let group = file.metadata().row_group(0);
            let index_bytes =
                |column: usize| group.column(column).column_index_length().unwrap_or(0) as usize;
            let of_pages = index_bytes(1);
            assert!(of_pages > 0);
            assert!(of_pages * 500 < times.len(), "{of_pages} of {}", bytes.len());
            assert!([0, 2, 3, 4].into_iter().all(|column| index_bytes(column) == 0));
        }
    }
}
