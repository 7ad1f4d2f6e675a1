//! One merge: read, write, verify, upload, read back, commit.

use std::sync::Arc;

use koios_block::{
    BlockCache, BlockId, BlockMerge, BlockMeta, BlockOptions, BlockParts, BlockReader, BlockWriter, Digest,
    ExemplarMerge, Layout, MemoryBlock, MergeInput, MergeStats, MergedSeries, MergedWriter, verified_digest,
    verify,
};
use koios_bucket::{Blocks, Error as BucketError, Manifest, ManifestBlock, TenantManifests, Writer};
use koios_model::{Expiry, Labels, TenantId};
use koios_runtime::{ClockHandle, Cpu, RngHandle};

use super::CompactionSettings;
use super::deletions;
use super::error::CompactError;
use super::plan::MergeJob;
use super::retention::Aged;

/// What blocks cover is remembered so long after their window, for members that were away.
const COVERAGE_KEPT_MS: i64 = 2 * 24 * 3_600_000;
/// Samples that go to the writer at a time.
const BATCH_SAMPLES: usize = 64 * 1024;
/// Bytes of the blocks being read that are kept: each input is read from its start to its end once.
const INPUT_CELLS_BYTES: u64 = 48 << 20;
/// The same for footers and page indexes.
const INPUT_INDEX_BYTES: u64 = 16 << 20;

/// What merges blocks. What it reads stays out of the caches of reads.
#[derive(Clone, Debug)]
pub(crate) struct Merger {
    pub(crate) manifests: TenantManifests,
    pub(crate) settings: CompactionSettings,
    pub(crate) clock: ClockHandle,
    pub(crate) rng: RngHandle,
    pub(crate) cpu: Cpu,
}

/// What a merge did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Merged {
    pub(crate) stats: MergeStats,
    pub(crate) blocks: usize,
    /// Bytes of the new blocks.
    pub(crate) bytes: u64,
}

/// A new block on its way.
#[derive(Debug)]
struct Open {
    out: BlockWriter,
    /// What it was given.
    digest: Digest,
}

impl Open {
    fn new(options: BlockOptions) -> koios_block::Result<Self> {
        Ok(Self {
            out: BlockWriter::new(options)?,
            digest: Digest::default(),
        })
    }
}

