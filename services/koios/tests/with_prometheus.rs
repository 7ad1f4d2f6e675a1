//! A real Prometheus scrapes itself, `node_exporter`, and targets with exemplars and native histograms, and writes into Koios;
//! both are asked the same questions.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use koios_testkit::differential::Answer;
use koios_testkit::families::{
    self, Bucket, COUNTER, Counter, Exemplar, Family, GAUGE_HISTOGRAM, HISTOGRAM, Histogram, Label, Metric,
    Span, Time,
};
use koios_testkit::http::HttpClient;
use koios_testkit::peers::{Prometheus, node_exporter};
use koios_testkit::process::pause;
use koios_testkit::query::{self, SeriesMap};
use serde_json::Value;
use support::target::Target;
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

/// Waits until Koios has what Prometheus scraped up to some seconds ago; gives that time.
async fn arrived(client: &HttpClient, prometheus: &str, koios: &str) -> Result<i64> {
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
    Ok(end_ms)
}

async fn compare(client: &HttpClient, prometheus: &str, koios: &str) -> Result<()> {
    let end_ms = arrived(client, prometheus, koios).await?;
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
    let mut prometheus = Prometheus::start(dir, "1s", &[("node", exporter_addr)], &url)?;
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

/// How long the targets with exemplars and native histograms are scraped.
const OBSERVE_ALL: Duration = Duration::from_secs(35);
/// With which scrape a histogram begins anew.
const RESET: u64 = 15;

/// Asked of native histograms. Quantiles are not: Prometheus interpolates them otherwise since 3.0.
const HISTOGRAM_QUERIES: [&str; 17] = [
    "latency_seconds",
    "queue_size",
    "weights",
    r#"{job="protobuf", __name__=~"latency_seconds|weights"}"#,
    "latency_seconds offset 5s",
    "count(latency_seconds)",
    "sum(latency_seconds)",
    "histogram_count(latency_seconds)",
    "histogram_sum(latency_seconds)",
    "rate(latency_seconds[10s])",
    "increase(latency_seconds[20s])",
    "sum(rate(latency_seconds[10s]))",
    "sum by (method) (rate(latency_seconds[20s]))",
    "histogram_count(increase(latency_seconds[20s]))",
    "histogram_sum(rate(latency_seconds[10s]))",
    "histogram_sum(rate(latency_seconds[20s])) / histogram_count(rate(latency_seconds[20s]))",
    "rate(weights[10s])",
];

/// A counter and a classic histogram with exemplars of now.
fn openmetrics(n: u64) -> String {
    let now = now_ms() as f64 / 1000.0;
    let trace = |of: &str| format!("# {{trace_id=\"{of}-{n}\",span_id=\"{n:016x}\"}} 0.25 {now:.3}");
    format!(
        "# HELP orders Orders, \\\"by\\\" code.\n# TYPE orders counter\n\
         orders_total{{code=\"200\"}} {} {}\norders_total{{code=\"500\"}} {n}\n\
         # HELP wait_seconds Waiting.\n# TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\n\
         wait_seconds_bucket{{le=\"0.1\"}} {n}\nwait_seconds_bucket{{le=\"1.0\"}} {} {}\n\
         wait_seconds_bucket{{le=\"+Inf\"}} {} {}\nwait_seconds_sum {n}\nwait_seconds_count {}\n# EOF\n",
        10_000 + 7 * n,
        trace("order"),
        2 * n,
        trace("short"),
        3 * n,
        trace("long"),
        3 * n,
    )
}

fn label(name: &str, value: &str) -> Label {
    Label {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// One of now.
fn exemplar(of: &str, n: u64) -> Exemplar {
    let now = now_ms();
    Exemplar {
        label: vec![label("trace_id", &format!("{of}-{n}"))],
        value: 0.5,
        time: Some(Time {
            seconds: now.div_euclid(1000),
            nanos: now.rem_euclid(1000) as i32 * 1_000_000,
        }),
    }
}

/// Buckets on both sides of zero and in it. Counts are large, so that no rate reaches back to where they were none.
fn native(k: u64) -> Histogram {
    let k = 1000 * k;
    let span = |offset, length| Span { offset, length };
    let one = k as i64;
    Histogram {
        count: 11 * k,
        sum: 2.5 * k as f64,
        schema: 2,
        zero_threshold: 0.001,
        zero_count: k,
        // 1, 3, 2 and, with a gap, 1; 2 and 1.
        positive_span: vec![span(-2, 3), span(4, 1)],
        positive_delta: vec![one, 2 * one, -one, -one],
        negative_span: vec![span(1, 2)],
        negative_delta: vec![2 * one, -one],
        ..Histogram::default()
    }
}

fn family(name: &str, kind: i32, metric: Vec<Metric>) -> Family {
    Family {
        name: name.to_owned(),
        help: format!("Of {name}."),
        kind,
        metric,
    }
}

fn of_histogram(label: Vec<Label>, histogram: Histogram) -> Metric {
    Metric {
        label,
        histogram: Some(histogram),
        ..Metric::default()
    }
}

/// Native histograms in integers and floats, one of them a gauge, and a counter; with exemplars.
fn protobuf(n: u64) -> Vec<u8> {
    let got = Histogram {
        bucket: vec![Bucket {
            count: n,
            bound: 0.5,
            exemplar: Some(exemplar("got", n)),
        }],
        ..native(1000 + n)
    };
    let put = native(if n < RESET { 3000 + 2 * n } else { 2000 + 3 * n });
    let latency = vec![
        of_histogram(vec![label("method", "get")], got),
        of_histogram(vec![label("method", "put")], put),
    ];
    let queue = of_histogram(Vec::new(), native(1000 + n % 7));
    let weight = 100.0 + n as f64 / 4.0;
    let weights = of_histogram(
        Vec::new(),
        Histogram {
            count_float: 2.5 * weight,
            sum: 7.25 * weight,
            schema: 1,
            zero_threshold: 0.001,
            zero_count_float: weight,
            positive_span: vec![Span { offset: 2, length: 1 }],
            positive_count: vec![1.5 * weight],
            ..Histogram::default()
        },
    );
    let bytes = Counter {
        value: (100 * n) as f64,
        exemplar: Some(exemplar("bytes", n)),
    };
    let bytes = Metric {
        counter: Some(bytes),
        ..Metric::default()
    };
    families::delimited(&[
        family("latency_seconds", HISTOGRAM, latency),
        family("queue_size", GAUGE_HISTOGRAM, vec![queue]),
        family("weights", HISTOGRAM, vec![weights]),
        family("sent_bytes_total", COUNTER, vec![bytes]),
    ])
}

/// A target whose answer depends on how often it was asked.
async fn counting(expose: impl Fn(u64) -> (&'static str, Vec<u8>) + Send + 'static) -> Result<Target> {
    let mut scrapes = 0;
    let next = move || {
        scrapes += 1;
        expose(scrapes)
    };
    Target::start("127.0.0.1:0", next).await
}

async fn data(client: &HttpClient, addr: &str, path: &str) -> Result<Value> {
    let mut json = client.get(addr, path).await?.json()?;
    ensure!(json["status"] == "success", "{path}: {json}");
    ensure!(json.get("warnings").is_none(), "{path}: {json}");
    Ok(json["data"].take())
}

/// Koios says of each metric what Prometheus says, which has sent it.
async fn compare_metadata(client: &HttpClient, prometheus: &str, koios: &str) -> Result<()> {
    let want = data(client, prometheus, "/api/v1/metadata").await?;
    let want = want.as_object().context("metadata")?;
    for (family, kind, unit) in [
        ("orders", "counter", ""),
        ("wait_seconds", "histogram", "seconds"),
        ("queue_size", "gaugehistogram", ""),
    ] {
        let of = &want.get(family).with_context(|| format!("no {family}"))?[0];
        ensure!(of["type"] == kind && of["unit"] == unit, "{family}: {of}");
    }
    ensure!(want.len() > 100, "Prometheus exposes more than {}", want.len());
    eventually("metadata as Prometheus has it", || async {
        let got = data(client, koios, "/api/v1/metadata").await?;
        for (family, want) in want {
            ensure!(got[family] == *want, "{family}: {}, expected {want}", got[family]);
        }
        Ok(())
    })
    .await
}

/// Series, labels, time in milliseconds and value of each exemplar in a range.
async fn exemplars(client: &HttpClient, addr: &str, range_ms: (i64, i64)) -> Result<BTreeSet<String>> {
    let query = query::encode(r#"{__name__=~".+"}"#);
    let (start, end) = (range_ms.0 as f64 / 1000.0, range_ms.1 as f64 / 1000.0);
    let path = format!("/api/v1/query_exemplars?query={query}&start={start:.3}&end={end:.3}");
    let mut all = BTreeSet::new();
    for series in data(client, addr, &path).await?.as_array().context("series")? {
        for exemplar in series["exemplars"].as_array().context("exemplars")? {
            let t_ms = (exemplar["timestamp"].as_f64().context("time")? * 1000.0).round();
            let value: f64 = exemplar["value"].as_str().context("value")?.parse()?;
            let one = format!(
                "{} {} {value} @{t_ms}",
                series["seriesLabels"], exemplar["labels"]
            );
            ensure!(all.insert(one.clone()), "{one} is there twice");
        }
    }
    Ok(all)
}

async fn compare_exemplars(
    client: &HttpClient,
    (prometheus, koios): (&str, &str),
    range_ms: (i64, i64),
) -> Result<()> {
    let want = exemplars(client, prometheus, range_ms).await?;
    for series in [
        "orders_total",
        "wait_seconds_bucket",
        "latency_seconds",
        "sent_bytes_total",
    ] {
        let found = want
            .iter()
            .filter(|e| e.contains(&format!("\"{series}\"")))
            .count();
        ensure!(found > 5, "Prometheus has {found} exemplars of {series}");
    }
    eventually("exemplars as Prometheus has them", || async {
        let got = exemplars(client, koios, range_ms).await?;
        let missing: Vec<_> = want.difference(&got).collect();
        let too_much: Vec<_> = got.difference(&want).collect();
        ensure!(
            missing.is_empty() && too_much.is_empty(),
            "missing {missing:?}, too much {too_much:?}"
        );
        Ok(())
    })
    .await
}

async fn compare_histograms(
    client: &HttpClient,
    (prometheus, koios): (&str, &str),
    end_ms: i64,
) -> Result<()> {
    let moments = quiet_moments(client, prometheus, end_ms).await?;
    let seconds = |ms: i64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let mut paths = Vec::new();
    for expr in HISTOGRAM_QUERIES {
        let query = query::encode(expr);
        let at = moments
            .iter()
            .map(|t| format!("query?query={query}&time={}", seconds(*t)));
        paths.extend(at.map(|path| (expr, path)));
        let (start, end) = (seconds(moments[2]), seconds(moments[0]));
        paths.push((
            expr,
            format!("query_range?query={query}&start={start}&end={end}&step=1"),
        ));
    }
    for (expr, path) in paths {
        let ask = |addr: String| {
            let path = format!("/api/v1/{path}");
            async move {
                let answer = client.get(&addr, &path).await?;
                Answer::from_json(answer.status, &answer.json()?)
            }
        };
        let want = ask(prometheus.to_owned()).await.context(expr)?;
        let got = ask(koios.to_owned()).await.context(expr)?;
        ensure!(want.success().is_some_and(|s| s.is_telling()), "{expr}: {want:?}");
        if let Some(difference) = Answer::difference(&want, &got, false) {
            bail!("{path}: {difference:?}: {got:?}, expected {want:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_exemplars_and_native_histograms_are_as_the_prometheus_has_them_that_sends_them()
-> Result<()> {
    let dir = tempfile::tempdir()?;
    let koios = all_in_one(dir.path(), &["--self-metrics.interval=0s"]).await?;
    let client = client();
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = counting(|n| (OPEN_METRICS, openmetrics(n).into_bytes())).await?;
    let families = counting(|n| (families::CONTENT_TYPE, protobuf(n))).await?;
    let targets = [
        ("openmetrics", text.addr.clone()),
        ("protobuf", families.addr.clone()),
    ];
    let url = format!("http://{}/api/v1/push", koios.http);
    let mut prometheus = Prometheus::sending_all(dir.path(), "1s", &targets, &url)?;
    let addr = prometheus.addr.clone();
    prometheus
        .process
        .wait_ready(&client, &addr, "/-/ready", support::PATIENCE)
        .await?;
    // The first ones are scraped before there is a queue for them.
    let start_ms = now_ms() + 3000;
    pause(OBSERVE_ALL).await;
    let end_ms = arrived(&client, &addr, &koios.http).await?;
    compare_metadata(&client, &addr, &koios.http).await?;
    compare_exemplars(&client, (&addr, &koios.http), (start_ms, end_ms)).await?;
    compare_histograms(&client, (&addr, &koios.http), end_ms).await
}
