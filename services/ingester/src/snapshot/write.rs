//! Writing a snapshot beside the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use koios_runtime::{DiskError, DiskFile, OpenMode};

use super::file::{FrameKind, frame, header, pack};
use super::{Kept, ReplicaAccounts, SUFFIX, SegmentTimes, UNFINISHED_SUFFIX, dir, name_of};
use crate::ingester::Inner;
use crate::record::json;
use crate::replica::Replica;
use crate::{Error, Result};
use koios_runtime::with_sources;

/// Bytes copied at a time, while nothing is applied to that head but it is read: a millisecond or so.
const STRIP_BYTES: usize = 1 << 20;
/// A snapshot is due when the log has grown by this part of the last one's size: what bounds the bytes written.
const LOG_SHARE: u64 = 2;

/// Log segments that must have room beside a snapshot.
const SEGMENTS_SPARED: u64 = 4;

/// A snapshot being written.
struct Writing {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    at: u64,
}

impl Inner {
    /// Writes a snapshot whenever the log has begun a new segment and has grown enough, for ever.
    pub(crate) async fn snapshot_forever(self: Arc<Self>) {
        let mut begun = self.store.begun.subscribe();
        loop {
            let segment = *begun.borrow_and_update();
            self.say_disk_needs(self.snapshot_room());
            if self.is_snapshot_due(segment)
                && let Err(e) = self.snapshot(segment).await
            {
                // Not again before the log has grown as much once more.
                self.kept_snapshot.lock().segment = segment;
                self.discard_unfinished().await;
                self.store.metrics.snapshot_failures.inc();
                tracing::warn!(
                    segment,
                    error = with_sources(&e),
                    "no snapshot was written: the next start replays more of the log"
                );
            }
            // The sender lives in the store.
            if begun.changed().await.is_err() {
                return;
            }
        }
    }

    /// Bytes that the next snapshot and the log beside it will need, beside the reserve.
    fn snapshot_room(&self) -> u64 {
        let replicas = self.store.replicas();
        let heads = replicas.iter().map(|r| r.state.read().head.memory_bytes());
        let log = self.settings.wal_segment_bytes.saturating_mul(SEGMENTS_SPARED);
        (heads.sum::<usize>() as u64).saturating_add(log)
    }

    /// Has caches on the same disk leave so much free.
    fn say_disk_needs(&self, bytes: u64) {
        self.deps.runtime.disk.needs().set(bytes);
    }

    fn is_snapshot_due(&self, segment: u32) -> bool {
        let kept = *self.kept_snapshot.lock();
        let segments = self.store.segments.lock();
        let grown = segments.bytes_within(kept.segment..segment);
        let is_gone = segments.first().is_some_and(|first| first > kept.segment);
        segment > kept.segment && (is_gone || grown > kept.bytes / LOG_SHARE)
    }

    /// Writes a snapshot of everything before a segment, which the log has begun.
    async fn snapshot(&self, segment: u32) -> Result<()> {
        let started = self.deps.runtime.clock.elapsed();
        let dir = dir(&self.settings);
        let room = self.snapshot_room();
        let needed = room.saturating_add(self.settings.disk_reserve_bytes);
        let (identity, disk) = (self.deps.identity, &self.deps.runtime.disk);
        let path = dir.join(format!("{segment:010}{UNFINISHED_SUFFIX}"));
        let created = disk.run(move |d| -> Result<_, DiskError> {
            d.create_dir_all(&dir)?;
            remove_others(d, &dir, None, UNFINISHED_SUFFIX)?;
            // The log's room must not go to what is dispensable, and an old snapshot is that too.
            if d.free_bytes(&dir)? < needed {
                remove_others(d, &dir, None, SUFFIX)?;
                return Ok(None);
            }
            let file = d.open(&path, OpenMode::CreateNew)?;
            let head = header(identity, segment);
            file.write_at(0, &head)
                .map_err(|e| DiskError::io("write", &path, e))?;
            let at = head.len() as u64;
            Ok(Some(Writing { file, path, at }))
        });
        let Some(mut writing) = created.await.map_err(Error::Disk)? else {
            tracing::debug!(segment, "no snapshot: too little space is free");
            *self.kept_snapshot.lock() = Kept { segment, bytes: 0 };
            return Ok(());
        };
        for replica in self.store.replicas() {
            self.write_replica(&replica, &mut writing).await?;
            // What is written is no longer needed.
            self.say_disk_needs(room.saturating_sub(writing.at));
        }
        let newest = SegmentTimes {
            segments: self.store.segments.lock().newest_of_each(segment),
        };
        self.write_frame(&mut writing, FrameKind::Segments, json(&newest).to_vec())
            .await?;
        self.write_frame(&mut writing, FrameKind::End, Vec::new()).await?;
        let bytes = writing.at;
        self.finish(writing, segment).await?;
        *self.kept_snapshot.lock() = Kept { segment, bytes };
        // The next one needs as much again: this one stays until that is whole.
        self.say_disk_needs(room);
        let took = self.deps.runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.snapshot_seconds.observe(took.as_secs_f64());
        tracing::debug!(segment, bytes, ?took, "snapshot written");
        Ok(())
    }

