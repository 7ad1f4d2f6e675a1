//! Reads scripts.

use std::collections::BTreeMap;

use koios_model::Labels;
use koios_promql::parse_duration;
use regex::Regex;

use super::notation::{Sequence, SequencePoint, StartTimes, parse_scalar, parse_series, parse_start_times};
use super::storage::Point;

/// A text that is not in the language.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct ScriptError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// A command and the line it starts on, from 1.
#[derive(Debug)]
pub enum Command {
    /// Forget all samples.
    Clear,
    /// Add samples.
    Load(usize, Load),
    /// Evaluate and compare.
    Eval(usize, Box<Eval>),
}

/// Samples to add.
#[derive(Debug, Default)]
pub struct Load {
    /// Whether classic histograms are added as custom-bucket histograms, too.
    pub with_custom: bool,
    /// The samples by series.
    pub series: BTreeMap<Labels, Vec<Point>>,
}

/// A query and what is expected of it.
#[derive(Debug)]
pub struct Eval {
    /// The query.
    pub query: String,
    /// The evaluation time, milliseconds; `None` for a range query.
    pub at_ms: Option<i64>,
    /// First time of the query or of the expected samples, milliseconds.
    pub start_ms: i64,
    /// Last time, milliseconds.
    pub end_ms: i64,
    /// Milliseconds between times.
    pub step_ms: i64,
    pub(super) fail: Option<Pattern>,
    pub(super) warnings: Vec<Pattern>,
    pub(super) infos: Vec<Pattern>,
    pub(super) no_warnings: bool,
    pub(super) no_infos: bool,
    pub(super) ordered: bool,
    pub(super) expected: Expectation,
    /// The result is none that a range query could give.
    pub(super) instant_only: bool,
}

/// The expected result.
#[derive(Debug)]
pub(super) enum Expectation {
    Scalar(f64),
    String(String),
    Series(Vec<(Labels, Sequence)>),
}

impl Expectation {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Scalar(_) => "a scalar",
            Self::String(_) => "a string",
            Self::Series(_) => "series",
        }
    }
}

/// A text that is expected.
#[derive(Debug)]
pub(super) enum Pattern {
    Any,
    Exact(String),
    Regex(Regex),
}

impl Pattern {
    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(want) => want == text,
            Self::Regex(regex) => regex.is_match(text),
        }
    }

    fn regex(pattern: &str) -> Result<Self, String> {
        Regex::new(pattern.trim())
            .map(Self::Regex)
            .map_err(|e| e.to_string())
    }

    /// What follows the kind of an `expect`: nothing, `msg: …` or `regex: …`.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Any);
        }
        match text.split_once(':') {
            Some(("msg", message)) => Ok(Self::Exact(message.trim().to_owned())),
            Some(("regex", pattern)) => Self::regex(pattern),
            _ => Err(format!("expected msg: or regex:, got {text:?}")),
        }
    }
}

/// Reads a script.
///
/// # Errors
/// [`ScriptError`] at the first line that cannot be read.
pub fn parse_script(text: &str) -> Result<Vec<Command>, ScriptError> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let lines: Vec<&str> = lines
        .into_iter()
        .map(|line| if line.starts_with('#') { "" } else { line })
        .collect();
    let mut commands = Vec::new();
    let mut at = 0;
    while let Some((line, below)) = lines.get(at..).and_then(<[_]>::split_first) {
        at += 1;
        if line.is_empty() {
            continue;
        }
        let end = below
            .iter()
            .position(|line| line.is_empty())
            .unwrap_or(below.len());
        let (command, taken) =
            parse_command(at, line, &below[..end]).map_err(|(offset, reason)| ScriptError {
                line: at + offset,
                reason,
            })?;
        commands.push(command);
        at += taken;
    }
    Ok(commands)
}

/// The command on line `number`, and how many of the lines below belong to it.
fn parse_command(number: usize, line: &str, below: &[&str]) -> At<(Command, usize)> {
    let word = line
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    if word == "clear" {
        Ok((Command::Clear, 0))
    } else if word.starts_with("load") {
        Ok((Command::Load(number, parse_load(line, below)?), below.len()))
    } else if word.starts_with("eval") {
        let mut eval = parse_head(line).map_err(|reason| (0, reason))?;
        let taken = parse_expectations(&mut eval, below).map_err(|(offset, reason)| (offset + 1, reason))?;
        Ok((Command::Eval(number, Box::new(eval)), taken))
    } else {
        Err((0, format!("unknown command {word:?}")))
    }
}

fn millis(text: &str) -> Result<i64, String> {
    parse_duration(text.trim()).map(|nanos| nanos / 1_000_000)
}

/// An error and how many lines below the command it is.
type At<T> = Result<T, (usize, String)>;

