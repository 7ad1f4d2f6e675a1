//! Names of metrics, units and labels.
//!
//! **Source**: `github.com/prometheus/otlptranslator` v1.0.0, `MetricNamer`, `UnitNamer`, `LabelNamer`.

use super::PointFault;
use super::settings::{Settings, TranslationStrategy};

/// What decides about a metric's suffixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    /// `_total`, for what only grows.
    Total,
    /// `_ratio`, for a gauge whose unit is `1`.
    Gauge,
    /// None but the unit.
    Other,
}

/// The name of a metric.
pub(super) fn metric(
    name: &[u8],
    unit: &[u8],
    suffix: Suffix,
    strategy: TranslationStrategy,
) -> Result<Vec<u8>, PointFault> {
    let out = match (strategy.escapes(), strategy.adds_suffixes()) {
        (true, true) => escaped_with_suffixes(name, unit, suffix),
        (true, false) => escaped(name),
        (false, true) => return Ok(with_suffixes(name, unit, suffix)),
        (false, false) => return Ok(name.to_vec()),
    };
    let meaningless = out != name && out.iter().all(|b| *b == b'_');
    if out.is_empty() || meaningless {
        return Err(PointFault::MetricName);
    }
    Ok(out)
}

fn is_metric_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b':'
}

/// Names do not begin with a digit.
fn not_with_a_digit(mut name: Vec<u8>) -> Vec<u8> {
    if name.first().is_some_and(u8::is_ascii_digit) {
        name.insert(0, b'_');
    }
    name
}

fn parts(name: &[u8], belongs: impl Fn(u8) -> bool) -> Vec<&[u8]> {
    name.split(|b| !belongs(*b))
        .filter(|part| !part.is_empty())
        .collect()
}

fn escaped(name: &[u8]) -> Vec<u8> {
    not_with_a_digit(parts(name, |b| is_metric_byte(b) || b == b'_').join(&b'_'))
}

fn escaped_with_suffixes(name: &[u8], unit: &[u8], suffix: Suffix) -> Vec<u8> {
    let mut tokens = parts(name, is_metric_byte);
    let (main, per) = unit_words(unit);
    let (main, per) = (clean(&main), clean(&per));
    let (mut main, mut per) = (main.as_slice(), per.as_slice());
    if tokens.contains(&main) {
        main = b"";
    }
    if per == b"per_" {
        per = b"";
    } else {
        per = per.strip_suffix(b"_").unwrap_or(per);
        if tokens.contains(&per) {
            per = b"";
        }
    }
    if !per.is_empty() {
        main = main.strip_suffix(b"_").unwrap_or(main);
    }
    tokens.extend([main, per].into_iter().filter(|word| !word.is_empty()));
    let last: &[u8] = match suffix {
        Suffix::Total => b"total",
        Suffix::Gauge if unit == b"1" => b"ratio",
        Suffix::Gauge | Suffix::Other => b"",
    };
    if !last.is_empty() {
        tokens.retain(|token| *token != last);
        tokens.push(last);
    }
    not_with_a_digit(tokens.join(&b'_'))
}

fn with_suffixes(name: &[u8], unit: &[u8], suffix: Suffix) -> Vec<u8> {
    let mut name = name;
    let ratio = suffix == Suffix::Gauge && unit == b"1";
    let total = suffix == Suffix::Total;
    let (main, per) = unit_words(unit);
    for (wanted, word) in [
        (ratio, &b"ratio"[..]),
        (total, b"total"),
        (!per.is_empty(), per.as_slice()),
    ] {
        if wanted {
            name = without_last_word(name, word);
        }
    }
    let mut out = name.to_vec();
    let main = if out.ends_with(&main) { &[][..] } else { &main };
    let last: &[u8] = match (total, ratio) {
        (true, _) => b"total",
        (_, true) => b"ratio",
        _ => b"",
    };
    for word in [main, &per, last] {
        if !word.is_empty() {
            out.push(b'_');
            out.extend_from_slice(word);
        }
    }
    out
}

/// Without a word at the end and the byte before it.
fn without_last_word<'a>(name: &'a [u8], word: &[u8]) -> &'a [u8] {
    let stem = name.strip_suffix(word).and_then(<[u8]>::split_last);
    match stem {
        Some((_, stem)) if !stem.is_empty() => stem,
        _ => name,
    }
}

/// A unit as a word of Prometheus, for metadata.
pub(super) fn unit(unit: &[u8]) -> Vec<u8> {
    let (main, per) = unit_words(unit);
    let words = [clean(&main), clean(&per)];
    let words: Vec<&[u8]> = words
        .iter()
        .map(Vec::as_slice)
        .filter(|w| !w.is_empty())
        .collect();
    let joined = words.join(&b'_');
    let unit = joined.strip_prefix(b"_").unwrap_or(&joined);
    unit.strip_suffix(b"_").unwrap_or(unit).to_vec()
}

