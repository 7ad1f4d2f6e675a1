//! Encodes `times.parquet`.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, TimestampMillisecondArray, UInt32Array};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::meta::TIMES_PART;
use crate::samples_table::{base_properties, encode_error, small_delta_blocks};
use crate::schema::{TIME_ID, TIMESTAMP, times_schema};
use crate::shared_times::{KnownRuns, PlacedTimes};
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Rows collected before they are handed to the encoder.
const BATCH_ROWS: usize = 64 * 1024;
/// Pages have so many times fewer rows than those of samples: not all series of neighbouring runs are read.
const SMALLER_PAGES: usize = 2;

/// Collects times and encodes them, those of several series once.
pub(crate) struct TimesWriter {
    block: BlockId,
    file: ArrowWriter<Vec<u8>>,
    rows: u32,
    /// Rows not handed to the encoder yet.
    timestamps: Vec<i64>,
    known: KnownRuns,
}

impl fmt::Debug for TimesWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimesWriter")
            .field("block", &self.block)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl TimesWriter {
    pub(crate) fn new(block: BlockId, layout: Layout) -> Result<Self> {
        let options = ArrowWriterOptions::new()
            .with_properties(properties(block, layout)?)
            .with_skip_arrow_metadata(true);
        let file = ArrowWriter::try_new_with_options(Vec::new(), times_schema(), options)
            .map_err(|e| encode_error(block, TIMES_PART, e))?;
        Ok(Self {
            block,
            file,
            rows: 0,
            timestamps: Vec::new(),
            known: KnownRuns::new(layout.page_rows),
        })
    }

    /// Tells where the times of a series, which ascend, are, and appends them if they are nowhere. Rows descend in time for
    /// the reason that those of samples do.
    pub(crate) fn push(&mut self, timestamps: &[i64]) -> Result<PlacedTimes> {
        if timestamps.is_empty() {
            return Ok(PlacedTimes::default());
        }
        if let Some(placed) = self.known.find(timestamps) {
            return Ok(placed);
        }
        let count = u32::try_from(timestamps.len()).ok();
        let count = count.filter(|&count| self.rows.checked_add(count).is_some());
        let count = count.ok_or_else(|| encode_error(self.block, TIMES_PART, "it would have 2^32 rows"))?;
        self.known.add(self.rows, timestamps);
        let placed = PlacedTimes::alone(self.rows, count);
        self.timestamps.extend(timestamps.iter().rev());
        self.rows += count;
        if self.timestamps.len() >= BATCH_ROWS {
            self.write_batch()?;
        }
        Ok(placed)
    }

    fn write_batch(&mut self) -> Result<()> {
        if self.timestamps.is_empty() {
            return Ok(());
        }
        let times = std::mem::take(&mut self.timestamps);
        let first_row = self.rows - times.len() as u32;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(first_row..self.rows)),
            Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC")),
        ];
        let batch = RecordBatch::try_new(times_schema(), columns)
            .map_err(|e| encode_error(self.block, TIMES_PART, e))?;
        self.file
            .write(&batch)
            .map_err(|e| encode_error(self.block, TIMES_PART, e))
    }

    pub(crate) fn rows(&self) -> u64 {
        u64::from(self.rows)
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_written() + self.file.in_progress_size()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.write_batch()?;
        let block = self.block;
        self.file
            .into_inner()
            .map(Bytes::from)
            .map_err(|e| encode_error(block, TIMES_PART, e))
    }
}

fn properties(block: BlockId, layout: Layout) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let mut builder = base_properties(block, layout)?
        .set_data_page_row_count_limit((layout.page_rows / SMALLER_PAGES).max(1))
        .set_max_row_group_row_count(Some(layout.group_rows.max(1)))
        .set_delta_binary_packed_encoder_options(small_delta_blocks(block)?)
        .set_column_statistics_enabled(path(TIMESTAMP), EnabledStatistics::Page);
    for name in [TIME_ID, TIMESTAMP] {
        builder = builder
            .set_column_encoding(path(name), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(path(name), false);
    }
    Ok(builder.build())
}