fn parse_load(line: &str, body: &[&str]) -> At<Load> {
    let (word, step) = line
        .split_once(char::is_whitespace)
        .ok_or_else(|| (0, "missing step".to_owned()))?;
    let step_ms = millis(step).map_err(|e| (0, e))?;
    let mut load = Load {
        with_custom: word == "load_with_nhcb",
        ..Load::default()
    };
    if !matches!(word, "load" | "load_with_nhcb") {
        return Err((0, format!("unknown command {word:?}")));
    }
    let mut starts: Option<StartTimes> = None;
    for (i, line) in body.iter().enumerate() {
        let error = |reason: String| (i + 1, reason);
        if let Some(parsed) = parse_start_times(line) {
            if starts.replace(parsed.map_err(error)?).is_some() {
                return Err(error("two @st lines in a row".to_owned()));
            }
            continue;
        }
        let (labels, sequence) = parse_series(line).map_err(error)?;
        let offsets = match starts.take() {
            Some((other, offsets)) if other != labels || offsets.len() != sequence.len() => {
                return Err(error("does not match the @st line above".to_owned()));
            }
            Some((_, offsets)) => offsets,
            None => Vec::new(),
        };
        load.series.insert(labels, points(sequence, &offsets, step_ms));
    }
    match starts {
        Some(_) => Err((body.len(), "@st line without samples".to_owned())),
        None => Ok(load),
    }
}

fn points(sequence: Sequence, offsets: &[Option<i64>], step_ms: i64) -> Vec<Point> {
    let times = (0..).map(|i: i64| i.saturating_mul(step_ms));
    let point = |((i, point), t_ms): ((usize, SequencePoint), i64)| match point {
        SequencePoint::Gap => None,
        SequencePoint::Value { value, .. } => {
            let start_ms = offsets
                .get(i)
                .copied()
                .flatten()
                .map_or(0, |offset| t_ms + offset);
            Some(Point {
                t_ms,
                start_ms,
                value,
            })
        }
    };
    sequence
        .into_iter()
        .enumerate()
        .zip(times)
        .filter_map(point)
        .collect()
}

/// The line `eval[_…] instant at <t> <query>` or `eval[_…] range from <a> to <b> step <s> <query>`.
fn parse_head(line: &str) -> Result<Eval, String> {
    let (word, rest) = line.split_once(char::is_whitespace).ok_or("missing query")?;
    let rest = rest.trim_start();
    let mut eval = if let Some(rest) = keyword(rest, "instant") {
        let (at, query) = match keyword(rest, "at") {
            Some(rest) => rest.split_once(char::is_whitespace).ok_or("missing query")?,
            None => ("0", rest),
        };
        let at_ms = millis(at)?;
        Eval::new(query, Some(at_ms), (at_ms, at_ms, 0))
    } else {
        let rest = keyword(rest, "range")
            .and_then(|rest| keyword(rest, "from"))
            .ok_or("unknown evaluation")?;
        let (from, rest) = rest.split_once(" to ").ok_or("missing end")?;
        let (to, rest) = rest.split_once(" step ").ok_or("missing step")?;
        let (step, query) = rest
            .trim_start()
            .split_once(char::is_whitespace)
            .ok_or("missing query")?;
        Eval::new(query, None, (millis(from)?, millis(to)?, millis(step)?))
    };
    match word.to_ascii_lowercase().strip_prefix("eval").unwrap_or_default() {
        "" => {}
        "_fail" => eval.fail = Some(Pattern::Any),
        "_warn" => eval.warnings.push(Pattern::Any),
        "_info" => eval.infos.push(Pattern::Any),
        "_ordered" => eval.ordered = true,
        other => return Err(format!("unknown evaluation {other:?}")),
    }
    Ok(eval)
}

/// What follows a word at the start of a text.
fn keyword<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(word)?;
    rest.starts_with(char::is_whitespace).then(|| rest.trim_start())
}

impl Eval {
    fn new(query: &str, at_ms: Option<i64>, (start_ms, end_ms, step_ms): (i64, i64, i64)) -> Self {
        Self {
            query: query.trim_start().to_owned(),
            at_ms,
            start_ms,
            end_ms,
            step_ms,
            fail: None,
            warnings: Vec::new(),
            infos: Vec::new(),
            no_warnings: false,
            no_infos: false,
            ordered: false,
            expected: Expectation::Series(Vec::new()),
            instant_only: false,
        }
    }

    /// Takes in one `expect …` line; whether it was one.
    fn expect(&mut self, line: &str) -> Result<bool, String> {
        let Some(rest) = keyword(line, "expect") else {
            return Ok(false);
        };
        if let Some(rest) = keyword(rest, "range").and_then(|rest| keyword(rest, "vector")) {
            let rest = keyword(rest, "from").ok_or("missing start")?;
            let (from, rest) = rest.split_once(" to ").ok_or("missing end")?;
            let (to, step) = rest.split_once(" step ").ok_or("missing step")?;
            (self.start_ms, self.end_ms, self.step_ms) = (millis(from)?, millis(to)?, millis(step)?);
            self.instant_only = true;
            return Ok(true);
        }
        let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let rest = rest.trim();
        match kind {
            "ordered" => self.ordered = true,
            "no_warn" => self.no_warnings = true,
            "no_info" => self.no_infos = true,
            "warn" => self.warnings.push(Pattern::parse(rest)?),
            "info" => self.infos.push(Pattern::parse(rest)?),
            "fail" => self.fail = Some(Pattern::parse(rest)?),
            "string" => {
                self.expected = Expectation::String(unquote(rest)?);
                self.instant_only = true;
            }
            other => return Err(format!("unknown expectation {other:?}")),
        }
        Ok(true)
    }

