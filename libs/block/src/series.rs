//! Reads `series.parquet`: label columns decide which rows to read, the MAP has the last word.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMillisecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, BooleanArray, DictionaryArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use koios_model::{LabelsRef, Matcher, Matchers, Metadata, TimeRange, write_packed_pair};
use koios_runtime::Cpu;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};
use parquet::file::statistics::Statistics;

use crate::Result;
use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::schema::{
    K_FIRST_ROW, K_FIRST_TIME, K_HELP, K_ID, K_LAST_TIME, K_ROW_COUNT, K_TYPE, K_UNIT, LABEL_COLUMN_PREFIX,
    LABELS, dictionary_type, is_dictionary_column,
};

/// Columns that make a [`BlockSeries`].
const IDENTITY_COLUMNS: [&str; 9] = [
    K_ID,
    K_FIRST_ROW,
    K_ROW_COUNT,
    K_FIRST_TIME,
    K_LAST_TIME,
    K_TYPE,
    K_UNIT,
    K_HELP,
    LABELS,
];

/// The series of a block.
#[derive(Clone, Debug)]
pub(crate) struct SeriesTable {
    part: PartFile,
    /// First and last sample of the block.
    range: TimeRange,
}

/// The rows of a row group that may match, read in several steps: a bit for each, not series, is what waits.
#[derive(Debug)]
pub(crate) struct GroupRows {
    group: u32,
    /// Which rows may match; `None` for all.
    mask: Option<BooleanArray>,
    rows: usize,
    /// The first row that was not read yet.
    at: usize,
    done: bool,
}

impl GroupRows {
    /// Whether all were read.
    pub(crate) fn done(&self) -> bool {
        self.done
    }

    /// The next rows, at most `count`, as ascending runs, and the row after them: the end if no more may match.
    fn runs(&self, count: usize) -> (Vec<Range<usize>>, usize) {
        let (mut runs, mut left) = (Vec::new(), count);
        let Some(mask) = &self.mask else {
            let end = self.at.saturating_add(count).min(self.rows);
            runs.push(self.at..end);
            return (runs, end);
        };
        let rest = mask.slice(self.at, self.rows.saturating_sub(self.at));
        for (from, to) in rest.values().set_slices() {
            let (from, to) = (self.at + from, self.at + to);
            if left == 0 {
                return (runs, from);
            }
            let end = to.min(from.saturating_add(left));
            runs.push(from..end);
            left -= end - from;
            if end < to {
                return (runs, end);
            }
        }
        (runs, self.rows)
    }
}

/// Columns of strings are read as dictionaries, so that a matcher looks at each distinct value once.
fn with_dictionaries(schema: &SchemaRef) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|f| {
            if is_dictionary_column(f.name()) && *f.data_type() == DataType::Utf8 {
                f.as_ref().clone().with_data_type(dictionary_type())
            } else {
                f.as_ref().clone()
            }
        })
        .collect();
    Arc::new(Schema::new(fields))
}

impl SeriesTable {
    pub(crate) fn new(part: PartFile, range: TimeRange) -> Self {
        Self { part, range }
    }

    pub(crate) fn set_cpu(&mut self, cpu: Cpu) {
        self.part.set_cpu(cpu);
    }

    pub(crate) async fn footer(&self) -> Result<ArrowReaderMetadata> {
        self.part.footer(with_dictionaries).await
    }

    /// How many row groups there are.
    pub(crate) fn group_count(&self, footer: &ArrowReaderMetadata) -> Result<u32> {
        u32::try_from(footer.metadata().num_row_groups())
            .map_err(|_| self.part.corrupt("it has over 2^32 row groups"))
    }

