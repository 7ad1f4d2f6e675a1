//! Why a process cannot start or go on.

use std::sync::Arc;

use koios_control::Error as ControlError;
use koios_runtime::{DiskError, TaskError, TaskGroup};
use parking_lot::Mutex;

/// Why a process cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Settings that cannot be met together for this target.
    #[error("{0}")]
    Settings(String),
    /// An address that cannot be listened on.
    #[error("{key}: cannot listen on {addr}: {source}{}", advice(.source))]
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
    #[error(transparent)]
    Bucket(Box<koios_bucket::Error>),
    /// The disk fails.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A part of the running process failed.
    #[error("{0}")]
    Failed(TaskError),
}

/// What to look at when an address cannot be listened on.
fn advice(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrInUse => "; is another process there?",
        _ => "",
    }
}

impl NodeError {
    /// Whether an operator must change something before another start can help.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Settings(_) | Self::Listen { .. } | Self::Control(_) | Self::Bucket(_) | Self::Disk(_)
        )
    }
}

/// What a part of the running process refused to go on with, for the process' end. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusal(Arc<Mutex<Option<NodeError>>>);

impl Refusal {
    /// Ends the process; the first refusal is the one that is told.
    pub(super) fn fail(&self, tasks: &TaskGroup, task: &'static str, error: NodeError) {
        let message = error.to_string();
        self.0.lock().get_or_insert(error);
        tasks.fail(TaskError::Failed { task, message });
    }

    /// Why the process ended, when its tasks ended with `failure`.
    pub(super) fn or(&self, failure: TaskError) -> NodeError {
        self.0.lock().take().unwrap_or(NodeError::Failed(failure))
    }
}
