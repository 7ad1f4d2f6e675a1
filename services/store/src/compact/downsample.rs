//! Downsampling of one window: read, summarise, verify, upload, read back, commit.

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_block::{
    BlockMerge, BlockMeta, BlockOptions, BlockSeries, BlockWriter, Deletion, HISTOGRAMS_PART, Layout,
    MergedSeries,
};
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_chunk::Chunk;
use koios_model::summary::{Downsampled, downsample};
use koios_model::{Expiry, Matchers, Summary, TimeRange};
use koios_promql::add_histograms;

use super::deletions;
use super::downsample_plan::DownsampleJob;
use super::error::CompactError;
use super::job::{Merger, next_batch};
use super::retention::Aged;

/// Series whose summaries are written again together.
const SERIES_AT_ONCE: usize = 256;
/// What an error calls summaries that cannot be decoded.
const SUMMARIES: &str = "summaries";

/// What a downsampling did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summarised {
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
    /// Downsamples a window, without what is `aged`, and lists the new blocks beside those with its samples.
    pub(crate) async fn downsample(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<Summarised, CompactError> {
        let mut uploaded = Vec::new();
        let done = Box::pin(self.summarise(manifest, job, aged, writer, &mut uploaded)).await;
        self.bury_in_vain(&manifest.tenant, writer, &uploaded, &done)
            .await;
        done
    }

    async fn summarise(
        &self,
        manifest: &Manifest,
        job: &DownsampleJob,
        aged: &Aged,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Summarised, CompactError> {
        let clean_up_to = deletions::clean_up_to(manifest, &job.inputs).ok_or(CompactError::Masked)?;
        let mut inputs = self.open(manifest, &job.inputs).await?;
        for input in &mut inputs {
            input.expiry = aged.expiry.clone();
        }
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
                    Box::pin(self.finish(&manifest.tenant, full, None, uploaded)).await?;
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
                Box::pin(self.finish(&manifest.tenant, last, None, uploaded)).await?;
            }
        }
        let entries: Vec<_> = uploaded
            .iter()
            .map(|meta| ManifestBlock {
                lacks: aged.lacks.clone(),
                ..ManifestBlock::new(meta, BTreeMap::new())
            })
            .collect();
        self.list_summaries(manifest, job, aged, writer, &entries).await?;
        Ok(Summarised {
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
        let mut parts = job.inputs.iter().flat_map(|b| &b.parts);
        BlockOptions {
            histogram_sums: parts.any(|part| part.name == HISTOGRAMS_PART),
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
        aged: &Aged,
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
        self.commit_aged(&manifest.tenant, aged, writer, list).await
    }
}

impl Merger {
    /// Writes a block of summaries again without what is deleted, where the samples that they speak for are gone and there is nothing
    /// to summarise anew, or without series that are `aged`. A summary that speaks for a deleted sample goes as a whole. How many samples
    /// what is left speaks for; `None` when nothing is left.
    pub(crate) async fn clean_summaries(
        &self,
        manifest: &Manifest,
        block: &ManifestBlock,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<Option<u64>, CompactError> {
        let mut uploaded = Vec::new();
        let done = Box::pin(self.rewrite_summaries(manifest, block, aged, writer, &mut uploaded)).await;
        self.bury_in_vain(&manifest.tenant, writer, &uploaded, &done)
            .await;
        done
    }

    async fn rewrite_summaries(
        &self,
        manifest: &Manifest,
        block: &ManifestBlock,
        aged: &Aged,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Option<u64>, CompactError> {
        let written = self.write_summaries(manifest, block, aged, writer, uploaded);
        let written = Box::pin(written).await?;
        self.list_cleaned(manifest, block, written.as_ref(), aged, writer)
            .await?;
        Ok(written.map(|meta| meta.samples))
    }

    /// Writes and uploads a block of summaries without what is deleted or aged.
    pub(super) async fn write_summaries(
        &self,
        manifest: &Manifest,
        block: &ManifestBlock,
        aged: &Aged,
        writer: &Writer,
        uploaded: &mut Vec<BlockMeta>,
    ) -> Result<Option<BlockMeta>, CompactError> {
        let listed = std::slice::from_ref(block);
        let clean_up_to = deletions::clean_up_to(manifest, listed).ok_or(CompactError::Masked)?;
        let Some(input) = self.open(manifest, listed).await?.pop() else {
            return Ok(None);
        };
        let (reader, deletions) = (input.block, Arc::new(input.deletions));
        let mut out = BlockWriter::new(BlockOptions {
            partitions: block.partitions.clone(),
            epoch: writer.epoch,
            resolution_ms: block.resolution_ms,
            level: block.level,
            sources: reader.meta().sources.clone(),
            rewrites: Some(block.block),
            histogram_sums: block.parts.iter().any(|part| part.name == HISTOGRAMS_PART),
            clean_up_to,
            layout: Layout::compacted(),
            ..BlockOptions::new(self.name(), manifest.tenant.clone(), block.window)
        })?;
        let mut cursor = reader.series_cursor(Matchers::default(), TimeRange::ALL);
        while let Some(series) = cursor.next(SERIES_AT_ONCE).await? {
            let summaries = reader.read_summaries(&series).await?;
            let histograms = reader.read_histograms(&series).await?;
            let (deletions, expiry) = (Arc::clone(&deletions), aged.expiry.clone());
            let name = block.block;
            let push = move || {
                let chunks = summaries.into_iter().zip(histograms);
                for (series, (summaries, histograms)) in series.iter().zip(chunks) {
                    let left = left_of(series, &summaries, &histograms, (&deletions, &expiry));
                    let left = left.map_err(|source| koios_block::Error::Samples {
                        block: name,
                        part: SUMMARIES.to_owned(),
                        series: series.labels.clone(),
                        source,
                    })?;
                    out.push_downsampled(&series.labels, series.metadata.as_deref(), &left)?;
                }
                Ok::<_, koios_block::Error>(out)
            };
            out = Box::pin(self.cpu.run(push)).await??;
        }
        Box::pin(self.finish(&manifest.tenant, out, None, uploaded)).await
    }

    /// Lists what is left of a block of summaries in its place, unless that went meanwhile.
    async fn list_cleaned(
        &self,
        manifest: &Manifest,
        block: &ManifestBlock,
        written: Option<&BlockMeta>,
        aged: &Aged,
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let list = |m: &mut Manifest| {
            // Of samples that are gone it stands in for them, as the one before; else it speaks for what that speaks for by now.
            let Some(sources) = m.block(block.block).map(|b| b.sources.clone()) else {
                let reason = format!("block {} was replaced while it was written again", block.block);
                return Err(BucketError::Refused {
                    tenant: m.tenant.clone(),
                    reason,
                });
            };
            m.remove_block(block.block);
            let entry = written.map(|meta| ManifestBlock {
                sources,
                lacks: aged.lacks.clone(),
                ..ManifestBlock::new(meta, BTreeMap::new())
            });
            entry.into_iter().try_for_each(|entry| m.add_block(entry))
        };
        self.commit_aged(&manifest.tenant, aged, writer, list).await
    }
}

/// What deletions and age leave of a series' summaries, and of the histograms beside them.
fn left_of(
    series: &BlockSeries,
    summaries: &[Chunk],
    histograms: &[Chunk],
    (deletions, expiry): (&[Deletion], &Expiry),
) -> Result<Downsampled, koios_chunk::Error> {
    let (mut all, mut beside) = (Vec::new(), Vec::new());
    for chunk in summaries {
        chunk.decode_summaries(TimeRange::ALL, &mut all)?;
    }
    for chunk in histograms {
        chunk.decode_histograms(TimeRange::ALL, &mut beside)?;
    }
    let of_series = deletions
        .iter()
        .filter(|d| d.matchers.matches(series.labels.as_ref()));
    let old = expiry.gone(series.labels.as_ref());
    let mut gone: Vec<TimeRange> = of_series.map(|d| d.range).chain(old).collect();
    let (summaries, dropped): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|s| gone.iter().all(|r| !r.overlaps(&s.range())));
    gone.extend(dropped.iter().map(Summary::range));
    beside.retain(|(t, _)| gone.iter().all(|r| !r.contains(*t)));
    Ok(Downsampled {
        summaries,
        histograms: beside,
    })
}

fn push_all(mut outs: Vec<Out>, batch: &[MergedSeries]) -> koios_block::Result<Vec<Out>> {
    for out in &mut outs {
        let Some(open) = &mut out.open else { continue };
        for series in batch {
            let mut kept = downsample(&series.samples, &series.histograms, out.resolution_ms);
            add_histograms(&mut kept.summaries, &series.histograms);
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
