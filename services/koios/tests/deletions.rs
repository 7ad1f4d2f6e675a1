//! Samples are deleted by Prometheus' API: gone at once, for good, and until then to be had back.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use koios_model::{Labels, Sample};
use koios_testkit::http::{Answer, HttpClient};
use koios_testkit::process::pause;
use koios_testkit::query::{self, SeriesMap};
use koios_testkit::remote_write;
use support::{Cluster, INGESTERS, Koios, Plan, all_in_one, client, eventually, now_ms};

const TENANT: &str = "team-a";
const ADMIN: &str = "/api/v1/admin/tsdb";
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// Samples of a metric, one a second up to a time.
async fn push(client: &HttpClient, addr: &str, metric: &str, end_ms: i64) -> Result<()> {
    let samples = (0..100).map(|i| Sample {
        t: end_ms - i * 1000,
        v: i as f64,
    });
    let mut samples: Vec<Sample> = samples.collect();
    samples.reverse();
    let batch = [(Labels::from_pairs([("__name__", metric)]), samples)];
    let answer = remote_write::push(client, addr, TENANT, &batch).await?;
    ensure!(answer.status < 300, "{}: {}", answer.status, answer.text());
    Ok(())
}

async fn read(client: &HttpClient, addr: &str, metric: &str, end_ms: i64) -> Result<SeriesMap> {
    query::instant(client, addr, TENANT, &format!("{metric}[1h]"), end_ms + 1000).await
}

async fn count(client: &HttpClient, addr: &str, metric: &str, end_ms: i64) -> Result<usize> {
    let found = read(client, addr, metric, end_ms).await?;
    Ok(found.values().map(Vec::len).sum())
}

async fn ask(client: &HttpClient, method: &str, addr: &str, path: &str, form: &str) -> Result<Answer> {
    let headers = [("x-scope-orgid", TENANT), FORM];
    let body = Bytes::from(form.to_owned());
    client
        .send(method, addr, &format!("{ADMIN}/{path}"), &headers, body)
        .await
}

async fn delete(client: &HttpClient, addr: &str, selector: &str) -> Result<()> {
    let path = format!("delete_series?match[]={}", query::encode(selector));
    let answer = ask(client, "POST", addr, &path, "").await?;
    ensure!(answer.status == 204, "{}: {}", answer.status, answer.text());
    Ok(())
}

async fn flush(client: &HttpClient, addr: &str) -> Result<()> {
    let answer = client
        .send("POST", addr, "/ingester/flush?wait=true", &[], Bytes::new())
        .await?;
    ensure!(answer.status < 300, "flush: {}", answer.text());
    Ok(())
}

/// Id and state of each deletion.
async fn listed(client: &HttpClient, addr: &str) -> Result<Vec<(String, String)>> {
    let answer = ask(client, "GET", addr, "tombstones", "").await?;
    let json = answer.json()?;
    let Some(all) = json["data"].as_array() else {
        bail!("no list: {json}");
    };
    let text = |v: &serde_json::Value| v.as_str().unwrap_or("").to_owned();
    Ok(all.iter().map(|t| (text(&t["id"]), text(&t["state"]))).collect())
}

/// Whether any file of the tenant's blocks has some bytes.
fn bucket_has(koios: &Koios, wanted: &str) -> Result<bool> {
    fn search(dir: &Path, wanted: &[u8]) -> Result<bool> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            // The last of it has gone.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        for entry in entries {
            let path = entry?.path();
            let found = match path.is_dir() {
                true => search(&path, wanted)?,
                // It may go while it is looked at.
                false => std::fs::read(&path).is_ok_and(|b| b.windows(wanted.len()).any(|w| w == wanted)),
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }
    search(
        &koios.data_dir.join("bucket").join(TENANT).join("blocks"),
        wanted.as_bytes(),
    )
}

