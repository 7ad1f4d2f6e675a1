//! Learns deletions from manifests and applies them to what is held.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use koios_bucket::{Manifest, Tombstone, TombstoneState};
use koios_model::{BatchSet, PartitionId};
use koios_wire::{Batch, DeletionsReply, DeletionsRequest, ServiceError, ServiceErrorCode};

use super::common;
use super::keeping::{Line, parts_of};
use crate::Result;
use crate::ingester::Inner;
use crate::record::{Deleted, DeletedHead, Entry, Part};
use crate::replica::Replica;
use crate::segments::ReplicaKey;

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
        let (news, new): (Vec<Tombstone>, Vec<Tombstone>) = {
            let deletions = &replica.state.read().deletions;
            let pending = deletions.pending(manifest, replica.key.0);
            pending.into_iter().partition(|t| deletions.has_news_of(t))
        };
        // What was answered as applied is known to be so after a restart, too.
        let applied_up_to = |left: usize| if left == 0 { version } else { 0 };
        let mut left = new.len() + news.len();
        for some in new.chunks(AT_ONCE) {
            left -= some.len();
            self.apply_some(replica, some, applied_up_to(left)).await?;
        }
        for deletion in &news {
            left -= 1;
            self.apply_news(replica, deletion, applied_up_to(left)).await?;
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

    /// Applies deletions that are not known, the first first: for all of them the log is read once.
    async fn apply_some(&self, replica: &Replica, pending: &[Tombstone], applied_up_to: u64) -> Result<()> {
        let before = replica.state.read().held.clone();
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
        // They came since what goes was copied. What was taken over meanwhile is in blocks, and not in the log.
        let late = replica.state.read().held.difference(&before);
        let late = common(&late, &self.store.segments.lock().logged(&replica.key));
        for ((deletion, removes), kept) in pending.iter().zip(removes).zip(kept) {
            let is_last = Some(deletion.id) == last;
            let covers = deletion.covers.get(&replica.key.0);
            let is_masked = deletion.state == TombstoneState::Masked;
            let late = covers
                .filter(|_| removes && is_masked)
                .map(|covers| common(&late, covers));
            let head = DeletedHead {
                removes,
                applied_up_to: if is_last { applied_up_to } else { 0 },
                late: late.unwrap_or_default(),
                ..DeletedHead::new(replica.key.0, replica.key.1.clone(), deletion.clone())
            };
            self.apply_one(head, kept).await?;
            if removes {
                let unread = covers.map_or_else(|| unread.clone(), |covers| unread.difference(covers));
                self.lack(replica, &unread);
            }
        }
        Ok(())
    }

    /// Notes that the head lacks samples of batches that the log cannot give: this member lacks them, as if its log had been damaged when it
    /// started.
    pub(super) fn lack(&self, replica: &Replica, unread: &BatchSet) {
        if !unread.is_empty() {
            let mut state = replica.state.write();
            state.held = state.held.difference(unread);
            self.store.ledger.lock().lost(state.deletions.through);
        }
    }

    /// Applies what became of a deletion that is known, or that is taken back before all parts of it were.
    async fn apply_news(&self, replica: &Replica, deletion: &Tombstone, applied_up_to: u64) -> Result<()> {
        let has_deleted = replica.state.read().deletions.has_deleted(deletion.id);
        let is_taken_back = deletion.state == TombstoneState::Undone && has_deleted;
        let head = DeletedHead {
            applied_up_to,
            ..DeletedHead::new(replica.key.0, replica.key.1.clone(), deletion.clone())
        };
        match is_taken_back {
            true => self.take_back(replica, head).await,
            false => self.apply_one(head, Vec::new()).await,
        }
    }

    /// Logs a deletion: its range in parts, if what is kept of it is too much for one record.
    pub(super) async fn apply_one(&self, head: DeletedHead, kept: Vec<Batch>) -> Result<()> {
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

    pub(super) async fn log_deleted(&self, head: DeletedHead, kept: Vec<Batch>) -> Result<()> {
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
        let keep = |batch: Batch| {
            keeping.keep(&batch);
            ControlFlow::Continue(())
        };
        let unread = self.each_logged(&replica.key, &new, keep).await?;
        keeping.read.union_with(&new);
        keeping.unread.union_with(&unread);
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
            return Ok(DeletionsReply {
                manifest_version: self.announced(&key),
                ..DeletionsReply::default()
            });
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
        let manifest_version = self.announced(&key);
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
            manifest_version,
        })
    }

    /// The newest manifest version of a replica's tenant that this member knows to have been there: all its partitions list their blocks
    /// in the same manifest.
    pub(crate) fn announced(&self, key: &ReplicaKey) -> u64 {
        let mut partitions: BTreeSet<PartitionId> =
            self.store.ledger.lock().adopted.keys().copied().collect();
        partitions.insert(key.0);
        let replicas = partitions
            .into_iter()
            .filter_map(|p| self.store.replica(p, &key.1));
        let announced = replicas.map(|r| r.state.read().announced());
        announced.max().unwrap_or(0)
    }
}
