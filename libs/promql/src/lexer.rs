//! Splits a query into tokens, one at a time.
//!
//! What a character means depends on where it stands, so the lexer has modes: outside, inside `{}` (words are never
//! keywords), and at the start of `[]` (arithmetic on durations).

mod literal;
mod token;

use crate::ast::{BinaryOp, Span};
use crate::string_literal::QuotedChar;

use token::keyword;
pub(crate) use token::{Keyword, Lexed, Preprocessor, Token};

/// What the lexer cannot read.
#[derive(Debug)]
pub(crate) struct LexError {
    pub(crate) message: String,
    pub(crate) span: Span,
}

type LexResult = Result<Option<Token>, String>;

/// The lexer's place in the query.
#[derive(Debug)]
pub(crate) struct Lexer<'a> {
    input: &'a str,
    pos: usize,
    /// Where the token being read starts.
    start: usize,
    paren_depth: usize,
    brace_open: bool,
    bracket_open: bool,
    got_colon: bool,
    /// Whether any bracket so far held a number: as in the reference, it is never taken back.
    got_duration: bool,
    /// Inside a bracket, before its first number.
    in_duration: bool,
}

impl<'a> Lexer<'a> {
    pub(crate) fn new(input: &'a str) -> Self {
        Self {
            input,
            pos: 0,
            start: 0,
            paren_depth: 0,
            brace_open: false,
            bracket_open: false,
            got_colon: false,
            got_duration: false,
            in_duration: false,
        }
    }

