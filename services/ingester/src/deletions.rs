//! Deletions: learnt from the manifest, logged, and applied to what is held then.
//!
//! A deletion covers the batches that members held when it was made. What a head holds of them goes when the deletion's
//! record is applied, what comes of them later, by repair or from a slow sender, is left out as it is applied; all other
//! batches stay whole. A head keeps no account of which sample came with which batch. So those of its batches that the
//! deletion does not cover are read from the log once more, and what matches of them is written into the deletion's record
//! while pushes wait.
//!
//! What goes is uploaded before, as blocks that the deletion masks: taken back, it is there again.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SeriesColumns};
use koios_bucket::{Manifest, ManifestBlock, Nonce, Tombstone, TombstoneState, Writer};
use koios_head::{Head, HeldSamples, Resolved, SeriesId};
use koios_model::merge::settle_kinds;
use koios_model::{
    BatchColumns, BatchSeries, BatchSet, LabelsRef, Matchers, Metadata, PartitionId, TimeRange,
};
use koios_wal::Lsn;
use koios_wire::{Batch, BatchHeader, DeletionsReply, DeletionsRequest, ServiceError, ServiceErrorCode};
use serde::{Deserialize, Serialize};

use crate::ingester::Inner;
use crate::record::{Deleted, DeletedHead, Entry};
use crate::replica::Replica;
use crate::{Error, Result};

/// Series copied under one hold of the lock.
const PART: usize = 128;

/// What is carried on of deletions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct DeletionsCheckpoint {
    version: u64,
    through: u64,
    all: Vec<Tombstone>,
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
        }
    }

    /// Takes what a later state knew.
    pub(crate) fn restore(&mut self, c: &DeletionsCheckpoint) {
        if (c.through, c.version) <= (self.through.0, self.version) {
            return;
        }
        (self.through, self.version) = (Lsn(c.through), c.version);
        self.all.clear();
        c.all.iter().for_each(|t| drop(self.learn(t)));
    }

    /// The manifest version whose deletions what is cut now is clean of.
    pub(crate) fn clean_up_to(&self) -> u64 {
        self.version.max(self.applied)
    }

    /// Notes that a deletion was applied.
    pub(crate) fn note_applied(&mut self, tombstone: &Tombstone) {
        self.applied = self.applied.max(tombstone.version);
    }

    /// Whether a deletion is known and was not taken back.
    pub(crate) fn deletes(&self, id: Nonce) -> bool {
        self.all.iter().any(|k| k.tombstone.id == id && k.deletes())
    }

    /// Takes note of a deletion. Gives what it matches if it is new and not taken back.
    pub(crate) fn learn(&mut self, tombstone: &Tombstone) -> Option<Matchers> {
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
        self.version >= manifest.deletions_version() && self.all.len() == manifest.tombstones.len()
    }

    /// Forgets those that a manifest does not list any more, but for those that cover what is logged: a start or a peer
    /// may apply it again.
    fn forget(&mut self, manifest: &Manifest, logged: &BatchSet) {
        self.all.retain(|k| {
            let t = &k.tombstone;
            let is_listed = manifest.version < t.known_from() || manifest.tombstone(t.id).is_some();
            is_listed || k.is_in(logged)
        });
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
    ) -> Option<BatchColumns> {
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
        Some(left)
    }
}

fn have_common(a: &BatchSet, b: &BatchSet) -> bool {
    a.difference(b).len() < a.len()
}

impl Inner {
    /// Applies the deletions that a manifest lists up to a version, unless they are applied.
    pub(crate) async fn ensure_deletions(
        self: &Arc<Self>,
        replica: &Arc<Replica>,
        version: u64,
    ) -> Result<(), ServiceError> {
        if replica.state.read().deletions.version >= version {
            return Ok(());
        }
        let (this, replica) = (Arc::clone(self), Arc::clone(replica));
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A task of its own: who asks may be gone before all is uploaded, and comes again.
        self.deps.tasks.spawn_cancelled("ingester deletions", async move {
            let applied = this.catch_up_with(&replica, version).await;
            // Nobody listens when the caller went away.
            let _ = answer.send(applied.map_err(|e| this.refuse(&e)));
        });
        answered.await.unwrap_or_else(|_| {
            Err(ServiceError::unavailable(
                "the ingester is stopping: ask again later",
            ))
        })
    }

