//! What the stored form takes: bytes a sample as cut and after compaction, beside the peers' final forms, and what
//! compacting costs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::compare::post;
use crate::contender::{Contender, contenders};
use crate::fleet::Fleet;
use crate::{measure, send};

/// Longest wait for the bucket to come to rest.
const COMPACTION_MAX: Duration = Duration::from_secs(1800);
/// How often it is looked at.
const POLL: Duration = Duration::from_secs(1);
/// Looks in a row that must find nothing changed: a merge follows within seconds of what makes it due.
const STILL: usize = 20;
/// The same of a peer, one of which looks once a minute whether blocks are to be merged.
const PEER_STILL: usize = 100;

/// Sends the fleet to each contender, or to Koios alone, and prints the bytes that its final form takes, then compacts Koios' blocks.
pub(crate) async fn stored(fleet: &Fleet, koios: &Path, concurrency: usize, alone: bool) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!(
        "{} series, {} samples from {}",
        fleet.series_count(),
        fleet.sample_count(),
        fleet.start_ms
    );
    println!("| | bytes per sample | of Koios compacted |\n|---|---|---|");
    let mut rows = Vec::new();
    let mut compacted = None;
    let all = contenders(dir.path(), koios, fleet)?;
    for contender in all.iter().take(if alone { 1 } else { all.len() }) {
        let process = contender.start()?;
        contender.wait_ready().await?;
        let sent = send::send(fleet, &contender.push_url(), "anonymous", concurrency).await?;
        for path in &contender.flush {
            post(&format!("{}{path}", contender.base)).await?;
        }
        let per_sample = |bytes: u64| bytes as f64 / sent.samples as f64;
        let per_stored = || Ok::<_, anyhow::Error>(per_sample(measure::folder_bytes(&contender.stored)?));
        if compacted.is_none() {
            rows.push(("Koios as cut", per_stored()?));
            process.kill()?;
            let cost = compact(contender).await?;
            rows.push(("Koios compacted", per_stored()?));
            compacted = Some(cost);
            continue;
        }
        rest(&contender.data).await?;
        rows.push((contender.name, per_stored()?));
        if let Some((bytes, samples)) = prometheus_blocks(&contender.data)? {
            rows.push((
                "Prometheus, what its compacted blocks have",
                bytes as f64 / samples as f64,
            ));
        }
    }
    let ours = rows.iter().find(|(name, _)| *name == "Koios compacted");
    let ours = ours.map_or(f64::NAN, |(_, bytes)| *bytes);
    for (name, bytes) in rows {
        println!("| {name} | {bytes:.2} | {:.2} |", bytes / ours);
    }
    if let Some(cost) = compacted {
        println!(
            "\nCompaction: {} merges read {} samples in {:.1} s, {:.1} million a second; {:.1} million per CPU second of the \
             whole process; {:.0} MiB resident at most",
            cost.merges,
            cost.samples,
            cost.seconds,
            cost.samples / cost.seconds / 1e6,
            cost.samples / cost.cpu / 1e6,
            cost.peak as f64 / f64::from(1 << 20),
        );
    }
    Ok(())
}

/// What compacting took.
struct Cost {
    merges: f64,
    samples: f64,
    /// Sum over merges.
    seconds: f64,
    /// Of the process, the idle rest included.
    cpu: f64,
    peak: u64,
}

/// Starts the contender again so that it compacts at once, and waits until nothing is due and nothing is left to delete.
async fn compact(contender: &Contender) -> Result<Cost> {
    let mut eager = contender.clone();
    eager.args.extend(
        [
            "--store.compaction-delay=1s",
            "--store.compaction-interval=1s",
            "--store.deletion-delay=1s",
        ]
        .map(str::to_owned),
    );
    let process = eager.start()?;
    eager.wait_ready().await?;
    let (begun, cpu) = (Instant::now(), measure::cpu_seconds(process.pid())?);
    measure::forget_peak(process.pid())?;
    let (mut last, mut still) = ((0.0, 0), 0);
    let mut of_last_change = (cpu, 0);
    while still < STILL {
        if begun.elapsed() > COMPACTION_MAX {
            bail!("compaction did not come to rest within {COMPACTION_MAX:?}");
        }
        tokio::time::sleep(POLL).await;
        let metrics = reqwest::get(format!("{}/metrics", eager.base))
            .await?
            .text()
            .await?;
        let due = metric(&metrics, "koios_compaction_due_merges");
        let now = (
            metric(&metrics, "koios_compaction_merges_total").unwrap_or(0.0),
            measure::folder_bytes(&eager.stored)?,
        );
        if now == last && due == Some(0.0) {
            still += 1;
        } else {
            of_last_change = (
                measure::cpu_seconds(process.pid())?,
                measure::peak_bytes(process.pid())?,
            );
            (last, still) = (now, 0);
        }
    }
    let metrics = reqwest::get(format!("{}/metrics", eager.base))
        .await?
        .text()
        .await?;
    let of = |name: &str| metric(&metrics, name).with_context(|| name.to_owned());
    let cost = Cost {
        merges: of("koios_compaction_merges_total")?,
        samples: of("koios_compaction_samples_total")?,
        seconds: of("koios_compaction_merge_seconds_sum")?,
        cpu: of_last_change.0 - cpu,
        peak: of_last_change.1,
    };
    process.kill()?;
    Ok(cost)
}

/// The value of a metric's first series.
fn metric(exposed: &str, name: &str) -> Option<f64> {
    let line = exposed.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
    })?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Bytes and samples of the blocks in a data folder of Prometheus, if there are any: what is left in its head is not among them.
fn prometheus_blocks(data: &Path) -> Result<Option<(u64, u64)>> {
    let (mut bytes, mut samples) = (0, 0);
    for entry in std::fs::read_dir(data)? {
        let block = entry?.path();
        let Ok(meta) = std::fs::read(block.join("meta.json")) else {
            continue;
        };
        let meta: serde_json::Value = serde_json::from_slice(&meta)?;
        samples += meta["stats"]["numSamples"]
            .as_u64()
            .context("numSamples of a block")?;
        bytes += measure::folder_bytes(&block)?;
    }
    Ok((samples > 0).then_some((bytes, samples)))
}

/// Waits until a folder's size does not change any more: merges may go on in the background after their answer.
async fn rest(folder: &Path) -> Result<()> {
    let (mut last, mut still) = (0, 0);
    let begun = Instant::now();
    while still < PEER_STILL && begun.elapsed() < COMPACTION_MAX {
        tokio::time::sleep(POLL).await;
        let now = measure::folder_bytes(folder)?;
        still = if now == last { still + 1 } else { 0 };
        last = now;
    }
    Ok(())
}
