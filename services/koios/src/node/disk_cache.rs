//! The store's cache on disk.

use std::path::PathBuf;
use std::sync::Arc;

use koios_bucket::{Bucket, DiskCache, DiskCacheSettings, DiskReserve};
use koios_runtime::{DiskHandle, DiskNeeds, TaskGroup};
use koios_server::Settings;
use koios_server::config::Target;

use super::{NodeError, Shared};

/// The folder of the cache in the data directory.
const FOLDER: &str = "block-cache";
/// Bytes of the disk that stay free for others: the cache gives room back every five seconds only, and others write
/// meanwhile.
const FREE_MIN: u64 = 1 << 30;

/// Opens the cache that the settings ask for; none below a folder, which is a disk itself.
pub(super) fn open(
    shared: &Shared,
    bucket: &Bucket,
    background: &TaskGroup,
) -> Result<Option<DiskCache>, NodeError> {
    let from = &shared.settings.store;
    if from.cache_disk_bytes == 0 || !is_remote(bucket.url()) {
        return Ok(None);
    }
    let folder = match from.cache_dir.as_str() {
        "" => shared.settings.data_dir.join(FOLDER),
        folder => PathBuf::from(folder),
    };
    let disk = Arc::clone(shared.runtime.disk.blocking());
    // Threads of its own: the log's syncs do not wait for them.
    let disk = DiskHandle::threaded(disk, DiskCache::THREADS)
        .map_err(|e| NodeError::Settings(format!("threads for store.cache-dir: {e}")))?;
    let settings = DiskCacheSettings {
        folder,
        bytes_max: from.cache_disk_bytes,
        free_min: FREE_MIN,
        reserves: reserves(&shared.settings, shared.target, shared.runtime.disk.needs()),
    };
    let (cache, writer) = DiskCache::new(disk, Arc::clone(&shared.runtime.clock), settings);
    background.spawn_cancelled("disk cache", writer.run());
    Ok(Some(cache))
}

/// What the process itself needs free beside: an ingester refuses writes before less than its reserve is, and has room for
/// its next snapshot and its log beside.
fn reserves(settings: &Settings, target: Target, needs: &DiskNeeds) -> Vec<DiskReserve> {
    let ingester = (target == Target::All).then(|| DiskReserve {
        folder: settings.data_dir.clone(),
        bytes: settings.ingester.disk_reserve_bytes,
        needs: needs.clone(),
    });
    ingester.into_iter().collect()
}

fn is_remote(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| scheme != "file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i9_an_ingester_in_the_same_process_keeps_its_reserve() {
        let mut settings = Settings::default();
        settings.ingester.disk_reserve_bytes = 7 << 30;
        let needs = DiskNeeds::default();
        let reserves_of = |target| reserves(&settings, target, &needs);
        let [reserve] = &reserves_of(Target::All)[..] else {
            panic!("one reserve");
        };
        assert_eq!((&reserve.folder, reserve.bytes), (&settings.data_dir, 7 << 30));
        assert_eq!(reserve.needs, needs);
        assert_eq!(reserves_of(Target::Store), []);
    }

    #[test]
    fn only_remote_buckets_are_cached() {
        for (url, expected) in [
            ("s3://b/p", true),
            ("gs://b", true),
            ("file:///b", false),
            ("\"\"", false),
        ] {
            assert_eq!(is_remote(url), expected, "{url}");
        }
    }
}
