//! Reads `series.parquet`: label columns decide which rows to read, the MAP has the last word.
//!
//! What is decoded is kept in the cache piece by piece, each made of the pages that a query reads anyway: the index of a
//! label column, the times, chunks of neighbouring series. So a first query reads no more than it needs, and a later one
//! decodes nothing. A chunk of very large label sets is never held whole: its rows are read a few at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::BooleanBuffer;
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use futures::future::{join, join3};
use koios_model::{Matcher, Matchers, TimeRange};
use koios_runtime::Cpu;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, RowSelection};

use crate::Result;
use crate::cache::{Table, TableKey, TablePiece};
use crate::group_rows::{ChunkRows, GroupRows};
use crate::held_cells::HeldCells;
use crate::label_column::LabelColumn;
use crate::part::{GroupRead, PartFile};
use crate::reader::BlockSeries;
use crate::row_chunk::{ChunkBuilder, IDENTITY_COLUMNS, RowChunk};
use crate::samples::SamplesTable;
use crate::schema::{
    K_FIRST_TIME, K_HISTOGRAM_COUNT, K_HISTOGRAM_FIRST_ROW, K_LAST_TIME, K_TIMES_LAST_ROW, K_TIMES_ROW_COUNT,
    LABEL_COLUMN_PREFIX, dictionary_type, is_dictionary_column,
};
use crate::series_filters::{Filters, excluded_by_statistics};
use crate::strings::StringList;

/// Series in a chunk: as many as a page holds.
pub(crate) const CHUNK_ROWS: usize = 2 * 1024;
/// Largest chunk that is held whole, about a kilobyte for each series.
const CHUNK_BYTES_MAX: usize = 2 << 20;
/// Chunks that are read together.
const CHUNKS_AT_ONCE: usize = 4;
/// Series that are decoded together before they are packed into a chunk: label sets may be large.
const BATCH_ROWS: usize = 256;
/// Series that are read together of a chunk too large to be held.
const FEW_ROWS: usize = 32;
/// Most series in a row group that is read; writers end them at a thirty-second of it.
const GROUP_ROWS_MAX: usize = 1 << 20;
/// What looking at a value or at a row costs beside its bytes, in bytes.
pub(crate) const VALUE_BYTES: usize = 16;
/// Bytes whose look-up is not worth a change of threads: some ten microseconds' work, for a regular expression a hundred.
const LOOKED_UP_INLINE: usize = 16 << 10;

/// The series of a block.
#[derive(Clone, Debug)]
pub(crate) struct SeriesTable {
    part: PartFile,
    /// First and last sample of the block.
    range: TimeRange,
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

/// The place of the column of a label, if it has one.
pub(crate) fn label_column(footer: &ArrowReaderMetadata, name: &str) -> Option<usize> {
    let fields = footer.schema().fields().iter();
    let is_it = |f: &Arc<Field>| f.name().strip_prefix(LABEL_COLUMN_PREFIX) == Some(name);
    fields.clone().position(is_it)
}

/// The number of the first series of a row group.
pub(crate) fn first_number(footer: &ArrowReaderMetadata, group: u32) -> u64 {
    let before = footer.metadata().row_groups().iter().take(group as usize);
    before
        .map(|group| group.num_rows().unsigned_abs())
        .fold(0, u64::saturating_add)
}

impl SeriesTable {
    pub(crate) fn new(part: PartFile, range: TimeRange) -> Self {
        Self { part, range }
    }

    pub(crate) fn set_cpu(&mut self, cpu: Cpu) {
        self.part.set_cpu(cpu);
    }

    pub(crate) fn set_held(&mut self, held: HeldCells) {
        self.part.set_held(held);
    }

    /// Nothing of what was read before will be asked for again.
    pub(crate) fn go_on(&self) {
        if let Some(held) = self.part.held() {
            held.go_on();
        }
    }

    pub(crate) fn part(&self) -> &PartFile {
        &self.part
    }

    pub(crate) async fn footer(&self) -> Result<ArrowReaderMetadata> {
        self.part.footer(with_dictionaries).await
    }

