//! Floats as decimals: value = mantissa / 10^exponent, bit for bit.
//!
//! What is measured is mostly written in decimal: counts, bytes, seconds with some digits. Such a float is the nearest
//! one to `m / 10^e` for a small integer `m`, and integers compress far better than float bits. Division rounds
//! correctly, so `m / 10^e` gives back the very bits; what it does not give back (NaN, infinities, -0.0, values with
//! 16 or more significant digits) has no mantissa and is kept as a float.

/// The largest exponent that is tried. 10^e is exact in a float up to e = 22.
pub const EXPONENT_MAX: u8 = 15;
/// The largest magnitude of a mantissa; every integer up to it is exact in a float.
pub const MANTISSA_MAX: i64 = 9_000_000_000_000_000;

/// Samples looked at to choose among exponents when no exponent suits all.
const PROBES_MAX: usize = 64;

const POW10: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
    1e19, 1e20, 1e21, 1e22,
];

/// Below this magnitude adding one half and truncating rounds; from it on, floats are integers.
const ALL_INTEGERS_FROM: f64 = 4_503_599_627_370_496.0;

/// The mantissa of `v` at `exponent`, or `None` when `mantissa / 10^exponent` would not have the bits of `v`.
#[inline]
pub fn to_mantissa(v: f64, exponent: u8) -> Option<i64> {
    let p = *POW10.get(usize::from(exponent))?;
    let x = v * p;
    if x.is_nan() || x.abs() > MANTISSA_MAX as f64 {
        return None;
    }
    let m = if x.abs() < ALL_INTEGERS_FROM {
        (x + 0.5f64.copysign(x)) as i64
    } else {
        x as i64
    };
    ((m as f64 / p).to_bits() == v.to_bits()).then_some(m)
}

/// The value of a mantissa. Exponents above 22 count as 22; a reader refuses them before.
#[inline]
pub fn from_mantissa(mantissa: i64, exponent: u8) -> f64 {
    mantissa as f64 / power_of_ten(exponent)
}

/// What mantissas are divided by.
#[inline]
pub(crate) fn power_of_ten(exponent: u8) -> f64 {
    POW10.get(usize::from(exponent)).copied().unwrap_or(1e22)
}

/// The exponent to store a run with: the smallest at which every value that has a mantissa at some exponent has one.
/// Where no exponent suits them all, the smallest at which most have one; and 0 when that is less than half, because
/// then the run is better kept as floats. Values without a mantissa at the exponent are the caller's to escape.
pub fn exponent_for_run(values: &[f64]) -> u8 {
    // A few values that never fit (stale markers) are no reason to give up; many are.
    let misses_max = values.len() / 16 + 4;
    let (mut e, mut misses) = (0u8, 0usize);
    for &v in values {
        if !v.is_finite() || to_mantissa(v, e).is_some() {
            continue;
        }
        match (e + 1..=EXPONENT_MAX).find(|&up| to_mantissa(v, up).is_some()) {
            Some(up) => e = up,
            None => misses += 1,
        }
        if misses > misses_max {
            return best_of_probes(values);
        }
    }
    // Raising the exponent may have pushed larger values out.
    let out = |e: u8| {
        values
            .iter()
            .filter(|v| v.is_finite() && to_mantissa(**v, e).is_none())
            .count()
    };
    if e == 0 || out(e) <= misses {
        e
    } else {
        best_of_probes(values)
    }
}

/// The smallest exponent with most mantissas among evenly spaced samples.
fn best_of_probes(values: &[f64]) -> u8 {
    let step = values.len().div_ceil(PROBES_MAX).max(1);
    let probes = || values.iter().step_by(step).filter(|v| v.is_finite());
    let total = probes().count();
    let fits = |e: u8| probes().filter(|&&v| to_mantissa(v, e).is_some()).count();
    let (mut best, mut most) = (0, fits(0));
    for e in 1..=EXPONENT_MAX {
        let n = fits(e);
        if n > most {
            (best, most) = (e, n);
        }
    }
    if most * 2 >= total { best } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mantissa_gives_back_the_bits(bits in any::<u64>(), e in 0u8..=22) {
            let v = f64::from_bits(bits);
            if let Some(m) = to_mantissa(v, e) {
                prop_assert_eq!(from_mantissa(m, e).to_bits(), bits);
                prop_assert!(m.abs() <= MANTISSA_MAX);
            }
        }

        #[test]
        fn every_short_decimal_has_its_mantissa(m in -1_000_000_000_000_000i64..=1_000_000_000_000_000, e in 0u8..=15) {
            prop_assume!(m != 0);
            prop_assert_eq!(to_mantissa(from_mantissa(m, e), e), Some(m));
        }

        #[test]
        fn integers_need_no_exponent(ms in proptest::collection::vec(-MANTISSA_MAX..=MANTISSA_MAX, 1..50)) {
            let vs: Vec<f64> = ms.iter().map(|&m| m as f64).collect();
            prop_assert_eq!(exponent_for_run(&vs), 0);
            prop_assert!(vs.iter().zip(&ms).all(|(&v, &m)| to_mantissa(v, 0) == Some(m)));
        }
    }

    #[test]
    fn what_has_no_exact_decimal_has_no_mantissa() {
        let stale = f64::from_bits(0x7ff0_0000_0000_0002);
        for v in [
            f64::NAN,
            stale,
            f64::INFINITY,
            f64::NEG_INFINITY,
            -0.0,
            9.1e15,
            f64::MIN_POSITIVE,
            1.0 / 3.0,
        ] {
            for e in 0..=EXPONENT_MAX {
                assert_eq!(to_mantissa(v, e), None, "{v} at {e}");
            }
        }
        assert_eq!(to_mantissa(1.0, 23), None);
    }

    #[test]
    fn takes_the_smallest_exponent_that_suits_the_run() {
        let stale = f64::from_bits(0x7ff0_0000_0000_0002);
        assert_eq!(exponent_for_run(&[1.0, 2.5, 0.25, 7.0]), 2);
        assert_eq!(exponent_for_run(&[1.0, stale, 2.5]), 1);
        assert_eq!(exponent_for_run(&[]), 0);
        assert_eq!(exponent_for_run(&[stale, f64::NAN]), 0);
        // One tiny value must not turn all the large ones into floats.
        let mut large = vec![1e15; 100];
        large[50] = 1e-9;
        assert_eq!(exponent_for_run(&large), 0);
        let thirds: Vec<f64> = (1..200).map(|i| f64::from(i) / 3.0).collect();
        assert_eq!(exponent_for_run(&thirds), 0);
    }
}
