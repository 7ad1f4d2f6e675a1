//! Metadata of the metrics of blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_block::MetricMetadata;
use koios_model::{Matchers, Metadata, TimeRange};
use koios_wire::{ServiceError, ServiceErrorCode};

use crate::bounds::ReadBounds;
use crate::error::from_block;
use crate::masks::MaskedBlock;

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Series that are looked at together where some are deleted.
const SERIES_AT_ONCE: usize = 4096;

/// Metadata of the metrics of matching series of all blocks, ascending by metric, each entry once.
pub(crate) async fn metadata(
    blocks: Vec<MaskedBlock>,
    matchers: &Matchers,
    range: TimeRange,
    bounds: ReadBounds,
) -> Result<Vec<(String, Metadata)>, ServiceError> {
    let read = |block: MaskedBlock| async move {
        let mut found = Found::default();
        if block.masks.is_empty() {
            let mut cursor = block.reader.metadata_cursor(matchers.clone(), range);
            while let Some(batch) = cursor.next().await.map_err(|e| from_block(&e))? {
                batch.into_iter().try_for_each(|entry| found.add(entry))?;
            }
        } else {
            found.add_what_is_left(&block, matchers, range).await?;
        }
        Ok::<_, ServiceError>(found)
    };
    let mut blocks = stream::iter(blocks).map(read).buffered(bounds.blocks_at_once);
    let mut all = Found::default();
    while let Some(found) = blocks.try_next().await? {
        found.entries().try_for_each(|entry| all.add(entry))?;
    }
    Ok(all
        .entries()
        .map(|(name, m)| (name, Metadata::clone(&m)))
        .collect())
}

#[derive(Default)]
struct Found {
    metrics: BTreeMap<String, BTreeSet<Arc<Metadata>>>,
    bytes: usize,
}

impl Found {
    /// Series without a name are of no metric.
    fn add(&mut self, (name, metadata): MetricMetadata) -> Result<(), ServiceError> {
        if name.is_empty() {
            return Ok(());
        }
        let bytes = name.len() + metadata.kind.len() + metadata.help.len() + metadata.unit.len();
        if self.metrics.entry(name).or_default().insert(metadata) {
            self.bytes += bytes;
        }
        if self.bytes > ANSWER_BYTES_MAX {
            let text = format!(
                "the metadata of blocks exceeds {ANSWER_BYTES_MAX} bytes: ask for one metric or a shorter range"
            );
            return Err(ServiceError::new(ServiceErrorCode::ResourceExhausted, text));
        }
        Ok(())
    }

    /// That of a block with deleted samples: series of which none is left in range do not count.
    async fn add_what_is_left(
        &mut self,
        block: &MaskedBlock,
        matchers: &Matchers,
        range: TimeRange,
    ) -> Result<(), ServiceError> {
        let mut cursor = block.reader.series_cursor(matchers.clone(), range);
        while let Some(series) = cursor.next(SERIES_AT_ONCE).await.map_err(|e| from_block(&e))? {
            for series in series.into_iter().filter(|s| !block.masks.hide(s, range)) {
                if let Some(metadata) = series.metadata {
                    self.add((series.labels.metric_name().to_owned(), metadata))?;
                }
            }
        }
        Ok(())
    }

    fn entries(self) -> impl Iterator<Item = MetricMetadata> {
        let metrics = self.metrics.into_iter();
        metrics.flat_map(|(name, all)| all.into_iter().map(move |metadata| (name.clone(), metadata)))
    }
}

#[cfg(test)]
mod tests {
    use koios_block::{BlockCache, BlockId, BlockOptions, BlockReader, BlockWriter, Deletion, MemoryBlock};
    use koios_model::{Labels, METRIC_NAME, Matcher, TenantId};

    use super::*;
    use crate::masks::Masks;

    fn described(kind: &str, help: &str) -> Metadata {
        Metadata {
            kind: kind.to_owned(),
            help: help.to_owned(),
            unit: String::new(),
        }
    }

