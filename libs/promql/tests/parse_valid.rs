//! What is accepted, and what it means: queries beside their printed form, with the grouping made visible.

use koios_promql::{
    At, DurationArg, DurationContext, Expr, ExprRef, RangeEdges, ValueType, parse, resolve_durations,
};
use rstest::rstest;

/// Prints a query with parentheses around every operation.
fn grouped(expr: ExprRef<'_>) -> String {
    match expr.expr() {
        Expr::Binary(e) => format!(
            "<{} {} {}>",
            grouped(expr.at(e.lhs)),
            e.op.as_str(),
            grouped(expr.at(e.rhs))
        ),
        Expr::Unary(e) => format!(
            "<{}{}>",
            if e.negate { "-" } else { "+" },
            grouped(expr.at(e.expr))
        ),
        _ => expr.to_string(),
    }
}

#[rstest]
#[case("a + b * c ^ d ^ e", "<a + <b * <c ^ <d ^ e>>>>")]
#[case("a - b - c", "<<a - b> - c>")]
#[case("a / b % c atan2 d * e", "<<<<a / b> % c> atan2 d> * e>")]
#[case("a or b and c unless d", "<a or <<b and c> unless d>>")]
#[case("a > b + c == d", "<<a > <b + c>> == d>")]
#[case("a </ b >/ c", "<<a </ b> >/ c>")]
#[case("-a ^ b", "<-<a ^ b>>")]
#[case("-a * b", "<<-a> * b>")]
#[case("a ^ -b ^ c * d", "<<a ^ <-<b ^ c>>> * d>")]
#[case("-1 ^ 2", "<-<1 ^ 2>>")]
#[case("- -a", "<-<-a>>")]
#[case("a + b offset 5m", "<a + b offset 5m>")]
#[case("a offset -2^2", "<a offset -2s ^ 2>")]
#[case("a offset 5m + b", "<a offset 5m + b>")]
fn operators_bind(#[case] query: &str, #[case] want: &str) {
    assert_eq!(grouped(parse(query).unwrap().root()), want);
}

#[rstest]
#[case("1_000", "1000")]
#[case("0x1F", "31")]
#[case("017", "15")]
#[case("08", "8")]
#[case("1e3", "1000")]
#[case("+iNf", "+Inf")]
#[case("-inf", "-Inf")]
#[case("NaN", "NaN")]
#[case("90s", "1m30s")]
#[case("-5m", "-5m")]
#[case("- -1", "1")]
#[case("'a\\'b'", "\"a'b\"")]
#[case("`a\\b`", "\"a\\\\b\"")]
#[case("up # comment\n + down", "up + down")]
#[case("SUM BY(a)(x) aNd Y", "sum by (a) (x) and Y")]
#[case("sum(x)by(a,)", "sum by (a) (x)")]
#[case("sum without()(x)", "sum without () (x)")]
#[case(
    "sum by (\"a b\", by, bool, start)(x)",
    "sum by (\"a b\", by, bool, start) (x)"
)]
#[case("limit_ratio(-0.5, x)", "limit_ratio(-0.5, x)")]
#[case("count_values(\"v\", x)", "count_values(\"v\", x)")]
#[case("offset offset 5m", "offset offset 5m")]
#[case(
    "sum + by + and + start + step + fill_left + anchored",
    "sum + by + and + start + step + fill_left + anchored"
)]
#[case("sum{sum=\"sum\"}", "sum{sum=\"sum\"}")]
#[case("fill + fill (2) fill", "fill + fill (2) fill")]
#[case("a + ignoring() group_left b", "a + ignoring () group_left () b")]
#[case(
    "a + on(x) group_right(\"y z\") fill_right(-1) fill_left(+5m) b",
    "a + on (x) group_right (\"y z\") fill_left (300) fill_right (-1) b"
)]
#[case("a == bool on() b", "a == bool on () b")]
#[case(
    "a{z=\"1\",b!=\"2\",c=~\"3\",d!~\"4\",}",
    "a{b!=\"2\",c=~\"3\",d!~\"4\",z=\"1\"}"
)]
#[case("{\"my.metric\", \"l.x\"='v'}", "{\"l.x\"=\"v\",__name__=\"my.metric\"}")]
#[case("{__name__=\"a:b\"}", "{__name__=\"a:b\"}")]
#[case("a[5m] @ 1.5 offset -1h", "a[5m] @ 1.500 offset -1h")]
#[case("a offset 1h @ end()", "a @ end() offset 1h")]
#[case("a[5m] anchored offset 1m", "a[5m] anchored offset 1m")]
#[case("a @ start() smoothed", "a @ start() smoothed")]
#[case("a[300]", "a[5m]")]
#[case("sum(a)[1d:] @ 0", "sum(a)[1d:] @ 0.000")]
#[case("a[1h:5m] offset 1w", "a[1h:5m] offset 1w")]
#[case("a[5m+1m*2:step()]", "a[5m + 1m * 2:step()]")]
#[case("a[((5m))]", "a[(5m)]")]
#[case("a[min_of(step(), range()/2)]", "a[min_of(step(), range() / 2)]")]
#[case("a offset -(5m-1m)", "a offset -(5m - 1m)")]
#[case("a offset -step()", "a offset -step()")]
#[case("a offset (1m) + 2", "a offset (1m) + 2")]
#[case(
    "step() + range() + start() + end() + max_of(1, 2)",
    "step() + range() + start() + end() + max_of(1, 2)"
)]
#[case("info(a, {b=~\".*\"})", "info(a, {b=~\".*\"})")]
#[case(
    "histogram_quantiles(x, \"q\", 0.5, 0.9)",
    "histogram_quantiles(x, \"q\", 0.5, 0.9)"
)]
#[case("time()", "time()")]
#[case("'a\\xff\\u00e9'", "\"a\\xffé\"")]
fn prints(#[case] query: &str, #[case] want: &str) {
    assert_eq!(parse(query).unwrap().to_string(), want);
}

