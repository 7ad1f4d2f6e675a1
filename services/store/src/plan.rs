//! Which blocks a request reads.

use koios_block::{BlockId, Subject};
use koios_bucket::{Blocks, Manifest, TenantManifests};
use koios_model::{TenantId, TimeRange};
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::error::{from_bucket, from_open};
use crate::masks::{Compiled, Listed, MaskedBlock};

/// What a request says about blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) version: u64,
    /// Names; all with samples as sent that overlap the range when empty.
    pub(crate) blocks: &'a [String],
    pub(crate) range: TimeRange,
}

/// The entries of the wanted blocks that overlap the range, with the deletions of the pinned manifest, or of a later one, and what is too old
/// as of the pinned one.
pub(crate) async fn listed(
    manifests: &TenantManifests,
    wanted: Wanted<'_>,
) -> Result<Vec<Listed>, ServiceError> {
    let Wanted { tenant, version, .. } = wanted;
    let latest = manifests
        .at_least(tenant, version)
        .await
        .map_err(|e| from_bucket(&e))?;
    if wanted.blocks.is_empty() {
        if latest.version == version {
            return overlapping(&latest, wanted.range);
        }
        return overlapping(&*pinned(manifests, tenant, version).await?, wanted.range);
    }
    let ids = wanted
        .blocks
        .iter()
        .map(|b| parse(b))
        .collect::<Result<Vec<_>, _>>()?;
    // A block that is still live is the same in every version. What of it is too old need not be: an answer is as of the version that was
    // pinned, whichever stores give which part of it.
    let masks_same = latest.masks_since().is_some_and(|since| since <= version);
    let is_same = masks_same && ids.iter().all(|id| latest.block(*id).is_some());
    let pinned = if latest.version == version || is_same {
        latest
    } else {
        pinned(manifests, tenant, version).await?
    };
    let mut found = Vec::with_capacity(ids.len());
    let compiled = Compiled::new(&pinned, wanted.range)?;
    for id in ids {
        let block = pinned.block(id).ok_or_else(|| {
            let text = format!("block {id} is not listed in manifest version {version} of tenant {tenant}");
            ServiceError::new(ServiceErrorCode::NotFound, text)
        })?;
        if block.range.overlaps(&wanted.range) {
            found.push(compiled.listed(block));
        }
    }
    Ok(found)
}

/// Opens blocks for reads of a subject, a few at a time, in order.
pub(crate) async fn open(
    blocks: &Blocks,
    subject: Subject,
    tenant: &TenantId,
    listed: Vec<Listed>,
) -> Result<Vec<MaskedBlock>, ServiceError> {
    use futures::stream::{self, StreamExt, TryStreamExt};
    const OPENED_AT_ONCE: usize = 64;
    stream::iter(listed)
        .map(|Listed { block, masks }| async move {
            let opened = blocks.open_for(subject, tenant, &block).await;
            let reader = opened.map_err(|e| from_open(block.block, &e))?;
            Ok(MaskedBlock { reader, masks })
        })
        .buffered(OPENED_AT_ONCE)
        .try_collect()
        .await
}

fn parse(block: &str) -> Result<BlockId, ServiceError> {
    let wrong = |_| ServiceError::invalid(format!("block name {block:?} is not a ULID"));
    block.parse().map_err(wrong)
}

/// Blocks with samples as sent; those derived from them never answer a read.
fn overlapping(manifest: &Manifest, range: TimeRange) -> Result<Vec<Listed>, ServiceError> {
    let compiled = Compiled::new(manifest, range)?;
    let raw = manifest.overlapping(range).filter(|b| b.resolution_ms == 0);
    Ok(raw.map(|block| compiled.listed(block)).collect())
}

async fn pinned(
    manifests: &TenantManifests,
    tenant: &TenantId,
    version: u64,
) -> Result<std::sync::Arc<Manifest>, ServiceError> {
    let found = manifests
        .bucket()
        .manifest(tenant, version)
        .await
        .map_err(|e| from_bucket(&e))?;
    found.ok_or_else(|| {
        let text = format!("manifest version {version} of tenant {tenant} is gone: pin a later one");
        ServiceError::new(ServiceErrorCode::NotFound, text)
    })
}
