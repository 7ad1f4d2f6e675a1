//! Rebuilds the state from the log at start.

mod applying;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::{join, try_join_all};
use koios_model::PartitionId;
use koios_wal::{Committer, Damage, DamageKind, Lsn, PartReader, Record, RecordAt, RecordKind, Replay, Wal};

use koios_wire::{BatchHeader, LoggedBatch};

use crate::ingester::Inner;
use crate::record::{Checkpoint, Entry, Truncated, parse};
use crate::replica::{self, BatchTimes};
use crate::store::Store;
use crate::{Error, Result};
use koios_runtime::with_sources;

/// Bytes of records that are decoded at a time. Decoded they are many times as large, twice that is held at once, and a
/// start should need little more memory than what it starts: with 2 MiB it was a fifth more for a million young series.
const PART_BYTES: usize = 512 << 10;

/// Segments to be loaded that are looked through before: few enough that they are in the system's memory when they are read again.
const SEGMENTS_AHEAD: usize = 4;

/// What may be kept of the segments that were looked through before their turn, in bytes: with peers the log has hundreds of segments
/// that need not be loaded. The rest is looked through one by one.
const SURVEY_BYTES_MAX: usize = 16 << 20;

/// A batch that need not be loaded takes about so many bytes until it is noted.
const NOTED_BYTES: usize = 192;

/// A part of a segment's records, decoded.
#[derive(Default)]
struct Decoded {
    checkpoint: Option<Checkpoint>,
    entries: Vec<(Lsn, Entry)>,
    /// Batches that need not be loaded, with their size: listed blocks or a snapshot hold them.
    noted: Vec<(Lsn, BatchHeader, u64)>,
    /// Records that cannot be read although their checksums hold.
    unreadable: Vec<Lsn>,
}

/// What was found of a segment.
struct Found {
    number: u32,
    /// About what is kept of it, bytes.
    bytes: usize,
    damage: Vec<Damage>,
    records: Records,
}

enum Records {
    /// They need not be loaded.
    Noted(Box<Decoded>),
    /// They are loaded part by part.
    ToLoad(Vec<RecordAt>),
}

/// How far a replay is.
#[derive(Default)]
struct Progress {
    /// The first segment.
    first: u32,
    /// A checkpoint was restored.
    restored: bool,
    /// The first segment whose samples are loaded.
    load_from: u32,
    /// The checkpoint that said so, until the one of that segment was restored.
    said_so: Option<Checkpoint>,
    /// A snapshot has what is not loaded.
    from_snapshot: bool,
    /// Records are missing or cannot be read.
    damaged: bool,
    found: replica::Found,
}

impl Progress {
    /// Notes damage, in what is loaded or before it. A damaged tail may never have been answered.
    fn note(&mut self, damage: &Damage, is_loaded: bool) {
        self.damaged = true;
        self.found.lost |= damage.kind != DamageKind::Tail;
        self.found.unaccounted |= is_loaded;
    }
}

