//! Why something was not compacted.

use koios_block::BlockId;
use koios_bucket::Error as BucketError;
use koios_runtime::CpuPanicked;

/// Why a tenant's blocks were not compacted or cleaned up. Nothing is lost by it: what was there is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompactError {
    /// A block cannot be read or written.
    #[error("{block} cannot be merged")]
    Block {
        /// The block.
        block: BlockId,
        /// Why.
        #[source]
        source: koios_block::Error,
    },
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The new blocks hold another number of samples than was merged.
    #[error("merging gave {merged} samples and the new blocks hold {written}: they are not listed")]
    Differs {
        /// What was merged.
        merged: u64,
        /// What was written.
        written: u64,
    },
    /// A defect here.
    #[error("merging panicked")]
    Panicked(#[from] CpuPanicked),
}

impl CompactError {
    /// The block that is damaged, if that is why: it is left alone from now on, and the rest goes on.
    pub(crate) fn bad_block(&self) -> Option<BlockId> {
        use koios_block::Error as E;
        let (Self::Block { source, .. } | Self::Bucket(BucketError::Block(source))) = self else {
            return None;
        };
        match source {
            E::Corrupt { block, .. } | E::Samples { block, .. } | E::Version { block, .. } => Some(*block),
            E::Read { .. } | E::Input { .. } | E::Encode { .. } => None,
        }
    }
}

impl From<koios_block::Error> for CompactError {
    fn from(source: koios_block::Error) -> Self {
        use koios_block::Error as E;
        let (E::Corrupt { block, .. }
        | E::Samples { block, .. }
        | E::Read { block, .. }
        | E::Version { block, .. }
        | E::Input { block, .. }
        | E::Encode { block, .. }) = &source;
        Self::Block {
            block: *block,
            source,
        }
    }
}
