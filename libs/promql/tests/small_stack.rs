//! The deepest queries that are accepted need little stack: to parse, check, print, format, plan, evaluate and drop (I12).
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod support;

use koios_promql::{
    DurationContext, Engine, Expr, ParseError, ParseOptions, Query, Uninterrupted, parse, pretty,
    resolve_durations,
};
use support::Memory;

/// Less than any thread has that a query runs on: up to 340 KiB were seen (docs/decisions/0008). Code that is not optimised
/// needs several times as much.
const STACK_BYTES: usize = if cfg!(debug_assertions) {
    2 << 20
} else {
    512 << 10
};

fn nested(open: &str, inner: &str, close: &str, depth: usize) -> String {
    open.repeat(depth) + inner + &close.repeat(depth)
}

/// Makes a query with some depth.
type Shape = (&'static str, fn(usize) -> String);

const SHAPES: &[Shape] = &[
    ("parentheses", |n| nested("(", "a", ")", n)),
    ("signs", |n| "-".repeat(n) + "a"),
    ("mixed signs", |n| "-+".repeat(n) + "(a)"),
    ("calls", |n| nested("abs(", "a", ")", n)),
    ("last arguments", |n| nested("clamp_max(a, scalar(", "a", "))", n)),
    ("aggregations", |n| nested("sum by (b) (", "a", ")", n)),
    ("parameters", |n| nested("topk(scalar(", "a", "), a)", n)),
    ("subqueries", |n| nested("max_over_time(", "a", "[1m:])", n)),
    ("left chains", |n| "a".to_owned() + &" or a".repeat(n)),
    ("mixed left chains", |n| {
        "a".to_owned() + &" + on () a or a".repeat(n)
    }),
    ("right chains", |n| "2 ^ ".repeat(n) + "a"),
    ("right parentheses", |n| nested("a + (", "a", ")", n)),
    ("rising precedence", |n| {
        "a or a and a == a + a * a ^ -".repeat(n) + "a"
    }),
    ("duration parentheses", |n| {
        format!("a[{}]", nested("(", "1m + step() * 0", ") + 1", n))
    }),
    ("duration signs", |n| format!("a offset {}1m", "-".repeat(n))),
    ("duration left chains", |n| {
        format!("rate(a[1m{}])", " + 1".repeat(n))
    }),
    ("duration right chains", |n| {
        format!("rate(a[1{}])", " ^ 1".repeat(n))
    }),
    ("duration choices", |n| {
        format!("rate(a[{}])", nested("max_of(1m, ", "1m", ")", n))
    }),
    ("regular expressions", |n| {
        format!("{{__name__=~\"{}\"}}", nested("(", "a", ")", n))
    }),
    ("repetitions", |n| {
        format!("{{__name__=~\"{}\"}}", nested("(?:", "a", ")?", n) + "a")
    }),
    ("replaced labels", |n| {
        format!(
            "label_replace(a, \"b\", \"\", \"c\", \"{}\")",
            nested("(", "x", ")", n)
        )
    }),
];

/// The deepest query of a shape that is accepted, and why the next one is not.
fn deepest(shape: fn(usize) -> String) -> (Expr, String, Option<ParseError>) {
    let (mut good, mut bad) = (1, 100_000);
    while bad - good > 1 {
        let depth = usize::midpoint(good, bad);
        match parse(&shape(depth)) {
            Ok(_) => good = depth,
            Err(_) => bad = depth,
        }
    }
    let text = shape(good);
    (parse(&text).unwrap(), text, parse(&shape(bad)).err())
}

fn on_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(work)
        .unwrap();
    thread.join().unwrap();
}

#[test]
fn i12_the_deepest_queries_need_little_stack() {
    for &(name, shape) in SHAPES {
        println!("{name}");
        on_small_stack(move || {
            let (expr, text, refused) = deepest(shape);
            // A pattern within a string is looked at in evaluation only.
            let refused = refused.map(|e| e.to_string()).unwrap_or_default();
            assert!(!refused.contains("unexpected"), "{name}: {refused}");
            assert_eq!(
                parse(&expr.to_string()).unwrap().to_string(),
                expr.to_string(),
                "{name}"
            );
            let formatted = pretty(&expr);
            assert_eq!(pretty(&parse(&formatted).unwrap()), formatted, "{name}");
            let mut copy = expr.clone();
            copy.clear_spans();
            assert!(format!("{expr:?}") != format!("{copy:?}"), "{name}");
            assert_eq!(expr.selectors().is_empty(), !text.contains('a'), "{name}");
            let context = DurationContext {
                step_ms: 0,
                range_ms: 0,
            };
            let _ = resolve_durations(&mut copy, context);
            let _ = copy == expr;
            let query = Query::parse(&text, &ParseOptions::default()).unwrap();
            let memory = Memory::load("a 1 2 3 4 5 6 7");
            let run = Engine::default();
            let _ = futures::executor::block_on(run.instant(&memory, &query, 60_000, &Uninterrupted));
            let _ =
                futures::executor::block_on(run.range(&memory, &query, (0, 60_000, 10_000), &Uninterrupted));
        });
    }
}
