//! Where scripts are.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Names the folder of Prometheus' acceptance suite.
const SUITE_DIR: &str = "KOIOS_PROMQLTEST_DIR";

/// The project's own scripts: name and text.
///
/// # Panics
/// When they cannot be read.
pub fn own_scripts() -> Vec<(String, String)> {
    in_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("promqltest"))
}

/// Prometheus' acceptance suite: name and text. It is data kept beside the project, in the folder that
/// `KOIOS_PROMQLTEST_DIR` names; `None`, and a word about it, where none is named.
///
/// # Panics
/// When the folder cannot be read, or holds no scripts.
pub fn suite_scripts() -> Option<Vec<(String, String)>> {
    match std::env::var_os(SUITE_DIR) {
        Some(dir) => Some(in_folder(Path::new(&dir))),
        None => {
            // Not by a macro, whose output a test that passes does not show.
            let _ = writeln!(
                std::io::stderr(),
                "NOT TESTED: {SUITE_DIR} names no acceptance suite; `cargo xtask test` finds one beside the checkout"
            );
            None
        }
    }
}

/// How many evaluations a script has, going by how its lines begin.
pub fn evaluations(script: &str) -> usize {
    let begins = |line: &&str| line.trim_start().starts_with("eval");
    script.lines().filter(begins).count()
}

fn in_folder(dir: &Path) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: std::io::Result<Vec<PathBuf>> = paths.collect();
    let mut scripts: Vec<(String, String)> = paths
        .and_then(|paths| {
            let scripts = paths
                .into_iter()
                .filter(|path| path.extension().is_some_and(|extension| extension == "test"));
            scripts
                .map(|path| Ok((name(&path), std::fs::read_to_string(&path)?)))
                .collect()
        })
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    assert!(!scripts.is_empty(), "no scripts in {}", dir.display());
    scripts.sort();
    scripts
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