    /// The next token; comments and spaces are skipped. At the end, `Eof` for ever.
    pub(crate) fn next_token(&mut self) -> Result<Lexed<'a>, LexError> {
        loop {
            self.start = self.pos;
            let read = if self.in_duration {
                self.duration_mode()
            } else if self.brace_open {
                self.brace_mode()
            } else {
                self.statement_mode()
            };
            match read {
                Ok(None) => {}
                Ok(Some(token)) => {
                    let text = self.input.get(self.start..self.pos).unwrap_or_default();
                    return Ok(Lexed {
                        token,
                        text,
                        span: Span::new(self.start, self.pos),
                    });
                }
                Err(message) => {
                    return Err(LexError {
                        message,
                        span: Span::new(self.start, self.input.len()),
                    });
                }
            }
        }
    }

    fn rest(&self) -> &'a str {
        self.input.get(self.pos..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.pos += c.len_utf8();
        Some(c)
    }

    fn accept(&mut self, wanted: impl Fn(char) -> bool) -> bool {
        let hit = self.peek().is_some_and(wanted);
        if hit {
            self.bump();
        }
        hit
    }

    fn accept_run(&mut self, wanted: impl Fn(char) -> bool) {
        while self.accept(&wanted) {}
    }

    fn token_text(&self) -> &'a str {
        self.input.get(self.start..self.pos).unwrap_or_default()
    }

    fn statement_mode(&mut self) -> LexResult {
        let Some(c) = self.bump() else {
            return self.end_of_input();
        };
        Ok(Some(match c {
            '#' => return Ok(self.comment()),
            _ if is_space(c) => return Ok(None),
            ',' => Token::Comma,
            '+' => Token::Op(BinaryOp::Add),
            '-' => Token::Op(BinaryOp::Sub),
            '*' => Token::Op(BinaryOp::Mul),
            '/' => Token::Op(BinaryOp::Div),
            '%' => Token::Op(BinaryOp::Mod),
            '^' => Token::Op(BinaryOp::Pow),
            '@' => Token::At,
            '=' | '!' | '<' | '>' => self.comparison(c)?,
            '"' | '\'' => return self.string(c),
            '`' => return self.raw_string(),
            '(' | ')' => return self.paren(c),
            '{' => {
                self.brace_open = true;
                Token::LeftBrace
            }
            '[' => return self.open_bracket(),
            ']' => {
                if !self.bracket_open {
                    return Err("unexpected right bracket ']'".to_owned());
                }
                self.bracket_open = false;
                Token::RightBracket
            }
            _ if c.is_ascii_digit() || c == '.' && self.peek().is_some_and(|n| n.is_ascii_digit()) => {
                self.pos = self.start;
                return self.number_or_duration();
            }
            _ if is_alpha(c) || c == ':' => return self.word(c),
            _ => return Err(format!("unexpected character: {}", QuotedChar(Some(c)))),
        }))
    }

    fn end_of_input(&self) -> LexResult {
        if self.paren_depth != 0 {
            Err("unclosed left parenthesis".to_owned())
        } else if self.bracket_open {
            Err("unclosed left bracket".to_owned())
        } else {
            Ok(Some(Token::Eof))
        }
    }

    fn comment(&mut self) -> Option<Token> {
        self.accept_run(|c| c != '\n' && c != '\r');
        None
    }

    fn comparison(&mut self, c: char) -> Result<Token, String> {
        let next = self.peek();
        let (token, taken) = match (c, next) {
            ('=', Some('=')) => (Token::Op(BinaryOp::Eq), true),
            ('=', Some('~')) => return Err("unexpected character after '=': '~'".to_owned()),
            ('=', _) => (Token::Assign, false),
            ('!', Some('=')) => (Token::Op(BinaryOp::Ne), true),
            ('!', _) => return Err(format!("unexpected character after '!': {}", QuotedChar(next))),
            ('<', Some('=')) => (Token::Op(BinaryOp::Le), true),
            ('<', Some('/')) => (Token::Op(BinaryOp::TrimUpper), true),
            ('<', _) => (Token::Op(BinaryOp::Lt), false),
            (_, Some('=')) => (Token::Op(BinaryOp::Ge), true),
            (_, Some('/')) => (Token::Op(BinaryOp::TrimLower), true),
            _ => (Token::Op(BinaryOp::Gt), false),
        };
        if taken {
            self.bump();
        }
        Ok(token)
    }

    fn paren(&mut self, c: char) -> LexResult {
        if c == '(' {
            self.paren_depth += 1;
            return Ok(Some(Token::LeftParen));
        }
        let Some(depth) = self.paren_depth.checked_sub(1) else {
            self.start = self.pos;
            return Err("unexpected right parenthesis ')'".to_owned());
        };
        self.paren_depth = depth;
        Ok(Some(Token::RightParen))
    }

    fn open_bracket(&mut self) -> LexResult {
        if self.bracket_open {
            return Err("unexpected left bracket '['".to_owned());
        }
        self.got_colon = false;
        self.bracket_open = true;
        self.in_duration = true;
        Ok(Some(Token::LeftBracket))
    }

    /// A word outside brackets; inside them only a colon or a duration keyword.
    fn word(&mut self, c: char) -> LexResult {
        if !self.bracket_open {
            self.pos = self.start;
            return Ok(Some(self.keyword_or_identifier()));
        }
        if c == ':' {
            if self.got_colon {
                return Err("unexpected colon ':'".to_owned());
            }
            self.got_colon = true;
            return Ok(Some(Token::Colon));
        }
        self.duration_keyword(c).map_or_else(
            || {
                Err(format!(
                    "unexpected character: {}, expected ':'",
                    QuotedChar(Some(c))
                ))
            },
            |token| Ok(Some(token)),
        )
    }

    fn duration_keyword(&mut self, first: char) -> Option<Token> {
        if !matches!(first.to_ascii_lowercase(), 's' | 'r' | 'm') {
            return None;
        }
        self.accept_run(is_alpha);
        match self.token_text().to_ascii_lowercase().as_str() {
            "step" => Some(Token::Preprocessor(Preprocessor::Step)),
            "range" => Some(Token::Preprocessor(Preprocessor::Range)),
            "max_of" => Some(Token::Preprocessor(Preprocessor::MaxOf)),
            "min_of" => Some(Token::Preprocessor(Preprocessor::MinOf)),
            _ => None,
        }
    }

    /// After `[`, until the first number.
    fn duration_mode(&mut self) -> LexResult {
        let Some(c) = self.bump() else {
            return Err("unexpected end of input in duration expression".to_owned());
        };
        Ok(Some(match c {
            ']' => {
                self.bracket_open = false;
                self.got_colon = false;
                self.in_duration = false;
                Token::RightBracket
            }
            ':' => return self.colon_in_duration(),
            '(' | ')' => return self.paren(c),
            _ if is_space(c) => return Ok(None),
            '+' => Token::Op(BinaryOp::Add),
            '-' => Token::Op(BinaryOp::Sub),
            '*' => Token::Op(BinaryOp::Mul),
            '/' => Token::Op(BinaryOp::Div),
            '%' => Token::Op(BinaryOp::Mod),
            '^' => Token::Op(BinaryOp::Pow),
            ',' => Token::Comma,
            _ if c.is_ascii_digit() || c == '.' && self.peek().is_some_and(|n| n.is_ascii_digit()) => {
                self.pos = self.start;
                self.got_duration = true;
                self.in_duration = false;
                return self.number_or_duration();
            }
            _ => match self.duration_keyword(c) {
                Some(token) => token,
                None => {
                    return Err(format!(
                        "unexpected character in duration expression: {}",
                        QuotedChar(Some(c))
                    ));
                }
            },
        }))
    }

    fn colon_in_duration(&mut self) -> LexResult {
        let wrong = match (self.got_duration, self.got_colon) {
            (false, _) => Some("unexpected colon before duration in duration expression"),
            (true, true) => Some("unexpected repeated colon in duration expression"),
            (true, false) => None,
        };
        if let Some(message) = wrong {
            self.start = self.pos;
            return Err(message.to_owned());
        }
        self.got_colon = true;
        Ok(Some(Token::Colon))
    }

    fn brace_mode(&mut self) -> LexResult {
        let Some(c) = self.bump() else {
            return Err("unexpected end of input inside braces".to_owned());
        };
        Ok(Some(match c {
            '#' => return Ok(self.comment()),
            _ if is_space(c) => return Ok(None),
            _ if is_alpha(c) => {
                self.accept_run(is_alphanumeric);
                Token::Identifier
            }
            ',' => Token::Comma,
            '"' | '\'' => return self.string(c),
            '`' => return self.raw_string(),
            '=' if self.accept(|n| n == '~') => Token::RegexMatch,
            '=' => Token::Assign,
            '!' => match self.bump() {
                Some('~') => Token::RegexMismatch,
                Some('=') => Token::Op(BinaryOp::Ne),
                other => {
                    return Err(format!(
                        "unexpected character after '!' inside braces: {}",
                        QuotedChar(other)
                    ));
                }
            },
            '{' => return Err("unexpected left brace '{'".to_owned()),
            '}' => {
                self.brace_open = false;
                Token::RightBrace
            }
            _ => {
                return Err(format!(
                    "unexpected character inside braces: {}",
                    QuotedChar(Some(c))
                ));
            }
        }))
    }

    fn keyword_or_identifier(&mut self) -> Token {
        self.accept_run(|c| is_alphanumeric(c) || c == ':');
        let word = self.token_text();
        match keyword(&word.to_ascii_lowercase()) {
            Some(Token::Keyword(Keyword::Fill | Keyword::FillLeft | Keyword::FillRight))
                if !self.rest().trim_start_matches(is_space).starts_with('(') =>
            {
                Token::Identifier
            }
            Some(token) => token,
            None if word.contains(':') => Token::MetricIdentifier,
            None => Token::Identifier,
        }
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

fn is_alpha(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

fn is_alphanumeric(c: char) -> bool {
    is_alpha(c) || c.is_ascii_digit()
}
