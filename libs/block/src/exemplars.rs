//! `exemplars.parquet`: one row per exemplar, with the labels of its series, which need not have samples in the block.

use std::fmt;
use std::sync::Arc;

use arrow_array::builder::{MapBuilder, StringBuilder, StringDictionaryBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int32Type};
use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{ArrowError, Schema};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use koios_model::{Exemplar, Labels, Matchers, TimeRange};
use parquet::arrow::ProjectionMask;
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::meta::EXEMPLARS_PART;
use crate::part::{GroupRead, PartFile};
use crate::part_writer::{PartWriter, base_properties};
use crate::row_chunk::{LabelMaps, column, times};
use crate::schema::{
    EXEMPLAR_LABELS, EXEMPLAR_VALUE, LABELS, METRIC_COLUMN, TIMESTAMP, exemplars_schema, map_field_names,
    map_value_field,
};
use crate::series_filters::excluded_by_statistics;
use crate::writer::Layout;
use crate::{BlockId, Result};

/// Rows of a row group: what is read at once.
const GROUP_ROWS: usize = 16 * 1024;

/// A series and exemplars of it, ascending in time.
pub type SeriesExemplars = (Labels, Vec<Exemplar>);

/// Collects exemplars and encodes them.
pub(crate) struct ExemplarsWriter {
    file: PartWriter,
    rows: u64,
    /// Of the current row group.
    group: Vec<(Labels, Exemplar)>,
    last: Option<Labels>,
}

impl fmt::Debug for ExemplarsWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExemplarsWriter")
            .field("file", &self.file)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl ExemplarsWriter {
    pub(crate) fn new(block: BlockId, layout: Layout) -> Result<Self> {
        let properties = properties(block, layout)?;
        Ok(Self {
            file: PartWriter::new(block, EXEMPLARS_PART, exemplars_schema(), properties)?,
            rows: 0,
            group: Vec::new(),
            last: None,
        })
    }

    /// The series that was pushed last.
    pub(crate) fn last(&self) -> Option<&Labels> {
        self.last.as_ref()
    }

    /// Appends the exemplars of a series.
    pub(crate) fn push(&mut self, labels: &Labels, exemplars: &[Exemplar]) -> Result<()> {
        for exemplar in exemplars {
            self.group.push((labels.clone(), exemplar.clone()));
            if self.group.len() >= GROUP_ROWS {
                self.end_group()?;
            }
        }
        self.rows += exemplars.len() as u64;
        self.last = Some(labels.clone());
        Ok(())
    }

    fn end_group(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return Ok(());
        }
        let columns = columns_of(&group).map_err(|e| self.file.error(e))?;
        self.file.write(columns)?;
        self.file.end_group()
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    pub(crate) fn encoded_bytes(&self) -> usize {
        self.file.bytes_written()
    }

    pub(crate) fn finish(mut self) -> Result<Bytes> {
        self.end_group()?;
        self.file.finish()
    }
}

fn properties(block: BlockId, layout: Layout) -> Result<WriterProperties> {
    let path = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    Ok(base_properties(block, EXEMPLARS_PART, layout)?
        .set_column_encoding(path(TIMESTAMP), Encoding::DELTA_BINARY_PACKED)
        .set_column_dictionary_enabled(path(TIMESTAMP), false)
        .set_column_statistics_enabled(path(METRIC_COLUMN), EnabledStatistics::Chunk)
        .build())
}

fn columns_of(rows: &[(Labels, Exemplar)]) -> Result<Vec<ArrayRef>, ArrowError> {
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|(_, e)| e.t));
    let mut metrics = StringDictionaryBuilder::<Int32Type>::new();
    rows.iter().for_each(|(series, _)| {
        metrics.append_option(Some(series.metric_name()).filter(|name| !name.is_empty()));
    });
    Ok(vec![
        Arc::new(times.with_timezone("UTC")),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, e)| e.v))),
        label_map(rows.iter().map(|(_, e)| &e.labels))?,
        label_map(rows.iter().map(|(series, _)| series))?,
        Arc::new(metrics.finish()),
    ])
}

