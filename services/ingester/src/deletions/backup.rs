//! Uploads what deletions take, so that it is there again when they are taken back.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SeriesColumns};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Nonce, Tombstone, Writer};
use koios_head::{HeldSamples, SeriesId};
use koios_model::merge::settle_kinds;
use koios_model::{Matchers, Metadata, TimeRange};

use crate::ingester::Inner;
use crate::replica::Replica;
use crate::stored_otherwise::{BACKUP_PAUSES, Sent};
use crate::{Error, Result};

/// Series copied under one hold of the lock.
const PART: usize = 128;

/// What is uploaded of a head.
pub(super) struct Taken<'a> {
    pub(super) from: &'a Arc<Replica>,
    pub(super) matchers: &'a Matchers,
    pub(super) range: TimeRange,
    /// Later deletions mask it.
    pub(super) clean_up_to: u64,
    /// The deletion that takes it.
    pub(super) by: Nonce,
}

impl Inner {
    /// Refuses while what a deletion takes from the head is not sent again: every read asks for it.
    pub(super) fn check_paused(&self, replica: &Replica, deletion: &Tombstone) -> Result<()> {
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
    pub(super) async fn back_up(&self, replica: &Replica, deletion: &Tombstone) -> Result<()> {
        let (partition, tenant) = &replica.key;
        let Some(shared) = self.store.replica(*partition, tenant) else {
            return Ok(());
        };
        let Ok(matchers) = deletion.matchers() else {
            return Ok(());
        };
        let clean_up_to = replica.state.read().deletions.version;
        let taken = Taken {
            from: &shared,
            matchers: &matchers,
            range: deletion.range,
            clean_up_to,
            by: deletion.id,
        };
        let entries = self.upload_taken(&taken).await?;
        if entries.is_empty() {
            return Ok(());
        }
        let list = |m: &mut Manifest| entries.iter().try_for_each(|entry| m.add_block(entry.clone()));
        let writer = self.partition_writer(replica);
        self.deps.manifests.commit(tenant, &writer, list).await?;
        Ok(())
    }

    /// Who commits for a partition.
    pub(super) fn partition_writer(&self, replica: &Replica) -> Writer {
        Writer::partition(&self.deps.member, replica.key.0, self.epoch_of(replica))
    }

    /// Uploads what deletions take as blocks that are not listed yet.
    pub(super) async fn upload_taken(&self, taken: &Taken<'_>) -> Result<Vec<ManifestBlock>> {
        let (partition, tenant) = taken.from.key.clone();
        let windows = taken.from.state.read().head.windows().into_iter();
        let windows = windows.map(|w| w.range).filter(|w| w.overlaps(&taken.range));
        let windows: Vec<TimeRange> = windows.collect();
        let writer = self.partition_writer(taken.from);
        let mut entries = Vec::new();
        for window in windows {
            let block = BlockId::new(self.deps.runtime.clock.now_ms(), self.deps.runtime.rng.u128());
            let options = BlockOptions {
                partitions: vec![partition],
                epoch: self.epoch_of(taken.from),
                clean_up_to: taken.clean_up_to,
                starts: true,
                ..BlockOptions::new(block, tenant.clone(), window)
            };
            let range = TimeRange::new(window.min.max(taken.range.min), window.max.min(taken.range.max));
            let (from, matchers) = (Arc::clone(taken.from), taken.matchers.clone());
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
                let (now, sent) = (self.deps.runtime.clock.elapsed(), Sent::Backup(taken.by));
                self.stored_otherwise
                    .note(&taken.from.key, sent, now, BACKUP_PAUSES);
            }
            uploaded?;
        }
        self.stored_otherwise
            .forget(&taken.from.key, Sent::Backup(taken.by));
        Ok(entries)
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
