//! Tells a manifest that lost versions from one that never had them: by the hint, and by what blocks say.
//!
//! Versions are found by going upward from one that exists. When their objects are gone (a rule of the storage, a hand, a restore of a
//! part), what is found would pass for all there ever was, and every block that it does not list for an upload that nobody needs.
//! Nothing is committed to such a manifest and nothing of its tenant is deleted until an operator has brought the versions back, or
//! has it rebuilt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use koios_block::{BlockId, BlockMeta, META_PART};
use koios_model::TenantId;
use object_store::path::Path;

use crate::bucket::Bucket;
use crate::manifest::{Manifest, Writer};
use crate::{Error, Result};

/// Larger hints are nonsense.
pub(crate) const HINT_MAX: u64 = 1 << 53;
/// Blocks that are asked for evidence when there is no version at all, the newest first.
const ASKED_MAX: usize = 16;

/// What `manifest/latest` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hint {
    /// The version it names.
    pub(crate) version: u64,
    /// Whether it has its checksum: then the version was there.
    pub(crate) is_certain: bool,
}

impl Hint {
    /// The bytes of the hint at a version.
    pub(crate) fn encode(tenant: &TenantId, version: u64) -> Bytes {
        format!("{version} {:08x}", checksum(tenant, version)).into()
    }

    /// `None` for what names no version. Of earlier versions of the program it has no checksum.
    pub(crate) fn decode(tenant: &TenantId, bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.trim();
        let (number, crc) = text
            .split_once(' ')
            .map_or((text, None), |(n, crc)| (n, Some(crc)));
        let version: u64 = number.parse().ok().filter(|v| (1..=HINT_MAX).contains(v))?;
        match crc {
            Some(crc) if crc != format!("{:08x}", checksum(tenant, version)) => None,
            crc => Some(Self {
                version,
                is_certain: crc.is_some(),
            }),
        }
    }
}

fn checksum(tenant: &TenantId, version: u64) -> u32 {
    crc32c::crc32c(format!("{tenant} {version}").as_bytes())
}

/// Where the search for the newest version begins when version 1 is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// Nothing tells of any version.
    Never,
    /// The first versions are gone and this one is there.
    At(u64),
}

/// The blocks that have objects and are neither listed nor on their way to deletion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlisted {
    /// Old ones that were certainly never listed, and their parts.
    pub orphans: Vec<(BlockId, Vec<String>)>,
    /// Old ones of which nobody can say that they were never listed: they are whole, or not handed out.
    pub unknown: Vec<BlockId>,
}

impl Bucket {
    /// What there is of a tenant that has no version 1. Lists.
    ///
    /// # Errors
    /// [`Error::Lost`] when blocks tell of versions; [`Error::Unavailable`].
    pub(crate) async fn beginning(&self, tenant: &TenantId) -> Result<Beginning> {
        // First: a block that tells of a version came after it.
        let uploaded = self.uploaded_blocks(tenant).await?;
        let versions = self.manifest_versions(tenant).await?;
        if let Some(newest) = versions.last().filter(|v| **v > 0) {
            return Ok(Beginning::At(*newest));
        }
        let whole = uploaded.iter().rev().filter(|(_, parts)| is_whole(parts));
        for (block, _) in whole.take(ASKED_MAX) {
            if let Some(meta) = self.readable_meta(tenant, *block).await?
                && meta.clean_up_to > 0
            {
                return Err(lost(tenant, 0, meta.clean_up_to, format!("block {block}")));
            }
        }
        Ok(Beginning::Never)
    }

    /// Looks through blocks that were listed before the manifest was read for those that it does not know, and whether these tell of
    /// versions that are lost. Blocks count as old whose name is from before `before_ms`.
    ///
    /// # Errors
    /// [`Error::Lost`]: nothing may be deleted then. [`Error::Unavailable`].
    pub async fn unlisted(
        &self,
        manifest: &Manifest,
        uploaded: Vec<(BlockId, Vec<String>)>,
        before_ms: i64,
    ) -> Result<Unlisted> {
        let tenant = &manifest.tenant;
        let live: BTreeSet<BlockId> = manifest.blocks.iter().map(|b| b.block).collect();
        let dead: BTreeSet<BlockId> = manifest.dead.iter().map(|d| d.block).collect();
        // An upload that slept through its burial leaves parts of a dead block whose bytes were deleted before.
        let with_bytes = manifest.dead.iter().filter(|d| !d.parts.is_empty());
        let dying: BTreeSet<BlockId> = with_bytes.map(|d| d.block).collect();
        let (mut found, mut hides_something) = (Unlisted::default(), false);
        for (block, parts) in uploaded {
            if live.contains(&block) || dying.contains(&block) {
                continue;
            }
            let is_old = block.time_ms() < before_ms;
            if dead.contains(&block) || !is_whole(&parts) {
                found.orphans.extend(is_old.then_some((block, parts)));
                continue;
            }
            // One that is not handed out tells nothing, and keeps nobody from looking after the others.
            let meta = match self.readable_meta(tenant, block).await {
                Err(e) if e.is_of_object() => {
                    hides_something = true;
                    None
                }
                meta => meta?,
            };
            if let Some(meta) = &meta {
                let known = |s: &BlockId| live.contains(s) || dead.contains(s);
                check_evidence(manifest, meta, known)?;
            }
            // What was uploaded before the first version may be from before all versions were lost.
            match meta {
                _ if !is_old => {}
                Some(_) if block.time_ms() >= manifest.begun_ms => found.orphans.push((block, parts)),
                _ => found.unknown.push(block),
            }
        }
        if hides_something {
            // It may be what tells of lost versions, in which the others were listed.
            let (whole, rest) = found.orphans.into_iter().partition(|(_, parts)| is_whole(parts));
            let whole: Vec<(BlockId, Vec<String>)> = whole;
            found.orphans = rest;
            found.unknown.extend(whole.into_iter().map(|(block, _)| block));
        }
        let whole = found.orphans.iter().filter(|(_, parts)| is_whole(parts)).count() + found.unknown.len();
        if manifest.version == 0 && whole > 0 {
            let by = format!("{whole} blocks that were uploaded long ago, and whole,");
            return Err(lost(tenant, 0, 1, by));
        }
        Ok(found)
    }

