//! Times queries at the HTTP level.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::fleet::Fleet;

/// One query's result.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) name: &'static str,
    pub(crate) median_ms: f64,
    pub(crate) series: usize,
}

const QUERIES: [(&str, &str); 10] = [
    ("single series", r#"node_load1{instance=~"host-00000.*"}"#),
    (
        "rate of one host",
        r#"rate(node_cpu_seconds_total{instance=~"host-00000.*"}[5m])"#,
    ),
    ("sum by rate", "sum by (mode) (rate(node_cpu_seconds_total[5m]))"),
    (
        "histogram_quantile",
        "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))",
    ),
    (
        "topk",
        "topk(5, sum by (instance) (rate(http_requests_total[5m])))",
    ),
    ("regex matcher", r#"count({__name__=~"node_(disk|network)_.*"})"#),
    (
        "join",
        "rate(http_requests_total[5m]) * on (instance) group_left () up",
    ),
    (
        "high-cardinality sum by",
        "sum by (instance, handler, code) (rate(http_requests_total[5m]))",
    ),
    (
        "subquery",
        "max_over_time(sum(rate(http_requests_total[5m]))[30m:1m])",
    ),
    ("avg_over_time", "avg(avg_over_time(queue_depth[10m]))"),
];

/// Asks each query as a range query over the fleet's last hour at 15 s.
pub(crate) async fn run(fleet: &Fleet, url: &str, runs: usize) -> Result<Vec<Timing>> {
    let client = reqwest::Client::new();
    let end_ms = fleet.end_ms();
    let start_ms = (end_ms - 3_600_000).max(fleet.start_ms);
    let mut out = Vec::new();
    for (name, query) in QUERIES {
        let mut times = Vec::new();
        let mut series = 0;
        // The first run warms caches and does not count.
        for run in 0..=runs {
            let begin = Instant::now();
            let answer = client
                .get(format!("{url}/api/v1/query_range"))
                .query(&[
                    ("query", query.to_owned()),
                    ("start", (start_ms as f64 / 1000.0).to_string()),
                    ("end", (end_ms as f64 / 1000.0).to_string()),
                    ("step", "15".to_owned()),
                    ("nocache", "1".to_owned()),
                ])
                .send()
                .await?;
            let status = answer.status();
            let body = answer.bytes().await?;
            let elapsed = begin.elapsed().as_secs_f64() * 1000.0;
            if !status.is_success() {
                bail!("{name}: {status}: {}", String::from_utf8_lossy(&body));
            }
            if run == 0 {
                let json: serde_json::Value = serde_json::from_slice(&body)?;
                series = json["data"]["result"].as_array().map_or(0, Vec::len);
            } else {
                times.push(elapsed);
            }
        }
        times.sort_by(f64::total_cmp);
        let median_ms = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        out.push(Timing {
            name,
            median_ms,
            series,
        });
    }
    Ok(out)
}
