//! The parser: by the power of operators, over the lexer's tokens; then the type check.
//!
//! The first mistake ends the parse. Nothing here recurses over a query: what waits for its operands lies in lists of
//! frames, which [`ParseOptions::depth_max`] bounds, and the tree is a list, too ([`Ast`]).

mod check;
mod durations;
mod expr;
mod modifiers;
mod primary;
mod selector;

use koios_model::Matcher;

use crate::ast::{Ast, DurationExpr, Expr, ExprId, Span};
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
    /// Most expressions, parts of durations and matchers in braces in a query.
    pub nodes_max: usize,
    /// Most levels of parentheses, calls, signs and right operands within each other.
    pub depth_max: usize,
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
            depth_max: 10_000,
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
pub fn parse(query: &str) -> Result<Ast> {
    parse_with(query, &ParseOptions::default())
}

/// Parses and checks a query.
///
/// # Errors
/// [`ParseError`] with the first mistake.
pub fn parse_with(query: &str, options: &ParseOptions) -> Result<Ast> {
    parse_within(query, options, &Uninterrupted)
}

/// Parses and checks a query; gives up with some error once `ctx` wants to stop.
pub(crate) fn parse_within(query: &str, options: &ParseOptions, ctx: &dyn QueryContext) -> Result<Ast> {
    let mut parser = Parser::new(query, options, ctx);
    if parser.peek()?.token == Token::Eof {
        return Err(parser.error(Span::default(), "no expression found in input"));
    }
    parser.expr()?;
    parser.expect_end()?;
    check::check(query, &mut parser.ast)?;
    Ok(parser.ast)
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
    /// What was read so far.
    ast: Ast,
    /// What was read so far of a duration expression.
    duration: DurationExpr,
    nesting: usize,
    nodes: usize,
    regexes: usize,
    large_regexes: usize,
}

/// How long an expression is, about: for so many there is room from the start, up to some.
const BYTES_PER_EXPR: usize = 8;
const FORESEEN_EXPRS_MAX: usize = 24;

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
            ast: Ast::with_capacity((query.len() / BYTES_PER_EXPR).min(FORESEEN_EXPRS_MAX)),
            duration: DurationExpr::default(),
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

    /// Goes one level deeper.
    fn nest(&mut self) -> Result<()> {
        self.nesting += 1;
        let limit = self.options.depth_max;
        if self.nesting > limit {
            return Err(self.too_complex(&format!("more than {limit} levels")));
        }
        Ok(())
    }

    /// Adds an expression to the tree.
    fn grow(&mut self, expr: Expr) -> Result<ExprId> {
        self.count_node()?;
        Ok(self.ast.push(expr))
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

    fn too_complex(&self, what: &str) -> ParseError {
        let at = self.ahead.map_or(self.last, |token| token.span);
        self.error(
            at,
            format!("query too complex (depth/nodes): {what}; split it, for instance by recording rules"),
        )
    }
}
