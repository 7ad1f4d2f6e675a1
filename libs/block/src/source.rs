//! Where a block's bytes come from.

use std::collections::BTreeMap;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BlockId, BlockParts, Error, Result};

/// Reads ranges of a block's parts. Implementations fetch; checking and caching is done above them.
#[async_trait]
pub trait RangeRead: Send + Sync + std::fmt::Debug {
    /// The bytes of each range of `part`, in the order asked, each exactly as long as its range.
    ///
    /// # Errors
    /// [`Error::Read`] when the bytes cannot be had, [`Error::Corrupt`] when the part is shorter than a range.
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>>;
}

/// A block in memory: what a writer has just finished, and what tests read.
#[derive(Clone, Debug)]
pub struct MemoryBlock {
    block: BlockId,
    parts: BTreeMap<String, Bytes>,
}

impl MemoryBlock {
    /// From finished parts.
    pub fn new(block: &BlockParts) -> Self {
        Self::from_parts(block.meta.block, block.parts.iter().cloned())
    }

    /// From named bytes.
    pub fn from_parts(block: BlockId, parts: impl IntoIterator<Item = (String, Bytes)>) -> Self {
        Self {
            block,
            parts: parts.into_iter().collect(),
        }
    }
}

#[async_trait]
impl RangeRead for MemoryBlock {
    async fn read(&self, part: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let Some(bytes) = self.parts.get(part) else {
            return Err(Error::corrupt(self.block, part, "the part is missing"));
        };
        let slice = |r: &Range<u64>| {
            let (start, end) = (usize::try_from(r.start).ok()?, usize::try_from(r.end).ok()?);
            (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
        };
        ranges
            .iter()
            .map(|r| {
                slice(r).ok_or_else(|| {
                    Error::corrupt(
                        self.block,
                        part,
                        format!("range {r:?} is outside of its {} bytes", bytes.len()),
                    )
                })
            })
            .collect()
    }
}
