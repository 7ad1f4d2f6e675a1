//! Neighbouring series of a block, decoded and kept small: each label pair once, each set of label names once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampMillisecondType, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch, StringArray};
use koios_model::{
    Labels, LabelsRef, METRIC_NAME, Matcher, Matchers, Metadata, TimeRange, write_packed_pair,
};

use crate::Result;
use crate::label_column::Strings;
use crate::metadata::MetricMetadata;
use crate::part::PartFile;
use crate::reader::BlockSeries;
use crate::schema::{
    K_FIRST_ROW, K_FIRST_TIME, K_HELP, K_HISTOGRAM_COUNT, K_HISTOGRAM_FIRST_ROW, K_ID, K_LAST_TIME,
    K_ROW_COUNT, K_TIMES_LAST_ROW, K_TIMES_ROW_COUNT, K_TYPE, K_UNIT, LABELS,
};

/// Columns that make a [`BlockSeries`]; those of times and histograms are there where there are
/// such parts.
pub(crate) const IDENTITY_COLUMNS: [&str; 13] = [
    K_ID,
    K_FIRST_ROW,
    K_ROW_COUNT,
    K_TIMES_LAST_ROW,
    K_TIMES_ROW_COUNT,
    K_HISTOGRAM_FIRST_ROW,
    K_HISTOGRAM_COUNT,
    K_FIRST_TIME,
    K_LAST_TIME,
    K_TYPE,
    K_UNIT,
    K_HELP,
    LABELS,
];

/// Series that stand together in the table.
#[derive(Debug, Default)]
pub(crate) struct RowChunk {
    names: Vec<Box<str>>,
    /// Label pairs in packed form, one after the other.
    pairs: Vec<u8>,
    /// Bytes of the longest of them.
    longest_pair: usize,
    /// Where each pair's value begins in `pairs`, and where it ends with its pair.
    pair_values: Vec<Range<u32>>,
    /// Sets of names, ascending, as places in `names`.
    shapes: Vec<Box<[u32]>>,
    /// The pairs of all series, one series after the other, each in the order of its shape.
    series_pairs: Vec<u32>,
    metadata: Vec<Option<Arc<Metadata>>>,
    rows: Vec<Row>,
}

/// A series, beside its labels.
#[derive(Debug)]
struct Row {
    id: u32,
    first_row: u64,
    row_count: u32,
    times_last_row: u32,
    times_row_count: u32,
    histogram_first_row: u64,
    histogram_count: u32,
    range: TimeRange,
    shape: u32,
    /// Its first in `series_pairs`.
    first_pair: u32,
    metadata: u32,
}

impl RowChunk {
    /// How many series there are.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Those of `rows` whose labels match, ascending. A matcher looks at each distinct value once.
    pub(crate) fn matching(&self, matchers: &Matchers, rows: &[Range<usize>]) -> Vec<usize> {
        let mut verdicts: Vec<Verdicts<'_>> = matchers.iter().map(|m| Verdicts::new(self, m)).collect();
        let rows = rows.iter().cloned().flatten();
        rows.filter(|&row| verdicts.iter_mut().all(|v| v.holds(row)))
            .collect()
    }

    /// The series at `row`.
    pub(crate) fn series(&self, row: usize, packed: &mut Vec<u8>) -> Option<BlockSeries> {
        let r = self.rows.get(row)?;
        packed.clear();
        for &pair in self.pairs_of(r) {
            packed.extend_from_slice(self.pair(pair));
        }
        Some(BlockSeries {
            // Checked when the chunk was built.
            labels: LabelsRef::from_trusted(packed).to_labels(),
            id: r.id,
            first_row: r.first_row,
            row_count: r.row_count,
            times_last_row: r.times_last_row,
            times_row_count: r.times_row_count,
            histogram_first_row: r.histogram_first_row,
            histogram_count: r.histogram_count,
            range: r.range,
            metadata: self.metadata.get(r.metadata as usize).cloned().flatten(),
        })
    }

    /// Adds the names of the labels of `rows`.
    pub(crate) fn add_names(&self, rows: &[usize], names: &mut BTreeSet<String>) {
        let shapes: BTreeSet<u32> = rows
            .iter()
            .filter_map(|&row| self.rows.get(row))
            .map(|r| r.shape)
            .collect();
        let shapes = shapes.into_iter().filter_map(|s| self.shapes.get(s as usize));
        let found: BTreeSet<u32> = shapes.flat_map(|shape| shape.iter().copied()).collect();
        for name in found.into_iter().filter_map(|n| self.names.get(n as usize)) {
            insert_new(names, name);
        }
    }

