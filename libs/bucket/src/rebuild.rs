//! A manifest from the bucket alone, for when none can be read or the newest are lost.

mod altered;
mod summaries;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use koios_block::{BlockId, BlockMeta, META_PART};
use koios_model::TenantId;
use object_store::path::Path;

use crate::bucket::{Bucket, Created};
use crate::lost::{HINT_MAX, Hint};
use crate::manifest::{Manifest, ManifestBlock, Nonce, Writer};
use crate::{Error, Result};
use summaries::Candidates;

/// Most versions in a row that can be damaged or lost and are passed over.
const UNREADABLE_MAX: u64 = 4096;
/// So far beyond the last version that anything tells of a rebuilt one is when versions are lost: what tells of them does so some commits
/// late. What was stamped with a lost version must not pass for later than what is stamped from now on.
const LOST_MARGIN: u64 = 1000;
/// Words on the new version that are on their way at a time.
const SUPERSEDED_AT_A_TIME: usize = 16;

/// What a rebuilt manifest would list, and what it cannot know.
#[derive(Clone, Debug)]
pub struct Rebuild {
    tenant: TenantId,
    /// The newest version that has any object, readable or not; 0 for none.
    pub newest: u64,
    /// The highest version that anything tells of: objects, the hint, and what blocks say they are clean up to.
    pub evident: u64,
    /// The version that it will be.
    pub next: u64,
    /// The newest version that can be read, if there is one.
    pub readable: Option<Arc<Manifest>>,
    /// What is to be listed, ascending by name.
    pub blocks: Vec<ManifestBlock>,
    /// What is left out, and why.
    pub left_out: Vec<(BlockId, LeftOut)>,
    /// What is listed although it is damaged, because a version that can be read lists it, or no other block is known to have what it
    /// held: leaving it out would make answers lack its samples without a word.
    pub damaged: Vec<(BlockId, LeftOut)>,
    /// Blocks of summaries that stand in for samples of which nothing is left.
    pub standing_in: Vec<BlockId>,
    /// The parts of blocks that are left out and of which everything is certainly listed: they are declared dead.
    replaced: Vec<(BlockId, Vec<String>)>,
    hint: Option<Hint>,
}

/// Why a block is not listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Its `meta.json` is missing, cannot be read, or is of another tenant.
    #[error("its meta.json cannot be used: {0}")]
    Meta(String),
    /// A part is missing or has another size than its metadata says.
    #[error("{}", part_text(part, *found, *said))]
    Part {
        /// The part.
        part: String,
        /// Its size, if it is there.
        found: Option<u64>,
        /// What it should be.
        said: u64,
    },
    /// No version that can be read lists it, a part of it is not what was encoded, which may be why, and others have what it held: what
    /// it was made of, what takes its place, or summaries of the same time.
    #[error("{part} is not what meta.json says, and other blocks are there for it")]
    Altered {
        /// The part.
        part: String,
    },
    /// The same of one that is listed: no other block is known to have what it held.
    #[error("{part} is not what meta.json says, and no other block is known to have what it held")]
    Damaged {
        /// The part.
        part: String,
    },
    /// The storage hands out others and not this one: it refuses it, or keeps it in an archive.
    #[error("it cannot be read: {0}; once it can be, look again")]
    Unread(String),
    /// Blocks that name it as their source have all of its samples.
    #[error("blocks that are listed were merged from it")]
    Merged,
    /// It is summaries of samples that are listed.
    #[error("its samples are listed: they are summarised anew")]
    Remade,
    /// Other summaries of the same time have its series.
    #[error("other summaries of its day, which are listed, have the same series, or more")]
    Summarised,
    /// Other summaries of the same time were preferred, as only one set of them may be listed, and may lack series that it has.
    #[error(
        "other summaries of its day are listed, which may lack series that it has: answers are without these then, and do not say so"
    )]
    Outweighed,
    /// Its siblings are missing: finer or coarser summaries have series that it lacks.
    #[error("it is a part of summaries of which others are missing; those of another resolution are listed")]
    Partial,
    /// A version that can be read says that it is dead.
    #[error("it was deleted, as version {0} of the manifest says")]
    Dead(u64),
}

