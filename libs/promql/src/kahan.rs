//! Compensated sums, in the one form that all of the engine uses.
//!
//! **Source:** Prometheus `util/kahansum` (Neumaier's variant of Kahan's algorithm).

/// A running sum with its compensation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kahan {
    /// The sum so far, without the compensation.
    pub(crate) sum: f64,
    /// What rounding has lost.
    pub(crate) lost: f64,
}

impl Kahan {
    /// A sum that starts at `sum`.
    pub(crate) fn new(sum: f64) -> Self {
        Self { sum, lost: 0.0 }
    }

    /// Adds one term. An infinite sum forgets its compensation, which would turn it into NaN.
    #[inline]
    #[must_use]
    pub(crate) fn plus(self, term: f64) -> Self {
        let sum = self.sum + term;
        let lost = if sum.is_infinite() {
            0.0
        } else if self.sum.abs() >= term.abs() {
            self.lost + ((self.sum - sum) + term)
        } else {
            self.lost + ((term - sum) + self.sum)
        };
        Self { sum, lost }
    }

    /// Adds another sum.
    #[must_use]
    pub(crate) fn merge(self, other: Self) -> Self {
        self.plus(other.sum).plus(other.lost)
    }

    /// Sum and compensation, both multiplied.
    #[must_use]
    pub(crate) fn times(self, factor: f64) -> Self {
        Self {
            sum: factor * self.sum,
            lost: factor * self.lost,
        }
    }

    /// Sum and compensation, both divided.
    #[must_use]
    pub(crate) fn over(self, divisor: f64) -> Self {
        Self {
            sum: self.sum / divisor,
            lost: self.lost / divisor,
        }
    }

    /// The compensated sum.
    pub(crate) fn total(self) -> f64 {
        self.sum + self.lost
    }
}

/// A running mean: a plain compensated sum as long as it stays finite, an incremental mean from then on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    /// The sum, or the mean once that is kept instead.
    pub(crate) acc: Kahan,
    /// How many values there are.
    pub(crate) count: f64,
    /// Whether the mean is kept.
    pub(crate) incremental: bool,
}

impl Mean {
    /// The mean of one value.
    pub(crate) fn new(first: f64) -> Self {
        Self {
            acc: Kahan::new(first),
            count: 1.0,
            incremental: false,
        }
    }

    /// Takes in one more value.
    #[inline]
    pub(crate) fn push(&mut self, v: f64) {
        self.count += 1.0;
        if !self.incremental {
            let next = self.acc.plus(v);
            if !next.sum.is_infinite() {
                self.acc = next;
                return;
            }
            self.incremental = true;
            self.acc = self.acc.over(self.count - 1.0);
        }
        let kept = (self.count - 1.0) / self.count;
        self.acc = self.acc.times(kept).plus(v / self.count);
    }

    /// The mean of all values so far.
    pub(crate) fn value(self) -> f64 {
        if self.incremental {
            self.acc.total()
        } else {
            self.acc.over(self.count).total()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_terms_survive_large_ones() {
        let terms = [1.0, 1e100, 1.0, -1e100];
        let k = terms.iter().fold(Kahan::default(), |k, &t| k.plus(t));
        assert_eq!(k.total(), 2.0);
    }

    #[test]
    fn a_sum_that_reaches_infinity_stays_infinite() {
        let k = [f64::MAX, f64::MAX, 1.0]
            .iter()
            .fold(Kahan::default(), |k, &t| k.plus(t));
        assert_eq!(k.total(), f64::INFINITY);
    }

    #[test]
    fn a_mean_survives_an_overflowing_sum() {
        let mut m = Mean::new(f64::MAX);
        m.push(f64::MAX);
        m.push(f64::MAX);
        assert!((m.value() / f64::MAX - 1.0).abs() < 1e-15, "{}", m.value());
    }
}
