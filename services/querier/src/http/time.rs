//! Times and durations as Prometheus' API takes them.

use koios_promql::parse_duration;

/// Prometheus' own printed bounds, which clients send back for "everything".
const MIN_TIME: &str = "-292273086-05-16T16:47:06Z";
const MAX_TIME: &str = "292277025-08-18T07:12:54.999999999Z";

/// The bounds themselves in milliseconds.
pub(crate) const MIN_TIME_MS: i64 = (i64::MIN / 1000 + 62_135_596_801) * 1000;
/// See [`MIN_TIME_MS`].
pub(crate) const MAX_TIME_MS: i64 = (i64::MAX / 1000 - 62_135_596_801) * 1000 + 999;

/// A time in milliseconds from float seconds or RFC 3339.
pub(crate) fn parse_time(text: &str) -> Result<i64, String> {
    if let Some(seconds) = parse_float(text) {
        let whole = seconds.trunc();
        let millis = ((seconds - whole) * 1000.0).round() as i64;
        return Ok((whole as i64).saturating_mul(1000).saturating_add(millis));
    }
    match text {
        MIN_TIME => return Ok(MIN_TIME_MS),
        MAX_TIME => return Ok(MAX_TIME_MS),
        _ => {}
    }
    parse_rfc3339(text).ok_or_else(|| format!("cannot parse {text:?} to a valid timestamp"))
}

/// A duration in milliseconds from float seconds or Prometheus' form.
pub(crate) fn parse_millis(text: &str) -> Result<i64, String> {
    if let Some(seconds) = parse_float(text) {
        let nanos = seconds * 1e9;
        if !(i64::MIN as f64..=i64::MAX as f64).contains(&nanos) {
            return Err(format!(
                "cannot parse {text:?} to a valid duration. It overflows int64"
            ));
        }
        return Ok(nanos as i64 / 1_000_000);
    }
    parse_duration(text)
        .map(|nanos| nanos / 1_000_000)
        .map_err(|_| format!("cannot parse {text:?} to a valid duration"))
}

/// A finite decimal number.
fn parse_float(text: &str) -> Option<f64> {
    let numeric = text
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'));
    text.parse::<f64>().ok().filter(|v| numeric && v.is_finite())
}

fn parse_rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let number = |from: usize, to: usize| {
        let digits = text.get(from..to)?;
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse::<i64>().ok())?
    };
    let separators = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    let separated = separators.iter().all(|&(at, s)| bytes.get(at) == Some(&s));
    if !separated || !matches!(bytes.get(10), Some(b'T' | b't')) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !valid {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut millis = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let padded = format!("{:0<3}", fraction.get(..digits.min(3))?);
        millis = padded.parse::<i64>().ok().filter(|_| digits > 0)?;
        rest = fraction.get(digits..)?;
    }
    let offset_minutes = parse_zone(rest)?;
    let seconds =
        ((days_from_epoch(year, month, day) * 24 + hour) * 60 + minute - offset_minutes) * 60 + second;
    Some(seconds * 1000 + millis)
}

fn parse_zone(text: &str) -> Option<i64> {
    if text == "Z" || text == "z" {
        return Some(0);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let two = |s: &str| {
        s.parse::<u8>()
            .ok()
            .filter(|_| s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit()))
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then(|| sign * (i64::from(hours) * 60 + i64::from(minutes)))
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date; years are counted from March so that leap days come last.
fn days_from_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0", 0)]
    #[case("1435781451.781", 1_435_781_451_781)]
    #[case("-1.5", -1500)]
    #[case("1e3", 1_000_000)]
    #[case("1e300", i64::MAX)]
    #[case("2015-07-01T20:10:51.781Z", 1_435_781_451_781)]
    #[case("2015-07-01T22:10:51.7819999+02:00", 1_435_781_451_781)]
    #[case("1970-01-01T00:00:00Z", 0)]
    #[case("2000-02-29T00:00:00Z", 951_782_400_000)]
    #[case(MIN_TIME, MIN_TIME_MS)]
    #[case(MAX_TIME, MAX_TIME_MS)]
    fn reads_times(#[case] text: &str, #[case] ms: i64) {
        assert_eq!(parse_time(text), Ok(ms));
    }

    #[rstest]
    #[case("abc")]
    #[case("")]
    #[case("NaN")]
    #[case("inf")]
    #[case("2015-13-01T00:00:00Z")]
    #[case("2015-02-29T00:00:00Z")]
    #[case("2015-07-01T20:10:51")]
    #[case("2015-07-01T20:10:51.Z")]
    #[case("2015-07-01 20:10:51Z")]
    #[case("2015-07-01T20:10:51+25:00")]
    #[case("é015-07-01T20:10:51Z")]
    fn refuses_times(#[case] text: &str) {
        assert_eq!(
            parse_time(text),
            Err(format!("cannot parse {text:?} to a valid timestamp"))
        );
    }

    #[test]
    fn reads_durations() {
        assert_eq!(parse_millis("15"), Ok(15_000));
        assert_eq!(parse_millis("0.5"), Ok(500));
        assert_eq!(parse_millis("-1"), Ok(-1000));
        assert_eq!(parse_millis("1h30m"), Ok(5_400_000));
        assert!(parse_millis("1e300").unwrap_err().ends_with("It overflows int64"));
        assert_eq!(
            parse_millis("x"),
            Err(r#"cannot parse "x" to a valid duration"#.to_owned())
        );
    }
}