    async fn catch_up_with(&self, replica: &Replica, version: u64) -> Result<()> {
        let manifest = self.deps.manifests.at_least(&replica.key.1, version).await?;
        self.apply_deletions(replica, &manifest).await?;
        let mut state = replica.state.write();
        state.deletions.version = state.deletions.version.max(version);
        Ok(())
    }

    /// Applies the deletions of a manifest that are not applied yet.
    pub(crate) async fn apply_deletions(&self, replica: &Replica, manifest: &Manifest) -> Result<()> {
        let (partition, tenant) = &replica.key;
        let version = manifest.deletions_version();
        if replica.state.read().deletions.is_as(manifest) {
            return Ok(());
        }
        let _one_at_a_time = replica.deleting.lock().await;
        let pending = replica.state.read().deletions.pending(manifest, *partition);
        for deletion in pending {
            let head = DeletedHead {
                partition: *partition,
                tenant: tenant.clone(),
                removes: self.removes(replica, &deletion),
                deletion,
            };
            self.apply_one(replica, head).await?;
        }
        let logged = self.store.segments.lock().logged(&replica.key);
        let mut state = replica.state.write();
        state.deletions.version = state.deletions.version.max(version);
        state.deletions.forget(manifest, &logged);
        Ok(())
    }

    /// Whether a deletion deletes anything here.
    fn removes(&self, replica: &Replica, deletion: &Tombstone) -> bool {
        let state = replica.state.read();
        let covers = deletion.covers.get(&replica.key.0);
        deletion.state != TombstoneState::Undone
            && !state.deletions.deletes(deletion.id)
            && covers.is_some_and(|covers| have_common(covers, &state.held))
    }

    async fn apply_one(&self, replica: &Replica, mut head: DeletedHead) -> Result<()> {
        if head.removes && head.deletion.state == TombstoneState::Masked {
            self.back_up(replica, &head.deletion).await?;
        }
        // No batch may come between what is read of the log and the record.
        let _held = self.hold_pushes(head.partition).await;
        head.removes = self.removes(replica, &head.deletion);
        let (kept, unread) = match head.removes {
            true => self.kept(replica, &head.deletion).await?,
            false => Default::default(),
        };
        let (partition, tenant, id) = (head.partition, head.tenant.clone(), head.deletion.id);
        let (state, removes, kept_batches) = (head.deletion.state, head.removes, kept.len());
        let entry = Entry::Deleted(Box::new(Deleted {
            head,
            kept,
            replayed: false,
        }));
        self.log(entry).await?;
        if !unread.is_empty() {
            // What matched of them went with the rest: this member lacks them now, as if its log had been damaged when it started.
            let mut state = replica.state.write();
            state.held = state.held.difference(&unread);
            self.store.ledger.lock().lost(state.deletions.through);
        }
        tracing::info!(%partition, %tenant, %id, ?state, removes, kept_batches, "deletion applied");
        Ok(())
    }

    /// What matches a deletion of the batches held that it does not cover, but for what earlier ones deleted of them; and
    /// which of these batches the log does not give any more.
    async fn kept(&self, replica: &Replica, deletion: &Tombstone) -> Result<(Vec<Batch>, BatchSet)> {
        let covers = deletion.covers.get(&replica.key.0).cloned().unwrap_or_default();
        let Ok(matchers) = deletion.matchers() else {
            return Ok(Default::default());
        };
        let (later, earlier) = {
            let state = replica.state.read();
            let others = state.deletions.all.iter();
            let others = others.filter(|k| k.deletes() && k.tombstone.id != deletion.id);
            let earlier: Vec<Known> = others.cloned().collect();
            (state.held.difference(&covers), earlier)
        };
        let range = deletion.range;
        let mut kept = Vec::new();
        let unread = self
            .each_logged(&replica.key, &later, |batch| {
                let covering: Vec<&Known> = earlier.iter().filter(|k| k.covers(batch.header())).collect();
                if let Some(columns) = matching(batch.columns(), &matchers, range, &covering) {
                    kept.push(Batch::new(batch.header().clone(), columns));
                }
            })
            .await?;
        Ok((kept, unread))
    }

