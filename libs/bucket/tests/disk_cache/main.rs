//! Claims about the cache on disk: it may lose anything, it never gives out anything else than was put.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod keeping;
mod room;
mod slow_disk;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::id;
use koios_block::{CellKey, CellStore};
use koios_bucket::{DiskCache, DiskCacheSettings, DiskReserve};
use koios_runtime::{CancellationToken, DiskHandle, DiskNeeds, RngHandle, TaskGroup, TokioClock};
use koios_testkit::sim_disk::SimDisk;

const FOLDER: &str = "/cache";
const CELL: usize = 64 << 10;

/// A cache with its writer.
struct Running {
    cache: DiskCache,
    tasks: TaskGroup,
    /// What another says that it needs of the disk.
    needs: DiskNeeds,
}

impl Running {
    async fn start(disk: &SimDisk, bytes_max: u64) -> Self {
        Self::start_beside(disk, bytes_max, 0).await
    }

    /// Beside another that needs so many bytes free.
    async fn start_beside(disk: &SimDisk, bytes_max: u64, reserve: u64) -> Self {
        let handle = DiskHandle::inline(Arc::new(disk.mount()));
        Self::start_with(handle, bytes_max, reserve).await
    }

    async fn start_with(disk: DiskHandle, bytes_max: u64, reserve: u64) -> Self {
        let needs = DiskNeeds::default();
        let settings = DiskCacheSettings {
            folder: FOLDER.into(),
            bytes_max,
            free_min: 0,
            reserves: vec![DiskReserve {
                folder: "/wal".into(),
                bytes: reserve,
                needs: needs.clone(),
            }],
        };
        let clock = Arc::new(TokioClock::starting_at(0));
        let (cache, writer) = DiskCache::new(disk, clock, settings);
        let tasks = TaskGroup::new(CancellationToken::new());
        tasks.spawn_cancelled("writer", writer.run());
        settle().await;
        Self { cache, tasks, needs }
    }

    async fn stop(self) {
        self.tasks.stop().await;
    }

    async fn put(&self, key: CellKey, bytes: &Bytes) {
        self.cache.put(key, bytes.clone());
        settle().await;
    }

    async fn get(&self, key: CellKey) -> Option<Bytes> {
        self.cache.get(&[key]).await.pop().unwrap()
    }
}

/// Lets the writer do all that it can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn disk(seed: u64) -> SimDisk {
    SimDisk::new(RngHandle::from_seed(seed))
}

fn key(n: u64, cell: u32) -> CellKey {
    CellKey {
        block: id(n),
        part: 1,
        cell,
    }
}

/// Bytes that say which cell they are.
fn cell(key: CellKey, bytes: usize) -> Bytes {
    let mut text = format!("{key:?} ").into_bytes();
    text.resize(bytes, b'.');
    text.into()
}

fn bytes_on(disk: &SimDisk) -> usize {
    let files = disk.files_under(Path::new(FOLDER));
    files.iter().map(|(_, bytes)| bytes).sum()
}
