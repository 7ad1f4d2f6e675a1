//! `koios ctl blocks delete`: blocks that no manifest lists go.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Arg, ArgMatches, Command};
use koios_block::BlockId;
use koios_bucket::Writer;

use super::storage::{Storage, bucket_arg, tenant_arg};
use super::verify::UPLOAD_MS;

const LONG_ABOUT: &str = "\
Declares blocks dead that the tenant's manifest does not list and that are kept because nobody can say whether it did once: what \
`koios ctl blocks verify` tells of, such as what a rebuilt manifest left out. The tenant's store then deletes their bytes as those of \
other dead blocks, once `store.deletion-delay` is over. This cannot be taken back: a block that is dead is never listed again.

Blocks that should be listed are brought back by `koios ctl manifest rebuild --force` instead, which lists every block that is whole \
and not dead.

It refuses blocks that are listed or not a day old, and tenants whose manifest lost versions. All of the blocks that are named are declared \
dead, or none.";

pub(super) fn command() -> Command {
    Command::new("delete")
        .about("Deletes blocks that no manifest lists and that nobody else deletes")
        .long_about(LONG_ABOUT)
        .arg(bucket_arg())
        .arg(tenant_arg().required(true).help("Whose blocks"))
        .arg(
            Arg::new("blocks")
                .value_name("ULID")
                .required(true)
                .num_args(1..)
                .help("The blocks' names"),
        )
}

pub(super) async fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let storage = Storage::open_existing(matches)?;
    let tenants = storage.tenants(matches).await?;
    let tenant = tenants.first().context("whose blocks: say --tenant")?;
    let named = matches.get_many::<String>("blocks").into_iter().flatten();
    let parse = |name: &String| {
        let block = name.parse::<BlockId>();
        block
            .ok()
            .with_context(|| format!("{name:?} is no name of a block"))
    };
    let blocks = named.map(parse).collect::<Result<Vec<_>>>()?;
    ensure!(!blocks.is_empty(), "which blocks: name them");
    storage.bucket.self_test(false).await?;
    let before = storage.runtime.clock.now_ms().saturating_sub(UPLOAD_MS);
    let writer = Writer::rebuild("koios ctl blocks delete");
    let buried = storage.bucket.bury_unlisted(tenant, &blocks, before, &writer);
    let manifest = buried.await?;
    say!(
        "{} blocks of tenant {tenant} are dead since version {} of the manifest: the tenant's store deletes their bytes",
        blocks.len(),
        manifest.version
    );
    Ok(ExitCode::SUCCESS)
}
