//! Long-term storage: serves reads of blocks as of one manifest version.
//!
//! **Data flow.** A querier pins a manifest version and asks [`BlockStore`] (a `koios_wire::StoreService`) for series of
//! listed blocks. *Plan*: the blocks are looked up in the manifest. *Merge*: the blocks' matching series are united in
//! label order. *Read*: window by window, their samples are looked up in the cache, and what is missing is read from the
//! pages it is on, which are fetched for a section of several windows at once, while the one before is decoded: of series up
//! to some thousand samples all, so that they can be kept, of longer ones what is around the range. They leave as chunks, for
//! who is in the same process and for others alike; of a chunk that is mostly outside the range only what is inside.
//!
//! **Invariants.** A read sees exactly the blocks it names or fails: it never shrinks (I4, I10). Runs of
//! different blocks may overlap: whoever reads them merges (I2). No byte is used before its checksum (I11). What a
//! read holds in memory does not grow with the number of series it returns, and its samples not with the number of
//! blocks either; labels that wait to be merged are bounded (I12).
//!
//! Beside the reads, and apart from them, a [`Compactor`] merges blocks and removes old ones, and an [`UploadService`] takes blocks of
//! Prometheus: see their modules.
//!
//! **Deliberately absent.** Recent samples, which are the ingesters'; quorum and
//! failover, which are the querier's.
//!
//! **Failure behaviour.** `BucketUnavailable` when the bucket does not answer, `NotFound` when a version or a block is gone,
//! `Corruption`, naming the block, when bytes are damaged: another store may still have good ones cached.
//! `ResourceExhausted` when more would have to be held than a read may. A stream that fails ends with the error and without its end.

mod bounds;
mod compact;
mod departed;
mod disk_metrics;
mod error;
mod exemplars;
mod labels;
mod masks;
mod merge;
mod metadata;
mod metrics;
mod plan;
mod sections;
mod service;
mod uploads;
mod window;

#[cfg(test)]
mod service_test;

pub use compact::{
    Announced, CompactionDeps, CompactionDuty, CompactionSettings, Compactor, DeletionWitness, Downsampling,
};
pub use service::{BlockStore, StoreSettings};
pub use uploads::UploadService;
