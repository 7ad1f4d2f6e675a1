//! Summaries take the place of a window's samples, but for series that a rule keeps: their samples stay, and their summaries go.

use std::collections::{BTreeMap, BTreeSet};

use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_model::TimeRange;

use super::rewrite::{Removed, in_words, names, series_classes, without};
use super::{Aged, Horizon, common_lacks};
use crate::compact::downsample_plan::SplitJob;
use crate::compact::error::CompactError;
use crate::compact::job::Merger;
use crate::compact::plan::MergeJob;

impl Merger {
    /// Divides a window's series between samples and summaries in one commit; `None` when no series is to be kept, which is noted.
    pub(crate) async fn split(
        &self,
        manifest: &Manifest,
        job: &SplitJob,
        horizon: &Horizon,
        writer: &Writer,
    ) -> Result<Option<Removed>, CompactError> {
        let mut uploaded = Vec::new();
        let done = Box::pin(self.divide(manifest, job, horizon, writer, &mut uploaded)).await;
        self.bury_in_vain(&manifest.tenant, writer, &uploaded, &done)
            .await;
        done
    }

    async fn divide(
        &self,
        manifest: &Manifest,
        job: &SplitJob,
        horizon: &Horizon,
        writer: &Writer,
        uploaded: &mut Vec<koios_block::BlockMeta>,
    ) -> Result<Option<Removed>, CompactError> {
        let classes = series_classes(manifest)?;
        let mut lacking = BTreeMap::new();
        let (mut gone, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for block in &job.raw {
            let present = self.classes_in(manifest, block, &classes).await?;
            let absent = (0..classes.count()).filter(|class| !present.contains(class));
            lacking.insert(block.block, names(manifest, absent));
            let (past, left): (Vec<_>, Vec<_>) = present
                .into_iter()
                .partition(|class| horizon.is_past(*class, block));
            gone.extend(past);
            kept.extend(left);
        }
        gone.retain(|class| !kept.contains(class));
        if kept.is_empty() {
            let note = |m: &mut Manifest| {
                for (block, lacks) in &lacking {
                    m.note_lacks(*block, lacks);
                }
                Ok(())
            };
            self.manifests.commit(&manifest.tenant, writer, note).await?;
            return Ok(None);
        }
        let merge = MergeJob {
            inputs: job.raw.clone(),
            window: job.window,
            level: job.raw.iter().map(|b| b.level).max().unwrap_or(0),
        };
        let is_kept = |class: usize| kept.contains(&class);
        let of_samples = Aged::new(
            manifest,
            without(&classes, |class| !is_kept(class)),
            names(manifest, (0..classes.count()).filter(|class| !is_kept(*class))),
        );
        let samples = self.write_merged(manifest, &merge, &of_samples, writer, uploaded);
        let (stats, mut entries) = Box::pin(samples).await?;
        let into = entries.len();
        for block in &job.summaries {
            let mut lacks = common_lacks(manifest, std::slice::from_ref(block));
            lacks.extend(names(manifest, kept.iter().copied()));
            let aged = Aged::new(manifest, without(&classes, is_kept), lacks);
            let meta = Box::pin(self.write_summaries(manifest, block, &aged, writer, uploaded)).await?;
            entries.extend(meta.as_ref().map(|meta| ManifestBlock {
                // The samples go: these are all that is left of them.
                sources: Vec::new(),
                lacks: aged.lacks.clone(),
                ..ManifestBlock::new(meta, BTreeMap::new())
            }));
        }
        self.list_split(manifest, job, &of_samples, &entries, writer)
            .await?;
        let ranges = job.raw.iter().map(|b| b.range);
        Ok(Some(Removed {
            rules: in_words(manifest, gone),
            range: ranges.reduce(|a, b| a.union(&b)).unwrap_or(TimeRange::ALL),
            blocks: job.raw.len(),
            into,
            samples: stats.samples_in.saturating_sub(stats.samples_out),
        }))
    }

    /// Lists the new blocks in place of all that were read, unless one of these went meanwhile.
    async fn list_split(
        &self,
        manifest: &Manifest,
        job: &SplitJob,
        aged: &Aged,
        entries: &[ManifestBlock],
        writer: &Writer,
    ) -> Result<(), CompactError> {
        let list = |m: &mut Manifest| {
            if !job.has_all_that_is_summarised(m) {
                let reason = "the samples of a window changed while they were divided".to_owned();
                let tenant = m.tenant.clone();
                return Err(BucketError::Refused { tenant, reason });
            }
            let read = job.blocks().map(|b| b.block).chain(job.outdated.iter().copied());
            for block in read {
                if !m.remove_block(block) {
                    let reason = format!("block {block} was replaced while it was divided");
                    return Err(BucketError::Refused {
                        tenant: m.tenant.clone(),
                        reason,
                    });
                }
            }
            entries.iter().try_for_each(|entry| m.add_block(entry.clone()))
        };
        self.commit_aged(&manifest.tenant, aged, writer, list).await
    }
}
