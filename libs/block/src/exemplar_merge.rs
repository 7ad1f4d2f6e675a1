//! Merges the exemplars of blocks: all different ones, series by series in label order.

use std::collections::BTreeSet;
use std::fmt;

use futures::stream::{BoxStream, TryStreamExt};
use koios_model::{Exemplar, Expiry, Labels, Matchers, TimeRange};

use crate::Result;
use crate::exemplars::SeriesExemplars;
use crate::merge::{Deletion, MergeInput};

/// A merge of exemplars; some thousands of each input are in memory at a time.
#[derive(Debug)]
pub struct ExemplarMerge {
    inputs: Vec<Input>,
}

struct Input {
    deletions: Vec<Deletion>,
    expiry: Expiry,
    batches: BoxStream<'static, Result<Vec<SeriesExemplars>>>,
    pending: std::vec::IntoIter<SeriesExemplars>,
    head: Option<SeriesExemplars>,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Input")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

impl Input {
    /// Makes `head` the next series, unless the block is at its end.
    async fn fill(&mut self) -> Result<()> {
        while self.head.is_none() {
            self.head = self.pending.next();
            if self.head.is_none() {
                let Some(batch) = self.batches.try_next().await? else {
                    return Ok(());
                };
                self.pending = batch.into_iter();
            }
        }
        Ok(())
    }

    /// When exemplars of a series are deleted, or too old.
    fn deleted(&self, labels: &Labels) -> Vec<TimeRange> {
        let of_series = |d: &&Deletion| d.matchers.matches(labels.as_ref());
        let deleted = self.deletions.iter().filter(of_series).map(|d| d.range);
        deleted.chain(self.expiry.gone(labels.as_ref())).collect()
    }
}

impl ExemplarMerge {
    /// Starts a merge.
    pub fn new(inputs: &[MergeInput]) -> Self {
        let input = |i: &MergeInput| Input {
            deletions: i.deletions.clone(),
            expiry: i.expiry.clone(),
            batches: i.block.scan_exemplars(Matchers::default(), TimeRange::ALL),
            pending: Vec::new().into_iter(),
            head: None,
        };
        Self {
            inputs: inputs.iter().map(input).collect(),
        }
    }

    /// The next series with its exemplars, each once, ascending in time, if it comes no later than `up_to`; `None` for all.
    ///
    /// # Errors
    /// [`crate::Error::Corrupt`] or [`crate::Error::Read`] of any input; the merge is over then.
    pub async fn next(&mut self, up_to: Option<&Labels>) -> Result<Option<SeriesExemplars>> {
        for input in &mut self.inputs {
            input.fill().await?;
        }
        let heads = self.inputs.iter().filter_map(|i| i.head.as_ref());
        let Some(labels) = heads.map(|(labels, _)| labels).min().cloned() else {
            return Ok(None);
        };
        if up_to.is_some_and(|up_to| labels > *up_to) {
            return Ok(None);
        }
        let mut all = BTreeSet::new();
        for input in &mut self.inputs {
            if input.head.as_ref().is_none_or(|(of, _)| *of != labels) {
                continue;
            }
            let deleted = input.deleted(&labels);
            // A series may go on in the input's next row group.
            while input.head.as_ref().is_some_and(|(of, _)| *of == labels) {
                let Some((_, exemplars)) = input.head.take() else {
                    break;
                };
                let kept = exemplars
                    .into_iter()
                    .filter(|e| !deleted.iter().any(|range| range.contains(e.t)));
                all.extend(kept.map(|e| (e.t, e.v.to_bits(), e.labels)));
                input.fill().await?;
            }
        }
        let exemplar = |(t, bits, labels)| Exemplar {
            t,
            v: f64::from_bits(bits),
            labels,
        };
        Ok(Some((labels, all.into_iter().map(exemplar).collect())))
    }
}