    async fn write_replica(&self, replica: &Arc<Replica>, writing: &mut Writing) -> Result<()> {
        // No cut may begin, end or be forgotten between strips.
        let _no_cut = replica.cutting.lock().await;
        let _no_deletion = replica.deleting.lock().await;
        let mut next = Some(0);
        while let Some(from) = next {
            let copied = Arc::clone(replica);
            let copy = move || {
                let (strip, next) = copied.snapshot(from, STRIP_BYTES)?;
                Ok::<_, koios_head::Error>((pack(&strip), next))
            };
            let (partition, tenant) = &replica.key;
            let damaged = |source| Error::Head {
                tenant: tenant.clone(),
                partition: *partition,
                source,
            };
            let (packed, after) = self.pools.long.run(copy).await?.map_err(damaged)?;
            let path = &writing.path;
            let packed = packed.map_err(|e| Error::Disk(DiskError::io("compress", path, e)))?;
            self.write_frame(writing, FrameKind::Strip, packed).await?;
            next = after;
        }
        let counted = Arc::clone(replica);
        let account = move || {
            let state = counted.state.read();
            let unaccounted = state.unaccounted();
            let accounts = ReplicaAccounts {
                checkpoint: state.checkpoint(&counted.key),
                uncut: state.uncut(),
                manifest_floor: state.end().manifest_floor,
                cut_through: state.cut_through.0,
                has_unaccounted: !unaccounted.is_empty(),
                unaccounted,
            };
            let of_head = state.head.snapshot_accounts();
            drop(state);
            let accounts = json(&accounts);
            let mut out = (accounts.len() as u32).to_le_bytes().to_vec();
            out.extend_from_slice(&accounts);
            out.extend_from_slice(&of_head);
            out
        };
        let payload = self.pools.long.run(account).await?;
        self.write_frame(writing, FrameKind::Accounts, payload).await
    }

    async fn write_frame(&self, writing: &mut Writing, kind: FrameKind, payload: Vec<u8>) -> Result<()> {
        let (at, identity) = (writing.at, self.deps.identity);
        let (file, path) = (Arc::clone(&writing.file), writing.path.clone());
        let len = self.deps.runtime.disk.run(move |_| {
            let bytes = frame(identity, at, kind, &payload);
            file.write_at(at, &bytes)
                .map_err(|e| DiskError::io("write", &path, e))?;
            Ok::<_, DiskError>(bytes.len() as u64)
        });
        writing.at += len.await.map_err(Error::Disk)?;
        Ok(())
    }

    /// Removes what a failure left; the next attempt would too.
    async fn discard_unfinished(&self) {
        let dir = dir(&self.settings);
        let removed = self
            .deps
            .runtime
            .disk
            .run(move |d| remove_others(d, &dir, None, UNFINISHED_SUFFIX));
        if let Err(error) = removed.await {
            tracing::debug!(%error, "what a snapshot left could not be removed");
        }
    }

    /// Gives a whole snapshot its name and removes the others.
    async fn finish(&self, writing: Writing, segment: u32) -> Result<()> {
        let dir = dir(&self.settings);
        let finished = self.deps.runtime.disk.run(move |d| {
            let synced = writing.file.sync_data();
            synced.map_err(|e| DiskError::io("sync", &writing.path, e))?;
            let name = name_of(segment);
            d.rename(&writing.path, &dir.join(&name))?;
            d.sync_dir(&dir)?;
            remove_others(d, &dir, Some(&name), SUFFIX)
        });
        finished.await.map_err(Error::Disk)
    }
}

/// Removes the files of a kind but for one.
fn remove_others(
    disk: &dyn koios_runtime::Disk,
    dir: &Path,
    kept: Option<&str>,
    suffix: &str,
) -> Result<(), DiskError> {
    for name in disk.list(dir)? {
        if name.ends_with(suffix) && Some(name.as_str()) != kept {
            disk.remove_file(&dir.join(name))?;
        }
    }
    Ok(())
}
