//! What a deletion leaves of the batches that it does not cover.

use std::collections::BTreeMap;

use koios_bucket::Tombstone;
use koios_model::{BatchColumns, BatchSeries, Matchers, TimeRange};
use koios_wire::{Batch, BatchHeader};

use super::Known;

/// Deletions in the order in which they apply: those known, then those to come, none of which is known.
pub(super) struct Line {
    all: Vec<InLine>,
    /// The places of those to come.
    pending: Vec<Option<usize>>,
}

/// A deletion, and from which of those to come on it is applied.
pub(super) struct InLine {
    known: Known,
    from: usize,
}

impl Line {
    pub(super) fn new(known: &[Known], pending: &[Tombstone]) -> Self {
        let in_line = |known: &Known| InLine {
            known: known.clone(),
            from: 0,
        };
        let mut all: Vec<InLine> = known.iter().filter(|k| k.deletes()).map(in_line).collect();
        let mut places = Vec::with_capacity(pending.len());
        for (at, tombstone) in pending.iter().enumerate() {
            // Whoever made it has compiled it.
            let Ok(matchers) = tombstone.matchers() else {
                places.push(None);
                continue;
            };
            let known = Known {
                tombstone: tombstone.clone(),
                matchers,
            };
            if !known.deletes() {
                places.push(None);
                continue;
            }
            places.push(Some(all.len()));
            all.push(InLine { known, from: at + 1 });
        }
        Self { all, pending: places }
    }

    /// Those that cover a batch.
    pub(super) fn covering(&self, header: &BatchHeader) -> Vec<&InLine> {
        self.all.iter().filter(|d| d.known.covers(header)).collect()
    }

    /// What one of those to come finds of a batch that it does not cover, so that it is kept.
    pub(super) fn left_of(&self, at: usize, batch: &Batch, covering: &[&InLine]) -> Option<Batch> {
        let place = self.pending.get(at).copied().flatten()?;
        let Known { tombstone, matchers } = &self.all.get(place)?.known;
        if covering.iter().any(|d| d.known.tombstone.id == tombstone.id) {
            return None;
        }
        let before = covering.iter().filter(|d| d.from <= at);
        let before: Vec<&Known> = before.map(|d| &d.known).collect();
        let columns = matching(batch.columns(), matchers, tombstone.range, &before)?;
        Some(Batch::new(batch.header().clone(), columns))
    }
}

/// Divides a range so that what is kept of each part has about so many bytes at most, unless it is all of one moment.
pub(super) fn parts_of(range: TimeRange, kept: Vec<Batch>, bytes_max: usize) -> Vec<(TimeRange, Vec<Batch>)> {
    let bytes: usize = kept.iter().map(|batch| batch.encoded().len()).sum();
    if bytes <= bytes_max {
        return vec![(range, kept)];
    }
    let mut weights: BTreeMap<i64, usize> = BTreeMap::new();
    for batch in &kept {
        let times: Vec<i64> = moments(batch.columns()).collect();
        let each = batch.encoded().len() / times.len().max(1) + 1;
        for t in times {
            *weights.entry(t).or_default() += each;
        }
    }
    let (mut ranges, mut from, mut sum) = (Vec::new(), range.min, 0usize);
    for (&t, &weight) in &weights {
        if sum > 0 && sum.saturating_add(weight) > bytes_max {
            ranges.push(TimeRange::new(from, t.saturating_sub(1)));
            (from, sum) = (t, 0);
        }
        sum = sum.saturating_add(weight);
    }
    ranges.push(TimeRange::new(from, range.max));
    let everything = Matchers::default();
    let of_range = |range: TimeRange| {
        let left = kept.iter().filter_map(|batch| {
            let columns = matching(batch.columns(), &everything, range, &[])?;
            Some(Batch::new(batch.header().clone(), columns))
        });
        (range, left.collect())
    };
    ranges.into_iter().map(of_range).collect()
}

/// The times of all samples and exemplars.
fn moments(columns: &BatchColumns) -> impl Iterator<Item = i64> + '_ {
    let exemplars = columns.exemplars.iter().map(|e| e.exemplar.t);
    columns.sample_times().chain(exemplars)
}

