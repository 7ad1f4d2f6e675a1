//! What can be wrong with a chunk, or with what should become one.

use crate::SAMPLES_MAX;

/// Why samples cannot be encoded, or why bytes are not a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The two columns differ in length. A bug of the caller.
    #[error("chunk of {timestamps} timestamps and {values} values: columns must have one length")]
    Lengths {
        /// How many timestamps.
        timestamps: usize,
        /// How many values.
        values: usize,
    },
    /// No samples, or more than one chunk holds. When encoding: split the run. When decoding: corruption.
    #[error("chunk of {count} samples: must be 1 to {SAMPLES_MAX}")]
    Count {
        /// How many samples.
        count: u64,
    },
    /// Timestamps do not ascend strictly. When encoding: sort and merge first. When decoding: corruption.
    #[error("chunk timestamps do not ascend at sample {at}")]
    NotAscending {
        /// Index of the first offending sample.
        at: usize,
    },
    /// A format this program does not know.
    #[error("chunk has format version {version}, this program reads versions 1 to 6: upgrade it")]
    Version {
        /// The version byte.
        version: u8,
    },
    /// The checksum does not match: the bytes changed since they were written.
    #[error("chunk of {len} bytes has checksum {actual:08x}, its end says {stored:08x}")]
    Checksum {
        /// Length of the chunk.
        len: usize,
        /// Checksum of the bytes.
        actual: u32,
        /// Checksum as stored.
        stored: u32,
    },
    /// The bytes end early, go on too long, or say something impossible.
    #[error("chunk of {len} bytes is malformed at byte {at}: {what}")]
    Malformed {
        /// Length of the chunk.
        len: usize,
        /// Where it was noticed.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
}
