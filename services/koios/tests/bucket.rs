//! Blocks in a real S3 server's bucket: its death, and readers that are not ours.

mod support;

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join3;
use koios_testkit::moto::Moto;
use koios_testkit::process::pause;
use koios_testkit::query;
use support::chance::Chance;
use support::faults::under_load;
use support::{Cluster, Plan, Writer, all_in_one, eventually, now_ms};

/// Each is up for seconds, and down for seconds.
const DEATHS: u32 = 3;
const SERIES: u32 = 5;
/// Where the samples begin, before the time of the test: those of blocks are older than what heads keep.
const RECENT_S: i64 = 3_600;
const OLD_S: i64 = 5 * 3_600;

/// What the load has done so far.
#[derive(Default)]
struct Seen {
    /// Rounds of writes that were acknowledged, and of queries answered by heads.
    of_heads: Cell<u32>,
    /// Queries answered by blocks.
    of_blocks: Cell<u32>,
    /// Whether queries of blocks may be refused.
    away: Cell<bool>,
}

/// A cluster that cuts small blocks, and merges them as soon as there are two of a window.
async fn busy_cluster_over(moto: &Moto) -> Result<Cluster> {
    // Not all services have the flags.
    let settings = [
        ("KOIOS_BLOCKS_RANGE", "1m"),
        ("KOIOS_STORE_COMPACTION_DELAY", "0s"),
        ("KOIOS_STORE_COMPACTION_INTERVAL", "200ms"),
        ("KOIOS_STORE_DELETION_DELAY", "20s"),
        // Shorter than the server is away: uploads and merges fail, and begin anew.
        ("KOIOS_STORAGE_TIMEOUT", "3s"),
        ("KOIOS_STORAGE_REQUEST_TIMEOUT", "3s"),
        ("KOIOS_STORAGE_BACKOFF_MAX", "1s"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Cluster::start(Plan {
        bucket: Some(moto.url("cluster")),
        env: moto.env().into_iter().chain(settings).collect(),
        ..Plan::default()
    })
    .await
}

/// Writes what heads keep, and reads it; all of it succeeds.
async fn use_heads(writer: &mut Writer, ask: &str, seen: &Seen) -> Result<()> {
    loop {
        writer.push_acked(5).await?;
        writer.check(ask).await?;
        seen.of_heads.set(seen.of_heads.get() + 1);
        pause(Duration::from_millis(50)).await;
    }
}

/// Writes what only blocks keep; writes succeed, and what is read is right, or refused while the bucket is away.
async fn use_blocks(writer: &mut Writer, ask: &str, seen: &Seen) -> Result<()> {
    let mut refused = 0;
    loop {
        writer.push_acked(5).await?;
        match writer.read(ask).await {
            Ok(got) => {
                writer.oracle.check(&got)?;
                seen.of_blocks.set(seen.of_blocks.get() + 1);
                refused = 0;
            }
            Err(e) => {
                let told = format!("{e:#}");
                refused += 1;
                // A busy machine may refuse some.
                let for_now = told.starts_with("status 503") && (seen.away.get() || refused < 5);
                ensure!(for_now, "{told}");
            }
        }
        pause(Duration::from_millis(50)).await;
    }
}

/// Has everything cut and uploaded again and again, without waiting for it.
async fn keep_flushing(cluster: &Cluster) -> Result<()> {
    loop {
        for name in support::INGESTERS {
            let http = &cluster.nodes[name].http;
            let flush = cluster
                .client
                .send("POST", http, "/ingester/flush", &[], Default::default());
            let answer = flush.await?;
            ensure!(answer.status < 300, "{name}: {}", answer.text());
        }
        pause(Duration::from_millis(300)).await;
    }
}

/// Cuts that are listed, and merges.
async fn uploads(cluster: &Cluster) -> Result<[f64; 2]> {
    let metric = |node: &'static str, name| cluster.nodes[node].metric(&cluster.client, name);
    let mut cuts = 0.0;
    for name in support::INGESTERS {
        cuts += metric(name, "koios_ingester_cuts_listed_total").await?;
    }
    Ok([cuts, metric("store", "koios_compaction_merges_total").await?])
}

/// Waits until more was cut, merged and read than now.
async fn until_all_goes_on(cluster: &Cluster, seen: &Seen) -> Result<()> {
    let (before, read) = (uploads(cluster).await?, seen.of_blocks.get());
    eventually("uploads, merges and queries to go on", || async {
        let now = uploads(cluster).await?;
        let read = seen.of_blocks.get() - read;
        ensure!(
            now[0] > before[0] && now[1] > before[1] && read > 0,
            "cuts and merges {before:?}, now {now:?}; {read} queries"
        );
        Ok(())
    })
    .await
}

/// Cuts and merges that failed.
async fn failures(cluster: &Cluster) -> Result<f64> {
    let mut failures = 0.0;
    for koios in cluster.nodes.values() {
        for name in [
            "koios_ingester_cut_failures_total",
            "koios_compaction_failures_total",
        ] {
            failures += koios.metric(&cluster.client, name).await?;
        }
    }
    Ok(failures)
}

/// Has the server hang, die and return while all goes on.
async fn deaths(moto: &mut Moto, cluster: &Cluster, chance: &mut Chance, seen: &Seen) -> Result<()> {
    until_all_goes_on(cluster, seen).await?;
    for death in 1..=chance.rounds {
        pause(chance.moment(Duration::from_secs(1))).await;
        seen.away.set(true);
        // What is sent from here on is on its way when connections break.
        moto.hang()?;
        pause(Duration::from_millis(500)).await;
        moto.kill();
        let used = seen.of_heads.get();
        pause(Duration::from_secs(4) + chance.moment(Duration::from_secs(1))).await;
        let used = seen.of_heads.get() - used;
        // The first may have been on its way before.
        ensure!(used >= 2, "death {death}: heads were used {used} times");
        moto.restart().await?;
        until_all_goes_on(cluster, seen)
            .await
            .with_context(|| format!("death {death}"))?;
        seen.away.set(false);
    }
    Ok(())
}

/// How many samples a tenant's blocks hold.
fn samples_in_blocks(url: &str, env: &[(String, String)], tenant: &str) -> Result<u64> {
    let list = support::ctl_of_bucket(&["blocks", "list", "--json", "--tenant", tenant], url, env)?;
    let mut samples = 0;
    for line in list.lines() {
        let block: serde_json::Value = serde_json::from_str(line)?;
        if block["resolution_ms"] == 0 {
            samples += block["samples"].as_u64().context("samples")?;
        }
    }
    Ok(samples)
}

#[tokio::test]
async fn i9_the_bucket_s_server_is_killed_under_load_and_all_goes_on_by_itself() -> Result<()> {
    let mut chance = Chance::new(DEATHS)?;
    let dir = tempfile::tempdir()?;
    let mut moto = Moto::start(dir.path()).await?;
    let mut cluster = busy_cluster_over(&moto).await?;
    let (push, ask) = (cluster.push_addr(), cluster.query_addr());
    let writer = |tenant, ago_s| Writer::new(&cluster.client, &push, tenant, SERIES, now_ms() - ago_s * 1000);
    let mut recent = writer("recent", RECENT_S);
    let mut old = writer("old", OLD_S);
    let seen = Seen::default();
    let load = try_join3(
        use_heads(&mut recent, &ask, &seen),
        use_blocks(&mut old, &ask, &seen),
        keep_flushing(&cluster),
    );
    let deaths = deaths(&mut moto, &cluster, &mut chance, &seen);
    under_load(Box::pin(deaths), Box::pin(load)).await?;

    // No process was started again, and all that was acknowledged is in the bucket, once.
    for (name, koios) in &mut cluster.nodes {
        ensure!(koios.process.exit_code().is_none(), "{name} ended by itself");
        koios.log_end()?;
    }
    ensure!(
        failures(&cluster).await? > 0.0,
        "no upload and no merge met a dead server"
    );
    cluster.flush().await?;
    let (url, env) = (moto.url("cluster"), moto.env());
    for (tenant, writer) in [("recent", &recent), ("old", &old)] {
        let acknowledged = writer.check(&ask).await?;
        // The end of the load may have come before the answer to a write.
        let expected = acknowledged..=acknowledged + u64::from(SERIES);
        // What another ingester cut again, because the first did not get it listed, goes when it is merged.
        eventually("each sample to be in one block", || async {
            let held = samples_in_blocks(&url, &env, tenant)?;
            ensure!(
                expected.contains(&held),
                "blocks of {tenant} hold {held} samples, {acknowledged} were acknowledged"
            );
            Ok(())
        })
        .await?;
        writer.check(&ask).await?;
    }
    support::ctl_of_bucket(&["blocks", "verify"], &url, &env)?;
    Ok(())
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the folder is moved away from under the program"
)]
async fn i9_a_folder_that_is_moved_away_takes_nothing_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let args = [
        "--self-metrics.interval=0s",
        "--storage.timeout=2s",
        "--storage.request-timeout=1s",
        "--storage.backoff-max=500ms",
    ];
    let koios = all_in_one(dir.path(), &args).await?;
    let client = support::client();
    let flush = || {
        client.send(
            "POST",
            &koios.http,
            "/ingester/flush?wait=true",
            &[],
            Default::default(),
        )
    };
    let mut writer = Writer::new(&client, &koios.http, "team-a", 7, now_ms() - 900_000);
    writer.push_acked(20).await?;
    ensure!(flush().await?.status < 300, "the bucket is there");
    let (bucket, away) = (koios.data_dir.join("bucket"), dir.path().join("away"));
    std::fs::rename(&bucket, &away)?;
    // As an empty mount point.
    std::fs::create_dir(&bucket)?;
    writer.push_acked(20).await?;
    let refused = flush().await?;
    ensure!(refused.status >= 500, "{}: {}", refused.status, refused.text());
    ensure!(
        std::fs::read_dir(&bucket)?.count() == 0,
        "something was written to another folder"
    );
    std::fs::remove_dir(&bucket)?;
    std::fs::rename(&away, &bucket)?;
    eventually("the flush to succeed", || async {
        let answer = flush().await?;
        ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
        Ok(())
    })
    .await?;
    writer.push_acked(5).await?;
    writer.check(&koios.http).await?;
    Ok(())
}

