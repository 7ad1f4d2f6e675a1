//! A real Prometheus scrapes itself and `node_exporter` and writes into Koios; both are asked the same questions.

mod support;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use koios_testkit::http::HttpClient;
use koios_testkit::peers::{Prometheus, node_exporter};
use koios_testkit::process::pause;
use koios_testkit::query::{self, SeriesMap};
use support::{Cluster, Plan, all_in_one, client, eventually, now_ms};

/// How long Prometheus scrapes before the questions: they reach back 15 s, and from there 5 s and 20 s.
const OBSERVE: Duration = Duration::from_secs(50);
/// Relative difference allowed between values: Prometheus 2.42 sums without compensation.
const TOLERANCE: f64 = 1e-12;

/// Asked at fixed past times, as instant and as range queries.
const QUERIES: [&str; 48] = [
    "up",
    "up == 1",
    "count(up)",
    r#"node_load1{job="node"}"#,
    r#"{__name__=~"node_load.*"}"#,
    r#"{job="node", __name__=~"node_memory_Mem.*_bytes"}"#,
    r#"count({__name__!="", job!="node"})"#,
    r#"count by (job) ({__name__=~"go_.+"})"#,
    "rate(prometheus_http_requests_total[20s])",
    "irate(node_cpu_seconds_total[10s])",
    "increase(node_cpu_seconds_total[20s])",
    "sum by (mode) (rate(node_cpu_seconds_total[20s]))",
    "sum without (cpu) (rate(node_cpu_seconds_total[20s]))",
    "avg by (mode) (irate(node_cpu_seconds_total[15s]))",
    "min by (device) (node_filesystem_avail_bytes)",
    "max(node_filesystem_size_bytes)",
    "topk(3, rate(prometheus_http_request_duration_seconds_count[20s]))",
    "bottomk(2, node_filesystem_size_bytes)",
    "quantile(0.9, prometheus_http_request_duration_seconds_sum)",
    "quantile by (job) (0.5, scrape_duration_seconds)",
    "histogram_quantile(0.9, rate(prometheus_http_request_duration_seconds_bucket[20s]))",
    "histogram_quantile(0.5, sum by (le) (rate(prometheus_http_response_size_bytes_bucket[20s])))",
    "delta(node_memory_MemAvailable_bytes[20s])",
    "changes(node_context_switches_total[20s])",
    "resets(node_context_switches_total[20s])",
    "avg_over_time(node_load1[20s])",
    "min_over_time(node_memory_MemFree_bytes[20s])",
    "max_over_time(node_memory_MemFree_bytes[20s])",
    "sum_over_time(up[20s])",
    "count_over_time(up[20s])",
    "last_over_time(go_goroutines[15s])",
    "quantile_over_time(0.5, go_goroutines[20s])",
    "go_goroutines offset 10s",
    "rate(node_context_switches_total[15s] offset 5s)",
    "node_memory_MemTotal_bytes - node_memory_MemFree_bytes",
    "node_memory_MemFree_bytes / node_memory_MemTotal_bytes * 100",
    "node_filesystem_avail_bytes / on (device, mountpoint) group_left () node_filesystem_size_bytes",
    "up * on (instance) group_right () scrape_samples_scraped",
    "go_goroutines > 5 and up == 1",
    "up unless on (job) go_goroutines < 0",
    "up or vector(1)",
    "abs(node_load1 - node_load5)",
    "ceil(node_load1) + floor(node_load5)",
    "clamp_max(node_load1, 0.5)",
    "sqrt(node_memory_MemTotal_bytes)",
    "ln(node_memory_MemTotal_bytes) ^ 2",
    "scalar(count(up)) + 1",
    "-node_load1 >= bool -2",
];

