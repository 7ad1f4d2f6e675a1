//! Label matchers, compiled once.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use regex_syntax::hir::{Hir, HirKind};

use crate::universal::matches_all_but_empty;
use crate::{GoRegexError, LabelsRef, METRIC_NAME, from_go_regex};

/// Longest regex source, in bytes.
const REGEX_BYTES_MAX: usize = 64 * 1024;
/// Largest compiled regex, in bytes.
const REGEX_PROGRAM_BYTES_MAX: usize = 4 << 20;
/// Compiled regexes beyond this many bytes are large ([`Matcher::is_large`]).
const REGEX_PROGRAM_BYTES_LARGE: usize = 256 << 10;
/// The sizes of compiled regexes, and what one of that size may keep of its automaton for each thread. With too little it
/// falls back to another engine, hundreds of times slower; small ones that fill any memory gain nothing by more.
const REGEX_SIZES: [RegexSize; 3] = [
    RegexSize {
        program_bytes_max: 64 << 10,
        automaton_bytes_max: 256 << 10,
    },
    RegexSize {
        program_bytes_max: REGEX_PROGRAM_BYTES_LARGE,
        automaton_bytes_max: 1 << 20,
    },
    RegexSize {
        program_bytes_max: REGEX_PROGRAM_BYTES_MAX,
        automaton_bytes_max: REGEX_PROGRAM_BYTES_MAX,
    },
];
/// Most literals an alternation may expand to before it stays a regex.
const LITERALS_MAX: usize = 1024;

/// What a compiled regex may take.
struct RegexSize {
    program_bytes_max: usize,
    automaton_bytes_max: usize,
}

/// How a matcher compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum MatchOp {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `=~`
    Regex,
    /// `!~`
    NotRegex,
}

impl MatchOp {
    /// The operator as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Regex => "=~",
            Self::NotRegex => "!~",
        }
    }
}

/// Why a matcher cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MatcherError {
    /// The regex does not parse.
    #[error("regex parse error: error parsing regexp: {reason}: `{pattern}`")]
    Parse {
        /// The pattern, cut to 200 bytes.
        pattern: String,
        /// What is wrong with it, in one line.
        reason: String,
    },
    /// The regex is too large, written or compiled.
    #[error("regex exceeds size limit ({what}: limit {limit} bytes): shorten it or match fewer repetitions")]
    TooLarge {
        /// Which size.
        what: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
}

/// The ways a pattern can be decided, cheapest first.
#[derive(Debug, Clone)]
enum Compiled {
    /// Equality, or a regex that is one literal.
    Literal,
    /// A regex that is an alternation of literals, sorted.
    Set(Arc<[String]>),
    /// `.*`: everything.
    All,
    /// `.+`: everything not empty.
    NotEmpty,
    /// `literal.*` or `literal.+`.
    Prefix { literal: String, more: bool },
    /// `.*literal` or `.+literal`.
    Suffix { literal: String, more: bool },
    /// `.*literal.*`.
    Contains(String),
    /// Anything else, anchored at both ends.
    Regex { regex: Arc<regex::Regex>, large: bool },
}

/// One label matcher. Regexes are anchored at both ends and `.` matches newlines, as in Prometheus.
#[derive(Clone)]
pub struct Matcher {
    name: String,
    op: MatchOp,
    value: String,
    compiled: Compiled,
}

impl Matcher {
    /// Compiles a matcher.
    ///
    /// # Errors
    /// [`MatcherError`] when a regex is malformed or over the size limits.
    pub fn new(op: MatchOp, name: impl Into<String>, value: impl Into<String>) -> Result<Self, MatcherError> {
        let (name, mut value) = (name.into(), value.into());
        let compiled = match op {
            MatchOp::Equal | MatchOp::NotEqual => Compiled::Literal,
            MatchOp::Regex | MatchOp::NotRegex => compile(&value)?,
        };
        if matches!(op, MatchOp::Equal | MatchOp::NotEqual) {
            value.shrink_to_fit();
        }
        Ok(Self {
            name,
            op,
            value,
            compiled,
        })
    }

