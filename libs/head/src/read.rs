//! Reading series: runs that may overlap, or merged floats.

use koios_chunk::{Chunk, OpenRun, PlainRun, Run, Starts};
use koios_model::merge::{sort_and_dedup, sort_and_dedup_starts};
use koios_model::{Labels, Sample, TimeRange};

use crate::error::Error;
use crate::head::Head;
use crate::series::SeriesId;

impl Head {
    /// The labels of a series; `None` when it was forgotten since it was selected.
    pub fn labels(&self, id: SeriesId) -> Option<Labels> {
        self.series
            .is_current(id)
            .then(|| self.series.labels(id.index, &self.symbols))
    }

    /// The hash a series came with; `None` when it was forgotten since it was selected.
    pub fn hash(&self, id: SeriesId) -> Option<koios_model::SeriesHash> {
        self.series
            .is_current(id)
            .then(|| self.series.hashes.get(id.index as usize).copied())?
    }

    /// Appends the runs of a series that overlap a closed range. They may overlap each other and hold samples outside the
    /// range; [`merge_runs`] makes one of them. Sealed chunks are shared, open and late samples are copied.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid, [`Error::Chunk`] when memory is damaged.
    pub fn read(&self, id: SeriesId, range: TimeRange, out: &mut Vec<Run>) -> Result<(), Error> {
        self.check(id)?;
        for sealed in self.sealed(id.index, range) {
            out.push(Run::Chunk(Chunk::parse(sealed.shared())?));
        }
        self.read_unsealed(id.index, range, out)
    }

    /// Copies open samples, if any may be in range, and the late ones that are.
    pub(crate) fn read_unsealed(
        &self,
        index: u32,
        range: TimeRange,
        out: &mut Vec<Run>,
    ) -> Result<(), Error> {
        out.extend(self.open_run(index, range).map(Run::Open));
        let side = in_range(self.series.cold[index as usize].side(), range);
        if !side.is_empty() {
            let (ts, vs): (Vec<i64>, Vec<f64>) = side.iter().map(|s| (s.t, s.v)).unzip();
            let starts = Starts::of(&ts, self.late_starts(index));
            out.push(Run::Plain(PlainRun::new(ts, vs)?.with_starts(starts)));
        }
        self.read_unsealed_histograms(index, range, out)
    }

    /// A copy of the open samples, if any may be in a closed range.
    fn open_run(&self, index: u32, range: TimeRange) -> Option<OpenRun> {
        let run = self.pool.run(&self.series.hot[index as usize], range)?;
        Some(match self.open_starts(index) {
            Some(starts) => run.with_starts(starts.clone()),
            None => run,
        })
    }

    /// Replaces `out` by the floats of a series in a closed range, each time once, ascending.
    ///
    /// # Errors
    /// [`Error::SeriesForgotten`] when the id is no longer valid, [`Error::Chunk`] when memory is damaged.
    pub fn samples(&self, id: SeriesId, range: TimeRange, out: &mut Vec<Sample>) -> Result<(), Error> {
        self.check(id)?;
        self.merged(id.index, range, out)
    }

    fn check(&self, id: SeriesId) -> Result<(), Error> {
        if self.series.is_current(id) {
            Ok(())
        } else {
            Err(Error::SeriesForgotten { index: id.index })
        }
    }

    /// All samples of a series in range, merged.
    fn merged(&self, index: u32, range: TimeRange, out: &mut Vec<Sample>) -> Result<(), Error> {
        out.clear();
        let (mut ts, mut vs) = (Vec::new(), Vec::new());
        for s in self.sealed(index, range) {
            Chunk::parse(s.shared())?.decode_range(range, &mut ts, &mut vs)?;
        }
        if let Some(open) = self.pool.run(&self.series.hot[index as usize], range) {
            open.decode_range(range, &mut ts, &mut vs)?;
        }
        out.extend(ts.iter().zip(&vs).map(|(&t, &v)| Sample { t, v }));
        out.extend_from_slice(in_range(self.series.cold[index as usize].side(), range));
        settle(out);
        Ok(())
    }

    /// As [`Self::merged`] for the head's own use: a chunk that does not decode counts as nothing, which can only make
    /// a repetition look new; the merge on read takes care of that.
    pub(crate) fn held(&self, index: u32, range: TimeRange, out: &mut Vec<Sample>) {
        if self.merged(index, range, out).is_err() {
            out.clear();
        }
    }
}

/// The part of ascending samples that lies in a closed range.
fn in_range(samples: &[Sample], range: TimeRange) -> &[Sample] {
    let to = samples.partition_point(|s| s.t <= range.max);
    let from = samples.partition_point(|s| s.t < range.min);
    samples.get(from..to).unwrap_or(&[])
}

/// Makes one strictly ascending run of several.
fn settle(samples: &mut Vec<Sample>) {
    if samples.windows(2).any(|w| w[0].t >= w[1].t) {
        sort_and_dedup(samples);
    }
}

/// Replaces `out` by the start timestamps of runs in a closed range, each with the time of its sample, each time once,
/// ascending. Samples without one are left out.
///
/// # Errors
/// [`koios_chunk::Error`] when a run is damaged.
pub fn merge_starts(
    runs: &[Run],
    range: TimeRange,
    out: &mut Vec<(i64, i64)>,
) -> Result<(), koios_chunk::Error> {
    out.clear();
    for run in runs {
        run.decode_starts(range, out)?;
    }
    sort_and_dedup_starts(out);
    Ok(())
}

/// Replaces `out` by the floats of runs in a closed range, each time once, ascending, whatever overlaps.
///
/// # Errors
/// [`koios_chunk::Error`] when a run is damaged.
pub fn merge_runs(runs: &[Run], range: TimeRange, out: &mut Vec<Sample>) -> Result<(), koios_chunk::Error> {
    out.clear();
    let (mut ts, mut vs) = (Vec::new(), Vec::new());
    for run in runs {
        run.decode_range(range, &mut ts, &mut vs)?;
    }
    out.extend(ts.into_iter().zip(vs).map(|(t, v)| Sample { t, v }));
    settle(out);
    Ok(())
}
