//! One import: plan, read, write, read back, commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use koios_block::{
    BlockCache, BlockId, BlockMerge, BlockMeta, BlockOptions, BlockWriter, Digest, Layout, MergeInput,
    MergedSeries, MergedWriter,
};
use koios_bucket::{Blocks, Bucket, Error as BucketError, ImportedBlock, Manifest, ManifestBlock, Writer};
use koios_model::{Histogram, TenantId, TimeRange};
use koios_runtime::{ClockHandle, Cpu, MemoryWatch, RngHandle, with_sources};
use koios_tsdb::{SeriesReader, TsdbBlock, TsdbFiles, TsdbSeries};

use crate::ImportError;
use crate::settings::{ImportSettings, Kept, millis};
use crate::windows::Windows;

/// Bytes of series that go to the writer at a time, unless one has more: some 64 Ki floats.
const BATCH_BYTES: usize = 1 << 20;
/// While memory is short it is asked again this often, and so long an import waits until it gives up what it has.
const MEMORY_EVERY: Duration = Duration::from_secs(1);
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(600);
/// Bytes kept of a block that is read back.
const READ_BACK_CELLS_BYTES: u64 = 32 << 20;
/// The same for footers and page indexes.
const READ_BACK_INDEX_BYTES: u64 = 16 << 20;

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its samples are listed, or would be if something were written.
    Imported,
    /// It was imported before: nothing was done.
    Known,
    /// It has no sample, or none that is young enough: nothing was done.
    Nothing,
}

/// What an import did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The block's name where it comes from.
    pub source: BlockId,
    /// What became of it.
    pub outcome: Outcome,
    /// Series of the source.
    pub series: u64,
    /// Samples that are listed.
    pub samples: u64,
    /// Samples that are left out because they are older than the retention.
    pub too_old: u64,
    /// How long samples are kept that are not left out.
    pub kept: Kept,
    /// Samples that its tombstones delete.
    pub deleted: u64,
    /// Samples that stood beside another of the same series and time.
    pub doubled: u64,
    /// Blocks that were written.
    pub blocks: usize,
    /// Bytes of the source: index and chunks.
    pub bytes_in: u64,
    /// Bytes of the new blocks.
    pub bytes_out: u64,
}

/// When a block came, and whether it may have been imported before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// The newest version of the tenant's manifest then: deletions made later are about its samples, too. `None` for now.
    pub version: Option<u64>,
    /// What was imported of it up to this version of the manifest does not count: it is imported once more.
    pub again_after: Option<u64>,
}

/// How far an import is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Between 0 and 1.
    pub done: f64,
    /// Samples read so far.
    pub samples: u64,
}

/// Imports blocks into a bucket.
#[derive(Clone, Debug)]
pub struct Importer {
    /// Where to.
    pub bucket: Bucket,
    /// How.
    pub settings: ImportSettings,
    /// Who, for the manifest.
    pub writer: String,
    /// Time, for names and the retention.
    pub clock: ClockHandle,
    /// Randomness, for names.
    pub rng: RngHandle,
    /// Where blocks are encoded.
    pub cpu: Cpu,
    /// Memory. While it is short nothing goes on: what is written of a block is uploaded, and the rest waits.
    pub memory: MemoryWatch,
}

/// What an import has of its source, and what it has written.
struct Job<'a> {
    tenant: &'a TenantId,
    block: TsdbBlock,
    source: BlockId,
    /// What new blocks say they came from. Compaction takes those of the same for one run, and merges it when others come.
    sources: Vec<BlockId>,
    external: BTreeMap<String, String>,
    clean_up_to: u64,
    /// Whether the tenant's manifest has a version.
    is_begun: bool,
    /// What was known of the source when the import began.
    noted: Option<ImportedBlock>,
    /// Windows that begin later were imported before.
    only_before: Option<i64>,
    /// The end of the last window that was left out.
    left_out_before: Option<i64>,
    report: Imported,
    /// Samples of the chunks that were read.
    read: u64,
    written: Vec<ManifestBlock>,
    /// Whether new blocks have a column for start timestamps: from the first one on.
    starts: bool,
    /// The part of the work that is done, and of which the pass at hand is one part more.
    passes: (usize, usize),
}

/// What becomes of the samples of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Written,
    TooOld,
    /// They were imported before.
    Known,
}

/// A block that is being written.
struct Open {
    out: BlockWriter,
    digest: Digest,
    /// Bytes of labels, which wait in memory until the block is finished.
    label_bytes: usize,
}

