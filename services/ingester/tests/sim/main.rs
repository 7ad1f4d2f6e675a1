//! One ingester on a simulated disk, clock, bucket and processor, under faults of all of them, judged by the oracle:
//! acknowledged ⊆ recovered ⊆ sent, each float and native histogram once, bit for bit, with its start timestamp; exemplars and metadata
//! as well. A seed decides everything.
//!
//! `KOIOS_SIM_SEED=17` replays one seed and prints its schedule; `KOIOS_SIM_SEEDS=20000` runs so many of them, from
//! `KOIOS_SIM_FROM` on. `cargo xtask sim-disk` does both.

#[cfg(test)]
mod actors;
#[cfg(test)]
mod bucket;
#[cfg(test)]
mod clock;
#[cfg(test)]
mod deletions;
#[cfg(test)]
mod histograms;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod life;
#[cfg(test)]
mod metadata;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod run;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod trace;
#[cfg(test)]
mod traffic;
#[cfg(test)]
mod values;
#[cfg(test)]
mod world;
