//! What those who write to a disk will need of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that somebody will need free on a disk soon, so that caches on it make room before it fails for lack of them.
/// Cheap to clone; clones share it.
#[derive(Clone, Debug, Default)]
pub struct DiskNeeds(Arc<AtomicU64>);

impl DiskNeeds {
    /// Says how many.
    pub fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }

    /// How many.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whether they are the same one's.
impl PartialEq for DiskNeeds {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for DiskNeeds {}