/// A column of label sets.
pub(crate) fn label_map<'a>(all: impl Iterator<Item = &'a Labels>) -> Result<ArrayRef, ArrowError> {
    let (names, values) = (StringBuilder::new(), StringBuilder::new());
    let builder = MapBuilder::new(Some(map_field_names()), names, values);
    let mut builder = builder.with_values_field(map_value_field());
    for labels in all {
        for (name, value) in labels.iter() {
            builder.keys().append_value(name);
            builder.values().append_value(value);
        }
        builder.append(true)?;
    }
    Ok(Arc::new(builder.finish()))
}

/// The exemplars of matching series in a closed range of time, in label order and ascending in time, a row group at a
/// time: a series may go on in the next item.
pub(crate) fn scan(
    part: PartFile,
    matchers: Matchers,
    range: TimeRange,
) -> BoxStream<'static, Result<Vec<SeriesExemplars>>> {
    let wanted = Arc::new(Wanted { matchers, range });
    stream::try_unfold((part, wanted, 0u32), |(part, wanted, group)| async move {
        let footer = part.footer(Arc::<Schema>::clone).await?;
        let groups = footer.metadata().num_row_groups();
        let excluded = |group| {
            let mut matchers = wanted.matchers.iter();
            matchers.any(|m| excluded_by_statistics(&footer, group, m))
        };
        let Some(group) = (group..)
            .take_while(|g| (*g as usize) < groups)
            .find(|g| !excluded(*g))
        else {
            return Ok(None);
        };
        let read = GroupRead {
            group,
            columns: ProjectionMask::all(),
            selection: None,
        };
        let found = Found {
            wanted: Arc::clone(&wanted),
            all: Vec::new(),
        };
        let found = part
            .fold_group(&footer, read, GROUP_ROWS, found, |part, found, batch| {
                found.add(part, &batch)
            })
            .await?;
        Ok(Some((found.all, (part, wanted, group + 1))))
    })
    .boxed()
}

/// Which exemplars are asked for.
#[derive(Debug)]
struct Wanted {
    matchers: Matchers,
    range: TimeRange,
}

#[derive(Debug)]
struct Found {
    wanted: Arc<Wanted>,
    all: Vec<SeriesExemplars>,
}

impl Found {
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let wrong = |name: &str| {
            part.corrupt(format!(
                "column {name} is missing, of the wrong type, or has nulls"
            ))
        };
        let maps = |name: &str| LabelMaps::new(column(part, batch, name)?).ok_or_else(|| wrong(name));
        let (series, labels) = (maps(LABELS)?, maps(EXEMPLAR_LABELS)?);
        let at = times(part, batch, TIMESTAMP)?;
        let values = column(part, batch, EXEMPLAR_VALUE)?.as_primitive_opt::<Float64Type>();
        let values = values
            .filter(|v| v.null_count() == 0)
            .ok_or_else(|| wrong(EXEMPLAR_VALUE))?;
        let mut current: Option<(Labels, bool)> = None;
        for (row, &t) in at.iter().enumerate() {
            let not_labels = || part.corrupt("an exemplar has labels that are none");
            let known = current.take().filter(|(known, _)| series.are(row, known));
            let (of, matches) = match known {
                Some(known) => known,
                None => {
                    let of = series.labels(row).ok_or_else(not_labels)?;
                    let matches = self.wanted.matchers.matches(of.as_ref());
                    (of, matches)
                }
            };
            if matches && self.wanted.range.contains(t) {
                let exemplar = Exemplar {
                    t,
                    v: values.value(row),
                    labels: labels.labels(row).ok_or_else(not_labels)?,
                };
                match self.all.last_mut().filter(|(last, _)| *last == of) {
                    Some((_, all)) => all.push(exemplar),
                    None => self.all.push((of.clone(), vec![exemplar])),
                }
            }
            current = Some((of, matches));
        }
        Ok(())
    }
}
