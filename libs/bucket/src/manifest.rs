//! The manifest: the list of a tenant's live blocks, one immutable object per version.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use koios_block::{BlockId, BlockMeta, META_PART, PartSummary};
use koios_model::{BatchSet, PartitionId, TenantId, TimeRange};

use crate::imports::ImportedBlock;
use crate::retention::RetentionRecord;
use crate::tombstone::{CHANGED, Tombstone, TombstoneState};
use crate::{Error, Result};

/// The newest manifest format that this crate reads.
pub const MANIFEST_FORMAT: u32 = FORMAT_RETENTION;
/// The format of manifests whose blocks are all as cut.
const FORMAT_AS_CUT: u32 = 1;
/// The format of manifests with blocks that say per window what they cover: older readers would take them for covering
/// more than they do.
const FORMAT_WINDOWS: u32 = 2;
/// The format of manifests with deletions: older readers would not mask what they delete.
const FORMAT_DELETIONS: u32 = 3;
/// The format of manifests of which readers leave out what is older than its retention: older readers would not.
const FORMAT_RETENTION: u32 = 4;

/// Random bits that tell one commit from another, so that a writer whose answer was lost recognises its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(pub u128);

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        u128::from_str_radix(&s, 16)
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// Who commits: a process that owns a resource under an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The process, for people.
    pub name: String,
    /// What it owns: `partition/<n>` for an ingester that cuts blocks, `compaction` for a compactor.
    pub resource: String,
    /// The epoch under which it owns it.
    pub epoch: u64,
}

impl Writer {
    /// The writer of a partition's blocks.
    pub fn partition(name: impl Into<String>, partition: PartitionId, epoch: u64) -> Self {
        Self {
            name: name.into(),
            resource: format!("partition/{partition}"),
            epoch,
        }
    }

    /// Whoever imports blocks of another system. Any number of processes may: nobody owns it.
    pub fn import(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            resource: "import".to_owned(),
            epoch: 0,
        }
    }

    /// An operator who repairs a manifest: rebuilds one that cannot be read, or says which blocks nobody needs.
    pub fn rebuild(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            resource: "rebuild".to_owned(),
            epoch: 0,
        }
    }

    /// The compactor of a tenant.
    pub fn compaction(name: impl Into<String>, epoch: u64) -> Self {
        Self {
            name: name.into(),
            resource: "compaction".to_owned(),
            epoch,
        }
    }
}

/// What a merged block holds of the window of one of its sources.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Coverage {
    /// The window.
    pub window: TimeRange,
    /// The batches whose samples of this window listed blocks hold, per partition.
    pub covers: BTreeMap<PartitionId, BatchSet>,
}

/// A live block.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ManifestBlock {
    /// The block.
    pub block: BlockId,
    /// The partitions whose samples it holds.
    pub partitions: Vec<PartitionId>,
    /// The epoch its writer had.
    pub epoch: u64,
    /// Times of the first and the last sample or exemplar.
    pub range: TimeRange,
    /// The window it was cut or compacted for.
    pub window: TimeRange,
    /// 0 for samples as sent, else how much time a summary is of, milliseconds.
    pub resolution_ms: i64,
    /// 0 as cut from a head.
    pub level: u32,
    /// Which slice of the series, `(index, of)`.
    pub split: (u32, u32),
    /// How many series.
    pub series: u64,
    /// How many samples.
    pub samples: u64,
    /// The batches that it has samples of, per partition. With a block as cut, listed blocks hold all their samples of its
    /// window: a head that holds no other may forget them. Of a merged block `windows` says that.
    pub covers: BTreeMap<PartitionId, BatchSet>,
    /// Of a merged block, per window of its sources: what they covered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Coverage>,
    /// The blocks it replaced. Of a downsampled block the live ones that it summarises; none when their samples are no longer
    /// kept.
    pub sources: Vec<BlockId>,
    /// Tombstones made at this manifest version or before are applied in it.
    pub clean_up_to: u64,
    /// Classes of series ([`RetentionRecord::classes`]) that it is known to have none of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lacks: Vec<u64>,
    /// Its parts, `meta.json` included.
    pub parts: Vec<PartSummary>,
}

