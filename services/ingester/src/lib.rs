//! The ingester: logs batches durably, holds recent samples, answers for them, repairs itself, cuts blocks.
//!
//! **Data flow.** [`IngesterService::push`](koios_wire::IngesterService::push) checks the batch's epoch and appends it to
//! the write-ahead log; the log's committer syncs it and applies it to the head of its (partition, tenant), then the
//! push is answered. Reads copy from heads. The *cut* task cuts windows that have passed, uploads them as blocks, lists
//! them in the tenant's manifest, forgets what is listed and old, and lets log segments go that hold nothing unlisted.
//! The *repair* task compares batch sets with the other members of each partition and fetches what is missing. The
//! *epochs* task adopts new partition epochs.
//!
//! **Invariants.** What is answered is synced (I1) and visible (I5). State changes only by applying log records, in log
//! order, while running and on replay alike. A batch is refused only as a whole and only before it is logged. Nothing
//! is forgotten, and no segment removed, before a manifest lists a block that holds it (I9, I10). Once a partition's
//! epoch was adopted, which is logged, no batch of a lower one is acknowledged (I14). A member answers reads only while
//! it can serve everything it ever acknowledged (I4, I7).
//!
//! **Deliberately absent.** Tenant limits, but for how many exemplars are kept, and admission (distributors), routing,
//! merging with blocks (queriers), compaction (the store).
//!
//! **Failure behaviour.** A failed sync ends the process. A full disk refuses pushes with `Unavailable` and heals. A
//! bucket that is away delays cuts, nothing else. A damaged log makes the member not count until its peers, or an
//! operator, made it good.

mod apply;
mod carry;
mod conflict;
mod cut;
mod deletions;
mod deps;
mod epochs;
mod error;
mod fetch;
mod held_series;
mod http;
mod ingester;
mod metrics;
mod push;
mod read;
mod record;
mod references;
mod repair;
mod replay;
mod replica;
mod segments;
mod service;
mod settings;
mod settle;
mod snapshot;
mod store;
mod stored_otherwise;
mod streams;
mod truncate;

pub use deps::{ControlProposer, Deps, Peers};
pub use error::{Error, Result};
pub use http::router;
pub use ingester::{Ingester, IngesterStatus, PartitionStatus};
pub use settings::Settings;
