//! Manifests out of the bucket.

use std::sync::Arc;

use async_trait::async_trait;
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, TenantManifests};
use koios_model::TenantId;
use koios_wire::{ServiceError, ServiceErrorCode};

use super::manifests::{ListedBlock, ManifestView, Manifests, Summarised};

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
    async fn latest(
        &self,
        tenant: &TenantId,
        known: Option<&Arc<ManifestView>>,
    ) -> Result<Arc<ManifestView>, ServiceError> {
        let manifest = self.0.probe(tenant).await.map_err(|e| {
            let code = match &e {
                BucketError::Corrupt { .. } | BucketError::Lost { .. } => ServiceErrorCode::Corruption,
                _ => ServiceErrorCode::Unavailable,
            };
            ServiceError::new(code, e.to_string())
        })?;
        // A version never changes, and to go through all its blocks is work.
        match known.filter(|known| known.version == manifest.version) {
            Some(known) => Ok(Arc::clone(known)),
            None => Ok(Arc::new(view(&manifest)?)),
        }
    }
}

/// What a read needs of a manifest.
fn view(manifest: &Manifest) -> Result<ManifestView, ServiceError> {
    let expiry = manifest
        .expiry()
        .map_err(|e| ServiceError::new(ServiceErrorCode::Corruption, e.to_string()))?;
    let blocks = manifest.blocks.iter().map(|b| ListedBlock {
        id: b.block.to_string(),
        range: b.range,
        partitions: b.partitions.clone(),
        covers: b.covers.clone(),
        window: b.window,
        summarised: (b.resolution_ms != 0).then(|| summarised(manifest, b)),
    });
    Ok(ManifestView {
        version: manifest.version,
        expiry,
        blocks: blocks.collect(),
    })
}

fn summarised(manifest: &Manifest, block: &ManifestBlock) -> Summarised {
    let masked = manifest.masking(block).next().is_some();
    let gone = block.sources.iter().any(|s| manifest.block(*s).is_none());
    Summarised {
        resolution_ms: block.resolution_ms,
        sources: block.sources.iter().map(ToString::to_string).collect(),
        outdated: masked || gone,
    }
}