/// The samples and exemplars of matching series in a range, with all labels, but for what `covering` deleted; `None` when there are none.
pub(super) fn matching(
    columns: &BatchColumns,
    matchers: &Matchers,
    range: TimeRange,
    covering: &[&Known],
) -> Option<BatchColumns> {
    let mut out = BatchColumns::default();
    let mut histograms = columns.histograms.iter().peekable();
    let mut exemplars = columns.exemplars.iter().peekable();
    for (at, series) in columns.series().enumerate() {
        let BatchSeries {
            hash,
            labels,
            timestamps,
            values,
            starts,
            ..
        } = series;
        let of_series = |place: u32| place as usize == at;
        let mut histograms_here = Vec::new();
        while let Some(h) = histograms.next_if(|h| of_series(h.series)) {
            histograms_here.push(h);
        }
        let mut exemplars_here = Vec::new();
        while let Some(e) = exemplars.next_if(|e| of_series(e.series)) {
            exemplars_here.push(e);
        }
        let Some(labels) = labels.filter(|labels| matchers.matches(*labels)) else {
            continue;
        };
        let of_series = covering.iter().filter(|k| k.matchers.matches(labels));
        let deleted: Vec<TimeRange> = of_series.map(|k| k.tombstone.range).collect();
        let stays = |t: i64| range.contains(t) && deleted.iter().all(|r| !r.contains(t));
        histograms_here.retain(|h| stays(h.t));
        exemplars_here.retain(|e| stays(e.exemplar.t));
        let is_there = timestamps.iter().any(|t| stays(*t)) || !histograms_here.is_empty();
        if !is_there && exemplars_here.is_empty() {
            continue;
        }
        out.push_series(hash, labels);
        for (i, (&t, &v)) in timestamps.iter().zip(values).enumerate() {
            if stays(t) {
                out.push_sample(t, v);
                out.set_last_start(starts.get(i).copied().unwrap_or(0));
            }
        }
        for h in histograms_here {
            out.push_started_histogram(h.t, h.start, h.histogram.clone());
        }
        for e in exemplars_here {
            out.push_exemplar(e.exemplar.clone());
        }
    }
    (out.series_count() > 0).then_some(out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use koios_model::{Labels, PartitionId, SeriesHash, StreamId, TenantId, TenantSeed};

    use super::*;

    fn batch(sequence: u64, samples: &[(i64, f64)]) -> Batch {
        let tenant = TenantId::anonymous();
        let labels = Labels::from_pairs([("__name__", "a")]);
        let mut columns = BatchColumns::default();
        columns.push_series(
            SeriesHash::new(TenantSeed::new(b"", &tenant), labels.as_ref()),
            labels.as_ref(),
        );
        samples.iter().for_each(|(t, v)| columns.push_sample(*t, *v));
        let header = BatchHeader {
            tenant,
            stream: StreamId(1),
            sequence,
            settled_below: 0,
            partition: PartitionId(0),
            epoch: 1,
            admission_ms: 0,
        };
        Batch::new(header, columns)
    }

    fn samples(parts: &[(TimeRange, Vec<Batch>)]) -> BTreeSet<(u64, i64)> {
        let mut all = BTreeSet::new();
        for (range, batch) in parts
            .iter()
            .flat_map(|(r, kept)| kept.iter().map(move |b| (r, b)))
        {
            for t in batch.columns().sample_times() {
                assert!(range.contains(t));
                assert!(all.insert((batch.header().sequence, t)), "it is kept once");
            }
        }
        all
    }

    #[test]
    fn i10_what_is_kept_is_divided_into_records_and_nothing_is_lost() {
        let kept = || {
            let of_batch = |n: u64| {
                let times: Vec<_> = (0..50i64).map(|i| ((i * 7 + n as i64) % 100, i as f64)).collect();
                batch(n, &times)
            };
            (0..20).map(of_batch).collect::<Vec<_>>()
        };
        let range = TimeRange::new(-5, 1000);
        let whole = parts_of(range, kept(), usize::MAX);
        assert_eq!((whole.len(), whole[0].0), (1, range));
        for bytes_max in [1, 500, 2000] {
            let parts = parts_of(range, kept(), bytes_max);
            assert!(parts.len() > 1, "{bytes_max}");
            assert_eq!((parts[0].0.min, parts[parts.len() - 1].0.max), (-5, 1000));
            for pair in parts.windows(2) {
                assert_eq!(pair[0].0.max + 1, pair[1].0.min);
            }
            assert_eq!(samples(&parts), samples(&whole));
        }
        // All of one moment cannot be divided.
        let at_once = parts_of(range, (0..9).map(|n| batch(n, &[(3, 1.0)])).collect(), 1);
        assert_eq!(at_once.len(), 1);
    }
}
