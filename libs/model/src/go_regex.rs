//! Go's regular expression syntax in terms of the regex crate's.
//!
//! The two differ where users notice: in Go a brace that starts no repetition is a literal (`/users/{id}`), a bracket
//! within brackets is one, too (`[[(]`), `\d`, `\s` and `\w` are ASCII, and `\Q…\E` quotes. What is wrong in Go's syntax
//! alone is refused here; whatever is wrong in both stays as it is and is refused by the regex crate.
//!
//! **Source:** Go `regexp/syntax`.

use std::borrow::Cow;

/// Why a pattern is none to Go, although the regex crate would take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoRegexError {
    /// A repetition of a repetition, as in `a+*`; `(a+)*` is one that Go takes.
    #[error("invalid nested repetition operator")]
    NestedRepetition,
    /// A repetition of more than 1,000 times.
    #[error("invalid repeat count")]
    RepeatCount,
    /// A counted repetition of a counted one, of more than 1,000 times together: beyond any size, whatever the syntax.
    #[error("too many repetitions of repetitions")]
    NestedCount,
    /// Flags that Go does not know.
    #[error("invalid or unsupported Perl syntax")]
    Flags,
}

/// Go's bound on repetitions.
const REPEAT_MAX: u32 = 1_000;

/// The pattern, so that the regex crate reads it as Go would.
///
/// # Errors
/// [`GoRegexError`] for what only the regex crate would take.
pub fn from_go_regex(pattern: &str) -> Result<Cow<'_, str>, GoRegexError> {
    if !pattern.contains(['\\', '{', '[', '(', '*', '+', '?']) {
        return Ok(Cow::Borrowed(pattern));
    }
    let mut translator = Translator {
        rest: pattern,
        out: String::with_capacity(pattern.len() + 16),
    };
    // How often the last thing is repeated, at most; once where that is not counted.
    let mut repeated: Option<u32> = None;
    while let Some(c) = translator.bump() {
        let was_repeated = repeated.take();
        match c {
            '\\' => translator.escape(),
            '{' if !starts_repetition(translator.rest) => translator.out.push_str("\\{"),
            '{' => {
                repeated = Some(translator.counted()?);
            }
            '*' | '+' | '?' => {
                translator.out.push(c);
                repeated = Some(1);
            }
            '[' => translator.class(),
            '(' if translator.rest.starts_with('?') => translator.flags()?,
            _ => translator.out.push(c),
        }
        if let Some(times) = repeated {
            // A question mark after a repetition makes it lazy.
            if translator.accept("?") {
                translator.out.push('?');
            }
            match was_repeated {
                Some(before) if before.saturating_mul(times) > REPEAT_MAX => {
                    return Err(GoRegexError::NestedCount);
                }
                Some(_) => return Err(GoRegexError::NestedRepetition),
                None => {}
            }
        }
    }
    Ok(if translator.out == pattern {
        Cow::Borrowed(pattern)
    } else {
        Cow::Owned(translator.out)
    })
}

/// Whether what follows a brace makes it a repetition: `3}`, `3,}` or `3,5}`.
fn starts_repetition(rest: &str) -> bool {
    let after_digits = |s: &'_ str| s.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(s.len());
    let min = after_digits(rest);
    let tail = rest.get(min..).unwrap_or_default();
    let tail = tail
        .strip_prefix(',')
        .map_or(tail, |max| max.get(after_digits(max)..).unwrap_or_default());
    min > 0 && tail.starts_with('}')
}

/// No name of a class or property is longer; looking no farther keeps the translation linear.
const NAME_BYTES_MAX: usize = 64;

/// Where `end` begins, if it does within the length of a name.
fn find_near(text: &str, end: &str) -> Option<usize> {
    text.as_bytes()
        .windows(end.len())
        .take(NAME_BYTES_MAX)
        .position(|window| window == end.as_bytes())
}

struct Translator<'a> {
    rest: &'a str,
    out: String,
}

