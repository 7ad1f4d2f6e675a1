//! Literals, parentheses, function calls, aggregations.

use super::expr::Frame;
use super::{Context, ParseError, Parser, Result};
use crate::ast::{
    AggregateExpr, AggregateOp, BinaryOp, Call, Expr, ExprId, NumberLiteral, Span, StringLiteral,
};
use crate::duration::{nanos_to_seconds, parse_duration, parse_number};
use crate::lexer::{Keyword, Lexed, Token};
use crate::signatures::FunctionId;
use crate::string_literal::{Quoted, Unquoted, unquote};

/// The arguments of a call so far.
pub(super) type Arguments = Vec<ExprId>;

/// A grouping: whether it is `without`, its labels, where it ends.
type Grouping = (bool, Vec<String>, Span);

/// An aggregation whose arguments are read.
pub(super) struct OpenAggregate<'a> {
    name: Lexed<'a>,
    op: AggregateOp,
    /// The grouping before the arguments.
    grouping: Option<Grouping>,
    args: Arguments,
    /// What is around it.
    outside: Context,
}

impl<'a> Parser<'a> {
    /// An operand without a sign; `None` if one has begun that waits for another.
    pub(super) fn primary(&mut self, frames: &mut Vec<Frame<'a>>) -> Result<Option<ExprId>> {
        let token = self.peek()?;
        let leaf = match token.token {
            Token::LeftParen => {
                self.bump()?;
                frames.push(Frame::Paren(token.span));
                self.begin(frames, 0)?;
                return Ok(None);
            }
            Token::String => self.string_literal()?,
            Token::Number | Token::Duration => {
                let number = self.number_literal()?;
                self.grow(Expr::Number(number))?
            }
            Token::LeftBrace => self.vector_selector()?,
            Token::Aggregate(op) => {
                self.bump()?;
                match self.peek()?.token {
                    Token::LeftParen | Token::Keyword(Keyword::By | Keyword::Without) => {
                        return self.begin_aggregate(token, op, frames);
                    }
                    _ => self.named_selector(token)?,
                }
            }
            Token::Identifier | Token::Preprocessor(_) => {
                self.bump()?;
                match self.peek()?.token {
                    Token::LeftParen => return self.begin_call(token, frames),
                    _ => self.named_selector(token)?,
                }
            }
            _ if is_metric_name(token.token) => self.vector_selector()?,
            _ => return Err(self.unexpected()),
        };
        self.modifiers(leaf).map(Some)
    }

    fn string_literal(&mut self) -> Result<ExprId> {
        let token = self.bump()?;
        let Unquoted { value, not_utf8 } = self.unquoted(token)?;
        self.grow(Expr::String(Box::new(StringLiteral {
            span: token.span,
            value,
            not_utf8,
        })))
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

    fn begin_call(&mut self, name: Lexed<'a>, frames: &mut Vec<Frame<'a>>) -> Result<Option<ExprId>> {
        self.expect(Token::LeftParen)?;
        if let Some(close) = self.accept(Token::RightParen)? {
            return self.finish_call(name, Arguments::new(), close.span).map(Some);
        }
        frames.push(Frame::Call(name, Arguments::new()));
        self.begin(frames, 0)?;
        Ok(None)
    }

    /// Goes on with a call after an argument.
    pub(super) fn call(
        &mut self,
        name: Lexed<'a>,
        mut args: Arguments,
        arg: ExprId,
        frames: &mut Vec<Frame<'a>>,
    ) -> Result<Option<ExprId>> {
        args.push(arg);
        match self.end_of_args()? {
            Some(close) => self.finish_call(name, args, close).map(Some),
            None => {
                frames.push(Frame::Call(name, args));
                self.begin(frames, 0)?;
                Ok(None)
            }
        }
    }

    fn finish_call(&mut self, name: Lexed<'_>, args: Arguments, close: Span) -> Result<ExprId> {
        let Some(function) = FunctionId::from_name(name.text) else {
            let message = format!("unknown function with name {}", Quoted(name.text));
            return Err(self.error(name.span, message));
        };
        if function.signature().experimental && !self.options.experimental_functions {
            let message = format!("function {} is not enabled", Quoted(name.text));
            return Err(self.error(name.span, message));
        }
        let call = self.grow(Expr::Call(Box::new(Call {
            span: name.span.to(close),
            function,
            args,
        })))?;
        self.modifiers(call)
    }

    /// Where the parenthesis after the last argument is; `None` if another argument follows.
    fn end_of_args(&mut self) -> Result<Option<Span>> {
        let Some(comma) = self.accept(Token::Comma)? else {
            return self.expect(Token::RightParen).map(|close| Some(close.span));
        };
        if !starts_expr(self.peek()?.token) {
            return Err(self.error(comma.span, "trailing commas not allowed in function call args"));
        }
        Ok(None)
    }

    fn begin_aggregate(
        &mut self,
        name: Lexed<'a>,
        op: AggregateOp,
        frames: &mut Vec<Frame<'a>>,
    ) -> Result<Option<ExprId>> {
        let outside = std::mem::replace(&mut self.context, Context::Aggregation);
        let open = OpenAggregate {
            name,
            op,
            grouping: self.aggregate_modifier()?,
            args: Arguments::new(),
            outside,
        };
        self.expect(Token::LeftParen)?;
        if let Some(close) = self.accept(Token::RightParen)? {
            return self.finish_aggregate(open, close.span).map(Some);
        }
        frames.push(Frame::Aggregate(Box::new(open)));
        self.begin(frames, 0)?;
        Ok(None)
    }

    /// Goes on with an aggregation after an argument.
    pub(super) fn aggregate(
        &mut self,
        mut open: Box<OpenAggregate<'a>>,
        arg: ExprId,
        frames: &mut Vec<Frame<'a>>,
    ) -> Result<Option<ExprId>> {
        open.args.push(arg);
        match self.end_of_args()? {
            Some(close) => self.finish_aggregate(*open, close).map(Some),
            None => {
                frames.push(Frame::Aggregate(open));
                self.begin(frames, 0)?;
                Ok(None)
            }
        }
    }

    fn finish_aggregate(&mut self, open: OpenAggregate<'_>, close: Span) -> Result<ExprId> {
        let mut grouping = open.grouping;
        let mut span = open.name.span.to(close);
        if grouping.is_none() {
            grouping = self.aggregate_modifier()?;
            if let Some((.., end)) = &grouping {
                span = span.to(*end);
            }
        }
        let (without, grouping, _) = grouping.unwrap_or_default();
        let (param, expr) = self.aggregate_args(open.op, span, open.args)?;
        let aggregate = self.grow(Expr::Aggregate(Box::new(AggregateExpr {
            span,
            op: open.op,
            expr,
            param,
            grouping,
            without,
        })))?;
        self.context = open.outside;
        self.modifiers(aggregate)
    }

    fn aggregate_args(
        &self,
        op: AggregateOp,
        span: Span,
        mut args: Arguments,
    ) -> Result<(Option<ExprId>, ExprId)> {
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

    /// `by (…)` or `without (…)`.
    fn aggregate_modifier(&mut self) -> Result<Option<Grouping>> {
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
            self.count_node()?;
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
