//! The windows that a block's samples go to.

use std::collections::{BTreeMap, BTreeSet};

use koios_model::{TimeRange, window_start};

use crate::ImportError;

/// Wider windows, as multiples of the blocks' range: those that compaction widens to.
const WIDENED: [i64; 3] = [1, 6, 12];
/// Most windows of the blocks' range that a block may span, a year at 2 h: each of the widest is a pass over the block, and
/// Prometheus' own blocks end at a month.
const WINDOWS_MAX: u64 = 12 * 366;

/// Collects where samples are.
#[derive(Debug)]
pub(crate) struct Windows {
    range_ms: i64,
    /// Runs of windows of the blocks' range that have some: the first start and the last. Kept apart, so that noting a chunk costs
    /// the same whatever it spans.
    runs: BTreeMap<i64, i64>,
    ends: Option<TimeRange>,
}

impl Windows {
    pub(crate) fn new(range_ms: i64) -> Self {
        Self {
            range_ms: range_ms.max(1),
            runs: BTreeMap::new(),
            ends: None,
        }
    }

    /// Notes samples; says no when they are too far apart.
    pub(crate) fn note(&mut self, samples: TimeRange) -> Result<(), ImportError> {
        let ends = self.ends.map_or(samples, |ends| ends.union(&samples));
        let apart = ends.max.abs_diff(ends.min);
        let range = self.range_ms.unsigned_abs();
        if apart / range >= WINDOWS_MAX {
            return Err(ImportError::Span {
                hours: apart / 3_600_000,
                hours_max: (WINDOWS_MAX * range) / 3_600_000,
            });
        }
        self.ends = Some(ends);
        let mut first = window_start(samples.min, self.range_ms);
        let mut last = window_start(samples.max, self.range_ms);
        // Runs that it touches become one with it.
        while let Some((&start, &end)) = self.runs.range(..=last).next_back() {
            if end < first {
                break;
            }
            self.runs.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
        Ok(())
    }

    /// The windows to write, ascending: one of the narrowest width that takes all, or else several of the widest.
    pub(crate) fn finish(self) -> Vec<TimeRange> {
        let Some(ends) = self.ends else { return Vec::new() };
        let widths = WIDENED.map(|n| self.range_ms.saturating_mul(n));
        let takes_all = |width: &i64| window_start(ends.min, *width) == window_start(ends.max, *width);
        let widest = widths.last().copied().unwrap_or(self.range_ms);
        let width = widths.into_iter().find(takes_all).unwrap_or(widest);
        let mut starts = BTreeSet::new();
        for (first, last) in self.runs {
            let mut start = window_start(first, width);
            while start <= last {
                starts.insert(start);
                let Some(next) = start.checked_add(width) else {
                    break;
                };
                start = next;
            }
        }
        let window = |start: i64| TimeRange::new(start, start.saturating_add(width - 1));
        starts.into_iter().map(window).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn windows(samples: &[(i64, i64)]) -> Vec<(i64, i64)> {
        let mut windows = Windows::new(2 * HOUR);
        for (min, max) in samples {
            windows.note(TimeRange::new(min * HOUR, max * HOUR)).unwrap();
        }
        let hours = |w: TimeRange| (w.min / HOUR, (w.max + 1) / HOUR);
        windows.finish().into_iter().map(hours).collect()
    }

    #[test]
    fn windows_are_those_of_compaction() {
        assert_eq!(windows(&[]), []);
        assert_eq!(windows(&[(2, 3)]), [(2, 4)]);
        assert_eq!(windows(&[(2, 3), (5, 11)]), [(0, 12)]);
        assert_eq!(windows(&[(2, 3), (13, 13)]), [(0, 24)]);
        assert_eq!(
            windows(&[(23, 23), (25, 26), (100, 100)]),
            [(0, 24), (24, 48), (96, 120)]
        );
        assert_eq!(windows(&[(-3, -3)]), [(-4, -2)]);
        // One that spans others, and one between them.
        assert_eq!(
            windows(&[(1, 1), (80, 80), (30, 30), (20, 50), (60, 61)]),
            [(0, 24), (24, 48), (48, 72), (72, 96)]
        );
    }

    #[test]
    fn i12_what_spans_centuries_is_refused_before_it_takes_memory() {
        let mut windows = Windows::new(2 * HOUR);
        assert!(windows.note(TimeRange::ALL).is_err());
        windows.note(TimeRange::new(0, 1)).unwrap();
        let error = windows.note(TimeRange::new(i64::MAX, i64::MAX)).unwrap_err();
        assert!(error.to_string().contains("a block may span 8784"), "{error}");
        assert_eq!(windows.runs.len(), 1);
    }
}
