//! What can go wrong with the log.

use std::path::PathBuf;

use koios_model::TenantId;
use koios_runtime::{CpuPanicked, DiskError};

use crate::{Lsn, RECORD_BYTES_MAX, WalSettings};

/// Why an operation on the log failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No space can be reserved. Nothing was written; later appends may succeed once space is freed.
    #[error(
        "write-ahead log {dir} is full: {free} bytes free, a segment needs {needed} and {reserve} stay in reserve; free disk space"
    )]
    Full {
        /// The log's folder.
        dir: PathBuf,
        /// Bytes free.
        free: u64,
        /// Bytes the segment needs.
        needed: u64,
        /// Bytes kept in reserve.
        reserve: u64,
    },
    /// Too much of this tenant, or of all tenants, is waiting. Nothing was queued: slow down and retry.
    #[error(
        "write-ahead log queue of tenant {queue} is full ({waiting} bytes waiting, limit {limit}); retry later"
    )]
    QueueFull {
        /// The tenant, or `system`.
        queue: String,
        /// Bytes waiting.
        waiting: usize,
        /// The limit reached.
        limit: usize,
    },
    /// The state that each segment begins with is too large for one. Nothing was written; later appends may succeed once there
    /// is less of it.
    #[error(
        "write-ahead log {dir} cannot begin a segment: what it begins with, the state of all tenants, takes {bytes} bytes, and \
         a segment has less than 4 GiB; let this ingester hold fewer tenants, or less metadata, by adding ingesters"
    )]
    CheckpointTooLarge {
        /// The log's folder.
        dir: PathBuf,
        /// Bytes of the state.
        bytes: u64,
    },
    /// The record can never be logged.
    #[error("record of {bytes} bytes is larger than {RECORD_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A write or sync failed: whether the record is durable is unknown, and the process must end.
    #[error("write-ahead log is poisoned by a failed write: {reason}")]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// The log is closing; whether a queued record became durable is unknown.
    #[error("write-ahead log is closed")]
    Closed,
    /// A disk operation outside of the commit path failed.
    #[error("write-ahead log: {0}")]
    Disk(#[from] DiskError),
    /// Applying records panicked: a bug.
    #[error("applying records: {0}")]
    Apply(#[from] CpuPanicked),
    /// A segment belongs to another cluster or data directory, or to a newer version.
    #[error("segment {path} {reason}")]
    Foreign {
        /// The segment's file.
        path: PathBuf,
        /// What does not fit and what to do about it.
        reason: String,
    },
    /// A record was intact and is not any more: the disk gives different bytes at different times. The next start finds it
    /// damaged.
    #[error("segment {path}: the record at {lsn} was intact a moment ago and is not now: check the disk")]
    Changed {
        /// The segment's file.
        path: PathBuf,
        /// Where it stands.
        lsn: Lsn,
    },
    /// All segment numbers are used up.
    #[error("write-ahead log {dir} cannot grow: {what}")]
    Exhausted {
        /// The log's folder.
        dir: PathBuf,
        /// Which number overflowed.
        what: &'static str,
    },
}

impl Error {
    pub(crate) fn newer(path: PathBuf, version: u16) -> Self {
        let reason = format!("has format version {version}: start a newer version of Koios");
        Self::Foreign { path, reason }
    }

    pub(crate) fn queue_name(tenant: Option<&TenantId>) -> String {
        tenant.map_or_else(|| "system".to_owned(), ToString::to_string)
    }
}

/// Why there is no room for a group: the log goes on with the segment that it has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NoRoom {
    Disk { free: u64, needed: u64 },
    Checkpoint { bytes: u64 },
}

impl NoRoom {
    /// What an error says of it.
    ///
    /// # Errors
    /// The error, where it is another one.
    pub(crate) fn of(error: Error) -> crate::Result<Self> {
        match error {
            Error::Full { free, needed, .. } => Ok(Self::Disk { free, needed }),
            Error::CheckpointTooLarge { bytes, .. } => Ok(Self::Checkpoint { bytes }),
            other => Err(other),
        }
    }

    pub(crate) fn error(self, settings: &WalSettings) -> Error {
        let dir = settings.dir.clone();
        match self {
            Self::Disk { free, needed } => Error::Full {
                dir,
                free,
                needed,
                reserve: settings.reserve_bytes,
            },
            Self::Checkpoint { bytes } => Error::CheckpointTooLarge { dir, bytes },
        }
    }
}
