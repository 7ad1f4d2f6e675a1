//! Inputs made from others, for runs without a fuzzer.

use crate::random::Random;

/// Pieces of the language, which random bytes would hardly hit.
const TOKENS: &[&str] = &[
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "5m",
    "1",
    "0x1f",
    "1e-9",
    "\"s\"",
    "'\\n'",
    "`",
    "=",
    "!=",
    "=~\"a.*|b\"",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "==",
    "> bool",
    "</",
    ">/",
    " and ",
    " or ",
    " unless ",
    " atan2 ",
    " on (job) ",
    " ignoring () ",
    " group_left () ",
    " fill (1) ",
    " offset -5m",
    " @ end()",
    " @ 17",
    "[5m]",
    "[5m:1m]",
    "[5m:]",
    "start()",
    "step()",
    "range()",
    "max_of(1, 2)",
    " anchored",
    " smoothed",
    "rate(",
    "sum by (job) (",
    "topk(2, ",
    "count_values(\"v\", ",
    "label_replace(",
    "histogram_quantile(0.5, ",
    "inf",
    "NaN",
    "a_total",
    "b",
    "h",
    "m",
    "#\n",
    "é",
    "\u{0}",
];

/// Makes inputs from seeds: the same for the same seed.
#[derive(Debug)]
pub struct Mutator {
    random: Random,
}

impl Mutator {
    /// A mutator whose inputs depend on the seed alone.
    pub fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
        }
    }

    /// One of the inputs, changed at a few places.
    pub fn mutated(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.one_of(inputs).to_vec();
        for _ in 0..=self.random.below(4) {
            self.change(&mut bytes, inputs);
        }
        bytes
    }

    fn one_of<'a>(&mut self, inputs: &'a [Vec<u8>]) -> &'a [u8] {
        inputs
            .get(self.random.index(inputs.len()))
            .map_or(&[], Vec::as_slice)
    }

    fn change(&mut self, bytes: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.random.index(bytes.len() + 1);
        let end = (at + self.random.index(8)).min(bytes.len());
        match self.random.below(6) {
            0 => _ = bytes.drain(at..end),
            1 => {
                let copied: Vec<u8> = bytes.drain(at..end).collect();
                let to = self.random.index(bytes.len() + 1);
                bytes.splice(to..to, copied);
            }
            2 => {
                let random = self.random.bits().to_le_bytes();
                bytes.splice(at..end, random.into_iter().take(end - at));
            }
            3 => {
                let other = self.one_of(inputs).to_vec();
                let from = self.random.index(other.len() + 1);
                bytes.truncate(at);
                bytes.extend(other.into_iter().skip(from));
            }
            _ => {
                let token = self.random.pick(TOKENS);
                bytes.splice(at..at, token.bytes());
            }
        }
    }
}