    /// Adds the values of the label `name` of `rows`.
    pub(crate) fn add_values(&self, name: &str, rows: &[usize], values: &mut BTreeSet<String>) {
        let Some(name) = self.name(name) else { return };
        let rows = rows.iter().filter_map(|&row| self.rows.get(row));
        let found: BTreeSet<u32> = rows.filter_map(|r| self.pair_named(r, name)).collect();
        for pair in found {
            insert_new(values, self.value(pair));
        }
    }

    /// Adds what is known of the metrics of `rows`, each entry once.
    pub(crate) fn add_metadata_of(&self, rows: &[usize], all: &mut Vec<MetricMetadata>) {
        let Some(name) = self.name(METRIC_NAME) else {
            return;
        };
        let rows = rows.iter().filter_map(|&row| self.rows.get(row));
        let entry = |r: &Row| Some((self.pair_named(r, name)?, r.metadata));
        let found: BTreeSet<(u32, u32)> = rows.filter_map(entry).collect();
        for (pair, metadata) in found {
            if let Some(Some(metadata)) = self.metadata.get(metadata as usize) {
                all.push((self.value(pair).to_owned(), Arc::clone(metadata)));
            }
        }
    }

    fn name(&self, name: &str) -> Option<u32> {
        let place = self.names.iter().position(|n| **n == *name)?;
        u32::try_from(place).ok()
    }

    fn pairs_of(&self, row: &Row) -> &[u32] {
        let len = self.shapes.get(row.shape as usize).map_or(0, |s| s.len());
        let from = row.first_pair as usize;
        self.series_pairs.get(from..from + len).unwrap_or(&[])
    }

    /// The pair of a series that has this name.
    fn pair_named(&self, row: &Row, name: u32) -> Option<u32> {
        let shape = self.shapes.get(row.shape as usize)?;
        let place = shape.iter().position(|&n| n == name)?;
        self.pairs_of(row).get(place).copied()
    }

    /// A pair in packed form.
    fn pair(&self, pair: u32) -> &[u8] {
        let before = (pair as usize).checked_sub(1);
        let start = before.and_then(|b| self.pair_values.get(b)).map_or(0, |v| v.end);
        let end = self.pair_values.get(pair as usize).map_or(0, |v| v.end);
        self.pairs.get(start as usize..end as usize).unwrap_or(&[])
    }

    fn value(&self, pair: u32) -> &str {
        let range = self.pair_values.get(pair as usize).cloned().unwrap_or(0..0);
        let bytes = self.pairs.get(range.start as usize..range.end as usize);
        std::str::from_utf8(bytes.unwrap_or(&[])).unwrap_or("")
    }

    /// Most bytes of values that a matcher may have to look at for so many series: each distinct one once.
    pub(crate) fn bytes_to_look_at(&self, series: usize) -> usize {
        self.pairs.len().min(series.saturating_mul(self.longest_pair))
    }

    /// Bytes held.
    pub(crate) fn memory_size(&self) -> usize {
        let names: usize = self.names.iter().map(|n| n.len() + size_of::<Box<str>>()).sum();
        let shapes: usize = self
            .shapes
            .iter()
            .map(|s| size_of_val(&**s) + size_of_val(s))
            .sum();
        let metadata = self.metadata.iter().flatten();
        let texts: usize = metadata
            .map(|m| m.kind.len() + m.help.len() + m.unit.len() + size_of::<Metadata>())
            .sum();
        names
            + shapes
            + texts
            + self.pairs.len()
            + size_of_val(self.pair_values.as_slice())
            + size_of_val(self.series_pairs.as_slice())
            + size_of_val(self.metadata.as_slice())
            + size_of_val(self.rows.as_slice())
    }
}

fn insert_new(all: &mut BTreeSet<String>, new: &str) {
    if !all.contains(new) {
        all.insert(new.to_owned());
    }
}

/// What a matcher says to the values of its label.
struct Verdicts<'a> {
    chunk: &'a RowChunk,
    matcher: &'a Matcher,
    name: Option<u32>,
    /// Of series without the label.
    absent: bool,
    by_pair: Vec<Option<bool>>,
}

