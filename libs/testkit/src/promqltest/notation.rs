//! The notation of series: `name{label="value"} 1 2+3x4 _ stale {{schema:1 count:3 …}}`.

use std::sync::Arc;

use koios_model::{Histogram, Labels, METRIC_NAME, MatchOp, stale_nan};
use koios_promql::{SampleValue, parse_duration, parse_metric_selector};

use super::histogram;

/// A place in a sequence of samples.
#[derive(Clone, Debug, PartialEq)]
pub enum SequencePoint {
    /// Nothing.
    Gap,
    /// A value.
    Value {
        /// The value.
        value: SampleValue,
        /// For a histogram: whether its reset hint was written, and so counts in a comparison.
        hint_written: bool,
    },
}

/// One series and its samples, one per step.
pub type Sequence = Vec<SequencePoint>;

/// A series and the start times of its samples, as offsets in milliseconds.
pub(super) type StartTimes = (Labels, Vec<Option<i64>>);

/// No script needs longer repetitions.
const REPEAT_MAX: u64 = 1_000_000;

fn float(value: f64) -> SequencePoint {
    SequencePoint::Value {
        value: SampleValue::Float(value),
        hint_written: false,
    }
}

/// Reads a line such as `up{job="a"} 1 1 0`.
///
/// # Errors
/// What is wrong with the line.
pub fn parse_series(line: &str) -> Result<(Labels, Sequence), String> {
    let (metric, points) = split_metric(line.trim());
    let labels = parse_metric(metric)?;
    let mut sequence = Sequence::new();
    for item in items(points)? {
        sequence.extend(parse_item(item).map_err(|e| format!("{item:?}: {e}"))?);
    }
    Ok((labels, sequence))
}

/// Reads a line of start times, `name{…}@st -1m 0s+1sx3 _`: offsets to the samples' own times in milliseconds. `None` if
/// it is none.
pub(super) fn parse_start_times(line: &str) -> Option<Result<StartTimes, String>> {
    let (metric, offsets) = line.trim().split_once([' ', '\t'])?;
    let metric = metric.strip_suffix("@st")?;
    Some(parse_metric(metric).and_then(|labels| {
        let mut all = Vec::new();
        for item in offsets.split_whitespace() {
            all.extend(parse_offsets(item).map_err(|e| format!("{item:?}: {e}"))?);
        }
        Ok((labels, all))
    }))
}

/// Splits after the metric: at the first space outside braces, or after the closing brace.
fn split_metric(line: &str) -> (&str, &str) {
    let (mut depth, mut quote, mut escaped) = (0_usize, None, false);
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (Some(q), _) if escaped || c != q => escaped = !escaped && c == '\\' && q != '`',
            (Some(_), _) => quote = None,
            (None, '"' | '\'' | '`') => quote = Some(c),
            (None, '{') => depth += 1,
            (None, '}') if depth == 1 => return line.split_at(at + 1),
            (None, ' ' | '\t') if depth == 0 => return line.split_at(at),
            _ => {}
        }
    }
    (line, "")
}

fn parse_metric(text: &str) -> Result<Labels, String> {
    let matchers = parse_metric_selector(text.trim()).map_err(|e| format!("{text:?}: {e}"))?;
    if let Some(other) = matchers.iter().find(|m| m.op() != MatchOp::Equal) {
        return Err(format!("{text:?}: {other} is no label"));
    }
    Ok(Labels::from_pairs(matchers.iter().map(|m| (m.name(), m.value()))))
}

/// Splits points at spaces outside `{{}}`.
fn items(points: &str) -> Result<Vec<&str>, String> {
    let mut items = Vec::new();
    let mut rest = points.trim_start();
    while !rest.is_empty() {
        let mut end = 0;
        while let Some(tail) = rest
            .get(end..)
            .filter(|tail| !tail.is_empty() && !tail.starts_with([' ', '\t']))
        {
            end += if tail.starts_with("{{") {
                2 + tail.find("}}").ok_or("unclosed {{")?
            } else {
                tail.chars().next().map_or(1, char::len_utf8)
            };
        }
        let (item, tail) = rest.split_at(end);
        items.push(item);
        rest = tail.trim_start();
    }
    Ok(items)
}

