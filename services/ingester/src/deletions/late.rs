//! What deletions take of batches that came on their way: after what the head had was copied for the bucket. It is in the log alone, which
//! keeps it while the deletion may be taken back, until it is read from there and uploaded; or put into the head, where the deletion is
//! taken back before.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use koios_bucket::{Manifest, ManifestBlock, Nonce, TombstoneState};
use koios_head::HeadOptions;
use koios_model::{BatchColumns, BatchSet, Matchers, TimeRange};
use koios_runtime::with_sources;
use koios_wal::Lsn;
use koios_wire::Batch;

use super::backup::Taken;
use super::keeping::matching;
use super::{Deletions, Known, common};
use crate::ingester::Inner;
use crate::record::DeletedHead;
use crate::replica::Replica;
use crate::stored_otherwise::Sent;
use crate::{Error, Result};

/// What deletions that may be taken back took of some batches.
struct Portion<'a> {
    known: &'a [Known],
    /// By the version up to which it is clean; each is the head of a replica that nobody else knows.
    heads: BTreeMap<u64, Arc<Replica>>,
    new: &'a (dyn Fn() -> Arc<Replica> + Sync),
    /// The deletions that mask it.
    by: BTreeSet<Nonce>,
    read: BatchSet,
    bytes: usize,
}

impl Portion<'_> {
    fn take(&mut self, batch: &Batch) {
        let header = batch.header();
        self.read.insert(header.stream, header.sequence);
        let covering = self.known.iter().filter(|k| k.deletes() && k.covers(header));
        let (masked, finals): (Vec<&Known>, Vec<&Known>) = covering.partition(|k| k.is_masked());
        let Some(first) = masked.iter().map(|k| k.tombstone.version).min() else {
            return;
        };
        for k in masked {
            let Some(mut columns) = matching(batch.columns(), &k.matchers, k.tombstone.range, &finals) else {
                continue;
            };
            columns.metadata.clone_from(&batch.columns().metadata);
            self.bytes = self.bytes.saturating_add(columns.memory_bytes());
            self.by.insert(k.tombstone.id);
            // All that delete any of it are of this version or a later one, and mask it.
            let head = self.heads.entry(first.saturating_sub(1));
            let head = head.or_insert_with(self.new);
            head.state.write().head.apply(&columns, header.admission_ms, 0);
        }
    }
}

/// What was read for a deletion that is taken back.
#[derive(Default)]
struct Returning {
    asked: BatchSet,
    /// Those of them that the log does not give any more.
    unread: BatchSet,
}

impl Deletions {
    /// The late batches that a block can hold: one is masked by every deletion that comes later, whether or not that covers its batches.
    fn uploadable(&self) -> BatchSet {
        let mut all: Vec<&Known> = self.all.iter().filter(|k| k.deletes()).collect();
        all.sort_by_key(|k| std::cmp::Reverse(k.tombstone.version));
        let (mut found, mut in_all_later) = (common(&self.late, &self.returnable()), self.late.clone());
        // Once it is uploaded it is late for none.
        found = found.difference(&self.covered_by_begun());
        for k in all {
            let mut covered = BatchSet::default();
            let covers = k.tombstone.covers.values();
            covers.for_each(|covers| covered.union_with(&common(&self.late, covers)));
            if k.is_masked() {
                found = found.difference(&covered.difference(&in_all_later));
            }
            in_all_later = common(&in_all_later, &covered);
        }
        found
    }

    /// The first that may be taken back.
    fn first_masked(&self) -> Option<&Known> {
        let masked = self.all.iter().filter(|k| k.is_masked());
        masked.min_by_key(|k| k.tombstone.version)
    }
}

impl Inner {
    /// Uploads and lists what is late of a replica.
    pub(crate) async fn back_up_late(&self, replica: &Replica) -> Result<()> {
        if self.late_of(replica).is_empty() {
            return Ok(());
        }
        let manifest = self.newest_manifest(replica).await?;
        // What has become of the deletions.
        self.apply_deletions(replica, &manifest).await?;
        while self.back_up_portion(replica).await? {}
        Ok(())
    }

