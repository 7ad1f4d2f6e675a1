//! Processes die by kill -9, disks are wiped, the control plane and the bucket go away; the oracle judges.

mod support;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use koios_testkit::process::pause;
use support::{Cluster, INGESTERS, Plan, VOTERS, Writer, all_in_one, eventually, now_ms};

fn writer(cluster: &Cluster) -> Writer {
    Writer::new(
        &cluster.client,
        &cluster.push_addr(),
        "team-a",
        20,
        now_ms() - 1_800_000,
    )
}

#[tokio::test]
async fn i7_one_ingester_killed_during_ingest_fails_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Plan::default()).await?;
    let mut writer = writer(&cluster);
    writer.push_acked(20).await?;
    cluster.node("ingester-b").process.kill();
    for _ in 0..10 {
        writer.push_acked(4).await?;
        writer.check(&cluster.query_addr()).await?;
    }
    cluster.node("ingester-b").process.restart()?;
    for _ in 0..10 {
        writer.push_acked(2).await?;
        writer.check(&cluster.query_addr()).await?;
    }
    cluster.ready().await?;
    // What the killed one missed it has copied or its peers serve: another may go now.
    cluster.node("ingester-a").process.kill();
    let addr = cluster.query_addr();
    eventually("two counting members", || writer.check(&addr)).await?;
    Ok(())
}

#[tokio::test]
async fn i1_every_process_killed_at_once_loses_nothing() -> Result<()> {
    let mut cluster = Cluster::start(Plan::default()).await?;
    let mut writer = writer(&cluster);
    writer.push_acked(100).await?;
    for koios in cluster.nodes.values_mut() {
        koios.process.kill();
    }
    for koios in cluster.nodes.values_mut() {
        koios.process.restart()?;
    }
    cluster.ready().await?;
    let addr = cluster.query_addr();
    let checked = eventually("the cluster to answer", || writer.check(&addr)).await?;
    assert_eq!(checked, 2000);
    writer.push_acked(5).await?;
    writer.check(&addr).await?;
    Ok(())
}

#[tokio::test]
async fn i8_the_data_path_goes_on_without_any_voter() -> Result<()> {
    let mut cluster = Cluster::start(Plan {
        separate_control: true,
        ..Plan::default()
    })
    .await?;
    let mut writer = writer(&cluster);
    writer.push_acked(10).await?;
    cluster.node(VOTERS[0]).process.kill();
    writer.push_acked(10).await?;
    writer.check(&cluster.query_addr()).await?;
    for voter in &VOTERS[1..] {
        cluster.node(voter).process.kill();
    }
    writer.push_acked(10).await?;
    writer.check(&cluster.query_addr()).await?;
    for service in ["distributor", "querier"] {
        cluster.node(service).process.restart()?;
        let client = cluster.client.clone();
        cluster
            .node(service)
            .ready(&client)
            .await
            .context("restart without voters")?;
    }
    writer.push_acked(10).await?;
    let addr = cluster.query_addr();
    eventually("the restarted querier to answer", || writer.check(&addr)).await?;
    for voter in VOTERS {
        cluster.node(voter).process.restart()?;
    }
    cluster.ready().await?;
    writer.push_acked(10).await?;
    writer.check(&addr).await?;
    let cluster = &cluster;
    eventually("everyone to agree", || async move {
        let mut states = Vec::new();
        for name in cluster.nodes.keys() {
            states.push(cluster.ctl(&["status", "--version-only"], name)?);
        }
        states.dedup();
        if states.len() == 1 {
            Ok(())
        } else {
            bail!("state versions differ: {states:?}")
        }
    })
    .await
}

#[tokio::test]
async fn i2_the_seam_between_heads_and_blocks_is_exact() -> Result<()> {
    let cluster = Cluster::start(Plan::default()).await?;
    let mut writer = writer(&cluster);
    let addr = cluster.query_addr();
    writer.push_acked(40).await?;
    let before = writer.read(&addr).await?;
    let (flushed, during) = tokio::join!(cluster.flush(), async {
        let mut answers = Vec::new();
        for _ in 0..5 {
            answers.push(writer.read(&addr).await?);
        }
        anyhow::Ok(answers)
    });
    flushed?;
    for answer in during? {
        assert_eq!(answer, before);
    }
    assert_eq!(writer.read(&addr).await?, before);
    writer.push_acked(40).await?;
    writer.check(&addr).await?;
    cluster.flush().await?;
    writer.push_acked(10).await?;
    writer.check(&addr).await?;
    Ok(())
}

