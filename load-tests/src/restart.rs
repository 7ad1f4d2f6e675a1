//! What a load leaves in memory, and how long a contender takes to come back from `kill -9`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::contender::contenders;
use crate::fleet::Fleet;
use crate::{measure, send};

/// Sends the fleet to each contender, kills it right after the last acknowledgement, and starts it again.
pub(crate) async fn restart(fleet: &Fleet, koios: &Path, concurrency: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let series = fleet.series_count() as f64;
    println!("{series} series, {} samples", fleet.sample_count());
    println!(
        "| | CPU s per million samples | samples/s | resident bytes per series | s until ready again | CPU s of it | peak while \
         starting, of the resident memory before | a minute later |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for contender in contenders(dir.path(), koios, fleet)? {
        let process = contender.start()?;
        contender.wait_ready().await?;
        let idle = measure::resident_bytes(process.pid())?;
        let cpu = measure::cpu_seconds(process.pid())?;
        let sent = send::send(fleet, &contender.push_url(), "anonymous", concurrency).await?;
        let cpu = measure::cpu_seconds(process.pid())? - cpu;
        let resident = measure::resident_bytes(process.pid())?;
        process.kill()?;
        let process = contender.start()?;
        let ready = contender.wait_ready().await?;
        let start_cpu = measure::cpu_seconds(process.pid())?;
        let peak = measure::peak_bytes(process.pid())?;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let later = measure::resident_bytes(process.pid())?;
        println!(
            "| {} | {:.2} | {:.0} | {:.0} | {:.2} | {start_cpu:.2} | {:.2} | {:.2} |",
            contender.name,
            cpu / (sent.samples as f64 / 1e6),
            sent.rate(),
            resident.saturating_sub(idle) as f64 / series,
            ready.as_secs_f64(),
            peak as f64 / resident as f64,
            later as f64 / resident as f64,
        );
        process.kill()?;
    }
    Ok(())
}
