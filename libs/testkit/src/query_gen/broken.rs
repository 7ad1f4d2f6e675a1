//! Mistakes in queries: both sides must refuse the same.

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
