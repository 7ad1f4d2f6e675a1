//! How quickly the bucket gives what the disk did not: so long the disk is worth waiting for.

use std::collections::VecDeque;
use std::time::Duration;

use koios_block::CellKey;
use parking_lot::Mutex;

/// Misses that are waited for at most; older ones were never fetched.
const MISSES_MAX: usize = 64;
/// Fetches whose times are remembered, and how many there must be to go by them.
const FETCHES: std::ops::RangeInclusive<usize> = 8..=64;

/// Times from a miss to when the cell was put. Times are on the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct BucketPace {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    missed: VecDeque<(CellKey, Duration)>,
    took: VecDeque<Duration>,
}

impl BucketPace {
    /// Takes note of a cell that is to be fetched now.
    pub(super) fn missed(&self, cell: CellKey, now: Duration) {
        let mut state = self.state.lock();
        if state.missed.iter().any(|(missed, _)| *missed == cell) {
            return;
        }
        if state.missed.len() >= MISSES_MAX {
            state.missed.pop_front();
        }
        state.missed.push_back((cell, now));
    }

    /// Takes note of a cell that was fetched.
    pub(super) fn fetched(&self, cell: &CellKey, now: Duration) {
        let mut state = self.state.lock();
        let Some(at) = state.missed.iter().position(|(missed, _)| missed == cell) else {
            return;
        };
        let Some((_, since)) = state.missed.remove(at) else {
            return;
        };
        if state.took.len() >= *FETCHES.end() {
            state.took.pop_front();
        }
        state.took.push_back(now.saturating_sub(since));
    }

    /// What half of the fetches took at most lately, once there are enough to tell.
    pub(super) fn usual(&self) -> Option<Duration> {
        let mut took: Vec<Duration> = self.state.lock().took.iter().copied().collect();
        if took.len() < *FETCHES.start() {
            return None;
        }
        let middle = took.len() / 2;
        Some(*took.select_nth_unstable(middle).1)
    }
}

#[cfg(test)]
mod tests {
    use koios_block::BlockId;

    use super::*;

    fn cell(cell: u32) -> CellKey {
        CellKey {
            cell,
            ..CellKey::meta(BlockId::from_bits(1))
        }
    }

    #[test]
    fn what_half_of_the_last_fetches_took_is_usual() {
        let (pace, at) = (BucketPace::default(), Duration::from_millis);
        for i in 0..200u64 {
            assert_eq!(pace.usual().is_some(), i >= 8);
            pace.missed(cell(0), at(i * 1000));
            // Another reader missed it, too: the first one began to fetch it.
            pace.missed(cell(0), at(i * 1000 + 50));
            pace.fetched(&cell(0), at(i * 1000 + 100 + i % 3));
            pace.fetched(&cell(0), at(i * 1000 + 900));
            // What is never fetched takes no room.
            pace.missed(cell(1 + i as u32), at(i * 1000));
        }
        assert_eq!(pace.usual(), Some(at(101)));
        assert_eq!(pace.state.lock().missed.len(), MISSES_MAX);
    }
}
