//! `koios ctl`: an operator's commands to a running cluster.

mod advice;
mod blocks;
mod delete;
mod import;
mod inspect;
mod manifest;
mod report;
mod retention;
mod standing;
mod storage;
mod verify;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use koios_control::{ClusterState, Command as ControlCommand, Error as ControlError, LossId, RemoteControl};
use koios_model::{PartitionId, TenantId};
use koios_runtime::{RealClock, RealNet, RngHandle, with_sources};
use koios_wire::grpc::{IngesterClient, PeerChannel, RpcSettings};
use koios_wire::{FlushRequest, IngesterService};
use standing::{Serving, standings};

/// Longest a command is tried before nobody is taken to lead.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(30);
/// What to do when nobody leads.
const NO_LEADER: &str = "nothing is decided unless a majority of the control voters runs with its data: start them; if their disks are lost, \
                         see docs/operations.md, \"A majority of the voters' disks is lost\"";
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
             members than needed can serve everything they acknowledged. If their disks or logs are truly lost, this makes \
             all current members count; samples that were in no block are gone. The decision is recorded.",
        )
        .arg(
            Arg::new("partition")
                .default_value("all")
                .help("The partition's number, or `all` for every unreadable one"),
        )
        .arg(
            Arg::new("note")
                .long("note")
                .default_value("no reason given")
                .help("Why, for the record"),
        );
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
        .subcommand(import::command())
        .subcommand(blocks::command())
        .subcommand(manifest::command())
        .subcommand(retention::command())
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
        Ok(_) if crate::output::is_cut_short() => ExitCode::FAILURE,
        Ok(code) => code,
        Err(e) => {
            complain!("koios ctl: {}", with_sources(e.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn dispatch(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("import", m)) => Box::pin(import::run(m)).await,
        Some(("blocks", m)) => Box::pin(blocks::run(m)).await,
        Some(("manifest", m)) => Box::pin(manifest::run(m)).await,
        Some(("retention", m)) => Box::pin(retention::run(m)).await,
        _ => {
            let asked = Box::pin(ask_cluster(matches)).await;
            asked.map(|()| ExitCode::SUCCESS).map_err(advice::with_advice)
        }
    }
}

async fn ask_cluster(matches: &ArgMatches) -> Result<()> {
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

fn control(addr: &str) -> RemoteControl {
    RemoteControl::new(Arc::new(RealNet), Arc::new(RealClock::new()), addr)
}

async fn state(addr: &str) -> Result<ClusterState> {
    let known = control(addr).state().await?;
    known.with_context(|| format!("{addr} knows no cluster yet: it waits for the voters to create one"))
}

async fn status(addr: &str, version_only: bool) -> Result<()> {
    let state = state(addr).await?;
    let id = state.cluster_id.map(|id| id.to_string()).unwrap_or_default();
    if version_only {
        say!("{id} {}", state.version);
        return Ok(());
    }
    say!(
        "cluster {id}, state version {}, replication factor {}",
        state.version,
        state.replication_factor()
    );
    say!("\nmembers:");
    for m in state.members.values() {
        say!(
            "  {:<20} {:<12} zone {:<8} {:<22} {}",
            m.name,
            format!("{:?}", m.role).to_lowercase(),
            m.zone,
            m.grpc_addr,
            m.version
        );
    }
    say!("\npartitions:");
    for standing in standings(&state).await {
        let p = standing.partition;
        let readable = if standing.is_readable() {
            "readable"
        } else {
            "NOT READABLE: too few members count"
        };
        say!("  partition {} epoch {} {readable}", p.id, p.epoch);
        for (r, serving) in &standing.replicas {
            say!("    {:<20} zone {:<8} {serving}", r.member, r.zone);
        }
    }
    for loss in &state.accepted_losses {
        say!(
            "  loss of partition {} accepted at version {}: {}",
            loss.partition,
            loss.at_version,
            loss.note
        );
    }
    Ok(())
}

async fn accept_loss(matches: &ArgMatches) -> Result<()> {
    let addr = addr(matches);
    let which = matches.get_one::<String>("partition").map_or("", String::as_str);
    let note = matches.get_one::<String>("note").cloned().unwrap_or_default();
    let rng = RngHandle::from_entropy();
    let known = async { state(&addr).await };
    let partitions = match which {
        "all" => {
            let partitions = unreadable(&known.await?).await?;
            if partitions.is_empty() {
                say!("every partition is readable: nothing to accept");
            }
            partitions
        }
        number => {
            let number = number
                .parse()
                .with_context(|| format!("{number:?} is no partition: give its number, or `all`"))?;
            let partition = PartitionId(number);
            let state = known.await?;
            let standings = standings(&state).await;
            if standings
                .iter()
                .any(|s| s.partition.id == partition && s.answers())
            {
                say!("partition {partition} is readable: nothing to accept");
                return Ok(());
            }
            vec![partition]
        }
    };
    for partition in partitions {
        let command = ControlCommand::AcceptLoss {
            partition,
            note: note.clone(),
            // Tells this command, heard twice, from another acceptance.
            id: LossId(rng.u128()),
        };
        let outcome = match control(&addr).propose(&command, PROPOSE_DEADLINE).await {
            Err(error @ ControlError::NoLeader { .. }) => return Err(error).context(NO_LEADER),
            outcome => outcome?,
        };
        say!(
            "partition {partition}: loss accepted, epoch {}, state version {}",
            outcome.epoch,
            outcome.version
        );
    }
    Ok(())
}

/// The partitions of which too few members can serve everything. Of the others no loss is to be accepted: that would
/// make a member count that still copies what it lost.
///
/// # Errors
/// When there are none, as far as is known, for too few members of some partition answer.
async fn unreadable(state: &ClusterState) -> Result<Vec<PartitionId>> {
    let standings = standings(state).await;
    for (replica, serving) in standings.iter().flat_map(|s| &s.replicas) {
        if let Serving::Unknown(why) = serving {
            say!(
                "{} is taken as intact, for it was not asked: {why}",
                replica.member
            );
        }
    }
    let unreadable: Vec<_> = standings.iter().filter(|s| !s.is_readable()).collect();
    if unreadable.is_empty()
        && let Some(unknown) = standings.iter().find(|s| !s.answers())
    {
        let id = unknown.partition.id;
        bail!(
            "whether partition {id} is readable is not known, too few of its members answer: start them; if their disks are lost, see \
             docs/operations.md, \"Reads of a partition fail with 503\" and \"A majority of the voters' disks is lost\""
        );
    }
    Ok(unreadable.into_iter().map(|s| s.partition.id).collect())
}

async fn flush(addr: &str, tenant: Option<&String>) -> Result<()> {
    let tenant = tenant.map(|t| TenantId::new(t)).transpose()?;
    let client = IngesterClient::new(channel(addr, FLUSH_DEADLINE));
    let done = client.flush(FlushRequest { tenant, wait: true }).await?;
    say!("{} blocks with {} samples are listed", done.blocks, done.samples);
    Ok(())
}
