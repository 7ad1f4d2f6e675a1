//! Deletions: learnt from the manifest, logged, and applied to what is held then.
//!
//! A deletion covers the batches that members held when it was made. What a head holds of them goes when the deletion's
//! record is applied, what comes of them later, by repair or from a slow sender, is left out as it is applied; all other
//! batches stay whole. A head keeps no account of which sample came with which batch. So those of its batches that the
//! deletion does not cover are read from the log once more, and what matches of them is written into the deletion's record
//! while pushes wait.
//!
//! What goes is uploaded before, as blocks that the deletion masks: taken back, it is there again. What is left out is uploaded later: until
//! then the log keeps it.

mod applying;
mod backup;
mod keeping;
mod late;

use koios_bucket::{Manifest, Nonce, Tombstone, TombstoneState};
use koios_head::{Head, Resolved, deletes_metric};
use koios_model::{BatchColumns, BatchSet, LabelsRef, Matchers, PartitionId, TimeRange};
use koios_wal::Lsn;
use koios_wire::BatchHeader;
use serde::{Deserialize, Serialize};

/// What is carried on of deletions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DeletionsCheckpoint {
    version: u64,
    through: u64,
    all: Vec<Tombstone>,
    /// As in [`Deletions`]. Versions before 2026-11-24 neither write nor read it.
    #[serde(default, skip_serializing_if = "BatchSet::is_empty")]
    late: BatchSet,
    /// The same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    begun: Vec<Tombstone>,
}

/// The deletions that a replica knows.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    /// All that manifests list up to this version are applied.
    pub(crate) version: u64,
    /// Those logged up to here are applied.
    pub(crate) through: Lsn,
    /// The newest that is applied: those of a manifest are, in the order of their versions.
    applied: u64,
    all: Vec<Known>,
    /// Those of which parts are applied, and the last one is not: a crash, or a log that failed, came between. They are not known.
    begun: Vec<Tombstone>,
    /// Batches of which deletions that may be taken back took what is in no block, but in the log: they came on their way.
    pub(crate) late: BatchSet,
}

/// What deletions leave of a batch.
pub(crate) struct Left {
    pub(crate) columns: BatchColumns,
    /// Something was left out that a deletion that is taken back brings again.
    pub(crate) may_return: bool,
}

#[derive(Clone, Debug)]
struct Known {
    tombstone: Tombstone,
    matchers: Matchers,
}

impl Known {
    fn deletes(&self) -> bool {
        self.tombstone.state != TombstoneState::Undone
    }

    fn is_masked(&self) -> bool {
        self.tombstone.state == TombstoneState::Masked
    }

    fn covers(&self, header: &BatchHeader) -> bool {
        let of_partition = self.tombstone.covers.get(&header.partition);
        of_partition.is_some_and(|batches| batches.contains(header.stream, header.sequence))
    }

    fn is_in(&self, logged: &BatchSet) -> bool {
        let mut covers = self.tombstone.covers.values();
        covers.any(|c| have_common(c, logged))
    }
}

impl Deletions {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn checkpoint(&self) -> DeletionsCheckpoint {
        DeletionsCheckpoint {
            version: self.version,
            through: self.through.0,
            all: self.all.iter().map(|k| k.tombstone.clone()).collect(),
            late: self.late.clone(),
            begun: self.begun.clone(),
        }
    }

    /// Takes what a later state knew.
    pub(crate) fn restore(&mut self, c: &DeletionsCheckpoint) {
        // What is taken off is so by a record, each of which raises this position.
        if c.through >= self.through.0 {
            self.late.union_with(&c.late);
        }
        if (c.through, c.version) <= (self.through.0, self.version) {
            return;
        }
        (self.through, self.version) = (Lsn(c.through), c.version);
        self.all.clear();
        c.all.iter().for_each(|t| drop(self.learn(t)));
        self.begun.clone_from(&c.begun);
    }

    /// The manifest version whose deletions what is cut now is clean of.
    pub(crate) fn clean_up_to(&self) -> u64 {
        self.version.max(self.applied)
    }

