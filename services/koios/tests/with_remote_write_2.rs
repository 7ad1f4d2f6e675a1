//! A sender of remote write 2.0 written in another language, with another protobuf library, by the specification alone.

mod support;

use std::process::Command;

use anyhow::{Context, Result, bail};
use support::{all_in_one, python};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with_remote_write_2.py");

#[tokio::test]
async fn an_independent_sender_finds_all_it_sent_and_is_told_what_was_not_written() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let python = python();
    let done = Command::new(&python)
        .args([SCRIPT, &koios.http])
        .output()
        .with_context(|| format!("{python} is missing: run `cargo xtask test`, which installs it"))?;
    if !done.status.success() {
        bail!("{}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(())
}
