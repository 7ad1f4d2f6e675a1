//! The same load on Koios, Prometheus and VictoriaMetrics, one after the other, side by side.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bench::{self, Timing};
use crate::fleet::Fleet;
use crate::{measure, send};

/// One contender.
struct Contender {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    base: String,
    push: &'static str,
    ready: &'static str,
    /// Asked after the load, so that everything is on disk in its final form.
    flush: Vec<&'static str>,
    /// Where the final form lies.
    stored: PathBuf,
}

/// What one contender took.
struct Outcome {
    name: &'static str,
    cpu_per_million: f64,
    samples_per_second: f64,
    resident_per_series: f64,
    stored_per_sample: f64,
    queries: Vec<Timing>,
    query_cpu: f64,
}

/// Runs all three and prints the table.
pub(crate) async fn compare(fleet: &Fleet, koios: &Path, concurrency: usize, runs: usize) -> Result<()> {
    println!(
        "{} series, {} samples, {} requests in flight",
        fleet.series_count(),
        fleet.sample_count(),
        concurrency
    );
    let dir = tempfile::tempdir()?;
    let mut outcomes = Vec::new();
    for contender in contenders(dir.path(), koios, fleet)? {
        println!("running {}", contender.name);
        outcomes.push(run(&contender, fleet, concurrency, runs).await?);
    }
    print_table(&outcomes);
    Ok(())
}