#[test]
fn selectors_hold_what_was_written() {
    let expr = parse("rate(up{a=\"b\"}[5m] smoothed @ start() offset -1m)").unwrap();
    let [(selector, Some(matrix))] = expr.selectors()[..] else {
        panic!("{expr}")
    };
    assert_eq!(selector.name.as_deref(), Some("up"));
    let matchers: Vec<String> = selector.matchers.iter().map(ToString::to_string).collect();
    assert_eq!(matchers, ["a=\"b\"", "__name__=\"up\""]);
    assert_eq!(
        (selector.at, selector.edges),
        (Some(At::Start), RangeEdges::Smoothed)
    );
    assert_eq!(
        (&matrix.range, &selector.offset),
        (&DurationArg::Millis(300_000), &DurationArg::Millis(-60_000))
    );
    assert_eq!(expr.value_type(), ValueType::Vector);
}

#[test]
fn nodes_know_where_they_stand() {
    let query = "sum by (x) (rate(up[5m] offset 1m)) + on(x) (vector(3))";
    let expr = parse(query).unwrap();
    let text = |e: &Expr| &query[e.span().start as usize..e.span().end as usize];
    let seen: Vec<&str> = expr.exprs().map(text).collect();
    let sum = "sum by (x) (rate(up[5m] offset 1m))";
    let rate = "rate(up[5m] offset 1m)";
    assert_eq!(
        seen,
        [
            "up[5m] offset 1m",
            rate,
            sum,
            "3",
            "vector(3)",
            "(vector(3))",
            query,
        ]
    );
    assert_eq!(expr.span().position_in("\n\nxy"), "1:1");
}

#[rstest]
#[case("a[step()*2+1s] offset range()", Ok("a[2m1s] offset 1h"))]
#[case("a[max_of(step(), 5m)]", Ok("a[5m]"))]
#[case("a[2^2:min_of(3, 4)] offset -(7%4)", Ok("a[4s:3s] offset -3s"))]
#[case("a[step()-1h]", Err("2:11: duration must be greater than 0"))]
#[case("a offset (1/(step()-60))", Err("10:22: division by zero"))]
#[case("a offset (1e9*1e9)", Err("10:17: duration is out of range"))]
fn duration_expressions_have_values(#[case] query: &str, #[case] want: Result<&str, &str>) {
    let mut expr = parse(query).unwrap();
    let context = DurationContext {
        step_ms: 60_000,
        range_ms: 3_600_000,
    };
    let got = resolve_durations(&mut expr, context)
        .map(|()| expr.to_string())
        .map_err(|e| e.to_string());
    assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned));
}
