//! What tests need beside Rust: Debian's Prometheus, `node_exporter` and vmagent, and pinned Python packages.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{environment_dir, succeeds};

/// Programs and the Debian packages that hold them.
const PACKAGES: [(&str, &str); 3] = [
    ("prometheus", "prometheus"),
    ("prometheus-node-exporter", "prometheus-node-exporter"),
    ("vmagent", "victoria-metrics"),
];
/// An S3 server, independent readers of Parquet, OpenTelemetry's SDK with its exporters, and Google's protobuf, pinned.
const PYTHON_PACKAGES: [&str; 7] = [
    "moto[server]==5.2.5",
    "pyarrow==26.0.1",
    "duckdb==2.0.0",
    "opentelemetry-sdk==1.45.2",
    "opentelemetry-exporter-otlp-proto-http==1.45.2",
    "opentelemetry-exporter-otlp-proto-grpc==1.45.2",
    "protobuf==7.36.2",
];

/// Installs what is missing where it may, and returns the environment variables that tests find it by.
///
/// # Errors
/// When something is missing and may not be installed; the message lists all of it and the commands.
pub(crate) fn run(root: &Path) -> Result<Vec<(String, String)>> {
    let mut missing = debian_packages();
    let python = match python_environment(root) {
        Ok(python) => Some(python),
        Err(e) => {
            missing.push(format!("{e:#}"));
            None
        }
    };
    let (true, Some(python)) = (missing.is_empty(), python) else {
        bail!(
            "tests need what is not here and could not be installed:\n  {}",
            missing.join("\n  ")
        );
    };
    let bin = |name: &str| python.join("bin").join(name).display().to_string();
    Ok(vec![
        ("KOIOS_MOTO_SERVER".to_owned(), bin("moto_server")),
        ("KOIOS_PYTHON".to_owned(), bin("python")),
    ])
}

fn debian_packages() -> Vec<String> {
    let absent = |program: &str| !on_path(program);
    let wanted: Vec<&str> = PACKAGES
        .iter()
        .filter(|(p, _)| absent(p))
        .map(|(_, package)| *package)
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    if is_root() && on_path("apt-get") {
        println!("installing {}", wanted.join(", "));
        let _ = crate::run(Command::new("apt-get").args(["update", "-qq"]));
        let mut install = Command::new("apt-get");
        install
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&wanted);
        let _ = crate::run(install.env("DEBIAN_FRONTEND", "noninteractive"));
    }
    PACKAGES
        .iter()
        .filter(|(p, _)| absent(p))
        .map(|(program, package)| format!("{program}: run `apt-get install {package}` as root"))
        .collect()
}

fn python_environment(root: &Path) -> Result<PathBuf> {
    let dir = environment_dir(root);
    let python = dir.join("bin/python");
    let installed = || {
        PYTHON_PACKAGES.iter().all(|p| {
            let (name, version) = p.split_once("==").unwrap_or((p, ""));
            let name = name.split('[').next().unwrap_or(name);
            let check =
                format!("from importlib.metadata import version as v; assert v('{name}') == '{version}'");
            succeeds(Command::new(&python).args(["-c", &check]))
        })
    };
    if installed() {
        return Ok(dir);
    }
    let venv = Command::new("python3").args(["-m", "venv"]).arg(&dir).output();
    if !venv.is_ok_and(|o| o.status.success()) {
        bail!(
            "a Python environment: `python3 -m venv {}` failed; install python3 and python3-venv",
            dir.display()
        );
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PYTHON_PACKAGES);
    if crate::run(&mut pip).is_err() || !installed() {
        bail!(
            "Python packages: `{} -m pip install {}` failed",
            python.display(),
            PYTHON_PACKAGES.join(" ")
        );
    }
    Ok(dir)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}
