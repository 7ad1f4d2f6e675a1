//! A disk that is full: writes are refused with the reason, reads go on, and nothing acknowledged is lost.
//!
//! `cargo xtask faults` runs this for long.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use koios_testkit::http::{Answer, HttpClient};
use koios_testkit::process::pause;
use support::chance::Chance;
use support::load::Load;
use support::small_disk::SmallDisk;
use support::{Cluster, INGESTERS, Koios, Plan, Writer, client, eventually, now_ms, starting_all_in_one};

/// Room for the log segments of all rounds, and for all else.
const DISK_BYTES: u64 = 320 << 20;
/// What is written stays on the disk, and takes the more of it the longer a test runs.
const ROUNDS_PER_DISK: usize = 2;
/// Each takes up to a minute when there are several.
const ROUNDS_OF_A_CLUSTER: u32 = 3;
const RESERVE_BYTES: u64 = 8 << 20;
const FLAGS: [&str; 2] = ["--self-metrics.interval=0s", "--ingester.disk-reserve-bytes=8MiB"];
/// Files that something else puts on the disk.
const OTHERS: [&str; 2] = ["logs-of-something-else", "dump-of-something-else"];

struct FullDisk {
    client: HttpClient,
    disk: SmallDisk,
    koios: Koios,
    load: Load,
    chance: Chance,
    _dir: tempfile::TempDir,
}

/// The disk, unless there can be none, which is told.
#[expect(
    clippy::print_stdout,
    reason = "a test that was skipped must not look like one that passed"
)]
fn small_disk(dir: &Path, bytes: u64) -> Option<SmallDisk> {
    SmallDisk::mount(&dir.join("disk"), bytes)
        .inspect_err(|e| println!("SKIPPED, NOTHING WAS TESTED: it takes root or user namespaces: {e:#}"))
        .ok()
}

