//! Encodes `times.parquet`.

use std::fmt;
use std::sync::Arc;

use arrow_array::{ArrayRef, TimestampMillisecondArray, UInt32Array};
use bytes::Bytes;
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::meta::TIMES_PART;
use crate::part_writer::{PartWriter, base_properties, small_delta_blocks};
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
    file: PartWriter,
    rows: u32,
    /// Rows not handed to the encoder yet.
    timestamps: Vec<i64>,
    known: KnownRuns,
}

impl fmt::Debug for TimesWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimesWriter")
            .field("file", &self.file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl TimesWriter {
    pub(crate) fn new(block: BlockId, layout: Layout) -> Result<Self> {
        let properties = properties(block, layout)?;
        Ok(Self {
            file: PartWriter::new(block, TIMES_PART, times_schema(), properties)?,
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
        let count = count.ok_or_else(|| self.file.error("it would have 2^32 rows"))?;
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
        self.file.write(columns)
    }

    pub(crate) fn rows(&self) -> u64 {
        u64::from(self.rows)
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_so_far()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.write_batch()?;
        self.file.finish()
    }
}

fn properties(block: BlockId, layout: Layout) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let mut builder = base_properties(block, TIMES_PART, layout)?
        .set_data_page_row_count_limit((layout.page_rows / SMALLER_PAGES).max(1))
        .set_max_row_group_row_count(Some(layout.group_rows.max(1)))
        .set_delta_binary_packed_encoder_options(small_delta_blocks(block, TIMES_PART)?)
        .set_column_statistics_enabled(path(TIMESTAMP), EnabledStatistics::Page);
    for name in [TIME_ID, TIMESTAMP] {
        builder = builder
            .set_column_encoding(path(name), Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(path(name), false);
    }
    Ok(builder.build())
}
