//! Exemplars of blocks.

use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt, TryStreamExt};
use koios_model::{Exemplar, Labels, Matchers, TimeRange};
use koios_wire::{SeriesExemplars, ServiceError, ServiceErrorCode};

use crate::bounds::ReadBounds;
use crate::error::from_block;
use crate::masks::MaskedBlock;

/// Most exemplars of an answer.
const EXEMPLARS_MAX: usize = 20_000;
/// Most bytes of labels in an answer.
const LABEL_BYTES_MAX: usize = 16 << 20;

/// The exemplars of matching series of all blocks, each once, by series in label order, ascending in time.
pub(crate) async fn exemplars(
    blocks: Vec<MaskedBlock>,
    matchers: &Matchers,
    range: TimeRange,
    bounds: ReadBounds,
) -> Result<Vec<SeriesExemplars>, ServiceError> {
    let scans = blocks.into_iter().map(|MaskedBlock { reader, masks }| {
        let scan = reader.scan_exemplars(matchers.clone(), range);
        scan.map_ok(move |mut batch| {
            for (labels, exemplars) in batch.iter_mut().filter(|_| !masks.is_empty()) {
                let deleted = masks.ranges(labels, TimeRange::ALL);
                exemplars.retain(|e| !deleted.iter().any(|r| r.contains(e.t)));
            }
            batch
        })
        .map_err(|e| from_block(&e))
    });
    let mut found = Found::default();
    let mut batches = stream::iter(scans).flatten_unordered(bounds.blocks_at_once);
    while let Some(batch) = batches.try_next().await? {
        for (labels, exemplars) in batch.into_iter().filter(|(_, all)| !all.is_empty()) {
            found.add(labels, exemplars)?;
        }
    }
    Ok(found.finish())
}

#[derive(Default)]
struct Found {
    series: BTreeMap<Labels, BTreeSet<(i64, u64, Labels)>>,
    count: usize,
    label_bytes: usize,
}

impl Found {
    fn add(&mut self, labels: Labels, exemplars: Vec<Exemplar>) -> Result<(), ServiceError> {
        if !self.series.contains_key(&labels) {
            self.label_bytes += labels.packed().len();
        }
        let of_series = self.series.entry(labels).or_default();
        for e in exemplars {
            let bytes = e.labels.packed().len();
            if of_series.insert((e.t, e.v.to_bits(), e.labels)) {
                self.count += 1;
                self.label_bytes += bytes;
            }
        }
        if self.count > EXEMPLARS_MAX || self.label_bytes > LABEL_BYTES_MAX {
            let text = format!(
                "more than {EXEMPLARS_MAX} exemplars, or {LABEL_BYTES_MAX} bytes of labels, match: add matchers or ask for a shorter range"
            );
            return Err(ServiceError::new(ServiceErrorCode::ResourceExhausted, text));
        }
        Ok(())
    }

    fn finish(self) -> Vec<SeriesExemplars> {
        let exemplar = |(t, bits, labels)| Exemplar {
            t,
            v: f64::from_bits(bits),
            labels,
        };
        let series = self.series.into_iter();
        series
            .map(|(labels, all)| (labels, all.into_iter().map(exemplar).collect()))
            .collect()
    }
}
