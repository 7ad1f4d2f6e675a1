//! The floats of a window in order of value, as the window moves.

use super::quantile::nan_first;
use super::window::cut;
use crate::error::QueryError;
use crate::memory::Lease;
use crate::work::Work;

/// Sorted floats: of equal ones the older comes first, as in a stable sort of the window.
#[derive(Debug)]
pub(super) struct SortedWindow {
    sorted: Vec<f64>,
    /// What the next window is made in.
    next: Vec<f64>,
    lo: usize,
    hi: usize,
    lease: Lease,
}

impl SortedWindow {
    /// An empty window whose memory is that of some work.
    pub(super) fn new(work: &Work<'_>) -> Self {
        Self {
            sorted: Vec::new(),
            next: Vec::new(),
            lo: 0,
            hi: 0,
            lease: work.lease(),
        }
    }

    /// Moves to the floats from `lo` up to `hi`, neither of which may be less than before, and gives them in order.
    pub(super) fn advance(
        &mut self,
        v: &[f64],
        (lo, hi): (usize, usize),
        work: &mut Work<'_>,
    ) -> Result<&[f64], QueryError> {
        let width = hi - lo;
        // The window, the next one, and what comes and goes.
        self.lease.cover(width.saturating_mul(3 * size_of::<f64>()))?;
        let moved = (lo - self.lo) + (hi - self.hi);
        let overlaps = lo < self.hi;
        // A float that comes or goes by itself costs a search, and moves half of the others.
        if overlaps && moved <= width.max(1).ilog2() as usize {
            work.spend(moved.saturating_mul(16 + width / 32))?;
            self.shift(v, lo, hi);
        } else if overlaps && moved <= width / 2 {
            work.spend(width)?;
            self.merge(v, (lo, hi), work)?;
        } else {
            self.sorted.clear();
            self.sorted.extend_from_slice(cut(v, lo, hi));
            work.sort(&mut self.sorted, nan_first)?;
        }
        (self.lo, self.hi) = (lo, hi);
        Ok(&self.sorted)
    }

    /// Takes out and puts in one float after the other.
    fn shift(&mut self, v: &[f64], lo: usize, hi: usize) {
        for gone in cut(v, self.lo, lo) {
            let at = self.sorted.partition_point(|kept| nan_first(kept, gone).is_lt());
            if at < self.sorted.len() {
                self.sorted.remove(at);
            }
        }
        for &new in cut(v, self.hi, hi) {
            let at = self.sorted.partition_point(|kept| nan_first(kept, &new).is_le());
            self.sorted.insert(at, new);
        }
    }

    /// Takes out and puts in all floats that come and go in one pass.
    fn merge(&mut self, v: &[f64], (lo, hi): (usize, usize), work: &mut Work<'_>) -> Result<(), QueryError> {
        let mut gone = cut(v, self.lo, lo).to_vec();
        let mut new = cut(v, self.hi, hi).to_vec();
        work.sort(&mut gone, nan_first)?;
        work.sort(&mut new, nan_first)?;
        let (mut gone, mut new) = (gone.into_iter().peekable(), new.into_iter().peekable());
        self.next.clear();
        for &kept in &self.sorted {
            // Those that go are older than all that are equal to them.
            if gone.next_if(|gone| nan_first(gone, &kept).is_eq()).is_some() {
                continue;
            }
            while let Some(new) = new.next_if(|new| nan_first(new, &kept).is_lt()) {
                self.next.push(new);
            }
            self.next.push(kept);
        }
        self.next.extend(new);
        std::mem::swap(&mut self.sorted, &mut self.next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::{CancelContext, Uninterrupted};
    use crate::memory::Memory;

    proptest! {
        #[test]
        fn a_moving_window_is_sorted_as_one_that_stands(
            v in prop::collection::vec(
                prop_oneof![4 => (0u8..9).prop_map(f64::from), 1 => Just(-0.0), 1 => Just(f64::NAN)],
                200,
            ),
            width in 1usize..60,
            moves in prop::collection::vec((0usize..9, 0usize..4), 1..60),
        ) {
            let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
            let mut window = SortedWindow::new(&work);
            let (mut lo, mut hi) = (0, width);
            for (by, wider) in moves {
                hi = (hi + by + wider).min(v.len());
                lo = (lo + by).min(hi);
                let mut want = v[lo..hi].to_vec();
                want.sort_by(nan_first);
                let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(window.advance(&v, (lo, hi), &mut work).unwrap()), bits(&want));
            }
        }
    }

    #[test]
    fn i12_moving_a_large_window_can_be_stopped() {
        let ctx = CancelContext::new(|| false);
        let mut work = Work::new(&ctx, &Memory::new(usize::MAX));
        let mut window = SortedWindow::new(&work);
        let v: Vec<f64> = (0..200_000).map(|i| f64::from(i * 7_919 % 100_003)).collect();
        window.advance(&v, (0, 100_000), &mut work).unwrap();
        ctx.cancel();
        // Each is made of the one before in one pass, and asks before it.
        for by in [1_000, 20_000] {
            assert!(window.advance(&v, (by, 100_000 + by), &mut work).is_err());
        }
    }
}
