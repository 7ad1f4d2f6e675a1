//! Parser and printers.

use koios_promql::{Ast, ParseOptions, parse, parse_metric_selector, parse_with, pretty};

/// Longest text that is tried: what matters fits into less.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Any text parses or does not; what parses can be printed, formatted and read again, and is then the same.
pub fn promql_parse(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if text.len() > TEXT_BYTES_MAX {
        return;
    }
    let _ = parse_metric_selector(text);
    let plain = ParseOptions {
        experimental_functions: false,
        duration_expressions: false,
        extended_range_selectors: false,
        fill_modifiers: false,
        ..ParseOptions::default()
    };
    if let Ok(expr) = parse_with(text, &plain) {
        let all = parse(text);
        assert!(
            all.is_ok_and(|all| bare(&all) == bare(&expr)),
            "features change what a query without them means: {text:?}"
        );
    }
    let Ok(expr) = parse(text) else {
        return;
    };
    let printed = expr.to_string();
    let again = reread(&printed, text);
    assert_eq!(again.to_string(), printed, "printed again, of {text:?}");
    assert_eq!(
        bare(&again),
        bare(&reread(&again.to_string(), text)),
        "of {text:?}"
    );

    let formatted = pretty(&expr);
    let again = reread(&formatted, text);
    assert_eq!(again.to_string(), printed, "formatted, of {text:?}");
    assert_eq!(pretty(&again), formatted, "formatted again, of {text:?}");
}

fn reread(printed: &str, text: &str) -> Ast {
    match parse(printed) {
        Ok(ast) => ast,
        Err(e) => panic!("{printed:?}, printed for {text:?}, does not parse: {e}"),
    }
}

/// A tree without positions. As text, since NaN does not equal itself.
fn bare(ast: &Ast) -> String {
    let mut ast = ast.clone();
    ast.clear_spans();
    format!("{ast:?}")
}
