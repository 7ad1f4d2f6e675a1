//! Time columns decoded last: the series of one target are mostly scraped at the same times, so that one column after the
//! other holds the very same bytes. Copying what they decode to is many times as fast as decoding them again.

use std::cell::RefCell;

use koios_model::TimeRange;

/// As many as a series over several days has chunks, mostly.
const SLOTS: usize = 64;
/// Longer columns are not kept, so that one takes up to some 30 KiB: those of our own chunks are half as long.
const TIMES_MAX: usize = 2_048;

thread_local! {
    /// Of each thread, as decoders have no other place that outlives a series.
    static RECENT: RefCell<Vec<RecentTimes>> = const { RefCell::new(Vec::new()) };
}

/// A time column and what it decodes to.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentTimes {
    /// From the header of its chunk: the first and the last time.
    range: Option<TimeRange>,
    encoded: Vec<u8>,
    pub(crate) times: Vec<i64>,
}

impl RecentTimes {
    /// Hands the one that may be of `count` times in a range to `f`.
    pub(crate) fn with<T>(count: usize, range: TimeRange, f: impl FnOnce(&mut Self) -> T) -> T {
        if count > TIMES_MAX {
            return f(&mut Self::default());
        }
        RECENT.with_borrow_mut(|slots| {
            if slots.is_empty() {
                slots.resize(SLOTS, Self::default());
            }
            // Neighbouring chunks begin hours apart: the golden ratio spreads them.
            let spread = (range.min as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            match slots.get_mut(spread as usize % SLOTS) {
                Some(slot) => f(slot),
                None => f(&mut Self::default()),
            }
        })
    }

    /// How long the column is, if it is that of `count` times in `range` that `bytes` begin with.
    pub(crate) fn holds(&self, count: usize, range: TimeRange, bytes: &[u8]) -> Option<usize> {
        let same = self.times.len() == count && self.range == Some(range) && bytes.starts_with(&self.encoded);
        same.then_some(self.encoded.len())
    }

    /// Forgets the column.
    pub(crate) fn clear(&mut self) {
        self.range = None;
        self.encoded.clear();
        self.times.clear();
    }

    /// Says what `times` were decoded from.
    pub(crate) fn were_decoded_from(&mut self, range: TimeRange, encoded: &[u8]) {
        self.range = Some(range);
        self.encoded.extend_from_slice(encoded);
    }
}
