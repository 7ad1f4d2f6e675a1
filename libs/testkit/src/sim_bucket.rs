//! An object store that several simulated processes share, each by a handle of its own that fails, waits or dies alone.
//!
//! Model: an operation takes effect at one instant and is an await point before and after it. By the seed a handle is
//! refused with 503 for some operations in a row, loses the answer to what was done, waits, gets a body that breaks off,
//! with or without an error, sees what was there some seconds ago, is told of a conflict with nobody, or has a bit of a block
//! stored otherwise. An object that comes in pieces takes an operation for each, and is there with the last. Told so, a handle
//! stops before its n-th operation until it may go on, or dies at it, before or after its effect: from then on it answers
//! nothing, and whoever waits for it is to be dropped.

mod faults;
mod handle;
mod pieces;
#[cfg(test)]
mod sim_bucket_test;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use koios_runtime::{ClockHandle, RngHandle};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, Result};
use parking_lot::Mutex;

pub use faults::BucketFaults;
pub use handle::BucketHandle;

/// How long what was there before may still be seen.
const STALE_FOR: Duration = Duration::from_secs(5);

/// When an object changed, and what was there before.
type Before = (Duration, Option<Bytes>);

/// The objects, and what they were before. Clones share them.
#[derive(Clone, Debug)]
pub struct SimBucket {
    objects: Arc<InMemory>,
    /// Of objects that changed lately.
    before: Arc<Mutex<BTreeMap<Path, Before>>>,
    clock: ClockHandle,
    rng: RngHandle,
}

impl SimBucket {
    /// An empty store. What happens to its handles is decided by `rng`.
    pub fn new(clock: ClockHandle, rng: RngHandle) -> Self {
        Self::over(Arc::default(), clock, rng)
    }

    /// The same over objects that are there.
    pub fn over(objects: Arc<InMemory>, clock: ClockHandle, rng: RngHandle) -> Self {
        Self {
            objects,
            before: Arc::default(),
            clock,
            rng,
        }
    }

    /// The handle of one process. Nothing happens to it until it is told so.
    pub fn handle(&self, process: &str) -> BucketHandle {
        BucketHandle::new(self.clone(), process)
    }

    /// The tester's hand: the objects themselves.
    pub fn objects(&self) -> &Arc<InMemory> {
        &self.objects
    }

    /// The names of all objects, ascending.
    pub async fn names(&self) -> Vec<String> {
        let listed = self.objects.list(None).collect::<Vec<_>>().await;
        let names = listed.into_iter().filter_map(Result::ok);
        let mut names: Vec<String> = names.map(|o| o.location.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// Writes an object as the storage's own fault would: for damaged objects.
    pub async fn damage(&self, path: &str, bytes: Bytes) {
        let path = Path::from(path);
        let put = self.objects.put(&path, PutPayload::from_bytes(bytes)).await;
        put.expect("memory takes every object");
    }

    /// Notes what is there before it changes.
    async fn remember(&self, path: &Path) {
        let now = self.clock.elapsed();
        let bytes = match self.objects.get(path).await {
            Ok(found) => found.bytes().await.ok(),
            Err(_) => None,
        };
        let mut before = self.before.lock();
        before.retain(|_, (at, _)| now.saturating_sub(*at) < STALE_FOR);
        before.insert(path.clone(), (now, bytes));
    }

    /// What was there before a change that not everybody has seen yet.
    fn stale(&self, path: &Path) -> Option<Option<Bytes>> {
        let before = self.before.lock();
        let (at, bytes) = before.get(path)?;
        (self.clock.elapsed().saturating_sub(*at) < STALE_FOR).then(|| bytes.clone())
    }
}
