//! Time ranges in milliseconds.

use std::ops::Range;

/// A closed range of times: both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct TimeRange {
    /// First time, milliseconds.
    pub min: i64,
    /// Last time, milliseconds.
    pub max: i64,
}

impl TimeRange {
    /// All times.
    pub const ALL: Self = Self {
        min: i64::MIN,
        max: i64::MAX,
    };

    /// From `min` to `max`, both included; empty when `min > max`.
    pub fn new(min: i64, max: i64) -> Self {
        Self { min, max }
    }

    /// Whether `t` is in it.
    pub fn contains(&self, t: i64) -> bool {
        self.min <= t && t <= self.max
    }

    /// Whether the two share a time.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.min <= other.max && other.min <= self.max
    }

    /// Which of some ascending times are in it.
    pub fn places_in(&self, times: &[i64]) -> Range<usize> {
        let from = times.partition_point(|t| *t < self.min);
        from..times.partition_point(|t| *t <= self.max).max(from)
    }

    /// The smallest range that holds both.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }
}

/// The start of the window of `width_ms` that holds `t`; windows are aligned to the epoch. The first window of all is
/// cut short at `i64::MIN`.
pub fn window_start(t: i64, width_ms: i64) -> i64 {
    t.saturating_sub(t.rem_euclid(width_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_align_below_zero_too() {
        assert_eq!(window_start(7_199_999, 7_200_000), 0);
        assert_eq!(window_start(7_200_000, 7_200_000), 7_200_000);
        assert_eq!(window_start(-1, 7_200_000), -7_200_000);
        assert_eq!(window_start(i64::MIN, 7_200_000), i64::MIN);
    }
}