impl<'a> Verdicts<'a> {
    fn new(chunk: &'a RowChunk, matcher: &'a Matcher) -> Self {
        Self {
            chunk,
            matcher,
            name: chunk.name(matcher.name()),
            absent: matcher.matches_empty(),
            by_pair: vec![None; chunk.pair_values.len()],
        }
    }

    fn holds(&mut self, row: usize) -> bool {
        let row = self.chunk.rows.get(row);
        let pair = row
            .zip(self.name)
            .and_then(|(r, name)| self.chunk.pair_named(r, name));
        let Some(pair) = pair else { return self.absent };
        match self.by_pair.get_mut(pair as usize) {
            Some(Some(known)) => *known,
            Some(unknown) => *unknown.insert(self.matcher.matches(self.chunk.value(pair))),
            None => false,
        }
    }
}

/// Collects series of a table into a chunk.
#[derive(Debug, Default)]
pub(crate) struct ChunkBuilder {
    chunk: RowChunk,
    names: BTreeMap<Box<str>, u32>,
    /// Pairs by their packed form, with the place of their name.
    pairs: HashMap<Box<[u8]>, Pair>,
    shapes: BTreeMap<Box<[u32]>, u32>,
    /// Those of the last series: neighbours are alike.
    last: Vec<Pair>,
    packed: PackedRow,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    place: u32,
    name: u32,
}

/// The labels of a row as they are read.
#[derive(Debug, Default)]
struct PackedRow {
    bytes: Vec<u8>,
    /// Where each pair ends, and its place in the column.
    pairs: Vec<(usize, usize)>,
}

impl ChunkBuilder {
    /// The series collected.
    pub(crate) fn finish(self) -> RowChunk {
        let mut chunk = self.chunk;
        // What a cache keeps should be no larger than what it counts.
        chunk.pairs.shrink_to_fit();
        chunk.pair_values.shrink_to_fit();
        chunk.series_pairs.shrink_to_fit();
        chunk.rows.shrink_to_fit();
        chunk.names.shrink_to_fit();
        chunk.shapes.shrink_to_fit();
        chunk.metadata.shrink_to_fit();
        chunk
    }

    /// Bytes held.
    pub(crate) fn memory_size(&self) -> usize {
        self.chunk.memory_size()
    }

