//! Smaller queries, to find the smallest that still shows a difference.

use koios_promql::{Ast, Expr, ExprRef, ParenExpr, VectorSelector};

/// Queries that are like this one but smaller; some may not be valid.
pub(super) fn smaller(ast: &Ast) -> Vec<Ast> {
    let root = ast.root().id();
    let mut found = Vec::new();
    for part in ast.root().below() {
        if part.id() == root {
            found.extend(stripped(part));
            continue;
        }
        let same_type = part
            .below()
            .filter(|e| e.id() != part.id() && e.value_type() == part.value_type())
            .map(ExprRef::to_ast);
        let replacements = stripped(part).into_iter().chain(same_type);
        found.extend(replacements.map(|smaller| ast.with(part.id(), &in_parens(smaller))));
    }
    found
}

fn in_parens(mut ast: Ast) -> Ast {
    let (expr, span) = (ast.root().id(), ast.span());
    if matches!(
        ast.root().expr(),
        Expr::Binary(_) | Expr::Unary(_) | Expr::Number(_)
    ) {
        ast.push(Expr::Paren(Box::new(ParenExpr { span, expr })));
    }
    ast
}

/// The expression with a modifier, a matcher or a label less.
fn stripped(expr: ExprRef<'_>) -> Vec<Ast> {
    let mut found = Vec::new();
    match expr.expr() {
        Expr::Vector(selector) => {
            let fewer = stripped_selectors(selector).into_iter();
            found.extend(fewer.map(|s| with(expr, Expr::Vector(Box::new(s)))));
        }
        Expr::Matrix(matrix) => {
            found.extend(stripped_selectors(&matrix.selector).into_iter().map(|selector| {
                let mut copy = matrix.clone();
                copy.selector = selector;
                with(expr, Expr::Matrix(copy))
            }));
        }
        Expr::Subquery(subquery) => {
            let mut copy = subquery.clone();
            (copy.at, copy.offset) = (None, Default::default());
            if copy != *subquery {
                found.push(with(expr, Expr::Subquery(copy)));
            }
        }
        Expr::Aggregate(aggregate) => {
            for i in 0..aggregate.grouping.len() {
                let mut copy = aggregate.clone();
                copy.grouping.remove(i);
                found.push(with(expr, Expr::Aggregate(copy)));
            }
        }
        Expr::Binary(binary) => {
            let mut copy = binary.clone();
            if let Some(matching) = &mut copy.matching
                && matching.include.pop().is_some()
            {
                found.push(with(expr, Expr::Binary(copy)));
            }
        }
        Expr::Paren(paren) => found.push(expr.at(paren.expr).to_ast()),
        Expr::Call(_) | Expr::Number(_) | Expr::String(_) | Expr::Unary(_) => {}
    }
    found
}

/// An expression with something else in its place, made from it.
fn with(expr: ExprRef<'_>, changed: Expr) -> Ast {
    let mut ast = expr.ast().clone();
    *ast.expr_mut(expr.id()) = changed;
    ast.at(expr.id()).to_ast()
}

fn stripped_selectors(selector: &VectorSelector) -> Vec<VectorSelector> {
    let mut found = Vec::new();
    if selector.at.is_some() || !selector.offset.is_zero() {
        let mut copy = selector.clone();
        (copy.at, copy.offset) = (None, Default::default());
        found.push(copy);
    }
    for i in 0..selector.matchers.len() {
        let mut copy = selector.clone();
        let mut matchers = selector.matchers.to_vec();
        if matchers.remove(i).name() != koios_model::METRIC_NAME {
            copy.matchers = matchers.into();
            found.push(copy);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use koios_promql::parse;

    use super::*;

    #[test]
    fn smaller_queries_lack_a_part() {
        let ast = parse("sum by (a, b) (rate(x{c=\"d\"}[5m] offset 1m)) + (y * 2)").unwrap();
        let found: Vec<String> = smaller(&ast).iter().map(ToString::to_string).collect();
        for wanted in [
            "sum by (b) (rate(x{c=\"d\"}[5m] offset 1m)) + (y * 2)",
            "sum by (a, b) (rate(x[5m] offset 1m)) + (y * 2)",
            "sum by (a, b) (rate(x{c=\"d\"}[5m])) + (y * 2)",
            "rate(x{c=\"d\"}[5m] offset 1m) + (y * 2)",
            "sum by (a, b) (rate(x{c=\"d\"}[5m] offset 1m)) + y",
        ] {
            assert!(found.iter().any(|query| query == wanted), "{wanted}: {found:#?}");
        }
        assert!(found.iter().all(|query| parse(query).is_ok()), "{found:#?}");
    }
}
