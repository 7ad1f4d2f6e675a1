//! What a query will hold at least, told from its text alone, so that the worst are refused before anything is read.

use koios_promql::{Ast, DurationArg, DurationContext, Expr, QueryError, with_durations};

/// The resolution of subqueries that do not name one, milliseconds; the engine's default.
const SUBQUERY_STEP_MS: i128 = 60_000;

/// Refuses a query whose subqueries have more than `samples_max` points even if they select a single series.
pub(crate) fn check(ast: &Ast, context: DurationContext, samples_max: u64) -> Result<(), QueryError> {
    let ast = with_durations(ast, context).map_err(|e| QueryError::BadData(e.to_string()))?;
    let points = subquery_points(&ast, i128::from(context.range_ms));
    if points <= i128::from(samples_max) {
        return Ok(());
    }
    Err(QueryError::LimitExceeded(format!(
        "query would load too many samples (limit {samples_max}): its subqueries have {points} points per series"
    )))
}

/// The points of all subqueries for one series each, when evaluated over `span_ms`.
fn subquery_points(ast: &Ast, span_ms: i128) -> i128 {
    let mut points = 0;
    let mut left = vec![(ast.root(), span_ms)];
    while let Some((expr, span_ms)) = left.pop() {
        let mut inner_span_ms = span_ms;
        if let Expr::Subquery(s) = expr.expr() {
            let millis = |d: &DurationArg| i128::from(d.millis().unwrap_or(0));
            inner_span_ms = if s.at.is_some() { 0 } else { span_ms } + millis(&s.range);
            let step_ms = s.step.as_ref().map_or(SUBQUERY_STEP_MS, millis).max(1);
            points += inner_span_ms / step_ms + 1;
        }
        left.extend(expr.children().map(|child| (child, inner_span_ms)));
    }
    points
}

#[cfg(test)]
mod tests {
    use koios_promql::parse;

    use super::*;

    fn points(query: &str) -> i128 {
        subquery_points(&parse(query).unwrap(), 3_600_000)
    }

    #[test]
    fn i12_nested_subqueries_add_up() {
        assert_eq!(points("m + rate(m[5m])"), 0);
        assert_eq!(points("rate(m[1h:1m])"), 121);
        assert_eq!(points("rate(m[1h:1m] @ 0)"), 61);
        assert_eq!(points("max_over_time(rate(m[5m])[1h:]) + rate(m[1h:1m])"), 242);
        assert_eq!(points("max_over_time(max_over_time(m[1h:1m])[1h:1m])"), 121 + 181);
        let context = DurationContext {
            step_ms: 0,
            range_ms: 0,
        };
        let hostile = parse("count_over_time(vector(1)[5y+5y:1ms])").unwrap();
        let text = check(&hostile, context, 50_000_000).unwrap_err().to_string();
        assert!(
            text.starts_with("query would load too many samples (limit 50000000)"),
            "{text}"
        );
    }
}
