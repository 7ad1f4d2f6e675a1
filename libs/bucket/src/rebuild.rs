//! A manifest from the bucket alone, for when none can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_block::{BlockId, BlockMeta, META_PART};
use koios_model::TenantId;

use crate::bucket::{Bucket, Created};
use crate::manifest::{Manifest, ManifestBlock, Nonce, Writer};
use crate::{Error, Result};

/// Most versions in a row that can be damaged or lost and are passed over.
const UNREADABLE_MAX: u64 = 4096;

/// What a rebuilt manifest would list, and what it cannot know.
#[derive(Clone, Debug)]
pub struct Rebuild {
    tenant: TenantId,
    /// The newest version that has any object, readable or not; 0 for none.
    pub newest: u64,
    /// The newest version that can be read, if there is one.
    pub readable: Option<Arc<Manifest>>,
    /// What is to be listed, ascending by name.
    pub blocks: Vec<ManifestBlock>,
    /// What is left out, and why.
    pub left_out: Vec<(BlockId, LeftOut)>,
    /// What is listed although it is damaged, because a version that can be read lists it: leaving it out would make answers
    /// lack its samples without a word.
    pub damaged: Vec<(BlockId, LeftOut)>,
}

/// Why a block is not listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Its `meta.json` is missing, cannot be read, or is of another tenant.
    #[error("its meta.json cannot be used: {0}")]
    Meta(String),
    /// A part is missing or has another size than its metadata says.
    #[error("{part} has {found:?} bytes, meta.json says {said}")]
    Part {
        /// The part.
        part: String,
        /// Its size, if it is there.
        found: Option<u64>,
        /// What it should be.
        said: u64,
    },
    /// Blocks that name it as their source have all of its samples.
    #[error("blocks that are listed were merged from it")]
    Merged,
    /// A version that can be read says that it is dead.
    #[error("it was deleted, as version {0} of the manifest says")]
    Dead(u64),
}

impl Rebuild {
    /// Whether the newest version can be read, so that nothing has to be rebuilt.
    pub fn is_needless(&self) -> bool {
        self.readable.as_ref().is_some_and(|m| m.version == self.newest)
    }

    /// Whether nothing tells what was deleted and is in blocks still: it would be there again.
    pub fn forgets_deletions(&self) -> bool {
        self.readable.is_none() && !self.blocks.is_empty()
    }

    /// How many samples would be listed.
    pub fn samples(&self) -> u64 {
        self.blocks.iter().map(|b| b.samples).sum()
    }
}

/// Which blocks are sources of others that certainly have all of their samples. A merge writes several blocks, and one that a
/// crash cut short may have left some of them: only when these have as many samples as their sources it is certain. Otherwise both
/// stay; a sample that is there twice is read once. Summaries are no merges: their sources have what they lack.
fn superseded(metas: &BTreeMap<BlockId, BlockMeta>) -> BTreeSet<BlockId> {
    let mut merges: BTreeMap<&[BlockId], u64> = BTreeMap::new();
    for meta in metas
        .values()
        .filter(|m| m.resolution_ms == 0 && !m.sources.is_empty())
    {
        *merges.entry(&meta.sources).or_default() += meta.samples;
    }
    let mut gone = BTreeSet::new();
    for (sources, samples) in merges {
        let there: Vec<&BlockMeta> = sources.iter().filter_map(|s| metas.get(s)).collect();
        if there.iter().map(|m| m.samples).sum::<u64>() <= samples {
            gone.extend(there.iter().map(|m| m.block));
        }
    }
    gone
}

