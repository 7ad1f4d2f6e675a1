//! What may follow an operand: ranges, subqueries, `offset`, `@`, `anchored`, `smoothed`.

use super::{Context, ParseError, Parsed, Parser, Result};
use crate::ast::{At, DurationArg, Expr, MatrixSelector, RangeEdges, Span, SubqueryExpr, VectorSelector};
use crate::lexer::{Keyword, Lexed, Preprocessor, Token};

impl Parser<'_> {
    pub(super) fn modifiers(&mut self, mut parsed: Parsed) -> Result<Parsed> {
        loop {
            parsed = match self.peek()?.token {
                Token::LeftBracket => self.bracket(parsed)?,
                Token::Keyword(Keyword::Offset) => {
                    self.bump()?;
                    self.within(Context::Offset, |parser| parser.offset(&mut parsed.expr))?;
                    parsed
                }
                Token::At => {
                    self.bump()?;
                    self.within(Context::At, |parser| parser.at(&mut parsed.expr))?;
                    parsed
                }
                Token::Keyword(Keyword::Anchored) => {
                    self.bump()?;
                    self.edges(&mut parsed.expr, RangeEdges::Anchored)?;
                    parsed
                }
                Token::Keyword(Keyword::Smoothed) => {
                    self.bump()?;
                    self.edges(&mut parsed.expr, RangeEdges::Smoothed)?;
                    parsed
                }
                _ => return Ok(parsed),
            };
        }
    }

    fn bracket(&mut self, parsed: Parsed) -> Result<Parsed> {
        let open = self.bump()?;
        let range = self.within(Context::Range, Self::positive_duration)?;
        if let Some(close) = self.accept(Token::RightBracket)? {
            return self.matrix(parsed, range, open, close);
        }
        self.within(Context::RangeEnd, |parser| parser.expect(Token::Colon))?;
        let mut step = None;
        let mut close = self.accept(Token::RightBracket)?;
        if close.is_none() {
            step = Some(self.within(Context::Step, Self::positive_duration)?);
            close = Some(self.within(Context::StepEnd, |parser| parser.expect(Token::RightBracket))?);
        }
        let Parsed { expr, height } = parsed;
        let span = close.map_or_else(|| expr.span(), |close| expr.span().to(close.span));
        let height = self.grow(height)?;
        let subquery = SubqueryExpr {
            span,
            expr,
            range,
            step,
            offset: DurationArg::default(),
            at: None,
        };
        Ok(Parsed {
            expr: Expr::Subquery(Box::new(subquery)),
            height,
        })
    }

    fn matrix(
        &mut self,
        parsed: Parsed,
        range: DurationArg,
        open: Lexed<'_>,
        close: Lexed<'_>,
    ) -> Result<Parsed> {
        let wrong = |parser: &Self, message| Err(parser.error(open.span.to(close.span), message));
        let Expr::Vector(selector) = parsed.expr else {
            return wrong(self, "ranges only allowed for vector selectors");
        };
        if !selector.offset.is_zero() {
            return wrong(self, "no offset modifiers allowed before range");
        }
        if selector.at.is_some() {
            return wrong(self, "no @ modifiers allowed before range");
        }
        let span = selector.span.to(close.span);
        let height = self.grow(parsed.height)?;
        let matrix = MatrixSelector {
            span,
            selector: *selector,
            range,
        };
        Ok(Parsed {
            expr: Expr::Matrix(Box::new(matrix)),
            height,
        })
    }

    fn offset(&mut self, expr: &mut Expr) -> Result<()> {
        let offset = self.offset_duration()?;
        let span = expr.span();
        let Some(target) = Target::of(expr) else {
            return Err(self.not_a_selector(span, "offset modifier"));
        };
        if !target.offset.is_zero() {
            return Err(self.error(span, "offset may not be set multiple times"));
        }
        *target.offset = offset;
        target.span.end = self.last.end;
        Ok(())
    }

    fn at(&mut self, expr: &mut Expr) -> Result<()> {
        let span = expr.span();
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
        let Some(target) = Target::of(expr) else {
            return Err(self.not_a_selector(span, "@ modifier"));
        };
        if target.at.is_some() {
            return Err(self.error(span, "@ <timestamp> may not be set multiple times"));
        }
        *target.at = Some(at);
        target.span.end = self.last.end;
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

    fn edges(&self, expr: &mut Expr, edges: RangeEdges) -> Result<()> {
        let name = if edges == RangeEdges::Anchored {
            "anchored"
        } else {
            "smoothed"
        };
        let span = expr.span();
        if !self.options.extended_range_selectors {
            return Err(self.error(span, format!("{name} modifier is experimental and not enabled")));
        }
        let selector: &mut VectorSelector = match expr {
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
