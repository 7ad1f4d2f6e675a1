//! A second place for checked bytes, slower than memory and quicker than the bucket.

use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BlockId;

/// A cell of a part of a block. Blocks never change, so what it names is always the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellKey {
    /// The block.
    pub block: BlockId,
    /// Place of the part in `meta.json`.
    pub part: u8,
    /// Number of the cell.
    pub cell: u32,
}

impl CellKey {
    /// `meta.json` itself, which is no part of itself.
    pub fn meta(block: BlockId) -> Self {
        Self {
            block,
            part: u8::MAX,
            cell: 0,
        }
    }
}

/// Keeps cells. It may lose any of them at any time; what it gives is checked as if it came from the bucket.
#[async_trait]
pub trait CellStore: Send + Sync + Debug + 'static {
    /// What is kept of `cells`, in their order; `None` for what is not, or cannot be read.
    async fn get(&self, cells: &[CellKey]) -> Vec<Option<Bytes>>;

    /// Keeps a cell, or not; never waits.
    fn put(&self, cell: CellKey, bytes: Bytes);

    /// Forgets a cell that is not what it should be.
    fn forget(&self, cell: CellKey);
}
