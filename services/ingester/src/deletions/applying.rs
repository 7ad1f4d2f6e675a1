//! Learns deletions from manifests and applies them to what is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SeriesColumns};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Tombstone, TombstoneState, Writer};
use koios_head::{HeldSamples, SeriesId};
use koios_model::merge::settle_kinds;
use koios_model::{BatchSet, Matchers, Metadata, TimeRange};
use koios_wire::{Batch, DeletionsReply, DeletionsRequest, ServiceError, ServiceErrorCode};

use super::keeping::{Line, parts_of};
use crate::ingester::Inner;
use crate::record::{Deleted, DeletedHead, Entry, Part};
use crate::replica::Replica;
use crate::stored_otherwise::{BACKUP_PAUSES, Sent};
use crate::{Error, Result};

/// Series copied under one hold of the lock.
const PART: usize = 128;
/// Deletions for which the log is read once: what is kept for all of them is in memory at a time.
const AT_ONCE: usize = 64;
/// How often the log is read while pushes go on: first all that is wanted of it, which takes long, then what came meanwhile.
/// What came during the last time is read while they wait.
const READS_AHEAD: usize = 2;

/// What deletions leave of the batches that they don't cover, as far as the log is read.
struct Keeping {
    line: Line,
    /// Per deletion: whether it removes anything here.
    removes: Vec<bool>,
    /// Per deletion that does: what matches it, but for what earlier ones delete of that.
    kept: Vec<Vec<Batch>>,
    /// The batches that were looked for in the log.
    read: BatchSet,
    /// Those of them that the log does not give any more.
    unread: BatchSet,
}

impl Keeping {
    fn new(replica: &Replica, pending: &[Tombstone]) -> Self {
        Self {
            line: Line::new(&replica.state.read().deletions.all, pending),
            removes: vec![false; pending.len()],
            kept: pending.iter().map(|_| Vec::new()).collect(),
            read: BatchSet::default(),
            unread: BatchSet::default(),
        }
    }

    fn keep(&mut self, batch: &Batch) {
        let covering = self.line.covering(batch.header());
        let of_each = self.kept.iter_mut().zip(&self.removes).enumerate();
        for (at, (kept, _)) in of_each.filter(|(_, (_, removes))| **removes) {
            kept.extend(self.line.left_of(at, batch, &covering));
        }
    }
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
        let version = manifest.deletions_version();
        if replica.state.read().deletions.is_as(manifest) {
            return Ok(());
        }
        let _one_at_a_time = replica.deleting.lock().await;
        let pending = replica.state.read().deletions.pending(manifest, replica.key.0);
        let mut left = pending.len();
        for some in pending.chunks(AT_ONCE) {
            left -= some.len();
            // What was answered as applied is known to be so after a restart, too.
            let applied_up_to = if left == 0 { version } else { 0 };
            self.apply_some(replica, some, applied_up_to).await?;
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
            && covers.is_some_and(|covers| state.may_have(covers))
    }

    /// Applies deletions, the first first: for all of them the log is read once.
    async fn apply_some(&self, replica: &Replica, pending: &[Tombstone], applied_up_to: u64) -> Result<()> {
        let masked = pending.iter().filter(|d| d.state == TombstoneState::Masked);
        let backed_up: Vec<_> = masked.filter(|d| self.removes(replica, d)).collect();
        for deletion in &backed_up {
            self.check_paused(replica, deletion)?;
        }
        for deletion in backed_up {
            self.back_up(replica, deletion).await?;
        }
        // Until all is logged again that stays.
        let _log = self.log_kept.read().await;
        let mut keeping = Keeping::new(replica, pending);
        for _ in 0..READS_AHEAD {
            self.read_on(replica, pending, &mut keeping).await?;
        }
        // No batch may come between what is read of the log and the records.
        let _held = self.hold_pushes(replica.key.0).await;
        self.read_on(replica, pending, &mut keeping).await?;
        let Keeping {
            removes,
            kept,
            unread,
            ..
        } = keeping;
        let last = pending.last().map(|d| d.id);
        for ((deletion, removes), kept) in pending.iter().zip(removes).zip(kept) {
            let is_last = Some(deletion.id) == last;
            let head = DeletedHead {
                partition: replica.key.0,
                tenant: replica.key.1.clone(),
                deletion: deletion.clone(),
                removes,
                applied_up_to: if is_last { applied_up_to } else { 0 },
                part: None,
            };
            self.apply_one(head, kept).await?;
            if !removes {
                continue;
            }
            let mut state = replica.state.write();
            let covers = deletion.covers.get(&replica.key.0);
            let unread = covers.map_or_else(|| unread.clone(), |covers| unread.difference(covers));
            if !unread.is_empty() {
                // What matched of them went with the rest: this member lacks them now, as if its log had been damaged when it started.
                state.held = state.held.difference(&unread);
                self.store.ledger.lock().lost(state.deletions.through);
            }
        }
        Ok(())
    }

