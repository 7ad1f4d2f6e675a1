//! The write-ahead log: segments of checksummed records, group commit, replay that tells damage from an end.
//!
//! **Data flow.** An ingester opens a folder ([`Replay::open`]), reads every segment's records in order
//! ([`Replay::read`]; or where they are, to read them part by part: [`Replay::parts`]), and starts the log ([`Replay::start`]), which gives a [`Wal`] to append through and a
//! [`Committer`] to run as a task. The committer takes what has queued while the last sync ran, fairly by tenant and
//! bytes, writes and syncs it in one submission, hands it to [`Apply`], and answers. Every new segment begins with a
//! checkpoint made by [`Apply`], so that old segments can go ([`Wal::remove_below`]).
//!
//! **Invariants.** An append is answered with success only after fdatasync returned for the group that holds it (I1).
//! Space is reserved before it is used, so a full disk is known before anything was written. Every record is checked by
//! a checksum that covers its place, so bytes of another place, segment or data directory never pass for a record
//! (I11). Records are applied in log order, exactly once per process.
//!
//! **Deliberately absent.** The meaning of payloads; decisions about which segments may go; timers: a group is whatever
//! has queued.
//!
//! **Failure behaviour.** A full disk fails appends with [`Error::Full`] and the log goes on. After a failed write or
//! sync nothing is known about the file: the log is poisoned, every append fails, and [`Committer::run`] returns the
//! error, upon which the process must end. Damage found on replay is reported with its place, its bytes are kept aside,
//! and everything readable after it is recovered; nothing is ever cut off.

#[cfg(test)]
mod checkpoint_test;
mod committer;
mod error;
#[cfg(test)]
mod fault_test;
mod format;
mod lsn;
mod mark;
mod parts;
#[cfg(test)]
mod parts_test;
mod queue;
mod replay;
mod scan;
mod segment;
#[cfg(test)]
mod wal_test;

pub use committer::{Append, Apply, Committer, GroupStats, QueueStats, ReserveUse, Wal};
pub use error::Error;
pub use format::{RECORD_BYTES_MAX, RecordKind};
pub use lsn::Lsn;
pub use parts::{PartReader, RecordAt};
pub use replay::{Replay, SegmentContent};
pub use scan::{Damage, DamageKind, Record};

use std::path::PathBuf;

/// The result of log operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose log it is: written into every segment, checked on replay, mixed into every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster: u128,
    /// The data directory's random incarnation.
    pub incarnation: u128,
}

/// How a log is kept.
#[derive(Clone, Debug)]
pub struct WalSettings {
    /// The folder of the segments.
    pub dir: PathBuf,
    /// Size of a segment, bytes, beside the checkpoint that it begins with. A larger group gets a larger segment.
    pub segment_bytes: u64,
    /// Bytes that must stay free on the disk after a segment was reserved for tenants' records.
    pub reserve_bytes: u64,
    /// Most memory waiting for the committer, bytes.
    pub queue_bytes_max: usize,
    /// Most of them of one tenant.
    pub tenant_queue_bytes_max: usize,
    /// Most bytes written in one group; a larger record forms a group of its own.
    pub group_bytes_max: usize,
}

impl WalSettings {
    /// The defaults for a log in `dir`: 32 MiB segments, 1 GiB reserve, 128 MiB of queue of which one tenant may take
    /// half, groups of 2 MiB: enough to use a disk's bandwidth, little enough that applying
    /// one group doesn't keep the next waiting for long.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 32 << 20,
            reserve_bytes: 1 << 30,
            queue_bytes_max: 128 << 20,
            tenant_queue_bytes_max: 64 << 20,
            group_bytes_max: 2 << 20,
        }
    }
}
