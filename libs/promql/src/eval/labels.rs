//! `label_replace` and `label_join`: functions of labels alone.

use koios_model::{METRIC_NAME, MatcherError, from_go_regex};
use regex::{Captures, Regex, RegexBuilder};

use super::row::{Row, merge_equal_labels};
use super::{Evaluator, wrong_type};
use crate::context::check;
use crate::error::QueryError;
use crate::plan::{CallNode, Node};
use crate::steps::Steps;

/// Largest compiled pattern.
const REGEX_BYTES_MAX: usize = 4 << 20;

fn text(node: &CallNode, i: usize) -> Result<&str, QueryError> {
    match node.args.get(i) {
        Some(Node::String { value, .. }) => Ok(value),
        _ => Err(wrong_type("string")),
    }
}

fn compile(pattern: &str) -> Result<Regex, QueryError> {
    RegexBuilder::new(&format!("^(?s:{})$", from_go_regex(pattern)))
        .size_limit(REGEX_BYTES_MAX)
        .nest_limit(130)
        .build()
        .map_err(|e| match e {
            regex::Error::CompiledTooBig(limit) => {
                let error = MatcherError::TooLarge {
                    what: "compiled",
                    limit,
                };
                QueryError::execution(format!("label_replace(): {error}"))
            }
            _ => QueryError::execution(format!(
                "invalid regular expression in label_replace(): {pattern}"
            )),
        })
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

impl Evaluator<'_> {
    pub(super) fn label_replace(&mut self, node: &CallNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let (target, replacement) = (text(node, 1)?, text(node, 2)?);
        let (source, pattern) = (text(node, 3)?, compile(text(node, 4)?)?);
        check_name(target, "destination", "label_replace")?;
        let references = replacement.matches('$').count();
        let mut rows = self.vector_arg(node, 0, steps)?;
        for row in &mut rows {
            check(self.ctx)?;
            let value = row.labels.get(source).unwrap_or("");
            let Some(captures) = pattern.captures(value) else {
                continue;
            };
            // Counted before it is made: the longest that it can become.
            let longest = references
                .saturating_mul(value.len())
                .saturating_add(replacement.len());
            self.account
                .make_labels(row.labels.packed().len().saturating_add(longest))?;
            let value = expanded(&captures, replacement);
            set(row, target, &value);
        }
        merge_equal_labels(rows)
    }

    pub(super) fn label_join(&mut self, node: &CallNode, steps: Steps) -> Result<Vec<Row>, QueryError> {
        let (target, separator) = (text(node, 1)?, text(node, 2)?);
        let sources = (3..node.args.len())
            .map(|i| text(node, i))
            .collect::<Result<Vec<_>, _>>()?;
        for source in &sources {
            check_name(source, "source", "label_join")?;
        }
        check_name(target, "destination", "label_join")?;
        let mut rows = self.vector_arg(node, 0, steps)?;
        for row in &mut rows {
            check(self.ctx)?;
            let values: Vec<_> = sources.iter().map(|s| row.labels.get(s).unwrap_or("")).collect();
            let separators = separator.len().saturating_mul(values.len());
            let length = values
                .iter()
                .fold(separators, |sum, v| sum.saturating_add(v.len()));
            self.account
                .make_labels(row.labels.packed().len().saturating_add(length))?;
            let joined = values.join(separator);
            set(row, target, &joined);
        }
        merge_equal_labels(rows)
    }
}

fn expanded(captures: &Captures<'_>, template: &str) -> String {
    let mut out = String::new();
    captures.expand(template, &mut out);
    out
}
