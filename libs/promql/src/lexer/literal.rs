//! Strings and numbers.

use std::fmt;

use super::{LexResult, Lexer, Token, is_alphanumeric};
use crate::string_literal::{Quoted, QuotedChar};

impl Lexer<'_> {
    pub(super) fn string(&mut self, quote: char) -> LexResult {
        loop {
            match self.bump() {
                Some('\\') => self.escape(quote)?,
                Some(char::REPLACEMENT_CHARACTER) => return Err("invalid UTF-8 rune".to_owned()),
                None | Some('\n') => return Err("unterminated quoted string".to_owned()),
                Some(c) if c == quote => return Ok(Some(Token::String)),
                Some(_) => {}
            }
        }
    }

    pub(super) fn raw_string(&mut self) -> LexResult {
        loop {
            match self.bump() {
                Some(char::REPLACEMENT_CHARACTER) => return Err("invalid UTF-8 rune".to_owned()),
                None => return Err("unterminated raw string".to_owned()),
                Some('`') => return Ok(Some(Token::String)),
                Some(_) => {}
            }
        }
    }

    fn escape(&mut self, quote: char) -> Result<(), String> {
        let unterminated = || "escape sequence not terminated".to_owned();
        let c = self.bump().ok_or_else(unterminated)?;
        let (mut digits, base, max, mut value) = match c {
            'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\' => return Ok(()),
            _ if c == quote => return Ok(()),
            '0'..='7' => (2, 8, 255, c as u32 - '0' as u32),
            'x' => (2, 16, 255, 0),
            'u' => (4, 16, char::MAX as u32, 0),
            'U' => (8, 16, char::MAX as u32, 0),
            _ => return Err(format!("unknown escape sequence {}", CodePoint(c))),
        };
        while digits > 0 {
            let d = self.bump().ok_or_else(unterminated)?;
            let digit = d.to_digit(base);
            let digit =
                digit.ok_or_else(|| format!("illegal character {} in escape sequence", CodePoint(d)))?;
            value = value.wrapping_mul(base).wrapping_add(digit);
            digits -= 1;
        }
        if value > max || (0xD800..0xE000).contains(&value) {
            return Err("escape sequence is an invalid Unicode code point".to_owned());
        }
        Ok(())
    }

    pub(super) fn number_or_duration(&mut self) -> LexResult {
        if self.scan_number() {
            return Ok(Some(Token::Number));
        }
        if self.accept_duration_units() {
            return Ok(Some(Token::Duration));
        }
        Err(format!(
            "bad number or duration syntax: {}",
            Quoted(self.token_text())
        ))
    }

    /// Takes the rest of a duration whose first number was taken; a wrong character is taken too, for the message.
    fn accept_duration_units(&mut self) -> bool {
        let mut units = "smhdwy";
        loop {
            if !self.accept(|c| units.contains(c)) {
                return false;
            }
            // For "ms"; a wrong unit such as "hs" is found when the duration is parsed.
            self.accept(|c| c == 's');
            if !self.accept(|c| c.is_ascii_digit()) {
                return !self.accept(is_alphanumeric);
            }
            self.accept_run(|c| c.is_ascii_digit());
            units = "smhdw";
        }
    }

    /// Takes what looks like a number; whether it is one is found when it is parsed. Where the scan stopped matters
    /// for durations and messages.
    fn scan_number(&mut self) -> bool {
        let before = self.pos;
        let mut hex = false;
        if self.accept(|c| c == '0') && self.accept(|c| matches!(c, 'x' | 'X')) {
            self.accept(|c| c == '_');
            hex = true;
        }
        let digit = digit_of(hex);
        self.accept(|c| c == '.');
        self.accept(digit);
        let (mut dot, mut exponent) = (false, false);
        while let Some(c) = self
            .peek()
            .filter(|c| digit(*c) || matches!(c, '.' | '_' | 'e' | 'E'))
        {
            let seen = match c {
                '.' => Some(&mut dot),
                'e' | 'E' => Some(&mut exponent),
                _ => None,
            };
            let repeated = seen.is_some_and(|seen| std::mem::replace(seen, true));
            if !self.number_part(c, hex) || repeated {
                return false;
            }
        }
        self.pos != before && !self.peek().is_some_and(is_alphanumeric)
    }

    /// Takes a dot, an exponent's mark with its sign, an underscore, or digits.
    fn number_part(&mut self, c: char, hex: bool) -> bool {
        match c {
            '.' => {
                self.bump();
                !self.accept(|c| matches!(c, '_' | '.')) && !hex
            }
            'e' | 'E' => {
                self.bump();
                self.accept(|c| matches!(c, '+' | '-'));
                self.separator_is_followed()
            }
            '_' => {
                self.bump();
                self.separator_is_followed()
            }
            _ => {
                self.accept_run(digit_of(hex));
                true
            }
        }
    }

    fn separator_is_followed(&mut self) -> bool {
        !self.accept(|c| matches!(c, '.' | '_' | 'e' | 'E')) && self.peek().is_some()
    }
}

fn digit_of(hex: bool) -> impl Fn(char) -> bool + Copy {
    move |c| c.is_ascii_digit() || hex && c.is_ascii_hexdigit()
}

/// A character as Go's `%#U` shows it.
struct CodePoint(char);

impl fmt::Display for CodePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "U+{:04X} {}", self.0 as u32, QuotedChar(Some(self.0)))
    }
}
