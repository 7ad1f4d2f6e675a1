//! Series of one source, checked as they arrive and held until they are merged.

use std::sync::Arc;

use koios_chunk::Chunk;
use koios_model::merge::merge_sorted;
use koios_model::{Labels, Sample, TimeRange};
use koios_promql::{Columns, QueryError, SeriesData};
use koios_wire::{SeriesChunks, ServiceError, ServiceErrorCode};

use super::budget::{Budget, Charge};

/// Why one source could not be read.
#[derive(Debug)]
pub(crate) enum SourceError {
    /// The source failed; another one may do.
    Service(ServiceError),
    /// The query itself fails.
    Query(QueryError),
}

impl From<ServiceError> for SourceError {
    fn from(e: ServiceError) -> Self {
        Self::Service(e)
    }
}

impl From<QueryError> for SourceError {
    fn from(e: QueryError) -> Self {
        Self::Query(e)
    }
}

/// One series of one source; its memory is charged to the query.
#[derive(Debug)]
pub(crate) struct HeldSeries {
    pub(crate) labels: Labels,
    pub(crate) chunks: Vec<Chunk>,
    charge: Charge,
}

/// Takes a series from a peer: charges its memory, checks the order of labels and every chunk's checksum, so that a
/// source that sends damaged bytes counts as failed and another one is read instead (I11).
pub(crate) fn hold(
    series: SeriesChunks,
    last: Option<&Labels>,
    budget: &Arc<Budget>,
) -> Result<HeldSeries, SourceError> {
    if last.is_some_and(|last| *last >= series.labels) {
        let text = format!("series {} came out of label order", series.labels);
        return Err(ServiceError::internal(text).into());
    }
    let encoded: usize = series.chunks.iter().map(|c| c.len() + size_of::<Chunk>()).sum();
    let charge = budget.charge(series.labels.packed().len() + encoded + size_of::<HeldSeries>())?;
    let parsed: Result<Vec<_>, _> = series.chunks.into_iter().map(Chunk::parse).collect();
    let chunks = parsed.map_err(|e| {
        ServiceError::new(
            ServiceErrorCode::Corruption,
            format!("a chunk of series {}: {e}", series.labels),
        )
    })?;
    Ok(HeldSeries {
        labels: series.labels,
        chunks,
        charge,
    })
}

impl HeldSeries {
    /// Takes in the same series of another source.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.chunks.extend(other.chunks);
        self.charge.absorb(other.charge);
    }

    /// The labels, and the samples as the engine wants them.
    pub(crate) fn into_parts(self) -> (Labels, MergedData) {
        let mut chunks = self.chunks;
        chunks.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| a.bytes().cmp(b.bytes())));
        // Replicas that saw the same batches often hold the very same chunks.
        chunks.dedup_by(|a, b| a.bytes() == b.bytes());
        let data = MergedData {
            chunks,
            _charge: self.charge,
        };
        (self.labels, data)
    }
}

fn order(chunk: &Chunk) -> (i64, i64) {
    (chunk.time_range().min, chunk.time_range().max)
}

/// The chunks of one series from all sources; samples are merged exactly once when decoded (I2).
#[derive(Debug)]
pub(crate) struct MergedData {
    /// Ascending by first, then last time.
    chunks: Vec<Chunk>,
    _charge: Charge,
}

impl MergedData {
    fn decode_chunks(&self, range: TimeRange, out: &mut Columns) -> Result<(), koios_chunk::Error> {
        let (mut times, mut values) = (Vec::new(), Vec::new());
        let wanted: Vec<&Chunk> = self.overlapping(range).collect();
        let mut rest = wanted.as_slice();
        while let Some(first) = rest.first() {
            let mut end = first.time_range().max;
            let mut n = 1;
            while let Some(c) = rest.get(n).filter(|c| c.time_range().min <= end) {
                end = end.max(c.time_range().max);
                n += 1;
            }
            let (group, tail) = rest.split_at(n);
            match group {
                [alone] => alone.decode_range(range, &mut times, &mut values)?,
                _ => merge_group(group, range, &mut times, &mut values)?,
            }
            rest = tail;
            out.extend_floats(&times, &values);
            times.clear();
            values.clear();
        }
        Ok(())
    }

    fn overlapping(&self, range: TimeRange) -> impl Iterator<Item = &Chunk> {
        self.chunks
            .iter()
            .filter(move |c| c.time_range().overlaps(&range))
    }
}

