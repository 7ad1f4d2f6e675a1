//! Manifests out of the bucket.

use std::sync::Arc;

use async_trait::async_trait;
use koios_bucket::{Error as BucketError, Manifest, TenantManifests};
use koios_model::TenantId;
use koios_wire::{ServiceError, ServiceErrorCode};

use super::manifests::{ListedBlock, ManifestView, Manifests};

/// The manifests of a bucket.
#[derive(Clone, Debug)]
pub struct BucketManifests(TenantManifests);

impl BucketManifests {
    /// Reads manifests through a cache that others may share.
    pub fn new(manifests: TenantManifests) -> Self {
        Self(manifests)
    }
}

#[async_trait]
impl Manifests for BucketManifests {
    async fn latest(&self, tenant: &TenantId) -> Result<Arc<ManifestView>, ServiceError> {
        let manifest = self.0.probe(tenant).await.map_err(|e| {
            let code = match &e {
                BucketError::Corrupt { .. } => ServiceErrorCode::Corruption,
                _ => ServiceErrorCode::Unavailable,
            };
            ServiceError::new(code, e.to_string())
        })?;
        Ok(Arc::new(view(&manifest)))
    }
}

/// What a read needs of a manifest: blocks with samples as sent, none of those derived from them.
fn view(manifest: &Manifest) -> ManifestView {
    let raw = manifest.blocks.iter().filter(|b| b.resolution_ms == 0);
    let blocks = raw.map(|b| ListedBlock {
        id: b.block.to_string(),
        range: b.range,
        partitions: b.partitions.clone(),
        covers: b.covers.clone(),
    });
    ManifestView {
        version: manifest.version,
        blocks: blocks.collect(),
    }
}
