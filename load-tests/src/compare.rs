//! The same load on Koios, Prometheus and VictoriaMetrics, one after the other, side by side.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bench::{self, Timing};
use crate::contender::{Contender, contenders};
use crate::fleet::Fleet;
use crate::{measure, send};

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

async fn run(c: &Contender, fleet: &Fleet, concurrency: usize, runs: usize) -> Result<Outcome> {
    let process = c.start()?;
    let pid = process.pid();
    c.wait_ready().await?;
    let idle_bytes = measure::resident_bytes(pid)?;
    let cpu = measure::cpu_seconds(pid)?;
    let sent = send::send(fleet, &c.push_url(), "anonymous", concurrency).await?;
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

/// Posts nothing to `url`, which must answer well.
pub(crate) async fn post(url: &str) -> Result<()> {
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
