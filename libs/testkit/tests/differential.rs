//! Random queries against a real Prometheus: the same samples, the same answers.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "helpers of tests, too, fail by panicking and report by printing"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use koios_model::Sample;
use koios_promql::{Engine, ParseOptions, Query, QueryOutput, SampleValue, Uninterrupted, Value};
use koios_runtime::{RealClock, RealNet};
use koios_testkit::http::HttpClient;
use koios_testkit::peers::{Prometheus, find};
use koios_testkit::promqltest::{MemoryStorage, Point};
use koios_testkit::query::{self, SeriesMap, difference};
use koios_testkit::query_gen::{FleetSeries, QueryGenerator, fleet};

/// How many queries are asked.
const QUERIES: usize = 600;
/// Prometheus 2 sums without compensation, so that differences of nearly equal sums are off by more than an ulp.
const TOLERANCE: f64 = 1e-7;

/// The samples in the text format of `OpenMetrics`.
fn openmetrics(fleet: &[FleetSeries]) -> String {
    let mut families: BTreeMap<&str, String> = BTreeMap::new();
    for (labels, samples) in fleet {
        let family = families.entry(labels.metric_name()).or_default();
        let pairs: Vec<String> = labels
            .iter()
            .filter(|(n, _)| *n != "__name__")
            .map(|(n, v)| format!("{n}={v:?}"))
            .collect();
        for (t, v) in samples {
            let (seconds, ms) = (t / 1_000, t % 1_000);
            writeln!(
                family,
                "{}{{{}}} {v} {seconds}.{ms:03}",
                labels.metric_name(),
                pairs.join(",")
            )
            .unwrap();
        }
    }
    families.into_values().collect::<String>() + "# EOF\n"
}

/// Writes the samples as blocks where Prometheus will find them.
fn import(dir: &Path, fleet: &[FleetSeries]) -> Result<()> {
    let file = dir.join("fleet.om");
    std::fs::write(&file, openmetrics(fleet))?;
    let output = Command::new(find("promtool")?)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .arg(&file)
        .arg(dir.join("prometheus-data"))
        .output()?;
    ensure!(
        output.status.success(),
        "promtool: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn storage(fleet: &[FleetSeries]) -> MemoryStorage {
    let mut storage = MemoryStorage::default();
    for (labels, samples) in fleet {
        let point = |(t_ms, v): &(i64, f64)| Point {
            t_ms: *t_ms,
            start_ms: 0,
            value: SampleValue::Float(*v),
        };
        storage.insert(labels, &samples.iter().map(point).collect::<Vec<_>>());
    }
    storage
}

/// An answer in the form of Prometheus' API.
fn series(output: QueryOutput) -> SeriesMap {
    match output.value {
        Value::Vector(t, samples) => samples
            .into_iter()
            .filter_map(|s| match s.value {
                SampleValue::Float(v) => Some((s.labels, vec![Sample { t, v }])),
                SampleValue::Histogram(_) => None,
            })
            .collect(),
        Value::Matrix(series) => series
            .into_iter()
            .map(|s| {
                (
                    s.labels.clone(),
                    s.floats().map(|(t, v)| Sample { t, v }).collect(),
                )
            })
            .collect(),
        other => panic!("a vector query gave {other:?}"),
    }
}

/// Both answers to one query, errors as text.
type Answers = (Result<SeriesMap, String>, Result<SeriesMap, String>);

struct Peers {
    prometheus: String,
    client: HttpClient,
    storage: MemoryStorage,
    engine: Engine,
}

impl Peers {
    async fn ask(&self, query: &str, times: Result<i64, (i64, i64, i64)>) -> Answers {
        let parsed = Query::parse(query, &ParseOptions::default()).unwrap();
        let (theirs, ours) = match times {
            Ok(at) => (
                query::instant(&self.client, &self.prometheus, "", query, at).await,
                self.engine
                    .instant(&self.storage, &parsed, at, &Uninterrupted)
                    .await,
            ),
            Err(range) => (
                query::range(&self.client, &self.prometheus, "", query, range).await,
                self.engine
                    .range(&self.storage, &parsed, range, &Uninterrupted)
                    .await,
            ),
        };
        (
            theirs.map_err(|e| e.to_string()),
            ours.map(series).map_err(|e| e.to_string()),
        )
    }
}

fn disagreement(answers: Answers) -> Option<String> {
    match answers {
        (Ok(theirs), Ok(ours)) => difference(&theirs, &ours, TOLERANCE),
        (Err(_), Err(_)) => None,
        // Prometheus 2 looks for double matches only among what a comparison lets through.
        (Ok(_), Err(ours)) if ours.starts_with("multiple matches for labels") => None,
        (Ok(_), Err(ours)) => Some(format!("only Prometheus answers; here: {ours}")),
        (Err(theirs), Ok(_)) => Some(format!("Prometheus refuses: {theirs}")),
    }
}

#[tokio::test]
async fn random_queries_agree_with_prometheus() -> Result<()> {
    let Ok(_) = find("prometheus").and_then(|_| find("promtool")) else {
        println!("prometheus is not installed: nothing to compare with");
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let fleet = fleet();
    import(dir.path(), &fleet)?;
    let mut prometheus = Prometheus::start(dir.path(), "1h", &[], None)?;
    let client = HttpClient::new(
        Arc::new(RealNet),
        Arc::new(RealClock::new()),
        Duration::from_secs(20),
    );
    let addr = prometheus.addr.clone();
    prometheus
        .process
        .wait_ready(&client, &addr, "/-/ready", Duration::from_secs(60))
        .await?;
    let peers = Peers {
        prometheus: addr,
        client,
        storage: storage(&fleet),
        engine: Engine::default(),
    };

    let seed = std::env::var("KOIOS_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut generator = QueryGenerator::new(seed);
    let (mut wrong, mut telling) = (Vec::new(), 0);
    for i in 0..QUERIES {
        let depth = u32::try_from(i % 4)?;
        let query = generator.vector(depth);
        let times = if i % 2 == 0 {
            Ok(generator.time_ms())
        } else {
            Err(generator.range_ms())
        };
        let answers = peers.ask(&query, times).await;
        let samples = |series: &SeriesMap| series.values().any(|samples| !samples.is_empty());
        telling += usize::from(answers.0.as_ref().is_ok_and(samples));
        if let Some(difference) = disagreement(answers) {
            wrong.push(format!("{query} at {times:?}: {difference}"));
        }
    }
    ensure!(
        telling > QUERIES / 2,
        "only {telling} of {QUERIES} answers hold samples"
    );
    ensure!(
        wrong.is_empty(),
        "{} of {QUERIES} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}
