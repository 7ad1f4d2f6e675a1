//! Encodes `histograms.parquet`.

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{ArrayBuilder, Float64Builder, Int32Builder, ListBuilder};
use arrow_array::{ArrayRef, Float64Array, Int8Array, TimestampMillisecondArray, UInt32Array};
use bytes::Bytes;
use koios_model::{Histogram, ResetHint};
use parquet::basic::Encoding;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use crate::meta::HISTOGRAMS_PART;
use crate::part_writer::{PartWriter, base_properties};
use crate::samples_table::StartsColumn;
use crate::schema::{SERIES, TIMESTAMP, bucket_fields, histograms_schema};
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Rows of a row group; its pages have fewer, as histograms are large.
const GROUP_ROWS: usize = 32 * 1024;
/// A row group ends with fewer of them when their buckets take so many bytes, which wait in memory until then.
pub(crate) const GROUP_BYTES: usize = 16 << 20;
/// What a bucket takes: its index and its count.
const BUCKET_BYTES: usize = size_of::<i32>() + size_of::<f64>();
const PAGE_ROWS: usize = 1024;

/// Collects histograms as columns and encodes them.
pub(crate) struct HistogramsWriter {
    file: PartWriter,
    rows: u64,
    columns: Columns,
    /// None where the block has no such column.
    starts: Option<StartsColumn>,
}

#[derive(Default)]
struct Columns {
    series: Vec<u32>,
    timestamps: Vec<i64>,
    histograms: HistogramColumns,
}

/// Histograms as the columns of [`crate::schema::histogram_fields`].
#[derive(Default)]
pub(crate) struct HistogramColumns {
    hints: Vec<i8>,
    schemas: Vec<i8>,
    sums: Vec<f64>,
    counts: Vec<f64>,
    zero_counts: Vec<f64>,
    zero_thresholds: Vec<f64>,
    positive: Buckets,
    negative: Buckets,
    bounds: Option<ListBuilder<Float64Builder>>,
    /// Of buckets and bounds.
    bytes: usize,
}

/// Indices and counts, as lists of one length.
#[derive(Default)]
struct Buckets {
    lists: Option<(ListBuilder<Int32Builder>, ListBuilder<Float64Builder>)>,
}

impl fmt::Debug for HistogramsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistogramsWriter")
            .field("file", &self.file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl HistogramsWriter {
    pub(crate) fn new(block: BlockId, layout: Layout, starts: bool) -> Result<Self> {
        let (schema, properties) = (histograms_schema(starts), properties(block, layout)?);
        Ok(Self {
            file: PartWriter::new(block, HISTOGRAMS_PART, schema, properties)?,
            rows: 0,
            columns: Columns::default(),
            starts: starts.then(StartsColumn::default),
        })
    }

    /// Appends the histograms of a series, ascending in time, and returns its first row.
    pub(crate) fn push(
        &mut self,
        id: u32,
        histograms: &[(i64, Arc<Histogram>)],
        starts: &[(i64, i64)],
    ) -> Result<u64> {
        let first_row = self.rows;
        for (t, histogram) in histograms {
            self.columns.push(id, *t, histogram);
            if let Some(column) = &mut self.starts {
                column.push(*t, starts);
            }
            if self.columns.series.len() >= GROUP_ROWS || self.columns.histograms.bytes() >= GROUP_BYTES {
                self.end_group()?;
            }
        }
        self.rows += histograms.len() as u64;
        Ok(first_row)
    }

    fn end_group(&mut self) -> Result<()> {
        if self.columns.series.is_empty() {
            return Ok(());
        }
        let mut columns = std::mem::take(&mut self.columns).finish();
        columns.extend(self.starts.as_mut().map(StartsColumn::finish));
        self.file.write(columns)?;
        self.file.end_group()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_written() + self.columns.series.len() * size_of::<Histogram>()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.end_group()?;
        self.file.finish()
    }
}

impl Columns {
    fn push(&mut self, id: u32, t: i64, h: &Histogram) {
        self.series.push(id);
        self.timestamps.push(t);
        self.histograms.push(h);
    }

    fn finish(self) -> Vec<ArrayRef> {
        let times = TimestampMillisecondArray::from(self.timestamps).with_timezone("UTC");
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(self.series)), Arc::new(times)];
        columns.extend(self.histograms.finish());
        columns
    }
}

