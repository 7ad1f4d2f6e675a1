//! `koios ctl manifest`: for when a manifest cannot be read.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use koios_bucket::Rebuild;
use koios_model::TenantId;

use super::storage::{Storage, bucket_arg, tenant_arg};

const REBUILD_LONG: &str = "\
Rebuilds a tenant's manifest from the blocks in the bucket, for when its newest version cannot be read or is lost.

End all processes of the cluster first, not only its stores: those that run go on from the versions that they remember, and what they \
list is then in another manifest than the new one. It refuses when it sees a version or the hint written while it works.

Lists every block that is complete (all parts there, with the sizes that a readable meta.json says), except those that others \
were certainly merged from. Of the newest version that can still be read, if there is one, it keeps what is dead, deletions \
and epochs; a block that it lists stays listed even if it is damaged, so that queries say so. Other blocks are read whole; of those one \
that is damaged is listed only where no other is known to have what it held. One that lacks a part, or of which not even meta.json can \
be read, is not listed: it is named as lost where no other is known to have what it held. Summaries are listed, one set for each day, \
where their samples are gone; else they are left out and made anew.

What cannot be known without any version: deletions that were not yet applied, which blocks are dead but not yet gone, what was \
imported before, what heads may forget (ingesters upload once more what they hold), and epochs.

The new version is above all that objects, the hint and blocks tell of, by 1000 where versions are lost. Ingesters may remember a later \
one: queries then fail with 503 and say `version N or later is needed`, and ingesters that version N was announced. Run it again with \
--at-least-version N: then it is above N, too, by as much.

Without --write it only says what it would do. It refuses while the newest version can be read, unless --force is given. It refuses, \
too, when no version can be read, or when a block would be listed that was not while deletions became complete, unless \
--forget-deletions is given: samples that were deleted and are not removed from the blocks yet are there again, and have to be deleted \
once more. And it refuses when a block is named as lost, unless --without-lost is given: \
answers lack what it held, and do not say so.";

pub(super) fn command() -> Command {
    let rebuild = Command::new("rebuild")
        .about("Rebuilds a tenant's manifest from the blocks in the bucket")
        .long_about(REBUILD_LONG)
        .arg(bucket_arg())
        .arg(tenant_arg().required(true).help("Whose manifest"))
        .arg(
            Arg::new("write")
                .long("write")
                .action(ArgAction::SetTrue)
                .help("Write it; without this nothing is changed"),
        )
        .arg(
            Arg::new("force")
                .long("force")
                .action(ArgAction::SetTrue)
                .help("Even if the newest version can be read"),
        )
        .arg(
            Arg::new("at-least-version")
                .long("at-least-version")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help("Make it a later version than this one, which errors say was announced"),
        )
        .arg(
            Arg::new("forget-deletions")
                .long("forget-deletions")
                .action(ArgAction::SetTrue)
                .help("Even if nothing tells what was deleted of blocks: it is there again"),
        )
        .arg(
            Arg::new("without-lost")
                .long("without-lost")
                .action(ArgAction::SetTrue)
                .help("Even if blocks are named as lost: answers lack what they held"),
        );
    Command::new("manifest")
        .about("The list of a tenant's blocks; no server has to run")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(rebuild)
}

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("rebuild", m)) => rebuild(m).await.map(|()| ExitCode::SUCCESS),
        _ => bail!("unknown command, see `koios ctl manifest --help`"),
    }
}

