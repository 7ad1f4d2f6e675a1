//! All-in-one over the protocols of S3, Google Cloud Storage and Azure: write, cut, upload, query, compact.

mod support;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use koios_testkit::cloud::{Cloud, Dialect, Fault, When};
use koios_testkit::process::{Process, free_port};
use koios_testkit::query;
use support::{Koios, Writer, client, ctl_of_bucket, eventually, now_ms, program};

const FLAGS: [&str; 6] = [
    "--self-metrics.interval=0s",
    "--blocks.range=1m",
    "--ingester.head-retention=1s",
    "--store.compaction-delay=0s",
    "--store.compaction-interval=200ms",
    "--store.deletion-delay=20s",
];

async fn start(dir: &Path, cloud: &Cloud) -> Result<Koios> {
    start_with(dir, &cloud.url("clusters/one"), &cloud.env(), &FLAGS).await
}

async fn start_with(dir: &Path, url: &str, env: &[(String, String)], flags: &[&str]) -> Result<Koios> {
    let (http, grpc) = (
        format!("127.0.0.1:{}", free_port()),
        format!("127.0.0.1:{}", free_port()),
    );
    let data_dir = dir.join("data");
    let mut args = vec![
        format!("--http.listen={http}"),
        format!("--grpc.listen={grpc}"),
        format!("--data-dir={}", data_dir.display()),
        format!("--bucket={url}"),
    ];
    args.extend(flags.iter().map(|f| (*f).to_owned()));
    let process = Process::start_with_env("koios", &program(), &args, dir, env)?;
    let mut koios = Koios {
        process,
        http,
        grpc,
        data_dir,
    };
    koios.ready(&client()).await?;
    Ok(koios)
}

/// `koios ctl blocks verify`, which reads every block whole.
fn verify(url: &str, env: &[(String, String)]) -> Result<String> {
    // A fake storage answers on this runtime's threads meanwhile.
    tokio::task::block_in_place(|| ctl_of_bucket(&["blocks", "verify"], url, env))
}

async fn flush(koios: &Koios, wait: bool) -> Result<()> {
    let path = format!("/ingester/flush?wait={wait}");
    let answer = client()
        .send("POST", &koios.http, &path, &[], Default::default())
        .await?;
    ensure!(answer.status < 300, "{}", answer.text());
    Ok(())
}

async fn round(dialect: Dialect) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::start(dialect).await?;
    let mut koios = start(dir.path(), &cloud).await?;
    let client = client();
    let mut writer = Writer::new(&client, &koios.http, "team-a", 7, now_ms() - 3_600_000);
    for _ in 0..3 {
        writer.push_acked(200).await?;
        flush(&koios, true).await?;
    }
    writer.check(&koios.http).await?;
    let blocks = || {
        let names = cloud.objects();
        names.iter().filter(|n| n.ends_with("/meta.json")).count()
    };
    eventually("few blocks", || async {
        ensure!(blocks() <= 4, "{} blocks", blocks());
        Ok(())
    })
    .await?;
    ensure!(koios.metric(&client, "koios_compaction_merges_total").await? > 0.0);
    ensure!(koios.metric(&client, "koios_compaction_failures_total").await? == 0.0);
    verify(&cloud.url("clusters/one"), &cloud.env())?;

    // After a restart nothing is cached: what a query needs it fetches, also through a burst of failures.
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client).await?;
    cloud.requests();
    cloud.inject(Fault::Busy, When::Next(5));
    cloud.inject(Fault::CutShort, When::NextOf("GET", 5));
    writer.check(&koios.http).await?;
    ensure!(cloud.faults_done() > 0);
    let outside: Vec<_> = cloud
        .objects()
        .into_iter()
        .filter(|o| !o.starts_with("clusters/one/team-a/") && !o.starts_with("clusters/one/__cluster/"))
        .collect();
    ensure!(outside.is_empty(), "{outside:?}");
    // Of another tenant there is nothing.
    let stranger = query::instant(&client, &koios.http, "team-b", "oracle_total", now_ms()).await?;
    ensure!(stranger.is_empty());
    let log = koios.log_end()?;
    ensure!(!log.contains("hush"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_blocks_live_in_s3() -> Result<()> {
    round(Dialect::S3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_blocks_live_in_google_cloud_storage() -> Result<()> {
    round(Dialect::Gcs).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_blocks_live_in_azure() -> Result<()> {
    round(Dialect::Azure).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_refuses_is_named_in_the_log_with_what_to_do_and_no_secret() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cloud = Cloud::start(Dialect::S3).await?;
    let is_told = |text: &str| -> Result<()> {
        ensure!(text.contains("403 Forbidden: SignatureDoesNotMatch"), "{text}");
        ensure!(text.contains("check the credentials"), "{text}");
        ensure!(!text.contains("hush") && !text.contains("StringToSign"), "{text}");
        Ok(())
    };
    // Whether there is a cluster in it already cannot be known: a first start ends.
    cloud.refuse(403, "SignatureDoesNotMatch");
    match start(dir.path(), &cloud).await {
        Ok(_) => bail!("it started"),
        Err(e) => is_told(&format!("{e:#}"))?,
    }
    cloud.heal();
    let mut koios = start(dir.path(), &cloud).await?;
    // Later ones do without.
    cloud.refuse(403, "SignatureDoesNotMatch");
    koios.process.restart()?;
    koios.ready(&client()).await?;
    eventually("the refusal in the log", || async {
        is_told(&koios.process.log())
    })
    .await?;
    // Writes go on meanwhile, and the bucket is used as soon as it lets the process in.
    let client = client();
    let mut writer = Writer::new(&client, &koios.http, "team-a", 3, now_ms() - 600_000);
    writer.push_acked(5).await?;
    cloud.heal();
    eventually("a flush", || flush(&koios, true)).await?;
    ensure!(cloud.objects().iter().any(|o| o.ends_with("/meta.json")));
    writer.check(&koios.http).await?;
    Ok(())
}
