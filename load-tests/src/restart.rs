//! What a load leaves in memory, and how long a contender takes to come back from `kill -9`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::contender::{Contender, contenders};
use crate::fleet::Fleet;
use crate::{measure, send};

/// How the starts are measured.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct Starts {
    /// Starts of each contender, each with what was left when it was killed.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    starts: u32,
    /// Measures Koios alone.
    #[arg(long)]
    alone: bool,
    /// Seconds between a start and the look at what it keeps in memory.
    #[arg(long, default_value_t = 60)]
    settle_s: u64,
}

/// Sends the fleet to each contender, kills it right after the last acknowledgement, and starts it again.
pub(crate) async fn restart(fleet: &Fleet, koios: &Path, concurrency: usize, how: Starts) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let series = fleet.series_count() as f64;
    println!("{series} series, {} samples", fleet.sample_count());
    println!(
        "| | CPU s per million samples | samples/s | resident bytes per series | s until ready again | CPU s of it | peak while \
         starting, of the resident memory before | a minute later |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let all = contenders(dir.path(), koios, fleet)?;
    for contender in all.iter().take(if how.alone { 1 } else { all.len() }) {
        let process = contender.start()?;
        contender.wait_ready().await?;
        let idle = measure::resident_bytes(process.pid())?;
        let cpu = measure::cpu_seconds(process.pid())?;
        let sent = send::send(fleet, &contender.push_url(), "anonymous", concurrency).await?;
        let cpu = measure::cpu_seconds(process.pid())? - cpu;
        let resident = measure::resident_bytes(process.pid())?;
        process.kill()?;
        let left = dir.path().join("left");
        if how.starts > 1 {
            copy_folder(&contender.data, &left)?;
        }
        for start in 0..how.starts {
            if start > 0 {
                std::fs::remove_dir_all(&contender.data)?;
                copy_folder(&left, &contender.data)?;
            }
            let begun = measure_start(contender, resident as f64, how).await?;
            println!(
                "| {} | {:.2} | {:.0} | {:.0} | {begun} |",
                contender.name,
                cpu / (sent.samples as f64 / 1e6),
                sent.rate(),
                resident.saturating_sub(idle) as f64 / series,
            );
        }
        if how.starts > 1 {
            std::fs::remove_dir_all(&left)?;
        }
    }
    Ok(())
}

/// Starts a contender, and says what that took.
async fn measure_start(contender: &Contender, resident: f64, how: Starts) -> Result<String> {
    let process = contender.start()?;
    let ready = contender.wait_ready().await?;
    let cpu = measure::cpu_seconds(process.pid())?;
    let peak = measure::peak_bytes(process.pid())?;
    tokio::time::sleep(Duration::from_secs(how.settle_s)).await;
    let later = measure::resident_bytes(process.pid())?;
    process.kill()?;
    Ok(format!(
        "{:.2} | {cpu:.2} | {:.2} | {:.2}",
        ready.as_secs_f64(),
        peak as f64 / resident,
        later as f64 / resident,
    ))
}

/// Copies a folder with all below it.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
