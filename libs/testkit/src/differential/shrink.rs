//! Smaller expressions, to find the smallest that still shows a difference.

use koios_promql::{Expr, ParenExpr, VectorSelector};

/// Expressions that are like this one but smaller; some may not be valid.
pub(super) fn smaller(expr: &Expr) -> Vec<Expr> {
    let mut found = stripped(expr);
    for (i, child) in expr.children().enumerate() {
        let same_type = below(child)
            .filter(|e| e.value_type() == child.value_type())
            .cloned();
        for replacement in same_type.chain(smaller(child)) {
            let mut copy = expr.clone();
            if let Some(place) = copy.children_mut().nth(i) {
                *place = in_parens(replacement);
            }
            found.push(copy);
        }
    }
    found
}

fn in_parens(expr: Expr) -> Expr {
    match expr {
        Expr::Binary(_) | Expr::Unary(_) | Expr::Number(_) => Expr::Paren(Box::new(ParenExpr {
            span: expr.span(),
            expr,
        })),
        expr => expr,
    }
}

/// All expressions below one.
fn below(expr: &Expr) -> impl Iterator<Item = &Expr> {
    let mut all = Vec::new();
    expr.visit(&mut |e, path| {
        if !path.is_empty() {
            all.push(e);
        }
    });
    all.into_iter()
}

/// The expression with a modifier, a matcher or a label less.
fn stripped(expr: &Expr) -> Vec<Expr> {
    let mut found = Vec::new();
    match expr {
        Expr::Vector(selector) => {
            found.extend(
                stripped_selectors(selector)
                    .into_iter()
                    .map(|s| Expr::Vector(Box::new(s))),
            );
        }
        Expr::Matrix(matrix) => {
            found.extend(stripped_selectors(&matrix.selector).into_iter().map(|selector| {
                let mut copy = matrix.clone();
                copy.selector = selector;
                Expr::Matrix(copy)
            }));
        }
        Expr::Subquery(subquery) => {
            let mut copy = subquery.clone();
            (copy.at, copy.offset) = (None, Default::default());
            found.push(Expr::Subquery(copy));
        }
        Expr::Aggregate(aggregate) => {
            for i in 0..aggregate.grouping.len() {
                let mut copy = aggregate.clone();
                copy.grouping.remove(i);
                found.push(Expr::Aggregate(copy));
            }
        }
        Expr::Binary(binary) => {
            let mut copy = binary.clone();
            if let Some(matching) = &mut copy.matching
                && matching.include.pop().is_some()
            {
                found.push(Expr::Binary(copy));
            }
        }
        Expr::Paren(paren) => found.push(paren.expr.clone()),
        Expr::Call(_) | Expr::Number(_) | Expr::String(_) | Expr::Unary(_) => {}
    }
    found.retain(|e| e != expr);
    found
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
