//! Mistakes in queries, which both sides must refuse alike, and other ways to write what is right.

use super::QueryGenerator;

/// What is put in somewhere.
const PIECES: [&str; 26] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    " by ",
    " on (job) ",
    " offset 5m",
    " @ 5",
    "[5m]",
    "[5m:]",
    " bool ",
    "=~",
    "\"",
    "'",
    "`",
    "#",
    " and ",
    " - ",
    "é",
    "0x",
    "1h",
    " group_left ",
    "$",
];

impl QueryGenerator {
    /// The query with a mistake, or with what turns out to be none.
    pub(super) fn with_a_mistake(&mut self, query: &str) -> String {
        let chars: Vec<char> = query.chars().collect();
        let at = self.random.index(chars.len());
        let piece = self.random.pick(&PIECES);
        let (before, after) = chars.split_at_checked(at).unwrap_or((&chars, &[]));
        let (before, after): (String, String) = (before.iter().collect(), after.iter().collect());
        match self.random.index(4) {
            0 => before,
            1 => before + after.get(1..).unwrap_or_default(),
            2 => before + after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'),
            _ => before + piece + &after,
        }
    }
}

/// Words of the language that may be written in upper case.
const KEYWORDS: [&str; 22] = [
    "sum",
    "avg",
    "count",
    "min",
    "max",
    "topk",
    "quantile",
    "stddev",
    "group",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "and",
    "or",
    "unless",
    "atan2",
    "bottomk",
];

impl QueryGenerator {
    /// The query in other words that mean the same: keywords in upper case, line breaks and comments for spaces.
    pub(super) fn written_otherwise(&mut self, query: &str) -> String {
        let space = self.random.pick(&["  ", "\n", "\t", " # \"a comment\" ( \n"]);
        let mut text = String::new();
        let (mut word, mut quote) = (String::new(), None);
        // The space at the end has the last word written.
        for c in query.chars().chain([' ']) {
            if quote.is_none() && (c.is_alphanumeric() || c == '_') {
                word.push(c);
                continue;
            }
            let upper = KEYWORDS.contains(&word.as_str());
            text.push_str(&if upper { word.to_uppercase() } else { word.clone() });
            word.clear();
            match (quote, c) {
                (None, '"' | '\'' | '`') => quote = Some(c),
                (Some(q), c) if q == c => quote = None,
                // What is escaped is not followed: such text stays as it is.
                (Some(_), '\\') => return query.to_owned(),
                _ => {}
            }
            match c {
                ' ' if quote.is_none() => text.push_str(space),
                c => text.push(c),
            }
        }
        text
    }
}
