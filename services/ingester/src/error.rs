//! What can go wrong in an ingester, and what callers are told.

use koios_model::{PartitionId, StreamId, TenantId};
use koios_runtime::with_sources;
use koios_wire::{BatchError, ServiceError, ServiceErrorCode};

/// The result of ingester operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an ingester cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The write-ahead log failed.
    #[error(transparent)]
    Wal(#[from] koios_wal::Error),
    /// The bucket failed.
    #[error(transparent)]
    Bucket(Box<koios_bucket::Error>),
    /// A block could not be written.
    #[error("block of tenant {tenant}, partition {partition}")]
    Block {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// Why.
        #[source]
        source: koios_block::Error,
    },
    /// A chunk in memory does not decode: nothing of its window is uploaded.
    #[error(
        "a chunk of tenant {tenant}, partition {partition} is damaged in memory; restart to replay the log"
    )]
    Chunk {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// Why.
        #[source]
        source: koios_chunk::Error,
    },
    /// A record is damaged, or passed its checksum and still cannot be read: a newer version wrote it, or a bug did.
    #[error("log record at {lsn} cannot be read: {reason}")]
    Record {
        /// Where it stands.
        lsn: koios_wal::Lsn,
        /// What is wrong.
        reason: String,
    },
    /// A batch in the log cannot be read.
    #[error("batch in the log at {lsn} cannot be read")]
    Batch {
        /// Where it stands.
        lsn: koios_wal::Lsn,
        /// Why.
        #[source]
        source: BatchError,
    },
    /// What a deletion takes from a head was not stored as it was sent, and is not sent again yet; nothing is deleted meanwhile.
    #[error(
        "what a deletion takes from the head of tenant {tenant}, partition {partition}, was stored otherwise than it was sent: it is sent \
         again in {seconds} s; check the storage and what is between it and here"
    )]
    StoredOtherwise {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// When it is sent again.
        seconds: u64,
    },
    /// A head could not be copied into a snapshot.
    #[error("copying the head of tenant {tenant}, partition {partition}")]
    Head {
        /// The tenant.
        tenant: TenantId,
        /// The partition.
        partition: PartitionId,
        /// Why.
        #[source]
        source: koios_head::Error,
    },
    /// A snapshot cannot be used.
    #[error("snapshot {path} {what}")]
    Snapshot {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] koios_runtime::DiskError),
    /// A batch could be logged and not be read back.
    #[error(
        "a batch of {bytes} bytes before compression cannot be logged, limit {}: send smaller requests",
        koios_wire::batch::DECODED_BYTES_MAX
    )]
    BatchTooLarge {
        /// Its labels, or its content.
        bytes: usize,
    },
    /// A batch speaks of series that this member does not know; nothing of it was logged.
    #[error(
        "batch {sequence} of stream {stream} speaks of {unknown} series by references that this member does not know; send it \
         with labels"
    )]
    UnknownSeries {
        /// The stream.
        stream: StreamId,
        /// The batch's number in it.
        sequence: u64,
        /// How many.
        unknown: u64,
    },
    /// A batch came after its sender had given it up; nothing of it was logged.
    #[error(
        "batch {sequence} of stream {stream} came after its sender had given it up: send what it holds in a new batch"
    )]
    Settled {
        /// The stream.
        stream: StreamId,
        /// The batch's number in it.
        sequence: u64,
    },
    /// The process is about to run out of memory; nothing of the batch was logged.
    #[error(transparent)]
    Memory(#[from] koios_runtime::MemoryShort),
    /// Computation panicked: a bug.
    #[error(transparent)]
    Panicked(#[from] koios_runtime::CpuPanicked),
    /// The log is not replayed yet, or the ingester stops.
    #[error("ingester {member} {what}")]
    NotRunning {
        /// The member.
        member: String,
        /// What it does instead.
        what: &'static str,
    },
}

impl Error {
    /// Whether it comes from what all cuts share, and may pass.
    pub(crate) fn is_shared(&self) -> bool {
        match self {
            Self::Bucket(e) => e.is_outage(),
            Self::Wal(koios_wal::Error::TooLarge { .. }) => false,
            Self::Wal(_) | Self::Memory(_) | Self::NotRunning { .. } => true,
            Self::Block { .. }
            | Self::Chunk { .. }
            | Self::Record { .. }
            | Self::Batch { .. }
            | Self::UnknownSeries { .. }
            | Self::Settled { .. }
            | Self::StoredOtherwise { .. }
            | Self::BatchTooLarge { .. }
            | Self::Head { .. }
            | Self::Snapshot { .. }
            | Self::Disk(_)
            | Self::Panicked(_) => false,
        }
    }

    /// What a caller is told.
    pub(crate) fn to_service(&self) -> ServiceError {
        use koios_wal::Error as Wal;
        let code = match self {
            Self::Wal(Wal::Full { .. }) => {
                let message = format!(
                    "storage is read-only: low disk space ({self} or lower ingester.disk-reserve-bytes)"
                );
                return ServiceError::unavailable(message);
            }
            Self::UnknownSeries { .. } => ServiceErrorCode::UnknownSeries,
            Self::Settled { .. } => ServiceErrorCode::Stale,
            Self::Wal(Wal::QueueFull { .. }) | Self::Memory(_) => ServiceErrorCode::ResourceExhausted,
            Self::Wal(Wal::TooLarge { .. }) | Self::BatchTooLarge { .. } => ServiceErrorCode::TooLarge,
            Self::Bucket(e) if e.is_transient() => ServiceErrorCode::Unavailable,
            Self::Bucket(e) if matches!(**e, koios_bucket::Error::Fenced { .. }) => ServiceErrorCode::Stale,
            Self::Wal(_) | Self::Bucket(_) | Self::NotRunning { .. } | Self::StoredOtherwise { .. } => {
                ServiceErrorCode::Unavailable
            }
            Self::Chunk { .. }
            | Self::Record { .. }
            | Self::Batch { .. }
            | Self::Head { .. }
            | Self::Snapshot { .. } => ServiceErrorCode::Corruption,
            Self::Disk(_) => ServiceErrorCode::Unavailable,
            Self::Block { .. } | Self::Panicked(_) => ServiceErrorCode::Internal,
        };
        ServiceError::new(code, with_sources(self))
    }
}

impl From<koios_bucket::Error> for Error {
    fn from(e: koios_bucket::Error) -> Self {
        Self::Bucket(Box::new(e))
    }
}