    /// `name = value`.
    pub fn equal(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            op: MatchOp::Equal,
            value: value.into(),
            compiled: Compiled::Literal,
        }
    }

    /// The label's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The operator.
    pub fn op(&self) -> MatchOp {
        self.op
    }

    /// The value or pattern as written.
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether a label value matches; a series that lacks the label has "".
    pub fn matches(&self, value: &str) -> bool {
        let hit = match &self.compiled {
            Compiled::Literal if matches!(self.op, MatchOp::Equal | MatchOp::NotEqual) => self.value == value,
            Compiled::Literal => self.value == value,
            Compiled::Set(set) => set.binary_search_by(|s| s.as_str().cmp(value)).is_ok(),
            Compiled::All => true,
            Compiled::NotEmpty => !value.is_empty(),
            Compiled::Prefix { literal, more } => {
                value.starts_with(literal.as_str()) && (!more || value.len() > literal.len())
            }
            Compiled::Suffix { literal, more } => {
                value.ends_with(literal.as_str()) && (!more || value.len() > literal.len())
            }
            Compiled::Contains(literal) => value.contains(literal.as_str()),
            Compiled::Regex { regex, .. } => regex.is_match(value),
        };
        hit != matches!(self.op, MatchOp::NotEqual | MatchOp::NotRegex)
    }

    /// Whether its pattern may take megabytes: of such, a request should have few.
    pub fn is_large(&self) -> bool {
        matches!(self.compiled, Compiled::Regex { large: true, .. })
    }

    /// Whether a series without the label matches.
    pub fn matches_empty(&self) -> bool {
        self.matches("")
    }

    /// Whether every value matches that is not empty. Never wrongly true; of a pattern that says it in a roundabout way it may not be seen.
    pub fn matches_all_but_empty(&self) -> bool {
        let is_only_empty = || match &self.compiled {
            Compiled::Literal => self.value.is_empty(),
            Compiled::Set(set) => set.iter().all(String::is_empty),
            _ => false,
        };
        match self.op {
            MatchOp::Equal => false,
            MatchOp::NotEqual | MatchOp::NotRegex => is_only_empty(),
            MatchOp::Regex => match &self.compiled {
                Compiled::All | Compiled::NotEmpty => true,
                Compiled::Regex { .. } => {
                    parse(&self.value).is_ok_and(|(_, hir)| matches_all_but_empty(&hir))
                }
                _ => false,
            },
        }
    }

    /// The only values that can match, sorted, when the matcher is positive and they are few and known; an index looks
    /// these up instead of scanning all values.
    pub fn literals(&self) -> Option<Vec<&str>> {
        match (self.op, &self.compiled) {
            (MatchOp::Equal | MatchOp::Regex, Compiled::Literal) => Some(vec![&self.value]),
            (MatchOp::Regex, Compiled::Set(set)) => Some(set.iter().map(String::as_str).collect()),
            _ => None,
        }
    }

    /// The prefix every matching value has, when the matcher is positive and one is known.
    pub fn prefix(&self) -> Option<&str> {
        match (self.op, &self.compiled) {
            (MatchOp::Regex, Compiled::Prefix { literal, .. }) => Some(literal),
            _ => None,
        }
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        self.op == other.op && self.name == other.name && self.value == other.value
    }
}

impl Eq for Matcher {}

impl Hash for Matcher {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.op, &self.name, &self.value).hash(state);
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{:?}", self.name, self.op.as_str(), self.value)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// All of these must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Matchers(pub Vec<Matcher>);

impl Matchers {
    /// Whether a label set satisfies every matcher.
    pub fn matches(&self, labels: LabelsRef<'_>) -> bool {
        self.0
            .iter()
            .all(|m| m.matches(labels.get(&m.name).unwrap_or("")))
    }

    /// Whether every series with a name matches, whatever it is. Never wrongly true.
    pub fn match_every_name(&self) -> bool {
        let takes_all =
            |m: &Matcher| m.matches_all_but_empty() && (m.name == METRIC_NAME || m.matches_empty());
        self.iter().all(takes_all)
    }

