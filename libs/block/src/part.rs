//! One Parquet part: ranges are read in checked cells, footers and page indexes are parsed once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::{Bytes, BytesMut};
use koios_model::Labels;
use koios_runtime::Cpu;
use parquet::DecodeResult;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    PageIndexPolicy, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataPushDecoder,
};

use crate::cache::{BlockCache, IndexKey};
use crate::cell_store::CellKey;
use crate::meta::{BlockMeta, CELL_BYTES, PartMeta, SAMPLES_PART};
use crate::source::RangeRead;
use crate::tail::Tail;
use crate::used_up::{UsedUp, used_up};
use crate::{BlockId, Error, Result};

/// Cells this close together are fetched by one request: at object stores a request costs as much as a megabyte.
const GAP_CELLS_MAX: u64 = 4;
/// Largest single request, in cells: 8 MiB.
const RUN_CELLS_MAX: u64 = 128;
/// Most bytes one step of a read may ask for; a sound row group needs a tenth of it.
const FETCH_BYTES_MAX: u64 = 256 << 20;

/// A Parquet part of a block.
#[derive(Clone, Debug)]
pub(crate) struct PartFile {
    source: Arc<dyn RangeRead>,
    cache: Arc<BlockCache>,
    meta: Arc<BlockMeta>,
    index: u8,
    cpu: Cpu,
}

/// Rows to read from one row group.
#[derive(Debug)]
pub(crate) struct GroupRead {
    pub(crate) group: u32,
    pub(crate) columns: ProjectionMask,
    /// Relative to the row group; `None` for all rows.
    pub(crate) selection: Option<RowSelection>,
}

impl PartFile {
    pub(crate) fn new(
        source: Arc<dyn RangeRead>,
        cache: Arc<BlockCache>,
        meta: Arc<BlockMeta>,
        name: &str,
    ) -> Result<Self> {
        let index = meta
            .parts
            .iter()
            .position(|p| p.name == name)
            .and_then(|i| u8::try_from(i).ok())
            .ok_or_else(|| Error::corrupt(meta.block, name, "meta.json does not list the part"))?;
        Ok(Self {
            source,
            cache,
            meta,
            index,
            cpu: Cpu::inline(),
        })
    }

    /// Decodes on these threads from now on.
    pub(crate) fn set_cpu(&mut self, cpu: Cpu) {
        self.cpu = cpu;
    }

