//! Runs of which a part may be too old.

use std::sync::Arc;

use koios_chunk::{Error, Run};
use koios_model::{Histogram, TimeRange};

/// A run, and from when on its samples are kept: what heads have is theirs until it is cut, whatever its age.
#[derive(Debug)]
pub(super) struct KeptRun {
    pub(super) run: Run,
    /// Milliseconds.
    from: i64,
}

impl KeptRun {
    /// All of a run.
    pub(super) fn whole(run: Run) -> Self {
        let from = i64::MIN;
        Self { run, from }
    }

    /// Leaves out samples before a time; whether any is left.
    pub(super) fn keep_from(&mut self, from: i64) -> bool {
        self.from = self.from.max(from);
        self.run.time_range().max >= self.from
    }

    /// The times that samples may have.
    pub(super) fn time_range(&self) -> TimeRange {
        let all = self.run.time_range();
        TimeRange::new(all.min.max(self.from), all.max)
    }

    /// What of a range is kept; `None` when nothing is.
    fn kept_of(&self, range: TimeRange) -> Option<TimeRange> {
        let kept = TimeRange::new(range.min.max(self.from), range.max);
        (kept.min <= kept.max).then_some(kept)
    }

    /// As [`Run::decode_range`].
    pub(super) fn decode_range(
        &self,
        range: TimeRange,
        times: &mut Vec<i64>,
        values: &mut Vec<f64>,
    ) -> Result<(), Error> {
        match self.kept_of(range) {
            Some(kept) => self.run.decode_range(kept, times, values),
            None => Ok(()),
        }
    }

    /// As [`Run::decode_histograms`].
    pub(super) fn decode_histograms(
        &self,
        range: TimeRange,
        out: &mut Vec<(i64, Arc<Histogram>)>,
    ) -> Result<(), Error> {
        match self.kept_of(range) {
            Some(kept) => self.run.decode_histograms(kept, out),
            None => Ok(()),
        }
    }

    /// As [`Run::decode_starts`].
    pub(super) fn decode_starts(&self, range: TimeRange, out: &mut Vec<(i64, i64)>) -> Result<(), Error> {
        match self.kept_of(range) {
            Some(kept) => self.run.decode_starts(kept, out),
            None => Ok(()),
        }
    }
}
