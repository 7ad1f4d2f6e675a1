//! `label_replace` and `label_join`: functions of labels alone.

use koios_model::{METRIC_NAME, MatcherError, from_go_regex};
use regex::{Captures, Regex, RegexBuilder};

use super::Evaluator;
use super::inputs::Inputs;
use super::row::{Row, merge_equal_labels};
use crate::error::QueryError;
use crate::memory::of_labels;
use crate::plan::CallNode;

/// Largest compiled pattern.
const REGEX_BYTES_MAX: usize = 4 << 20;

/// The sizes that a compiled pattern is tried to fit into, in order.
const REGEX_SIZES: [usize; 6] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, REGEX_BYTES_MAX];
/// What a state of a compiled pattern occupies, about.
const STATE_BYTES: usize = 64;
/// Most work that matching one value may be: it cannot be interrupted.
const MATCH_UNITS_MAX: usize = 1 << 24;
/// How many bytes are copied in a unit of work.
const BYTES_PER_UNIT: usize = 16;

/// A compiled pattern, and how large it is at most.
pub(super) struct Pattern {
    regex: Regex,
    bytes: usize,
}

impl Pattern {
    fn compile(pattern: &str) -> Result<Self, QueryError> {
        let refused = || {
            QueryError::execution(format!(
                "invalid regular expression in label_replace(): {pattern}"
            ))
        };
        let translated = from_go_regex(pattern).map_err(|_| refused())?;
        let anchored = format!("^(?s:{translated})$");
        for bytes in REGEX_SIZES {
            let compiled = RegexBuilder::new(&anchored)
                .size_limit(bytes)
                .nest_limit(130)
                .build();
            match compiled {
                Ok(regex) => return Ok(Self { regex, bytes }),
                Err(regex::Error::CompiledTooBig(_)) => {}
                Err(_) => return Err(refused()),
            }
        }
        let error = MatcherError::TooLarge {
            what: "compiled",
            limit: REGEX_BYTES_MAX,
        };
        Err(QueryError::execution(format!("label_replace(): {error}")))
    }

    /// How large it is at most.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The work that matching a value is at most: in the worst case all states are visited for each of its bytes.
    ///
    /// Fails if that is too much.
    fn units(&self, value: &str) -> Result<usize, QueryError> {
        let units = value.len().saturating_mul(self.bytes / STATE_BYTES);
        if units <= MATCH_UNITS_MAX {
            return Ok(16 + units);
        }
        let longest = MATCH_UNITS_MAX / (self.bytes / STATE_BYTES);
        Err(QueryError::LimitExceeded(format!(
            "label_replace(): a label value of {} bytes is too long for its regular expression (limit: {longest} bytes): \
             match shorter values or write a simpler expression",
            value.len()
        )))
    }
}

/// Sets one label; if it is the name, the name stays.
fn set(row: &mut Row, name: &str, value: &str) {
    let mut labels = row.labels.to_builder();
    labels.set(name, value);
    row.labels = labels.build();
    if name == METRIC_NAME {
        row.drop_name = false;
    }
}

/// Whether a label can be called so. Text that was no UTF-8 holds replacement characters.
pub(super) fn is_valid_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(char::REPLACEMENT_CHARACTER)
}

fn check_name(name: &str, which: &str, function: &str) -> Result<(), QueryError> {
    if !is_valid_name(name) {
        return Err(QueryError::execution(format!(
            "invalid {which} label name in {function}(): {name}"
        )));
    }
    Ok(())
}

impl<'a> Evaluator<'a> {
    /// The pattern of `label_replace`, whose other strings are checked, too.
    pub(super) fn replaced_pattern(&self, node: &CallNode) -> Result<Pattern, QueryError> {
        let pattern = Pattern::compile(self.text(node, 4)?)?;
        check_name(self.text(node, 1)?, "destination", "label_replace")?;
        Ok(pattern)
    }

    pub(super) fn label_replace(
        &self,
        node: &CallNode,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let (target, replacement, source) = (self.text(node, 1)?, self.text(node, 2)?, self.text(node, 3)?);
        let pattern = match inputs.pattern.take() {
            Some(kept) => *kept,
            None => self.replaced_pattern(node)?,
        };
        let references = replacement.matches('$').count();
        let mut rows = inputs.vector()?;
        let mut work = self.work();
        for row in &mut rows {
            let value = row.labels.get(source).unwrap_or("");
            work.spend(pattern.units(value)?)?;
            let Some(captures) = pattern.regex.captures(value) else {
                continue;
            };
            // Counted before it is made: the longest that it can become.
            let longest = references
                .saturating_mul(value.len())
                .saturating_add(replacement.len());
            work.hold(of_labels(&row.labels).saturating_add(longest.saturating_mul(2)))?;
            work.spend(longest / BYTES_PER_UNIT)?;
            let value = expanded(&captures, replacement);
            set(row, target, &value);
        }
        merge_equal_labels(rows, &mut work)
    }

    /// The labels that `label_join` joins.
    pub(super) fn joined_labels(&self, node: &CallNode) -> Result<Vec<&'a str>, QueryError> {
        let sources = (3..node.args.len())
            .map(|i| self.text(node, i))
            .collect::<Result<Vec<_>, _>>()?;
        for source in &sources {
            check_name(source, "source", "label_join")?;
        }
        check_name(self.text(node, 1)?, "destination", "label_join")?;
        Ok(sources)
    }

    pub(super) fn label_join(
        &self,
        node: &CallNode,
        inputs: &mut Inputs<'_>,
    ) -> Result<Vec<Row>, QueryError> {
        let sources = self.joined_labels(node)?;
        let (target, separator) = (self.text(node, 1)?, self.text(node, 2)?);
        let mut rows = inputs.vector()?;
        let mut work = self.work();
        for row in &mut rows {
            work.spend(sources.len().saturating_mul(8))?;
            let values: Vec<_> = sources.iter().map(|s| row.labels.get(s).unwrap_or("")).collect();
            let separators = separator.len().saturating_mul(values.len());
            let length = values
                .iter()
                .fold(separators, |sum, v| sum.saturating_add(v.len()));
            work.hold(of_labels(&row.labels).saturating_add(length.saturating_mul(2)))?;
            work.spend(length / BYTES_PER_UNIT)?;
            let joined = values.join(separator);
            set(row, target, &joined);
        }
        merge_equal_labels(rows, &mut work)
    }
}

fn expanded(captures: &Captures<'_>, template: &str) -> String {
    let mut out = String::new();
    captures.expand(template, &mut out);
    out
}
