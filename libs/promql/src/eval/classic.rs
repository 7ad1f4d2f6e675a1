//! `histogram_quantile`, `histogram_quantiles` and `histogram_fraction`, over classic buckets and native histograms.
//!
//! **Source:** Prometheus `promql/quantile.go`: `BucketQuantile`, `BucketFraction`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use koios_model::{Histogram, Labels};

use super::inputs::Inputs;
use super::row::{Point, Row, RowSet, Scalars, histogram_weight};
use super::{Evaluator, is_absent};
use crate::ast::Span;
use crate::error::QueryError;
use crate::memory::{LABELS_ENTRY_BYTES, of_labels};
use crate::number::{almost_equal, format_open_metrics, parse_bound};
use crate::plan::{CallNode, Child};
use crate::signatures::FunctionId;
use crate::steps::Steps;
use crate::work::Work;

/// The label that holds a bucket's upper bound.
const BUCKET_LABEL: &str = "le";
/// Relative differences between buckets up to this are rounding errors.
const SMALL_DELTA: f64 = 1e-12;
/// What an annotation costs: its text is made before it is known whether there is one like it.
const ANNOTATION_UNITS: usize = 64;

/// A bucket of a classic histogram: its upper bound and all observations up to it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    bound: f64,
    count: f64,
}

/// What is asked of each histogram.
enum Question {
    Quantile {
        q: Arc<Scalars>,
        label: Option<QuantileLabel>,
    },
    Fraction {
        lower: Scalars,
        upper: Scalars,
    },
}

/// The label that tells the answer to one of several quantiles.
struct QuantileLabel {
    name: String,
    value: String,
    /// The quantile itself.
    bits: u64,
}

/// The series of one classic histogram.
struct Classic<'a> {
    labels: Labels,
    rows: Vec<(f64, &'a Row)>,
}

