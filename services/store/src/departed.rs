//! Blocks that are dead: nobody reads them again, so that what is kept of them on disk can go.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_bucket::{DiskCache, Manifest};
use koios_model::TenantId;
use parking_lot::Mutex;

/// Most tenants whose version is remembered.
const TENANTS_MAX: usize = 10_000;

/// Tells the disk cache of dead blocks, once for each version of a manifest. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Departed {
    disk: DiskCache,
    noted: Arc<Mutex<BTreeMap<TenantId, u64>>>,
}

impl Departed {
    pub(crate) fn new(disk: DiskCache) -> Self {
        Self {
            disk,
            noted: Arc::default(),
        }
    }

    /// Looks for blocks that died since the last version that was noted.
    pub(crate) fn note(&self, manifest: &Manifest) {
        let before = {
            let mut noted = self.noted.lock();
            if noted.len() >= TENANTS_MAX && !noted.contains_key(&manifest.tenant) {
                noted.pop_first();
            }
            let before = noted.entry(manifest.tenant.clone()).or_default();
            if *before >= manifest.version {
                return;
            }
            std::mem::replace(before, manifest.version)
        };
        for dead in manifest.dead.iter().filter(|d| d.version > before) {
            self.disk.forget_block(dead.block);
        }
    }
}
