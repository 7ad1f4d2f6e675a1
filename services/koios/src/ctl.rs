//! `koios ctl`: an operator's commands to a running cluster.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the terminal is this module's business"
)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use koios_control::{ClusterState, Command as ControlCommand, Outcome, Rejection};
use koios_model::{PartitionId, TenantId};
use koios_runtime::{RealClock, RealNet};
use koios_wire::grpc::{IngesterClient, PeerChannel, RpcSettings};
use koios_wire::pb::v1::control_client::ControlClient;
use koios_wire::pb::v1::{ProposeRequest, StateRequest};
use koios_wire::{FlushRequest, IngesterService};

/// How many leader hints are followed.
const HINTS_MAX: usize = 5;
/// Longest a flush is waited for.
const FLUSH_DEADLINE: Duration = Duration::from_secs(600);

/// The command's definition.
pub(crate) fn command() -> Command {
    let addr = Arg::new("addr")
        .long("addr")
        .value_name("HOST:PORT")
        .default_value("127.0.0.1:9095")
        .global(true)
        .help("gRPC address of any process of the cluster");
    let status = Command::new("status")
        .about("Shows members, partitions and who counts for reads")
        .arg(
            Arg::new("version-only")
                .long("version-only")
                .action(ArgAction::SetTrue)
                .help("Print only the cluster's id and the version of the state that the process knows"),
        );
    let accept_loss = Command::new("accept-loss")
        .about("Goes on without what a majority of a partition's members has lost")
        .long_about(
            "Goes on without what a majority of a partition's members has lost.\n\nReads of a partition fail while fewer \
             members than needed can serve everything they acknowledged. If their disks are truly lost, this makes all \
             current members count; samples that were in no block are gone. The decision is recorded.",
        )
        .arg(Arg::new("partition").required(true).help("The partition's number, or `all` for every unreadable one"))
        .arg(Arg::new("note").long("note").default_value("").help("Why, for the record"));
    let flush = Command::new("flush")
        .about("Cuts blocks of everything an ingester holds and waits until they are listed")
        .arg(
            Arg::new("tenant")
                .long("tenant")
                .value_parser(value_parser!(String))
                .help("Only this tenant"),
        );
    Command::new("ctl")
        .about("An operator's commands to a running cluster")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .arg(addr)
        .subcommand(status)
        .subcommand(flush)
        .subcommand(
            Command::new("partition")
                .about("Partitions")
                .subcommand_required(true)
                .arg_required_else_help(true)
                .subcommand(accept_loss),
        )
}

