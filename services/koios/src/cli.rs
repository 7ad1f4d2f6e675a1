//! The command line.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use koios_runtime::{MemoryWatch, Runtime, with_sources};
use koios_server::Settings;
use koios_server::config::{self, Sources, Target};

use crate::{Node, NodeError, NodeOptions, banner, ctl};

/// Wrong settings, a data directory that is not this process' own, or a bucket that cannot be used.
const EXIT_USAGE: u8 = 2;

const ABOUT: &str = "A horizontally scalable, multi-tenant, Prometheus-compatible metrics cluster";

const LONG_ABOUT: &str = "\
Koios takes metrics by Prometheus remote_write, keeps them as Parquet in object storage, and answers PromQL.

Without a command it runs everything in one process, with no configuration needed: HTTP on 127.0.0.1:9009, gRPC on \
127.0.0.1:9095, data in ./koios-data. The commands below run one service each, for a cluster; `koios <command> --help` \
lists what each can be told. Every setting is also an environment variable and a key of the YAML file given with --config.";

/// The services that have a command of their own, with what `--help` says of them.
const TARGETS: [(Target, &str); 5] = [
    (
        Target::Distributor,
        "Receives writes: validates, shards and replicates them to ingesters",
    ),
    (
        Target::Ingester,
        "Keeps recent samples: write-ahead log, heads, blocks cut and uploaded; may vote",
    ),
    (Target::Querier, "Answers queries over ingesters and stores"),
    (Target::Store, "Serves blocks from object storage"),
    (Target::Control, "Votes on the cluster's state, and nothing else"),
];

fn command() -> Command {
    let mut command = Command::new("koios")
        .version(env!("CARGO_PKG_VERSION"))
        .about(ABOUT)
        .long_about(LONG_ABOUT)
        .args(config::flags(Target::All))
        .args_conflicts_with_subcommands(true)
        .subcommand(ctl::command());
    for (target, about) in TARGETS {
        command = command.subcommand(
            Command::new(target.as_str())
                .about(about)
                .args(config::flags(target)),
        );
    }
    command
}

/// Runs the program with the process' arguments.
pub fn main() -> ExitCode {
    let matches = command().get_matches();
    let (target, matches) = match matches.subcommand() {
        None => (Target::All, &matches),
        Some(("ctl", matches)) => return ctl::run(matches),
        Some((name, matches)) => match TARGETS.iter().find(|(t, _)| t.as_str() == name) {
            Some((target, _)) => (*target, matches),
            None => return ExitCode::from(EXIT_USAGE),
        },
    };
    let (settings, disarmed) = match load(matches, config::load_at_start) {
        Ok(loaded) => loaded,
        Err(e) => {
            complain!("koios: {e}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(e) = koios_server::start_logging(&settings.log) {
        complain!("koios: {e}");
        return ExitCode::from(EXIT_USAGE);
    }
    for rule in disarmed {
        tracing::error!("{rule}");
    }
    let variables: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect();
    let misspelt = config::misspelt_variables(variables.iter().map(String::as_str));
    for doubt in settings.doubts().into_iter().chain(misspelt) {
        tracing::warn!("{doubt}");
    }
    serve(target, settings, matches)
}

/// Loads from where a process is told things.
fn load<T>(matches: &ArgMatches, load: impl FnOnce(&ArgMatches, &Sources<'_>) -> T) -> T {
    let env = |name: &str| std::env::var(name).ok();
    let read_file = |path: &std::path::Path| std::fs::read_to_string(path);
    load(
        matches,
        &Sources {
            env: &env,
            read_file: &read_file,
        },
    )
}

fn serve(target: Target, settings: Settings, matches: &ArgMatches) -> ExitCode {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    // Where the variable is set it decides.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        threads.worker_threads(scheduler_threads());
    }
    let threads = match threads.enable_all().thread_name("koios").build() {
        Ok(threads) => threads,
        Err(e) => {
            complain!("koios: cannot start threads: {e}");
            return ExitCode::FAILURE;
        }
    };
    threads.block_on(async {
        let memory = MemoryWatch::of_process(settings.node.memory_limit_bytes);
        let runtime = match Runtime::real() {
            Ok(runtime) => Runtime { memory, ..runtime },
            Err(e) => {
                complain!("koios: cannot start threads: {e}");
                return ExitCode::FAILURE;
            }
        };
        let node = match Node::start(target, settings, runtime, NodeOptions::default()).await {
            Ok(node) => node,
            Err(e) => return refuse(&e),
        };
        say!("{}", banner::text(&node));
        wait_for_signal(&node, matches).await;
        match node.stop().await {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => refuse(&e),
        }
    })
}

/// Threads of async tasks: half of the cores. They pass on what the threads that compute and those that write to disk work at, and to wake
/// one more for each message costs more than it gives (docs/decisions/0028).
fn scheduler_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).max(1)
}

fn refuse(e: &NodeError) -> ExitCode {
    complain!("koios: {}", with_sources(e));
    if e.is_usage() {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

/// Returns at SIGINT, SIGTERM, or when the node cannot go on; at SIGHUP reads what the process is told again.
async fn wait_for_signal(node: &Node, matches: &ArgMatches) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        tracing::error!("cannot listen for signals, stopping");
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => return,
            _ = terminate.recv() => return,
            () = node.failed() => return,
            Some(()) = hangup.recv() => reload(node, matches),
        }
    }
}

/// What cannot be read changes nothing.
fn reload(node: &Node, matches: &ArgMatches) {
    match load(matches, config::load) {
        Ok(told) => node.reload(&told),
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be read again: everything stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_service_takes_the_contract_flags() {
        for (service, flags) in [
            (
                "ingester",
                &[
                    "--data-dir",
                    "--http.listen",
                    "--grpc.listen",
                    "--bucket",
                    "--config",
                    "--zone",
                    "--control.voters",
                    "--blocks.range",
                ][..],
            ),
            (
                "distributor",
                &[
                    "--data-dir",
                    "--http.listen",
                    "--grpc.listen",
                    "--config",
                    "--control.voters",
                    "--limits.out-of-order-time-window",
                ],
            ),
            (
                "querier",
                &["--data-dir", "--http.listen", "--bucket", "--control.voters"],
            ),
            ("store", &["--data-dir", "--bucket", "--control.voters"]),
            ("control", &["--data-dir", "--grpc.listen", "--control.voters"]),
        ] {
            let help = command()
                .find_subcommand_mut(service)
                .unwrap()
                .render_long_help()
                .to_string();
            for flag in flags {
                assert!(help.contains(flag), "{service} lacks {flag}");
            }
        }
    }
}