impl Translator<'_> {
    fn bump(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = self.rest.get(c.len_utf8()..).unwrap_or_default();
        Some(c)
    }

    fn accept(&mut self, prefix: &str) -> bool {
        let rest = self.rest.strip_prefix(prefix);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// `{` was taken, and begins a repetition: gives its larger count.
    fn counted(&mut self) -> Result<u32, GoRegexError> {
        let (counts, rest) = self.rest.split_once('}').unwrap_or((self.rest, ""));
        let mut most = 1;
        for count in counts.split(',').filter(|c| !c.is_empty()) {
            most = most.max(count.parse().unwrap_or(u32::MAX));
        }
        if most > REPEAT_MAX {
            return Err(GoRegexError::RepeatCount);
        }
        self.rest = rest;
        self.out.push('{');
        self.out.push_str(counts);
        self.out.push('}');
        Ok(most)
    }

    /// `(` was taken, and a question mark follows.
    fn flags(&mut self) -> Result<(), GoRegexError> {
        // Flags that are none change nothing, which the regex crate takes for a mistake.
        if self.accept("?)") {
            return Ok(());
        }
        self.out.push('(');
        let is_name = self.rest.starts_with("?P") || self.rest.starts_with("?<");
        let letters = |c: char| c.is_ascii_alphabetic() && !"imsU".contains(c);
        let flags = self.rest.trim_start_matches('?');
        let flags = flags.split([':', ')']).next().unwrap_or_default();
        if !is_name && flags.contains(letters) {
            return Err(GoRegexError::Flags);
        }
        self.accept("?");
        self.out.push('?');
        Ok(())
    }

    /// What follows a backslash, outside brackets.
    fn escape(&mut self) {
        match self.bump() {
            Some('Q') => self.quoted(),
            Some(c) => match perl_class(c) {
                Some((negated, ranges)) => {
                    self.out.push_str(if negated { "[^" } else { "[" });
                    self.out.push_str(ranges);
                    self.out.push(']');
                }
                // The word boundary is the one between ASCII words.
                None if c == 'b' => self.out.push_str("(?-u:\\b)"),
                None => self.escaped(c),
            },
            None => self.out.push('\\'),
        }
    }

    /// `\Q` was taken: everything up to `\E` or the end is literal.
    fn quoted(&mut self) {
        while !self.rest.is_empty() && !self.accept("\\E") {
            if let Some(c) = self.bump() {
                self.out
                    .push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4])));
            }
        }
    }

    /// An escape that means one character, or that the regex crate has to judge.
    fn escaped(&mut self, c: char) {
        let octal = self
            .rest
            .chars()
            .take(2)
            .take_while(|d| ('0'..'8').contains(d))
            .count();
        let digits = self.rest.get(..octal).unwrap_or_default();
        match c {
            '0' | '1'..='7' if c == '0' || octal > 0 => {
                let code = u32::from_str_radix(&format!("{c}{digits}"), 8).unwrap_or_default();
                self.out.push_str(&format!("\\x{{{code:x}}}"));
                self.rest = self.rest.get(octal..).unwrap_or_default();
            }
            // Word boundaries in the regex crate.
            '<' | '>' => self.out.push(c),
            'p' | 'P' | 'x' => {
                self.out.push('\\');
                self.out.push(c);
                self.braces();
            }
            _ => {
                self.out.push('\\');
                self.out.push(c);
            }
        }
    }

    /// The braces of `\p{Greek}` and `\x{263a}`, as they are.
    fn braces(&mut self) {
        let end = if self.rest.starts_with('{') {
            find_near(self.rest, "}").map_or(0, |at| at + 1)
        } else {
            0
        };
        let (braces, rest) = self.rest.split_at(end);
        self.out.push_str(braces);
        self.rest = rest;
    }

    /// `[` was taken.
    fn class(&mut self) {
        self.out.push('[');
        if self.accept("^") {
            self.out.push('^');
        }
        let mut first = true;
        while !self.rest.is_empty() {
            if !first && self.accept("]") {
                self.out.push(']');
                return;
            }
            first = false;
            if self.named_class() {
                continue;
            }
            self.class_char();
            let range = self
                .rest
                .strip_prefix('-')
                .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(']'));
            if range && self.accept("-") {
                self.out.push('-');
                self.class_char();
            }
        }
    }

    /// `[:alpha:]`, `\d` or `\pL` inside brackets; whether there was one.
    fn named_class(&mut self) -> bool {
        if let Some(end) = self
            .rest
            .strip_prefix("[:")
            .and_then(|rest| find_near(rest, ":]"))
        {
            let (named, rest) = self.rest.split_at(end + 4);
            self.out.push_str(named);
            self.rest = rest;
            return true;
        }
        let Some(c) = self.rest.strip_prefix('\\').and_then(|rest| rest.chars().next()) else {
            return false;
        };
        if let Some((negated, ranges)) = perl_class(c) {
            self.out.push_str(&if negated {
                format!("[^{ranges}]")
            } else {
                ranges.to_owned()
            });
        } else if !matches!(c, 'p' | 'P') {
            return false;
        }
        self.bump();
        self.bump();
        if matches!(c, 'p' | 'P') {
            self.escaped(c);
        }
        true
    }

    /// One character inside brackets: whatever could mean more to the regex crate is escaped.
    fn class_char(&mut self) {
        match self.bump() {
            Some('\\') => match self.bump() {
                Some(c) => self.escaped(c),
                None => self.out.push('\\'),
            },
            Some(c) if matches!(c, '[' | ']' | '&' | '~' | '-' | '^') => {
                self.out.push('\\');
                self.out.push(c);
            }
            Some(c) => self.out.push(c),
            None => {}
        }
    }
}

