//! Encodes `series.parquet`.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::builder::StringDictionaryBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, TimestampMillisecondArray, UInt32Array, UInt64Array};
use arrow_schema::SchemaRef;
use bytes::Bytes;
use koios_model::{Labels, Metadata, TimeRange};
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::exemplars::label_map;
use crate::meta::SERIES_PART;
use crate::part_writer::{PartWriter, base_properties, small_delta_blocks};
use crate::schema::{
    K_COUNT, K_FIRST_ROW, K_FIRST_TIME, K_HISTOGRAM_COUNT, K_HISTOGRAM_FIRST_ROW, K_ID, K_LAST_TIME,
    K_ROW_COUNT, K_TIMES_LAST_ROW, K_TIMES_ROW_COUNT, LABEL_COLUMN_PREFIX, LABEL_COLUMNS_MAX, series_schema,
};
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Series in a row group: the unit that label statistics skip and a select reads at once.
pub(crate) const SERIES_GROUP_ROWS: usize = 32 * 1024;
/// Series in a page of the MAP: the least that is read for one matching series.
const SERIES_PAGE_ROWS: usize = 2 * 1024;

/// One series as the writer remembers it.
#[derive(Clone, Debug)]
pub(crate) struct SeriesRow {
    pub(crate) labels: Labels,
    pub(crate) metadata: Option<Metadata>,
    pub(crate) first_row: u64,
    pub(crate) count: u32,
    pub(crate) times_last_row: u32,
    pub(crate) times_row_count: u32,
    pub(crate) histogram_first_row: u64,
    pub(crate) histogram_count: u32,
    pub(crate) range: TimeRange,
}

/// The part's bytes; with `times`, series tell where their times are.
pub(crate) fn encode_series(
    block: BlockId,
    rows: &[SeriesRow],
    layout: Layout,
    times: bool,
) -> Result<Bytes> {
    let frequent = frequent_names(rows);
    let histograms = rows.iter().any(|row| row.histogram_count > 0);
    let schema = series_schema(&frequent, times, histograms);
    let properties = properties(block, layout, &frequent)?;
    let mut file = PartWriter::new(block, SERIES_PART, Arc::clone(&schema), properties)?;
    for (i, group) in rows.chunks(SERIES_GROUP_ROWS).enumerate() {
        let columns = columns_of(&schema, &frequent, i * SERIES_GROUP_ROWS, group);
        let columns = columns.map_err(|e| file.error(e))?;
        file.write(columns)?;
        file.end_group()?;
    }
    file.finish()
}

/// The label names that get a column: the most frequent ones, ascending.
fn frequent_names(rows: &[SeriesRow]) -> Vec<String> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        for (name, _) in row.labels.iter() {
            *counts.entry(name).or_default() += 1;
        }
    }
    let mut names: Vec<_> = counts.into_iter().collect();
    // A stable sort keeps names ascending among equals, so equal input gives equal bytes.
    names.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    names.truncate(LABEL_COLUMNS_MAX);
    let mut names: Vec<String> = names.into_iter().map(|(name, _)| name.to_owned()).collect();
    names.sort_unstable();
    names
}

fn properties(block: BlockId, layout: Layout, frequent: &[String]) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let mut builder = base_properties(block, SERIES_PART, layout)?
        .set_data_page_row_count_limit(SERIES_PAGE_ROWS)
        .set_delta_binary_packed_encoder_options(small_delta_blocks(block, SERIES_PART)?);
    for name in [
        K_ID,
        K_FIRST_ROW,
        K_ROW_COUNT,
        K_FIRST_TIME,
        K_LAST_TIME,
        K_COUNT,
        K_TIMES_LAST_ROW,
        K_TIMES_ROW_COUNT,
        K_HISTOGRAM_FIRST_ROW,
        K_HISTOGRAM_COUNT,
    ] {
        // From series to series most of these go on by the same step.
        builder = builder
            .set_column_dictionary_enabled(path(name), false)
            .set_column_encoding(path(name), Encoding::DELTA_BINARY_PACKED);
    }
    for name in [K_FIRST_TIME, K_LAST_TIME] {
        builder = builder.set_column_statistics_enabled(path(name), EnabledStatistics::Chunk);
    }
    for name in frequent {
        let column = path(&format!("{LABEL_COLUMN_PREFIX}{name}"));
        builder = builder.set_column_statistics_enabled(column, EnabledStatistics::Chunk);
    }
    Ok(builder.build())
}

fn columns_of(
    schema: &SchemaRef,
    frequent: &[String],
    first_id: usize,
    rows: &[SeriesRow],
) -> Result<Vec<ArrayRef>, arrow_schema::ArrowError> {
    let times = |f: fn(&SeriesRow) -> i64| -> ArrayRef {
        Arc::new(TimestampMillisecondArray::from_iter_values(rows.iter().map(f)).with_timezone("UTC"))
    };
    let text = |f: fn(&Metadata) -> &str| dictionary(rows.iter().map(|r| r.metadata.as_ref().map(f)));
    let ids = (first_id..first_id + rows.len()).map(|i| i as u32);
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(ids)),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|r| r.first_row))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.count))),
        Arc::new(UInt64Array::from_iter_values(
            rows.iter()
                .map(|r| u64::from(r.count) + u64::from(r.histogram_count)),
        )),
        text(|m| &m.kind)?,
        text(|m| &m.unit)?,
        text(|m| &m.help)?,
    ];
    if schema.column_with_name(K_TIMES_ROW_COUNT).is_some() {
        let last_rows = rows.iter().map(|r| r.times_last_row);
        columns.push(Arc::new(UInt32Array::from_iter_values(last_rows)));
        let counts = rows.iter().map(|r| r.times_row_count);
        columns.push(Arc::new(UInt32Array::from_iter_values(counts)));
    }
    if schema.column_with_name(K_HISTOGRAM_COUNT).is_some() {
        let first_rows = rows.iter().map(|r| r.histogram_first_row);
        columns.push(Arc::new(UInt64Array::from_iter_values(first_rows)));
        let counts = rows.iter().map(|r| r.histogram_count);
        columns.push(Arc::new(UInt32Array::from_iter_values(counts)));
    }
    columns.push(label_map(rows.iter().map(|r| &r.labels))?);
    columns.push(times(|r| r.range.min));
    columns.push(times(|r| r.range.max));
    for name in frequent {
        columns.push(dictionary(rows.iter().map(|r| r.labels.get(name)))?);
    }
    Ok(columns)
}

fn dictionary<'a>(
    values: impl Iterator<Item = Option<&'a str>>,
) -> Result<ArrayRef, arrow_schema::ArrowError> {
    let mut builder = StringDictionaryBuilder::<Int32Type>::new();
    for value in values {
        match value {
            Some(v) => {
                builder.append(v)?;
            }
            None => builder.append_null(),
        }
    }
    Ok(Arc::new(builder.finish()))
}
