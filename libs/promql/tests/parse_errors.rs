//! What is refused, with which words, where.

use koios_promql::{ParseOptions, parse, parse_metric_selector, parse_with};
use rstest::rstest;

fn refusal(query: &str) -> String {
    parse(query).map_or_else(|e| e.to_string(), |e| format!("accepted: {e}"))
}

#[rstest]
#[case("", "unknown position: parse error: no expression found in input")]
#[case("# nothing\n", "1:1: parse error: no expression found in input")]
#[case("  ", "1:1: parse error: no expression found in input")]
#[case("up +", "1:5: parse error: unexpected end of input")]
#[case("up\n  + *", "2:5: parse error: unexpected <op:*>")]
#[case("up down", "1:4: parse error: unexpected identifier \"down\"")]
#[case(
    "up job:down:rate5m",
    "1:4: parse error: unexpected metric identifier \"job:down:rate5m\""
)]
#[case("up 17", "1:4: parse error: unexpected number \"17\"")]
#[case(
    "up \"a long string\"",
    "1:4: parse error: unexpected string \"\\\"a long st\"..."
)]
#[case("up by", "1:4: parse error: unexpected <by>")]
#[case("up sum", "1:4: parse error: unexpected <aggr:sum>")]
#[case("up = 1", "1:4: parse error: unexpected \"=\"")]
#[case("(up", "1:4: parse error: unclosed left parenthesis")]
#[case("(up))", "1:6: parse error: unexpected right parenthesis ')'")]
#[case("()", "1:2: parse error: unexpected \")\"")]
#[case("up ! 1", "1:4: parse error: unexpected character after '!': ' '")]
#[case("up =~ 1", "1:4: parse error: unexpected character after '=': '~'")]
#[case("up } 1", "1:4: parse error: unexpected character: '}'")]
#[case(".", "1:1: parse error: unexpected character: '.'")]
#[case("1..2", "1:1: parse error: bad number or duration syntax: \"1..\"")]
#[case("5mm", "1:1: parse error: bad number or duration syntax: \"5mm\"")]
#[case("0xg", "1:1: parse error: bad number or duration syntax: \"0x\"")]
#[case("\"open", "1:1: parse error: unterminated quoted string")]
#[case("`open", "1:1: parse error: unterminated raw string")]
#[case("'\\q'", "1:1: parse error: unknown escape sequence U+0071 'q'")]
#[case(
    "'\\xz0'",
    "1:1: parse error: illegal character U+007A 'z' in escape sequence"
)]
#[case("'\\", "1:1: parse error: escape sequence not terminated")]
#[case(
    "'\\ud800'",
    "1:1: parse error: escape sequence is an invalid Unicode code point"
)]
#[case("\"\u{fffd}\"", "1:1: parse error: invalid UTF-8 rune")]
fn tokens(#[case] query: &str, #[case] want: &str) {
    assert_eq!(refusal(query), want);
}

#[rstest]
#[case("up{", "1:4: parse error: unexpected end of input inside braces")]
#[case(
    "up{a}",
    "1:5: parse error: unexpected \"}\" in label matching, expected label matching operator"
)]
#[case(
    "up{a=b}",
    "1:6: parse error: unexpected identifier \"b\" in label matching, expected string"
)]
#[case(
    "up{a=}",
    "1:6: parse error: unexpected \"}\" in label matching, expected string"
)]
#[case(
    "up{,}",
    "1:4: parse error: unexpected \",\" in label matching, expected identifier or \"}\""
)]
#[case(
    "up{a=\"b\" c}",
    "1:10: parse error: unexpected identifier \"c\" in label matching, expected \",\" or \"}\""
)]
#[case("up{a>\"b\"}", "1:5: parse error: unexpected character inside braces: '>'")]
#[case(
    "up{a!\"b\"}",
    "1:5: parse error: unexpected character after '!' inside braces: '\"'"
)]
#[case("up{{", "1:4: parse error: unexpected left brace '{'")]
#[case(
    "{}",
    "1:1: parse error: vector selector must contain at least one non-empty matcher"
)]
#[case(
    "{a=~\".*\"}",
    "1:1: parse error: vector selector must contain at least one non-empty matcher"
)]
#[case(
    "up{__name__=\"b\"}",
    "1:1: parse error: metric name must not be set twice: \"up\" or \"b\""
)]
#[case(
    "up{\"b\"}",
    "1:1: parse error: metric name must not be set twice: \"up\" or \"b\""
)]
fn selectors(#[case] query: &str, #[case] want: &str) {
    assert_eq!(refusal(query), want);
}