impl Evaluator<'_> {
    /// Evaluates one of the functions that look into buckets.
    pub(super) fn bucket_call(
        &mut self,
        node: &CallNode,
        steps: Steps,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let at = match node.function {
            FunctionId::HistogramQuantile => 1,
            FunctionId::HistogramFraction => 2,
            _ => 0,
        };
        let rows = inputs.vector()?;
        let span = node.args.get(at).map_or(node.span, |arg| arg.span);
        // Questions and classic histograms live as long as this, which holds their memory.
        let mut work = self.work();
        let questions = self.questions(node, inputs, (steps, &mut work))?;
        let classics = self.classics(&rows, span, &mut work)?;
        work.hold(
            rows.len()
                .saturating_mul(size_of::<&Row>() + 2 * LABELS_ENTRY_BYTES),
        )?;
        let natives: Vec<&Row> = rows.iter().filter(|r| !r.histograms.is_empty()).collect();
        // A native and a classic histogram of one name rival each other wherever both have something.
        let classic_of: HashMap<&Labels, &Classic<'_>> = classics.iter().map(|c| (&c.labels, c)).collect();
        let native_of: HashMap<&Labels, &Row> = natives.iter().map(|r| (&r.labels, *r)).collect();
        let mut out = RowSet::new(steps.count(), self.account, self.work());
        for question in &questions {
            for row in &natives {
                out.spend(32)?;
                let rival = classic_of.get(&row.labels).copied();
                self.answer_native(row, rival, question, span, &mut out)?;
            }
            for classic in &classics {
                out.spend(32)?;
                let rival = native_of.get(&classic.labels).copied();
                self.answer_classic(classic, rival, question, steps, span, &mut out)?;
            }
        }
        Ok(out.into_rows())
    }

    fn questions(
        &mut self,
        node: &CallNode,
        inputs: &mut Inputs<'_>,
        (steps, work): (Steps, &mut Work<'_>),
    ) -> Result<Vec<Question>, QueryError> {
        match node.function {
            FunctionId::HistogramFraction => Ok(vec![Question::Fraction {
                lower: inputs.scalar()?,
                upper: inputs.scalar()?,
            }]),
            FunctionId::HistogramQuantile => {
                let q = inputs.scalar()?;
                self.check_quantiles(&q, node.args.first(), steps, work)?;
                Ok(vec![Question::Quantile {
                    q: Arc::new(q),
                    label: None,
                }])
            }
            _ => {
                let name = self.text(node, 1)?;
                let mut questions = Vec::new();
                for arg in node.args.iter().skip(2) {
                    let q = inputs.scalar()?;
                    self.check_quantiles(&q, Some(arg), steps, work)?;
                    questions.extend(labelled_quantiles(name, q, steps, work)?);
                }
                Ok(questions)
            }
        }
    }

    fn check_quantiles(
        &mut self,
        q: &Scalars,
        arg: Option<&Child>,
        steps: Steps,
        work: &mut Work<'_>,
    ) -> Result<(), QueryError> {
        let Some(span) = arg.map(|arg| arg.span) else {
            return Ok(());
        };
        let mut last = None;
        for q in (0..steps.count()).map(|i| q.at(i)) {
            work.spend(1)?;
            if !(0.0..=1.0).contains(&q) && last != Some(q.to_bits()) {
                work.spend(ANNOTATION_UNITS)?;
                self.annotations.invalid_quantile(q, span);
                last = Some(q.to_bits());
            }
        }
        Ok(())
    }

    /// Groups the bucket series by all labels but the bound.
    fn classics<'r>(
        &mut self,
        rows: &'r [Row],
        span: Span,
        work: &mut Work<'_>,
    ) -> Result<Vec<Classic<'r>>, QueryError> {
        let mut by_labels: HashMap<Labels, usize> = HashMap::new();
        let mut classics: Vec<Classic<'r>> = Vec::new();
        for row in rows.iter().filter(|r| r.values.iter().any(|&v| !is_absent(v))) {
            work.spend(16)?;
            // Every bucket may be a histogram of its own.
            work.hold(2 * LABELS_ENTRY_BYTES + of_labels(&row.labels))?;
            let text = row.labels.get(BUCKET_LABEL).unwrap_or("");
            let Some(bound) = parse_bound(text) else {
                self.annotations.bad_bucket_label(row.metric_name(), text, span);
                continue;
            };
            let labels = row.labels.without(|n| n == BUCKET_LABEL);
            let at = *by_labels.entry(labels).or_insert_with_key(|labels| {
                classics.push(Classic {
                    labels: labels.clone(),
                    rows: Vec::new(),
                });
                classics.len() - 1
            });
            if let Some(classic) = classics.get_mut(at) {
                classic.rows.push((bound, row));
            }
        }
        Ok(classics)
    }

    fn answer_native(
        &mut self,
        row: &Row,
        rival: Option<&Classic<'_>>,
        question: &Question,
        span: Span,
        out: &mut RowSet<'_>,
    ) -> Result<(), QueryError> {
        let target = out.row(&question.labels(&row.labels), true)?;
        for (i, h) in row.histograms.iter().enumerate() {
            out.spend(1)?;
            let Some(h) = h else { continue };
            out.spend(16 * histogram_weight(h) + rival.map_or(0, |c| c.rows.len()))?;
            if rival.is_some_and(|c| {
                c.rows
                    .iter()
                    .any(|(_, r)| r.values.get(i).is_some_and(|&v| !is_absent(v)))
            }) {
                self.annotations.mixed_classic_native(row.metric_name(), span);
                continue;
            }
            if let Some(v) = self.native_value(question, h, i, row.metric_name(), span) {
                out.set(target, i, Point::Float(v))?;
            }
        }
        Ok(())
    }

    fn native_value(
        &mut self,
        question: &Question,
        h: &Arc<Histogram>,
        i: usize,
        metric: &str,
        span: Span,
    ) -> Option<f64> {
        Some(match question {
            Question::Quantile { q, .. } => {
                let q = question.quantile_at(q, i)?;
                crate::histogram::quantile(q, h, metric, span, &mut self.annotations)
            }
            Question::Fraction { lower, upper } => {
                let bounds = (lower.at(i), upper.at(i));
                crate::histogram::fraction(bounds, h, metric, span, &mut self.annotations)
            }
        })
    }

    fn answer_classic(
        &mut self,
        classic: &Classic<'_>,
        rival: Option<&Row>,
        question: &Question,
        steps: Steps,
        span: Span,
        out: &mut RowSet<'_>,
    ) -> Result<(), QueryError> {
        let target = out.row(&question.labels(&classic.labels), true)?;
        let mut buckets = Vec::with_capacity(classic.rows.len());
        for i in 0..steps.count() {
            out.spend(1 + 4 * classic.rows.len())?;
            buckets.clear();
            buckets.extend(classic.rows.iter().filter_map(|&(bound, row)| {
                let count = row.values.get(i).copied().filter(|&v| !is_absent(v))?;
                Some(Bucket { bound, count })
            }));
            if buckets.is_empty() || rival.is_some_and(|r| r.histogram(i).is_some()) {
                continue;
            }
            let value = match question {
                Question::Quantile { q, .. } => {
                    let Some(q) = question.quantile_at(q, i) else {
                        continue;
                    };
                    let (value, repair) = bucket_quantile(q, &mut buckets);
                    if let Some(repair) = repair {
                        let metric = classic.labels.metric_name();
                        self.annotations
                            .forced_monotonicity(metric, span, steps.at(i), repair);
                    }
                    value
                }
                Question::Fraction { lower, upper } => {
                    bucket_fraction(lower.at(i), upper.at(i), &mut buckets)
                }
            };
            out.set(target, i, Point::Float(value))?;
        }
        Ok(())
    }
}

