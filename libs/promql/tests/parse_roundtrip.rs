//! Printing a tree and reading it again gives the same tree; formatting twice gives the same text.

use koios_promql::{Ast, parse, pretty};
use proptest::prelude::*;

fn label() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z_][a-z0-9_]{0,6}",
        Just("by".to_owned()),
        "[a-z.é\"\\\\ ]{1,5}".prop_map(|s| format!("{s:?}")),
    ]
}

fn matcher() -> impl Strategy<Value = String> {
    let op = prop_oneof![Just("="), Just("!="), Just("=~"), Just("!~")];
    // Only the second needs quotes: quoted needlessly, a name sorts elsewhere than it is printed.
    let name = prop_oneof![
        "[a-z_][a-z0-9_]{0,6}",
        "[a-z]{0,2}[.é\" ]{1,3}".prop_map(|s| format!("{s:?}"))
    ];
    (name, op, "[a-zA-Zé世 \"\n.]{0,6}").prop_map(|(n, o, v)| format!("{n}{o}{v:?}"))
}

fn duration() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        "[1-9]{1,3}(ms|s|m|h|d|w)",
        "[1-9]{1,4}",
        Just("step()".to_owned()),
        Just("range()".to_owned())
    ];
    leaf.prop_recursive(3, 12, 2, |inner| {
        let op = prop_oneof![Just("+"), Just("-"), Just("*"), Just("/"), Just("%"), Just("^")];
        prop_oneof![
            (inner.clone(), op, inner.clone()).prop_map(|(a, o, b)| format!("{a}{o}{b}")),
            inner.clone().prop_map(|a| format!("({a})")),
            (inner.clone(), inner).prop_map(|(a, b)| format!("max_of({a}, {b})")),
        ]
    })
    .boxed()
}

fn modifiers() -> impl Strategy<Value = String> {
    let at = prop_oneof![
        Just(""),
        Just(" @ 17.25"),
        Just(" @ -3"),
        Just(" @ start()"),
        Just(" @ end()")
    ];
    let offset = prop_oneof![
        Just(String::new()),
        "-?[1-9]{1,3}(ms|s|m|h)".prop_map(|d| format!(" offset {d}")),
        duration().prop_map(|d| format!(" offset ({d})"))
    ];
    let edges = prop_oneof![Just(""), Just(" anchored"), Just(" smoothed")];
    (edges, at, offset).prop_map(|(e, a, o)| format!("{e}{a}{o}"))
}

fn selector() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[a-z_:][a-z0-9_:]{0,6}",
        Just("sum".to_owned()),
        Just("offset".to_owned())
    ];
    (name, prop::collection::vec(matcher(), 0..4)).prop_map(|(name, mut matchers)| {
        // In the order in which they are printed.
        matchers.sort();
        if matchers.is_empty() {
            name
        } else {
            format!("{name}{{{}}}", matchers.join(","))
        }
    })
}

fn vector() -> BoxedStrategy<String> {
    let leaf = prop_oneof![
        (selector(), modifiers()).prop_map(|(s, m)| format!("{s}{m}")),
        (selector(), duration(), modifiers()).prop_map(|(s, d, m)| format!("rate({s}[{d}]{m})")),
        "[0-9]{1,3}(\\.[0-9])?".prop_map(|n| format!("vector({n})")),
    ];
    leaf.prop_recursive(5, 40, 3, |inner| {
        let op = prop_oneof![
            Just("+"),
            Just("-"),
            Just("*"),
            Just("^"),
            Just("atan2"),
            Just("== bool"),
            Just(">"),
            Just("</")
        ];
        let set = prop_oneof![Just("and"), Just("or"), Just("unless")];
        let labels = || prop::collection::vec(label(), 0..3).prop_map(|l| l.join(", "));
        let matching = (any::<bool>(), labels())
            .prop_map(|(on, l)| format!("{}({l})", if on { "on" } else { "ignoring" }))
            .boxed();
        let fill = prop_oneof![
            Just(""),
            Just(" fill(2.5)"),
            Just(" fill_left(1e30)"),
            Just(" group_left fill_right(-1)")
        ];
        let (a, b) = (inner.clone(), inner.clone());
        prop_oneof![
            (inner.clone(), op.clone(), inner.clone()).prop_map(|(a, o, b)| format!("{a} {o} {b}")),
            (inner.clone(), set, matching.clone(), inner.clone())
                .prop_map(|(a, o, m, b)| format!("{a} {o} {m} {b}")),
            (a, op, matching, fill, b).prop_map(|(a, o, m, f, b)| format!("({a}) {o} {m}{f} ({b})")),
            (labels(), inner.clone()).prop_map(|(l, e)| format!("sum by ({l}) ({e})")),
            (labels(), inner.clone()).prop_map(|(l, e)| format!("topk(3, {e}) without ({l})")),
            inner.clone().prop_map(|e| format!("-({e})")),
            inner.clone().prop_map(|e| format!("-+{e}")),
            (inner.clone(), duration()).prop_map(|(e, d)| format!("max_over_time(({e})[{d}:{d}])")),
            (inner.clone(), "[a-zé\\\\\"\n]{0,5}")
                .prop_map(|(e, s)| format!("label_join({e}, \"x\", {s:?}, 'y')")),
            inner.prop_map(|e| format!("({e}) * -5m")),
        ]
    })
    .boxed()
}

fn bare(mut ast: Ast) -> Ast {
    ast.clear_spans();
    ast
}

proptest! {
    #[test]
    fn reads_what_it_prints(query in vector()) {
        // The generator may stack modifiers that exclude each other.
        let Ok(expr) = parse(&query) else { return Ok(()) };
        let printed = expr.to_string();
        let again = parse(&printed).map_err(|e| TestCaseError::fail(format!("{printed}: {e}")))?;
        prop_assert_eq!(again.to_string(), printed.as_str());
        prop_assert_eq!(bare(again), bare(expr.clone()), "{}", printed);

        let formatted = pretty(&expr);
        let again = parse(&formatted).map_err(|e| TestCaseError::fail(format!("{formatted}: {e}")))?;
        prop_assert_eq!(pretty(&again), formatted);
        prop_assert_eq!(bare(again), bare(expr));
    }

    #[test]
    fn i12_no_text_makes_the_parser_fail_otherwise_than_by_an_error(query in "\\PC{0,60}") {
        let _ = parse(&query);
    }

    #[test]
    fn i12_no_sequence_of_tokens_does_either(tokens in prop::collection::vec(prop::sample::select(&TOKENS[..]), 0..40)) {
        if let Ok(expr) = parse(&tokens.join(" ")) {
            prop_assert!(parse(&expr.to_string()).is_ok(), "{}", expr);
        }
    }
}

const TOKENS: [&str; 48] = [
    "a",
    "b:c",
    "sum",
    "topk",
    "by",
    "without",
    "(",
    ")",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "5m",
    "1",
    "0x1f",
    "\"s\"",
    "'t'",
    "=",
    "!=",
    "=~",
    "+",
    "-",
    "*",
    "^",
    "==",
    "and",
    "or",
    "bool",
    "on",
    "ignoring",
    "group_left",
    "fill",
    "offset",
    "@",
    "start",
    "step",
    "range",
    "max_of",
    "anchored",
    "smoothed",
    "rate",
    "time",
    "inf",
    "#",
];

#[test]
fn the_generator_makes_mostly_valid_queries() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let valid = (0..200).filter(|_| {
        let query = vector().new_tree(&mut runner).map(|tree| tree.current());
        query.is_ok_and(|query| parse(&query).is_ok())
    });
    assert!(valid.count() > 100);
}
