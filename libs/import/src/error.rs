//! What can go wrong with an import.

use koios_block::BlockId;
use koios_bucket::Error as BucketError;
use koios_model::TenantId;
use koios_runtime::{CpuPanicked, MemoryShort};

/// Why a block was not imported. Nothing of it is listed then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The block cannot be read, or is none that can be imported.
    #[error(transparent)]
    Source(#[from] koios_tsdb::Error),
    /// It spans more time than a block does.
    #[error("its samples are {hours} hours apart, a block may span {hours_max}: is a timestamp wrong?")]
    Span {
        /// How far apart the first and the last chunk are.
        hours: u64,
        /// How far they may be.
        hours_max: u64,
    },
    /// It holds another number of samples than it says.
    #[error("its chunks hold {found} samples, meta.json says {said}")]
    Count {
        /// How many were read.
        found: u64,
        /// How many there should be.
        said: u64,
    },
    /// The bucket.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A new block cannot be written.
    #[error(transparent)]
    Block(#[from] koios_block::Error),
    /// What was read back is not what was written: nothing is listed.
    #[error(
        "block {block} of tenant {tenant} was read back with {found} samples where {written} were written, or with other \
         values: it is not listed, and the storage is not to be trusted"
    )]
    Differs {
        /// The tenant.
        tenant: TenantId,
        /// The block.
        block: BlockId,
        /// How many samples were written.
        written: u64,
        /// How many were read.
        found: u64,
    },
    /// Nothing of it may be there any more.
    #[error(
        "samples of the tenant were deleted after the block came and before it was imported: bring it again if it is to be there"
    )]
    Deleted,
    /// The process had no memory for it for long.
    #[error("the import waited for memory and gave up, nothing of the block is listed")]
    Memory(#[from] MemoryShort),
    /// A bug.
    #[error(transparent)]
    Panicked(#[from] CpuPanicked),
}

impl ImportError {
    /// Whether the same import may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Source(e) => matches!(e, koios_tsdb::Error::Read { .. }),
            // Where versions of the manifest are lost, nothing goes until that is repaired.
            Self::Bucket(e) => e.is_transient() || matches!(e, koios_bucket::Error::Lost { .. }),
            Self::Block(e) => matches!(e, koios_block::Error::Read { .. }),
            Self::Memory(_) => true,
            Self::Span { .. }
            | Self::Count { .. }
            | Self::Differs { .. }
            | Self::Deleted
            | Self::Panicked(_) => false,
        }
    }
}
