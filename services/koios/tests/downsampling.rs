//! Old samples are summarised and go; what queries say of whole buckets stays.

mod support;

use std::sync::Arc;

use anyhow::{Result, ensure};
use koios_model::{Histogram, Labels, Sample, spans_of};
use koios_promql::SampleValue;
use koios_testkit::http::HttpClient;
use koios_testkit::query_gen::data::SentSeries;
use koios_testkit::{query, remote_write};
use support::{all_in_one, eventually, now_ms};

const TENANT: &str = "team-a";
const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// How many parts of a name the bucket has.
fn parts(blocks: &std::path::Path, name: &str) -> Result<usize> {
    let mut found = 0;
    for block in std::fs::read_dir(blocks)? {
        found += usize::from(block?.path().join(name).exists());
    }
    Ok(found)
}

/// What is asked of the two hours from `start`, at ends of buckets.
async fn answers(client: &HttpClient, addr: &str, start: i64, extra: &str) -> Result<Vec<query::SeriesMap>> {
    let mut all = Vec::new();
    for expr in [
        "sum by (i) (increase(requests_total[30m]))",
        "rate(requests_total[1h])",
        "avg_over_time(temperature[30m])",
        "min_over_time(temperature[10m])",
        "max_over_time(temperature[1h])",
        "sum_over_time(temperature[1h])",
        "count_over_time(temperature[30m])",
        "last_over_time(temperature[5m])",
        "histogram_count(sum_over_time(latency_seconds[30m]))",
        "histogram_sum(sum_over_time(latency_seconds[1h]))",
        "histogram_quantile(0.9, sum_over_time(latency_seconds[10m]))",
        "histogram_quantile(0.3, avg_over_time(latency_seconds[30m]))",
        "histogram_quantile(0.7, rate(latency_seconds[30m]))",
        "histogram_count(increase(latency_seconds[1h]))",
        "histogram_count(last_over_time(latency_seconds[5m]))",
        "count_over_time(latency_seconds[30m])",
    ] {
        let path = format!(
            "/api/v1/query_range?query={}&start={}&end={}&step=300{extra}",
            query::encode(expr),
            (start + HOUR) / 1000,
            (start + 2 * HOUR - 5 * MINUTE) / 1000,
        );
        let headers = [("x-scope-orgid", TENANT)];
        let answer = client
            .send("GET", addr, &path, &headers, Default::default())
            .await?;
        ensure!(answer.status == 200, "{expr}: {}", answer.text());
        let found = query::parse(&answer.json()?)?;
        ensure!(found.len() == 3, "{expr}: {} series", found.len());
        all.push(found);
    }
    Ok(all)
}

/// The same, but for the last bits of sums.
fn ensure_alike(a: &[query::SeriesMap], b: &[query::SeriesMap], what: &str) -> Result<()> {
    for (a, b) in a.iter().zip(b) {
        ensure!(a.keys().eq(b.keys()), "{what}: other series");
        for ((labels, a), b) in a.iter().zip(b.values()) {
            ensure!(
                a.len() == b.len(),
                "{what}: {labels} has {} points, not {}",
                b.len(),
                a.len()
            );
            for (a, b) in a.iter().zip(b) {
                let near = (a.v - b.v).abs() <= 1e-9 * a.v.abs().max(1.0);
                ensure!(
                    a.t == b.t && near,
                    "{what}: {labels} at {}: {} became {}",
                    a.t,
                    a.v,
                    b.v
                );
            }
        }
    }
    Ok(())
}

/// A series of native histograms that begins anew now and then.
fn latency(i: i64, start: i64) -> SentSeries {
    let histogram = |n: i64| {
        let count = ((n * (i + 1)) % (61 * (i + 1))) as f64;
        let (positive_spans, positive_buckets) =
            spans_of([(0, count), (2, 2.0 * count), (5, n as f64 / 7.0 % 3.0)]);
        Histogram {
            schema: 1,
            count: 3.0 * count + n as f64 / 7.0 % 3.0,
            sum: 0.7 * count,
            zero_threshold: 0.001,
            positive_spans,
            positive_buckets,
            ..Histogram::default()
        }
    };
    let times = (1..=2 * HOUR / 15_000).map(|n| (n, start + n * 15_000 - 1000));
    SentSeries {
        labels: vec![
            ("__name__".to_owned(), "latency_seconds".to_owned()),
            ("i".to_owned(), i.to_string()),
        ],
        samples: times
            .map(|(n, t)| (t, SampleValue::Histogram(Arc::new(histogram(n)))))
            .collect(),
    }
}

