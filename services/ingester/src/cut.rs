//! Cuts windows into blocks, lists them, and forgets what is listed and old.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use koios_block::{BlockId, BlockOptions, BlockParts, BlockWriter, SeriesColumns};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_head::{CutSeries, WindowState};
use koios_model::merge::settle_kinds;
use koios_model::{PartitionId, Sample, TenantId};
use koios_wal::Lsn;
use koios_wire::{FlushReply, FlushRequest, ServiceError};

use crate::apply::Answer;
use crate::ingester::Inner;
use crate::metrics::gauge_value;
use crate::record::{CutBegun, CutListed, Entry};
use crate::replica::{BegunCut, LATE_PART, Replica, ReplicaState};
use crate::settings::millis;
use crate::stored_otherwise::{CUT_PAUSES, Sent};
use crate::{Error, Result, Settings};
use koios_runtime::with_sources;

/// A window waits for what is on its way for this part of its width at most.
const SETTLE_SHARE: u32 = 10;
/// Late samples of a window that are cut without waiting for others: old data may come as fast as it can be sent.
const LATE_SAMPLES_ENOUGH: u64 = 1 << 20;
/// How long metadata stays that nobody sends, of metrics without series here: those of other partitions are not known of.
/// As far back as queries for metadata look, unless they say how far.
const METADATA_KEEP_MS: i64 = 24 * 3_600_000;
/// How often such metadata is looked for: there may be much, and readers wait meanwhile.
const METADATA_LOOK: Duration = Duration::from_secs(3600);
/// Tenants cut at a time.
const CUTS_AT_A_TIME: usize = 2;

impl Inner {
    /// Cuts what is due, for ever. A bucket that is away only makes the rounds rarer.
    pub(crate) async fn cut_forever(self: Arc<Self>) {
        let mut failures = 0u32;
        loop {
            let ok = self.cut_round().await;
            failures = if ok { 0 } else { failures.saturating_add(1) };
            self.deps.runtime.clock.sleep(self.wait_after(failures)).await;
        }
    }

    /// Exponential backoff with jitter after failures, else the usual interval.
    fn wait_after(&self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else {
            return self.settings.cut_interval;
        };
        let (first, longest) = self.settings.bucket_backoff;
        let wait = first.saturating_mul(1 << doublings.min(20)).min(longest);
        let half = u64::try_from(wait.as_millis() / 2).unwrap_or(u64::MAX);
        Duration::from_millis(half + self.deps.runtime.rng.below(half.saturating_add(1)))
    }

    /// One look at everything; false when the bucket or the log failed, which would fail other cuts too.
    async fn cut_round(self: &Arc<Self>) -> bool {
        let failed = AtomicBool::new(false);
        let freed = || self.store.metrics.cuts.get() + self.store.metrics.samples_forgotten.get();
        let freed_before = freed();
        let replicas = self.store.replicas();
        let cut = |replica: Arc<Replica>| {
            let failed = &failed;
            async move {
                // Once the bucket failed, further tenants would only wait for it too.
                if !failed.load(Ordering::Relaxed)
                    && let Err(error) = self.back_up_late(&replica).await
                {
                    failed.fetch_or(error.is_shared(), Ordering::Relaxed);
                    self.report_late(&replica, &error);
                }
                if !failed.load(Ordering::Relaxed)
                    && let Err(error) = self.cut_due(&replica).await
                {
                    failed.fetch_or(error.is_shared(), Ordering::Relaxed);
                    self.report_cut(&replica, &error);
                }
                self.forget(&replica);
            }
        };
        stream::iter(replicas)
            .for_each_concurrent(CUTS_AT_A_TIME, cut)
            .await;
        self.truncate().await;
        if freed() != freed_before {
            // A cut takes half as much again as the head for a few seconds.
            let runtime = &self.deps.runtime;
            runtime.memory.freed(runtime.clock.elapsed());
        }
        self.measure();
        !failed.into_inner()
    }