    /// The matching series of one row group, in label order.
    pub(crate) async fn select_in_group(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<Vec<BlockSeries>> {
        let Some(selection) = self.candidates(footer, group, matchers, range).await? else {
            return Ok(Vec::new());
        };
        let columns = self.projection(footer, IDENTITY_COLUMNS.into_iter())?;
        let read = GroupRead {
            group,
            columns,
            selection,
        };
        let mut found = Vec::new();
        for batch in self.part.read_group(footer, read).await? {
            self.decode_series(&batch, matchers, &mut found)?;
        }
        Ok(found)
    }

    /// Where to begin with the rows of a group that may match; `None` if there are none.
    pub(crate) async fn group_rows(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<Option<GroupRows>> {
        let Some(masks) = self.candidate_masks(footer, group, matchers, range).await? else {
            return Ok(None);
        };
        let mask: Option<Vec<bool>> =
            masks.map(|masks| masks.iter().flat_map(BooleanArray::values).collect());
        let rows = match (&mask, footer.metadata().row_groups().get(group as usize)) {
            (Some(mask), _) => mask.len(),
            (None, Some(group)) => usize::try_from(group.num_rows()).unwrap_or(0),
            (None, None) => 0,
        };
        Ok(Some(GroupRows {
            group,
            mask: mask.map(BooleanArray::from),
            rows,
            at: 0,
            done: false,
        }))
    }

    /// The matching series among the next `rows_max` rows that may match, in label order: maybe none of them does.
    pub(crate) async fn select_some(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &mut GroupRows,
        rows_max: usize,
        matchers: &Matchers,
    ) -> Result<Vec<BlockSeries>> {
        let (runs, at) = rows.runs(rows_max.max(1));
        let last = at >= rows.rows;
        // All of a group at once needs no selection.
        let all = rows.mask.is_none() && rows.at == 0 && last;
        let total = rows.rows;
        let selection = (!all).then(|| {
            self.part
                .guarded(|| Ok(RowSelection::from_consecutive_ranges(runs.into_iter(), total)))
        });
        let read = GroupRead {
            group: rows.group,
            columns: self.projection(footer, IDENTITY_COLUMNS.into_iter())?,
            selection: selection.transpose()?,
        };
        let mut found = Vec::new();
        for batch in self.part.read_group(footer, read).await? {
            self.decode_series(&batch, matchers, &mut found)?;
        }
        (rows.at, rows.done) = (at, last);
        Ok(found)
    }

    /// Adds the values of `name` among the matching series of one row group.
    pub(crate) async fn label_values_in_group(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        name: &str,
        matchers: &Matchers,
        range: TimeRange,
        values: &mut BTreeSet<String>,
    ) -> Result<()> {
        let column = format!("{LABEL_COLUMN_PREFIX}{name}");
        let in_column = footer.schema().index_of(&column).is_ok()
            && matchers.iter().all(|m| {
                footer
                    .schema()
                    .index_of(&format!("{LABEL_COLUMN_PREFIX}{}", m.name()))
                    .is_ok()
            });
        if !in_column {
            for series in self.select_in_group(footer, group, matchers, range).await? {
                if let Some(value) = series.labels.get(name) {
                    insert_new(values, value);
                }
            }
            return Ok(());
        }
        let Some(selection) = self.candidates(footer, group, matchers, range).await? else {
            return Ok(());
        };
        let columns = self.projection(footer, std::iter::once(column.as_str()))?;
        let read = GroupRead {
            group,
            columns,
            selection,
        };
        for batch in self.part.read_group(footer, read).await? {
            let strings = self.strings(&batch, &column)?;
            for value in strings.rows().flatten() {
                insert_new(values, value);
            }
        }
        Ok(())
    }

    fn projection<'a>(
        &self,
        footer: &ArrowReaderMetadata,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<ProjectionMask> {
        let roots = names
            .map(|name| {
                footer
                    .schema()
                    .index_of(name)
                    .map_err(|_| self.part.corrupt(format!("it lacks column {name}")))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ProjectionMask::roots(footer.parquet_schema(), roots))
    }

    /// The rows of a group that label columns and times leave: `None` for none, `Some(None)` for all.
    async fn candidates(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<Option<Option<RowSelection>>> {
        Ok(
            match self.candidate_masks(footer, group, matchers, range).await? {
                None => None,
                Some(None) => Some(None),
                Some(Some(masks)) => {
                    let selection = self.part.guarded(|| Ok(RowSelection::from_filters(&masks)))?;
                    Some(Some(selection))
                }
            },
        )
    }

    /// As [`Self::candidates`], a bit for each row.
    async fn candidate_masks(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<Option<Option<Vec<BooleanArray>>>> {
        let mut by_column: BTreeMap<String, Vec<&Matcher>> = BTreeMap::new();
        for m in matchers.iter() {
            let column = format!("{LABEL_COLUMN_PREFIX}{}", m.name());
            if footer.schema().index_of(&column).is_ok() {
                by_column.entry(column).or_default().push(m);
            }
        }
        if by_column.iter().any(|(column, ms)| {
            ms.iter()
                .any(|m| excluded_by_statistics(footer, group, column, m))
        }) {
            return Ok(None);
        }
        let by_time = range.min > self.range.min || range.max < self.range.max;
        if by_column.is_empty() && !by_time {
            return Ok(Some(None));
        }
        let times: &[&str] = if by_time {
            &[K_FIRST_TIME, K_LAST_TIME]
        } else {
            &[]
        };
        let columns = self.projection(
            footer,
            by_column.keys().map(String::as_str).chain(times.iter().copied()),
        )?;
        let read = GroupRead {
            group,
            columns,
            selection: None,
        };
        let mut masks = Vec::new();
        for batch in self.part.read_group(footer, read).await? {
            masks.push(self.mask(&batch, &by_column, by_time.then_some(range))?);
        }
        let any = masks.iter().any(|m| m.true_count() > 0);
        Ok(any.then_some(Some(masks)))
    }

    fn mask(
        &self,
        batch: &RecordBatch,
        by_column: &BTreeMap<String, Vec<&Matcher>>,
        range: Option<TimeRange>,
    ) -> Result<BooleanArray> {
        let mut keep = vec![true; batch.num_rows()];
        for (column, matchers) in by_column {
            let strings = self.strings(batch, column)?;
            let verdicts: Vec<bool> = strings
                .values
                .iter()
                .map(|v| matchers.iter().all(|m| m.matches(v.unwrap_or(""))))
                .collect();
            let absent = matchers.iter().all(|m| m.matches_empty());
            for (keep, key) in keep.iter_mut().zip(strings.keys()) {
                *keep &= key.map_or(absent, |k| verdicts.get(k).copied().unwrap_or(false));
            }
        }
        if let Some(range) = range {
            let (first, last) = (self.times(batch, K_FIRST_TIME)?, self.times(batch, K_LAST_TIME)?);
            for ((keep, &first), &last) in keep.iter_mut().zip(first).zip(last) {
                *keep &= range.overlaps(&TimeRange::new(first, last));
            }
        }
        Ok(BooleanArray::from(keep))
    }

    fn column<'a>(&self, batch: &'a RecordBatch, name: &str) -> Result<&'a Arc<dyn Array>> {
        batch
            .column_by_name(name)
            .ok_or_else(|| self.part.corrupt(format!("it lacks column {name}")))
    }

    fn strings<'a>(&self, batch: &'a RecordBatch, name: &str) -> Result<Strings<'a>> {
        self.column(batch, name)?
            .as_dictionary_opt::<Int32Type>()
            .and_then(Strings::new)
            .ok_or_else(|| self.part.corrupt(format!("column {name} does not hold strings")))
    }

    fn times<'a>(&self, batch: &'a RecordBatch, name: &str) -> Result<&'a [i64]> {
        self.column(batch, name)?
            .as_primitive_opt::<TimestampMillisecondType>()
            .filter(|a| a.null_count() == 0)
            .map(|a| a.values().as_ref())
            .ok_or_else(|| self.part.corrupt(format!("column {name} does not hold times")))
    }

    fn decode_series(
        &self,
        batch: &RecordBatch,
        matchers: &Matchers,
        out: &mut Vec<BlockSeries>,
    ) -> Result<()> {
        let wrong = |name: &str| self.part.corrupt(format!("column {name} has the wrong type"));
        let ids = self.column(batch, K_ID)?;
        let ids = ids.as_primitive_opt::<UInt32Type>().ok_or_else(|| wrong(K_ID))?;
        let first_rows = self.column(batch, K_FIRST_ROW)?;
        let first_rows = first_rows
            .as_primitive_opt::<UInt64Type>()
            .ok_or_else(|| wrong(K_FIRST_ROW))?;
        let counts = self.column(batch, K_ROW_COUNT)?;
        let counts = counts
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| wrong(K_ROW_COUNT))?;
        let (first, last) = (self.times(batch, K_FIRST_TIME)?, self.times(batch, K_LAST_TIME)?);
        let texts = [
            self.strings(batch, K_TYPE)?,
            self.strings(batch, K_HELP)?,
            self.strings(batch, K_UNIT)?,
        ];
        let maps = LabelMaps::new(self.column(batch, LABELS)?).ok_or_else(|| wrong(LABELS))?;
        let mut metadata: Option<Arc<Metadata>> = None;
        let mut packed = Vec::new();
        for row in 0..batch.num_rows() {
            maps.pack(row, &mut packed);
            let labels = LabelsRef::from_packed(&packed)
                .map_err(|e| self.part.corrupt(format!("labels of a series: {e}")))?;
            if !matchers.matches(labels) {
                continue;
            }
            let [kind, help, unit] = texts.each_ref().map(|t| t.get(row).unwrap_or(""));
            // Neighbours are mostly of one metric: they share its metadata.
            if !metadata
                .as_ref()
                .is_some_and(|m| m.kind == kind && m.help == help && m.unit == unit)
            {
                metadata = Some(Arc::new(Metadata {
                    kind: kind.to_owned(),
                    help: help.to_owned(),
                    unit: unit.to_owned(),
                }));
            }
            let known = !(kind.is_empty() && help.is_empty() && unit.is_empty());
            out.push(BlockSeries {
                labels: labels.to_labels(),
                id: ids.value(row),
                first_row: first_rows.value(row),
                row_count: counts.value(row),
                range: TimeRange::new(first[row], last[row]),
                metadata: metadata.clone().filter(|_| known),
            });
        }
        Ok(())
    }
}