/// What is counted, and `per_` what.
fn unit_words(unit: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut halves = unit.splitn(2, |b| *b == b'/');
    let mut half = || {
        let half = halves.next().unwrap_or_default().trim_ascii();
        let annotated = half.iter().any(|b| matches!(b, b'{' | b'}'));
        if annotated { &[][..] } else { half }
    };
    let (main, per) = (half(), half());
    let per = match per {
        b"" => Vec::new(),
        per => [b"per_", per_word(per)].concat(),
    };
    (unit_word(main).to_vec(), per)
}

fn unit_word(unit: &[u8]) -> &[u8] {
    match unit {
        b"d" => b"days",
        b"h" => b"hours",
        b"min" => b"minutes",
        b"s" => b"seconds",
        b"ms" => b"milliseconds",
        b"us" => b"microseconds",
        b"ns" => b"nanoseconds",
        b"By" => b"bytes",
        b"KiBy" => b"kibibytes",
        b"MiBy" => b"mebibytes",
        b"GiBy" => b"gibibytes",
        b"TiBy" => b"tibibytes",
        b"KBy" => b"kilobytes",
        b"MBy" => b"megabytes",
        b"GBy" => b"gigabytes",
        b"TBy" => b"terabytes",
        b"m" => b"meters",
        b"V" => b"volts",
        b"A" => b"amperes",
        b"J" => b"joules",
        b"W" => b"watts",
        b"g" => b"grams",
        b"Cel" => b"celsius",
        b"Hz" => b"hertz",
        b"1" => b"",
        b"%" => b"percent",
        other => other,
    }
}

fn per_word(unit: &[u8]) -> &[u8] {
    match unit {
        b"s" => b"second",
        b"m" => b"minute",
        b"h" => b"hour",
        b"d" => b"day",
        b"w" => b"week",
        b"mo" => b"month",
        b"y" => b"year",
        other => other,
    }
}

/// Characters of names only, no two `_` in a row, none at the front.
fn clean(unit: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(unit.len());
    for c in String::from_utf8_lossy(unit).chars() {
        match u8::try_from(c) {
            Ok(b) if is_metric_byte(b) => out.push(b),
            _ if out.last() == Some(&b'_') => {}
            _ => out.push(b'_'),
        }
    }
    if out.first() == Some(&b'_') {
        out.remove(0);
    }
    out
}

/// Whether a label's name stays as it is.
pub(super) fn is_label(name: &[u8], settings: &Settings) -> bool {
    if !settings.translation_strategy.escapes() {
        return name.iter().any(|b| *b != b'_');
    }
    let begins = match name {
        [b'_', b'_', ..] => true,
        [b'_', ..] => !settings.label_name_underscore_sanitization,
        [first, ..] => !first.is_ascii_digit(),
        [] => false,
    };
    let keeps_rows = settings.label_name_preserve_multiple_underscores;
    let mut pairs = name.iter().zip(name.iter().skip(1));
    begins
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_')
        && name.iter().any(|b| *b != b'_')
        && (keeps_rows || !pairs.any(|pair| pair == (&b'_', &b'_')))
}

