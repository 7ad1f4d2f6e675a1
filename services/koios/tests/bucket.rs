//! Blocks in a real S3 server's bucket: outages, and readers that are not ours.

mod support;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use koios_testkit::moto::Moto;
use koios_testkit::process::pause;
use koios_testkit::proxy::Proxy;
use koios_testkit::query;
use support::{Cluster, Plan, Writer, all_in_one, eventually, now_ms};

/// The environment of an S3 client that goes through the proxy.
fn s3_environment(moto: &Moto, proxy: &Proxy) -> Vec<(String, String)> {
    let through = |value: String| value.replace(moto.addr(), proxy.addr());
    moto.env()
        .into_iter()
        .map(|(name, value)| (name, through(value)))
        .collect()
}

/// How many objects the bucket holds.
async fn objects(moto: &Moto) -> Result<usize> {
    let list = support::client()
        .get(moto.addr(), &format!("/{}?list-type=2", Moto::BUCKET))
        .await?;
    Ok(list.text().matches("<Key>").count())
}

#[tokio::test]
async fn i9_the_bucket_may_vanish_and_the_backlog_drains_by_itself() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let moto = Moto::start(dir.path()).await?;
    let proxy = Proxy::start(moto.addr()).await?;
    let cluster = Cluster::start(Plan {
        bucket: Some(moto.url("cluster")),
        env: s3_environment(&moto, &proxy),
        ..Plan::default()
    })
    .await?;
    let addr = cluster.query_addr();
    let mut writer = Writer::new(
        &cluster.client,
        &cluster.push_addr(),
        "team-a",
        10,
        now_ms() - 600_000,
    );
    writer.push_acked(20).await?;
    cluster.flush().await?;
    proxy.cut().await;
    writer.push_acked(20).await?;
    writer.check(&addr).await?;
    // Without waiting, the flush is taken on and goes on trying.
    for name in support::INGESTERS {
        cluster
            .client
            .send(
                "POST",
                &cluster.nodes[name].http,
                "/ingester/flush",
                &[],
                Default::default(),
            )
            .await?;
    }
    writer.push_acked(10).await?;
    writer.check(&addr).await?;
    let before = objects(&moto).await?;
    pause(Duration::from_secs(2)).await;
    proxy.mend().await?;
    eventually("the backlog to be uploaded", || async {
        let now = objects(&moto).await?;
        if now > before {
            Ok(())
        } else {
            bail!("{now} objects, {before} before the outage")
        }
    })
    .await?;
    writer.push_acked(5).await?;
    writer.check(&addr).await?;
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
