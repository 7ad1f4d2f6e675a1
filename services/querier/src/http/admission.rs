//! How many queries run at once: a process-wide bound, and a fair share of it per tenant (I6).

use std::collections::BTreeMap;
use std::sync::Arc;

use koios_model::TenantId;
use koios_server::ErrorType;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Most queries of one tenant that wait for a place.
const WAITING_MAX: usize = 200;

/// Lets queries in.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    /// No tenant gets more than this, so that others find a place.
    tenant_max: usize,
    /// No tenant evaluates more than this at once, so that others find a thread.
    evaluating_max: usize,
    tenants: Mutex<BTreeMap<TenantId, Share>>,
}

#[derive(Debug)]
struct Share {
    semaphores: Semaphores,
    /// Queries of the tenant, waiting ones included.
    queries: usize,
}

/// A tenant's own bounds.
#[derive(Clone, Debug)]
struct Semaphores {
    places: Arc<Semaphore>,
    turns: Turns,
}

/// A query's place, given back on drop.
#[derive(Debug)]
pub(crate) struct Place {
    _tenant: OwnedSemaphorePermit,
    _process: OwnedSemaphorePermit,
    _entry: Entry,
    turns: Turns,
}

impl Place {
    /// The tenant's share of the threads that evaluate.
    pub(crate) fn turns(&self) -> Turns {
        self.turns.clone()
    }
}

/// How many parts of a tenant's queries may be evaluated at once. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    /// Waits until the tenant may evaluate one more. Whoever holds a turn must not wait for another.
    pub(crate) async fn take(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.0).acquire_owned().await.map_err(closed)
    }
}

fn closed(_: tokio::sync::AcquireError) -> ApiError {
    ApiError::new(ErrorType::Unavailable, "the querier is stopping")
}

/// Counts a query of a tenant; the tenant is forgotten with the last one.
#[derive(Debug)]
struct Entry {
    admission: Arc<Admission>,
    tenant: TenantId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut tenants = self.admission.tenants.lock();
        if let Some(share) = tenants.get_mut(&self.tenant) {
            share.queries -= 1;
            if share.queries == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

impl Admission {
    /// At most `max` queries at once, of one tenant three quarters of that; of `threads` half for one tenant.
    pub(crate) fn new(max: usize, threads: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(max)),
            tenant_max: (max * 3 / 4).max(1),
            evaluating_max: (threads / 2).max(1),
            tenants: Mutex::default(),
        })
    }

    /// Waits for a place; the tenant's own limit comes first, so that its queue does not block others.
    pub(crate) async fn enter(self: &Arc<Self>, tenant: &TenantId, limit: usize) -> Result<Place, ApiError> {
        let (entry, share) = self.queue(tenant, limit)?;
        let Semaphores { places, turns } = share;
        let of_tenant = places.acquire_owned().await.map_err(closed)?;
        let of_process = Arc::clone(&self.places).acquire_owned().await.map_err(closed)?;
        Ok(Place {
            _tenant: of_tenant,
            _process: of_process,
            _entry: entry,
            turns,
        })
    }

    /// Whether no query runs or waits.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.tenants.lock().is_empty()
    }

    fn queue(self: &Arc<Self>, tenant: &TenantId, limit: usize) -> Result<(Entry, Semaphores), ApiError> {
        let limit = limit.min(self.tenant_max).max(1);
        let mut tenants = self.tenants.lock();
        let share = tenants.entry(tenant.clone()).or_insert_with(|| Share {
            semaphores: Semaphores {
                places: Arc::new(Semaphore::new(limit)),
                turns: Turns(Arc::new(Semaphore::new(self.evaluating_max))),
            },
            queries: 0,
        });
        if share.queries >= limit + WAITING_MAX {
            return Err(ApiError::new(
                ErrorType::TooManyRequests,
                format!(
                    "too many outstanding queries (limit: {limit} running, {WAITING_MAX} waiting): slow down"
                ),
            ));
        }
        share.queries += 1;
        let entry = Entry {
            admission: Arc::clone(self),
            tenant: tenant.clone(),
        };
        Ok((entry, share.semaphores.clone()))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn i6_one_tenant_cannot_take_every_place() {
        let admission = Admission::new(4, 4);
        let (noisy, other) = (TenantId::new("noisy").unwrap(), TenantId::new("other").unwrap());
        let mut held = Vec::new();
        while let Some(place) = admission.enter(&noisy, 100).now_or_never() {
            held.push(place.unwrap());
        }
        assert_eq!(held.len(), 3);
        let turns: Vec<_> = held.iter().map(Place::turns).collect();
        let evaluating: Vec<_> = turns.iter().filter_map(|t| t.take().now_or_never()).collect();
        assert_eq!(evaluating.len(), 2, "half of the threads");
        let place = admission
            .enter(&other, 100)
            .now_or_never()
            .expect("a place is left")
            .unwrap();
        drop(held);
        drop(place);
        assert!(admission.tenants.lock().is_empty());
        assert_eq!(admission.places.available_permits(), 4);
    }

    #[tokio::test]
    async fn queues_are_bounded_and_cancelled_waiters_leave() {
        let admission = Admission::new(4, 4);
        let tenant = TenantId::anonymous();
        let place = admission.enter(&tenant, 1).await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_MAX)
            .map(|_| Box::pin(admission.enter(&tenant, 1)))
            .collect();
        for w in &mut waiting {
            assert!(w.now_or_never().is_none());
        }
        let refused = admission.enter(&tenant, 1).await.unwrap_err();
        assert_eq!(refused.kind, ErrorType::TooManyRequests);
        drop(waiting);
        drop(place);
        assert!(admission.tenants.lock().is_empty());
    }
}