    /// How many row groups there are.
    pub(crate) fn group_count(&self, footer: &ArrowReaderMetadata) -> Result<u32> {
        u32::try_from(footer.metadata().num_row_groups())
            .map_err(|_| self.part.corrupt("it has over 2^32 row groups"))
    }

    fn row_count(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<usize> {
        let group_meta = footer.metadata().row_groups().get(group as usize);
        let rows = group_meta.map_or(0, |g| g.num_rows());
        usize::try_from(rows)
            .ok()
            .filter(|&rows| rows <= GROUP_ROWS_MAX)
            .ok_or_else(|| {
                let text = format!("row group {group} claims {rows} rows, limit {GROUP_ROWS_MAX}");
                self.part.corrupt(text)
            })
    }

    /// All series of one row group, past the cache of decoded ones.
    pub(crate) async fn scan_group(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
    ) -> Result<Vec<BlockSeries>> {
        let read = GroupRead {
            group,
            columns: self.identity_columns(footer)?,
            selection: None,
        };
        let fold = self
            .part
            .fold_group(footer, read, CHUNK_ROWS, Vec::new(), |part, all, batch| {
                let mut chunk = ChunkBuilder::default();
                chunk.add(part, &batch)?;
                let (chunk, mut packed) = (chunk.finish(), Vec::new());
                all.extend((0..chunk.len()).filter_map(|row| chunk.series(row, &mut packed)));
                Ok(())
            });
        fold.await
    }

    /// The rows of a group that label columns and times leave; `None` if there are none. Where these have to be fetched, so is where
    /// `following` samples are, and the page indexes of the row groups that are looked at with it.
    pub(crate) async fn candidates(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        matchers: &Matchers,
        range: TimeRange,
        following: Option<(&SamplesTable, &[u32])>,
    ) -> Result<Option<GroupRows>> {
        let mut by_column: BTreeMap<usize, Vec<Matcher>> = BTreeMap::new();
        for m in matchers.iter() {
            if let Some(column) = label_column(footer, m.name()) {
                if excluded_by_statistics(footer, group, m) {
                    return Ok(None);
                }
                by_column.entry(column).or_default().push(m.clone());
            }
        }
        let rows = self.row_count(footer, group)?;
        let by_time = self.is_cut_by(range);
        let columns: Vec<usize> = by_column.keys().copied().collect();
        let filters = self.filters(footer, group, &columns, by_time, following).await?;
        let mut mask: Option<BooleanBuffer> = None;
        for (column, matchers) in filters.columns.into_iter().zip(by_column.into_values()) {
            let found = self.matching(column, matchers).await?;
            mask = Some(mask.map_or_else(|| found.clone(), |mask| &mask & &found));
        }
        if let Some(times) = &filters.times {
            let in_range = |row: usize| {
                let (first, last) = (times.first.get(row), times.last.get(row));
                first
                    .zip(last)
                    .is_some_and(|(&first, &last)| range.overlaps(&TimeRange::new(first, last)))
            };
            let found = BooleanBuffer::collect_bool(rows, in_range);
            mask = Some(mask.map_or_else(|| found.clone(), |mask| &mask & &found));
        }
        let any = mask.as_ref().is_none_or(|mask| mask.count_set_bits() > 0);
        Ok(any.then(|| GroupRows::new(group, rows, mask)))
    }

    /// Whether some series may have no sample in a range.
    pub(crate) fn is_cut_by(&self, range: TimeRange) -> bool {
        range.min > self.range.min || range.max < self.range.max
    }

    async fn matching(&self, column: Arc<LabelColumn>, matchers: Vec<Matcher>) -> Result<BooleanBuffer> {
        let bytes = looked_up(column.bytes_to_look_at(&matchers), &matchers);
        self.look_up(bytes, move || column.matching(&matchers)).await
    }

    /// The index of one label column.
    pub(crate) async fn column(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        column: usize,
    ) -> Result<Option<Arc<LabelColumn>>> {
        let filters = self.filters(footer, group, &[column], false, None).await?;
        Ok(filters.columns.into_iter().next())
    }

    /// Label columns and times, those that are not cached by one read.
    async fn filters(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        columns: &[usize],
        by_time: bool,
        following: Option<(&SamplesTable, &[u32])>,
    ) -> Result<Filters> {
        let cached = |piece| self.part.cache().table(&self.key(group, piece));
        let mut found: Vec<Option<Arc<LabelColumn>>> = columns
            .iter()
            .map(|&column| match cached(TablePiece::Label(column)) {
                Some(Table::Label(column)) => Some(column),
                _ => None,
            })
            .collect();
        let mut known_times = match by_time.then(|| cached(TablePiece::Times)).flatten() {
            Some(Table::Times(times)) => Some(times),
            _ => None,
        };
        let read_times = by_time && known_times.is_none();
        let missing: Vec<usize> = (0..columns.len()).filter(|&i| found[i].is_none()).collect();
        if !missing.is_empty() || read_times {
            let names: Vec<String> = missing
                .iter()
                .filter_map(|&i| footer.schema().fields().get(columns[i]))
                .map(|field| field.name().clone())
                .collect();
            let read = self.read_filters(footer, group, names, read_times);
            let read = match following {
                Some((samples, together)) => {
                    // The rows that match are read next.
                    let index = self.part.group_indexes(footer, together);
                    join3(read, index, samples.fetch_footer()).await.0?
                }
                None => read.await?,
            };
            for (i, column) in missing.into_iter().zip(read.columns) {
                let key = self.key(group, TablePiece::Label(columns[i]));
                self.part
                    .cache()
                    .put_table(key, Table::Label(Arc::clone(&column)));
                found[i] = Some(column);
            }
            if let Some(times) = read.times {
                let key = self.key(group, TablePiece::Times);
                self.part.cache().put_table(key, Table::Times(Arc::clone(&times)));
                known_times = Some(times);
            }
        }
        Ok(Filters {
            columns: found.into_iter().flatten().collect(),
            times: known_times,
        })
    }

    async fn read_filters(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        names: Vec<String>,
        by_time: bool,
    ) -> Result<Filters> {
        let rows = self.row_count(footer, group)?;
        let time_columns: &[&str] = if by_time {
            &[K_FIRST_TIME, K_LAST_TIME]
        } else {
            &[]
        };
        let columns = names
            .iter()
            .map(String::as_str)
            .chain(time_columns.iter().copied());
        let columns = self.projection(footer, columns)?;
        let batches = self.part.read_columns(footer, group, columns).await?;
        let part = self.part.clone();
        let filters = move || Filters::decode(&part, &batches, &names, by_time);
        let filters = self.part.compute(filters).await??;
        let columns = filters.columns.iter().map(|c| c.row_count());
        let times = filters.times.iter().map(|t| t.first.len().min(t.last.len()));
        if columns.chain(times).any(|len| len != rows) {
            return Err(self
                .part
                .corrupt(format!("row group {group} does not have its {rows} rows")));
        }
        Ok(filters)
    }

    pub(crate) fn key(&self, group: u32, piece: TablePiece) -> TableKey {
        TableKey {
            block: self.part.block(),
            group,
            piece,
        }
    }

    /// The columns that make a series.
    fn identity_columns(&self, footer: &ArrowReaderMetadata) -> Result<ProjectionMask> {
        let there = |name: &&str| footer.schema().column_with_name(name).is_some();
        let optional = [
            K_TIMES_LAST_ROW,
            K_TIMES_ROW_COUNT,
            K_HISTOGRAM_FIRST_ROW,
            K_HISTOGRAM_COUNT,
        ];
        let columns = IDENTITY_COLUMNS.into_iter();
        self.projection(
            footer,
            columns.filter(|name| !optional.contains(name) || there(name)),
        )
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

    /// The names of the labels of all series of a row group.
    pub(crate) async fn names(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<StringList> {
        let key = self.key(group, TablePiece::Names);
        if let Some(Table::Names(names)) = self.part.cache().table(&key) {
            return Ok(names);
        }
        let mut rows = GroupRows::new(group, self.row_count(footer, group)?, None);
        let mut names = BTreeSet::new();
        while !rows.done() {
            for found in self.next_rows(footer, &mut rows, usize::MAX, None).await? {
                let all: Vec<usize> = found.rows.into_iter().flatten().collect();
                found.chunk.add_names(&all, &mut names);
            }
        }
        let names = StringList::from_sorted(names.iter().map(String::as_str));
        self.part.cache().put_table(key, Table::Names(names.clone()));
        Ok(names)
    }

    /// The next rows that may match, at most `rows_max`. Where they have to be fetched, so is where `following` samples are.
    pub(crate) async fn next_rows(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &mut GroupRows,
        rows_max: usize,
        following: Option<&SamplesTable>,
    ) -> Result<Vec<FoundRows>> {
        let mut wanted = rows.next_chunks(rows_max.max(1), CHUNK_ROWS, CHUNKS_AT_ONCE);
        // Of a chunk too large to be held a few rows are read, and those after it not yet.
        if wanted.first().is_some_and(|first| rows.is_too_large(first.chunk)) {
            wanted.truncate(1);
        }
        if wanted.is_empty() {
            rows.advance(rows.rows());
        }
        let numbers: Vec<usize> = wanted.iter().map(|w| w.chunk).collect();
        let chunks = self.chunks(footer, rows, &numbers, following).await?;
        let mut found = Vec::with_capacity(wanted.len());
        for (wanted, chunk) in wanted.into_iter().zip(chunks) {
            match chunk {
                Some(chunk) => {
                    rows.advance(wanted.end());
                    let rows = wanted.in_chunk(CHUNK_ROWS);
                    found.push(FoundRows { chunk, rows });
                }
                None if found.is_empty() => {
                    let few = wanted.first(rows_max.clamp(1, FEW_ROWS));
                    found.push(self.few_rows(footer, rows, &few).await?);
                    rows.advance(few.end());
                    break;
                }
                None => break,
            }
        }
        Ok(found)
    }

    /// Chunks by their ascending numbers, those that are not cached by one read; `None` for those that are too large.
    async fn chunks(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &mut GroupRows,
        numbers: &[usize],
        following: Option<&SamplesTable>,
    ) -> Result<Vec<Option<Arc<RowChunk>>>> {
        let mut known = BTreeMap::new();
        for &number in numbers {
            let key = self.key(rows.group(), TablePiece::Chunk(number));
            if rows.is_too_large(number) {
                known.insert(number, None);
            } else if let Some(Table::Chunk(chunk)) = self.part.cache().table(&key) {
                if chunk.is_none() {
                    rows.set_too_large(number);
                }
                known.insert(number, chunk);
            }
        }
        let missing: Vec<usize> = numbers
            .iter()
            .copied()
            .filter(|n| !known.contains_key(n))
            .collect();
        if !missing.is_empty() {
            let read = self.read_chunks(footer, rows, &missing);
            let read = match following {
                Some(samples) => {
                    let may_match = rows.candidates(first_number(footer, rows.group()));
                    join(read, samples.fetch_indexes(&[may_match])).await.0?
                }
                None => read.await?,
            };
            for (number, chunk) in read {
                if chunk.is_none() {
                    rows.set_too_large(number);
                }
                let key = self.key(rows.group(), TablePiece::Chunk(number));
                self.part.cache().put_table(key, Table::Chunk(chunk.clone()));
                known.insert(number, chunk);
            }
        }
        Ok(numbers.iter().map(|n| known.get(n).cloned().flatten()).collect())
    }

    async fn read_chunks(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &GroupRows,
        numbers: &[usize],
    ) -> Result<Vec<(usize, Option<Arc<RowChunk>>)>> {
        let span = |&n: &usize| n * CHUNK_ROWS..((n + 1) * CHUNK_ROWS).min(rows.rows());
        let spans: Vec<Range<usize>> = numbers.iter().map(span).collect();
        let split = ChunkSplit {
            left: spans.iter().map(ExactSizeIterator::len).collect(),
            ..ChunkSplit::default()
        };
        let read = self.identity(footer, rows, spans)?;
        let fold = self
            .part
            .fold_group(footer, read, BATCH_ROWS, split, |part, split, batch| {
                split.add(part, &batch)
            });
        let split = fold.await?;
        if split.done.len() != numbers.len() {
            let text = format!(
                "row group {} does not have its {} rows",
                rows.group(),
                rows.rows()
            );
            return Err(self.part.corrupt(text));
        }
        Ok(numbers.iter().copied().zip(split.done).collect())
    }

    /// Reads some rows of a chunk that is too large to be held.
    async fn few_rows(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &GroupRows,
        few: &ChunkRows,
    ) -> Result<FoundRows> {
        let read = self.identity(footer, rows, few.runs.clone())?;
        let builder = ChunkBuilder::default();
        let fold = self
            .part
            .fold_group(footer, read, FEW_ROWS, builder, |part, builder, batch| {
                builder.add(part, &batch)
            });
        let chunk = Arc::new(fold.await?.finish());
        let rows = vec![0..chunk.len(); 1];
        Ok(FoundRows { chunk, rows })
    }

    /// What makes series, for some rows of a group.
    pub(crate) fn identity(
        &self,
        footer: &ArrowReaderMetadata,
        rows: &GroupRows,
        runs: Vec<Range<usize>>,
    ) -> Result<GroupRead> {
        let selection = || {
            Ok(RowSelection::from_consecutive_ranges(
                runs.into_iter(),
                rows.rows(),
            ))
        };
        Ok(GroupRead {
            group: rows.group(),
            columns: self.identity_columns(footer)?,
            selection: Some(self.part.guarded(selection)?),
        })
    }

    /// Runs a look-up of so many bytes, [`VALUE_BYTES`] for each value or row included: a small one here, a large one on the
    /// decoding threads.
    pub(crate) async fn look_up<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        if bytes <= LOOKED_UP_INLINE {
            return Ok(work());
        }
        self.part.compute(work).await
    }
}

/// What looking at so many bytes with matchers costs, as bytes looked up: with a large pattern, even a few cost too much to
/// be looked at on an async thread.
pub(crate) fn looked_up(bytes: usize, matchers: &[Matcher]) -> usize {
    if matchers.iter().any(Matcher::is_large) {
        return usize::MAX;
    }
    bytes
}

/// Rows that were found, and the chunk they are in.
#[derive(Debug)]
pub(crate) struct FoundRows {
    pub(crate) chunk: Arc<RowChunk>,
    /// Relative to the chunk, ascending.
    pub(crate) rows: Vec<Range<usize>>,
}

/// Splits rows into chunks as they are decoded.
#[derive(Default)]
struct ChunkSplit {
    /// How many rows the chunks that are not done still need.
    left: VecDeque<usize>,
    builder: ChunkBuilder,
    too_large: bool,
    done: Vec<Option<Arc<RowChunk>>>,
}

impl ChunkSplit {
    fn add(&mut self, part: &PartFile, batch: &RecordBatch) -> Result<()> {
        let mut at = 0;
        while at < batch.num_rows() {
            let Some(left) = self.left.front_mut() else {
                return Err(part.corrupt("it has more rows than were asked for"));
            };
            let rows = (*left).min(batch.num_rows() - at);
            if !self.too_large {
                self.builder.add(part, &batch.slice(at, rows))?;
                self.too_large = self.builder.memory_size() > CHUNK_BYTES_MAX;
            }
            if self.too_large {
                self.builder = ChunkBuilder::default();
            }
            *left -= rows;
            at += rows;
            if *left == 0 {
                self.left.pop_front();
                let chunk = std::mem::take(&mut self.builder).finish();
                let too_large = std::mem::take(&mut self.too_large);
                self.done.push((!too_large).then(|| Arc::new(chunk)));
            }
        }
        Ok(())
    }
}
