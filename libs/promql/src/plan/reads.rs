//! Which reads of storage a plan needs: equal selectors whose time ranges overlap share one.

use std::hash::BuildHasher;
use std::sync::Arc;

use koios_model::{METRIC_NAME, MatchOp, Matcher, Matchers, TimeRange};

use super::{Buckets, InfoSource, Planner, Scope, SelectNode, millis, nth_argument};
use crate::ast::{Ast, Expr, ExprRef, RangeEdges, VectorSelector};
use crate::error::QueryError;
use crate::queryable::{SelectHints, SelectRequest};
use crate::signatures::FunctionId;

impl Planner {
    pub(super) fn select(
        &mut self,
        v: &VectorSelector,
        scope: Scope<'_>,
        range_ms: i64,
    ) -> Result<SelectNode, QueryError> {
        let offset_ms = millis(&v.offset)?;
        let at = self.at(v.at);
        let times = self.sample_times(scope.times, at, offset_ms, range_ms, v.edges);
        let source = self.source(&v.matchers, times, range_ms, scope);
        Ok(SelectNode {
            source,
            matchers: Arc::clone(&v.matchers),
            offset_ms,
            at,
            edges: v.edges,
            statistics_only: scope.buckets == Buckets::Unneeded,
            span: v.span,
        })
    }

    /// The closed range of sample times a selector looks at.
    fn sample_times(
        &self,
        times: TimeRange,
        at: Option<i64>,
        offset_ms: i64,
        range_ms: i64,
        edges: RangeEdges,
    ) -> TimeRange {
        let lookback = self.context.lookback_ms;
        let base = at.map_or(times, |t| TimeRange::new(t, t));
        let reach = match (range_ms, edges) {
            (0, _) => lookback,
            (_, RangeEdges::Plain) => range_ms,
            (_, RangeEdges::Anchored | RangeEdges::Smoothed) => range_ms.saturating_add(lookback),
        };
        let ahead = if edges == RangeEdges::Smoothed {
            lookback
        } else {
            0
        };
        // Ranges are open on the left, hence the extra millisecond.
        let min = base
            .min
            .saturating_sub(offset_ms)
            .saturating_sub(reach)
            .saturating_add(1);
        let max = base.max.saturating_sub(offset_ms).saturating_add(ahead);
        TimeRange::new(min, max)
    }

    /// The read that covers a selector, shared with an earlier one if possible.
    fn source(&mut self, matchers: &[Matcher], range: TimeRange, range_ms: i64, scope: Scope<'_>) -> usize {
        let mut matchers = matchers.to_vec();
        matchers.sort_by(|a, b| (a.name(), a.op(), a.value()).cmp(&(b.name(), b.op(), b.value())));
        matchers.dedup();
        let matchers = Matchers(matchers);
        let (grouping, by) = scope.grouping.unwrap_or((&[], false));
        let hints = SelectHints {
            start_ms: range.min,
            end_ms: range.max,
            step_ms: scope.step_ms,
            range_ms,
            function: scope.function,
            histogram_sums: range_ms > 0 && scope.function.is_some_and(adds_up),
            grouping: grouping.to_vec(),
            by,
            ..SelectHints::default()
        };
        let hash = self.same_matchers.hasher().hash_one(&matchers);
        let alike = self.same_matchers.entry(hash).or_default();
        for &i in alike.iter() {
            if let Some(request) = self.selects.get_mut(i)
                && request.matchers == matchers
                && request.range.overlaps(&range)
            {
                share(request, range, &hints);
                return i;
            }
        }
        let source = self.selects.len();
        alike.push(source);
        self.selects.push(SelectRequest {
            matchers,
            range,
            hints,
        });
        source
    }