/// Runs a command; problems go to standard error.
pub(crate) fn run(matches: &ArgMatches) -> ExitCode {
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = threads
        .context("start")
        .and_then(|threads| threads.block_on(dispatch(matches)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("koios ctl: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(matches: &ArgMatches) -> Result<()> {
    match matches.subcommand() {
        Some(("status", m)) => status(&addr(m), m.get_flag("version-only")).await,
        Some(("flush", m)) => flush(&addr(m), m.get_one::<String>("tenant")).await,
        Some(("partition", m)) => match m.subcommand() {
            Some(("accept-loss", m)) => accept_loss(m).await,
            _ => bail!("unknown command, see `koios ctl partition --help`"),
        },
        _ => bail!("unknown command, see `koios ctl --help`"),
    }
}

fn addr(matches: &ArgMatches) -> String {
    matches.get_one::<String>("addr").cloned().unwrap_or_default()
}

fn channel(addr: &str, deadline: Duration) -> PeerChannel {
    let settings = RpcSettings {
        deadline,
        ..RpcSettings::default()
    };
    PeerChannel::new(Arc::new(RealNet), Arc::new(RealClock::new()), addr, settings)
}

async fn state(addr: &str) -> Result<ClusterState> {
    let peer = channel(addr, RpcSettings::default().deadline);
    let reply = peer
        .call(|c| async move {
            ControlClient::new(c)
                .state(StateRequest { known_version: 0 })
                .await
        })
        .await?
        .into_inner();
    if reply.state.is_empty() {
        bail!("{addr} knows no cluster yet: it waits for the voters to create one");
    }
    serde_json::from_slice(&reply.state)
        .with_context(|| format!("{addr} sent a state this version cannot read"))
}

async fn propose(addr: &str, command: &ControlCommand) -> Result<Outcome> {
    let state = state(addr).await?;
    let command = bytes::Bytes::from(serde_json::to_vec(command)?);
    let members = state.members.values().map(|m| m.grpc_addr.clone());
    let mut candidates: Vec<String> = std::iter::once(addr.to_owned()).chain(members).collect();
    candidates.reverse();
    let mut hints = 0;
    let mut problem = "nobody was asked".to_owned();
    while let Some(candidate) = candidates.pop() {
        let peer = channel(&candidate, RpcSettings::default().deadline);
        let request = ProposeRequest {
            command: command.clone(),
        };
        match peer
            .call(|c| async move { ControlClient::new(c).propose(request).await })
            .await
        {
            Ok(reply) => {
                let reply = reply.into_inner();
                if reply.leader.is_empty() {
                    let outcome: Result<Outcome, Rejection> = serde_json::from_slice(&reply.result)?;
                    return Ok(outcome?);
                }
                if hints < HINTS_MAX {
                    hints += 1;
                    candidates.push(reply.leader);
                }
            }
            Err(e) => problem = e.message,
        }
    }
    bail!("no voter took the command: {problem}")
}

async fn status(addr: &str, version_only: bool) -> Result<()> {
    let state = state(addr).await?;
    let id = state.cluster_id.map(|id| id.to_string()).unwrap_or_default();
    if version_only {
        println!("{id} {}", state.version);
        return Ok(());
    }
    println!(
        "cluster {id}, state version {}, replication factor {}",
        state.version,
        state.replication_factor()
    );
    println!("\nmembers:");
    for m in state.members.values() {
        println!(
            "  {:<20} {:<12} zone {:<8} {:<22} {}",
            m.name,
            format!("{:?}", m.role).to_lowercase(),
            m.zone,
            m.grpc_addr,
            m.version
        );
    }
    println!("\npartitions:");
    for p in state.partitions.values() {
        let readable = if p.is_readable() {
            "readable"
        } else {
            "NOT READABLE: too few members count"
        };
        println!("  partition {} epoch {} {readable}", p.id, p.epoch);
        for r in &p.replicas {
            println!(
                "    {:<20} zone {:<8} {}",
                r.member,
                r.zone,
                if r.counts { "counting" } else { "not counting" }
            );
        }
    }
    for loss in &state.accepted_losses {
        println!(
            "  loss of partition {} accepted at version {}: {}",
            loss.partition, loss.at_version, loss.note
        );
    }
    Ok(())
}

async fn accept_loss(matches: &ArgMatches) -> Result<()> {
    let addr = addr(matches);
    let which = matches.get_one::<String>("partition").map_or("", String::as_str);
    let note = matches.get_one::<String>("note").cloned().unwrap_or_default();
    let partitions: Vec<PartitionId> = if which == "all" {
        let state = state(&addr).await?;
        state
            .partitions
            .values()
            .filter(|p| !p.is_readable())
            .map(|p| p.id)
            .collect()
    } else {
        let number = which
            .parse()
            .with_context(|| format!("{which:?} is no partition: give its number, or `all`"))?;
        vec![PartitionId(number)]
    };
    if partitions.is_empty() {
        println!("every partition is readable: nothing to accept");
    }
    for partition in partitions {
        let outcome = propose(
            &addr,
            &ControlCommand::AcceptLoss {
                partition,
                note: note.clone(),
            },
        )
        .await?;
        println!(
            "partition {partition}: loss accepted, epoch {}, state version {}",
            outcome.epoch, outcome.version
        );
    }
    Ok(())
}

async fn flush(addr: &str, tenant: Option<&String>) -> Result<()> {
    let tenant = tenant.map(|t| TenantId::new(t)).transpose()?;
    let client = IngesterClient::new(channel(addr, FLUSH_DEADLINE));
    let done = client.flush(FlushRequest { tenant, wait: true }).await?;
    println!("{} blocks with {} samples are listed", done.blocks, done.samples);
    Ok(())
}