async fn rebuild(matches: &ArgMatches) -> Result<()> {
    let storage = Storage::open_existing(matches)?;
    let tenants = storage.tenants(matches).await?;
    let tenant = tenants
        .into_iter()
        .next()
        .context("whose manifest: say --tenant")?;
    let mut plan = storage.bucket.plan_rebuild(&tenant).await?;
    if let Some(&version) = matches.get_one::<u64>("at-least-version") {
        plan.at_least(version)?;
    }
    if plan.is_needless() && !matches.get_flag("force") {
        bail!(
            "version {} of the manifest of tenant {tenant} can be read: nothing has to be rebuilt (--force does it all the same)",
            plan.newest
        );
    }
    describe(&tenant, &plan);
    if !matches.get_flag("write") {
        say!("nothing is written: say --write to do it");
        return Ok(());
    }
    if plan.forgets_deletions() && !matches.get_flag("forget-deletions") {
        bail!(
            "no version of the manifest of tenant {tenant} tells which samples were deleted: those that are not removed from the blocks \
             yet would be there again. Bring a version back if you can (a copy of any of the last ones, under its own name); else say \
             --forget-deletions and delete once more what was to be deleted"
        );
    }
    if !plan.undeleted.is_empty() && !matches.get_flag("forget-deletions") {
        bail!(
            "{} blocks of tenant {tenant}, named above, were not listed while deletions became complete, and nothing tells any more what \
             these deleted: it would be there again. Have the blocks deleted if they are of no use (`koios ctl blocks delete`); else say \
             --forget-deletions and delete once more what was to be deleted",
            plan.undeleted.len()
        );
    }
    let lost = plan.left_out.iter().filter(|(_, why)| why.may_lose()).count();
    if lost > 0 && !matches.get_flag("without-lost") {
        bail!(
            "{lost} blocks of tenant {tenant} are lost, named above: answers would lack what they held, and not say so. Bring back what is \
             missing of them (from a copy, or from an archive) and plan the rebuild again; else say --without-lost. They are kept, and can be \
             listed later with --force; what is deleted meanwhile has to be deleted once more then"
        );
    }
    storage.bucket.self_test(false).await?;
    let manifest = storage
        .bucket
        .rebuild_manifest(&plan, "koios ctl manifest rebuild")
        .await?;
    say!(
        "version {} of the manifest of tenant {tenant} is written",
        manifest.version
    );
    Ok(())
}

fn describe(tenant: &TenantId, plan: &Rebuild) {
    if plan.has_lost_versions() {
        let tells = match plan.announced > plan.evident {
            true => format!("version {} was announced", plan.announced),
            false => format!("the hint and blocks tell of version {}", plan.evident),
        };
        say!(
            "tenant {tenant}: versions are lost: version {} is the newest that is there, {tells}",
            plan.newest
        );
    }
    if let Some(version) = plan.deletions_lost_after() {
        say!(
            "tenant {tenant}: deletions that were asked for after version {version} are lost: delete once more what was to be deleted since"
        );
    }
    match &plan.readable {
        Some(known) => say!(
            "tenant {tenant}: version {} is the newest, version {} the newest that can be read: its {} dead names, {} deletions \
             and {} imports are kept",
            plan.newest,
            known.version,
            known.dead.len(),
            known.tombstones.len(),
            known.imports.len()
        ),
        None => say!(
            "tenant {tenant}: version {} is the newest, none can be read: deletions, dead names, imports and epochs are lost",
            plan.newest
        ),
    }
    for (block, why) in &plan.damaged {
        say!("damaged: {block} is listed all the same: {why}");
    }
    for (block, why) in plan.left_out.iter().filter(|(_, why)| why.may_lose()) {
        say!("lost: {block} is left out: {why}");
    }
    for block in &plan.undeleted {
        say!(
            "undeleted: {block} was not listed while deletions became complete: what they deleted of it is there again"
        );
    }
    say!(
        "version {} will list {} blocks with {} samples",
        plan.next,
        plan.blocks.len(),
        plan.samples()
    );
    for block in &plan.blocks {
        say!(
            "  {} {} series, {} samples",
            block.block,
            block.series,
            block.samples
        );
    }
    for block in &plan.standing_in {
        say!("  {block} is summaries that stand in for samples of which nothing is left");
    }
    for (block, why) in plan.left_out.iter().filter(|(_, why)| !why.may_lose()) {
        say!("  {block} is left out: {why}");
    }
}