impl Inner {
    /// Replays all segments and starts the log. `epochs` are those that were known when the ingester started.
    pub(crate) async fn replay(
        &self,
        epochs: &BTreeMap<PartitionId, u64>,
    ) -> Result<(Wal<Store>, Committer<Store>)> {
        let (runtime, started) = (&self.deps.runtime, self.deps.runtime.clock.elapsed());
        let mut replay = Replay::open(runtime.disk.clone(), self.wal_settings(), self.deps.identity).await?;
        let segments = replay.segments().to_vec();
        let parts = replay.parts();
        let mut progress = plan(&parts, &segments).await?;
        let snapshots = self.find_snapshots(&segments, progress.load_from).await;
        let expected = snapshots.last().copied().unwrap_or(progress.load_from);
        let (snapshot, found) = join(
            self.load_snapshot(snapshots),
            self.survey(&mut replay, &segments, expected),
        )
        .await;
        if let Some(snapshot) = snapshot {
            progress.load_from = snapshot.segment;
            (progress.said_so, progress.from_snapshot) = (None, true);
            self.install(snapshot, &segments);
        }
        let mut found = found?.into_iter();
        for &number in &segments {
            let load = number >= progress.load_from;
            let found = match found.next() {
                // That they need not be loaded was expected of a snapshot that could not be used.
                Some(found) if !(load && matches!(found.records, Records::Noted(_))) => found,
                _ => self.find(&mut replay, number, load).await?,
            };
            self.replay_segment(found, &parts, &mut progress).await?;
        }
        if let Some(c) = progress.said_so.take() {
            // The checkpoint of the first loaded segment is damaged; this one's floors are higher and as good.
            self.restore(&c, false);
        }
        progress.found.lost |= self.lacks_front() || self.store.ledger.lock().found_lost;
        if let Some(damage) = replay.missing_end() {
            progress.note(&damage, true);
            self.note_missing_end(&damage, epochs);
        }
        // What waits is sealed and compared then, which may take as long as a part.
        let (store, found) = (Arc::clone(&self.store), progress.found);
        let end = move || {
            for replica in store.replicas() {
                replica.state.write().replayed(found);
            }
        };
        self.pools.apply.run(end).await?;
        runtime.memory.freed(runtime.clock.elapsed());
        let took = runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.replay_seconds.observe(took.as_secs_f64());
        let (segments, loaded_from) = (segments.len(), progress.load_from);
        tracing::info!(segments, loaded_from, ?took, "write-ahead log replayed");
        // The committer has a thread of its own.
        let (cpu, clock) = (self.pools.apply.hosted(), Arc::clone(&runtime.clock));
        Ok(replay.start(Arc::clone(&self.store), cpu, clock).await?)
    }

    /// Looks through the segments below `load_from`, of which no more is decoded than that they need not be loaded, and through
    /// some more, until enough is kept of them.
    async fn survey(&self, replay: &mut Replay, segments: &[u32], load_from: u32) -> Result<Vec<Found>> {
        let below = segments.partition_point(|number| *number < load_from);
        let (mut all, mut bytes) = (Vec::new(), 0usize);
        for &number in segments.iter().take(below.saturating_add(SEGMENTS_AHEAD)) {
            if bytes > SURVEY_BYTES_MAX {
                break;
            }
            let found = self.find(replay, number, number >= load_from).await?;
            bytes = bytes.saturating_add(found.bytes);
            all.push(found);
        }
        Ok(all)
    }

    /// Looks through a segment, which is in memory whole meanwhile.
    async fn find(&self, replay: &mut Replay, number: u32, load: bool) -> Result<Found> {
        if self.background.is_cancelled() {
            return Err(self.not_running());
        }
        let content = replay.read(number).await?;
        let bytes = content
            .records
            .iter()
            .map(|record| bytes_kept(record, load))
            .sum();
        let records = if load {
            Records::ToLoad(content.records.iter().map(Record::at).collect())
        } else {
            Records::Noted(Box::new(self.decode(content.records, false).await?))
        };
        Ok(Found {
            number,
            bytes,
            damage: content.damage,
            records,
        })
    }

    /// Reads a part of the segment and decodes it on all cores while the part before it is applied. Parts are small: decoded,
    /// batches are many times as large.
    async fn replay_segment(&self, found: Found, parts: &PartReader, progress: &mut Progress) -> Result<()> {
        let number = found.number;
        if self.background.is_cancelled() {
            return Err(self.not_running());
        }
        for damage in &found.damage {
            progress.note(damage, number >= progress.load_from);
            self.store.metrics.damage.inc();
            self.store.ledger.lock().damaged(damage);
        }
        self.store.segments.lock().begin(number, 0);
        let records = match found.records {
            Records::Noted(decoded) => return self.replay_part(number, Some(*decoded), progress).await,
            Records::ToLoad(records) => records,
        };
        let mut decoded: Option<Decoded> = None;
        for part in parts_of(&records) {
            let before = decoded.take();
            let read = async { self.decode(parts.read(part).await?, true).await };
            let (next, applied) = join(read, self.replay_part(number, before, progress)).await;
            applied?;
            decoded = Some(next?);
        }
        self.replay_part(number, decoded, progress).await
    }

