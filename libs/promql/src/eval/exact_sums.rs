//! Sums of any windows of a series at once, equal to the bit to compensated sums one float after the other.
//!
//! Each step of such a sum splits off exactly what rounding loses, and adds up what was lost. If the latter adds up
//! without rounding, sum and compensation together are the exact sum of the window, and their total is that rounded
//! once. So it may as well be taken from exact sums, which are integers: multiples of the least bit that any float of
//! the series has. Nothing is lost when two of those are subtracted from each other.

use crate::error::QueryError;
use crate::kahan::Kahan;
use crate::work::{UNITS_PER_CHECK, Work};

/// The exact sums of a series' floats up to each.
#[derive(Debug)]
pub(super) struct ExactSums {
    /// The power of two that sums are counted in.
    unit_exponent: i32,
    unit: f64,
    /// The sum of all floats before each, and of all.
    before: Vec<i128>,
}

/// How many bits a float's mantissa has.
const MANTISSA_BITS: u32 = 52;
/// The exponent of the least float.
const EXPONENT_MIN: i32 = -1_074;
/// What was lost adds up without rounding if the exact sum of all magnitudes has this many bits, less those that the
/// number of floats has: every loss is at most half the last of the 53 bits of a sum, and all of them are to have no
/// more than 53 bits together. Two bits are left for partial sums that are merged, and one for rounding.
const SUM_BITS: i32 = 103;

/// A finite float as an integer times a power of two.
fn split(v: f64) -> (i64, i32) {
    let bits = v.to_bits();
    let exponent = (bits >> MANTISSA_BITS) as i32 & 0x7ff;
    let fraction = (bits & ((1 << MANTISSA_BITS) - 1)) as i64;
    let (mantissa, exponent) = match exponent {
        0 => (fraction, EXPONENT_MIN),
        _ => (fraction | 1 << MANTISSA_BITS, EXPONENT_MIN + exponent - 1),
    };
    (if v.is_sign_negative() { -mantissa } else { mantissa }, exponent)
}

/// Two to a power that a float can hold.
fn power_of_two(exponent: i32) -> f64 {
    let normal = exponent - EXPONENT_MIN - MANTISSA_BITS as i32 + 1;
    f64::from_bits(if normal > 0 {
        (normal as u64) << MANTISSA_BITS
    } else {
        1 << (exponent - EXPONENT_MIN)
    })
}

impl ExactSums {
    /// The sums of some floats, if compensated sums of them are exact.
    pub(super) fn of(v: &[f64], work: &mut Work<'_>) -> Result<Option<Self>, QueryError> {
        let (mut unit_exponent, mut magnitude) = (i32::MAX, 0.0);
        for v in v.chunks(UNITS_PER_CHECK) {
            work.spend(v.len())?;
            for &v in v {
                magnitude += v.abs();
                let (mantissa, exponent) = split(v);
                if mantissa != 0 {
                    unit_exponent = unit_exponent.min(exponent + mantissa.trailing_zeros() as i32);
                }
            }
        }
        // Up to half of the largest float no sum comes near infinity.
        if magnitude.is_nan() || magnitude >= f64::MAX / 2.0 {
            return Ok(None);
        }
        if magnitude == 0.0 {
            unit_exponent = 0;
        }
        let magnitude_exponent = split(magnitude).1 + MANTISSA_BITS as i32 + 1;
        let count_bits = (usize::BITS - v.len().leading_zeros()) as i32;
        if magnitude_exponent - unit_exponent + count_bits > SUM_BITS {
            return Ok(None);
        }
        work.hold(v.len().saturating_add(1).saturating_mul(size_of::<i128>()))?;
        let mut sums = Self {
            unit_exponent,
            unit: power_of_two(unit_exponent),
            before: Vec::with_capacity(v.len() + 1),
        };
        let mut sum = 0;
        sums.before.push(sum);
        for v in v.chunks(UNITS_PER_CHECK) {
            work.spend(v.len())?;
            for &v in v {
                sum += sums.in_units(v);
                sums.before.push(sum);
            }
        }
        Ok(Some(sums))
    }