    fn report_cut(&self, replica: &Replica, error: &Error) {
        let (partition, tenant) = &replica.key;
        let error = with_sources(error);
        tracing::warn!(%partition, %tenant, error, "cut failed, nothing is forgotten; it will be tried again");
        self.store.metrics.cut_failures.inc();
    }

    async fn cut_due(&self, replica: &Arc<Replica>) -> Result<()> {
        let due = {
            let clock = &self.deps.runtime.clock;
            let kept_from_ms = clock.now_ms().saturating_sub(longest_uncut_ms(&self.settings));
            let now = Now {
                elapsed: clock.elapsed(),
                rank: self.ranks(replica.key.0),
                waited_below: self.store.segments.lock().first_sealed_after(kept_from_ms),
            };
            due_windows(&mut replica.state.write(), &self.settings, &now)
        };
        if !due.is_empty() {
            self.check_late(replica).await?;
        }
        for window in due {
            let windows = replica.state.read().head.windows();
            if !windows.iter().any(|w| w.start == window && has_uncut(w)) {
                continue;
            }
            let (now, sent) = (self.deps.runtime.clock.elapsed(), Sent::Cut(window));
            if self.stored_otherwise.waits(&replica.key, sent, now).is_some() {
                continue;
            }
            let cut = self.cut_window(replica, window).await;
            let now = self.deps.runtime.clock.elapsed();
            match &cut {
                Ok(_) => self.stored_otherwise.forget(&replica.key, sent),
                Err(e) if is_altered(e) => self.stored_otherwise.note(&replica.key, sent, now, CUT_PAUSES),
                // Of no use to try again at once: the next try is as late as for late samples.
                Err(e) if !e.is_shared() => {
                    replica.state.write().cut_at.insert(window, now);
                }
                Err(_) => {}
            }
            cut?;
        }
        Ok(())
    }

    /// Has late samples compared with what is held, so that windows of which only repetitions came are not cut again, and a
    /// cut, for which the log waits, finds little to do.
    async fn check_late(&self, replica: &Arc<Replica>) -> Result<()> {
        let parts = replica.state.read().head.series_count() / LATE_PART;
        for _ in 0..=parts {
            let checking = Arc::clone(replica);
            let check = move || checking.state.write().head.check_late(LATE_PART);
            if !self.pools.long.run(check).await? {
                break;
            }
        }
        Ok(())
    }

    /// This member's place among the replicas of a partition, and how many there are.
    fn ranks(&self, partition: PartitionId) -> (usize, usize) {
        let state = self.deps.state.current();
        let Some(p) = state.partition(partition) else {
            return (0, 1);
        };
        let at = p.replicas.iter().position(|r| r.member == self.deps.member);
        (at.unwrap_or(0), p.replicas.len().max(1))
    }

    /// Cuts one window and returns once listed blocks hold it.
    async fn cut_window(&self, replica: &Replica, window_start_ms: i64) -> Result<FlushReply> {
        let _one_at_a_time = replica.cutting.lock().await;
        let tenant = &replica.key.1;
        let started = self.deps.runtime.clock.elapsed();
        // Asked first, so that a bucket that is away costs no cut.
        let mut manifest = self.newest_manifest(replica).await?;
        if manifest.version == 0 {
            // Before the block is named: should this member end between its upload and the commit, the block is then an upload that
            // was never listed, and not what is left of a manifest that is lost.
            let writer = Writer::partition(&self.deps.member, replica.key.0, self.epoch_of(replica));
            let begun = self.deps.manifests.begin(tenant, &writer).await;
            self.note_bucket(begun.as_ref().err());
            manifest = begun?;
        }
        // First, so that the block is clean of them.
        self.apply_deletions(replica, &manifest).await?;
        let block = BlockId::new(self.deps.runtime.clock.now_ms(), self.deps.runtime.rng.u128());
        let begun = self.begin_cut(replica, window_start_ms, block).await?;
        let samples = begun.cut.samples;
        if begun.cut.is_empty() {
            return Ok(FlushReply::default());
        }
        let covered = manifest.covered(replica.key.0, begun.cut.window);
        let is_covered = begun.batches.as_ref().is_some_and(|b| covered.includes(b));
        let listed = if is_covered {
            Ok((manifest.version, FlushReply::default()))
        } else {
            self.upload(replica, block, begun).await
        };
        let (version, reply) = match listed {
            Ok(listed) => listed,
            Err(e) => {
                self.note_bucket(match &e {
                    Error::Bucket(error) => Some(&**error),
                    _ => None,
                });
                replica.state.write().abandon(block);
                return Err(e);
            }
        };
        self.list_cut(replica, block, version).await?;
        let took = self.deps.runtime.clock.elapsed().saturating_sub(started);
        self.store.metrics.cut_seconds.observe(took.as_secs_f64());
        self.store.metrics.cuts.inc();
        self.store.metrics.cut_samples.inc_by(samples);
        let mut state = replica.state.write();
        state
            .cut_at
            .insert(window_start_ms, self.deps.runtime.clock.elapsed());
        Ok(reply)
    }

