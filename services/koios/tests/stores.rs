//! Several stores share the blocks: one or two may die at any moment, and what was read is kept on disk.

mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use koios_testkit::moto::Moto;
use koios_testkit::query::SeriesMap;
use support::chance::Chance;
use support::faults::Outage;
use support::{Cluster, Koios, Plan, Writer, all_in_one, client, eventually, now_ms};

const STORES: [&str; 3] = ["store", "store-2", "store-3"];
const STEPS: u32 = 600;

/// Many small blocks, all of them older than what heads keep.
async fn cluster_of_blocks() -> Result<(Cluster, Writer)> {
    let cluster = Cluster::start(Plan {
        more_stores: STORES[1..].to_vec(),
        // Not all services have the flags.
        env: [("KOIOS_BLOCKS_RANGE", "1m"), ("KOIOS_STORE_COMPACTION", "false")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
        ..Plan::default()
    })
    .await?;
    let start_ms = now_ms() - 5 * 3_600_000;
    let mut writer = Writer::new(&cluster.client, &cluster.push_addr(), "team-a", 10, start_ms);
    writer.push_acked(STEPS).await?;
    cluster.flush().await?;
    writer.check(&cluster.query_addr()).await?;
    Ok((cluster, writer))
}

/// How many reads each store has answered.
async fn reads(cluster: &Cluster) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for name in STORES {
        let koios = &cluster.nodes[name];
        all.push(koios.metric(&cluster.client, "koios_store_reads_total").await?);
    }
    Ok(all)
}

#[tokio::test]
async fn i4_a_store_that_is_killed_under_queries_costs_neither_an_error_nor_a_sample() -> Result<()> {
    let mut chance = Chance::new(5)?;
    let (mut cluster, writer) = cluster_of_blocks().await?;
    let ask = cluster.query_addr();
    // Where a block lies its random name decides, so that one of the three may have none. Heads that have not forgotten yet answer alone.
    eventually("stores to be read", || async {
        writer.check(&ask).await?;
        let shares = reads(&cluster).await?;
        ensure!(shares.iter().filter(|n| **n > 0.0).count() >= 2, "{shares:?}");
        Ok(())
    })
    .await?;
    for kill in 1..=chance.rounds {
        let name = STORES[chance.random.index(STORES.len())];
        let queries = Box::pin(until_one_fails(&writer, &ask));
        let result = cluster
            .kill_and_restart(name, Outage::new(&mut chance), queries)
            .await;
        result.with_context(|| format!("kill {kill}: {name}"))?;
    }
    Ok(())
}

/// Reads all again and again; each answer must be there, and complete.
async fn until_one_fails(writer: &Writer, ask: &str) -> Result<()> {
    loop {
        writer.check(ask).await?;
    }
}

#[tokio::test]
async fn i2_three_stores_two_and_one_give_the_same_answers() -> Result<()> {
    let (mut cluster, writer) = cluster_of_blocks().await?;
    let ask = cluster.query_addr();
    let of_three = answers(&cluster, &writer, &ask).await?;
    for name in &STORES[..2] {
        cluster.node(name).process.kill();
        let of_fewer = answers(&cluster, &writer, &ask).await?;
        ensure!(of_three == of_fewer, "without {name}");
    }
    // Without any it is an error that names them.
    cluster.node(STORES[2]).process.kill();
    let e = writer.read(&ask).await.expect_err("no store is left").to_string();
    for name in STORES {
        ensure!(e.contains(name), "{e}");
    }
    cluster.node(STORES[2]).process.restart()?;
    eventually("the store to be asked again", || writer.check(&ask)).await?;
    Ok(())
}

/// Samples, and lists of labels.
async fn answers(cluster: &Cluster, writer: &Writer, addr: &str) -> Result<(SeriesMap, Vec<String>)> {
    let mut lists = Vec::new();
    for path in [
        "/api/v1/labels",
        "/api/v1/label/series/values",
        "/api/v1/series?match[]=oracle_total",
        "/api/v1/query_exemplars?query=oracle_total&start=0&end=9999999999",
    ] {
        let headers = [("x-scope-orgid", "team-a")];
        let answer = cluster
            .client
            .send("GET", addr, path, &headers, Default::default());
        let answer = answer.await?;
        ensure!(answer.status == 200, "{path}: {}", answer.text());
        lists.push(answer.text());
    }
    Ok((writer.read(addr).await?, lists))
}

/// A line of a process' metrics.
async fn value(koios: &Koios, line: &str) -> Result<f64> {
    let text = client().get(&koios.http, "/metrics").await?.text();
    let found = text.lines().find_map(|l| l.strip_prefix(line));
    let found = found.with_context(|| format!("{line} is missing"))?;
    Ok(found.trim().parse()?)
}

#[tokio::test]
async fn what_was_read_of_a_remote_bucket_is_read_from_disk_after_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let moto = Moto::start(dir.path()).await?;
    let env: BTreeMap<String, String> = moto.env().into_iter().collect();
    let flags = [
        format!("--bucket={}", moto.url("disk")),
        format!("--s3.endpoint={}", env["AWS_ENDPOINT_URL"]),
        format!("--s3.access-key-id={}", env["AWS_ACCESS_KEY_ID"]),
        format!("--s3.secret-access-key={}", env["AWS_SECRET_ACCESS_KEY"]),
        "--blocks.range=1m".to_owned(),
        "--store.compaction=false".to_owned(),
        "--self-metrics.interval=0s".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut koios = all_in_one(dir.path(), &flags).await?;
    let mut writer = Writer::new(&client(), &koios.http, "team-a", 10, now_ms() - 5 * 3_600_000);
    writer.push_acked(200).await?;
    let flush = "/ingester/flush?wait=true";
    let answer = client()
        .send("POST", &koios.http, flush, &[], Default::default())
        .await?;
    ensure!(answer.status < 300, "{}", answer.text());
    writer.check(&koios.http).await?;
    let cells = "koios_store_disk_cache_cells";
    let kept = eventually("cells to be written", || async {
        let kept = value(&koios, cells).await?;
        ensure!(kept >= 3.0, "{kept} cells");
        Ok(kept)
    })
    .await?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client()).await?;
    eventually("the cells to be found", || async {
        let found = value(&koios, cells).await?;
        ensure!(found >= kept, "{found} of {kept} cells");
        Ok(())
    })
    .await?;
    // Heads answer alone until they have forgotten what came back from the log.
    let hits = "koios_store_disk_cache_reads_total{result=\"hit\"}";
    eventually("blocks to be read", || async {
        writer.check(&koios.http).await?;
        let hits = value(&koios, hits).await?;
        ensure!(hits >= 3.0, "{hits} hits");
        Ok(())
    })
    .await?;
    ensure!(value(&koios, "koios_store_disk_cache_bytes").await? > 0.0);
    Ok(())
}
