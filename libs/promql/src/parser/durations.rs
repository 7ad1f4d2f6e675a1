//! Arithmetic on durations in ranges, steps and offsets.

use super::{Parser, Result, UNARY_POWER, power, right_power};
use crate::ast::{BinaryOp, DurationArg, DurationExpr, DurationKind, NumberLiteral, Span};
use crate::duration::{literal_out_of_range, seconds_to_millis};
use crate::lexer::{Lexed, Preprocessor, Token};

/// A duration expression and its height.
struct ParsedDuration {
    expr: DurationExpr,
    height: usize,
}

impl ParsedDuration {
    fn number(&self) -> Option<NumberLiteral> {
        match self.expr.kind {
            DurationKind::Number(number) => Some(number),
            _ => None,
        }
    }

    fn into_arg(self) -> DurationArg {
        match self.expr.kind {
            DurationKind::Number(number) => DurationArg::Millis(seconds_to_millis(number.value)),
            _ => DurationArg::Expr(Box::new(self.expr)),
        }
    }
}

fn number_expr(number: NumberLiteral) -> DurationExpr {
    DurationExpr {
        span: number.span,
        kind: DurationKind::Number(number),
    }
}

impl Parser<'_> {
    /// A range or a step.
    pub(super) fn positive_duration(&mut self) -> Result<DurationArg> {
        let parsed = self.duration_expr(0)?;
        if let Some(number) = parsed.number().filter(|number| number.value <= 0.0) {
            return Err(self.error(number.span, "duration must be greater than 0"));
        }
        Ok(parsed.into_arg())
    }

    /// An offset. It ends after its first operand, so that `x offset 5m ^ 2` squares `x`; only
    /// what starts with a bare parenthesis or a second sign goes on.
    pub(super) fn offset_duration(&mut self) -> Result<DurationArg> {
        let first = self.peek()?;
        let sign = matches!(first.token, Token::Op(BinaryOp::Add | BinaryOp::Sub)).then_some(first);
        let parsed = match sign {
            Some(sign) => {
                self.bump()?;
                let signed_again = matches!(self.peek()?.token, Token::Op(BinaryOp::Add | BinaryOp::Sub));
                let operand = if signed_again {
                    self.duration_expr(UNARY_POWER)?
                } else {
                    self.duration_operand()?
                };
                let signed = self.signed(sign, operand)?;
                if signed_again {
                    self.duration_operators(signed, 0)?
                } else {
                    signed
                }
            }
            None if first.token == Token::LeftParen => self.duration_expr(0)?,
            None => self.duration_operand()?,
        };
        Ok(parsed.into_arg())
    }

    fn duration_expr(&mut self, power_min: u8) -> Result<ParsedDuration> {
        self.nested(|parser| {
            let first = parser.peek()?;
            let left = if matches!(first.token, Token::Op(BinaryOp::Add | BinaryOp::Sub)) {
                parser.bump()?;
                let operand = parser.duration_expr(UNARY_POWER)?;
                parser.signed(first, operand)?
            } else {
                parser.duration_operand()?
            };
            parser.duration_operators(left, power_min)
        })
    }

    fn duration_operators(&mut self, mut left: ParsedDuration, power_min: u8) -> Result<ParsedDuration> {
        while let Token::Op(op) = self.peek()?.token {
            let arithmetic = matches!(
                op,
                BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow
            );
            if !arithmetic || power(op) < power_min {
                break;
            }
            let op_token = self.bump()?;
            let right = self.duration_expr(right_power(op))?;
            left = self.duration_binary(left, op, op_token, right)?;
        }
        Ok(left)
    }

    fn duration_binary(
        &mut self,
        left: ParsedDuration,
        op: BinaryOp,
        op_token: Lexed<'_>,
        right: ParsedDuration,
    ) -> Result<ParsedDuration> {
        self.require_duration_expressions(left.expr.span)?;
        if right.number().is_some_and(|number| number.value == 0.0) {
            match op {
                BinaryOp::Div => return Err(self.error(op_token.span, "division by zero")),
                BinaryOp::Mod => return Err(self.error(op_token.span, "modulo by zero")),
                _ => {}
            }
        }
        let height = self.grow(left.height.max(right.height))?;
        let span = left.expr.span.to(right.expr.span);
        let kind = DurationKind::Binary(op, Box::new(left.expr), Box::new(right.expr));
        Ok(ParsedDuration {
            expr: DurationExpr { span, kind },
            height,
        })
    }

    /// A number is negated in place; a plus is dropped.
    fn signed(&mut self, sign: Lexed<'_>, operand: ParsedDuration) -> Result<ParsedDuration> {
        let negate = sign.token == Token::Op(BinaryOp::Sub);
        let span = sign.span.to(operand.expr.span);
        if let Some(mut number) = operand.number() {
            number.value = if negate { -number.value } else { number.value };
            number.span = span;
            return Ok(ParsedDuration {
                expr: number_expr(number),
                height: operand.height,
            });
        }
        if !negate {
            return Ok(operand);
        }
        let height = self.grow(operand.height)?;
        let kind = DurationKind::Negate(Box::new(operand.expr));
        Ok(ParsedDuration {
            expr: DurationExpr { span, kind },
            height,
        })
    }

    fn duration_operand(&mut self) -> Result<ParsedDuration> {
        let token = self.peek()?;
        match token.token {
            Token::Number | Token::Duration => self.duration_number(),
            Token::LeftParen => self.duration_paren(),
            Token::Preprocessor(Preprocessor::Step) => self.duration_word(DurationKind::Step),
            Token::Preprocessor(Preprocessor::Range) => self.duration_word(DurationKind::Range),
            Token::Preprocessor(which @ (Preprocessor::MinOf | Preprocessor::MaxOf)) => {
                self.duration_choice(which)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn duration_number(&mut self) -> Result<ParsedDuration> {
        let number = self.number_literal()?;
        if literal_out_of_range(number.value) {
            return Err(self.error(number.span, "duration out of range"));
        }
        Ok(ParsedDuration {
            expr: number_expr(number),
            height: self.grow(0)?,
        })
    }

    /// `step()` or `range()`.
    fn duration_word(&mut self, kind: DurationKind) -> Result<ParsedDuration> {
        let name = self.bump()?;
        self.expect(Token::LeftParen)?;
        let close = self.expect(Token::RightParen)?;
        let span = name.span.to(close.span);
        self.require_duration_expressions(span)?;
        Ok(ParsedDuration {
            expr: DurationExpr { span, kind },
            height: self.grow(0)?,
        })
    }

    /// `min_of(…, …)` or `max_of(…, …)`. Its span is that of its arguments, as in the reference's messages.
    fn duration_choice(&mut self, which: Preprocessor) -> Result<ParsedDuration> {
        self.bump()?;
        self.expect(Token::LeftParen)?;
        let left = self.duration_expr(0)?;
        self.expect(Token::Comma)?;
        let right = self.duration_expr(0)?;
        self.expect(Token::RightParen)?;
        let height = self.grow(left.height.max(right.height))?;
        let span = left.expr.span.to(right.expr.span);
        self.require_duration_expressions(span)?;
        let (left, right) = (Box::new(left.expr), Box::new(right.expr));
        let kind = match which {
            Preprocessor::MinOf => DurationKind::MinOf(left, right),
            _ => DurationKind::MaxOf(left, right),
        };
        Ok(ParsedDuration {
            expr: DurationExpr { span, kind },
            height,
        })
    }

    /// Parentheses; those around parentheses add nothing. The span is that of the inside, or starts with the
    /// parenthesis around a number, as in the reference's messages.
    fn duration_paren(&mut self) -> Result<ParsedDuration> {
        let open = self.bump()?;
        let inner = self.duration_expr(0)?;
        self.expect(Token::RightParen)?;
        self.require_duration_expressions(inner.expr.span)?;
        if matches!(inner.expr.kind, DurationKind::Paren(_)) {
            return Ok(inner);
        }
        let height = self.grow(inner.height)?;
        let number = inner.number().is_some();
        let span = if number {
            open.span.to(inner.expr.span)
        } else {
            inner.expr.span
        };
        let kind = DurationKind::Paren(Box::new(inner.expr));
        Ok(ParsedDuration {
            expr: DurationExpr { span, kind },
            height,
        })
    }

    fn require_duration_expressions(&self, span: Span) -> Result<()> {
        if self.options.duration_expressions {
            return Ok(());
        }
        Err(self.error(span, "experimental duration expression is not enabled"))
    }
}