impl LeftOut {
    /// Whether answers may lack something because of it without a word.
    pub fn may_lose(&self) -> bool {
        matches!(self, Self::Outweighed)
    }
}

fn part_text(part: &str, found: Option<u64>, said: u64) -> String {
    match found {
        Some(found) => format!("{part} has {found} bytes, meta.json says {said}"),
        None => format!("{part} is missing, meta.json says it has {said} bytes"),
    }
}

impl Rebuild {
    /// Whether the newest version can be read, so that nothing has to be rebuilt.
    pub fn is_needless(&self) -> bool {
        let is_newest = |m: &Arc<Manifest>| m.version >= self.evident && self.next == m.version + 1;
        self.readable.as_ref().is_some_and(is_newest)
    }

    /// Whether versions are gone that were there, so that nothing says what they did.
    pub fn has_lost_versions(&self) -> bool {
        self.evident > self.newest || self.newest == 0
    }

    /// The version that can be read, if there were later ones: deletions that were asked for since are lost with these.
    pub fn deletions_lost_after(&self) -> Option<u64> {
        let readable = self.readable.as_ref()?.version;
        (readable < self.newest.max(self.evident)).then_some(readable)
    }

    /// Makes the version one that is not below `version`, which members or readers ask for.
    ///
    /// # Errors
    /// [`Error::Refused`] when no manifest can have come so far.
    pub fn at_least(&mut self, version: u64) -> Result<()> {
        if version > HINT_MAX {
            return Err(Error::Refused {
                tenant: self.tenant.clone(),
                reason: format!("versions end at {HINT_MAX}, {version} is beyond"),
            });
        }
        self.next = self.next.max(version);
        Ok(())
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

/// A merge of which something is there.
struct Merge {
    /// Its sources that are there, and how many samples they have.
    sources: Vec<BlockId>,
    samples: u64,
    /// What it wrote.
    into: Vec<BlockId>,
    written: u64,
}

/// The merges whose blocks have as many samples as their sources. Summaries are no merges: their sources have what they lack. `damaged`
/// are listed blocks that are not whole, which they need not be once they were merged.
fn full_merges(metas: &BTreeMap<BlockId, BlockMeta>, damaged: &[ManifestBlock]) -> Vec<Merge> {
    let whole = metas.values().map(|m| (m.block, m.samples));
    let samples: BTreeMap<BlockId, u64> = whole
        .chain(damaged.iter().map(|b| (b.block, b.samples)))
        .collect();
    let mut merges: BTreeMap<&[BlockId], Merge> = BTreeMap::new();
    for meta in metas
        .values()
        .filter(|m| m.resolution_ms == 0 && !m.sources.is_empty())
    {
        let merge = merges.entry(&meta.sources).or_insert_with(|| {
            let there = meta.sources.iter().filter_map(|s| samples.get_key_value(s));
            let (sources, counts): (Vec<_>, Vec<u64>) = there.unzip();
            Merge {
                sources,
                samples: counts.iter().sum(),
                into: Vec::new(),
                written: 0,
            }
        });
        merge.into.push(meta.block);
        merge.written += meta.samples;
    }
    merges.into_values().filter(|m| m.samples <= m.written).collect()
}

impl Bucket {
    /// Looks at everything a tenant has in the bucket. Lists, reads the `meta.json` of every block, and all of those that no version lists
    /// which can be read. What the storage refuses of a block is the block's fault: it is listed, and named, unless others have what it holds.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Unread`] when a block was not handed out in several tries; both may pass. [`Error::Rejected`].
    pub async fn plan_rebuild(&self, tenant: &TenantId) -> Result<Rebuild> {
        // Before anything else: whoever commits while blocks are looked at is noticed by it.
        let hint = self.hint(tenant).await?;
        let (newest, readable) = self.newest_readable(tenant).await?;
        let mut metas = BTreeMap::new();
        let (mut left_out, mut damaged) = (Vec::new(), Vec::new());
        let mut cleaned_at = 0;
        let known = |block| readable.as_ref().and_then(|m| m.block(block));
        for (block, _) in self.uploaded_blocks(tenant).await? {
            if let Some(known) = readable.as_ref().filter(|m| m.is_dead(block)) {
                left_out.push((block, LeftOut::Dead(known.version)));
                continue;
            }
            let (clean_up_to, complete) = self.complete_block(tenant, block, known(block)).await?;
            cleaned_at = cleaned_at.max(clean_up_to);
            match complete {
                Ok(meta) => {
                    metas.insert(block, meta);
                }
                Err(why) if known(block).is_some() => damaged.push((block, why)),
                Err(why) => left_out.push((block, why)),
            }
        }
        let altered = self.altered(tenant, &metas, readable.as_deref()).await?;
        let (suspect, metas): (BTreeMap<BlockId, BlockMeta>, BTreeMap<_, _>) = metas
            .into_iter()
            .partition(|(block, _)| altered.contains_key(block));
        // Of some nothing at all is left.
        let listed = readable.iter().flat_map(|m| &m.blocks).map(|b| b.block);
        let is_gone =
            |block: &BlockId| !metas.contains_key(block) && damaged.iter().all(|(found, _)| found != block);
        let gone: Vec<_> = listed.filter(is_gone).collect();
        let missing = || LeftOut::Meta("it is missing".to_owned());
        damaged.extend(gone.into_iter().map(|block| (block, missing())));
        let mut not_whole: Vec<_> = damaged.iter().filter_map(|(b, _)| known(*b).cloned()).collect();
        not_whole.extend(suspect.values().map(|m| ManifestBlock::new(m, BTreeMap::new())));
        let mut merged = BTreeSet::new();
        for merge in full_merges(&metas, &not_whole) {
            if self.is_whole(tenant, &merge, &metas).await? {
                merged.extend(merge.sources);
            }
        }
        damaged.retain(|(block, _)| !merged.contains(block));
        left_out.extend(merged.iter().map(|block| (*block, LeftOut::Merged)));
        let listed = metas.values().filter(|m| !merged.contains(&m.block));
        let (raw, mut of_summaries): (Vec<&BlockMeta>, Vec<&BlockMeta>) =
            listed.partition(|m| m.resolution_ms == 0);
        let entry = |meta: &BlockMeta| {
            let known = known(meta.block).cloned();
            known.unwrap_or_else(|| ManifestBlock::new(meta, BTreeMap::new()))
        };
        let mut blocks: Vec<ManifestBlock> = raw.into_iter().map(entry).collect();
        blocks.extend(damaged.iter().filter_map(|(block, _)| known(*block).cloned()));
        let is_raw = |meta: &&BlockMeta| meta.resolution_ms == 0 && !merged.contains(&meta.block);
        for meta in suspect.values().filter(is_raw) {
            let Some(fault) = altered.get(&meta.block) else {
                continue;
            };
            if self.is_held_by(tenant, meta, &metas).await? {
                left_out.push((meta.block, fault.left_out()));
            } else {
                damaged.push((meta.block, fault.damaged()));
                blocks.push(entry(meta));
            }
        }
        of_summaries.extend(suspect.values().filter(|m| m.resolution_ms != 0));
        let candidates = Candidates {
            metas: &of_summaries,
            altered: &altered,
            readable: readable.as_deref(),
        };
        let chosen = Box::pin(self.choose_summaries(tenant, &blocks, candidates)).await?;
        left_out.extend(chosen.left_out);
        damaged.extend(chosen.damaged);
        damaged.sort_by_key(|(block, _)| *block);
        left_out.sort_by_key(|(block, _)| *block);
        blocks.extend(chosen.listed);
        blocks.sort_unstable_by_key(|b| b.block);
        let evident = newest.max(cleaned_at).max(hint.map_or(0, |h| h.version));
        let has_blocks = !blocks.is_empty() || !left_out.is_empty();
        let is_lost = evident > newest || newest == 0 && has_blocks;
        let parts = |meta: &BlockMeta| meta.summaries().into_iter().map(|p| p.name).collect();
        // Of a source that is damaged the summaries may be all that is left.
        let is_whole = |b: &&BlockId| {
            let sources = metas.get(*b).map_or(&[][..], |m| &m.sources);
            sources.iter().all(|s| metas.contains_key(s))
        };
        let replaced = merged
            .iter()
            .chain(chosen.remade.iter().filter(is_whole))
            .filter_map(|b| metas.get(b))
            .map(|m| (m.block, parts(m)));
        Ok(Rebuild {
            tenant: tenant.clone(),
            newest,
            evident,
            next: evident + if is_lost { LOST_MARGIN } else { 1 },
            replaced: replaced.collect(),
            standing_in: chosen.standing_in,
            hint,
            readable,
            blocks,
            left_out,
            damaged,
        })
    }

    /// Whether what a merge wrote certainly has all of its sources. It writes several blocks, and one that a crash cut short may have
    /// left some of them, each attempt others: of series that none of these has the rest never came. Otherwise both stay; a sample that
    /// is there twice is read once.
    async fn is_whole(
        &self,
        tenant: &TenantId,
        merge: &Merge,
        metas: &BTreeMap<BlockId, BlockMeta>,
    ) -> Result<bool> {
        let entries = |blocks: &[BlockId]| -> Vec<ManifestBlock> {
            let metas = blocks.iter().filter_map(|b| metas.get(b));
            metas.map(|m| ManifestBlock::new(m, BTreeMap::new())).collect()
        };
        let (sources, into) = (entries(&merge.sources), entries(&merge.into));
        if sources.is_empty() {
            return Ok(true);
        }
        let written = self
            .series_of_all(tenant, &into.iter().collect::<Vec<_>>())
            .await?;
        for source in &sources {
            // One that cannot be read tells nothing.
            if let Ok(series) = self.series_of(tenant, source).await?
                && !series.is_subset(&written)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Creates the version after all that anything tells of, which lists what a plan says. Of the newest version that can be read it keeps
    /// dead names, deletions, epochs and imports.
    ///
    /// # Errors
    /// [`Error::Refused`] when the manifest changed since the plan was made, or there is nothing of the tenant;
    /// [`Error::Unavailable`].
    pub async fn rebuild_manifest(&self, plan: &Rebuild, writer: &str) -> Result<Arc<Manifest>> {
        self.check_unchanged(plan).await?;
        let empty = || Manifest::empty(plan.tenant.clone());
        let known = plan.readable.as_deref().cloned().unwrap_or_else(empty);
        let listed: BTreeSet<BlockId> = plan.blocks.iter().map(|b| b.block).collect();
        let mut next = known.clone();
        for lost in known.blocks.iter().filter(|b| !listed.contains(&b.block)) {
            next.remove_block(lost.block);
        }
        next.blocks.clone_from(&plan.blocks);
        for (block, parts) in &plan.replaced {
            next.bury(*block, parts.clone());
        }
        next.rebuilt = plan.next;
        let mut base = Manifest {
            version: plan.next.saturating_sub(1),
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
                self.lead_past(plan).await?;
                Ok(Arc::new(next))
            }
            Created::Exists => Err(self.changed(plan, &path)),
        }
    }

    /// Whoever comes upward from an older version, or from none, must get past those that cannot be read or are not there; and whoever
    /// slept through them must not commit one.
    async fn lead_past(&self, plan: &Rebuild) -> Result<()> {
        let readable = plan.readable.as_ref().map_or(0, |m| m.version);
        let (next, after) = (plan.next, readable + 1);
        let last = next.saturating_sub(1);
        let first = after.max(last.saturating_sub(UNREADABLE_MAX) + 1);
        let at_a_time = SUPERSEDED_AT_A_TIME;
        if after < first {
            self.supersede(&plan.tenant, after..=after, next, at_a_time)
                .await?;
        }
        self.supersede(&plan.tenant, first..=last, next, at_a_time).await
    }

    /// Refuses when somebody commits: processes still run, and would go on from another version.
    async fn check_unchanged(&self, plan: &Rebuild) -> Result<()> {
        if plan.newest == 0 && plan.evident == 0 && plan.blocks.is_empty() && plan.left_out.is_empty() {
            return Err(Error::Refused {
                tenant: plan.tenant.clone(),
                reason: "the bucket has nothing of this tenant: is the name right?".to_owned(),
            });
        }
        let newest = self.manifest_versions(&plan.tenant).await?.last().copied();
        if newest.unwrap_or(0) != plan.newest {
            let path = self
                .layout()
                .manifest(&plan.tenant, newest.unwrap_or(plan.newest));
            return Err(self.changed(plan, &path));
        }
        if self.hint(&plan.tenant).await? != plan.hint {
            return Err(self.changed(plan, &self.layout().hint(&plan.tenant)));
        }
        Ok(())
    }

    fn changed(&self, plan: &Rebuild, path: &Path) -> Error {
        Error::Refused {
            tenant: plan.tenant.clone(),
            reason: format!(
                "{path} was written meanwhile: end all processes of the cluster, and look again what is to be done"
            ),
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

    /// A block's metadata if all of it is there, and up to which version it says it is clean, whether it is whole or not.
    async fn complete_block(
        &self,
        tenant: &TenantId,
        block: BlockId,
        known: Option<&ManifestBlock>,
    ) -> Result<(u64, std::result::Result<BlockMeta, LeftOut>)> {
        let unusable = |reason: String| (0, Err(LeftOut::Meta(reason)));
        let path = self.layout().part(tenant, block, META_PART);
        let json = match self.get(&path).await {
            Ok(Some(json)) => json,
            Ok(None) => return Ok(unusable("it is missing".to_owned())),
            Err(e) if e.is_of_object() => return Ok((0, Err(LeftOut::Unread(e.to_string())))),
            Err(e) => return Err(e),
        };
        if known.is_some_and(|known| !known.lists_meta(&json)) {
            return Ok(unusable("it is not the one that the manifest lists".to_owned()));
        }
        let meta = match BlockMeta::from_json(block, &json) {
            Ok(meta) if meta.tenant == *tenant => meta,
            Ok(meta) => return Ok(unusable(format!("it is of tenant {}", meta.tenant))),
            Err(e) => return Ok(unusable(e.to_string())),
        };
        // A number that no manifest can have come to is damage.
        let clean_up_to = Some(meta.clean_up_to).filter(|v| *v <= HINT_MAX).unwrap_or(0);
        for part in &meta.parts {
            let found = match self.size(&self.layout().part(tenant, block, &part.name)).await {
                Ok(found) => found,
                Err(e) if e.is_of_object() && known.is_some() => {
                    return Ok((clean_up_to, Err(LeftOut::Unread(e.to_string()))));
                }
                // Those that no version lists are read anyway, and listed with what is said then.
                Err(e) if e.is_of_object() => continue,
                Err(e) => return Err(e),
            };
            if found != Some(part.bytes) {
                let why = LeftOut::Part {
                    part: part.name.clone(),
                    found,
                    said: part.bytes,
                };
                return Ok((clean_up_to, Err(why)));
            }
        }
        Ok((clean_up_to, Ok(meta)))
    }
}