    /// The version that last changed any of those that are known.
    pub(crate) fn newest(&self) -> u64 {
        self.all
            .iter()
            .map(|k| k.tombstone.known_from())
            .max()
            .unwrap_or(0)
    }

    /// Notes that a deletion was applied, and with it all that manifests list up to a version.
    pub(crate) fn note_applied(&mut self, tombstone: &Tombstone, applied_up_to: u64) {
        self.applied = self.applied.max(tombstone.version);
        self.version = self.version.max(applied_up_to);
    }

    /// Whether a deletion is known and was not taken back.
    pub(crate) fn deletes(&self, id: Nonce) -> bool {
        self.all.iter().any(|k| k.tombstone.id == id && k.deletes())
    }

    /// Takes note that a part of a deletion is applied.
    pub(crate) fn begin(&mut self, tombstone: &Tombstone) {
        self.begun.retain(|t| t.id != tombstone.id);
        self.begun.push(tombstone.clone());
    }

    /// Whether a deletion has deleted anything that comes back when it is taken back.
    pub(crate) fn has_deleted(&self, id: Nonce) -> bool {
        self.deletes(id) || self.begun.iter().any(|t| t.id == id)
    }

    /// Takes note of a deletion. Gives what it matches if it is new and not taken back.
    pub(crate) fn learn(&mut self, tombstone: &Tombstone) -> Option<Matchers> {
        self.begun.retain(|t| t.id != tombstone.id);
        if let Some(known) = self.all.iter_mut().find(|k| k.tombstone.id == tombstone.id) {
            known.tombstone = tombstone.clone();
            return None;
        }
        // Whoever made it has compiled it.
        let matchers = tombstone.matchers().ok()?;
        self.all.push(Known {
            tombstone: tombstone.clone(),
            matchers: matchers.clone(),
        });
        (tombstone.state != TombstoneState::Undone).then_some(matchers)
    }

    /// Whether a deletion is known, whatever became of it, or has to be taken back.
    fn has_news_of(&self, tombstone: &Tombstone) -> bool {
        let is_known = self.all.iter().any(|k| k.tombstone.id == tombstone.id);
        is_known || (tombstone.state == TombstoneState::Undone && self.has_deleted(tombstone.id))
    }

    /// The batches that deletions cover which may be taken back.
    fn returnable(&self) -> BatchSet {
        let mut all = BatchSet::default();
        let masked = self.all.iter().filter(|k| k.is_masked());
        masked
            .flat_map(|k| k.tombstone.covers.values())
            .for_each(|covers| all.union_with(covers));
        all
    }

    /// The batches that deletions cover of which only parts are applied.
    fn covered_by_begun(&self) -> BatchSet {
        let mut all = BatchSet::default();
        let covers = self.begun.iter().flat_map(|t| t.covers.values());
        covers.for_each(|covers| all.union_with(covers));
        all
    }

    /// Forgets late batches that no deletion covers any more which may be taken back.
    pub(crate) fn settle_late(&mut self) {
        if !self.late.is_empty() {
            let mut returnable = self.returnable();
            returnable.union_with(&self.covered_by_begun());
            self.late = common(&self.late, &returnable);
        }
    }

    /// Those of a manifest that are new, or news of those that are known, the first first.
    fn pending(&self, manifest: &Manifest, partition: PartitionId) -> Vec<Tombstone> {
        let is_news = |t: &&Tombstone| {
            let known = self.all.iter().find(|k| k.tombstone.id == t.id);
            known.is_none_or(|k| k.tombstone.known_from() < t.known_from())
        };
        let mut pending: Vec<Tombstone> = manifest.tombstones.iter().filter(is_news).cloned().collect();
        for t in &mut pending {
            t.covers.retain(|p, _| *p == partition);
        }
        pending.sort_by_key(|t| t.version);
        pending
    }

    /// Whether a manifest has no news.
    fn is_as(&self, manifest: &Manifest) -> bool {
        let has_no_news = self.version >= manifest.deletions_version() && self.begun.is_empty();
        has_no_news && self.all.len() == manifest.tombstones.len()
    }

