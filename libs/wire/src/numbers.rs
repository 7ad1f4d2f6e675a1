//! Numbers that are labels.

/// A bound or a quantile as a scrape writes it: as Go's `%g`, and never without a point or an exponent.
pub(crate) fn number_text(v: f64) -> String {
    if v.is_nan() {
        return "NaN".to_owned();
    }
    if v.is_infinite() {
        return if v > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{v:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => {
            let text = v.to_string();
            if text.contains('.') {
                text
            } else {
                format!("{text}.0")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0.0, "0.0")]
    #[case(0.005, "0.005")]
    #[case(2.5, "2.5")]
    #[case(10.0, "10.0")]
    #[case(100_000.0, "100000.0")]
    #[case(1e6, "1e+06")]
    #[case(1_234_567.0, "1.234567e+06")]
    #[case(0.0001, "0.0001")]
    #[case(0.000_012_5, "1.25e-05")]
    #[case(-1e100, "-1e+100")]
    #[case(f64::INFINITY, "+Inf")]
    #[case(f64::NEG_INFINITY, "-Inf")]
    #[case(f64::NAN, "NaN")]
    fn bounds_are_written_as_a_scrape_writes_them(#[case] bound: f64, #[case] wanted: &str) {
        assert_eq!(number_text(bound), wanted);
    }
}
