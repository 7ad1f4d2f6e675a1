//! Limits of tenants change in the file while the process runs: at SIGHUP they hold, and a file that cannot be read changes
//! nothing.

mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use koios_model::{Labels, Sample};
use koios_testkit::http::{Answer, HttpClient};
use koios_testkit::{query, remote_write};
use rustix::process::Signal;
use support::{Cluster, Koios, Plan, all_in_one, client, eventually, now_ms};

const HOUR: i64 = 3_600_000;
/// More than a minute's worth of the strict rate.
const MANY_SAMPLES: i64 = 5_000;

const STRICT: &str = "
overrides:
  team-labels:
    max-label-value-bytes: 50
    max-label-set-bytes: 100
  team-window:
    out-of-order-time-window: 1h
  team-series:
    max-series: 3
  team-rate:
    ingestion-rate: 10
    ingestion-burst: 10
";

/// What cannot be read, and what is said of it.
const BROKEN: [(&str, &str); 4] = [
    (
        "overrides:\n  team-series:\n    max-serie: 5\n",
        r#"koios.yaml:3: unknown key "max-serie" (did you mean "max-series"?)"#,
    ),
    (
        "overrides:\n  team-rate:\n    ingestion-rate: fast\n",
        r#"koios.yaml:3: invalid value "fast" for limits.ingestion-rate"#,
    ),
    (
        "overrides:\n  team-labels:\n    max-label-set-bytes: 100\n",
        "overrides.team-labels: limits.max-label-set-bytes is 100, must be at least limits.max-label-value-bytes (65536)",
    ),
    ("limits: [\n", "koios.yaml:"),
];

fn write_config(dir: &Path, text: &str) -> Result<PathBuf> {
    let path = dir.join("koios.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Where to send to, as whom limits know.
struct Sender<'a> {
    client: &'a HttpClient,
    addr: &'a str,
}

impl Sender<'_> {
    async fn push(&self, tenant: &str, labels: &[(&str, &str)], samples: Vec<Sample>) -> Result<Answer> {
        let batch = [(Labels::from_pairs(labels.iter().copied()), samples)];
        remote_write::push(self.client, self.addr, tenant, &batch).await
    }

    /// A series whose label is long: the same each time, as what is known is not looked at again.
    async fn long_label(&self, tenant: &str) -> Result<Answer> {
        let labels = [("__name__", "long_total"), ("path", &*"x".repeat(80))];
        self.push(tenant, &labels, vec![now()]).await
    }

    async fn three_hours_old(&self, tenant: &str) -> Result<Answer> {
        let old = Sample {
            t: now_ms() - 3 * HOUR,
            v: 1.0,
        };
        self.push(tenant, &[("__name__", "late_total")], vec![old]).await
    }

    /// Series that were not there before.
    async fn five_series(&self, tenant: &str, round: &str) -> Result<Answer> {
        let series = (0..5).map(|i| {
            let i = i.to_string();
            let labels = [("__name__", "many_total"), ("i", &*i), ("round", round)];
            (Labels::from_pairs(labels), vec![now()])
        });
        remote_write::push(self.client, self.addr, tenant, &series.collect::<Vec<_>>()).await
    }

    async fn many_samples(&self, tenant: &str) -> Result<Answer> {
        let end = now_ms();
        let samples = (0..MANY_SAMPLES).map(|i| Sample {
            t: end - (MANY_SAMPLES - i),
            v: 1.0,
        });
        self.push(tenant, &[("__name__", "fast_total")], samples.collect())
            .await
    }

    /// That nothing is refused of tenants whom no limit hinders.
    async fn all_is_taken(&self, tenants: [&str; 4], round: &str) -> Result<()> {
        let [labels, window, series, rate] = tenants;
        for (what, answer) in [
            ("a long label", self.long_label(labels).await?),
            ("an old sample", self.three_hours_old(window).await?),
            ("new series", self.five_series(series, round).await?),
            ("many samples", self.many_samples(rate).await?),
            ("many samples again", self.many_samples(rate).await?),
        ] {
            ensure!(
                answer.status == 204,
                "{what}: {} {}",
                answer.status,
                answer.text()
            );
        }
        Ok(())
    }

    /// That each of the strict limits refuses what is beyond it, and that what they do not speak of is taken.
    async fn strict_limits_hold(&self, round: &str) -> Result<()> {
        // The first takes what may come at once.
        self.many_samples("team-rate").await?;
        for (answer, code, words) in [
            (
                self.long_label("team-labels").await?,
                400,
                "label value too long (actual: 80, limit: 50",
            ),
            (
                self.three_hours_old("team-window").await?,
                400,
                "too old sample (window: 1h)",
            ),
            (
                self.five_series("team-series", round).await?,
                400,
                "series limit 3 exceeded (now ",
            ),
            (
                self.many_samples("team-rate").await?,
                429,
                "ingestion rate limit (10/s) exceeded by a request of 5000 samples (burst: 10)",
            ),
        ] {
            let text = answer.text();
            ensure!(
                answer.status == code && text.contains(words),
                "{words:?}: {} {text}",
                answer.status
            );
        }
        let others = ["team-window", "team-labels", "team-window", "team-window"];
        self.all_is_taken(others, round).await
    }
}

