//! Encodes `samples-5m.parquet` and `samples-1h.parquet`.

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{Float64Builder, Int64Builder};
use arrow_array::{ArrayRef, Int8Array, StructArray, TimestampMillisecondArray, UInt32Array};
use arrow_buffer::NullBuffer;
use arrow_schema::ArrowError;
use bytes::Bytes;
use koios_chunk::decimal;
use koios_model::summary::{greater, lesser};
use koios_model::{Histogram, Summary};
use parquet::basic::Encoding;
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::histograms_table::{GROUP_BYTES, HistogramColumns};
use crate::part_writer::{PartWriter, base_properties, small_delta_blocks};
use crate::schema::{
    AGGREGATES, COUNT, EXPONENT, FIRST_TIMESTAMP, HISTOGRAMS, SERIES, TIMESTAMP, float_of, histogram_fields,
    mantissa_of, summaries_schema,
};
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Rows collected before they are handed to the encoder.
const BATCH_ROWS: usize = 16 * 1024;
/// A row group ends earlier where the sums of histograms in it would take more: of a group all that is wanted is read at once.
const GROUP_SUMS_BYTES: usize = 64 << 20;
/// Rows of a page: a row is several times as large as one of samples.
const PAGE_ROWS: usize = 4 * 1024;

/// What of a summary is written: `None` where it follows from what is.
pub(crate) fn written(s: &Summary) -> [Option<f64>; AGGREGATES.len()] {
    if s.count == 0 {
        return [None; AGGREGATES.len()];
    }
    let unless = |v: f64, other: f64| (v.to_bits() != other.to_bits()).then_some(v);
    [
        unless(s.first, s.last),
        Some(s.last),
        unless(s.sum, s.last),
        unless(s.min, lesser(s.first, s.last)),
        unless(s.max, greater(s.first, s.last)),
        unless(s.resets, 0.0),
    ]
}

/// Sets the numbers of a summary of which what was written, times and counts are known.
pub(crate) fn set_written(s: &mut Summary, [first, last, sum, min, max, resets]: [Option<f64>; 6]) {
    let none = if s.is_stale() {
        koios_model::stale_nan()
    } else {
        0.0
    };
    s.last = last.unwrap_or(none);
    s.first = first.unwrap_or(s.last);
    if s.count == 0 {
        return;
    }
    s.sum = sum.unwrap_or(s.last);
    s.min = min.unwrap_or_else(|| lesser(s.first, s.last));
    s.max = max.unwrap_or_else(|| greater(s.first, s.last));
    s.resets = resets.unwrap_or(0.0);
}

/// Collects summaries as columns and encodes them; row groups end at series boundaries.
pub(crate) struct SummariesWriter {
    part: &'static str,
    group_rows: usize,
    file: PartWriter,
    rows: u64,
    group: usize,
    /// What the sums of histograms in the row group take.
    group_sums_bytes: usize,
    columns: Columns,
    /// Whether there is a column of sums of histograms.
    sums: bool,
}

#[derive(Default)]
struct Columns {
    series: Vec<u32>,
    first_times: Vec<i64>,
    times: Vec<i64>,
    counts: Vec<u32>,
    histograms: Vec<u32>,
    exponents: Vec<i8>,
    aggregates: [(Int64Builder, Float64Builder); AGGREGATES.len()],
    /// None where the block has no such column.
    sums: Option<Sums>,
}

/// Sums of histograms, which not every summary has.
#[derive(Default)]
struct Sums {
    histograms: HistogramColumns,
    valid: Vec<bool>,
}

