//! A query as the tree that `parse_query` answers.
//!
//! **Source:** Prometheus `web/api/v1/translate_ast.go`.

use std::io::Write;

use koios_model::Matcher;
use koios_promql::{Ast, At, Call, DurationArg, Expr, RangeEdges, VectorMatching, VectorSelector};
use serde_json::{Map, Value, json};

use super::json::write_value;

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
                let (offset, range) = (millis(&e.offset), millis(&e.range));
                let step = e.step.as_ref().map_or_else(|| json!(0), millis);
                let (start_or_end, timestamp) = (start_or_end(e.at), timestamp(e.at));
                write!(
                    out,
                    r#","offset":{offset},"range":{range},"startOrEnd":{start_or_end}"#
                )?;
                write!(
                    out,
                    r#","step":{step},"timestamp":{timestamp},"type":"subquery"}}"#
                )
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
        Expr::Matrix(e) => {
            let mut node = selector("matrixSelector", &e.selector);
            node.insert("range".to_owned(), millis(&e.range));
            write!(out, "{}", Value::from(node))
        }
        Expr::Vector(e) => write!(out, "{}", Value::from(selector("vectorSelector", e))),
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
    })
}

fn selector(kind: &str, s: &VectorSelector) -> Map<String, Value> {
    let fields = [
        ("type", json!(kind)),
        ("name", json!(s.name.as_deref().unwrap_or(""))),
        ("offset", millis(&s.offset)),
        ("matchers", s.matchers.iter().map(matcher).collect()),
        ("timestamp", timestamp(s.at)),
        ("startOrEnd", start_or_end(s.at)),
        ("anchored", json!(s.edges == RangeEdges::Anchored)),
        ("smoothed", json!(s.edges == RangeEdges::Smoothed)),
    ];
    fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn matcher(m: &Matcher) -> Value {
    json!({"name": m.name(), "value": m.value(), "type": m.op().as_str()})
}

/// Milliseconds; `null` for an expression, whose value depends on the query's range and step.
fn millis(d: &DurationArg) -> Value {
    d.millis().map_or(Value::Null, Value::from)
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

/// A number as a string, since JSON has no infinities.
fn number(value: f64) -> Value {
    let mut quoted = Vec::new();
    write_value(&mut quoted, value);
    serde_json::from_slice(&quoted).unwrap_or_default()
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
            json!({"card": "one-to-one", "labels": ["a"], "on": true, "include": []})
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
                "timestamp": null, "startOrEnd": "start",
            })
        );
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
