//! Many seeds, on all cores; or one, told in full.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::judge::Totals;
use crate::run::{Outcome, run};

/// Seeds of an ordinary run.
const SEEDS: u64 = 200;
/// Every so many seeds are run twice, on different threads, to compare the runs.
const TWICE_EVERY: u64 = 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{variable} is {v:?}, not a number"))
    })
}

/// How to see a seed's schedule.
fn replay_with(seed: u64) -> String {
    format!("replay: cargo xtask sim-disk --seed {seed}")
}

/// Runs seeds on all cores and gives what they did in total.
fn run_all(seeds: Range<u64>, twice_every: u64) -> Totals {
    let next = AtomicU64::new(seeds.start);
    let (all, failures) = (Mutex::new(Totals::default()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run(seed);
            if let Some(failure) = judged(seed, &outcome, twice_every) {
                println!("{failure}");
                failures.lock().push(failure);
            }
            let mut all = all.lock();
            all.add(&outcome.totals);
            let done = seed + 1 - seeds.start;
            if done.is_multiple_of(500) {
                println!("{done} seeds, {} violations; {all:?}", failures.lock().len());
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    all.into_inner()
}

fn judged(seed: u64, outcome: &Outcome, twice_every: u64) -> Option<String> {
    if let Some(violation) = &outcome.violation {
        return Some(format!("seed {seed}: {violation}; {}", replay_with(seed)));
    }
    if !seed.is_multiple_of(twice_every) {
        return None;
    }
    let again = std::thread::scope(|scope| scope.spawn(|| run(seed)).join().unwrap());
    if again.hash == outcome.hash {
        return None;
    }
    let differs = outcome.lines.iter().zip(&again.lines).position(|(a, b)| a != b);
    Some(format!(
        "seed {seed}: two runs differ from line {differs:?} on (I15); {}",
        replay_with(seed)
    ))
}

fn replay(seed: u64) {
    let outcome = run(seed);
    outcome.lines.iter().for_each(|line| println!("{line}"));
    println!("seed {seed}: trace {:016x}, {:?}", outcome.hash, outcome.totals);
    if let Some(violation) = outcome.violation {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn i1_i2_i3_i11_hold_under_every_seed_and_i15_one_seed_is_one_run() {
    if let Some(seed) = number("KOIOS_SIM_SEED") {
        return replay(seed);
    }
    let (from, seeds) = (
        number("KOIOS_SIM_FROM").unwrap_or(0),
        number("KOIOS_SIM_SEEDS").unwrap_or(SEEDS),
    );
    let totals = run_all(from..from + seeds, TWICE_EVERY);
    println!("{seeds} seeds: {totals:?}");
    if seeds >= SEEDS {
        totals.check();
    }
}
