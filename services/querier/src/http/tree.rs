//! A query as the tree that `parse_query` answers.
//!
//! **Source:** Prometheus `web/api/v1/translate_ast.go`.

mod durations;

use std::io::Write;

use koios_model::Matcher;
use koios_promql::{Ast, At, Call, DurationArg, Expr, RangeEdges, VectorMatching, VectorSelector};
use serde_json::{Value, json};

use durations::write_duration;

/// Writes the tree of a query. The text is made in one pass over the query, as deep as that may be: only what an
/// expression says itself is ever a JSON value. Members are in the order of their names.
pub(crate) fn write_tree(out: &mut Vec<u8>, ast: &Ast) {
    for (expr, done) in ast.root().walk() {
        // Writing to a vector cannot fail.
        let _ = write_piece(out, expr.expr(), done);
    }
}

/// Writes what stands after an expression's first `done` operands, and before the next.
fn write_piece(out: &mut Vec<u8>, expr: &Expr, done: usize) -> std::io::Result<()> {
    match expr {
        Expr::Aggregate(e) => {
            let without_param = done == 1 && e.param.is_none();
            match done {
                0 => out.write_all(br#"{"expr":"#)?,
                1 => {
                    let (grouping, op) = (json!(e.grouping), e.op.as_str());
                    write!(out, r#","grouping":{grouping},"op":"{op}","param":"#)?;
                }
                _ => {}
            }
            if without_param {
                out.write_all(b"null")?;
            }
            if without_param || done == 2 {
                write!(out, r#","type":"aggregation","without":{}}}"#, e.without)?;
            }
            Ok(())
        }
        Expr::Binary(e) => match done {
            0 => write!(out, r#"{{"bool":{},"lhs":"#, e.return_bool),
            1 => {
                let matching = e.matching.as_ref().map_or(Value::Null, matching);
                write!(out, r#","matching":{matching},"op":"{}","rhs":"#, e.op.as_str())
            }
            _ => out.write_all(br#","type":"binaryExpr"}"#),
        },
        Expr::Call(e) => {
            if done == 0 {
                out.write_all(br#"{"args":["#)?;
            } else if done < e.args.len() {
                out.push(b',');
            }
            if done == e.args.len() {
                write!(out, r#"],"func":{},"type":"call"}}"#, function(e))?;
            }
            Ok(())
        }
        Expr::Subquery(e) => match done {
            0 => out.write_all(br#"{"expr":"#),
            _ => {
                write_duration(out, "offset", &e.offset)?;
                write_duration(out, "range", &e.range)?;
                write!(out, r#","startOrEnd":{}"#, start_or_end(e.at))?;
                // None is the engine's own.
                write_duration(out, "step", e.step.as_ref().unwrap_or(&DurationArg::Millis(0)))?;
                write!(out, r#","timestamp":{},"type":"subquery"}}"#, timestamp(e.at))
            }
        },
        Expr::Paren(_) => match done {
            0 => out.write_all(br#"{"expr":"#),
            _ => out.write_all(br#","type":"parenExpr"}"#),
        },
        Expr::Unary(e) => match done {
            0 => out.write_all(br#"{"expr":"#),
            _ => {
                let op = if e.negate { "-" } else { "+" };
                write!(out, r#","op":"{op}","type":"unaryExpr"}}"#)
            }
        },
        Expr::Matrix(e) => write_selector(out, "matrixSelector", &e.selector, Some(&e.range)),
        Expr::Vector(e) => write_selector(out, "vectorSelector", e, None),
        Expr::Number(e) => {
            let val = number(e.value);
            write!(out, "{}", json!({"type": "numberLiteral", "val": val}))
        }
        Expr::String(e) => write!(out, "{}", json!({"type": "stringLiteral", "val": e.value})),
    }
}

fn function(call: &Call) -> Value {
    let signature = call.function.signature();
    json!({
        "name": signature.name,
        "argTypes": signature.args.iter().map(|t| t.as_str()).collect::<Vec<_>>(),
        "variadic": variadic(signature.args_min, signature.args_max),
        "returnType": signature.returns.as_str(),
    })
}

/// How many arguments may be left out: 0 for none, -1 for any number more.
fn variadic(args_min: usize, args_max: Option<usize>) -> i64 {
    args_max.map_or(-1, |max| i64::try_from(max.saturating_sub(args_min)).unwrap_or(0))
}

fn matching(m: &VectorMatching) -> Value {
    json!({
        "card": m.card.to_string(),
        "labels": m.labels,
        "on": m.on,
        "include": m.include,
        "fillValues": {"lhs": fill(m.fill.lhs), "rhs": fill(m.fill.rhs)},
    })
}

/// A value for what is missing: whole ones without decimals, as Go writes them; `null` for none, and for what is no number in
/// JSON.
fn fill(value: Option<f64>) -> Value {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    match value {
        Some(v) if v.trunc() == v && v.abs() < EXACT_INTEGERS => json!(v as i64),
        v => json!(v),
    }
}

/// A selector; of ranges where there is one.
fn write_selector(
    out: &mut Vec<u8>,
    kind: &str,
    s: &VectorSelector,
    range: Option<&DurationArg>,
) -> std::io::Result<()> {
    let (anchored, smoothed) = (s.edges == RangeEdges::Anchored, s.edges == RangeEdges::Smoothed);
    let matchers: Value = s.matchers.iter().map(matcher).collect();
    let name = json!(s.name.as_deref().unwrap_or(""));
    write!(
        out,
        r#"{{"anchored":{anchored},"matchers":{matchers},"name":{name}"#
    )?;
    write_duration(out, "offset", &s.offset)?;
    if let Some(range) = range {
        write_duration(out, "range", range)?;
    }
    let (start_or_end, timestamp) = (start_or_end(s.at), timestamp(s.at));
    write!(
        out,
        r#","smoothed":{smoothed},"startOrEnd":{start_or_end},"timestamp":{timestamp},"type":"{kind}"}}"#
    )
}

fn matcher(m: &Matcher) -> Value {
    json!({"name": m.name(), "value": m.value(), "type": m.op().as_str()})
}

fn timestamp(at: Option<At>) -> Value {
    match at {
        Some(At::Timestamp(ms)) => json!(ms),
        _ => Value::Null,
    }
}

fn start_or_end(at: Option<At>) -> Value {
    match at {
        Some(At::Start) => json!("start"),
        Some(At::End) => json!("end"),
        _ => Value::Null,
    }
}

/// A number as a string, since JSON has no infinities; without an exponent.
fn number(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        value => value.to_string().replace("inf", "Inf"),
    }
}

#[cfg(test)]
mod tests {
    use koios_promql::parse;

    use super::*;

    fn tree(ast: &Ast) -> Value {
        let mut text = Vec::new();
        write_tree(&mut text, ast);
        let value: Value = serde_json::from_slice(&text).unwrap();
        // Each member once, all in order, and nothing between them.
        assert_eq!(value.to_string(), String::from_utf8(text).unwrap());
        value
    }

    #[test]
    fn trees_have_prometheus_form() {
        let expr = parse("sum by (a) (rate(m{b!=\"c\"}[5m] offset 1m)) > bool on(a) Inf").unwrap_err();
        // A matching needs two vectors.
        assert!(
            expr.to_string()
                .contains("vector matching only allowed between instant vectors"),
            "{expr}"
        );
        let expr = parse("sum by (a) (rate(m{b!=\"c\"}[5m] offset 1m)) > on(a) x @ end()").unwrap();
        let got = tree(&expr);
        assert_eq!(got["type"], "binaryExpr");
        assert_eq!(
            got["matching"],
            json!({
                "card": "one-to-one", "labels": ["a"], "on": true, "include": [],
                "fillValues": {"lhs": null, "rhs": null},
            })
        );
        assert_eq!(got["rhs"]["startOrEnd"], "end");
        let selector = &got["lhs"]["expr"]["args"][0];
        assert_eq!(
            (&selector["range"], &selector["offset"]),
            (&json!(300_000), &json!(60_000))
        );
        assert_eq!(
            selector["matchers"][0],
            json!({"name": "b", "value": "c", "type": "!="})
        );
        assert_eq!(got["lhs"]["expr"]["func"]["variadic"], 0);
        assert_eq!(tree(&parse("-Inf").unwrap())["val"], "-Inf");
    }

    #[test]
    fn every_form_is_written() {
        let form = |query: &str| tree(&parse(query).unwrap());
        let one = json!({"type": "numberLiteral", "val": "1"});
        assert_eq!(form("(1)"), json!({"type": "parenExpr", "expr": one}));
        assert_eq!(
            form("1 + -(1)"),
            json!({"type": "binaryExpr", "op": "+", "lhs": one, "matching": null, "bool": false, "rhs": {
                "type": "unaryExpr", "op": "-", "expr": {"type": "parenExpr", "expr": one},
            }})
        );
        let x = form("x");
        assert_eq!(
            form("topk by (b) (1, x)"),
            json!({
                "type": "aggregation", "op": "topk", "expr": x, "param": one, "grouping": ["b"], "without": false,
            })
        );
        assert_eq!(form("sum(x)")["param"], Value::Null);
        assert_eq!(form("time()")["args"], json!([]));
        assert_eq!(
            form("label_join(x, \"a\", \"\", \"b\")")["args"]
                .as_array()
                .unwrap()
                .len(),
            4
        );
        assert_eq!(
            form("x[5m:1m] @ start() offset 1m"),
            json!({
                "type": "subquery", "expr": x, "range": 300_000, "step": 60_000, "offset": 60_000,
                "rangeExpr": null, "stepExpr": null, "offsetExpr": null, "timestamp": null, "startOrEnd": "start",
            })
        );
        assert_eq!(form("x[5m:]")["step"], 0);
    }

    #[test]
    fn selectors_have_each_member() {
        let form = |query: &str| tree(&parse(query).unwrap());
        let matchers = json!([{"name": "__name__", "value": "x", "type": "="}]);
        let instant = json!({
            "type": "vectorSelector", "name": "x", "offset": -1000, "offsetExpr": null, "matchers": matchers,
            "timestamp": 2500, "startOrEnd": null, "anchored": false, "smoothed": false,
        });
        assert_eq!(form("x @ 2.5 offset -1s"), instant);
        let range = json!({
            "type": "matrixSelector", "name": "x", "offset": 0, "offsetExpr": null, "range": 60_000, "rangeExpr": null,
            "matchers": matchers, "timestamp": null, "startOrEnd": null, "anchored": true, "smoothed": false,
        });
        assert_eq!(form("rate(x[1m] anchored)")["args"][0], range);
    }

    #[test]
    fn values_for_what_is_missing_are_told() {
        let filled = |query: &str| tree(&parse(query).unwrap())["matching"]["fillValues"].clone();
        for (query, lhs, rhs) in [
            ("a + fill(0) b", json!(0), json!(0)),
            ("a + fill_left(1.5) b", json!(1.5), Value::Null),
            ("a + fill_right(-2) b", Value::Null, json!(-2)),
            ("a + b", Value::Null, Value::Null),
        ] {
            assert_eq!(filled(query), json!({"lhs": lhs, "rhs": rhs}), "{query}");
        }
    }

    #[test]
    fn numbers_have_no_exponent() {
        for (query, expected) in [
            ("1e21", "1000000000000000000000"),
            ("1e-7", "0.0000001"),
            ("0.1", "0.1"),
            ("5m", "300"),
            ("Inf", "+Inf"),
            ("-Inf", "-Inf"),
            ("NaN", "NaN"),
        ] {
            let val = tree(&parse(query).unwrap())["val"].clone();
            assert_eq!(val, expected, "{query}");
        }
    }

    #[test]
    fn i12_deep_queries_are_written_on_a_small_stack() {
        let deep = || {
            let ast = parse(&("(".repeat(5_000) + "1" + &")".repeat(5_000))).unwrap();
            let mut text = Vec::new();
            write_tree(&mut text, &ast);
            text.len()
        };
        let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(deep);
        assert!(thread.unwrap().join().unwrap() > 100_000);
    }
}
