//! Checked bytes, parsed indexes, and decoded tables and re-encoded samples of blocks, shared by all readers of a process.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use koios_chunk::Chunk;
use moka::sync::Cache;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::BlockId;
use crate::cell_store::{CellKey, CellStore};
use crate::label_column::LabelColumn;
use crate::row_chunk::RowChunk;
use crate::strings::StringList;
use crate::used_up::with_those_before;

/// Fixed keys instead of random ones, so that a simulated run evicts the same entries every time. The keys hashed are
/// names and offsets chosen here, never a client's bytes.
type FixedHasher = BuildHasherDefault<DefaultHasher>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IndexKey {
    pub(crate) block: BlockId,
    pub(crate) part: u8,
    /// `None` for the footer, else the row group whose page index it is.
    pub(crate) group: Option<u32>,
}

/// A decoded piece of the table of series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TableKey {
    pub(crate) block: BlockId,
    /// The row group.
    pub(crate) group: u32,
    pub(crate) piece: TablePiece,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TablePiece {
    /// The label column at this place of the schema.
    Label(usize),
    /// First and last times.
    Times,
    /// The chunk of neighbouring series with this number.
    Chunk(usize),
    /// The names of all labels.
    Names,
}

/// What a [`TablePiece`] is decoded to.
#[derive(Clone, Debug)]
pub(crate) enum Table {
    Label(Arc<LabelColumn>),
    Times(Arc<SeriesTimes>),
    /// `None` for a chunk that is too large to be kept.
    Chunk(Option<Arc<RowChunk>>),
    Names(StringList),
}

impl Table {
    fn memory_size(&self) -> usize {
        match self {
            Self::Label(column) => column.memory_size(),
            Self::Times(times) => (times.first.len() + times.last.len()) * size_of::<i64>(),
            Self::Chunk(chunk) => chunk.as_ref().map_or(0, |c| c.memory_size()),
            Self::Names(names) => names.memory_size(),
        }
    }
}

/// First and last sample time of each series of a row group.
#[derive(Debug)]
pub(crate) struct SeriesTimes {
    pub(crate) first: Vec<i64>,
    pub(crate) last: Vec<i64>,
}

/// All samples of one series of a block, as chunks: an eighth of their size decoded at best, and decoded many times as fast
/// as pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SamplesKey {
    pub(crate) block: BlockId,
    pub(crate) first_row: u64,
    pub(crate) row_count: u32,
    pub(crate) kind: SamplesKind,
}

/// What of a series is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SamplesKind {
    /// Floats, or summaries without the sums of histograms.
    Floats,
    /// Summaries with the sums of histograms.
    Sums,
    /// Native histograms.
    Histograms,
}

/// A cache of cells that passed their checksum, of parsed footers and page indexes, and of the series and samples read
/// from them, each within a byte budget.
pub struct BlockCache {
    cells: Cache<CellKey, Bytes, FixedHasher>,
    indexes: Cache<IndexKey, ArrowReaderMetadata, FixedHasher>,
    tables: Cache<TableKey, Table, FixedHasher>,
    samples: Cache<SamplesKey, Arc<[Chunk]>, FixedHasher>,
    /// Where cells are kept that memory has no room for.
    below: Option<Arc<dyn CellStore>>,
    /// Rows of row groups whose samples are, or were, in `samples`: it only decides which cells go.
    used_up: Cache<IndexKey, Arc<[Range<u64>]>, FixedHasher>,
}

/// Bytes that remembering such rows may take, bookkeeping included: some thousand row groups.
const USED_UP_BYTES: u64 = 1 << 20;

/// Bytes that a [`BlockCache`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheBytes {
    /// Checked bytes of blocks.
    pub cells: u64,
    /// Parsed footers and page indexes.
    pub indexes: u64,
    /// Decoded series.
    pub tables: u64,
    /// Samples as chunks.
    pub samples: u64,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache")
            .field("cells", &self.cells.entry_count())
            .field("indexes", &self.indexes.entry_count())
            .field("tables", &self.tables.entry_count())
            .field("samples", &self.samples.entry_count())
            .finish()
    }
}

fn weight(bytes: usize) -> u32 {
    // Key and bookkeeping weigh about a hundred bytes.
    u32::try_from(bytes.saturating_add(100)).unwrap_or(u32::MAX)
}