    /// Iterates over the matchers.
    pub fn iter(&self) -> std::slice::Iter<'_, Matcher> {
        self.0.iter()
    }
}

fn too_large(what: &'static str, limit: usize) -> MatcherError {
    MatcherError::TooLarge { what, limit }
}

fn compile(pattern: &str) -> Result<Compiled, MatcherError> {
    if pattern.len() > REGEX_BYTES_MAX {
        return Err(too_large("pattern", REGEX_BYTES_MAX));
    }
    let (translated, hir) = parse(pattern)?;
    if let Some(fast) = fast_path(&hir, pattern) {
        return Ok(fast);
    }
    let anchored = format!("^(?s:{translated})$");
    for size in REGEX_SIZES {
        let built = regex::RegexBuilder::new(&anchored)
            .size_limit(size.program_bytes_max)
            .dfa_size_limit(size.automaton_bytes_max)
            .nest_limit(130)
            .build();
        match built {
            Ok(regex) => {
                return Ok(Compiled::Regex {
                    regex: Arc::new(regex),
                    large: size.program_bytes_max > REGEX_PROGRAM_BYTES_LARGE,
                });
            }
            Err(regex::Error::CompiledTooBig(_)) => {}
            Err(other) => {
                return Err(MatcherError::Parse {
                    pattern: shortened(pattern),
                    reason: last_line(&other.to_string()),
                });
            }
        }
    }
    Err(too_large("compiled", REGEX_PROGRAM_BYTES_MAX))
}

/// A pattern in this program's syntax, and what it means.
fn parse(pattern: &str) -> Result<(Cow<'_, str>, Hir), MatcherError> {
    let translated = from_go_regex(pattern).map_err(|e| match e {
        GoRegexError::NestedCount => too_large("compiled", REGEX_PROGRAM_BYTES_MAX),
        e => MatcherError::Parse {
            pattern: shortened(pattern),
            reason: e.to_string(),
        },
    })?;
    let hir = regex_syntax::ParserBuilder::new()
        .dot_matches_new_line(true)
        .nest_limit(128)
        .build()
        .parse(&translated)
        .map_err(|e| parse_error(pattern, &e))?;
    Ok((translated, hir))
}

fn parse_error(pattern: &str, e: &regex_syntax::Error) -> MatcherError {
    let reason = match e {
        regex_syntax::Error::Parse(e) => e.kind().to_string(),
        regex_syntax::Error::Translate(e) => e.kind().to_string(),
        other => last_line(&other.to_string()),
    };
    MatcherError::Parse {
        pattern: shortened(pattern),
        reason,
    }
}

fn shortened(pattern: &str) -> String {
    pattern.chars().take(200).collect()
}

fn last_line(text: &str) -> String {
    text.lines()
        .last()
        .unwrap_or("")
        .trim()
        .trim_start_matches("error: ")
        .to_owned()
}

fn fast_path(hir: &Hir, pattern: &str) -> Option<Compiled> {
    match hir.kind() {
        HirKind::Repetition(_) => {
            dot_repeat(hir).map(|more| if more { Compiled::NotEmpty } else { Compiled::All })
        }
        HirKind::Concat(parts) => match parts.as_slice() {
            [a, b] => {
                if let (Some(literal), Some(more)) = (literal(a), dot_repeat(b)) {
                    return Some(Compiled::Prefix { literal, more });
                }
                if let (Some(more), Some(literal)) = (dot_repeat(a), literal(b)) {
                    return Some(Compiled::Suffix { literal, more });
                }
                set(hir, pattern)
            }
            [a, b, c] => match (dot_repeat(a), literal(b), dot_repeat(c)) {
                (Some(false), Some(literal), Some(false)) => Some(Compiled::Contains(literal)),
                _ => set(hir, pattern),
            },
            _ => set(hir, pattern),
        },
        _ => set(hir, pattern),
    }
}

fn literal(hir: &Hir) -> Option<String> {
    match hir.kind() {
        HirKind::Literal(l) => String::from_utf8(l.0.to_vec()).ok(),
        _ => None,
    }
}

