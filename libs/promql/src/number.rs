//! Numbers in and out of text, and the few float operations whose edge cases differ from Rust's own.

/// The exponent from which numbers are printed with one.
const EXPONENT_MIN: i32 = 6;

/// As Go prints with `%g`: the shortest digits that read back the same, exponents of two digits or more.
pub(crate) fn format_g(v: f64) -> String {
    if let Some(special) = format_special(v) {
        return special.to_owned();
    }
    if v == 0.0 {
        return if v.is_sign_negative() {
            "-0".to_owned()
        } else {
            "0".to_owned()
        };
    }
    let scientific = format!("{v:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..EXPONENT_MIN).contains(&exponent) {
        return format!("{v}");
    }
    with_exponent(mantissa, exponent)
}

fn with_exponent(mantissa: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn format_special(v: f64) -> Option<&'static str> {
    if v.is_nan() {
        Some("NaN")
    } else if v == f64::INFINITY {
        Some("+Inf")
    } else if v == f64::NEG_INFINITY {
        Some("-Inf")
    } else {
        None
    }
}

/// As Go prints with `%.2g`: two significant digits.
pub(crate) fn format_g2(v: f64) -> String {
    if let Some(special) = format_special(v) {
        return special.to_owned();
    }
    if v == 0.0 {
        return "0".to_owned();
    }
    let scientific = format!("{v:.1e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa);
    if !(-4..2).contains(&exponent) {
        return with_exponent(mantissa, exponent);
    }
    let rounded: f64 = scientific.parse().unwrap_or(v);
    format!("{rounded}")
}

/// Without an exponent, the shortest digits that read back the same.
pub(crate) fn format_plain(v: f64) -> String {
    format_special(v).map_or_else(|| format!("{v}"), str::to_owned)
}

/// As label values hold numbers in `OpenMetrics`: integers keep a `.0`.
pub(crate) fn format_open_metrics(v: f64) -> String {
    let mut s = format_g(v);
    if v.is_finite() && !s.contains(['e', '.']) {
        s.push_str(".0");
    }
    s
}

/// The upper bound in a `le` label.
pub(crate) fn parse_bound(text: &str) -> Option<f64> {
    let v: f64 = text.parse().ok()?;
    let spelled_out = text.trim_start_matches(['+', '-']).starts_with(['i', 'I']);
    (!v.is_infinite() || spelled_out).then_some(v)
}

/// The greater one; NaN if either is.
pub(crate) fn max(a: f64, b: f64) -> f64 {
    if a == f64::INFINITY || b == f64::INFINITY {
        f64::INFINITY
    } else if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == 0.0 && b == 0.0 {
        if a.is_sign_negative() { b } else { a }
    } else if a > b {
        a
    } else {
        b
    }
}

/// The smaller one; NaN if either is.
pub(crate) fn min(a: f64, b: f64) -> f64 {
    if a == f64::NEG_INFINITY || b == f64::NEG_INFINITY {
        f64::NEG_INFINITY
    } else if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == 0.0 && b == 0.0 {
        if a.is_sign_negative() { a } else { b }
    } else if a < b {
        a
    } else {
        b
    }
}

/// Whether two numbers are equal but for the last digits. **Source:** Prometheus `util/almost`.
pub(crate) fn almost_equal(a: f64, b: f64, epsilon: f64) -> bool {
    if (a.is_nan() && b.is_nan()) || a == b {
        return true;
    }
    let magnitude = a.abs() + b.abs();
    let diff = (a - b).abs();
    if a == 0.0 || b == 0.0 || magnitude < f64::MIN_POSITIVE {
        return diff < epsilon * f64::MIN_POSITIVE;
    }
    diff / magnitude.min(f64::MAX) < epsilon
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        for (v, g) in [
            (0.5, "0.5"),
            (-1.5, "-1.5"),
            (1e6, "1e+06"),
            (123_456.0, "123456"),
            (1_234_567.0, "1.234567e+06"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
        ] {
            assert_eq!(format_g(v), g);
        }
        for (v, g) in [
            (2.0, "2"),
            (0.125, "0.12"),
            (134.0, "1.3e+02"),
            (10.0, "10"),
            (0.000_012, "1.2e-05"),
        ] {
            assert_eq!(format_g2(v), g);
        }
        assert_eq!(
            (format_open_metrics(1.0), format_open_metrics(0.9)),
            ("1.0".into(), "0.9".into())
        );
    }

    #[test]
    fn bounds_out_of_range_are_malformed_but_infinity_is_not() {
        assert_eq!(parse_bound("+Inf"), Some(f64::INFINITY));
        assert_eq!(parse_bound("1e999"), None);
        assert_eq!(parse_bound(""), None);
    }

    #[test]
    fn extremes_propagate_nan() {
        assert!(max(1.0, f64::NAN).is_nan() && min(f64::NAN, 1.0).is_nan());
        assert_eq!(max(-0.0, 0.0).to_bits(), 0.0f64.to_bits());
    }
}
