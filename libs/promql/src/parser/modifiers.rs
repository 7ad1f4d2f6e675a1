//! What may follow an operand: ranges, subqueries, `offset`, `@`, `anchored`, `smoothed`.

use super::{Context, ParseError, Parser, Result};
use crate::ast::{
    At, DurationArg, Expr, ExprId, MatrixSelector, RangeEdges, Span, SubqueryExpr, VectorSelector,
};
use crate::lexer::{Keyword, Lexed, Preprocessor, Token};

impl Parser<'_> {
    /// The expression that was read last, with what follows it.
    pub(super) fn modifiers(&mut self, mut expr: ExprId) -> Result<ExprId> {
        loop {
            match self.peek()?.token {
                Token::LeftBracket => expr = self.bracket(expr)?,
                Token::Keyword(Keyword::Offset) => {
                    self.bump()?;
                    self.within(Context::Offset, |parser| parser.offset(expr))?;
                }
                Token::At => {
                    self.bump()?;
                    self.within(Context::At, |parser| parser.at(expr))?;
                }
                Token::Keyword(Keyword::Anchored) => {
                    self.bump()?;
                    self.edges(expr, RangeEdges::Anchored)?;
                }
                Token::Keyword(Keyword::Smoothed) => {
                    self.bump()?;
                    self.edges(expr, RangeEdges::Smoothed)?;
                }
                _ => return Ok(expr),
            }
        }
    }

    fn bracket(&mut self, expr: ExprId) -> Result<ExprId> {
        let open = self.bump()?;
        let range = self.within(Context::Range, Self::positive_duration)?;
        if let Some(close) = self.accept(Token::RightBracket)? {
            return self.matrix(range, open, close);
        }
        self.within(Context::RangeEnd, |parser| parser.expect(Token::Colon))?;
        let mut step = None;
        let mut close = self.accept(Token::RightBracket)?;
        if close.is_none() {
            step = Some(self.within(Context::Step, Self::positive_duration)?);
            close = Some(self.within(Context::StepEnd, |parser| parser.expect(Token::RightBracket))?);
        }
        let span = self.ast[expr].span();
        let span = close.map_or(span, |close| span.to(close.span));
        self.grow(Expr::Subquery(Box::new(SubqueryExpr {
            span,
            expr,
            range,
            step,
            offset: DurationArg::default(),
            at: None,
        })))
    }

    /// The selector that was read last becomes a range selector.
    fn matrix(&mut self, range: DurationArg, open: Lexed<'_>, close: Lexed<'_>) -> Result<ExprId> {
        let wrong = |parser: &Self, message| Err(parser.error(open.span.to(close.span), message));
        let Some(Expr::Vector(selector)) = self.ast.pop() else {
            return wrong(self, "ranges only allowed for vector selectors");
        };
        if !selector.offset.is_zero() {
            return wrong(self, "no offset modifiers allowed before range");
        }
        if selector.at.is_some() {
            return wrong(self, "no @ modifiers allowed before range");
        }
        self.grow(Expr::Matrix(Box::new(MatrixSelector {
            span: selector.span.to(close.span),
            selector: *selector,
            range,
        })))
    }

    fn offset(&mut self, expr: ExprId) -> Result<()> {
        let offset = self.offset_duration()?;
        let (span, end) = (self.ast[expr].span(), self.last.end);
        let Some(target) = Target::of(self.ast.expr_mut(expr)) else {
            return Err(self.not_a_selector(span, "offset modifier"));
        };
        if !target.offset.is_zero() {
            return Err(self.error(span, "offset may not be set multiple times"));
        }
        *target.offset = offset;
        target.span.end = end;
        Ok(())
    }

    fn at(&mut self, expr: ExprId) -> Result<()> {
        let span = self.ast[expr].span();
        let at = match self.peek()?.token {
            Token::Preprocessor(at @ (Preprocessor::Start | Preprocessor::End)) => {
                self.bump()?;
                self.expect(Token::LeftParen)?;
                self.expect(Token::RightParen)?;
                if at == Preprocessor::Start {
                    At::Start
                } else {
                    At::End
                }
            }
            _ => {
                let seconds = self.signed_number()?;
                At::Timestamp(self.timestamp(seconds, span)?)
            }
        };
        let end = self.last.end;
        let Some(target) = Target::of(self.ast.expr_mut(expr)) else {
            return Err(self.not_a_selector(span, "@ modifier"));
        };
        if target.at.is_some() {
            return Err(self.error(span, "@ <timestamp> may not be set multiple times"));
        }
        *target.at = Some(at);
        target.span.end = end;
        Ok(())
    }

    fn timestamp(&self, seconds: f64, span: Span) -> Result<i64> {
        const LIMIT: f64 = i64::MAX as f64;
        if seconds.is_nan() || seconds >= LIMIT || seconds <= -LIMIT {
            let shown = match seconds {
                f64::INFINITY => "+Inf".to_owned(),
                f64::NEG_INFINITY => "-Inf".to_owned(),
                _ if seconds.is_nan() => "NaN".to_owned(),
                _ => format!("{seconds:.6}"),
            };
            return Err(self.error(span, format!("timestamp out of bounds for @ modifier: {shown}")));
        }
        Ok((seconds * 1000.0).round() as i64)
    }

    fn not_a_selector(&self, span: Span, what: &str) -> ParseError {
        let message = format!(
            "{what} must be preceded by an instant vector selector or range vector selector or a subquery"
        );
        self.error(span, message)
    }

    fn edges(&mut self, expr: ExprId, edges: RangeEdges) -> Result<()> {
        let name = if edges == RangeEdges::Anchored {
            "anchored"
        } else {
            "smoothed"
        };
        let span = self.ast[expr].span();
        if !self.options.extended_range_selectors {
            return Err(self.error(span, format!("{name} modifier is experimental and not enabled")));
        }
        let selector: &mut VectorSelector = match self.ast.expr_mut(expr) {
            Expr::Vector(selector) => selector,
            Expr::Matrix(matrix) => &mut matrix.selector,
            Expr::Subquery(_) => {
                return Err(self.error(span, format!("{name} modifier is not supported for subqueries")));
            }
            _ => return Err(self.error(span, format!("{name} modifier not implemented"))),
        };
        if selector.edges != RangeEdges::Plain && selector.edges != edges {
            return Err(self.error(span, "anchored and smoothed modifiers cannot be used together"));
        }
        selector.edges = edges;
        Ok(())
    }
}

/// The parts of a selector or subquery that modifiers set.
struct Target<'e> {
    span: &'e mut Span,
    offset: &'e mut DurationArg,
    at: &'e mut Option<At>,
}

impl<'e> Target<'e> {
    fn of(expr: &'e mut Expr) -> Option<Self> {
        match expr {
            Expr::Vector(e) => Some(Self {
                span: &mut e.span,
                offset: &mut e.offset,
                at: &mut e.at,
            }),
            Expr::Matrix(e) => Some(Self {
                span: &mut e.span,
                offset: &mut e.selector.offset,
                at: &mut e.selector.at,
            }),
            Expr::Subquery(e) => Some(Self {
                span: &mut e.span,
                offset: &mut e.offset,
                at: &mut e.at,
            }),
            _ => None,
        }
    }
}
