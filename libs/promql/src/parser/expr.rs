//! Operators and their operands. What waits for an operand lies in a list of frames instead of on the stack.

use super::primary::{Arguments, OpenAggregate};
use super::{Parser, Result};
use crate::ast::{
    BinaryExpr, BinaryOp, Cardinality, Expr, ExprId, FillValues, ParenExpr, Span, UnaryExpr, VectorMatching,
};
use crate::lexer::{Keyword, Lexed, Token};

/// Binds tighter than any binary operator but `^`.
pub(super) const UNARY_POWER: u8 = 6;

pub(super) fn power(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And | BinaryOp::Unless => 2,
        BinaryOp::Eq
        | BinaryOp::Ne
        | BinaryOp::Gt
        | BinaryOp::Lt
        | BinaryOp::Ge
        | BinaryOp::Le
        | BinaryOp::TrimUpper
        | BinaryOp::TrimLower => 3,
        BinaryOp::Add | BinaryOp::Sub => 4,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Mod | BinaryOp::Atan2 => 5,
        BinaryOp::Pow => 6,
    }
}

/// The least power the right operand's operators must have.
pub(super) fn right_power(op: BinaryOp) -> u8 {
    if op == BinaryOp::Pow {
        power(op)
    } else {
        power(op) + 1
    }
}