    /// Adds the series of a batch with [`IDENTITY_COLUMNS`].
    pub(crate) fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let columns = Identity::new(part, batch)?;
        for row in 0..batch.num_rows() {
            columns.labels.pack(row, &mut self.packed);
            LabelsRef::from_packed(&self.packed.bytes)
                .map_err(|e| part.corrupt(format!("labels of a series: {e}")))?;
            let (shape, first_pair) = self
                .add_labels(&columns.labels)
                .ok_or_else(|| part.corrupt("the labels of its series exceed 4 GiB"))?;
            let metadata = self.add_metadata(columns.texts.each_ref().map(|t| t.get(row).unwrap_or("")));
            self.chunk.rows.push(Row {
                id: columns.ids[row],
                first_row: columns.first_rows[row],
                row_count: columns.row_counts[row],
                times_last_row: columns.times_last_rows.map_or(0, |rows| rows[row]),
                times_row_count: columns.times_row_counts.map_or(0, |counts| counts[row]),
                histogram_first_row: columns.histogram_first_rows.map_or(0, |rows| rows[row]),
                histogram_count: columns.histogram_counts.map_or(0, |counts| counts[row]),
                range: TimeRange::new(columns.first_times[row], columns.last_times[row]),
                shape,
                first_pair,
                metadata,
            });
        }
        Ok(())
    }

    /// Adds the labels in `packed`: tells their shape and first pair.
    fn add_labels(&mut self, labels: &LabelMaps<'_>) -> Option<(u32, u32)> {
        let first = u32::try_from(self.chunk.series_pairs.len()).ok()?;
        let packed = std::mem::take(&mut self.packed);
        let (mut start, mut same_shape) = (0, packed.pairs.len() == self.last.len());
        for (i, &(end, place)) in packed.pairs.iter().enumerate() {
            let bytes = packed.bytes.get(start..end)?;
            start = end;
            let before = self.last.get(i).copied();
            let pair = match before.filter(|b| self.chunk.pair(b.place) == bytes) {
                Some(pair) => pair,
                None => self.pair(bytes, labels.name(place), labels.value(place))?,
            };
            same_shape &= before.is_some_and(|b| b.name == pair.name);
            match self.last.get_mut(i) {
                Some(last) => *last = pair,
                None => self.last.push(pair),
            }
            self.chunk.series_pairs.push(pair.place);
        }
        self.last.truncate(packed.pairs.len());
        self.packed = packed;
        let shape = match self.chunk.rows.last().filter(|_| same_shape) {
            Some(row) => row.shape,
            None => self.shape()?,
        };
        Some((shape, first))
    }

    fn pair(&mut self, packed: &[u8], name: &str, value: &str) -> Option<Pair> {
        if let Some(&known) = self.pairs.get(packed) {
            return Some(known);
        }
        let chunk = &mut self.chunk;
        let name = match self.names.get(name) {
            Some(&place) => place,
            None => {
                let place = u32::try_from(chunk.names.len()).ok()?;
                chunk.names.push(name.into());
                self.names.insert(name.into(), place);
                place
            }
        };
        let place = u32::try_from(chunk.pair_values.len()).ok()?;
        chunk.pairs.extend_from_slice(packed);
        chunk.longest_pair = chunk.longest_pair.max(packed.len());
        let end = u32::try_from(chunk.pairs.len()).ok()?;
        let value = end.checked_sub(u32::try_from(value.len()).ok()?)?;
        chunk.pair_values.push(value..end);
        let pair = Pair { place, name };
        self.pairs.insert(packed.into(), pair);
        Some(pair)
    }

    /// The shape of `last`.
    fn shape(&mut self) -> Option<u32> {
        let names: Box<[u32]> = self.last.iter().map(|p| p.name).collect();
        if let Some(&known) = self.shapes.get(&names) {
            return Some(known);
        }
        let place = u32::try_from(self.chunk.shapes.len()).ok()?;
        self.chunk.shapes.push(names.clone());
        self.shapes.insert(names, place);
        Some(place)
    }

    /// Neighbours are mostly of one metric: they share its metadata.
    fn add_metadata(&mut self, [kind, help, unit]: [&str; 3]) -> u32 {
        let all = &mut self.chunk.metadata;
        let same = |m: &Metadata| m.kind == kind && m.help == help && m.unit == unit;
        let known = !(kind.is_empty() && help.is_empty() && unit.is_empty());
        if !all.last().is_some_and(|last| match last {
            Some(last) => same(last),
            None => !known,
        }) {
            let new = || Metadata {
                kind: kind.to_owned(),
                help: help.to_owned(),
                unit: unit.to_owned(),
            };
            all.push(known.then(|| Arc::new(new())));
        }
        // At most one per row, and there are fewer rows than that.
        (all.len() - 1) as u32
    }
}

/// The columns of a batch.
struct Identity<'a> {
    ids: &'a [u32],
    first_rows: &'a [u64],
    row_counts: &'a [u32],
    times_last_rows: Option<&'a [u32]>,
    times_row_counts: Option<&'a [u32]>,
    histogram_first_rows: Option<&'a [u64]>,
    histogram_counts: Option<&'a [u32]>,
    first_times: &'a [i64],
    last_times: &'a [i64],
    /// Kind, help and unit.
    texts: [Strings<'a>; 3],
    labels: LabelMaps<'a>,
}