#[tokio::test]
async fn i10_another_parquet_reader_finds_what_promql_returns() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = support::client();
    let mut writer = Writer::new(&client, &koios.http, "team-a", 7, now_ms() - 900_000);
    writer.push_acked(60).await?;
    let answer = client
        .send(
            "POST",
            &koios.http,
            "/ingester/flush?wait=true",
            &[],
            Default::default(),
        )
        .await?;
    assert!(answer.status < 300, "{}", answer.text());
    let returned = writer.read(&koios.http).await?;
    let blocks = koios.data_dir.join("bucket/team-a/blocks");
    let mut read = query::SeriesMap::new();
    for block in std::fs::read_dir(&blocks).with_context(|| blocks.display().to_string())? {
        read_block(&block?.path(), &mut read)?;
    }
    for samples in read.values_mut() {
        samples.sort_by_key(|s| s.t);
    }
    assert_eq!(read, returned);
    Ok(())
}

#[tokio::test]
async fn i10_blocks_are_compacted_in_the_background_and_hold_the_same_samples() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--blocks.range=1m",
        "--store.compaction-delay=0s",
        "--store.compaction-interval=200ms",
        "--store.deletion-delay=1s",
    ];
    let koios = all_in_one(dir.path(), &flags).await?;
    let client = support::client();
    let mut writer = Writer::new(&client, &koios.http, "team-a", 7, now_ms() - 3_600_000);
    for _ in 0..3 {
        writer.push_acked(200).await?;
        let flush = "/ingester/flush?wait=true";
        let answer = client
            .send("POST", &koios.http, flush, &[], Default::default())
            .await?;
        assert!(answer.status < 300, "{}", answer.text());
    }
    let returned = writer.read(&koios.http).await?;
    let blocks = koios.data_dir.join("bucket/team-a/blocks");
    let of_blocks = || -> Result<(usize, query::SeriesMap)> {
        let mut folders = Vec::new();
        for block in std::fs::read_dir(&blocks).with_context(|| blocks.display().to_string())? {
            let folder = block?.path();
            if std::fs::read_dir(&folder)?.next().is_some() {
                folders.push(folder);
            }
        }
        // Before any is read, which takes seconds for each.
        ensure!(folders.len() <= 4, "{} blocks", folders.len());
        let mut read = query::SeriesMap::new();
        for folder in &folders {
            read_block(folder, &mut read)?;
        }
        read.values_mut().for_each(|samples| samples.sort_by_key(|s| s.t));
        Ok((folders.len(), read))
    };
    // Of the bytes of the blocks that were merged nothing stays. What the folder holds while a
    // merge goes on is no version of the tenant (both the merged block and its sources, or a part
    // of a block), so it is looked at until it holds exactly what was returned.
    eventually("few blocks with the samples that were returned", || async {
        let (count, read) = of_blocks()?;
        let held = |map: &query::SeriesMap| map.values().map(Vec::len).sum::<usize>();
        ensure!(
            read == returned,
            "{count} blocks hold {} samples, other than the {} returned",
            held(&read),
            held(&returned)
        );
        Ok(())
    })
    .await?;
    assert!(koios.metric(&client, "koios_compaction_merges_total").await? > 0.0);
    assert_eq!(
        koios.metric(&client, "koios_compaction_failures_total").await?,
        0.0
    );
    writer.check(&koios.http).await?;
    koios.log_end()?;
    Ok(())
}

/// Reads a block with pyarrow.
fn read_block(block: &std::path::Path, into: &mut query::SeriesMap) -> Result<()> {
    let python = support::python();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../libs/block/tests/read_block.py"
    );
    let output = std::process::Command::new(&python)
        .arg(script)
        .arg(block)
        .output()
        .with_context(|| format!("{python} is missing: run `cargo xtask test`, which installs it"))?;
    if !output.status.success() {
        bail!("{script}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for line in String::from_utf8(output.stdout)?.lines() {
        let json: serde_json::Value = serde_json::from_str(line)?;
        let labels = json["labels"].as_object().context("labels")?;
        let labels = koios_model::Labels::from_pairs(
            labels
                .iter()
                .map(|(n, v)| (n.as_str(), v.as_str().unwrap_or_default())),
        );
        let samples = into.entry(labels).or_default();
        for pair in json["samples"].as_array().context("samples")? {
            let t = pair[0].as_i64().context("time")?;
            let bits = u64::from_str_radix(pair[1].as_str().context("value")?, 16)?;
            samples.push(koios_model::Sample {
                t,
                v: f64::from_bits(bits),
            });
        }
    }
    Ok(())
}
