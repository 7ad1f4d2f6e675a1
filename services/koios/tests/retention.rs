//! Rules of retention: what is too old by them is gone for queries, then from the bucket; they are read again while the process runs.

mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use koios_model::{Labels, Sample};
use koios_testkit::http::HttpClient;
use koios_testkit::{query, remote_write};
use rustix::process::Signal;
use support::{Cluster, Koios, Plan, all_in_one, client, eventually, now_ms};

const TENANT: &str = "team-a";
/// A tenant whose samples go by blocks, without summaries that they would wait for, and soon: what is carried out follows the clock in
/// steps of a hundredth of this.
const BY_BLOCKS: &str = "team-c";
const HOUR: i64 = 3_600_000;
const SAMPLES: usize = 100;

/// Samples of a metric, one a second up to a time.
async fn push(client: &HttpClient, addr: &str, tenant: &str, metric: &str, end_ms: i64) -> Result<()> {
    let samples = (0..SAMPLES as i64).rev().map(|i| Sample {
        t: end_ms - i * 1000,
        v: i as f64,
    });
    let batch = [(Labels::from_pairs([("__name__", metric)]), samples.collect())];
    let answer = remote_write::push(client, addr, tenant, &batch).await?;
    ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
    Ok(())
}

/// A time one and a half to three and a half hours ago whose samples share no block of two hours with those of now: a block goes through
/// compaction for a rule once all that the rule lets go in it is too old.
fn in_an_older_block(now: i64) -> i64 {
    let first_of_now = now - SAMPLES as i64 * 1000;
    first_of_now.div_euclid(2 * HOUR) * 2 * HOUR - 3 * HOUR / 2
}

async fn count(client: &HttpClient, addr: &str, tenant: &str, metric: &str) -> Result<usize> {
    let found = query::instant(client, addr, tenant, &format!("{metric}[6h]"), now_ms()).await?;
    Ok(found.values().map(Vec::len).sum())
}

/// What a lookup of labels answers.
async fn looked_up(client: &HttpClient, addr: &str, path: &str) -> Result<String> {
    let path = format!("/api/v1/{path}");
    let tenant = [("X-Scope-OrgID", TENANT)];
    let answer = client.send("GET", addr, &path, &tenant, Bytes::new()).await?;
    ensure!(answer.status == 200, "{path}: {}", answer.text());
    Ok(answer.text())
}

async fn flush(client: &HttpClient, addr: &str) -> Result<()> {
    let answer = client
        .send("POST", addr, "/ingester/flush?wait=true", &[], Bytes::new())
        .await?;
    ensure!(answer.status < 300, "flush: {}", answer.text());
    Ok(())
}

/// A configuration with rules of the tenant, each a retention and a selector.
fn write_config(dir: &Path, rules: &[(&str, &str)]) -> Result<PathBuf> {
    let mut text = format!("overrides:\n  {TENANT}:\n    retention: 5h\n    retention-rules:\n");
    for (retention, selector) in rules {
        text.push_str(&format!(
            "      - match: '{selector}'\n        retention: {retention}\n"
        ));
    }
    text.push_str(&format!(
        "  {BY_BLOCKS}:\n    retention: 10m\n    downsample-after-5m: 0s\n    downsample-after-1h: 0s\n"
    ));
    let path = dir.join("koios.yaml");
    std::fs::write(&path, text)?;
    Ok(path)
}

const FLAGS: [&str; 6] = [
    "--self-metrics.interval=0s",
    "--blocks.manifest-max-age=1s",
    "--store.compaction-interval=200ms",
    "--store.deletion-delay=1s",
    "--store.undelete-window=3s",
    "--limits.out-of-order-time-window=12h",
];

async fn started(dir: &Path, config: &Path) -> Result<Koios> {
    let config = format!("--config={}", config.display());
    all_in_one(dir, &[&FLAGS[..], &[&config]].concat()).await
}

