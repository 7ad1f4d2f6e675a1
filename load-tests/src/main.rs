//! Load generator, verifier, query benchmark and comparison with peers.
//!
//! **Data flow.** [`fleet`] computes any sample of a realistic fleet from a seed; `generate` sends it by remote write;
//! `verify` reads it back and compares bit for bit; `queries` times queries; `compare` does all of that to Koios,
//! Prometheus and VictoriaMetrics one after the other and prints them side by side; `latency`, `restart`, `cluster`,
//! `stored` and `churn` do one thing more each.
//!
//! **Invariants.** The same seed gives the same samples, so a verifier needs nothing from the generator's run.
//!
//! **Deliberately absent.** Assertions on speed: figures are for people.
//!
//! **Failure behaviour.** A push that is not acknowledged is retried and counted; a missing or different sample ends
//! `verify` with its series and time.
#![expect(clippy::print_stdout, reason = "a tool for people at a terminal")]
#![expect(
    clippy::disallowed_methods,
    reason = "load tests run in real time on the real machine"
)]

mod bench;
mod churn;
mod cluster;
mod compare;
mod contender;
mod fleet;
mod latency;
mod measure;
mod restart;
mod send;
mod stored;
mod verify;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

/// Load tests of Koios and its peers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The fleet whose metrics are sent.
#[derive(Args, Clone, Debug)]
struct FleetArgs {
    /// Hosts, about 1,000 series each.
    #[arg(long, default_value_t = 10)]
    hosts: u32,
    /// Hosts whose samples one request carries; Prometheus sends 2,000 samples at a time unless told otherwise.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    hosts_per_request: u16,
    /// Scrapes of each series.
    #[arg(long, default_value_t = 240)]
    scrapes: u32,
    /// Milliseconds between scrapes.
    #[arg(long, default_value_t = 15_000)]
    interval_ms: i64,
    /// Time of the first scrape, milliseconds since the Unix epoch; so that the last is a minute ago when left out.
    #[arg(long)]
    start_ms: Option<i64>,
    /// Decides every label, value and jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Sends a fleet's samples by remote write.
    Generate {
        #[command(flatten)]
        fleet: FleetArgs,
        /// Remote-write URL.
        #[arg(long, default_value = "http://127.0.0.1:9009/api/v1/push")]
        url: String,
        /// Tenant.
        #[arg(long, default_value = "anonymous")]
        tenant: String,
        /// Requests in flight.
        #[arg(long, default_value_t = 4)]
        concurrency: usize,
    },
    /// Reads a fleet's samples back and checks that each is there exactly once, bit for bit.
    Verify {
        #[command(flatten)]
        fleet: FleetArgs,
        /// Base URL of the query API.
        #[arg(long, default_value = "http://127.0.0.1:9009")]
        url: String,
        /// Tenant.
        #[arg(long, default_value = "anonymous")]
        tenant: String,
    },
    /// Times queries over a fleet's samples.
    Queries {
        #[command(flatten)]
        fleet: FleetArgs,
        /// Base URL of the query API.
        #[arg(long, default_value = "http://127.0.0.1:9009")]
        url: String,
        /// The server's process id, to count its CPU time and memory.
        #[arg(long)]
        pid: Option<u32>,
        /// Runs of each query at least; the median counts.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Runs Koios, Prometheus and VictoriaMetrics one after the other on the same load and prints a table.
    Compare {
        #[command(flatten)]
        side: SideBySide,
        /// Runs of each query; the median counts.
        #[arg(long, default_value_t = 5)]
        runs: usize,
    },
    /// Measures how long writes take at half of the rate that each of the three can take.
    Latency {
        #[command(flatten)]
        side: SideBySide,
    },
    /// Kills each of the three right after a load, and measures how long it takes to be ready again.
    Restart {
        #[command(flatten)]
        side: SideBySide,
        #[command(flatten)]
        starts: restart::Starts,
    },
    /// Compares the bytes of a sample as each of the three stores it in the end, and measures compaction. Unless told
    /// otherwise the load begins at the last midnight (UTC) that lets it end before the current day began.
    Stored {
        #[command(flatten)]
        side: SideBySide,
        /// Measures Koios alone.
        #[arg(long)]
        alone: bool,
    },
    /// Measures memory while all hosts are replaced by others, time and again; `--scrapes` is how long each lives.
    Churn {
        #[command(flatten)]
        side: SideBySide,
        /// How often all hosts are replaced.
        #[arg(long, default_value_t = 48, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        generations: u32,
        /// Seconds between one generation's last scrape and the next one's first, in which a contender can write out what
        /// is over: hours are sent in seconds, which it does not expect.
        #[arg(long, default_value_t = 5)]
        pause_s: u64,
    },
    /// Compares what a sample costs in one process and in three zones.
    Cluster {
        #[command(flatten)]
        side: SideBySide,
    },
}

/// A load for several programs.
#[derive(Args, Clone, Debug)]
struct SideBySide {
    #[command(flatten)]
    fleet: FleetArgs,
    /// The koios program.
    #[arg(long, default_value = "target/release/koios")]
    koios: PathBuf,
    /// Requests in flight.
    #[arg(long, default_value_t = 4)]
    concurrency: usize,
}

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

impl FleetArgs {
    /// Lets the load begin at a midnight (UTC), the last that has it end before the current day began, unless its begin was
    /// chosen: blocks are merged up to a day once the day has ended.
    fn begin_at_midnight(&mut self) {
        let days = (self.length_ms() + DAY_MS - 1) / DAY_MS;
        let today = measure::now_ms() / DAY_MS;
        self.start_ms.get_or_insert((today - days) * DAY_MS);
    }

