//! What can go wrong with a TSDB block.

/// The result of reading.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a block cannot be read. Files are named as inside of the block's folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes are not what they must be: nothing of the block is to be used.
    #[error("{file} is corrupt at byte {offset}: {reason}")]
    Corrupt {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        reason: String,
    },
    /// A file that every block has is not there.
    #[error("{file} is missing")]
    Missing {
        /// The file.
        file: String,
    },
    /// The bytes could not be had; nothing is known about whether they are good.
    #[error("{file} cannot be read")]
    Read {
        /// The file.
        file: String,
        /// Why, from the storage below.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// More than this reader takes into memory.
    #[error("{file} has {what} of {found} at byte {offset}, the limit is {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is too large.
        what: &'static str,
        /// How large it is.
        found: u64,
        /// How large it may be.
        limit: u64,
    },
    /// A block of a kind that cannot be read as samples as sent.
    #[error("{file}: {reason}")]
    Unsupported {
        /// The file that says so.
        file: String,
        /// What it is and what to do.
        reason: String,
    },
}

impl Error {
    pub(crate) fn corrupt(file: &str, offset: u64, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt {
            file: file.to_owned(),
            offset,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn unsupported(file: &str, reason: impl std::fmt::Display) -> Self {
        Self::Unsupported {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn too_large(file: &str, offset: u64, what: &'static str, found: u64, limit: u64) -> Self {
        Self::TooLarge {
            file: file.to_owned(),
            offset,
            what,
            found,
            limit,
        }
    }
}