    async fn replay_part(
        &self,
        number: u32,
        decoded: Option<Decoded>,
        progress: &mut Progress,
    ) -> Result<()> {
        let Some(mut decoded) = decoded else { return Ok(()) };
        progress.damaged |= !decoded.unreadable.is_empty();
        progress.found.unaccounted |= !decoded.unreadable.is_empty() && number >= progress.load_from;
        if progress.from_snapshot && progress.damaged {
            // A start that could not use the snapshot may have made them, of less than it has. What they took is cut again.
            decoded
                .entries
                .retain(|(_, entry)| !matches!(entry, Entry::CutBegun(_)));
        }
        for &lsn in &decoded.unreadable {
            self.store.metrics.damage.inc();
            self.store.ledger.lock().lost(lsn);
        }
        // The first record of a segment, so before any of its batches.
        if let Some(c) = &decoded.checkpoint {
            self.store.segments.lock().begin(number, c.at_ms);
            self.replay_checkpoint(number, c, progress);
        }
        let (store, cpu) = (Arc::clone(&self.store), self.deps.runtime.cpu.clone());
        let apply = move || {
            for (lsn, header, bytes) in &decoded.noted {
                store.note_batch(*lsn, header, *bytes);
            }
            store.replay_entries(&cpu, decoded.entries);
        };
        self.pools.apply.run(apply).await?;
        progress.damaged |= self.store.ledger.lock().found_lost;
        Ok(())
    }

    /// Starts from the first checkpoint there is, and takes the floors of the segment from which on samples are loaded.
    fn replay_checkpoint(&self, number: u32, c: &Checkpoint, progress: &mut Progress) {
        self.store.ledger.lock().merge(c);
        if !progress.restored {
            progress.restored = true;
            self.restore(c, number == progress.first);
        } else if number == progress.load_from && !progress.from_snapshot {
            self.restore(c, false);
        }
        if number == progress.load_from {
            progress.said_so = None;
        }
    }

    /// Starts from a checkpoint. Batches that only a later one knows may stand in the damaged part before it, so those
    /// don't count as held.
    fn restore(&self, checkpoint: &Checkpoint, with_held: bool) {
        for c in &checkpoint.replicas {
            let replica = self.store.replica_or_new(&(c.partition, c.tenant.clone()));
            replica.state.write().restore(c, with_held);
        }
    }

    /// Decodes records on all cores.
    async fn decode(&self, records: Vec<Record>, load: bool) -> Result<Decoded> {
        let (cpu, window_ms) = (&self.deps.runtime.cpu, self.store.window_ms);
        let per_job = records.len().div_ceil(cpu.parallelism()).max(1);
        let jobs = records.chunks(per_job).map(|part| {
            let part = part.to_vec();
            cpu.run(move || decode_all(&part, load, window_ms))
        });
        let mut all = Decoded::default();
        for part in try_join_all(jobs).await? {
            let part = part?;
            all.checkpoint = all.checkpoint.or(part.checkpoint);
            all.entries.extend(part.entries);
            all.noted.extend(part.noted);
            all.unreadable.extend(part.unreadable);
        }
        Ok(all)
    }

    /// Segments go in order and only after a record said so: others must be there.
    fn lacks_front(&self) -> bool {
        let first = self.store.segments.lock().first();
        let expected = self.store.ledger.lock().truncated_below.max(1);
        let lacks = first.filter(|first| *first > expected);
        if let Some(first) = lacks {
            tracing::error!(
                first,
                expected,
                "the first segments of the write-ahead log are missing"
            );
            self.store.metrics.damage.inc();
        }
        lacks.is_some()
    }