/// Moments between the scrapes of all targets, so that no sample lies on the edge of a range.
async fn quiet_moments(client: &HttpClient, prometheus: &str, end_ms: i64) -> Result<Vec<i64>> {
    let scraped = query::instant(client, prometheus, "", "timestamp(up)", end_ms).await?;
    let offsets: Vec<i64> = scraped
        .values()
        .flatten()
        .map(|s| (s.v * 1000.0).round() as i64 % 1000)
        .collect();
    let far = |ms: i64| {
        offsets
            .iter()
            .map(|o| (ms - o).rem_euclid(1000).min((o - ms).rem_euclid(1000)))
            .min()
    };
    let best = (0..1000)
        .step_by(10)
        .max_by_key(|ms| far(*ms))
        .context("a millisecond")?;
    if far(best) < Some(20) {
        bail!("no millisecond of the second is 20 ms away from all scrapes: {offsets:?}");
    }
    let base = end_ms - end_ms.rem_euclid(1000) + best;
    Ok(vec![base - 1000, base - 8000, base - 15_000])
}

async fn compare(client: &HttpClient, prometheus: &str, koios: &str) -> Result<()> {
    // What Prometheus has sent up to now arrives within its send deadline.
    let end_ms = now_ms() - 3000;
    let latest = format!("timestamp(up{{instance=\"{prometheus}\"}})");
    eventually("the last scrapes to arrive", || async {
        let got = query::instant(client, koios, "anonymous", &latest, now_ms()).await?;
        let newest = got
            .values()
            .flatten()
            .map(|s| (s.v * 1000.0) as i64)
            .max()
            .context("no up yet")?;
        if newest < end_ms {
            bail!("newest sample is {newest}, waiting for {end_ms}")
        } else {
            Ok(())
        }
    })
    .await?;
    let moments = quiet_moments(client, prometheus, end_ms).await?;
    let mut answered = 0;
    for expr in QUERIES {
        for &t in &moments {
            let want = query::instant(client, prometheus, "", expr, t)
                .await
                .context(expr)?;
            let got = query::instant(client, koios, "anonymous", expr, t)
                .await
                .context(expr)?;
            judge(expr, t, &want, &got)?;
            answered += usize::from(!want.is_empty());
        }
        let range = (moments[2], moments[0], 1000);
        let want = query::range(client, prometheus, "", expr, range)
            .await
            .context(expr)?;
        let got = query::range(client, koios, "anonymous", expr, range)
            .await
            .context(expr)?;
        judge(expr, moments[0], &want, &got)?;
    }
    // Agreeing on nothing proves nothing.
    assert!(
        answered > QUERIES.len() * 2,
        "only {answered} answers held a series"
    );
    Ok(())
}

fn judge(expr: &str, t: i64, want: &SeriesMap, got: &SeriesMap) -> Result<()> {
    match query::difference(want, got, TOLERANCE) {
        None => Ok(()),
        Some(difference) => bail!("{expr} at {t}: {difference}"),
    }
}

async fn observe_and_compare(dir: &std::path::Path, push: &str, ask: &str) -> Result<()> {
    let client = client();
    let (_exporter, exporter_addr) = node_exporter(dir)?;
    let url = format!("http://{push}/api/v1/push");
    let mut prometheus = Prometheus::start(dir, "1s", &[("node", exporter_addr)], Some(&url))?;
    let addr = prometheus.addr.clone();
    prometheus
        .process
        .wait_ready(&client, &addr, "/-/ready", support::PATIENCE)
        .await?;
    pause(OBSERVE).await;
    compare(&client, &addr, ask).await
}

#[tokio::test]
async fn all_in_one_answers_as_the_prometheus_that_feeds_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    observe_and_compare(dir.path(), &koios.http, &koios.http).await
}

#[tokio::test]
async fn a_cluster_answers_as_the_prometheus_that_feeds_it() -> Result<()> {
    let cluster = Cluster::start(Plan::default()).await?;
    observe_and_compare(cluster.dir.path(), &cluster.push_addr(), &cluster.query_addr()).await
}