    /// Milliseconds that the scrapes take.
    fn length_ms(&self) -> i64 {
        self.interval_ms * i64::from(self.scrapes)
    }

    fn fleet(&self) -> fleet::Fleet {
        let start_ms = self.start_ms.unwrap_or_else(|| {
            let latest = measure::now_ms() - 60_000 - self.length_ms();
            latest - latest.rem_euclid(self.interval_ms)
        });
        fleet::Fleet {
            first_host: 0,
            hosts: self.hosts,
            hosts_per_request: usize::from(self.hosts_per_request),
            scrapes: self.scrapes,
            interval_ms: self.interval_ms,
            start_ms,
            seed: self.seed,
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Generate {
            fleet,
            url,
            tenant,
            concurrency,
        } => {
            let fleet = fleet.fleet();
            let sent = send::send(&fleet, &url, &tenant, concurrency).await?;
            println!(
                "sent {} samples of {} series in {:.1} s ({:.0} samples/s), {} retries; start-ms {}",
                sent.samples,
                fleet.series_count(),
                sent.seconds,
                sent.samples as f64 / sent.seconds,
                sent.retries,
                fleet.start_ms
            );
        }
        Command::Verify { fleet, url, tenant } => {
            let checked = verify::verify(&fleet.fleet(), &url, &tenant).await?;
            println!("verified {checked} samples: each is there exactly once, bit for bit");
        }
        Command::Queries {
            fleet,
            url,
            pid,
            runs,
        } => {
            for timing in bench::run(&fleet.fleet(), &url, pid, runs).await? {
                println!(
                    "{:<28} {:>9.2} ms {:>9.2} CPU ms {:>8.1} MiB  {} results",
                    timing.name,
                    timing.median_ms,
                    timing.cpu_ms.unwrap_or(f64::NAN),
                    timing.growth_bytes.unwrap_or(0) as f64 / f64::from(1 << 20),
                    timing.results
                );
            }
        }
        Command::Compare { side, runs } => {
            compare::compare(&side.fleet.fleet(), &side.koios, side.concurrency, runs).await?;
        }
        Command::Latency { side } => {
            latency::latency(&side.fleet.fleet(), &side.koios, side.concurrency).await?;
        }
        Command::Restart { side, starts } => {
            restart::restart(&side.fleet.fleet(), &side.koios, side.concurrency, starts).await?;
        }
        Command::Stored { mut side, alone } => {
            side.fleet.begin_at_midnight();
            stored::stored(&side.fleet.fleet(), &side.koios, side.concurrency, alone).await?;
        }
        Command::Churn {
            mut side,
            generations,
            pause_s,
        } => {
            let latest = measure::now_ms() - 60_000;
            let lasts = side.fleet.length_ms() * i64::from(generations);
            side.fleet.start_ms.get_or_insert(latest - lasts);
            let churn = churn::Churn {
                generations,
                pause: std::time::Duration::from_secs(pause_s),
            };
            churn
                .run(&side.fleet.fleet(), &side.koios, side.concurrency)
                .await?;
        }
        Command::Cluster { side } => {
            cluster::cluster(&side.fleet.fleet(), &side.koios, side.concurrency).await?;
        }
    }
    Ok(())
}