impl HistogramColumns {
    /// What buckets and bounds take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, h: &Histogram) {
        self.hints.push(hint_number(h.reset_hint));
        // Of schemas only these few exist.
        self.schemas.push(h.schema as i8);
        self.sums.push(h.sum);
        self.counts.push(h.count);
        self.zero_counts.push(h.zero_count);
        self.zero_thresholds.push(h.zero_threshold);
        self.positive.push(h.positive());
        self.negative.push(h.negative());
        let bounds = self.bounds.get_or_insert_with(|| {
            let [_, item] = bucket_fields();
            ListBuilder::new(Float64Builder::new()).with_field(item)
        });
        bounds.values().append_slice(&h.custom_bounds);
        bounds.append(true);
        let buckets = h.positive_buckets.len() + h.negative_buckets.len();
        self.bytes += buckets * BUCKET_BYTES + size_of_val(h.custom_bounds.as_slice());
    }

    /// At least one must have been pushed.
    pub(crate) fn finish(self) -> Vec<ArrayRef> {
        let floats = |values: Vec<f64>| -> ArrayRef { Arc::new(Float64Array::from(values)) };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int8Array::from(self.hints)),
            Arc::new(Int8Array::from(self.schemas)),
            floats(self.sums),
            floats(self.counts),
            floats(self.zero_counts),
            floats(self.zero_thresholds),
        ];
        columns.extend(self.positive.finish());
        columns.extend(self.negative.finish());
        columns.extend(self.bounds.map(|mut b| ArrayBuilder::finish(&mut b)));
        columns
    }
}

impl Buckets {
    fn push(&mut self, buckets: impl Iterator<Item = (i32, f64)>) {
        let (indices, counts) = self.lists.get_or_insert_with(|| {
            let [index, count] = bucket_fields();
            (
                ListBuilder::new(Int32Builder::new()).with_field(index),
                ListBuilder::new(Float64Builder::new()).with_field(count),
            )
        });
        for (index, count) in buckets {
            indices.values().append_value(index);
            counts.values().append_value(count);
        }
        indices.append(true);
        counts.append(true);
    }

    fn finish(self) -> impl Iterator<Item = ArrayRef> {
        let lists = self.lists.map(|(mut indices, mut counts)| -> [ArrayRef; 2] {
            [Arc::new(indices.finish()), Arc::new(counts.finish())]
        });
        lists.into_iter().flatten()
    }
}

/// The number of a reset hint, as Prometheus numbers them.
fn hint_number(hint: ResetHint) -> i8 {
    match hint {
        ResetHint::Unknown => 0,
        ResetHint::Reset => 1,
        ResetHint::NotReset => 2,
        ResetHint::Gauge => 3,
    }
}

fn properties(block: BlockId, layout: Layout) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    Ok(base_properties(block, HISTOGRAMS_PART, layout)?
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_column_encoding(path(TIMESTAMP), Encoding::DELTA_BINARY_PACKED)
        .set_column_dictionary_enabled(path(TIMESTAMP), false)
        .set_column_dictionary_enabled(path(SERIES), true)
        .build())
}

#[cfg(test)]
mod tests {
    use koios_model::Span;
    use parquet::file::reader::FileReader;
    use parquet::file::serialized_reader::SerializedFileReader;

    use super::*;

    #[test]
    fn i12_row_groups_of_large_histograms_end_early() {
        const BUCKETS: u32 = 1000;
        let histogram = Arc::new(Histogram {
            positive_spans: vec![Span {
                offset: 0,
                length: BUCKETS,
            }],
            positive_buckets: vec![1.0; BUCKETS as usize],
            ..Histogram::default()
        });
        let mut writer = HistogramsWriter::new(BlockId::new(1, 1), Layout::default(), false).unwrap();
        let histograms: Vec<_> = (0..3000).map(|t| (t, Arc::clone(&histogram))).collect();
        writer.push(0, &histograms, &[]).unwrap();
        let file = SerializedFileReader::new(writer.finish().unwrap()).unwrap();
        let rows: Vec<i64> = file
            .metadata()
            .row_groups()
            .iter()
            .map(|g| g.num_rows())
            .collect();
        let most = (GROUP_BYTES / BUCKET_BYTES / BUCKETS as usize + 1) as i64;
        assert_eq!(rows.iter().sum::<i64>(), 3000);
        assert!(
            rows.len() > 1 && rows.iter().all(|n| *n <= most),
            "{rows:?} of {most}"
        );
    }
}
