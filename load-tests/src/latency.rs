//! How long a write takes while half as much is sent as a contender can take.

use anyhow::Result;

use crate::contender::contenders;
use crate::fleet::Fleet;
use crate::send::{Sent, send_part};

/// Sends half of the scrapes as fast as each contender takes them, and the others at half of that rate.
pub(crate) async fn latency(fleet: &Fleet, koios: &std::path::Path, concurrency: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let half = fleet.scrapes / 2;
    println!("| | fastest, samples/s | then, samples/s | p50 ms | p99 ms | longest ms |");
    println!("|---|---|---|---|---|---|");
    for contender in contenders(dir.path(), koios, fleet)? {
        let process = contender.start()?;
        contender.wait_ready().await?;
        let url = contender.push_url();
        let part = async |scrapes, rate| -> Result<Sent> {
            send_part(fleet, scrapes, rate, &url, "anonymous", concurrency).await
        };
        let fastest = part(0..half, None).await?.rate();
        let paced = part(half..fleet.scrapes, Some(fastest / 2.0)).await?;
        println!(
            "| {} | {fastest:.0} | {:.0} | {:.1} | {:.1} | {:.1} |",
            contender.name,
            paced.rate(),
            paced.latency_ms(0.5),
            paced.latency_ms(0.99),
            paced.latency_ms(1.0),
        );
        process.kill()?;
    }
    Ok(())
}