/// `Some(false)` for `.*`, `Some(true)` for `.+`.
fn dot_repeat(hir: &Hir) -> Option<bool> {
    let HirKind::Repetition(rep) = hir.kind() else {
        return None;
    };
    let any = *rep.sub == Hir::dot(regex_syntax::hir::Dot::AnyChar);
    match (any, rep.min, rep.max) {
        (true, 0, None) => Some(false),
        (true, 1, None) => Some(true),
        _ => None,
    }
}

/// The finite set of strings a pattern stands for, if it is one. Bounded by `LITERALS_MAX`.
fn set(hir: &Hir, pattern: &str) -> Option<Compiled> {
    let mut all = expand(hir)?;
    all.sort_unstable();
    all.dedup();
    // A lone literal equal to its own pattern needs no set.
    if all.len() == 1 && all[0] == pattern {
        return Some(Compiled::Literal);
    }
    Some(Compiled::Set(all.into()))
}

/// Depth is bounded by the parser's nest limit.
fn expand(hir: &Hir) -> Option<Vec<String>> {
    match hir.kind() {
        HirKind::Empty => Some(vec![String::new()]),
        HirKind::Literal(l) => Some(vec![String::from_utf8(l.0.to_vec()).ok()?]),
        HirKind::Class(regex_syntax::hir::Class::Unicode(c)) => {
            let count: u64 = c
                .iter()
                .map(|r| u64::from(u32::from(r.end()) - u32::from(r.start())) + 1)
                .sum();
            (count <= 64).then(|| {
                c.iter()
                    .flat_map(|r| r.start()..=r.end())
                    .map(String::from)
                    .collect()
            })
        }
        HirKind::Capture(c) => expand(&c.sub),
        HirKind::Alternation(parts) => {
            let mut out = Vec::new();
            for p in parts {
                out.extend(expand(p)?);
                if out.len() > LITERALS_MAX {
                    return None;
                }
            }
            Some(out)
        }
        HirKind::Concat(parts) => {
            let mut out = vec![String::new()];
            for p in parts {
                let tails = expand(p)?;
                if out.len() * tails.len() > LITERALS_MAX {
                    return None;
                }
                out = out
                    .iter()
                    .flat_map(|h| tails.iter().map(move |t| format!("{h}{t}")))
                    .collect();
            }
            Some(out)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn re(p: &str) -> Matcher {
        Matcher::new(MatchOp::Regex, "l", p).unwrap()
    }

    /// Matching is linear in the value: by backtracking, one of these values would outlast the universe.
    #[test]
    fn i12_nested_repetitions_over_long_values_are_decided_at_once() {
        let m = re("(a+)+$");
        for i in 0..200 {
            let long = "a".repeat(10 << 10);
            assert!(m.matches(&long));
            assert!(!m.matches(&format!("{long}b{i}")));
        }
    }

    #[test]
    fn fast_paths_decide_as_the_regex_does() {
        let patterns = [
            "",
            "a",
            "a|b",
            "(a|b)c",
            ".*",
            ".+",
            "a.*",
            "a.+",
            ".*a",
            ".+a",
            ".*a.*",
            "[ab]",
            "a[bc]d|e",
            "a?",
            "x{2}",
            "(?i)a",
            "a|",
            "foo\\.bar",
            "a.*|b",
            "\\d+",
            "(?i:ab)c",
            "^a$",
            "a\\b",
        ];
        let values = [
            "", "a", "b", "A", "ab", "ba", "xax", "ac", "bc", "abd", "e", "xx", "foo.bar", "a\nb", "12", "aa",
        ];
        for p in patterns {
            let exact = regex::Regex::new(&format!("^(?s:{p})$")).unwrap();
            for v in values {
                assert_eq!(re(p).matches(v), exact.is_match(v), "{p:?} on {v:?}");
            }
            if let Some(ls) = re(p).literals() {
                assert!(ls.iter().all(|l| exact.is_match(l)), "{p:?} {ls:?}");
            }
        }
    }

    #[test]
    fn a_pattern_that_everything_matches_is_known_however_it_is_written() {
        for (pattern, all) in [
            (".*", true),
            (".+", true),
            ("..*", true),
            (".*.*", true),
            ("^.*$", true),
            ("(.*)", true),
            ("(.|a)+", true),
            ("(.?)+", true),
            (".?.+", true),
            ("a|.+", true),
            ("|.|..+", true),
            ("[\\s\\S]+", true),
            ("[^a]*|.*", true),
            ("(?:.{1,3})*", true),
            ("", false),
            (".", false),
            ("a.*", false),
            ("[^a].*", false),
            ("..+", false),
            ("(..)*", false),
            (".{1,1000}", false),
            ("[a-zA-Z_:].*", false),
            (".*|a{3}b", true),
            ("\\b.+", false),
        ] {
            assert_eq!(re(pattern).matches_all_but_empty(), all, "{pattern}");
            let not = Matcher::new(MatchOp::NotRegex, "l", pattern).unwrap();
            assert_eq!(not.matches_all_but_empty(), pattern.is_empty(), "!~ {pattern}");
        }
        let plain = |op, value: &str| Matcher::new(op, "l", value).unwrap().matches_all_but_empty();
        assert!(plain(MatchOp::NotEqual, "") && !plain(MatchOp::NotEqual, "a") && !plain(MatchOp::Equal, ""));
    }

    #[test]
    fn only_what_every_named_series_matches_matches_every_name() {
        let all = |matchers: &[(&str, MatchOp, &str)]| {
            let matcher =
                |(name, op, value): &(&str, MatchOp, &str)| Matcher::new(*op, *name, *value).unwrap();
            Matchers(matchers.iter().map(matcher).collect()).match_every_name()
        };
        let named = (METRIC_NAME, MatchOp::Regex, ".+");
        assert!(all(&[named]) && all(&[named, ("job", MatchOp::Regex, ".*")]));
        assert!(all(&[(METRIC_NAME, MatchOp::NotEqual, "")]));
        assert!(!all(&[named, ("job", MatchOp::NotEqual, "a")]));
        assert!(!all(&[("job", MatchOp::Regex, ".+")]));
        assert!(!all(&[named, ("job", MatchOp::Regex, ".+")]));
        assert!(!all(&[(METRIC_NAME, MatchOp::Regex, "a.*")]));
    }

    proptest! {
        #[test]
        fn i10_nothing_passes_for_matching_everything_that_does_not(
            pattern in "[.a][*+?]?([|(]?[.ab]\\)?[*+?]?|\\{[0-3],[0-3]?\\}){0,3}", value in "[abc]{1,5}",
        ) {
            if let Ok(m) = Matcher::new(MatchOp::Regex, "l", pattern) {
                prop_assert!(!m.matches_all_but_empty() || m.matches(&value));
            }
        }

        #[test]
        fn literal_patterns_match_themselves(s in "\\PC{0,20}") {
            prop_assert!(re(&regex::escape(&s)).matches(&s));
        }
    }

    #[test]
    fn i12_bounds_pattern_and_program() {
        let bad = |p: &str| Matcher::new(MatchOp::Regex, "l", p).unwrap_err().to_string();
        assert!(bad("(").contains("regex parse error"), "{}", bad("("));
        assert!(bad("((x{1000}){1000}){1000}").contains("regex exceeds size limit"));
        assert!(bad("(x{1000}){1000}{1000}").contains("regex exceeds size limit"));
        assert!(bad(&"a".repeat(1 << 20)).contains("regex exceeds size limit"));
        let deep = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
        assert!(bad(&deep).contains("regex parse error"));
    }

    #[test]
    fn negations_match_what_the_positive_does_not() {
        let m = Matcher::new(MatchOp::NotRegex, "l", "a|b").unwrap();
        assert!(m.matches("") && m.matches("c") && !m.matches("a"));
        assert!(Matcher::new(MatchOp::NotEqual, "l", "x").unwrap().matches_empty());
    }
}
