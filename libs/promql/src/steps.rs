//! The times an expression is evaluated at.

/// `count` times, `interval_ms` apart, from `start_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steps {
    start_ms: i64,
    interval_ms: i64,
    count: usize,
}

impl Steps {
    /// One time.
    pub fn instant(at_ms: i64) -> Self {
        Self {
            start_ms: at_ms,
            interval_ms: 1,
            count: 1,
        }
    }

    /// From `start_ms` up to `end_ms`; none if the end lies before the start. An interval below 1 counts as 1.
    pub fn range(start_ms: i64, end_ms: i64, interval_ms: i64) -> Self {
        let interval_ms = interval_ms.max(1);
        let span = i128::from(end_ms) - i128::from(start_ms);
        let count = if span < 0 {
            0
        } else {
            span / i128::from(interval_ms) + 1
        };
        Self {
            start_ms,
            interval_ms,
            count: usize::try_from(count).unwrap_or(usize::MAX),
        }
    }

    /// The first time.
    pub fn start(&self) -> i64 {
        self.start_ms
    }

    /// The last time; the start if there are none.
    pub fn end(&self) -> i64 {
        self.at(self.count.saturating_sub(1))
    }

    /// The distance between times.
    pub fn interval(&self) -> i64 {
        self.interval_ms
    }

    /// How many times there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there is just one.
    pub fn is_single(&self) -> bool {
        self.count == 1
    }

    /// Time number `i`.
    pub fn at(&self, i: usize) -> i64 {
        let i = i64::try_from(i).unwrap_or(i64::MAX);
        self.start_ms.saturating_add(self.interval_ms.saturating_mul(i))
    }

    /// The first time alone.
    pub(crate) fn first(&self) -> Self {
        Self::instant(self.start_ms)
    }

    /// All times, in order.
    pub fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        (0..self.count).map(|i| self.at(i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_a_step_only_if_the_interval_reaches_it() {
        let s = Steps::range(0, 25, 10);
        assert_eq!(
            (s.count(), s.end(), s.iter().collect::<Vec<_>>()),
            (3, 20, vec![0, 10, 20])
        );
        assert_eq!(Steps::range(10, 5, 1).count(), 0);
        assert!(Steps::range(7, 7, 10).is_single());
    }

    #[test]
    fn extreme_ranges_do_not_overflow() {
        let s = Steps::range(i64::MIN, i64::MAX, 1);
        assert!(s.count() > 1 << 62);
        assert_eq!(s.at(usize::MAX), -1);
    }
}