    pub(crate) fn report_late(&self, replica: &Replica, error: &Error) {
        let (partition, tenant) = &replica.key;
        let error = with_sources(error);
        tracing::warn!(
            %partition, %tenant, error,
            "what deletions took of late batches is not uploaded, the log keeps it; it will be tried again"
        );
        self.store.metrics.cut_failures.inc();
    }

    /// What is late and can be uploaded now.
    fn late_of(&self, replica: &Replica) -> BatchSet {
        let late = {
            let state = replica.state.read();
            if state.deletions.late.is_empty() {
                return BatchSet::default();
            }
            state.deletions.uploadable().difference(&state.unreadable)
        };
        common(&late, &self.store.segments.lock().logged(&replica.key))
    }

    /// Uploads and lists a part of what is late; whether there was any.
    async fn back_up_portion(&self, replica: &Replica) -> Result<bool> {
        let _one_at_a_time = replica.deleting.lock().await;
        // Until it is read.
        let log = self.log_kept.read().await;
        let wanted = self.late_of(replica);
        let (known, version, first) = {
            let deletions = &replica.state.read().deletions;
            let first = deletions.first_masked().map(|k| k.tombstone.clone());
            (deletions.all.clone(), deletions.version, first)
        };
        let Some(first) = first.filter(|_| !wanted.is_empty()) else {
            return Ok(false);
        };
        let (now, sent) = (self.deps.runtime.clock.elapsed(), Sent::Backup(first.id));
        if self.stored_otherwise.waits(&replica.key, sent, now).is_some() {
            return Ok(false);
        }
        let new = || self.beside(replica);
        let mut portion = Portion {
            known: &known,
            heads: BTreeMap::new(),
            new: &new,
            by: BTreeSet::new(),
            read: BatchSet::default(),
            bytes: 0,
        };
        let bytes_max = self.settings.deletion_record_bytes;
        let take = |batch: Batch| {
            portion.take(&batch);
            match portion.bytes < bytes_max {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        let unread = self.each_logged(&replica.key, &wanted, take).await?;
        drop(log);
        // What is logged more than once may be whole in a segment that is not read yet.
        let is_all_read = portion.bytes < bytes_max;
        let unread = unread.difference(&portion.read);
        if is_all_read && !unread.is_empty() {
            let error = Error::Record {
                lsn: Lsn(0),
                reason: "what a deletion took of it cannot be uploaded".to_owned(),
            };
            self.note_unreadable(&replica.key, &unread, &error);
        }
        let read = portion.read.clone();
        if !self.list_late(replica, &portion, version, first.id).await? {
            return Ok(false);
        }
        let head = DeletedHead {
            backed_up: read.clone(),
            ..DeletedHead::new(replica.key.0, replica.key.1.clone(), first)
        };
        if !read.is_empty() {
            self.log_deleted(head, Vec::new()).await?;
            let (partition, tenant) = &replica.key;
            tracing::info!(%partition, %tenant, batches = read.len(), "what deletions took of late batches is uploaded");
        }
        Ok(true)
    }

    /// Nothing of a replica but its metadata.
    fn beside(&self, replica: &Replica) -> Arc<Replica> {
        let options = HeadOptions {
            exemplars_max: self.store.limits.of(&replica.key.1).max_exemplars,
            ..self.store.head_options
        };
        let beside = Replica::new(replica.key.clone(), options);
        {
            let state = replica.state.read();
            let mut of = beside.state.write();
            for (name, at, metadata) in state.head.metadata() {
                let columns = BatchColumns {
                    metadata: vec![(name.to_owned(), metadata.clone())],
                    ..BatchColumns::default()
                };
                of.head.apply(&columns, at, 0);
            }
        }
        Arc::new(beside)
    }

    /// Uploads what was read and lists it, unless there is news of deletions: it may be taken back by now, and goes into the head then.
    /// Nor where a deletion is not there any more that took of it, which no version tells: nothing would mask it.
    async fn list_late(
        &self,
        replica: &Replica,
        portion: &Portion<'_>,
        known_version: u64,
        by: Nonce,
    ) -> Result<bool> {
        let everything = Matchers::default();
        let mut entries: Vec<ManifestBlock> = Vec::new();
        for (&clean_up_to, from) in &portion.heads {
            let taken = Taken {
                from,
                matchers: &everything,
                range: TimeRange::ALL,
                clean_up_to,
                by,
            };
            entries.extend(self.upload_taken(&taken).await?);
        }
        if entries.is_empty() {
            return Ok(true);
        }
        let mut is_listed = false;
        let list = |m: &mut Manifest| {
            let is_masked = |id: &Nonce| {
                m.tombstone(*id)
                    .is_some_and(|t| t.state == TombstoneState::Masked)
            };
            is_listed = m.deletions_version() <= known_version && portion.by.iter().all(is_masked);
            for entry in &entries {
                match is_listed {
                    true => m.add_block(entry.clone())?,
                    false => m.bury_upload(entry.block, &entry.parts),
                }
            }
            Ok(())
        };
        let writer = self.partition_writer(replica);
        let committed = self.deps.manifests.commit(&replica.key.1, &writer, list).await;
        self.note_bucket(committed.as_ref().err());
        committed?;
        Ok(is_listed)
    }

    /// Applies that a deletion is taken back. What blocks have of what it took they show again; what is late goes back into the head before.
    pub(super) async fn take_back(&self, replica: &Replica, head: DeletedHead) -> Result<()> {
        // Until all is logged again.
        let _log = self.log_kept.read().await;
        let mut returning = Returning::default();
        while self.put_back(replica, &head, &mut returning).await? {}
        // What comes from here on comes whole.
        let _held = self.hold_pushes(replica.key.0).await;
        while self.put_back(replica, &head, &mut returning).await? {}
        self.apply_one(head, Vec::new()).await?;
        self.lack(replica, &returning.unread);
        Ok(())
    }

    /// Puts a part of what is late back into the head; whether there was any.
    async fn put_back(
        &self,
        replica: &Replica,
        head: &DeletedHead,
        returning: &mut Returning,
    ) -> Result<bool> {
        let deletion = &head.deletion;
        let (wanted, others) = {
            let deletions = &replica.state.read().deletions;
            let mut covered = BatchSet::default();
            let covers = deletion.covers.values();
            covers.for_each(|covers| covered.union_with(&common(&deletions.late, covers)));
            let others = deletions.all.iter();
            let others = others.filter(|k| k.deletes() && k.tombstone.id != deletion.id);
            let others: Vec<Known> = others.cloned().collect();
            (covered.difference(&returning.asked), others)
        };
        let Some(matchers) = deletion.matchers().ok().filter(|_| !wanted.is_empty()) else {
            return Ok(false);
        };
        let (mut back, mut bytes, mut read) = (Vec::new(), 0usize, BatchSet::default());
        let bytes_max = self.settings.deletion_record_bytes;
        let keep = |batch: Batch| {
            let header = batch.header();
            read.insert(header.stream, header.sequence);
            let covering: Vec<&Known> = others.iter().filter(|k| k.covers(header)).collect();
            if let Some(columns) = matching(batch.columns(), &matchers, deletion.range, &covering) {
                let returned = Batch::new(header.clone(), columns);
                bytes = bytes.saturating_add(returned.encoded().len());
                back.push(returned);
            }
            match bytes < bytes_max {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        };
        self.each_logged(&replica.key, &wanted, keep).await?;
        returning.asked.union_with(&read);
        if bytes < bytes_max {
            // All that the log has was tried, in whichever of its segments: the rest is not where it should be.
            let unread = wanted.difference(&read);
            returning.asked.union_with(&unread);
            returning.unread.union_with(&unread);
        }
        if !back.is_empty() {
            let head = DeletedHead {
                applied_up_to: 0,
                puts_back: true,
                ..head.clone()
            };
            self.log_deleted(head, back).await?;
        }
        Ok(true)
    }
}
