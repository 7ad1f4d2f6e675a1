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
    /// A block cannot be opened.
    #[error("{block} cannot be opened")]
    Open {
        /// The block.
        block: BlockId,
        /// Why.
        #[source]
        source: BucketError,
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
    /// A new block holds other samples than were merged.
    #[error("{block} reads back other than what was merged into it: it is not listed")]
    Altered {
        /// The new block.
        block: BlockId,
    },
    /// A deletion that can still be taken back masks some of the blocks and not others.
    #[error("a new deletion masks some of the blocks and not others: they are merged once it is final")]
    Masked,
    /// What was to go because of its age may be kept by now.
    #[error(
        "how long samples are kept changed while blocks were written without what was too old: they are written again as it is now"
    )]
    RetentionChanged,
    /// A defect here.
    #[error("merging panicked")]
    Panicked(#[from] CpuPanicked),
}

impl CompactError {
    /// The block that is damaged or gone, if that is why: it is left alone for now, and the rest goes on.
    pub(crate) fn bad_block(&self) -> Option<BlockId> {
        use koios_block::Error as E;
        let source = match self {
            Self::Open {
                block,
                source: BucketError::Corrupt { .. } | BucketError::NotFound { .. },
            } => return Some(*block),
            Self::Block { source, .. }
            | Self::Bucket(BucketError::Block(source))
            | Self::Open {
                source: BucketError::Block(source),
                ..
            } => source,
            _ => return None,
        };
        match source {
            E::Corrupt { block, .. } | E::Samples { block, .. } | E::Version { block, .. } => Some(*block),
            E::Read { block, source, .. } if is_gone(source.as_ref()) => Some(*block),
            E::Read { .. } | E::Input { .. } | E::Encode { .. } => None,
        }
    }

    /// Whether a [bad block](Self::bad_block) is damaged or gone; one of a newer version may be read by a newer program.
    pub(crate) fn is_damage(&self) -> bool {
        use koios_block::Error::Version;
        let is_version = matches!(
            self,
            Self::Block {
                source: Version { .. },
                ..
            } | Self::Bucket(BucketError::Block(Version { .. }))
                | Self::Open {
                    source: BucketError::Block(Version { .. }),
                    ..
                }
        );
        self.bad_block().is_some() && !is_version
    }

    /// Whether the manifest lost versions, so that an operator has to act.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(
            self,
            Self::Bucket(BucketError::Lost { .. } | BucketError::Behind { .. })
        )
    }

    /// The block that the storage did not hand out, if that is why.
    pub(crate) fn unread_block(&self) -> Option<BlockId> {
        use koios_block::Error as E;
        match self {
            Self::Open {
                block,
                source: BucketError::Unavailable { .. } | BucketError::Rejected { .. },
            } => Some(*block),
            Self::Block {
                source: E::Read { block, .. },
                ..
            }
            | Self::Bucket(BucketError::Block(E::Read { block, .. }))
            | Self::Open {
                source: BucketError::Block(E::Read { block, .. }),
                ..
            } => Some(*block),
            _ => None,
        }
    }

    /// Whether a new block is not stored as it was sent: under another name it may be.
    pub(crate) fn is_stored_otherwise(&self) -> bool {
        matches!(self, Self::Bucket(BucketError::Altered { .. }))
    }

    /// Whether the same may succeed later without anyone's help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Bucket(source) | Self::Open { source, .. } => {
                source.is_transient() || matches!(source, BucketError::Fenced { .. })
            }
            Self::Block { source, .. } => matches!(source, koios_block::Error::Read { .. }),
            Self::Masked | Self::RetentionChanged => true,
            Self::Differs { .. } | Self::Altered { .. } | Self::Panicked(_) => false,
        }
    }
}

/// Whether an object is not there.
fn is_gone(source: &(dyn std::error::Error + 'static)) -> bool {
    matches!(
        source.downcast_ref::<BucketError>(),
        Some(BucketError::NotFound { .. })
    )
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
