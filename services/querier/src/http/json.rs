//! JSON as Prometheus writes it, straight into byte buffers.
//!
//! **Source:** Prometheus `web/api/v1/json_codec.go`, `util/jsonutil`.

use koios_model::LabelsRef;

/// Appends a JSON string.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut copied = 0;
    for (i, b) in text.bytes().enumerate() {
        if b >= 0x20 && b != b'"' && b != b'\\' {
            continue;
        }
        out.extend_from_slice(text.as_bytes().get(copied..i).unwrap_or_default());
        copied = i + 1;
        match b {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            _ => out.extend_from_slice(format!("\\u{b:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(text.as_bytes().get(copied..).unwrap_or_default());
    out.push(b'"');
}

/// Appends an integer in decimal.
pub(crate) fn write_integer(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    let mut left = value.unsigned_abs();
    loop {
        at -= 1;
        if let Some(d) = digits.get_mut(at) {
            *d = b'0' + (left % 10) as u8;
        }
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
}

/// Appends a time: seconds with three decimals, or none when they are zero.
pub(crate) fn write_time(out: &mut Vec<u8>, ms: i64) {
    if ms < 0 {
        out.push(b'-');
    }
    let ms = ms.unsigned_abs();
    write_integer(out, i64::try_from(ms / 1000).unwrap_or(i64::MAX));
    let fraction = ms % 1000;
    if fraction != 0 {
        let digit = |d: u64| b'0' + (d % 10) as u8;
        out.extend_from_slice(&[b'.', digit(fraction / 100), digit(fraction / 10), digit(fraction)]);
    }
}

/// Appends a value as a JSON string: the shortest decimal that reads back to the same bits.
pub(crate) fn write_value(out: &mut Vec<u8>, value: f64) {
    out.push(b'"');
    write_float(out, value);
    out.push(b'"');
}

fn write_float(out: &mut Vec<u8>, value: f64) {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    let magnitude = value.abs();
    if value.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if value.is_infinite() {
        out.extend_from_slice(if value > 0.0 { b"+Inf" } else { b"-Inf" });
    } else if value == 0.0 {
        out.extend_from_slice(if value.is_sign_negative() { b"-0" } else { b"0" });
    } else if magnitude < EXACT_INTEGERS && value.trunc() == value {
        write_integer(out, value as i64);
    } else if !(1e-6..1e21).contains(&magnitude) {
        write_exponent(out, value);
    } else {
        let mut buffer = ryu::Buffer::new();
        let text = buffer.format_finite(value);
        if text.contains('e') {
            out.extend_from_slice(format!("{value}").as_bytes());
        } else {
            out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
        }
    }
}

/// With a signed exponent of at least two digits.
fn write_exponent(out: &mut Vec<u8>, value: f64) {
    let text = format!("{value:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    out.extend_from_slice(format!("{mantissa}e{sign}{digits:0>2}").as_bytes());
}

/// Appends a label set as an object.
pub(crate) fn write_labels(out: &mut Vec<u8>, labels: LabelsRef<'_>) {
    out.push(b'{');
    for (i, (name, value)) in labels.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, name);
        out.push(b':');
        write_string(out, value);
    }
    out.push(b'}');
}

/// Appends an array, one element per item.
pub(crate) fn write_array<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, item);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[rstest]
    #[case(0.0, "0")]
    #[case(-0.0, "-0")]
    #[case(1.0, "1")]
    #[case(-1.5, "-1.5")]
    #[case(0.1, "0.1")]
    #[case(1e6, "1000000")]
    #[case(1e20, "100000000000000000000")]
    #[case(123456789012345678901.0, "123456789012345680000")]
    #[case(1e21, "1e+21")]
    #[case(1.5e300, "1.5e+300")]
    #[case(1e-6, "0.000001")]
    #[case(0.00001234, "0.00001234")]
    #[case(9.9e-7, "9.9e-07")]
    #[case(5e-324, "5e-324")]
    #[case(f64::MAX, "1.7976931348623157e+308")]
    #[case(f64::NAN, "NaN")]
    #[case(f64::INFINITY, "+Inf")]
    #[case(f64::NEG_INFINITY, "-Inf")]
    fn values_are_written_as_prometheus_does(#[case] value: f64, #[case] expected: &str) {
        assert_eq!(text(|out| write_value(out, value)), format!("\"{expected}\""));
    }

    #[rstest]
    #[case(1_435_781_451_781, "1435781451.781")]
    #[case(1000, "1")]
    #[case(1050, "1.050")]
    #[case(-1, "-0.001")]
    #[case(0, "0")]
    fn times_are_written_as_prometheus_does(#[case] ms: i64, #[case] expected: &str) {
        assert_eq!(text(|out| write_time(out, ms)), expected);
    }

    proptest! {
        #[test]
        fn i2_values_read_back_bit_exact(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let json = text(|out| write_value(out, value));
            let back: f64 = json.trim_matches('"').parse().unwrap();
            prop_assert_eq!(back.to_bits(), bits);
        }

        #[test]
        fn strings_are_valid_json(s in "\\PC*|[\\x00-\\x7f]*") {
            let json = text(|out| write_string(out, &s));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), s);
        }

        #[test]
        fn integers_read_back(v in any::<i64>()) {
            prop_assert_eq!(text(|out| write_integer(out, v)).parse::<i64>().unwrap(), v);
        }
    }
}
