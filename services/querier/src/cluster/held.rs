//! Series of one source: their order is checked as they arrive, and they are held until they are merged.

use std::sync::Arc;

use koios_chunk::Run;
use koios_model::merge::{
    merge_sorted, settle_kinds, sort_and_dedup, sort_and_dedup_histograms, sort_and_dedup_starts,
};
use koios_model::{Histogram, Labels, ResetHint, Sample, Summary, TimeRange};
use koios_promql::{Columns, QueryError, SeriesData, merge_summaries};
use koios_wire::{SeriesRuns, ServiceError};

use super::budget::{Budget, Charge};
use super::kept_run::KeptRun;
use super::summarised::united_summaries;

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
    runs: Vec<KeptRun>,
    charge: Charge,
}

/// Takes a series from a source: charges its memory and checks the order of labels.
pub(crate) fn hold(
    series: SeriesRuns,
    last: Option<&Labels>,
    budget: &Arc<Budget>,
) -> Result<HeldSeries, SourceError> {
    if last.is_some_and(|last| *last >= series.labels) {
        let text = format!("series {} came out of label order", series.labels);
        return Err(ServiceError::internal(text).into());
    }
    let runs = series.runs.iter();
    let samples: usize = runs.map(|r| r.bytes() + size_of::<KeptRun>()).sum();
    let charge = budget.charge(series.labels.packed().len() + samples + size_of::<HeldSeries>())?;
    Ok(HeldSeries {
        labels: series.labels,
        runs: series.runs.into_iter().map(KeptRun::whole).collect(),
        charge,
    })
}

impl HeldSeries {
    /// Takes in the same series of another source.
    pub(crate) fn absorb(&mut self, other: Self) {
        self.runs.extend(other.runs);
        self.charge.absorb(other.charge);
    }

    /// Leaves out samples before a time; whether anything may be left.
    pub(crate) fn keep_from(&mut self, from: i64) -> bool {
        // A read of labels alone has none: who answered it left out what is too old.
        let has_samples = !self.runs.is_empty();
        self.runs.retain_mut(|run| run.keep_from(from));
        !has_samples || !self.runs.is_empty()
    }

    /// The labels, and the samples as the engine wants them.
    pub(crate) fn into_parts(self) -> (Labels, MergedData) {
        let mut runs = self.runs;
        runs.sort_by(|a, b| order(a).cmp(&order(b)).then_with(|| bytes(a).cmp(&bytes(b))));
        // Replicas that saw the same batches often hold the very same chunks.
        runs.dedup_by(|a, b| bytes(a).is_some() && bytes(a) == bytes(b));
        let has_starts = runs.iter().any(|r| r.run.has_starts());
        let (summaries, runs): (Vec<_>, Vec<_>) = runs.into_iter().partition(|r| r.run.has_summaries());
        let (histograms, runs) = runs.into_iter().partition(|r| r.run.has_histograms());
        let data = MergedData {
            runs,
            histograms,
            summaries: summaries.into_iter().map(|r| r.run).collect(),
            has_starts,
            _charge: self.charge,
        };
        (self.labels, data)
    }
}

fn order(run: &KeptRun) -> (i64, i64) {
    (run.time_range().min, run.time_range().max)
}

/// The encoded bytes, where there are any.
fn bytes(run: &KeptRun) -> Option<&[u8]> {
    match &run.run {
        Run::Chunk(chunk) => Some(chunk.bytes()),
        Run::Open(_) | Run::Plain(_) => None,
    }
}

/// The runs of one series from all sources; samples are merged exactly once when decoded (I2).
#[derive(Debug)]
pub(crate) struct MergedData {
    /// Floats, ascending by first, then last time.
    runs: Vec<KeptRun>,
    /// Native histograms, in the same order.
    histograms: Vec<KeptRun>,
    /// What is kept of downsampled samples.
    summaries: Vec<Run>,
    /// Whether any sample has a start timestamp.
    has_starts: bool,
    _charge: Charge,
}

impl MergedData {
    fn decode_runs(
        &self,
        range: TimeRange,
        times: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), koios_chunk::Error> {
        for group in groups(&self.runs) {
            match group {
                [alone] => alone.decode_range(range, times, values)?,
                _ => merge_group(group, range, times, values)?,
            }
        }
        Ok(())
    }
}

