//! What can go wrong with a block.

use koios_model::Labels;

use crate::BlockId;

/// The result of block operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a block cannot be written or read. Every variant names the block and, where there is one, the part.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bytes are not what the block's metadata says they are: never used, to be repaired from a replica or reported.
    #[error("block {block} part {part} is corrupt: {reason}")]
    Corrupt {
        /// The block.
        block: BlockId,
        /// The part.
        part: String,
        /// What does not fit.
        reason: String,
    },
    /// The samples of a series are not what a series may have: as [`Self::Corrupt`].
    #[error("block {block} part {part} is corrupt: samples of series {series}")]
    Samples {
        /// The block.
        block: BlockId,
        /// The part.
        part: String,
        /// Whose samples.
        series: Labels,
        /// What does not fit.
        #[source]
        source: koios_chunk::Error,
    },
    /// The bytes could not be fetched; nothing is known about whether they are good.
    #[error("block {block} part {part} cannot be read")]
    Read {
        /// The block.
        block: BlockId,
        /// The part.
        part: String,
        /// Why, from the storage below.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The block needs a reader of a newer version.
    #[error("block {block} has format version {found}, this version reads up to {supported}: upgrade first")]
    Version {
        /// The block.
        block: BlockId,
        /// The version found.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// The caller broke the writer's contract.
    #[error("block {block} cannot take series {series}: {reason}")]
    Input {
        /// The block.
        block: BlockId,
        /// The labels.
        series: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Encoding failed, which only a defect here can cause.
    #[error("block {block} part {part} cannot be encoded")]
    Encode {
        /// The block.
        block: BlockId,
        /// The part.
        part: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Whether the block's bytes are damaged (else they could not be had, or the call was wrong).
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Samples { .. })
    }

    pub(crate) fn corrupt(block: BlockId, part: &str, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            block,
            part: part.to_owned(),
            reason: reason.to_string(),
        }
    }
}
