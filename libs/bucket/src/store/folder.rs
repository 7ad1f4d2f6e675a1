//! A folder of this machine.

use std::sync::Arc;

use koios_runtime::{Disk, RealDisk};
use object_store::local::LocalFileSystem;
use object_store::path::Path;

use super::{Opened, wrong};
use crate::Result;

/// A folder that is not there yet is made, or refused where `must_exist`.
pub(super) fn open(url: &str, path: &str, must_exist: bool) -> Result<Opened> {
    if !path.starts_with('/') {
        return Err(wrong(url, "the folder must be absolute: file:///absolute/folder"));
    }
    // The local backend works on real files only; simulation hands `Bucket::new` a store in memory.
    if !must_exist {
        RealDisk
            .create_dir_durably(std::path::Path::new(path))
            .map_err(|e| wrong(url, e))?;
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| match must_exist {
        true => wrong(url, format!("no such bucket folder ({e})")),
        false => wrong(url, e),
    })?;
    Ok(Opened {
        // Off by default there: without it a power loss takes blocks that heads have already forgotten.
        store: Arc::new(store.with_fsync(true)),
        pages: None,
        prefix: Path::default(),
        remote: false,
    })
}