impl Merger {
    /// Merges a job's blocks into new ones, without what is `aged`, and lists these in their place.
    pub(crate) async fn run(
        &self,
        manifest: &Manifest,
        job: &MergeJob,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<Merged, CompactError> {
        let mut uploaded = Vec::new();
        let done = Box::pin(self.merge(manifest, job, aged, writer, &mut uploaded)).await;
        self.bury_in_vain(&manifest.tenant, writer, &uploaded, &done)
            .await;
        done
    }

    async fn merge(
        &self,
        manifest: &Manifest,
        job: &MergeJob,
        aged: &Aged,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Merged, CompactError> {
        let written = self.write_merged(manifest, job, aged, writer, uploaded);
        let (stats, entries) = Box::pin(written).await?;
        self.commit(&manifest.tenant, job, aged, writer, &entries).await?;
        Ok(Merged {
            stats,
            blocks: entries.len(),
            bytes: entries.iter().map(ManifestBlock::bytes).sum(),
        })
    }

    /// Merges a job's blocks into new ones, and gives what a manifest is to say of these.
    pub(super) async fn write_merged(
        &self,
        manifest: &Manifest,
        job: &MergeJob,
        aged: &Aged,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<(MergeStats, Vec<ManifestBlock>), CompactError> {
        let mut inputs = self.open(manifest, &job.inputs).await?;
        for input in &mut inputs {
            input.expiry = aged.expiry.clone();
        }
        let clean_up_to = deletions::clean_up_to(manifest, &job.inputs);
        let options = BlockOptions {
            clean_up_to: clean_up_to.ok_or(CompactError::Masked)?,
            ..self.options(manifest, job, &inputs, writer.epoch)
        };
        let mut exemplars = ExemplarMerge::new(&inputs);
        let mut merge = BlockMerge::new(inputs);
        let mut open: Option<Open> = None;
        loop {
            let room = self.room(open.as_ref().map(|open| &open.out));
            let batch = next_batch(&mut merge, room).await?;
            if batch.is_empty() {
                break;
            }
            let next = match open.take() {
                Some(next) => next,
                None => Open::new(BlockOptions {
                    block: self.name(),
                    ..options.clone()
                })?,
            };
            let mut next = self.cpu.run(move || push_all(next, &batch)).await??;
            if self.is_full(&next.out) {
                let last = next.out.last_series().cloned();
                push_exemplars(&mut exemplars, &mut next.out, last.as_ref()).await?;
                let full = self.finish(&manifest.tenant, next.out, Some(next.digest), uploaded);
                Box::pin(full).await?;
            } else {
                open = Some(next);
            }
        }
        // Without any series left there may be exemplars.
        let mut last = match open {
            Some(last) => last,
            None => Open::new(BlockOptions {
                block: self.name(),
                ..options
            })?,
        };
        push_exemplars(&mut exemplars, &mut last.out, None).await?;
        let last = self.finish(&manifest.tenant, last.out, Some(last.digest), uploaded);
        Box::pin(last).await?;
        let stats = merge.stats();
        let written = uploaded.iter().map(|m| m.samples).sum();
        if written != stats.samples_out {
            return Err(CompactError::Differs {
                merged: stats.samples_out,
                written,
            });
        }
        let inputs: Vec<_> = job.inputs.iter().map(|b| manifest.as_masked(b)).collect();
        let entries: Vec<_> = uploaded
            .iter()
            .map(|meta| ManifestBlock {
                lacks: aged.lacks.clone(),
                ..ManifestBlock::merged(meta, &inputs)
            })
            .collect();
        Ok((stats, entries))
    }

    /// Opens blocks, with what of them is deleted.
    pub(super) async fn open(
        &self,
        manifest: &Manifest,
        inputs: &[ManifestBlock],
    ) -> Result<Vec<MergeInput>, CompactError> {
        let cache = Arc::new(BlockCache::new(INPUT_CELLS_BYTES, INPUT_INDEX_BYTES));
        let blocks = Blocks::new(self.manifests.bucket().clone(), cache, 0).with_cpu(self.cpu.clone());
        let mut opened_inputs = Vec::with_capacity(inputs.len());
        for listed in inputs {
            let opened = blocks.open(&manifest.tenant, listed).await;
            let block = opened.map_err(|source| CompactError::Open {
                block: listed.block,
                source,
            })?;
            opened_inputs.push(MergeInput {
                block,
                deletions: deletions::applied(manifest, listed)?,
                expiry: Expiry::default(),
            });
        }
        Ok(opened_inputs)
    }

    /// What all new blocks have in common.
    fn options(
        &self,
        manifest: &Manifest,
        job: &MergeJob,
        inputs: &[MergeInput],
        epoch: u64,
    ) -> BlockOptions {
        let mut partitions: Vec<_> = job
            .inputs
            .iter()
            .flat_map(|b| b.partitions.iter().copied())
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        BlockOptions {
            partitions,
            epoch,
            level: job.level,
            sources: job.sources(),
            rewrites: job.rewrites(),
            starts: inputs.iter().any(|i| i.block.meta().may_have_starts()),
            layout: Layout::compacted(),
            ..BlockOptions::new(self.name(), manifest.tenant.clone(), job.window)
        }
    }

    pub(super) fn name(&self) -> BlockId {
        BlockId::new(self.clock.now_ms(), self.rng.u128())
    }

    pub(super) fn is_full(&self, out: &BlockWriter) -> bool {
        out.encoded_bytes() >= self.settings.block_bytes || out.series_count() >= self.settings.block_series
    }

    /// Series that a block may still take.
    pub(super) fn room(&self, out: Option<&BlockWriter>) -> usize {
        let taken = out.map_or(0, BlockWriter::series_count);
        self.settings.block_series.saturating_sub(taken).max(1)
    }

    /// Ends a block, decodes all of it, which has to be what was `given` if that is known, uploads it, and reads its bytes back:
    /// what it is made of goes once it is listed.
    pub(super) async fn finish(
        &self,
        tenant: &TenantId,
        out: BlockWriter,
        given: Option<Digest>,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Option<BlockMeta>, CompactError> {
        let Some(parts) = self.cpu.run(move || out.finish()).await?? else {
            return Ok(None);
        };
        Box::pin(self.verify(&parts, given)).await?;
        let (bucket, meta) = (self.manifests.bucket(), parts.meta.clone());
        // Noted first, so that what arrived of it is declared dead if the rest does not.
        uploaded.push(meta.clone());
        bucket.send_block(tenant, &parts).await?;
        drop(parts);
        bucket.read_back(tenant, &meta).await?;
        Ok(Some(meta))
    }

    pub(super) async fn verify(&self, parts: &BlockParts, given: Option<Digest>) -> Result<(), CompactError> {
        let cache = Arc::new(BlockCache::new(INPUT_CELLS_BYTES, INPUT_INDEX_BYTES));
        let source = Arc::new(MemoryBlock::new(parts));
        let reader = BlockReader::open(source, Arc::new(parts.meta.clone()), cache)?;
        let reader = reader.with_cpu(self.cpu.clone());
        match given {
            None => Ok(verify(&reader).await?),
            Some(given) if verified_digest(&reader).await? == given => Ok(()),
            Some(_) => Err(CompactError::Altered {
                block: parts.meta.block,
            }),
        }
    }

    /// Lists the new blocks in place of the old ones, unless one of these went meanwhile.
    async fn commit(
        &self,
        tenant: &TenantId,
        job: &MergeJob,
        aged: &Aged,
        writer: &Writer,
        entries: &[ManifestBlock],
    ) -> Result<(), CompactError> {
        let now_ms = self.clock.now_ms();
        let inputs: Vec<BlockId> = job.inputs.iter().map(|b| b.block).collect();
        let outputs: Vec<BlockId> = entries.iter().map(|b| b.block).collect();
        let replace = |m: &mut Manifest| {
            for input in &job.inputs {
                if !m.remove_block(input.block) {
                    let reason = format!("block {} was replaced while it was merged", input.block);
                    return Err(BucketError::Refused {
                        tenant: m.tenant.clone(),
                        reason,
                    });
                }
            }
            entries.iter().try_for_each(|entry| m.add_block(entry.clone()))?;
            m.note_merged(&inputs, &outputs);
            m.forget_coverage(now_ms.saturating_sub(COVERAGE_KEPT_MS));
            Ok(())
        };
        self.commit_aged(tenant, aged, writer, replace).await
    }

    /// Commits a change that leaves out what is aged, unless that may not go any more: what is in force may have changed while it was
    /// written. It begins again then, at the next visit; until the change is as old as the undelete window nothing is left out, so that once
    /// is enough.
    pub(super) async fn commit_aged(
        &self,
        tenant: &TenantId,
        aged: &Aged,
        writer: &Writer,
        mut change: impl FnMut(&mut Manifest) -> Result<(), BucketError> + Send,
    ) -> Result<(), CompactError> {
        let mut is_outdated = false;
        let checked = |m: &mut Manifest| {
            is_outdated = !aged.holds_in(m);
            if is_outdated {
                return Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason: CompactError::RetentionChanged.to_string(),
                });
            }
            change(m)
        };
        let committed = self.manifests.commit(tenant, writer, checked).await;
        match committed {
            Ok(_) => Ok(()),
            Err(_) if is_outdated => Err(CompactError::RetentionChanged),
            Err(error) => Err(error.into()),
        }
    }

    /// Declares dead what a job uploaded that failed.
    pub(super) async fn bury_in_vain<T>(
        &self,
        tenant: &TenantId,
        writer: &Writer,
        uploaded: &[BlockMeta],
        done: &Result<T, CompactError>,
    ) {
        match done {
            // Whether they are listed is not known: if not, their age tells.
            Ok(_) | Err(CompactError::Bucket(BucketError::Unknown { .. })) => {}
            Err(_) if uploaded.is_empty() => {}
            Err(_) => self.bury(tenant, writer, uploaded).await,
        }
    }

    /// Declares blocks dead that were uploaded in vain; what cannot be said now their age tells later.
    async fn bury(&self, tenant: &TenantId, writer: &Writer, uploaded: &[BlockMeta]) {
        let bury = |m: &mut Manifest| {
            for meta in uploaded {
                m.bury_upload(meta.block, &meta.summaries());
            }
            Ok(())
        };
        if let Err(error) = self.manifests.commit(tenant, writer, bury).await {
            tracing::debug!(%tenant, %error, "blocks uploaded in vain stay until they are old");
        }
    }
}

/// The next series, at most so many.
pub(super) async fn next_batch(
    merge: &mut BlockMerge,
    series_max: usize,
) -> Result<Vec<MergedSeries>, CompactError> {
    let (mut batch, mut samples) = (Vec::new(), 0);
    while samples < BATCH_SAMPLES
        && batch.len() < series_max
        && let Some(series) = merge.next().await?
    {
        samples += series.samples.len() + series.histograms.len() + 1;
        batch.push(series);
    }
    Ok(batch)
}

/// Pushes the exemplars of series up to one, or all that are left.
async fn push_exemplars(
    exemplars: &mut ExemplarMerge,
    out: &mut BlockWriter,
    up_to: Option<&Labels>,
) -> Result<(), CompactError> {
    while let Some((labels, of_series)) = exemplars.next(up_to).await? {
        out.push_exemplars(&labels, &of_series)?;
    }
    Ok(())
}

fn push_all(mut open: Open, batch: &[MergedSeries]) -> koios_block::Result<Open> {
    let mut writer = MergedWriter::default();
    for series in batch {
        writer.push(series, &mut open.out)?;
        open.digest.add(series);
    }
    Ok(open)
}
