//! Durations and numbers: literals, their printed form, and the value of duration expressions.

use std::borrow::Cow;
use std::fmt::{self, Write};

use crate::ast::{
    Ast, BinaryOp, DurationArg, DurationExpr, DurationId, DurationKind, Expr, ExprId, Span, SubqueryExpr,
    VectorSelector,
};
use crate::string_literal::Quoted;

/// Units from the largest, with their nanoseconds.
const UNITS: [(&str, u64); 7] = [
    ("y", 365 * 24 * 3600 * 1_000_000_000),
    ("w", 7 * 24 * 3600 * 1_000_000_000),
    ("d", 24 * 3600 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
];

const OUT_OF_RANGE: &str = "duration out of range";

/// Reads a duration such as `1h30m`, in nanoseconds. Units go from large to small, each at most once.
///
/// # Errors
/// The text of the error, in Prometheus' words.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    match text {
        "0" => return Ok(0),
        "" => return Err("empty duration string".to_owned()),
        _ => {}
    }
    let invalid = || format!("not a valid duration string: {}", Quoted(text));
    let (mut rest, mut units, mut total) = (text, UNITS.as_slice(), 0_u64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        if unit.is_empty() {
            return Err(invalid());
        }
        if !UNITS.iter().any(|(name, _)| *name == unit) {
            return Err(format!(
                "unknown unit {} in duration {}",
                Quoted(unit),
                Quoted(text)
            ));
        }
        let at = units
            .iter()
            .position(|(name, _)| *name == unit)
            .ok_or_else(invalid)?;
        let nanos = units.get(at).map_or(0, |(_, nanos)| *nanos);
        units = units.get(at + 1..).unwrap_or_default();
        total = number
            .checked_mul(nanos)
            .and_then(|n| n.checked_add(total))
            .ok_or(OUT_OF_RANGE)?;
        rest = tail;
    }
    i64::try_from(total).map_err(|_| OUT_OF_RANGE.to_owned())
}

/// Nanoseconds as seconds.
pub(crate) fn nanos_to_seconds(nanos: i64) -> f64 {
    (nanos / 1_000_000_000) as f64 + (nanos % 1_000_000_000) as f64 / 1e9
}

/// Seconds as whole milliseconds. Rounds to nanoseconds first and then cuts, as the reference does.
pub(crate) fn seconds_to_millis(seconds: f64) -> i64 {
    (seconds * 1e9).round() as i64 / 1_000_000
}

/// Whether a literal exceeds what 64 bits of nanoseconds hold.
pub(crate) fn literal_out_of_range(seconds: f64) -> bool {
    const MAX: f64 = (1_u64 << 63) as f64 / 1e9;
    !(-MAX..=MAX).contains(&seconds) && !seconds.is_nan()
}

/// Reads a number as the lexer scans it: Go's integers of any base (a leading 0 is octal), else a float.
///
/// # Errors
/// The text of the error, in Prometheus' words.
pub(crate) fn parse_number(text: &str) -> Result<f64, String> {
    if let Some(n) = parse_integer(text) {
        return Ok(n as f64);
    }
    let error = |what: &str| {
        format!(
            "error parsing number: strconv.ParseFloat: parsing {}: {what}",
            Quoted(text)
        )
    };
    match text.to_ascii_lowercase().as_str() {
        "inf" => return Ok(f64::INFINITY),
        "nan" => return Ok(f64::NAN),
        _ => {}
    }
    if !underscores_separate_digits(text) {
        return Err(error("invalid syntax"));
    }
    let value: f64 = text
        .replace('_', "")
        .parse()
        .map_err(|_| error("invalid syntax"))?;
    if value.is_infinite() {
        return Err(error("value out of range"));
    }
    Ok(value)
}

fn parse_integer(text: &str) -> Option<i64> {
    if !underscores_separate_digits(text) {
        return None;
    }
    let plain = text.replace('_', "");
    let (digits, base) = if let Some(hex) = plain.strip_prefix("0x").or_else(|| plain.strip_prefix("0X")) {
        (hex, 16)
    } else if plain.len() > 1 && plain.starts_with('0') {
        (plain.get(1..)?, 8)
    } else {
        (plain.as_str(), 10)
    };
    digits
        .bytes()
        .all(|b| b.is_ascii_hexdigit())
        .then(|| i64::from_str_radix(digits, base).ok())
        .flatten()
}

/// Underscores may stand between two digits and after a base prefix.
fn underscores_separate_digits(text: &str) -> bool {
    let hex = text.starts_with("0x") || text.starts_with("0X");
    let mut last = if hex { '0' } else { '^' };
    for c in text.chars().skip(if hex { 2 } else { 0 }) {
        let digit = c.is_ascii_digit() || hex && c.is_ascii_hexdigit();
        match c {
            '_' if last != '0' => return false,
            _ if !digit && c != '_' && last == '_' => return false,
            _ => {}
        }
        last = if digit {
            '0'
        } else if c == '_' {
            '_'
        } else {
            '!'
        };
    }
    last != '_'
}

