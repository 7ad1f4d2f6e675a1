//! The parser: a Pratt parser over the lexer's tokens, then the type check.
//!
//! The first mistake ends the parse. Recursion is bounded by [`ParseOptions::nesting_max`] and the height of the tree by
//! [`ParseOptions::depth_max`], so that neither parsing, nor walking, nor dropping a tree can exhaust the stack.

mod check;
mod durations;
mod modifiers;
mod primary;
mod selector;

use koios_model::Matcher;

use crate::ast::{BinaryExpr, BinaryOp, Cardinality, Expr, FillValues, Span, UnaryExpr, VectorMatching};
use crate::context::{QueryContext, Uninterrupted};
use crate::lexer::{Keyword, LexError, Lexed, Lexer, Token};

/// What to accept.
#[derive(Clone, Debug)]
pub struct ParseOptions {
    /// Experimental functions and aggregations. On by default.
    pub experimental_functions: bool,
    /// Arithmetic in ranges, steps and offsets. On by default.
    pub duration_expressions: bool,
    /// `anchored` and `smoothed`. On by default.
    pub extended_range_selectors: bool,
    /// `fill`, `fill_left` and `fill_right`. On by default.
    pub fill_modifiers: bool,
    /// Most nodes and matchers in a query.
    pub nodes_max: usize,
    /// Most levels of a query; each operand of a chain such as `1+1+1` is a level.
    pub depth_max: usize,
    /// Most levels of parentheses, calls, signs and right operands within each other.
    pub nesting_max: usize,
    /// Most regular expressions in a query: each takes up to some hundred kilobytes.
    pub regexes_max: usize,
    /// Most regular expressions that take megabytes.
    pub large_regexes_max: usize,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self {
            experimental_functions: true,
            duration_expressions: true,
            extended_range_selectors: true,
            fill_modifiers: true,
            nodes_max: 10_000,
            depth_max: 256,
            nesting_max: 128,
            regexes_max: 200,
            large_regexes_max: 8,
        }
    }
}

impl ParseOptions {
    /// Without what Prometheus keeps behind feature flags.
    pub fn stable() -> Self {
        Self {
            experimental_functions: false,
            duration_expressions: false,
            extended_range_selectors: false,
            fill_modifiers: false,
            ..Self::default()
        }
    }
}

/// Why a query is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{position}: parse error: {message}")]
pub struct ParseError {
    /// The bytes of the query it is about.
    pub span: Span,
    /// Where they start, as `line:column`.
    pub position: String,
    /// What is wrong, in Prometheus' words.
    pub message: String,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Parses and checks a query, all features on.
///
/// # Errors
/// [`ParseError`] with the first mistake.
pub fn parse(query: &str) -> Result<Expr> {
    parse_with(query, &ParseOptions::default())
}

/// Parses and checks a query.
///
/// # Errors
/// [`ParseError`] with the first mistake.
pub fn parse_with(query: &str, options: &ParseOptions) -> Result<Expr> {
    parse_within(query, options, &Uninterrupted)
}

/// Parses and checks a query; gives up with some error once `ctx` wants to stop.
pub(crate) fn parse_within(query: &str, options: &ParseOptions, ctx: &dyn QueryContext) -> Result<Expr> {
    let mut parser = Parser::new(query, options, ctx);
    if parser.peek()?.token == Token::Eof {
        return Err(parser.error(Span::default(), "no expression found in input"));
    }
    let mut parsed = parser.expr(0)?;
    parser.expect_end()?;
    check::Checker { query }.check(&mut parsed.expr)?;
    Ok(parsed.expr)
}

/// Parses a series selector such as `up{job="a"}`, as `match[]` has it.
///
/// # Errors
/// [`ParseError`] with the first mistake. That all matchers match the empty string is none.
pub fn parse_metric_selector(selector: &str) -> Result<Vec<Matcher>> {
    let options = ParseOptions::default();
    let mut parser = Parser::new(selector, &options, &Uninterrupted);
    let selector = parser.vector_selector_only()?;
    parser.expect_end()?;
    Ok(selector.matchers.to_vec())
}

/// An expression and the height of its tree.
struct Parsed {
    expr: Expr,
    height: usize,
}

/// The innermost construct that names itself in messages about unexpected tokens.
#[derive(Clone, Copy, Debug)]
enum Context {
    Query,
    Aggregation,
    Offset,
    At,
    Range,
    RangeEnd,
    Step,
    StepEnd,
}

impl Context {
    fn suffix(self) -> &'static str {
        match self {
            Self::Query => "",
            Self::Aggregation => " in aggregation",
            Self::Offset => " in offset, expected number, duration, step(), or range()",
            Self::At => " in @, expected timestamp",
            Self::Range => " in subquery or range selector, expected number, duration, step(), or range()",
            Self::RangeEnd => " in subquery or range, expected \":\" or \"]\"",
            Self::Step => " in subquery selector, expected number, duration, step(), range(), or \"]\"",
            Self::StepEnd => " in subquery selector, expected \"]\"",
        }
    }
}

