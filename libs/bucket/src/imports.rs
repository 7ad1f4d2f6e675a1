//! What a manifest says about blocks of other systems that were imported, and about deletions that an import must not undo.

use koios_block::BlockId;

use crate::manifest::Manifest;
use crate::tombstone::{Tombstone, TombstoneState};

/// A block of another system's whose samples were imported: it is not imported twice.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImportedBlock {
    /// The name that it has there, which is no block here.
    pub source: BlockId,
    /// How many samples came of it.
    pub samples: u64,
    /// The version that lists the last of them.
    pub version: u64,
    /// Its samples before this time were older than what was kept and were left out; none were if it does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out_before_ms: Option<i64>,
}

impl ImportedBlock {
    /// Whether nothing was left out that is kept, given since when samples are; `None` for all.
    pub fn is_whole(&self, kept_from: Option<i64>) -> bool {
        match (self.left_out_before_ms, kept_from) {
            (None, _) => true,
            (Some(before), Some(from)) => before <= from,
            (Some(_), None) => false,
        }
    }
}

impl Manifest {
    /// What is known of a block of another system that was imported.
    pub fn imported(&self, source: BlockId) -> Option<&ImportedBlock> {
        let at = self.imports.binary_search_by_key(&source, |i| i.source).ok()?;
        self.imports.get(at)
    }

    /// Notes that a block of another system was imported, once more perhaps; the commit stamps it. `left_out_before_ms` as in
    /// [`ImportedBlock`].
    pub fn note_import(&mut self, source: BlockId, samples: u64, left_out_before_ms: Option<i64>) {
        let mut noted = ImportedBlock {
            source,
            samples,
            version: 0,
            left_out_before_ms,
        };
        match self.imports.binary_search_by_key(&source, |i| i.source) {
            Ok(at) => {
                if let Some(before) = self.imports.get_mut(at) {
                    noted.samples = noted.samples.saturating_add(before.samples);
                    *before = noted;
                }
            }
            Err(at) => self.imports.insert(at, noted),
        }
    }

    /// Forgets what was imported: the tenant begins anew.
    pub fn forget_imports(&mut self) {
        self.imports.clear();
    }

    /// Whether what came while a version was the newest may not be listed any more: everything was deleted since, or something of
    /// which the manifest does not say any more what.
    pub fn has_deleted_since(&self, version: u64) -> bool {
        let of_all = |t: &&Tombstone| t.state != TombstoneState::Undone && t.deletes_everything();
        let all = self.tombstones.iter().filter(of_all).map(|t| t.version).max();
        let last = self.deletions_done.max(self.rebuilt).max(all.unwrap_or(0));
        last > version
    }

    /// Remembers the last of the deletions that `base` lists and this one does not.
    pub(crate) fn note_deletions_done(&mut self, base: &Self) {
        let counts = |t: &&Tombstone| t.state != TombstoneState::Undone;
        let done = base.tombstones.iter().filter(counts);
        let done = done.filter(|t| self.tombstone(t.id).is_none());
        let last = done.map(|t| t.version).max().unwrap_or(0);
        self.deletions_done = base.deletions_done.max(last);
    }
}
