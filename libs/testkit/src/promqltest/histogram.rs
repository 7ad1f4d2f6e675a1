//! Histogram literals, their arithmetic in series notation, their comparison, and the making of custom-bucket
//! histograms out of classic ones.

use std::collections::BTreeMap;

use koios_model::{Histogram, ResetHint, Span};

use super::compare::almost_equal;

/// The schema of custom buckets.
const CUSTOM_SCHEMA: i32 = -53;

/// Reads what stands between `{{` and `}}`; answers too whether a reset hint was written.
pub(super) fn parse(body: &str) -> Result<(Histogram, bool), String> {
    let mut fields = BTreeMap::new();
    let mut rest = body.trim();
    while !rest.is_empty() {
        let (key, tail) = rest
            .split_once(':')
            .ok_or("missing `:` for histogram descriptor")?;
        let tail = tail.trim_start();
        let (value, tail) = match tail.strip_prefix('[') {
            Some(list) => list.split_once(']').ok_or("unclosed [")?,
            None => tail.split_once([' ', '\t']).unwrap_or((tail, "")),
        };
        if fields.insert(key.trim(), value.trim()).is_some() {
            return Err(format!("duplicate key {key:?} in histogram"));
        }
        rest = tail.trim_start();
    }
    build(fields)
}

fn build(fields: BTreeMap<&str, &str>) -> Result<(Histogram, bool), String> {
    let mut h = Histogram::default();
    let (mut offset, mut negative_offset, mut hint_written) = (0, 0, false);
    for (key, value) in fields {
        let wrong = || format!("error parsing {key}: {value:?}");
        let number = || value.parse::<f64>().map_err(|_| wrong());
        let list = || {
            value
                .split_whitespace()
                .map(|v| v.parse().map_err(|_| wrong()))
                .collect::<Result<Vec<f64>, _>>()
        };
        let integer = || value.parse::<i32>().map_err(|_| wrong());
        match key {
            "schema" => h.schema = integer()?,
            "sum" => h.sum = number()?,
            "count" => h.count = number()?,
            "z_bucket" => h.zero_count = number()?,
            "z_bucket_w" => h.zero_threshold = number()?,
            "custom_values" => h.custom_bounds = list()?,
            "buckets" => h.positive_buckets = list()?,
            "offset" => offset = integer()?,
            "n_buckets" => h.negative_buckets = list()?,
            "n_offset" => negative_offset = integer()?,
            "counter_reset_hint" => {
                hint_written = true;
                h.reset_hint = hint(value).ok_or_else(wrong)?;
            }
            _ => return Err(format!("bad histogram descriptor found: {key:?}")),
        }
    }
    h.positive_spans = one_span(offset, h.positive_buckets.len());
    h.negative_spans = one_span(negative_offset, h.negative_buckets.len());
    Ok((h, hint_written))
}

fn hint(word: &str) -> Option<ResetHint> {
    Some(match word {
        "unknown" => ResetHint::Unknown,
        "reset" => ResetHint::Reset,
        "not_reset" => ResetHint::NotReset,
        "gauge" => ResetHint::Gauge,
        _ => return None,
    })
}

fn one_span(offset: i32, length: usize) -> Vec<Span> {
    match u32::try_from(length) {
        Ok(length) if length > 0 => vec![Span { offset, length }],
        _ => Vec::new(),
    }
}

type Buckets = BTreeMap<i32, f64>;

/// The buckets by index.
fn buckets(spans: &[Span], counts: &[f64]) -> Buckets {
    let mut index = 0_i32;
    let mut out = Buckets::new();
    let mut counts = counts.iter();
    for span in spans {
        index = index.saturating_add(span.offset);
        for count in counts.by_ref().take(span.length as usize) {
            out.insert(index, *count);
            index = index.saturating_add(1);
        }
    }
    out
}