    /// Declares blocks dead that are not listed, whether they ever were or not, because an operator says so: their bytes go as those of
    /// other dead blocks do.
    ///
    /// # Errors
    /// [`Error::Refused`] when one of them is listed, dead, from after `before_ms`, or not there; [`Error::Lost`] when versions are lost,
    /// which may have listed them; those of [`Self::commit`].
    pub async fn bury_unlisted(
        &self,
        tenant: &TenantId,
        blocks: &[BlockId],
        before_ms: i64,
        writer: &Writer,
    ) -> Result<Arc<Manifest>> {
        let uploaded = self.uploaded_blocks(tenant).await?;
        let manifest = self.latest(tenant).await?;
        let parts: BTreeMap<BlockId, Vec<String>> = uploaded.iter().cloned().collect();
        self.unlisted(&manifest, uploaded, before_ms).await?;
        let bury = |m: &mut Manifest| {
            for block in blocks {
                let why = match parts.get(block) {
                    _ if m.block(*block).is_some() => Err("is listed"),
                    _ if m.is_dead(*block) => Err("is dead already"),
                    Some(_) if block.time_ms() >= before_ms => Err("may be on its way: it is too young"),
                    Some(parts) => Ok(parts),
                    None => Err("has no objects"),
                };
                let parts = why.map_err(|why| Error::Refused {
                    tenant: m.tenant.clone(),
                    reason: format!("block {block} {why}"),
                })?;
                m.bury(*block, parts.clone());
            }
            Ok(())
        };
        self.commit_from(manifest, writer, bury).await
    }

    /// The metadata of a block that may not be listed, unless there is none or it is damaged.
    async fn readable_meta(&self, tenant: &TenantId, block: BlockId) -> Result<Option<BlockMeta>> {
        let json = self.get(&self.layout().part(tenant, block, META_PART)).await?;
        let meta = json.and_then(|json| BlockMeta::from_json(block, &json).ok());
        Ok(meta.filter(|m| m.tenant == *tenant))
    }

    /// What the hint says; a missing or unreadable one says nothing.
    pub(crate) async fn hint(&self, tenant: &TenantId) -> Result<Option<Hint>> {
        let bytes = self.get(&self.layout().hint(tenant)).await?;
        Ok(bytes.and_then(|b| Hint::decode(tenant, &b)))
    }

    /// The versions that have an object, ascending, whatever is in it. Lists: for repair.
    pub(crate) async fn manifest_versions(&self, tenant: &TenantId) -> Result<Vec<u64>> {
        let folder = self.layout().manifests(tenant);
        let version = |path: &Path| -> Option<u64> { path.filename()?.strip_suffix(".json")?.parse().ok() };
        let mut versions: Vec<u64> = self.list(&folder).await?.iter().filter_map(version).collect();
        versions.sort_unstable();
        Ok(versions)
    }
}

/// Whether an upload came to its end.
fn is_whole(parts: &[String]) -> bool {
    parts.iter().any(|part| part == META_PART)
}

/// Whether a block that is not listed was made when the manifest had versions that it does not have.
fn check_evidence(manifest: &Manifest, meta: &BlockMeta, known: impl Fn(&BlockId) -> bool) -> Result<()> {
    let (tenant, found, block) = (&manifest.tenant, manifest.version, meta.block);
    if meta.clean_up_to > found {
        return Err(lost(tenant, found, meta.clean_up_to, format!("block {block}")));
    }
    // Whatever was merged was listed, and is dead for ever once it no longer is; but a rebuilt manifest need not know of it. Blocks
    // of imports have sources that are no blocks here: the name there, and one for a run that was not the first.
    let is_import = meta.partitions.is_empty();
    let is_merge = manifest.rebuilt == 0 && meta.sources.len() > 1 && !is_import;
    if is_merge && !meta.sources.iter().all(known) {
        let by = format!("block {block}, which was made of blocks that it does not know,");
        return Err(lost(tenant, found, found.saturating_add(1), by));
    }
    Ok(())
}

pub(crate) fn lost(tenant: &TenantId, found: u64, seen: u64, by: impl Into<String>) -> Error {
    Error::Lost {
        tenant: tenant.clone(),
        found,
        seen,
        by: by.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_with_a_checksum_are_certain_and_those_that_fail_it_say_nothing() {
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::new("b").unwrap());
        let sound = Hint::encode(&a, 301);
        let certain = |version, is_certain| Some(Hint { version, is_certain });
        assert_eq!(Hint::decode(&a, &sound), certain(301, true));
        assert_eq!(Hint::decode(&b, &sound), None);
        assert_eq!(Hint::decode(&a, b"301\n"), certain(301, false));
        for nonsense in ["", "0", "x", "301 00000000", "18446744073709551615"] {
            assert_eq!(Hint::decode(&a, nonsense.as_bytes()), None, "{nonsense:?}");
        }
    }
}
