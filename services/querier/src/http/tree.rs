//! A query as the tree that `parse_query` answers.
//!
//! **Source:** Prometheus `web/api/v1/translate_ast.go`.

use koios_model::Matcher;
use koios_promql::{At, DurationArg, Expr, RangeEdges, VectorMatching, VectorSelector};
use serde_json::{Map, Value, json};

use super::json::write_value;

/// The tree of an expression; its depth is bounded by the parser.
pub(crate) fn tree(expr: &Expr) -> Value {
    match expr {
        Expr::Aggregate(e) => json!({
            "type": "aggregation",
            "op": e.op.as_str(),
            "expr": tree(&e.expr),
            "param": e.param.as_ref().map(tree),
            "grouping": e.grouping,
            "without": e.without,
        }),
        Expr::Binary(e) => json!({
            "type": "binaryExpr",
            "op": e.op.as_str(),
            "lhs": tree(&e.lhs),
            "rhs": tree(&e.rhs),
            "matching": e.matching.as_ref().map(matching),
            "bool": e.return_bool,
        }),
        Expr::Call(e) => {
            let signature = e.function.signature();
            json!({
                "type": "call",
                "func": {
                    "name": signature.name,
                    "argTypes": signature.args.iter().map(|t| t.as_str()).collect::<Vec<_>>(),
                    "variadic": variadic(signature.args_min, signature.args_max),
                    "returnType": signature.returns.as_str(),
                },
                "args": e.args.iter().map(tree).collect::<Vec<_>>(),
            })
        }
        Expr::Matrix(e) => {
            let mut node = selector("matrixSelector", &e.selector);
            node.insert("range".to_owned(), millis(&e.range));
            node.into()
        }
        Expr::Vector(e) => selector("vectorSelector", e).into(),
        Expr::Subquery(e) => json!({
            "type": "subquery",
            "expr": tree(&e.expr),
            "range": millis(&e.range),
            "offset": millis(&e.offset),
            "step": e.step.as_ref().map_or_else(|| json!(0), millis),
            "timestamp": timestamp(e.at),
            "startOrEnd": start_or_end(e.at),
        }),
        Expr::Number(e) => json!({"type": "numberLiteral", "val": number(e.value)}),
        Expr::String(e) => json!({"type": "stringLiteral", "val": e.value}),
        Expr::Paren(e) => json!({"type": "parenExpr", "expr": tree(&e.expr)}),
        Expr::Unary(e) => json!({
            "type": "unaryExpr",
            "op": if e.negate { "-" } else { "+" },
            "expr": tree(&e.expr),
        }),
    }
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
}
