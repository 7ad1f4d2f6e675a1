//! `koios ctl blocks`: what a bucket holds.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command};
use koios_bucket::ManifestBlock;
use koios_model::TenantId;
use koios_runtime::with_sources;

use super::report::{age, bytes, time};
use super::storage::{Storage, bucket_arg, tenant_arg};
use super::{delete, inspect, verify};

pub(super) fn command() -> Command {
    let tenant = || tenant_arg().help("Only this tenant; without it, all");
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print JSON, one object a line");
    let list = Command::new("list")
        .about("Lists live blocks: range, level, series, samples, bytes")
        .arg(bucket_arg())
        .arg(tenant())
        .arg(json.clone());
    let inspect = Command::new("inspect")
        .about("Shows what is in a block: parts, columns, encodings, labels")
        .arg(bucket_arg())
        .arg(tenant())
        .arg(json)
        .arg(
            Arg::new("block")
                .value_name("ULID")
                .required(true)
                .help("The block's name"),
        )
        .arg(
            Arg::new("labels")
                .long("labels")
                .value_name("N")
                .default_value("10")
                .value_parser(clap::value_parser!(usize))
                .help("Show the labels with the most values, so many of them"),
        );
    let verify = Command::new("verify")
        .about("Reads every block whole and checks it; exit code 1 when anything is wrong")
        .long_about(
            "Reads every block whole and checks it: checksums of all parts, order, times and counts of series and samples, \
             meta.json against the manifest, objects that are missing, and objects that no manifest knows.\n\nUploads of the \
             last 24 hours that are not listed may be on their way and are not counted as findings. Exit code 1 when there \
             is any finding, each of them on a line of standard output.",
        )
        .arg(bucket_arg())
        .arg(tenant());
    Command::new("blocks")
        .about("Blocks in a bucket; no server has to run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(list)
        .subcommand(inspect)
        .subcommand(verify)
        .subcommand(delete::command())
}

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("list", m)) => list(m).await,
        Some(("inspect", m)) => inspect::run(m).await.map(|()| ExitCode::SUCCESS),
        Some(("verify", m)) => verify::run(m).await,
        Some(("delete", m)) => delete::run(m).await,
        _ => bail!("unknown command, see `koios ctl blocks --help`"),
    }
}

async fn list(matches: &ArgMatches) -> Result<ExitCode> {
    let storage = Storage::open_existing(matches)?;
    let now_ms = storage.runtime.clock.now_ms();
    let json = matches.get_flag("json");
    if !json {
        say!(
            "{:<16} {:<26} {:<20} {:<20} {:>5} {:>9} {:>12} {:>10} {:>8} {:>5}",
            "TENANT",
            "BLOCK",
            "FROM",
            "TO",
            "LEVEL",
            "SERIES",
            "SAMPLES",
            "BYTES",
            "B/SAMPLE",
            "AGE"
        );
    }
    let mut code = ExitCode::SUCCESS;
    for tenant in storage.tenants(matches).await? {
        let manifest = match storage.bucket.latest(&tenant).await {
            Ok(manifest) => manifest,
            // Those of others can be listed all the same.
            Err(e) => {
                complain!(
                    "tenant {tenant}: the manifest cannot be used: {}",
                    with_sources(&e)
                );
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let mut blocks: Vec<&ManifestBlock> = manifest.blocks.iter().collect();
        blocks.sort_by_key(|b| (b.range.min, b.block));
        for block in blocks {
            let age_ms = now_ms.saturating_sub(block.block.time_ms());
            match json {
                true => say!("{}", as_json(&tenant, block, age_ms)),
                false => say!("{}", as_row(&tenant, block, age_ms)),
            }
        }
    }
    Ok(code)
}

fn per_sample(block: &ManifestBlock) -> f64 {
    block.bytes() as f64 / block.samples.max(1) as f64
}

fn as_row(tenant: &TenantId, block: &ManifestBlock, age_ms: i64) -> String {
    format!(
        "{:<16} {:<26} {:<20} {:<20} {:>5} {:>9} {:>12} {:>10} {:>8.2} {:>5}",
        tenant.as_str(),
        block.block,
        time(block.range.min),
        time(block.range.max),
        block.level,
        block.series,
        block.samples,
        bytes(block.bytes()),
        per_sample(block),
        age(age_ms)
    )
}

fn as_json(tenant: &TenantId, block: &ManifestBlock, age_ms: i64) -> serde_json::Value {
    serde_json::json!({
        "tenant": tenant.as_str(),
        "block": block.block,
        "min_ms": block.range.min,
        "max_ms": block.range.max,
        "window_min_ms": block.window.min,
        "window_max_ms": block.window.max,
        "resolution_ms": block.resolution_ms,
        "level": block.level,
        "series": block.series,
        "samples": block.samples,
        "bytes": block.bytes(),
        "bytes_per_sample": per_sample(block),
        "age_ms": age_ms,
        "partitions": block.partitions,
        "sources": block.sources,
    })
}