fn now() -> Sample {
    Sample { t: now_ms(), v: 1.0 }
}

const TEAMS: [&str; 4] = ["team-labels", "team-window", "team-series", "team-rate"];
const TAKEN_OVER: &str = "limits and overrides are taken over";

/// How often something was logged.
fn logged(koios: &Koios, words: &str) -> usize {
    koios
        .process
        .log()
        .lines()
        .filter(|line| line.contains(words))
        .count()
}

/// Has the process read its file again, and waits until it has.
async fn taken_over(koios: &Koios) -> Result<()> {
    let before = logged(koios, TAKEN_OVER);
    koios.process.signal(Signal::HUP)?;
    eventually("the limits to be taken over", || async {
        let times = logged(koios, TAKEN_OVER);
        ensure!(times > before, "logged {times} times: {}", koios.process.log());
        Ok(())
    })
    .await
}

/// The line of the refusal of a file.
async fn refused(koios: &Koios, config: &Path, text: &str) -> Result<String> {
    const REFUSED: &str = "the configuration cannot be read again: everything stays as it is";
    let before = logged(koios, REFUSED);
    std::fs::write(config, text)?;
    koios.process.signal(Signal::HUP)?;
    eventually("the refusal", || async {
        let log = koios.process.log();
        let line = log.lines().filter(|line| line.contains(REFUSED)).nth(before);
        line.map(str::to_owned).context("no refusal")
    })
    .await
}

#[tokio::test]
async fn limits_are_read_again_and_what_cannot_be_read_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = write_config(dir.path(), "limits:\n  out-of-order-time-window: 12h\n")?;
    let flag = format!("--config={}", config.display());
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s", &flag]).await?;
    let client = client();
    let sender = Sender {
        client: &client,
        addr: &koios.http,
    };
    sender.all_is_taken(TEAMS, "lax").await?;

    write_config(dir.path(), STRICT)?;
    taken_over(&koios).await?;
    sender.strict_limits_hold("strict").await?;

    for (i, (broken, wanted)) in BROKEN.into_iter().enumerate() {
        let line = refused(&koios, &config, broken).await?;
        ensure!(
            line.contains("ERROR") && line.replace("\\\"", "\"").contains(wanted),
            "{broken:?}: {line}"
        );
        sender.strict_limits_hold(&format!("broken {i}")).await?;
    }
    ensure!(logged(&koios, TAKEN_OVER) == 1);

    write_config(dir.path(), "limits:\n  out-of-order-time-window: 6h\n")?;
    taken_over(&koios).await?;
    sender.all_is_taken(TEAMS, "lax again").await?;
    let late = query::instant(&client, &koios.http, "team-window", "late_total[6h]", now_ms()).await?;
    let late: usize = late.values().map(Vec::len).sum();
    // Once in the beginning, and once now: what was refused is not there.
    ensure!(late == 2, "{late} old samples are found");
    koios.log_end().map(drop)
}

#[tokio::test]
async fn a_distributor_reads_its_limits_again_whatever_the_other_processes_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = write_config(dir.path(), "limits:\n  out-of-order-time-window: 6h\n")?;
    let plan = Plan {
        flags: vec![format!("--config={}", config.display())],
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await?;
    let (client, addr) = (client(), cluster.push_addr());
    let sender = Sender {
        client: &client,
        addr: &addr,
    };
    sender.all_is_taken(TEAMS, "lax").await?;
    write_config(dir.path(), STRICT)?;
    taken_over(cluster.node("distributor")).await?;
    sender.strict_limits_hold("strict").await
}
