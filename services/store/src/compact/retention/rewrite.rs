//! One block is looked through for series past their retention, and written again without them if it has any.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use koios_bucket::{Error as BucketError, Manifest, ManifestBlock, Writer};
use koios_model::{Expiry, Matchers, SeriesClasses, TimeRange};

use super::{Aged, ExpiryJob, common_lacks};
use crate::compact::error::CompactError;
use crate::compact::job::Merger;
use crate::compact::plan::MergeJob;

/// Series that are looked at together.
const SERIES_AT_ONCE: usize = 2048;

/// What went out of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The rules, as the policy has them.
    pub(crate) rules: Vec<String>,
    /// The times of the blocks that were written again.
    pub(crate) range: TimeRange,
    /// How many they were.
    pub(crate) blocks: usize,
    /// How many they became.
    pub(crate) into: usize,
    pub(crate) samples: u64,
}

/// What classes of series are called in audit lines.
pub(super) fn in_words(manifest: &Manifest, classes: impl IntoIterator<Item = usize>) -> Vec<String> {
    let rules = manifest.retention.iter().flat_map(|r| &r.policy.rules);
    let rules: Vec<_> = rules.collect();
    let word = |class: usize| {
        rules
            .get(class)
            .map_or_else(|| "no rule".to_owned(), |r| r.selector())
    };
    classes.into_iter().map(word).collect()
}

/// The classes of a manifest's rules.
pub(super) fn series_classes(manifest: &Manifest) -> Result<SeriesClasses, CompactError> {
    let Some(record) = &manifest.retention else {
        return Ok(SeriesClasses::default());
    };
    let classes = record.series_classes();
    classes.map_err(|e| {
        CompactError::Bucket(BucketError::Refused {
            tenant: manifest.tenant.clone(),
            reason: format!("a rule of its retention cannot be read: {e}"),
        })
    })
}

/// The names of classes.
pub(super) fn names(manifest: &Manifest, classes: impl IntoIterator<Item = usize>) -> Vec<u64> {
    let all = manifest.retention.as_ref().map(|r| r.classes.as_slice());
    let all = all.unwrap_or_default();
    classes
        .into_iter()
        .filter_map(|class| all.get(class).copied())
        .collect()
}

/// Leaves out all series of some classes.
pub(super) fn without(classes: &SeriesClasses, gone: impl Fn(usize) -> bool) -> Expiry {
    let from = |class| gone(class).then_some(i64::MAX);
    Expiry::new(classes.clone(), (0..classes.count()).map(from))
}

impl Merger {
    /// Looks a block through, and writes it again without what is past its retention; `None` when it had nothing of it.
    pub(crate) async fn expire(
        &self,
        manifest: &Manifest,
        job: &ExpiryJob,
        writer: &Writer,
    ) -> Result<Option<Removed>, CompactError> {
        let (classes, block) = (series_classes(manifest)?, &job.block);
        let present = self.classes_in(manifest, block, &classes).await?;
        let absent = (0..classes.count()).filter(|class| !present.contains(class));
        let mut lacks = names(manifest, absent);
        let gone: Vec<usize> = job
            .classes
            .iter()
            .copied()
            .filter(|c| present.contains(c))
            .collect();
        // With nothing of it, or nothing else, there is nothing to write: a block of which all is past goes by itself.
        if gone.is_empty() || gone.len() == present.len() {
            let note = |m: &mut Manifest| {
                m.note_lacks(block.block, &lacks);
                Ok(())
            };
            self.manifests.commit(&manifest.tenant, writer, note).await?;
            return Ok(None);
        }
        lacks.extend(names(manifest, gone.iter().copied()));
        let aged = Aged::new(manifest, without(&classes, |class| gone.contains(&class)), lacks);
        let (into, left) = if block.resolution_ms == 0 {
            let job = MergeJob {
                inputs: vec![block.clone()],
                window: block.window,
                level: block.level,
            };
            let merged = self.run(manifest, &job, &aged, writer).await?;
            (merged.blocks, merged.stats.samples_out)
        } else {
            let left = self.clean_summaries(manifest, block, &aged, writer).await?;
            (usize::from(left.is_some()), left.unwrap_or(0))
        };
        Ok(Some(Removed {
            rules: in_words(manifest, gone),
            range: block.range,
            blocks: 1,
            into,
            samples: block.samples.saturating_sub(left),
        }))
    }

    /// The classes of which a block has series, or exemplars of series.
    pub(super) async fn classes_in(
        &self,
        manifest: &Manifest,
        block: &ManifestBlock,
        classes: &SeriesClasses,
    ) -> Result<BTreeSet<usize>, CompactError> {
        let mut found = BTreeSet::new();
        let left = classes.count() - common_lacks(manifest, std::slice::from_ref(block)).len();
        for input in self.open(manifest, std::slice::from_ref(block)).await? {
            let mut cursor = input.block.series_cursor(Matchers::default(), TimeRange::ALL);
            while found.len() < left
                && let Some(series) = cursor.next(SERIES_AT_ONCE).await?
            {
                let classes = classes.clone();
                let sort = move || -> BTreeSet<usize> {
                    series.iter().map(|s| classes.of(s.labels.as_ref())).collect()
                };
                found.extend(self.cpu.run(sort).await?);
            }
            let mut exemplars = input.block.scan_exemplars(Matchers::default(), TimeRange::ALL);
            while found.len() < left
                && let Some(batch) = exemplars.try_next().await?
            {
                found.extend(batch.iter().map(|(labels, _)| classes.of(labels.as_ref())));
            }
        }
        Ok(found)
    }
}
