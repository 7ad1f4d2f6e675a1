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
        let manifest = self.0.probe(tenant).await.map_err(|e| failed(&e))?;
        // A version never changes, and to go through all its blocks is work.
        match known.filter(|known| known.version == manifest.version) {
            Some(known) => Ok(Arc::clone(known)),
            None => Ok(Arc::new(view(&manifest)?)),
        }
    }
}

/// Why no manifest was found, and what to do about it where waiting does not help.
fn failed(e: &BucketError) -> ServiceError {
    match e {
        BucketError::Corrupt { .. } => ServiceError::new(
            ServiceErrorCode::Corruption,
            format!(
                "{e}; bring it back from a copy, or end all processes of the cluster and run `koios ctl manifest rebuild`"
            ),
        ),
        BucketError::Lost { .. } => ServiceError::new(ServiceErrorCode::Corruption, e.to_string()),
        _ => ServiceError::unavailable(e.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i13_damage_says_what_to_do_and_that_a_bucket_is_away_is_no_damage() {
        let tenant = TenantId::anonymous();
        let corrupt = BucketError::Corrupt {
            object: "anonymous/manifest/7.json".to_owned(),
            reason: "the checksum does not match".to_owned(),
        };
        let lost = BucketError::Lost {
            tenant,
            found: 3,
            seen: 7,
            by: "the hint".to_owned(),
        };
        for damage in [corrupt, lost] {
            let e = failed(&damage);
            assert_eq!(e.code, ServiceErrorCode::Corruption);
            assert!(e.message.starts_with(&damage.to_string()), "{e}");
            assert_eq!(
                e.message.matches("run `koios ctl manifest rebuild`").count(),
                1,
                "{e}"
            );
        }
        let away = BucketError::Unavailable {
            object: "anonymous/manifest/7.json".to_owned(),
            attempts: 3,
            reason: "no answer".to_owned(),
            source: None,
        };
        assert_eq!(failed(&away).code, ServiceErrorCode::Unavailable);
    }
}
