//! Which stores failed at some blocks, in one read, and whether others are worth asking.

use std::time::Duration;

use koios_promql::QueryError;
use koios_wire::{ServiceError, ServiceErrorCode};

use super::super::topology::StoreMember;
use super::board::Why;

/// Stores that cannot reach the bucket until it is the bucket's fault, as it seems, and not theirs.
const STORES_WITHOUT_BUCKET: usize = 2;
/// How often blocks are read on by a store that failed at them before, when no other is left: a query that ends every store
/// that reads for it must come to an end itself.
const AGAIN_MAX: u32 = 3;

/// That a store failed, why, and when.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) store: String,
    error: ServiceError,
    /// On the monotonic clock.
    at: Duration,
}

impl Failure {
    pub(super) fn new(store: &str, error: ServiceError, at: Duration) -> Self {
        Self {
            store: store.to_owned(),
            error,
            at,
        }
    }
}

/// Whether a failure is of the store, whatever it was asked for: another one may well do better.
pub(super) fn is_of_store(code: ServiceErrorCode) -> bool {
    matches!(
        code,
        ServiceErrorCode::Unavailable
            | ServiceErrorCode::DeadlineExceeded
            | ServiceErrorCode::Unimplemented
            | ServiceErrorCode::BucketUnavailable
    )
}

/// Which stores failed at some blocks, in one read.
#[derive(Clone, Debug, Default)]
pub(super) struct Tried {
    failures: Vec<Failure>,
    /// Lag, and are waited for elsewhere.
    lagging: Vec<String>,
    /// Whether a store is asked that had failed, and how often one of these has answered.
    is_again: bool,
    again: u32,
}

impl Tried {
    /// The same beside stores that lag.
    pub(super) fn beside(&self, lagging: &[String]) -> Self {
        Self {
            lagging: lagging.to_vec(),
            ..self.clone()
        }
    }

    /// The same once a store has answered, and nothing lags any more.
    pub(super) fn answered(&self) -> Self {
        Self {
            is_again: false,
            again: self.again + u32::from(self.is_again),
            ..self.beside(&[])
        }
    }

    /// Takes note of what failed beside; of a store that did before the last failure counts.
    pub(super) fn add(&mut self, failures: impl IntoIterator<Item = Failure>) {
        self.is_again = false;
        for failure in failures {
            self.forget(&failure.store);
            self.failures.push(failure);
        }
    }

    fn forget(&mut self, store: &str) {
        self.failures.retain(|f| f.store != store);
    }

    pub(super) fn into_failures(self) -> Vec<Failure> {
        self.failures
    }

    /// Stores that failed or lag.
    fn attempts(&self) -> usize {
        self.failures.len() + self.lagging.len()
    }

    /// Stores that could not reach the bucket.
    fn without_bucket(&self) -> usize {
        let is_without = |f: &&Failure| f.error.code == ServiceErrorCode::BucketUnavailable;
        self.failures.iter().filter(is_without).count()
    }

    /// Whether asking one store more would be asking too many: a fault of the blocks, which all stores share, costs each
    /// block a few reads, however many stores there are.
    pub(super) fn is_enough(&self, replication: usize) -> bool {
        let of_blocks = self.failures.iter().filter(|f| !is_of_store(f.error.code));
        of_blocks.count() > replication.max(2)
    }

    /// Whether only those are left to be asked that have not failed at anything in this read: as many stores have failed as
    /// may die at once, or the bucket seems to be down. The bucket is tried from a second store in any case, as the first may
    /// be cut off from it.
    pub(super) fn is_last_resort(&self, replication: usize) -> bool {
        self.attempts() > replication.max(2) || self.without_bucket() >= STORES_WITHOUT_BUCKET
    }

    /// Whether the blocks are all asked of one store from now on: their first failure spreads a dead store's load over all
    /// others, a second one says that more is wrong than one store.
    pub(super) fn keeps_together(&self) -> bool {
        self.attempts() >= 2 || self.without_bucket() > 0
    }

    pub(super) fn has(&self, store: &StoreMember) -> bool {
        self.lagging.contains(&store.name) || self.failures.iter().any(|f| f.store == store.name)
    }

    pub(super) fn why(&self) -> Why {
        match (self.lagging.is_empty(), self.failures.is_empty()) {
            (false, _) => Why::Hedge,
            (true, true) if !self.is_again && self.again == 0 => Why::Assigned,
            (true, _) => Why::Failover,
        }
    }

    /// Stores that may be asked once more when no other is left, and when they failed: those that could not be reached, as
    /// while they are started anew. None where a store that lags is waited for anyway, or after that was done often enough.
    pub(super) fn lost(&self) -> impl Iterator<Item = (&str, Duration)> {
        let may_be_asked = self.lagging.is_empty() && self.again < AGAIN_MAX;
        let is_lost = move |f: &&Failure| may_be_asked && f.error.code == ServiceErrorCode::Unavailable;
        self.failures
            .iter()
            .filter(is_lost)
            .map(|f| (f.store.as_str(), f.at))
    }

    /// How often a store that had failed went on with them.
    pub(super) fn again(&self) -> u32 {
        self.again
    }

    /// Whether a store is asked that had failed.
    pub(super) fn is_again(&self) -> bool {
        self.is_again
    }

    /// Takes note that a store that had failed is asked once more.
    pub(super) fn ask_again(&mut self, store: &str) {
        self.forget(store);
        self.is_again = true;
    }
}

/// What the query is told: damage first, since that is what somebody must look at. Where others could not be asked they may have it whole.
pub(super) fn unread(blocks: &[String], failures: &[Failure]) -> QueryError {
    if failures.is_empty() {
        let text = format!("{} blocks cannot be read: no store member is known", blocks.len());
        return QueryError::unavailable(text);
    }
    let damage = failures
        .iter()
        .find(|f| f.error.code == ServiceErrorCode::Corruption);
    let what = match (damage, blocks) {
        (Some(f), _) => f.error.message.clone(),
        (None, [one]) => format!("block {one} cannot be read"),
        (None, [first, ..]) => format!("{} blocks ({first}, …) cannot be read", blocks.len()),
        (None, []) => "no block was read".to_owned(),
    };
    let stores: Vec<_> = failures
        .iter()
        .map(|Failure { store, error, .. }| format!("{store}: {error}"))
        .collect();
    // What is wrong with blocks is not asked of all stores.
    let rest = match failures.iter().all(|f| is_of_store(f.error.code)) {
        true => ": no other store is left to ask",
        false => "",
    };
    let asked = stores.join("; ");
    // What is damaged for all who looked is so the next time, too: to ask again would not help.
    match failures
        .iter()
        .all(|f| f.error.code == ServiceErrorCode::Corruption)
    {
        true => QueryError::internal(format!("{what}; asked {asked}{rest}")),
        false => QueryError::unavailable(format!("unavailable: {what}; asked {asked}{rest}")),
    }
}
