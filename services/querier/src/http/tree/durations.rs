//! Ranges, steps and offsets of a tree.
//!
//! **Source:** Prometheus `web/api/v1/translate_ast.go` `translateDurationExpr`.

use std::io::{Result, Write};

use koios_promql::{DurationArg, DurationExpr, DurationKind};
use serde_json::json;

use super::number;

/// Writes a comma and two members: the milliseconds, 0 for an expression, whose value depends on the query's range and step;
/// and the expression, `null` where there is none.
pub(super) fn write_duration(out: &mut Vec<u8>, name: &str, arg: &DurationArg) -> Result<()> {
    write!(out, r#","{name}":{},"{name}Expr":"#, arg.millis().unwrap_or(0))?;
    match arg {
        DurationArg::Millis(_) => out.write_all(b"null"),
        DurationArg::Expr(expr) => write_expr(out, expr),
    }
}

fn write_expr(out: &mut Vec<u8>, expr: &DurationExpr) -> Result<()> {
    // Whether the next part is in parentheses, and the parts that are under way.
    let (mut wrapped, mut open) = (false, Vec::new());
    for (node, done, last) in expr.walk() {
        let (op, operands) = match &node.kind {
            DurationKind::Number(n) => {
                let (duration, val) = (n.duration, number(n.value));
                let node = json!({"type": "numberLiteral", "val": val, "duration": duration});
                write!(out, "{node}")?;
                continue;
            }
            // A number cannot say that it is in parentheses, a sign around it can.
            DurationKind::Paren(inner) if expr.is_number(*inner) => ("+", 1),
            DurationKind::Paren(_) => {
                wrapped = !last;
                continue;
            }
            DurationKind::Step => ("step", 0),
            DurationKind::Range => ("range", 0),
            DurationKind::Negate(_) => ("-", 1),
            DurationKind::MinOf(..) => ("min_of", 2),
            DurationKind::MaxOf(..) => ("max_of", 2),
            DurationKind::Binary(op, ..) => (op.as_str(), 2),
        };
        if done == 0 {
            open.push(std::mem::take(&mut wrapped) || matches!(node.kind, DurationKind::Paren(_)));
            out.write_all(br#"{"lhs":"#)?;
            if operands < 2 {
                out.write_all(b"null")?;
            }
        }
        if done + 1 == operands.max(1) {
            write!(out, r#","op":"{op}","rhs":"#)?;
            if operands == 0 {
                out.write_all(b"null")?;
            }
        }
        if last {
            let wrapped = open.pop().unwrap_or(false);
            write!(out, r#","type":"durationExpr","wrapped":{wrapped}}}"#)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use koios_promql::{Expr, parse};
    use rstest::rstest;
    use serde_json::Value;

    use super::*;

    /// The offset's expression of a selector.
    fn offset(text: &str) -> Value {
        let ast = parse(&format!("x offset {text}")).unwrap();
        let Expr::Vector(selector) = ast.root().expr() else {
            panic!("{text}: no selector");
        };
        let mut out = Vec::new();
        write_duration(&mut out, "offset", &selector.offset).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expr = text.strip_prefix(r#","offset":0,"offsetExpr":"#).unwrap();
        let value: Value = serde_json::from_str(expr).unwrap();
        // Each member once, all in order, and nothing between them.
        assert_eq!(value.to_string(), expr);
        value
    }

    fn part(op: &str, lhs: Value, rhs: Value, wrapped: bool) -> Value {
        let (kind, op, wrapped) = (json!("durationExpr"), json!(op), json!(wrapped));
        Value::from_iter([
            ("type", kind),
            ("op", op),
            ("lhs", lhs),
            ("rhs", rhs),
            ("wrapped", wrapped),
        ])
    }

    fn seconds(val: &str, duration: bool) -> Value {
        json!({"type": "numberLiteral", "val": val, "duration": duration})
    }

    #[rstest]
    #[case::word("step()", part("step", Value::Null, Value::Null, false))]
    #[case::in_parentheses("(range())", part("range", Value::Null, Value::Null, true))]
    #[case::sign(
        "-step()",
        part("-", Value::Null, part("step", Value::Null, Value::Null, false), false)
    )]
    #[case::number("(5m)", part("+", Value::Null, seconds("300", true), true))]
    #[case::twice("((0.5))", part("+", Value::Null, seconds("0.5", false), true))]
    #[case::sum("(1m + 30)", part("+", seconds("60", true), seconds("30", false), true))]
    #[case::choice(
        "min_of(1m, step())",
        part(
            "min_of",
            seconds("60", true),
            part("step", Value::Null, Value::Null, false),
            false
        )
    )]
    #[case::within(
        "-(max_of((1h), -2) * (3 ^ 2))",
        part(
            "-",
            Value::Null,
            part(
                "*",
                part(
                    "max_of",
                    part("+", Value::Null, seconds("3600", true), true),
                    seconds("-2", false),
                    false
                ),
                part("^", seconds("3", false), seconds("2", false), true),
                true,
            ),
            false
        )
    )]
    fn expressions_have_prometheus_form(#[case] text: &str, #[case] expected: Value) {
        assert_eq!(offset(text), expected);
    }

    #[test]
    fn what_is_known_has_no_expression() {
        let written = |arg: &DurationArg| {
            let mut out = Vec::new();
            write_duration(&mut out, "range", arg).unwrap();
            String::from_utf8(out).unwrap()
        };
        let known = written(&DurationArg::Millis(-1500));
        assert_eq!(known, r#","range":-1500,"rangeExpr":null"#);
    }

    #[test]
    fn each_range_step_and_offset_may_be_an_expression() {
        let mut out = Vec::new();
        let query = "rate(x[step()] offset -range())[(1m):min_of(1,2)] offset (1h)";
        super::super::write_tree(&mut out, &parse(&format!("sum_over_time({query})")).unwrap());
        let tree: Value = serde_json::from_slice(&out).unwrap();
        let subquery = &tree["args"][0];
        for (name, op) in [("range", "+"), ("step", "min_of"), ("offset", "+")] {
            assert_eq!(subquery[name], 0);
            assert_eq!(subquery[format!("{name}Expr")]["op"], op, "{subquery}");
        }
        let selector = &subquery["expr"]["args"][0];
        for (name, op) in [("range", "step"), ("offset", "-")] {
            assert_eq!(selector[name], 0);
            assert_eq!(selector[format!("{name}Expr")]["op"], op, "{selector}");
        }
    }

    #[test]
    fn i12_deep_expressions_are_written_on_a_small_stack() {
        let deep = || {
            let text = format!("x offset {}step(){}", "-(".repeat(400), ")".repeat(400));
            let mut out = Vec::new();
            super::super::write_tree(&mut out, &parse(&text).unwrap());
            out.len()
        };
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(deep);
        assert!(thread.unwrap().join().unwrap() > 20_000);
    }
}