fn insert_new(values: &mut BTreeSet<String>, value: &str) {
    if !values.contains(value) {
        values.insert(value.to_owned());
    }
}

/// Whether the statistics of a row group rule out every value that a matcher accepts.
fn excluded_by_statistics(footer: &ArrowReaderMetadata, group: u32, column: &str, matcher: &Matcher) -> bool {
    let Some(literals) = matcher.literals().filter(|_| !matcher.matches_empty()) else {
        return false;
    };
    let Some(group) = footer.metadata().row_groups().get(group as usize) else {
        return false;
    };
    // A path of one part: labels' names may contain dots.
    let found = group
        .columns()
        .iter()
        .find(|c| c.column_path().parts() == [column]);
    let Some(Statistics::ByteArray(s)) = found.and_then(|c| c.statistics()) else {
        return false;
    };
    let (Some(min), Some(max)) = (s.min_bytes_opt(), s.max_bytes_opt()) else {
        return false;
    };
    literals.iter().all(|l| l.as_bytes() < min || l.as_bytes() > max)
}

/// A dictionary column, checked to be one of strings.
struct Strings<'a> {
    array: &'a DictionaryArray<Int32Type>,
    values: &'a StringArray,
}

impl<'a> Strings<'a> {
    fn new(array: &'a DictionaryArray<Int32Type>) -> Option<Self> {
        let values = array.values().as_string_opt::<i32>()?;
        Some(Self { array, values })
    }