    /// Asks the bucket for the newest version of the tenant's manifest.
    pub(crate) async fn newest_manifest(&self, replica: &Replica) -> Result<Arc<Manifest>> {
        let (tenant, manifests) = (&replica.key.1, &self.deps.manifests);
        let manifest = manifests.probe(tenant).await;
        self.note_bucket(manifest.as_ref().err());
        let manifest = manifest?;
        // One that shows less than this member has seen there lost versions: a block that is listed in it would hide that.
        let announced = self.announced(&replica.key);
        match manifest.version < announced {
            true => Ok(manifests.at_least(tenant, announced).await?),
            false => Ok(manifest),
        }
    }

    async fn begin_cut(&self, replica: &Replica, window_start_ms: i64, block: BlockId) -> Result<BegunCut> {
        let (partition, tenant) = replica.key.clone();
        let entry = Entry::CutBegun(CutBegun {
            partition,
            tenant,
            window_start_ms,
            window_ms: self.store.window_ms,
            block,
        });
        // Between the parts of a deletion, what it keeps would be taken into a block that it masks.
        let _undivided = replica.deleting.lock().await;
        match self.log(entry).await? {
            Answer::Cut(begun) => Ok(*begun),
            Answer::Pushed(_) | Answer::Done => Err(Error::NotRunning {
                member: self.deps.member.clone(),
                what: "has no log",
            }),
        }
    }

    /// The epoch of a partition under which this member commits.
    pub(crate) fn epoch_of(&self, replica: &Replica) -> u64 {
        let ledger = self.store.ledger.lock();
        ledger.adopted.get(&replica.key.0).copied().unwrap_or(0)
    }

    /// Writes, uploads and lists a cut's block; gives the manifest version that lists it.
    async fn upload(&self, replica: &Replica, block: BlockId, begun: BegunCut) -> Result<(u64, FlushReply)> {
        let (partition, tenant) = replica.key.clone();
        let epoch = self.epoch_of(replica);
        let covers = BTreeMap::from([(partition, begun.held.clone())]);
        let options = BlockOptions {
            partitions: vec![partition],
            epoch,
            clean_up_to: begun.clean_up_to,
            starts: begun.cut.series.iter().any(CutSeries::has_starts),
            ..BlockOptions::new(block, tenant.clone(), begun.cut.window)
        };
        let key = replica.key.clone();
        let encoded = self
            .pools
            .long
            .run(move || encode(options, &begun).map_err(|e| e.into_error(key)))
            .await??;
        let Some(parts) = encoded else {
            return Ok((0, FlushReply::default()));
        };
        let manifests = &self.deps.manifests;
        let writer = Writer::partition(&self.deps.member, partition, epoch);
        let uploaded = manifests.bucket().upload_block(&tenant, &parts).await;
        let entry = ManifestBlock::new(&parts.meta, covers);
        if let Err(BucketError::Altered { .. }) = &uploaded {
            self.bury(&tenant, &writer, std::slice::from_ref(&entry)).await;
        }
        uploaded?;
        let listed = manifests
            .commit(&tenant, &writer, |m| m.add_block(entry.clone()))
            .await?;
        let (series, samples) = (parts.meta.series, parts.meta.samples);
        tracing::info!(%tenant, %partition, %block, series, samples, version = listed.version, "block listed");
        Ok((listed.version, FlushReply { blocks: 1, samples }))
    }