#[tokio::test]
async fn i10_summaries_answer_when_the_samples_are_gone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let flags = [
        "--self-metrics.interval=0s",
        "--blocks.range=5m",
        "--ingester.head-retention=1s",
        "--retention=30m",
        "--store.undelete-window=1s",
        "--store.compaction-delay=0s",
        "--store.compaction-interval=200ms",
        "--store.deletion-delay=20s",
        "--store.downsample-after-5m=1s",
        "--store.downsample-after-1h=1s",
    ];
    let koios = all_in_one(dir.path(), &flags).await?;
    let client = support::client();
    // Whole hours that are older than samples are kept.
    let start = (now_ms() - 4 * HOUR) / HOUR * HOUR;
    let mut batch = Vec::new();
    for i in 0..3 {
        let labels = |name: &str| Labels::from_pairs([("__name__", name.to_owned()), ("i", i.to_string())]);
        let times = || (1..=2 * HOUR / 15_000).map(|n| (n, start + n * 15_000 - 1000));
        // It begins anew every 700 s or so.
        let counted = times().map(|(n, t)| Sample {
            t,
            v: ((n * (i + 1)) % (47 * (i + 1))) as f64,
        });
        let warm = times().map(|(n, t)| Sample {
            t,
            v: ((n * 7919) % 100) as f64 / 10.0,
        });
        batch.push((labels("requests_total"), counted.collect::<Vec<_>>()));
        batch.push((labels("temperature"), warm.collect()));
    }
    batch.sort_by(|a, b| a.0.cmp(&b.0));
    let answer = remote_write::push(&client, &koios.http, TENANT, &batch).await?;
    ensure!(answer.status < 300, "{}", answer.text());
    let latencies: Vec<_> = (0..3).map(|i| latency(i, start)).collect();
    let answer = remote_write::push_mixed(&client, &koios.http, TENANT, &latencies).await?;
    ensure!(answer.status < 300, "{}", answer.text());
    let before = answers(&client, &koios.http, start, "").await?;
    let flush = "/ingester/flush?wait=true";
    let answer = client
        .send("POST", &koios.http, flush, &[], Default::default())
        .await?;
    ensure!(answer.status < 300, "{}", answer.text());

    let blocks = koios.data_dir.join("bucket").join(TENANT).join("blocks");
    eventually("samples to go and summaries to stay", || async {
        let (samples, by_5m) = (
            parts(&blocks, "samples.parquet")?,
            parts(&blocks, "samples-5m.parquet")?,
        );
        let by_1h = parts(&blocks, "samples-1h.parquet")?;
        ensure!(
            samples == 0 && by_5m > 0 && by_1h > 0,
            "{samples}, {by_5m} and {by_1h} parts"
        );
        Ok(())
    })
    .await?;
    // Once heads have forgotten them, too, functions that need all samples tell that there are no more.
    let path = format!(
        "/api/v1/query?query={}&time={}",
        query::encode("stddev_over_time(temperature[1h])"),
        (start + HOUR) / 1000
    );
    eventually("heads to forget", || async {
        let headers = [("x-scope-orgid", TENANT)];
        let answer = client
            .send("GET", &koios.http, &path, &headers, Default::default())
            .await?;
        let json = answer.json()?;
        ensure!(
            json["infos"].to_string().contains("samples are no longer kept"),
            "{json}"
        );
        Ok(())
    })
    .await?;
    // Who asks for summaries is not told that there is nothing else.
    let headers = [("x-scope-orgid", TENANT)];
    let asking = format!("{path}&max_source_resolution=5m");
    let answer = client
        .send("GET", &koios.http, &asking, &headers, Default::default())
        .await?;
    let json = answer.json()?;
    ensure!(
        json["infos"].to_string().contains("as the query asks for them"),
        "{json}"
    );
    for extra in [
        "",
        "&max_source_resolution=auto",
        "&max_source_resolution=5m",
        "&max_source_resolution=0s",
    ] {
        let after = answers(&client, &koios.http, start, extra).await?;
        ensure_alike(&before, &after, extra)?;
    }
    // Coarser ones are there, too.
    let by_1h = query::instant(
        &client,
        &koios.http,
        TENANT,
        "count(requests_total)",
        start + 90 * MINUTE,
    )
    .await?;
    ensure!(by_1h.len() == 1, "{by_1h:?}");
    let failures = koios.metric(&client, "koios_compaction_failures_total").await?;
    ensure!(failures == 0.0, "{failures} failures");
    koios.log_end()?;
    Ok(())
}