    fn keys(&self) -> impl Iterator<Item = Option<usize>> + '_ {
        self.array
            .keys()
            .iter()
            .map(|k| k.and_then(|k| usize::try_from(k).ok()))
    }

    fn rows(&self) -> impl Iterator<Item = Option<&'a str>> + '_ {
        (0..self.array.len()).map(|row| self.get(row))
    }

    fn get(&self, row: usize) -> Option<&'a str> {
        let keys = self.array.keys();
        if row >= keys.len() || keys.is_null(row) {
            return None;
        }
        let key = usize::try_from(keys.value(row)).ok()?;
        (key < self.values.len() && self.values.is_valid(key)).then(|| self.values.value(key))
    }
}

/// The `labels` column.
struct LabelMaps<'a> {
    offsets: &'a [i32],
    names: &'a StringArray,
    values: &'a StringArray,
}

impl<'a> LabelMaps<'a> {
    fn new(column: &'a Arc<dyn Array>) -> Option<Self> {
        let map = column.as_map_opt()?;
        Some(Self {
            offsets: map.value_offsets(),
            names: map.keys().as_string_opt::<i32>()?,
            values: map.values().as_string_opt::<i32>()?,
        })
    }

    /// Writes the packed labels of a row; whether they are in order is checked by the caller.
    fn pack(&self, row: usize, packed: &mut Vec<u8>) {
        packed.clear();
        let (Some(&from), Some(&to)) = (self.offsets.get(row), self.offsets.get(row + 1)) else {
            return;
        };
        for i in from.max(0) as usize..to.max(0) as usize {
            if i < self.names.len() && i < self.values.len() {
                write_packed_pair(packed, self.names.value(i), self.values.value(i));
            }
        }
    }
}