    /// Uploads and lists what a deletion takes from the head.
    async fn back_up(&self, replica: &Replica, deletion: &Tombstone) -> Result<()> {
        let (partition, tenant) = replica.key.clone();
        let Some(shared) = self.store.replica(partition, &tenant) else {
            return Ok(());
        };
        let Ok(matchers) = deletion.matchers() else {
            return Ok(());
        };
        let (windows, clean_up_to) = {
            let state = replica.state.read();
            let windows = state.head.windows().into_iter().map(|w| w.range);
            let windows: Vec<_> = windows.filter(|w| w.overlaps(&deletion.range)).collect();
            (windows, state.deletions.version)
        };
        let epoch = self.store.ledger.lock().adopted.get(&partition).copied();
        let epoch = epoch.unwrap_or(0);
        let mut entries = Vec::new();
        for window in windows {
            let block = BlockId::new(self.deps.runtime.clock.now_ms(), self.deps.runtime.rng.u128());
            let options = BlockOptions {
                partitions: vec![partition],
                epoch,
                clean_up_to,
                starts: true,
                ..BlockOptions::new(block, tenant.clone(), window)
            };
            let range = TimeRange::new(
                window.min.max(deletion.range.min),
                window.max.min(deletion.range.max),
            );
            let (from, matchers) = (Arc::clone(&shared), matchers.clone());
            let encoded = self
                .pools
                .long
                .run(move || encode(&from, options, &matchers, range));
            let Some(parts) = encoded.await?? else { continue };
            let bucket = self.deps.manifests.bucket();
            bucket.upload_block(&tenant, &parts).await?;
            // It does not say what it covers: not all of any batch.
            entries.push(ManifestBlock::new(&parts.meta, BTreeMap::new()));
        }
        if entries.is_empty() {
            return Ok(());
        }
        let writer = Writer::partition(&self.deps.member, partition, epoch);
        let list = |m: &mut Manifest| entries.iter().try_for_each(|entry| m.add_block(entry.clone()));
        self.deps.manifests.commit(&tenant, &writer, list).await?;
        Ok(())
    }

    pub(crate) async fn deletions(
        self: &Arc<Self>,
        request: DeletionsRequest,
    ) -> Result<DeletionsReply, ServiceError> {
        self.wal().map_err(|e| self.refuse(&e))?;
        drop(self.enter(request.partition, request.epoch).await?);
        let key = (request.partition, request.tenant);
        let replica = match request.version {
            0 => self.store.replica(key.0, &key.1),
            // Batches that it covers may still come.
            _ => Some(self.store.replica_or_new(&key)),
        };
        let Some(replica) = replica else {
            return Ok(DeletionsReply::default());
        };
        if request.with_held && !self.counts(key.0) {
            // Batches that were acknowledged may be missing in what it holds.
            let text = format!(
                "member {} does not count for reads of partition {} until it is repaired: ask others",
                self.deps.member, key.0
            );
            return Err(self.refusal(ServiceErrorCode::NotCounting, text));
        }
        self.ensure_deletions(&replica, request.version).await?;
        let logged = self.store.segments.lock().logged(&key);
        let state = replica.state.read();
        Ok(DeletionsReply {
            held: match request.with_held {
                true => state.held.clone(),
                false => BatchSet::default(),
            },
            version: state.deletions.version,
            logged_from: state.deletions.first_in(&logged),
        })
    }
}

