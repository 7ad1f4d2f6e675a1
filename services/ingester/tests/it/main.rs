//! Ingesters in one process, over simulated disks, a bucket in memory and a paused clock.

mod blocks;
mod durability;
mod harness;
mod repair;
