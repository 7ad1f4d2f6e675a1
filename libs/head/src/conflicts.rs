//! Conflicts: different samples at the newest time of a series, of which the sender is told (I2).
//!
//! A float and a native histogram are in conflict as two floats are. Both are kept, and reads choose. What is looked at is
//! the newest time only, of whichever kind, and nothing is decoded for it.

use koios_model::merge::{float_wins, histogram_winner, winner};
use koios_model::{BatchHistogram, BatchSeries, Histogram, is_stale};

use crate::apply::{Applied, Tally};
use crate::head::Head;
use crate::series::{Cold, SeriesId};

/// One of two different samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictValue {
    /// The bits of a float.
    Float(u64),
    /// A native histogram.
    Histogram,
}

impl From<f64> for ConflictValue {
    fn from(v: f64) -> Self {
        Self::Float(v.to_bits())
    }
}

/// Two different samples at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The series.
    pub series: SeriesId,
    /// The time, milliseconds.
    pub t: i64,
    /// What was there.
    pub held: ConflictValue,
    /// What came; of a float and a histogram that came together, the one that is not kept.
    pub came: ConflictValue,
}

/// A float and a histogram at one time, and whether the one that came is kept.
type Mixed = (Conflict, bool);

impl Applied {
    /// Counts a conflict.
    pub(crate) fn note_conflict(&mut self, conflict: Conflict, is_kept: bool) {
        let kept = u64::from(is_kept);
        self.conflicts += 1;
        self.conflicts_kept += kept;
        if conflict.came == ConflictValue::Histogram {
            self.histogram_conflicts += 1;
            self.histogram_conflicts_kept += kept;
        }
        self.first_conflict.get_or_insert(conflict);
    }

    /// Counts one between the kinds after the samples of a series were appended, unless they count already for what is
    /// there of their own kind: then it may still be that they are not kept.
    fn note_mixed(&mut self, (conflict, is_kept): Mixed, before: &Self) {
        if self.conflicts == before.conflicts {
            self.note_conflict(conflict, is_kept);
        } else if !is_kept {
            self.conflicts_kept = before.conflicts_kept;
            self.histogram_conflicts_kept = before.histogram_conflicts_kept;
        }
    }
}

impl Head {
    /// Appends floats to a series that has, or had, histograms or start timestamps.
    pub(crate) fn append_beside_others(
        &mut self,
        index: u32,
        series: &BatchSeries<'_>,
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let Some(mixed) = self.conflict_with_histogram(index, series) else {
            return self.append_floats(index, series, tally, applied);
        };
        let before = *applied;
        self.append_floats(index, series, tally, applied);
        applied.note_mixed(mixed, &before);
    }

    /// Appends histograms of one series, as [`Self::append_histogram_series`].
    pub(crate) fn append_histograms_beside_floats(
        &mut self,
        index: u32,
        histograms: &[BatchHistogram],
        tally: &mut Tally<'_>,
        applied: &mut Applied,
    ) {
        let mixed = self.conflict_with_float(index, histograms, tally);
        let before = *applied;
        self.append_histograms_of(index, histograms, tally, applied);
        if let Some(mixed) = mixed {
            applied.note_mixed(mixed, &before);
        }
    }

    /// Whether a histogram is held at the newest time of a series and floats for it come. A float that is held already, and
    /// is what reads give or was before a late one, is no news; neither is that a series ended.
    fn conflict_with_histogram(&self, index: u32, series: &BatchSeries<'_>) -> Option<Mixed> {
        let (t, held) = self.newest_histogram(index)?;
        let newest_float = self.newest_float(index);
        if newest_float.is_some_and(|(newest, _)| newest > t) {
            return None;
        }
        let came = series.timestamps.iter().zip(series.values);
        let came = came.filter(|(at, _)| **at == t).map(|(_, v)| *v);
        let came = came.reduce(winner)?;
        let wins = float_wins(came, held);
        let last = self.last_float(index);
        let mut at_newest = newest_float.into_iter().chain(last);
        let repeats = at_newest.any(|(at, v)| at == t && v.to_bits() == came.to_bits());
        if (wins && repeats) || (is_stale(came) && held.is_stale()) {
            return None;
        }
        let conflict = Conflict {
            series: self.series.id(index),
            t,
            held: ConflictValue::Histogram,
            came: came.into(),
        };
        Some((conflict, wins))
    }

    /// The same of histograms that come where a float is.
    fn conflict_with_float(
        &self,
        index: u32,
        histograms: &[BatchHistogram],
        tally: &mut Tally<'_>,
    ) -> Option<Mixed> {
        let (t, held) = self.newest_float(index)?;
        let newest = self.newest_histogram(index);
        if newest.is_some_and(|(newest, _)| newest > t) {
            return None;
        }
        let came = histograms.iter().filter(|h| h.t == t);
        let came = came.map(|h| &h.histogram).reduce(histogram_winner)?;
        let wins = !float_wins(held, came);
        let repeats = newest.is_some_and(|(at, h)| at == t && h.bits_cmp(came).is_eq());
        if (wins && repeats) || (is_stale(held) && came.is_stale()) {
            return None;
        }
        let rows = tally.rows.as_mut().filter(|_| wins);
        let (held, came) = match rows.is_some_and(|rows| rows.has_float(index, t, held)) {
            true => (ConflictValue::Histogram, held.into()),
            false => (held.into(), ConflictValue::Histogram),
        };
        let conflict = Conflict {
            series: self.series.id(index),
            t,
            held,
            came,
        };
        Some((conflict, wins && came == ConflictValue::Histogram))
    }

    /// The newest float in order of a series.
    fn last_float(&self, index: u32) -> Option<(i64, f64)> {
        let hot = self.series.hot.get(index as usize)?;
        hot.has_last().then_some((hot.last_t, hot.last_v))
    }

    /// The same, or the late one of its time that is kept.
    fn newest_float(&self, index: u32) -> Option<(i64, f64)> {
        let (t, last) = self.last_float(index)?;
        let late = self.side_at(index, t);
        Some((t, late.map_or(last, |late| winner(late, last))))
    }

    /// The same of histograms.
    fn newest_histogram(&self, index: u32) -> Option<(i64, &Histogram)> {
        let hot = self.series.hot.get(index as usize)?;
        if !hot.has_histograms() {
            return None;
        }
        let cold = self.series.cold.get(index as usize)?;
        Cold::histograms(cold)?.newest()
    }
}