#[rstest]
#[case("up[", "1:4: parse error: unexpected end of input in duration expression")]
#[case("up[5m", "1:6: parse error: unclosed left bracket")]
#[case(
    "up[]",
    "1:4: parse error: unexpected \"]\" in subquery or range selector, expected number, duration, step(), or range()"
)]
#[case(
    "up[5m 5m]",
    "1:7: parse error: unexpected duration \"5m\" in subquery or range, expected \":\" or \"]\""
)]
#[case("up[5m:)]", "1:8: parse error: unexpected right parenthesis ')'")]
#[case(
    "up[5m:,]",
    "1:7: parse error: unexpected \",\" in subquery selector, expected number, duration, step(), range(), or \"]\""
)]
#[case(
    "up[5m:1m 1]",
    "1:10: parse error: unexpected number \"1\" in subquery selector, expected \"]\""
)]
#[case("up[5m:1m:]", "1:9: parse error: unexpected colon ':'")]
#[case(
    "up[:5m]",
    "1:5: parse error: unexpected colon before duration in duration expression"
)]
#[case("up[5m[5m]]", "1:6: parse error: unexpected left bracket '['")]
#[case("up]", "1:3: parse error: unexpected right bracket ']'")]
#[case("up[x]", "1:4: parse error: unexpected character in duration expression: 'x'")]
#[case("up[5m x]", "1:7: parse error: unexpected character: 'x', expected ':'")]
#[case("up[0]", "1:4: parse error: duration must be greater than 0")]
#[case("up[-5m]", "1:4: parse error: duration must be greater than 0")]
#[case("up[5m:0s]", "1:7: parse error: duration must be greater than 0")]
#[case("up[5s/0]", "1:6: parse error: division by zero")]
#[case("up[5s%0]", "1:6: parse error: modulo by zero")]
#[case("up[1m1h]", "1:4: parse error: not a valid duration string: \"1m1h\"")]
#[case("up[1hs]", "1:4: parse error: unknown unit \"hs\" in duration \"1hs\"")]
#[case("up offset 1e15", "1:11: parse error: duration out of range")]
#[case(
    "up offset",
    "1:10: parse error: unexpected end of input in offset, expected number, duration, step(), or range()"
)]
#[case(
    "up offset x",
    "1:11: parse error: unexpected identifier \"x\" in offset, expected number, duration, step(), or range()"
)]
#[case(
    "up offset 5m offset 6m",
    "1:1: parse error: offset may not be set multiple times"
)]
#[case(
    "1 offset 5m",
    "1:1: parse error: offset modifier must be preceded by an instant vector selector or range vector selector or a subquery"
)]
#[case("up @", "1:5: parse error: unexpected end of input in @, expected timestamp")]
#[case(
    "up @ x",
    "1:6: parse error: unexpected identifier \"x\" in @, expected timestamp"
)]
#[case("up @ 1 @ 2", "1:1: parse error: @ <timestamp> may not be set multiple times")]
#[case(
    "up @ 1e20",
    "1:1: parse error: timestamp out of bounds for @ modifier: 100000000000000000000.000000"
)]
#[case("up @ -Inf", "1:1: parse error: timestamp out of bounds for @ modifier: -Inf")]
#[case(
    "sum(up) @ 1",
    "1:1: parse error: @ modifier must be preceded by an instant vector selector or range vector selector or a subquery"
)]
#[case("sum(up)[5m]", "1:8: parse error: ranges only allowed for vector selectors")]
#[case(
    "up offset 1m [5m]",
    "1:14: parse error: no offset modifiers allowed before range"
)]
#[case("up @ 1 [5m]", "1:8: parse error: no @ modifiers allowed before range")]
#[case(
    "up[5m] anchored smoothed",
    "1:1: parse error: anchored and smoothed modifiers cannot be used together"
)]
#[case(
    "up[5m:] anchored",
    "1:1: parse error: anchored modifier is not supported for subqueries"
)]
#[case("1 smoothed", "1:1: parse error: smoothed modifier not implemented")]
fn modifiers(#[case] query: &str, #[case] want: &str) {
    assert_eq!(refusal(query), want);
}

