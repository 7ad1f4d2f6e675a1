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
    noted: Arc<Mutex<Noted>>,
}

/// The versions that were noted of tenants.
#[derive(Debug, Default)]
struct Noted {
    tenants: BTreeMap<TenantId, Seen>,
    /// How often any was read.
    reads: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    version: u64,
    /// Which of all reads was its last.
    read: u64,
}

impl Noted {
    /// Notes a version; returns the one before, 0 where none is remembered.
    fn replace(&mut self, tenant: &TenantId, version: u64) -> u64 {
        self.reads += 1;
        if self.tenants.len() >= TENANTS_MAX && !self.tenants.contains_key(tenant) {
            self.forget_oldest();
        }
        let seen = self.tenants.entry(tenant.clone()).or_default();
        let before = seen.version;
        *seen = Seen {
            version: version.max(before),
            read: self.reads,
        };
        before
    }

    /// Forgets the tenant that was read longest ago.
    fn forget_oldest(&mut self) {
        let oldest = self.tenants.iter().min_by_key(|(_, seen)| seen.read);
        if let Some(tenant) = oldest.map(|(tenant, _)| tenant.clone()) {
            self.tenants.remove(&tenant);
        }
    }
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
        let before = self.noted.lock().replace(&manifest.tenant, manifest.version);
        for dead in manifest.dead.iter().filter(|d| d.version > before) {
            self.disk.forget_block(dead.block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_tenants_those_read_last_are_remembered() {
        let mut noted = Noted::default();
        // The first one has the last name.
        let tenant = |n: usize| TenantId::new(&format!("team-{}", 2 * TENANTS_MAX - n)).unwrap();
        for n in 0..TENANTS_MAX {
            assert_eq!(noted.replace(&tenant(n), 5), 0);
        }
        assert_eq!(noted.replace(&tenant(0), 4), 5);
        assert_eq!(noted.replace(&tenant(TENANTS_MAX), 5), 0);
        assert_eq!(noted.tenants.len(), TENANTS_MAX);
        assert_eq!(
            (noted.replace(&tenant(0), 6), noted.replace(&tenant(2), 6)),
            (5, 5)
        );
        assert_eq!(noted.replace(&tenant(1), 6), 0);
    }
}
