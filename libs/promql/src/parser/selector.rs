//! Series selectors: a name, matchers in braces, or both.

use std::sync::Arc;

use koios_model::{METRIC_NAME, MatchOp, Matcher};

use super::primary::is_metric_name;
use super::{Parser, Result};
use crate::ast::{BinaryOp, DurationArg, Expr, ExprId, RangeEdges, Span, VectorSelector};
use crate::lexer::{Lexed, Token};

const EXPECTED_NAME: &str = " in label matching, expected identifier or \"}\"";
const EXPECTED_OPERATOR: &str = " in label matching, expected label matching operator";
const EXPECTED_STRING: &str = " in label matching, expected string";
const EXPECTED_END: &str = " in label matching, expected \",\" or \"}\"";

impl<'a> Parser<'a> {
    pub(super) fn vector_selector(&mut self) -> Result<ExprId> {
        let selector = self.vector_selector_only()?;
        self.grow(Expr::Vector(Box::new(selector)))
    }

    /// A selector whose name was taken.
    pub(super) fn named_selector(&mut self, name: Lexed<'a>) -> Result<ExprId> {
        let selector = self.selector_after(Some(name))?;
        self.grow(Expr::Vector(Box::new(selector)))
    }

    pub(super) fn vector_selector_only(&mut self) -> Result<VectorSelector> {
        let token = self.peek()?;
        if token.token == Token::LeftBrace {
            return self.selector_after(None);
        }
        if !is_metric_name(token.token) {
            return Err(self.unexpected());
        }
        self.bump()?;
        self.selector_after(Some(token))
    }

    fn selector_after(&mut self, name: Option<Lexed<'a>>) -> Result<VectorSelector> {
        let (mut matchers, mut span) = (Vec::new(), name.map_or_else(Span::default, |name| name.span));
        if let Some(open) = self.accept(Token::LeftBrace)? {
            let close = self.matchers(&mut matchers)?;
            span = name.map_or(open.span, |name| name.span).to(close);
        }
        let name = name.map(|name| name.text.to_owned());
        if let Some(name) = &name {
            matchers.push(Matcher::equal(METRIC_NAME, name.as_str()));
        }
        Ok(VectorSelector {
            span,
            name,
            matchers: Arc::from(matchers),
            offset: DurationArg::default(),
            at: None,
            edges: RangeEdges::Plain,
            info_labels: false,
        })
    }

    /// The matchers after `{`; answers where `}` is.
    fn matchers(&mut self, matchers: &mut Vec<Matcher>) -> Result<Span> {
        loop {
            if let Some(close) = self.accept(Token::RightBrace)? {
                return Ok(close.span);
            }
            self.count_node()?;
            let matcher = self.matcher()?;
            matchers.push(matcher);
            match self.peek()?.token {
                Token::Comma => _ = self.bump()?,
                Token::RightBrace => {}
                _ => return Err(self.unexpected_in(EXPECTED_END)),
            }
        }
    }

    fn matcher(&mut self) -> Result<Matcher> {
        let label = self.peek()?;
        let name = match label.token {
            Token::Identifier => label.text.to_owned(),
            Token::String => self.unquoted(label)?.value,
            _ => return Err(self.unexpected_in(EXPECTED_NAME)),
        };
        self.bump()?;
        let op = match self.peek()?.token {
            Token::Assign => MatchOp::Equal,
            Token::Op(BinaryOp::Ne) => MatchOp::NotEqual,
            Token::RegexMatch => MatchOp::Regex,
            Token::RegexMismatch => MatchOp::NotRegex,
            _ if label.token == Token::String => return Ok(Matcher::equal(METRIC_NAME, name)),
            _ => return Err(self.unexpected_in(EXPECTED_OPERATOR)),
        };
        self.bump()?;
        let Some(value) = self.accept(Token::String)? else {
            return Err(self.unexpected_in(EXPECTED_STRING));
        };
        self.compile(op, name, label, value)
    }

    fn compile(&mut self, op: MatchOp, name: String, label: Lexed<'_>, value: Lexed<'_>) -> Result<Matcher> {
        if matches!(op, MatchOp::Regex | MatchOp::NotRegex) {
            self.regexes += 1;
            let limit = self.options.regexes_max;
            if self.regexes > limit {
                return Err(self.too_complex(&format!("more than {limit} regular expressions")));
            }
        }
        let text = self.unquoted(value)?.value;
        let matcher = Matcher::new(op, name, text)
            .map_err(|error| self.error(label.span.to(value.span), error.to_string()))?;
        self.large_regexes += usize::from(matcher.is_large());
        let limit = self.options.large_regexes_max;
        if self.large_regexes > limit {
            return Err(self.too_complex(&format!("more than {limit} large regular expressions")));
        }
        Ok(matcher)
    }
}