/// Merges chunks that overlap: first into as few ascending lanes as they need, then lane by lane.
fn merge_group(
    chunks: &[&Chunk],
    range: TimeRange,
    times: &mut Vec<i64>,
    values: &mut Vec<f64>,
) -> Result<(), koios_chunk::Error> {
    let mut lanes: Vec<(i64, Vec<&Chunk>)> = Vec::new();
    for &chunk in chunks {
        let span = chunk.time_range();
        match lanes.iter_mut().find(|(end, _)| *end < span.min) {
            Some((end, lane)) => {
                *end = span.max;
                lane.push(chunk);
            }
            None => lanes.push((span.max, vec![chunk])),
        }
    }
    let (mut merged, mut buffer, mut samples) = (Vec::new(), Vec::new(), Vec::new());
    let (mut lane_times, mut lane_values) = (Vec::new(), Vec::new());
    for (_, lane) in lanes {
        lane_times.clear();
        lane_values.clear();
        for chunk in lane {
            chunk.decode_range(range, &mut lane_times, &mut lane_values)?;
        }
        samples.clear();
        samples.extend(
            lane_times
                .iter()
                .zip(&lane_values)
                .map(|(&t, &v)| Sample { t, v }),
        );
        merge_sorted(&merged, &samples, &mut buffer);
        std::mem::swap(&mut merged, &mut buffer);
    }
    times.extend(merged.iter().map(|s| s.t));
    values.extend(merged.iter().map(|s| s.v));
    Ok(())
}

impl SeriesData for MergedData {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        self.decode_chunks(range, out).map_err(|e| QueryError::Internal {
            message: format!("stored samples cannot be decoded: {e}"),
            source: Some(Arc::new(e)),
        })
    }

    fn encoded_bytes(&self) -> usize {
        self.chunks.iter().map(|c| c.bytes().len()).sum()
    }

    fn decoded_bytes(&self, range: TimeRange) -> usize {
        self.overlapping(range).map(Chunk::count).sum::<usize>() * 16
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use koios_model::merge::winner;
    use proptest::prelude::*;

    use super::*;

    fn chunk(samples: &BTreeMap<i64, f64>) -> Bytes {
        let times: Vec<_> = samples.keys().copied().collect();
        let values: Vec<_> = samples.values().copied().collect();
        koios_chunk::encode(&times, &values).unwrap().into()
    }

    fn series(chunks: Vec<Bytes>) -> SeriesChunks {
        SeriesChunks {
            labels: Labels::from_pairs([("a", "b")]),
            chunks,
        }
    }

    proptest! {
        #[test]
        fn i2_overlapping_chunks_decode_to_one_winner_per_time(
            sources in proptest::collection::vec(
                proptest::collection::btree_map(0i64..60, prop_oneof![Just(1.0), Just(2.0), Just(f64::NAN)], 1..12), 1..7),
            min in 0i64..60, len in 0i64..60,
        ) {
            let range = TimeRange::new(min, min + len);
            let mut model = BTreeMap::<i64, f64>::new();
            for (&t, &v) in sources.iter().flatten().filter(|(t, _)| range.contains(**t)) {
                model.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
            }
            let budget = Budget::new(1 << 20, 10);
            let mut all: Option<HeldSeries> = None;
            for s in &sources {
                let held = hold(series(vec![chunk(s)]), None, &budget).unwrap();
                match &mut all {
                    Some(all) => all.absorb(held),
                    None => all = Some(held),
                }
            }
            let (_, data) = all.unwrap().into_parts();
            let mut out = Columns::default();
            data.decode(range, &mut out).unwrap();
            let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(out.timestamps(), model.keys().copied().collect::<Vec<_>>());
            prop_assert_eq!(bits(out.values()), bits(&model.values().copied().collect::<Vec<_>>()));
            drop(data);
            prop_assert_eq!(budget.held(), 0);
        }
    }

    #[test]
    fn i11_damaged_chunks_fail_the_source_before_use() {
        let mut bytes = chunk(&BTreeMap::from([(1, 1.0)])).to_vec();
        bytes[3] ^= 1;
        let budget = Budget::new(1 << 20, 10);
        let result = hold(series(vec![bytes.into()]), None, &budget);
        let Err(SourceError::Service(e)) = result else {
            panic!("must fail: {result:?}")
        };
        assert_eq!(e.code, ServiceErrorCode::Corruption);
        assert!(e.message.contains(r#"series {a="b"}"#), "{e}");
    }

    #[test]
    fn a_source_must_keep_label_order() {
        let budget = Budget::new(1 << 20, 10);
        let last = Labels::from_pairs([("a", "b")]);
        assert!(matches!(
            hold(series(Vec::new()), Some(&last), &budget),
            Err(SourceError::Service(_))
        ));
    }
}
