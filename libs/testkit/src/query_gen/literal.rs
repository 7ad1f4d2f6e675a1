//! Numbers, strings, and what else is a scalar.

use super::QueryGenerator;

const NUMBERS: [&str; 24] = [
    "0", "1", "2", "-1", "0.5", ".25", "5.", "3e2", "1E-3", "0x1F", "0Xff", "010", "NaN", "nan", "Inf",
    "-Inf", "+inf", "1e309", "-0", "42", "100", "1e15", "7.25", "5e-324",
];

impl QueryGenerator {
    pub(super) fn number(&mut self) -> &'static str {
        self.random.pick(&NUMBERS)
    }

    /// A number that is neither special nor large.
    pub(super) fn small_number(&mut self) -> String {
        format!("{}", self.random.index(80) as f64 / 4.0 - 5.0)
    }

    /// A string literal in one of the three ways to quote.
    pub(super) fn text(&mut self) -> String {
        self.random
            .pick(&[
                r#""""#,
                r#""text""#,
                r#"'it''"#,
                r#"'say "x"'"#,
                r#""ä \u00e4 \x41 \101 \n \" \\""#,
                "`raw \\n`",
            ])
            .replace("''", "\\''")
    }

    /// An expression for a scalar.
    pub(super) fn scalar(&mut self, depth: u32) -> String {
        let Some(depth) = depth.checked_sub(1) else {
            return match self.random.index(5) {
                0 => "time()".to_owned(),
                1 => "pi()".to_owned(),
                2 => self.number().to_owned(),
                _ => self.small_number(),
            };
        };
        match self.random.index(9) {
            0 => self.scalar(0),
            1 => format!("scalar({})", self.named_selector("quota")),
            2 => format!("scalar({})", self.vector(depth)),
            3 => format!("scalar(sum({}))", self.vector(depth)),
            4 => format!("-({})", self.scalar(depth)),
            5 => format!("({})", self.scalar(depth)),
            6 => {
                let op = self.random.pick(&["==", "!=", ">", "<", ">=", "<="]);
                format!("({}) {op} bool ({})", self.scalar(depth), self.scalar(depth))
            }
            _ => {
                let op = self.arithmetic();
                format!("({}) {op} ({})", self.scalar(depth), self.scalar(depth))
            }
        }
    }

    /// A scalar for where most special values answer nothing: a plain number mostly.
    pub(super) fn parameter(&mut self, depth: u32) -> String {
        match self.random.index(4) {
            0 => self.scalar(depth),
            _ => self.small_number(),
        }
    }
}