fn cache<K, V>(bytes_max: u64, size: fn(&V) -> usize) -> Cache<K, V, FixedHasher>
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder()
        .max_capacity(bytes_max)
        .weigher(move |_, v| weight(size(v)))
        .build_with_hasher(FixedHasher::default())
}

impl BlockCache {
    /// With budgets in bytes for cells and for parsed indexes; no series or samples are kept.
    pub fn new(cell_bytes_max: u64, index_bytes_max: u64) -> Self {
        Self {
            cells: cache(cell_bytes_max, Bytes::len),
            indexes: cache(index_bytes_max, |v| v.metadata().memory_size()),
            tables: cache(0, Table::memory_size),
            samples: cache(0, samples_size),
            below: None,
            used_up: cache(USED_UP_BYTES, |runs: &Arc<[_]>| size_of_val(&**runs)),
        }
    }

    /// Keeps cells in another place, too.
    #[must_use]
    pub fn with_cell_store(mut self, store: Arc<dyn CellStore>) -> Self {
        self.below = Some(store);
        self
    }

    /// The other place, where there is one.
    pub fn cell_store(&self) -> Option<&Arc<dyn CellStore>> {
        self.below.as_ref()
    }

    /// Keeps series (decoded) and samples (as chunks) too, with budgets in bytes.
    #[must_use]
    pub fn with_series_and_samples(mut self, table_bytes_max: u64, sample_bytes_max: u64) -> Self {
        self.tables = cache(table_bytes_max, Table::memory_size);
        self.samples = cache(sample_bytes_max, samples_size);
        self
    }

    pub(crate) fn cell(&self, key: &CellKey) -> Option<Bytes> {
        self.cells.get(key)
    }

    pub(crate) fn put_cell(&self, key: CellKey, bytes: Bytes) {
        self.cells.insert(key, bytes);
    }

    pub(crate) fn forget_cell(&self, key: &CellKey) {
        self.cells.invalidate(key);
    }

    pub(crate) fn index(&self, key: &IndexKey) -> Option<ArrowReaderMetadata> {
        self.indexes.get(key)
    }

    pub(crate) fn put_index(&self, key: IndexKey, index: ArrowReaderMetadata) {
        self.indexes.insert(key, index);
    }

    pub(crate) fn table(&self, key: &TableKey) -> Option<Table> {
        self.tables.get(key)
    }

    pub(crate) fn put_table(&self, key: TableKey, table: Table) {
        self.tables.insert(key, table);
    }

    /// Whether there is room for more samples: a cache that is full may not take them.
    pub(crate) fn takes_samples(&self) -> bool {
        let max = self.samples.policy().max_capacity().unwrap_or(u64::MAX);
        // What it holds is not counted at once.
        self.samples.weighted_size() < max - max / 8
    }

    /// Adds rows, ascending and disjoint, whose samples are kept from now on, and tells all that are.
    pub(crate) fn add_used_up(&self, key: IndexKey, rows: &[Range<u64>]) -> Arc<[Range<u64>]> {
        let add = |before: Option<moka::Entry<IndexKey, Arc<[Range<u64>]>>>| {
            let before = before.map(moka::Entry::into_value);
            with_those_before(rows, before.as_deref().unwrap_or(&[])).into()
        };
        self.used_up.entry(key).and_upsert_with(add).into_value()
    }

    pub(crate) fn samples(&self, key: &SamplesKey) -> Option<Arc<[Chunk]>> {
        self.samples.get(key)
    }

    pub(crate) fn put_samples(&self, key: SamplesKey, samples: Arc<[Chunk]>) {
        self.samples.insert(key, samples);
    }

    /// Bytes held. It does what recent insertions left to be done first: not for every read.
    pub fn bytes(&self) -> CacheBytes {
        CacheBytes {
            cells: settled(&self.cells),
            indexes: settled(&self.indexes),
            tables: settled(&self.tables),
            samples: settled(&self.samples),
        }
    }
}

/// What a cache holds once it has evicted what recent insertions left it to evict.
fn settled<K, V>(cache: &Cache<K, V, FixedHasher>) -> u64
where
    K: Eq + Hash + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache.run_pending_tasks();
    cache.weighted_size()
}

fn samples_size(chunks: &Arc<[Chunk]>) -> usize {
    let encoded: usize = chunks.iter().map(|c| c.bytes().len()).sum();
    encoded + size_of_val(&**chunks)
}
