//! One import: plan, read, write, read back, commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use koios_block::{
    BlockCache, BlockId, BlockMerge, BlockMeta, BlockOptions, BlockWriter, Digest, Layout, MergeInput,
    MergedSeries, MergedWriter,
};
use koios_bucket::{Blocks, Bucket, Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_model::{Histogram, TenantId, TimeRange};
use koios_runtime::{ClockHandle, Cpu, MemoryWatch, RngHandle, with_sources};
use koios_tsdb::{SeriesReader, TsdbBlock, TsdbFiles, TsdbSeries};

use crate::ImportError;
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

/// What becomes of labels that a block's `meta.json` names and its series do not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalLabels {
    /// Every series gets them, but for these.
    AddExcept(BTreeSet<String>),
    /// None are added.
    Ignore,
}

impl ExternalLabels {
    /// Those that are added. Names that begin with two underscores are notes that Mimir makes for itself.
    fn of(&self, external: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let Self::AddExcept(left_out) = self else {
            return BTreeMap::new();
        };
        let added = external.iter().filter(|(name, value)| {
            !name.starts_with("__") && !value.is_empty() && !left_out.contains(*name)
        });
        added.map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// Knows how long samples of tenants are kept.
pub trait Retentions: fmt::Debug + Send + Sync {
    /// The longest that any sample of a tenant is; zero for ever.
    fn of(&self, tenant: &TenantId) -> Duration;
}

/// How blocks are imported.
#[derive(Clone, Debug)]
pub struct ImportSettings {
    /// Width of the windows that blocks are cut for. Default 2 h.
    pub block_range: Duration,
    /// Windows that ended longer ago are left out; zero takes all. Default 150 days.
    pub retention: Duration,
    /// Says it by tenant instead.
    pub retentions: Option<Arc<dyn Retentions>>,
    /// A block ends at about so many bytes: it is in memory until it is uploaded. Default 128 MiB.
    pub block_bytes: usize,
    /// The same for series. Default 500,000.
    pub block_series: usize,
    /// What becomes of external labels. Default: all are added.
    pub external: ExternalLabels,
    /// Whether everything is read and checked, and nothing written. Default false.
    pub dry_run: bool,
}

impl Default for ImportSettings {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            block_range: 2 * HOUR,
            retention: 150 * 24 * HOUR,
            retentions: None,
            block_bytes: 128 << 20,
            block_series: 500_000,
            external: ExternalLabels::AddExcept(BTreeSet::new()),
            dry_run: false,
        }
    }
}

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
    external: BTreeMap<String, String>,
    clean_up_to: u64,
    report: Imported,
    /// Samples of the chunks that were read.
    read: u64,
    written: Vec<ManifestBlock>,
    /// Whether new blocks have a column for start timestamps: from the first one on.
    starts: bool,
    /// The part of the work that is done, and of which the pass at hand is one part more.
    passes: (usize, usize),
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
        let block = TsdbBlock::open(files).await?;
        let source = BlockId::from(block.meta().ulid);
        let manifest = self.bucket.latest(tenant).await?;
        let mut job = Job {
            tenant,
            source,
            external: self.settings.external.of(&block.meta().external),
            // Deletions made before now are not about samples that come now.
            clean_up_to: manifest.version,
            report: Imported {
                source,
                outcome: Outcome::Known,
                series: 0,
                samples: 0,
                too_old: 0,
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
        if manifest.is_imported(source) {
            return Ok(job.report);
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

    async fn run(
        &self,
        job: &mut Job<'_>,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImportError> {
        let windows = self.plan(job).await?;
        let kept_from = self.kept_from(job.tenant);
        job.passes = (0, windows.len());
        for window in windows {
            let too_old = kept_from.is_some_and(|from| window.max < from);
            Box::pin(self.pass(job, window, too_old, watch)).await?;
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
    pub(crate) fn kept_from(&self, tenant: &TenantId) -> Option<i64> {
        let of_tenant = self.settings.retentions.as_ref().map(|r| r.of(tenant));
        let retention = of_tenant.unwrap_or(self.settings.retention);
        (!retention.is_zero()).then(|| self.clock.now_ms().saturating_sub(millis(retention)))
    }

    /// Reads one window, and writes it unless it is too old.
    async fn pass(
        &self,
        job: &mut Job<'_>,
        window: TimeRange,
        too_old: bool,
        watch: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), ImportError> {
        let mut reader = job.block.series(window, &job.external);
        let writes = !too_old && !self.settings.dry_run;
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
                None => self.begin(job, window)?,
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
        if too_old {
            job.report.too_old += samples;
        } else {
            job.report.samples += samples;
            job.report.deleted += stats.deleted;
            job.report.doubled += stats.doubled;
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

    fn begin(&self, job: &Job<'_>, window: TimeRange) -> Result<Open, ImportError> {
        let block = BlockId::new(self.clock.now_ms(), self.rng.u128());
        let options = BlockOptions {
            level: 1,
            // Compaction takes those of one source for one run, and merges it when others come.
            sources: vec![job.source],
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
        self.bucket.upload_block(job.tenant, &parts).await?;
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
        let mut known = false;
        let list = |m: &mut Manifest| {
            known = m.is_imported(job.source);
            if known {
                return Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason: format!("block {} is imported already", job.source),
                });
            }
            job.written
                .iter()
                .try_for_each(|entry| m.add_block(entry.clone()))?;
            m.note_import(job.source, job.report.samples);
            Ok(())
        };
        let writer = Writer::import(&self.writer);
        let done = self.bucket.commit(job.tenant, &writer, list).await;
        match done {
            Ok(_) => Ok(true),
            Err(_) if known => Ok(false),
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
                if m.block(entry.block).is_none() {
                    m.bury(entry.block, entry.parts.iter().map(|p| p.name.clone()).collect());
                }
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

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
