//! Long-term storage: serves reads of blocks as of one manifest version.
//!
//! **Data flow.** A querier pins a manifest version and asks [`BlockStore`] (a `koios_wire::StoreService`) for series of
//! listed blocks. *Plan*: the blocks are looked up in the manifest. *Read*: each block streams its matching series and
//! their samples, fetching only the pages they are in, through caches. *Merge*: the blocks' streams are united in label
//! order, each sample once. *Encode*: batches of series leave as compressed chunks.
//!
//! **Invariants.** A read sees exactly the blocks it names or fails: it never shrinks (I4, I10). Of several values at
//! one timestamp the one rule of `koios_model::merge` chooses (I2). No byte is used before its checksum (I11). What a
//! read holds in memory does not grow with the number of series it returns.
//!
//! **Deliberately absent.** Compaction, retention and deletion; recent samples, which are the ingesters'; quorum and
//! failover, which are the querier's.
//!
//! **Failure behaviour.** `Unavailable` when the bucket does not answer, `NotFound` when a version or a block is gone,
//! `Corruption`, naming the block, when bytes are damaged: another store may still have good ones cached. A stream that
//! fails ends with the error and without its end.

mod encode;
mod error;
mod labels;
mod merge;
mod metrics;
mod plan;
mod service;

#[cfg(test)]
mod service_test;

pub use service::{BlockStore, StoreSettings};