impl ManifestBlock {
    /// The entry of a block and the batches it covers.
    pub fn new(meta: &BlockMeta, covers: BTreeMap<PartitionId, BatchSet>) -> Self {
        Self {
            block: meta.block,
            partitions: meta.partitions.clone(),
            epoch: meta.epoch,
            range: meta.range,
            window: meta.window,
            resolution_ms: meta.resolution_ms,
            level: meta.level,
            split: meta.split,
            series: meta.series,
            samples: meta.samples,
            covers,
            windows: Vec::new(),
            sources: meta.sources.clone(),
            clean_up_to: meta.clean_up_to,
            lacks: Vec::new(),
            parts: meta.summaries(),
        }
    }

    /// The entry of a block merged from `sources`: it covers what they did, or does not say if one of them does not.
    pub fn merged<'a>(meta: &BlockMeta, sources: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all: BTreeMap<PartitionId, BatchSet> = BTreeMap::new();
        let mut windows: BTreeMap<(i64, i64), BTreeMap<PartitionId, BatchSet>> = BTreeMap::new();
        // A part of the batches would pass for all of them, and readers would leave the block out that hold these.
        let mut is_told = true;
        for source in sources {
            is_told &= !source.covers.is_empty();
            unite(&mut all, &source.covers);
            for (window, covers) in source.coverage() {
                unite(windows.entry((window.min, window.max)).or_default(), covers);
            }
        }
        if !is_told {
            all.clear();
        }
        let windows = windows.into_iter().map(|((min, max), covers)| Coverage {
            window: TimeRange::new(min, max),
            covers,
        });
        Self {
            windows: windows.collect(),
            ..Self::new(meta, all)
        }
    }

    /// Per window: the batches whose samples of it listed blocks hold.
    fn coverage(&self) -> impl Iterator<Item = (TimeRange, &BTreeMap<PartitionId, BatchSet>)> {
        let as_cut = self.windows.is_empty().then_some((self.window, &self.covers));
        let merged = self.windows.iter().map(|c| (c.window, &c.covers));
        as_cut.into_iter().chain(merged)
    }

    /// The same, covering only batches of which no deletion masks more than it should.
    fn narrowed(&self, masking: &[&Tombstone]) -> Self {
        let mut masked = self.clone();
        if !masking.is_empty() {
            let coverage = self.coverage().map(|(window, covers)| Coverage {
                window,
                covers: narrowed(covers, masking),
            });
            masked.windows = coverage.collect();
        }
        masked
    }

    /// Whether these are the bytes of `meta.json` as they were listed.
    pub(crate) fn lists_meta(&self, json: &[u8]) -> bool {
        let listed = self.parts.iter().find(|p| p.name == META_PART);
        listed.is_some_and(|l| l.bytes == json.len() as u64 && l.crc32c == crc32c::crc32c(json))
    }

    /// Size of all parts in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }
}

/// Of the batches that a block covers those of which no deletion masks more than it should.
fn narrowed(
    covers: &BTreeMap<PartitionId, BatchSet>,
    masking: &[&Tombstone],
) -> BTreeMap<PartitionId, BatchSet> {
    let mut covers = covers.clone();
    for tombstone in masking {
        for (partition, set) in &mut covers {
            let later = tombstone
                .covers
                .get(partition)
                .map(|before| set.difference(before));
            *set = later.map_or_else(BatchSet::default, |later| set.difference(&later));
        }
    }
    covers
}

fn unite(all: &mut BTreeMap<PartitionId, BatchSet>, more: &BTreeMap<PartitionId, BatchSet>) {
    for (&partition, set) in more {
        all.entry(partition).or_default().union_with(set);
    }
}

/// A block that is no longer live: its name never is again.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeadBlock {
    /// The block.
    pub block: BlockId,
    /// The version that declared it dead.
    pub version: u64,
    /// When, by the committing process's clock, milliseconds; bytes may go a grace after it.
    pub at_ms: i64,
    /// The parts whose bytes are to be deleted; empty once they are.
    pub parts: Vec<String>,
}

