//! Snapshots: the heads in a file, so that a restart applies only the segments after it.
//!
//! When the log has begun a new segment, the heads hold everything before it. They are copied then, replica by replica and
//! strip by strip, while pushes go on: what the copy has too much is in later segments and applied again, which changes
//! nothing. A start loads the newest snapshot whose segment the log still has, reads of the segments before it only
//! which batches they hold, and applies the rest. A snapshot is never needed: without one, or with a damaged one, all
//! segments are applied.

mod file;
mod load;
mod write;

use std::path::PathBuf;

use koios_model::{BatchSet, PartitionId, TenantId};
use serde::{Deserialize, Serialize};

use crate::record::ReplicaCheckpoint;
use crate::settings::Settings;

/// The newest samples of what one segment holds of each (partition, tenant): what a start without reading them would not
/// know.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SegmentTimes {
    segments: Vec<(u32, PartitionId, TenantId, i64)>,
}

/// What is known of a (partition, tenant) beside its head.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ReplicaAccounts {
    pub(crate) checkpoint: ReplicaCheckpoint,
    /// Per window: batches with samples that no listed cut holds.
    pub(crate) uncut: Vec<(i64, BatchSet)>,
    pub(crate) manifest_floor: u64,
    /// Log position of the last cut that was begun before.
    pub(crate) cut_through: u64,
    /// Starts of windows of which there may be samples that no listed cut holds, of batches that nothing tells of.
    #[serde(default)]
    pub(crate) unaccounted: Vec<i64>,
    /// Whether there are any: all that versions before 2026-11-23 write and read.
    #[serde(default)]
    pub(crate) has_unaccounted: bool,
}

/// The snapshot that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Everything before this segment is in it.
    pub(crate) segment: u32,
    pub(crate) bytes: u64,
}

const SUFFIX: &str = ".snapshot";
const UNFINISHED_SUFFIX: &str = ".tmp";

/// The folder, beside that of the log.
fn dir(settings: &Settings) -> PathBuf {
    settings.wal_dir.with_file_name("snapshot")
}

fn name_of(segment: u32) -> String {
    format!("{segment:010}{SUFFIX}")
}