impl fmt::Debug for SummariesWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SummariesWriter")
            .field("file", &self.file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl SummariesWriter {
    pub(crate) fn new(block: BlockId, part: &'static str, layout: Layout, sums: bool) -> Result<Self> {
        let properties = properties(block, part, layout)?;
        Ok(Self {
            part,
            group_rows: layout.group_rows.max(1),
            file: PartWriter::new(block, part, summaries_schema(sums), properties)?,
            rows: 0,
            group: 0,
            group_sums_bytes: 0,
            columns: Columns::new(sums),
            sums,
        })
    }

    /// Appends the summaries of a series, ascending in time, and returns its first row. Rows descend in time, as samples do.
    pub(crate) fn push(&mut self, id: u32, summaries: &[Summary]) -> Result<u64> {
        let sums = summaries.iter().filter_map(|s| s.histogram_sum.as_deref());
        let sums_bytes: usize = sums.map(Histogram::heap_bytes).sum();
        let is_full = self.group + summaries.len() > self.group_rows
            || self.group_sums_bytes + sums_bytes > GROUP_SUMS_BYTES;
        if self.group > 0 && is_full {
            self.end_group()?;
        }
        let first_row = self.rows;
        self.columns.push(id, summaries);
        self.rows += summaries.len() as u64;
        self.group += summaries.len();
        self.group_sums_bytes += sums_bytes;
        let sums = self.columns.sums.as_ref();
        if self.columns.series.len() >= BATCH_ROWS
            || sums.is_some_and(|sums| sums.histograms.bytes() >= GROUP_BYTES)
        {
            self.write_batch()?;
        }
        Ok(first_row)
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.columns.series.is_empty() {
            return Ok(());
        }
        let columns = std::mem::replace(&mut self.columns, Columns::new(self.sums)).finish();
        self.file.write(columns.map_err(|e| self.file.error(e))?)
    }

    fn end_group(&mut self) -> Result<()> {
        self.write_batch()?;
        (self.group, self.group_sums_bytes) = (0, 0);
        self.file.end_group()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_so_far()
    }

    /// The part's name and its bytes.
    pub(crate) fn finish(mut self) -> Result<(&'static str, Bytes)> {
        self.end_group()?;
        Ok((self.part, self.file.finish()?))
    }
}

impl Columns {
    fn new(sums: bool) -> Self {
        Self {
            sums: sums.then(Sums::default),
            ..Self::default()
        }
    }

    fn push(&mut self, id: u32, summaries: &[Summary]) {
        let table: Vec<_> = summaries.iter().map(written).collect();
        let all: Vec<f64> = table.iter().flatten().copied().flatten().collect();
        let exponent = decimal::exponent_for_run(&all);
        for (s, row) in summaries.iter().zip(table).rev() {
            self.series.push(id);
            self.first_times.push(s.first_t);
            self.times.push(s.last_t);
            self.counts.push(s.count);
            self.histograms.push(s.histograms);
            self.exponents.push(exponent as i8);
            for ((mantissas, floats), value) in self.aggregates.iter_mut().zip(row) {
                let mantissa = value.and_then(|v| decimal::to_mantissa(v, exponent));
                mantissas.append_option(mantissa);
                floats.append_option(value.filter(|_| mantissa.is_none()));
            }
            if let Some(sums) = &mut self.sums {
                sums.push(s.histogram_sum.as_deref());
            }
        }
    }

    fn finish(self) -> Result<Vec<ArrayRef>, ArrowError> {
        let times = |times: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC"))
        };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(self.series)),
            times(self.first_times),
            times(self.times),
            Arc::new(UInt32Array::from(self.counts)),
            Arc::new(UInt32Array::from(self.histograms)),
            Arc::new(Int8Array::from(self.exponents)),
        ];
        for (mut mantissas, mut floats) in self.aggregates {
            columns.push(Arc::new(mantissas.finish()));
            columns.push(Arc::new(floats.finish()));
        }
        if let Some(sums) = self.sums {
            columns.push(Arc::new(sums.finish()?));
        }
        Ok(columns)
    }
}

impl Sums {
    fn push(&mut self, sum: Option<&Histogram>) {
        self.valid.push(sum.is_some());
        match sum {
            Some(sum) => self.histograms.push(sum),
            None => self.histograms.push(&Histogram::default()),
        }
    }

    fn finish(self) -> Result<StructArray, ArrowError> {
        let nulls = NullBuffer::from(self.valid);
        StructArray::try_new(histogram_fields().into(), self.histograms.finish(), Some(nulls))
    }
}

fn properties(block: BlockId, part: &'static str, layout: Layout) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let sorted = |column_idx, descending| SortingColumn {
        column_idx,
        descending,
        nulls_first: false,
    };
    let mut builder = base_properties(block, part, layout)?
        .set_data_page_row_count_limit(PAGE_ROWS.min(layout.page_rows))
        .set_delta_binary_packed_encoder_options(small_delta_blocks(block, part)?)
        .set_sorting_columns(Some(vec![sorted(0, false), sorted(2, true)]))
        .set_column_statistics_enabled(path(SERIES), EnabledStatistics::Chunk)
        .set_column_statistics_enabled(path(TIMESTAMP), EnabledStatistics::Page);
    let delta = [FIRST_TIMESTAMP, TIMESTAMP].map(str::to_owned);
    for name in delta.into_iter().chain(AGGREGATES.map(mantissa_of)) {
        builder = builder
            .set_column_encoding(path(&name), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(path(&name), false);
    }
    for name in AGGREGATES.map(float_of) {
        builder = builder
            .set_column_encoding(path(&name), Encoding::BYTE_STREAM_SPLIT)
            .set_column_dictionary_enabled(path(&name), false);
    }
    for name in [EXPONENT, COUNT, HISTOGRAMS] {
        builder = builder.set_column_dictionary_enabled(path(name), true);
    }
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use koios_model::Span;
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;

    use super::*;
    use crate::meta::SAMPLES_1H_PART;

    #[test]
    fn i12_row_groups_of_large_sums_end_early() {
        const BUCKETS: usize = 1 << 16;
        let sum = Arc::new(Histogram {
            positive_spans: vec![Span {
                offset: 0,
                length: BUCKETS as u32,
            }],
            positive_buckets: vec![1.0; BUCKETS],
            ..Histogram::default()
        });
        let of_series: Vec<Summary> = (0..48)
            .map(|t| Summary {
                first_t: t,
                last_t: t,
                histograms: 1,
                histogram_sum: Some(Arc::clone(&sum)),
                ..Summary::default()
            })
            .collect();
        let layout = Layout::default();
        let mut writer = SummariesWriter::new(BlockId::new(1, 1), SAMPLES_1H_PART, layout, true).unwrap();
        for (id, first_row) in (0..4).zip((0..).step_by(48)) {
            assert_eq!(writer.push(id, &of_series).unwrap(), first_row);
        }
        let file = SerializedFileReader::new(writer.finish().unwrap().1).unwrap();
        let groups = file.metadata().row_groups().iter();
        assert_eq!(groups.map(|g| g.num_rows()).collect::<Vec<_>>(), [96, 96]);
    }
}
