//! Every query of the acceptance suite parses, prints and formats. The suite is data kept beside the project: without
//! it, there is nothing to test.

use std::io::Write;
use std::path::PathBuf;

use koios_promql::{parse, pretty};

/// The folder that `KOIOS_PROMQLTEST_DIR` names; a word about it where it names none.
fn suite_dir() -> Option<PathBuf> {
    let named = std::env::var_os("KOIOS_PROMQLTEST_DIR").map(PathBuf::from);
    if named.is_none() {
        // Not by a macro, whose output a test that passes does not show.
        let word = "NOT TESTED: KOIOS_PROMQLTEST_DIR names no acceptance suite";
        let _ = writeln!(std::io::stderr(), "{word}");
    }
    named
}

/// The query of an `eval` line; `None` for other lines.
fn query(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("eval")?;
    let (_, rest) = rest.split_once(' ')?;
    if let Some(rest) = rest.trim_start().strip_prefix("instant at ") {
        return rest.trim_start().split_once(' ').map(|(_, query)| query);
    }
    let (_, rest) = rest.split_once(" step ")?;
    rest.trim_start().split_once(' ').map(|(_, query)| query)
}

#[test]
fn every_query_of_the_suite_parses_and_prints() {
    let Some(dir) = suite_dir() else { return };
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "test") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let Some(query) = query(line) else { continue };
            let expectations = lines[i + 1..].iter().take_while(|l| l.starts_with([' ', '\t']));
            let fails = line.trim_start().starts_with("eval_fail")
                || expectations
                    .clone()
                    .any(|l| l.trim_start().starts_with("expect fail"));
            let place = format!("{}:{}", path.display(), i + 1);
            count += 1;
            match parse(query) {
                Ok(expr) => {
                    let printed = expr.to_string();
                    let again = parse(&printed).unwrap_or_else(|e| panic!("{place}: {printed}: {e}"));
                    assert_eq!(again.to_string(), printed, "{place}");
                    assert_eq!(pretty(&parse(&pretty(&expr)).unwrap()), pretty(&expr), "{place}");
                }
                Err(error) => assert!(fails, "{place}: {query}: {error}"),
            }
        }
    }
    println!("{count} queries");
    assert!(count > 2000, "{count}");
}
