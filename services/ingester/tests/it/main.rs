//! Ingesters in one process, over simulated disks, a bucket in memory and a paused clock.

mod blocks;
mod chaos;
mod durability;
mod harness;
mod repair;