impl Bucket {
    /// Looks at everything a tenant has in the bucket. Lists, and reads the `meta.json` of every block.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn plan_rebuild(&self, tenant: &TenantId) -> Result<Rebuild> {
        let (newest, readable) = self.newest_readable(tenant).await?;
        let mut metas = BTreeMap::new();
        let (mut left_out, mut damaged) = (Vec::new(), Vec::new());
        let known = |block| readable.as_ref().and_then(|m| m.block(block));
        for (block, _) in self.uploaded_blocks(tenant).await? {
            if let Some(known) = readable.as_ref().filter(|m| m.is_dead(block)) {
                left_out.push((block, LeftOut::Dead(known.version)));
                continue;
            }
            match self.complete_block(tenant, block, known(block)).await? {
                Ok(meta) => {
                    metas.insert(block, meta);
                }
                Err(why) if known(block).is_some() => damaged.push((block, why)),
                Err(why) => left_out.push((block, why)),
            }
        }
        let merged = superseded(&metas);
        left_out.extend(merged.iter().map(|block| (*block, LeftOut::Merged)));
        left_out.sort_by_key(|(block, _)| *block);
        let entry = |meta: &BlockMeta| {
            let known = known(meta.block).cloned();
            known.unwrap_or_else(|| ManifestBlock::new(meta, BTreeMap::new()))
        };
        let whole = metas.values().filter(|m| !merged.contains(&m.block)).map(entry);
        let mut blocks: Vec<ManifestBlock> = whole.collect();
        blocks.extend(damaged.iter().filter_map(|(block, _)| known(*block).cloned()));
        blocks.sort_unstable_by_key(|b| b.block);
        Ok(Rebuild {
            tenant: tenant.clone(),
            newest,
            readable,
            blocks,
            left_out,
            damaged,
        })
    }

    /// Creates the version after the newest one, which lists what a plan says. Of the newest version that can be read it keeps
    /// dead names, deletions, epochs and imports.
    ///
    /// # Errors
    /// [`Error::Refused`] when the manifest changed since the plan was made; [`Error::Unavailable`].
    pub async fn rebuild_manifest(&self, plan: &Rebuild, writer: &str) -> Result<Arc<Manifest>> {
        let empty = || Manifest::empty(plan.tenant.clone());
        let known = plan.readable.as_deref().cloned().unwrap_or_else(empty);
        let listed: BTreeSet<BlockId> = plan.blocks.iter().map(|b| b.block).collect();
        let mut next = known.clone();
        for lost in known.blocks.iter().filter(|b| !listed.contains(&b.block)) {
            next.remove_block(lost.block);
        }
        next.blocks.clone_from(&plan.blocks);
        next.rebuilt = plan.newest + 1;
        let mut base = Manifest {
            version: plan.newest,
            ..known
        };
        if let Some(record) = &mut base.retention {
            // Versions that cannot be read may have said something else.
            record.masks_since = None;
        }
        let writer = Writer::rebuild(writer);
        next.seal(&base, &writer, Nonce(self.rng().u128()), self.clock().now_ms())?;
        let path = self.layout().manifest(&plan.tenant, next.version);
        match self.create_version(&next).await? {
            Created::Yes => {
                self.put_hint(&next).await;
                // Whoever comes upward from an older version must get past those that cannot be read.
                let readable = plan.readable.as_ref().map_or(0, |m| m.version);
                let first = readable.max(plan.newest.saturating_sub(UNREADABLE_MAX)) + 1;
                self.supersede(&plan.tenant, first..=plan.newest, next.version)
                    .await?;
                Ok(Arc::new(next))
            }
            Created::Exists => Err(Error::Refused {
                tenant: plan.tenant.clone(),
                reason: format!("{path} was written meanwhile: look again what is to be done"),
            }),
        }
    }

    /// The newest version that has an object, and the newest that can be read.
    async fn newest_readable(&self, tenant: &TenantId) -> Result<(u64, Option<Arc<Manifest>>)> {
        // Whether versions have a gap is what is not known here.
        let versions = self.manifest_versions(tenant).await?;
        let newest = versions.last().copied().unwrap_or(0);
        for version in versions.into_iter().rev() {
            match self.manifest(tenant, version).await {
                Ok(Some(manifest)) => return Ok((newest, Some(manifest))),
                Ok(None) | Err(Error::Corrupt { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok((newest, None))
    }

    async fn complete_block(
        &self,
        tenant: &TenantId,
        block: BlockId,
        known: Option<&ManifestBlock>,
    ) -> Result<std::result::Result<BlockMeta, LeftOut>> {
        let path = self.layout().part(tenant, block, META_PART);
        let Some(json) = self.get(&path).await? else {
            return Ok(Err(LeftOut::Meta("it is missing".to_owned())));
        };
        if known.is_some_and(|known| !known.lists_meta(&json)) {
            let reason = "it is not the one that the manifest lists";
            return Ok(Err(LeftOut::Meta(reason.to_owned())));
        }
        let meta = match BlockMeta::from_json(block, &json) {
            Ok(meta) if meta.tenant == *tenant => meta,
            Ok(meta) => return Ok(Err(LeftOut::Meta(format!("it is of tenant {}", meta.tenant)))),
            Err(e) => return Ok(Err(LeftOut::Meta(e.to_string()))),
        };
        for part in &meta.parts {
            let found = self.size(&self.layout().part(tenant, block, &part.name)).await?;
            if found != Some(part.bytes) {
                return Ok(Err(LeftOut::Part {
                    part: part.name.clone(),
                    found,
                    said: part.bytes,
                }));
            }
        }
        Ok(Ok(meta))
    }
}
