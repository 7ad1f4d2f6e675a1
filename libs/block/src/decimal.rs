//! Splits values into a shared decimal exponent and integer mantissas, bit-exactly.

/// Powers of ten that are exact in a float, up to the largest exponent used.
pub(crate) const POW10: [f64; 19] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18,
];
/// Largest mantissa: beyond it integers are not exact in a float.
const MANTISSA_MAX: f64 = 9_007_199_254_740_992.0;
/// How many values are searched before the searches that failed are counted.
const TRIAL: usize = 32;

/// The mantissa with `mantissa / 10^exponent` bit-equal to `v`, if there is one.
pub(crate) fn mantissa(v: f64, exponent: u8) -> Option<i64> {
    let scale = *POW10.get(usize::from(exponent))?;
    let m = (v * scale).round();
    if m.abs() <= MANTISSA_MAX {
        let m = m as i64;
        // Compared through the integer, so that -0.0 is refused.
        ((m as f64 / scale).to_bits() == v.to_bits()).then_some(m)
    } else {
        None
    }
}

/// The smallest exponent at which every value of a run that has a mantissa at all has one; values without one (full
/// precision, not finite, -0.0) are stored as floats.
pub(crate) fn run_exponent(values: &[f64]) -> u8 {
    let (mut exponent, mut failed) = (0u8, 0usize);
    for (i, &v) in values.iter().enumerate() {
        if mantissa(v, exponent).is_some() || !v.is_finite() {
            continue;
        }
        // A run of full-precision values is noticed early: the search costs as much as all else together.
        if i >= TRIAL && failed * 4 > i * 3 {
            continue;
        }
        match (exponent + 1..POW10.len() as u8).find(|&e| mantissa(v, e).is_some()) {
            Some(e) => exponent = e,
            None => failed += 1,
        }
    }
    exponent
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_smallest_exponent() {
        assert_eq!(run_exponent(&[1.0, 2.5, 3.25, f64::NAN]), 2);
        assert_eq!(run_exponent(&[1e15, 7.0]), 0);
        assert_eq!(mantissa(-0.0, 0), None);
        assert_eq!(mantissa(1e300, 0), None);
        assert_eq!(mantissa(0.1 + 0.2, 1), None);
    }

    proptest! {
        #[test]
        fn i2_a_mantissa_gives_the_value_back_bit_exact(bits in any::<u64>(), e in 0u8..19) {
            let v = f64::from_bits(bits);
            if let Some(m) = mantissa(v, e) {
                prop_assert_eq!((m as f64 / POW10[usize::from(e)]).to_bits(), bits);
            }
        }

        #[test]
        fn decimals_as_people_write_them_have_a_mantissa(m in -1_000_000_000_000i64..1_000_000_000_000, e in 0u8..9) {
            let v = m as f64 / POW10[usize::from(e)];
            prop_assume!(v != 0.0);
            let chosen = run_exponent(&[v]);
            prop_assert!(chosen <= e && mantissa(v, chosen).is_some());
        }
    }
}
