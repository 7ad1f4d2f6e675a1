//! Compensated sums and means of histograms.

use koios_model::Histogram;

use super::arithmetic::{Incompatible, Parts, Reconciled};
use crate::kahan::Kahan;

/// A compensated sum.
#[derive(Clone, Debug)]
pub(crate) struct HistogramSum(Parts<Kahan>);

impl HistogramSum {
    pub(crate) fn new(first: &Histogram) -> Self {
        Self(Parts::of(first))
    }

    pub(crate) fn push(&mut self, h: &Histogram) -> Result<Reconciled, Incompatible> {
        self.0.add(Parts::of(h))
    }

    /// What it occupies in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Its buckets and bounds.
    pub(crate) fn entries(&self) -> usize {
        let Parts {
            positive,
            negative,
            custom_bounds,
            ..
        } = &self.0;
        positive.len() + negative.len() + custom_bounds.len()
    }

    pub(crate) fn value(self) -> Histogram {
        self.0.histogram(Kahan::total)
    }
}

/// A mean: a compensated sum as long as that stays finite, an incremental mean from then on.
#[derive(Clone, Debug)]
pub(crate) struct HistogramMean {
    acc: Parts<Kahan>,
    count: f64,
    incremental: bool,
}

impl HistogramMean {
    pub(crate) fn new(first: &Histogram) -> Self {
        Self {
            acc: Parts::of(first),
            count: 1.0,
            incremental: false,
        }
    }

    pub(crate) fn push(&mut self, h: &Histogram) -> Result<Reconciled, Incompatible> {
        self.count += 1.0;
        if !self.incremental {
            let mut next = self.acc.clone();
            let reconciled = next.add(Parts::of(h))?;
            if !next.cells().any(|c| c.sum.is_infinite()) {
                self.acc = next;
                return Ok(reconciled);
            }
            self.incremental = true;
            let before = self.count - 1.0;
            self.acc.map(|c| c.over(before));
        }
        let kept = (self.count - 1.0) / self.count;
        self.acc.map(|c| c.times(kept));
        let mut share = Parts::of(h);
        let count = self.count;
        share.map(|c: Kahan| c.over(count));
        self.acc.add(share)
    }

    /// What it occupies in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.acc.bytes()
    }

    pub(crate) fn value(mut self) -> Histogram {
        if !self.incremental {
            let count = self.count;
            self.acc.map(|c| c.over(count));
        }
        self.acc.histogram(Kahan::total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(count: f64, sum: f64) -> Histogram {
        Histogram {
            count,
            sum,
            ..Histogram::default()
        }
    }

    #[test]
    fn small_histograms_survive_large_ones() {
        let mut s = HistogramSum::new(&observed(1.0, 1.0));
        for sum in [1e100, 1.0, -1e100] {
            s.push(&observed(1.0, sum)).unwrap();
        }
        assert_eq!(s.value().sum, 2.0);
    }

    #[test]
    fn a_mean_survives_an_overflowing_sum() {
        let mut m = HistogramMean::new(&observed(f64::MAX, 0.0));
        m.push(&observed(f64::MAX, 0.0)).unwrap();
        assert_eq!(m.value().count, f64::MAX);
    }
}