/// A duration in Prometheus' form: `1h30m`; years and weeks only where nothing remains.
pub(crate) struct Millis(pub(crate) i64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        if self.0 < 0 {
            f.write_char('-')?;
        }
        let mut ms = self.0.unsigned_abs();
        for (name, nanos) in UNITS {
            let unit = nanos / 1_000_000;
            let exact = matches!(name, "y" | "w");
            if ms >= unit && (!exact || ms.is_multiple_of(unit)) {
                write!(f, "{}{name}", ms / unit)?;
                ms %= unit;
            }
        }
        Ok(())
    }
}

/// Why a duration expression has no usable value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}:{}: {reason}", span.start, span.end)]
pub struct DurationError {
    /// The expression.
    pub span: Span,
    /// What is wrong, in Prometheus' words.
    pub reason: &'static str,
}

/// What `step()` and `range()` stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationContext {
    /// The query's step in milliseconds; 0 for an instant query.
    pub step_ms: i64,
    /// The query's end minus its start in milliseconds; 0 for an instant query.
    pub range_ms: i64,
}

/// The tree with every duration expression replaced by its value, see [`resolve_durations`]; the same tree where there is
/// none.
///
/// # Errors
/// [`DurationError`] as of [`resolve_durations`].
pub fn with_durations(ast: &Ast, context: DurationContext) -> Result<Cow<'_, Ast>, DurationError> {
    if !ast.exprs().any(has_durations) {
        return Ok(Cow::Borrowed(ast));
    }
    let mut resolved = ast.clone();
    resolve_durations(&mut resolved, context)?;
    Ok(Cow::Owned(resolved))
}

/// Replaces every duration expression in a tree by its value, so that each [`DurationArg`] is
/// [`DurationArg::Millis`].
///
/// # Errors
/// [`DurationError`] for ranges and steps that are not positive and for values that are no durations.
pub fn resolve_durations(ast: &mut Ast, context: DurationContext) -> Result<(), DurationError> {
    // Of several mistakes, that of the outermost expression is told.
    let places: Vec<ExprId> = ast
        .root()
        .walk()
        .filter(|(expr, done)| *done == 0 && has_durations(expr.expr()))
        .map(|(expr, _)| expr.id())
        .collect();
    places.into_iter().try_for_each(|id| match ast.expr_mut(id) {
        Expr::Vector(selector) => resolve_selector(selector, context),
        Expr::Matrix(matrix) => {
            context.resolve(&mut matrix.range, false)?;
            resolve_selector(&mut matrix.selector, context)
        }
        Expr::Subquery(subquery) => resolve_subquery(subquery, context),
        _ => Ok(()),
    })
}

/// Whether an expression has durations of which the milliseconds are not known.
fn has_durations(expr: &Expr) -> bool {
    let unknown = |arg: &DurationArg| arg.millis().is_none();
    match expr {
        Expr::Vector(e) => unknown(&e.offset),
        Expr::Matrix(e) => unknown(&e.range) || unknown(&e.selector.offset),
        Expr::Subquery(e) => unknown(&e.range) || unknown(&e.offset) || e.step.as_ref().is_some_and(unknown),
        _ => false,
    }
}

fn resolve_selector(selector: &mut VectorSelector, context: DurationContext) -> Result<(), DurationError> {
    context.resolve(&mut selector.offset, true)
}

fn resolve_subquery(subquery: &mut SubqueryExpr, context: DurationContext) -> Result<(), DurationError> {
    context.resolve(&mut subquery.offset, true)?;
    if let Some(step) = &mut subquery.step {
        context.resolve(step, false)?;
    }
    context.resolve(&mut subquery.range, false)
}

impl DurationContext {
    fn resolve(self, arg: &mut DurationArg, negative_allowed: bool) -> Result<(), DurationError> {
        let DurationArg::Expr(expr) = arg else {
            return Ok(());
        };
        let error = |reason| {
            Err(DurationError {
                span: expr.span(),
                reason,
            })
        };
        let seconds = self.seconds(expr)?;
        if seconds.is_nan() || seconds.is_infinite() {
            return error("duration is NaN or infinite");
        }
        if seconds <= 0.0 && !negative_allowed {
            return error("duration must be greater than 0");
        }
        if literal_out_of_range(seconds) {
            return error("duration is out of range");
        }
        *arg = DurationArg::Millis((seconds * 1000.0) as i64);
        Ok(())
    }

