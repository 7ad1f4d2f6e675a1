//! What can go wrong when reading a head.

/// Why a series cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The series was forgotten since it was selected. Select again; its samples are in listed blocks.
    #[error("series {index} was forgotten since it was selected: select again")]
    SeriesForgotten {
        /// Its place in the head.
        index: u32,
    },
    /// A sealed chunk does not decode: memory is damaged, or a chunk from elsewhere was handed in.
    #[error("chunk of a series cannot be decoded")]
    Chunk(#[from] koios_chunk::Error),
}

/// Bytes are no snapshot of a head, or one of another layout: the head that was loading them is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no snapshot of a head")]
pub struct SnapshotError;