/// Whether any file of the tenant's blocks has some bytes.
fn blocks_have(koios: &Koios, wanted: &str) -> Result<bool> {
    let blocks = koios.data_dir.join("bucket").join(TENANT).join("blocks");
    for block in std::fs::read_dir(blocks)? {
        // It may go while it is looked at.
        let Ok(parts) = std::fs::read_dir(block?.path()) else {
            continue;
        };
        for part in parts {
            let bytes = std::fs::read(part?.path()).unwrap_or_default();
            if bytes.windows(wanted.len()).any(|w| w == wanted.as_bytes()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn shown(koios: &Koios) -> Result<String> {
    let url = format!("file://{}", koios.data_dir.join("bucket").display());
    let output = std::process::Command::new(support::program())
        .args([
            "ctl",
            "retention",
            "show",
            "--bucket-url",
            &url,
            "--tenant",
            TENANT,
        ])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn i10_what_a_rule_lets_go_is_gone_from_answers_and_then_from_the_bucket() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = write_config(
        dir.path(),
        &[("1h", "{__name__=~\"debug_.*\"}"), ("0", "slo_total")],
    )?;
    let mut koios = started(dir.path(), &config).await?;
    let client = client();
    let now = now_ms();
    for metric in ["debug_old_total", "debug_total", "other_total"] {
        push(&client, &koios.http, TENANT, metric, in_an_older_block(now)).await?;
    }
    for metric in ["debug_total", "other_total"] {
        push(&client, &koios.http, TENANT, metric, now).await?;
    }
    push(&client, &koios.http, "team-b", "debug_total", now - 2 * HOUR).await?;
    push(&client, &koios.http, BY_BLOCKS, "gone_total", now - 8 * HOUR).await?;
    flush(&client, &koios.http).await?;
    // Also of what heads still have.
    for (metric, left) in [
        ("debug_old_total", 0),
        ("debug_total", SAMPLES),
        ("other_total", 2 * SAMPLES),
    ] {
        eventually(metric, || async {
            let found = count(&client, &koios.http, TENANT, metric).await?;
            ensure!(found == left, "{metric}: {found} samples");
            Ok(())
        })
        .await?;
    }
    ensure!(count(&client, &koios.http, "team-b", "debug_total").await? == SAMPLES);
    for path in [
        "label/__name__/values",
        "series?match[]=debug_total&match[]=debug_old_total",
    ] {
        eventually("its name to go, which heads still have", || async {
            let found = looked_up(&client, &koios.http, path).await?;
            let old = found.contains("\"debug_old_total\"");
            ensure!(found.contains("\"debug_total\"") && !old, "{path}: {found}");
            Ok(())
        })
        .await?;
    }
    eventually("its bytes to go", || async {
        ensure!(!blocks_have(&koios, "debug_old_total")?, "the bucket has them");
        Ok(())
    })
    .await?;
    eventually("a block to go as a whole, and its audit", || async {
        let log = koios.process.log();
        let is_it = |line: &&str| line.contains("koios::audit") && line.contains("retention_blocks");
        let line = log.lines().find(is_it).context("no audit of retention_blocks")?;
        let samples = SAMPLES.to_string();
        ensure!(line.contains(BY_BLOCKS) && line.contains(&samples), "{line}");
        Ok(())
    })
    .await?;
    // A block may be replaced while it is looked at.
    eventually("the bucket's bytes to be found", || async {
        ensure!(
            blocks_have(&koios, "other_total")?,
            "the bucket's bytes can be searched"
        );
        Ok(())
    })
    .await?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client).await?;
    for (metric, left) in [
        ("debug_old_total", 0),
        ("debug_total", SAMPLES),
        ("other_total", 2 * SAMPLES),
    ] {
        let found = count(&client, &koios.http, TENANT, metric).await?;
        ensure!(found == left, "{metric} after a kill: {found} samples");
    }
    let text = shown(&koios)?;
    ensure!(
        text.contains("tenant team-a: by its overrides, since")
            && text.contains("  {__name__=~\"debug_.*\"}: 1h, nothing before ")
            && text.contains("  {__name__=\"slo_total\"}: for ever\n")
            && text.contains("  all other samples: 5h"),
        "{text}"
    );
    let log = koios.process.log();
    for action in ["retention_changed", "retention_series"] {
        ensure!(
            log.contains("koios::audit") && log.contains(action),
            "no audit of {action}"
        );
    }
    let failures = koios.metric(&client, "koios_compaction_failures_total").await?;
    ensure!(failures == 0.0, "{failures} failures");
    koios.log_end().map(drop)
}

#[tokio::test]
async fn rules_are_read_again_and_what_cannot_be_read_changes_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = write_config(dir.path(), &[("1h", "one_total")])?;
    let koios = started(dir.path(), &config).await?;
    let client = client();
    let now = now_ms();
    for metric in ["one_total", "two_total"] {
        push(&client, &koios.http, TENANT, metric, now - 2 * HOUR).await?;
    }
    flush(&client, &koios.http).await?;
    let left = |one: usize, two: usize| {
        let (client, http) = (&client, &koios.http);
        move || async move {
            let found = (
                count(client, http, TENANT, "one_total").await?,
                count(client, http, TENANT, "two_total").await?,
            );
            ensure!(found == (one, two), "{found:?}");
            Ok(())
        }
    };
    eventually("the first rule", left(0, SAMPLES)).await?;
    std::fs::write(
        &config,
        "overrides:\n  team-a:\n    retention-rules: [{match: two_total}]\n",
    )?;
    koios.process.signal(Signal::HUP)?;
    eventually("the refusal", || async {
        let log = koios.process.log();
        let refusal = log.lines().find(|l| l.contains("cannot be read again"));
        let refusal = refusal.context("no refusal")?;
        ensure!(refusal.contains("a rule lacks the key"), "{refusal}");
        Ok(())
    })
    .await?;
    left(0, SAMPLES)().await?;
    write_config(dir.path(), &[("1h", "two_total")])?;
    koios.process.signal(Signal::HUP)?;
    eventually("the other rule", || async {
        let found = count(&client, &koios.http, TENANT, "two_total").await?;
        ensure!(found == 0, "{found} samples");
        Ok(())
    })
    .await?;
    koios.log_end().map(drop)
}

#[tokio::test]
async fn i10_rules_hold_whichever_process_answers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = write_config(dir.path(), &[("1h", "debug_total")])?;
    let plan = Plan {
        flags: vec![format!("--config={}", config.display())],
        env: vec![
            ("KOIOS_BLOCKS_MANIFEST_MAX_AGE".to_owned(), "1s".to_owned()),
            ("KOIOS_STORE_COMPACTION_INTERVAL".to_owned(), "200ms".to_owned()),
            ("KOIOS_STORE_UNDELETE_WINDOW".to_owned(), "1s".to_owned()),
        ],
        ..Plan::default()
    };
    let mut cluster = Cluster::start(plan).await?;
    let (client, now) = (client(), now_ms());
    let (to, from) = (cluster.push_addr(), cluster.query_addr());
    for metric in ["debug_total", "kept_total"] {
        push(&client, &to, TENANT, metric, now - 2 * HOUR).await?;
        push(&client, &to, TENANT, metric, now).await?;
    }
    cluster.flush().await?;
    let hidden = || async {
        let found = count(&client, &from, TENANT, "debug_total").await?;
        ensure!(found == SAMPLES, "{found} samples");
        Ok(())
    };
    eventually("the rule", hidden).await?;
    ensure!(count(&client, &from, TENANT, "kept_total").await? == 2 * SAMPLES);
    // Nobody compacts, and another ingester answers: what is hidden is told by the manifest.
    cluster.node("store").process.kill();
    cluster.node("store").process.restart()?;
    cluster.node(support::INGESTERS[0]).process.kill();
    eventually("a read without the first zone", || async {
        let found = count(&client, &from, TENANT, "kept_total").await?;
        ensure!(found == 2 * SAMPLES, "{found} samples");
        Ok(())
    })
    .await?;
    hidden().await?;
    Ok(())
}