    /// Notes that the log ends before its mark, or that the mark is damaged.
    fn note_missing_end(&self, damage: &Damage, epochs: &BTreeMap<PartitionId, u64>) {
        self.store.metrics.damage.inc();
        let mut ledger = self.store.ledger.lock();
        ledger.damaged(damage);
        let (from, dir) = (damage.lsn.segment(), self.settings.wal_dir.display());
        if damage.kind == DamageKind::Tail {
            tracing::error!(%dir, "the mark of the write-ahead log's newest segment is damaged");
            return;
        }
        tracing::error!(
            from,
            %dir,
            "the last segments of the write-ahead log, or all, are missing: was the folder deleted, or put back from a copy? \
             Reads wait until what they held is copied from the other members or an operator accepts the loss"
        );
        // The adopted epochs may have been lost too, but never are newer than the copy of the control state that the
        // start found. Without them an operator's acceptance of an earlier loss would pass for one of this loss; with
        // those known by now, one given since the start would pass for an earlier one.
        let state = self.deps.state.current();
        for p in state.partitions_of(&self.deps.member).filter(|p| self.is_mine(p)) {
            if let Some(&epoch) = epochs.get(&p.id) {
                ledger.adopt(p.id, epoch);
            }
        }
    }

    /// Logs that the front is as it is now, and that what was there is lost: so do later starts know, until that is settled.
    pub(crate) async fn after_replay(&self) -> Result<()> {
        let first = self.store.segments.lock().first();
        let known = self.store.ledger.lock().truncated_below.max(1);
        if let Some(below) = first.filter(|f| *f > known) {
            let truncated = Truncated {
                below,
                front_is_lost: true,
            };
            self.log(Entry::Truncated(truncated)).await?;
        }
        Ok(())
    }
}

/// About what is kept of a record of a segment that was looked through, bytes.
fn bytes_kept(record: &Record, load: bool) -> usize {
    match record.kind {
        _ if load => size_of::<RecordAt>(),
        RecordKind::Batch => NOTED_BYTES,
        // Read from JSON it is some times as large.
        RecordKind::Checkpoint => record.payload.len().saturating_mul(4),
        _ => record.payload.len().saturating_mul(2),
    }
}

/// Records in runs of about [`PART_BYTES`].
fn parts_of(records: &[RecordAt]) -> impl Iterator<Item = &[RecordAt]> {
    let mut bytes = 0;
    records.chunk_by(move |before, _| {
        bytes += before.len as usize;
        let is_full = bytes >= PART_BYTES;
        if is_full {
            bytes = 0;
        }
        !is_full
    })
}

/// Asks the newest checkpoint from where on samples must be loaded.
async fn plan(parts: &PartReader, segments: &[u32]) -> Result<Progress> {
    let (Some(&first), Some(&last)) = (segments.first(), segments.last()) else {
        return Ok(Progress::default());
    };
    let newest = parts.checkpoint(last).await?;
    let newest: Option<Checkpoint> = newest.map(|r| parse(r.lsn, &r.payload)).transpose()?;
    let load_from = newest.as_ref().map_or(0, |c| c.heads_need_from);
    Ok(Progress {
        first,
        restored: false,
        load_from,
        said_so: newest.filter(|_| load_from > first),
        from_snapshot: false,
        damaged: false,
        found: replica::Found::default(),
    })
}

fn decode_all(records: &[Record], load: bool, window_ms: i64) -> Result<Decoded> {
    let mut out = Decoded::default();
    for record in records {
        let lsn = record.lsn;
        let decoded = match record.kind {
            RecordKind::Checkpoint => {
                out.checkpoint = Some(parse(lsn, &record.payload)?);
                continue;
            }
            RecordKind::CutBegun if !load => continue,
            RecordKind::Batch if !load => LoggedBatch::peek_header(&record.payload)
                .map(|header| out.noted.push((lsn, header, record.payload.len() as u64)))
                .map_err(|source| Error::Batch { lsn, source }),
            _ => Entry::read(record).map(|entry| {
                out.entries.extend(entry.map(|mut entry| {
                    if let Entry::Replayed(replayed) = &mut entry {
                        replayed.times = Some(BatchTimes::of(&replayed.columns, window_ms));
                    }
                    (lsn, entry)
                }));
            }),
        };
        match decoded {
            Ok(()) => {}
            Err(e @ Error::Batch { .. }) => {
                tracing::error!(%lsn, error = with_sources(&e), "a logged batch cannot be read");
                out.unreadable.push(lsn);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(out)
}
