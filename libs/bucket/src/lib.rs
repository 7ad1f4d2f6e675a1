//! Object-store layout, tenant manifests, block upload and ranged reads, retries and self-test.
//!
//! **Data flow.** The ingester uploads blocks ([`Bucket::upload_block`]) and lists them ([`Bucket::commit`]); the store
//! pins a version ([`TenantManifests`]), opens blocks ([`Blocks`]) and commits compactions; the control plane backs its
//! state up ([`Bucket::put_control_backup`]). docs/formats/manifest.md describes the layout.
//!
//! **Invariants.** Manifest versions are immutable and have no gap; creating the next one is the commit, and exactly one
//! writer creates it. A name that was declared dead is never listed again (I10). A writer that sees a higher epoch for
//! its resource changes nothing (I14). A manifest that lost versions is an
//! error, not an empty one. Nothing on a query's or writer's path lists, but for a tenant that has no version.
//!
//! **Deliberately absent.** What to compact, retain or delete (the store service), and when to cut (the ingester).
//!
//! **Failure behaviour.** All requests are retried here, with a deadline, through the injected clock; the store's own
//! retries are off. [`Error::is_transient`] tells what may pass. A commit that may or may not have happened is
//! [`Error::Unknown`], never success and never failure.

mod blocks;
mod bucket;
mod cluster;
mod commit;
mod compiled_rules;
mod disk_cache;
mod error;
mod imports;
mod layout;
mod listing;
mod lost;
mod manifest;
mod pieces;
mod put_off;
mod ranges;
mod rebuild;
mod retention;
mod retry;
mod self_test;
mod store;
mod tenants;
mod tombstone;
mod uploads;
mod verdict;

pub use blocks::{Blocks, BucketRangeRead};
pub use bucket::Bucket;
pub use disk_cache::{DiskCache, DiskCacheSettings, DiskCacheStats, DiskCacheWriter, DiskReserve};
pub use error::{Error, Result};
pub use imports::ImportedBlock;
pub use lost::Unlisted;
pub use manifest::{Coverage, DeadBlock, MANIFEST_FORMAT, Manifest, ManifestBlock, Nonce, Writer};
pub use put_off::{Failures, PutOff};
pub use rebuild::{LeftOut, Rebuild};
pub use retention::{ListedRule, RetentionOrigin, RetentionPolicy, RetentionRecord, SummaryRetention};
pub use retry::RetryPolicy;
pub use tenants::TenantManifests;
pub use tombstone::{Tombstone, TombstoneMatcher, TombstoneState};
pub use uploads::FileUpload;
pub use verdict::Rejection;
