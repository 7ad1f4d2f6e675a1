//! Checked bytes and parsed indexes of blocks, shared by all readers of a process.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::BuildHasherDefault;

use bytes::Bytes;
use moka::sync::Cache;
use parquet::arrow::arrow_reader::ArrowReaderMetadata;

use crate::BlockId;

/// Fixed keys instead of random ones, so that a simulated run evicts the same entries every time. The keys hashed are
/// names and offsets chosen here, never a client's bytes.
type FixedHasher = BuildHasherDefault<DefaultHasher>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CellKey {
    pub(crate) block: BlockId,
    /// Place of the part in `meta.json`.
    pub(crate) part: u8,
    pub(crate) cell: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct IndexKey {
    pub(crate) block: BlockId,
    pub(crate) part: u8,
    /// `None` for the footer, else the row group whose page index it is.
    pub(crate) group: Option<u32>,
}

/// A cache of cells that passed their checksum, and of parsed footers and page indexes, each within a byte budget.
pub struct BlockCache {
    cells: Cache<CellKey, Bytes, FixedHasher>,
    indexes: Cache<IndexKey, ArrowReaderMetadata, FixedHasher>,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache")
            .field("cells", &self.cells.entry_count())
            .field("indexes", &self.indexes.entry_count())
            .finish()
    }
}

fn weight(bytes: usize) -> u32 {
    // Key and bookkeeping weigh about a hundred bytes.
    u32::try_from(bytes.saturating_add(100)).unwrap_or(u32::MAX)
}

impl BlockCache {
    /// With budgets in bytes for cells and for parsed indexes.
    pub fn new(cell_bytes_max: u64, index_bytes_max: u64) -> Self {
        Self {
            cells: Cache::builder()
                .max_capacity(cell_bytes_max)
                .weigher(|_, v: &Bytes| weight(v.len()))
                .build_with_hasher(FixedHasher::default()),
            indexes: Cache::builder()
                .max_capacity(index_bytes_max)
                .weigher(|_, v: &ArrowReaderMetadata| weight(v.metadata().memory_size()))
                .build_with_hasher(FixedHasher::default()),
        }
    }

    pub(crate) fn cell(&self, key: &CellKey) -> Option<Bytes> {
        self.cells.get(key)
    }

    pub(crate) fn put_cell(&self, key: CellKey, bytes: Bytes) {
        self.cells.insert(key, bytes);
    }

    pub(crate) fn index(&self, key: &IndexKey) -> Option<ArrowReaderMetadata> {
        self.indexes.get(key)
    }

    pub(crate) fn put_index(&self, key: IndexKey, index: ArrowReaderMetadata) {
        self.indexes.insert(key, index);
    }

    /// Bytes held, for metrics.
    pub fn bytes(&self) -> u64 {
        self.cells.weighted_size() + self.indexes.weighted_size()
    }
}
