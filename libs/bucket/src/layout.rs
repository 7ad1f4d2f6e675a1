//! Where things are in a bucket: docs/formats/manifest.md.

use koios_block::BlockId;
use koios_model::TenantId;
use object_store::path::Path;

/// Folder of what belongs to the cluster rather than to a tenant; no tenant id starts with two underscores.
pub(crate) const CLUSTER: &str = "__cluster";
/// In it, a folder for each self-test.
pub(crate) const SELF_TEST: &str = "self-test";

/// Paths under a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    prefix: Path,
}

impl Layout {
    pub(crate) fn new(prefix: Path) -> Self {
        Self { prefix }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.prefix
    }

    /// `<tenant>/manifest/<version>.json`; twenty digits, so that names sort as numbers.
    pub(crate) fn manifest(&self, tenant: &TenantId, version: u64) -> Path {
        self.manifests(tenant).join(format!("{version:020}.json"))
    }

    /// `<tenant>/manifest`.
    pub(crate) fn manifests(&self, tenant: &TenantId) -> Path {
        self.tenant(tenant).join("manifest")
    }

    /// `<tenant>/manifest/latest`.
    pub(crate) fn hint(&self, tenant: &TenantId) -> Path {
        self.manifests(tenant).join("latest")
    }

    /// `<tenant>/blocks/<block>/<part>`.
    pub(crate) fn part(&self, tenant: &TenantId, block: BlockId, part: &str) -> Path {
        self.blocks(tenant).join(block.to_string()).join(part)
    }

    /// `<tenant>/blocks`.
    pub(crate) fn blocks(&self, tenant: &TenantId) -> Path {
        self.tenant(tenant).join("blocks")
    }

    /// `<tenant>/uploads`.
    pub(crate) fn uploads(&self, tenant: &TenantId) -> Path {
        self.tenant(tenant).join("uploads")
    }

    /// `<tenant>/uploads/<block>`.
    pub(crate) fn upload(&self, tenant: &TenantId, upload: BlockId) -> Path {
        self.uploads(tenant).join(upload.to_string())
    }

    fn tenant(&self, tenant: &TenantId) -> Path {
        self.prefix.clone().join(tenant.as_str())
    }

    /// `__cluster/<folder>`.
    pub(crate) fn cluster(&self, folder: &str) -> Path {
        self.prefix.clone().join(CLUSTER).join(folder)
    }
}
