//! A sender of remote write 2.0 written in another language, with another protobuf library, by the specification alone.

mod support;

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use support::{Koios, all_in_one, client, eventually, now_ms, python};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/with_remote_write_2.py");

/// The script's steps, all of the same time.
struct Sender {
    seconds: String,
}

impl Sender {
    fn run(&self, koios: &Koios, step: &str) -> Result<()> {
        let python = python();
        let done = Command::new(&python)
            .args([SCRIPT, &koios.http, step, &self.seconds])
            .output()
            .with_context(|| format!("{python} is missing: run `cargo xtask test`, which installs it"))?;
        if !done.status.success() {
            bail!("{step}: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(())
    }
}

async fn flush(koios: &Koios) -> Result<()> {
    let client = client();
    let path = "/ingester/flush?wait=true";
    let answer = client
        .send("POST", &koios.http, path, &[], Default::default())
        .await?;
    ensure!(answer.status < 300, "flush: {}", answer.text());
    Ok(())
}

/// Kills it, and starts it without its log: what heads held is gone, and has to be accepted as lost.
async fn start_with_blocks_alone(koios: &mut Koios) -> Result<()> {
    koios.process.kill();
    std::fs::remove_dir_all(koios.data_dir.join("wal"))?;
    koios.process.restart()?;
    eventually("the loss to be told", || async {
        let status = support::ctl(&["status"], &koios.grpc)?;
        ensure!(status.contains("DAMAGED"), "status: {status}");
        Ok(())
    })
    .await?;
    let accept = ["partition", "accept-loss", "all", "--note", "log deleted"];
    support::ctl(&accept, &koios.grpc)?;
    koios.ready(&client()).await
}

#[tokio::test]
async fn an_independent_sender_finds_all_it_sent_in_the_log_and_in_blocks_and_is_told_what_was_not_written()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let sender = Sender {
        seconds: (now_ms() / 1000).to_string(),
    };
    sender.run(&koios, "send")?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client()).await?;
    sender.run(&koios, "check").context("after a replay of the log")?;
    flush(&koios).await?;
    sender.run(&koios, "check").context("after a flush")?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client()).await?;
    sender
        .run(&koios, "check")
        .context("after a flush and a replay")?;
    start_with_blocks_alone(&mut koios).await?;
    sender.run(&koios, "check").context("of blocks alone")?;
    koios.log_end().map(drop)
}
