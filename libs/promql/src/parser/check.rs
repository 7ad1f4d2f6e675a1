//! The type check: what the grammar alone cannot tell.

use std::collections::HashSet;

use koios_model::METRIC_NAME;

use super::{ParseError, Result};
use crate::ast::{
    AggregateOp, Ast, BinaryExpr, Call, Cardinality, Expr, ExprId, ExprRef, FillValues, Span, SubqueryExpr,
    UnaryExpr, ValueType, VectorMatching, VectorSelector, Way,
};
use crate::signatures::FunctionId;
use crate::string_literal::Quoted;

/// Checks a tree: each expression in part before and in part after what is below it, as Prometheus does, so that of
/// several mistakes the same is told.
pub(super) fn check(query: &str, ast: &mut Ast) -> Result<()> {
    let checker = Checker { query };
    let mut way = Way::from(ast.root().id().place());
    while let Some((place, done, last)) = way.next(|place, i| {
        let child = ast[ExprId::at(place)].child(i);
        child.map(ExprId::place)
    }) {
        let id = ExprId::at(place);
        match done.checked_sub(1) {
            None => checker.before(ast, id)?,
            Some(i) => checker.child(ast, id, i)?,
        }
        if last {
            checker.after(ast, id)?;
        }
    }
    Ok(())
}

struct Checker<'a> {
    query: &'a str,
}