fn parse_item(item: &str) -> Result<Sequence, String> {
    if let Some(rest) = item.strip_prefix('_') {
        let times = if rest.is_empty() { 1 } else { repetition(rest)? };
        return Ok(vec![SequencePoint::Gap; times]);
    }
    if item == "stale" {
        return Ok(vec![float(stale_nan())]);
    }
    if item.starts_with("{{") {
        return histogram_item(item);
    }
    let (start, rest) = number_prefix(item)?;
    if rest.is_empty() {
        return Ok(vec![float(start)]);
    }
    if rest.starts_with('x') {
        return Ok(vec![float(start); repetition(rest)? + 1]);
    }
    let (step, rest) = number_prefix(rest)?;
    let times = repetition(rest)?;
    // Added up step by step, as the reference does: multiplying would round otherwise.
    Ok(std::iter::successors(Some(start), |v| Some(v + step))
        .take(times + 1)
        .map(float)
        .collect())
}

/// `x` and a number.
fn repetition(text: &str) -> Result<usize, String> {
    let times: u64 = text
        .strip_prefix('x')
        .ok_or("expected x<times>")?
        .parse()
        .map_err(|_| "bad repetition")?;
    if times > REPEAT_MAX {
        return Err(format!("{times} repetitions: at most {REPEAT_MAX}"));
    }
    usize::try_from(times).map_err(|e| e.to_string())
}

/// A signed number at the start of a text, and what follows it.
fn number_prefix(text: &str) -> Result<(f64, &str), String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = text.len() - unsigned.len();
    let word = unsigned
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(unsigned.len());
    let named = unsigned
        .get(..word.min(3))
        .unwrap_or_default()
        .to_ascii_lowercase();
    let end = if matches!(named.as_str(), "inf" | "nan") {
        sign + 3
    } else {
        sign + digits(unsigned)
    };
    let (number, rest) = text.split_at(end);
    let value = number.parse().map_err(|_| format!("{number:?} is no number"))?;
    Ok((value, rest))
}

/// How long the number at the start of a text is.
fn digits(text: &str) -> usize {
    let mut end = 0;
    let mut last = ' ';
    for c in text.chars() {
        let sign_of_exponent = matches!(c, '+' | '-') && matches!(last, 'e' | 'E');
        if !(c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E') || sign_of_exponent) {
            break;
        }
        end += c.len_utf8();
        last = c;
    }
    end
}

fn histogram_item(item: &str) -> Result<Sequence, String> {
    let (start, hint_written, rest) = histogram_prefix(item)?;
    let point = |h: Histogram, hint_written| SequencePoint::Value {
        value: SampleValue::Histogram(Arc::new(h)),
        hint_written,
    };
    if rest.is_empty() {
        return Ok(vec![point(start, hint_written)]);
    }
    if rest.starts_with('x') {
        return Ok(vec![point(start, hint_written); repetition(rest)? + 1]);
    }
    let subtract = rest.starts_with('-');
    let (step, hint_written, rest) = histogram_prefix(rest.trim_start_matches(['+', '-']))?;
    let mut sequence = vec![point(start.clone(), hint_written)];
    let mut current = start;
    for _ in 0..repetition(rest)? {
        current = histogram::combine(&current, &step, subtract)?;
        sequence.push(point(current.clone(), hint_written));
    }
    Ok(sequence)
}

/// The histogram at the start of a text, whether its reset hint is written, and what follows it.
fn histogram_prefix(text: &str) -> Result<(Histogram, bool, &str), String> {
    let body = text.strip_prefix("{{").ok_or("expected {{")?;
    let (body, rest) = body.split_once("}}").ok_or("unclosed {{")?;
    let (h, hint_written) = histogram::parse(body)?;
    Ok((h, hint_written, rest))
}

/// One item of a line of start times.
fn parse_offsets(item: &str) -> Result<Vec<Option<i64>>, String> {
    if let Some(rest) = item.strip_prefix('_') {
        return Ok(vec![None; if rest.is_empty() { 1 } else { repetition(rest)? }]);
    }
    let (start, rest) = offset_prefix(item)?;
    if rest.is_empty() {
        return Ok(vec![Some(start)]);
    }
    let (step, rest) = if rest.starts_with('x') {
        (0, rest)
    } else {
        offset_prefix(rest)?
    };
    let times = repetition(rest)?;
    Ok(std::iter::successors(Some(start), |v| Some(v + step))
        .take(times + 1)
        .map(Some)
        .collect())
}