impl MergedData {
    /// Both kinds, for a series that has histograms: of which there is one at a time, too.
    fn decode_both(&self, range: TimeRange, out: &mut Columns) -> Result<(), koios_chunk::Error> {
        let (mut times, mut values, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        // From where the runs begin: whether a histogram goes on from the one before must not depend on the range.
        let all = TimeRange::new(i64::MIN, range.max);
        for run in self.runs.iter().filter(|run| run.time_range().overlaps(&range)) {
            run.decode_range(all, &mut times, &mut values)?;
        }
        for run in self
            .histograms
            .iter()
            .filter(|run| run.time_range().overlaps(&range))
        {
            run.decode_histograms(all, &mut histograms)?;
        }
        sort_and_dedup_histograms(&mut histograms);
        let mut floats: Vec<Sample> = times
            .into_iter()
            .zip(values)
            .map(|(t, v)| Sample { t, v })
            .collect();
        sort_and_dedup(&mut floats);
        settle_kinds(&mut floats, &mut histograms);
        let (mut floats, mut histograms) = (floats.into_iter().peekable(), histograms.into_iter().peekable());
        let mut before: Option<Arc<Histogram>> = None;
        while let Some(at) = next_time(floats.peek(), histograms.peek()) {
            if let Some(float) = floats.next_if(|s| s.t == at) {
                before = None;
                if range.contains(at) {
                    out.push_float(at, float.v);
                }
            }
            if let Some((_, mut histogram)) = histograms.next_if(|(t, _)| *t == at) {
                let goes_on = before.is_some_and(|before| histogram.continues(&before));
                if goes_on && histogram.reset_hint == ResetHint::Unknown {
                    Arc::make_mut(&mut histogram).reset_hint = ResetHint::NotReset;
                }
                let is_gauge = histogram.reset_hint == ResetHint::Gauge;
                before = (!is_gauge).then(|| Arc::clone(&histogram));
                if range.contains(at) {
                    out.push_histogram(at, histogram);
                }
            }
        }
        Ok(())
    }
}

fn next_time<T>(float: Option<&Sample>, histogram: Option<&(i64, T)>) -> Option<i64> {
    let times = float.map(|s| s.t).into_iter().chain(histogram.map(|h| h.0));
    times.min()
}

/// What a decoded sample occupies.
const SAMPLE_BYTES: usize = size_of::<Sample>();
/// What a decoded start timestamp occupies: with its time, the times it is told by, and in its column.
const START_BYTES: usize = 2 * size_of::<(i64, i64)>() + size_of::<i64>();

/// What a summary takes beside its decoded form: united with others, in its column, and its ends as samples. The copies share the sums
/// of histograms.
const SUMMARY_COPIES_BYTES: usize = 2 * size_of::<Summary>() + 2 * SAMPLE_BYTES;

/// How many samples runs that overlap a range have.
fn samples_in(runs: &[KeptRun], range: TimeRange) -> usize {
    let overlapping = runs.iter().filter(|run| run.time_range().overlaps(&range));
    overlapping.map(|r| r.run.count()).sum()
}

/// Runs by first time, in groups that do not overlap each other.
fn groups(mut runs: &[KeptRun]) -> impl Iterator<Item = &[KeptRun]> {
    std::iter::from_fn(move || {
        let mut end = runs.first()?.time_range().max;
        let mut n = 1;
        while let Some(run) = runs.get(n).filter(|run| run.time_range().min <= end) {
            end = end.max(run.time_range().max);
            n += 1;
        }
        let (group, rest) = runs.split_at(n);
        runs = rest;
        Some(group)
    })
}

/// Merges runs that overlap: first into as few ascending lanes as they need, then lane by lane.
fn merge_group(
    runs: &[KeptRun],
    range: TimeRange,
    times: &mut Vec<i64>,
    values: &mut Vec<f64>,
) -> Result<(), koios_chunk::Error> {
    let mut lanes: Vec<(i64, Vec<&KeptRun>)> = Vec::new();
    for run in runs.iter().filter(|run| run.time_range().overlaps(&range)) {
        let span = run.time_range();
        match lanes.iter_mut().find(|(end, _)| *end < span.min) {
            Some((end, lane)) => {
                *end = span.max;
                lane.push(run);
            }
            None => lanes.push((span.max, vec![run])),
        }
    }
    let all = samples_in(runs, range);
    let (mut merged, mut buffer) = (Vec::with_capacity(all), Vec::with_capacity(all));
    let (mut samples, mut lane_times, mut lane_values) = (Vec::new(), Vec::new(), Vec::new());
    for (_, lane) in lanes {
        lane_times.clear();
        lane_values.clear();
        for run in lane {
            run.decode_range(range, &mut lane_times, &mut lane_values)?;
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

impl MergedData {
    /// The start timestamps of a closed range, each with the time of its sample: of each time the largest.
    fn decode_starts(&self, range: TimeRange) -> Result<Vec<(i64, i64)>, koios_chunk::Error> {
        let mut starts = Vec::new();
        if self.has_starts {
            for run in self.runs.iter().chain(&self.histograms) {
                run.decode_starts(range, &mut starts)?;
            }
            sort_and_dedup_starts(&mut starts);
        }
        Ok(starts)
    }

    fn decode_all(&self, range: TimeRange, out: &mut Columns) -> Result<(), koios_chunk::Error> {
        let summaries = united_summaries(&self.summaries, range)?;
        if !summaries.is_empty() {
            return self.decode_with(&summaries, range, out);
        }
        self.decode_samples(range, out)
    }

    /// Summaries, their ends as samples, and the samples between them.
    fn decode_with(
        &self,
        summaries: &[Summary],
        range: TimeRange,
        out: &mut Columns,
    ) -> Result<(), koios_chunk::Error> {
        // Histograms that are kept of a summary are needed on both sides of an edge that cuts it.
        let reach = summaries.iter().fold(range, |r, s| r.union(&s.range()));
        let mut samples = Columns::default();
        self.decode_samples(reach, &mut samples)?;
        merge_summaries(summaries, &samples, range, out);
        Ok(())
    }

    fn decode_samples(&self, range: TimeRange, out: &mut Columns) -> Result<(), koios_chunk::Error> {
        let (from, starts) = (out.len(), self.decode_starts(range)?);
        if self.histograms.is_empty() {
            out.append_floats(|times, values| self.decode_runs(range, times, values))?;
        } else {
            self.decode_both(range, out)?;
        }
        out.set_starts(from, &starts);
        Ok(())
    }
}

impl SeriesData for MergedData {
    fn decode(&self, range: TimeRange, out: &mut Columns) -> Result<(), QueryError> {
        self.decode_all(range, out).map_err(|e| QueryError::Internal {
            message: format!("stored samples cannot be decoded: {e}"),
            source: Some(Arc::new(e)),
        })
    }

    fn encoded_bytes(&self) -> usize {
        let of_samples = self.runs.iter().chain(&self.histograms).map(|r| &r.run);
        of_samples.chain(&self.summaries).map(Run::bytes).sum()
    }

    fn decoded_bytes(&self, range: TimeRange) -> usize {
        let bytes = |group: &[KeptRun]| {
            // Merging needs a lane, its samples, and what is merged twice, beside the result.
            let copies = if group.len() > 1 { 5 } else { 1 };
            samples_in(group, range) * SAMPLE_BYTES * copies
        };
        let floats: usize = groups(&self.runs).map(bytes).sum();
        // Where there are histograms, floats are decoded beside them first.
        let copies = if self.histograms.is_empty() { 1 } else { 3 };
        let histograms = self
            .histograms
            .iter()
            .filter(|run| run.time_range().overlaps(&range));
        let starts = if self.has_starts { START_BYTES } else { 0 };
        let summaries: usize = self
            .summaries
            .iter()
            .filter(|run| run.time_range().overlaps(&range))
            .map(|run| run.decoded_bytes() + run.count() * SUMMARY_COPIES_BYTES)
            .sum();
        // Beside them samples are decoded first, too.
        let copies = if summaries == 0 { copies } else { copies + 1 };
        floats * copies
            + summaries
            + histograms.map(|r| r.run.decoded_bytes()).sum::<usize>()
            + starts * self.samples_max(range)
    }

    fn samples_max(&self, range: TimeRange) -> usize {
        let summaries = self
            .summaries
            .iter()
            .filter(|run| run.time_range().overlaps(&range));
        let ends = 2 * summaries.map(Run::count).sum::<usize>();
        samples_in(&self.runs, range) + samples_in(&self.histograms, range) + ends
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use koios_chunk::{Chunk, OpenRun, OpenState, PlainRun, Starts};
    use koios_model::merge::winner;
    use proptest::prelude::*;

    use super::*;

    /// As a chunk, as plain columns, or as the open samples of a head.
    fn run(samples: &BTreeMap<i64, (f64, i64)>, form: usize) -> Run {
        let times: Vec<_> = samples.keys().copied().collect();
        let values: Vec<_> = samples.values().map(|s| s.0).collect();
        let mut starts = Starts::default();
        samples.iter().for_each(|(&t, s)| starts.push(t, s.1));
        match form % 3 {
            0 => Run::Plain(PlainRun::new(times, values).unwrap().with_starts(starts)),
            1 => {
                let chunk = koios_chunk::encode(&times, &values).unwrap();
                let chunk = Chunk::parse(chunk.into()).unwrap();
                Run::Chunk(chunk.with_starts(&starts).unwrap())
            }
            _ => {
                let range = TimeRange::new(times[0], times[times.len() - 1]);
                let (mut state, first) = OpenState::first(times[0], values[0]);
                let mut bytes = first.bytes().to_vec();
                for (&t, &v) in times.iter().zip(&values).skip(1) {
                    bytes.extend_from_slice(state.append(t, v).bytes());
                }
                Run::Open(OpenRun::new(bytes.into(), times.len(), range).with_starts(starts))
            }
        }
    }

    fn series(runs: Vec<Run>) -> SeriesRuns {
        SeriesRuns {
            labels: Labels::from_pairs([("a", "b")]),
            runs,
        }
    }

    proptest! {
        #[test]
        fn i2_overlapping_runs_decode_to_one_winner_per_time(
            sources in proptest::collection::vec(
                proptest::collection::btree_map(
                    0i64..60, (prop_oneof![Just(1.0), Just(2.0), Just(f64::NAN)], prop_oneof![2 => Just(0i64), 1 => 1i64..4]), 1..12), 1..7),
            min in 0i64..60, len in 0i64..60,
        ) {
            let range = TimeRange::new(min, min + len);
            let mut model = BTreeMap::<i64, f64>::new();
            let mut starts = BTreeMap::<i64, i64>::new();
            for (&t, &(v, start)) in sources.iter().flatten().filter(|(t, _)| range.contains(**t)) {
                model.entry(t).and_modify(|w| *w = winner(*w, v)).or_insert(v);
                starts.entry(t).and_modify(|s| *s = start.max(*s)).or_insert(start);
            }
            let budget = Budget::new(1 << 20, 10);
            let mut all: Option<HeldSeries> = None;
            for (i, s) in sources.iter().enumerate() {
                let held = hold(series(vec![run(s, i)]), None, &budget).unwrap();
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
            let starts: Vec<i64> = starts.into_values().collect();
            let any = starts.iter().any(|start| *start != 0);
            prop_assert_eq!(out.start_timestamps(), any.then_some(&starts[..]));
            drop(data);
            prop_assert_eq!(budget.held(), 0);
        }
    }

    #[test]
    fn i10_what_is_too_old_of_heads_does_not_show_between_summaries() {
        let budget = Budget::new(1 << 20, 10);
        let samples = (0..20).map(|i| (i * 10, (1.0, 0))).collect();
        for form in 0..3 {
            let mut held = hold(series(vec![run(&samples, form)]), None, &budget).unwrap();
            assert!(held.keep_from(100), "form {form}");
            let mut chunks = Vec::new();
            let summaries = [55, 155].map(|t| Summary::of_float(Sample { t, v: 7.0 }));
            koios_chunk::encode_summaries(&summaries, &mut chunks).unwrap();
            let of_blocks = series(chunks.into_iter().map(Run::Chunk).collect());
            held.absorb(hold(of_blocks, None, &budget).unwrap());
            let (_, data) = held.into_parts();
            let mut out = Columns::default();
            data.decode(TimeRange::new(0, 170), &mut out).unwrap();
            let kept = [55, 100, 110, 120, 130, 140, 150, 155, 160, 170];
            assert_eq!(out.timestamps(), kept, "form {form}");
        }
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
