//! `koios ctl import`: blocks of Prometheus' TSDB become blocks of a tenant.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use koios_block::BlockId;
use koios_import::{ExternalLabels, ImportSettings, Imported, Importer, Kept, Outcome};
use koios_model::TenantId;
use koios_runtime::{MemoryWatch, with_sources};
use koios_server::config::{format_duration, parse_duration};
use koios_tsdb::{DiskFiles, META_FILE};

use super::report::{ProgressLine, bytes};
use super::storage::{Storage, bucket_arg, tenant_arg};

/// What Thanos and Mimir put beside a block that they are done with.
const DELETION_MARK: &str = "deletion-mark.json";

const LONG_ABOUT: &str = "\
Imports blocks of a Prometheus TSDB, as Prometheus, Thanos and Mimir write them, into a tenant.

Each PATH is a block (a folder with meta.json, index and chunks/) or a folder of blocks, such as the data directory of a \
Prometheus. What a running Prometheus has not written to a block yet, its head, is not read: take a snapshot first \
(POST /api/v1/admin/tsdb/snapshot) and import that.

The command works on the bucket itself, a folder must be there already: no server has to run, and servers that run answer with the samples \
once they look for a newer manifest (blocks.manifest-max-age, a minute if it was not changed), and merge them with what they have. Of each block all is listed or nothing; a block that was imported is known by its name and is \
not imported again, so that a command that was interrupted is simply repeated. Everything is checked while it is read, and \
read back from the bucket before it is listed.

What is older than the tenant's samples are kept is left out: as its manifest notes it (koios ctl retention show), or as \
--retention says. Repeating the command with a longer --retention imports what was left out. What was imported otherwise than \
it should have been, or was deleted since, --again imports once more: samples that are there already stay as they are.

Exit code 0: all is imported, or was before. 1: a block could not be imported, standard error says which and why. 2: the \
command line is wrong.

Example:
  koios ctl import --bucket-url s3://metrics/prod --tenant team-a /var/lib/prometheus/data/snapshots/20261122T080000Z-1f";