    fn check(&self) -> Result<(), String> {
        if self.no_warnings && !self.warnings.is_empty() || self.no_infos && !self.infos.is_empty() {
            return Err("expects both some and none".to_owned());
        }
        Ok(())
    }
}

/// A string literal of PromQL.
fn unquote(text: &str) -> Result<String, String> {
    let parsed = koios_promql::parse(text);
    match parsed.as_ref().map(|ast| ast.root().expr()) {
        Ok(koios_promql::Expr::String(literal)) => Ok(literal.value.clone()),
        _ => Err(format!("{text:?} is no quoted string")),
    }
}

/// Takes in the lines below an `eval`; answers how many belong to it.
fn parse_expectations(eval: &mut Eval, body: &[&str]) -> At<usize> {
    let mut series: Vec<(Labels, Sequence)> = Vec::new();
    for (i, line) in body.iter().enumerate() {
        let error = |reason: String| (i, reason);
        if let Some(message) = line.strip_prefix("expected_fail_message") {
            eval.fail = Some(Pattern::Exact(message.trim().to_owned()));
            return Ok(i + 1);
        }
        if let Some(pattern) = line.strip_prefix("expected_fail_regexp") {
            eval.fail = Some(Pattern::regex(pattern).map_err(error)?);
            return Ok(i + 1);
        }
        if eval.expect(line).map_err(error)? {
            eval.check().map_err(error)?;
            continue;
        }
        if let Some(value) = parse_scalar(line) {
            eval.expected = Expectation::Scalar(value);
            return Ok(i + 1);
        }
        let (labels, points) = parse_series(line).map_err(error)?;
        if eval.at_ms.is_some() && !eval.instant_only && points.len() > 1 {
            return Err(error("several values for an instant".to_owned()));
        }
        // A repeated series replaces the earlier expectation.
        series.retain(|(other, _)| *other != labels);
        series.push((labels, points));
    }
    if let Expectation::Series(all) = &mut eval.expected {
        *all = series;
    }
    Ok(body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_script_with_everything() {
        let script = "
# A comment.
load 5m
  a{b=\"c\"}@st _ -1m
  a{b=\"c\"} 1 2
  h_bucket{le=\"1\"} 1

clear
load_with_nhcb 1m
  x 1

eval instant at 5m a
  expect no_warn
  expect info msg: PromQL info: something (1:1)
  expect ordered
  {b=\"c\"} 2

eval range from 0 to 10m step 5m a
  a{b=\"c\"} 1 2 _

eval_fail instant at 0 a +
  expected_fail_regexp unexpected.*
eval instant at 1m 1 + 1
  2
eval instant at 1m a[2m]
  expect range vector from 0 to 1m step 1m
  a 1 2
";
        let commands = parse_script(script).unwrap();
        assert_eq!(commands.len(), 8);
        let Command::Load(3, load) = &commands[0] else {
            panic!("{:?}", commands[0])
        };
        let points = &load.series[&Labels::from_pairs([("__name__", "a"), ("b", "c")])];
        assert_eq!(
            (points[0].start_ms, points[1].start_ms, points[1].t_ms),
            (0, 240_000, 300_000)
        );
        let Command::Eval(12, eval) = &commands[3] else {
            panic!("{:?}", commands[3])
        };
        assert!(eval.ordered && eval.no_warnings && eval.infos.len() == 1 && eval.at_ms == Some(300_000));
        let Command::Eval(_, eval) = &commands[5] else {
            panic!("{:?}", commands[5])
        };
        assert!(eval.fail.as_ref().is_some_and(|p| p.matches("unexpected end")));
        let Command::Eval(_, eval) = &commands[6] else {
            panic!("{:?}", commands[6])
        };
        assert!(matches!(eval.expected, Expectation::Scalar(v) if v == 2.0));
    }

    #[test]
    fn names_the_line_it_cannot_read() {
        let line = |script: &str| parse_script(script).unwrap_err().line;
        assert_eq!(line("\nfoo"), 2);
        assert_eq!(line("load 1m\n  a 1\n  b {{"), 3);
        assert_eq!(line("eval instant at 1m a\n  expect no_warn\n  expect warn"), 3);
        assert_eq!(line("eval instant at 1m a\n  a 1 2"), 2);
    }
}
