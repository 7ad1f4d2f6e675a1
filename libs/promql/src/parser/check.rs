//! The type check: what the grammar alone cannot tell.

use koios_model::METRIC_NAME;

use super::{ParseError, Result};
use crate::ast::{
    AggregateExpr, AggregateOp, BinaryExpr, Call, Cardinality, Expr, FillValues, Span, SubqueryExpr,
    UnaryExpr, ValueType, VectorMatching, VectorSelector,
};
use crate::signatures::FunctionId;
use crate::string_literal::Quoted;

/// Checks a tree whose depth the parser has bounded.
pub(super) struct Checker<'a> {
    pub(super) query: &'a str,
}

impl Checker<'_> {
    /// Checks an expression and what is below it; answers its type.
    pub(super) fn check(&self, expr: &mut Expr) -> Result<ValueType> {
        match expr {
            Expr::Aggregate(e) => self.aggregate(e),
            Expr::Binary(e) => self.binary(e),
            Expr::Call(e) => self.call(e),
            Expr::Matrix(e) => self.selector(&e.selector).map(|()| ValueType::Matrix),
            Expr::Number(_) => Ok(ValueType::Scalar),
            Expr::Paren(e) => self.check(&mut e.expr),
            Expr::String(_) => Ok(ValueType::String),
            Expr::Subquery(e) => self.subquery(e),
            Expr::Unary(e) => self.unary(e),
            Expr::Vector(e) => self.selector(e).map(|()| ValueType::Vector),
        }
    }

    fn error<T>(&self, span: Span, message: impl Into<String>) -> Result<T> {
        Err(ParseError {
            span,
            position: span.position_in(self.query),
            message: message.into(),
        })
    }

    fn expect(&self, expr: &mut Expr, want: ValueType, context: &str) -> Result<()> {
        let got = self.check(expr)?;
        if got == want {
            return Ok(());
        }
        let (want, got) = (want.documented(), got.documented());
        self.error(
            expr.span(),
            format!("expected type {want} in {context}, got {got}"),
        )
    }

    fn aggregate(&self, e: &mut AggregateExpr) -> Result<ValueType> {
        self.expect(&mut e.expr, ValueType::Vector, "aggregation expression")?;
        if let Some(param) = &mut e.param {
            let want = if e.op == AggregateOp::CountValues {
                ValueType::String
            } else {
                ValueType::Scalar
            };
            self.expect(param, want, "aggregation parameter")?;
        }
        Ok(ValueType::Vector)
    }

    fn binary(&self, e: &mut BinaryExpr) -> Result<ValueType> {
        let left = self.check(&mut e.lhs)?;
        let right = self.check(&mut e.rhs)?;
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
        for (side, operand) in [(left, &e.lhs), (right, &e.rhs)] {
            if !matches!(side, ValueType::Scalar | ValueType::Vector) {
                let message = "binary expression must contain only scalar and instant vector types";
                return self.error(operand.span(), message);
            }
        }
        if left == ValueType::Vector && right == ValueType::Vector {
            self.vectors(e)?;
        } else {
            self.with_scalar(e)?;
        }
        Ok(if scalars {
            ValueType::Scalar
        } else {
            ValueType::Vector
        })
    }

    fn groups_apart_from_matching(&self, matching: &VectorMatching, op: Span) -> Result<()> {
        let both = matching
            .labels
            .iter()
            .find(|label| matching.include.contains(label));
        match both.filter(|_| matching.on) {
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

    fn call(&self, e: &mut Call) -> Result<ValueType> {
        self.arg_count(e)?;
        if e.function == FunctionId::Info {
            self.info_selector(e)?;
        }
        let signature = e.function.signature();
        let context = format!("call to function {:?}", signature.name);
        for (i, arg) in e.args.iter_mut().enumerate() {
            let Some(want) = signature.arg(i) else { break };
            self.expect(arg, want, &context)?;
        }
        Ok(signature.returns)
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
    fn info_selector(&self, e: &mut Call) -> Result<()> {
        let span = e.span;
        let Some(arg) = e.args.get_mut(1) else {
            return Ok(());
        };
        let got = arg.value_type();
        if got != ValueType::Vector {
            let (want, got) = (ValueType::Vector.documented(), got.documented());
            let message = format!("expected type {want} in call to function \"info\", got {got}");
            return self.error(span, message);
        }
        match arg {
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

    fn unary(&self, e: &mut UnaryExpr) -> Result<ValueType> {
        let got = self.check(&mut e.expr)?;
        if matches!(got, ValueType::Scalar | ValueType::Vector) {
            return Ok(got);
        }
        let message = "unary expression only allowed on expressions of type scalar or instant vector";
        self.error(e.span, format!("{message}, got {:?}", got.documented()))
    }

    fn subquery(&self, e: &mut SubqueryExpr) -> Result<ValueType> {
        let got = self.check(&mut e.expr)?;
        if got == ValueType::Vector {
            return Ok(ValueType::Matrix);
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
