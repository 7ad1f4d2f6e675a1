//! Whether an answer is what a script expects.

use std::collections::BTreeMap;

use koios_model::{Labels, is_stale};
use koios_promql::{AnnotationTexts, MatrixSeries, SampleValue, Value, VectorSample};

use super::histogram;
use super::notation::{Sequence, SequencePoint, describe};
use super::script::{Eval, Expectation, Pattern};

/// Relative difference that still counts as equal.
const EPSILON: f64 = 1e-6;

/// Whether two floats are equal but for rounding; NaN equals NaN, a stale marker only another one.
pub(super) fn almost_equal(a: f64, b: f64) -> bool {
    if is_stale(a) || is_stale(b) {
        return is_stale(a) && is_stale(b);
    }
    if a.is_nan() && b.is_nan() || a == b {
        return true;
    }
    let (sum, difference) = (a.abs() + b.abs(), (a - b).abs());
    if a == 0.0 || b == 0.0 || sum < f64::MIN_POSITIVE {
        return difference < EPSILON * f64::MIN_POSITIVE;
    }
    difference / sum.min(f64::MAX) < EPSILON
}

/// Compares a result with what an evaluation expects.
pub(super) fn compare(eval: &Eval, got: &Value) -> Result<(), String> {
    match (got, &eval.expected) {
        (Value::Scalar(_, got), Expectation::Scalar(want)) => {
            if almost_equal(*want, *got) {
                Ok(())
            } else {
                Err(format!("expected scalar {want}, got {got}"))
            }
        }
        (Value::String(_, got), Expectation::String(want)) => {
            if want == got {
                Ok(())
            } else {
                Err(format!("expected string {want:?}, got {got:?}"))
            }
        }
        (Value::Vector(_, got), Expectation::Series(want)) => vector(eval, want, got),
        (Value::Matrix(got), Expectation::Series(want)) => matrix(eval, want, got),
        (got, want) => Err(format!(
            "expected {}, got a {}",
            want.kind(),
            got.value_type().as_str()
        )),
    }
}

/// Compares series at one time.
pub(super) fn vector(eval: &Eval, want: &[(Labels, Sequence)], got: &[VectorSample]) -> Result<(), String> {
    let mut left: BTreeMap<&Labels, (usize, &Sequence)> = want
        .iter()
        .enumerate()
        .map(|(at, (labels, points))| (labels, (at, points)))
        .collect();
    for (at, sample) in got.iter().enumerate() {
        let name = describe(&sample.labels);
        let Some((position, points)) = left.remove(&sample.labels) else {
            return Err(format!("unexpected series {name} with {:?}", sample.value));
        };
        if eval.ordered && position != at {
            return Err(format!(
                "expected {name} at place {}, got it at {}",
                position + 1,
                at + 1
            ));
        }
        let Some(SequencePoint::Value { value, hint_written }) = points.first() else {
            return Err(format!("expected no value for {name}, got {:?}", sample.value));
        };
        same_value(&name, value, *hint_written, &sample.value)?;
    }
    nothing_missing(&left)
}

fn nothing_missing<T>(left: &BTreeMap<&Labels, T>) -> Result<(), String> {
    match left.keys().next() {
        Some(labels) => Err(format!("expected series {} is missing", describe(labels))),
        None => Ok(()),
    }
}

fn same_value(name: &str, want: &SampleValue, hint_written: bool, got: &SampleValue) -> Result<(), String> {
    let same = match (want, got) {
        (SampleValue::Float(want), SampleValue::Float(got)) => almost_equal(*want, *got),
        (SampleValue::Histogram(want), SampleValue::Histogram(got)) => {
            histogram::equal(want, got, hint_written)
        }
        _ => false,
    };
    if same {
        Ok(())
    } else {
        Err(format!("expected {want:?} for {name}, got {got:?}"))
    }
}