    /// The read for the info series of `info()`: those the second argument names, at the times of the first selector
    /// in the first argument.
    pub(super) fn info(&mut self, call: ExprRef<'_>, scope: Scope<'_>) -> Result<InfoSource, QueryError> {
        if self.reference_times.is_empty() {
            self.reference_times = self.reference_times_of(call.ast())?;
        }
        let base = call.children().next();
        let reference = base.and_then(|arg| *self.reference_times.get(arg.id().place())?);
        let ReferenceTime { at, offset_ms } = reference.unwrap_or_default();
        let written = match nth_argument(call, 1) {
            Some(Expr::Vector(v)) => v.matchers.to_vec(),
            _ => vec![Matcher::equal(METRIC_NAME, TARGET_INFO)],
        };
        let (names, labels): (Vec<_>, Vec<_>) = written.into_iter().partition(|m| m.name() == METRIC_NAME);
        let mut matchers = info_name_matchers(names)?;
        matchers.extend(labels);
        let times = self.sample_times(scope.times, at, offset_ms, 0, RangeEdges::Plain);
        let source = self.source(&matchers, times, 0, scope.inside(Some("info")));
        Ok(InfoSource {
            source,
            offset_ms,
            at,
        })
    }

    /// For each expression what holds for the first selector inside it, if there is one.
    fn reference_times_of(&self, ast: &Ast) -> Result<Vec<Option<ReferenceTime>>, QueryError> {
        let mut times: Vec<Option<ReferenceTime>> = Vec::with_capacity(ast.len());
        for expr in ast.exprs() {
            let time = match expr {
                Expr::Vector(v) => Some(self.reference_time(v)?),
                Expr::Matrix(m) => Some(self.reference_time(&m.selector)?),
                other => other.children().find_map(|child| *times.get(child.place())?),
            };
            times.push(match (expr, time) {
                (Expr::Subquery(s), Some(ReferenceTime { at: None, offset_ms })) => Some(ReferenceTime {
                    at: self.at(s.at),
                    offset_ms: offset_ms.saturating_add(millis(&s.offset)?),
                }),
                (_, time) => time,
            });
        }
        Ok(times)
    }

    fn reference_time(&self, selector: &VectorSelector) -> Result<ReferenceTime, QueryError> {
        Ok(ReferenceTime {
            at: self.at(selector.at),
            offset_ms: millis(&selector.offset)?,
        })
    }
}

/// The `@` time and the offset that hold for a selector.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReferenceTime {
    at: Option<i64>,
    offset_ms: i64,
}

/// The info metric `info()` uses unless told otherwise.
const TARGET_INFO: &str = "target_info";

/// The matchers on info metrics' names: as written if one of them is positive, else all `*_info` metrics that the
/// negative ones allow, else `target_info`.
pub(crate) fn info_name_matchers(written: Vec<Matcher>) -> Result<Vec<Matcher>, QueryError> {
    if written.is_empty() {
        return Ok(vec![Matcher::equal(METRIC_NAME, TARGET_INFO)]);
    }
    if written
        .iter()
        .any(|m| matches!(m.op(), MatchOp::Equal | MatchOp::Regex))
    {
        return Ok(written);
    }
    let any_info = Matcher::new(MatchOp::Regex, METRIC_NAME, ".+_info")
        .map_err(|e| QueryError::internal(format!("info metric matcher: {e}")))?;
    Ok(std::iter::once(any_info).chain(written).collect())
}

/// Whether a function adds up native histograms over time.
fn adds_up(function: &str) -> bool {
    let sums = [FunctionId::SumOverTime, FunctionId::AvgOverTime];
    sums.iter().any(|f| f.name() == function)
}

/// Widens a read so that it serves one more selector; hints that do not fit both are dropped.
fn share(request: &mut SelectRequest, range: TimeRange, hints: &SelectHints) {
    request.range = request.range.union(&range);
    let kept = &mut request.hints;
    kept.start_ms = request.range.min;
    kept.end_ms = request.range.max;
    // The finest that any of them asks for: it says how coarse the samples may be.
    kept.range_ms = kept.range_ms.min(hints.range_ms);
    kept.step_ms = match (kept.step_ms, hints.step_ms) {
        (0, step) | (step, 0) => step,
        (a, b) => a.min(b),
    };
    if kept.function != hints.function {
        kept.function = None;
    }
    kept.histogram_sums |= hints.histogram_sums;
    if kept.grouping != hints.grouping || kept.by != hints.by {
        kept.grouping.clear();
        kept.by = false;
    }
}
