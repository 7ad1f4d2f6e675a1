//! What replication costs: the same load on one process, and on a distributor with three ingesters in three zones.

use std::path::Path;

use anyhow::{Context, Result};

use crate::contender::{Running, contenders, port, wait_until_ok};
use crate::fleet::Fleet;
use crate::{measure, send};

/// Sends the fleet to both and prints what a sample took.
pub(crate) async fn cluster(fleet: &Fleet, koios: &Path, concurrency: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!(
        "{} series, {} samples",
        fleet.series_count(),
        fleet.sample_count()
    );
    println!("| | CPU s per million samples | samples/s | bytes sent to each member per sample |");
    println!("|---|---|---|---|");
    let contender = contenders(dir.path(), koios, fleet)?.swap_remove(0);
    let alone = contender.start()?;
    contender.wait_ready().await?;
    let one = load(fleet, &contender.push_url(), &[&alone], concurrency).await?;
    alone.kill()?;
    println!("| all in one | {:.2} | {:.0} | |", one.0, one.1);

    let zones = ["a", "b", "c"];
    let ports: Vec<(u16, u16)> = (0..4).map(|_| Ok((port()?, port()?))).collect::<Result<_>>()?;
    let voters: Vec<String> = zones
        .iter()
        .zip(&ports)
        .map(|(zone, (_, grpc))| format!("ingester-{zone}=127.0.0.1:{grpc}"))
        .collect();
    let age = contender.args.iter().find(|a| a.starts_with("--limits."));
    let age = age.context("the age that samples may have")?;
    let start = |target: &str, name: String, zone: &str, (http, grpc): (u16, u16)| {
        let args = [
            target.to_owned(),
            format!("--node.name={name}"),
            format!("--zone={zone}"),
            format!("--http.listen=127.0.0.1:{http}"),
            format!("--grpc.listen=127.0.0.1:{grpc}"),
            format!("--data-dir={}", dir.path().join(&name).display()),
            format!("--control.voters={}", voters.join(",")),
        ];
        let bucket = format!("--bucket=file://{}", dir.path().join("bucket").display());
        let more = match target {
            "ingester" => bucket,
            _ => age.clone(),
        };
        Running::start(koios, &[&args[..], &[more]].concat())
    };
    let mut processes = Vec::new();
    for (zone, at) in zones.iter().zip(&ports) {
        processes.push(start("ingester", format!("ingester-{zone}"), zone, *at)?);
    }
    let of_distributor = *ports.last().context("four ports")?;
    processes.push(start(
        "distributor",
        "distributor-1".to_owned(),
        "a",
        of_distributor,
    )?);
    for (http, _) in &ports {
        wait_until_ok(&format!("http://127.0.0.1:{http}/ready")).await?;
    }
    let base = format!("http://127.0.0.1:{}", of_distributor.0);
    let all: Vec<&Running> = processes.iter().collect();
    let three = load(fleet, &format!("{base}/api/v1/push"), &all, concurrency).await?;
    let metrics = reqwest::get(format!("{base}/metrics")).await?.text().await?;
    let sent = metrics
        .lines()
        .find_map(|l| l.strip_prefix("koios_distributor_sent_bytes_total "));
    let sent: f64 = sent
        .context("koios_distributor_sent_bytes_total")?
        .trim()
        .parse()?;
    let per_sample = sent / 3.0 / fleet.sample_count() as f64;
    println!(
        "| three zones | {:.2} | {:.0} | {per_sample:.1} |",
        three.0, three.1
    );
    println!(
        "\nA sample costs {:.2} times as much in three zones.",
        three.0 / one.0
    );
    Ok(())
}

/// CPU seconds per million samples of all processes together, and samples per second.
async fn load(fleet: &Fleet, url: &str, of: &[&Running], concurrency: usize) -> Result<(f64, f64)> {
    let cpu = || {
        of.iter()
            .map(|p| measure::cpu_seconds(p.pid()))
            .sum::<Result<f64>>()
    };
    let before = cpu()?;
    let sent = send::send(fleet, url, "anonymous", concurrency).await?;
    Ok(((cpu()? - before) / (sent.samples as f64 / 1e6), sent.rate()))
}
