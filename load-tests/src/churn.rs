//! Memory while series come and go: all hosts are replaced by others, time and again.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::contender::contenders;
use crate::fleet::Fleet;
use crate::{measure, send};

/// How hosts are replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Churn {
    /// How often.
    pub(crate) generations: u32,
    /// Pause between two generations.
    pub(crate) pause: Duration,
}

/// Lines printed for a contender, at most.
const LINES_MAX: u32 = 12;

impl Churn {
    /// Sends one generation after the other to each contender and prints what is resident on the way: as many series are
    /// active at any time as one generation has.
    pub(crate) async fn run(&self, first: &Fleet, koios: &Path, concurrency: usize) -> Result<()> {
        let dir = tempfile::tempdir()?;
        let active = first.series_count();
        println!("{active} series at a time, {} generations", self.generations);
        println!("| | hours | series so far | MiB resident | the most, MiB |");
        println!("|---|---|---|---|---|");
        let every = self.generations.div_ceil(LINES_MAX);
        for contender in contenders(dir.path(), koios, first)? {
            let process = contender.start()?;
            contender.wait_ready().await?;
            for (generation, fleet) in (1..=self.generations).zip(self.fleets(*first)) {
                send::send(&fleet, &contender.push_url(), "anonymous", concurrency).await?;
                tokio::time::sleep(self.pause).await;
                if generation % every == 0 || generation == self.generations {
                    let hours = (fleet.end_ms() - first.start_ms) as f64 / 3.6e6;
                    let mib = |bytes: u64| bytes >> 20;
                    println!(
                        "| {} | {hours:.1} | {} | {} | {} |",
                        contender.name,
                        active * generation as usize,
                        mib(measure::resident_bytes(process.pid())?),
                        mib(measure::peak_bytes(process.pid())?),
                    );
                }
            }
            process.kill()?;
        }
        Ok(())
    }

    /// The generations: each begins where the one before ends, with other hosts.
    fn fleets(&self, first: Fleet) -> impl Iterator<Item = Fleet> {
        std::iter::successors(Some(first), |before| {
            Some(Fleet {
                first_host: before.host_numbers().end,
                start_ms: before.end_ms(),
                ..*before
            })
        })
        .take(self.generations as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_follow_one_another_and_share_no_host() {
        let first = Fleet {
            first_host: 0,
            hosts: 3,
            hosts_per_request: 1,
            scrapes: 4,
            interval_ms: 15_000,
            start_ms: 60_000,
            seed: 1,
        };
        let churn = Churn {
            generations: 3,
            pause: Duration::ZERO,
        };
        let fleets: Vec<Fleet> = churn.fleets(first).collect();
        let hosts: Vec<_> = fleets.iter().map(Fleet::host_numbers).collect();
        assert_eq!(hosts, [0..3, 3..6, 6..9]);
        let starts: Vec<_> = fleets.iter().map(|f| f.start_ms).collect();
        assert_eq!(starts, [60_000, 120_000, 180_000]);
        // Hosts scrape anywhere within an interval, so the next generation's first sample is later than the last before.
        assert!(fleets[1].time(3, 0) > fleets[0].time(2, 3));
    }
}