/// Spans and counts of buckets by index.
fn spans(buckets: &Buckets) -> (Vec<Span>, Vec<f64>) {
    let mut spans: Vec<Span> = Vec::new();
    let mut next = 0;
    for index in buckets.keys().copied() {
        match spans.last_mut() {
            Some(last) if index == next => last.length += 1,
            _ => spans.push(Span {
                offset: index - next,
                length: 1,
            }),
        }
        next = index + 1;
    }
    (spans, buckets.values().copied().collect())
}

/// The sum or difference of two histograms. Knows what scripts need: a finer step is brought to the base's schema, custom
/// bounds must be equal.
pub(super) fn combine(base: &Histogram, step: &Histogram, subtract: bool) -> Result<Histogram, String> {
    let custom = (base.schema == CUSTOM_SCHEMA, step.schema == CUSTOM_SCHEMA);
    if custom.0 != custom.1 || custom.0 && base.custom_bounds != step.custom_bounds {
        return Err("error combining histograms: custom bounds differ".to_owned());
    }
    if base.schema > step.schema {
        return Err(format!(
            "error combining histograms: cannot merge from schema {} to {}",
            step.schema, base.schema
        ));
    }
    if base.zero_threshold != step.zero_threshold && step.zero_count != 0.0 {
        return Err("error combining histograms: zero buckets differ in width".to_owned());
    }
    let sign = if subtract { -1.0 } else { 1.0 };
    let coarser = u32::try_from(step.schema - base.schema).unwrap_or(0);
    let sum = |a: Buckets, b: Buckets| {
        let mut out = a;
        for (index, count) in b {
            // Bucket i of a schema holds buckets 2i-1 and 2i of the next finer one.
            let index = (0..coarser).fold(index, |i, _| (i + 1).div_euclid(2));
            *out.entry(index).or_default() += sign * count;
        }
        spans(&out)
    };
    let mut out = base.clone();
    out.count += sign * step.count;
    out.sum += sign * step.sum;
    out.zero_count += sign * step.zero_count;
    (out.positive_spans, out.positive_buckets) = sum(positive(base), positive(step));
    (out.negative_spans, out.negative_buckets) = sum(negative(base), negative(step));
    out.reset_hint = combined_hint(base.reset_hint, step.reset_hint);
    Ok(out)
}

fn positive(h: &Histogram) -> Buckets {
    buckets(&h.positive_spans, &h.positive_buckets)
}

fn negative(h: &Histogram) -> Buckets {
    buckets(&h.negative_spans, &h.negative_buckets)
}

fn combined_hint(base: ResetHint, step: ResetHint) -> ResetHint {
    match (base, step) {
        _ if base == step => base,
        (ResetHint::Gauge, _) | (_, ResetHint::Gauge) => ResetHint::Gauge,
        _ => ResetHint::Unknown,
    }
}

/// Whether a result equals what a script expects; empty buckets do not count, the hint only if it was written.
pub(super) fn equal(want: &Histogram, got: &Histogram, hint_written: bool) -> bool {
    want.schema == got.schema
        && almost_equal(want.count, got.count)
        && almost_equal(want.sum, got.sum)
        && want.custom_bounds == got.custom_bounds
        && want.zero_threshold == got.zero_threshold
        && almost_equal(want.zero_count, got.zero_count)
        && same_buckets(positive(want), positive(got))
        && same_buckets(negative(want), negative(got))
        && (!hint_written || want.reset_hint == got.reset_hint)
}

fn same_buckets(mut a: Buckets, mut b: Buckets) -> bool {
    a.retain(|_, count| *count != 0.0);
    b.retain(|_, count| *count != 0.0);
    a.len() == b.len()
        && a.iter()
            .zip(&b)
            .all(|((i, x), (j, y))| i == j && almost_equal(*x, *y))
}

/// The parts of a classic histogram at one time.
#[derive(Debug, Default)]
pub(super) struct Classic {
    /// Cumulative counts by upper bound.
    pub(super) buckets: Vec<(f64, f64)>,
    pub(super) count: Option<f64>,
    pub(super) sum: f64,
}