/// The ranges of a Perl class, and whether they are negated.
fn perl_class(c: char) -> Option<(bool, &'static str)> {
    Some(match c {
        'd' => (false, "0-9"),
        'D' => (true, "0-9"),
        's' => (false, "\\t\\n\\x0c\\r "),
        'S' => (true, "\\t\\n\\x0c\\r "),
        'w' => (false, "0-9A-Za-z_"),
        'W' => (true, "0-9A-Za-z_"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        let translated = from_go_regex(pattern).unwrap();
        let regex = regex::Regex::new(&format!("^(?s:{translated})$"));
        regex
            .unwrap_or_else(|e| panic!("{pattern} -> {translated}: {e}"))
            .is_match(text)
    }

    #[test]
    fn reads_go_syntax_as_go_does() {
        for (pattern, yes, no) in [
            ("/users/{id}", "/users/{id}", "/users/id"),
            ("a{2}b{1,}c{1,2}", "aabbcc", "a{2}bc"),
            ("a{,2}", "a{,2}", "aa"),
            ("a{x", "a{x", "a"),
            ("[[(]x", "[x", "x"),
            ("[]a]", "]", "b"),
            ("[^]a]", "b", "]"),
            ("[a&&b]", "&", "c"),
            ("[a~~b-]", "~", "c"),
            ("[+--]", ",", "/"),
            ("[[:alpha:]_]+", "ab_", "1"),
            ("[\\d\\s]+", "1 2", "a"),
            ("[\\D]", "a", "1"),
            ("\\d+", "12", "\u{663}"),
            ("\\w", "a", "é"),
            ("\\W", "é", "a"),
            ("\\S", "\u{a0}", " "),
            ("\\Qa.b{c}\\E.", "a.b{c}x", "aXb{c}x"),
            ("\\Q[", "[", "a"),
            ("\\<\\>", "<>", ""),
            ("\\x{41}\\x42\\103", "ABC", "abc"),
            ("\\pN\\p{Greek}", "1α", "aα"),
            ("[\\pN\\x{41}-C]+", "1B", "b"),
            ("a\\{b\\}\\.\\-\\/", "a{b}.-/", "a"),
            (".*\\bfoo\\b.*", "a foo b", "afoob"),
            ("(?i)abc|x", "ABC", "ab"),
            ("(?)x(?)", "x", "(?)x"),
            ("a*?b??(c+)*d{2}?", "accdd", "add?"),
            ("(?P<name>a)(?:b)(?i-s:c)(?U)d", "abCd", "abc"),
            ("a{x*", "a{xx", "ax"),
        ] {
            assert!(matches(pattern, yes), "{pattern} on {yes}");
            assert!(!matches(pattern, no), "{pattern} on {no}");
        }
    }

    #[test]
    fn leaves_mistakes_to_the_regex_crate() {
        for pattern in [
            "(", "[a", "\\", "[\\", "[z-a]", "\\1", "a)", "[[:alpha", "(?", "(?P", "(?-)", "*",
        ] {
            let translated = from_go_regex(pattern).unwrap();
            assert!(
                regex::Regex::new(&translated).is_err(),
                "{pattern} -> {translated}"
            );
        }
        assert!(matches!(from_go_regex("a.*|b+c?"), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn refuses_what_only_go_refuses() {
        for (pattern, why) in [
            ("a**", GoRegexError::NestedRepetition),
            ("[x]+*", GoRegexError::NestedRepetition),
            ("a?+", GoRegexError::NestedRepetition),
            ("a*?*", GoRegexError::NestedRepetition),
            ("x{2}{3}", GoRegexError::NestedRepetition),
            ("x{2,3}+", GoRegexError::NestedRepetition),
            ("(x{1000}){1000}{1000}", GoRegexError::NestedCount),
            ("x{1001}", GoRegexError::RepeatCount),
            ("x{2,9999999999}", GoRegexError::RepeatCount),
            ("(?x)a", GoRegexError::Flags),
            ("(?u:a)", GoRegexError::Flags),
        ] {
            assert_eq!(from_go_regex(pattern), Err(why), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn plain_text_keeps_its_meaning(text in "[a-zA-Z0-9 /{}:,_é-]{0,20}") {
            // None of these characters but a well-formed repetition means anything in Go.
            if !text.contains('{') {
                prop_assert!(matches(&text, &text));
            }
        }

        #[test]
        fn i12_any_text_is_translated(text in "\\PC{0,40}") {
            let _ = from_go_regex(&text).map(|pattern| regex::Regex::new(&pattern));
        }
    }
}
