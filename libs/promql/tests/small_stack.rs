//! Queries may be deep, and need little stack all the same: to parse, check, print, format, copy, compare, plan, evaluate
//! and drop (I12).
#![allow(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

mod support;

use futures::executor::block_on;
use koios_promql::{
    Ast, DurationContext, Engine, ParseError, ParseOptions, Query, Uninterrupted, Value, parse, pretty,
    resolve_durations,
};
use support::Memory;

/// Less than any thread has that a query runs on. What is needed does not depend on how deep a query is.
const STACK_BYTES: usize = if cfg!(debug_assertions) {
    256 << 10
} else {
    128 << 10
};

/// Patterns are compiled by recursion; how deep they may be is limited apart, to little.
const STACK_BYTES_OF_PATTERNS: usize = if cfg!(debug_assertions) {
    2 << 20
} else {
    512 << 10
};

/// How deep every shape of queries may be at least.
const DEPTH_MIN: usize = 750;

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
];

const PATTERNS: &[Shape] = &[
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

/// The deepest query of a shape that is accepted, how deep it is, and why the next one is not.
fn deepest(shape: fn(usize) -> String) -> (Ast, String, usize, Option<ParseError>) {
    let (mut good, mut bad) = (1, 10_001);
    while bad - good > 1 {
        let depth = usize::midpoint(good, bad);
        match parse(&shape(depth)) {
            Ok(_) => good = depth,
            Err(_) => bad = depth,
        }
    }
    let text = shape(good);
    (parse(&text).unwrap(), text, good, parse(&shape(bad)).err())
}

fn on_stack(bytes: usize, work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(bytes).spawn(work).unwrap();
    thread.join().unwrap();
}

/// Everything that is done to a query before it is evaluated.
fn look_at(name: &str, shape: fn(usize) -> String, depth_min: usize) {
    let (ast, text, depth, refused) = deepest(shape);
    // A pattern within a string is looked at in evaluation only.
    let refused = refused.map(|e| e.to_string()).unwrap_or_default();
    assert!(!refused.contains("unexpected"), "{name}: {refused}");
    assert!(depth >= depth_min, "{name}: {depth}, {refused}");
    let printed = ast.to_string();
    assert_eq!(parse(&printed).unwrap().to_string(), printed, "{name}");
    let formatted = pretty(&ast);
    assert_eq!(pretty(&parse(&formatted).unwrap()), formatted, "{name}");
    let mut copy = ast.clone();
    copy.clear_spans();
    assert!(format!("{ast:?}") != format!("{copy:?}"), "{name}");
    assert_eq!(ast.selectors().is_empty(), !text.contains('a'), "{name}");
    let context = DurationContext {
        step_ms: 0,
        range_ms: 0,
    };
    let _ = resolve_durations(&mut copy, context);
    let _ = copy == ast;
}

fn evaluate(name: &str, shape: fn(usize) -> String) {
    let (ast, text, ..) = deepest(shape);
    let query = Query::new(&text, ast);
    let memory = Memory::load("a 1 2 3 4 5 6 7");
    let run = Engine::default();
    let instant = block_on(run.instant(&memory, &query, 60_000, &Uninterrupted));
    let range = block_on(run.range(&memory, &query, (0, 60_000, 10_000), &Uninterrupted));
    for (answer, what) in [(instant.err(), "instant"), (range.err(), "range")] {
        let refused = answer.map(|e| e.to_string()).unwrap_or_default();
        // A range vector has no value at each step, and a pattern may be too deep.
        let is_fine =
            refused.is_empty() || refused.contains("range vector") || refused.contains("in label_replace()");
        assert!(is_fine, "{name}, {what}: {refused}");
    }
}

#[test]
fn i12_the_deepest_queries_need_little_stack() {
    for &(name, shape) in SHAPES {
        on_stack(STACK_BYTES, move || look_at(name, shape, DEPTH_MIN));
    }
}

#[test]
fn i12_evaluating_the_deepest_queries_needs_little_stack() {
    for &(name, shape) in SHAPES {
        on_stack(STACK_BYTES, move || evaluate(name, shape));
    }
}

#[test]
fn i12_the_deepest_patterns_need_little_stack() {
    for &(name, shape) in PATTERNS {
        on_stack(STACK_BYTES_OF_PATTERNS, move || {
            look_at(name, shape, 1);
            evaluate(name, shape);
        });
    }
}

#[test]
fn i12_a_chain_of_thousands_of_operands_is_evaluated() {
    on_stack(STACK_BYTES, || {
        let text = vec!["a"; 5_000].join(" or ");
        let query = Query::parse(&text, &ParseOptions::default()).unwrap();
        let memory = Memory::load("a 1 2 3 4 5 6 7");
        let answer = block_on(Engine::default().instant(&memory, &query, 60_000, &Uninterrupted)).unwrap();
        let Value::Vector(_, samples) = answer.value else {
            panic!("no vector")
        };
        assert_eq!(samples.len(), 1);
    });
}