#[tokio::test]
async fn i10_what_is_deleted_is_gone_at_once_after_a_kill_and_from_the_bucket() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--store.undelete-window=3s",
        "--store.compaction-interval=200ms",
        "--store.deletion-delay=1s",
    ];
    let mut koios = all_in_one(dir.path(), &flags).await?;
    let (client, now) = (client(), now_ms());
    for metric in ["customers_secret_total", "kept_total"] {
        push(&client, &koios.http, metric, now - 120_000).await?;
    }
    flush(&client, &koios.http).await?;
    ensure!(
        bucket_has(&koios, "customers_secret_total")?,
        "the bucket's bytes can be searched"
    );
    for metric in ["customers_secret_total", "kept_total"] {
        push(&client, &koios.http, metric, now).await?;
    }
    delete(&client, &koios.http, "customers_secret_total").await?;
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client).await?;
    ensure!(count(&client, &koios.http, "customers_secret_total", now).await? == 0);
    let kept = count(&client, &koios.http, "kept_total", now).await?;
    ensure!(kept >= 199, "{kept} samples of another metric");
    let answer = client
        .send(
            "GET",
            &koios.http,
            "/api/v1/label/__name__/values",
            &[("x-scope-orgid", TENANT)],
            Bytes::new(),
        )
        .await?;
    ensure!(
        !answer.text().contains("customers_secret_total"),
        "{}",
        answer.text()
    );

    eventually("the deletion to be removed from the bucket", || async {
        ensure!(
            !bucket_has(&koios, "customers_secret_total")?,
            "its bytes are there"
        );
        Ok(())
    })
    .await?;
    flush(&client, &koios.http).await?;
    ensure!(
        !bucket_has(&koios, "customers_secret_total")?,
        "a later cut brought it back"
    );
    ensure!(count(&client, &koios.http, "kept_total", now).await? == kept);
    // The very same samples again are not what was deleted.
    push(&client, &koios.http, "customers_secret_total", now).await?;
    ensure!(count(&client, &koios.http, "customers_secret_total", now).await? == 100);
    flush(&client, &koios.http).await?;
    pause(Duration::from_secs(2)).await;
    ensure!(count(&client, &koios.http, "customers_secret_total", now).await? == 100);
    koios.log_end().map(drop)
}

