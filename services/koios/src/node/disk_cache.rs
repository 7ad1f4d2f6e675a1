//! The store's cache on disk.

use std::path::PathBuf;
use std::sync::Arc;

use koios_bucket::{Bucket, DiskCache, DiskCacheSettings};
use koios_runtime::{DiskHandle, TaskGroup};

use super::{NodeError, Shared};

/// The folder of the cache in the data directory.
const FOLDER: &str = "block-cache";
/// Bytes of the disk that stay free for others.
const FREE_MIN: u64 = 1 << 30;
/// Threads that read and write it: the log's syncs do not wait for them.
const THREADS: usize = 4;

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
    let disk = DiskHandle::threaded(disk, THREADS)
        .map_err(|e| NodeError::Settings(format!("threads for store.cache-dir: {e}")))?;
    let settings = DiskCacheSettings {
        folder,
        bytes_max: from.cache_disk_bytes,
        free_min: FREE_MIN,
    };
    let (cache, writer) = DiskCache::new(disk, Arc::clone(&shared.runtime.clock), settings);
    background.spawn_cancelled("disk cache", writer.run());
    Ok(Some(cache))
}

fn is_remote(url: &str) -> bool {
    url.split_once("://").is_some_and(|(scheme, _)| scheme != "file")
}

#[cfg(test)]
mod tests {
    use super::*;

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
