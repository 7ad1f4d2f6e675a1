//! Walking the tree.

use super::{DurationArg, DurationExpr, DurationKind, Expr, MatrixSelector, Span, VectorSelector};

impl Expr {
    /// The expressions directly below, in Prometheus' order: an aggregation's vector comes before its parameter.
    pub fn children(&self) -> impl Iterator<Item = &Self> {
        let (first, second, rest): (Option<&Self>, Option<&Self>, &[Self]) = match self {
            Self::Aggregate(e) => (Some(&e.expr), e.param.as_ref(), &[]),
            Self::Binary(e) => (Some(&e.lhs), Some(&e.rhs), &[]),
            Self::Call(e) => (None, None, &e.args),
            Self::Paren(e) => (Some(&e.expr), None, &[]),
            Self::Subquery(e) => (Some(&e.expr), None, &[]),
            Self::Unary(e) => (Some(&e.expr), None, &[]),
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => (None, None, &[]),
        };
        first.into_iter().chain(second).chain(rest)
    }

    /// The expressions directly below, to change them.
    pub fn children_mut(&mut self) -> impl Iterator<Item = &mut Self> {
        let (first, second, rest): (Option<&mut Self>, Option<&mut Self>, &mut [Self]) = match self {
            Self::Aggregate(e) => (Some(&mut e.expr), e.param.as_mut(), &mut []),
            Self::Binary(e) => (Some(&mut e.lhs), Some(&mut e.rhs), &mut []),
            Self::Call(e) => (None, None, &mut e.args),
            Self::Paren(e) => (Some(&mut e.expr), None, &mut []),
            Self::Subquery(e) => (Some(&mut e.expr), None, &mut []),
            Self::Unary(e) => (Some(&mut e.expr), None, &mut []),
            Self::Matrix(_) | Self::Number(_) | Self::String(_) | Self::Vector(_) => (None, None, &mut []),
        };
        first.into_iter().chain(second).chain(rest)
    }

    /// Visits the expression and all below it, parents first, with the path of expressions that leads there.
    pub fn visit<'e>(&'e self, visitor: &mut impl FnMut(&'e Self, &[&'e Self])) {
        fn go<'e>(expr: &'e Expr, path: &mut Vec<&'e Expr>, visitor: &mut impl FnMut(&'e Expr, &[&'e Expr])) {
            visitor(expr, path);
            path.push(expr);
            expr.children().for_each(|child| go(child, path, visitor));
            path.pop();
        }
        go(self, &mut Vec::new(), visitor);
    }

    /// All selectors from left to right, each with the range selector it belongs to.
    pub fn selectors(&self) -> Vec<(&VectorSelector, Option<&MatrixSelector>)> {
        let mut found = Vec::new();
        self.visit(&mut |expr, _| match expr {
            Self::Vector(selector) => found.push((selector.as_ref(), None)),
            Self::Matrix(matrix) => found.push((&matrix.selector, Some(matrix.as_ref()))),
            _ => {}
        });
        found
    }

    /// Forgets where expressions came from, so that two trees can be compared by meaning.
    pub fn clear_spans(&mut self) {
        let span = match self {
            Self::Aggregate(e) => &mut e.span,
            Self::Binary(e) => {
                e.op_span = Span::default();
                &mut e.span
            }
            Self::Call(e) => &mut e.span,
            Self::Matrix(e) => {
                e.selector.span = Span::default();
                e.range.clear_spans();
                e.selector.offset.clear_spans();
                &mut e.span
            }
            Self::Number(e) => &mut e.span,
            Self::Paren(e) => &mut e.span,
            Self::String(e) => &mut e.span,
            Self::Subquery(e) => {
                e.range.clear_spans();
                e.offset.clear_spans();
                e.step.iter_mut().for_each(DurationArg::clear_spans);
                &mut e.span
            }
            Self::Unary(e) => &mut e.span,
            Self::Vector(e) => {
                e.offset.clear_spans();
                &mut e.span
            }
        };
        *span = Span::default();
        self.children_mut().for_each(Self::clear_spans);
    }
}

impl DurationArg {
    fn clear_spans(&mut self) {
        if let Self::Expr(expr) = self {
            expr.clear_spans();
        }
    }
}

impl DurationExpr {
    fn clear_spans(&mut self) {
        self.span = Span::default();
        match &mut self.kind {
            DurationKind::Number(number) => number.span = Span::default(),
            DurationKind::Step | DurationKind::Range => {}
            DurationKind::Negate(inner) | DurationKind::Paren(inner) => inner.clear_spans(),
            DurationKind::MinOf(a, b) | DurationKind::MaxOf(a, b) | DurationKind::Binary(_, a, b) => {
                a.clear_spans();
                b.clear_spans();
            }
        }
    }
}
