//! What of a tenant's blocks is in the bucket, and whether all of each is, as far as names and sizes tell.

use std::collections::BTreeMap;

use koios_block::{BlockId, BlockMeta, META_PART};
use koios_model::TenantId;

use super::LeftOut;
use crate::Result;
use crate::bucket::Bucket;
use crate::lost::HINT_MAX;
use crate::manifest::{Manifest, ManifestBlock};

/// The blocks of a tenant that have any object.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Those with all parts.
    pub(super) whole: BTreeMap<BlockId, BlockMeta>,
    /// Those that no version lists and that lack a part, and what they lack.
    pub(super) incomplete: BTreeMap<BlockId, (BlockMeta, LeftOut)>,
    /// What is wrong with those that a version lists.
    pub(super) damaged: Vec<(BlockId, LeftOut)>,
    /// Those of which nothing more is known, and those that are dead.
    pub(super) left_out: Vec<(BlockId, LeftOut)>,
    /// The highest version that any of them says it is clean up to.
    pub(super) cleaned_at: u64,
}

/// A block, looked at.
enum Looked {
    Whole(BlockMeta),
    Incomplete(BlockMeta, LeftOut),
    Unusable(LeftOut),
}

impl Bucket {
    /// Lists, reads each `meta.json`, and asks for the size of each part.
    pub(super) async fn look_at_blocks(
        &self,
        tenant: &TenantId,
        readable: Option<&Manifest>,
    ) -> Result<Found> {
        let mut found = Found::default();
        for (block, _) in self.uploaded_blocks(tenant).await? {
            if let Some(known) = readable.filter(|m| m.is_dead(block)) {
                found.left_out.push((block, LeftOut::Dead(known.version)));
                continue;
            }
            let known = readable.and_then(|m| m.block(block));
            let looked = self.look_at(tenant, block, known).await?;
            if let Looked::Whole(meta) | Looked::Incomplete(meta, _) = &looked {
                // A number that no manifest can have come to is damage.
                let clean_up_to = Some(meta.clean_up_to).filter(|v| *v <= HINT_MAX);
                found.cleaned_at = found.cleaned_at.max(clean_up_to.unwrap_or(0));
            }
            match looked {
                Looked::Whole(meta) => {
                    found.whole.insert(block, meta);
                }
                Looked::Incomplete(_, why) | Looked::Unusable(why) if known.is_some() => {
                    found.damaged.push((block, why));
                }
                Looked::Incomplete(meta, why) => {
                    found.incomplete.insert(block, (meta, why));
                }
                Looked::Unusable(why) => found.left_out.push((block, why)),
            }
        }
        Ok(found)
    }

    async fn look_at(
        &self,
        tenant: &TenantId,
        block: BlockId,
        known: Option<&ManifestBlock>,
    ) -> Result<Looked> {
        let unusable = |reason: String| Ok(Looked::Unusable(LeftOut::Meta(reason)));
        let path = self.layout().part(tenant, block, META_PART);
        let json = match self.get(&path).await {
            Ok(Some(json)) => json,
            Ok(None) => return Ok(Looked::Unusable(LeftOut::NoMeta)),
            Err(e) if e.is_of_object() => {
                let why = match known {
                    Some(_) => LeftOut::Unread(e.to_string()),
                    None => LeftOut::Unknown(e.to_string()),
                };
                return Ok(Looked::Unusable(why));
            }
            Err(e) => return Err(e),
        };
        if known.is_some_and(|known| !known.lists_meta(&json)) {
            return unusable("it is not the one that the manifest lists".to_owned());
        }
        let meta = match BlockMeta::from_json(block, &json) {
            Ok(meta) if meta.tenant == *tenant => meta,
            Ok(meta) => return unusable(format!("it is of tenant {}", meta.tenant)),
            Err(e) => return unusable(e.to_string()),
        };
        match self.lacks(tenant, &meta, known.is_some()).await? {
            Some(why) => Ok(Looked::Incomplete(meta, why)),
            None => Ok(Looked::Whole(meta)),
        }
    }

    /// The first part of a block that is missing or of another size.
    async fn lacks(&self, tenant: &TenantId, meta: &BlockMeta, is_known: bool) -> Result<Option<LeftOut>> {
        for part in &meta.parts {
            let path = self.layout().part(tenant, meta.block, &part.name);
            let found = match self.size(&path).await {
                Ok(found) => found,
                Err(e) if e.is_of_object() && is_known => return Ok(Some(LeftOut::Unread(e.to_string()))),
                // Those that no version lists are read anyway, and listed with what is said then.
                Err(e) if e.is_of_object() => continue,
                Err(e) => return Err(e),
            };
            if found != Some(part.bytes) {
                return Ok(Some(LeftOut::Part {
                    part: part.name.clone(),
                    found,
                    said: part.bytes,
                }));
            }
        }
        Ok(None)
    }
}