#[rstest]
#[case("sum", "accepted: sum")]
#[case("sum()", "1:1: parse error: no arguments for aggregate expression provided")]
#[case(
    "sum(a, b)",
    "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 1, got 2"
)]
#[case(
    "topk(a)",
    "1:1: parse error: wrong number of arguments for aggregate expression provided, expected 2, got 1"
)]
#[case("sum(1 +)", "1:8: parse error: unexpected \")\" in aggregation")]
#[case(
    "sum by (a) b",
    "1:12: parse error: unexpected identifier \"b\" in aggregation"
)]
#[case(
    "sum by a (b)",
    "1:8: parse error: unexpected identifier \"a\" in grouping opts, expected \"(\""
)]
#[case(
    "sum by (1) (b)",
    "1:9: parse error: unexpected number \"1\" in grouping opts, expected label"
)]
#[case(
    "sum by (a b) (b)",
    "1:11: parse error: unexpected identifier \"b\" in grouping opts, expected \",\" or \")\""
)]
#[case(
    "sum by (,) (b)",
    "1:9: parse error: unexpected \",\" in grouping opts, expected label"
)]
#[case(
    "sum by (without) (b)",
    "1:9: parse error: unexpected <without> in grouping opts, expected label"
)]
#[case(
    "sum by (\"\") (b)",
    "1:9: parse error: invalid label name for grouping: \"\""
)]
#[case(
    "sum by (\"\\xff\") (b)",
    "1:9: parse error: invalid label name for grouping: \"\\xff\""
)]
#[case("sum(b) by (a) by (c)", "1:15: parse error: unexpected <by>")]
#[case(
    "sum(1)",
    "1:5: parse error: expected type instant vector in aggregation expression, got scalar"
)]
#[case(
    "topk(a, b)",
    "1:6: parse error: expected type scalar in aggregation parameter, got instant vector"
)]
#[case(
    "count_values(1, b)",
    "1:14: parse error: expected type string in aggregation parameter, got scalar"
)]
#[case("foo(1)", "1:1: parse error: unknown function with name \"foo\"")]
#[case("Rate(x[5m])", "1:1: parse error: unknown function with name \"Rate\"")]
#[case("a:b(1)", "1:4: parse error: unexpected \"(\"")]
#[case(
    "abs(x,)",
    "1:6: parse error: trailing commas not allowed in function call args"
)]
#[case("abs(,)", "1:5: parse error: unexpected \",\"")]
#[case("abs()", "1:1: parse error: expected 1 argument(s) in call to \"abs\", got 0")]
#[case(
    "2 + abs(x, y)",
    "1:5: parse error: expected 1 argument(s) in call to \"abs\", got 2"
)]
#[case(
    "round()",
    "1:1: parse error: expected at least 1 argument(s) in call to \"round\", got 0"
)]
#[case(
    "round(x, 1, 2)",
    "1:1: parse error: expected at most 2 argument(s) in call to \"round\", got 3"
)]
#[case(
    "label_join(x, \"a\")",
    "1:1: parse error: expected at least 3 argument(s) in call to \"label_join\", got 2"
)]
#[case(
    "label_join(x, \"a\", \"b\", 1)",
    "1:25: parse error: expected type string in call to function \"label_join\", got scalar"
)]
#[case(
    "rate(x)",
    "1:6: parse error: expected type range vector in call to function \"rate\", got instant vector"
)]
#[case(
    "info(a, b)",
    "1:9: parse error: expected label selectors only, got vector selector instead"
)]
#[case("info(a, sum({b=\"c\"}))", "1:9: parse error: expected label selectors only")]
#[case(
    "info(a, 1)",
    "1:1: parse error: expected type instant vector in call to function \"info\", got scalar"
)]
fn calls_and_aggregations(#[case] query: &str, #[case] want: &str) {
    assert_eq!(refusal(query), want);
}

#[rstest]
#[case(
    "1 == 1",
    "1:3: parse error: comparisons between scalars must use BOOL modifier"
)]
#[case(
    "1 + bool 1",
    "1:3: parse error: bool modifier can only be used on comparison operators"
)]
#[case(
    "1 and 1",
    "1:1: parse error: set operator \"and\" not allowed in binary scalar expression"
)]
#[case(
    "a or 1",
    "1:1: parse error: set operator \"or\" not allowed in binary scalar expression"
)]
#[case(
    "a[5m] + 1",
    "1:1: parse error: binary expression must contain only scalar and instant vector types"
)]
#[case(
    "1 + \"a\"",
    "1:5: parse error: binary expression must contain only scalar and instant vector types"
)]
#[case(
    "a + on(b) 1",
    "1:1: parse error: vector matching only allowed between instant vectors"
)]
#[case(
    "a + fill(1) 1",
    "1:1: parse error: filling in missing series only allowed between instant vectors"
)]
#[case(
    "a and fill(1) b",
    "1:1: parse error: filling in missing series not allowed for set operators"
)]
#[case(
    "a and on(x) group_left b",
    "1:1: parse error: no grouping allowed for \"and\" operation"
)]
#[case(
    "a + on(x) group_left(x) b",
    "1:3: parse error: label \"x\" must not occur in ON and GROUP clause at once"
)]
#[case("a + group_left b", "1:5: parse error: unexpected <group_left>")]
#[case(
    "a + on b",
    "1:8: parse error: unexpected identifier \"b\" in grouping opts, expected \"(\""
)]
#[case("a + fill(b) c", "1:10: parse error: unexpected identifier \"b\"")]
#[case(
    "-\"a\"",
    "1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got \"string\""
)]
#[case(
    "-a[5m]",
    "1:1: parse error: unary expression only allowed on expressions of type scalar or instant vector, got \"range vector\""
)]
#[case(
    "a[5m:][5m:]",
    "1:1: parse error: subquery is only allowed on instant vector, got matrix instead"
)]
fn operators(#[case] query: &str, #[case] want: &str) {
    assert_eq!(refusal(query), want);
}