    /// The value of an expression in seconds: that of each part, from those below it.
    fn seconds(self, expr: &DurationExpr) -> Result<f64, DurationError> {
        let mut values: Vec<f64> = Vec::with_capacity(expr.nodes.len());
        for node in &expr.nodes {
            let of = |id: DurationId| values.get(id.0).copied().unwrap_or(f64::NAN);
            let value = match node.kind {
                DurationKind::Number(number) => number.value,
                DurationKind::Step => self.step_ms as f64 / 1000.0,
                DurationKind::Range => self.range_ms as f64 / 1000.0,
                DurationKind::Negate(inner) => -of(inner),
                DurationKind::Paren(inner) => of(inner),
                DurationKind::MinOf(a, b) => go_min(of(a), of(b)),
                DurationKind::MaxOf(a, b) => -go_min(-of(a), -of(b)),
                DurationKind::Binary(op, a, b) => {
                    binary(op, of(a), of(b)).map_err(|reason| DurationError {
                        span: node.span,
                        reason,
                    })?
                }
            };
            values.push(value);
        }
        Ok(values.last().copied().unwrap_or(f64::NAN))
    }
}

/// The smaller value; NaN if either is, unlike [`f64::min`].
fn go_min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.min(b)
    }
}

fn binary(op: BinaryOp, a: f64, b: f64) -> Result<f64, &'static str> {
    match op {
        BinaryOp::Add => Ok(a + b),
        BinaryOp::Sub => Ok(a - b),
        BinaryOp::Mul => Ok(a * b),
        BinaryOp::Div if b == 0.0 => Err("division by zero"),
        BinaryOp::Div => Ok(a / b),
        BinaryOp::Mod if b == 0.0 => Err("modulo by zero"),
        BinaryOp::Mod => Ok(a % b),
        BinaryOp::Pow => Ok(a.powf(b)),
        _ => Err("unexpected duration expression operator"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("5m", Ok(300_000))]
    #[case("1y2w3d4h5m6s7ms", Ok(33_019_506_007))]
    #[case("0", Ok(0))]
    #[case("5m1h", Err("not a valid duration string: \"5m1h\""))]
    #[case("5m1m", Err("not a valid duration string: \"5m1m\""))]
    #[case("5y1hs", Err("unknown unit \"hs\" in duration \"5y1hs\""))]
    #[case("m", Err("not a valid duration string: \"m\""))]
    #[case("", Err("empty duration string"))]
    #[case("300y", Err("duration out of range"))]
    #[case(
        "99999999999999999999s",
        Err("not a valid duration string: \"99999999999999999999s\"")
    )]
    fn reads_durations(#[case] text: &str, #[case] want: Result<i64, &str>) {
        assert_eq!(
            parse_duration(text).map(|n| n / 1_000_000),
            want.map_err(str::to_owned)
        );
    }

    #[rstest]
    #[case(0, "0s")]
    #[case(90 * 24 * 3_600_000, "90d")]
    #[case(84 * 24 * 3_600_000, "12w")]
    #[case(365 * 24 * 3_600_000, "1y")]
    #[case(5_400_000, "1h30m")]
    #[case(1_001, "1s1ms")]
    #[case(-60_000, "-1m")]
    fn prints_durations(#[case] ms: i64, #[case] want: &str) {
        assert_eq!(Millis(ms).to_string(), want);
        assert_eq!(
            parse_duration(want.trim_start_matches('-')).map(|n| n / 1_000_000),
            Ok(ms.abs())
        );
    }

    #[rstest]
    #[case("0xc", 12.0)]
    #[case("0X_1F", 31.0)]
    #[case("017", 15.0)]
    #[case("08", 8.0)]
    #[case("1_000_000", 1e6)]
    #[case("1_2.3_4e1_0", 12.34e10)]
    #[case(".5", 0.5)]
    #[case("5.", 5.0)]
    #[case("00_1_23_4.56_7_8", 1234.5678)]
    #[case("iNf", f64::INFINITY)]
    #[case("9223372036854775808", 9_223_372_036_854_775_808.0)]
    fn reads_numbers(#[case] text: &str, #[case] want: f64) {
        assert_eq!(parse_number(text), Ok(want));
    }

    #[test]
    fn says_why_a_number_is_none() {
        let long = "9".repeat(400);
        assert_eq!(
            parse_number(&long),
            Err(format!(
                "error parsing number: strconv.ParseFloat: parsing \"{long}\": value out of range"
            ))
        );
        assert!(
            parse_number("0xfffffffffffffffff")
                .unwrap_err()
                .ends_with("invalid syntax")
        );
        assert!(parse_number("1e").unwrap_err().ends_with("invalid syntax"));
    }
}
