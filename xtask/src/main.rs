//! One command each: `cargo xtask test`, `cargo xtask sim`, `cargo xtask sim-disk`, `cargo xtask sim-members`,
//! `cargo xtask sim-bucket`, `cargo xtask faults`, `cargo xtask fuzz-queries`, `cargo xtask layers`, `cargo xtask setup`.
#![expect(clippy::print_stdout, reason = "a tool for people at a terminal")]

mod layers;
mod setup;
mod simulations;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::simulations::Seeds;

/// Tools of the Koios project.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Installs what tests need if it may, then runs everything that must pass.
    Test {
        /// Only tests whose name contains this.
        filter: Option<String>,
    },
    /// Runs the cluster simulation: one seed twice, comparing the traces, or a range of seeds.
    Sim {
        /// The seed to replay; its trace is printed.
        #[arg(long)]
        seed: Option<u64>,
        /// How many seeds to run, from 0.
        #[arg(long, default_value_t = 20)]
        seeds: u64,
    },
    /// Runs the ingester on a simulated disk that tears, reorders, fails and loses power: a range of seeds, or one.
    SimDisk(Seeds),
    /// Runs three ingesters that repair each other while their disks and machines fail: a range of seeds, or one.
    SimMembers(Seeds),
    /// Runs the life of blocks over a simulated bucket, under crashes and faults: a range of seeds, or one.
    SimBucket(Seeds),
    /// Kills and stops real processes at random moments under load, and fills their disk: many times.
    Faults {
        /// What faults are drawn from; another one each time when not given.
        #[arg(long)]
        seed: Option<u64>,
        /// How many faults each test injects.
        #[arg(long, default_value_t = 50)]
        rounds: u64,
        /// Only tests whose name contains this.
        filter: Option<String>,
        /// Builds with optimisation first: more load, and more of it in flight when a process dies.
        #[arg(long)]
        release: bool,
    },
    /// Compares Koios with the installed Prometheus by random queries; takes --seed N, --queries M or --minutes M.
    #[command(disable_help_flag = true)]
    FuzzQueries {
        /// Handed on; --help lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Checks that dependencies between crates point down only.
    Layers,
    /// Installs what tests need.
    Setup,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("workspace root")?
        .to_owned();
    match Args::parse().command {
        Task::Test { filter } => test(&root, filter.as_deref()),
        Task::Sim { seed, seeds } => simulate(&root, seed, seeds),
        Task::SimDisk(seeds) => simulations::DISK.run(&root, &seeds),
        Task::SimMembers(seeds) => simulations::MEMBERS.run(&root, &seeds),
        Task::SimBucket(seeds) => simulations::BUCKET.run(&root, &seeds),
        Task::Faults {
            seed,
            rounds,
            filter,
            release,
        } => inject_faults(&root, seed, rounds, filter.as_deref(), release),
        Task::FuzzQueries { arguments } => fuzz_queries(&root, &arguments),
        Task::Layers => layers::check(&root),
        Task::Setup => setup::run(&root).map(|_| ()),
    }
}

fn test(root: &Path, filter: Option<&str>) -> Result<()> {
    let mut environment = setup::run(root)?;
    environment.extend(suite(root));
    layers::check(root)?;
    deny(root)?;
    let nextest = succeeds(Command::new("cargo").args(["nextest", "--version"]));
    let threads = test_threads().to_string();
    // End-to-end tests start the binary themselves: the test runner has built it by then.
    let suites: &[(&[&str], &[&str])] = if nextest {
        &[(
            &[
                "nextest",
                "run",
                "--workspace",
                "--no-fail-fast",
                "--test-threads",
                threads.as_str(),
            ],
            &[],
        )]
    } else {
        println!("cargo-nextest is not installed: using cargo test");
        // Tests that start several processes take the machine for themselves.
        &[
            (
                &["test", "--workspace", "--exclude", "koios", "--no-fail-fast"],
                &[],
            ),
            (
                &["test", "--package", "koios", "--no-fail-fast"],
                &["--", "--test-threads=1"],
            ),
        ]
    };
    for (arguments, of_tests) in suites {
        let mut command = cargo(root);
        command.args(*arguments).args(filter).args(*of_tests);
        run(command.envs(environment.iter().map(|(k, v)| (k, v))))?;
    }
    if nextest && filter.is_none() {
        run(cargo(root).args(["test", "--workspace", "--doc", "--quiet"]))?;
    }
    Ok(())
}