impl Importer {
    /// Imports one block. `watch` hears from time to time how far it is.
    ///
    /// # Errors
    /// [`ImportError`]; nothing of the block is listed then.
    pub async fn import(
        &self,
        tenant: &TenantId,
        files: Arc<dyn TsdbFiles>,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Imported, ImportError> {
        let came = Came {
            again_after: self.settings.again.then_some(u64::MAX),
            ..Came::default()
        };
        self.import_as_of(tenant, files, came, watch).await
    }

    /// As [`Self::import`], of a block that came before.
    ///
    /// # Errors
    /// Those of [`Self::import`].
    pub async fn import_as_of(
        &self,
        tenant: &TenantId,
        files: Arc<dyn TsdbFiles>,
        came: Came,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Imported, ImportError> {
        let block = TsdbBlock::open(files).await?;
        let source = BlockId::from(block.meta().ulid);
        let manifest = self.bucket.latest(tenant).await?;
        let kept = self.settings.kept(&manifest);
        let noted = manifest.imported(source).cloned();
        let counts = counting(&manifest, source, came.again_after);
        // What is imported once more is another run than what came before, which it may meet.
        let again = noted
            .is_some()
            .then(|| BlockId::new(self.clock.now_ms(), self.rng.u128()));
        let mut job = Job {
            tenant,
            source,
            sources: std::iter::once(source).chain(again).collect(),
            external: self.settings.external.of(&block.meta().external),
            // Deletions made before now are not about samples that come now.
            clean_up_to: came.version.map_or(manifest.version, |v| v.min(manifest.version)),
            is_begun: manifest.version > 0,
            only_before: counts.and_then(|n| n.left_out_before_ms),
            noted,
            left_out_before: None,
            report: Imported {
                source,
                outcome: Outcome::Known,
                series: 0,
                samples: 0,
                too_old: 0,
                kept,
                deleted: 0,
                doubled: 0,
                blocks: 0,
                bytes_in: 0,
                bytes_out: 0,
            },
            read: 0,
            written: Vec::new(),
            starts: false,
            passes: (0, 1),
            block,
        };
        if self.is_done(&manifest, source, came.again_after) {
            return Ok(job.report);
        }
        if manifest.has_deleted_since(job.clean_up_to) {
            return Err(ImportError::Deleted);
        }
        job.report.bytes_in = job.block.bytes().await?;
        let done = Box::pin(self.run(&mut job, watch)).await;
        match &done {
            // Whether they are listed is not known: if not, their age tells.
            Ok(()) | Err(ImportError::Bucket(BucketError::Unknown { .. })) => {}
            Err(_) => self.bury(&job).await,
        }
        done.map(|()| job.report)
    }

    /// Whether a block was imported, after a version if one is given, and nothing of it left out that is kept by now.
    pub(crate) fn is_done(&self, manifest: &Manifest, source: BlockId, again_after: Option<u64>) -> bool {
        let kept_from = self.kept_from(manifest);
        counting(manifest, source, again_after).is_some_and(|i| i.is_whole(kept_from))
    }

    async fn run(
        &self,
        job: &mut Job<'_>,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImportError> {
        let windows = self.plan(job).await?;
        let kept_from = job.report.kept.since(self.clock.now_ms());
        job.passes = (0, windows.len());
        for window in windows {
            let fate = if kept_from.is_some_and(|from| window.max < from) {
                Fate::TooOld
            } else if job.only_before.is_some_and(|before| window.min >= before) {
                Fate::Known
            } else {
                Fate::Written
            };
            Box::pin(self.pass(job, window, fate, watch)).await?;
            job.passes.0 += 1;
        }
        if let Some(said) = job.block.meta().samples.filter(|said| *said != job.read) {
            return Err(ImportError::Count {
                found: job.read,
                said,
            });
        }
        job.report.blocks = job.written.len();
        job.report.bytes_out = job.written.iter().map(ManifestBlock::bytes).sum();
        job.report.outcome = match job.report.samples {
            0 => Outcome::Nothing,
            _ => Outcome::Imported,
        };
        if !job.written.is_empty() && !self.commit(job).await? {
            self.bury(job).await;
            job.report = Imported {
                outcome: Outcome::Known,
                too_old: 0,
                samples: 0,
                blocks: 0,
                bytes_out: 0,
                ..job.report
            };
        }
        Ok(())
    }

    /// The windows with samples, from the index.
    async fn plan(&self, job: &mut Job<'_>) -> Result<Vec<TimeRange>, ImportError> {
        let range_ms = millis(self.settings.block_range);
        let mut windows = Windows::new(range_ms);
        let mut refused = None;
        let note = |samples: TimeRange| {
            if refused.is_none() {
                refused = windows.note(samples).err();
            }
            Ok(())
        };
        job.report.series = job.block.scan_chunks(note).await?;
        match refused {
            Some(error) => Err(error),
            None => Ok(windows.finish()),
        }
    }

    /// The first time of a tenant that is kept; `None` when all are.
    pub(crate) fn kept_from(&self, manifest: &Manifest) -> Option<i64> {
        self.settings.kept(manifest).since(self.clock.now_ms())
    }

    /// Reads one window, and writes it if that is its fate.
    async fn pass(
        &self,
        job: &mut Job<'_>,
        window: TimeRange,
        fate: Fate,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImportError> {
        let mut reader = job.block.series(window, &job.external);
        let writes = fate == Fate::Written && !self.settings.dry_run;
        let mut open: Option<Open> = None;
        let mut samples = 0;
        loop {
            if self.is_memory_short() {
                // It is most of what is held, and gone when it is uploaded.
                if let Some(open) = open.take() {
                    Box::pin(self.finish(job, open)).await?;
                }
                self.wait_for_memory().await?;
            }
            let batch = next_batch(&mut reader, self.room(open.as_ref())).await?;
            watch(job.progress(&reader));
            if batch.is_empty() {
                break;
            }
            samples += batch
                .iter()
                .map(|s| (s.samples.len() + s.histograms.len()) as u64)
                .sum::<u64>();
            if !writes {
                continue;
            }
            if !job.starts && batch.iter().any(|s| !s.starts.is_empty()) {
                // The column is there for a whole block or not at all.
                job.starts = true;
                if let Some(open) = open.take() {
                    Box::pin(self.finish(job, open)).await?;
                }
            }
            let mut current = match open.take() {
                Some(open) => open,
                None => self.begin(job, window).await?,
            };
            current = Box::pin(self.cpu.run(move || push_all(current, &batch))).await??;
            if self.is_full(&current) {
                Box::pin(self.finish(job, current)).await?;
            } else {
                open = Some(current);
            }
        }
        if let Some(open) = open {
            Box::pin(self.finish(job, open)).await?;
        }
        let stats = reader.stats();
        job.read += stats.samples;
        match fate {
            Fate::TooOld if samples == 0 => {}
            Fate::TooOld => {
                job.report.too_old += samples;
                job.left_out_before = Some(window.max.saturating_add(1));
            }
            Fate::Known => {}
            Fate::Written => {
                job.report.samples += samples;
                job.report.deleted += stats.deleted;
                job.report.doubled += stats.doubled;
            }
        }
        Ok(())
    }

    fn is_memory_short(&self) -> bool {
        self.memory.check(self.clock.elapsed()).is_err()
    }

    /// Waits until there is memory again, but not for ever: others may need what is held of the source's index.
    async fn wait_for_memory(&self) -> Result<(), ImportError> {
        let since = self.clock.elapsed();
        while let Err(short) = self.memory.check(self.clock.elapsed()) {
            if self.clock.elapsed().saturating_sub(since) >= MEMORY_WAIT_MAX {
                return Err(short.into());
            }
            self.clock.sleep(MEMORY_EVERY).await;
        }
        Ok(())
    }

    async fn begin(&self, job: &mut Job<'_>, window: TimeRange) -> Result<Open, ImportError> {
        if !job.is_begun {
            // Before anything is named: what an import leaves that is cut short is then younger than the manifest, and collected.
            let writer = Writer::import(&self.writer);
            self.bucket.begin(job.tenant, &writer).await?;
            job.is_begun = true;
        }
        let block = BlockId::new(self.clock.now_ms(), self.rng.u128());
        let options = BlockOptions {
            level: 1,
            sources: job.sources.clone(),
            clean_up_to: job.clean_up_to,
            starts: job.starts,
            layout: Layout::compacted(),
            ..BlockOptions::new(block, job.tenant.clone(), window)
        };
        Ok(Open {
            out: BlockWriter::new(options)?,
            digest: Digest::default(),
            label_bytes: 0,
        })
    }

    fn is_full(&self, open: &Open) -> bool {
        let settings = &self.settings;
        open.out.encoded_bytes() >= settings.block_bytes
            || open.label_bytes >= settings.block_bytes.saturating_mul(2)
            || open.out.series_count() >= settings.block_series
    }

    /// Series that a block may still take.
    fn room(&self, open: Option<&Open>) -> usize {
        let taken = open.map_or(0, |open| open.out.series_count());
        self.settings.block_series.saturating_sub(taken).max(1)
    }

    /// Ends a block, uploads it, and reads all of it back.
    async fn finish(&self, job: &mut Job<'_>, open: Open) -> Result<(), ImportError> {
        let Open { out, digest, .. } = open;
        let Some(parts) = self.cpu.run(move || out.finish()).await?? else {
            return Ok(());
        };
        let meta = parts.meta.clone();
        let entry = ManifestBlock::new(&meta, BTreeMap::new());
        // Noted first, so that what arrived of it is declared dead if the rest does not.
        job.written.push(entry.clone());
        self.bucket.send_block(job.tenant, &parts).await?;
        drop(parts);
        let found = self.read_back(job.tenant, &entry).await?;
        if found != digest {
            return Err(ImportError::Differs {
                tenant: job.tenant.clone(),
                block: meta.block,
                written: digest.samples(),
                found: found.samples(),
            });
        }
        self.note_block(job, &meta);
        Ok(())
    }

    fn note_block(&self, job: &Job<'_>, meta: &BlockMeta) {
        tracing::debug!(
            tenant = %job.tenant, source = %job.source, block = %meta.block, series = meta.series, samples = meta.samples,
            "block written and read back"
        );
    }

    async fn read_back(&self, tenant: &TenantId, entry: &ManifestBlock) -> Result<Digest, ImportError> {
        let cache = Arc::new(BlockCache::new(READ_BACK_CELLS_BYTES, READ_BACK_INDEX_BYTES));
        let blocks = Blocks::new(self.bucket.clone(), cache, 0).with_cpu(self.cpu.clone());
        let reader = blocks.open(tenant, entry).await?;
        let mut merge = BlockMerge::new([MergeInput::from(reader)]);
        let mut digest = Digest::default();
        while let Some(series) = merge.next().await? {
            digest.add(&series);
        }
        Ok(digest)
    }

    /// Lists what was written; false when another import of the same block was faster.
    async fn commit(&self, job: &Job<'_>) -> Result<bool, ImportError> {
        let (mut known, mut deleted) = (false, false);
        let list = |m: &mut Manifest| {
            let noted = m.imported(job.source);
            known = noted.is_some() && noted.map(|n| n.version) != job.noted.as_ref().map(|n| n.version);
            deleted = m.has_deleted_since(job.clean_up_to);
            if known || deleted {
                let reason = match known {
                    true => format!("block {} is imported already", job.source),
                    false => ImportError::Deleted.to_string(),
                };
                return Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason,
                });
            }
            job.written
                .iter()
                .try_for_each(|entry| m.add_block(entry.clone()))?;
            m.note_import(job.source, job.report.samples, job.left_out_before);
            Ok(())
        };
        let writer = Writer::import(&self.writer);
        let done = self.bucket.commit(job.tenant, &writer, list).await;
        match done {
            Ok(_) => Ok(true),
            Err(_) if known => Ok(false),
            Err(_) if deleted => Err(ImportError::Deleted),
            Err(e) => Err(e.into()),
        }
    }

    /// Declares blocks dead that were uploaded in vain; what cannot be said now their age tells later.
    async fn bury(&self, job: &Job<'_>) {
        if job.written.is_empty() {
            return;
        }
        let bury = |m: &mut Manifest| {
            for entry in &job.written {
                m.bury_upload(entry.block, &entry.parts);
            }
            Ok(())
        };
        let writer = Writer::import(&self.writer);
        if let Err(error) = self.bucket.commit(job.tenant, &writer, bury).await {
            let error = with_sources(&error);
            tracing::debug!(tenant = %job.tenant, error, "blocks uploaded in vain stay until they are old");
        }
    }
}

/// What is known of a block that was imported, if that counts.
fn counting(manifest: &Manifest, source: BlockId, again_after: Option<u64>) -> Option<&ImportedBlock> {
    let noted = manifest.imported(source);
    noted.filter(|n| again_after.is_none_or(|after| n.version > after))
}

impl Job<'_> {
    fn progress(&self, reader: &SeriesReader) -> Progress {
        let (passes, of) = self.passes;
        Progress {
            done: (passes as f64 + reader.progress()) / of.max(1) as f64,
            samples: self.read + reader.stats().samples,
        }
    }
}