/// One question per value that a quantile takes over the steps, as each has its own label.
fn labelled_quantiles(
    name: &str,
    q: Scalars,
    steps: Steps,
    work: &mut Work<'_>,
) -> Result<Vec<Question>, QueryError> {
    let q = Arc::new(q);
    let looked_at = match *q {
        Scalars::Const(_) => steps.count().min(1),
        Scalars::Steps(_) => steps.count(),
    };
    let mut seen = HashSet::new();
    let mut questions = Vec::new();
    for v in (0..looked_at).map(|i| q.at(i)) {
        work.spend(1)?;
        if !seen.insert(v.to_bits()) {
            continue;
        }
        work.spend(16)?;
        work.hold(size_of::<Question>() + 2 * LABELS_ENTRY_BYTES + name.len())?;
        questions.push(Question::Quantile {
            q: Arc::clone(&q),
            label: Some(QuantileLabel {
                name: name.to_owned(),
                value: format_open_metrics(v),
                bits: v.to_bits(),
            }),
        });
    }
    Ok(questions)
}

impl Question {
    /// The labels of the answer for a histogram.
    fn labels(&self, labels: &Labels) -> Labels {
        match self {
            Self::Quantile {
                label: Some(QuantileLabel { name, value, .. }),
                ..
            } => {
                let mut builder = labels.to_builder();
                builder.set(name, value);
                builder.build()
            }
            _ => labels.clone(),
        }
    }

    /// The quantile asked at a step; `None` if another question asks it.
    fn quantile_at(&self, q: &Scalars, i: usize) -> Option<f64> {
        let q = q.at(i);
        match self {
            Self::Quantile {
                label: Some(QuantileLabel { bits, .. }),
                ..
            } if *bits != q.to_bits() => None,
            _ => Some(q),
        }
    }
}

/// Sorts buckets and unites equal bounds; `false` if the last one is not `+Inf`, which makes them useless.
fn prepare(buckets: &mut Vec<Bucket>) -> bool {
    buckets.sort_by(|a, b| a.bound.partial_cmp(&b.bound).unwrap_or(std::cmp::Ordering::Equal));
    if buckets.last().is_none_or(|b| b.bound != f64::INFINITY) {
        return false;
    }
    buckets.dedup_by(|later, kept| {
        let same = later.bound == kept.bound;
        if same {
            kept.count += later.count;
        }
        same
    });
    true
}

/// Lowest and highest bound that needed repair, and the largest decrease.
type Repair = (f64, f64, f64);

/// Counts must not decrease; tiny differences either way are ignored, larger decreases are removed and reported.
fn make_monotonic(buckets: &mut [Bucket]) -> Option<Repair> {
    let mut repair: Option<Repair> = None;
    let mut before = buckets.first()?.count;
    for b in buckets.iter_mut().skip(1) {
        if b.count == before {
            continue;
        }
        if almost_equal(before, b.count, SMALL_DELTA) {
            b.count = before;
        } else if b.count < before {
            let (low, high, diff) = repair.unwrap_or((f64::INFINITY, f64::NEG_INFINITY, 0.0));
            repair = Some((low.min(b.bound), high.max(b.bound), diff.max(before - b.count)));
            b.count = before;
        } else {
            before = b.count;
        }
    }
    repair
}

/// The `q`-quantile, interpolated linearly within its bucket.
fn bucket_quantile(q: f64, buckets: &mut Vec<Bucket>) -> (f64, Option<Repair>) {
    if q.is_nan() {
        return (f64::NAN, None);
    }
    if !(0.0..=1.0).contains(&q) {
        return (if q < 0.0 { f64::NEG_INFINITY } else { f64::INFINITY }, None);
    }
    if !prepare(buckets) {
        return (f64::NAN, None);
    }
    let repair = make_monotonic(buckets);
    (quantile_of_prepared(q, buckets).unwrap_or(f64::NAN), repair)
}