    /// A block of series of metrics (one without a name where that is empty), each with a sample at each of some times.
    fn block(
        number: u128,
        series: &[(&str, u32, Option<Metadata>)],
        times: &[i64],
        masks: Masks,
    ) -> MaskedBlock {
        let id = BlockId::new(1_000, number);
        let options = BlockOptions::new(id, TenantId::anonymous(), TimeRange::new(0, 1_000));
        let mut writer = BlockWriter::new(options).unwrap();
        for (metric, i, metadata) in series {
            let named = (!metric.is_empty()).then(|| (METRIC_NAME, (*metric).to_owned()));
            let labels = Labels::from_pairs(named.into_iter().chain([("i", i.to_string())]));
            let values = vec![1.0; times.len()];
            writer
                .push_series(&labels, metadata.as_ref(), times, &values)
                .unwrap();
        }
        let parts = writer.finish().unwrap().unwrap();
        let source = Arc::new(MemoryBlock::new(&parts));
        let cache = Arc::new(BlockCache::new(1 << 20, 1 << 20).with_series_and_samples(1 << 20, 1 << 20));
        MaskedBlock {
            reader: BlockReader::open(source, Arc::new(parts.meta), cache).unwrap(),
            masks,
        }
    }

    async fn ask(blocks: &[MaskedBlock], metric: &str, range: TimeRange) -> Vec<(String, Metadata)> {
        let named = (!metric.is_empty()).then(|| Matcher::equal(METRIC_NAME, metric));
        let matchers = Matchers(named.into_iter().collect());
        metadata(blocks.to_vec(), &matchers, range, ReadBounds::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn i10_metadata_is_of_all_blocks_each_entry_once_and_none_of_deleted_series() {
        let (up, hits, old) = (
            described("gauge", "Up"),
            described("counter", "Hits"),
            described("counter", "Old words"),
        );
        let first = [
            ("hits", 1, Some(hits.clone())),
            ("hits", 2, Some(hits.clone())),
            ("silent", 1, None),
            ("up", 1, Some(up.clone())),
            ("", 1, Some(up.clone())),
        ];
        let second = [("hits", 1, Some(old.clone())), ("up", 1, Some(up.clone()))];
        let deletion = Deletion {
            matchers: Matchers(vec![Matcher::equal(METRIC_NAME, "up")]),
            range: TimeRange::new(0, 500),
        };
        let blocks = [
            block(1, &first, &[1, 2], Masks::default()),
            block(2, &second, &[100, 200], Masks::default()),
        ];
        let entry = |name: &str, m: &Metadata| (name.to_owned(), m.clone());
        let all = [entry("hits", &hits), entry("hits", &old), entry("up", &up)];
        assert_eq!(ask(&blocks, "", TimeRange::ALL).await, all);
        assert_eq!(ask(&blocks, "up", TimeRange::ALL).await, all[2..]);
        assert_eq!(ask(&blocks, "none", TimeRange::ALL).await, []);
        assert_eq!(ask(&blocks, "hits", TimeRange::new(50, 150)).await, all[1..2]);
        let masked = [
            block(1, &first, &[1, 2], Masks::of(vec![deletion.clone()])),
            block(2, &second, &[100, 600], Masks::of(vec![deletion])),
        ];
        assert_eq!(ask(&masked[..1], "", TimeRange::ALL).await, all[..1]);
        // One of its samples is left.
        assert_eq!(ask(&masked, "", TimeRange::ALL).await, all);
    }

    #[tokio::test]
    async fn i12_metadata_beyond_what_an_answer_may_be_is_refused() {
        let long = "x".repeat(ANSWER_BYTES_MAX / 3);
        let series: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|metric| (*metric, 1, Some(described("gauge", &long))))
            .collect();
        let blocks = vec![block(1, &series, &[1], Masks::default())];
        let e = metadata(
            blocks,
            &Matchers::default(),
            TimeRange::ALL,
            ReadBounds::default(),
        )
        .await
        .unwrap_err();
        assert_eq!(e.code, ServiceErrorCode::ResourceExhausted, "{e}");
    }
}
