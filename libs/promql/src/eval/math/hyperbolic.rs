//! Inverse hyperbolic functions: the standard library's overflow long before their results do.
//!
//! **Source:** Go `math` `Acosh`, `Asinh`, `Atanh`, which are FreeBSD's.

use std::f64::consts::LN_2;

/// Above it, one more or less under a root makes no difference.
const LARGE: f64 = (1_u64 << 28) as f64;
/// Below it, the functions that cross zero are the identity.
const SMALL: f64 = 1.0 / LARGE;

pub(super) fn acosh(v: f64) -> f64 {
    if v.is_nan() || v < 1.0 {
        f64::NAN
    } else if v >= LARGE {
        v.ln() + LN_2
    } else if v > 2.0 {
        (2.0 * v - 1.0 / (v + (v * v - 1.0).sqrt())).ln()
    } else {
        let above = v - 1.0;
        (above + (2.0 * above + above * above).sqrt()).ln_1p()
    }
}

pub(super) fn asinh(v: f64) -> f64 {
    let x = v.abs();
    let result = if x.is_nan() || x.is_infinite() || x < SMALL {
        x
    } else if x > LARGE {
        x.ln() + LN_2
    } else if x > 2.0 {
        (2.0 * x + 1.0 / ((x * x + 1.0).sqrt() + x)).ln()
    } else {
        (x + x * x / (1.0 + (1.0 + x * x).sqrt())).ln_1p()
    };
    result.copysign(v)
}

pub(super) fn atanh(v: f64) -> f64 {
    let x = v.abs();
    let result = if x.is_nan() || x > 1.0 {
        f64::NAN
    } else if x == 1.0 {
        f64::INFINITY
    } else if x < SMALL {
        x
    } else if x < 0.5 {
        let twice = x + x;
        0.5 * (twice + twice * x / (1.0 - x)).ln_1p()
    } else {
        0.5 * ((x + x) / (1.0 - x)).ln_1p()
    };
    result.copysign(v)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        assert_eq!(asinh(1.7e308), 710.4199840737881);
        assert_eq!(asinh(-1.7e308), -710.4199840737881);
        assert_eq!(acosh(1.7e308), 710.4199840737881);
    }

    #[test]
    fn they_undo_the_hyperbolic_functions() {
        for v in [1e-12_f64, 0.01, 0.3, 0.7, 1.5, 2.5, 20.0] {
            assert!((asinh(v.sinh()) / v - 1.0).abs() < 1e-12, "asinh of sinh {v}");
            assert!(
                (atanh(v.min(2.5).tanh()) / v.min(2.5) - 1.0).abs() < 1e-12,
                "atanh of tanh {v}"
            );
        }
        for v in [0.3_f64, 1.5, 20.0, 30.0] {
            assert!((acosh(v.cosh()) / v - 1.0).abs() < 1e-12, "acosh of cosh {v}");
        }
    }

    #[test]
    fn edges_are_as_defined() {
        assert_eq!(
            (acosh(1.0), atanh(1.0), atanh(-1.0)),
            (0.0, f64::INFINITY, f64::NEG_INFINITY)
        );
        assert_eq!(
            (asinh(f64::NEG_INFINITY), acosh(f64::INFINITY)),
            (f64::NEG_INFINITY, f64::INFINITY)
        );
        assert!(acosh(0.9).is_nan() && atanh(1.1).is_nan() && asinh(f64::NAN).is_nan());
        assert!(asinh(-0.0).is_sign_negative() && atanh(-0.0).is_sign_negative());
    }
}
