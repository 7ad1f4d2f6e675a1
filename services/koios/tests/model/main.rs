//! The life of samples in the bucket against a model in memory: cuts, uploads, merges, summaries, deletions, garbage
//! collection, crashes. The actors are the real ingester, compactor, store, deletions and querier, over a simulated disk
//! and bucket; whatever happens, a read gives what the model says, and in the end the bucket holds that and nothing else.
//!
//! *Scripts* die at every operation on the bucket, before and after its effect. *Pairs* do one step whole before every
//! operation of another. *Seeds* do anything at any time: `KOIOS_MODEL_SEED=17` replays one and prints what happened,
//! `KOIOS_MODEL_SEEDS=2000` runs so many from `KOIOS_MODEL_FROM` on. `cargo xtask sim-bucket` does both.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests, too, fail by panicking and report by printing"
)]

#[cfg(test)]
mod boot;
#[cfg(test)]
mod content;
#[cfg(test)]
mod held;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod network;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod pairs;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod rebuilding;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod settle;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod world;