impl Classic {
    /// The same as a histogram with custom buckets.
    pub(super) fn into_custom(mut self) -> Result<Histogram, String> {
        self.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.buckets.dedup_by(|a, b| a.0 == b.0);
        let count = self
            .count
            .or_else(|| self.buckets.last().map(|b| b.1))
            .unwrap_or_default();
        if self.buckets.last().is_none_or(|b| b.0 != f64::INFINITY) {
            self.buckets.push((f64::INFINITY, count));
        }
        let last = self.buckets.last().map_or(0.0, |b| b.1);
        if count != last {
            return Err(format!("count mismatch: count={count} != le=+Inf count={last}"));
        }
        let mut before = 0.0;
        let mut h = Histogram {
            schema: CUSTOM_SCHEMA,
            count,
            sum: self.sum,
            ..Histogram::default()
        };
        for (bound, cumulative) in &self.buckets {
            if *cumulative < before {
                return Err(format!("count is not cumulative: {cumulative} < {before}"));
            }
            h.positive_buckets.push(cumulative - before);
            before = *cumulative;
            if bound.is_finite() || *bound == f64::NEG_INFINITY {
                h.custom_bounds.push(*bound);
            }
        }
        h.positive_spans = one_span(0, h.positive_buckets.len());
        Ok(h)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_field() {
        let (h, hint) = parse(
            "schema:1 sum:-3.5 count:22 z_bucket:2 z_bucket_w:0.5 buckets:[5 10 7] offset:-1 n_buckets:[ 4 5 ] \
             n_offset:3 counter_reset_hint:gauge",
        )
        .unwrap();
        assert_eq!(
            (h.schema, h.sum, h.count, h.zero_count, h.zero_threshold),
            (1, -3.5, 22.0, 2.0, 0.5)
        );
        assert_eq!(
            h.positive_spans,
            [Span {
                offset: -1,
                length: 3
            }]
        );
        assert_eq!(
            (h.negative_spans[0].offset, h.negative_buckets.as_slice()),
            (3, &[4.0, 5.0][..])
        );
        assert_eq!((h.reset_hint, hint), (ResetHint::Gauge, true));
        assert!(parse("sum:1 sum:2").is_err() && parse("sum").is_err() && parse("sum:x").is_err());
    }

    #[test]
    fn a_finer_step_is_brought_to_the_bases_schema() {
        let (base, _) = parse("schema:0 count:1 buckets:[1]").unwrap();
        let (step, _) = parse("schema:1 count:4 buckets:[1 1 1 1] offset:-1").unwrap();
        let sum = combine(&base, &step, false).unwrap();
        assert_eq!(positive(&sum), Buckets::from([(0, 3.0), (1, 2.0)]));
        assert!(combine(&step, &base, false).is_err());
    }

    #[test]
    fn empty_buckets_do_not_count() {
        let (a, _) = parse("count:2 buckets:[1 0 1]").unwrap();
        let mut b = a.clone();
        (b.positive_spans, b.positive_buckets) = spans(&Buckets::from([(0, 1.0), (2, 1.0)]));
        assert!(equal(&a, &b, false));
        b.positive_buckets[1] = 1.1;
        assert!(!equal(&a, &b, false));
    }

    #[test]
    fn classic_becomes_custom() {
        let buckets = vec![(f64::INFINITY, 5.0), (1.0, 2.0), (2.0, 4.0)];
        let h = Classic {
            buckets,
            count: Some(5.0),
            sum: 7.0,
        }
        .into_custom()
        .unwrap();
        assert_eq!(
            (h.schema, h.custom_bounds.as_slice()),
            (CUSTOM_SCHEMA, &[1.0, 2.0][..])
        );
        assert_eq!(h.positive_buckets, [2.0, 2.0, 1.0]);
        assert!(
            Classic {
                buckets: vec![(1.0, 2.0), (2.0, 1.0)],
                ..Classic::default()
            }
            .into_custom()
            .is_err()
        );
    }
}
