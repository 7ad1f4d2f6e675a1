//! Memory that is short when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use koios_runtime::{Memory, MemoryWatch};

/// Used memory as a test sets it. Clones are the same memory.
#[derive(Clone, Debug, Default)]
pub struct PretendedMemory(Arc<AtomicU64>);

impl PretendedMemory {
    /// What may be used, bytes.
    pub const LIMIT: u64 = 1000 << 20;

    /// From now on so much of [`Self::LIMIT`] is in use.
    pub fn use_percent(&self, percent: u64) {
        self.0.store(Self::LIMIT * percent / 100, Ordering::Relaxed);
    }

    /// Watches it.
    pub fn watch(&self) -> MemoryWatch {
        MemoryWatch::new(Box::new(self.clone()), Self::LIMIT)
    }
}

impl Memory for PretendedMemory {
    fn used_bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn release(&self) {}
}