struct Parser<'a> {
    query: &'a str,
    options: &'a ParseOptions,
    ctx: &'a dyn QueryContext,
    lexer: Lexer<'a>,
    /// Read lazily: a token that cannot be read is a mistake only once it is needed.
    ahead: Option<Lexed<'a>>,
    /// The token taken last.
    last: Span,
    context: Context,
    nesting: usize,
    nodes: usize,
    regexes: usize,
    large_regexes: usize,
}

/// Binds tighter than any binary operator but `^`.
const UNARY_POWER: u8 = 6;

fn power(op: BinaryOp) -> u8 {
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
fn right_power(op: BinaryOp) -> u8 {
    if op == BinaryOp::Pow {
        power(op)
    } else {
        power(op) + 1
    }
}

impl<'a> Parser<'a> {
    fn new(query: &'a str, options: &'a ParseOptions, ctx: &'a dyn QueryContext) -> Self {
        Self {
            query,
            options,
            ctx,
            lexer: Lexer::new(query),
            ahead: None,
            last: Span::default(),
            context: Context::Query,
            nesting: 0,
            nodes: 0,
            regexes: 0,
            large_regexes: 0,
        }
    }

    fn error(&self, span: Span, message: impl Into<String>) -> ParseError {
        ParseError {
            span,
            position: span.position_in(self.query),
            message: message.into(),
        }
    }

    fn peek(&mut self) -> Result<Lexed<'a>> {
        if let Some(token) = self.ahead {
            return Ok(token);
        }
        match self.lexer.next_token() {
            Ok(token) => {
                self.ahead = Some(token);
                Ok(token)
            }
            Err(LexError { message, span }) => Err(self.error(span, message)),
        }
    }

    fn bump(&mut self) -> Result<Lexed<'a>> {
        let token = self.peek()?;
        self.ahead = None;
        self.last = token.span;
        Ok(token)
    }

    /// Takes the token if it is the wanted one.
    fn accept(&mut self, wanted: Token) -> Result<Option<Lexed<'a>>> {
        if self.peek()?.token != wanted {
            return Ok(None);
        }
        self.bump().map(Some)
    }

    fn accept_keyword(&mut self, wanted: Keyword) -> Result<Option<Lexed<'a>>> {
        self.accept(Token::Keyword(wanted))
    }

    /// Takes the wanted token; anything else is unexpected in the current context.
    fn expect(&mut self, wanted: Token) -> Result<Lexed<'a>> {
        match self.accept(wanted)? {
            Some(token) => Ok(token),
            None => Err(self.unexpected()),
        }
    }

    fn expect_end(&mut self) -> Result<()> {
        self.expect(Token::Eof).map(|_| ())
    }

    /// The error about the token ahead, in the current context.
    fn unexpected(&mut self) -> ParseError {
        self.unexpected_in(self.context.suffix())
    }

    fn unexpected_in(&mut self, suffix: &str) -> ParseError {
        match self.peek() {
            Ok(token) => self.error(token.span, format!("unexpected {token}{suffix}")),
            Err(error) => error,
        }
    }

    fn within<T>(&mut self, context: Context, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let outer = std::mem::replace(&mut self.context, context);
        let parsed = parse(self);
        self.context = outer;
        parsed
    }

    /// Runs one level of recursion.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.nesting += 1;
        if self.nesting > self.options.nesting_max {
            return Err(self.too_deep(self.options.nesting_max));
        }
        let parsed = parse(self);
        self.nesting -= 1;
        parsed
    }

    /// Counts a node and bounds the tree's height, given the heights of its children.
    fn grow(&mut self, children: usize) -> Result<usize> {
        self.count_node()?;
        let height = children + 1;
        if height > self.options.depth_max {
            return Err(self.too_deep(self.options.depth_max));
        }
        Ok(height)
    }

    fn count_node(&mut self) -> Result<()> {
        self.nodes += 1;
        if self.ctx.interrupted().is_some() {
            return Err(self.error(Span::default(), "interrupted"));
        }
        if self.nodes > self.options.nodes_max {
            let limit = self.options.nodes_max;
            return Err(self.too_complex(&format!("more than {limit} nodes")));
        }
        Ok(())
    }

    fn too_deep(&self, limit: usize) -> ParseError {
        self.too_complex(&format!("more than {limit} levels"))
    }

    fn too_complex(&self, what: &str) -> ParseError {
        let at = self.ahead.map_or_else(Span::default, |token| token.span);
        self.error(
            at,
            format!("query too complex (depth/nodes): {what}; split it, for instance by recording rules"),
        )
    }

    /// An expression whose binary operators all bind at least as tight as `power_min`.
    fn expr(&mut self, power_min: u8) -> Result<Parsed> {
        self.nested(|parser| {
            let mut left = parser.operand()?;
            while let Token::Op(op) = parser.peek()?.token {
                if power(op) < power_min {
                    break;
                }
                left = parser.binary(left, op)?;
            }
            Ok(left)
        })
    }

    /// An operand with its signs; a sign binds less than `^` and than any modifier.
    fn operand(&mut self) -> Result<Parsed> {
        let sign = self.peek()?;
        let negate = match sign.token {
            Token::Op(BinaryOp::Add) => false,
            Token::Op(BinaryOp::Sub) => true,
            _ => {
                let primary = self.primary()?;
                return self.modifiers(primary);
            }
        };
        self.bump()?;
        let Parsed { expr, height } = self.expr(UNARY_POWER)?;
        let span = sign.span.to(expr.span());
        if let Expr::Number(mut number) = expr {
            number.value = if negate { -number.value } else { number.value };
            number.span = span;
            return Ok(Parsed {
                expr: Expr::Number(number),
                height,
            });
        }
        let height = self.grow(height)?;
        Ok(Parsed {
            expr: Expr::Unary(Box::new(UnaryExpr { span, negate, expr })),
            height,
        })
    }

    fn binary(&mut self, left: Parsed, op: BinaryOp) -> Result<Parsed> {
        let op_token = self.bump()?;
        let return_bool = self.accept_keyword(Keyword::Bool)?.is_some();
        let matching = self.vector_matching()?;
        // The end of the operator with its modifiers is where the next operand starts.
        let op_end = self.peek()?.span.start;
        let right = self.expr(right_power(op))?;
        let height = self.grow(left.height.max(right.height))?;
        let span = left.expr.span().to(right.expr.span());
        if !self.options.fill_modifiers && matching.fill != FillValues::default() {
            return Err(self.error(span, "binop fill modifiers are experimental and not enabled"));
        }
        let op_span = Span {
            start: op_token.span.start,
            end: op_end,
        };
        let expr = BinaryExpr {
            span,
            op_span,
            op,
            lhs: left.expr,
            rhs: right.expr,
            matching: Some(matching),
            return_bool,
        };
        Ok(Parsed {
            expr: Expr::Binary(Box::new(expr)),
            height,
        })
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