    /// Runs heavy work off the async threads; like [`Self::guarded`], a panic means corruption.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let done = self.cpu.run(work).await;
        done.map_err(|panic| self.corrupt(format!("the Parquet decoder gave up on it: {panic}")))
    }

    /// The block it belongs to.
    pub(crate) fn block(&self) -> BlockId {
        self.meta.block
    }

    /// The cache it reads through.
    pub(crate) fn cache(&self) -> &BlockCache {
        &self.cache
    }

    pub(crate) fn part(&self) -> &PartMeta {
        // `new` took the index from this very list.
        &self.meta.parts[usize::from(self.index)]
    }

    pub(crate) fn corrupt(&self, reason: impl std::fmt::Display) -> Error {
        Error::corrupt(self.meta.block, &self.part().name, reason)
    }

    pub(crate) fn corrupt_samples(&self, series: &Labels, source: koios_chunk::Error) -> Error {
        Error::Samples {
            block: self.meta.block,
            part: self.part().name.clone(),
            series: series.clone(),
            source,
        }
    }

    /// Runs the Parquet decoder, which on bytes nobody wrote may panic as well as fail: both mean corruption.
    pub(crate) fn guarded<T>(&self, decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T> {
        match catch_unwind(AssertUnwindSafe(decode)) {
            Ok(Ok(v)) => Ok(v),
            Ok(Err(e)) => Err(self.corrupt(e)),
            Err(_) => Err(self.corrupt("the Parquet decoder gave up on it")),
        }
    }

    /// The bytes of each range, from cells whose checksums were verified.
    pub(crate) async fn fetch(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let size = self.part().bytes;
        let mut total = 0u64;
        let mut cells: BTreeMap<u64, Option<Bytes>> = BTreeMap::new();
        for r in ranges {
            if r.start > r.end || r.end > size {
                return Err(self.corrupt(format!("it refers to bytes {r:?} of its {size}")));
            }
            total = total.saturating_add(r.end - r.start);
            if total > FETCH_BYTES_MAX {
                return Err(self.corrupt(format!("one read needs over {FETCH_BYTES_MAX} bytes")));
            }
            for cell in r.start / CELL_BYTES..r.end.div_ceil(CELL_BYTES) {
                cells
                    .entry(cell)
                    .or_insert_with(|| self.cache.cell(&self.key(cell)));
            }
        }
        let missing: Vec<u64> = cells
            .iter()
            .filter(|(_, bytes)| bytes.is_none())
            .map(|(&cell, _)| cell)
            .collect();
        self.fetch_cells(&missing, &mut cells).await?;
        ranges.iter().map(|r| self.assemble(r, &cells)).collect()
    }

    /// Keeps the cells of a tail of this part that pass their checksums; who reads the others is told why they do not.
    pub(crate) fn keep(&self, tail: &Tail) {
        let ends = tail.from.checked_add(tail.bytes.len() as u64) == Some(self.part().bytes);
        if !ends || !tail.from.is_multiple_of(CELL_BYTES) {
            return;
        }
        let cells = tail.from / CELL_BYTES..;
        for (cell, bytes) in cells.zip(tail.bytes.chunks(CELL_BYTES as usize)) {
            if self.check_cell(cell, bytes).is_err() {
                return;
            }
        }
    }

    /// Lets cells go of which hardly anybody needs a byte once all samples in `rows` of a row group are cached as chunks:
    /// those that at least half of is of such samples. Every column of every read ends inside of a cell, and what is left of
    /// these would soon fill as much memory as the chunks. Rows of earlier reads count too: of many blocks few series are
    /// read at a time, a part of a page of each. While the cache of chunks is full all stay: it may not take them.
    pub(crate) fn forget_used_up(&self, group: u32, index: &ArrowReaderMetadata, rows: &[Range<u64>]) {
        let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
            return;
        };
        if !self.cache.takes_samples() {
            return;
        }
        let runs = self.cache.add_used_up(self.index_key(Some(group)), rows);
        let UsedUp { bytes, near } = used_up(index, &runs, &(first.start..last.end));
        let is_near = |cell: &u64| {
            let (start, end) = (cell * CELL_BYTES, (cell + 1) * CELL_BYTES);
            near.iter().any(|near| near.start < end && start < near.end)
        };
        let cells = bytes.iter().flat_map(|b| mostly_within(b, self.part().bytes));
        for cell in cells.filter(is_near) {
            self.cache.forget_cell(&self.key(cell));
        }
    }

    fn key(&self, cell: u64) -> CellKey {
        CellKey {
            block: self.meta.block,
            part: self.index,
            cell: u32::try_from(cell).unwrap_or(u32::MAX),
        }
    }

    async fn fetch_cells(&self, missing: &[u64], cells: &mut BTreeMap<u64, Option<Bytes>>) -> Result<()> {
        let missing = self.take_kept(missing, cells).await;
        if missing.is_empty() {
            return Ok(());
        }
        let size = self.part().bytes;
        let runs = coalesce(&missing);
        let ranges: Vec<Range<u64>> = runs
            .iter()
            .map(|r| r.start * CELL_BYTES..(r.end * CELL_BYTES).min(size))
            .collect();
        let fetched = self.source.read(&self.part().name, &ranges).await?;
        if fetched.len() != ranges.len() {
            return Err(self.corrupt("the storage answered with another number of ranges"));
        }
        for ((run, range), bytes) in runs.into_iter().zip(&ranges).zip(fetched) {
            if bytes.len() as u64 != range.end - range.start {
                return Err(self.corrupt(format!("{} bytes came for range {range:?}", bytes.len())));
            }
            for (cell, chunk) in run.zip(bytes.chunks(CELL_BYTES as usize)) {
                // What came only because it lies between is not kept.
                if let Some(slot) = cells.get_mut(&cell) {
                    *slot = Some(self.check_cell(cell, chunk)?);
                }
            }
        }
        Ok(())
    }

    /// Takes the cells that are kept below memory, and tells which are still missing.
    async fn take_kept(&self, missing: &[u64], cells: &mut BTreeMap<u64, Option<Bytes>>) -> Vec<u64> {
        let Some(store) = self.cache.cell_store().filter(|_| !missing.is_empty()) else {
            return missing.to_vec();
        };
        let keys: Vec<CellKey> = missing.iter().map(|&cell| self.key(cell)).collect();
        let mut kept = store.get(&keys).await.into_iter();
        let mut left = Vec::new();
        for (&cell, key) in missing.iter().zip(keys) {
            let bytes = kept.next().flatten();
            let is_right = bytes.as_ref().is_some_and(|bytes| self.is_right(cell, bytes));
            match bytes {
                Some(bytes) if is_right => {
                    self.cache.put_cell(key, bytes.clone());
                    cells.insert(cell, Some(bytes));
                }
                Some(_) => {
                    store.forget(key);
                    left.push(cell);
                }
                None => left.push(cell),
            }
        }
        left
    }

    /// Whether these are the bytes of a cell.
    fn is_right(&self, cell: u64, bytes: &[u8]) -> bool {
        let want = usize::try_from(cell).ok().and_then(|i| self.part().cells.get(i));
        want == Some(&crc32c::crc32c(bytes))
    }

    /// Verifies a cell that was fetched and caches a copy of its own, so that the large buffer it came in can go.
    fn check_cell(&self, cell: u64, bytes: &[u8]) -> Result<Bytes> {
        if !self.is_right(cell, bytes) {
            return Err(self.corrupt(format!(
                "cell {cell} (from byte {}) failed its checksum",
                cell * CELL_BYTES
            )));
        }
        let bytes = Bytes::copy_from_slice(bytes);
        self.cache.put_cell(self.key(cell), bytes.clone());
        if let Some(store) = self.cache.cell_store() {
            store.put(self.key(cell), bytes.clone());
        }
        Ok(bytes)
    }

    fn assemble(&self, range: &Range<u64>, cells: &BTreeMap<u64, Option<Bytes>>) -> Result<Bytes> {
        let mut pieces = (range.start / CELL_BYTES..range.end.div_ceil(CELL_BYTES)).map(|cell| {
            let bytes = cells.get(&cell).and_then(Option::as_ref)?;
            let base = cell * CELL_BYTES;
            let from = range.start.saturating_sub(base) as usize;
            let to = (range.end - base).min(bytes.len() as u64) as usize;
            (from <= to).then(|| bytes.slice(from..to))
        });
        let lost = || self.corrupt(format!("bytes {range:?} are missing"));
        if range.start / CELL_BYTES + 1 >= range.end.div_ceil(CELL_BYTES) {
            return match pieces.next() {
                Some(piece) => piece.ok_or_else(lost),
                None => Ok(Bytes::new()),
            };
        }
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        for piece in pieces {
            out.extend_from_slice(&piece.ok_or_else(lost)?);
        }
        Ok(out.freeze())
    }

    /// The footer: schema and row groups, without page indexes. `adapt` may change the Arrow types columns are read as.
    pub(crate) async fn footer(&self, adapt: fn(&SchemaRef) -> SchemaRef) -> Result<ArrowReaderMetadata> {
        let key = self.index_key(None);
        if let Some(hit) = self.cache.index(&key) {
            return Ok(hit);
        }
        let part = self.part();
        let mut decoder = self
            .guarded(|| ParquetMetaDataPushDecoder::try_new(part.bytes))?
            .with_page_index_policy(PageIndexPolicy::Skip);
        // The footer, and before it the page indexes, at once: none of them has to be waited for alone.
        let tail = Tail::of(&part.name, part.bytes, part.rows);
        match self.fetch(std::slice::from_ref(&tail)).await {
            Ok(bytes) => self.guarded(|| decoder.push_ranges(vec![tail; 1], bytes))?,
            // Damage need not be where the footer is: what that needs is asked for by itself.
            Err(e) if e.is_corrupt() => {}
            Err(e) => return Err(e),
        }
        let metadata = self.parse_metadata(&mut decoder).await?;
        let footer = self.guarded(|| {
            let plain = ArrowReaderMetadata::try_new(Arc::new(metadata), reader_options())?;
            let schema = adapt(plain.schema());
            ArrowReaderMetadata::try_new(Arc::clone(plain.metadata()), reader_options().with_schema(schema))
        })?;
        self.cache.put_index(key, footer.clone());
        Ok(footer)
    }

    fn index_key(&self, group: Option<u32>) -> IndexKey {
        IndexKey {
            block: self.meta.block,
            part: self.index,
            group,
        }
    }

    async fn parse_metadata(&self, decoder: &mut ParquetMetaDataPushDecoder) -> Result<ParquetMetaData> {
        loop {
            match self.guarded(|| decoder.try_decode())? {
                DecodeResult::NeedsData(ranges) => {
                    let bytes = self.fetch(&ranges).await?;
                    self.guarded(|| decoder.push_ranges(ranges, bytes))?;
                }
                DecodeResult::Data(metadata) => return Ok(metadata),
                DecodeResult::Finished => return Err(self.corrupt("its footer ends early")),
            }
        }
    }

    /// One row group alone (it is number 0 of the result) with its page index.
    pub(crate) async fn group_index(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
    ) -> Result<ArrowReaderMetadata> {
        let indexes = self.group_indexes(footer, &[group]).await?;
        let index = indexes.into_iter().next();
        index.ok_or_else(|| self.corrupt(format!("it lacks row group {group}")))
    }

    /// The same of several row groups, in their order: what is not cached is fetched together.
    pub(crate) async fn group_indexes(
        &self,
        footer: &ArrowReaderMetadata,
        groups: &[u32],
    ) -> Result<Vec<ArrowReaderMetadata>> {
        let mut indexes: Vec<Option<ArrowReaderMetadata>> = Vec::with_capacity(groups.len());
        let mut missing = Vec::new();
        let mut needed: Vec<Range<u64>> = Vec::new();
        for (place, &group) in groups.iter().enumerate() {
            let hit = self.cache.index(&self.index_key(Some(group)));
            if hit.is_none() {
                let mut decoder = self.index_decoder(footer, group)?;
                let first = self.guarded(|| decoder.try_decode())?;
                if let DecodeResult::NeedsData(ranges) = &first {
                    needed.extend(ranges.iter().cloned());
                }
                missing.push((place, group, decoder, first));
            }
            indexes.push(hit);
        }
        let mut bytes = self.fetch(&needed).await?.into_iter();
        for (place, group, mut decoder, first) in missing {
            let metadata = match first {
                DecodeResult::Data(metadata) => metadata,
                DecodeResult::NeedsData(ranges) => {
                    let of_group = bytes.by_ref().take(ranges.len()).collect();
                    self.guarded(|| decoder.push_ranges(ranges, of_group))?;
                    self.parse_metadata(&mut decoder).await?
                }
                DecodeResult::Finished => return Err(self.corrupt("its footer ends early")),
            };
            let schema = Arc::clone(footer.schema());
            let index = self.guarded(|| {
                ArrowReaderMetadata::try_new(Arc::new(metadata), reader_options().with_schema(schema))
            })?;
            self.cache.put_index(self.index_key(Some(group)), index.clone());
            if let Some(slot) = indexes.get_mut(place) {
                *slot = Some(index);
            }
        }
        Ok(indexes.into_iter().flatten().collect())
    }

    fn index_decoder(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<ParquetMetaDataPushDecoder> {
        let alone = self.group_alone(footer, group)?;
        let decoder =
            self.guarded(|| ParquetMetaDataPushDecoder::try_new_with_metadata(self.part().bytes, alone))?;
        // Where the ticks of a range are, times tell (see `row_plan`), and so nobody looks at what is said of pages of ticks.
        let has_ticks = self.meta.has_times_part() && self.part().name == SAMPLES_PART;
        let ends = match has_ticks {
            true => PageIndexPolicy::Skip,
            false => PageIndexPolicy::Optional,
        };
        let decoder = decoder.with_page_index_policy(PageIndexPolicy::Optional);
        Ok(decoder.with_column_index_policy(ends))
    }

    /// One row group alone, without its page index.
    fn group_alone(&self, footer: &ArrowReaderMetadata, group: u32) -> Result<ParquetMetaData> {
        let file = footer.metadata();
        let row_group = file
            .row_groups()
            .get(group as usize)
            .ok_or_else(|| self.corrupt(format!("it lacks row group {group}")))?;
        let alone =
            ParquetMetaDataBuilder::new(file.file_metadata().clone()).add_row_group(row_group.clone());
        Ok(alone.build())
    }

    /// Some columns of one row group, all of their rows. It takes no page index.
    pub(crate) async fn read_columns(
        &self,
        footer: &ArrowReaderMetadata,
        group: u32,
        columns: ProjectionMask,
    ) -> Result<Vec<RecordBatch>> {
        let alone = Arc::new(self.group_alone(footer, group)?);
        let options = reader_options().with_schema(Arc::clone(footer.schema()));
        let alone = self.guarded(|| ArrowReaderMetadata::try_new(alone, options))?;
        let read = GroupRead {
            group,
            columns,
            selection: None,
        };
        let fetched = self.fetch_indexed(vec![(read, alone)], usize::MAX).await?;
        let mut batches = Vec::new();
        for fetched in fetched {
            let add = |_: &Self, batches: &mut Vec<RecordBatch>, batch| {
                batches.push(batch);
                Ok(())
            };
            batches = self.fold_fetched(fetched, batches, add).await?;
        }
        Ok(batches)
    }
}