/// What waits for an operand.
pub(super) enum Frame<'a> {
    /// An expression whose binary operators all bind at least as tight as this.
    Level(u8),
    /// A sign.
    Sign(Lexed<'a>),
    /// An operator, for its right operand; until then the left one stands for it.
    Binary(Box<BinaryExpr>),
    /// An open parenthesis.
    Paren(Span),
    /// A function, for an argument.
    Call(Lexed<'a>, Arguments),
    /// An aggregation, for an argument.
    Aggregate(Box<OpenAggregate<'a>>),
}

impl<'a> Parser<'a> {
    /// An expression, up to what cannot go on with it.
    pub(super) fn expr(&mut self) -> Result<ExprId> {
        let mut frames = Vec::with_capacity(8);
        self.begin(&mut frames, 0)?;
        loop {
            let mut operand = self.operand(&mut frames)?;
            // As long as there is one, it goes to what waits for it last.
            while let Some(done) = operand {
                operand = match frames.pop() {
                    Some(frame) => self.go_on(frame, done, &mut frames)?,
                    None => return Ok(done),
                };
            }
        }
    }

    /// Begins an expression whose binary operators all bind at least as tight as `power_min`.
    pub(super) fn begin(&mut self, frames: &mut Vec<Frame<'a>>, power_min: u8) -> Result<()> {
        self.nest()?;
        frames.push(Frame::Level(power_min));
        Ok(())
    }

    /// An operand; `None` if one has begun that waits for another.
    fn operand(&mut self, frames: &mut Vec<Frame<'a>>) -> Result<Option<ExprId>> {
        let sign = self.peek()?;
        if !matches!(sign.token, Token::Op(BinaryOp::Add | BinaryOp::Sub)) {
            return self.primary(frames);
        }
        self.bump()?;
        frames.push(Frame::Sign(sign));
        // A sign binds less than `^` and than any modifier.
        self.begin(frames, UNARY_POWER)?;
        Ok(None)
    }

    /// Gives an operand to what waits for it; `None` if that waits for another.
    fn go_on(
        &mut self,
        frame: Frame<'a>,
        operand: ExprId,
        frames: &mut Vec<Frame<'a>>,
    ) -> Result<Option<ExprId>> {
        match frame {
            Frame::Level(power_min) => {
                if let Token::Op(op) = self.peek()?.token
                    && power(op) >= power_min
                {
                    frames.push(frame);
                    frames.push(Frame::Binary(self.operator(operand, op)?));
                    self.begin(frames, right_power(op))?;
                    return Ok(None);
                }
                self.nesting -= 1;
                Ok(Some(operand))
            }
            Frame::Sign(sign) => self.signed(sign, operand).map(Some),
            Frame::Binary(open) => self.binary(open, operand).map(Some),
            Frame::Paren(open) => {
                let close = self.expect(Token::RightParen)?;
                let span = open.to(close.span);
                let paren = self.grow(Expr::Paren(Box::new(ParenExpr { span, expr: operand })))?;
                self.modifiers(paren).map(Some)
            }
            Frame::Call(name, args) => self.call(name, args, operand, frames),
            Frame::Aggregate(open) => self.aggregate(open, operand, frames),
        }
    }

    fn signed(&mut self, sign: Lexed<'_>, operand: ExprId) -> Result<ExprId> {
        let negate = sign.token == Token::Op(BinaryOp::Sub);
        let span = sign.span.to(self.ast[operand].span());
        if let Expr::Number(number) = self.ast.expr_mut(operand) {
            number.value = if negate { -number.value } else { number.value };
            number.span = span;
            return Ok(operand);
        }
        self.grow(Expr::Unary(Box::new(UnaryExpr {
            span,
            negate,
            expr: operand,
        })))
    }

    /// An operator with its modifiers.
    fn operator(&mut self, lhs: ExprId, op: BinaryOp) -> Result<Box<BinaryExpr>> {
        let op_token = self.bump()?;
        let return_bool = self.accept_keyword(Keyword::Bool)?.is_some();
        let matching = self.vector_matching()?;
        // The end of the operator with its modifiers is where the next operand starts.
        let end = self.peek()?.span.start;
        let start = op_token.span.start;
        Ok(Box::new(BinaryExpr {
            span: self.ast[lhs].span(),
            op_span: Span { start, end },
            op,
            lhs,
            rhs: lhs,
            matching: Some(matching),
            return_bool,
        }))
    }

    fn binary(&mut self, mut binary: Box<BinaryExpr>, rhs: ExprId) -> Result<ExprId> {
        self.count_node()?;
        binary.rhs = rhs;
        binary.span = binary.span.to(self.ast[rhs].span());
        let fills = |matching: &VectorMatching| matching.fill != FillValues::default();
        if !self.options.fill_modifiers && binary.matching.as_ref().is_some_and(fills) {
            let message = "binop fill modifiers are experimental and not enabled";
            return Err(self.error(binary.span, message));
        }
        Ok(self.ast.push(Expr::Binary(binary)))
    }

    /// `on`, `ignoring`, `group_left`, `group_right` and the `fill` modifiers.
    fn vector_matching(&mut self) -> Result<VectorMatching> {
        let mut matching = VectorMatching {
            card: Cardinality::OneToOne,
            labels: Vec::new(),
            on: false,
            include: Vec::new(),
            fill: FillValues::default(),
        };
        let on = self.accept_keyword(Keyword::On)?.is_some();
        if on || self.accept_keyword(Keyword::Ignoring)?.is_some() {
            matching.on = on;
            matching.labels = self.grouping_labels()?;
            matching.card = match self.peek()?.token {
                Token::Keyword(Keyword::GroupLeft) => Cardinality::ManyToOne,
                Token::Keyword(Keyword::GroupRight) => Cardinality::OneToMany,
                _ => Cardinality::OneToOne,
            };
            if matching.card != Cardinality::OneToOne {
                self.bump()?;
                if self.peek()?.token == Token::LeftParen {
                    matching.include = self.grouping_labels()?;
                }
            }
        }
        matching.fill = self.fill_values()?;
        Ok(matching)
    }

    fn fill_values(&mut self) -> Result<FillValues> {
        let mut fill = FillValues::default();
        if self.accept_keyword(Keyword::Fill)?.is_some() {
            let value = Some(self.fill_value()?);
            return Ok(FillValues {
                lhs: value,
                rhs: value,
            });
        }
        for _ in 0..2 {
            if fill.lhs.is_none() && self.accept_keyword(Keyword::FillLeft)?.is_some() {
                fill.lhs = Some(self.fill_value()?);
            } else if fill.rhs.is_none() && self.accept_keyword(Keyword::FillRight)?.is_some() {
                fill.rhs = Some(self.fill_value()?);
            }
        }
        Ok(fill)
    }

    fn fill_value(&mut self) -> Result<f64> {
        self.expect(Token::LeftParen)?;
        let value = self.signed_number()?;
        self.expect(Token::RightParen)?;
        Ok(value)
    }
}