/// The next series, at most so many.
async fn next_batch(reader: &mut SeriesReader, series_max: usize) -> Result<Vec<MergedSeries>, ImportError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while bytes < BATCH_BYTES
        && batch.len() < series_max
        && let Some(series) = reader.next().await?
    {
        bytes += bytes_of(&series);
        batch.push(MergedSeries {
            labels: series.labels,
            metadata: None,
            samples: series.samples,
            histograms: series.histograms,
            starts: series.starts,
        });
    }
    Ok(batch)
}

/// What a series takes in memory.
fn bytes_of(series: &TsdbSeries) -> usize {
    let histograms = series.histograms.iter();
    let histograms = histograms.map(|(_, h)| size_of::<(i64, Histogram)>() + h.heap_bytes());
    size_of::<TsdbSeries>()
        + series.labels.as_ref().packed().len()
        + size_of_val(series.samples.as_slice())
        + size_of_val(series.starts.as_slice())
        + histograms.sum::<usize>()
}

fn push_all(mut open: Open, batch: &[MergedSeries]) -> koios_block::Result<Open> {
    let mut writer = MergedWriter::default();
    for series in batch {
        writer.push(series, &mut open.out)?;
        open.digest.add(series);
        open.label_bytes += series.labels.as_ref().packed().len();
    }
    Ok(open)
}