/// The name of a label for an attribute whose name cannot stay.
pub(super) fn label(name: &[u8], settings: &Settings) -> Result<Vec<u8>, PointFault> {
    if name.is_empty() || !settings.translation_strategy.escapes() {
        return Err(PointFault::LabelName);
    }
    let keeps_rows = settings.label_name_preserve_multiple_underscores;
    let inner = name.strip_prefix(b"__").and_then(|n| n.strip_suffix(b"__"));
    let (fence, inner) = match inner {
        Some(inner) if !keeps_rows => (&b"__"[..], inner),
        _ => (&b""[..], name),
    };
    let mut out = fence.to_vec();
    let mut after_underscore = false;
    for c in String::from_utf8_lossy(inner).chars() {
        match u8::try_from(c) {
            Ok(b) if b.is_ascii_alphanumeric() => {
                out.push(b);
                after_underscore = false;
            }
            _ if after_underscore && !keeps_rows => {}
            _ => {
                out.push(b'_');
                after_underscore = true;
            }
        }
    }
    out.extend_from_slice(fence);
    if out.first().is_some_and(u8::is_ascii_digit) {
        out.splice(0..0, *b"key_");
    } else if settings.label_name_underscore_sanitization && out.starts_with(b"_") && !out.starts_with(b"__")
    {
        out.splice(0..0, *b"key");
    }
    if out.iter().all(|b| *b == b'_') {
        return Err(PointFault::LabelName);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("http.server.duration", "s", Suffix::Other, "http_server_duration_seconds")]
    #[case("requests", "1", Suffix::Total, "requests_total")]
    #[case("requests.total", "{request}", Suffix::Total, "requests_total")]
    #[case("total.requests", "", Suffix::Total, "requests_total")]
    #[case("memory.usage", "By", Suffix::Gauge, "memory_usage_bytes")]
    #[case("memory.bytes.usage", "By", Suffix::Gauge, "memory_bytes_usage")]
    #[case("cpu.utilization", "1", Suffix::Gauge, "cpu_utilization_ratio")]
    #[case("io", "By/s", Suffix::Gauge, "io_bytes_per_second")]
    #[case("speed", "m/{tick}", Suffix::Gauge, "speed_meters")]
    #[case("speed", "{tick}/m", Suffix::Gauge, "speed_per_minute")]
    #[case("a__b..c", "", Suffix::Other, "a_b_c")]
    #[case("3rd", "", Suffix::Other, "_3rd")]
    #[case("temp", "°C", Suffix::Gauge, "temp_C")]
    #[case("x:y", " ms ", Suffix::Total, "x:y_milliseconds_total")]
    #[case("x", "a/b/c", Suffix::Other, "x_a_per_b_c")]
    #[case("x", "a_/_", Suffix::Other, "x_a_")]
    fn metrics_are_named_with_unit_and_type(
        #[case] name: &str,
        #[case] unit: &str,
        #[case] suffix: Suffix,
        #[case] wanted: &str,
    ) {
        let strategy = TranslationStrategy::UnderscoreEscapingWithSuffixes;
        let got = metric(name.as_bytes(), unit.as_bytes(), suffix, strategy).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), wanted);
    }

    #[rstest]
    #[case(TranslationStrategy::UnderscoreEscapingWithoutSuffixes, "a.b__c", "a_b__c")]
    #[case(TranslationStrategy::UnderscoreEscapingWithoutSuffixes, ".a..b.", "a_b")]
    #[case(TranslationStrategy::UnderscoreEscapingWithoutSuffixes, "1a", "_1a")]
    #[case(TranslationStrategy::NoUtf8EscapingWithSuffixes, "a.b", "a.b_seconds_total")]
    #[case(
        TranslationStrategy::NoUtf8EscapingWithSuffixes,
        "a.b.total",
        "a.b_seconds_total"
    )]
    #[case(
        TranslationStrategy::NoUtf8EscapingWithSuffixes,
        "a.b.seconds",
        "a.b.seconds_total"
    )]
    #[case(
        TranslationStrategy::NoUtf8EscapingWithSuffixes,
        "total",
        "total_seconds_total"
    )]
    #[case(TranslationStrategy::NoTranslation, "a.b°", "a.b°")]
    fn strategies_differ(#[case] strategy: TranslationStrategy, #[case] name: &str, #[case] wanted: &str) {
        let got = metric(name.as_bytes(), b"s", Suffix::Total, strategy).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), wanted);
    }

    #[rstest]
    #[case("")]
    #[case("...")]
    #[case("\u{e4}")]
    fn a_metric_without_a_name_is_none(#[case] name: &str) {
        for strategy in [
            TranslationStrategy::UnderscoreEscapingWithSuffixes,
            TranslationStrategy::UnderscoreEscapingWithoutSuffixes,
        ] {
            let got = metric(name.as_bytes(), b"", Suffix::Other, strategy);
            assert_eq!(got, Err(PointFault::MetricName));
        }
    }

    #[rstest]
    #[case("s", "seconds")]
    #[case("By/s", "bytes_per_second")]
    #[case("1", "")]
    #[case("/s", "per_second")]
    #[case("{packets}", "")]
    #[case("%", "percent")]
    #[case("m²", "m")]
    fn units_are_words(#[case] from: &str, #[case] wanted: &str) {
        assert_eq!(String::from_utf8(unit(from.as_bytes())).unwrap(), wanted);
    }

    fn label_of(name: &str, settings: &Settings) -> Result<String, PointFault> {
        if is_label(name.as_bytes(), settings) {
            return Ok(name.to_owned());
        }
        label(name.as_bytes(), settings).map(|n| String::from_utf8(n).unwrap())
    }

    #[rstest]
    #[case("http.method", Ok("http_method"), Ok("http_method"))]
    #[case("a..b", Ok("a__b"), Ok("a_b"))]
    #[case("a__b", Ok("a__b"), Ok("a_b"))]
    #[case("9x", Ok("key_9x"), Ok("key_9x"))]
    #[case("_x", Ok("key_x"), Ok("_x"))]
    #[case(".x", Ok("key_x"), Ok("_x"))]
    #[case("__x", Ok("__x"), Ok("_x"))]
    #[case("__x..y__", Ok("__x__y__"), Ok("__x_y__"))]
    #[case("\u{e4}b", Ok("key_b"), Ok("_b"))]
    #[case("", Err(PointFault::LabelName), Err(PointFault::LabelName))]
    #[case("__", Err(PointFault::LabelName), Err(PointFault::LabelName))]
    #[case("____", Err(PointFault::LabelName), Err(PointFault::LabelName))]
    fn labels_are_named(
        #[case] name: &str,
        #[case] by_default: Result<&str, PointFault>,
        #[case] strictly: Result<&str, PointFault>,
    ) {
        let strict = Settings {
            label_name_underscore_sanitization: false,
            label_name_preserve_multiple_underscores: false,
            ..Settings::default()
        };
        assert_eq!(
            label_of(name, &Settings::default()),
            by_default.clone().map(str::to_owned)
        );
        assert_eq!(label_of(name, &strict), strictly.map(str::to_owned));
        let as_it_is = Settings {
            translation_strategy: TranslationStrategy::NoTranslation,
            ..Settings::default()
        };
        if by_default.is_ok() {
            assert_eq!(label_of(name, &as_it_is), Ok(name.to_owned()));
        }
    }
}
