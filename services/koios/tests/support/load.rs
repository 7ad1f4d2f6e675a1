//! Senders that work until the process dies under them, and know afterwards what it must return.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::{try_join, try_join_all};
use koios_model::{Labels, Sample};
use koios_testkit::http::{Answer, HttpClient};
use koios_testkit::process::pause;
use koios_testkit::query;
use koios_testkit::random::Random;
use koios_testkit::remote_write;

use super::{Koios, Writer, now_ms};

/// Tenants of the small, quick senders.
const TENANTS: [&str; 3] = ["team-a", "team-b", "team-c"];
/// Tenant of the one with heavy labels.
const BALLAST: &str = "ballast";
/// Samples begin so long ago and have a second each: room for thousands of pushes that are not of the future.
const AGO_MS: i64 = 3 * 3_600_000;

/// A sender of small requests, which reads back now and then.
pub struct Sender {
    pub writer: Writer,
    random: Random,
    unanswered: bool,
}

impl Sender {
    /// Sends, and reads what it sent, until the process is killed. Any other answer than success is an error.
    async fn until(&mut self, killed: &Cell<bool>, addr: &str) -> Result<()> {
        loop {
            let again = self.unanswered && self.random.percent(50);
            self.unanswered = true;
            let pushed = match again {
                true => self.writer.push_again().await,
                false => self.writer.push().await,
            };
            match pushed {
                Err(_) if killed.get() => return Ok(()),
                pushed => succeeded(&pushed?)?,
            }
            self.unanswered = false;
            if self.random.percent(3) {
                // A busy machine may refuse one.
                let mut read = self.reads_right(addr).await?;
                for _ in 0..4 {
                    if read || killed.get() {
                        break;
                    }
                    pause(Duration::from_millis(200)).await;
                    read = self.reads_right(addr).await?;
                }
                ensure!(read || killed.get(), "what was acknowledged cannot be read");
            }
        }
    }

    /// Whether everything could be read; an error if what was read is wrong, or is refused otherwise than for now.
    async fn reads_right(&mut self, addr: &str) -> Result<bool> {
        match self.writer.read(addr).await {
            Ok(got) => {
                self.writer.oracle.check(&got)?;
                // One process shows what its disk has.
                self.writer.oracle.read(&got);
                Ok(true)
            }
            Err(e) => {
                let told = format!("{e:#}");
                ensure!(
                    !told.starts_with("status ") || told.starts_with("status 503"),
                    "{told}"
                );
                Ok(false)
            }
        }
    }
}

/// Series whose labels hardly compress: they fill logs and disks with few requests.
pub struct Ballast {
    random: Random,
    sent: u64,
    acknowledged: BTreeSet<u64>,
}

impl Ballast {
    /// Bytes of labels in a push, about.
    pub const PUSH_BYTES: u64 = 4 * 3 * LABEL_BYTES as u64;

    /// Nothing sent yet.
    pub fn new(random: &mut Random) -> Self {
        Self {
            random: Random::new(random.bits()),
            sent: 0,
            acknowledged: BTreeSet::new(),
        }
    }

    fn label(&mut self) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut text = String::with_capacity(LABEL_BYTES);
        while text.len() < LABEL_BYTES {
            let bits = self.random.bits();
            text.extend((0..10).map(|i| char::from(LETTERS[(bits >> (i * 6)) as usize & 63])));
        }
        text
    }

    /// Four new series.
    pub async fn push(&mut self, client: &HttpClient, addr: &str) -> Result<Answer> {
        let numbers = self.sent..self.sent + 4;
        self.sent = numbers.end;
        let mut series = Vec::new();
        for n in numbers.clone() {
            let labels = [
                ("__name__", "ballast_total".to_owned()),
                ("n", n.to_string()),
                ("x", self.label()),
                ("y", self.label()),
                ("z", self.label()),
            ];
            let labels = Labels::from_pairs(labels.iter().map(|(name, value)| (*name, value.as_str())));
            series.push((
                labels,
                vec![Sample {
                    t: now_ms(),
                    v: n as f64,
                }],
            ));
        }
        let answer = remote_write::push(client, addr, BALLAST, &series).await?;
        if answer.status < 300 {
            self.acknowledged.extend(numbers);
        }
        Ok(answer)
    }

    /// All that was acknowledged is there, with its value, and nothing that was not sent.
    pub async fn check(&self, client: &HttpClient, addr: &str) -> Result<()> {
        let expr = "sum by (n) (last_over_time(ballast_total[1h]))";
        let got = query::instant(client, addr, BALLAST, expr, now_ms()).await?;
        let mut missing = self.acknowledged.clone();
        for (labels, samples) in got {
            let n: u64 = labels.get("n").context("label n")?.parse()?;
            ensure!(n < self.sent, "ballast {n} was never sent");
            ensure!(
                samples.iter().all(|s| s.v == n as f64),
                "ballast {n} is {samples:?}"
            );
            missing.remove(&n);
        }
        ensure!(missing.is_empty(), "acknowledged ballast is missing: {missing:?}");
        Ok(())
    }
}

