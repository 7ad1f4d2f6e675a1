//! Places for requests in flight: so many in all, of which a tenant that has half gets more only while others find some, lest one
//! whose requests stall keeps out all others (I6). Where there is one tenant only it is the better part of them.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many requests are answered at once, by tenant.
#[derive(Debug)]
pub(crate) struct Places {
    in_all: usize,
    /// So many one tenant may have at any time.
    of_one: usize,
    /// So many are left for tenants with fewer.
    of_others: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_tenant: HashMap<Arc<str>, usize>,
}

/// Why there is no place for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error(
        "too many requests in flight (limit: {0}, as many are answered now): try again or raise http.max-requests-in-flight"
    )]
    InAll(usize),
    #[error(
        "too many requests of the tenant in flight (limit: {limit} while {of_others} of {in_all} or fewer are free): try again, send \
         fewer at once, or raise http.max-requests-in-flight"
    )]
    OfTenant {
        limit: usize,
        of_others: usize,
        in_all: usize,
    },
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    tenants: Vec<Arc<str>>,
}

impl Places {
    pub(crate) fn new(in_all: usize) -> Self {
        Self {
            in_all,
            of_one: (in_all / 2).max(1),
            of_others: in_all.div_ceil(8),
            taken: Mutex::default(),
        }
    }

    /// Takes a place for a request of some tenants, which are distinct: one of those that each of them may have.
    ///
    /// # Errors
    /// [`Full`].
    pub(crate) fn take(self: &Arc<Self>, tenants: Vec<Arc<str>>) -> Result<Place, Full> {
        let mut taken = self.taken.lock();
        if taken.in_all >= self.in_all {
            return Err(Full::InAll(self.in_all));
        }
        let has_its_part = |tenant| taken.by_tenant.get(tenant).is_some_and(|of| *of >= self.of_one);
        if self.in_all - taken.in_all <= self.of_others && tenants.iter().any(has_its_part) {
            return Err(Full::OfTenant {
                limit: self.of_one,
                of_others: self.of_others,
                in_all: self.in_all,
            });
        }
        for tenant in &tenants {
            *taken.by_tenant.entry(Arc::clone(tenant)).or_default() += 1;
        }
        taken.in_all += 1;
        drop(taken);
        Ok(Place {
            places: Arc::clone(self),
            tenants,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        taken.in_all -= 1;
        for tenant in &self.tenants {
            let left = taken.by_tenant.get_mut(tenant).map(|of_tenant| {
                *of_tenant -= 1;
                *of_tenant
            });
            if left == Some(0) {
                taken.by_tenant.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes places for requests, each of some tenants.
    fn take(places: &Arc<Places>, tenants: &str) -> Result<Place, Full> {
        places.take(tenants.split('|').map(Arc::from).collect())
    }

    const OF_TENANT: Full = Full::OfTenant {
        limit: 8,
        of_others: 2,
        in_all: 16,
    };

    #[test]
    fn i6_one_tenant_leaves_places_to_others() {
        let places = Arc::new(Places::new(16));
        let mut stalled: Vec<Place> = (0..14).map(|_| take(&places, "a").unwrap()).collect();
        assert_eq!(take(&places, "a").unwrap_err(), OF_TENANT);
        let others = ["b", "c"].map(|tenant| take(&places, tenant).unwrap());
        assert_eq!(take(&places, "d").unwrap_err(), Full::InAll(16));
        // What becomes free is for those that have less than half.
        stalled.truncate(12);
        assert_eq!(take(&places, "a").unwrap_err(), OF_TENANT);
        drop((take(&places, "b").unwrap(), take(&places, "d").unwrap()));
        stalled.truncate(7);
        stalled.extend((0..5).map(|_| take(&places, "a").unwrap()));
        assert_eq!(take(&places, "a").unwrap_err(), OF_TENANT);
        drop((stalled, others));
        assert!(
            places.taken.lock().by_tenant.is_empty(),
            "nothing stays of who left"
        );
    }

    #[test]
    fn i6_a_request_of_several_tenants_is_one_of_each() {
        let places = Arc::new(Places::new(16));
        let stalled: Vec<Place> = (0..14)
            .map(|i| take(&places, &format!("a|{i}")).unwrap())
            .collect();
        for tenants in ["a", "a|b", "0|a"] {
            assert_eq!(take(&places, tenants).unwrap_err(), OF_TENANT, "{tenants}");
        }
        drop((take(&places, "0|1").unwrap(), take(&places, "b").unwrap()));
        drop(stalled);
        assert!(places.taken.lock().by_tenant.is_empty());
    }

    #[test]
    fn one_place_is_for_whoever_comes() {
        let places = Arc::new(Places::new(1));
        let place = take(&places, "a").unwrap();
        assert_eq!(take(&places, "b").unwrap_err(), Full::InAll(1));
        drop(place);
        take(&places, "b").unwrap();
    }
}
