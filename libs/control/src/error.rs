//! The crate's error.

use std::path::PathBuf;
use std::time::Duration;

use koios_runtime::DiskError;

use crate::Rejection;

/// What can go wrong in the control plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command was refused; retrying it does not help.
    #[error("control plane refused: {0}")]
    Rejected(#[from] Rejection),
    /// No leader could be reached in time. Nothing is known about whether the command took effect; it may be retried.
    #[error("no control leader answered within {waited:?}; last: {last}")]
    NoLeader {
        /// How long it was tried.
        waited: Duration,
        /// The last answer.
        last: String,
    },
    /// The wanted state version did not arrive in time.
    #[error("control state version {wanted} did not arrive within {waited:?}, version {have} is known")]
    Behind {
        /// The version waited for.
        wanted: u64,
        /// The version known.
        have: u64,
        /// How long.
        waited: Duration,
    },
    /// A peer could not be reached or answered with an error.
    #[error("control peer {addr}: {message}")]
    Peer {
        /// Its address.
        addr: String,
        /// What happened.
        message: String,
    },
    /// A stored file is damaged (I11).
    #[error("{path} is damaged: {detail}; restore or remove it")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// The data directory is another node's.
    #[error(
        "data dir belongs to node {owner}: {path} cannot be used by node {node}; check data-dir and node.name"
    )]
    OtherNode {
        /// The data directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Who tried to use it.
        node: String,
    },
    /// The data directory is another cluster's.
    #[error(
        "data dir {path} of node {node} belongs to cluster {owner}, the control plane is of cluster {cluster}"
    )]
    OtherCluster {
        /// The data directory.
        path: PathBuf,
        /// The node.
        node: String,
        /// Whose directory it is.
        owner: String,
        /// Who answered.
        cluster: String,
    },
    /// The bucket is another cluster's.
    #[error(
        "bucket {bucket} belongs to cluster {owner}, by its backup of the control state; data dir {path} belongs to cluster {cluster}, \
         which must list nothing there; is the setting `bucket` (or `data-dir`) another cluster's? Correct it. Only where no process of \
         cluster {owner} runs any more, and it is to be restored from that bucket, start with an empty data-dir"
    )]
    OtherBucket {
        /// The bucket.
        bucket: String,
        /// Whose bucket it is.
        owner: String,
        /// This process's data directory.
        path: PathBuf,
        /// Whose directory that is.
        cluster: String,
    },
    /// Another process restored this cluster while this one's voters run.
    #[error(
        "bucket {bucket} has version {version} of the control state by a process that took this cluster over from a backup: two \
         processes act as one cluster; end one of them, as docs/operations.md says under \"Two processes are one cluster\""
    )]
    TakenOver {
        /// The bucket.
        bucket: String,
        /// The version that was backed up there.
        version: u64,
    },
    /// The data directory was written by newer software.
    #[error("data dir {path} has format {got}, this version reads up to {supported}; upgrade koios")]
    NewerFormat {
        /// The data directory.
        path: PathBuf,
        /// Its format.
        got: u32,
        /// The newest known one.
        supported: u32,
    },
    /// The data directory cannot be made.
    #[error("data-dir {path} cannot be used: {source}")]
    DataDir {
        /// The data directory.
        path: PathBuf,
        /// Why not.
        source: DiskError,
    },
    /// Another process uses the data directory.
    #[error("data dir {path} is in use by another process: {source}")]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Why the lock failed.
        source: DiskError,
    },
    /// A flag or configuration value is wrong.
    #[error("{0}")]
    Config(String),
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The backup in the bucket failed.
    #[error("backup of the control state: {0}")]
    Backup(String),
    /// Consensus storage failed.
    #[error("control log: {0}")]
    Storage(String),
    /// Consensus stopped; the process must restart.
    #[error("consensus stopped: {0}")]
    Stopped(String),
}