    /// Forgets those that a manifest does not list any more, but for those that cover what is logged: a start or a peer
    /// may apply it again. None of them can be taken back.
    fn forget(&mut self, manifest: &Manifest, logged: &BatchSet) {
        self.all.retain_mut(|k| {
            let t = &mut k.tombstone;
            let is_listed = manifest.version < t.known_from() || manifest.tombstone(t.id).is_some();
            if !is_listed && t.state == TombstoneState::Masked {
                // While this member was none of the partition, so that nobody waited for it.
                t.state = TombstoneState::Final;
            }
            is_listed || k.is_in(logged)
        });
        self.begun
            .retain(|t| manifest.version < t.known_from() || manifest.tombstone(t.id).is_some());
        self.settle_late();
    }

    /// The version of the first that covers any of some batches.
    fn first_in(&self, logged: &BatchSet) -> u64 {
        let covering = self.all.iter().filter(|k| k.deletes() && k.is_in(logged));
        covering.map(|k| k.tombstone.version).min().unwrap_or(0)
    }

    /// What is left of a batch; `None` when all is.
    pub(crate) fn left_of(
        &self,
        header: &BatchHeader,
        columns: &BatchColumns,
        head: &Head,
        resolved: &Resolved,
    ) -> Option<Left> {
        let covering: Vec<&Known> = self
            .all
            .iter()
            .filter(|k| k.deletes() && k.covers(header))
            .collect();
        if covering.is_empty() {
            return None;
        }
        let mut packed = Vec::new();
        let mut deleted: Vec<Vec<TimeRange>> = Vec::with_capacity(columns.series_count());
        for (at, series) in columns.series().enumerate() {
            packed.clear();
            match (series.labels, resolved.place_of(at)) {
                (Some(labels), _) => packed.extend_from_slice(labels.packed()),
                (None, Some(place)) => head.write_labels_at(place, &mut packed),
                (None, None) => {}
            }
            let labels = LabelsRef::from_trusted(&packed);
            let of_series = covering.iter().filter(|k| k.matchers.matches(labels));
            deleted.push(of_series.map(|k| k.tombstone.range).collect());
        }
        let stays = |series: usize, t: i64| {
            let ranges = deleted.get(series).map_or(&[][..], Vec::as_slice);
            ranges.iter().all(|r| !r.contains(t))
        };
        let mut left = columns.clone();
        left.histograms.retain(|h| stays(h.series as usize, h.t));
        left.exemplars.retain(|e| stays(e.series as usize, e.exemplar.t));
        left.metadata.retain(|(metric, m)| {
            let deletes = |k: &&Known| {
                let is_before = header.admission_ms <= k.tombstone.range.max;
                is_before && deletes_metric(&k.matchers, metric, &m.kind)
            };
            !covering.iter().any(deletes)
        });
        let (mut counts, mut times, mut values, mut starts) = (vec![], vec![], vec![], vec![]);
        for (at, series) in columns.series().enumerate() {
            let before = times.len();
            for (i, (&t, &v)) in series.timestamps.iter().zip(series.values).enumerate() {
                if stays(at, t) {
                    times.push(t);
                    values.push(v);
                    starts.push(series.starts.get(i).copied().unwrap_or(0));
                }
            }
            counts.push((times.len() - before) as u32);
        }
        if starts.iter().all(|start| *start == 0) {
            starts.clear();
        }
        (left.sample_counts, left.timestamps, left.values, left.starts) = (counts, times, values, starts);
        let is_less =
            left.sample_count() < columns.sample_count() || left.exemplars.len() < columns.exemplars.len();
        Some(Left {
            columns: left,
            may_return: is_less && covering.iter().any(|k| k.is_masked()),
        })
    }
}

/// The batches that are in both.
pub(crate) fn common(a: &BatchSet, b: &BatchSet) -> BatchSet {
    a.difference(&a.difference(b))
}

/// Whether a batch is in both.
pub(crate) fn have_common(a: &BatchSet, b: &BatchSet) -> bool {
    a.difference(b).len() < a.len()
}