#[tokio::test]
async fn i10_a_deletion_is_taken_back_until_it_is_final() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let (client, now) = (client(), now_ms());
    push(&client, &koios.http, "flushed_total", now - 200_000).await?;
    flush(&client, &koios.http).await?;
    push(&client, &koios.http, "flushed_total", now).await?;
    let before = read(&client, &koios.http, "flushed_total", now).await?;
    delete(&client, &koios.http, r#"{__name__=~"flushed_.+"}"#).await?;
    ensure!(count(&client, &koios.http, "flushed_total", now).await? == 0);
    let all = listed(&client, &koios.http).await?;
    ensure!(all.len() == 1 && all[0].1 == "masked", "{all:?}");

    let one = format!("tombstones/{}", all[0].0);
    let answer = ask(&client, "DELETE", &koios.http, &one, "").await?;
    ensure!(answer.status == 204, "{}", answer.text());
    ensure!(read(&client, &koios.http, "flushed_total", now).await? == before);
    ensure!(listed(&client, &koios.http).await?[0].1 == "undone");

    delete(&client, &koios.http, "flushed_total").await?;
    let answer = ask(&client, "PUT", &koios.http, "clean_tombstones", "").await?;
    ensure!(answer.status == 204, "{}", answer.text());
    let all = listed(&client, &koios.http).await?;
    let last = format!("tombstones/{}", all[all.len() - 1].0);
    let answer = ask(&client, "POST", &koios.http, &last, "").await?;
    ensure!(
        answer.status == 400 && answer.text().contains("is final"),
        "{}",
        answer.text()
    );
    ensure!(count(&client, &koios.http, "flushed_total", now).await? == 0);
    let log = koios.process.log();
    for action in ["delete_series", "undelete", "clean_tombstones"] {
        ensure!(
            log.contains("koios::audit") && log.contains(action),
            "no audit of {action}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn i10_a_tenant_is_deleted_and_begins_anew() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--store.compaction-interval=200ms",
        "--store.deletion-delay=1s",
    ];
    let mut koios = all_in_one(dir.path(), &flags).await?;
    let (client, now) = (client(), now_ms());
    push(&client, &koios.http, "flushed_total", now - 200_000).await?;
    flush(&client, &koios.http).await?;
    push(&client, &koios.http, "flushed_total", now).await?;
    let path = format!("/api/v1/admin/tenants/{TENANT}/delete");
    let refused = client
        .send(
            "POST",
            &koios.http,
            &path,
            &[("x-scope-orgid", TENANT)],
            Bytes::new(),
        )
        .await?;
    ensure!(refused.status == 403, "a tenant must not: {}", refused.status);
    let answer = client.send("POST", &koios.http, &path, &[], Bytes::new()).await?;
    ensure!(answer.status == 204, "{}", answer.text());
    ensure!(count(&client, &koios.http, "flushed_total", now).await? == 0);
    koios.process.kill();
    koios.process.restart()?;
    koios.ready(&client).await?;
    ensure!(count(&client, &koios.http, "flushed_total", now).await? == 0);
    eventually("the tenant's blocks to go", || async {
        ensure!(!bucket_has(&koios, "flushed_total")?, "its bytes are there");
        Ok(())
    })
    .await?;
    push(&client, &koios.http, "flushed_total", now).await?;
    flush(&client, &koios.http).await?;
    ensure!(count(&client, &koios.http, "flushed_total", now).await? == 100);
    ensure!(koios.process.log().contains("delete_tenant"), "no audit line");
    Ok(())
}

#[tokio::test]
async fn deletions_are_asked_for_as_of_prometheus() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let (client, now) = (client(), now_ms());
    for metric in ["one_total", "two_total", "three_total"] {
        push(&client, &koios.http, metric, now).await?;
    }
    let answer = ask(&client, "GET", &koios.http, "delete_series?match[]=up", "").await?;
    ensure!(answer.status == 405 && answer.header("allow").is_some_and(|a| a.contains("POST")));
    for (form, text) in [
        ("", "no match[] parameter provided"),
        ("match[]={}", "at least one non-empty matcher"),
        ("match[]=a{", "parse error"),
        ("match[]=up&start=x", "cannot parse"),
    ] {
        let answer = ask(&client, "POST", &koios.http, "delete_series", form).await?;
        ensure!(
            answer.status == 400 && answer.text().contains(text),
            "{form}: {}",
            answer.text()
        );
    }
    let answer = ask(&client, "POST", &koios.http, "tombstones/12", "").await?;
    ensure!(answer.status == 400, "{}", answer.text());
    let answer = ask(
        &client,
        "POST",
        &koios.http,
        &format!("tombstones/{:032x}", 7),
        "",
    )
    .await?;
    ensure!(answer.status == 404, "{}", answer.text());

    // Of two metrics the older half, as a form and below the prefix.
    let middle = (now - 50_000) as f64 / 1000.0;
    let form = format!("match[]=one_total&match[]=two_total&end={middle}");
    let headers = [("x-scope-orgid", TENANT), FORM];
    let path = format!("/prometheus{ADMIN}/delete_series");
    let answer = client
        .send("PUT", &koios.http, &path, &headers, Bytes::from(form))
        .await?;
    ensure!(answer.status == 204, "{}", answer.text());
    for (metric, left) in [("one_total", 50), ("two_total", 50), ("three_total", 100)] {
        let found = count(&client, &koios.http, metric, now).await?;
        ensure!(found == left, "{metric}: {found}");
    }
    // Nothing of it is another tenant's.
    ensure!(!koios.data_dir.join("bucket/team-b").exists());
    let headers = [("x-scope-orgid", "team-b"), FORM];
    let path = format!("{ADMIN}/delete_series");
    let body = Bytes::from("match[]=three_total");
    let answer = client.send("POST", &koios.http, &path, &headers, body).await?;
    ensure!(answer.status == 204, "{}", answer.text());
    ensure!(count(&client, &koios.http, "three_total", now).await? == 100);
    ensure!(
        !koios.data_dir.join("bucket/team-b").exists(),
        "a tenant without data gets no manifest"
    );
    Ok(())
}