/// One version of a tenant's manifest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manifest {
    /// Format version.
    pub format: u32,
    /// The tenant.
    pub tenant: TenantId,
    /// 0 for a tenant that has none yet, else counted from 1 without a gap.
    pub version: u64,
    /// The process that committed it.
    pub writer: String,
    /// Tells this commit from any other.
    pub nonce: Nonce,
    /// When, by the writer's clock, milliseconds; for people only.
    pub committed_ms: i64,
    /// The highest epoch seen of each resource (I14).
    pub epochs: BTreeMap<String, u64>,
    /// The live blocks, ascending by name.
    pub blocks: Vec<ManifestBlock>,
    /// Names that are dead.
    pub dead: Vec<DeadBlock>,
    /// Deletions not yet applied everywhere.
    pub tombstones: Vec<Tombstone>,
    /// What was imported, ascending by name. Older versions of the program forget it, which makes a repeated import cost bytes
    /// until it is merged, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub imports: Vec<ImportedBlock>,
    /// How long samples are kept, where it was noted. Older versions of the program forget it where nothing is masked by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionRecord>,
    /// The last version that was made from the bucket because those before it could not be read; 0 for none. What they said of
    /// deletions and of age is not known to it. Older versions of the program forget it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rebuilt: u64,
    /// When its first version, or that which was made anew from the bucket, was committed, by the writer's clock, milliseconds; 0 when
    /// that is not known. Of blocks that were uploaded before, and that it does not list, it cannot say that they never were listed.
    /// Older versions of the program forget it.
    #[serde(default, skip_serializing_if = "is_never")]
    pub begun_ms: i64,
    /// The last version that first listed a deletion which is complete and listed no more; 0 for none. Older versions of the program
    /// forget it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub deletions_done: u64,
}

