//! Prints how long heavy queries go on after they were told to stop: for each the worst of some times.
//!
//! ```sh
//! cargo run --release -p koios-promql --example cancel_latency
//! ```
#![allow(clippy::print_stdout, reason = "a report")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::{cancel, hostile};

/// When queries are told to stop, milliseconds after they began.
const DELAYS_MS: [u64; 6] = [5, 20, 50, 150, 400, 1_000];

fn main() {
    let mut worst = Duration::ZERO;
    for query in hostile::HEAVY {
        let all = DELAYS_MS.map(|delay| cancel::after(query, Duration::from_millis(delay)));
        let stopped = all.iter().filter(|ended| ended.stopped);
        let latency = stopped
            .clone()
            .map(|ended| ended.latency)
            .max()
            .unwrap_or_default();
        println!(
            "{:>9.3} ms, stopped {} times: {query}",
            latency.as_secs_f64() * 1e3,
            stopped.count()
        );
        worst = worst.max(latency);
    }
    println!("{:>9.3} ms at worst", worst.as_secs_f64() * 1e3);
}
