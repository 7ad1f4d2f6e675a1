//! The whole cluster in one thread on simulated time, network and disks: crashes, partitions and a wiped disk, judged by
//! the oracle. A seed decides everything: the same seed gives the same trace.
//!
//! Each run is a process of its own, whose random numbers come from the seed down to the C library, so that not even the
//! order of a dependency's hash map can tell two runs of a seed apart.
//!
//! `KOIOS_SIM_SEED=7` replays one seed and prints its trace; `KOIOS_SIM_SEEDS=100` runs more of them.

mod sim;

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use sim::Simulation;

/// Seeds of an ordinary run.
const SEEDS: u64 = 20;
/// Starts each line of a trace, to tell it from what the test harness prints.
const MARK: &str = "sim:";

/// The state of what [`getrandom`] gives.
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// Stands in for the C library's source of randomness, from which the standard library keys its hash maps: a counter
/// through splitmix64.
#[expect(unsafe_code, reason = "the C library calls it")]
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    if buffer.is_null() {
        return -1;
    }
    // SAFETY: the caller owns `length` writable bytes at `buffer`, as getrandom(2) asks.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for byte in bytes.iter_mut() {
        let mut z = RANDOM.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *byte = (z >> 56) as u8;
    }
    isize::try_from(length).unwrap_or(-1)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|v| {
        v.parse()
            .unwrap_or_else(|_| panic!("{variable} is {v:?}, not a number"))
    })
}

#[test]
fn i15_the_cluster_keeps_its_promises_under_every_seed_and_replays_exactly() {
    if let Some(seed) = number("KOIOS_SIM_SEED") {
        return replay(seed);
    }
    for seed in 0..number("KOIOS_SIM_SEEDS").unwrap_or(SEEDS) {
        // Both at once: what else the machine does must not matter either.
        let runs = [start(seed), start(seed)];
        let [first, second] = runs.map(|run| trace(seed, run));
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
        assert!(
            first.len() > 50,
            "seed {seed}: the trace holds {} lines only",
            first.len()
        );
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the trace goes to the process that started this one"
)]
fn replay(seed: u64) {
    RANDOM.store(seed, Ordering::SeqCst);
    // The thread's hash keys must come from the seeded numbers too, so the run gets a fresh thread.
    let run = std::thread::Builder::new().spawn(move || Simulation::run(seed));
    let trace = run.map(std::thread::JoinHandle::join);
    match trace {
        Ok(Ok(trace)) => trace.iter().for_each(|line| println!("{MARK}{line}")),
        Ok(Err(_)) => panic!("seed {seed} failed, see above"),
        Err(e) => panic!("cannot start a thread: {e}"),
    }
}

fn start(seed: u64) -> std::process::Child {
    let program = std::env::current_exe().unwrap_or_else(|e| panic!("own program: {e}"));
    Command::new(program)
        .args([
            "--exact",
            "i15_the_cluster_keeps_its_promises_under_every_seed_and_replays_exactly",
            "--nocapture",
        ])
        .env("KOIOS_SIM_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start seed {seed}: {e}"))
}

fn trace(seed: u64, run: std::process::Child) -> Vec<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = run
        .wait_with_output()
        .unwrap_or_else(|e| panic!("seed {seed} cannot be waited for: {e}"));
    let stdout = String::from_utf8_lossy(&stdout);
    if !status.success() {
        panic!(
            "seed {seed} failed; replay: cargo xtask sim --seed {seed}\n{}",
            String::from_utf8_lossy(&stderr)
        );
    }
    stdout
        .lines()
        .filter_map(|l| l.split_once(MARK))
        .map(|(_, line)| line.to_owned())
        .collect()
}