    /// Declares blocks dead that were uploaded in vain, as one was not stored as it was sent: their bytes go then. What cannot be said now
    /// their age tells later.
    pub(crate) async fn bury(&self, tenant: &TenantId, writer: &Writer, blocks: &[ManifestBlock]) {
        let bury = |m: &mut Manifest| {
            for block in blocks {
                m.bury_upload(block.block, &block.parts);
            }
            Ok(())
        };
        if let Err(error) = self.deps.manifests.commit(tenant, writer, bury).await {
            let blocks = blocks.len();
            tracing::debug!(%tenant, blocks, %error, "what was uploaded in vain stays until it is old");
        }
    }

    /// Logs that a cut is listed. When that fails the samples are given back: the next cut of the window finds the
    /// block in the manifest.
    async fn list_cut(&self, replica: &Replica, block: BlockId, manifest_version: u64) -> Result<()> {
        let (partition, tenant) = replica.key.clone();
        let entry = Entry::CutListed(CutListed {
            partition,
            tenant,
            block,
            manifest_version,
        });
        let logged = self.log(entry).await;
        if logged.is_err() {
            replica.state.write().abandon(block);
        }
        logged.map(|_| ())
    }

    /// Forgets listed samples that are older than the newest ones by the head's keep.
    fn forget(&self, replica: &Replica) {
        // A snapshot is being written, or a cut: the next round forgets.
        let Ok(_no_cut) = replica.cutting.try_lock() else {
            return;
        };
        let keep = millis(self.settings.head_keep);
        let now = self.deps.runtime.clock.now_ms();
        let mut state = replica.state.write();
        let newest = state.newest_ms.map_or(now, |n| n.max(now));
        let dropped = state.forget(newest.saturating_sub(keep));
        self.store.metrics.samples_forgotten.inc_by(dropped);
        let elapsed = self.deps.runtime.clock.elapsed();
        if elapsed.saturating_sub(state.metadata_looked_at) >= METADATA_LOOK {
            state.metadata_looked_at = elapsed;
            state.head.forget_metadata(now.saturating_sub(METADATA_KEEP_MS));
        }
    }

    /// Cuts and lists everything of one tenant, or of all.
    pub(crate) async fn flush(self: &Arc<Self>, request: FlushRequest) -> Result<FlushReply, ServiceError> {
        self.wal().map_err(|e| self.refuse(&e))?;
        let (this, wait) = (Arc::clone(self), request.wait);
        let (answer, answered) = tokio::sync::oneshot::channel();
        // A task of its own: a cut that has begun must end even when the caller goes away, lest the next block of its
        // window claims batches whose samples only the unfinished one took.
        self.deps.tasks.spawn_cancelled("ingester flush", async move {
            let flushed = this.flush_now(&request).await;
            if let Err(error) = &flushed {
                tracing::warn!(%error, "flush failed");
            }
            // Nobody listens when the caller did not wait or went away.
            let _ = answer.send(flushed);
        });
        if !wait {
            return Ok(FlushReply::default());
        }
        answered.await.unwrap_or_else(|_| {
            Err(ServiceError::unavailable(
                "the ingester is stopping: flush again later",
            ))
        })
    }

    /// Goes on past what fails, which may be one tenant's alone, and gives the first failure in the end.
    async fn flush_now(self: &Arc<Self>, request: &FlushRequest) -> Result<FlushReply, ServiceError> {
        let mut total = FlushReply::default();
        let mut failed = None;
        for replica in self.store.replicas() {
            if request.tenant.as_ref().is_some_and(|t| *t != replica.key.1) {
                continue;
            }
            if let Err(error) = self.flush_replica(&replica, &mut total).await {
                self.report_cut(&replica, &error);
                failed.get_or_insert_with(|| self.refuse(&error));
                // Further tenants would only wait for what failed, too.
                if error.is_shared() {
                    break;
                }
            }
            self.forget(&replica);
        }
        self.truncate().await;
        failed.map_or(Ok(total), Err)
    }