impl<'a> Identity<'a> {
    fn new(part: &PartFile, batch: &'a RecordBatch) -> Result<Self> {
        let wrong = |name: &str| part.corrupt(format!("column {name} has the wrong type or nulls"));
        let counts = |name: &str| {
            let column = column(part, batch, name)?.as_primitive_opt::<UInt32Type>();
            let column = column.filter(|c| c.null_count() == 0);
            column.map(|c| c.values().as_ref()).ok_or_else(|| wrong(name))
        };
        let rows = |name: &str| -> Result<&'a [u64]> {
            let column = column(part, batch, name)?.as_primitive_opt::<UInt64Type>();
            let column = column.filter(|c| c.null_count() == 0);
            column.map(|c| c.values().as_ref()).ok_or_else(|| wrong(name))
        };
        let has_times = batch.column_by_name(K_TIMES_ROW_COUNT).is_some();
        let has_histograms = batch.column_by_name(K_HISTOGRAM_COUNT).is_some();
        Ok(Self {
            ids: counts(K_ID)?,
            first_rows: rows(K_FIRST_ROW)?,
            row_counts: counts(K_ROW_COUNT)?,
            times_last_rows: has_times.then(|| counts(K_TIMES_LAST_ROW)).transpose()?,
            times_row_counts: has_times.then(|| counts(K_TIMES_ROW_COUNT)).transpose()?,
            histogram_first_rows: has_histograms.then(|| rows(K_HISTOGRAM_FIRST_ROW)).transpose()?,
            histogram_counts: has_histograms.then(|| counts(K_HISTOGRAM_COUNT)).transpose()?,
            first_times: times(part, batch, K_FIRST_TIME)?,
            last_times: times(part, batch, K_LAST_TIME)?,
            texts: [
                strings(part, batch, K_TYPE)?,
                strings(part, batch, K_HELP)?,
                strings(part, batch, K_UNIT)?,
            ],
            labels: LabelMaps::new(column(part, batch, LABELS)?).ok_or_else(|| wrong(LABELS))?,
        })
    }
}

/// A column.
pub(crate) fn column<'a>(part: &PartFile, batch: &'a RecordBatch, name: &str) -> Result<&'a Arc<dyn Array>> {
    batch
        .column_by_name(name)
        .ok_or_else(|| part.corrupt(format!("it lacks column {name}")))
}

/// A column of strings.
pub(crate) fn strings<'a>(part: &PartFile, batch: &'a RecordBatch, name: &str) -> Result<Strings<'a>> {
    column(part, batch, name)?
        .as_dictionary_opt::<Int32Type>()
        .and_then(Strings::new)
        .ok_or_else(|| part.corrupt(format!("column {name} does not hold strings")))
}

/// A column of times.
pub(crate) fn times<'a>(part: &PartFile, batch: &'a RecordBatch, name: &str) -> Result<&'a [i64]> {
    column(part, batch, name)?
        .as_primitive_opt::<TimestampMillisecondType>()
        .filter(|a| a.null_count() == 0)
        .map(|a| a.values().as_ref())
        .ok_or_else(|| part.corrupt(format!("column {name} does not hold times")))
}

/// A column of label sets.
pub(crate) struct LabelMaps<'a> {
    offsets: &'a [i32],
    names: &'a StringArray,
    values: &'a StringArray,
}

impl<'a> LabelMaps<'a> {
    pub(crate) fn new(column: &'a Arc<dyn Array>) -> Option<Self> {
        let map = column.as_map_opt()?;
        Some(Self {
            offsets: map.value_offsets(),
            names: map.keys().as_string_opt::<i32>()?,
            values: map.values().as_string_opt::<i32>()?,
        })
    }

    /// The places of a row's names and values.
    fn places(&self, row: usize) -> Range<usize> {
        let (Some(&from), Some(&to)) = (self.offsets.get(row), self.offsets.get(row + 1)) else {
            return 0..0;
        };
        let end = self.names.len().min(self.values.len());
        (from.max(0) as usize).min(end)..(to.max(0) as usize).min(end)
    }

    /// Whether a row has these labels.
    pub(crate) fn are(&self, row: usize, labels: &Labels) -> bool {
        let places = self.places(row);
        places.len() == labels.iter().count()
            && places
                .zip(labels.iter())
                .all(|(i, pair)| (self.name(i), self.value(i)) == pair)
    }

    /// The labels of a row; `None` when they are not what labels can be.
    pub(crate) fn labels(&self, row: usize) -> Option<Labels> {
        let mut packed = Vec::new();
        for i in self.places(row) {
            write_packed_pair(&mut packed, self.name(i), self.value(i));
        }
        LabelsRef::from_packed(&packed)
            .ok()
            .map(|labels| labels.to_labels())
    }

    /// Writes the labels of a row; whether they are in order is checked by the caller.
    fn pack(&self, row: usize, packed: &mut PackedRow) {
        packed.bytes.clear();
        packed.pairs.clear();
        for i in self.places(row) {
            write_packed_pair(&mut packed.bytes, self.name(i), self.value(i));
            packed.pairs.push((packed.bytes.len(), i));
        }
    }

    fn name(&self, place: usize) -> &'a str {
        self.names.value(place)
    }

    fn value(&self, place: usize) -> &'a str {
        self.values.value(place)
    }
}
