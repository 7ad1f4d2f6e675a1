//! Tokens, and how error messages name them.

use std::fmt;

use crate::ast::{AggregateOp, BinaryOp, Span};
use crate::string_literal::Quoted;

/// The kind of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Eof,
    Comma,
    Colon,
    Assign,
    LeftBrace,
    RightBrace,
    LeftBracket,
    RightBracket,
    LeftParen,
    RightParen,
    Number,
    Duration,
    String,
    /// A word without a colon.
    Identifier,
    /// A word with a colon.
    MetricIdentifier,
    Op(BinaryOp),
    At,
    RegexMatch,
    RegexMismatch,
    Aggregate(AggregateOp),
    Keyword(Keyword),
    Preprocessor(Preprocessor),
}

/// A word with a meaning in the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keyword {
    Anchored,
    Bool,
    By,
    Fill,
    FillLeft,
    FillRight,
    GroupLeft,
    GroupRight,
    Ignoring,
    Offset,
    On,
    Smoothed,
    Without,
}

/// A word that stands for a part of the query's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preprocessor {
    End,
    MaxOf,
    MinOf,
    Range,
    Start,
    Step,
}

/// A token and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lexed<'a> {
    pub(crate) token: Token,
    pub(crate) text: &'a str,
    pub(crate) span: Span,
}

/// The token as error messages name it.
impl fmt::Display for Lexed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text;
        match self.token {
            Token::Eof => f.write_str("end of input"),
            Token::Keyword(_) => write!(f, "<{text}>"),
            Token::Aggregate(_) => write!(f, "<aggr:{text}>"),
            Token::Op(_) | Token::At | Token::RegexMatch | Token::RegexMismatch => write!(f, "<op:{text}>"),
            Token::Identifier => write!(f, "identifier {}", Quoted(text)),
            Token::MetricIdentifier => write!(f, "metric identifier {}", Quoted(text)),
            Token::String => write!(f, "string {}", Shortened(text)),
            Token::Number => write!(f, "number {}", Shortened(text)),
            Token::Duration => write!(f, "duration {}", Shortened(text)),
            _ => write!(f, "{}", Shortened(text)),
        }
    }
}

/// A text quoted, its first ten characters if it is longer than that.
struct Shortened<'a>(&'a str);

impl fmt::Display for Shortened<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 10 {
            return write!(f, "{}", Quoted(self.0));
        }
        let end = self.0.char_indices().nth(10).map_or(self.0.len(), |(at, _)| at);
        write!(f, "{}...", Quoted(self.0.get(..end).unwrap_or(self.0)))
    }
}

/// The meaning of a lower-case word, if it has one.
pub(super) fn keyword(word: &str) -> Option<Token> {
    Some(match word {
        "inf" | "nan" => Token::Number,
        "and" => Token::Op(BinaryOp::And),
        "or" => Token::Op(BinaryOp::Or),
        "unless" => Token::Op(BinaryOp::Unless),
        "atan2" => Token::Op(BinaryOp::Atan2),
        "sum" => Token::Aggregate(AggregateOp::Sum),
        "avg" => Token::Aggregate(AggregateOp::Avg),
        "count" => Token::Aggregate(AggregateOp::Count),
        "min" => Token::Aggregate(AggregateOp::Min),
        "max" => Token::Aggregate(AggregateOp::Max),
        "group" => Token::Aggregate(AggregateOp::Group),
        "stddev" => Token::Aggregate(AggregateOp::Stddev),
        "stdvar" => Token::Aggregate(AggregateOp::Stdvar),
        "topk" => Token::Aggregate(AggregateOp::Topk),
        "bottomk" => Token::Aggregate(AggregateOp::Bottomk),
        "count_values" => Token::Aggregate(AggregateOp::CountValues),
        "quantile" => Token::Aggregate(AggregateOp::Quantile),
        "limitk" => Token::Aggregate(AggregateOp::Limitk),
        "limit_ratio" => Token::Aggregate(AggregateOp::LimitRatio),
        "anchored" => Token::Keyword(Keyword::Anchored),
        "bool" => Token::Keyword(Keyword::Bool),
        "by" => Token::Keyword(Keyword::By),
        "fill" => Token::Keyword(Keyword::Fill),
        "fill_left" => Token::Keyword(Keyword::FillLeft),
        "fill_right" => Token::Keyword(Keyword::FillRight),
        "group_left" => Token::Keyword(Keyword::GroupLeft),
        "group_right" => Token::Keyword(Keyword::GroupRight),
        "ignoring" => Token::Keyword(Keyword::Ignoring),
        "offset" => Token::Keyword(Keyword::Offset),
        "on" => Token::Keyword(Keyword::On),
        "smoothed" => Token::Keyword(Keyword::Smoothed),
        "without" => Token::Keyword(Keyword::Without),
        "end" => Token::Preprocessor(Preprocessor::End),
        "max_of" => Token::Preprocessor(Preprocessor::MaxOf),
        "min_of" => Token::Preprocessor(Preprocessor::MinOf),
        "range" => Token::Preprocessor(Preprocessor::Range),
        "start" => Token::Preprocessor(Preprocessor::Start),
        "step" => Token::Preprocessor(Preprocessor::Step),
        _ => return None,
    })
}