/// A signed duration of one unit in milliseconds, and what follows it.
fn offset_prefix(text: &str) -> Result<(i64, &str), String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(unsigned.len());
    let unit = unsigned.get(digits..).unwrap_or_default();
    let unit = unit
        .find(|c: char| !c.is_ascii_alphabetic() || c == 'x')
        .unwrap_or(unit.len());
    let (duration, rest) = unsigned.split_at(digits + unit);
    let ms = parse_duration(duration)? / 1_000_000;
    Ok((if text.starts_with('-') { -ms } else { ms }, rest))
}

/// Whether a line expects a bare number.
pub(super) fn parse_scalar(line: &str) -> Option<f64> {
    let (value, rest) = number_prefix(line).ok()?;
    rest.is_empty().then_some(value)
}

/// The labels as a selector that selects exactly them; for messages.
pub(super) fn describe(labels: &Labels) -> String {
    let name = labels.get(METRIC_NAME).unwrap_or_default();
    if name.is_empty() {
        labels.to_string()
    } else {
        format!("{name} {labels}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(line: &str) -> Vec<Option<f64>> {
        let (_, sequence) = parse_series(line).unwrap();
        let value = |point: SequencePoint| match point {
            SequencePoint::Value {
                value: SampleValue::Float(v),
                ..
            } => Some(v),
            _ => None,
        };
        sequence.into_iter().map(value).collect()
    }

    #[test]
    fn reads_each_form_of_points() {
        let some = |vs: &[f64]| vs.iter().copied().map(Some).collect::<Vec<_>>();
        assert_eq!(
            floats("a 1 -2 3.5e-1 +Inf -inf"),
            some(&[1.0, -2.0, 0.35, f64::INFINITY, f64::NEG_INFINITY])
        );
        assert_eq!(
            floats("a{b=\"c d\"} 1+2x2 5-1x1 7x1"),
            some(&[1.0, 3.0, 5.0, 5.0, 4.0, 7.0, 7.0])
        );
        assert_eq!(floats("a _ _x2 1"), [None, None, None, Some(1.0)]);
        assert_eq!(floats("a -1-1x1 1e3+1x1"), some(&[-1.0, -2.0, 1000.0, 1001.0]));
        assert!(koios_model::is_stale(floats("a stale")[0].unwrap()));
    }

    #[test]
    fn reads_names_that_need_quotes() {
        let (labels, points) = parse_series("{\"a b\", \"c.d\"=\"} e\"} 1").unwrap();
        assert_eq!(
            (labels.metric_name(), labels.get("c.d"), points.len()),
            ("a b", Some("} e"), 1)
        );
        assert!(parse_series("{}").unwrap().0.is_empty());
        assert!(parse_series("a{b!=\"c\"} 1").is_err());
    }

    #[test]
    fn adds_histograms_up() {
        let (_, points) =
            parse_series("h {{schema:0 count:2 buckets:[1 1]}}+{{count:1 buckets:[1]}}x2").unwrap();
        let last = points.last().unwrap();
        let SequencePoint::Value {
            value: SampleValue::Histogram(h),
            hint_written: false,
        } = last
        else {
            panic!("{last:?}")
        };
        assert_eq!(
            (points.len(), h.count, h.positive_buckets.as_slice()),
            (3, 4.0, &[3.0, 1.0][..])
        );
    }

    #[test]
    fn reads_start_times() {
        let (labels, offsets) = parse_start_times("a{b=\"c\"}@st -1m+30sx2 _ 0s")
            .unwrap()
            .unwrap();
        assert_eq!(labels.get("b"), Some("c"));
        assert_eq!(offsets, [Some(-60_000), Some(-30_000), Some(0), None, Some(0)]);
        assert!(parse_start_times("a 1 2").is_none());
    }

    #[test]
    fn refuses_what_it_cannot_read() {
        for line in [
            "a 1x",
            "a x3",
            "a 1+x3",
            "a {{",
            "a {{foo:1}}",
            "a 1x99999999",
            "a{ 1",
            "a 1y",
        ] {
            assert!(parse_series(line).is_err(), "{line}");
        }
    }
}
