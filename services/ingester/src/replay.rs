//! Rebuilds the state from the log at start.

use std::sync::Arc;

use futures::future::try_join_all;
use koios_wal::{Committer, Lsn, Record, RecordKind, Replay, SegmentContent, Wal};

use crate::error::with_sources;
use crate::ingester::Inner;
use crate::record::{Checkpoint, Entry, Truncated, parse};
use crate::store::Store;
use crate::{Error, Result};

/// A segment's records, decoded.
struct Decoded {
    checkpoint: Option<Checkpoint>,
    entries: Vec<(Lsn, Entry)>,
    /// Records that cannot be read although their checksums hold.
    unreadable: Vec<Lsn>,
}

impl Inner {
    /// Replays all segments and starts the log.
    pub(crate) async fn replay(&self) -> Result<(Wal<Store>, Committer<Store>)> {
        let (runtime, started) = (&self.deps.runtime, self.deps.runtime.clock.elapsed());
        let mut replay = Replay::open(runtime.disk.clone(), self.wal_settings(), self.deps.identity).await?;
        let segments = replay.segments().to_vec();
        let mut restored = false;
        for (i, &number) in segments.iter().enumerate() {
            let content = replay.read(number).await?;
            restored |= self.replay_segment(content, i == 0, restored).await?;
        }
        self.check_front(&segments);
        for replica in self.store.replicas() {
            let mut state = replica.state.write();
            state.replayed();
            state.applied_at = runtime.clock.elapsed();
        }
        let took = runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.replay_seconds.observe(took.as_secs_f64());
        tracing::info!(segments = segments.len(), ?took, "write-ahead log replayed");
        let (cpu, clock) = (runtime.cpu.clone(), Arc::clone(&runtime.clock));
        Ok(replay.start(Arc::clone(&self.store), cpu, clock).await?)
    }

    /// Applies a segment; true when its checkpoint was restored.
    async fn replay_segment(&self, content: SegmentContent, first: bool, restored: bool) -> Result<bool> {
        let number = content.number;
        for damage in &content.damage {
            self.store.metrics.damage.inc();
            self.store.ledger.lock().damaged(damage);
        }
        let decoded = self.decode(content.records).await?;
        for &lsn in &decoded.unreadable {
            self.store.metrics.damage.inc();
            self.store.ledger.lock().lost(lsn);
        }
        let at_ms = decoded.checkpoint.as_ref().map_or(0, |c| c.at_ms);
        self.store.segments.lock().begin(number, at_ms);
        let mut restores = false;
        if let Some(c) = &decoded.checkpoint {
            self.store.ledger.lock().merge(c);
            restores = !restored;
            if restores {
                self.restore(c, first);
            }
        }
        let store = Arc::clone(&self.store);
        let apply = move || {
            for (lsn, entry) in &decoded.entries {
                store.apply_entry(*lsn, entry);
            }
        };
        self.deps.runtime.cpu.run(apply).await?;
        Ok(restores)
    }

    /// Starts from a checkpoint. Batches that only a later one knows may stand in the damaged part before it, so those
    /// don't count as held.
    fn restore(&self, checkpoint: &Checkpoint, first: bool) {
        for c in &checkpoint.replicas {
            let replica = self.store.replica_or_new(&(c.partition, c.tenant.clone()));
            replica.state.write().restore(c, first);
        }
    }

    /// Decodes records on all cores.
    async fn decode(&self, records: Vec<Record>) -> Result<Decoded> {
        let cpu = &self.deps.runtime.cpu;
        let per_job = records.len().div_ceil(cpu.parallelism()).max(1);
        let jobs = records.chunks(per_job).map(|part| {
            let part = part.to_vec();
            cpu.run(move || decode_all(&part))
        });
        let mut all = Decoded {
            checkpoint: None,
            entries: Vec::new(),
            unreadable: Vec::new(),
        };
        for part in try_join_all(jobs).await? {
            let part = part?;
            all.checkpoint = all.checkpoint.or(part.checkpoint);
            all.entries.extend(part.entries);
            all.unreadable.extend(part.unreadable);
        }
        Ok(all)
    }

    /// Segments go in order and only after a record said so: others must be there.
    fn check_front(&self, segments: &[u32]) {
        let (Some(&first), Some(&last)) = (segments.first(), segments.last()) else {
            return;
        };
        let mut ledger = self.store.ledger.lock();
        if first > ledger.truncated_below.max(1) {
            let expected = ledger.truncated_below.max(1);
            tracing::error!(
                first,
                expected,
                "the first segments of the write-ahead log are missing"
            );
            self.store.metrics.damage.inc();
            ledger.lost(Lsn::new(last, u32::MAX));
        }
    }

    /// Logs that the front is as it is now: what was missing was reported.
    pub(crate) async fn after_replay(&self) -> Result<()> {
        let first = self.store.segments.lock().first();
        let known = self.store.ledger.lock().truncated_below.max(1);
        if let Some(below) = first.filter(|f| *f > known) {
            self.log(Entry::Truncated(Truncated { below })).await?;
        }
        Ok(())
    }
}

fn decode_all(records: &[Record]) -> Result<Decoded> {
    let mut out = Decoded {
        checkpoint: None,
        entries: Vec::with_capacity(records.len()),
        unreadable: Vec::new(),
    };
    for record in records {
        if record.kind == RecordKind::Checkpoint {
            out.checkpoint = Some(parse(record.lsn, &record.payload)?);
            continue;
        }
        match Entry::read(record) {
            Ok(Some(entry)) => out.entries.push((record.lsn, entry)),
            Ok(None) => {}
            Err(e @ Error::Batch { .. }) => {
                tracing::error!(lsn = %record.lsn, error = with_sources(&e), "a logged batch cannot be read");
                out.unreadable.push(record.lsn);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}