#[tokio::test]
async fn i7_a_wiped_ingester_copies_from_its_peers_and_counts_again() -> Result<()> {
    let mut cluster = Cluster::start(Plan::default()).await?;
    let mut writer = writer(&cluster);
    let addr = cluster.query_addr();
    writer.push_acked(30).await?;
    cluster.flush().await?;
    writer.push_acked(30).await?;
    cluster.node("ingester-c").wipe()?;
    writer.push_acked(5).await?;
    cluster.node("ingester-c").process.restart()?;
    for _ in 0..5 {
        writer.push_acked(2).await?;
        writer.check(&addr).await?;
    }
    cluster.ready().await?;
    // It counts: reads work with it and one other.
    cluster.node("ingester-a").process.kill();
    eventually("reads with the copied member", || writer.check(&addr)).await?;
    writer.push_acked(5).await?;
    writer.check(&addr).await?;
    Ok(())
}

#[tokio::test]
async fn i4_all_wiped_is_said_until_the_loss_is_accepted() -> Result<()> {
    // Voters apart: wiping ingesters does not wipe the control plane.
    let mut cluster = Cluster::start(Plan {
        separate_control: true,
        ..Plan::default()
    })
    .await?;
    let mut writer = writer(&cluster);
    let addr = cluster.query_addr();
    writer.push_acked(30).await?;
    cluster.flush().await?;
    let flushed = writer.read(&addr).await?;
    let asked_until = writer.oracle.range().context("sent")?.1;
    for name in INGESTERS {
        cluster.node(name).wipe()?;
    }
    for name in INGESTERS {
        cluster.node(name).process.restart()?;
    }
    let path = format!("/api/v1/query?query=oracle_total&time={}", asked_until / 1000);
    let client = cluster.client.clone();
    let headers = [("x-scope-orgid", "team-a")];
    let ask = || client.send("GET", &addr, &path, &headers, Default::default());
    for _ in 0..20 {
        let answer = ask().await?;
        if answer.status != 503 {
            bail!("a wiped partition answered {}: {}", answer.status, answer.text());
        }
        pause(Duration::from_millis(100)).await;
    }
    eventually("all three to register", || async {
        let status = cluster.ctl(&["status"], "control-1")?;
        if status.matches("not counting").count() >= 3 {
            Ok(())
        } else {
            bail!("status: {status}")
        }
    })
    .await?;
    cluster.ctl(&["partition", "accept-loss"], "control-1")?;
    let got = eventually("reads after accepting the loss", || writer.read(&addr)).await?;
    assert_eq!(got, flushed);
    writer.push_acked(5).await?;
    writer.check(&addr).await?;
    Ok(())
}

#[tokio::test]
async fn i11_a_deleted_log_is_said_until_the_loss_is_accepted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = support::client();
    let mut writer = Writer::new(&client, &koios.http, "team-a", 5, now_ms() - 600_000);
    writer.push_acked(10).await?;
    let ctl = |args: &[&str]| support::ctl(args, &koios.grpc);
    assert!(!ctl(&["status"])?.contains("DAMAGED"));
    koios.process.kill();
    std::fs::remove_dir_all(koios.data_dir.join("wal"))?;
    koios.process.restart()?;
    let ctl = |args: &[&str]| support::ctl(args, &koios.grpc);
    eventually("the loss to be told", || async {
        let status = ctl(&["status"])?;
        if status.contains("DAMAGED") && status.contains("NOT READABLE") {
            Ok(())
        } else {
            bail!("status: {status}")
        }
    })
    .await?;
    let asked = writer.read(&koios.http).await.unwrap_err();
    assert!(format!("{asked:#}").contains("accept-loss"), "{asked:#}");
    ctl(&["partition", "accept-loss", "all", "--note", "log deleted"])?;
    koios.ready(&client).await?;
    assert!(writer.read(&koios.http).await?.is_empty());
    let ctl = |args: &[&str]| support::ctl(args, &koios.grpc);
    assert!(ctl(&["partition", "accept-loss", "all", "--note", "again"])?.contains("nothing to accept"));
    Ok(())
}