fn quantile_of_prepared(q: f64, buckets: &[Bucket]) -> Option<f64> {
    let (last, finite) = buckets.split_last()?;
    let highest = finite.last()?;
    if last.count == 0.0 {
        return None;
    }
    let rank = q * last.count;
    // Counts that are NaN are never reached, so a binary search must look at them as the reference does.
    let at = finite.partition_point(|b| !matches!(b.count.partial_cmp(&rank), Some(o) if o.is_ge()));
    let Some(bucket) = finite.get(at) else {
        return Some(highest.bound);
    };
    let Some(before) = at.checked_sub(1).and_then(|i| finite.get(i)) else {
        let from_zero = bucket.bound > 0.0;
        return Some(if from_zero {
            bucket.bound * (rank / bucket.count)
        } else {
            bucket.bound
        });
    };
    let width = bucket.bound - before.bound;
    Some(before.bound + width * ((rank - before.count) / (bucket.count - before.count)))
}

/// The share of observations between two bounds, interpolated linearly within buckets.
fn bucket_fraction(lower: f64, upper: f64, buckets: &mut Vec<Bucket>) -> f64 {
    if !prepare(buckets) {
        return f64::NAN;
    }
    let total = buckets.last().map_or(0.0, |b| b.count);
    if total == 0.0 || lower.is_nan() || upper.is_nan() {
        return f64::NAN;
    }
    if lower >= upper {
        return 0.0;
    }
    let rank = |v: f64| rank_of(v, buckets).map_or(total, |r| if r > total { total } else { r });
    (rank(upper) - rank(lower)) / total
}

/// How many observations are below `v`; `None` if it is beyond all buckets.
fn rank_of(v: f64, buckets: &[Bucket]) -> Option<f64> {
    let first_bound = buckets.first()?.bound;
    let (mut from, mut rank) = (
        if first_bound <= 0.0 {
            f64::NEG_INFINITY
        } else {
            0.0
        },
        0.0,
    );
    for b in buckets {
        if from >= v {
            return Some(rank);
        }
        if b.bound > v {
            // There is no telling where in an infinite bucket the value lies.
            let all = from == f64::NEG_INFINITY;
            return Some(if all {
                b.count
            } else {
                rank + (b.count - rank) * (v - from) / (b.bound - from)
            });
        }
        (from, rank) = (b.bound, b.count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets(pairs: &[(f64, f64)]) -> Vec<Bucket> {
        pairs
            .iter()
            .map(|&(bound, count)| Bucket { bound, count })
            .collect()
    }

    #[test]
    fn quantiles_interpolate_within_their_bucket() {
        let all = [(0.1, 10.0), (0.5, 30.0), (1.0, 40.0), (f64::INFINITY, 40.0)];
        let q = |q| bucket_quantile(q, &mut buckets(&all)).0;
        assert_eq!(q(0.125), 0.05);
        assert_eq!(q(0.5), 0.1 + 0.4 * 0.5);
        assert_eq!(q(1.0), 1.0);
        assert_eq!((q(-1.0), q(2.0)), (f64::NEG_INFINITY, f64::INFINITY));
    }

    #[test]
    fn without_an_infinite_bucket_or_observations_there_is_no_quantile() {
        assert!(bucket_quantile(0.5, &mut buckets(&[(1.0, 1.0)])).0.is_nan());
        assert!(
            bucket_quantile(0.5, &mut buckets(&[(1.0, 0.0), (f64::INFINITY, 0.0)]))
                .0
                .is_nan()
        );
        assert!(
            bucket_quantile(0.5, &mut buckets(&[(f64::INFINITY, 3.0)]))
                .0
                .is_nan()
        );
    }

    #[test]
    fn decreases_are_repaired_and_told_but_rounding_errors_are_not() {
        let (_, repair) = bucket_quantile(
            0.5,
            &mut buckets(&[(1.0, 10.0), (2.0, 4.0), (f64::INFINITY, 12.0)]),
        );
        assert_eq!(repair, Some((2.0, 2.0, 6.0)));
        let tiny = 10.0 - 1e-13;
        assert_eq!(
            bucket_quantile(0.5, &mut buckets(&[(1.0, 10.0), (f64::INFINITY, tiny)])).1,
            None
        );
    }

    #[test]
    fn fractions_count_from_the_bucket_edges() {
        let all = [(1.0, 10.0), (2.0, 30.0), (f64::INFINITY, 40.0)];
        let f = |l, u| bucket_fraction(l, u, &mut buckets(&all));
        assert_eq!(f(0.0, 1.0), 0.25);
        assert_eq!(f(1.5, f64::INFINITY), 0.5);
        assert_eq!(f(2.0, 1.0), 0.0);
    }
}
