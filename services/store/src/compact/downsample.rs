//! Downsampling of one window: read, summarise, verify, upload, commit.

use std::collections::BTreeMap;

use koios_block::{BlockMerge, BlockMeta, BlockOptions, BlockWriter, Layout, MergedSeries};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_model::summary::downsample;

use super::deletions;
use super::downsample_plan::DownsampleJob;
use super::error::CompactError;
use super::job::{Merger, next_batch};

/// What a downsampling did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Downsampled {
    /// Samples that were read, once for all resolutions.
    pub(crate) samples: u64,
    /// Blocks that were written.
    pub(crate) blocks: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
}

/// The blocks of one resolution on their way.
struct Out {
    resolution_ms: i64,
    open: Option<BlockWriter>,
    /// How many samples the summaries speak for.
    samples: u64,
}

impl Merger {
    /// Downsamples a window and lists the new blocks beside those with its samples.
    pub(crate) async fn downsample(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        writer: &Writer,
    ) -> Result<Downsampled, CompactError> {
        let mut uploaded = Vec::new();
        let done = Box::pin(self.summarise(manifest, job, writer, &mut uploaded)).await;
        match &done {
            Ok(_) | Err(CompactError::Bucket(BucketError::Unknown { .. })) => {}
            Err(_) if uploaded.is_empty() => {}
            Err(_) => self.bury(&manifest.tenant, writer, &uploaded).await,
        }
        done
    }

    async fn summarise(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Downsampled, CompactError> {
        let clean_up_to = deletions::clean_up_to(manifest, &job.inputs).ok_or(CompactError::Masked)?;
        let inputs = self.open(manifest, &job.inputs).await?;
        let mut merge = BlockMerge::new(inputs);
        let of = |&resolution_ms: &i64| Out {
            resolution_ms,
            open: None,
            samples: 0,
        };
        let mut outs: Vec<Out> = job.resolutions.iter().map(of).collect();
        loop {
            let room = outs.iter().map(|out| self.room(out.open.as_ref())).min();
            let batch = next_batch(&mut merge, room.unwrap_or(1)).await?;
            if batch.is_empty() {
                break;
            }
            for out in &mut outs {
                if out.open.is_none() {
                    out.open = Some(BlockWriter::new(BlockOptions {
                        clean_up_to,
                        ..self.summary_options(manifest, job, out.resolution_ms, writer.epoch)
                    })?);
                }
            }
            outs = self.cpu.run(move || push_all(outs, &batch)).await??;
            for out in &mut outs {
                if let Some(full) = out.open.take_if(|open| self.is_full(open)) {
                    uploaded.extend(Box::pin(self.finish(&manifest.tenant, full)).await?);
                }
            }
        }
        let samples = merge.stats().samples_out;
        for out in outs {
            if out.samples != samples {
                return Err(CompactError::Differs {
                    merged: samples,
                    written: out.samples,
                });
            }
            if let Some(last) = out.open {
                uploaded.extend(Box::pin(self.finish(&manifest.tenant, last)).await?);
            }
        }
        let entries: Vec<_> = uploaded
            .iter()
            .map(|meta| ManifestBlock::new(meta, BTreeMap::new()))
            .collect();
        self.list_summaries(manifest, job, writer, &entries).await?;
        Ok(Downsampled {
            samples,
            blocks: entries.len(),
            bytes: entries.iter().map(ManifestBlock::bytes).sum(),
        })
    }

    fn summary_options(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        resolution_ms: i64,
        epoch: u64,
    ) -> BlockOptions {
        let mut partitions: Vec<_> = job
            .inputs
            .iter()
            .flat_map(|b| b.partitions.iter().copied())
            .collect();
        partitions.sort_unstable();
        partitions.dedup();
        let level = job.inputs.iter().map(|b| b.level).max().unwrap_or(0);
        BlockOptions {
            partitions,
            epoch,
            resolution_ms,
            level: level.saturating_add(1),
            sources: job.inputs.iter().map(|b| b.block).collect(),
            layout: Layout::compacted(),
            ..BlockOptions::new(self.name(), manifest.tenant.clone(), job.window)
        }
    }

    /// Lists the new blocks in place of earlier ones, unless a source went meanwhile.
    async fn list_summaries(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        writer: &Writer,
        entries: &[ManifestBlock],
    ) -> Result<(), CompactError> {
        let list = |m: &mut Manifest| {
            let mut needed = job.inputs.iter().map(|b| &b.block).chain(&job.replaced);
            if let Some(gone) = needed.find(|block| m.block(**block).is_none()) {
                let reason = format!("block {gone} was replaced while it was downsampled");
                return Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason,
                });
            }
            for block in &job.replaced {
                m.remove_block(*block);
            }
            entries.iter().try_for_each(|entry| m.add_block(entry.clone()))
        };
        self.manifests.commit(&manifest.tenant, writer, list).await?;
        Ok(())
    }
}

fn push_all(mut outs: Vec<Out>, batch: &[MergedSeries]) -> koios_block::Result<Vec<Out>> {
    for out in &mut outs {
        let Some(open) = &mut out.open else { continue };
        for series in batch {
            let kept = downsample(&series.samples, &series.histograms, out.resolution_ms);
            let spoken_for = kept.summaries.iter().map(|s| match s.is_stale() {
                true => 1,
                false => u64::from(s.count) + u64::from(s.histograms),
            });
            out.samples += spoken_for.sum::<u64>();
            open.push_downsampled(&series.labels, series.metadata.as_deref(), &kept)?;
        }
    }
    Ok(outs)
}