/// The samples and exemplars of matching series in a range, with all labels, but for what `covering` deleted; `None` when there are none.
fn matching(
    columns: &BatchColumns,
    matchers: &Matchers,
    range: TimeRange,
    covering: &[&Known],
) -> Option<BatchColumns> {
    let mut out = BatchColumns::default();
    let mut histograms = columns.histograms.iter().peekable();
    let mut exemplars = columns.exemplars.iter().peekable();
    for (at, series) in columns.series().enumerate() {
        let BatchSeries {
            hash,
            labels,
            timestamps,
            values,
            starts,
            ..
        } = series;
        let of_series = |place: u32| place as usize == at;
        let mut histograms_here = Vec::new();
        while let Some(h) = histograms.next_if(|h| of_series(h.series)) {
            histograms_here.push(h);
        }
        let mut exemplars_here = Vec::new();
        while let Some(e) = exemplars.next_if(|e| of_series(e.series)) {
            exemplars_here.push(e);
        }
        let Some(labels) = labels.filter(|labels| matchers.matches(*labels)) else {
            continue;
        };
        let of_series = covering.iter().filter(|k| k.matchers.matches(labels));
        let deleted: Vec<TimeRange> = of_series.map(|k| k.tombstone.range).collect();
        let stays = |t: i64| range.contains(t) && deleted.iter().all(|r| !r.contains(t));
        histograms_here.retain(|h| stays(h.t));
        exemplars_here.retain(|e| stays(e.exemplar.t));
        let is_there = timestamps.iter().any(|t| stays(*t)) || !histograms_here.is_empty();
        if !is_there && exemplars_here.is_empty() {
            continue;
        }
        out.push_series(hash, labels);
        for (i, (&t, &v)) in timestamps.iter().zip(values).enumerate() {
            if stays(t) {
                out.push_sample(t, v);
                out.set_last_start(starts.get(i).copied().unwrap_or(0));
            }
        }
        for h in histograms_here {
            out.push_started_histogram(h.t, h.start, h.histogram.clone());
        }
        for e in exemplars_here {
            out.push_exemplar(e.exemplar.clone());
        }
    }
    (out.series_count() > 0).then_some(out)
}

/// A block of what a head has of matching series in a range, which lies within the block's window; `None` when it has
/// nothing.
fn encode(
    replica: &Replica,
    options: BlockOptions,
    matchers: &Matchers,
    range: TimeRange,
) -> Result<Option<BlockParts>> {
    let (partition, tenant) = &replica.key;
    let refused = |source| Error::Block {
        tenant: tenant.clone(),
        partition: *partition,
        source,
    };
    let damaged = |source| Error::Head {
        tenant: tenant.clone(),
        partition: *partition,
        source,
    };
    let mut writer = BlockWriter::new(options).map_err(refused)?;
    let (ids, exemplars, metadata) = {
        let head = &replica.state.read().head;
        let metadata = head.metadata().map(|(name, _, m)| (name.to_owned(), m.clone()));
        let metadata: BTreeMap<String, Metadata> = metadata.collect();
        (
            head.select(matchers, range),
            head.exemplars(matchers, range),
            metadata,
        )
    };
    for part in ids.chunks(PART) {
        let copied = {
            let head = &replica.state.read().head;
            let copy = |id: &SeriesId| Some((head.labels(*id)?, head.held_samples(*id, range)));
            part.iter().filter_map(copy).collect::<Vec<_>>()
        };
        for (labels, held) in copied {
            let HeldSamples {
                mut samples,
                mut histograms,
                starts,
            } = held.map_err(damaged)?;
            settle_kinds(&mut samples, &mut histograms);
            let timestamps: Vec<i64> = samples.iter().map(|s| s.t).collect();
            let values: Vec<f64> = samples.iter().map(|s| s.v).collect();
            let columns = SeriesColumns {
                timestamps: &timestamps,
                values: &values,
                histograms: &histograms,
                starts: &starts,
            };
            if !timestamps.is_empty() || !histograms.is_empty() {
                let metadata = metadata.get(labels.metric_name());
                writer.push_columns(&labels, metadata, columns).map_err(refused)?;
            }
        }
    }
    if writer.series_count() == 0 {
        return Ok(None);
    }
    for (labels, exemplars) in &exemplars {
        writer.push_exemplars(labels, exemplars).map_err(refused)?;
    }
    writer.finish().map_err(refused)
}