const LABEL_BYTES: usize = 60_000;

/// All senders of one all-in-one process.
pub struct Load {
    client: HttpClient,
    pub senders: Vec<Sender>,
    pub ballast: Ballast,
}

impl Load {
    /// For the process at `addr`; nothing is sent yet.
    pub fn new(client: &HttpClient, addr: &str, random: &mut Random) -> Self {
        let sender = |tenant: &&str| Sender {
            writer: Writer::new(client, addr, tenant, 10, now_ms() - AGO_MS),
            random: Random::new(random.bits()),
            unanswered: false,
        };
        Self {
            client: client.clone(),
            senders: TENANTS.iter().map(sender).collect(),
            ballast: Ballast::new(random),
        }
    }

    /// Sends until the process is killed, after `delay`. `flush` has blocks cut and uploaded at that time.
    pub async fn kill_under_load(&mut self, koios: &mut Koios, delay: Duration, flush: bool) -> Result<()> {
        let addr = koios.http.clone();
        let (client, ballast, killed) = (&self.client, &mut self.ballast, &Cell::new(false));
        let heavy = async {
            loop {
                match ballast.push(client, &addr).await {
                    Err(_) if killed.get() => return Ok(()),
                    pushed => succeeded(&pushed?)?,
                }
                // Others shall get through too.
                pause(Duration::from_millis(100)).await;
            }
        };
        let killer = async {
            if flush {
                pause(delay / 2).await;
                client
                    .send("POST", &addr, "/ingester/flush", &[], Default::default())
                    .await?;
                pause(delay / 2).await;
            } else {
                pause(delay).await;
            }
            ensure!(koios.process.exit_code().is_none(), "it ended by itself");
            killed.set(true);
            koios.process.kill();
            Ok(())
        };
        let small = try_join_all(self.senders.iter_mut().map(|s| s.until(killed, &addr)));
        try_join(small, try_join(heavy, killer)).await?;
        Ok(())
    }

    /// Has everything cut into blocks and uploaded.
    pub async fn flush(&self, addr: &str) -> Result<()> {
        let path = "/ingester/flush?wait=true";
        succeeded(
            &self
                .client
                .send("POST", addr, path, &[], Default::default())
                .await?,
        )
    }

    /// Asks as early as it can after a start: what is answered is right, or nothing is. Ends when it is ready.
    pub async fn ask_until_ready(&mut self, koios: &mut Koios) -> Result<()> {
        let addr = koios.http.clone();
        let client = self.client.clone();
        let sender = &mut self.senders[0];
        let asking = async {
            loop {
                sender.reads_right(&addr).await?;
                pause(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            asked = asking => asked,
            ready = koios.ready(&client) => ready,
        }
    }

    /// The same as [`Self::check`], and tells a reader of the test's output what there was to check.
    #[expect(
        clippy::print_stdout,
        reason = "a test that checks little shall not look like one that checks much"
    )]
    pub async fn check_and_tell(&mut self, koios: &Koios) -> Result<()> {
        let samples = self.check(&koios.http).await?;
        let log = bytes_in(&koios.data_dir.join("wal"))? >> 20;
        let mut blocks = 0;
        for tenant in TENANTS.iter().chain(&[BALLAST]) {
            let listed = std::fs::read_dir(koios.data_dir.join("bucket").join(tenant).join("blocks"));
            // A tenant without blocks has no folder for them.
            blocks += listed.map_or(0, Iterator::count);
        }
        println!("{samples} samples are there; {log} MiB of log, {blocks} blocks");
        Ok(())
    }

    /// Reads everything back and judges it.
    pub async fn check(&mut self, addr: &str) -> Result<u64> {
        let mut acknowledged = 0;
        for sender in &mut self.senders {
            // The oracle remembers what was read, too.
            match sender.reads_right(addr).await {
                Ok(true) => acknowledged += sender.writer.oracle.acknowledged_count(),
                Ok(false) => bail!(
                    "{:#}",
                    sender
                        .writer
                        .read(addr)
                        .await
                        .err()
                        .context("refused only once")?
                ),
                Err(e) => return Err(e),
            }
        }
        self.ballast.check(&self.client, addr).await?;
        Ok(acknowledged + self.ballast.acknowledged.len() as u64)
    }
}

/// Bytes of the files in a folder.
fn bytes_in(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

fn succeeded(answer: &Answer) -> Result<()> {
    ensure!(answer.status < 300, "push: {}: {}", answer.status, answer.text());
    Ok(())
}