fn is_never(ms: &i64) -> bool {
    *ms == 0
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Manifest {
    /// The tombstones to apply when a block is read.
    pub fn masking<'a>(&'a self, block: &'a ManifestBlock) -> impl Iterator<Item = &'a Tombstone> + 'a {
        self.tombstones.iter().filter(|t| t.masks(block))
    }

    /// The deletion called `id`.
    pub fn tombstone(&self, id: Nonce) -> Option<&Tombstone> {
        self.tombstones.iter().find(|t| t.id == id)
    }

    /// Takes a deletion to another state; the commit stamps the version. False when there is none such.
    pub fn set_tombstone_state(&mut self, id: Nonce, state: TombstoneState) -> bool {
        let Some(t) = self.tombstones.iter_mut().find(|t| t.id == id) else {
            return false;
        };
        if t.state != state {
            (t.state, t.changed) = (state, CHANGED);
        }
        true
    }

    /// The version of the last deletion or change of one.
    pub fn deletions_version(&self) -> u64 {
        self.tombstones
            .iter()
            .map(Tombstone::known_from)
            .max()
            .unwrap_or(0)
    }

    /// A block as merges take it: a tombstone that masks some of its samples also masks those of batches that came after the
    /// deletion, which their heads cut once more. The listed block does not hold these, so it covers only what the
    /// deletion does.
    pub fn as_masked(&self, block: &ManifestBlock) -> ManifestBlock {
        block.narrowed(&self.masking(block).collect::<Vec<_>>())
    }

    /// Notes that deletions up to a version, in state [`TombstoneState::Final`], delete nothing of a block that they mask: it is clean of
    /// them as it is. Later ones mask it still, and may be taken back: they narrow what it covers only as long as they do.
    pub fn note_clean(&mut self, block: BlockId, up_to: u64) {
        let Ok(at) = self.blocks.binary_search_by_key(&block, |b| b.block) else {
            return;
        };
        if let Some(listed) = self.blocks.get(at).filter(|b| b.clean_up_to < up_to) {
            let noted = self.masking(listed).filter(|t| t.version <= up_to);
            let mut clean = listed.narrowed(&noted.collect::<Vec<_>>());
            clean.clean_up_to = up_to;
            self.blocks[at] = clean;
        }
    }

    /// What a tenant without a manifest has.
    pub fn empty(tenant: TenantId) -> Self {
        Self {
            format: FORMAT_AS_CUT,
            tenant,
            version: 0,
            writer: String::new(),
            nonce: Nonce(0),
            committed_ms: 0,
            epochs: BTreeMap::new(),
            blocks: Vec::new(),
            dead: Vec::new(),
            tombstones: Vec::new(),
            imports: Vec::new(),
            rebuilt: 0,
            begun_ms: 0,
            deletions_done: 0,
            retention: None,
        }
    }

    /// The live block called `block`.
    pub fn block(&self, block: BlockId) -> Option<&ManifestBlock> {
        let at = self.blocks.binary_search_by_key(&block, |b| b.block).ok()?;
        self.blocks.get(at)
    }

    /// Whether a name is dead.
    pub fn is_dead(&self, block: BlockId) -> bool {
        self.dead.iter().any(|d| d.block == block)
    }

    /// The live blocks that have samples in a range.
    pub fn overlapping(&self, range: TimeRange) -> impl Iterator<Item = &ManifestBlock> + '_ {
        self.blocks.iter().filter(move |b| b.range.overlaps(&range))
    }

    /// The union of the batch sets that blocks of a partition cover for a window.
    pub fn covered(&self, partition: PartitionId, window: TimeRange) -> BatchSet {
        let mut all = BatchSet::default();
        let whole = |found: &TimeRange| found.min <= window.min && found.max >= window.max;
        for block in &self.blocks {
            for (_, covers) in block.coverage().filter(|(found, _)| whole(found)) {
                let Some(set) = covers.get(&partition) else {
                    continue;
                };
                if self.masking(block).next().is_none() {
                    all.union_with(set);
                    continue;
                }
                let masking: Vec<&Tombstone> = self.masking(block).collect();
                let narrowed = narrowed(&BTreeMap::from([(partition, set.clone())]), &masking);
                narrowed.values().for_each(|set| all.union_with(set));
            }
        }
        all
    }

    /// Forgets what blocks cover whose window ended before a time. Members that still hold such samples uncut upload them once
    /// more, which merges take for what they are.
    pub fn forget_coverage(&mut self, before_ms: i64) {
        for block in self.blocks.iter_mut().filter(|b| b.window.max < before_ms) {
            block.covers.clear();
            block.windows.clear();
        }
    }

    /// Lists a block; one that is listed already stays as it is, so that a repeated change does nothing.
    ///
    /// # Errors
    /// [`Error::DeadBlock`] when the name is dead.
    pub fn add_block(&mut self, block: ManifestBlock) -> Result<()> {
        if self.is_dead(block.block) {
            return Err(Error::DeadBlock {
                tenant: self.tenant.clone(),
                block: block.block,
            });
        }
        if let Err(at) = self.blocks.binary_search_by_key(&block.block, |b| b.block) {
            self.blocks.insert(at, block);
        }
        Ok(())
    }

    /// Declares a live block dead; the commit stamps it. False when it was not listed.
    pub fn remove_block(&mut self, block: BlockId) -> bool {
        let Some(at) = self.blocks.iter().position(|b| b.block == block) else {
            return false;
        };
        let gone = self.blocks.remove(at);
        self.dead.push(DeadBlock {
            block,
            version: 0,
            at_ms: 0,
            parts: gone.parts.into_iter().map(|p| p.name).collect(),
        });
        true
    }

    /// Notes that blocks were merged into others: what summarises all of the former summarises the latter.
    pub fn note_merged(&mut self, inputs: &[BlockId], outputs: &[BlockId]) {
        for block in self.blocks.iter_mut().filter(|b| b.resolution_ms != 0) {
            if !inputs.is_empty() && inputs.iter().all(|i| block.sources.contains(i)) {
                block.sources.retain(|s| !inputs.contains(s));
                block.sources.extend_from_slice(outputs);
                block.sources.sort_unstable();
            }
        }
    }

    /// Notes that the samples which downsampled blocks summarise go because of their age: these blocks are all that is left
    /// of them.
    pub fn stand_in(&mut self, blocks: &[BlockId]) {
        for block in self.blocks.iter_mut().filter(|b| blocks.contains(&b.block)) {
            block.sources.clear();
        }
    }

    /// Declares a block dead whose upload was never listed, so that nobody can list it any more. Of one that is dead already
    /// and whose bytes were deleted, parts came since: they are to be deleted, too.
    pub fn bury(&mut self, block: BlockId, parts: Vec<String>) {
        if self.remove_block(block) {
            return;
        }
        match self.dead.iter_mut().find(|d| d.block == block) {
            Some(dead) if dead.parts.is_empty() => dead.parts = parts,
            Some(_) => {}
            None => self.dead.push(DeadBlock {
                block,
                version: 0,
                at_ms: 0,
                parts,
            }),
        }
    }

    /// Declares a block dead whose upload came to nothing, as far as who sent it knows: if it is listed after all it stays.
    pub fn bury_upload(&mut self, block: BlockId, parts: &[PartSummary]) {
        if self.block(block).is_none() {
            self.bury(block, parts.iter().map(|part| part.name.clone()).collect());
        }
    }

    /// Adds a deletion; the commit stamps its version.
    pub fn add_tombstone(&mut self, mut tombstone: Tombstone) {
        if self.tombstones.iter().all(|t| t.id != tombstone.id) {
            tombstone.version = 0;
            self.tombstones.push(tombstone);
        }
    }

    /// Makes `self`, a changed copy of `base`, the version after it.
    pub(crate) fn seal(&mut self, base: &Self, writer: &Writer, nonce: Nonce, now_ms: i64) -> Result<()> {
        let refused = |reason: String| Error::Refused {
            tenant: base.tenant.clone(),
            reason,
        };
        let live: BTreeSet<BlockId> = self.blocks.iter().map(|b| b.block).collect();
        let dead: BTreeSet<BlockId> = self.dead.iter().map(|d| d.block).collect();
        if live.len() != self.blocks.len() {
            return Err(refused("a block is listed twice".to_owned()));
        }
        if let Some(lost) = base
            .blocks
            .iter()
            .find(|b| !live.contains(&b.block) && !dead.contains(&b.block))
        {
            return Err(refused(format!(
                "block {} is unlisted but not declared dead",
                lost.block
            )));
        }
        if let Some(&block) = live.iter().find(|b| dead.contains(b) || base.is_dead(**b)) {
            return Err(Error::DeadBlock {
                tenant: base.tenant.clone(),
                block,
            });
        }
        self.blocks.sort_unstable_by_key(|b| b.block);
        let merged = self.blocks.iter().any(|b| !b.windows.is_empty());
        let masks = self.retention.as_ref().is_some_and(|r| r.policy.masks());
        self.format = match (masks, self.tombstones.is_empty(), merged) {
            (true, _, _) => FORMAT_RETENTION,
            (false, false, _) => FORMAT_DELETIONS,
            (false, true, true) => FORMAT_WINDOWS,
            (false, true, false) => FORMAT_AS_CUT,
        };
        self.tenant = base.tenant.clone();
        self.version = base.version + 1;
        self.writer = writer.name.clone();
        self.nonce = nonce;
        self.committed_ms = now_ms;
        if base.version == 0 || self.rebuilt == self.version {
            self.begun_ms = now_ms;
        }
        self.epochs = base.epochs.clone();
        self.epochs.insert(writer.resource.clone(), writer.epoch);
        self.note_deletions_done(base);
        for d in self.dead.iter_mut().filter(|d| d.version == 0) {
            d.version = base.version + 1;
            d.at_ms = now_ms;
        }
        for t in self.tombstones.iter_mut() {
            if t.version == 0 {
                t.version = base.version + 1;
            }
            if t.changed == CHANGED {
                t.changed = base.version + 1;
            }
        }
        for i in self.imports.iter_mut().filter(|i| i.version == 0) {
            i.version = base.version + 1;
        }
        if let Some(record) = &mut self.retention {
            record.stamp(base.retention.as_ref(), base.version + 1);
        }
        Ok(())
    }

    /// Refuses a writer whose epoch was overtaken.
    pub(crate) fn check_epoch(&self, writer: &Writer) -> Result<()> {
        match self.epochs.get(&writer.resource) {
            Some(&found) if found > writer.epoch => Err(Error::Fenced {
                tenant: self.tenant.clone(),
                resource: writer.resource.clone(),
                epoch: writer.epoch,
                found,
            }),
            _ => Ok(()),
        }
    }
}
