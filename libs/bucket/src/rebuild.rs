//! A manifest from the bucket alone, for when none can be read or the newest are lost.

mod altered;
mod choice;
mod found;
mod merges;
mod summaries;

use std::collections::BTreeSet;
use std::sync::Arc;

use koios_block::BlockId;
use koios_model::TenantId;
use object_store::path::Path;

use crate::bucket::{Bucket, Created};
use crate::lost::{HINT_MAX, Hint};
use crate::manifest::{Manifest, ManifestBlock, Nonce, Writer};
use crate::{Error, Result};

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
    /// The version that members or readers ask for, which therefore was there; 0 for none.
    pub announced: u64,
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
    /// Those of the blocks to be listed that the version which can be read does not list, and that are not rid of deletions which are
    /// complete by it: nothing says any more what these deleted, so it would be there again.
    pub undeleted: Vec<BlockId>,
    /// The parts of blocks that are left out and of which everything is certainly listed: they are declared dead.
    replaced: Vec<(BlockId, Vec<String>)>,
    hint: Option<Hint>,
}

/// Why a block is not listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// It has no `meta.json`, which is sent last: mostly it is an upload that came to no end.
    #[error("its meta.json is missing")]
    NoMeta,
    /// Its `meta.json` is damaged, or of another tenant.
    #[error("its meta.json cannot be used: {0}")]
    Meta(String),
    /// A part is missing or has another size than its metadata says, which is sent after all of them. Of one that is left out no others
    /// are known to have what it held.
    #[error("{}", part_text(part, *found, *said))]
    Part {
        /// The part.
        part: String,
        /// Its size, if it is there.
        found: Option<u64>,
        /// What it should be.
        said: u64,
    },
    /// No version that can be read lists it, a part of it is missing or not what was encoded, which may be why, and others have what it
    /// held: what it was made of, what takes its place, or summaries of the same time.
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
    /// The same of one that no version that can be read lists, and so little of it is handed out that nobody can say what it holds.
    #[error(
        "nobody can say what it holds, as it cannot be read: {0}; once it can be, look again: answers are without its samples meanwhile, and \
         do not say so"
    )]
    Unknown(String),
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
    /// Whether answers may lack something without a word because a block is left out for this reason.
    pub fn may_lose(&self) -> bool {
        match self {
            Self::Meta(_) | Self::Part { .. } | Self::Unknown(_) | Self::Outweighed => true,
            // Of these others have all, or nothing was ever listed, or it was deleted.
            Self::NoMeta
            | Self::Altered { .. }
            | Self::Unread(_)
            | Self::Merged
            | Self::Remade
            | Self::Summarised
            | Self::Partial
            | Self::Dead(_) => false,
            // What these are said of is listed.
            Self::Damaged { .. } => false,
        }
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
        let is_newest =
            |m: &Arc<Manifest>| m.version >= self.evident.max(self.announced) && self.next == m.version + 1;
        self.readable.as_ref().is_some_and(is_newest)
    }

    /// Whether versions are gone that were there, so that nothing says what they did.
    pub fn has_lost_versions(&self) -> bool {
        self.evident.max(self.announced) > self.newest || self.newest == 0
    }

    /// The version that can be read, if there were later ones: deletions that were asked for since are lost with these.
    pub fn deletions_lost_after(&self) -> Option<u64> {
        let readable = self.readable.as_ref()?.version;
        let last = self.newest.max(self.evident).max(self.announced);
        (readable < last).then_some(readable)
    }

    /// Makes the version one that is not below `version`, which members or readers ask for: so it was there. If it is above the newest one
    /// it is lost, and later ones may be, of which they had not heard yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when no manifest can have come so far.
    pub fn at_least(&mut self, version: u64) -> Result<()> {
        let last = HINT_MAX - LOST_MARGIN;
        if version > last {
            return Err(Error::Refused {
                tenant: self.tenant.clone(),
                reason: format!("the last version that can be announced is {last}, {version} is beyond"),
            });
        }
        self.announced = self.announced.max(version);
        if version > self.newest {
            self.next = self.next.max(self.evident.max(version) + LOST_MARGIN);
        }
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

/// The blocks that were not listed when deletions became complete and that are clean of less: who completed these did not look at them.
fn undeleted(blocks: &[ManifestBlock], readable: Option<&Manifest>) -> Vec<BlockId> {
    let Some(known) = readable else {
        return Vec::new();
    };
    let is_undeleted =
        |b: &&ManifestBlock| b.clean_up_to < known.deletions_done && known.block(b.block).is_none();
    blocks.iter().filter(is_undeleted).map(|b| b.block).collect()
}

impl Bucket {
    /// Looks at everything a tenant has in the bucket. Lists, reads the `meta.json` of every block, and all of those that no version lists
    /// which can be read. What the storage refuses of a block is the block's fault: it is listed, and named, unless others have what it holds;
    /// where no version lists it and not even its `meta.json` is handed out, it is left out, and named.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Unread`] when a block was not handed out in several tries; both may pass. [`Error::Rejected`].
    pub async fn plan_rebuild(&self, tenant: &TenantId) -> Result<Rebuild> {
        // Before anything else: whoever commits while blocks are looked at is noticed by it.
        let hint = self.hint(tenant).await?;
        let (newest, readable) = self.newest_readable(tenant).await?;
        let found = self.look_at_blocks(tenant, readable.as_deref()).await?;
        let evident = newest.max(found.cleaned_at).max(hint.map_or(0, |h| h.version));
        let choice = self.choose(tenant, found, readable.as_deref()).await?;
        let has_blocks = !choice.blocks.is_empty() || !choice.left_out.is_empty();
        let is_lost = evident > newest || newest == 0 && has_blocks;
        let undeleted = undeleted(&choice.blocks, readable.as_deref());
        Ok(Rebuild {
            tenant: tenant.clone(),
            newest,
            evident,
            next: evident + if is_lost { LOST_MARGIN } else { 1 },
            readable,
            blocks: choice.blocks,
            left_out: choice.left_out,
            damaged: choice.damaged,
            standing_in: choice.standing_in,
            undeleted,
            replaced: choice.replaced,
            hint,
            announced: 0,
        })
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
}