#[test]
fn a_bad_regex_is_named_at_its_label() {
    let message = refusal("up{b=\"c\",\n a=~\"(\"}");
    assert!(
        message.starts_with("2:2: parse error: ") && message.contains("regex parse error"),
        "{message}"
    );
}

#[test]
fn features_can_be_switched_off() {
    let off = ParseOptions {
        experimental_functions: false,
        duration_expressions: false,
        extended_range_selectors: false,
        fill_modifiers: false,
        ..ParseOptions::default()
    };
    let message = |query: &str| parse_with(query, &off).unwrap_err().message;
    assert_eq!(message("info(a)"), "function \"info\" is not enabled");
    assert!(message("limitk(1, a)").starts_with("limitk() is experimental and must be enabled"));
    assert_eq!(
        message("a[5m+1m]"),
        "experimental duration expression is not enabled"
    );
    assert_eq!(
        message("a offset step()"),
        "experimental duration expression is not enabled"
    );
    assert_eq!(
        message("a anchored"),
        "anchored modifier is experimental and not enabled"
    );
    assert_eq!(
        message("a + fill(1) b"),
        "binop fill modifiers are experimental and not enabled"
    );
    assert!(parse_with("sum(rate(a[5m] offset -1m)) + b", &off).is_ok());
}

#[test]
fn a_metric_selector_is_no_expression() {
    assert_eq!(
        parse_metric_selector("").unwrap_err().message,
        "unexpected end of input"
    );
    assert_eq!(
        parse_metric_selector("a + b").unwrap_err().to_string(),
        "1:3: parse error: unexpected <op:+>"
    );
    assert_eq!(
        parse_metric_selector("1").unwrap_err().message,
        "unexpected number \"1\""
    );
    assert_eq!(parse_metric_selector("{}").unwrap(), []);
    assert_eq!(parse_metric_selector("a{b=\"c\"}").unwrap().len(), 2);
}

#[test]
fn i12_hostile_queries_are_refused_before_they_are_read_to_their_end() {
    let hostile = [
        "(".repeat(100_000),
        "-".repeat(100_000) + "1",
        "1".to_owned() + &"+1".repeat(200_000),
        "1".to_owned() + &"^1".repeat(200_000),
        "a".to_owned() + &"[5m:]".repeat(100_000),
        "a[".to_owned() + &"(".repeat(100_000),
        "a[1".to_owned() + &"+1".repeat(100_000),
        "a[1".to_owned() + &"^1".repeat(100_000),
        "a offset ".to_owned() + &"-".repeat(100_000),
        "abs(".repeat(100_000),
        "sum by (a) (".repeat(100_000),
        format!("abs({})", vec!["1"; 100_000].join(",")),
        format!("a{{{}}}", vec!["b=\"c\""; 100_000].join(",")),
        format!("a{{{}}}", vec!["b=~\"(c+){1000}\""; 100_000].join(",")),
        format!("sum by ({}) (a)", vec!["b"; 100_000].join(",")),
        format!("a + on ({}) group_left (c) a", vec!["b"; 100_000].join(",")),
        format!("a + ignoring (b) group_left ({}) a", vec!["c"; 100_000].join(",")),
    ];
    for query in hostile {
        let error = parse(&query).unwrap_err();
        assert!(
            error.message.contains("query too complex (depth/nodes)"),
            "{error}"
        );
        let end = error.span.end as usize;
        assert!(
            0 < end && end < query.len() * 2 / 3,
            "read on to {end} of {}",
            query.len()
        );
    }
}
