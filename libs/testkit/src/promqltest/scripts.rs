//! Where scripts are.

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

/// Prometheus' acceptance suite: name and text. It is data kept beside the project, in the folder named by
/// `KOIOS_PROMQLTEST_DIR` or a sibling of the project's; `None` where it is not at hand.
///
/// # Panics
/// When the folder cannot be read.
pub fn suite_scripts() -> Option<Vec<(String, String)>> {
    let named = std::env::var_os(SUITE_DIR).map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/promqltest");
    let dir = named.or_else(|| Some(beside).filter(|dir| dir.is_dir()))?;
    Some(in_folder(&dir))
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
