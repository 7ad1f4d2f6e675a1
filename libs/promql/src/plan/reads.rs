//! Which reads of storage a plan needs: equal selectors whose time ranges overlap share one.

use std::sync::Arc;

use koios_model::{METRIC_NAME, MatchOp, Matcher, Matchers, TimeRange};

use super::{Buckets, InfoSource, Planner, Scope, SelectNode, millis};
use crate::ast::{Call, Expr, RangeEdges, VectorSelector};
use crate::error::QueryError;
use crate::queryable::{SelectHints, SelectRequest};

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
            grouping: grouping.to_vec(),
            by,
            ..SelectHints::default()
        };
        let shared = |r: &SelectRequest| r.matchers == matchers && r.range.overlaps(&range);
        if let Some(i) = self.selects.iter().position(shared) {
            if let Some(request) = self.selects.get_mut(i) {
                share(request, range, &hints);
            }
            return i;
        }
        self.selects.push(SelectRequest {
            matchers,
            range,
            hints,
        });
        self.selects.len() - 1
    }

    /// The read for the info series of `info()`: those the second argument names, at the times of the first selector
    /// in the first argument.
    pub(super) fn info(&mut self, c: &Call, scope: Scope<'_>) -> Result<InfoSource, QueryError> {
        let (at, offset_ms) = match c.args.first() {
            Some(arg) => self.reference_time(arg)?.unwrap_or((None, 0)),
            None => (None, 0),
        };
        let written = match c.args.get(1).map(Expr::unwrap_parens) {
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

    /// The `@` time and the offset that hold for the first selector inside `expr`.
    fn reference_time(&self, expr: &Expr) -> Result<Option<(Option<i64>, i64)>, QueryError> {
        let mut path: Vec<&Expr> = Vec::new();
        let mut found = None;
        expr.visit(&mut |expr, above| {
            if found.is_none() && matches!(expr, Expr::Vector(_) | Expr::Matrix(_)) {
                path.extend(above);
                found = Some(expr);
            }
        });
        let (mut at, mut offset_ms) = match found {
            Some(Expr::Vector(v)) => (self.at(v.at), millis(&v.offset)?),
            Some(Expr::Matrix(m)) => (self.at(m.selector.at), millis(&m.selector.offset)?),
            _ => return Ok(None),
        };
        for around in path.into_iter().rev() {
            if let Expr::Subquery(s) = around
                && at.is_none()
            {
                (at, offset_ms) = (self.at(s.at), offset_ms.saturating_add(millis(&s.offset)?));
            }
        }
        Ok(Some((at, offset_ms)))
    }
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

/// Widens a read so that it serves one more selector; hints that do not fit both are dropped.
fn share(request: &mut SelectRequest, range: TimeRange, hints: &SelectHints) {
    request.range = request.range.union(&range);
    let kept = &mut request.hints;
    kept.start_ms = request.range.min;
    kept.end_ms = request.range.max;
    kept.range_ms = kept.range_ms.max(hints.range_ms);
    if kept.step_ms != hints.step_ms {
        kept.step_ms = 0;
    }
    if kept.function != hints.function {
        kept.function = None;
    }
    if kept.grouping != hints.grouping || kept.by != hints.by {
        kept.grouping.clear();
        kept.by = false;
    }
}
