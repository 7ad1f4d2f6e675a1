//! Literals, parentheses, function calls, aggregations.

use super::{Context, ParseError, Parsed, Parser, Result};
use crate::ast::{
    AggregateExpr, AggregateOp, BinaryOp, Call, Expr, NumberLiteral, ParenExpr, Span, StringLiteral,
};
use crate::duration::{nanos_to_seconds, parse_duration, parse_number};
use crate::lexer::{Keyword, Lexed, Token};
use crate::signatures::FunctionId;
use crate::string_literal::{Quoted, Unquoted, unquote};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Result<Parsed> {
        let token = self.peek()?;
        match token.token {
            Token::LeftParen => self.paren(),
            Token::String => self.string_literal(),
            Token::Number | Token::Duration => {
                let number = self.number_literal()?;
                self.leaf(Expr::Number(number))
            }
            Token::LeftBrace => self.vector_selector(),
            Token::Aggregate(op) => {
                self.bump()?;
                match self.peek()?.token {
                    Token::LeftParen | Token::Keyword(Keyword::By | Keyword::Without) => {
                        self.within(Context::Aggregation, |parser| parser.aggregate(token, op))
                    }
                    _ => self.named_selector(token),
                }
            }
            Token::Identifier | Token::Preprocessor(_) => {
                self.bump()?;
                match self.peek()?.token {
                    Token::LeftParen => self.call(token),
                    _ => self.named_selector(token),
                }
            }
            _ if is_metric_name(token.token) => self.vector_selector(),
            _ => Err(self.unexpected()),
        }
    }

    pub(super) fn leaf(&mut self, expr: Expr) -> Result<Parsed> {
        Ok(Parsed {
            height: self.grow(0)?,
            expr,
        })
    }

    fn paren(&mut self) -> Result<Parsed> {
        let open = self.bump()?;
        let Parsed { expr, height } = self.expr(0)?;
        let close = self.expect(Token::RightParen)?;
        let height = self.grow(height)?;
        let span = open.span.to(close.span);
        Ok(Parsed {
            expr: Expr::Paren(Box::new(ParenExpr { span, expr })),
            height,
        })
    }

    fn string_literal(&mut self) -> Result<Parsed> {
        let token = self.bump()?;
        let Unquoted { value, not_utf8 } = self.unquoted(token)?;
        self.leaf(Expr::String(StringLiteral {
            span: token.span,
            value,
            not_utf8,
        }))
    }

    pub(super) fn unquoted(&self, token: Lexed<'_>) -> Result<Unquoted> {
        unquote(token.text).ok_or_else(|| {
            let message = format!("error unquoting string {}: invalid syntax", Quoted(token.text));
            self.error(token.span, message)
        })
    }

    /// A number, or a duration as its seconds.
    pub(super) fn number_literal(&mut self) -> Result<NumberLiteral> {
        let token = self.peek()?;
        let value = match token.token {
            Token::Number => parse_number(token.text),
            Token::Duration => parse_duration(token.text).map(nanos_to_seconds),
            _ => return Err(self.unexpected()),
        };
        let value = value.map_err(|message| self.error(token.span, message))?;
        self.bump()?;
        Ok(NumberLiteral {
            span: token.span,
            value,
            duration: token.token == Token::Duration,
        })
    }

    /// A number with at most one sign.
    pub(super) fn signed_number(&mut self) -> Result<f64> {
        let negate = match self.peek()?.token {
            Token::Op(BinaryOp::Sub) => Some(true),
            Token::Op(BinaryOp::Add) => Some(false),
            _ => None,
        };
        if negate.is_some() {
            self.bump()?;
        }
        let value = self.number_literal()?.value;
        Ok(if negate == Some(true) { -value } else { value })
    }

    fn call(&mut self, name: Lexed<'_>) -> Result<Parsed> {
        let (args, close, height) = self.call_body()?;
        let Some(function) = FunctionId::from_name(name.text) else {
            let message = format!("unknown function with name {}", Quoted(name.text));
            return Err(self.error(name.span, message));
        };
        if function.signature().experimental && !self.options.experimental_functions {
            let message = format!("function {} is not enabled", Quoted(name.text));
            return Err(self.error(name.span, message));
        }
        let height = self.grow(height)?;
        let call = Call {
            span: name.span.to(close),
            function,
            args,
        };
        Ok(Parsed {
            expr: Expr::Call(Box::new(call)),
            height,
        })
    }

    /// The arguments, where their closing parenthesis is, and the height of the highest.
    fn call_body(&mut self) -> Result<(Vec<Expr>, Span, usize)> {
        self.expect(Token::LeftParen)?;
        let (mut args, mut height) = (Vec::new(), 0);
        if let Some(close) = self.accept(Token::RightParen)? {
            return Ok((args, close.span, height));
        }
        loop {
            let arg = self.expr(0)?;
            height = height.max(arg.height);
            args.push(arg.expr);
            let Some(comma) = self.accept(Token::Comma)? else {
                break;
            };
            if !starts_expr(self.peek()?.token) {
                return Err(self.error(comma.span, "trailing commas not allowed in function call args"));
            }
        }
        let close = self.expect(Token::RightParen)?;
        Ok((args, close.span, height))
    }

    fn aggregate(&mut self, name: Lexed<'_>, op: AggregateOp) -> Result<Parsed> {
        let mut modifier = self.aggregate_modifier()?;
        let (args, close, height) = self.call_body()?;
        let mut span = name.span.to(close);
        if modifier.is_none() {
            modifier = self.aggregate_modifier()?;
            if let Some((.., end)) = &modifier {
                span = span.to(*end);
            }
        }
        let (without, grouping, _) = modifier.unwrap_or_default();
        let (param, expr) = self.aggregate_args(op, span, args)?;
        let height = self.grow(height)?;
        let aggregate = AggregateExpr {
            span,
            op,
            expr,
            param,
            grouping,
            without,
        };
        Ok(Parsed {
            expr: Expr::Aggregate(Box::new(aggregate)),
            height,
        })
    }

    fn aggregate_args(
        &self,
        op: AggregateOp,
        span: Span,
        mut args: Vec<Expr>,
    ) -> Result<(Option<Expr>, Expr)> {
        let wrong_number = |parser: &Self, got: usize| -> ParseError {
            let want = if op.has_param() { 2 } else { 1 };
            let message = format!(
                "wrong number of arguments for aggregate expression provided, expected {want}, got {got}"
            );
            parser.error(span, message)
        };
        if args.is_empty() {
            return Err(self.error(span, "no arguments for aggregate expression provided"));
        }
        if op.is_experimental() && !self.options.experimental_functions {
            let name = op.as_str();
            let message = format!(
                "{name}() is experimental and must be enabled with --enable-feature=promql-experimental-functions"
            );
            return Err(self.error(span, message));
        }
        let got = args.len();
        if got != 1 + usize::from(op.has_param()) {
            return Err(wrong_number(self, got));
        }
        let expr = args.pop().ok_or_else(|| wrong_number(self, got))?;
        Ok((args.pop(), expr))
    }

    /// `by (…)` or `without (…)`: whether it is the latter, the labels, where it ends.
    fn aggregate_modifier(&mut self) -> Result<Option<(bool, Vec<String>, Span)>> {
        let without = match self.peek()?.token {
            Token::Keyword(Keyword::By) => false,
            Token::Keyword(Keyword::Without) => true,
            _ => return Ok(None),
        };
        self.bump()?;
        let (labels, end) = self.grouping_list()?;
        Ok(Some((without, labels, end)))
    }

    pub(super) fn grouping_labels(&mut self) -> Result<Vec<String>> {
        self.grouping_list().map(|(labels, _)| labels)
    }

    fn grouping_list(&mut self) -> Result<(Vec<String>, Span)> {
        if self.accept(Token::LeftParen)?.is_none() {
            return Err(self.unexpected_in(" in grouping opts, expected \"(\""));
        }
        let mut labels = Vec::new();
        loop {
            if let Some(close) = self.accept(Token::RightParen)? {
                return Ok((labels, close.span));
            }
            labels.push(self.grouping_label()?);
            match self.peek()?.token {
                Token::Comma => _ = self.bump()?,
                Token::RightParen => {}
                _ => return Err(self.unexpected_in(" in grouping opts, expected \",\" or \")\"")),
            }
        }
    }

    fn grouping_label(&mut self) -> Result<String> {
        let token = self.peek()?;
        let label = match token.token {
            Token::String => self.unquoted(token)?,
            _ if may_be_label(token.token) => Unquoted {
                value: token.text.to_owned(),
                not_utf8: None,
            },
            _ => return Err(self.unexpected_in(" in grouping opts, expected label")),
        };
        let invalid = label
            .not_utf8
            .as_deref()
            .or_else(|| label.value.is_empty().then_some("\"\""));
        if let Some(invalid) = invalid {
            return Err(self.error(token.span, format!("invalid label name for grouping: {invalid}")));
        }
        self.bump()?;
        Ok(label.value)
    }
}

/// Whether a word may stand for a metric's name.
pub(super) fn is_metric_name(token: Token) -> bool {
    match token {
        Token::Identifier | Token::MetricIdentifier | Token::Aggregate(_) | Token::Preprocessor(_) => true,
        Token::Op(op) => op.is_set(),
        Token::Keyword(keyword) => !matches!(
            keyword,
            Keyword::Bool | Keyword::On | Keyword::Ignoring | Keyword::GroupLeft | Keyword::GroupRight
        ),
        _ => false,
    }
}

/// Whether a word may stand for a label in a grouping.
fn may_be_label(token: Token) -> bool {
    match token {
        Token::Op(op) => op.is_set() || op == BinaryOp::Atan2,
        Token::Keyword(keyword) => keyword != Keyword::Without,
        _ => is_metric_name(token),
    }
}

fn starts_expr(token: Token) -> bool {
    matches!(
        token,
        Token::LeftParen
            | Token::LeftBrace
            | Token::String
            | Token::Number
            | Token::Duration
            | Token::Op(BinaryOp::Add | BinaryOp::Sub)
    ) || is_metric_name(token)
}