    /// Logs a deletion: its range in parts, if what is kept of it is too much for one record.
    async fn apply_one(&self, head: DeletedHead, kept: Vec<Batch>) -> Result<()> {
        let (partition, tenant, id) = (head.partition, head.tenant.clone(), head.deletion.id);
        let (state, removes, kept_batches) = (head.deletion.state, head.removes, kept.len());
        let range = head.deletion.range;
        let mut parts = parts_of(range, kept, self.settings.deletion_record_bytes);
        let (last, kept) = parts.pop().unwrap_or((range, Vec::new()));
        for (range, kept) in parts {
            let part = DeletedHead {
                applied_up_to: 0,
                part: Some(Part {
                    range,
                    is_last: false,
                }),
                ..head.clone()
            };
            self.log_deleted(part, kept).await?;
        }
        let is_last = true;
        let part = (last != range).then_some(Part { range: last, is_last });
        self.log_deleted(DeletedHead { part, ..head }, kept).await?;
        tracing::info!(%partition, %tenant, %id, ?state, removes, kept_batches, "deletion applied");
        Ok(())
    }

    async fn log_deleted(&self, head: DeletedHead, kept: Vec<Batch>) -> Result<()> {
        let deleted = Deleted {
            head,
            kept,
            replayed: false,
        };
        self.log(Entry::Deleted(Box::new(deleted))).await.map(drop)
    }

    /// Reads from the log what has come since it was read for these deletions.
    async fn read_on(&self, replica: &Replica, pending: &[Tombstone], keeping: &mut Keeping) -> Result<()> {
        let removes: Vec<bool> = pending.iter().map(|d| self.removes(replica, d)).collect();
        if removes != keeping.removes {
            // Something that one of them covers came by repair: what is kept for it was passed over.
            *keeping = Keeping {
                removes,
                ..Keeping::new(replica, pending)
            };
        }
        let held = replica.state.read().held.clone();
        let mut later = BatchSet::default();
        let removing = pending
            .iter()
            .zip(&keeping.removes)
            .filter(|(_, removes)| **removes);
        for (deletion, _) in removing {
            match deletion.covers.get(&replica.key.0) {
                Some(covers) => later.union_with(&held.difference(covers)),
                None => later.union_with(&held),
            }
        }
        let new = later.difference(&keeping.read);
        if new.is_empty() {
            return Ok(());
        }
        let unread = self
            .each_logged(&replica.key, &new, |batch| keeping.keep(&batch))
            .await?;
        keeping.read.union_with(&new);
        keeping.unread.union_with(&unread);
        Ok(())
    }

    /// Refuses while what a deletion takes from the head is not sent again: every read asks for it.
    fn check_paused(&self, replica: &Replica, deletion: &Tombstone) -> Result<()> {
        let now = self.deps.runtime.clock.elapsed();
        let sent = Sent::Backup(deletion.id);
        match self.stored_otherwise.waits(&replica.key, sent, now) {
            None => Ok(()),
            Some(wait) => Err(Error::StoredOtherwise {
                tenant: replica.key.1.clone(),
                partition: replica.key.0,
                seconds: wait.as_secs().max(1),
            }),
        }
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
        let writer = Writer::partition(&self.deps.member, partition, epoch);
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
            let uploaded = bucket.upload_block(&tenant, &parts).await;
            // It does not say what it covers: not all of any batch.
            entries.push(ManifestBlock::new(&parts.meta, BTreeMap::new()));
            if let Err(BucketError::Altered { .. }) = &uploaded {
                self.bury(&tenant, &writer, &entries).await;
                let (now, sent) = (self.deps.runtime.clock.elapsed(), Sent::Backup(deletion.id));
                self.stored_otherwise.note(&replica.key, sent, now, BACKUP_PAUSES);
            }
            uploaded?;
        }
        self.stored_otherwise
            .forget(&replica.key, Sent::Backup(deletion.id));
        if entries.is_empty() {
            return Ok(());
        }
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
        let logged_from = Some(state.deletions.first_in(&logged)).filter(|version| *version != 0);
        Ok(DeletionsReply {
            held: match request.with_held {
                // What one member alone took before was answered by an error, and comes from it later.
                true => state.held.with_earlier(),
                false => BatchSet::default(),
            },
            version: state.deletions.version,
            // A block on its way to the bucket may bring such a batch as well.
            logged_from: logged_from
                .into_iter()
                .chain(state.unclean_from())
                .min()
                .unwrap_or(0),
        })
    }
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