impl Checker<'_> {
    /// What is told before anything about what is below an expression.
    fn before(&self, ast: &mut Ast, id: ExprId) -> Result<()> {
        match &ast[id] {
            Expr::Matrix(e) => self.selector(&e.selector),
            Expr::Vector(e) => self.selector(e),
            Expr::Call(e) => {
                self.arg_count(e)?;
                if e.function != FunctionId::Info {
                    return Ok(());
                }
                match (e.span, e.args.get(1).copied()) {
                    (span, Some(labels)) => self.info_selector(ast, span, labels),
                    (_, None) => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The type of a child, which is itself in order: number `i` in Prometheus' order.
    fn child(&self, ast: &Ast, id: ExprId, i: usize) -> Result<()> {
        let Some(child) = ast[id].child(i) else {
            return Ok(());
        };
        let child = ast.at(child);
        match &ast[id] {
            Expr::Aggregate(_) if i == 0 => self.expect(child, ValueType::Vector, "aggregation expression"),
            Expr::Aggregate(e) => {
                let want = if e.op == AggregateOp::CountValues {
                    ValueType::String
                } else {
                    ValueType::Scalar
                };
                self.expect(child, want, "aggregation parameter")
            }
            Expr::Call(e) => {
                let signature = e.function.signature();
                let Some(want) = signature.arg(i) else {
                    return Ok(());
                };
                self.expect(child, want, &format!("call to function {:?}", signature.name))
            }
            _ => Ok(()),
        }
    }

    /// What is told once all below an expression is in order.
    fn after(&self, ast: &mut Ast, id: ExprId) -> Result<()> {
        match &ast[id] {
            Expr::Binary(_) => self.binary(ast, id),
            Expr::Subquery(e) => self.subquery(e, ast.at(e.expr).value_type()),
            Expr::Unary(e) => self.unary(e, ast.at(e.expr).value_type()),
            _ => Ok(()),
        }
    }

    fn error<T>(&self, span: Span, message: impl Into<String>) -> Result<T> {
        Err(ParseError {
            span,
            position: span.position_in(self.query),
            message: message.into(),
        })
    }

    fn expect(&self, expr: ExprRef<'_>, want: ValueType, context: &str) -> Result<()> {
        let got = expr.value_type();
        if got == want {
            return Ok(());
        }
        let (want, got) = (want.documented(), got.documented());
        self.error(
            expr.expr().span(),
            format!("expected type {want} in {context}, got {got}"),
        )
    }

    fn binary(&self, ast: &mut Ast, id: ExprId) -> Result<()> {
        let Expr::Binary(e) = &ast[id] else { return Ok(()) };
        let operands = [e.lhs, e.rhs].map(|operand| ast.at(operand));
        let [left, right] = operands.map(ExprRef::value_type);
        let scalars = left == ValueType::Scalar && right == ValueType::Scalar;
        if e.return_bool && !e.op.is_comparison() {
            return self.error(
                e.op_span,
                "bool modifier can only be used on comparison operators",
            );
        }
        if e.op.is_comparison() && !e.return_bool && scalars {
            return self.error(e.op_span, "comparisons between scalars must use BOOL modifier");
        }
        if let Some(matching) = &e.matching {
            self.groups_apart_from_matching(matching, e.op_span)?;
        }
        for operand in operands {
            if !matches!(operand.value_type(), ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types";
                return self.error(operand.expr().span(), message);
            }
        }
        let Expr::Binary(e) = ast.expr_mut(id) else {
            return Ok(());
        };
        if left == ValueType::Vector && right == ValueType::Vector {
            self.vectors(e)
        } else {
            self.with_scalar(e)
        }
    }

    fn groups_apart_from_matching(&self, matching: &VectorMatching, op: Span) -> Result<()> {
        if !matching.on {
            return Ok(());
        }
        let included: HashSet<&String> = matching.include.iter().collect();
        match matching.labels.iter().find(|label| included.contains(label)) {
            Some(label) => {
                let label = Quoted(label);
                self.error(
                    op,
                    format!("label {label} must not occur in ON and GROUP clause at once"),
                )
            }
            None => Ok(()),
        }
    }

    /// Both operands are vectors.
    fn vectors(&self, e: &mut BinaryExpr) -> Result<()> {
        let Some(matching) = &mut e.matching else {
            return Ok(());
        };
        if !e.op.is_set() {
            return Ok(());
        }
        if matching.card != Cardinality::OneToOne {
            return self.error(
                e.span,
                format!("no grouping allowed for {:?} operation", e.op.as_str()),
            );
        }
        if matching.fill != FillValues::default() {
            return self.error(e.span, "filling in missing series not allowed for set operators");
        }
        matching.card = Cardinality::ManyToMany;
        Ok(())
    }

    /// At least one operand is a scalar.
    fn with_scalar(&self, e: &mut BinaryExpr) -> Result<()> {
        if let Some(matching) = e.matching.take() {
            if !matching.labels.is_empty() {
                return self.error(e.span, "vector matching only allowed between instant vectors");
            }
            if matching.fill != FillValues::default() {
                let message = "filling in missing series only allowed between instant vectors";
                return self.error(e.span, message);
            }
        }
        if e.op.is_set() {
            let op = e.op.as_str();
            return self.error(
                e.span,
                format!("set operator {op:?} not allowed in binary scalar expression"),
            );
        }
        Ok(())
    }

    fn arg_count(&self, e: &Call) -> Result<()> {
        let signature = e.function.signature();
        let (got, name) = (e.args.len(), signature.name);
        let (min, max) = (signature.args_min, signature.args_max);
        let wrong = if signature.is_fixed() {
            (got != min).then(|| format!("expected {min} argument(s)"))
        } else if got < min {
            Some(format!("expected at least {min} argument(s)"))
        } else {
            max.filter(|max| got > *max)
                .map(|max| format!("expected at most {max} argument(s)"))
        };
        match wrong {
            Some(wrong) => self.error(e.span, format!("{wrong} in call to {name:?}, got {got}")),
            None => Ok(()),
        }
    }

    /// `info`'s second argument selects labels, not series: no name, and any matcher may match the empty string.
    fn info_selector(&self, ast: &mut Ast, call: Span, labels: ExprId) -> Result<()> {
        let got = ast.at(labels).value_type();
        if got != ValueType::Vector {
            let (want, got) = (ValueType::Vector.documented(), got.documented());
            let message = format!("expected type {want} in call to function \"info\", got {got}");
            return self.error(call, message);
        }
        match ast.expr_mut(labels) {
            Expr::Vector(selector) if selector.name.is_some() => self.error(
                selector.span,
                "expected label selectors only, got vector selector instead",
            ),
            Expr::Vector(selector) => {
                selector.info_labels = true;
                Ok(())
            }
            other => self.error(other.span(), "expected label selectors only"),
        }
    }

    fn unary(&self, e: &UnaryExpr, got: ValueType) -> Result<()> {
        if matches!(got, ValueType::Scalar | ValueType::Vector) {
            return Ok(());
        }
        let message = "unary expression only allowed on expressions of type scalar or instant vector";
        self.error(e.span, format!("{message}, got {:?}", got.documented()))
    }

    fn subquery(&self, e: &SubqueryExpr, got: ValueType) -> Result<()> {
        if got == ValueType::Vector {
            return Ok(());
        }
        let got = got.as_str();
        self.error(
            e.span,
            format!("subquery is only allowed on instant vector, got {got} instead"),
        )
    }

    fn selector(&self, e: &VectorSelector) -> Result<()> {
        if let Some(name) = &e.name {
            let others = e.matchers.iter().rev().skip(1).rev();
            return match others.into_iter().find(|matcher| matcher.name() == METRIC_NAME) {
                Some(other) => {
                    let (name, other) = (Quoted(name), Quoted(other.value()));
                    self.error(
                        e.span,
                        format!("metric name must not be set twice: {name} or {other}"),
                    )
                }
                None => Ok(()),
            };
        }
        if !e.info_labels && e.matchers.iter().all(|matcher| matcher.matches_empty()) {
            return self.error(
                e.span,
                "vector selector must contain at least one non-empty matcher",
            );
        }
        Ok(())
    }
}