#[tokio::test]
async fn i10_a_zone_that_was_away_does_not_bring_back_what_was_deleted() -> Result<()> {
    let mut cluster = Cluster::start(Plan::default()).await?;
    let (client, now) = (client(), now_ms());
    let (to, from) = (cluster.push_addr(), cluster.query_addr());
    for metric in ["doomed_total", "kept_total"] {
        push(&client, &to, metric, now - 200_000).await?;
    }
    cluster.node(INGESTERS[0]).process.kill();
    push(&client, &to, "doomed_total", now).await?;
    delete(&client, &from, "doomed_total").await?;
    ensure!(count(&client, &from, "doomed_total", now).await? == 0);
    cluster.node(INGESTERS[0]).process.restart()?;
    cluster.node(INGESTERS[1]).process.kill();
    // Now the one that was away must answer.
    eventually("a read without the second zone", || async {
        count(&client, &from, "kept_total", now).await.map(drop)
    })
    .await?;
    ensure!(count(&client, &from, "doomed_total", now).await? == 0);
    ensure!(count(&client, &from, "kept_total", now).await? == 100);
    cluster.node(INGESTERS[1]).process.restart()?;
    cluster.ready().await?;
    push(&client, &to, "doomed_total", now).await?;
    cluster.flush().await?;
    ensure!(count(&client, &from, "doomed_total", now).await? == 100);
    Ok(())
}

/// The versions of the tenant's manifest that have an object, ascending.
fn versions(koios: &Koios) -> Result<Vec<PathBuf>> {
    let folder = koios.data_dir.join("bucket").join(TENANT).join("manifest");
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            versions.push(path);
        }
    }
    versions.sort();
    Ok(versions)
}

#[tokio::test]
async fn i10_nothing_is_committed_over_a_lost_version_of_which_only_members_tell() -> Result<()> {
    const HOUR: i64 = 3_600_000;
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--limits.out-of-order-time-window=30d",
        "--store.compaction-interval=200ms",
        "--store.compaction-delay=0s",
    ];
    let alone = [&flags[..], &["--store.compaction=false"]].concat();
    let mut koios = all_in_one(dir.path(), &alone).await?;
    let (client, now) = (client(), now_ms());
    for (metric, age) in [("a", 0), ("a", HOUR), ("a", 2 * HOUR), ("b", 96 * HOUR)] {
        push(&client, &koios.http, metric, now - age).await?;
        flush(&client, &koios.http).await?;
    }
    ensure!(koios.process.terminate(Duration::from_secs(30))?, "it stops");
    let all = versions(&koios)?;
    let newest = all.last().context("versions")?;
    let aside = std::fs::read(newest)?;
    std::fs::remove_file(newest)?;
    let hint = newest.with_file_name("latest");
    let aside_hint = std::fs::read(&hint)?;
    std::fs::remove_file(&hint)?;
    let koios = all_in_one(dir.path(), &flags).await?;
    eventually("the lost version is reported", async || {
        let lost = koios.metric(&client, "koios_compaction_manifest_lost").await?;
        ensure!(lost == 1.0, "{}", koios.log_end()?);
        Ok(())
    })
    .await?;
    for (path, id) in [
        ("delete_series?match[]=a", ""),
        ("tombstones/", "0123456789abcdef0123456789abcdef"),
    ] {
        let refused = ask(&client, "POST", &koios.http, &format!("{path}{id}"), "").await?;
        let text = refused.text();
        ensure!(
            refused.status == 503 && text.contains("versions are lost"),
            "{}: {text}",
            refused.status
        );
    }
    let left = versions(&koios)?;
    ensure!(left == all[..all.len() - 1], "nothing is committed: {left:?}");
    // It goes on once the version is back.
    std::fs::write(newest, aside)?;
    std::fs::write(&hint, aside_hint)?;
    delete(&client, &koios.http, "a").await?;
    eventually("nothing is reported any more", async || {
        let lost = koios.metric(&client, "koios_compaction_manifest_lost").await?;
        ensure!(lost == 0.0, "{}", koios.log_end()?);
        Ok(())
    })
    .await?;
    ensure!(count(&client, &koios.http, "a", now).await? == 0, "it is deleted");
    ensure!(
        count(&client, &koios.http, "b", now - 96 * HOUR).await? == 100,
        "it is listed"
    );
    Ok(())
}