/// Compares series over time, which must be in label order.
fn matrix(eval: &Eval, want: &[(Labels, Sequence)], got: &[MatrixSeries]) -> Result<(), String> {
    if eval.ordered {
        return Err("expected an ordered result, got a matrix".to_owned());
    }
    in_label_order(got)?;
    let mut left: BTreeMap<&Labels, &Sequence> =
        want.iter().map(|(labels, points)| (labels, points)).collect();
    for series in got {
        let name = describe(&series.labels);
        let Some(points) = left.remove(&series.labels) else {
            return Err(format!("unexpected series {name} with {:?}", values(series)));
        };
        same_points(eval, &name, points, series)?;
    }
    nothing_missing(&left)
}

/// Fails if the series are not in label order.
pub(super) fn in_label_order(series: &[MatrixSeries]) -> Result<(), String> {
    match series.windows(2).find(|pair| pair[0].labels > pair[1].labels) {
        Some(pair) => Err(format!(
            "{} comes before {}",
            describe(&pair[0].labels),
            describe(&pair[1].labels)
        )),
        None => Ok(()),
    }
}

/// All samples by time.
pub(super) fn values(series: &MatrixSeries) -> BTreeMap<i64, SampleValue> {
    let floats = series.floats().map(|(t, v)| (t, SampleValue::Float(v)));
    let histograms = series
        .histograms()
        .map(|(t, h)| (t, SampleValue::Histogram(h.clone())));
    floats.chain(histograms).collect()
}

fn same_points(eval: &Eval, name: &str, want: &Sequence, series: &MatrixSeries) -> Result<(), String> {
    let got = values(series);
    let mut wanted = 0;
    for (i, point) in want.iter().enumerate() {
        let t_ms = eval.start_ms + i64::try_from(i).unwrap_or(i64::MAX).saturating_mul(eval.step_ms);
        if t_ms > eval.end_ms {
            return Err(format!(
                "{} points for {name} do not fit into the range",
                want.len()
            ));
        }
        let SequencePoint::Value { value, hint_written } = point else {
            continue;
        };
        wanted += 1;
        let Some(found) = got.get(&t_ms) else {
            return Err(format!("expected {value:?} for {name} at {t_ms}, got {got:?}"));
        };
        same_value(&format!("{name} at {t_ms}"), value, *hint_written, found)?;
    }
    if wanted != got.len() {
        return Err(format!("expected {wanted} points for {name}, got {got:?}"));
    }
    Ok(())
}

/// Compares warnings and infos.
pub(super) fn annotations(eval: &Eval, got: &AnnotationTexts) -> Result<(), String> {
    one_level("warning", &eval.warnings, eval.no_warnings, &got.warnings)?;
    one_level("info", &eval.infos, eval.no_infos, &got.infos)
}

fn one_level(what: &str, want: &[Pattern], none: bool, got: &[String]) -> Result<(), String> {
    if none && !got.is_empty() {
        return Err(format!("expected no {what}, got {got:?}"));
    }
    if want.is_empty() {
        return Ok(());
    }
    if let Some(missing) = want
        .iter()
        .find(|pattern| !got.iter().any(|text| pattern.matches(text)))
    {
        return Err(format!("expected {what} {missing:?}, got {got:?}"));
    }
    match got
        .iter()
        .find(|text| !want.iter().any(|pattern| pattern.matches(text)))
    {
        Some(text) => Err(format!("unexpected {what} {text:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_equal_but_for_rounding() {
        for (a, b, same) in [
            (1.0, 1.000_000_1, true),
            (1.0, 1.000_01, false),
            (0.0, 1e-300, false),
            (f64::NAN, f64::NAN, true),
            (f64::INFINITY, f64::INFINITY, true),
            (f64::INFINITY, f64::NEG_INFINITY, false),
            (f64::NAN, koios_model::stale_nan(), false),
            (f64::MAX, -f64::MAX, false),
        ] {
            assert_eq!(almost_equal(a, b), same, "{a} {b}");
        }
    }
}
