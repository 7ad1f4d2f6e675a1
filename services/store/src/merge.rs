//! Unites the matching series of several blocks, in label order, each sample once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use futures::future::try_join_all;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use koios_block::{BlockReader, SeriesSamples};
use koios_model::merge::merge_sorted;
use koios_model::{Labels, Matchers, Sample, TimeRange};
use koios_wire::ServiceError;

use crate::error::from_block;

/// A series with its samples; none when only labels are read.
pub(crate) type Row = (Labels, SeriesSamples);

/// The matching series of one block with their samples in range; those without any are left out.
pub(crate) fn rows(
    block: BlockReader,
    matchers: Matchers,
    range: TimeRange,
    labels_only: bool,
) -> BoxStream<'static, Result<Row, ServiceError>> {
    let batches = block.stream_series(matchers, range);
    let rows = batches.map_ok(move |batch| {
        let labels: Vec<_> = batch.iter().map(|s| s.labels.clone()).collect();
        let labels = futures::stream::iter(labels);
        if labels_only {
            return labels.map(|l| Ok((l, SeriesSamples::default()))).boxed();
        }
        let samples = block.stream_samples(batch, range);
        labels.zip(samples).map(|(l, s)| Ok((l, s?))).boxed()
    });
    rows.try_flatten()
        .try_filter(move |(_, s)| std::future::ready(labels_only || !s.timestamps.is_empty()))
        .map_err(|e| from_block(&e))
        .boxed()
}

struct Source {
    rows: BoxStream<'static, Result<Row, ServiceError>>,
    next: Option<Row>,
}

/// A k-way merge of blocks' rows.
pub(crate) struct Merge {
    sources: Vec<Source>,
    /// The next labels of each source that has any.
    heads: BinaryHeap<Reverse<(Labels, usize)>>,
    started: bool,
}

impl Merge {
    pub(crate) fn new(rows: Vec<BoxStream<'static, Result<Row, ServiceError>>>) -> Self {
        Self {
            sources: rows.into_iter().map(|rows| Source { rows, next: None }).collect(),
            heads: BinaryHeap::new(),
            started: false,
        }
    }

    async fn start(&mut self) -> Result<(), ServiceError> {
        let first = try_join_all(self.sources.iter_mut().map(|s| s.rows.try_next())).await?;
        for (i, (source, row)) in self.sources.iter_mut().zip(first).enumerate() {
            if let Some((labels, _)) = &row {
                self.heads.push(Reverse((labels.clone(), i)));
            }
            source.next = row;
        }
        self.started = true;
        Ok(())
    }

    /// The next label set with the samples of all blocks.
    pub(crate) async fn next(&mut self) -> Result<Option<Row>, ServiceError> {
        if !self.started {
            self.start().await?;
        }
        let mut merged: Option<Row> = None;
        while let Some(Reverse((labels, i))) = self.heads.peek() {
            if merged.as_ref().is_some_and(|(m, _)| m != labels) {
                break;
            }
            let i = *i;
            self.heads.pop();
            let Some(source) = self.sources.get_mut(i) else {
                continue;
            };
            let Some((labels, samples)) = source.next.take() else {
                continue;
            };
            source.next = source.rows.try_next().await?;
            if let Some((next, _)) = &source.next {
                self.heads.push(Reverse((next.clone(), i)));
            }
            match &mut merged {
                Some((_, all)) => unite(all, samples),
                None => merged = Some((labels, samples)),
            }
        }
        Ok(merged)
    }
}

/// Adds the samples of another block.
fn unite(all: &mut SeriesSamples, more: SeriesSamples) {
    if all.timestamps.last() < more.timestamps.first() {
        all.timestamps.extend(more.timestamps);
        all.values.extend(more.values);
        return;
    }
    let samples = |s: &SeriesSamples| -> Vec<Sample> {
        s.timestamps
            .iter()
            .zip(&s.values)
            .map(|(&t, &v)| Sample { t, v })
            .collect()
    };
    let mut merged = Vec::new();
    merge_sorted(&samples(all), &samples(&more), &mut merged);
    all.timestamps = merged.iter().map(|s| s.t).collect();
    all.values = merged.iter().map(|s| s.v).collect();
}

#[cfg(test)]
mod tests {
    use koios_model::{STALE_NAN_BITS, stale_nan};

    use super::*;

    fn samples(pairs: &[(i64, f64)]) -> SeriesSamples {
        SeriesSamples {
            timestamps: pairs.iter().map(|p| p.0).collect(),
            values: pairs.iter().map(|p| p.1).collect(),
        }
    }

    #[test]
    fn i2_overlapping_blocks_give_the_winner() {
        let mut all = samples(&[(1, 1.0), (3, stale_nan()), (5, 2.0)]);
        unite(&mut all, samples(&[(2, 9.0), (3, -1.0), (5, 1.0)]));
        assert_eq!(all, samples(&[(1, 1.0), (2, 9.0), (3, -1.0), (5, 2.0)]));
        unite(&mut all, samples(&[(6, stale_nan())]));
        assert_eq!(all.timestamps, [1, 2, 3, 5, 6]);
        assert_eq!(all.values[4].to_bits(), STALE_NAN_BITS);
    }
}
