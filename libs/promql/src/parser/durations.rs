//! Arithmetic on durations in ranges, steps and offsets. What waits for an operand lies in a list of frames, as in
//! [`super::expr`].

use super::expr::{UNARY_POWER, power, right_power};
use super::{Parser, Result};
use crate::ast::{
    BinaryOp, DurationArg, DurationExpr, DurationId, DurationKind, DurationNode, NumberLiteral, Span,
};
use crate::duration::{literal_out_of_range, seconds_to_millis};
use crate::lexer::{Lexed, Preprocessor, Token};

/// What waits for an operand.
enum Frame<'a> {
    /// An expression whose operators all bind at least as tight as this.
    Level(u8),
    /// Operators that go on with an operand; none that begins a level.
    Operators(u8),
    /// A sign.
    Sign(Lexed<'a>),
    /// An open parenthesis.
    Paren(Lexed<'a>),
    /// `min_of` or `max_of`, with the first argument where there is one.
    Choice(Preprocessor, Option<DurationId>),
    /// An operator with its left operand.
    Binary(DurationId, BinaryOp, Lexed<'a>),
}

/// What is to be read next.
#[derive(Clone, Copy)]
enum Next {
    /// An expression whose operators all bind at least as tight as this.
    Expr(u8),
    /// An operand without a sign.
    Operand,
}

impl<'a> Parser<'a> {
    /// A range or a step.
    pub(super) fn positive_duration(&mut self) -> Result<DurationArg> {
        let read = self.duration(Vec::new(), Next::Expr(0))?;
        if let Some(number) = self.duration_literal(read).filter(|number| number.value <= 0.0) {
            return Err(self.error(number.span, "duration must be greater than 0"));
        }
        Ok(self.take_duration())
    }

    /// An offset. It ends after its first operand, so that `x offset 5m ^ 2` squares `x`; only
    /// what starts with a bare parenthesis or a second sign goes on.
    pub(super) fn offset_duration(&mut self) -> Result<DurationArg> {
        let first = self.peek()?;
        let (frames, next) = if is_sign(first.token) {
            self.bump()?;
            if is_sign(self.peek()?.token) {
                let frames = vec![Frame::Operators(0), Frame::Sign(first)];
                (frames, Next::Expr(UNARY_POWER))
            } else {
                (vec![Frame::Sign(first)], Next::Operand)
            }
        } else if first.token == Token::LeftParen {
            (Vec::new(), Next::Expr(0))
        } else {
            (Vec::new(), Next::Operand)
        };
        self.duration(frames, next)?;
        Ok(self.take_duration())
    }

    /// What was read of durations, as an argument.
    fn take_duration(&mut self) -> DurationArg {
        if let Some(DurationKind::Number(number)) = self.duration.nodes.last().map(|node| &node.kind) {
            let millis = seconds_to_millis(number.value);
            self.duration.nodes.clear();
            return DurationArg::Millis(millis);
        }
        DurationArg::Expr(std::mem::take(&mut self.duration))
    }

    /// Reads what is next, and then all that the frames wait for.
    fn duration(&mut self, mut frames: Vec<Frame<'a>>, mut next: Next) -> Result<DurationId> {
        loop {
            if let Next::Expr(power_min) = next {
                self.nest()?;
                frames.push(Frame::Level(power_min));
                let first = self.peek()?;
                if is_sign(first.token) {
                    self.bump()?;
                    frames.push(Frame::Sign(first));
                    next = Next::Expr(UNARY_POWER);
                    continue;
                }
            }
            let mut operand = self.duration_operand(&mut frames)?;
            next = Next::Expr(0);
            while let Some(done) = operand {
                operand = match frames.pop() {
                    Some(frame) => self.duration_after(frame, done, &mut frames, &mut next)?,
                    None => return Ok(done),
                };
            }
        }
    }

    /// Gives an operand to what waits for it; `None` if that waits for another, which is `next`.
    fn duration_after(
        &mut self,
        frame: Frame<'a>,
        operand: DurationId,
        frames: &mut Vec<Frame<'a>>,
        next: &mut Next,
    ) -> Result<Option<DurationId>> {
        match frame {
            Frame::Level(power_min) | Frame::Operators(power_min) => {
                if let Token::Op(op) = self.peek()?.token
                    && is_arithmetic(op)
                    && power(op) >= power_min
                {
                    frames.push(frame);
                    frames.push(Frame::Binary(operand, op, self.bump()?));
                    *next = Next::Expr(right_power(op));
                    return Ok(None);
                }
                self.nesting -= usize::from(matches!(frame, Frame::Level(_)));
                Ok(Some(operand))
            }
            Frame::Sign(sign) => self.duration_signed(sign, operand).map(Some),
            Frame::Paren(open) => self.duration_paren(open, operand).map(Some),
            Frame::Choice(which, None) => {
                self.expect(Token::Comma)?;
                frames.push(Frame::Choice(which, Some(operand)));
                *next = Next::Expr(0);
                Ok(None)
            }
            Frame::Choice(which, Some(left)) => self.duration_choice(which, left, operand).map(Some),
            Frame::Binary(left, op, token) => self.duration_binary(left, op, token, operand).map(Some),
        }
    }

    /// An operand; `None` if one has begun that waits for an expression.
    fn duration_operand(&mut self, frames: &mut Vec<Frame<'a>>) -> Result<Option<DurationId>> {
        let token = self.peek()?;
        match token.token {
            Token::Number | Token::Duration => self.duration_number().map(Some),
            Token::LeftParen => {
                frames.push(Frame::Paren(self.bump()?));
                Ok(None)
            }
            Token::Preprocessor(Preprocessor::Step) => self.duration_word(DurationKind::Step).map(Some),
            Token::Preprocessor(Preprocessor::Range) => self.duration_word(DurationKind::Range).map(Some),
            Token::Preprocessor(which @ (Preprocessor::MinOf | Preprocessor::MaxOf)) => {
                self.bump()?;
                self.expect(Token::LeftParen)?;
                frames.push(Frame::Choice(which, None));
                Ok(None)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn duration_number(&mut self) -> Result<DurationId> {
        let number = self.number_literal()?;
        if literal_out_of_range(number.value) {
            return Err(self.error(number.span, "duration out of range"));
        }
        self.grow_duration(number.span, DurationKind::Number(number))
    }

    /// `step()` or `range()`.
    fn duration_word(&mut self, kind: DurationKind) -> Result<DurationId> {
        let name = self.bump()?;
        self.expect(Token::LeftParen)?;
        let close = self.expect(Token::RightParen)?;
        let span = name.span.to(close.span);
        self.require_duration_expressions(span)?;
        self.grow_duration(span, kind)
    }

    fn duration_binary(
        &mut self,
        left: DurationId,
        op: BinaryOp,
        op_token: Lexed<'_>,
        right: DurationId,
    ) -> Result<DurationId> {
        let left_span = self.duration_span(left);
        self.require_duration_expressions(left_span)?;
        if self
            .duration_literal(right)
            .is_some_and(|number| number.value == 0.0)
        {
            match op {
                BinaryOp::Div => return Err(self.error(op_token.span, "division by zero")),
                BinaryOp::Mod => return Err(self.error(op_token.span, "modulo by zero")),
                _ => {}
            }
        }
        let span = left_span.to(self.duration_span(right));
        self.grow_duration(span, DurationKind::Binary(op, left, right))
    }

    /// A number is negated in place; a plus is dropped.
    fn duration_signed(&mut self, sign: Lexed<'_>, operand: DurationId) -> Result<DurationId> {
        let negate = sign.token == Token::Op(BinaryOp::Sub);
        let span = sign.span.to(self.duration_span(operand));
        if let Some(node) = self.duration.nodes.get_mut(operand.0)
            && let DurationKind::Number(number) = &mut node.kind
        {
            number.value = if negate { -number.value } else { number.value };
            number.span = span;
            node.span = span;
            return Ok(operand);
        }
        if !negate {
            return Ok(operand);
        }
        self.grow_duration(span, DurationKind::Negate(operand))
    }

    /// The end of `min_of(…, …)` or `max_of(…, …)`. Its span is that of its arguments, as in the reference's messages.
    fn duration_choice(
        &mut self,
        which: Preprocessor,
        left: DurationId,
        right: DurationId,
    ) -> Result<DurationId> {
        self.expect(Token::RightParen)?;
        self.count_node()?;
        let span = self.duration_span(left).to(self.duration_span(right));
        self.require_duration_expressions(span)?;
        let kind = match which {
            Preprocessor::MinOf => DurationKind::MinOf(left, right),
            _ => DurationKind::MaxOf(left, right),
        };
        Ok(self.duration.push(DurationNode { span, kind }))
    }

    /// The end of parentheses; those around parentheses add nothing. The span is that of the inside, or starts with the
    /// parenthesis around a number, as in the reference's messages.
    fn duration_paren(&mut self, open: Lexed<'_>, inner: DurationId) -> Result<DurationId> {
        self.expect(Token::RightParen)?;
        let inside = self.duration_span(inner);
        self.require_duration_expressions(inside)?;
        let is_paren = |node: &DurationNode| matches!(node.kind, DurationKind::Paren(_));
        if self.duration.nodes.get(inner.0).is_some_and(is_paren) {
            return Ok(inner);
        }
        let span = match self.duration_literal(inner) {
            Some(_) => open.span.to(inside),
            None => inside,
        };
        self.grow_duration(span, DurationKind::Paren(inner))
    }

    fn grow_duration(&mut self, span: Span, kind: DurationKind) -> Result<DurationId> {
        self.count_node()?;
        Ok(self.duration.push(DurationNode { span, kind }))
    }

    fn duration_span(&self, id: DurationId) -> Span {
        let node = self.duration.nodes.get(id.0);
        node.map_or_else(Span::default, |node| node.span)
    }

    /// The number that a part is, if it is one.
    fn duration_literal(&self, id: DurationId) -> Option<NumberLiteral> {
        match self.duration.nodes.get(id.0)?.kind {
            DurationKind::Number(number) => Some(number),
            _ => None,
        }
    }

    fn require_duration_expressions(&self, span: Span) -> Result<()> {
        if self.options.duration_expressions {
            return Ok(());
        }
        Err(self.error(span, "experimental duration expression is not enabled"))
    }
}

impl DurationExpr {
    fn push(&mut self, node: DurationNode) -> DurationId {
        self.nodes.push(node);
        DurationId(self.nodes.len() - 1)
    }
}

fn is_sign(token: Token) -> bool {
    matches!(token, Token::Op(BinaryOp::Add | BinaryOp::Sub))
}

fn is_arithmetic(op: BinaryOp) -> bool {
    matches!(
        op,
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Pow
    )
}
