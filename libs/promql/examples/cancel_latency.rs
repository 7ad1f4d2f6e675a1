//! Prints how long heavy queries go on after they were told to stop, as they have a core and as time passes: for each the
//! worst of some times.
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
    let mut worst = (Duration::ZERO, Duration::ZERO);
    let ms = |d: Duration| d.as_secs_f64() * 1e3;
    println!("  busy ms, passed ms, times stopped");
    for query in hostile::HEAVY {
        let all = DELAYS_MS.map(|delay| cancel::after(query, Duration::from_millis(delay)));
        let stopped = all.iter().filter(|ended| ended.stopped);
        let busy = stopped
            .clone()
            .filter_map(|ended| ended.busy)
            .max()
            .unwrap_or_default();
        let passed = stopped
            .clone()
            .map(|ended| ended.latency)
            .max()
            .unwrap_or_default();
        println!(
            "{:>9.3}, {:>9.3}, {}: {query}",
            ms(busy),
            ms(passed),
            stopped.count()
        );
        worst = (worst.0.max(busy), worst.1.max(passed));
    }
    println!("{:>9.3}, {:>9.3} at worst", ms(worst.0), ms(worst.1));
}