    /// A float as a multiple of the unit.
    #[inline]
    fn in_units(&self, v: f64) -> i128 {
        let (mantissa, exponent) = split(v);
        let up = exponent - self.unit_exponent;
        if up >= 0 {
            // A float that is 0 may have a greater exponent than all bits together.
            i128::from(mantissa) << up.min(SUM_BITS)
        } else {
            // These bits are 0.
            i128::from(mantissa >> (-up).min(i64::BITS as i32 - 1))
        }
    }

    fn exact(&self, lo: usize, hi: usize) -> i128 {
        let at = |i: usize| self.before.get(i).copied().unwrap_or_default();
        at(hi) - at(lo)
    }

    /// The sum of a window, rounded once.
    #[inline]
    pub(super) fn total(&self, lo: usize, hi: usize) -> f64 {
        self.exact(lo, hi) as f64 * self.unit
    }

    /// The compensated sum of a window that its floats add up to without compensation.
    #[inline]
    pub(super) fn compensated(&self, lo: usize, hi: usize, sum: f64) -> Kahan {
        let lost = self.exact(lo, hi) - self.in_units(sum);
        Kahan {
            sum,
            lost: lost as f64 * self.unit,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::context::Uninterrupted;
    use crate::memory::Memory;

    fn exact_sums(v: &[f64]) -> Option<ExactSums> {
        let mut work = Work::new(&Uninterrupted, &Memory::new(usize::MAX));
        ExactSums::of(v, &mut work).unwrap()
    }

    fn number() -> impl Strategy<Value = f64> {
        let any_bits = any::<f64>().prop_filter("finite", |v| v.is_finite());
        let scaled = (-1.0..1.0, -14i32..14).prop_map(|(v, by): (f64, i32)| v * 10f64.powi(by));
        let decimal = (-100_000i64..100_000).prop_map(|v| v as f64 / 1_000.0);
        let small = (0u64..1 << 54).prop_map(f64::from_bits);
        prop_oneof![
            10 => scaled,
            10 => decimal,
            1 => any_bits,
            1 => small,
            1 => Just(0.0),
            1 => Just(-0.0),
        ]
    }

    fn numbers() -> impl Strategy<Value = Vec<f64>> {
        let of_a_kind = prop_oneof![
            prop::collection::vec(-1e9..1e9, 1..80),
            prop::collection::vec(0.0..1.0, 1..80),
            prop::collection::vec((0u64..1 << 54).prop_map(f64::from_bits), 1..80),
            prop::collection::vec(-1e300..1e300, 1..80),
        ];
        prop_oneof![of_a_kind, prop::collection::vec(number(), 1..80)]
    }

    proptest! {
        #[test]
        fn sums_are_those_of_one_float_after_the_other(v in numbers(), at in any::<(prop::sample::Index, prop::sample::Index)>()) {
            let (a, b) = (at.0.index(v.len() + 1), at.1.index(v.len() + 1));
            let (lo, hi) = (a.min(b), a.max(b));
            if let Some(sums) = exact_sums(&v) {
                let one_by_one = v[lo..hi].iter().fold(Kahan::default(), |sum, &v| sum.plus(v));
                prop_assert_eq!(sums.total(lo, hi).to_bits(), one_by_one.total().to_bits());
                let plain = v[lo..hi].iter().fold(0.0, |sum, v| sum + v);
                let compensated = sums.compensated(lo, hi, plain);
                prop_assert_eq!(compensated.sum.to_bits(), one_by_one.sum.to_bits());
                prop_assert_eq!(compensated.lost, one_by_one.lost);
            }
        }
    }

    #[test]
    fn usual_numbers_have_exact_sums_and_wild_ones_have_none() {
        let usual: Vec<f64> = (0..10_000).map(|i| f64::from(i) * 1e-3 + 20.0).collect();
        assert!(exact_sums(&usual).is_some());
        assert!(exact_sums(&[]).is_some());
        assert!(exact_sums(&[0.0, -0.0]).is_some());
        for wild in [f64::NAN, f64::INFINITY, f64::MAX, 1e40] {
            assert!(exact_sums(&[0.1, wild]).is_none(), "{wild}");
        }
    }
}