pub(super) fn command() -> Command {
    Command::new("import")
        .about("Imports blocks of a Prometheus TSDB into a tenant")
        .long_about(LONG_ABOUT)
        .arg(bucket_arg())
        .arg(tenant_arg().required(true).help("Whose samples they become"))
        .arg(
            Arg::new("paths")
                .value_name("PATH")
                .required(true)
                .num_args(1..)
                .value_parser(value_parser!(PathBuf))
                .help("A block, or a folder of blocks"),
        )
        .arg(
            Arg::new("dry-run")
                .long("dry-run")
                .action(ArgAction::SetTrue)
                .help("Read and check everything, write nothing"),
        )
        .arg(
            Arg::new("retention")
                .long("retention")
                .value_name("DURATION")
                .env("KOIOS_RETENTION")
                .default_value("150d")
                .value_parser(parse_duration)
                .help("Leave out what is older; 0 takes everything")
                .long_help(
                    "Leave out what is older; 0 takes everything. Where it is not given on the command line, what the tenant's manifest \
                     notes counts, if it notes anything.",
                ),
        )
        .arg(
            Arg::new("again")
                .long("again")
                .action(ArgAction::SetTrue)
                .help("Import what was imported before once more"),
        )
        .arg(
            Arg::new("blocks-range")
                .long("blocks-range")
                .value_name("DURATION")
                .env("KOIOS_BLOCKS_RANGE")
                .default_value("2h")
                .value_parser(parse_duration)
                .help("The cluster's `blocks.range`"),
        )
        .arg(
            Arg::new("external-labels")
                .long("external-labels")
                .value_name("HOW")
                .value_parser(["add", "ignore"])
                .default_value("add")
                .help("What becomes of the labels that Thanos and Mimir keep in meta.json")
                .long_help(
                    "What becomes of the labels that Thanos and Mimir keep in meta.json and not with the series: every series \
                     of the block gets them, or they are ignored. Those whose names begin with two underscores are Mimir's own \
                     and are always ignored.",
                ),
        )
        .arg(
            Arg::new("drop-external-label")
                .long("drop-external-label")
                .value_name("NAME")
                .action(ArgAction::Append)
                .help("Do not add this one (may be given several times)"),
        )
}

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let tenant = matches.get_one::<String>("tenant").map_or("", String::as_str);
    let Ok(tenant) = TenantId::new(tenant).inspect_err(|e| complain!("koios ctl: --tenant: {e}")) else {
        return Ok(ExitCode::from(2));
    };
    let storage = Storage::open_existing(matches)?;
    let paths: Vec<&PathBuf> = matches.get_many("paths").into_iter().flatten().collect();
    let mut blocks = Vec::new();
    for path in paths {
        blocks.extend(blocks_below(&storage, path).await?);
    }
    blocks.dedup();
    let importer = importer(matches, &storage);
    if !importer.settings.dry_run {
        // Two commits must not overwrite each other.
        storage.bucket.self_test(false).await?;
    }
    let clock = Arc::clone(&storage.runtime.clock);
    let (line, started) = (ProgressLine::new(Arc::clone(&clock)), clock.elapsed());
    let mut total = Total::default();
    for (number, folder) in blocks.iter().enumerate() {
        line.begin(format!("{}/{} {}", number + 1, blocks.len(), name_of(folder)));
        let files = Arc::new(DiskFiles::new(storage.runtime.disk.clone(), folder.clone()));
        let watch = |p: koios_import::Progress| line.at(p.done, || format!("{} samples", p.samples));
        let done = Box::pin(importer.import(&tenant, files, &watch)).await;
        line.clear();
        match done {
            Ok(done) => {
                say!("{}", describe(&done, importer.settings.dry_run));
                total.add(&done);
            }
            Err(e) => {
                complain!("koios ctl: {}: {}", folder.display(), with_sources(&e));
                total.failed += 1;
            }
        }
    }
    say!(
        "{}",
        total.describe(clock.elapsed().saturating_sub(started), importer.settings.dry_run)
    );
    Ok(match total.failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn importer(matches: &ArgMatches, storage: &Storage) -> Importer {
    let duration = |name: &str| matches.get_one::<Duration>(name).copied().unwrap_or_default();
    let dropped = matches.get_many::<String>("drop-external-label");
    let add = matches
        .get_one::<String>("external-labels")
        .is_some_and(|how| how == "add");
    let external = match add {
        true => ExternalLabels::AddExcept(dropped.into_iter().flatten().cloned().collect()),
        false => ExternalLabels::Ignore,
    };
    Importer {
        bucket: storage.bucket.clone(),
        settings: ImportSettings {
            block_range: duration("blocks-range"),
            retention: duration("retention"),
            retention_given: matches.value_source("retention") == Some(ValueSource::CommandLine),
            external,
            dry_run: matches.get_flag("dry-run"),
            again: matches.get_flag("again"),
            ..ImportSettings::default()
        },
        writer: "koios ctl import".to_owned(),
        clock: Arc::clone(&storage.runtime.clock),
        rng: storage.runtime.rng.fork(),
        cpu: storage.runtime.cpu.clone(),
        memory: MemoryWatch::of_process(0),
    }
}

/// The path itself if it is a block, else the blocks in it, by name and so by age, but for those that Thanos or Mimir have marked
/// for deletion.
async fn blocks_below(storage: &Storage, path: &Path) -> Result<Vec<PathBuf>> {
    let folder = path.to_owned();
    let found = storage.runtime.disk.run(move |disk| {
        let has = |folder: &Path, file: &str| {
            disk.list(folder)
                .is_ok_and(|names| names.iter().any(|n| n == file))
        };
        if has(&folder, META_FILE) {
            return Ok((vec![folder], Vec::new()));
        }
        let named: BTreeSet<String> = disk
            .list(&folder)?
            .into_iter()
            .filter(|n| n.parse::<BlockId>().is_ok())
            .collect();
        let blocks = named
            .into_iter()
            .map(|n| folder.join(n))
            .filter(|f| has(f, META_FILE));
        Ok::<(Vec<_>, Vec<_>), koios_runtime::DiskError>(blocks.partition(|f| !has(f, DELETION_MARK)))
    });
    let (found, marked): (Vec<PathBuf>, Vec<PathBuf>) = found
        .await
        .with_context(|| format!("look for blocks in {}", path.display()))?;
    for block in &marked {
        say!(
            "{}: marked for deletion, left out (give its own path to import it)",
            name_of(block)
        );
    }
    ensure!(
        !found.is_empty() || !marked.is_empty(),
        "{} is no block and has none in it: a block is a folder with meta.json, index and chunks/, named by a ULID",
        path.display()
    );
    Ok(found)
}

fn name_of(folder: &Path) -> String {
    folder
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn describe(done: &Imported, dry_run: bool) -> String {
    let Imported {
        source,
        series,
        samples,
        too_old,
        kept,
        ..
    } = *done;
    let left_out = match too_old {
        0 => String::new(),
        _ => format!(", {too_old} samples left out: {}", why_too_old(kept)),
    };
    match done.outcome {
        Outcome::Known => format!("{source}: imported before, nothing to do (--again imports it once more)"),
        Outcome::Nothing => format!("{source}: nothing to import{left_out}"),
        Outcome::Imported => {
            let mut text = format!("{source}: {series} series, {samples} samples{left_out}");
            for (count, what) in [
                (done.deleted, "deleted by tombstones"),
                (done.doubled, "there twice"),
            ] {
                if count > 0 {
                    text.push_str(&format!(", {count} {what}"));
                }
            }
            if !dry_run {
                let (blocks, size_in, size_out) = (done.blocks, bytes(done.bytes_in), bytes(done.bytes_out));
                text.push_str(&format!(", {size_in} became {size_out} in {blocks} blocks"));
            }
            text
        }
    }
}

fn why_too_old(kept: Kept) -> String {
    let ms = kept.ms.unwrap_or(i64::MAX).unsigned_abs();
    let kept_for = format_duration(Duration::from_millis(ms));
    match kept.is_noted {
        true => format!(
            "the tenant's samples are kept for {kept_for}, as its manifest notes (`--retention` takes more, as long as the tenant keeps it)"
        ),
        false => format!(
            "older than a retention of {kept_for} (repeat it with a longer `--retention`, 0 for everything, and they are imported)"
        ),
    }
}

/// The sum of all blocks.
#[derive(Debug, Default)]
struct Total {
    imported: usize,
    known: usize,
    nothing: usize,
    failed: usize,
    samples: u64,
    too_old: u64,
    bytes_in: u64,
    bytes_out: u64,
}

impl Total {
    fn add(&mut self, done: &Imported) {
        match done.outcome {
            Outcome::Imported => self.imported += 1,
            Outcome::Known => self.known += 1,
            Outcome::Nothing => self.nothing += 1,
        }
        self.samples += done.samples;
        self.too_old += done.too_old;
        if done.outcome == Outcome::Imported {
            self.bytes_in += done.bytes_in;
            self.bytes_out += done.bytes_out;
        }
    }

    fn describe(&self, took: Duration, dry_run: bool) -> String {
        let verb = if dry_run { "would be imported" } else { "imported" };
        let seconds = took.as_secs_f64();
        let sizes = match dry_run {
            true => bytes(self.bytes_in),
            false => format!("{} became {}", bytes(self.bytes_in), bytes(self.bytes_out)),
        };
        format!(
            "{} blocks {verb}, {} known, {} with nothing to import, {} failed: {} samples, {} too old, {sizes}, in {seconds:.1} s",
            self.imported, self.known, self.nothing, self.failed, self.samples, self.too_old,
        )
    }
}
