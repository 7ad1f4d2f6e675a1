//! Times queries at the HTTP level, and counts what they cost the server.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::fleet::Fleet;
use crate::measure;

/// One query's result.
#[derive(Clone, Debug)]
pub(crate) struct Timing {
    pub(crate) name: String,
    /// Median over the runs, from sending to the last byte of the answer.
    pub(crate) median_ms: f64,
    /// CPU milliseconds of the server per run; `None` when its process is not known.
    pub(crate) cpu_ms: Option<f64>,
    /// The most bytes its resident memory grew by in any run; `None` when its process is not known.
    pub(crate) growth_bytes: Option<u64>,
    /// Series, or strings, in the answer.
    pub(crate) results: usize,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// A range query over the fleet's last hour.
    Hour(&'static str),
    /// A range query over the last 1, 6 and 24 hours, as far as the fleet reaches back.
    Spans(&'static str),
    /// A label endpoint over all of the fleet's time.
    Labels(&'static str),
}

const QUERIES: [(&str, Ask); 15] = [
    (
        "single series",
        Ask::Spans(r#"node_load1{instance="host-00000.eu-west-1.example.net:9100"}"#),
    ),
    (
        "rate of one host",
        Ask::Hour(r#"rate(node_cpu_seconds_total{instance=~"host-00000.*"}[5m])"#),
    ),
    (
        "sum by of rate",
        Ask::Spans("sum by (mode) (rate(node_cpu_seconds_total[5m]))"),
    ),
    (
        "sum of gauge",
        Ask::Spans("sum by (availability_zone) (queue_depth)"),
    ),
    (
        "histogram_quantile",
        Ask::Spans(
            "histogram_quantile(0.99, sum by (le, handler) (rate(http_request_duration_seconds_bucket[5m])))",
        ),
    ),
    (
        "topk",
        Ask::Hour("topk(5, sum by (instance) (rate(http_requests_total[5m])))"),
    ),
    (
        "regex on names",
        Ask::Hour(r#"count({__name__=~"node_(disk|network)_.*"})"#),
    ),
    (
        "regex on values",
        Ask::Hour(r#"sum(rate(http_requests_total{code=~"5..",handler!~".*health.*"}[5m]))"#),
    ),
    (
        "group_left join",
        Ask::Hour("rate(http_requests_total[5m]) * on (instance) group_left () up"),
    ),
    (
        "high-cardinality sum by",
        Ask::Hour("sum by (instance, handler, code) (rate(http_requests_total[5m]))"),
    ),
    (
        "subquery",
        Ask::Hour("max_over_time(sum(rate(http_requests_total[5m]))[30m:1m])"),
    ),
    ("avg_over_time", Ask::Hour("avg(avg_over_time(queue_depth[10m]))")),
    ("absent", Ask::Hour(r#"absent(up{instance="nowhere"})"#)),
    ("label names", Ask::Labels("/api/v1/labels")),
    ("label values", Ask::Labels("/api/v1/label/instance/values")),
];

/// One request to time.
struct Case {
    name: String,
    path: &'static str,
    parameters: Vec<(&'static str, String)>,
}

fn seconds(ms: i64) -> String {
    format!("{:.3}", ms as f64 / 1000.0)
}

fn cases(fleet: &Fleet) -> Vec<Case> {
    let end_ms = fleet.end_ms();
    let mut cases = Vec::new();
    for (name, ask) in QUERIES {
        // As a dashboard asks: some hundreds of points whatever the span.
        let spans: &[(i64, i64)] = match ask {
            Ask::Hour(_) => &[(1, 15)],
            Ask::Spans(_) => &[(1, 15), (6, 60), (24, 120)],
            Ask::Labels(path) => {
                cases.push(Case {
                    name: name.to_owned(),
                    path,
                    parameters: vec![("start", seconds(fleet.start_ms)), ("end", seconds(end_ms))],
                });
                &[]
            }
        };
        for &(hours, step_s) in spans {
            let (Ask::Hour(query) | Ask::Spans(query) | Ask::Labels(query)) = ask;
            let start_ms = end_ms - hours * 3_600_000;
            if hours > 1 && start_ms < fleet.start_ms {
                continue;
            }
            cases.push(Case {
                name: format!("{name}, {hours} h"),
                path: "/api/v1/query_range",
                parameters: vec![
                    ("query", query.to_owned()),
                    ("start", seconds(start_ms.max(fleet.start_ms))),
                    ("end", seconds(end_ms)),
                    ("step", step_s.to_string()),
                    ("nocache", "1".to_owned()),
                ],
            });
        }
    }
    cases
}

/// Runs of each query before those that count.
const WARM_UPS: usize = 2;

/// Asks everything at least `runs` times, and for half a second, after [`WARM_UPS`] that count for memory only.
pub(crate) async fn run(fleet: &Fleet, url: &str, pid: Option<u32>, runs: usize) -> Result<Vec<Timing>> {
    let client = reqwest::Client::new();
    let mut out = Vec::new();
    for case in cases(fleet) {
        let mut growth_bytes: Option<u64> = None;
        let mut results = 0;
        let mut times = Vec::new();
        let mut cpu = None;
        let mut begin = Instant::now();
        for round in 0_usize.. {
            if round == WARM_UPS {
                cpu = pid.map(measure::cpu_seconds).transpose()?;
                times.clear();
                begin = Instant::now();
            } else if round > WARM_UPS && times.len() >= runs && begin.elapsed() > Duration::from_millis(500)
            {
                break;
            }
            let before = pid.map(measure::resident_bytes).transpose()?;
            pid.map(measure::forget_peak).transpose()?;
            let sent = Instant::now();
            let body = ask(&client, url, &case).await?;
            times.push(sent.elapsed().as_secs_f64() * 1000.0);
            if let (Some(pid), Some(before)) = (pid, before) {
                growth_bytes = growth_bytes.max(Some(measure::peak_bytes(pid)?.saturating_sub(before)));
            }
            if round == 0 {
                results = count(&body)?;
            }
        }
        let cpu_ms = match (pid, cpu) {
            (Some(pid), Some(cpu)) => Some((measure::cpu_seconds(pid)? - cpu) * 1000.0 / times.len() as f64),
            _ => None,
        };
        times.sort_by(f64::total_cmp);
        let median_ms = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        out.push(Timing {
            name: case.name,
            median_ms,
            cpu_ms,
            growth_bytes,
            results,
        });
    }
    Ok(out)
}

async fn ask(client: &reqwest::Client, url: &str, case: &Case) -> Result<Vec<u8>> {
    let request = client.get(format!("{url}{}", case.path)).query(&case.parameters);
    let answer = request.send().await?;
    let status = answer.status();
    let body = answer.bytes().await?;
    if !status.is_success() {
        bail!("{}: {status}: {}", case.name, String::from_utf8_lossy(&body));
    }
    Ok(body.into())
}

fn count(body: &[u8]) -> Result<usize> {
    let json: serde_json::Value = serde_json::from_slice(body)?;
    let data = &json["data"];
    let list = data["result"].as_array().or_else(|| data.as_array());
    Ok(list.map_or(0, Vec::len))
}