    /// Cuts and lists all windows of a replica, or as many as go, and adds up what was listed.
    async fn flush_replica(&self, replica: &Arc<Replica>, total: &mut FlushReply) -> Result<()> {
        self.check_late(replica).await?;
        let mut failed = match self.back_up_late(replica).await {
            Err(e) if e.is_shared() => return Err(e),
            backed_up => backed_up.err(),
        };
        let windows = replica.state.read().head.windows();
        for w in windows
            .iter()
            .filter(|w| has_uncut(w) || w.unlisted_from_lsn.is_some())
        {
            match self.cut_window(replica, w.start).await {
                Ok(flushed) => {
                    self.stored_otherwise.forget(&replica.key, Sent::Cut(w.start));
                    total.blocks += flushed.blocks;
                    total.samples += flushed.samples;
                }
                Err(e) if e.is_shared() => return Err(e),
                Err(e) => {
                    failed.get_or_insert(e);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Updates the gauges.
    fn measure(&self) {
        let (mut series, mut bytes) = (0, 0);
        for replica in self.store.replicas() {
            let state = replica.state.read();
            series += state.head.series_count();
            bytes += state.head.memory_bytes();
        }
        let metrics = &self.store.metrics;
        metrics.series.set(gauge_value(series));
        metrics.head_bytes.set(gauge_value(bytes));
        let log_bytes = self.store.segments.lock().bytes();
        metrics
            .log_bytes
            .set(i64::try_from(log_bytes).unwrap_or(i64::MAX));
        if let Ok(wal) = self.wal() {
            metrics.segments.set(gauge_value(wal.segments().len()));
        }
    }
}

/// Whether a block was not stored as it was sent.
pub(crate) fn is_altered(error: &Error) -> bool {
    matches!(error, Error::Bucket(e) if matches!(**e, BucketError::Altered { .. }))
}

/// What decides whether a window is due, beside its state.
struct Now {
    /// By the monotonic clock.
    elapsed: Duration,
    /// This member's place among the partition's, and how many they are.
    rank: (usize, usize),
    /// What is in log segments below it has waited for its cut for long enough, whatever still comes.
    waited_below: u32,
}

/// How long a window keeps sealed log segments from going, whatever its tenant sends or does not: all share the log. It is as
/// long as a window is cut after its first sample where all goes on as usual, and somewhat more.
pub(crate) fn longest_uncut_ms(settings: &Settings) -> i64 {
    millis(settings.block_window.saturating_add(settings.quiet_after))
}

/// The windows to cut now. Members take turns by window; one whose turn it is not waits, and finds the other's block.
fn due_windows(state: &mut ReplicaState, settings: &Settings, now: &Now) -> Vec<i64> {
    let newest = state.newest_ms.unwrap_or(i64::MIN);
    let windows = state.head.windows();
    let held: Vec<i64> = windows.iter().map(|w| w.start).collect();
    state.came_at.retain(|start, _| held.binary_search(start).is_ok());
    let mut is_quiet = |w: &WindowState| {
        let came = *state.came_at.entry(w.start).or_insert(now.elapsed);
        now.elapsed.saturating_sub(came) >= settings.quiet_after
    };
    let has_waited = |w: &WindowState| {
        let from = w.unlisted_from_lsn.map(|lsn| Lsn(lsn).segment());
        from.is_some_and(|segment| segment < now.waited_below)
    };
    let settle = millis(settings.cut_settle.min(settings.block_window / SETTLE_SHARE));
    let has_settled = |w: &WindowState| newest > w.range.max.saturating_add(settle);
    let mut passed = |w: &WindowState| has_uncut(w) && (has_settled(w) || is_quiet(w) || has_waited(w));
    let due: Vec<i64> = windows.iter().filter(|w| passed(w)).map(|w| w.start).collect();
    state
        .due_since
        .retain(|start, _| due.binary_search(start).is_ok());
    state.cut_at.retain(|start, _| held.binary_search(start).is_ok());
    let forgotten_below_ms = state.head.forgotten_below_ms();
    let ready = |w: &&WindowState| {
        let since = *state.due_since.entry(w.start).or_insert(now.elapsed);
        let turn = u32::try_from(turn_of(w.start, state.window_ms(), now.rank)).unwrap_or(0);
        // Exemplars alone come after the cut of their window, as do samples of one that was forgotten, whose cut nobody
        // remembers: they wait for others, unless they are worth a block.
        let is_forgotten = w.range.max < forgotten_below_ms && w.uncut_samples < LATE_SAMPLES_ENOUGH;
        let rest = match w.uncut_samples == 0 || is_forgotten {
            true => settings.late_cut_interval,
            false => Duration::ZERO,
        };
        let waits = settings.cut_stagger.saturating_mul(turn).saturating_add(rest);
        let waited = now.elapsed.saturating_sub(since) >= waits;
        let late = state.cut_at.get(&w.start);
        let settled = late.is_none_or(|at| now.elapsed.saturating_sub(*at) >= settings.late_cut_interval);
        waited && settled
    };
    let due = windows.iter().filter(|w| due.binary_search(&w.start).is_ok());
    due.filter(ready).map(|w| w.start).collect()
}

/// Whether there is anything of a window that no cut has taken, as far as is known.
fn has_uncut(w: &WindowState) -> bool {
    w.uncut_samples > 0 || w.uncut_exemplars > 0
}

/// How many other members' turns come before this one's.
fn turn_of(window_start_ms: i64, window_ms: i64, (at, of): (usize, usize)) -> usize {
    let of_i = i64::try_from(of).unwrap_or(1).max(1);
    let first = window_start_ms.div_euclid(window_ms.max(1)).rem_euclid(of_i);
    (at + of - usize::try_from(first).unwrap_or(0)) % of
}

/// Why a cut cannot be encoded.
enum EncodeError {
    Block(koios_block::Error),
    Chunk(koios_chunk::Error),
}

impl EncodeError {
    fn into_error(self, (partition, tenant): (PartitionId, TenantId)) -> Error {
        match self {
            Self::Block(source) => Error::Block {
                tenant,
                partition,
                source,
            },
            Self::Chunk(source) => Error::Chunk {
                tenant,
                partition,
                source,
            },
        }
    }
}

fn encode(options: BlockOptions, begun: &BegunCut) -> Result<Option<BlockParts>, EncodeError> {
    let mut writer = BlockWriter::new(options).map_err(EncodeError::Block)?;
    let (mut samples, mut histograms): (Vec<Sample>, Vec<_>) = (Vec::new(), Vec::new());
    let (mut timestamps, mut values) = (Vec::new(), Vec::new());
    let mut starts = Vec::new();
    for series in &begun.cut.series {
        series.samples(&mut samples).map_err(EncodeError::Chunk)?;
        series.histograms(&mut histograms).map_err(EncodeError::Chunk)?;
        series.starts(&mut starts).map_err(EncodeError::Chunk)?;
        settle_kinds(&mut samples, &mut histograms);
        timestamps.clear();
        values.clear();
        for s in &samples {
            timestamps.push(s.t);
            values.push(s.v);
        }
        let metadata = begun.metadata.get(series.labels.metric_name());
        let columns = SeriesColumns {
            timestamps: &timestamps,
            values: &values,
            histograms: &histograms,
            starts: &starts,
        };
        writer
            .push_columns(&series.labels, metadata, columns)
            .map_err(EncodeError::Block)?;
    }
    for (labels, exemplars) in &begun.exemplars {
        writer
            .push_exemplars(labels, exemplars)
            .map_err(EncodeError::Block)?;
    }
    writer.finish().map_err(EncodeError::Block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_take_turns_by_window() {
        for window in 0..3i64 {
            let mut turns: Vec<_> = (0..3).map(|at| turn_of(window * 10, 10, (at, 3))).collect();
            assert_eq!(turns[window as usize], 0);
            turns.sort_unstable();
            assert_eq!(turns, [0, 1, 2]);
        }
        assert_eq!(turn_of(-10, 10, (0, 1)), 0);
    }
}
