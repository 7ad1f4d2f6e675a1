//! Why a process cannot start or go on.

use koios_control::Error as ControlError;
use koios_runtime::{DiskError, TaskError};

/// Why a process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Settings that cannot be met together for this target.
    #[error("{0}")]
    Settings(String),
    /// An address that cannot be listened on.
    #[error("{key}: cannot listen on {addr}: {source}; is another process there?")]
    Listen {
        /// The setting.
        key: &'static str,
        /// Its value.
        addr: String,
        /// Why.
        source: std::io::Error,
    },
    /// The data directory or the control plane refuses.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The bucket cannot be used.
    #[error("bucket {url}: {source}")]
    Bucket {
        /// Its URL.
        url: String,
        /// Why.
        source: Box<koios_bucket::Error>,
    },
    /// The disk fails.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The write-ahead log or the heads refuse.
    #[error("ingester: {0}")]
    Ingester(Box<koios_ingester::Error>),
    /// A part of the running process failed.
    #[error("{0}")]
    Failed(TaskError),
}

impl NodeError {
    /// Whether an operator must change something before another start can help.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Settings(_) | Self::Listen { .. } | Self::Control(_) | Self::Bucket { .. } | Self::Disk(_)
        )
    }
}