fn port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn contenders(dir: &Path, koios: &Path, fleet: &Fleet) -> Result<Vec<Contender>> {
    let (k, g, p, v) = (port()?, port()?, port()?, port()?);
    let data = |name: &str| dir.join(name);
    // The load is a part of the past, and the run takes hours at most; the others take samples of any age that come in
    // order.
    let age_hours = (measure::now_ms() - fleet.start_ms) / 3_600_000 + 6;
    Ok(vec![
        Contender {
            name: "Koios",
            program: koios.to_owned(),
            args: vec![
                format!("--http.listen=127.0.0.1:{k}"),
                format!("--grpc.listen=127.0.0.1:{g}"),
                format!("--data-dir={}", data("koios").display()),
                "--self-metrics.interval=0s".to_owned(),
                format!("--limits.out-of-order-time-window={age_hours}h"),
            ],
            base: format!("http://127.0.0.1:{k}"),
            push: "/api/v1/push",
            ready: "/ready",
            flush: vec!["/ingester/flush?wait=true"],
            stored: data("koios").join("bucket"),
        },
        Contender {
            name: "Prometheus",
            program: "prometheus".into(),
            args: vec![
                "--config.file=/dev/null".to_owned(),
                format!("--web.listen-address=127.0.0.1:{p}"),
                format!("--storage.tsdb.path={}", data("prometheus").display()),
                "--web.enable-remote-write-receiver".to_owned(),
                "--web.enable-admin-api".to_owned(),
                "--log.level=error".to_owned(),
            ],
            base: format!("http://127.0.0.1:{p}"),
            push: "/api/v1/write",
            ready: "/-/ready",
            flush: vec!["/api/v1/admin/tsdb/snapshot"],
            stored: data("prometheus").join("snapshots"),
        },
        Contender {
            name: "VictoriaMetrics",
            program: "victoria-metrics".into(),
            args: vec![
                format!("-httpListenAddr=127.0.0.1:{v}"),
                format!("-storageDataPath={}", data("victoria").display()),
                "-retentionPeriod=100y".to_owned(),
                "-search.disableCache".to_owned(),
                "-loggerLevel=ERROR".to_owned(),
            ],
            base: format!("http://127.0.0.1:{v}"),
            push: "/api/v1/write",
            ready: "/health",
            flush: vec!["/internal/force_flush", "/internal/force_merge"],
            stored: data("victoria").join("data"),
        },
    ])
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone afterwards.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run(c: &Contender, fleet: &Fleet, concurrency: usize, runs: usize) -> Result<Outcome> {
    let child = Command::new(&c.program)
        .args(&c.args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", c.program.display()))?;
    let child = Running(child);
    let pid = child.0.id();
    wait_ready(c).await?;
    let idle_bytes = measure::resident_bytes(pid)?;
    let cpu = measure::cpu_seconds(pid)?;
    let sent = send::send(fleet, &format!("{}{}", c.base, c.push), "anonymous", concurrency).await?;
    let cpu_ingest = measure::cpu_seconds(pid)? - cpu;
    let resident = measure::resident_bytes(pid)?.saturating_sub(idle_bytes);
    if c.name == "VictoriaMetrics" {
        // Its fresh samples are not visible before a flush.
        post(&format!("{}{}", c.base, c.flush[0])).await?;
    }
    let cpu = measure::cpu_seconds(pid)?;
    let queries = bench::run(fleet, &c.base, Some(pid), runs).await?;
    let query_cpu = measure::cpu_seconds(pid)? - cpu;
    for path in &c.flush {
        post(&format!("{}{path}", c.base)).await?;
    }
    if c.name == "VictoriaMetrics" {
        // The merge goes on in the background after its answer.
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    let stored = measure::folder_bytes(&c.stored)?;
    Ok(Outcome {
        name: c.name,
        cpu_per_million: cpu_ingest / (sent.samples as f64 / 1e6),
        samples_per_second: sent.samples as f64 / sent.seconds,
        resident_per_series: resident as f64 / fleet.series_count() as f64,
        stored_per_sample: stored as f64 / sent.samples as f64,
        queries,
        query_cpu,
    })
}

async fn wait_ready(c: &Contender) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(60) {
        if reqwest::get(format!("{}{}", c.base, c.ready))
            .await
            .is_ok_and(|a| a.status().is_success())
        {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("{} is not ready after 60 s", c.name)
}

async fn post(url: &str) -> Result<()> {
    let answer = reqwest::Client::new().post(url).send().await?;
    if !answer.status().is_success() {
        bail!(
            "{url}: {}: {}",
            answer.status(),
            answer.text().await.unwrap_or_default()
        );
    }
    Ok(())
}

fn print_table(outcomes: &[Outcome]) {
    let row = |name: &str, value: &dyn Fn(&Outcome) -> String| {
        let cells: Vec<String> = outcomes.iter().map(value).collect();
        println!("| {name} | {} |", cells.join(" | "));
    };
    row("", &|o| o.name.to_owned());
    println!("|---|{}", "---|".repeat(outcomes.len()));
    row("CPU s per million samples", &|o| {
        format!("{:.2}", o.cpu_per_million)
    });
    row("samples/s", &|o| format!("{:.0}", o.samples_per_second));
    row("resident bytes per active series", &|o| {
        format!("{:.0}", o.resident_per_series)
    });
    row("stored bytes per sample", &|o| {
        format!("{:.2}", o.stored_per_sample)
    });
    row("CPU s of all queries", &|o| format!("{:.2}", o.query_cpu));
    println!("\nEach query: median ms / CPU ms / MiB grown (results)\n");
    row("", &|o| o.name.to_owned());
    println!("|---|{}", "---|".repeat(outcomes.len()));
    for i in 0..outcomes.first().map_or(0, |o| o.queries.len()) {
        row(&outcomes[0].queries[i].name, &|o| {
            let q = &o.queries[i];
            format!(
                "{:.1} / {:.1} / {:.1} ({})",
                q.median_ms,
                q.cpu_ms.unwrap_or(f64::NAN),
                q.growth_bytes.unwrap_or(0) as f64 / f64::from(1 << 20),
                q.results
            )
        });
    }
    print_ratios(outcomes);
}

/// The first contender's share of the others', as geometric mean over the queries that take the better of the others
/// more than 5 ms.
fn print_ratios(outcomes: &[Outcome]) {
    let Some((ours, others)) = outcomes.split_first() else {
        return;
    };
    let heavy: Vec<usize> = (0..ours.queries.len())
        .filter(|&i| {
            let best = others.iter().map(|o| o.queries[i].median_ms);
            best.fold(f64::INFINITY, f64::min) > 5.0
        })
        .collect();
    println!(
        "\nOver the {} queries that take the better peer more than 5 ms:\n",
        heavy.len()
    );
    for other in others {
        let mean = |of: &dyn Fn(&Timing) -> f64| {
            let sum: f64 = heavy
                .iter()
                .map(|&i| (of(&ours.queries[i]) / of(&other.queries[i])).ln())
                .sum();
            (sum / heavy.len() as f64).exp()
        };
        println!(
            "- {} takes {:.2} of the time and {:.2} of the CPU of {}",
            ours.name,
            mean(&|t| t.median_ms),
            mean(&|t| t.cpu_ms.unwrap_or(f64::NAN)),
            other.name
        );
    }
}