fn reader_options() -> ArrowReaderOptions {
    ArrowReaderOptions::new().with_skip_arrow_metadata(true)
}

/// The cells of which at least half lies in `bytes`, in a part of `size` bytes.
fn mostly_within(bytes: &Range<u64>, size: u64) -> impl Iterator<Item = u64> + use<> {
    let bytes = bytes.start..bytes.end.min(size);
    (bytes.start / CELL_BYTES..bytes.end.div_ceil(CELL_BYTES)).filter(move |cell| {
        let whole = cell * CELL_BYTES..((cell + 1) * CELL_BYTES).min(size);
        let inside = bytes
            .end
            .min(whole.end)
            .saturating_sub(bytes.start.max(whole.start));
        inside * 2 >= whole.end - whole.start
    })
}

/// Joins ascending cells into runs, bridging small gaps.
fn coalesce(cells: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &cell in cells {
        match runs.last_mut() {
            Some(run) if cell <= run.end + GAP_CELLS_MAX && cell < run.start + RUN_CELLS_MAX => {
                run.end = cell + 1
            }
            _ => runs.push(cell..cell + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_cells_share_a_request_and_far_ones_do_not() {
        assert_eq!(coalesce(&[0, 1, 5, 20]), [0..6, 20..21]);
        let long: Vec<u64> = (0..300).collect();
        assert_eq!(coalesce(&long), [0..128, 128..256, 256..300]);
        assert!(coalesce(&[]).is_empty());
    }

    #[test]
    fn a_cell_that_is_half_used_up_goes() {
        let cell = CELL_BYTES;
        let all = |bytes: Range<u64>| mostly_within(&bytes, 3 * cell + 100).collect::<Vec<_>>();
        assert_eq!(all(cell / 2..2 * cell), [0, 1]);
        assert_eq!(all(cell / 2 + 1..2 * cell + cell / 2 - 1), [1]);
        // The last one is shorter.
        assert_eq!(all(3 * cell..3 * cell + 50), [3]);
        assert_eq!(all(3 * cell + 60..3 * cell + 100), Vec::<u64>::new());
        assert_eq!(all(0..0), Vec::<u64>::new());
    }
}
