//! String literals: Go's escapes, read and written.

use std::fmt::{self, Write};

/// What a literal stands for: any bytes, by its escapes.
pub(crate) struct Unquoted {
    /// The bytes as text; those that form no UTF-8 became U+FFFD.
    pub(crate) value: String,
    /// The bytes as Go quotes them, if they form no UTF-8.
    pub(crate) not_utf8: Option<Box<str>>,
}

/// Reads a quoted string, quotes included, whose escapes the lexer has checked.
pub(crate) fn unquote(literal: &str) -> Option<Unquoted> {
    let quote = literal.chars().next()?;
    let body = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    if quote == '`' || !body.contains('\\') {
        return Some(Unquoted {
            value: body.to_owned(),
            not_utf8: None,
        });
    }
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(rest.get(..at)?.as_bytes());
        rest = unescape(rest.get(at + 1..)?, &mut out)?;
    }
    out.extend_from_slice(rest.as_bytes());
    Some(String::from_utf8(out).map_or_else(
        |error| Unquoted {
            value: String::from_utf8_lossy(error.as_bytes()).into_owned(),
            not_utf8: Some(quote_bytes(error.as_bytes()).into()),
        },
        |value| Unquoted {
            value,
            not_utf8: None,
        },
    ))
}

/// Bytes in double quotes with Go's escapes.
fn quote_bytes(bytes: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in bytes.utf8_chunks() {
        let quoted = Quoted(chunk.valid()).to_string();
        out.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out.push('"');
    out
}

/// Appends what the escape at the start of `rest` stands for, answers what follows it.
fn unescape<'a>(rest: &'a str, out: &mut Vec<u8>) -> Option<&'a str> {
    let mut chars = rest.chars();
    let c = chars.next()?;
    let simple = match c {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' | '\'' | '"' => c as u8,
        '0'..='7' => return numeric(rest, 3, 8, out),
        'x' => return numeric(chars.as_str(), 2, 16, out),
        'u' => return numeric(chars.as_str(), 4, 16, out),
        'U' => return numeric(chars.as_str(), 8, 16, out),
        _ => return None,
    };
    out.push(simple);
    Some(chars.as_str())
}

/// Octal and two-digit escapes stand for a byte, longer ones for a character.
fn numeric<'a>(rest: &'a str, digits: usize, base: u32, out: &mut Vec<u8>) -> Option<&'a str> {
    let code = u32::from_str_radix(rest.get(..digits)?, base).ok()?;
    if digits <= 3 {
        out.push(u8::try_from(code).ok()?);
    } else {
        let c = char::from_u32(code)?;
        out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    rest.get(digits..)
}

/// A string in double quotes with Go's escapes.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        self.0.chars().try_for_each(|c| write_escaped(f, c, '"'))?;
        f.write_char('"')
    }
}

/// A character in single quotes with Go's escapes; `None` is the end of the input.
pub(crate) struct QuotedChar(pub(crate) Option<char>);

impl fmt::Display for QuotedChar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('\'')?;
        write_escaped(f, self.0.unwrap_or(char::REPLACEMENT_CHARACTER), '\'')?;
        f.write_char('\'')
    }
}

fn write_escaped(f: &mut fmt::Formatter<'_>, c: char, quote: char) -> fmt::Result {
    match c {
        '\x07' => f.write_str("\\a"),
        '\x08' => f.write_str("\\b"),
        '\x0c' => f.write_str("\\f"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\x0b' => f.write_str("\\v"),
        '\\' => f.write_str("\\\\"),
        _ if c == quote => write!(f, "\\{c}"),
        // The lexer takes a bare one for a sign of damage.
        char::REPLACEMENT_CHARACTER if quote == '"' => f.write_str("\\ufffd"),
        _ if is_printable(c) => f.write_char(c),
        _ if (c as u32) < 0x80 => write!(f, "\\x{:02x}", c as u32),
        _ if (c as u32) < 0x10000 => write!(f, "\\u{:04x}", c as u32),
        _ => write!(f, "\\U{:08x}", c as u32),
    }
}

/// Whether Go prints the character as it is: letters, marks, numbers, punctuation, symbols and the plain space.
fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Rust escapes by the same categories, except that it also escapes a combining mark at the start.
    let shown = ['a', c].iter().collect::<String>();
    !shown.escape_debug().any(|c| c == '\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_each_kind_of_escape() {
        let read = |s: &str| unquote(s).unwrap().value;
        assert_eq!(
            read(r#""a\n\t\\\"\x41\101\u00e9\U0001F600""#),
            "a\n\t\\\"AA\u{e9}\u{1F600}"
        );
        assert_eq!(read(r"'it\'s'"), "it's");
        assert_eq!(read(r"`raw\n`"), r"raw\n");
        assert_eq!(read(r#""\xe4\xb8\x96""#), "世");
        assert_eq!(read(r#""a\xff""#), "a\u{fffd}");
        assert_eq!(
            unquote(r#""a\"\xc5z""#).unwrap().not_utf8.as_deref(),
            Some(r#""a\"\xc5z""#)
        );
        assert!(unquote("\"").is_none());
    }

    #[test]
    fn writes_what_is_not_printable_as_escapes() {
        let s = "a\"\\\n\x01\u{7f}\u{a0}\u{200b}\u{10ffff}é世\u{301}";
        assert_eq!(
            Quoted(s).to_string(),
            "\"a\\\"\\\\\\n\\x01\\x7f\\u00a0\\u200b\\U0010ffffé世\u{301}\""
        );
        assert_eq!(QuotedChar(Some('\'')).to_string(), r"'\''");
        assert_eq!(QuotedChar(Some('"')).to_string(), "'\"'");
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(s in any::<String>()) {
            prop_assert_eq!(unquote(&Quoted(&s).to_string()).unwrap().value, s);
        }
    }
}