/// One for each core, and those of the tests that only wait: the group `waiting` in `.config/nextest.toml`.
fn test_threads() -> usize {
    const WAITING: usize = 2;
    std::thread::available_parallelism().map_or(1, usize::from) + WAITING
}

/// Prometheus' acceptance suite is data that is no part of the project: a folder beside the checkout, unless the
/// variable names another already.
fn suite(root: &Path) -> Option<(String, String)> {
    const SUITE_DIR: &str = "KOIOS_PROMQLTEST_DIR";
    if std::env::var_os(SUITE_DIR).is_some() {
        return None;
    }
    let beside = root.parent()?.join("shared").join("promqltest");
    if beside.is_dir() {
        return Some((SUITE_DIR.to_owned(), beside.display().to_string()));
    }
    println!(
        "there is no acceptance suite at {}: its tests test nothing",
        beside.display()
    );
    None
}

fn simulate(root: &Path, seed: Option<u64>, seeds: u64) -> Result<()> {
    let mut command = tests_aloud(root, "koios", &["simulation"], false);
    match seed {
        Some(seed) => command.env("KOIOS_SIM_SEED", seed.to_string()),
        None => command.env("KOIOS_SIM_SEEDS", seeds.to_string()),
    };
    run(&mut command)
}

fn inject_faults(
    root: &Path,
    seed: Option<u64>,
    rounds: u64,
    filter: Option<&str>,
    release: bool,
) -> Result<()> {
    let mut command = tests_aloud(root, "koios", &["kills", "stops", "full_disk"], release);
    // Other faults each time; the tests of every day have the same.
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() % 1_000_000);
    command
        .args(filter)
        .env("KOIOS_FAULTS_ROUNDS", rounds.to_string())
        .env("KOIOS_FAULTS_SEED", seed.to_string());
    run(&mut command)
}

/// The command that runs tests one after the other and lets them tell what they do.
fn tests_aloud(root: &Path, package: &str, tests: &[&str], release: bool) -> Command {
    let mut command = cargo(root);
    command.args(["test", "--package", package]);
    for test in tests {
        command.args(["--test", test]);
    }
    command.args(release.then_some("--release"));
    command.args(["--", "--nocapture", "--test-threads=1"]);
    command
}

/// Asks the program that `KOIOS_PROGRAM` names, or builds one.
fn fuzz_queries(root: &Path, arguments: &[String]) -> Result<()> {
    let koios = match std::env::var_os("KOIOS_PROGRAM") {
        Some(program) => PathBuf::from(program),
        None => {
            run(cargo(root).args(["build", "--release", "--package", "koios"]))?;
            target_dir(root).join("release").join("koios")
        }
    };
    let mut command = cargo(root);
    command.args([
        "run",
        "--release",
        "--package",
        "koios-testkit",
        "--bin",
        "fuzz-queries",
        "--",
    ]);
    run(command.arg("--koios").arg(koios).args(arguments))
}

fn deny(root: &Path) -> Result<()> {
    if !succeeds(Command::new("cargo").args(["deny", "--version"])) {
        println!("cargo-deny is not installed: deny.toml is not checked here");
        return Ok(());
    }
    run(cargo(root).args(["deny", "--offline", "check", "bans", "licenses", "sources"]))
}

fn cargo(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root);
    command
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|o| o.status.success())
}

fn run(command: &mut Command) -> Result<()> {
    println!("+ {command:?}");
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Where tools of the test environment live.
fn environment_dir(root: &Path) -> PathBuf {
    target_dir(root).join("testenv")
}

fn target_dir(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}