#[tokio::test]
async fn i13_a_full_disk_is_said_and_loses_nothing() -> Result<()> {
    let mut chance = Chance::new(1)?;
    for first in (1..=chance.rounds).step_by(ROUNDS_PER_DISK) {
        let Some(mut full) = FullDisk::start(&mut chance).await? else {
            return Ok(());
        };
        let last = chance.rounds.min(first + ROUNDS_PER_DISK as u32 - 1);
        for round in first..=last {
            let result = full.round().await.with_context(|| format!("round {round}"));
            let end = full.koios.log_end()?;
            result.with_context(|| format!("the log ends: {end}"))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn i7_an_ingester_without_disk_space_fails_nothing() -> Result<()> {
    let mut chance = Chance::new(1)?;
    let dir = tempfile::tempdir()?;
    let name = INGESTERS[chance.random.index(INGESTERS.len())];
    let Some(disk) = small_disk(dir.path(), DISK_BYTES) else {
        return Ok(());
    };
    let disk = Arc::new(disk);
    let cluster = Cluster::start(Plan {
        env: vec![(
            "KOIOS_INGESTER_DISK_RESERVE_BYTES".to_owned(),
            RESERVE_BYTES.to_string(),
        )],
        small_disk: Some((name, Arc::clone(&disk))),
        ..Plan::default()
    })
    .await?;
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    let writer = Writer::new(&cluster.client, &push, "team-a", 20, now_ms() - 3 * 3_600_000);
    let writer = tokio::sync::Mutex::new(writer);
    writer.lock().await.push_acked(20).await?;
    let metric = |of: &'static str| cluster.nodes[name].metric(&cluster.client, of);
    let refusals = || metric("koios_ingester_pushes_refused_total");
    let applied = || metric("koios_ingester_samples_applied_total");
    for _ in 0..chance.rounds.min(ROUNDS_OF_A_CLUSTER) {
        let before = refusals().await?;
        disk.fill(OTHERS[0], chance.random.below(RESERVE_BYTES))?;
        // It looks at its disk once a second.
        pause(Duration::from_secs(1)).await;
        for _ in 0..10 {
            let mut writer = writer.lock().await;
            writer.push_acked(5).await?;
            writer.check(&ask).await?;
        }
        ensure!(
            refusals().await? > before,
            "{name} refused nothing: its disk is not full"
        );
        disk.free(OTHERS[0])?;
        eventually("it to take writes again", || async {
            let before = applied().await?;
            pause(Duration::from_secs(1)).await;
            writer.lock().await.push_acked(5).await?;
            ensure!(applied().await? > before, "{name} has taken none");
            Ok(())
        })
        .await?;
        writer.lock().await.check(&ask).await?;
        if chance.rounds > 1 {
            // Members compare twice a minute, and fetch what was missing twice.
            eventually("it to be repaired", || cluster.hold_the_same()).await?;
        }
    }
    Ok(())
}

impl FullDisk {
    async fn start(chance: &mut Chance) -> Result<Option<Self>> {
        let dir = tempfile::tempdir()?;
        let Some(disk) = small_disk(dir.path(), DISK_BYTES) else {
            return Ok(None);
        };
        let client = client();
        let mut koios = starting_all_in_one(dir.path(), &FLAGS, Some(&disk))?;
        koios.ready(&client).await?;
        Ok(Some(Self {
            load: Load::new(&client, &koios.http, &mut chance.random),
            chance: chance.split(),
            client,
            disk,
            koios,
            _dir: dir,
        }))
    }

    async fn round(&mut self) -> Result<()> {
        self.fill_by_writes().await.context("filled by writes")?;
        self.restart_if(50).await?;
        self.writes_again().await?;

        self.fill_by_others().await.context("filled by others")?;
        self.restart_if(100)
            .await
            .context("restarted without a byte free")?;
        // A start gives back what the log had reserved and not used; now there is none of that either.
        self.disk.fill(OTHERS[1], 0)?;
        self.start_without_a_byte_to_give_back().await?;
        self.writes_again().await
    }

    /// Koios itself uses what it may.
    async fn fill_by_writes(&mut self) -> Result<()> {
        // Long runs also have the log begin another segment first, which takes longer to write full.
        let most = if self.chance.rounds > 1 {
            56 << 20
        } else {
            24 << 20
        };
        let left = RESERVE_BYTES + (4 << 20) + self.chance.random.below(most);
        self.disk.fill(OTHERS[0], left)?;
        self.write_until_refused().await?;
        self.check().await?;
        // What would free space by itself fails for want of space, or does not; nothing is lost by it.
        self.flush().await?;
        self.write_until_refused().await?;
        self.check().await
    }

    /// Not even the reserve is left.
    async fn fill_by_others(&mut self) -> Result<()> {
        let disk = &self.disk;
        let filler = async {
            pause(self.chance.moment(Duration::from_secs(1))).await;
            disk.fill(OTHERS[1], 0)
        };
        let (addr, client) = (self.koios.http.clone(), &self.client);
        let ballast = &mut self.load.ballast;
        let heavy = async {
            while is_taken(&ballast.push(client, &addr).await?)? {}
            anyhow::Ok(())
        };
        futures::future::try_join(heavy, filler).await?;
        self.write_until_refused().await?;
        self.check().await?;
        self.flush().await?;
        self.disk.fill(OTHERS[1], 0)?;
        self.check().await
    }

    /// Both kinds of senders write until large requests are refused for want of space.
    #[expect(
        clippy::print_stdout,
        reason = "what was refused, and when, is what this is about"
    )]
    async fn write_until_refused(&mut self) -> Result<()> {
        let addr = self.koios.http.clone();
        let (mut large, mut small) = (0, 0);
        let refused = loop {
            let answer = self.load.ballast.push(&self.client, &addr).await?;
            if !is_taken(&answer)? {
                break answer.text();
            }
            large += 1;
        };
        for sender in &mut self.load.senders {
            // They may fit into what the log has reserved.
            for _ in 0..20 {
                small += u32::from(is_taken(&sender.writer.push().await?)?);
            }
        }
        let free = self.disk.free_bytes()? >> 10;
        println!(
            "{large} large writes, then refused: {}; {small} of 60 small ones; {free} KiB are free",
            refused.trim()
        );
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        let path = "/ingester/flush";
        let answer = self
            .client
            .send("POST", &self.koios.http, path, &[], Default::default())
            .await?;
        ensure!(
            answer.status < 300 || answer.status == 503,
            "flush: {}: {}",
            answer.status,
            answer.text()
        );
        pause(Duration::from_millis(500)).await;
        Ok(())
    }

    /// It runs, and answers everything it acknowledged.
    async fn check(&mut self) -> Result<()> {
        ensure!(self.koios.process.exit_code().is_none(), "it ended by itself");
        self.load.check(&self.koios.http).await?;
        Ok(())
    }

    /// In so many of a hundred cases it is killed and started while the disk is full.
    #[expect(
        clippy::print_stdout,
        reason = "a start that had space to begin with proves nothing"
    )]
    async fn restart_if(&mut self, of_hundred: u64) -> Result<()> {
        if self.chance.random.percent(of_hundred) {
            self.koios.process.kill();
            let before = self.disk.free_bytes()? >> 10;
            self.koios.process.restart()?;
            self.load
                .ask_until_ready(&mut self.koios)
                .await
                .context("a start with a full disk")?;
            self.check().await?;
            let free = self.disk.free_bytes()? >> 10;
            println!("started with {before} KiB free, which became {free}");
        }
        Ok(())
    }

    /// A start begins a segment of the log, which takes a page or two. Without that it ends and says why: it does not come up
    /// with less than it acknowledged, and it harms nothing.
    async fn start_without_a_byte_to_give_back(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.koios.process.kill();
            self.disk.fill(OTHERS[1], 0)?;
            self.koios.process.restart()?;
            match self.load.ask_until_ready(&mut self.koios).await {
                Ok(()) => self.check().await?,
                Err(e) => {
                    let code = self.koios.process.exit_code();
                    ensure!(code == Some(1), "{e:#}");
                    let end = self.koios.log_end()?;
                    let said = end.lines().last().unwrap_or_default();
                    ensure!(
                        said.contains("free disk space"),
                        "it ended without a reason: {end}"
                    );
                }
            }
        }
        self.disk.free(OTHERS[1])?;
        self.koios.process.restart()?;
        self.load.ask_until_ready(&mut self.koios).await?;
        self.check().await
    }

    /// Space is freed: writes are taken again, now and after a restart.
    async fn writes_again(&mut self) -> Result<()> {
        for name in OTHERS {
            // One of them may not be there.
            let _ = self.disk.free(name);
        }
        let addr = self.koios.http.clone();
        for sender in &mut self.load.senders {
            let writer = &mut sender.writer;
            let mut answer = writer.push_again().await?;
            for _ in 0..50 {
                if is_taken(&answer)? {
                    break;
                }
                pause(Duration::from_millis(100)).await;
                answer = writer.push_again().await?;
            }
            ensure!(answer.status < 300, "space is free, but: {}", answer.text());
        }
        self.check().await?;
        self.koios.process.kill();
        self.koios.process.restart()?;
        self.load.ask_until_ready(&mut self.koios).await?;
        ensure!(addr == self.koios.http, "another address");
        self.check().await
    }
}

/// Whether a write was taken; an error when it was refused otherwise than for want of space.
fn is_taken(answer: &Answer) -> Result<bool> {
    match answer.status {
        200..300 => Ok(true),
        503 if answer.text().contains("disk") => Ok(false),
        status => bail!("a write was answered {status}: {}", answer.text()),
    }
}
