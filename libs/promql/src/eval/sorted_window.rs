//! The floats of a window in order of value, as the window moves.

use super::quantile::nan_first;
use super::window::cut;

/// Sorted floats: of equal ones the older comes first, as in a stable sort of the window.
#[derive(Debug, Default)]
pub(super) struct SortedWindow {
    sorted: Vec<f64>,
    lo: usize,
    hi: usize,
}

impl SortedWindow {
    /// Moves to the floats from `lo` up to `hi`, neither of which may be less than before, and gives them in order.
    pub(super) fn advance(&mut self, v: &[f64], lo: usize, hi: usize) -> &[f64] {
        let (leaving, entering) = (lo - self.lo, hi - self.hi);
        // Each float that comes or goes costs a search and moves half of the others.
        let few = leaving + entering <= (hi - lo) / 4 && lo < self.hi;
        if few {
            for &gone in cut(v, self.lo, lo) {
                let at = self.sorted.partition_point(|kept| nan_first(kept, &gone).is_lt());
                if at < self.sorted.len() {
                    self.sorted.remove(at);
                }
            }
            for &new in cut(v, self.hi, hi) {
                let at = self.sorted.partition_point(|kept| nan_first(kept, &new).is_le());
                self.sorted.insert(at, new);
            }
        } else {
            self.sorted.clear();
            self.sorted.extend_from_slice(cut(v, lo, hi));
            self.sorted.sort_by(nan_first);
        }
        (self.lo, self.hi) = (lo, hi);
        &self.sorted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_moving_window_is_sorted_as_one_that_stands(
            v in prop::collection::vec(
                prop_oneof![4 => (0u8..9).prop_map(f64::from), 1 => Just(-0.0), 1 => Just(f64::NAN)],
                200,
            ),
            width in 1usize..60,
            moves in prop::collection::vec((0usize..4, 0usize..4), 1..60),
        ) {
            let mut window = SortedWindow::default();
            let (mut lo, mut hi) = (0, width);
            for (by, wider) in moves {
                hi = (hi + by + wider).min(v.len());
                lo = (lo + by).min(hi);
                let mut want = v[lo..hi].to_vec();
                want.sort_by(nan_first);
                let bits = |v: &[f64]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                prop_assert_eq!(bits(window.advance(&v, lo, hi)), bits(&want));
            }
        }
    }
}
