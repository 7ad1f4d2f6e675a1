//! The whole cluster in one thread on simulated time, network and disks: crashes, partitions and a wiped disk, judged by
//! the oracle. A seed decides everything: the same seed gives the same trace.
//!
//! `KOIOS_SIM_SEED=7` replays one seed and prints its trace; `KOIOS_SIM_SEEDS=100` runs more of them.

mod sim;

use sim::Simulation;

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{variable} is {v:?}, not a number"))
    })
}

#[test]
fn i15_the_cluster_keeps_its_promises_under_every_seed_and_replays_exactly() {
    if let Some(seed) = number("KOIOS_SIM_SEED") {
        let trace = Simulation::run(seed);
        println!("{}", trace.join("\n"));
        return;
    }
    for seed in 0..number("KOIOS_SIM_SEEDS").unwrap_or(SEEDS) {
        let first = Simulation::run(seed);
        let second = Simulation::run(seed);
        for (at, (a, b)) in first.iter().zip(&second).enumerate() {
            assert_eq!(
                a, b,
                "seed {seed}: the traces part at line {at}; replay: cargo xtask sim --seed {seed}"
            );
        }
        assert_eq!(
            first.len(),
            second.len(),
            "seed {seed}: one trace is longer; replay: cargo xtask sim --seed {seed}"
        );
    }
}
